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
}
_COLUMNS = ("column", "noise", "epsilon", "mean error of a cell", "without a look", "")


def noise_section(statement: Statement) -> list[str]:
    """Return what a statement of `dp_noise` says, as parts of a page."""
    figures = statement.figures
    facts = [(shown, figures[name]) for name, shown in _SHOWN.items() if figures.get(name) not in (None, "")]
    plan = NoisePlan.parse(statement.parameters)
    parts = [f"<h3>{html.escape(statement.step)}</h3>", table(("what", "value"), facts)]
    if not plan.columns:
        return parts
    kept = {
        name: max(0.0, 1 - float(figures[f"expected_error_{name}"]) / float(figures[f"blind_error_{name}"]))
        for name in plan.columns
    }
    return [
        *parts,
        table(_COLUMNS, _rows(statement, plan)),
        paragraph(
            "What a single noisy cell still tells: 1 less its mean error, as a share of the error of answering "
            "without a look. Sums over many rows tell more.",
            kind="dim",
        ),
        bar_chart(kept, {}),
        *(
            paragraph(f"Drowned in noise, cell by cell: {figures['drowned']}.", kind="FAILED")
            for _ in range(bool(figures.get("drowned")))
        ),
        *(
            paragraph(f"Columns with an epsilon below 1, where noise rules: {figures['low_epsilon']}.", kind="dim")
            for _ in range(bool(figures.get("low_epsilon")))
        ),
    ]


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
        error, blind = (statement.figures[f"{kind}_{name}"] for kind in ("expected_error", "blind_error"))
        wrong = "share of cells that are wrong" if isinstance(column, CategoryColumn) else ""
        yield name, _described(column), statement.figures[f"epsilon_{name}"], error, blind, wrong


def _described(column: ColumnNoise) -> str:
    if isinstance(column, CategoryColumn):
        what = f"{len(column.categories)} categories"
    else:
        what = f"{column.low:g} to {column.high:g}"
        what += ", whole numbers, unbounded noise" if isinstance(column, IntegerColumn) else f", {column.steps} steps"
    empty = "" if isinstance(column, IntegerColumn) or not column.nulls else ", or empty"
    return what + empty
