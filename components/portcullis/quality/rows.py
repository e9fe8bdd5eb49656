"""What the rows show by themselves: cells that are missing, columns without a value of their own, copies, outliers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def missing_share(table: pa.Table) -> float:
    """Return the share of cells that are null or NaN, in the column that has most of them; 0..1."""
    shares = []
    for column in table.columns:
        empty = pc.is_null(column, nan_is_null=True)
        shares.append((pc.sum(empty).as_py() or 0) / max(len(column), 1))
    return max(shares, default=0.0)


def constant_share(points: NDArray[np.float32]) -> float:
    """Return the share of columns that hold a single value, of points (N, D); 0..1."""
    return float((points == points[:1]).all(axis=0).mean())


def copies(points: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Find rows whose features are the same, to the bit (zeros have no sign).

    Args:
        points: Features (N, D), finite, N >= 1.
        labels: Class indices (N,).

    Returns:
        The indices of rows that repeat an earlier one; the size of the largest group of equal rows, from 1; the
        indices of rows of which an equal one bears another label.
    """
    whole = np.ascontiguousarray(points + np.float32(0))  # -0.0 + 0.0 is 0.0
    rows = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).ravel()
    _, first, group, sizes = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.ones(len(labels), dtype=bool)
    repeated[first] = False
    pairs = np.unique(np.stack([group, labels], axis=1), axis=0)
    labels_of_group = np.bincount(pairs[:, 0], minlength=len(sizes))
    return np.flatnonzero(repeated), int(sizes.max()), np.flatnonzero(labels_of_group[group] > 1)


def remoteness(points: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Tell how far each row is from the middle of its class, beyond the median distance.

    The middle is the median of each column, and how far is common is judged by the median and the median absolute
    deviation (MAD) of the class's distances to it, so that up to half of a class cannot hide itself by moving either
    (Hampel 1974; Rousseeuw and Hubert 2011, doi:10.1002/widm.2). 1.4826 MAD is the standard deviation of a normal
    distribution.

    Args:
        points: Features (N, D), finite.
        labels: Class indices (N,).

    Returns:
        (N,), in such standard deviations, below 0 for a row that is nearer than most; infinite where most rows of the
        class are equally far and this one is farther.
    """
    found = np.zeros(len(labels))
    for label in np.unique(labels):
        own = labels == label
        # In float64, where squares of features below 2**53 cannot overflow.
        away = points[own].astype(np.float64) - np.median(points[own], axis=0)
        lengths = np.sqrt((away**2).sum(axis=1))
        middle = np.median(lengths)
        spread = 1.4826 * np.median(np.abs(lengths - middle))
        beyond = lengths - middle
        # Without a spread, whatever is farther than the median is infinitely so.
        with np.errstate(divide="ignore", invalid="ignore"):
            found[own] = np.where(beyond > 0, beyond / spread, beyond / (spread or 1.0))
    return found
