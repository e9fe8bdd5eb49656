"""What the noise costs and what it leaves, as people look at it; made of what the signed statement says."""

import html
from collections.abc import Iterator

from portcullis.evidence.statement import Statement, format_time
from portcullis.privacy.settings import CategoryColumn, ColumnNoise, IntegerColumn, NoisePlan
from portcullis.report import bar_chart, page, paragraph, section, table

_SHOWN = {
    "claim": "claim",
    "unit": "unit",
    "adjacency": "neighbouring data",
    "composition": "composition",
    "mechanism": "mechanism",
    "epsilon_record": "epsilon of a row",
    "epsilon_person": "epsilon of a person",
    "delta": "delta",
    "rows": "rows",
    "rows_left_out": "rows left out",
    "row_order": "order of the rows",
    "unnoised": "kept without noise",
    "dropped": "dropped",
    "trial_cells": "made-up cells that the noise was tried on",
    "undeclared_outputs": "outputs that are not declared, to the last bit",
    "sampler_p_value": "p-value of the outputs",
    "low_bits_p_value": "p-value of their low bits",
    "epsilon_excess": "lower bound of epsilon above the stated one",
}
_COLUMNS = ("column", "noise", "epsilon", "error of a cell", "error without a look", "where error is")
_ERRORS = ("expected_error", "blind_error")
_BARS = (
    "What a single noisy cell still tells: 1 less its error, as a share of the error without a look (the middle of the "
    "bounds, or a category drawn at random). Sums over many rows tell more."
)


def noise_section(statement: Statement) -> list[str]:
    """Return what a statement of `dp_noise` says, as parts of a page."""
    figures = statement.figures
    facts = [(shown, figures[name]) for name, shown in _SHOWN.items() if figures.get(name) not in (None, "")]
    plan = NoisePlan.of_statement(statement.parameters)
    parts = [f"<h3>{html.escape(statement.step)}</h3>", table(("what", "value"), facts)]
    if plan.columns:
        parts += [
            table(_COLUMNS, _rows(statement, plan)),
            bar_chart(_left(statement, plan), {}),
            paragraph(_BARS, kind="dim"),
        ]
    if figures.get("drowned"):
        parts.append(paragraph(f"A single cell says next to nothing in: {figures['drowned']}.", kind="FAILED"))
    if figures.get("low_epsilon"):
        parts.append(paragraph(f"An epsilon below 1, where noise outweighs most signals: {figures['low_epsilon']}."))
    return parts


def _left(statement: Statement, plan: NoisePlan) -> dict[str, float]:
    """Return for each column what a cell still tells, in 0..1."""
    errors = {name: [float(statement.figures[f"{kind}_{name}"]) for kind in _ERRORS] for name in plan.columns}
    return {name: max(0.0, 1 - expected / blind) for name, (expected, blind) in errors.items()}


def noise_page(statement: Statement) -> str:
    """Return the page of one step, for KFP's user interface."""
    return page(
        "Differential privacy",
        [
            *noise_section(statement),
            section("Parameters"),
            table(("parameter", "value"), statement.parameters.items()),
            paragraph(f"Run {statement.nonce}, at {format_time(statement.finished)}.", kind="dim"),
        ],
    )


def _rows(statement: Statement, plan: NoisePlan) -> Iterator[tuple[object, ...]]:
    for name, column in plan.columns.items():
        figures = (statement.figures[f"{kind}_{name}"] for kind in ("epsilon", *_ERRORS))
        unit = "share of cells that are wrong" if isinstance(column, CategoryColumn) else "mean distance"
        yield name, _described(column), *figures, unit


def _described(column: ColumnNoise) -> str:
    if isinstance(column, CategoryColumn):
        what = f"{len(column.categories)} categories"
    else:
        what = f"{column.low:g} to {column.high:g}"
        what += ", whole numbers, unbounded noise" if isinstance(column, IntegerColumn) else f", {column.steps} steps"
    empty = "" if isinstance(column, IntegerColumn) or not column.nulls else ", or empty"
    return what + empty
