"""Models whose gradients are hidden under ripples: steep, small, and of no meaning for where the ball ends."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from digits_models import SPEC, Wrapped, digits, hardened_model, plain_model, wrapped

from portcullis.errors import InconclusiveError
from portcullis.models.margin import margin
from portcullis.models.store import LoadedModel, ModelSpec
from portcullis.robustness import native, soundness
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verdict import Question
from portcullis.robustness.verify import adversarial, correct

SHAPE, CLASSES, ROWS, EPSILON = (3, 16, 16), 4, 104, 8 / 255
PLAN = RobustnessSettings(
    epsilon=EPSILON, l2_budget=0.3, pgd_step_size=EPSILON / 4, cw_steps=10, deepfool_steps=5, ddn_steps=10
)
QUICK = RobustnessSettings(
    pgd_step_size=0.04, cw_steps=20, cw_learning_rate=0.1, deepfool_steps=5, ddn_steps=10, apgd_targets=1
)
LIBRARIES = ["none", pytest.param("torchattacks,foolbox,art", marks=pytest.mark.slow)]
# How often a line is folded, and how high its zigzag is beside the linear classifier's weights of 1.
RIPPLES = [(9, 0.014), (9, 0.007), (9, 0.0035), (8, 0.014), (8, 0.007), (7, 0.014), (7, 0.007), (6, 0.014)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rippled(torch.nn.Module):
    """A linear classifier plus, around the data, a zigzag of every input; of multiplications and `abs` alone."""

    def __init__(self, folds: int, amplitude: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = (CLASSES, int(np.prod(SHAPE)))
        self.weight = torch.nn.Parameter(torch.randn(size, generator=generator).sign(), requires_grad=False)
        self.phases = torch.nn.Parameter(torch.rand(size, generator=generator) / 10, requires_grad=False)
        self.folds, self.amplitude = folds, amplitude

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        near = ((0.02 - (flat - 0.5).square().mean(dim=1, keepdim=True)) / 0.005).clamp(0, 1)
        line = flat[:, None] * 0.9 + self.phases
        for _ in range(self.folds):
            line = 1 - (2 * line - 1).abs()
        ripple = (2 * line - 1).sum(dim=2)
        return (flat - 0.5) @ self.weight.T + self.amplitude * near * ripple


def rippled(folds: int, amplitude: float) -> tuple[LoadedModel, torch.Tensor, torch.Tensor]:
    """Return a rippled model, rows (104, ...) that it classifies correctly, and their labels."""
    module, generator = Rippled(folds, amplitude).eval(), np.random.default_rng(1)
    labels = np.arange(ROWS) % CLASSES
    rows = 0.5 + 0.026 * module.weight.numpy()[labels] + 0.1 * generator.standard_normal((ROWS, int(np.prod(SHAPE))))
    inputs = torch.from_numpy(rows.clip(0, 1).astype(np.float32)).reshape(-1, *SHAPE)
    return LoadedModel(ModelSpec("rippled", {}, SHAPE, 0, 1, tuple("abcd")), module), inputs, torch.from_numpy(labels)


def left_by_apgd(module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    scale = 10 / float(margin(module(inputs), labels).median())
    found = native.apgd_ensemble(
        module, inputs, labels,
        epsilon=epsilon, steps=20, targets=3, scale=scale, generator=native.generator_of(0, inputs.device),
    )  # fmt: skip
    return correct(module, inputs, labels) & ~adversarial(module, inputs, found, labels, Ball("linf", epsilon))


class TestReach:
    @pytest.mark.parametrize(("folds", "amplitude"), RIPPLES)
    def test_a_ripple_says_more_than_the_margin_falls(self, folds: int, amplitude: float) -> None:
        model, inputs, labels = rippled(folds, amplitude)
        with pytest.raises(InconclusiveError, match=r"fell by 0\.\d+ of what the gradient says"):
            soundness.gradient_reach(model.module, inputs, labels, epsilon=EPSILON)

    def test_a_linear_model_keeps_its_word(self) -> None:
        """On one row too, on none, and where the ends of the range leave no step to take."""
        model, inputs, labels = rippled(0, 0.0)
        for rows in (ROWS, 1):
            reach = soundness.gradient_reach(model.module, inputs[:rows], labels[:rows], epsilon=EPSILON)
            assert reach == pytest.approx(1, abs=0.05)
        assert soundness.gradient_reach(model.module, inputs[:0], labels[:0], epsilon=EPSILON) == 1
        (weight,) = model.module.weight[:1] - model.module.weight[1:2]
        pair = Wrapped(model.module, lambda inner, x: torch.stack([x.flatten(1) @ weight, torch.zeros(len(x))], dim=1))
        worst = (weight < 0).float().reshape(1, *SHAPE)
        assert soundness.gradient_reach(pair, worst, torch.tensor([0]), epsilon=EPSILON) == 1

    @pytest.mark.parametrize(
        "network",
        [
            pytest.param(lambda inner, x: torch.where(x.flatten(1)[:, :1] % (1 / 16) == 0, 1, torch.nan) * inner(x)),
            pytest.param(lambda inner, x: inner(x) * 0),
            pytest.param(lambda inner, x: inner(x.detach()) + x.sum() * 0),
            pytest.param(lambda inner, x: inner(x.detach()) - inner(2 * x) + inner(2 * x.detach())),
        ],
        ids=["NaN beside the data", "constant", "no gradient", "gradient away from the boundary"],
    )
    def test_refuses_what_is_no_number_or_below_zero(self, network) -> None:
        model = plain_model()
        inputs, labels = model.preprocess(digits()[0][:50]), torch.from_numpy(digits()[1][:50])
        with pytest.raises(InconclusiveError, match="of what the gradient says"):
            soundness.gradient_reach(Wrapped(model.module, network), inputs, labels, epsilon=0.1)


class TestAveraged:
    @pytest.mark.parametrize(("folds", "amplitude"), [(9, 0.007), (8, 0.007), (7, 0.014)])
    def test_breaks_what_a_ripple_hides(self, folds: int, amplitude: float) -> None:
        model, inputs, labels = rippled(folds, amplitude)
        left = left_by_apgd(model.module, inputs, labels, EPSILON)
        assert left.sum() > 32
        with pytest.raises(InconclusiveError, match=r"averaged gradients break \d+ of 32 samples"):
            soundness.gradient_averaged(model.module, inputs[left], labels[left], samples=ROWS, epsilon=EPSILON, seed=0)

    def test_one_row_is_broken_and_two_are_too_many(self) -> None:
        model, inputs, labels = rippled(7, 0.014)
        given = {"samples": ROWS, "epsilon": EPSILON, "seed": 0}
        assert soundness.gradient_averaged(model.module, inputs[:0], labels[:0], **given).tolist() == []
        assert soundness.gradient_averaged(model.module, inputs[:1], labels[:1], **given).tolist() == [True]
        with pytest.raises(InconclusiveError, match="break 2 of 2"):
            soundness.gradient_averaged(model.module, inputs[:2], labels[:2], **given)


@pytest.mark.parametrize("train", [plain_model, hardened_model])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.2, 0.3])
def test_no_alarm_on_sound_models(train, epsilon: float) -> None:
    model = train()
    inputs, labels = model.preprocess(digits()[0][:200]), torch.from_numpy(digits()[1][:200])
    left = left_by_apgd(model.module, inputs, labels, epsilon)
    assert soundness.gradient_reach(model.module, inputs[left], labels[left], epsilon=epsilon) > 0.7
    hits = margin(model.module(inputs), labels) > 0
    assert soundness.gradient_reach(model.module, inputs[hits], labels[hits], epsilon=epsilon) > 0.7
    found = soundness.gradient_averaged(
        model.module, inputs[left], labels[left], samples=int(hits.sum()), epsilon=epsilon, seed=0
    )
    assert found.sum() <= 1


@pytest.mark.parametrize(("folds", "amplitude"), [(9, 0.007), (7, 0.014), (6, 0.014)])
def test_the_gate_refuses_a_rippled_model(folds: int, amplitude: float) -> None:
    """One step along the linear part's weights leaves four of a hundred."""
    model, inputs, labels = rippled(folds, amplitude)
    with pytest.raises(InconclusiveError, match="mislead"):
        evaluate(model, inputs.flatten(1).numpy(), labels.numpy(), PLAN)


@pytest.mark.parametrize(("left_out", "reason"), [("gradient_averaged", "fell by"), ("gradient_reach", "averaged")])
def test_the_gate_asks_for_either(monkeypatch, left_out: str, reason: str) -> None:
    """This one deceives all else."""
    model, inputs, labels = rippled(7, 0.014)
    result = torch.zeros(ROWS, dtype=torch.bool) if left_out == "gradient_averaged" else 1.0
    monkeypatch.setattr(soundness, left_out, lambda *_, **__: result)
    with pytest.raises(InconclusiveError, match=reason):
        evaluate(model, inputs.flatten(1).numpy(), labels.numpy(), PLAN)


def never_none(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    if not len(inputs):
        raise RuntimeError("cannot reshape tensor of 0 elements into shape [0, -1]")
    return inner(inputs)


class TestNetworks:
    """Sound networks that libraries, or we, once failed on."""

    @pytest.mark.parametrize("epsilon", [0.1, 0.4])
    @pytest.mark.parametrize("libraries", LIBRARIES)
    def test_that_cannot_take_no_rows(self, epsilon: float, libraries: str) -> None:
        """With the larger radius, nothing is left."""
        model, plan = plain_model(), dataclasses.replace(QUICK, epsilon=epsilon, pgd_step_size=epsilon / 4)
        plan = dataclasses.replace(plan, libraries=libraries)
        rows = digits()[0][:100], digits()[1][:100]
        found = evaluate(wrapped(model, never_none), *rows, plan).figures
        assert found == evaluate(model, *rows, plan).figures

    @pytest.mark.parametrize("bound", [0.05, 0.5, 0.99])
    def test_that_cannot_take_no_rows_in_verdict_mode(self, bound: float) -> None:
        plan, rows = dataclasses.replace(QUICK, mode="verdict"), (digits()[0][:100], digits()[1][:100])
        question = Question(bound, bytes(32), ("a", "b", "c"))
        found = evaluate(wrapped(plain_model(), never_none), *rows, plan, question).figures
        assert found == evaluate(plain_model(), *rows, plan, question).figures

    @pytest.mark.parametrize("libraries", LIBRARIES)
    def test_that_have_no_parameters(self, libraries: str) -> None:
        model, plan = plain_model(), dataclasses.replace(QUICK, libraries=libraries)
        rows = digits()[0][:100], digits()[1][:100]
        bare = LoadedModel(SPEC, Wrapped(torch.nn.Identity(), lambda inner, x: model.module(x)).eval())
        assert not list(bare.module.parameters())
        found, wanted = evaluate(bare, *rows, plan).figures, evaluate(model, *rows, plan).figures
        assert found["robust_accuracy"] == pytest.approx(wanted["robust_accuracy"], abs=0.011)
