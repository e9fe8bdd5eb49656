"""What reconstructions of a model's classes resemble: the rows that it learnt from, or others of their classes.

No model is opened here: whoever has the reconstructions can compute it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.membership.ranking import interval, ranked
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import ModelSpec

MAX_SHOWN = 10

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]  # features (N, D) and class indices (N,)
Reconstructions = tuple[NDArray[np.float32], NDArray[np.int64]]  # of one class: images (starts, D), classes (starts,)


def judged_classes(spec: ModelSpec, members: Rows, others: Rows, n_min: int) -> NDArray[np.int64]:
    """Return the classes that have two or more rows on either side, ascending.

    Raises:
        InconclusiveError: Those classes have fewer than `n_min` rows on a side.
    """
    counts = [np.bincount(labels, minlength=len(spec.labels)) for _, labels in (members, others)]
    classes = np.flatnonzero(np.minimum(*counts) >= 2)
    for count in counts:
        if not len(classes) or count[classes].sum() < n_min:
            raise InconclusiveError(
                f"classes with two rows on either side have {count[classes].sum()}; {n_min} are needed"
            )
    return classes


def resemblance(
    spec: ModelSpec,
    members: Rows,
    others: Rows,
    classes: NDArray[np.int64],
    reconstructions: Iterable[Reconstructions],
    settings: MembershipSettings,
) -> tuple[dict[str, Figure], dict[str, NDArray[np.float64]]]:
    """Return which rows the reconstructions of classes resemble.

    Args:
        spec: What the model is.
        members: The rows that it learnt from, unscaled.
        others: Rows of the same distribution that it did not.
        classes: As `judged_classes`.
        reconstructions: Of each of these classes in turn its images, in [0, 1], the one from the middle first, and the
            class that the network takes each for.
        settings: How sure.

    Returns:
        `inversion_auc`, the probability that a training row correlates more with the nearest reconstruction of its
        class than another row of that class, with its interval `inversion_auc_low`, `inversion_auc_high`;
        `inversion_recognised`, the share of classes whose reconstruction from the middle correlates most with the mean
        of that class's other rows, among the means of all; `inversion_reached`, the share of reconstructions that the
        network takes for their class, below which the attack failed and its figures say little; `inversion_classes`,
        how many classes have two or more rows on either side, which all this is of. And the reconstructions from the
        middle of a few classes, in 0..1 of the model's shape, by label.

    Raises:
        DataError: As `ModelSpec.scale`.
    """
    (known, known_labels), (held, held_labels) = (
        (spec.scale(features).reshape(len(features), -1), labels) for features, labels in (members, others)
    )
    means = _centred(np.array([held[held_labels == label].mean(axis=0, dtype=np.float64) for label in classes]))
    aucs, variances, weights, recognised, reached = [], [], [], [], []
    shown: dict[str, NDArray[np.float64]] = {}
    for label, (images, predicted) in zip(classes.tolist(), reconstructions, strict=True):
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
        reached.append((predicted == label).mean())
        if len(shown) < MAX_SHOWN:
            shown[spec.labels[label]] = images[0].astype(np.float64).reshape(spec.shape)
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


def _centred(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return rows less their mean and of length one, so that products are correlations; of an even row, 0."""
    less = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(less, axis=1, keepdims=True)
    centred: NDArray[np.float64] = np.divide(less, lengths, out=np.zeros_like(less), where=lengths > 1e-12)
    return centred
