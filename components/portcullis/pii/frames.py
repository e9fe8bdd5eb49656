"""Masking in a notebook or a script: a pandas data frame or a pyarrow table in, one of the same kind out.

    from portcullis.pii.frames import mask_frame
    masked, report = mask_frame(frame, MaskingPlan(IN_TEXT, {"name": "token"}), key=key)
    report.to_html()

Nothing is signed here; in a pipeline the components do the same and leave evidence.
"""

import sys
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from portcullis.errors import DataError, GateFailedError, UsageError
from portcullis.pii.entities import IN_TEXT
from portcullis.pii.mask import mask_table
from portcullis.pii.page import PiiReport
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import search_residual

MAX_INDEX = 10**8
# Every identifier that a text can show becomes a token.
DEFAULT_PLAN = MaskingPlan(IN_TEXT, {})  # type: ignore[arg-type]  # names become their defaults


def mask_frame(frame: Any, plan: MaskingPlan = DEFAULT_PLAN, *, key: bytes) -> tuple[Any, PiiReport]:
    """Mask a table, and search what comes out of it again, another way.

    Args:
        frame: A pandas DataFrame or a pyarrow Table of at least one row. A data frame's index is kept without being
            searched, so it has no name, and whole numbers below 100,000,000: no identifier is so short. Columns that
            are not masked keep their type; categories are masked as the text they are.
        plan: What to mask.
        key: The masking key, 32 secret bytes; whoever has them can test guesses against tokens.

    Returns:
        The masked table, of the same kind, and a report without any value.

    Raises:
        DataError: As `mask_table`; or a data frame has columns without a name of text, another index, or cells of
            several types in one column.
        GateFailedError: The second search still finds something; nothing is returned.
        KeyMaterialError: The key is not 32 bytes.
        UsageError: The frame is neither, or the plan none.
    """
    _require_plan(plan)
    table, done = mask_table(_table(frame), plan, key=key)
    report = _judged(table, plan, done.counts, done.actions)
    if not report.passed:
        raise GateFailedError(f"{report.reason}; say in the plan what becomes of it")
    return (table if isinstance(frame, pa.Table) else _like(frame, table, done.actions)), report


def check_frame(frame: Any, plan: MaskingPlan = DEFAULT_PLAN) -> PiiReport:
    """Judge a table by the bounds of the reference policy: whether identifiers are left that the plan looks for.

    Args:
        frame: As for `mask_frame`.
        plan: By which it was masked.

    Raises:
        DataError: As `mask_frame`, of the table alone.
        UsageError: As `mask_frame`.
    """
    _require_plan(plan)
    return _judged(_table(frame), plan, {}, {})


def _require_plan(plan: object) -> None:
    if not isinstance(plan, MaskingPlan):
        raise UsageError(f"plan is a MaskingPlan, not {type(plan).__name__}; MaskingPlan.parse reads a mapping")


def _judged(
    table: pa.Table, plan: MaskingPlan, masked: Mapping[str, Mapping[str, int]], actions: Mapping[str, Any]
) -> PiiReport:
    return PiiReport.judged(search_residual(table.schema, [table], plan), masked, actions)


def _table(frame: Any) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    pandas = sys.modules.get("pandas")  # whoever has a data frame has loaded it
    if pandas is None or not isinstance(frame, pandas.DataFrame):
        raise UsageError(f"a frame is a pandas DataFrame or a pyarrow Table, not {type(frame).__name__}")
    if not all(isinstance(name, str) for name in frame.columns):
        raise DataError("a data frame's columns must be named by text; rename them")
    if not _is_plain(frame.index):
        raise DataError(
            "a data frame's index is not searched, so it must be without a name and of whole numbers below "
            f"{MAX_INDEX:,}; call reset_index()"
        )
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise DataError("a column holds cells of several types, or none that a table has; make it text") from error
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _is_plain(index: Any) -> bool:
    """Tell whether an index can hold no identifier: the shortest that is a bare number has nine digits."""
    if index.nlevels != 1 or index.name is not None or index.dtype.kind not in "iu":
        return False
    return not len(index) or bool(index.min() >= 0 and index.max() < MAX_INDEX)


def _like(frame: Any, table: pa.Table, actions: Mapping[str, Any]) -> Any:
    """Return the masked table as a data frame with the index and, where nothing was masked, the columns of another."""
    masked = table.to_pandas()
    masked.index = frame.index
    for name in masked.columns:
        if actions[name] == "keep":
            masked[name] = frame[name]
        elif frame[name].dtype == "category":
            masked[name] = masked[name].astype("category")
    return masked
