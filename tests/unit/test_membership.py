"""Membership inference: what its figures mean, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import resting
import torch
from private_place import OPTIONS, Place, dataset, images

from portcullis.digest import content_digest
from portcullis.errors import ConfigError, EvidenceError, InconclusiveError, PolicyError
from portcullis.evidence.step import begin
from portcullis.membership.attack import attack
from portcullis.membership.losses import losses
from portcullis.membership.settings import MembershipSettings
from portcullis.membership.stage import evaluate_membership
from portcullis.models.store import LoadedModel, ModelSpec, build_module, read_model_files, save_model

PLAN = MembershipSettings()
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


STEP = {
    "name": "membership",
    "stage": "membership_gate",
    "kind": "gate",
    "inputs": {"model": "mine.model", "train": "source.train", "test": "source.test"},
    "outputs": ["model"],
    "parameters": dataclasses.asdict(PLAN),
    "checks": {"auc_high": {"min": 0, "max": 0.6}},
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


def test_a_model_that_learnt_nothing_passes(judged):
    statement = judged(model(), dataset(600), dataset(400, seed=8))
    assert statement.verdict == "PASSED" and statement.figures["fpr_measurable"] == 0
    assert "cannot be measured" in (judged.here.out / "report.html").read_text()


def test_a_model_that_learnt_by_heart_is_refused(judged):
    """Random labels: there is nothing to learn but the rows."""
    train = dataset(300)
    labels = np.random.default_rng(1).permutation(train.table["label"].to_pylist())
    train = dataclasses.replace(train, table=train.table.set_column(16, "label", [labels.tolist()]))
    spec = ModelSpec("digits-cnn", {"width": 4, "hidden": 64}, (1, 4, 4), 0, 16, ("dark", "bright"))
    torch.manual_seed(0)
    module = build_module(spec)
    inputs = torch.from_numpy(spec.scale(images(300)[0]))
    targets = torch.tensor([int(label == "bright") for label in labels])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    torch.set_num_threads(1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    statement = judged(LoadedModel(spec, module.eval().requires_grad_(requires_grad=False)), train)
    assert statement.verdict == "FAILED" and statement.figures["auc_low"] > 0.6
    assert not statement.reason.startswith("inconclusive")


def test_few_rows_cannot_make_a_model_look_safe(judged):
    statement = judged(model(), dataset(300), dataset(60, seed=8))
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive")


def test_other_rows_or_another_plan_are_refused(judged):
    with pytest.raises(PolicyError):
        judged(model(), settings=dataclasses.replace(PLAN, n_min=2))
    with pytest.raises(EvidenceError):
        judged(model(), train=judged.here.root / "test")
