"""The configuration: what a user may write, and what is refused in one line that names the file and the place."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from portcullis.digest import canonical_json, parse_json
from portcullis.errors import ConfigError, UsageError
from portcullis.ledger.settings import LedgerSettings
from portcullis.quality.settings import QualitySettings
from portcullis.robustness.settings import RobustnessSettings
from portcullis.training.settings import TrainingSettings
from portcullis_pipelines.config import Quality, ReferenceConfig, Thresholds
from portcullis_pipelines.steps import STEPS

DATASET = """\
dataset:
  name: squares
  label: {column: kind, classes: [a, b]}
  features: {columns: ["v*"], shape: [1, 2, 2], low: 0, high: 1}
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text: str) -> ReferenceConfig:
        path = tmp_path / "config.yaml"
        path.write_text(DATASET + text)
        return ReferenceConfig.load(path)

    return write_and_load


def test_without_a_file_it_is_the_reference_datas():
    config = ReferenceConfig.load(None)
    assert config.dataset.name == "cheque-digits"
    assert (config.training, config.robustness, config.thresholds) == (
        TrainingSettings(),
        RobustnessSettings(),
        Thresholds(0.75, 0.9, 100),
    )


def test_only_the_data_set_is_required(load):
    config = load("")
    assert config.dataset.features.shape == (1, 2, 2)
    assert config == ReferenceConfig(dataset=config.dataset)


def test_every_section_reaches_the_configuration(load):
    config = load(
        """
masking: {entities: [EMAIL, PHONE], detection: recall}
split: {test_fraction: 0.5}
model: {architecture: mine, options: {width: 8, rate: 0.5}}
screening: {n_min: 50, neighbours: 5}
quality: {label_issues: 0.05, duplicate_rows: 1}
training: {method: trades, epsilon: 0.2, epochs: 3, learning_rate: 1}
robustness: {epsilon: 0.05, n_min: 7}
thresholds: {robust_accuracy: 0.5, clean_accuracy: 1, samples: 9}
"""
    )
    assert (list(config.masking.entities), config.test_fraction, config.architecture) == (
        ["EMAIL", "PHONE"],
        0.5,
        "mine",
    )
    assert config.masking.detection == "recall"
    assert config.options == {"width": 8, "rate": 0.5}
    assert config.training == TrainingSettings(method="trades", epsilon=0.2, epochs=3, learning_rate=1.0)
    assert type(config.training.learning_rate) is float
    assert config.robustness == RobustnessSettings(epsilon=0.05, n_min=7)
    assert config.thresholds == Thresholds(0.5, 1.0, 9)
    assert config.screening == QualitySettings(n_min=50, neighbours=5)
    assert config.quality == Quality(label_issues=0.05, duplicate_rows=1.0)


def test_a_threat_is_a_mapping_and_one_text_in_policy_and_pipeline(load):
    config = load("robustness: {queries: 700, threat: {mutable: {v1: {epsilon: 0.0000001, direction: up}}}}")
    text = '{"mutable":{"v1":{"direction":"up","epsilon":1e-7}}}'
    assert config.robustness == RobustnessSettings(threat=text, queries=700)
    assert (config.arguments("x")["attack_threat"], config.arguments("x")["attack_queries"]) == (text, 700)
    gates = [step.parameters(config) for step in STEPS if step.stage == "robustness_gate"]
    assert len(gates) == 2 and all((it["threat"], it["queries"]) == (text, 700) for it in gates)
    assert load(f"robustness: {{threat: '{text}'}}").robustness.threat == text
    assert ReferenceConfig.load(None).robustness.threat == ""


def test_a_threat_is_held_to_the_columns_that_are_declared():
    document = yaml.safe_load(DATASET.replace('["v*"]', "[v0, v1, v2, v3]"))
    for threat in ({}, {"mutable": {"nose": {"epsilon": 1}}}, {"mutable": {"v0": {"epsilon": 1, "direction": ["a"]}}}):
        with pytest.raises(ConfigError, match="threat: "):
            ReferenceConfig.from_dict(document | {"robustness": {"threat": threat}})
    assert ReferenceConfig.from_dict(document | {"robustness": {"threat": {"mutable": {"v0": {"epsilon": 1}}}}})


def test_what_the_pipeline_is_called_with_is_plain_json(load):
    arguments = load("model: {options: {width: 8}}").arguments("rows.csv")
    assert arguments["data_uri"] == "rows.csv" and arguments["architecture_options"] == {"width": 8}
    assert ReferenceConfig.load(None).arguments("x").keys() == arguments.keys()
    canonical_json(arguments)
    assert parse_json(arguments["dataset_spec"].encode())["name"] == "squares"


AGE = "{low: 18, high: 90, epsilon: 2, steps: 73}"
REST = "others: {features: keep, label: keep}, rows: keep"


def test_the_sections_of_the_later_stages(load):
    config = load(f"privacy: {{columns: {{age: {AGE}}}, budget: 2, {REST}}}\nwatermark: {{owner: us}}")
    arguments = config.arguments("x", gpus=2, gpu_resource="nvidia.com/mig-1g.10gb")
    assert arguments["noise_columns"] == {"age": {"low": 18, "high": 90, "epsilon": 2, "steps": 73}}
    assert (arguments["noise_others"], arguments["noise_rows"]) == ({"features": "keep", "label": "keep"}, "keep")
    assert arguments["noise_contribution"] == {}
    assert (arguments["noise_budget"], arguments["watermark_owner"]) == (2.0, "us")
    assert (arguments["gpus"], arguments["gpu_resource"]) == ("2", "nvidia.com/mig-1g.10gb")
    plain = load("")
    assert (plain.privacy.columns, plain.arguments("x")["watermark_owner"]) == ({}, "squares")
    assert (plain.deployment.target, plain.deployment.environment) == ("local", "development")


REFUSED = {
    "unknown section": ("bogus: 1", "knows no 'bogus'; it knows audit, dataset"),
    "recipients are not the user's to choose": ("recipients: [x]", "knows no 'recipients'"),
    "unknown key": (
        "thresholds: {bogus: 1}",
        "thresholds knows no 'bogus'; it knows accuracy_drop, agreement, clean_accuracy",
    ),
    "key with a terminal escape": (r'"\e[31m": 1', r"knows no '\\x1b\[31m'"),
    "key that is a date": ("training: {2001-01-01: 2}", "training knows no datetime"),
    "key that is not text": ("1: 2", "text keys"),
    "key twice": ("training: {epochs: 1, epochs: 2}", "repeated"),
    "section twice": ("dataset: {}", "repeated"),
    "section is empty": ("training:", "training is not a mapping"),
    "section is a list": ("robustness: []", "robustness is not a mapping"),
    "section is text": ("model: digits-cnn", "model is not a mapping"),
    "text for a number": ("training: {epochs: '5'}", "training.epochs is '5', not a whole number"),
    "YAML 1.1 reads 1e-3 as text": ("training: {learning_rate: 1e-3}", "write 1e-3 as 0.001"),
    "fraction for a whole number": ("training: {epochs: 1.5}", "not a whole number"),
    "boolean for a whole number": ("robustness: {n_min: true}", "not a whole number"),
    "boolean for a number": ("training: {epsilon: yes}", "not a finite number"),
    "number for text": ("training: {method: 1}", "not text"),
    "list for a number": ("training: {epsilon: [0.1]}", "not a finite number"),
    "date for a number": ("training: {seed: 2020-01-01}", "training.seed is datetime.date"),
    "null": ("training: {epochs: null}", "training.epochs is None"),
    "NaN": ("training: {epsilon: .nan}", "training.epsilon is nan"),
    "infinity": ("training: {learning_rate: .inf}", "training.learning_rate is inf"),
    "a number beyond float64": (f"training: {{epsilon: {10**400}}}", "not a finite number"),
    "a number that Python will not spell": (f"training: {{epsilon: 0x{'f' * 9000}}}", "a very large number"),
    "a long value": (f"training: {{epochs: {'x' * 9000}}}", "…, not a whole number"),
    "out of range": ("training: {epsilon: 0.5}", "below 0.5"),
    "unknown method": ("training: {method: none}", "one of trades2, mix, pgd, trades, nfgsm, plain"),
    "PGD cannot cross its ball": ("robustness: {pgd_steps: 1}", "at least twice epsilon"),
    "threat that is a list": ("robustness: {threat: [age]}", "robustness.threat is .*, not text"),
    "threat that JSON has not": ("robustness: {threat: {mutable: {v0: {epsilon: .nan}}}}", "robustness.threat"),
    "threat in verdict mode": ("robustness: {threat: {mutable: {}}, mode: verdict}", "mode full"),
    "too few queries": ("robustness: {queries: 9}", "queries must be"),
    "quality above one": ("quality: {label_issues: 1.1}", "quality.label_issues must be a number from 0 to 1"),
    "quality below zero": ("quality: {outlying_rows: -0.1}", "quality.outlying_rows must be"),
    "quality NaN": ("quality: {label_issues: .nan}", "quality.label_issues is nan"),
    "quality text": ("quality: {label_issues: none}", "quality.label_issues is 'none'"),
    "quality without balance": ("quality: {class_balance: 0}", "must be above 0"),
    "quality without accuracy": ("quality: {reference_accuracy: 0}", "must be above 0"),
    "quality unknown": ("quality: {bogus: 1}", "quality knows no 'bogus'"),
    "more voters than rows": ("screening: {neighbours: 30}", "neighbours must be fewer than n_min"),
    "screening of the wrong type": ("screening: {n_min: 30.5}", "screening.n_min is 30.5"),
    "threshold NaN": ("thresholds: {robust_accuracy: .nan}", "thresholds.robust_accuracy is nan"),
    "threshold zero": ("thresholds: {robust_accuracy: 0}", "thresholds need"),
    "threshold negative": ("thresholds: {robust_accuracy: -1}", "thresholds need"),
    "threshold above one": ("thresholds: {clean_accuracy: 1.1}", "thresholds need"),
    "robust above clean": ("thresholds: {robust_accuracy: 0.95}", "thresholds need"),
    "no samples": ("thresholds: {samples: 0}", "thresholds need"),
    "more samples than can be stated": (f"thresholds: {{samples: {10**20}}}", "thresholds need"),
    "no entities": ("masking: {entities: []}", "names at least one entity"),
    "entities as text": ("masking: {entities: EMAIL}", "masking.entities is a list of entities, or maps"),
    "unknown entity": ("masking: {entities: [EMIAL]}", "no entity is called 'EMIAL'; the nearest is 'EMAIL'"),
    "entity that is a list": ("masking: {entities: [[EMAIL]]}", "no entity is called"),
    "unknown detection": ("masking: {detection: loose}", "masking.detection is strict or recall"),
    "detection that is a list": ("masking: {detection: [strict]}", "masking.detection is strict or recall"),
    "entity twice": ("masking: {entities: [EMAIL, EMAIL]}", "twice"),
    "unknown key of masking": ("masking: {entites: [EMAIL]}", "masking knows no 'entites'; the nearest is 'entities'"),
    "huge entity": (f"masking: {{entities: [0x{'f' * 5000}]}}", "no entity is called a very large number"),
    "huge bin": (f"masking: {{columns: {{a: {{generalise: {{bin: 0x{'f' * 5000}}}}}}}}}", "the width of a bin"),
    "masking of the label": ("masking: {columns: {kind: token}}", "a column that the model learns from"),
    "test fraction zero": ("split: {test_fraction: 0}", "split.test_fraction"),
    "test fraction one": ("split: {test_fraction: 1}", "split.test_fraction"),
    "test fraction NaN": ("split: {test_fraction: .nan}", "split.test_fraction"),
    "test fraction true": ("split: {test_fraction: true}", "split.test_fraction"),
    "architecture as a list": ("model: {architecture: [a]}", "model.architecture"),
    "architecture as a number": ("model: {architecture: 5}", "model.architecture"),
    "architecture with a line break": (r'model: {architecture: "a\nb"}', "model.architecture"),
    "options as a list": ("model: {options: [1]}", "model.options"),
    "option infinite": ("model: {options: {width: .inf}}", "model.options"),
    "option NaN": ("model: {options: {width: .nan}}", "model.options"),
    "option true": ("model: {options: {width: true}}", "model.options"),
    "option as text": ("model: {options: {width: '8'}}", "model.options"),
    "option without a name": ("model: {options: {1: 2}}", "model.options"),
    "columns that ask for more than the budget": (
        f"privacy: {{columns: {{age: {AGE}}}, budget: 1.9, {REST}}}",
        "above the budget",
    ),
    "columns without a budget": (f"privacy: {{columns: {{age: {AGE}}}, {REST}}}", "above the budget 0"),
    "a person's rows ask for more than the budget": (
        f"privacy: {{columns: {{age: {AGE}}}, budget: 3, {REST}, contribution: {{column: id, at_most: 2}}}}",
        "an epsilon of 4, above the budget 3",
    ),
    "columns without an order of the rows": (
        f"privacy: {{columns: {{age: {AGE}}}, budget: 2, others: {{features: keep, label: keep}}}}",
        "declare whether to keep the order",
    ),
    "features without noise that nobody declared": (
        f"privacy: {{columns: {{age: {AGE}}}, budget: 2, rows: keep, others: {{label: keep}}}}",
        "declare others.features",
    ),
    "a label without noise that nobody declared": (
        f"privacy: {{columns: {{age: {AGE}}}, budget: 2, rows: keep, others: {{features: keep}}}}",
        "declare others.label",
    ),
    "a key of privacy that is unknown": ("privacy: {clumns: {}}", "privacy knows no 'clumns'"),
    "budget NaN": ("privacy: {budget: .nan}", "privacy.budget must be"),
    "budget negative": ("privacy: {budget: -1}", "privacy.budget must be"),
    "column without bounds": ("privacy: {columns: {age: {epsilon: 1, steps: 9}}, budget: 1}", "exactly low, high"),
    "column with bounds reversed": (
        "privacy: {columns: {age: {low: 9, high: 1, epsilon: 1, steps: 9}}, budget: 1}",
        "low must be less than high",
    ),
    "owner as a number": ("watermark: {owner: 5}", "watermark.owner"),
    "owner with a line break": (r'watermark: {owner: "a\nb"}', "watermark.owner"),
    "agreement above one": ("thresholds: {agreement: 1.01}", "thresholds need 0 < agreement"),
    "accuracy drop negative": ("thresholds: {accuracy_drop: -0.1}", "thresholds need 0 < agreement"),
    "keys that are no mapping": ("keys: [serving]", "keys is not a mapping"),
    "a key of no service": ("keys: {serving: 'file:/keys/serving.pem'}", "must name a key of aws-kms"),
    "a key that is no text": ("keys: {serving: 7}", "must name a key of aws-kms"),
    "unknown target": ("deployment: {target: laptop}", "must be local or kubernetes"),
    "a cluster of the local target": ("deployment: {cluster: {namespace: a}}", "local has none"),
    "a target without its cluster": ("deployment: {target: kubernetes, environment: production}", "local has none"),
    "a cluster with development keys": (
        "deployment: {target: kubernetes, cluster: {namespace: a}}",
        "an environment other than development",
    ),
    "an environment with a slash": ("deployment: {environment: a/b}", "deployment.environment is"),
    "a cluster that is no JSON": (
        "deployment: {target: kubernetes, environment: production, cluster: {replicas: .nan}}",
        "deployment.cluster",
    ),
    "a Python object": ("training: !!python/object:os.system {}", "tags are not allowed"),
    "an alias": ("training: &a {epochs: *a}", "aliases are not allowed"),
    "a second document": ("---\na: 1", "not valid YAML"),
    "a null byte": ("\0", "not valid YAML"),
    "nested without end": ("training: " + "[" * 20_000, "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    said = str(caught.value)
    assert "config.yaml: " in said and len(said) < 1000 and said.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {}", "no section `dataset`"),
        ("dataset: 5", "must be a mapping"),
        ("dataset: {name: 2024-01-01, label: {}, features: {}}", "label lacks"),
        ("- dataset", "not a mapping"),
        ("", "not a mapping"),
    ],
    ids=["missing", "no mapping", "incomplete", "a list", "empty"],
)
def test_the_data_set_is_missing_or_malformed(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        ReferenceConfig.load(path)


def test_a_name_that_yaml_reads_as_a_date_asks_for_quotes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(DATASET.replace("squares", "2024-01-01"))
    with pytest.raises(ConfigError, match="name must be text; put it in quotes"):
        ReferenceConfig.load(path)


@pytest.mark.parametrize("what", ["missing", "a folder", "a pipe", "too large"])
def test_a_file_that_cannot_be_read(tmp_path, what):
    path = tmp_path / "config.yaml"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        import os

        os.mkfifo(path)
    elif what == "too large":
        path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(UsageError, match=r"config\.yaml"):
        ReferenceConfig.load(path)


NAMES = [
    *("epsilon", "epochs", "method", "entities", "test_fraction", "options", "samples", "columns", "budget", "owner"),
    *("target", "cluster", "environment", "label_issues", "n_min", "other"),
]


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("masking", "screening", "quality", "split", "model", "training", "robustness", "thresholds"),
                *("privacy", "watermark", "deployment"),
            ]
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=True)
            | st.text(max_size=5)
            | st.sampled_from(["pgd", "EMAIL", "digits-cnn"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(NAMES) | st.integers(),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_no_other_exception_leaks_and_what_passes_can_be_signed(sections):
    document = yaml.safe_load(DATASET) | sections
    try:
        config = ReferenceConfig.from_dict(document)
    except ConfigError:
        return
    canonical_json(config.arguments("x"))
    assert all(math.isfinite(value) for value in config.options.values())


# The privacy ledger.

NOISE = f"privacy: {{budget: 3, columns: {{age: {{low: 18, high: 90, epsilon: 3, steps: 73}}}}, {REST}}}"


def test_without_a_ledger_one_run_may_spend_its_budget_and_no_other(load):
    config = load(NOISE)
    assert config.ledger is None and config.charging == ("dp_noise",)
    assert config.ledger_parameters() == LedgerSettings(config.dataset.name, 3.0).to_dict()
    assert load(f"{NOISE}\nledger: {{}}").ledger_parameters() == config.ledger_parameters()


def test_a_ledger_of_a_configuration_is_the_policys_and_the_pipelines(load):
    config = load(f"{NOISE}\nledger: {{dataset: people, epsilon: 12, delta: 0.000001, store: 's3://b/k'}}")
    named = LedgerSettings("people", 12, 1e-6, store="s3://b/k").to_dict()
    assert config.arguments("x")["ledger"] == named and config.arguments("x")["ledger_charging"] == ["dp_noise"]
    steps = {step.name: step for step in STEPS}
    assert steps["dp_noise"].parameters(config)["ledger"] == named
    assert steps["budget"].parameters(config) == {"ledger": named, "charging": ["dp_noise"]}
    assert steps["budget"].checks(config) == {
        "epsilon_total": {"min": 0, "max": 12},
        "delta": {"min": 1e-6, "max": 1e-6},
        "charges": {"min": 1, "max": 1},
        "unmatched": {"min": 0, "max": 0},
    }


def test_where_nothing_gets_noise_no_ledger_is_asked_for(load):
    config = load("ledger: {epsilon: 12}")
    assert config.charging == () and config.ledger_parameters() == {}
    (budget,) = (step for step in STEPS if step.name == "budget")
    assert budget.checks(config) == {"charges": {"min": 0, "max": 0}, "unmatched": {"min": 0, "max": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "no mapping": ("ledger: 3", "ledger is not a mapping"),
        "unknown key": ("ledger: {budget: 3}", "ledger knows no 'budget'"),
        "no epsilon": ("ledger: {delta: 0}", "ledger.epsilon is missing"),
        "epsilon no number": ("ledger: {epsilon: much}", "ledger.epsilon must be a number"),
        "epsilon NaN": ("ledger: {epsilon: .nan}", "ledger.epsilon must be a number"),
        "data set no name": ("ledger: {epsilon: 1, dataset: 'A B'}", "ledger.dataset is 1 to 63"),
        "delta 1": ("ledger: {epsilon: 1, delta: 1}", "ledger.delta must be 0"),
    }.values(),
)
def test_a_ledger_that_is_none_is_refused(load, text, message):
    with pytest.raises(ConfigError, match=message):
        load(text)
