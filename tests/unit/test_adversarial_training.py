"""Adversarial training: what it learns, that it repeats, and what it refuses."""

import numpy as np
import pytest
import torch

from portcullis.errors import ConfigError, DataError, ModelError, UsageError
from portcullis.models import pytorch
from portcullis.models.digits_cnn import DigitsCNN
from portcullis.models.store import ModelSpec, model_files
from portcullis.training import adversarial
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {"width": 4, "hidden": 16}, (1, 4, 4), 0, 16, ("dark", "bright"))
FAST = {"epochs": 15, "batch_size": 32, "learning_rate": 0.02, "epsilon": 0.05, "device": "cpu"}


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


@pytest.mark.parametrize("method", ["pgd", "trades", "plain"])
def test_learns_and_repeats_bit_by_bit(method: str) -> None:
    settings = TrainingSettings(method=method, seed=3, **FAST)
    features, labels = rows()
    module, figures = train(features, labels, SPEC, settings)
    assert not module.training and not any(weights.requires_grad for weights in module.parameters())
    assert figures["train_accuracy"] > 0.95
    assert 0 <= figures["loss"] < 1
    assert (figures["samples"], figures["device"]) == (100, "cpu")
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


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_the_inner_attack_stays_in_its_ball_and_attacks_the_network_that_will_be_served(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    modes, gradients = [], []
    ascend = adversarial.ascend

    def watched(module, clean, loss, *, epsilon, steps):
        before = [weights.grad for weights in module.parameters()]
        moved = ascend(
            module,
            clean,
            lambda logits: (modes.append(module.training), loss(logits))[1],
            epsilon=epsilon,
            steps=steps,
        )
        gradients.append(all(weights.grad is old for weights, old in zip(module.parameters(), before, strict=True)))
        assert module.training
        assert ((moved >= 0) & (moved <= 1)).all()
        assert (moved - clean).abs().max() <= epsilon * (1 + 1e-5)
        assert (moved - clean).abs().max() > epsilon / 2
        return moved

    monkeypatch.setattr(adversarial, "ascend", watched)
    train(*rows(), SPEC, TrainingSettings(method=method, **FAST))
    assert modes and not any(modes)
    assert gradients and all(gradients)


def test_the_inner_attack_leaves_training_mode_on_after_an_error() -> None:
    module = torch.nn.Dropout().train()

    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        adversarial.ascend(module, torch.zeros(1, 4), fail, epsilon=0.1, steps=1)
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


@pytest.mark.parametrize("method", ["pgd", "trades", "plain"])
def test_refuses_a_network_that_did_not_stay_finite(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Exploding)
    with pytest.raises(ModelError, match="did not stay finite"):
        train(FEATURES, LABELS, SPEC, TrainingSettings(method=method, **FAST))


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
