"""The robustness measurement: what it finds, when it refuses to judge, and that it leaves everything as it was."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
import torchattacks
from sklearn.datasets import load_digits

from portcullis.errors import ConfigError, InconclusiveError
from portcullis.models.store import LoadedModel, ModelSpec
from portcullis.robustness.attacks import planned_attacks
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verify import Ball, adversarial, correct, margin
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {}, (1, 8, 8), 0, 16, tuple("0123456789"))
ATTACKS = ("fgsm", "pgd", "cw", "deepfool")
# Weaker than the defaults, to be quick.
QUICK = RobustnessSettings(pgd_steps=20, pgd_step_size=0.02, cw_steps=50, cw_learning_rate=0.1, deepfool_steps=10)

Network = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are much slower on threads that wait for a shared core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def rows(digits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return 120 rows that the models below have not seen."""
    return digits[0][:120], digits[1][:120]


@pytest.fixture(scope="module")
def plain(digits: tuple[np.ndarray, np.ndarray]) -> LoadedModel:
    settings = TrainingSettings(method="plain", epochs=8, device="cpu")
    return LoadedModel(SPEC, train(digits[0][360:], digits[1][360:], SPEC, settings)[0])


@pytest.fixture(scope="module")
def baseline(plain: LoadedModel, rows: tuple[np.ndarray, np.ndarray]) -> Mapping[str, float]:
    return evaluate(plain, *rows, QUICK).figures


@pytest.fixture(scope="module")
def clean(plain: LoadedModel, rows: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the inputs that are classified correctly, their labels and the median margin."""
    inputs, labels = plain.preprocess(rows[0]), torch.from_numpy(rows[1])
    margins = margin(plain.module(inputs), labels)
    return inputs[margins > 0], labels[margins > 0], float(margins[margins > 0].median())


class Wrapped(torch.nn.Module):
    """A network around another one."""

    def __init__(self, inner: torch.nn.Module, network: Network) -> None:
        super().__init__()
        self.inner = inner
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(self.inner, inputs)


def wrapped(model: LoadedModel, network: Network) -> LoadedModel:
    return LoadedModel(SPEC, Wrapped(model.module, network).eval())


class TestMeasurement:
    @pytest.mark.slow
    def test_adversarial_training_withstands_what_plain_training_does_not(self, digits, plain: LoadedModel) -> None:
        """The default attacks, with 80 % of rows to learn from (for a shorter time than by default)."""
        features, labels = digits
        module, _ = train(features[360:], labels[360:], SPEC, TrainingSettings(epochs=12, device="cpu"))
        hardened, exposed = (
            evaluate(model, features[:200], labels[:200], RobustnessSettings()).figures
            for model in (LoadedModel(SPEC, module), plain)
        )
        assert hardened["clean_accuracy"] >= 0.95 and exposed["clean_accuracy"] >= 0.9
        assert hardened["robust_accuracy"] >= 0.8
        assert exposed["robust_accuracy"] < 0.7

    def test_figures_are_consistent_and_repeat(self, plain: LoadedModel, rows, baseline) -> None:
        figures = baseline
        assert (figures["samples"], figures["classes"]) == (120, 10)
        each = [figures[f"robust_accuracy_{name}"] for name in ATTACKS]
        assert 0 <= figures["robust_accuracy"] <= min(each) <= max(each) <= figures["clean_accuracy"] <= 1
        assert figures["robust_accuracy"] < figures["clean_accuracy"]
        assert figures["unbounded_success"] >= 0.99 and figures["smallest_gradient"] > 0
        assert evaluate(plain, *rows, QUICK).figures == figures

    def test_more_budget_never_leaves_more_robust(self, plain: LoadedModel, rows) -> None:
        shares = [
            evaluate(plain, *rows, dataclasses.replace(QUICK, epsilon=epsilon, l2_budget=4 * epsilon)).figures
            for epsilon in (0.01, 0.1, 0.19)
        ]
        for name in ("robust_accuracy", *(f"robust_accuracy_{name}" for name in ATTACKS)):
            assert shares[0][name] >= shares[1][name] >= shares[2][name], name
        assert shares[0]["robust_accuracy"] > shares[2]["robust_accuracy"]

    @pytest.mark.parametrize("factor", [1e-15, 1e3])
    def test_the_scale_of_logits_hides_nothing(self, plain: LoadedModel, rows, baseline, factor: float) -> None:
        """Large logits saturate the cross-entropy in float32, and its gradient vanishes: a known way to look robust."""
        scaled = evaluate(wrapped(plain, lambda inner, x: inner(x) * factor), *rows, QUICK).figures
        assert scaled["robust_accuracy"] == pytest.approx(baseline["robust_accuracy"], abs=0.02)


class TestAttacks:
    def share(self, model: LoadedModel, clean, proposed: torch.Tensor, ball: Ball) -> float:
        return float(adversarial(model.module, clean[0], proposed, clean[1], ball).float().mean())

    def test_cw_moves_pixels_that_are_black_or_white(self, plain: LoadedModel, clean) -> None:
        inputs, labels, median = clean
        attack = planned_attacks(plain.module, median, QUICK)["cw"]
        moved = attack.propose(inputs, labels) != inputs
        saturated = (inputs == 0) | (inputs == 1)
        assert saturated.float().mean() > 0.3
        assert moved[saturated].float().mean() > 0.5
        library = torchattacks.CW(plain.module, c=1, steps=50)(inputs, labels)
        assert (library != inputs)[saturated].float().mean() < 0.01  # why the nudge is there

    @pytest.mark.parametrize("name", ["cw", "deepfool"])
    def test_minimum_norm_attacks_find_more_within_the_budget_than_the_library_alone(
        self, plain: LoadedModel, clean, name: str
    ) -> None:
        inputs, labels, median = clean
        attack = planned_attacks(plain.module, median, QUICK)[name]
        library = {
            "cw": torchattacks.CW(plain.module, c=1, steps=50),
            "deepfool": torchattacks.DeepFool(plain.module, steps=10),
        }
        alone = self.share(plain, clean, library[name](inputs, labels), attack.ball)
        assert self.share(plain, clean, attack.propose(inputs, labels), attack.ball) > alone

    @pytest.mark.parametrize("name", ATTACKS)
    def test_proposals_are_inputs(self, plain: LoadedModel, clean, name: str) -> None:
        inputs, labels, median = clean
        attack = planned_attacks(plain.module, median, QUICK)[name]
        proposed = attack.propose(inputs, labels)
        assert proposed.shape == inputs.shape and proposed.dtype == torch.float32
        assert ((proposed >= 0) & (proposed <= 1)).all()
        if attack.ball.norm == "linf":
            assert attack.ball.holds(inputs, proposed).all()


class TestVerifier:
    clean = torch.full((1, 1, 2, 2), 0.5)

    @pytest.mark.parametrize(
        ("ball", "moved", "held"),
        [
            pytest.param(Ball("linf", 0.1), [0.6, 0.4, 0.6, 0.4], True, id="corner of the Linf ball"),
            pytest.param(Ball("linf", 0.1), [0.6001, 0.5, 0.5, 0.5], False, id="beyond it"),
            pytest.param(Ball("l2", 0.2), [0.6, 0.4, 0.6, 0.4], True, id="on the L2 ball"),
            pytest.param(Ball("l2", 0.2), [0.6, 0.4, 0.6, 0.39], False, id="beyond the L2 ball"),
            pytest.param(Ball("linf", 9.0), [1.0, 0.0, 0.5, 0.5], True, id="ends of the range"),
            pytest.param(Ball("linf", 9.0), [1.0001, 0.5, 0.5, 0.5], False, id="above 1"),
            pytest.param(Ball("linf", 9.0), [-0.0001, 0.5, 0.5, 0.5], False, id="below 0"),
            pytest.param(Ball("linf", 9.0), [float("nan"), 0.5, 0.5, 0.5], False, id="NaN"),
            pytest.param(Ball("l2", 9.0), [float("inf"), 0.5, 0.5, 0.5], False, id="infinite"),
        ],
    )
    def test_holds_a_candidate_to_its_ball(self, ball: Ball, moved: list[float], held: bool) -> None:
        candidates = torch.tensor(moved).reshape(1, 1, 2, 2)
        assert ball.holds(self.clean, candidates).item() is held
        always_wrong = Wrapped(torch.nn.Identity(), lambda inner, x: torch.tensor([[0.0, 1.0]]))
        found = adversarial(always_wrong, self.clean, candidates, torch.tensor([0]), ball)
        assert found.item() is held

    @pytest.mark.parametrize(
        ("logits", "expected"),
        [
            pytest.param([1.0, 0.0, -1.0], True, id="label wins"),
            pytest.param([-1.0, -2.0, -3.0], True, id="label wins below zero"),
            pytest.param([0.0, 1.0, -1.0], False, id="another wins"),
            pytest.param([1.0, 1.0, 0.0], False, id="tie"),
            pytest.param([0.0, 0.0, 0.0], False, id="all tie"),
            pytest.param([float("nan")] * 3, False, id="NaN"),
            pytest.param([1.0, 0.0, float("nan")], False, id="one NaN"),
            pytest.param([float("inf"), 0.0, 0.0], False, id="infinite"),
            pytest.param([0.0, float("-inf"), -1.0], False, id="minus infinite"),
        ],
    )
    def test_only_a_finite_win_is_correct(self, logits: list[float], expected: bool) -> None:
        network = Wrapped(torch.nn.Identity(), lambda inner, x: torch.tensor([logits]))
        assert correct(network, self.clean, torch.tensor([0])).item() is expected


def no_gradient(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return inner(inputs.detach())


def rounded(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return inner((inputs * 16).round() / 16)


def off_grid_nan(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    off = ((inputs * 16).round() / 16 != inputs).flatten(1).any(dim=1, keepdim=True)
    return torch.where(off, torch.nan, inner(inputs))


class TestInconclusive:
    @pytest.mark.parametrize(
        ("network", "reason"),
        [
            pytest.param(lambda inner, x: inner(x) * 0 + torch.eye(10)[3], "better than chance", id="constant"),
            pytest.param(lambda inner, x: -inner(x), "better than chance", id="always wrong"),
            pytest.param(lambda inner, x: inner(x) * torch.nan, "finite float32 logits", id="NaN"),
            pytest.param(lambda inner, x: inner(x) / 0, "finite float32 logits", id="infinite"),
            pytest.param(lambda inner, x: inner(x).double(), "finite float32 logits", id="float64"),
            pytest.param(lambda inner, x: inner(x)[:, :9], "finite float32 logits", id="a class too few"),
            pytest.param(lambda inner, x: inner(x)[0], "finite float32 logits", id="a row too few"),
            pytest.param(lambda inner, x: inner(x) + inner(x.mean(0, keepdim=True)), "must not depend", id="batch"),
            pytest.param(lambda inner, x: inner(x) + torch.rand(len(x), 10), "must not depend", id="random"),
            pytest.param(no_gradient, "could not be attacked", id="detached"),
            pytest.param(rounded, "gradient above zero", id="rounded inputs"),
            pytest.param(lambda inner, x: inner(x).round(), "gradient above zero", id="rounded logits"),
            pytest.param(lambda inner, x: inner(x) * 1e-42, "gradient above zero", id="subnormal logits"),
            pytest.param(off_grid_nan, "not finite", id="NaN off the data"),
        ],
    )
    def test_refuses_to_judge(self, plain: LoadedModel, rows, network: Network, reason: str) -> None:
        with pytest.raises(InconclusiveError, match=reason):
            evaluate(wrapped(plain, network), *rows, QUICK)

    def test_refuses_when_an_unbounded_attack_fails(self, plain: LoadedModel, rows, monkeypatch) -> None:
        """As it would on a model whose gradients lead nowhere; here its proposals are thrown away."""
        monkeypatch.setattr(torchattacks.PGD, "forward", lambda self, images, labels: images)
        with pytest.raises(InconclusiveError, match=r"unbounded attack breaks only 0\.0%"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_when_one_step_beats_many(self, plain: LoadedModel, rows, monkeypatch) -> None:
        honest = torchattacks.PGD.forward
        monkeypatch.setattr(
            torchattacks.PGD,
            "forward",
            lambda self, images, labels: honest(self, images, labels) if self.eps == 1 else images,
        )
        with pytest.raises(InconclusiveError, match="FGSM breaks more"):
            evaluate(plain, *rows, QUICK)

    @pytest.mark.parametrize(
        ("attack", "error"),
        [
            ("FGSM", RuntimeError),
            ("PGD", IndexError),
            ("PGD", StopIteration),
            ("PGD", MemoryError),
            ("CW", ValueError),
            ("DeepFool", AssertionError),
        ],
    )
    def test_refuses_when_an_attack_fails(self, plain, rows, monkeypatch, attack: str, error: type) -> None:
        def fail(self, images, labels):
            raise error("backend")

        monkeypatch.setattr(getattr(torchattacks, attack), "forward", fail)
        with pytest.raises(InconclusiveError, match="could not be attacked"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_a_model_without_weights(self, rows) -> None:
        with pytest.raises(InconclusiveError):
            evaluate(LoadedModel(SPEC, torch.nn.Flatten()), *rows, QUICK)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda x, y: (x[:99], y[:99]), id="too few"),
            pytest.param(lambda x, y: (x[:0], y[:0]), id="none"),
            pytest.param(lambda x, y: (x[y != 4], y[y != 4]), id="a class is missing"),
            pytest.param(lambda x, y: (x[:110], y), id="labels too many"),
            pytest.param(lambda x, y: (x, y[:, None]), id="labels of two dimensions"),
            pytest.param(lambda x, y: (x, y.astype(float)), id="labels are floats"),
            pytest.param(lambda x, y: (x, y + 1), id="label too large"),
            pytest.param(lambda x, y: (x, y - 1), id="label below zero"),
            pytest.param(lambda x, y: (x, np.roll(y, 1)), id="labels of other rows"),
            pytest.param(lambda x, y: (np.where(x == 16, np.nan, x), y), id="NaN"),
            pytest.param(lambda x, y: (x * 16, y), id="another range"),
            pytest.param(lambda x, y: (x - 8, y), id="centred"),
            pytest.param(lambda x, y: (x[:, :63], y), id="a feature too few"),
            pytest.param(lambda x, y: (x.astype(str), y), id="text"),
        ],
    )
    def test_refuses_to_judge_by_bad_rows(self, plain: LoadedModel, rows, change) -> None:
        with pytest.raises(InconclusiveError):
            evaluate(plain, *change(*rows), QUICK)

    def test_refuses_a_model_no_better_than_the_commonest_class(self, plain: LoadedModel, rows) -> None:
        features, labels = rows
        common = np.where(labels == 0)[0]
        unbalanced = np.concatenate([np.arange(len(labels)), np.tile(common, 200)])
        model = wrapped(plain, lambda inner, x: inner(x) * 1e-6 + torch.eye(10)[0])
        with pytest.raises(InconclusiveError, match="better than chance"):
            evaluate(model, features[unbalanced], labels[unbalanced], QUICK)

    def test_refuses_an_l2_budget_that_reaches_grey(self, plain: LoadedModel, rows) -> None:
        with pytest.raises(InconclusiveError, match="l2_budget"):
            evaluate(plain, *rows, dataclasses.replace(QUICK, l2_budget=4.0))


class TestHygiene:
    def state(self, module: torch.nn.Module) -> list[object]:
        return [
            torch.get_num_threads(),
            torch.get_rng_state().tolist(),
            [part.training for part in module.modules()],
            [(weights.requires_grad, id(weights.grad)) for weights in module.parameters()],
            [tensor.tolist() for weights in module.parameters() for tensor in (weights.detach(), weights.grad)],
        ]

    def test_leaves_everything_as_it_was_with_and_without_an_error(self, plain, rows, monkeypatch) -> None:
        module = Wrapped(plain.module, lambda inner, x: inner(x))
        module.train()
        module.inner.features.eval()
        for index, weights in enumerate(module.parameters()):
            weights.requires_grad_(index % 2 == 0)
            weights.grad = torch.full_like(weights, index)
        model = LoadedModel(SPEC, module)
        torch.manual_seed(11)
        before = self.state(module)
        try:
            evaluate(model, *rows, QUICK)
            assert self.state(module) == before
            with pytest.raises(InconclusiveError):
                evaluate(model, *rows, dataclasses.replace(QUICK, n_min=1000))
            assert self.state(module) == before

            def fail(self, images, labels):
                self.model.train()
                torch.rand(1)
                raise RuntimeError("backend")

            monkeypatch.setattr(torchattacks.DeepFool, "forward", fail)
            with pytest.raises(InconclusiveError):
                evaluate(model, *rows, QUICK)
            assert self.state(module) == before
        finally:
            for weights in module.parameters():
                weights.requires_grad_(False).grad = None
            module.eval()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", -0.1),
        ("epsilon", 0.5),
        ("epsilon", float("nan")),
        ("l2_budget", 0.0),
        ("l2_budget", float("inf")),
        ("pgd_steps", 0),
        ("pgd_steps", True),
        ("pgd_steps", 40.0),
        ("pgd_step_size", 0.0),
        ("pgd_step_size", float("nan")),
        ("cw_steps", 0),
        ("cw_c", 0.0),
        ("cw_learning_rate", 0.0),
        ("deepfool_steps", 0),
        ("deepfool_overshoot", 0.0),
        ("n_min", 0),
        ("seed", -1),
        ("seed", 2**53),
        pytest.param("pgd_step_size", 0.004, id="PGD cannot cross its ball"),
        pytest.param("pgd_steps", 19, id="PGD has too few steps"),
    ],
)
def test_refuses_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        RobustnessSettings(**{name: value})
