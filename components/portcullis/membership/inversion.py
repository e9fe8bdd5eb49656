"""Model inversion by gradients: what a model says of a class (Fredrikson and others 2015, 10.1145/2810103.2813677).

From a few starts, an input is moved until the network is as sure as can be that it is of the class: their algorithm 1,
with the logarithm of the class's probability, whose gradient does not vanish where the network is sure of another one,
and with steps of one length. Whoever has the model can do it without a single row.

A reconstruction always shows something of the class; that is what the model is for. What it shows of the *rows* is how
much more it resembles those that the model learnt from than others of the same class: the probability that a training
row is more like its class's reconstructions than a test row is. 0.5 is what a model gives that knows classes only.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import Dataset, features_and_labels
from portcullis.errors import ModelError
from portcullis.evidence.statement import Figure
from portcullis.membership.resemblance import Reconstructions, judged_classes, resemblance
from portcullis.membership.settings import MembershipSettings
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch
from portcullis.models.store import LoadedModel

_AT_ONCE = 256  # reconstructions that are moved together, and fewer of large inputs
_ELEMENTS = 1 << 24
_LENGTH = 0.05  # of a step, as a share of the length of the diagonal of all inputs


def invert(
    model: LoadedModel, members: Dataset, others: Dataset, settings: MembershipSettings
) -> tuple[dict[str, Figure], dict[str, NDArray[np.float64]]]:
    """Reconstruct each class from a model that is open in this process, and return which rows that resembles.

    Args:
        model: The model.
        members: The rows that it learnt from.
        others: Rows of the same distribution that it did not.
        settings: How often, how long, and how sure.

    Returns:
        As `portcullis.membership.resemblance.resemblance`.

    Raises:
        InconclusiveError: Those classes have fewer than `n_min` rows on a side.
        DataError: As `ModelSpec.scale`.
        ModelError: The network has no gradients, or what it returns is not finite.
    """
    sides = features_and_labels(members), features_and_labels(others)
    classes = judged_classes(model.spec, *sides, settings.n_min)
    return resemblance(model.spec, *sides, classes, reconstructions(model, classes, settings), settings)


def reconstructions(
    model: LoadedModel, classes: NDArray[np.int64], settings: MembershipSettings
) -> Iterator[Reconstructions]:
    """Reconstruct classes from the model.

    Args:
        model: The model.
        classes: Class indices (C,).
        settings: How often, how long, and from which random starts.

    Yields:
        For each class in turn its images (starts, D), float32 in [0, 1], the first from the middle of all inputs; and
        the class that the network takes each for, (starts,) int64.

    Raises:
        ModelError: The network has no gradients, or what it returns is not finite.
    """
    generator = np.random.default_rng(settings.seed)
    shape, starts = model.spec.shape, settings.inversion_starts
    together = max(1, min(_AT_ONCE, _ELEMENTS // math.prod(shape)) // starts)
    for first in range(0, len(classes), together):
        part = classes[first : first + together]
        begun = generator.random((len(part), starts, *shape), dtype=np.float32)
        begun[:, 0] = 0.5  # one from the middle, as nothing is known
        images, predicted = _moved(model, begun.reshape(-1, *shape), part.repeat(starts), settings.inversion_steps)
        for place in range(len(part)):
            of_class = slice(place * starts, (place + 1) * starts)
            yield images[of_class].reshape(starts, -1), predicted[of_class]


def _moved(
    model: LoadedModel, begun: NDArray[np.float32], labels: NDArray[np.int64], steps: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, targets = torch.from_numpy(begun), torch.from_numpy(labels)
    length = _LENGTH * math.sqrt(images[0].numel())
    try:
        with reproducible(0, torch.device("cpu")):
            for step in range(steps):
                images.requires_grad_()
                lost = torch.nn.functional.cross_entropy(model.module(images), targets, reduction="sum")
                (gradient,) = torch.autograd.grad(lost, images)
                flat = gradient.flatten(1)
                unit = (flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)).view_as(images)
                images = (images.detach() - length * (1 - step / steps) * unit).clamp(0, 1)
            with torch.inference_mode():
                logits = model.module(images)
    except FOREIGN_ERRORS as error:
        raise ModelError(f"the network cannot be inverted: {error}") from error
    if not bool(images.isfinite().all() and logits.isfinite().all()):
        raise ModelError("the network's gradients are not finite")
    return images.numpy(), logits.argmax(dim=1).numpy()
