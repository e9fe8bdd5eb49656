"""The private variant over two shards, run for real once: quick settings, and the attacks that are its own."""

import dataclasses

import pytest
from click.testing import CliRunner
from real_run import make_real_run

from portcullis.cli.main import cli
from portcullis.errors import ConfigError, EvidenceError, GateFailedError, PolicyError
from portcullis.evidence.shards import base_step
from portcullis_pipelines.config import ReferenceConfig, Thresholds
from portcullis_pipelines.home import Home
from portcullis_pipelines.outcome import QUARANTINE
from portcullis_pipelines.steps import PRIVATE_STEPS, STEPS

pytestmark = pytest.mark.slow


def quick() -> ReferenceConfig:
    """Return the private reference with less of all but privacy; a network this young withstands and knows little."""
    config = ReferenceConfig.load(None, private=True, epsilon=8.0)
    assert config.dp_training is not None
    return dataclasses.replace(
        config,
        shards=2,
        dataset=dataclasses.replace(config.dataset, quarantine_at_most=1),
        dp_training=dataclasses.replace(config.dp_training, epochs=8, attack_epsilon=0.0, device="cpu"),
        audit=dataclasses.replace(config.audit, canaries=100),
        thresholds=Thresholds(robust_accuracy=0.01, clean_accuracy=0.3, agreement=0.5, accuracy_drop=0.5),
    )


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    return make_real_run(tmp_path_factory.mktemp("private"), quick())


def test_every_step_of_the_variant_signed_and_the_certificate_is_in_the_report(private_run):
    verified = private_run.verify()
    made = {statement.step for statement in verified.statements}
    assert made == set(verified.policy.steps) - {verified.policy.admission_step().name}
    assert {base_step(step) for step in made} >= {step.name for step in PRIVATE_STEPS if step.kind != "admission"}
    assert made >= {"survey_shard#1/2", "plan_shards", "ingest#0/2", "mask_pii#1/2", "merge_shards"}
    assert verified.policy.name == "cheque-digits-private"
    train = private_run.statement("train")
    assert train.stage == "dp_train" and 0 < train.figures["epsilon"] <= 8
    audit = private_run.statement("privacy_audit")
    assert audit.verdict == "PASSED" and audit.figures["epsilon_claimed"] == train.figures["epsilon"]
    attacked = private_run.statement("membership").figures
    assert attacked["auc_high"] <= 0.6 and attacked["inversion_auc_high"] <= 0.65
    budget = private_run.statement("budget")
    assert budget.figures["charges"] == 2 and budget.figures["delta"] == 1e-5
    report = (private_run.output / "report.html").read_text()
    assert "idealised real-valued noise" in report and "one training row" in report


def test_what_the_shards_set_aside_is_opened(private_run, tmp_path):
    """There is no malformed row in these data; `test_sharded` has some."""
    assert {path.name for path in (private_run.output / QUARANTINE).iterdir()} == {"0", "1"}
    verb = ["quarantine", str(private_run.output), "--trust", str(private_run.home.trust)]
    with private_run.environment():
        done = CliRunner().invoke(cli, [*verb, "--output", str(tmp_path / "records.jsonl")])
    assert (done.exit_code, done.output) == (0, f"0 records in {tmp_path / 'records.jsonl'}\n")
    assert (tmp_path / "records.jsonl").read_bytes() == b""


@pytest.mark.parametrize("gate", ["privacy_audit", "membership", "budget"])
def test_a_gate_of_the_variant_is_left_out(private_run, tmp_path, gate):
    attacked = private_run.copy(tmp_path)
    lines = attacked.lines()
    del lines[gate]
    attacked.write(lines.values())
    with pytest.raises(EvidenceError):
        attacked.admit()


def test_a_failed_audit_is_called_passed(private_run, tmp_path):
    attacked = private_run.copy(tmp_path)
    attacked.forge("privacy_audit", lambda it: dataclasses.replace(it, figures={**it.figures, "epsilon_lower": 9.0}))
    with pytest.raises((EvidenceError, GateFailedError)):
        attacked.admit()


def test_a_larger_epsilon_than_the_policys_is_certified(private_run, tmp_path):
    attacked = private_run.copy(tmp_path)
    attacked.forge("train", lambda it: dataclasses.replace(it, parameters={**it.parameters, "target_epsilon": 16.0}))
    with pytest.raises((EvidenceError, PolicyError)):
        attacked.admit()


def test_the_variant_has_a_policy_and_keys_of_its_own(private_run):
    assert isinstance(private_run.home, Home) and (private_run.home.keys / "audit.key").is_file()
    assert {step.name for step in PRIVATE_STEPS} - {step.name for step in STEPS} == {"privacy_audit"}


@pytest.mark.parametrize(
    ("text", "epsilon", "said"),
    [
        (None, 2.0, "tried with an epsilon of 1, 3, 8"),
        ("", None, "dp_training"),
        ("dp_training: {target_epsilon: 2}\n", 3.0, "dp_training"),
        ("dp_training: {target_epsilon: 2}\ntraining: {epochs: 3}\n", None, "trained once"),
        ("dp_training: {target_epsilon: 0}\n", None, "target_epsilon"),
        ("dp_training: {target_epsilon: many}\n", None, "target_epsilon"),
        ("dp_training: {bogus: 1}\n", None, "bogus"),
        ("audit: {canaries: 3}\n", None, "canaries"),
        ("membership: {n_min: 0}\n", None, "n_min"),
        ("thresholds: {membership_auc: 0.4}\n", None, "membership_auc"),
        ("thresholds: {inversion_auc: .nan}\n", None, "inversion_auc"),
        ("membership: {inversion_starts: 0}\n", None, "inversion_starts"),
    ],
)
def test_a_configuration_that_does_not_say_how_to_train_privately_is_refused(tmp_path, text, epsilon, said):
    path = None
    if text is not None:
        path = tmp_path / "mine.yaml"
        path.write_text(
            "dataset: {name: mine, label: {column: y, classes: [a, b]}, features: {columns: [x], shape: [1], low: 0, "
            f"high: 1}}}}\n{text}"
        )
    with pytest.raises(ConfigError, match=said):
        ReferenceConfig.load(path, private=True, epsilon=epsilon)
