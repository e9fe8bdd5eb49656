"""Trainers that are less private than their certificate says: the audit gate refuses each of them."""

import dataclasses

import numpy as np
import pytest
import torch
from opacus.optimizers.optimizer import _mark_as_processed
from private_place import LEDGER, SETTINGS, Place

from portcullis.dp_training import private, stage
from portcullis.dp_training.accounting import plan
from portcullis.dp_training.audit import MadeUpRows
from portcullis.dp_training.noise import RandomStream
from portcullis.dp_training.settings import AuditSettings
from portcullis.dp_training.stage import evaluate_privacy
from portcullis.errors import KeyMaterialError, PolicyError
from portcullis.files import write_bytes
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.steps import PRIVATE_STEPS

AUDITED = AuditSettings(canaries=600)
(GATE,) = (step for step in PRIVATE_STEPS if step.name == "privacy_audit")
CHECKS = GATE.checks(ReferenceConfig.load(None, private=True, epsilon=1.0))  # what the reference policy demands
STEP = {
    "name": "privacy_audit",
    "stage": "privacy_audit_gate",
    "kind": "gate",
    "inputs": {"model": "train.model"},
    "outputs": ["model"],
    "parameters": {**dataclasses.asdict(SETTINGS), "ledger": LEDGER, **dataclasses.asdict(AUDITED)},
    "checks": {name: dict(bounds) for name, bounds in CHECKS.items()},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One model, honestly trained, that every audit here is about."""
    here = Place(tmp_path_factory.mktemp("private"), gates=(STEP,))
    write_bytes(here.root / "keys" / "audit.key", b"c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=\n", mode=0o600)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.environment.items():
            patch.setenv(name, value)
        here.furnish()
        here.train()
        planned = plan(300, SETTINGS)
        patch.setattr(stage, "plan", lambda rows, settings: planned if rows == 300 else plan(rows, settings))
        yield here


def audit(here: Place, **changes):
    given = {
        "step": "privacy_audit",
        "model": here.out / "model",
        "evidence": here.out / "evidence",
        "ledger": LEDGER,
        "settings": SETTINGS,
        "audited": AUDITED,
        "report": here.root / "report.html",
        "bundle": here.root / "verdict",
    }
    return evaluate_privacy(**given | changes)


def test_an_honest_trainer_passes_and_is_given_the_same_test_again(trained, monkeypatch):
    drawn, draw = [], MadeUpRows.draw

    def noted(*given):
        drawn.append(given[-1])
        return draw(*given)

    monkeypatch.setattr(MadeUpRows, "draw", noted)
    first, second = audit(trained), audit(trained)
    assert (first.verdict, second.verdict) == ("PASSED", "PASSED"), (first.reason, second.reason)
    assert drawn[0] == drawn[1] and len(drawn[0]) == 32
    assert first.figures["noise_ratio"] == pytest.approx(1, abs=0.1)
    assert first.figures["epsilon_lower"] < first.figures["epsilon_claimed"] <= 1
    assert first.figures["certificate_differs"] == 0 and first.figures["steps_missing"] == 0
    assert "proves nothing" in (trained.root / "report.html").read_text()


def without_noise(self, count):
    return np.zeros(count)


def half_the_noise(self, count, _normal=RandomStream.normal):
    return _normal(self, count) / 2


def without_clipping(self):
    for weights in self.params:
        weights.summed_grad = weights.grad_sample.sum(dim=0)
        _mark_as_processed(weights.grad_sample)


def clipping_at_twice_the_norm(self, _clip=private.NoisyOptimizer.clip_and_accumulate):
    self.max_grad_norm *= 2
    _clip(self)
    self.max_grad_norm /= 2


def batches_of_fixed_size(rows, rate, stream):
    return np.argsort(stream.uniform(rows))[: round(rate * rows)]


def twice_the_rate(rows, rate, stream):
    return np.flatnonzero(stream.uniform(rows) < min(1.0, 2 * rate))


class Epochs:
    """Shuffles the rows and goes through them, as training without privacy does."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def __call__(self, rows, rate, stream):
        if len(self.left) < round(rate * rows):
            self.left = list(np.argsort(stream.uniform(rows)))
        size = round(rate * rows)
        batch, self.left = self.left[:size], self.left[size:]
        return np.array(batch)


def the_same_rows_always(rows, rate, stream):
    return np.arange(rows)[: round(rate * rows)]


def a_row_twice(rows, rate, stream):
    drawn = np.flatnonzero(stream.uniform(rows) < rate)
    return np.concatenate([drawn, drawn[:1]])


BROKEN = {
    "without noise": (RandomStream, "normal", without_noise, "noise_ratio"),
    "half the noise": (RandomStream, "normal", half_the_noise, "noise_ratio"),
    "without clipping": (private.NoisyOptimizer, "clip_and_accumulate", without_clipping, "clipping_p_value"),
    "clipping at twice the norm": (
        private.NoisyOptimizer,
        "clip_and_accumulate",
        clipping_at_twice_the_norm,
        "clipping_p_value",
    ),
    "batches of fixed size": (private, "sample", batches_of_fixed_size, "sampling_p_value"),
    "twice the rate": (private, "sample", twice_the_rate, "sampling_p_value"),
    "shuffled epochs": (private, "sample", Epochs(), "sampling_p_value"),
    "the same rows always": (private, "sample", the_same_rows_always, "sampling_p_value"),
    "a row twice": (private, "sample", a_row_twice, "sampling_p_value"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_trainer_is_refused(trained, monkeypatch, name):
    where, what, instead, figure = BROKEN[name]
    monkeypatch.setattr(where, what, instead)
    statement = audit(trained)
    assert statement.verdict == "FAILED"
    bounds = CHECKS[figure]
    found = statement.figures[figure]
    assert not bounds["min"] <= found <= bounds["max"], dict(statement.figures)


def test_without_noise_the_canaries_alone_give_it_away(trained, monkeypatch):
    """The lower bound of epsilon is above the claim, with 95 % confidence, whatever else is seen."""
    monkeypatch.setattr(RandomStream, "normal", without_noise)
    statement = audit(trained)
    assert statement.figures["epsilon_lower"] > statement.figures["epsilon_claimed"]


def test_noise_that_is_drawn_once_and_added_again_is_refused(trained, monkeypatch):
    kept = {}

    def again(self, count, _normal=RandomStream.normal):
        return kept.setdefault(count, _normal(self, count))

    monkeypatch.setattr(RandomStream, "normal", again)
    statement = audit(trained)
    assert statement.verdict == "FAILED" and statement.figures["noise_p_value"] < 1e-5


def test_a_trainer_that_cannot_be_followed_is_refused(trained, monkeypatch):
    def elsewhere(module, inputs, targets, planned, settings, stream, **_):
        module.eval().requires_grad_(requires_grad=False)

    monkeypatch.setattr(private, "fit", elsewhere)
    statement = audit(trained)
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive")


def test_a_trainer_that_learns_from_other_rows_is_refused(trained, monkeypatch):
    fit = private.fit

    def other_rows(module, inputs, targets, *given, **named):
        fit(module, torch.rand_like(inputs), targets, *given, **named)

    monkeypatch.setattr(private, "fit", other_rows)
    statement = audit(trained)
    assert statement.verdict == "FAILED" and "what is no row" in statement.reason


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"settings": dataclasses.replace(SETTINGS, target_epsilon=8.0)}, PolicyError),
        ({"audited": AuditSettings(canaries=20)}, PolicyError),
        ({"step": "train"}, PolicyError),
    ],
    ids=["another claim", "fewer canaries", "another step"],
)
def test_an_audit_that_the_policy_does_not_name_is_refused(trained, change, error):
    with pytest.raises(error):
        audit(trained, **change)


def test_an_audit_without_a_key_is_refused(trained, monkeypatch, tmp_path):
    kept = trained.root / "keys" / "audit.key"
    secret = kept.read_bytes()
    kept.unlink()
    try:
        with pytest.raises(KeyMaterialError):
            audit(trained)
    finally:
        write_bytes(kept, secret, mode=0o600)
