"""What is shown of a training: how loss and accuracy went, epoch by epoch, and which checkpoint was kept."""

import html
from collections.abc import Mapping, Sequence

from portcullis.digest import parse_canonical_json
from portcullis.errors import DataError
from portcullis.evidence.statement import Figure, Statement
from portcullis.report import page, paragraph, section, table

_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 180, 48, 12
_LINES = (("robust_accuracy", "var(--bar)"), ("accuracy", "var(--ink)"))
_SAID = (
    "Of the rows held out: the thick line is accuracy under PGD with 10 steps, the thin one accuracy without an "
    "attack. The dashed line marks the epoch whose weights were kept."
)


def training_page(statement: Statement) -> str:
    """Return the page of the step `train`, for KFP's user interface."""
    return page(
        "Training",
        [
            *training_section(statement),
            section("Parameters"),
            table(("parameter", "value"), statement.parameters.items()),
            paragraph(f"Run {statement.nonce}.", kind="dim"),
        ],
    )


def training_section(statement: Statement) -> list[str]:
    """Return the figures of a step of the stage `train`, and its curves where rows were held out.

    Raises:
        DataError: Its history is none.
    """
    figures = {name: value for name, value in statement.figures.items() if name != "history"}
    history = _history(statement.figures)
    stopped = (
        "Training collapsed: the model withstood its own attack and no other. It was stopped, and the best checkpoint "
        "before that was kept."
    )
    return [
        *([paragraph(stopped, kind="FAILED")] if figures.get("stop") == "collapsed" else []),
        table((statement.step, "figure"), figures.items()),
        *([_curves(history, float(figures["best_epoch"])), paragraph(_SAID, kind="dim")] if history else []),
        *(
            [table(("epoch", "loss", "accuracy", "robust accuracy"), [tuple(it.values()) for it in history])]
            if history
            else []
        ),
    ]


def _history(figures: Mapping[str, Figure]) -> Sequence[Mapping[str, float]]:
    if "history" not in figures:
        return []
    names = ("epoch", "loss", "accuracy", "robust_accuracy")
    found = parse_canonical_json(str(figures["history"]).encode())
    sound = isinstance(found, list) and all(
        isinstance(it, dict) and set(it) == set(names) and all(type(it[name]) in (int, float) for name in names)
        for it in found
    )
    if not sound or not isinstance(figures.get("best_epoch"), int):
        raise DataError("a training's history is none")
    return [{name: it[name] for name in names} for it in found]


def _curves(history: Sequence[Mapping[str, float]], chosen: float) -> str:
    last = max(it["epoch"] for it in history)
    whole = _LEFT + _WIDTH + 40
    parts = [f'<svg viewBox="0 0 {whole} {_TOP + _HEIGHT + 40}" role="img" style="width:{whole}px">']
    for share in (0.0, 0.5, 1.0):
        y = _TOP + (1 - share) * _HEIGHT
        parts.append(f'<path d="M{_LEFT} {y:.1f} h{_WIDTH}" stroke="var(--line)"/>')
        parts.append(f'<text x="0" y="{y + 5:.1f}">{share:.1f}</text>')
    for name, colour in _LINES:
        places = [
            (_LEFT + it["epoch"] / last * _WIDTH, _TOP + (1 - min(max(it[name], 0.0), 1.0)) * _HEIGHT) for it in history
        ]
        drawn = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
        width = 2 if name == "robust_accuracy" else 1
        title = f"<title>{html.escape(name.replace('_', ' '))}</title>"
        line = f'<path d="{drawn}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        parts.append(f"<g>{title}{line}</g>")
    x = _LEFT + chosen / last * _WIDTH
    parts.append(f'<path d="M{x:.1f} {_TOP} v{_HEIGHT}" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP + _HEIGHT + 18}">0</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH - 8}" y="{_TOP + _HEIGHT + 18}">{last:g}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH // 2 - 20}" y="{_TOP + _HEIGHT + 34}">epochs</text>')
    return f'<div class="scroll">{"".join(parts)}</svg></div>'
