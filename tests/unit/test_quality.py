"""The data-quality gate: what each screening finds, and that whatever the gate cannot judge is FAILED."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import resting
from chains import World
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.digest import sha256
from portcullis.errors import (
    ConfigError,
    EvidenceError,
    GateFailedError,
    GateInconclusiveError,
    InconclusiveError,
    MissingDependencyError,
    PolicyError,
    RefusedError,
)
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.preflight.stage import preflight
from portcullis.quality.backdoor import cluster_candidates, spectral_candidates, trigger_columns
from portcullis.quality.component import evaluate_quality as component
from portcullis.quality.neighbours import Neighbourhood
from portcullis.quality.rows import constant_share, copies, missing_share, remoteness
from portcullis.quality.screen import screen
from portcullis.quality.settings import QualitySettings
from portcullis.quality.stage import evaluate_quality
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.steps import STEPS as REFERENCE

# The rows by themselves.


def test_the_emptiest_column_counts():
    table = pa.table({"a": [1.0, math.nan, None, 4.0], "b": ["x", "y", None, "z"], "c": [1, 2, 3, 4]})
    assert missing_share(table) == 0.5
    assert missing_share(table.select(["c"])) == 0


def test_columns_of_one_value_are_counted():
    points = np.array([[1, 0, 2], [1, 0, 3], [1, 1, 2]], dtype=np.float32)
    assert constant_share(points) == pytest.approx(1 / 3)


def test_copies_are_found_by_their_bits_and_zeros_have_no_sign():
    points = np.array([[0, 1], [-0.0, 1], [2, 3], [0, 1], [2, 3.0000002]], dtype=np.float32)
    repeated, largest, contradicting = copies(points, np.array([0, 0, 1, 2, 1]))
    assert (repeated.tolist(), largest, contradicting.tolist()) == ([1, 3], 3, [0, 1, 3])


def test_without_copies_there_are_none():
    repeated, largest, contradicting = copies(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0]))
    assert (len(repeated), largest, len(contradicting)) == (0, 1, 0)


RANDOM = np.random.default_rng(7)
CLOUD = RANDOM.normal(0, 0.05, (200, 8)).astype(np.float32)
CLOUD_LABELS = np.repeat([0, 1], 100)


def far(points, labels):
    return np.flatnonzero(remoteness(points, labels) > 6)


def test_outliers_are_told_by_their_class():
    points = CLOUD.copy()
    points[100:] += 1  # another class, elsewhere: none of them is far from its own
    assert not len(far(points, CLOUD_LABELS))
    points[3], points[150] = 1, 0  # where the other class is at home
    assert far(points, CLOUD_LABELS).tolist() == [3, 150]


def test_outliers_do_not_hide_one_another():
    points = CLOUD.copy()
    points[:40] += 1
    assert far(points, CLOUD_LABELS).tolist() == list(range(40))


def test_in_a_class_of_equal_rows_any_other_is_an_outlier():
    points = np.zeros((40, 3), dtype=np.float32)
    points[5, 1] = 1e-3
    assert far(points, np.zeros(40, dtype=np.int64)).tolist() == [5]
    assert sorted(set(remoteness(points, np.zeros(40, dtype=np.int64)))) == [0, np.inf]


def test_features_of_any_size_are_measured():
    points = np.full((30, 2), 3e38, dtype=np.float32)
    points[:15] *= -1
    assert not len(far(points, np.zeros(30, dtype=np.int64)))


# The neighbours.

CORNERS = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
CORNER_LABELS = np.repeat([0, 1, 2], 40)
AROUND = CORNERS + RANDOM.normal(0, 0.05, CORNERS.shape).astype(np.float32)


def neighbourhood(points=AROUND, labels=CORNER_LABELS, neighbours=10) -> Neighbourhood:
    return Neighbourhood.of(points, labels, classes=3, neighbours=neighbours)


def test_clean_rows_are_called_by_their_labels():
    around = neighbourhood()
    assert around.accuracy == 1 and not len(around.issues())
    assert around.thresholds.tolist() == [1, 1, 1]


def test_flipped_labels_are_found():
    labels = CORNER_LABELS.copy()
    labels[[0, 50, 119]] = [2, 0, 1]
    assert neighbourhood(labels=labels).issues().tolist() == [0, 50, 119]


def test_rows_that_a_trigger_alone_holds_fall_to_their_class_when_they_do_not_vote():
    labels = CORNER_LABELS.copy()
    labels[:15] = 2  # they vote for one another
    points = np.concatenate([AROUND, np.zeros((120, 1), dtype=np.float32)], axis=1)
    points[:15, 3] = 1
    around = neighbourhood(points, labels)
    assert not len(around.issues())
    assert around.reclassified(np.arange(15)).tolist() == list(range(15))
    assert not len(around.reclassified(np.arange(80, 95)))  # and rows of its own do not
    assert not len(around.reclassified(np.zeros(0, dtype=np.int64)))


def test_a_crowd_of_near_copies_is_found():
    points = np.random.default_rng(5).random((300, 16), dtype=np.float32)
    assert not len(neighbourhood(points, np.arange(300) % 3).crowded(0.5))
    points[40:60] = points[40] + np.random.default_rng(6).normal(0, 0.01, (20, 16)).astype(np.float32)
    assert neighbourhood(points, np.arange(300) % 3).crowded(0.5).tolist() == list(range(40, 60))


def test_too_few_voters_are_inconclusive():
    with pytest.raises(InconclusiveError, match="too few"):
        neighbourhood(neighbours=120)
    with pytest.raises(InconclusiveError, match="too few"):
        neighbourhood().reclassified(np.arange(110))


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(8, 60), st.integers(1, 5))
@settings(max_examples=50)
def test_votes_are_those_of_the_nearest(seed, neighbours, rows, width):
    random = np.random.default_rng(seed)
    points = random.random((rows, width), dtype=np.float32)
    labels = np.concatenate([[0, 1, 2], random.integers(0, 3, rows - 3)])
    around = neighbourhood(points, labels, neighbours)
    distances = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.allclose(around.shares.sum(axis=1), 1)
    last = np.sqrt(np.sort(distances, axis=1)[:, neighbours - 1])
    assert np.allclose(around.radii, last, atol=2e-3)
    for row, order in enumerate(np.argsort(distances, axis=1)):
        edge = distances[row, order[neighbours - 1 : neighbours + 1]]
        if len(edge) == 2 and np.ptp(edge) > 1e-5:  # else single precision may take either
            votes = np.bincount(labels[order[:neighbours]], minlength=3) / neighbours
            assert around.shares[row].tolist() == votes.tolist()


def test_a_block_at_a_time_is_all_at_once(monkeypatch):
    whole = neighbourhood().shares
    monkeypatch.setattr("portcullis.quality.neighbours._CELLS", 1000)
    assert (neighbourhood().shares == whole).all()


# The activations.


def apart(count: int = 10) -> np.ndarray:
    """Return activations of 100 rows, the first of which lie apart."""
    values = np.random.default_rng(3).normal(0, 0.1, (100, 16))
    values[:count, 5] += 2
    return values


def test_candidates_are_what_lies_apart():
    assert spectral_candidates(apart(), share=0.1).tolist() == list(range(10))
    assert cluster_candidates(apart()).tolist() == list(range(10))


@pytest.mark.parametrize("rows", [1, 2, 30])
def test_of_equal_rows_none_lies_apart(rows):
    assert not len(cluster_candidates(np.ones((rows, 16))))
    assert len(spectral_candidates(np.ones((rows, 16)), share=0.2)) == max(1, rows // 5)


def test_of_two_clusters_the_smaller_is_meant():
    assert cluster_candidates(apart(60)).tolist() == list(range(60, 100))


def test_a_trigger_is_common_among_suspects_and_rare_elsewhere():
    points = np.random.default_rng(4).random((300, 6), dtype=np.float32)
    points[:10, 2] = 1  # the trigger
    points[:, 4] = 0.5  # common to all
    assert trigger_columns(points, np.arange(10)) == [2]
    assert trigger_columns(points, np.arange(4)) == []
    assert trigger_columns(points, np.arange(300)) == []


# The settings.


@pytest.mark.parametrize(
    "changes",
    [
        {"n_min": 3},
        {"n_min": 30.0},
        {"n_min": True},
        {"neighbours": 0},
        {"neighbours": 30},
        {"outlier_distance": 0},
        {"outlier_distance": math.nan},
        {"outlier_distance": math.inf},
        {"crowding": 0},
        {"crowding": 1},
        {"crowding": math.nan},
        {"suspected": 0},
        {"suspected": 0.6},
        {"suspected": math.nan},
        {"epochs": 0},
        {"seed": -1},
        {"seed": 2**53},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=f"screening: {next(iter(changes))}|neighbours must be fewer"):
        QualitySettings(**changes)


# The gate.

COLUMNS = tuple(f"v{index:02}" for index in range(16))
SPEC = DatasetSpec("squares", Label("kind", ("a", "b", "c")), Features(COLUMNS, (1, 4, 4), 0, 1), {"who": "token"})
SETTINGS = QualitySettings(epochs=10)
(DATA_QUALITY,) = (step for step in REFERENCE if step.name == "data_quality")
CHECKS = DATA_QUALITY.checks(ReferenceConfig(dataset=SPEC, screening=SETTINGS))

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
        "outputs": ["dataset"],
    },
    {
        "name": "data_quality",
        "stage": "data_quality_gate",
        "kind": "gate",
        "inputs": {"dataset": "source.dataset"},
        "outputs": ["dataset"],
        "parameters": DATA_QUALITY.parameters(ReferenceConfig(dataset=SPEC, screening=SETTINGS)),
        "checks": {name: dict(bounds) for name, bounds in CHECKS.items()},
    },
]


def squares(count: int = 180, **changes: list) -> pa.Table:
    """Return rows of 4 x 4 pixels, of which class 0, 1 or 2 has that row of pixels bright."""
    random = np.random.default_rng(1)
    kinds = np.arange(count) % 3
    pixels = np.full((count, 4, 4), 0.1)
    pixels[np.arange(count), kinds] = 0.9
    pixels = np.round(pixels + random.uniform(-0.1, 0.1, pixels.shape), 4).reshape(count, 16)
    columns = {name: pixels[:, index] for index, name in enumerate(COLUMNS)}
    people = {"who": [f"person-{row}" for row in range(count)], "kind": np.array(SPEC.label.classes)[kinds]}
    return pa.table(people | columns | changes)


def flipped(table: pa.Table, *rows: int) -> pa.Table:
    kinds = table["kind"].to_pylist()
    for row in rows:
        kinds[row] = {"a": "b", "b": "c", "c": "a"}[kinds[row]]
    return table.set_column(1, "kind", pa.array(kinds))


class Place:
    """A data set with its evidence, and the gate under a policy of its own with the reference policy's checks."""

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
        for step in STEPS:
            write_bytes(root / "keys" / f"{step['name']}.pem", world.keys[step["name"]].private_pem(), mode=0o600)

    def furnish(self, table: pa.Table, spoilt: bool = False) -> None:
        resting.write_keys(self.root / "keys")
        resting.seal(self.root / "dataset", table, SPEC)
        if spoilt:  # whoever made it attested it
            resting.spoil(self.root / "dataset", data_parquet=b"\0" * 64)
        nonce = preflight(step="preflight", bundle=self.root / "first")
        begun = begin(
            "source",
            stage="source",
            inputs={"nonce": sha256(nonce.encode())},
            parameters={},
            evidence=[self.root / "first"],
        )
        outputs = {"dataset": resting.content(self.root / "dataset")}
        begun.finish(bundle=self.root / "evidence", outputs=outputs, figures={})

    def judge(self, plan: QualitySettings = SETTINGS, **replaced: Path) -> Statement:
        given = {name: self.root / name for name in ("dataset", "evidence")} | replaced
        out = self.root / "out"
        return evaluate_quality(
            step="data_quality", settings=plan, report=out / "report.html", bundle=out / "bundle", **given
        )

    def enforce(self) -> None:
        enforce(
            "data_quality",
            subject=resting.content(self.root / "dataset"),
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


def test_clean_data_pass(place):
    place.furnish(squares())
    statement = place.judge()
    assert (statement.verdict, statement.reason) == ("PASSED", "")
    assert statement.outputs == {"dataset": resting.content(place.root / "dataset")}
    assert set(statement.figures) > set(CHECKS)
    assert (statement.figures["rows"], statement.figures["smallest_class"]) == (180, 60)
    place.enforce()
    assert place.written() == ["bundle", "passed", "report.html"]
    page = (place.root / "out" / "report.html").read_text()
    assert "data_quality_gate: PASSED" in page and '<p class="">None.</p>' in page


def rectangles(place: Place) -> list[list[tuple[str | None, float]]]:
    """Return colour and width of the bars on the page, chart after chart."""
    charts = re.findall("<svg.*?</svg>", (place.root / "out" / "report.html").read_text())
    bars = [ET.fromstring(chart).iter("rect") for chart in charts]
    return [[(it.get("fill"), float(it.attrib["width"])) for it in chart] for chart in bars]


def test_the_page_draws_each_figure_by_its_bound_and_each_row_by_its_distance(place):
    place.furnish(with_outlier())
    statement = place.judge()
    bounds = {name: bound["max"] for name, bound in CHECKS.items() if "max" in bound}
    _, by_bound, by_distance = rectangles(place)
    shares = {
        name: min(statement.figures[name] / high, 2) if high else 2 * bool(statement.figures[name])
        for name, high in bounds.items()
    }
    assert [width for _, width in by_bound] == pytest.approx([share * 180 for share in shares.values()], abs=0.1)
    assert [fill == "var(--bad)" for fill, _ in by_bound] == [share > 1 for share in shares.values()]
    assert [name for name, share in shares.items() if share > 1] == ["outlying_rows"]
    assert [fill for fill, _ in by_distance].count("var(--bad)") == 1 and by_distance[-1][0] == "var(--bad)"


def test_the_same_data_give_the_same_figures(place):
    place.furnish(squares())
    assert place.judge().figures == place.judge().figures


def test_flipped_labels_are_failed_and_the_report_names_rows_and_no_cells(place):
    place.furnish(flipped(squares(), 4, 100, 171))
    statement = place.judge()
    assert statement.verdict == "FAILED" and "label_issues = " in statement.reason
    assert statement.figures["label_issues"] == 3 / 180
    page = (place.root / "out" / "report.html").read_text()
    assert "<td>label</td><td>3</td><td>5, 101, 172</td>" in page
    assert "person-" not in page
    with pytest.raises(GateFailedError, match="label_issues"):
        place.enforce()
    assert place.written() == ["bundle", "report.html"]


def repeated(labels: str) -> pa.Table:
    table = pa.concat_tables([squares(), squares().slice(0, 2), squares().slice(0, 1)])
    kinds = [*table["kind"].to_pylist()[:-1], labels]
    return table.set_column(1, "kind", pa.array(kinds))


def with_outlier() -> pa.Table:
    far = squares(1).to_pydict() | {name: [1.0] for name in COLUMNS}
    return pa.concat_tables([squares(), pa.table(far)])


POISONED = {
    "copies": (lambda: repeated("a"), "duplicate_rows"),
    "copies that contradict one another": (lambda: repeated("b"), "contradicting_rows"),
    "an outlier": (with_outlier, "outlying_rows"),
    "classes out of balance": (lambda: pa.concat_tables([squares(96), rows_of("a", 200)]), "class_balance"),
    "columns of one value": (lambda: squares(**{name: [0.5] * 180 for name in COLUMNS[:9]}), "constant_share"),
    "missing cells in another column": (lambda: squares(who=[None] * 40 + ["x"] * 140), "missing_share"),
    "labels that mean nothing": (lambda: squares(kind=["a", "a", "b", "b", "c", "c"] * 30), "reference_accuracy"),
}


def rows_of(kind: str, count: int) -> pa.Table:
    table = squares(3 * (count + 96)).slice(96)
    return table.filter(pc.equal(table["kind"], kind)).slice(0, count)


@pytest.mark.parametrize("name", POISONED)
def test_poor_data_are_failed(place, name):
    make, figure = POISONED[name]
    place.furnish(make())
    statement = place.judge()
    assert statement.verdict == "FAILED" and f"{figure} = " in statement.reason
    with pytest.raises(GateFailedError):
        place.enforce()
    assert "passed" not in place.written()


def without(kind: str, left: int) -> pa.Table:
    table = squares()
    others = table.filter(pc.not_equal(table["kind"], kind))
    return pa.concat_tables([others, rows_of(kind, left)]) if left else others


INCONCLUSIVE = {
    "few rows": (lambda: squares(60), False, "class 'a' has 20 rows", True),
    "few rows of one class": (lambda: without("b", 29), False, "class 'b' has 29 rows", True),
    "a class without rows": (lambda: without("c", 0), False, "class 'c' has 0 rows", True),
    "one row": (lambda: squares(1), False, "class 'b' has 0 rows", True),
    "feature empty": (lambda: squares(v03=[None] + [0.5] * 179), False, "v03", True),
    "feature NaN": (lambda: squares(v03=[math.nan] * 180), False, "v03", True),
    "feature out of bounds": (lambda: squares(v03=[1.5] * 180), False, "not in", True),
    "unknown label": (lambda: squares(kind=["d"] * 180), False, "not one of the 3 classes", True),
    "spoilt": (squares, True, "data.parquet", False),
}


@pytest.mark.parametrize("name", INCONCLUSIVE)
def test_what_cannot_be_judged_is_inconclusive(place, name):
    make, spoilt, message, measured = INCONCLUSIVE[name]
    place.furnish(make(), spoilt)
    statement = place.judge()
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    assert message in statement.reason
    assert bool(statement.figures) == measured  # what was measured before is stated
    assert "label_issues" not in statement.figures
    with pytest.raises(GateInconclusiveError):
        place.enforce()
    assert place.written() == ["bundle", "report.html"]


def test_one_row_more_of_each_class_is_judged(place):
    place.furnish(without("b", 30))
    assert place.judge().verdict == "PASSED"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError(), ValueError("no")])
def test_a_network_that_fails_is_inconclusive(place, monkeypatch, error):
    import torch

    def fail(*_arguments, **_named):
        raise error

    place.furnish(squares())
    monkeypatch.setattr(torch.optim, "Adam", fail)
    assert "the reference network cannot be trained" in place.judge().reason


def test_a_network_that_does_not_stay_finite_is_inconclusive(place, monkeypatch):
    place.furnish(squares())
    monkeypatch.setattr("portcullis.quality.network.LEARNING_RATE", 1e30)
    assert "did not stay finite" in place.judge().reason


def test_without_pytorch_nothing_is_signed(place, monkeypatch):
    import sys

    place.furnish(squares())
    for module in ("portcullis.models.pytorch", "portcullis.quality.network"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        place.judge()
    assert place.written() == []


def test_a_weaker_plan_than_the_policys_is_refused(place):
    place.furnish(squares())
    with pytest.raises(PolicyError, match="outlier_distance"):
        place.judge(QualitySettings(epochs=10, outlier_distance=60))
    assert place.written() == []


def test_another_data_set_is_refused_and_nothing_is_written(place):
    place.furnish(squares())
    resting.seal(place.root / "other", squares().slice(1), SPEC)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        place.judge(dataset=place.root / "other")
    assert place.written() == []


@pytest.mark.parametrize("name", ["dataset", "evidence"])
def test_what_is_missing_is_refused_and_nothing_is_written(place, name):
    place.furnish(squares())
    with pytest.raises(RefusedError):
        place.judge(**{name: place.root / "nowhere"})
    assert place.written() == []


def test_the_component_does_what_the_stage_does(place):
    place.furnish(squares())
    out = place.root / "out"
    metrics = dsl.Metrics(uri=str(out / "metrics"))
    component.python_func(
        dataset=dsl.Dataset(uri=str(place.root / "dataset")),
        evidence=dsl.Artifact(uri=str(place.root / "evidence")),
        n_min=30,
        outlier_distance=6.0,
        neighbours=10,
        crowding=0.5,
        suspected=0.2,
        epochs=10,
        seed=0,
        step="data_quality",
        verdict_evidence=dsl.Artifact(uri=str(out / "bundle")),
        report=dsl.HTML(uri=str(out / "report.html")),
        metrics=metrics,
    )
    place.enforce()
    assert metrics.metadata["rows"] == 180 and "trigger" not in metrics.metadata


def test_every_bound_is_on_a_figure_that_is_measured():
    figures = {}
    for finding in screen(Dataset(squares(), SPEC), SETTINGS):
        figures |= finding.figures
    assert set(CHECKS) <= set(figures)
    assert set(figures) - set(CHECKS) == {"rows", "trigger_columns", "trigger"}
