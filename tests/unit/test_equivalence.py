"""The equivalence gate: what it measures, and that whatever it cannot compare is FAILED."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import resting
import torch
from chains import World
from kfp import dsl

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.digest import sha256, tree_digest
from portcullis.equivalence import locked, stage
from portcullis.equivalence.compare import compare
from portcullis.equivalence.component import evaluate_equivalence as component
from portcullis.equivalence.stage import evaluate_equivalence
from portcullis.errors import EvidenceError, GateFailedError, GateInconclusiveError, InconclusiveError, RefusedError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.models.store import LoadedModel, ModelSpec, build_module, load_model, save_model
from portcullis.preflight.stage import preflight

# The comparison.

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 5.0], [1.0, 0.0, 0.5]], dtype=np.float32)
LABELS = np.array([0, 1, 2, 1])


def changed(*cells: tuple[int, int, float]) -> np.ndarray:
    logits = LOGITS.copy()
    for row, column, value in cells:
        logits[row, column] = value
    return logits


def test_a_model_is_equivalent_to_itself() -> None:
    assert compare(LOGITS, LOGITS, LABELS) == {
        "samples": 4,
        "agreement": 1,
        "accuracy_judged": 0.75,
        "accuracy": 0.75,
        "accuracy_drop": 0,
        "max_probability_change": 0,
        "mean_probability_change": 0,
    }


def test_figures_count_rows_and_measure_probabilities() -> None:
    figures = compare(LOGITS, changed((0, 1, 9.0)), LABELS)  # one row that was right goes wrong
    assert (figures["agreement"], figures["accuracy_judged"], figures["accuracy"]) == (0.75, 0.75, 0.5)
    assert figures["accuracy_drop"] == 0.25
    before, after = (math.exp(x) / (math.exp(2) + math.exp(x) + 1) for x in (1, 9))
    assert figures["max_probability_change"] == pytest.approx(after - before)
    assert figures["mean_probability_change"] == pytest.approx((after - before) * 2 / 12)  # as much is lost elsewhere
    assert all(type(value) in (int, float) for value in figures.values())


def test_a_drop_below_zero_is_a_gain() -> None:
    assert compare(LOGITS, changed((3, 1, 9.0)), LABELS)["accuracy_drop"] == -0.25


def test_wrong_in_another_way_is_no_agreement_though_accuracy_is_the_same() -> None:
    figures = compare(LOGITS, changed((3, 2, 9.0)), LABELS)
    assert (figures["agreement"], figures["accuracy_drop"]) == (0.75, 0)


def test_the_order_of_the_models_matters_for_the_drop_alone() -> None:
    one, other = (compare(*pair, LABELS) for pair in ((LOGITS, changed((0, 1, 9.0))), (changed((0, 1, 9.0)), LOGITS)))
    assert one["accuracy_drop"] == -other["accuracy_drop"]
    for name in ("agreement", "max_probability_change", "mean_probability_change", "samples"):
        assert one[name] == other[name]


def test_large_logits_do_not_overflow() -> None:
    figures = compare(LOGITS * np.float32(1e30), LOGITS, LABELS)
    assert 0 < figures["max_probability_change"] < 1 and figures["agreement"] == 1


BAD_LOGITS = {
    "no row": (LOGITS[:0], LOGITS[:0], LABELS[:0]),
    "one class": (LOGITS[:, :1], LOGITS[:, :1], LABELS * 0),
    "other rows": (LOGITS, LOGITS[:3], LABELS),
    "other classes": (LOGITS, LOGITS[:, :2], LABELS),
    "fewer labels": (LOGITS, LOGITS, LABELS[:3]),
    "labels on two axes": (LOGITS, LOGITS, LABELS[:, None]),
    "labels of floats": (LOGITS, LOGITS, LABELS * 1.0),
    "one axis": (LOGITS[0], LOGITS[0], LABELS[:1]),
    "NaN of the judged": (changed((0, 0, math.nan)), LOGITS, LABELS),
    "NaN of the shipped": (LOGITS, changed((3, 2, math.nan)), LABELS),
    "NaN of both": (changed((0, 0, math.nan)), changed((0, 0, math.nan)), LABELS),
    "infinity": (LOGITS, changed((0, 0, math.inf)), LABELS),
    "label beyond the classes": (LOGITS, LOGITS, LABELS + 1),
    "label below the classes": (LOGITS, LOGITS, LABELS - 1),
}


@pytest.mark.parametrize("name", BAD_LOGITS)
def test_what_is_no_pair_of_answers_is_not_compared(name: str) -> None:
    with pytest.raises(InconclusiveError):
        compare(*BAD_LOGITS[name])


# The gate.

SPEC = ModelSpec("digits-cnn", {"width": 4}, (1, 8, 8), 0, 16, ("0", "1", "2"))
COLUMNS = tuple(f"p{index:02}" for index in range(64))
ROWS = DatasetSpec("digits", Label("label", SPEC.labels), Features(COLUMNS, (1, 8, 8), 0, 16))
CHECKS = {"agreement": {"min": 0.98, "max": 1}, "accuracy_drop": {"min": -1, "max": 0.01}, "samples": {"min": 100}}
PIXELS = np.random.default_rng(0).integers(0, 17, (1200, 64))

STEPS = [
    {
        "name": "preflight",
        "stage": "preflight",
        "kind": "transform",
        "inputs": {"policy": "policy"},
        "outputs": ["nonce"],
    },
    {
        "name": "source",
        "stage": "source",
        "kind": "transform",
        "inputs": {"nonce": "preflight.nonce"},
        "outputs": ["judged", "marked", "test"],
    },
    {
        "name": "equivalence",
        "stage": "equivalence_gate",
        "kind": "gate",
        "inputs": {"model": "source.marked", "judged": "source.judged", "test": "source.test"},
        "outputs": ["model"],
        "checks": CHECKS,
    },
]


def network(seed: int = 0, spec: ModelSpec = SPEC) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_module(spec).eval()


def nudged(size: float) -> torch.nn.Module:
    """Return the judged network with every weight moved a little, as a watermark moves some."""
    module = network()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in module.parameters():
            weights += size * weights.abs().mean() * torch.randn(weights.shape, generator=generator)
    return module


def attested_rows(count: int = 150, **changes: list) -> pa.Table:
    pixels = PIXELS[:count]
    labels = [SPEC.labels[index] for index in LoadedModel(SPEC, network()).predict(pixels)]
    columns = {name: pixels[:, index] for index, name in enumerate(COLUMNS)}
    return pa.table(columns | {"label": labels} | changes)


class Place:
    """Two models, test rows and evidence of all three, and the gate under a policy of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        world = World()
        world.keys |= {step["name"]: Signer.generate() for step in STEPS}
        blank = {"parameters": {}, "requires": [], "checks": {}}
        keyed = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in STEPS]
        write_trust_store(
            root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=keyed, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        resting.write_keys(root / "keys")
        for step in STEPS:
            write_bytes(root / "keys" / f"{step['name']}.pem", world.keys[step["name"]].private_pem(), mode=0o600)

    def furnish(
        self,
        marked: torch.nn.Module,
        *,
        spec: ModelSpec = SPEC,
        table: pa.Table | None = None,
        rows: DatasetSpec = ROWS,
        spoil: Callable[[Path], object] = lambda root: None,
    ) -> None:
        save_model(self.root / "judged", network(), SPEC)
        save_model(self.root / "marked", marked, spec)
        resting.seal(self.root / "test", attested_rows() if table is None else table, rows)
        spoil(self.root)  # whoever made it attested it
        nonce = preflight(step="preflight", bundle=self.root / "first")
        begun = begin(
            "source",
            stage="source",
            inputs={"nonce": sha256(nonce.encode())},
            parameters={},
            evidence=[self.root / "first"],
        )
        outputs = {name: tree_digest(self.root / name) for name in ("judged", "marked")}
        outputs["test"] = resting.content(self.root / "test")
        begun.finish(bundle=self.root / "evidence", outputs=outputs, figures={})

    def judge(self, **replaced: Path) -> Statement:
        given = {name: self.root / name for name in ("judged", "test", "evidence")} | {"model": self.root / "marked"}
        out = self.root / "out"
        return evaluate_equivalence(
            step="equivalence", report=out / "report.html", bundle=out / "bundle", **given | replaced
        )

    def enforce(self) -> None:
        enforce(
            "equivalence",
            subject=tree_digest(self.root / "marked"),
            evidence=self.root / "out" / "bundle",
            passed=self.root / "out" / "passed",
        )

    def written(self) -> list[str]:
        return sorted(path.name for path in (self.root / "out").glob("*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    return Place(tmp_path)


def test_a_model_that_hardly_moved_passes(place: Place) -> None:
    place.furnish(nudged(1e-4))
    statement = place.judge()
    assert (statement.verdict, statement.reason) == ("PASSED", "")
    assert statement.outputs == {"model": tree_digest(place.root / "marked")}
    assert statement.inputs["judged"] == tree_digest(place.root / "judged") != statement.inputs["model"]
    assert (statement.figures["samples"], statement.figures["accuracy_judged"]) == (150, 1)
    assert 0 < statement.figures["max_probability_change"] < 0.01
    place.enforce()
    assert place.written() == ["bundle", "passed", "report.html"]
    assert "equivalence_gate: PASSED" in (place.root / "out" / "report.html").read_text()


def test_a_model_that_answers_otherwise_is_failed(place: Place) -> None:
    place.furnish(network(seed=7))
    statement = place.judge()
    assert statement.verdict == "FAILED" and "agreement = " in statement.reason
    assert statement.figures["agreement"] < 0.98
    assert statement.figures["accuracy_judged"] == 1 > statement.figures["accuracy"]
    assert "equivalence_gate: FAILED" in (place.root / "out" / "report.html").read_text()
    with pytest.raises(GateFailedError, match="agreement"):
        place.enforce()
    assert "passed" not in place.written()


def test_too_few_rows_are_failed(place: Place) -> None:
    place.furnish(nudged(1e-4), table=attested_rows(99))
    assert place.judge().reason == "samples = 99, required >= 100"


def test_rows_are_asked_in_chunks_and_none_is_left_out(place: Place) -> None:
    place.furnish(nudged(1e-2), table=attested_rows(1200))
    figures = place.judge().figures
    features = PIXELS.astype(np.float32)
    labels = load_model(place.root / "judged").predict(features)
    whole = compare(*(load_model(place.root / name).predict_logits(features) for name in ("judged", "marked")), labels)
    assert figures == pytest.approx(whole, abs=1e-6)
    assert figures["samples"] == 1200


OTHER_WIDTH = ModelSpec("digits-cnn", {"width": 6}, SPEC.shape, 0, 16, SPEC.labels)
OTHER_BOUNDS = ModelSpec("digits-cnn", {"width": 4}, SPEC.shape, 0, 17, SPEC.labels)
OTHER_LABELS = ModelSpec("digits-cnn", {"width": 4}, SPEC.shape, 0, 16, ("0", "2", "1"))


def spoilt(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(b"\x00" * 64)


INCONCLUSIVE = {
    "other options": (
        {"marked": lambda: network(spec=OTHER_WIDTH), "spec": OTHER_WIDTH},
        "differ in more than weights",
    ),
    "other bounds": ({"spec": OTHER_BOUNDS}, "differ in more than weights"),
    "other labels": ({"spec": OTHER_LABELS}, "differ in more than weights"),
    "rows with other bounds": (
        {"rows": DatasetSpec("digits", ROWS.label, Features(COLUMNS, (1, 8, 8), -1, 16))},
        "does not take these rows",
    ),
    "rows with other classes": (
        {"rows": DatasetSpec("digits", Label("label", ("0", "1", "2", "3")), ROWS.features)},
        "does not take these rows",
    ),
    "pixel out of bounds": ({"table": lambda: attested_rows(p00=[17] * 150)}, "not in"),
    "pixel empty": ({"table": lambda: attested_rows(p00=[None] * 150)}, "p00"),
    "pixel NaN": ({"table": lambda: attested_rows(p00=[math.nan] * 150)}, "p00"),
    "unknown label": ({"table": lambda: attested_rows(label=["9"] * 150)}, "not one of the 3 classes"),
    "weights of the shipped": ({"spoil": spoilt("marked/weights.safetensors")}, "safetensors"),
    "weights of the judged": ({"spoil": spoilt("judged/weights.safetensors")}, "safetensors"),
    "description of the shipped": ({"spoil": spoilt("marked/model.json")}, "model.json"),
    "test rows": ({"spoil": lambda root: resting.spoil(root / "test", data_parquet=bytes(64))}, "data.parquet"),
}


@pytest.mark.parametrize("name", INCONCLUSIVE)
def test_what_cannot_be_compared_is_inconclusive(place: Place, name: str) -> None:
    given, message = INCONCLUSIVE[name]
    marked = given.get("marked", lambda: nudged(1e-4))()
    options = {key: value() if key == "table" else value for key, value in given.items() if key != "marked"}
    place.furnish(marked, **options)
    statement = place.judge()
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    assert message in statement.reason
    assert not statement.figures
    with pytest.raises(GateInconclusiveError):
        place.enforce()
    assert place.written() == ["bundle", "report.html"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), ValueError("no"), IndexError("no")])
def test_a_network_that_fails_is_inconclusive(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(self: LoadedModel, values: np.ndarray) -> np.ndarray:
        raise error

    monkeypatch.setattr(LoadedModel, "predict_logits", fail)
    with pytest.raises(InconclusiveError, match=f"a model could not be asked: {type(error).__name__}"):
        locked._logits(LoadedModel(SPEC, network()), PIXELS[:2])


def test_a_process_that_leaves_too_few_logits_is_not_believed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.furnish(nudged(1e-4))
    monkeypatch.setattr(stage, "run_isolated", lambda *_, **__: None)
    assert "gave 0 bytes of logits" in place.judge().reason


def test_logits_that_are_not_finite_are_inconclusive(place: Place) -> None:
    module = nudged(1e-4)
    with torch.no_grad():
        for weights in module.parameters():
            weights *= 1e30
    place.furnish(module)
    assert "not finite" in place.judge().reason


@pytest.mark.parametrize("name", ["model", "judged", "test"])
def test_another_artifact_is_refused_and_nothing_is_written(place: Place, name: str) -> None:
    place.furnish(nudged(1e-4))
    other = place.root / "other"
    if name == "test":
        resting.seal(other, resting.opened(place.root / "test").table.slice(1), ROWS)
    else:
        save_model(other, network(seed=3), SPEC)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        place.judge(**{name: other})
    assert place.written() == []


def test_the_judged_and_the_shipped_model_are_not_interchangeable(place: Place) -> None:
    place.furnish(nudged(1e-4))
    with pytest.raises(EvidenceError, match="swapped or altered"):
        place.judge(model=place.root / "judged")
    with pytest.raises(EvidenceError, match="swapped or altered"):
        place.judge(judged=place.root / "marked")


@pytest.mark.parametrize("name", ["model", "judged", "test", "evidence"])
def test_what_is_missing_is_refused_and_nothing_is_written(place: Place, name: str) -> None:
    place.furnish(nudged(1e-4))
    with pytest.raises(RefusedError):
        place.judge(**{name: place.root / "nowhere"})
    assert place.written() == []


def test_the_component_does_what_the_stage_does(place: Place) -> None:
    place.furnish(nudged(1e-4))
    out = place.root / "out"
    metrics = dsl.Metrics(uri=str(out / "metrics"))
    component.python_func(
        model=dsl.Model(uri=str(place.root / "marked")),
        judged=dsl.Model(uri=str(place.root / "judged")),
        test=dsl.Dataset(uri=str(place.root / "test")),
        evidence=dsl.Artifact(uri=str(place.root / "evidence")),
        step="equivalence",
        verdict_evidence=dsl.Artifact(uri=str(out / "bundle")),
        report=dsl.HTML(uri=str(out / "report.html")),
        metrics=metrics,
    )
    place.enforce()
    assert metrics.metadata["samples"] == 150
