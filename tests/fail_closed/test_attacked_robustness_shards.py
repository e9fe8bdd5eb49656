"""The robustness gate over shards, run for real: one number of all rows; what is missing, repeated or false refuses."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import digits_models
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portcullis.attestation.stage import start_chain
from portcullis.dataset import DatasetSpec, Features, Label, write_dataset
from portcullis.digest import canonical_json, parse_json, sha256
from portcullis.errors import ConfigError, EvidenceError, GateInconclusiveError, UsageError
from portcullis.evidence.chain import join_bundle
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.shards import Shard
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import enforce, read_evidence
from portcullis.models.store import save_model
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.shards import attack_shard, merge_attacks, shard_rows
from portcullis_pipelines.compile import ROOT
from portcullis_pipelines.home import Home, ensure_policy, generate_keys

pytestmark = pytest.mark.slow

SHARDS = 2
ROWS = 300
QUICK = RobustnessSettings(cw_steps=5, ddn_steps=10, deepfool_steps=5, apgd_steps=10, apgd_targets=1)


@dataclass(frozen=True)
class Run:
    """A model, its rows and what the shards of an honest run left, in one folder."""

    folder: Path
    home: Home

    @property
    def outcomes(self) -> list[Path]:
        return [self.folder / f"outcome-{index}" for index in range(SHARDS)]

    @property
    def bundles(self) -> list[Path]:
        return [self.folder / f"bundle-{index}" for index in range(SHARDS)]

    def merge(self, outcomes: list[Path] | None = None, bundles: list[Path] | None = None) -> Statement:
        return merge_attacks(
            step="robustness",
            model=self.folder / "model",
            outcomes=self.outcomes if outcomes is None else outcomes,
            evidence=self.bundles if bundles is None else bundles,
            report=self.folder / "report.html",
            bundle=self.folder / "judged",
        )

    def shard(self, index: int) -> Statement:
        (found,) = (it for it in self.statements(index) if it.step == f"attack_shard#{index}/{SHARDS}")
        return found

    def statements(self, index: int) -> list[Statement]:
        return [Statement.parse(Envelope.parse(line).payload) for line in read_evidence([self.bundles[index]])]

    def lie(self, index: int, change: Callable[[Statement, dict], tuple[Statement, dict]]) -> None:
        """Have a shard, which holds its key, leave and sign something else."""
        document = parse_json(self.outcomes[index].read_bytes())
        statement, document = change(self.shard(index), document)
        data = canonical_json(document)
        self.outcomes[index].write_bytes(data)
        statement = statement.replace(outputs={"outcome": sha256(data)})
        first, _ = read_evidence([self.bundles[index]])
        line = seal_payload(statement.encode(), self.home.signer("attack_shard")).encode()
        self.bundles[index].write_bytes(join_bundle([first, line]))


def policy_steps(least: float) -> list[dict]:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from judge_my_model import policy_steps as of_the_example
    finally:
        sys.path.remove(str(ROOT / "examples"))
    steps = of_the_example(least, SHARDS)
    return [{**step, "parameters": asdict(QUICK)} if step["name"] == "attack_shard" else step for step in steps]


def write_rows(path: Path, first: int, last: int) -> None:
    features, labels = digits_models.digits()
    columns = tuple(f"pixel_{place:02}" for place in range(64))
    pixels = {name: features[first:last, place].astype(np.int64) for place, name in enumerate(columns)}
    classes = digits_models.SPEC.labels
    spec = DatasetSpec("rows", Label("digit", classes), Features(columns, (1, 8, 8), 0, 16))
    write_dataset(path, pa.table({"digit": [classes[it] for it in labels[first:last]], **pixels}), spec)


def attack(run: Run, index: int, test: str = "test") -> Statement:
    return attack_shard(
        step=f"attack_shard#{index}/{SHARDS}",
        model=run.folder / "model",
        test=run.folder / test,
        evidence=run.folder / "begun",
        settings=QUICK,
        outcome=run.outcomes[index],
        bundle=run.bundles[index],
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("home"))
    steps = policy_steps(0.5)
    generate_keys(home, [step["name"] for step in steps])
    ensure_policy(home, "shards", steps)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment.items():
            patch.setenv(name, value)
        yield home


@pytest.fixture(scope="module")
def honest(environment, tmp_path_factory) -> Run:
    """An honest run up to the shards; never change it, copy it."""
    run = Run(tmp_path_factory.mktemp("honest"), environment)
    save_model(run.folder / "model", digits_models.hardened_model().module, digits_models.SPEC)
    write_rows(run.folder / "test", 0, ROWS)
    start_chain(step="start_chain", artifact=run.folder / "model", bundle=run.folder / "begun")
    for index in range(SHARDS):
        attack(run, index)
    return run


@pytest.fixture
def run(honest: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(honest.folder, tmp_path / "copy")), honest.home)


def test_the_verdict_is_on_all_rows_each_once(run: Run) -> None:
    judged = run.merge()
    assert judged.verdict == "PASSED"
    parts = [run.shard(index).figures for index in range(SHARDS)]
    assert [part["rows"] for part in parts] == [ROWS] * SHARDS
    assert sum(part["samples"] for part in parts) == judged.figures["samples"] == ROWS
    for name in ("clean_accuracy", "robust_accuracy", "robust_accuracy_apgd"):
        assert judged.figures[name] == sum(round(it[name] * it["samples"]) for it in parts) / ROWS
    assert judged.figures["smallest_gradient"] == min(it["smallest_gradient"] for it in parts)
    assert judged.figures["batch_difference"] == max(it["batch_difference"] for it in parts)
    assert judged.figures["forward_equivalents"] == sum(it["forward_equivalents"] for it in parts)
    page = (run.folder / "report.html").read_text()
    assert "PASSED" in page and "apgd" in page and f"of {ROWS} samples withstood every attack" in page


def test_the_order_of_the_shards_does_not_matter(run: Run) -> None:
    turned = run.merge(run.outcomes[::-1], run.bundles[::-1])
    assert turned.figures == run.merge().figures


def test_a_shard_is_left_out(run: Run) -> None:
    with pytest.raises(EvidenceError, match="a shard is missing"):
        run.merge(run.outcomes[:1])


def test_a_shards_evidence_is_left_out(run: Run) -> None:
    with pytest.raises(EvidenceError, match="no evidence of step 'attack_shard#1/2'"):
        run.merge(bundles=run.bundles[:1])


def test_one_shard_comes_twice_for_another(run: Run) -> None:
    with pytest.raises(EvidenceError, match="a shard is missing"):
        run.merge([run.outcomes[0], run.outcomes[0]])


def test_a_shard_comes_twice_besides(run: Run) -> None:
    with pytest.raises(EvidenceError, match="repeated"):
        run.merge([*run.outcomes, run.outcomes[0]])


def test_an_outcome_is_altered(run: Run) -> None:
    text = run.outcomes[1].read_bytes()
    run.outcomes[1].write_bytes(text.replace(b'"robust_accuracy":0', b'"robust_accuracy":1', 1))
    assert run.outcomes[1].read_bytes() != text
    with pytest.raises(EvidenceError, match="a shard is missing"):
        run.merge()


def test_an_outcome_of_another_run(run: Run) -> None:
    run.lie(1, lambda it, document: (it.replace(nonce="0" * 32), document))
    with pytest.raises(EvidenceError, match="from another run"):
        run.merge()


def inconclusive(run: Run, why: str) -> None:
    judged = run.merge()
    assert (judged.verdict, why in judged.reason) == ("FAILED", True), judged.reason
    with pytest.raises(GateInconclusiveError):
        enforce("robustness", subject=judged.inputs["model"], evidence=run.folder / "judged", passed=run.folder / "ok")
    assert not (run.folder / "ok").exists()


def test_a_shard_signs_other_figures_than_it_leaves(run: Run) -> None:
    run.lie(0, lambda it, document: (it.replace(figures={**it.figures, "robust_accuracy": 1}), document))
    inconclusive(run, "left other figures than it signed")


def test_a_shard_says_what_cannot_be(run: Run) -> None:
    def change(statement: Statement, document: dict) -> tuple[Statement, dict]:
        better = {**document["figures"], "robust_accuracy": 1}
        return statement.replace(figures={**statement.figures, "robust_accuracy": 1}), {**document, "figures": better}

    run.lie(0, change)  # more than withstood each attack
    inconclusive(run, "a worst case above another case")


def test_a_shard_attacks_fewer_rows(run: Run) -> None:
    """It says so of one row, which every attack left: all that it says fits."""

    def change(statement: Statement, document: dict) -> tuple[Statement, dict]:
        figures = {
            name: (round(value * 150) - 1) / 149 if name.startswith(("clean_", "robust_")) else value
            for name, value in document["figures"].items()
        }
        figures["samples"] = 149
        attacks = [[name, norm, radius, tried - 1, *rest] for name, norm, radius, tried, *rest in document["attacks"]]
        changed = {**document, "figures": figures, "attacks": attacks}
        return statement.replace(figures={**figures, "rows": ROWS}), changed

    run.lie(0, change)
    inconclusive(run, "did not attack each of the test rows once")


def test_a_shard_attacks_other_rows(run: Run) -> None:
    """Rows from outside the chain are bound by nothing but this: all shards must state the same."""
    run.lie(1, lambda it, document: (it.replace(inputs={**it.inputs, "test": sha256(b"others")}), document))
    inconclusive(run, "did not attack each of the test rows once")


def test_a_shard_could_not_judge(run: Run) -> None:
    run.lie(1, lambda it, _: (it.replace(figures={"rows": ROWS}), {"inconclusive": "the gradients mislead"}))
    inconclusive(run, "attack_shard#1/2: the gradients mislead")


def test_a_shard_has_too_few_rows(run: Run) -> None:
    write_rows(run.folder / "few", 0, 190)
    assert attack(run, 0, "few").figures == {"rows": 190}
    inconclusive(run, "95 test rows, fewer than the 100 that are needed")


def test_the_shards_follow_other_plans(run: Run) -> None:
    def change(statement: Statement, document: dict) -> tuple[Statement, dict]:
        kept = [entry for entry in document["attacks"] if entry[0] != "cw"]
        return statement, {**document, "attacks": kept}

    run.lie(1, change)
    inconclusive(run, "figures of other attacks than ran")


@pytest.mark.parametrize("name", ["samples", "rows"])
def test_a_shard_does_not_say_how_many_rows_it_attacked(run: Run, name: str) -> None:
    def change(statement: Statement, document: dict) -> tuple[Statement, dict]:
        return statement.replace(figures={**statement.figures, name: "all"}), document

    run.lie(0, change)
    inconclusive(run, "does not say how many rows")


def test_a_step_that_is_no_shard_and_a_mode_that_needs_all_rows(run: Run) -> None:
    given = {
        "model": run.folder / "model",
        "test": run.folder / "test",
        "evidence": run.folder / "begun",
        "outcome": run.folder / "new",
        "bundle": run.folder / "new.evidence",
    }
    with pytest.raises(UsageError, match="is no shard"):
        attack_shard(step="attack_shard", settings=QUICK, **given)
    with pytest.raises(ConfigError, match="mode must be full"):
        attack_shard(step="attack_shard#0/2", settings=RobustnessSettings(mode="verdict"), **given)
    with pytest.raises(ConfigError, match="no threat"):
        attack_shard(
            step="attack_shard#0/2", settings=RobustnessSettings(threat="mutable: {p0: {epsilon: 1}}"), **given
        )
    assert not (run.folder / "new").exists()


@given(labels=st.lists(st.integers(0, 5), max_size=200), count=st.integers(2, 9))
def test_every_row_is_of_one_shard_and_every_class_of_all(labels: list[int], count: int) -> None:
    array = np.array(labels, dtype=np.int64)
    parts = [shard_rows(array, Shard(index, count)) for index in range(count)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for label in set(labels):
        sizes = [int((array[part] == label).sum()) for part in parts]
        assert max(sizes) - min(sizes) <= 1


BAD_PLANS = {
    "an unknown name": {"epsilons": 0.1},
    "text for a number": {"epsilon": "0.1"},
    "a fraction for a whole number": {"pgd_steps": 10.5},
    "a boolean for a whole number": {"n_min": True},
    "NaN": {"epsilon": float("nan")},
    "null": {"seed": None},
    "a number for text": {"mode": 1},
}


@pytest.mark.parametrize("plan", BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_that_is_none(plan: dict) -> None:
    with pytest.raises(ConfigError, match="robustness: "):
        RobustnessSettings.from_dict(plan)


def test_a_plan_as_kfp_hands_it_over() -> None:
    given = {name: float(value) if isinstance(value, int) else value for name, value in asdict(QUICK).items()}
    assert RobustnessSettings.from_dict(given) == QUICK
    assert type(RobustnessSettings.from_dict(given).pgd_steps) is int
