"""Noise on the declared columns of a data set, and what is said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from portcullis.dataset import Dataset, DatasetSpec
from portcullis.errors import DataError
from portcullis.evidence.statement import Figure
from portcullis.privacy.mechanism import NoiseTable, float_up, laplace_table, total_epsilon
from portcullis.privacy.settings import NoisedColumn

MAX_NAMES = 200

CLAIM = (
    "local differential privacy of the noised columns alone, row by row; "
    "the other columns, and any model trained on them, are not private"
)
NO_CLAIM = "no column was noised: no differential privacy is claimed"


@dataclass(frozen=True)
class Noised:
    """A table whose declared columns are noisy, and the figures of it.

    Attributes:
        table: As many rows as before, in the same order; only the declared columns differ.
        figures: `rows`; `columns_noised`; `columns_unnoised`; `unnoised` (their names, shortened); `epsilon_<column>`,
            the exact epsilon of the column's table, rounded up; `epsilon_record`, their sum; `delta`, 0;
            `expected_error_<column>`, the mean distance of a noisy value from its grid point over all grid points
            alike, in the column's unit; `drowned`, the columns where that is no smaller than the error of always
            answering the middle; `unit`; `mechanism`; `claim`.
    """

    table: pa.Table
    figures: Mapping[str, Figure]


def noise_dataset(
    dataset: Dataset, columns: Mapping[str, NoisedColumn], *, budget: float, unsafe_seed: bytes | None = None
) -> Noised:
    """Add noise to the declared columns of a data set, each value on its own.

    A noised column is int64 when all its grid points are whole (`NoisedColumn.whole`), else float64, whatever it was.

    Args:
        dataset: The data set.
        columns: Column to its public bounds, grid and epsilon; none leaves the table as it is, and claims nothing.
        budget: Most that the epsilons of one row may add up to.
        unsafe_seed: For tests: whoever knows it can take the noise off again.

    Raises:
        ConfigError: So small an epsilon has no table with so many steps.
        DataError: The epsilons of one row add up to more than `budget`; a declared column is missing, not numeric, the
            label or sensitive; it has an empty cell, NaN or an infinity; or it is a feature and its bounds reach beyond
            those of the features.
    """
    for name, column in columns.items():
        _require_fit_for_noise(dataset, name, column)
    tables = {name: laplace_table(column.epsilon, column.steps) for name, column in columns.items()}
    epsilon = total_epsilon([table.epsilon for table in tables.values()])
    if not epsilon <= budget:
        raise DataError(f"the noise costs a row an epsilon of {epsilon:.6g}, above the budget of {budget:g}")
    noised = dataset.table
    for position, (name, column) in enumerate(columns.items()):
        seed = None if unsafe_seed is None else unsafe_seed + position.to_bytes(8)
        values = _noisy(dataset.table, name, column, tables[name], unsafe_seed=seed)
        noised = noised.set_column(noised.column_names.index(name), name, values)
    return Noised(noised, _figures(noised, columns, tables, epsilon))


def _require_fit_for_noise(dataset: Dataset, name: str, column: NoisedColumn) -> None:
    table, spec = dataset.table, dataset.spec
    if name == spec.label.column:
        raise DataError(f"column {name!r} is the label, a category; this noise is for numbers")
    if name in spec.sensitive:
        raise DataError(f"column {name!r} is sensitive text; this noise is for numbers")
    if table.column_names.count(name) != 1:
        raise DataError(f"the data has no column {name!r} that could get noise")
    kind = table.schema.field(name).type
    if kind not in (pa.int64(), pa.float64()):
        raise DataError(f"column {name!r} is {kind}; this noise is for int64 and float64")
    if table.column(name).null_count:
        raise DataError(f"column {name!r} has {table.column(name).null_count} empty cells; fill them before the noise")
    if name in spec.features.columns and not _within_features(spec, column):
        raise DataError(f"feature column {name!r} would be noised beyond the bounds of the features")


def _within_features(spec: DatasetSpec, column: NoisedColumn) -> bool:
    return spec.features.low <= column.low and column.high <= spec.features.high


def _noisy(
    table: pa.Table, name: str, column: NoisedColumn, noise: NoiseTable, *, unsafe_seed: bytes | None
) -> pa.Array:
    values: NDArray[np.float64] = table.column(name).to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values))) + 1
        raise DataError(f"column {name!r}, row {row}: not a finite number")
    scaled = (np.clip(values, column.low, column.high) - column.low) / (column.high - column.low)
    points = np.rint(scaled * (column.steps - 1)).astype(np.int64)
    grid = np.linspace(column.low, column.high, column.steps)
    # A table of the grid, so that as many different values come out as there are grid points, whatever went in. Its
    # type follows from the declaration alone: the column's own would tell whether all its values were whole.
    values_out = grid.astype(np.int64) if column.whole else grid
    return pa.array(values_out[noise.add_noise(points, unsafe_seed=unsafe_seed)])


def _figures(
    table: pa.Table, columns: Mapping[str, NoisedColumn], tables: Mapping[str, NoiseTable], epsilon: float
) -> dict[str, Figure]:
    unnoised = [name for name in table.column_names if name not in columns]
    figures: dict[str, Figure] = {
        "rows": table.num_rows,
        "columns_noised": len(columns),
        "columns_unnoised": len(unnoised),
        "unnoised": _shortened(unnoised),
        "epsilon_record": epsilon,
        "delta": 0,
    }
    for name, column in columns.items():
        figures[f"epsilon_{name}"] = tables[name].epsilon
        figures[f"expected_error_{name}"] = float_up(tables[name].expected_error * Fraction(column.width))
    return figures | {
        "drowned": _shortened([name for name, table in tables.items() if _drowned(table)]),
        "unit": "row, per attribute",
        "mechanism": "discrete Laplace on a certified table" if columns else "none",
        "claim": CLAIM if columns else NO_CLAIM,
    }


def _drowned(noise: NoiseTable) -> bool:
    middle = Fraction(noise.steps**2 // 4, noise.steps)  # the mean distance of the grid points from the middle one
    return noise.expected_error >= middle


def _shortened(names: Sequence[str]) -> str:
    """Return names in one line of at most about `MAX_NAMES` characters, and how many are left out."""
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > MAX_NAMES:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)
