"""Weights without their scale: what rescaled neurons leave of a tensor, so that they change neither mark nor match."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALTERNATIONS = 4
# A row or column of fewer weights than this is not scaled: too little would be left of it but signs.
_MIN_LINE = 8

Scales = NDArray[np.floating[Any]]


def balance(matrix: NDArray[Any]) -> tuple[NDArray[np.float32], Scales, Scales]:
    """Scale the rows and columns of a matrix in turn to a root mean square of one.

    Args:
        matrix: Finite weights (rows, columns), float32 or float64.

    Returns:
        The balanced matrix, and the scales that were taken from its rows and columns: their product gives it back.
    """
    scale_rows, scale_columns = matrix.shape[1] >= _MIN_LINE, matrix.shape[0] >= _MIN_LINE
    # By the largest first, so that no square overflows or vanishes.
    rows = or_one(np.abs(matrix).max(axis=1)) if scale_rows else np.ones(matrix.shape[0], matrix.dtype)
    matrix = matrix / rows[:, None]
    columns = or_one(np.abs(matrix).max(axis=0)) if scale_columns else np.ones(matrix.shape[1], matrix.dtype)
    matrix = (matrix / columns).astype(np.float32)
    squares = matrix * matrix
    across, down = np.ones(len(rows), np.float32), np.ones(len(columns), np.float32)
    for _ in range(_ALTERNATIONS):
        if scale_rows:
            across = or_one(np.einsum("ij,j->i", squares, 1 / down) / np.float32(len(columns)))
        if scale_columns:
            down = or_one(np.einsum("ij,i->j", squares, 1 / across) / np.float32(len(rows)))
    across, down = np.sqrt(across), np.sqrt(down)
    matrix /= across[:, None]
    matrix /= down
    return matrix, rows * across, columns * down


def wide(weights: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as a matrix, first axis by all others, in the type that is computed with."""
    return weights.astype(np.promote_types(weights.dtype, np.float32), copy=False).reshape(len(weights), -1)


def or_one(scale: NDArray[Any]) -> NDArray[Any]:
    """Return a scale that can be divided by: a line of zeros has none."""
    return np.where(scale > 0, scale, scale.dtype.type(1))
