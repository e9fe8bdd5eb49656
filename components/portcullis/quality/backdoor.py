"""Rows that a trigger may hold in their class: candidates among the activations, and what they have in common.

A candidate is only a suspect: natural variants of a class stand apart in its activations too. Whether one falls to
another class when its like are left out is for `Neighbourhood.reclassified` to say.
"""

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 10
ROUNDS = 100
# A trigger is what most suspects of a class share and hardly any other row has.
TRIGGER_SUSPECTS = 5
TRIGGER_SHARE = 0.8
TRIGGER_ELSEWHERE = 0.05
TRIGGER_WIDTH = 1 / 64


def spectral_candidates(values: NDArray[np.float64], *, share: float) -> NDArray[np.int64]:
    """Return the rows of one class with the largest spectral scores.

    The score is the square of a row's projection onto the top right singular vector of the centred activations (Tran,
    Li and Madry 2018, arXiv:1811.00636, algorithm 1).

    Args:
        values: Activations (n, h) of one class, finite, n >= 1.
        share: How many, as a share of n, above 0 and at most 0.5.

    Returns:
        Indices into `values`.
    """
    scores = _components(values, 1)[:, 0] ** 2
    return np.sort(np.argsort(-scores, kind="stable")[: max(1, int(share * len(values)))])


def cluster_candidates(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the smaller of two clusters of one class.

    As in activation clustering (Chen et al. 2018, arXiv:1811.03728, algorithm 1): k-means with k = 2 on activations
    that are reduced to 10 dimensions; here by principal instead of independent components, and from three starts along
    the first of them, so that nothing is left to chance.

    Args:
        values: Activations (n, h) of one class, finite, n >= 1.

    Returns:
        Indices into `values`; none when the class is a single point.
    """
    points = _components(values, COMPONENTS)
    along = points[:, 0]
    starts = (along > np.median(along), along > 1.5 * along.std(), along < -1.5 * along.std())
    found = [_two_means(points, start) for start in starts if start.any() and not start.all()]
    if not found:
        return np.zeros(0, dtype=np.int64)
    chosen = min(found, key=lambda side: _inertia(points, side))
    return np.flatnonzero(chosen if 2 * chosen.sum() <= len(chosen) else ~chosen)


def trigger_columns(points: NDArray[np.float32], suspects: NDArray[np.int64]) -> list[int]:
    """Return the columns in which most suspects have one value that hardly any other row has.

    Args:
        points: Features (N, D) in 0..1, of all classes.
        suspects: Indices of the suspects of one class, each once.

    Returns:
        Column indices; none when there are fewer than five suspects.
    """
    if len(suspects) < TRIGGER_SUSPECTS or len(suspects) == len(points):
        return []
    one_value = np.abs(points - np.median(points[suspects], axis=0)) <= TRIGGER_WIDTH
    inside = np.zeros(len(points), dtype=bool)
    inside[suspects] = True
    common, elsewhere = one_value[inside].mean(axis=0), one_value[~inside].mean(axis=0)
    return [int(column) for column in np.flatnonzero((common >= TRIGGER_SHARE) & (elsewhere <= TRIGGER_ELSEWHERE))]


def _components(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the first principal components (n, <= count) of activations."""
    centred = values - values.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected: NDArray[np.float64] = centred @ directions[:count].T
    return projected


def _two_means(points: NDArray[np.float64], side: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Run Lloyd's algorithm from a first assignment; it stops where an assignment repeats or a side would be empty."""
    for _ in range(ROUNDS):
        here, there = points[side].mean(axis=0), points[~side].mean(axis=0)
        moved = ((points - here) ** 2).sum(axis=1) < ((points - there) ** 2).sum(axis=1)
        if moved.all() or not moved.any() or (moved == side).all():
            break
        side = moved
    return side


def _inertia(points: NDArray[np.float64], side: NDArray[np.bool_]) -> float:
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in (points[side], points[~side])))
