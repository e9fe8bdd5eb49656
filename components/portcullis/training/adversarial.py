"""Training a classifier, adversarially by default.

Adam with a one-cycle learning rate (Smith and Topin 2019, arXiv:1708.07120). On a CPU one thread computes, and the same
seed gives the same model, bit by bit, with the same PyTorch release and kind of processor; some CUDA kernels do not fix
the order of their sums, so there it may differ.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import DataError, ModelError
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import ModelSpec, build_module
from portcullis.training.settings import TrainingSettings

functional = torch.nn.functional

TRADES_BETA = 6.0
EVALUATION_ROWS = 1024


def train(
    features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], spec: ModelSpec, settings: TrainingSettings
) -> tuple[torch.nn.Module, Mapping[str, int | float | str]]:
    """Train the network that `spec` names.

    Args:
        features: Raw features (N, D) in [spec.low, spec.high].
        labels: Class indices (N,), integers in [0, k), of two or more classes.
        spec: The model to be.
        settings: How to train it.

    Returns:
        The module, on the CPU, in `eval()` mode, and the figures `samples`, `parameters`, `loss` (mean of the last
        epoch), `train_accuracy` (clean, 0..1) and `device`.

    Raises:
        DataError: No rows, features or labels of another shape, type or range, or a single class.
        ModelError: The architecture is unknown or does not work, or training did not stay finite.
        UsageError: CUDA was asked for and is not there.
    """
    inputs, targets = training_tensors(features, labels, spec)
    device = choose_device(settings.device)
    with reproducible(settings.seed, device):
        module = build_module(spec).to(device)
        try:
            loss = _fit(module, inputs.to(device), targets.to(device), settings)
            module.eval().requires_grad_(requires_grad=False).zero_grad()
            module.cpu()
            accuracy = _accuracy(module, inputs, targets)
        except FOREIGN_ERRORS as error:
            raise ModelError(f"architecture {spec.architecture!r} cannot be trained on this: {error}") from error
    if not np.isfinite(loss) or not all(bool(weights.isfinite().all()) for weights in module.state_dict().values()):
        raise ModelError("training did not stay finite; lower the learning rate")
    return module, {
        "samples": len(inputs),
        "parameters": sum(weights.numel() for weights in module.parameters()),
        "loss": loss,
        "train_accuracy": accuracy,
        "device": device.type,
    }


def _fit(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, settings: TrainingSettings) -> float:
    """Train the module in place and return the mean loss of the last epoch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    steps = -(-len(inputs) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, epochs=settings.epochs, steps_per_epoch=steps
    )
    module.train()
    loss_sum = torch.zeros((), device=inputs.device)
    for _ in range(settings.epochs):
        loss_sum.zero_()
        for rows in torch.split(torch.randperm(len(inputs)).to(inputs.device), settings.batch_size):
            loss = _loss(module, inputs[rows], targets[rows], settings)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(rows)
        if not torch.isfinite(loss_sum):
            break
    return float(loss_sum) / len(inputs)


def _loss(
    module: torch.nn.Module, clean: torch.Tensor, targets: torch.Tensor, settings: TrainingSettings
) -> torch.Tensor:
    if settings.method == "plain":
        return functional.cross_entropy(module(clean), targets)
    attack = partial(ascend, module, clean, epsilon=settings.epsilon, steps=settings.steps)
    if settings.method == "pgd":
        adversarial = attack(lambda logits: functional.cross_entropy(logits, targets, reduction="sum"))
        return functional.cross_entropy(module(adversarial), targets)
    with _evaluating(module), torch.no_grad():
        reference = module(clean).softmax(dim=1)
    adversarial = attack(lambda logits: functional.kl_div(logits.log_softmax(dim=1), reference, reduction="sum"))
    natural = module(clean)
    divergence = functional.kl_div(
        module(adversarial).log_softmax(dim=1), natural.softmax(dim=1), reduction="batchmean"
    )
    return functional.cross_entropy(natural, targets) + TRADES_BETA * divergence


def ascend(
    module: torch.nn.Module,
    clean: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    epsilon: float,
    steps: int,
) -> torch.Tensor:
    """Maximise a loss by projected gradient ascent in the Linf ball, from a random start; touches no `.grad`.

    Args:
        module: The network, in `train()` mode, to which it is put back.
        clean: The inputs (N, *shape), float32 in [0, 1].
        loss: From logits to a sum over the rows, so that no row's attack depends on another row.
        epsilon: Radius of the ball.
        steps: Gradient steps.

    Returns:
        The inputs, each moved by at most `epsilon` and still in [0, 1].
    """
    step = 2.5 * epsilon / steps
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    moved = low + (high - low) * torch.rand_like(clean)
    with _evaluating(module):
        for _ in range(steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(module(moved)), moved)
            moved = (moved.detach() + step * gradient.sign()).clamp(low, high)
    return moved


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Attack the network that will be served: dropout off, batch statistics neither used nor updated."""
    module.eval()
    try:
        yield
    finally:
        module.train()


def _accuracy(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.inference_mode():
        hits = [
            int((module(rows).argmax(dim=1) == wanted).sum())
            for rows, wanted in zip(
                torch.split(inputs, EVALUATION_ROWS), torch.split(targets, EVALUATION_ROWS), strict=True
            )
        ]
    return sum(hits) / len(inputs)


def training_tensors(
    features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], spec: ModelSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs (N, *shape), float32 in [0, 1], and the targets (N,), int64, of rows to learn from.

    Raises:
        DataError: No rows, features or labels of another shape, type or range, or a single class.
    """
    inputs = spec.scale(features)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (len(inputs),):
        raise DataError(f"labels must be {len(inputs)} integers, one for each row of features")
    if not ((labels >= 0) & (labels < len(spec.labels))).all():
        raise DataError(f"labels must be class indices from 0 to {len(spec.labels) - 1}")
    if len(np.unique(labels)) < 2:
        raise DataError("all training rows are of one class; nothing can be learnt")
    return torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))
