"""From a column's cells to what a mechanism takes, and back: what is noised, and what is refused.

What comes out is of a type that follows from the declaration alone: the column's own would tell whether all its values
were whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.errors import DataError
from portcullis.privacy.law import Law, integer_law, response_law, table_law
from portcullis.privacy.mechanism import TOTAL, NoiseTable, float_up, laplace_table
from portcullis.privacy.nulls import NullableTable, nullable_table
from portcullis.privacy.response import RandomisedResponse, randomised_response
from portcullis.privacy.settings import CategoryColumn, ColumnNoise, IntegerColumn, NoisedColumn
from portcullis.privacy.unbounded import IntegerNoise, integer_noise
from portcullis.random_bits import RandomBits


@dataclass(frozen=True)
class ColumnMechanism:
    """The noise of one column.

    Attributes:
        name: What the mechanism is called.
        epsilon: The exact epsilon of one cell, rounded up.
        expected_error: How far from the truth a cell is on average over all inputs alike: in the column's unit; of a
            category, how likely it is another one.
        blind_error: The same of answering without a look: the middle of the bounds, or a category drawn uniformly.
        drowned: Whether a single noisy cell says next to nothing: it is no nearer to the truth than the middle of the
            bounds, or more likely another category than the right one.
        noise: From a column's cells, to be refused under the given name where the declaration leaves no room for one,
            to noisy cells.
        law: How likely it is to put out what, which `trial` holds samples against.
        nulls: How likely a number becomes an empty cell (`made`), and an empty cell a number (`filled`); nothing where
            that cannot happen.
    """

    name: str
    epsilon: float
    expected_error: float
    blind_error: float
    drowned: bool
    noise: Callable[[str, pa.ChunkedArray, RandomBits], pa.Array]
    law: Law
    nulls: Mapping[str, float] = field(default_factory=dict)


def mechanism_of(column: ColumnNoise) -> ColumnMechanism:
    """Build the noise that a declaration asks for.

    Raises:
        ConfigError: So small an epsilon has no table, weights or scale.
    """
    if isinstance(column, CategoryColumn):
        return _categories(column, randomised_response(column.epsilon, len(column.categories) + bool(column.nulls)))
    if isinstance(column, IntegerColumn):
        return _integers(integer_noise(column.low, column.high, column.epsilon))
    if column.nulls:
        nullable = nullable_table(column.epsilon, column.steps)
        return _grid(column, nullable.table, nullable)
    return _grid(column, laplace_table(column.epsilon, column.steps), None)


def _grid(column: NoisedColumn, table: NoiseTable, nullable: NullableTable | None) -> ColumnMechanism:
    width, middle = Fraction(column.width), _from_middle(column.steps)
    # A table of the grid, so that as many different values come out as there are grid points, whatever went in.
    grid = np.linspace(column.low, column.high, column.steps)
    values_out = grid.astype(np.int64) if column.whole else grid

    def noise(name: str, cells: pa.ChunkedArray, bits: RandomBits) -> pa.Array:
        values, empty = _numbers(name, cells, nulls=nullable is not None)
        scaled = (np.clip(values, column.low, column.high) - column.low) / (column.high - column.low)
        points = np.rint(scaled * (column.steps - 1)).astype(np.int64)
        if nullable is None:
            return pa.array(values_out[table.add_noise(points, bits)])
        noisy, empty = nullable.add_noise(points, empty, bits)
        return pa.array(values_out[noisy], mask=empty)

    weights = {"made": nullable.made, "filled": nullable.filled} if nullable else {}
    return ColumnMechanism(
        name="discrete Laplace on a certified table",
        epsilon=(nullable or table).epsilon,
        expected_error=float_up(table.expected_error * width),
        blind_error=float_up(middle * width),
        drowned=table.expected_error >= middle,
        noise=noise,
        law=table_law(pa.array(values_out), table, nullable),
        nulls={name: float_up(Fraction(weight, TOTAL)) for name, weight in weights.items()},
    )


def _integers(integer: IntegerNoise) -> ColumnMechanism:
    middle = float(_from_middle(integer.high - integer.low + 1))

    def noise(name: str, cells: pa.ChunkedArray, bits: RandomBits) -> pa.Array:
        values, _ = _numbers(name, cells, nulls=False)
        bounded = np.rint(np.clip(values, integer.low, integer.high)).astype(np.int64)
        return pa.array(integer.add_noise(bounded, bits))

    return ColumnMechanism(
        name="discrete Laplace without bounds",
        epsilon=integer.epsilon,
        expected_error=integer.expected_error,
        blind_error=middle,
        drowned=integer.expected_error >= middle,
        noise=noise,
        law=integer_law(integer),
    )


def _categories(column: CategoryColumn, response: RandomisedResponse) -> ColumnMechanism:
    kind = pa.type_for_alias(column.kind)
    domain = pa.array(column.categories, kind)
    outputs = pa.concat_arrays([domain, pa.nulls(1, kind)]) if column.nulls else domain

    def noise(name: str, cells: pa.ChunkedArray, bits: RandomBits) -> pa.Array:
        if cells.type != kind:
            raise DataError(f"column {name!r} is {cells.type}, but its categories are {kind}")
        _refuse_empty(name, cells, nulls=bool(column.nulls))
        found = pc.index_in(cells, value_set=domain)
        unknown = pc.and_(pc.is_null(found), pc.is_valid(cells))
        if column.other is not None:
            found = pc.if_else(unknown, pa.scalar(column.categories.index(column.other), pa.int32()), found)
        elif pc.any(unknown).as_py():
            row = int(np.argmax(unknown.to_numpy())) + 1
            raise DataError(f"column {name!r}, row {row}: not one of the {len(domain)} categories; add it, or other")
        indices = pc.fill_null(found, len(domain)).to_numpy().astype(np.int64)
        return outputs.take(pa.array(response.respond(indices, bits)))

    return ColumnMechanism(
        name="k-ary randomised response",
        epsilon=response.epsilon,
        expected_error=float_up(response.expected_error),
        blind_error=float_up(1 - Fraction(1, response.size)),
        drowned=response.expected_error >= Fraction(1, 2),
        noise=noise,
        law=response_law(outputs, response),
    )


def _from_middle(points: int) -> Fraction:
    """Return the mean distance of equally spaced points from the middle one, in steps."""
    return Fraction(points**2 // 4, points)


def _numbers(name: str, cells: pa.ChunkedArray, *, nulls: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a column's numbers, (N,) float64 and 0 where a cell is empty, and which cells are, (N,) bool."""
    if cells.type not in (pa.int64(), pa.float64()):
        raise DataError(f"column {name!r} is {cells.type}; this noise is for int64 and float64")
    _refuse_empty(name, cells, nulls=nulls)
    values: NDArray[np.float64] = pc.fill_null(cells, 0).to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values))) + 1
        raise DataError(f"column {name!r}, row {row}: not a finite number")
    return values, cells.is_null().to_numpy()


def _refuse_empty(name: str, cells: pa.ChunkedArray, *, nulls: bool) -> None:
    if cells.null_count and not nulls:
        raise DataError(f"column {name!r} has {cells.null_count} empty cells; fill them, or declare nulls: category")
