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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import Dataset, features_and_labels
from portcullis.errors import InconclusiveError, ModelError
from portcullis.evidence.statement import Figure
from portcullis.membership.ranking import interval, ranked
from portcullis.membership.settings import MembershipSettings
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch
from portcullis.models.store import LoadedModel

MAX_SHOWN = 10

_AT_ONCE = 256  # reconstructions that are moved together, and fewer of large inputs
_ELEMENTS = 1 << 24
_LENGTH = 0.05  # of a step, as a share of the length of the diagonal of all inputs


def invert(
    model: LoadedModel, members: Dataset, others: Dataset, settings: MembershipSettings
) -> tuple[dict[str, Figure], dict[str, NDArray[np.float64]]]:
    """Reconstruct each class from the model, and return which rows that resembles.

    Args:
        model: The model.
        members: The rows that it learnt from.
        others: Rows of the same distribution that it did not.
        settings: How often, how long, and how sure.

    Returns:
        `inversion_auc`, the probability that a training row correlates more with the nearest reconstruction of its
        class than another row of that class, with its interval `inversion_auc_low`, `inversion_auc_high`;
        `inversion_recognised`, the share of classes whose reconstruction from the middle correlates most with the mean
        of that class's other rows, among the means of all; `inversion_reached`, the share of reconstructions that the
        network takes for their class, below which the attack failed and its figures say little; `inversion_classes`,
        how many classes have two or more rows on either side, which all this is of. And the reconstructions from the
        middle of a few classes, in 0..1 of the model's shape, by label.

    Raises:
        InconclusiveError: Those classes have fewer than `n_min` rows on a side.
        DataError: As `ModelSpec.scale`.
        ModelError: The network has no gradients, or what it returns is not finite.
    """
    rows = []
    for side in (members, others):
        features, labels = features_and_labels(side)
        rows.append((model.spec.scale(features).reshape(len(features), -1), labels))
    (known, known_labels), (held, held_labels) = rows
    counts = [np.bincount(labels, minlength=len(model.spec.labels)) for labels in (known_labels, held_labels)]
    classes = np.flatnonzero(np.minimum(*counts) >= 2)
    for count in counts:
        if not len(classes) or count[classes].sum() < settings.n_min:
            raise InconclusiveError(
                f"classes with two rows on either side have {count[classes].sum()}; {settings.n_min} are needed"
            )
    means = _centred(np.array([held[held_labels == label].mean(axis=0, dtype=np.float64) for label in classes]))
    aucs, variances, weights, recognised, reached = [], [], [], [], []
    shown: dict[str, NDArray[np.float64]] = {}
    for label, (images, taken) in zip(classes.tolist(), _reconstructions(model, classes, settings), strict=True):
        found = _centred(images)
        likeness = [
            (_centred(side[labels == label]) @ found.T).max(axis=1)
            for side, labels in ((known, known_labels), (held, held_labels))
        ]
        auc, variance = ranked(*likeness)
        aucs.append(auc)
        variances.append(variance)
        weights.append(float(len(likeness[0]) * len(likeness[1])))
        recognised.append(classes[int((means @ found[0]).argmax())] == label)
        reached.append(taken.mean())
        if len(shown) < MAX_SHOWN:
            shown[model.spec.labels[label]] = images[0].reshape(model.spec.shape)
    shares = np.array(weights) / sum(weights)
    auc, variance = float(shares @ np.array(aucs)), float(shares**2 @ np.array(variances))
    low, high = interval(auc, variance, min(len(known), len(held)), settings.confidence)
    return {
        "inversion_auc": auc,
        "inversion_auc_low": low,
        "inversion_auc_high": high,
        "inversion_recognised": float(np.mean(recognised)),
        "inversion_reached": float(np.mean(reached)),
        "inversion_classes": len(classes),
    }, shown


def _reconstructions(
    model: LoadedModel, classes: NDArray[np.int64], settings: MembershipSettings
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Give for each class its reconstructions (starts, D) in [0, 1], and which the network takes for it (starts,)."""
    generator = np.random.default_rng(settings.seed)
    shape, starts = model.spec.shape, settings.inversion_starts
    together = max(1, min(_AT_ONCE, _ELEMENTS // math.prod(shape)) // starts)
    for first in range(0, len(classes), together):
        part = classes[first : first + together]
        begun = generator.random((len(part), starts, *shape), dtype=np.float32)
        begun[:, 0] = 0.5  # one from the middle, as nothing is known
        images, taken = _moved(model, begun.reshape(-1, *shape), part.repeat(starts), settings.inversion_steps)
        for place in range(len(part)):
            of_class = slice(place * starts, (place + 1) * starts)
            yield images[of_class].reshape(starts, -1), taken[of_class]


def _moved(
    model: LoadedModel, begun: NDArray[np.float32], labels: NDArray[np.int64], steps: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
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
    return images.double().numpy(), (logits.argmax(dim=1) == targets).numpy()


def _centred(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return rows less their mean and of length one, so that products are correlations; of an even row, 0."""
    less = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(less, axis=1, keepdims=True)
    centred: NDArray[np.float64] = np.divide(less, lengths, out=np.zeros_like(less), where=lengths > 1e-12)
    return centred
