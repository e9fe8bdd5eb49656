"""Attacks on single steps, with the artifacts of a real run: each step refuses by itself, before it works."""

import dataclasses
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import resting

import portcullis.deploy.stage as deploying
from benchmarks.poisons import poisoned
from portcullis.admission.stage import admit
from portcullis.at_rest import seal_dataset
from portcullis.budget.stage import evaluate_budget
from portcullis.dataset import write_dataset
from portcullis.deploy.stage import deploy
from portcullis.digest import tree_digest
from portcullis.encryption.stage import encrypt
from portcullis.equivalence.stage import evaluate_equivalence
from portcullis.errors import (
    AdmissionError,
    ConfigError,
    DataError,
    EvidenceError,
    GateFailedError,
    KeyMaterialError,
    PipelineError,
    PolicyError,
    RefusedError,
    SealError,
)
from portcullis.evidence.chain import join_bundle, split_bundle
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import enforce
from portcullis.keys import role_uri, symmetric_key
from portcullis.membership.stage import evaluate_membership
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.stage import mask_pii, residual_pii
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.settings import Contribution, NoisePlan
from portcullis.privacy.stage import dp_noise
from portcullis.quality.stage import evaluate_quality
from portcullis.robustness.stage import evaluate_robustness
from portcullis.sealing.sealed import SIDECAR
from portcullis.signing.stage import sign
from portcullis.split.stage import split_dataset
from portcullis.training.stage import train_model
from portcullis.watermark.mark import Claim, embed
from portcullis.watermark.stage import verify_watermark, watermark_model
from portcullis.watermark.weights import decode_weights, replace_weights
from portcullis_pipelines import run as running

pytestmark = pytest.mark.slow


class Steps:
    """Every step of the run as a call whose artifacts can be replaced."""

    def __init__(self, run, folder: Path):
        self.run, self.folder = run, folder
        task = run.task
        self.given = {
            "mask_pii": {"dataset": task("ingest/dataset"), "evidence": task("ingest/dataset_evidence")},
            "residual_pii": {"dataset": task("mask-pii/masked"), "evidence": task("mask-pii/masked_evidence")},
            "data_quality": {"dataset": task("mask-pii/masked"), "evidence": task("enforce/passed")},
            "split": {"dataset": task("mask-pii/masked"), "evidence": task("enforce-2/passed")},
            "dp_noise": {"dataset": task("split/train"), "evidence": task("split/split_evidence")},
            "train": {"dataset": task("dp-noise/noised"), "evidence": task("dp-noise/noised_evidence")},
            "membership": {
                "model": task("train/model"),
                "train": task("dp-noise/noised"),
                "test": task("split/test"),
                "evidence": task("train/model_evidence"),
            },
            "budget": {"model": task("train/model"), "evidence": task("enforce-3/passed")},
            "robustness:trained": {
                "model": task("train/model"),
                "test": task("split/test"),
                "evidence": task("enforce-4/passed"),
            },
            "watermark": {"model": task("train/model"), "evidence": task("enforce-5/passed")},
            "verify_watermark": {
                "model": task("watermark/marked"),
                "unmarked": task("train/model"),
                "evidence": task("watermark/marked_evidence"),
            },
            "robustness:watermarked": {
                "model": task("watermark/marked"),
                "test": task("split/test"),
                "evidence": task("enforce-6/passed"),
            },
            "equivalence": {
                "model": task("watermark/marked"),
                "judged": task("train/model"),
                "test": task("split/test"),
                "evidence": task("enforce-7/passed"),
            },
            "encrypt": {"model": task("watermark/marked"), "evidence": task("enforce-8/passed")},
            "sign": {"sealed": task("encrypt/sealed"), "evidence": task("encrypt/sealed_evidence")},
        }

    def call(self, step: str, **replaced: Path):
        config, out = self.run.config, self.folder
        given = {"step": step, "bundle": out / "bundle", **self.given[step], **replaced}
        with self.run.environment():
            match step:
                case "mask_pii":
                    return mask_pii(masking=config.masking.to_dict(), masked=out / "masked", **given)
                case "residual_pii":
                    return residual_pii(
                        masking=config.masking.to_dict(), report=out / "report", details=out / "details", **given
                    )
                case "data_quality":
                    return evaluate_quality(settings=config.screening, report=out / "report", **given)
                case "split":
                    return split_dataset(
                        test_fraction=config.test_fraction, train=out / "train", test=out / "test", **given
                    )
                case "dp_noise":
                    self.uncharge()
                    return dp_noise(
                        plan=config.privacy.to_dict(),
                        ledger=config.ledger_parameters(),
                        noised=out / "noised",
                        report=out / "report",
                        **given,
                    )
                case "budget":
                    return evaluate_budget(
                        ledger=config.ledger_parameters(),
                        charging=config.charging,
                        report=out / "report",
                        **given,
                    )
                case "train":
                    return train_model(
                        architecture=config.architecture,
                        options=config.options,
                        settings=config.training,
                        model=out / "model",
                        report=out / "report",
                        **given,
                    )
                case "membership":
                    return evaluate_membership(settings=config.membership, report=out / "report", **given)
                case "robustness:trained" | "robustness:watermarked":
                    return evaluate_robustness(settings=config.robustness, report=out / "report", **given)
                case "watermark":
                    return watermark_model(owner=config.dataset.name, marked=out / "marked", **given)
                case "verify_watermark":
                    return verify_watermark(owner=config.dataset.name, report=out / "report", **given)
                case "equivalence":
                    return evaluate_equivalence(report=out / "report", **given)
                case "encrypt":
                    return encrypt(recipients=config.recipients, sealed=out / "sealed", **given)
                case "sign":
                    return sign(signature=out / "signature", **given)
        raise AssertionError(step)

    def uncharge(self) -> None:
        """Have the ledger be as it was before the run: to be repeated is what `test_attacked_ledger` tries."""
        (self.run.home.ledgers / "cheque-digits.jsonl").unlink(missing_ok=True)
        (self.run.home.state / "ledger-cheque-digits.json").unlink(missing_ok=True)

    def rows(self, step: str, name: str):
        """Open a data set that a step takes."""
        return resting.opened(self.given[step][name], self.run.pipeline_key)

    def content(self, step: str, name: str) -> str:
        """Digest what a step takes by its content."""
        path = self.given[step][name]
        return resting.content(path, self.run.pipeline_key) if name in DATA else tree_digest(path)

    def seal(self, directory: Path, table, spec) -> str:
        """Seal a data set as a step of this run would."""
        return seal_dataset(directory, table, spec, recipient=self.run.pipeline_key.public_key())

    def written(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def steps(attacked, tmp_path: Path) -> Steps:
    (tmp_path / "out").mkdir()
    return Steps(attacked, tmp_path / "out")


ARTIFACTS = [
    ("mask_pii", "dataset"),
    ("residual_pii", "dataset"),
    ("data_quality", "dataset"),
    ("split", "dataset"),
    ("dp_noise", "dataset"),
    ("train", "dataset"),
    ("membership", "model"),
    ("membership", "train"),
    ("membership", "test"),
    ("budget", "model"),
    ("robustness:trained", "model"),
    ("robustness:trained", "test"),
    ("watermark", "model"),
    ("verify_watermark", "model"),
    ("verify_watermark", "unmarked"),
    ("equivalence", "model"),
    ("equivalence", "judged"),
    ("equivalence", "test"),
    ("encrypt", "model"),
    ("sign", "sealed"),
]
MODULES = {
    "mask_pii": "portcullis.pii.stage",
    "residual_pii": "portcullis.pii.stage",
    "data_quality": "portcullis.quality.stage",
    "split": "portcullis.split.stage",
    "dp_noise": "portcullis.privacy.stage",
    "train": "portcullis.training.stage",
    "membership": "portcullis.membership.stage",
    "budget": "portcullis.budget.stage",
    "robustness:trained": "portcullis.robustness.stage",
    "watermark": "portcullis.watermark.stage",
    "verify_watermark": "portcullis.watermark.stage",
    "equivalence": "portcullis.equivalence.stage",
    "encrypt": "portcullis.encryption.stage",
    "sign": "portcullis.signing.stage",
}
DATA = ("dataset", "train", "test")  # what rests sealed
# They work on what lies there, and look at it again afterwards; or read it twice, each time piece by authentic piece.
LOOKS_AGAIN = {"encrypt": DataError, "sign": RefusedError, "mask_pii": SealError, "residual_pii": SealError}


def altered(artifact: Path, target: Path) -> Path:
    """Copy an artifact and flip one bit of its largest file."""
    shutil.copytree(artifact, target)
    path = max((path for path in target.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return target


@pytest.mark.parametrize(("step", "name"), ARTIFACTS)
def test_an_artifact_is_altered_between_two_steps(steps, tmp_path, step, name):
    changed = altered(steps.given[step][name], tmp_path / "changed")
    sealed = (SealError, "not authentic") if name in DATA else (EvidenceError, "swapped or altered")
    with pytest.raises(sealed[0], match=sealed[1]):
        steps.call(step, **{name: changed})
    assert steps.written() == []


@pytest.mark.parametrize(("step", "name"), [it for it in ARTIFACTS if it[1] in DATA])
def test_a_data_set_is_sealed_again_with_other_rows(steps, tmp_path, step, name):
    """The public key is no secret: whoever seals other rows for the pipeline changes their digest."""
    rows = steps.rows(step, name)
    steps.seal(tmp_path / "changed", rows.table.slice(1), rows.spec)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        steps.call(step, **{name: tmp_path / "changed"})
    assert steps.written() == []


@pytest.mark.parametrize(("step", "name"), [it for it in ARTIFACTS if it[1] in DATA])
def test_a_plain_data_set_is_put_in_the_place_of_a_sealed_one(steps, tmp_path, step, name):
    """Its content is the very same, so every digest fits."""
    rows = steps.rows(step, name)
    assert write_dataset(tmp_path / "plain", rows.table, rows.spec) == steps.content(step, name)
    for keys in ("with the pipeline's keys", "without"):
        refused = SealError
        if keys == "without":
            (steps.run.home.keys / "pipeline.pem").unlink()
            if (step, name) == ("membership", "test"):
                refused = KeyMaterialError  # the training rows are opened first
        with pytest.raises(refused, match="lies in plain text" if refused is SealError else None):
            steps.call(step, **{name: tmp_path / "plain"})
        assert steps.written() == []


@pytest.mark.parametrize(("step", "name"), [it for it in ARTIFACTS if it[1] in DATA])
def test_a_data_set_is_sealed_for_another_pipeline(steps, tmp_path, step, name):
    rows = steps.rows(step, name)
    resting.seal(tmp_path / "theirs", rows.table, rows.spec)
    with pytest.raises(SealError, match="others than this pipeline's key"):
        steps.call(step, **{name: tmp_path / "theirs"})
    assert steps.written() == []


@pytest.mark.parametrize(("step", "name"), [it for it in ARTIFACTS if it[1] in DATA])
def test_the_recipients_of_a_data_set_are_exchanged(steps, tmp_path, step, name):
    """For those of another data set of the same run."""
    mine = tmp_path / "mine"
    shutil.copytree(steps.given[step][name], mine)
    other = "mask_pii" if step in {"residual_pii", "data_quality", "split"} else "split"  # what is given to it
    shutil.copyfile(steps.given[other]["dataset"] / SIDECAR, mine / SIDECAR)
    with pytest.raises(SealError, match="does not open"):
        steps.call(step, **{name: mine})
    assert steps.written() == []


@pytest.mark.parametrize("step", ["mask_pii", "split", "dp_noise"])
@pytest.mark.parametrize("key", ["pipeline.pem", "pipeline.pub.pem"])
def test_a_step_has_no_key_to_open_or_to_seal_with(steps, step, key):
    (steps.run.home.keys / key).unlink()
    with pytest.raises(KeyMaterialError):
        steps.call(step)
    assert steps.written() == []


@pytest.mark.parametrize(("step", "name"), ARTIFACTS)
def test_an_artifact_is_missing(steps, tmp_path, step, name):
    with pytest.raises(RefusedError):
        steps.call(step, **{name: tmp_path / "nothing"})
    assert steps.written() == []


@pytest.mark.parametrize("step", MODULES)
@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n"], ids=["empty", "nonsense", "binary"])
def test_the_evidence_does_not_come_with_it(steps, tmp_path, step, content):
    bundle = tmp_path / "none"
    bundle.write_bytes(content)
    with pytest.raises(EvidenceError):
        steps.call(step, evidence=bundle)
    assert steps.written() == []


def idle(run, *_):
    """Learn nothing for an epoch."""
    run.epoch += 1
    return 0.5


@pytest.mark.parametrize(("step", "name"), ARTIFACTS)
def test_an_artifact_is_exchanged_right_after_it_was_checked(steps, tmp_path, monkeypatch, step, name):
    """What is worked on is what was digested, whatever lies there by then: it is read once, or looked at again."""
    module = sys.modules[MODULES[step]]
    if step == "train":
        # An untrained network will do; forty epochs show nothing more here.
        monkeypatch.setattr("portcullis.training.adversarial._Run.learn", idle)
    mine = tmp_path / "mine"
    shutil.copytree(steps.given[step][name], mine)
    begin = module.begin

    def begin_and_exchange(*arguments, **named):
        begun = begin(*arguments, **named)
        for path in mine.iterdir():
            path.write_bytes(b"exchanged")
        return begun

    monkeypatch.setattr(module, "begin", begin_and_exchange)
    if step in LOOKS_AGAIN:
        with pytest.raises(LOOKS_AGAIN[step]):
            steps.call(step, **{name: mine})
        assert "bundle" not in steps.written()
        return
    statement = steps.call(step, **{name: mine})
    assert statement.inputs[name] == steps.content(step, name)
    assert statement.figures
    assert not statement.reason.startswith("inconclusive")


@pytest.mark.parametrize(
    ("step", "writer", "output", "name"),
    [
        ("mask_pii", "portcullis.pii.stage.seal_dataset", "masked", "dataset"),
        ("split", "portcullis.split.stage.seal_dataset", "train", "train"),
        ("dp_noise", "portcullis.privacy.stage.seal_dataset", "noised", "dataset"),
        ("train", "portcullis.training.stage.save_model", "model", "model"),
    ],
)
def test_an_output_is_exchanged_before_it_is_attested(steps, monkeypatch, step, writer, output, name):
    """The statement speaks of what the step wrote, so what was put in its place is refused by whoever takes it."""
    monkeypatch.setattr("portcullis.training.adversarial._Run.learn", idle)
    write = pkgutil.resolve_name(writer)

    def write_and_exchange(directory, *arguments, **named):
        digest = write(directory, *arguments, **named)
        for path in directory.iterdir():
            path.write_bytes(b"exchanged")
        return digest

    monkeypatch.setattr(writer, write_and_exchange)
    statement = steps.call(step)
    assert statement.outputs[name] != tree_digest(steps.folder / output)


def test_of_keys_in_the_environment_the_server_is_handed_its_own_two(attacked, tmp_path, monkeypatch):
    names = {
        role: role_uri("env:PK", role).removeprefix("env:") for role in ("deploy.pem", "serving.pem", "serving.token")
    }
    handed = {}
    run_local = deploying.run_local

    def watch(command, *, environment, **others):
        handed.update(environment)
        return run_local(command, environment=environment, **others)

    monkeypatch.setattr(deploying, "run_local", watch)
    with attacked.environment():
        monkeypatch.setenv("PORTCULLIS_KEYS", "env:PK")
        for role, name in names.items():
            monkeypatch.setenv(name, (attacked.home.keys / role).read_text())
        statement = deploy(
            step="deploy",
            sealed=attacked.output / "model",
            admission=attacked.output / "admission.json",
            evidence=attacked.output / "evidence.intoto.jsonl",
            target="local",
            deployment=tmp_path / "deployment",
        )
    assert statement.verdict == "PASSED"
    assert {name for name in handed if name.startswith("PK_")} == {names["serving.pem"], names["serving.token"]}


def test_an_ancestors_key_is_revoked(steps, attacked):
    from portcullis_pipelines import home as homes

    homes.revoke(attacked.home, step="train")
    with pytest.raises(EvidenceError, match=r"'train'.*revoked"):
        steps.call("encrypt")


@pytest.mark.parametrize(
    ("step", "gate"), [("data_quality", "residual_pii"), ("split", "residual_pii"), ("split", "data_quality")]
)
def test_a_gate_on_the_data_is_left_out(steps, step, gate):
    with pytest.raises(EvidenceError, match="no evidence of step"):
        steps.call(step, evidence=steps.given[gate]["evidence"])
    assert steps.written() == []


@pytest.mark.parametrize(
    ("step", "gate", "before"),
    [
        ("watermark", "robustness:trained", "robustness:trained"),
        ("robustness:watermarked", "verify_watermark", "verify_watermark"),
        ("equivalence", "robustness:watermarked", "robustness:watermarked"),
        ("encrypt", "equivalence", "equivalence"),
    ],
)
def test_a_gate_on_the_model_is_left_out(steps, step, gate, before):
    with pytest.raises(EvidenceError, match=f"no evidence of step '{gate}'"):
        steps.call(step, evidence=steps.given[before]["evidence"])


def test_the_model_is_not_marked_at_all(steps):
    with pytest.raises(EvidenceError, match=r"'model' is not watermark\.model"):
        steps.call("encrypt", model=steps.given["watermark"]["model"])


def test_the_data_get_no_noise_at_all(steps):
    with pytest.raises(EvidenceError, match=r"'dataset' is not dp_noise\.dataset"):
        steps.call("train", dataset=steps.given["dp_noise"]["dataset"])


def noisy(config, **changes):
    columns = {name: dataclasses.replace(column, **changes) for name, column in config.privacy.columns.items()}
    return dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, columns=columns, budget=60))


def test_the_pipeline_asks_for_a_larger_epsilon_than_the_policy_allows(steps):
    steps.run = dataclasses.replace(steps.run, config=noisy(steps.run.config, epsilon=30))
    with pytest.raises(PolicyError, match="columns is"):
        steps.call("dp_noise")
    assert steps.written() == []


def test_an_epsilon_above_the_budget(steps):
    """The policy's owner let it through, say; the step certifies its own table and refuses before it writes."""
    rows = steps.rows("dp_noise", "dataset")
    with pytest.raises(DataError, match="above the budget"):
        noise_dataset(rows, NoisePlan(**{**vars(steps.run.config.privacy), "budget": 5.9}))
    with pytest.raises(ConfigError, match="above the budget"):
        dataclasses.replace(steps.run.config.privacy, budget=5.9)


def test_the_bounds_of_the_noise_are_read_off_the_data(steps):
    rows = steps.rows("dp_noise", "dataset")
    ages = rows.table.column("age").to_pylist()
    steps.run = dataclasses.replace(steps.run, config=noisy(steps.run.config, low=min(ages) + 1, high=max(ages) - 1))
    with pytest.raises(PolicyError, match="columns is"):
        steps.call("dp_noise")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"others": {"features": "keep", "label": "keep", "ids": "keep", "text": "drop"}}, "others is"),
        ({"others": {"features": "keep", "label": "keep", "ids": "drop", "text": "keep"}}, "others is"),
        ({"rows": "shuffle"}, "rows is"),
        ({"contribution": Contribution("email", 1)}, "contribution is"),
    ],
    ids=["identifiers are kept", "free text is kept", "another order of rows", "another bound on a person's rows"],
)
def test_the_pipeline_treats_what_gets_no_noise_otherwise_than_the_policy_says(steps, changes, said):
    privacy = dataclasses.replace(steps.run.config.privacy, **changes)
    steps.run = dataclasses.replace(steps.run, config=dataclasses.replace(steps.run.config, privacy=privacy))
    with pytest.raises(PolicyError, match=said):
        steps.call("dp_noise")
    assert steps.written() == []


def test_a_column_passes_that_nobody_declared(steps):
    """The policy's owner forgot one, say; it is not passed on in silence."""
    rows = steps.rows("dp_noise", "dataset")
    plan = steps.run.config.privacy
    grown = dataclasses.replace(rows, table=rows.table.append_column("salary", [list(range(rows.table.num_rows))]))
    with pytest.raises(DataError, match="'salary' gets no noise; declare"):
        noise_dataset(grown, plan)
    assert (
        "salary"
        not in noise_dataset(
            grown, dataclasses.replace(plan, others={**plan.others, "salary": "drop"})
        ).table.column_names
    )


def test_the_domain_of_a_category_is_taken_from_the_data(steps):
    """There is no way to say so; and what the policy does not name is refused, so the data cannot widen a domain."""
    with pytest.raises(ConfigError, match="categories must be a list"):
        NoisePlan.parse({"columns": {"digit": {"categories": "auto", "epsilon": 3}}, "budget": 3, "rows": "keep"})
    rows = steps.rows("dp_noise", "dataset")
    entry = {"digit": {"categories": [str(digit) for digit in range(9)], "epsilon": 3}}
    others = {"features": "keep", "ids": "drop", "text": "drop", "age": "drop", "balance": "drop"}
    with pytest.raises(DataError, match="not one of the 9 categories"):
        noise_dataset(rows, NoisePlan.parse({"columns": entry, "budget": 3, "rows": "keep", "others": others}))


def test_the_data_are_not_masked_at_all(steps):
    with pytest.raises(EvidenceError, match=r"'dataset' is not mask_pii\.dataset"):
        steps.call("split", dataset=steps.given["mask_pii"]["dataset"])


def test_the_model_is_judged_on_the_rows_it_learned_from(steps):
    with pytest.raises(EvidenceError, match=r"'test' is not split\.test"):
        steps.call("robustness:trained", test=steps.given["train"]["dataset"])


def test_the_model_learns_from_the_rows_that_judge_it(steps):
    with pytest.raises(EvidenceError, match=r"'dataset' is not split.train"):
        steps.call("dp_noise", dataset=steps.given["robustness:trained"]["test"])
    with pytest.raises(EvidenceError, match=r"'dataset' is not dp_noise.dataset"):
        steps.call("train", dataset=steps.given["robustness:trained"]["test"])


def test_the_test_rows_overlap_the_training_rows(steps, monkeypatch):
    """Whatever went wrong in the split, its sides are compared again, by other code, before they are attested."""
    import portcullis.split.split as splitting

    rows = steps.rows("split", "dataset")
    assert splitting.overlap(rows, rows) == rows.table.num_rows
    monkeypatch.setattr(splitting, "overlap", lambda *_: 1)
    with pytest.raises(DataError, match="lie on both sides"):
        steps.call("split")
    assert steps.written() == []


def restated(run, bundle: Path, step: str, target: Path, **changes) -> Path:
    """Write a bundle in which one step states something else, signed by its own (stolen) key."""
    lines = []
    for line in split_bundle(bundle.read_bytes()):
        statement = Statement.parse(Envelope.parse(line).payload)
        lines.append(run.sign(statement.replace(**changes)) if statement.step == step else line)
    target.write_bytes(join_bundle(lines))
    return target


def test_an_identifier_is_left_behind_and_the_gate_finds_it(steps, attacked, tmp_path):
    """The masking step is the attacker's: it signs a data set that still holds one customer's number."""
    masked = steps.rows("residual_pii", "dataset")
    index = masked.table.column_names.index("note")
    notes = masked.table.column("note").to_pylist()
    notes[7] = "please call about SSN 219-09-9999"
    import pyarrow as pa

    left = tmp_path / "left"
    digest = steps.seal(left, masked.table.set_column(index, "note", pa.array(notes)), masked.spec)
    evidence = restated(
        attacked,
        steps.given["residual_pii"]["evidence"],
        "mask_pii",
        tmp_path / "evidence",
        outputs={"dataset": digest},
    )
    statement = steps.call("residual_pii", dataset=left, evidence=evidence)
    assert (statement.verdict, statement.figures["residual_identifiers"]) == ("FAILED", 1)
    assert (steps.folder / "report").read_text().count("FAILED") >= 1
    assert "219-09-9999" not in (steps.folder / "report").read_text()
    with attacked.environment(), pytest.raises(GateFailedError, match="residual_identifiers = 1"):
        enforce("residual_pii", subject=digest, evidence=steps.folder / "bundle", passed=tmp_path / "passed")
    assert not (tmp_path / "passed").exists()
    with pytest.raises(GateFailedError):
        steps.call("split", dataset=left, evidence=steps.folder / "bundle")


@pytest.mark.parametrize(
    ("kind", "figure"),
    [
        ("labels flipped at random", "label_issues"),
        ("copies of one row", "duplicate_rows"),
        ("outliers, uniform noise", "outlying_rows"),
        ("trigger, 2x2 corner pixels", "cluster_suspects"),
    ],
)
def test_the_data_are_poisoned_before_the_gate_looks(steps, attacked, tmp_path, kind, figure):
    """The masking step is the attacker's: it signs a data set of which a twentieth is poisoned."""
    masked = steps.rows("data_quality", "dataset")
    theirs = tmp_path / "theirs"
    digest = steps.seal(theirs, poisoned(masked, kind, 0.05, seed=1).table, masked.spec)
    evidence, source = tmp_path / "evidence", steps.given["data_quality"]["evidence"]
    lines = []
    for line in split_bundle(source.read_bytes()):
        statement = Statement.parse(Envelope.parse(line).payload)
        if statement.step in ("mask_pii", "residual_pii"):
            judged_too = {"inputs": {"dataset": digest}} if statement.kind == "gate" else {}
            line = attacked.sign(statement.replace(outputs={"dataset": digest}, **judged_too))
        lines.append(line)
    evidence.write_bytes(join_bundle(lines))
    statement = steps.call("data_quality", dataset=theirs, evidence=evidence)
    assert statement.verdict == "FAILED" and f"{figure} = " in statement.reason
    bundle, passed = steps.folder / "bundle", tmp_path / "passed"
    with attacked.environment(), pytest.raises(GateFailedError, match=figure):
        enforce("data_quality", subject=digest, evidence=bundle, passed=passed)
    assert not passed.exists()
    with pytest.raises(GateFailedError):
        steps.call("split", dataset=theirs, evidence=bundle)


def judged(steps, run, tmp_path, gate, model):
    """Let a gate judge a model that the marking step claims to have made, see it refused, and return its verdict."""
    evidence = tmp_path / f"{gate}.evidence"
    source = steps.given[gate]["evidence"]
    lines = []
    for line in split_bundle(source.read_bytes()):
        statement = Statement.parse(Envelope.parse(line).payload)
        if statement.step == "watermark":
            line = run.sign(statement.replace(outputs={"model": tree_digest(model)}))
        elif statement.kind == "gate" and "watermark" in str(statement.step):
            swapped = {**statement.inputs, "model": tree_digest(model)}
            line = run.sign(statement.replace(inputs=swapped, outputs={"model": tree_digest(model)}))
        lines.append(line)
    evidence.write_bytes(join_bundle(lines))
    statement = steps.call(gate, model=model, evidence=evidence)
    with run.environment(), pytest.raises(GateFailedError):
        enforce(gate, subject=tree_digest(model), evidence=steps.folder / "bundle", passed=tmp_path / "passed")
    assert not (tmp_path / "passed").exists()
    return statement


def test_the_watermark_is_absent(steps, attacked, tmp_path):
    """The marking step hands the model on as it was."""
    statement = judged(steps, attacked, tmp_path, "verify_watermark", steps.given["watermark"]["model"])
    assert (statement.verdict, statement.figures["present"], statement.figures["verdict"]) == ("FAILED", 0, "ABSENT")


@pytest.mark.parametrize("other", ["key", "owner"])
def test_the_watermark_is_another_owners(steps, attacked, tmp_path, other):
    """The model is marked, and well, but not for the owner that the policy names, or with another key."""
    unmarked = steps.given["watermark"]["model"]
    digest = tree_digest(unmarked)
    key = symmetric_key(f"file:{attacked.home.keys / 'watermark.key'}")
    claim = Claim(attacked.config.dataset.name if other == "key" else "somebody else", digest)
    theirs = tmp_path / "theirs"
    shutil.copytree(unmarked, theirs)
    path = theirs / "weights.safetensors"
    marked = embed(decode_weights(path.read_bytes()), bytes(32) if other == "key" else key, claim)
    path.write_bytes(replace_weights(path.read_bytes(), marked.tensors))
    statement = judged(steps, attacked, tmp_path, "verify_watermark", theirs)
    assert (statement.verdict, statement.figures["present"]) == ("FAILED", 0)


def test_what_ships_is_not_what_was_judged(steps, attacked, tmp_path):
    """With the keys of the marking step and of two gates stolen, what ships still has to answer as what was judged."""
    theirs = tmp_path / "theirs"
    shutil.copytree(steps.given["equivalence"]["model"], theirs)
    path = theirs / "weights.safetensors"
    tensors = dict(decode_weights(path.read_bytes()))
    last = "classifier.2.weight"
    tensors[last] = tensors[last][::-1].copy()  # a backdoor could not be plainer: the labels in reverse
    path.write_bytes(replace_weights(path.read_bytes(), tensors))
    statement = judged(steps, attacked, tmp_path, "equivalence", theirs)
    assert statement.verdict == "FAILED"
    assert statement.figures["agreement"] < 0.5


def test_enforce_is_shown_another_subject_than_the_gate_judged(attacked, tmp_path):
    other = resting.content(attacked.task("ingest/dataset"), attacked.pipeline_key)
    bundle = attacked.task("enforce/passed")
    with attacked.environment(), pytest.raises(EvidenceError, match="judged something else"):
        enforce("residual_pii", subject=other, evidence=bundle, passed=tmp_path / "passed")


def test_enforce_is_pointed_at_a_step_that_is_no_gate(attacked, tmp_path):
    with attacked.environment(), pytest.raises(PolicyError, match="no gate"):
        enforce("train", subject="0" * 64, evidence=attacked.task("enforce-5/passed"), passed=tmp_path / "passed")


def test_the_pipeline_calls_a_step_with_weaker_parameters_than_the_policys(steps):
    weak = dataclasses.replace(steps.run.config, masking=MaskingPlan(("EMAIL",), {}))
    steps.run = dataclasses.replace(steps.run, config=weak)
    for step in ("mask_pii", "residual_pii"):
        with pytest.raises(PolicyError, match="masking"):
            steps.call(step)


def test_the_model_is_sealed_for_the_attacker(steps, attacked):
    from portcullis.sealing.recipients import SealingPrivateKey

    key = SealingPrivateKey.generate().public_key().to_pem()
    (attacked.home.keys / "serving.pub.pem").write_bytes(key)
    with pytest.raises(KeyMaterialError, match="not the recipient"):
        steps.call("encrypt")
    assert steps.written() == []


def test_a_step_is_run_with_another_steps_key(steps, attacked):
    shutil.copyfile(attacked.home.keys / "ingest.pem", attacked.home.keys / "encrypt.pem")
    with pytest.raises(PolicyError, match="not the one that the policy names"):
        steps.call("encrypt")


def test_admit_without_the_admission_key(attacked, tmp_path):
    (attacked.home.keys / "admit.pem").unlink()
    with pytest.raises(KeyMaterialError):
        attacked.admit()


def test_deploy_is_given_no_admission(attacked, tmp_path):
    with attacked.environment(), pytest.raises(AdmissionError, match="no admission"):
        deploy(
            step="deploy",
            sealed=attacked.output / "model",
            admission=tmp_path / "nothing",
            evidence=attacked.output / "evidence.intoto.jsonl",
            target="local",
            deployment=tmp_path / "deployment",
        )
    assert not (tmp_path / "deployment").exists()


def test_deploy_is_given_evidence_without_the_gate(attacked, tmp_path):
    lines = attacked.lines()
    del lines["robustness:trained"]
    attacked.write(lines.values())
    with attacked.environment(), pytest.raises(AdmissionError, match="to the byte"):
        deploy(
            step="deploy",
            sealed=attacked.output / "model",
            admission=attacked.output / "admission.json",
            evidence=attacked.output / "evidence.intoto.jsonl",
            target="local",
            deployment=tmp_path / "deployment",
        )
    assert not (tmp_path / "deployment").exists()


def test_admit_is_given_evidence_of_a_step_twice_under_one_name(attacked, tmp_path):
    evidence = attacked.output / "evidence.intoto.jsonl"
    lines = attacked.lines()
    evidence.write_bytes(
        join_bundle(
            [
                *lines.values(),
                attacked.sign(attacked.statement("train").replace(finished=attacked.statement("train").finished + 1)),
            ]
        )
    )
    with attacked.environment(), pytest.raises(EvidenceError, match="two different"):
        admit(
            sealed=attacked.output / "model",
            signature=attacked.output / "model.sig",
            evidence=evidence,
            admission=tmp_path / "admission",
        )
    assert not (tmp_path / "admission").exists()


def test_caching_is_switched_on_and_a_whole_older_run_is_replayed(real_run, tmp_path):
    with pytest.raises(EvidenceError, match="older than this run"):
        running._publish(real_run.root, real_run.store, tmp_path / "output", started=running.now_ms())
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "missing", ["encrypt/sealed", "admit/admission", "deploy/deployment", "sign/signature", "sign/signature_evidence"]
)
def test_a_step_left_no_output_though_the_runner_says_success(real_run, tmp_path, missing):
    root = tmp_path / "root"
    shutil.copytree(real_run.root, root)
    (path,) = root.glob(f"**/{missing}")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PipelineError, match="left 0 of"):
        running._publish(root, real_run.store, tmp_path / "output", started=0)
    assert not (tmp_path / "output").exists()


VANISHING = '''
import sys
from kfp import dsl, local
from kfp.dsl import Artifact, Input, Model, Output
from portcullis.admission.component import admit
from portcullis.container import component
from portcullis.encryption.component import encrypt
from portcullis.preflight.component import preflight

@component
def train(evidence: Input[Artifact], model: Output[Model], model_evidence: Output[Artifact]):
    """Leave without a word."""
    import sys
    sys.exit(0)

@dsl.pipeline(name="vanishing")
def pipeline():
    begun = preflight()
    trained = train(evidence=begun.outputs["evidence"])
    sealed = encrypt(model=trained.outputs["model"], evidence=trained.outputs["model_evidence"], recipients=["x"])
    admit(
        sealed=sealed.outputs["sealed"],
        signature=sealed.outputs["sealed_evidence"],
        evidence=sealed.outputs["sealed_evidence"],
    )

local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
pipeline()
'''


def test_a_step_exits_with_0_and_without_output(attacked, tmp_path):
    """The local runner calls such a task a success; the next step refuses what is not there."""
    script = tmp_path / "vanishing.py"
    script.write_text(VANISHING)
    with attacked.environment():
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "root")], capture_output=True, text=True, timeout=120
        )
    assert done.returncode != 0
    assert (tmp_path / "root").exists()
    left = [path.name for path in (tmp_path / "root").rglob("*") if path.name in ("sealed", "admission")]
    assert left == []
