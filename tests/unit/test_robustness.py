"""The robustness measurement: what it finds, when it refuses to judge, and that it leaves everything as it was."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
import torchattacks
from digits_models import SPEC, Network, Wrapped, digits, hardened_model, plain_model, wrapped

from portcullis.errors import ConfigError, InconclusiveError
from portcullis.models.margin import margin
from portcullis.models.store import LoadedModel
from portcullis.robustness import native, soundness
from portcullis.robustness.attacks import planned_attacks
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.proposal import Target
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verdict import Question
from portcullis.robustness.verify import adversarial, correct, inside

ATTACKS = ("fgsm", "pgd", "deepfool", "ddn", "apgd", "cw")
# Weaker than the defaults, to be quick.
QUICK = RobustnessSettings(
    pgd_step_size=0.04, cw_steps=50, cw_learning_rate=0.1, deepfool_steps=10, ddn_steps=20, apgd_targets=1
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are much slower on threads that wait for a shared core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Return 120 rows that the models have not seen."""
    return digits()[0][:120], digits()[1][:120]


@pytest.fixture(scope="module")
def plain() -> LoadedModel:
    return plain_model()


@pytest.fixture(scope="module")
def baseline(plain: LoadedModel, rows: tuple[np.ndarray, np.ndarray]) -> Mapping[str, float]:
    return evaluate(plain, *rows, QUICK).figures


@pytest.fixture(scope="module")
def clean(plain: LoadedModel, rows: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the inputs that are classified correctly, their labels and the median margin."""
    inputs, labels = plain.preprocess(rows[0]), torch.from_numpy(rows[1])
    margins = margin(plain.module(inputs), labels)
    return inputs[margins > 0], labels[margins > 0], float(margins[margins > 0].median())


class TestMeasurement:
    @pytest.mark.slow
    def test_adversarial_training_withstands_what_plain_training_does_not(self, plain: LoadedModel) -> None:
        """The default attacks, with 80 % of rows to learn from. No check takes either model for one that masks."""
        features, labels = digits()
        hardened, exposed = (
            evaluate(model, features[:200], labels[:200], RobustnessSettings()).figures
            for model in (hardened_model(), plain)
        )
        assert hardened["clean_accuracy"] >= 0.95 and exposed["clean_accuracy"] >= 0.9
        assert hardened["robust_accuracy"] >= 0.78
        assert exposed["robust_accuracy"] < 0.7
        for figures in (hardened, exposed):
            assert figures["gradient_free"] == 0 and figures["planted_found"] == figures["gradient_agreement"] == 1

    def test_figures_are_consistent_and_repeat(self, plain: LoadedModel, rows, baseline) -> None:
        figures = baseline
        assert (figures["samples"], figures["classes"]) == (120, 10)
        each = [figures[f"robust_accuracy_{name}"] for name in ATTACKS]
        assert 0 <= figures["robust_accuracy"] <= min(each) <= max(each) <= figures["clean_accuracy"] <= 1
        assert figures["robust_accuracy"] < figures["clean_accuracy"]
        assert figures["unbounded_success"] >= 0.99 and figures["smallest_gradient"] > 0
        assert evaluate(plain, *rows, QUICK).figures == figures

    def test_where_memory_is_short_fewer_rows_are_held_at_a_time(self, plain: LoadedModel, rows, baseline) -> None:
        def short(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
            if len(inputs) > 20:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
            return inner(inputs)

        figures = evaluate(wrapped(plain, short), *rows, QUICK).figures
        assert figures.keys() == baseline.keys()
        for name in ("clean_accuracy", "robust_accuracy", *(f"robust_accuracy_{name}" for name in ATTACKS)):
            assert abs(figures[name] - baseline[name]) <= 1 / 120, name  # sums are rounded in another order

    def test_too_little_memory_for_one_row_proves_nothing(self, plain: LoadedModel, rows) -> None:
        def none(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
            raise MemoryError

        with pytest.raises(InconclusiveError, match="not enough memory"):
            evaluate(wrapped(plain, none), *rows, QUICK)

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
        attack = planned_attacks(Target(plain.module, 10, median), QUICK)["cw"]
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
        attack = planned_attacks(Target(plain.module, 10, median), QUICK)[name]
        library = {
            "cw": torchattacks.CW(plain.module, c=1, steps=50),
            "deepfool": torchattacks.DeepFool(plain.module, steps=10),
        }
        alone = self.share(plain, clean, library[name](inputs, labels), attack.ball)
        assert self.share(plain, clean, attack.propose(inputs, labels), attack.ball) > alone

    @pytest.mark.parametrize("name", ATTACKS)
    def test_proposals_are_inputs(self, plain: LoadedModel, clean, name: str) -> None:
        inputs, labels, median = clean
        attack = planned_attacks(Target(plain.module, 10, median), QUICK)[name]
        proposed = attack.propose(inputs, labels)
        assert proposed.shape == inputs.shape and proposed.dtype == torch.float32
        assert ((proposed >= 0) & (proposed <= 1)).all()
        if attack.ball.norm == "linf":
            assert inside(attack.ball, inputs, proposed).all()


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
        assert inside(ball, self.clean, candidates).item() is held
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


def straight_through(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Round, and tell the backward pass that nothing was rounded."""
    return inner(inputs + ((inputs * 16).round() / 16 - inputs).detach())


def decoy(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Answer as the inner network, with the gradients of another function."""
    other = inner(inputs.flip(-1))
    return inner(inputs).detach() + other - other.detach()


def unwatched(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Behave only while somebody asks for gradients."""
    return inner(inputs) * (1.0 if torch.is_grad_enabled() else 1.5)


def without_grad(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return inner(inputs)


def hard_labels(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(inner(inputs).argmax(dim=1), 10).float()


def off_grid_nan(inner: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    off = ((inputs * 16).round() / 16 != inputs).flatten(1).any(dim=1, keepdim=True)
    return torch.where(off, torch.nan, inner(inputs))


class TestInconclusive:
    @pytest.mark.parametrize(
        ("network", "reason"),
        [
            pytest.param(lambda inner, x: inner(x) * 0 + 2 * torch.eye(10)[3], "better than chance", id="constant"),
            pytest.param(lambda inner, x: -inner(x), "better than chance", id="always wrong"),
            pytest.param(lambda inner, x: inner(x) * torch.nan, "finite float32 logits", id="NaN"),
            pytest.param(lambda inner, x: inner(x) / 0, "finite float32 logits", id="infinite"),
            pytest.param(lambda inner, x: inner(x).double(), "finite float32 logits", id="float64"),
            pytest.param(lambda inner, x: inner(x)[:, :9], "finite float32 logits", id="a class too few"),
            pytest.param(lambda inner, x: inner(x)[0], "finite float32 logits", id="a row too few"),
            pytest.param(lambda inner, x: inner(x) + inner(x.mean(0, keepdim=True)), "must not depend", id="batch"),
            pytest.param(lambda inner, x: inner(x) + torch.rand(len(x), 10), "must not depend", id="random"),
            pytest.param(no_gradient, "could not be attacked", id="detached"),
            pytest.param(without_grad, "could not be attacked", id="no_grad"),
            pytest.param(unwatched, "whether gradients are computed", id="another without gradients"),
            pytest.param(lambda inner, x: inner(x).softmax(dim=1), "returns probabilities", id="softmax"),
            pytest.param(lambda inner, x: (inner(x) * 1e3).softmax(dim=1), "returns probabilities", id="sure softmax"),
            pytest.param(hard_labels, "probabilities or labels", id="hard labels"),
            pytest.param(straight_through, "not its own", id="rounded inputs, straight-through gradients"),
            pytest.param(decoy, "not its own", id="gradients of another function"),
            pytest.param(rounded, "gradient above zero", id="rounded inputs"),
            pytest.param(lambda inner, x: inner(x).round(), "gradient above zero", id="rounded logits"),
            pytest.param(lambda inner, x: inner(x) * 1e-42, "gradient above zero", id="subnormal logits"),
            pytest.param(off_grid_nan, "not its own", id="NaN off the data"),
        ],
    )
    def test_refuses_to_judge(self, plain: LoadedModel, rows, network: Network, reason: str) -> None:
        model = wrapped(plain, network)
        with pytest.raises(InconclusiveError, match=reason):
            evaluate(model, *rows, QUICK)
        question = Question(0.3, bytes(32), ("a", "b", "c"))
        try:
            figures = evaluate(model, *rows, dataclasses.replace(QUICK, mode="verdict"), question).figures
        except InconclusiveError:
            return
        assert figures["robust_accuracy_high"] < 0.3, "nor does verdict mode pass it"

    def test_refuses_when_an_unbounded_attack_fails(self, plain: LoadedModel, rows, monkeypatch) -> None:
        """As it would on a model whose gradients lead nowhere; here its proposals are thrown away."""
        monkeypatch.setattr(native, "pgd", lambda module, clean, *_, **__: clean.clone())
        with pytest.raises(InconclusiveError, match=r"unbounded attack breaks only 0\.0%"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_when_an_attack_proposes_nan(self, plain: LoadedModel, rows, monkeypatch) -> None:
        monkeypatch.setattr(native, "fgsm", lambda module, clean, *_, **__: clean * torch.nan)
        with pytest.raises(InconclusiveError, match="lost its way"):
            evaluate(plain, *rows, QUICK)

    @pytest.mark.parametrize(
        "change", [lambda x: x[:-1], lambda x: x[:1], lambda x: x[:0], torch.Tensor.double, lambda x: x.flatten(1)]
    )
    def test_refuses_when_an_attack_does_not_answer_for_every_sample(self, plain, rows, monkeypatch, change) -> None:
        honest = native.fgsm
        monkeypatch.setattr(native, "fgsm", lambda *given, **named: change(honest(*given, **named)))
        with pytest.raises(InconclusiveError, match="one float32 input for each sample"):
            evaluate(
                plain, *rows, dataclasses.replace(QUICK, mode="verdict"), Question(0.1, bytes(32), ("a", "b", "c"))
            )

    def test_refuses_when_one_step_beats_many(self, plain: LoadedModel, rows, monkeypatch) -> None:
        honest = native.pgd
        monkeypatch.setattr(
            native,
            "pgd",
            lambda module, clean, *rest, epsilon, **named: (
                honest(module, clean, *rest, epsilon=epsilon, **named) if epsilon == 1 else clean.clone()
            ),
        )
        with pytest.raises(InconclusiveError, match="FGSM breaks more"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_when_a_planted_adversarial_example_is_not_found(self, plain, rows, monkeypatch) -> None:
        """Zimmermann et al. 2022: an attack that misses what is known to exist proves nothing."""
        monkeypatch.setattr(native, "apgd", lambda module, clean, *_, **__: clean.clone())
        with pytest.raises(InconclusiveError, match=r"finds only 0\.0% of adversarial examples that were planted"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_when_a_larger_radius_leaves_more_robust(self, plain, rows, monkeypatch) -> None:
        honest = native.pgd
        monkeypatch.setattr(
            native,
            "pgd",
            lambda module, clean, *rest, epsilon, **named: (
                clean.clone() if 0.1 < epsilon < 1 else honest(module, clean, *rest, epsilon=epsilon, **named)
            ),
        )
        with pytest.raises(InconclusiveError, match="smaller radius"):
            evaluate(plain, *rows, QUICK)

    def test_refuses_when_search_without_gradients_finds_what_gradients_do_not(self, plain, clean) -> None:
        """The rows that an attack left which found nothing."""
        inputs, labels, _ = clean
        with pytest.raises(InconclusiveError, match=r"without gradients break \d+ of 96 samples"):
            soundness.gradient_free(plain.module, inputs, labels, epsilon=0.1, seed=0)

    @pytest.mark.parametrize(
        ("shares", "refused"),
        [
            ((1.0, 0.9, 0.5), False),
            ((1.0, 1.0, 1.0), False),
            ((1.0, 0.5, 0.51), False),
            ((1.0, 0.5, 0.53), True),
            ((0.0, 1.0, 0.0), True),
            ((1.0, float("nan"), 0.0), True),
        ],
    )
    def test_shares_must_not_rise_with_the_radius(self, shares: tuple[float, ...], refused: bool) -> None:
        left = dict(zip((0.0, 0.1, 0.2), shares, strict=True))
        if refused:
            with pytest.raises(InconclusiveError):
                soundness.require_falling(left, 96)
        else:
            soundness.require_falling(left, 96)

    @pytest.mark.parametrize(
        ("owner", "attack", "error"),
        [
            (native, "fgsm", RuntimeError),
            (native, "pgd", IndexError),
            (native, "pgd", StopIteration),
            (native, "pgd", MemoryError),
            (native, "deepfool", AssertionError),
            (torchattacks.CW, "forward", ValueError),
        ],
    )
    def test_refuses_when_an_attack_fails(self, plain, rows, monkeypatch, owner, attack: str, error: type) -> None:
        def fail(*_, **__):
            raise error("backend")

        monkeypatch.setattr(owner, attack, fail)
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
            pytest.param(lambda x, y: (np.where(x == 16, np.inf, x), y), id="infinite"),
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

            monkeypatch.setattr(torchattacks.CW, "forward", fail)
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
        ("pgd_steps", 10.0),
        ("pgd_step_size", 0.0),
        ("pgd_step_size", float("nan")),
        ("cw_steps", 0),
        ("cw_c", 0.0),
        ("cw_learning_rate", 0.0),
        ("deepfool_steps", 0),
        ("deepfool_overshoot", 0.0),
        ("apgd_steps", 9),
        ("apgd_targets", -1),
        ("mode", "quick"),
        ("mode", ""),
        ("n_min", 0),
        ("seed", -1),
        ("seed", 2**53),
        pytest.param("pgd_step_size", 0.019, id="PGD cannot cross its ball"),
        pytest.param("pgd_steps", 7, id="PGD has too few steps"),
        ("ddn_steps", 9),
        ("libraries", ""),
        ("libraries", "cleverhans"),
        ("libraries", "foolbox,foolbox"),
        ("libraries", "none,foolbox"),
        ("libraries", 1),
        ("queries", 99),
        ("queries", 500.0),
        ("queries", 1_000_001),
        ("threat", None),
        ("threat", {"mutable": {}}),
        pytest.param("threat", "#" * 65_537, id="a threat too long"),
    ],
)
def test_refuses_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        RobustnessSettings(**{name: value})


def test_refuses_a_threat_in_verdict_mode() -> None:
    with pytest.raises(ConfigError, match="a threat is judged with mode full"):
        RobustnessSettings(threat="mutable: {age: {epsilon: 1}}", mode="verdict")
