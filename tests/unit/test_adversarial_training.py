"""Adversarial training: what it learns, that it repeats, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from portcullis.errors import ConfigError, DataError, ModelError, UsageError
from portcullis.models import pytorch
from portcullis.models.digits_cnn import DigitsCNN
from portcullis.models.store import ModelSpec, model_files
from portcullis.training import adversarial, recipes
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {"width": 4, "hidden": 16}, (1, 4, 4), 0, 16, ("dark", "bright"))
FAST = {"epochs": 15, "batch_size": 32, "learning_rate": 0.02, "epsilon": 0.05, "steps": 3, "device": "cpu"}
FAST |= {"held_out": 0.3}
METHODS = ["trades2", "mix", "pgd", "trades", "nfgsm", "plain"]


def rows(count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return images that are dark or bright in their upper half."""
    generator = np.random.default_rng(7)
    features = generator.uniform(0, 16, (count, 16)).astype(np.float32)
    labels = generator.integers(0, 2, count)
    features[:, :8] = np.where(labels[:, None] == 1, generator.uniform(11, 16, (count, 8)), features[:, :8] * 5 / 16)
    return features, labels


class Exploding(DigitsCNN):
    """A network whose logits overflow as soon as they are computed."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * 1e30 * 1e30


@pytest.mark.parametrize("method", METHODS)
def test_learns_and_repeats_bit_by_bit(method: str) -> None:
    settings = TrainingSettings(method=method, seed=3, **FAST)
    features, labels = rows()
    module, figures = train(features, labels, SPEC, settings)
    assert not module.training and not any(weights.requires_grad for weights in module.parameters())
    assert figures["train_accuracy"] > 0.95
    assert 0 <= figures["loss"] < 1
    assert (figures["samples"], figures["device"]) == (100 if method == "plain" else 70, "cpu")
    assert (figures["epochs"], figures["stop"]) == (15, "finished")
    assert figures["parameters"] == sum(weights.numel() for weights in module.parameters())
    again, same = train(features, labels, SPEC, settings)
    assert same == figures and model_files(again, SPEC) == model_files(module, SPEC)
    other, _ = train(features, labels, SPEC, TrainingSettings(method=method, seed=4, **FAST))
    assert model_files(other, SPEC) != model_files(module, SPEC)


def test_the_number_of_threads_changes_nothing() -> None:
    features, labels = rows()
    threads = torch.get_num_threads()
    models = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            models.append(model_files(train(features, labels, SPEC, TrainingSettings(**FAST))[0], SPEC))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert models[0] == models[1]


def test_leaves_the_global_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is what is tested
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(*rows(), SPEC, TrainingSettings(**FAST))
    monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Exploding)
    with pytest.raises(ModelError):
        train(*rows(), SPEC, TrainingSettings(**FAST))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize("method", ["trades2", "mix", "pgd", "trades"])
def test_the_inner_attack_stays_in_its_ball_and_attacks_the_network_that_will_be_served(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    modes, gradients, counts = [], [], []
    ascend = recipes.ascend

    def watched(module, clean, loss, *, epsilon, steps, **options):
        before = [weights.grad for weights in module.parameters()]
        moved = ascend(
            module,
            clean,
            lambda logits: (modes.append(module.training), loss(logits))[1],
            epsilon=epsilon,
            steps=steps,
            **options,
        )
        gradients.append(all(weights.grad is old for weights, old in zip(module.parameters(), before, strict=True)))
        counts.append(steps)
        assert module.training
        assert ((moved >= 0) & (moved <= 1)).all()
        assert (moved - clean).abs().max() <= epsilon * (1 + 1e-5)
        assert (moved - clean).abs().max() > epsilon / 2
        return moved

    monkeypatch.setattr(recipes, "ascend", watched)
    train(*rows(), SPEC, TrainingSettings(method=method, **FAST | {"epochs": 2}))
    assert modes and not any(modes)
    assert gradients and all(gradients)
    assert set(counts) == {2 if method == "trades2" else FAST["steps"]}


def test_one_step_training_starts_from_noise_of_twice_the_radius_and_is_not_projected_back() -> None:
    module = DigitsCNN((1, 4, 4), 2).train()
    clean, targets = torch.rand(64, 1, 4, 4) / 2 + 0.25, torch.zeros(64, dtype=torch.int64)
    settings = TrainingSettings(method="nfgsm", epsilon=0.05)
    moved = []
    module.register_forward_hook(lambda _, given, __: moved.append((given[0].detach(), module.training)))
    recipes.batch_loss(module, clean, targets, settings).backward()
    (noisy, attacked_in), (adversarial_inputs, learnt_in) = moved
    assert (attacked_in, learnt_in) == (False, True)
    assert 0.09 < (noisy - clean).abs().max() <= 0.1 * (1 + 1e-5)
    assert torch.allclose((adversarial_inputs - noisy).abs(), torch.tensor(0.05), atol=1e-6)
    assert (adversarial_inputs - clean).abs().max() > 0.1


def test_the_losses_are_those_of_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formulas, written out, for an attack that moves nothing and for one that is known."""
    module = DigitsCNN((1, 4, 4), 3).train()
    clean, targets = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    moved = (clean + 0.1).clamp(0, 1)
    monkeypatch.setattr(recipes, "ascend", lambda *_, **__: moved)

    def cross_entropy(inputs):
        return -module(inputs).log_softmax(1)[torch.arange(8), targets].mean()

    def trades(inputs):
        p, q = module(clean).softmax(1), module(inputs).softmax(1)
        return cross_entropy(clean) + 6 * (p * (p.log() - q.log())).sum(1).mean()

    expected = {
        "plain": cross_entropy(clean),
        "pgd": cross_entropy(moved),
        "mix": (cross_entropy(clean) + cross_entropy(moved)) / 2,
        "trades": trades(moved),
        "trades2": trades(moved),
    }
    for method, loss in expected.items():
        found = recipes.batch_loss(module, clean, targets, TrainingSettings(method=method))
        assert torch.allclose(found, loss, atol=1e-6), method


def test_the_inner_attack_leaves_training_mode_on_after_an_error() -> None:
    module = torch.nn.Dropout().train()

    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        recipes.ascend(module, torch.zeros(1, 4), fail, epsilon=0.1, steps=1)
    assert module.training


FEATURES, LABELS = rows()


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        pytest.param(FEATURES[:0], LABELS[:0], id="no rows"),
        pytest.param(FEATURES[:, :15], LABELS, id="a feature too few"),
        pytest.param(FEATURES + 16, LABELS, id="out of bounds"),
        pytest.param(np.where(FEATURES > 15, np.nan, FEATURES), LABELS, id="NaN"),
        pytest.param(FEATURES, LABELS[:-1], id="a label too few"),
        pytest.param(FEATURES, LABELS[:, None], id="labels of two dimensions"),
        pytest.param(FEATURES, LABELS.astype(float), id="labels are floats"),
        pytest.param(FEATURES, LABELS.astype(bool), id="labels are booleans"),
        pytest.param(FEATURES, LABELS.tolist(), id="labels are a list"),
        pytest.param(FEATURES, LABELS + 1, id="label too large"),
        pytest.param(FEATURES, LABELS - 1, id="label below zero"),
        pytest.param(FEATURES, LABELS * 0, id="one class"),
    ],
)
def test_refuses_data(features: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(DataError):
        train(features, labels, SPEC, TrainingSettings(**FAST))


@pytest.mark.parametrize("method", METHODS)
def test_refuses_a_network_that_did_not_stay_finite(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Exploding)
    with pytest.raises(ModelError, match="did not stay finite"):
        train(FEATURES, LABELS, SPEC, TrainingSettings(method=method, **FAST))


def test_refuses_too_few_rows_to_choose_by() -> None:
    with pytest.raises(DataError, match="at least 30"):
        train(FEATURES, LABELS, SPEC, TrainingSettings(**FAST | {"held_out": 0.29}))


def test_refuses_rows_of_one_class_once_some_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros(100, np.int64)
    order = torch.arange(100)
    monkeypatch.setattr(adversarial.torch, "randperm", lambda _: order)
    labels[0] = 1
    with pytest.raises(DataError, match="of one class"):
        train(FEATURES, labels, SPEC, TrainingSettings(**FAST))


def test_the_rows_held_out_are_never_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, held = [], []
    batch_loss, check = adversarial.batch_loss, adversarial._Run.check

    def watched(module, clean, targets, settings):
        learnt.append(clean.flatten(1))
        return batch_loss(module, clean, targets, settings)

    def watched_check(run, inputs, *others):
        held.append(inputs.flatten(1))
        return check(run, inputs, *others)

    monkeypatch.setattr(adversarial, "batch_loss", watched)
    monkeypatch.setattr(adversarial._Run, "check", watched_check)
    _, figures = train(FEATURES, LABELS, SPEC, TrainingSettings(**FAST | {"epochs": 2}))
    known, others = ({tuple(row) for row in torch.cat(parts).tolist()} for parts in (learnt, held))
    assert (len(known), len(others)) == (figures["samples"], figures["held_out"]) == (70, 30)
    assert not known & others


def scripted(monkeypatch: pytest.MonkeyPatch, robust: list[float], *, epochs: int):
    """Train with checks that find what a script says, and return the kept weights, figures and each check's mean."""
    left, means = iter(robust), []
    monkeypatch.setattr(adversarial, "_attacked", lambda module, inputs, *_: (means.append(copied(module)), inputs)[1])

    def accuracy(module, inputs, targets):
        return next(left) if len(means) > accuracy.told and len(inputs) == 30 else 0.5

    accuracy.told = 0
    find = adversarial._Run.check

    def check(run, inputs, targets, loss, settings):
        accuracy.told = len(means)
        return find(run, inputs, targets, loss, settings)

    monkeypatch.setattr(adversarial, "_accuracy", accuracy)
    monkeypatch.setattr(adversarial._Run, "check", check)
    module, figures = train(FEATURES, LABELS, SPEC, TrainingSettings(**FAST | {"epochs": epochs, "method": "trades2"}))
    return copied(module), figures, means


def copied(module: torch.nn.Module) -> bytes:
    return model_files(module, SPEC)["weights.safetensors"]


@pytest.mark.parametrize(
    ("robust", "best"),
    [([0.1, 0.4, 0.3, 0.35], 2), ([0.1, 0.4, 0.4, 0.3], 3), ([0.0, 0.0, 0.0, 0.0], 4), ([0.9, 0.5, 0.5, 0.5], 1)],
)
def test_keeps_the_checkpoint_that_withstood_most_and_of_equals_the_last(
    monkeypatch: pytest.MonkeyPatch, robust: list[float], best: int
) -> None:
    kept, figures, means = scripted(monkeypatch, robust, epochs=4)
    assert (figures["best_epoch"], figures["stop"], figures["epochs"]) == (best, "finished", 4)
    assert figures["held_out_robust_accuracy"] == robust[best - 1]
    assert len({*means}) == 4 and kept == means[best - 1]


@pytest.mark.parametrize(
    ("robust", "epochs"),
    [
        pytest.param([0.2, 0.8, 0.1, 0.1, 0.9], 4, id="twice in a row"),
        pytest.param([0.2, 0.8, 0.1, 0.7, 0.8], 5, id="once"),
        pytest.param([0.1, 0.3, 0.0, 0.1, 0.3], 5, id="by no more than chance"),
        pytest.param([0.2, 0.8, 0.5, 0.5, 0.5], 5, id="not by half"),
    ],
)
def test_a_collapse_ends_training_and_the_best_checkpoint_before_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, robust: list[float], epochs: int
) -> None:
    kept, figures, means = scripted(monkeypatch, robust, epochs=5)
    assert figures["epochs"] == epochs
    assert figures["stop"] == ("collapsed" if epochs < 5 else "finished")
    best = max(range(epochs), key=lambda it: (robust[it], it))
    assert figures["best_epoch"] == best + 1 and kept == means[best]
    assert [it["robust_accuracy"] for it in json.loads(figures["history"])] == robust[:epochs]


def test_training_on_one_large_step_that_collapses_is_stopped_and_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real collapse: after some epochs the noise is left out and the step is three radii long."""
    noisy_step, calls = recipes._noisy_step, []

    def step(module, clean, loss, epsilon):
        calls.append(None)
        if len(calls) < 80:
            return noisy_step(module, clean, loss, epsilon)
        inputs = clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(module(inputs)), inputs)
        return (clean + 3 * epsilon * gradient.sign()).clamp(0, 1)

    monkeypatch.setattr(recipes, "_noisy_step", step)
    features, labels = load_digits(return_X_y=True)
    spec = ModelSpec("digits-cnn", {"width": 8, "hidden": 32}, (1, 8, 8), 0, 16, tuple("0123456789"))
    settings = TrainingSettings(
        *("nfgsm", 0.15), epochs=20, batch_size=64, learning_rate=0.015, ema=0.8, held_out=0.2, device="cpu"
    )
    _, figures = train(features[:600], labels[:600], spec, settings)
    history = json.loads(figures["history"])
    assert figures["stop"] == "collapsed" and figures["epochs"] < 20
    assert figures["held_out_robust_accuracy"] == max(it["robust_accuracy"] for it in history) > 0.4
    assert history[-1]["robust_accuracy"] < figures["held_out_robust_accuracy"] / 2


def test_refuses_a_network_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def __init__(self, **options: object) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.linear(inputs)

    monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Broken)
    with pytest.raises(ModelError, match="cannot be trained"):
        train(FEATURES, LABELS, SPEC, TrainingSettings(**FAST))


def test_an_unknown_architecture_is_a_model_error() -> None:
    spec = ModelSpec("no-such", {}, (1, 4, 4), 0, 16, ("dark", "bright"))
    with pytest.raises(ModelError, match="no-such"):
        train(FEATURES, LABELS, spec, TrainingSettings(**FAST))


@pytest.mark.parametrize(
    ("choice", "available", "expected"),
    [("auto", False, "cpu"), ("cpu", True, "cpu"), ("auto", True, "cuda:0"), ("cuda", True, "cuda:0")],
)
def test_chooses_the_device(monkeypatch: pytest.MonkeyPatch, choice: str, available: bool, expected: str) -> None:
    monkeypatch.setattr(pytorch.torch.cuda, "is_available", lambda: available)
    assert str(adversarial.choose_device(choice)) == expected


def test_cuda_that_is_not_there_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        train(FEATURES, LABELS, SPEC, TrainingSettings(**FAST | {"device": "cuda"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "fgsm"),
        ("device", "mps"),
        ("epsilon", 0.0),
        ("epsilon", -0.1),
        ("epsilon", 0.5),
        ("epsilon", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("ema", -0.1),
        ("ema", 1.0),
        ("ema", float("nan")),
        ("held_out", 0.0),
        ("held_out", 0.6),
        ("held_out", float("nan")),
        ("steps", 0),
        ("steps", 2.0),
        ("steps", True),
        ("epochs", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", 2**53),
    ],
)
def test_refuses_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        TrainingSettings(**{name: value})
