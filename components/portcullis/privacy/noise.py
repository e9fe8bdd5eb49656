"""Noise on the declared columns of a data set, and what is said of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import pyarrow as pa

from portcullis.dataset import Dataset, DatasetSpec
from portcullis.errors import DataError
from portcullis.evidence.statement import Figure
from portcullis.privacy.columns import ColumnMechanism, mechanism_of
from portcullis.privacy.handling import chosen_rows, treatments, without
from portcullis.privacy.mechanism import float_up, total_epsilon
from portcullis.privacy.settings import DROP, KEEP, SHUFFLE, CategoryColumn, ColumnNoise, IntegerColumn, NoisePlan
from portcullis.random_bits import RandomBits

MAX_NAMES = 200

CLAIM = (
    "local differential privacy of the noised columns alone, {unit} by {unit}; "
    "the other columns, and any model trained on them, are not private"
)
WHOLE_CLAIM = (
    "local differential privacy of whole rows, {unit} by {unit}: every column is noised or dropped and the rows are "
    "shuffled, so whatever is made of these rows alone is as private"
)
NO_CLAIM = "no column was noised: no differential privacy is claimed"


@dataclass(frozen=True)
class Noised:
    """A table whose declared columns are noisy, and the figures of it.

    Attributes:
        table: The noised and the kept columns, in the order they had; the rows that stay.
        spec: Its description: that of the input without the dropped columns.
        mechanisms: By column, the noise that it got.
        epsilon: What a unit (a row, or a person where contributions are bounded) spends, exact, rounded up.
        figures: `rows`, those that came out; `rows_left_out` where contributions are bounded; `row_order`;
            `columns_noised`; `columns_unnoised` and `unnoised` (their names, shortened), those that were kept without
            noise; `columns_dropped` and `dropped`; `epsilon_<column>`, the exact epsilon of the column's mechanism,
            rounded up; `epsilon_record`, their sum; `epsilon_person`, at most so many times that, where contributions
            are bounded; `delta`, 0; `expected_error_<column>` and `blind_error_<column>`, the mean distance from the
            truth over all inputs alike of a noisy cell and of one answered without a look, in the column's unit or as
            the share of categories; `nulls_made_<column>` and `nulls_filled_<column>`, how likely a number becomes an
            empty cell and the other way round; `low_epsilon`, the columns whose epsilon is below 1; `drowned`, those
            where a single cell says next to nothing (see `ColumnMechanism`); `unit`; `adjacency`; `composition`;
            `mechanism`; `claim`.
    """

    table: pa.Table
    spec: DatasetSpec
    mechanisms: Mapping[str, ColumnMechanism]
    epsilon: float
    figures: Mapping[str, Figure]


def noise_dataset(dataset: Dataset, plan: NoisePlan, *, unsafe_seed: bytes | None = None) -> Noised:
    """Add noise to the declared columns of a data set, each value on its own, and treat the others as declared.

    A noised column's type follows from its declaration alone, whatever it was.

    Args:
        dataset: The data set.
        plan: What gets noise, and what becomes of the rest; no column that gets noise leaves the table as it is, and
            claims nothing.
        unsafe_seed: For tests: whoever knows it can take the noise off again.

    Raises:
        ConfigError: So small an epsilon has no mechanism.
        DataError: A unit would spend more than the budget; a column without noise is not declared; a declared column is
            missing, of another type, sensitive, or has a cell that its declaration leaves no room for; or what the
            model learns from would leave its bounds or classes, or could be empty.
    """
    for name, column in plan.columns.items():
        _require_fit_for_noise(dataset, name, column)
    handled = treatments(dataset.spec, dataset.table.column_names, plan)
    mechanisms = {name: mechanism_of(column) for name, column in plan.columns.items()}
    record = total_epsilon([mechanism.epsilon for mechanism in mechanisms.values()])
    epsilon = float_up(plan.multiplier * sum((Fraction(it.epsilon) for it in mechanisms.values()), Fraction(0)))
    if not epsilon <= plan.budget:
        unit = "a person" if plan.contribution else "a row"
        raise DataError(f"the noise costs {unit} an epsilon of {epsilon:.6g}, above the budget of {plan.budget:g}")
    bits = RandomBits() if unsafe_seed is None else RandomBits.unsafe_fixed_seed(unsafe_seed)
    rows = chosen_rows(dataset.table, plan, bits)
    noised = dataset.table if rows is None else dataset.table.take(pa.array(rows))
    for name, mechanism in mechanisms.items():
        values = mechanism.noise(name, noised.column(name), bits)
        noised = noised.set_column(noised.column_names.index(name), name, values)
    dropped = [name for name, treatment in handled.items() if treatment == DROP]
    noised = noised.drop_columns(dropped)
    figures = _figures(noised, plan, mechanisms, handled, record)
    if plan.contribution:
        figures |= {"rows_left_out": dataset.table.num_rows - noised.num_rows, "epsilon_person": epsilon}
    return Noised(noised, without(dataset.spec, dropped), mechanisms, epsilon, figures)


def _require_fit_for_noise(dataset: Dataset, name: str, column: ColumnNoise) -> None:
    table, spec = dataset.table, dataset.spec
    if name in spec.sensitive:
        raise DataError(f"column {name!r} is sensitive text; drop it, or keep its tokens, with privacy.others")
    if table.column_names.count(name) != 1:
        raise DataError(f"the data has no column {name!r} that could get noise")
    is_label, is_feature = name == spec.label.column, name in spec.features.columns
    if (is_label or is_feature) and not isinstance(column, IntegerColumn) and column.nulls:
        raise DataError(f"the model learns from column {name!r}; its noise may make no empty cells")
    if is_label and not isinstance(column, CategoryColumn):
        raise DataError(f"column {name!r} is the label; its noise needs categories, which are classes")
    if is_label and not set(map(str, column.categories)) <= set(spec.label.classes):  # type: ignore[union-attr]
        raise DataError(f"column {name!r} is the label; only its classes can be categories")
    if is_feature and not _within_features(spec, column):
        raise DataError(f"feature column {name!r} would be noised beyond the bounds of the features")


def _within_features(spec: DatasetSpec, column: ColumnNoise) -> bool:
    if isinstance(column, IntegerColumn):
        return False
    if isinstance(column, CategoryColumn):
        return all(type(it) is int and spec.features.low <= it <= spec.features.high for it in column.categories)
    return spec.features.low <= column.low and column.high <= spec.features.high


def _figures(
    table: pa.Table,
    plan: NoisePlan,
    mechanisms: Mapping[str, ColumnMechanism],
    handled: Mapping[str, str],
    record: float,
) -> dict[str, Figure]:
    kept = [name for name, treatment in handled.items() if treatment == KEEP]
    dropped = [name for name, treatment in handled.items() if treatment == DROP]
    figures: dict[str, Figure] = {
        "rows": table.num_rows,
        "row_order": "shuffled" if plan.rows == SHUFFLE else "as it came",
        "columns_noised": len(mechanisms),
        "columns_unnoised": len(kept),
        "unnoised": _shortened(kept),
        "columns_dropped": len(dropped),
        "dropped": _shortened(dropped),
        "epsilon_record": record,
        "delta": 0,
    }
    for name, mechanism in mechanisms.items():
        figures[f"epsilon_{name}"] = mechanism.epsilon
        figures[f"expected_error_{name}"] = mechanism.expected_error
        figures[f"blind_error_{name}"] = mechanism.blind_error
        figures |= {f"nulls_{what}_{name}": weight for what, weight in mechanism.nulls.items()}
    return figures | {
        "low_epsilon": _shortened([name for name, column in plan.columns.items() if column.epsilon < 1]),
        "drowned": _shortened([name for name, mechanism in mechanisms.items() if mechanism.drowned]),
        "mechanism": ", ".join(sorted({mechanism.name for mechanism in mechanisms.values()})) or "none",
        **_said(plan, kept),
    }


def _said(plan: NoisePlan, kept: Sequence[str]) -> dict[str, Figure]:
    """Return in words what the epsilons are about."""
    if not plan.columns:
        return {"unit": "none", "adjacency": "none", "composition": "none", "claim": NO_CLAIM}
    unit, rows, which, times = "row", "one row", "one row", ""
    if plan.contribution:
        column, at_most = plan.contribution.column, plan.contribution.at_most
        unit, rows = "person", f"one person, of at most {at_most} rows with one {column}"
        which, times = f"all rows with one {column}", f"; that of a person is {at_most} times as much"
    whole = not kept and plan.rows == SHUFFLE
    return {
        "unit": rows,
        "adjacency": f"the noised columns of {which} hold any other values; all else is equal, the rows' number too",
        "composition": f"basic: the epsilon of a row is the sum over its noised columns{times}",
        "claim": (WHOLE_CLAIM if whole else CLAIM).format(unit=unit),
    }


def _shortened(names: Sequence[str]) -> str:
    """Return names in one line of at most about `MAX_NAMES` characters, and how many are left out."""
    shown: list[str] = []
    for name in names:
        if shown and len(", ".join([*shown, name])) > MAX_NAMES:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown)
