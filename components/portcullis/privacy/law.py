"""What a mechanism is certified to put out for some cells, to hold samples of it against.

The chances are those of the very whole weights that epsilon is computed from, rounded to floats: precise enough to test
samples by, and never what noise is drawn from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.privacy.mechanism import TOTAL, NoiseTable
from portcullis.privacy.nulls import NullableTable
from portcullis.privacy.response import RandomisedResponse
from portcullis.privacy.unbounded import GREATEST, IntegerNoise

RESIDUES = 16  # the four lowest bits
_PARTS = 32  # of about the same chance, into which the outputs of unbounded noise are put


@dataclass(frozen=True, eq=False)
class Law:
    """How likely a mechanism puts out what.

    Attributes:
        inputs: Cells (k,) that it may be given; those whose outputs differ most are among them.
        chances: How likely each input leads to each place, (k, m) float64 in [0, 1], each row adding up to 1.
        low_chances: The same of the lowest four bits of what comes out, (k, r).
        places: From cells (N,) that came out to the place of each, (N,) int64 in [0, m), or -1 where it is none of the
            declared outputs, to its last bit; and to its lowest bits, (N,) int64 in [0, r).
    """

    inputs: pa.Array
    chances: NDArray[np.float64]
    low_chances: NDArray[np.float64]
    places: Callable[[pa.Array], tuple[NDArray[np.int64], NDArray[np.int64]]]


def table_law(grid: pa.Array, table: NoiseTable, nullable: NullableTable | None) -> Law:
    """Return the law of noise on a grid; of `nullable`, where a cell may be empty.

    Args:
        grid: Every number that can come out, (steps,).
        table: The weights of the noise.
        nullable: The same table, and how likely a number is lost and an empty cell filled.
    """
    tried = sorted({0, table.steps // 2, table.steps - 1})
    rows = [_shares(table.weights_of(point)) for point in tried]
    if nullable is None:
        return _finite(grid, grid.take(pa.array(tried)), rows)
    made, filled = (weight / TOTAL for weight in (nullable.made, nullable.filled))
    drawn = _shares(table.totals) / table.steps
    numbers = [np.append((1 - made) * row, made) for row in rows]
    outputs = pa.concat_arrays([grid, pa.nulls(1, grid.type)])
    inputs = outputs.take(pa.array([*tried, table.steps]))
    return _finite(outputs, inputs, [*numbers, np.append(filled * drawn, 1 - filled)])


def response_law(outputs: pa.Array, response: RandomisedResponse) -> Law:
    """Return the law of randomised response over categories, (k,), the last of which may be the empty cell."""
    tried = [0, response.size - 1]
    rows = [
        _shares([response.same if output == point else response.weight for output in range(response.size)])
        for point in tried
    ]
    return _finite(outputs, outputs.take(pa.array(tried)), rows)


def integer_law(noise: IntegerNoise) -> Law:
    """Return the law of discrete Laplace noise without bounds: its outputs in intervals, and by their lowest bits."""
    tried = sorted({noise.low, (noise.low + noise.high) // 2, noise.high})
    edges = sorted({edge for value in tried for edge in _edges(value, noise.scale)})
    below = np.array([[_below(edge - value, noise.scale) for edge in edges] for value in tried])
    ends = [(_below(-GREATEST - value, noise.scale), 1 - _below(GREATEST - 1 - value, noise.scale)) for value in tried]
    residues = _residues(noise.scale)
    low_chances = [
        np.append(np.roll(residues, value % RESIDUES) * (1 - sum(outer)), outer)
        for value, outer in zip(tried, ends, strict=True)
    ]

    def places(cells: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if cells.type != pa.int64():
            return _none(cells)
        values = pc.fill_null(cells, 0).to_numpy()
        # What was brought back from beyond says nothing by its lowest bits.
        lowest = np.select([values == -GREATEST, values == GREATEST], [RESIDUES, RESIDUES + 1], values % RESIDUES)
        declared = cells.is_valid().to_numpy(zero_copy_only=False) & (np.abs(values) <= GREATEST)
        return np.where(declared, np.searchsorted(edges, values), -1), lowest

    return Law(
        inputs=pa.array(tried, pa.int64()),
        chances=np.diff(below, axis=1, prepend=0.0, append=1.0),
        low_chances=np.array(low_chances),
        places=places,
    )


def _finite(outputs: pa.Array, inputs: pa.Array, rows: Sequence[NDArray[np.float64]]) -> Law:
    chances = np.array(rows)
    lowest = np.arange(len(outputs)) % RESIDUES
    low_chances = np.array([np.bincount(lowest, row, RESIDUES) for row in rows])

    def places(cells: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if cells.type != outputs.type:
            return _none(cells)
        found = pc.index_in(_bits(cells), value_set=_bits(outputs))
        place = pc.fill_null(found, -1).to_numpy().astype(np.int64)
        return place, place % RESIDUES

    return Law(inputs=inputs, chances=chances, low_chances=low_chances, places=places)


def _bits(cells: pa.Array) -> pa.Array:
    # To arrow, 0.0 and -0.0 are equal; to whoever reads a file, they are not.
    return cells.view(pa.int64()) if cells.type == pa.float64() else cells


def _none(cells: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.full(len(cells), -1), np.zeros(len(cells), dtype=np.int64)


def _shares(weights: Sequence[int]) -> NDArray[np.float64]:
    return np.array([weight / TOTAL for weight in weights])


def _below(noise: int, scale: Fraction) -> float:
    """Return the chance that discrete Laplace noise is at most `noise`."""
    ratio = math.exp(-1 / scale)
    tail = math.exp(-(noise + 1 if noise >= 0 else -noise) / scale) / (1 + ratio)
    return 1 - tail if noise >= 0 else tail


def _edges(value: int, scale: Fraction) -> list[int]:
    """Return integers between which noise on a value lies with about the same chance, as the scale allows."""
    found = []
    for part in range(1, _PARTS):
        share = part / _PARTS
        away = round(-math.log(2 * min(share, 1 - share)) * scale)
        found.append(value - away if share < 1 / 2 else value + away)
    return [min(max(edge, 1 - GREATEST), GREATEST - 2) for edge in found]


def _residues(scale: Fraction) -> NDArray[np.float64]:
    """Return the chances that discrete Laplace noise leaves 0 to 15 when divided by 16."""
    places = np.arange(RESIDUES)
    rate = 1 / float(scale)
    both = np.exp(-places * rate) + np.where(places > 0, np.exp((places - RESIDUES) * rate), math.exp(-RESIDUES * rate))
    whole: NDArray[np.float64] = both / both.sum()
    return whole
