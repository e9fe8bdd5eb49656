"""Membership inference and inversion: what their figures mean, and what is refused."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import resting
import torch
from hypothesis import given
from hypothesis import strategies as st
from private_place import COLUMNS, OPTIONS, SPEC, Place, dataset, images

from portcullis.dataset import Dataset, DatasetSpec, Label, features_and_labels
from portcullis.digest import content_digest
from portcullis.errors import ConfigError, EvidenceError, InconclusiveError, ModelError, PolicyError
from portcullis.evidence.step import begin
from portcullis.membership import stage
from portcullis.membership.attack import attack
from portcullis.membership.findings import Asked, believe
from portcullis.membership.inversion import invert
from portcullis.membership.losses import losses
from portcullis.membership.ranking import interval
from portcullis.membership.settings import MembershipSettings
from portcullis.membership.stage import evaluate_membership
from portcullis.models.store import LoadedModel, ModelSpec, build_module, read_model_files, save_model
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.steps import STEPS

PLAN = MembershipSettings()
(GATE,) = (step for step in STEPS if step.name == "membership")
CHECKS = GATE.checks(ReferenceConfig.load(None))  # what the reference policy demands
RNG = np.random.default_rng(3)


def test_losses_that_say_nothing_are_guessing():
    found = attack(RNG.exponential(size=2000), RNG.exponential(size=500), PLAN)
    assert found["auc_low"] < 0.5 < found["auc_high"] < 0.56
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert (found["members"], found["others"]) == (2000, 500)


def test_losses_that_say_all_are_found_out():
    found = attack(RNG.uniform(0, 1, 500), RNG.uniform(2, 3, 500), PLAN)
    assert found["auc"] == found["auc_high"] == 1 and found["auc_low"] > 0.99
    assert found["tpr"] == 1 and found["tpr_low"] > 0.99
    turned = attack(RNG.uniform(2, 3, 500), RNG.uniform(0, 1, 500), PLAN)
    assert turned["auc"] == turned["auc_low"] == 0 and turned["auc_high"] < 0.01


def test_ties_count_half():
    assert attack(np.zeros(200), np.zeros(200), PLAN)["auc"] == 0.5


def test_the_auc_is_the_share_of_pairs_in_order():
    members, others = np.round(RNG.normal(size=150), 1), np.round(RNG.normal(0.3, size=120), 1)
    pairs = (members[:, None] < others).mean() + (members[:, None] == others).mean() / 2
    assert attack(members, others, PLAN)["auc"] == pytest.approx(pairs, abs=1e-12)


def test_the_interval_of_the_auc_covers_it():
    """Normal losses that differ by one deviation: the true AUC is Phi(1/sqrt 2)."""
    true, covered = 0.7602499, 0
    for _ in range(300):
        found = attack(RNG.normal(size=150), RNG.normal(1, size=120), PLAN)
        covered += found["auc_low"] <= true <= found["auc_high"]
    assert covered >= 0.91 * 300


def test_a_few_hundred_rows_cannot_measure_one_in_a_thousand():
    few = attack(RNG.exponential(size=1400), RNG.exponential(size=331), PLAN)
    assert few["fpr_measurable"] == 0 and 0.01 < few["fpr_high"] < 0.012
    many = attack(RNG.exponential(size=1400), RNG.exponential(size=50_000), PLAN)
    assert many["fpr_measurable"] == 1 and many["tpr_low"] <= many["tpr"] <= many["tpr_high"]


@pytest.mark.parametrize(
    ("members", "others"),
    [
        (np.zeros(99), np.zeros(200)),
        (np.zeros(200), np.zeros(99)),
        (np.zeros(0), np.zeros(0)),
        (np.full(200, np.nan), np.zeros(200)),
        (np.zeros(200), np.full(200, np.inf)),
    ],
    ids=["few members", "few others", "none", "nan", "infinite"],
)
def test_what_cannot_be_judged_is_inconclusive(members, others):
    with pytest.raises(InconclusiveError):
        attack(members, others, PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"false_positives": 0.0},
        {"false_positives": 0.5},
        {"false_positives": float("nan")},
        {"confidence": 0.4},
        {"confidence": 1.0},
        {"n_min": 1},
        {"n_min": 1.5},
        {"inversion_starts": 0},
        {"inversion_starts": 65},
        {"inversion_steps": 0},
        {"inversion_steps": 10_001},
        {"seed": -1},
        {"seed": 0.0},
    ],
    ids=str,
)
def test_refuses_settings_out_of_range(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(PLAN, **change)


def model(scale: float = 1.0) -> LoadedModel:
    torch.manual_seed(0)
    spec = ModelSpec("digits-cnn", OPTIONS, (1, 4, 4), 0, 16, ("dark", "bright"))
    module = build_module(spec).eval().requires_grad_(requires_grad=False)
    module.classifier[-1].weight.mul_(scale)
    return LoadedModel(spec, module)


def test_losses_are_those_of_pytorch():
    features, labels = images(50)
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(model().predict_logits(features)).double(), torch.from_numpy(labels), reduction="none"
    )
    assert losses(model(), features, labels) == pytest.approx(wanted.numpy(), abs=1e-9)
    assert np.isfinite(losses(model(1e6), features, labels)).all()


# What the process in which the model is attacked leaves behind.

ASKED = Asked(rows=3, classes=2, starts=2, inputs=4, labels=5)
LOST, IMAGES, PREDICTED = np.array([0.0, 0.5, 700.0]), np.linspace(0, 1, 16, dtype=np.float32), np.array([0, 4, 1, 1])


def test_what_can_be_so_is_believed():
    lost, images, predicted = believe(ASKED, LOST.tobytes(), IMAGES.tobytes(), PREDICTED.tobytes())
    assert (lost == LOST).all()
    assert (images == IMAGES.reshape(2, 2, 4)).all() and images.dtype == np.float32
    assert (predicted == PREDICTED.reshape(2, 2)).all()


def changed(values: np.ndarray, value: float) -> bytes:
    values = values.copy()
    values[-1] = value
    return values.tobytes()


FORGED = {
    "no losses": (b"", IMAGES.tobytes(), PREDICTED.tobytes()),
    "a loss too few": (LOST[:2].tobytes(), IMAGES.tobytes(), PREDICTED.tobytes()),
    "a byte too many": (LOST.tobytes() + b"\0", IMAGES.tobytes(), PREDICTED.tobytes()),
    "losses in float32": (LOST.astype(np.float32).tobytes(), IMAGES.tobytes(), PREDICTED.tobytes()),
    "a loss that is NaN": (changed(LOST, math.nan), IMAGES.tobytes(), PREDICTED.tobytes()),
    "a loss that is infinite": (changed(LOST, math.inf), IMAGES.tobytes(), PREDICTED.tobytes()),
    "a loss below 0": (changed(LOST, -1e-12), IMAGES.tobytes(), PREDICTED.tobytes()),
    "a loss that no logits make": (changed(LOST, 1e39), IMAGES.tobytes(), PREDICTED.tobytes()),
    "no images": (LOST.tobytes(), b"", PREDICTED.tobytes()),
    "an image too many": (LOST.tobytes(), IMAGES.tobytes() + bytes(16), PREDICTED.tobytes()),
    "a pixel that is NaN": (LOST.tobytes(), changed(IMAGES, math.nan), PREDICTED.tobytes()),
    "a pixel above 1": (LOST.tobytes(), changed(IMAGES, 1.0000001), PREDICTED.tobytes()),
    "a pixel below 0": (LOST.tobytes(), changed(IMAGES, -1e-30), PREDICTED.tobytes()),
    "no classes": (LOST.tobytes(), IMAGES.tobytes(), b""),
    "a class too many": (LOST.tobytes(), IMAGES.tobytes(), changed(PREDICTED, 5)),
    "a class below 0": (LOST.tobytes(), IMAGES.tobytes(), changed(PREDICTED, -1)),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_cannot_be_so_is_not_believed(name):
    with pytest.raises(ModelError, match="the attacked model's process left"):
        believe(ASKED, *FORGED[name])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=5), st.data())
def test_every_loss_of_finite_logits_is_believed(logits, data):
    class Answers:
        def predict_logits(self, _):
            return np.array([logits], dtype=np.float32)

    label = data.draw(st.integers(0, len(logits) - 1))
    found = losses(Answers(), np.zeros((1, 4), np.float32), np.array([label]))
    assert believe(Asked(1, 0, 0, 0, 2), found.tobytes(), b"", b"")[0] == found


def test_the_process_that_has_the_key_never_loads_what_opens_a_model():
    code = """
import sys
import portcullis.membership.stage, portcullis.membership.attack, portcullis.membership.resemblance
assert not {"torch", "portcullis.membership.locked", "portcullis.membership.inversion"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Inversion.

# Many classes of few rows, as where a class is a person.
FEW = DatasetSpec("persons", Label("who", tuple(f"person {index}" for index in range(50))), SPEC.features)
KEEN = dataclasses.replace(PLAN, inversion_steps=60)


def persons(seed: int, *, per_class: int = 2, classes: int = 50) -> Dataset:
    """Return noise, and whose it is said to be: there is nothing to learn of a person but the rows."""
    pixels = np.random.default_rng(seed).uniform(0, 16, (per_class * classes, 16))
    columns = {name: pixels[:, index] for index, name in enumerate(COLUMNS)}
    who = [FEW.label.classes[row % classes] for row in range(len(pixels))]
    return Dataset(pa.table({**columns, "who": who}), FEW)


def fitted(spec: ModelSpec, features, labels, *, steps: int):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = build_module(spec)
    inputs, targets = torch.from_numpy(spec.scale(features)), torch.as_tensor(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def by_heart() -> LoadedModel:
    rows = persons(1)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", {"width": 8, "hidden": 64})
    return LoadedModel(spec, fitted(spec, *features_and_labels(rows), steps=100))


def test_what_is_made_of_a_model_that_learnt_by_heart_resembles_its_rows(by_heart):
    model, rows = by_heart, persons(1)
    figures, shown = invert(model, rows, persons(2), KEEN)
    assert figures["inversion_auc_low"] > 0.75 and figures["inversion_reached"] == 1
    assert figures["inversion_classes"] == 50 and len(shown) == 10
    assert figures["inversion_recognised"] < 0.2  # of new rows, a class's mean says nothing
    strangers, _ = invert(model, persons(3), persons(2), KEEN)
    assert strangers["inversion_auc_high"] < 0.6  # of those that it did not learn, nothing is told


def test_what_is_made_of_a_model_that_learnt_the_classes_shows_the_classes():
    rows, others = dataset(400), dataset(400, seed=8)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", OPTIONS)
    model = LoadedModel(spec, fitted(spec, *features_and_labels(rows), steps=30))
    figures, shown = invert(model, rows, others, KEEN)
    assert figures["inversion_auc_high"] < 0.6
    assert figures["inversion_recognised"] == 1 and list(shown) == ["dark", "bright"]
    assert all(image.shape == (1, 4, 4) and (image >= 0).all() and (image <= 1).all() for image in shown.values())
    assert shown["bright"][0, :2].mean() > shown["dark"][0, :2].mean() + 0.2
    again, drawn = invert(model, rows, others, KEEN)
    assert again == figures and all((drawn[label] == image).all() for label, image in shown.items())


def test_classes_of_one_row_are_left_out_and_too_few_rows_are_inconclusive(by_heart):
    model, rows, others = by_heart, persons(1), persons(2)
    fewer = dataclasses.replace(others, table=others.table.slice(0, 75))  # the second half of the persons have one
    figures, _ = invert(model, rows, fewer, dataclasses.replace(KEEN, n_min=50, inversion_steps=1))
    assert figures["inversion_classes"] == 25
    with pytest.raises(InconclusiveError, match="two rows on either side"):
        invert(model, rows, fewer, KEEN)
    with pytest.raises(InconclusiveError, match="two rows on either side"):
        invert(model, rows, dataclasses.replace(others, table=others.table.slice(0, 50)), KEEN)


def test_a_network_without_gradients_is_refused():
    class Steps(torch.nn.Module):
        def forward(self, inputs):
            return torch.nn.functional.one_hot((inputs.sum(dim=(1, 2, 3)) > 8).long(), 2).float()

    rows = dataset(300)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", OPTIONS)
    with pytest.raises(ModelError, match="cannot be inverted"):
        invert(LoadedModel(spec, Steps()), rows, dataset(300, seed=8), KEEN)


def test_gradients_that_lead_nowhere_are_told():
    """A network may hide its gradients; what is made of it then says nothing of its rows."""

    class Rounded(torch.nn.Module):
        def forward(self, inputs):
            upper = (4 * inputs[:, 0, :2].mean(dim=(1, 2))).round()
            return torch.stack([2 - upper, upper - 2], dim=1)

    rows = dataset(300)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", OPTIONS)
    figures, _ = invert(LoadedModel(spec, Rounded()), rows, dataset(300, seed=8), KEEN)
    assert figures["inversion_reached"] < CHECKS["inversion_reached"]["min"]


def test_a_network_whose_gradients_are_not_finite_is_refused():
    class Wild(torch.nn.Module):
        def forward(self, inputs):
            flat = inputs.flatten(1)
            return torch.stack([(flat - flat).sum(dim=1).sqrt() + flat[:, 0], flat[:, 1]], dim=1)

    rows = dataset(300)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", OPTIONS)
    with pytest.raises(ModelError, match="not finite"):
        invert(LoadedModel(spec, Wild()), rows, dataset(300, seed=8), KEEN)


def test_an_area_over_no_variance_has_an_interval():
    assert interval(0.0, 0.0, 100, 0.95) == (0.0, 0.01)
    assert interval(1.0, 0.0, 100, 0.95) == (0.99, 1.0)
    low, high = interval(0.001, 0.25, 100, 0.95)
    assert 0 <= low < 0.001 < high <= 1


STEP = {
    "name": "membership",
    "stage": "membership_gate",
    "kind": "gate",
    "inputs": {"model": "mine.model", "train": "source.train", "test": "source.test"},
    "outputs": ["model"],
    "parameters": dataclasses.asdict(PLAN),
    "checks": {name: dict(bounds) for name, bounds in CHECKS.items()},
}
MINE = {"name": "mine", "stage": "mine", "inputs": {"dataset": "source.train"}, "outputs": ["model"]}


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Return a function that judges a model that some step says it trained on the rows of `source`."""
    here = Place(tmp_path, gates=(MINE, STEP))
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)

    def judge(module: LoadedModel, rows=None, others=None, **changes):
        here.furnish(rows, others)
        begun = begin(
            "mine",
            stage="mine",
            inputs={"dataset": resting.content(here.root / "train")},
            parameters={},
            evidence=[here.root / "evidence"],
        )
        digest = save_model(here.out / "model", module.module, module.spec)
        begun.finish(bundle=here.out / "evidence", outputs={"model": digest}, figures={})
        assert digest == content_digest(read_model_files(here.out / "model"))
        given = {
            "step": "membership",
            "model": here.out / "model",
            "train": here.root / "train",
            "test": here.root / "test",
            "evidence": here.out / "evidence",
            "settings": PLAN,
            "report": here.out / "report.html",
            "bundle": here.out / "verdict",
        }
        statement = evaluate_membership(**given | changes)
        assert "membership_gate" in (here.out / "report.html").read_text()
        return statement

    judge.here = here
    return judge


def test_a_model_that_learnt_the_classes_passes(judged):
    rows = dataset(600)
    spec = ModelSpec.of_rows(rows.spec, "digits-cnn", OPTIONS)
    learnt = LoadedModel(spec, fitted(spec, *features_and_labels(rows), steps=30))
    statement = judged(learnt, rows, dataset(400, seed=8))
    assert statement.verdict == "PASSED" and statement.figures["fpr_measurable"] == 0
    page = (judged.here.out / "report.html").read_text()
    assert "cannot be measured" in page and "Inversion" in page
    assert page.count("<rect") == 2 * 16  # what is made of the model for its two classes, and no row


def test_a_model_that_learnt_by_heart_is_refused(judged):
    """Random labels: there is nothing to learn but the rows."""
    train = dataset(300)
    labels = np.random.default_rng(1).permutation(train.table["label"].to_pylist())
    train = dataclasses.replace(train, table=train.table.set_column(16, "label", [labels.tolist()]))
    spec = ModelSpec("digits-cnn", {"width": 4, "hidden": 64}, (1, 4, 4), 0, 16, ("dark", "bright"))
    module = fitted(spec, images(300)[0], [int(label == "bright") for label in labels], steps=60)
    statement = judged(LoadedModel(spec, module), train)
    assert statement.verdict == "FAILED" and statement.figures["auc_low"] > 0.6
    assert not statement.reason.startswith("inconclusive")


def test_a_model_that_gradients_lead_nowhere_in_is_refused(judged):
    """Untrained, it takes everything for the same class: nothing was measured."""
    statement = judged(model(), dataset(600), dataset(400, seed=8))
    assert statement.verdict == "FAILED" and statement.reason.startswith("inversion_reached = ")


def test_a_model_whose_gradients_give_its_rows_away_is_refused(judged, by_heart):
    statement = judged(by_heart, persons(1), persons(2))
    assert statement.verdict == "FAILED" and "inversion_auc_high" in statement.reason


def test_trees_have_no_gradients_and_are_inconclusive(judged):
    spec = ModelSpec("tree-ensemble", {"trees": 1, "splits": 1, "depth": 1}, (1, 4, 4), 0, 16, ("dark", "bright"))
    tree = build_module(spec).eval()
    tree.left[0], tree.right[0], tree.threshold[0] = 1, 2, 0.5
    tree.value[0, 0] = tree.value[1, 1] = 2.0
    statement = judged(LoadedModel(spec, tree), dataset(300), dataset(400, seed=8))
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    assert "cannot be inverted" in statement.reason


def test_few_rows_cannot_make_a_model_look_safe(judged):
    statement = judged(model(), dataset(300), dataset(60, seed=8))
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("run_isolated", lambda *_, **__: {"auc": 0.5}, "left 0 bytes"),
        ("MAX_BYTES", 5000, "5600 bytes of losses or reconstructions"),
    ],
    ids=["a process that leaves nothing", "more than is taken"],
)
def test_what_its_process_leaves_is_all_that_counts(judged, monkeypatch, name, value, reason):
    monkeypatch.setattr(stage, name, value)
    statement = judged(model(), dataset(300), dataset(400, seed=8))
    assert statement.reason.startswith("inconclusive: ") and reason in statement.reason and not statement.figures


def test_other_rows_or_another_plan_are_refused(judged):
    with pytest.raises(PolicyError):
        judged(model(), settings=dataclasses.replace(PLAN, n_min=2))
    with pytest.raises(EvidenceError):
        judged(model(), train=judged.here.root / "test")
