"""What a report says of a private training: its certificate in words, and accuracy beside epsilon."""

import html
import json
from collections.abc import Sequence
from importlib import resources

from portcullis.evidence.statement import Statement
from portcullis.report import paragraph, table

_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 180, 48, 12
_MOST = 10.0  # epsilon at the right end
_WORDS = ("claim", "uncovered", "mechanism", "noise", "unit", "adjacency", "sampling", "utility")


def certificate_section(statement: Statement, accuracy: float | None) -> list[str]:
    """Return the certificate of a step of the stage `dp_train`, and how its accuracy compares with the reference's.

    Args:
        statement: Of that step.
        accuracy: On the test rows, as a gate measured it; None where none did.
    """
    figures = statement.figures
    drowned = str(figures.get("utility", "")).startswith("the noise drowns")
    numbers = [(name, value) for name, value in figures.items() if not isinstance(value, str)]
    words = [(name, figures[name]) for name in _WORDS if name in figures]
    warning = "The noise drowns the signal: take more rows, fewer weights, or a larger epsilon."
    return [
        *([paragraph(warning, kind="FAILED")] if drowned else []),
        table((statement.step, "certificate"), [*words, *numbers]),
        utility_curve(float(figures.get("epsilon", 0)), accuracy),
    ]


def utility_curve(epsilon: float, accuracy: float | None) -> str:
    """Draw accuracy against epsilon as benchmarks/dp_training.py measured it on the reference data, and one's own."""
    text = resources.files("portcullis.dp_training").joinpath("reference-curve.json").read_text("utf-8")
    curve = json.loads(text)
    points = [(float(it["epsilon"]), float(it["accuracy"])) for it in curve["points"]]
    parts = [
        f'<svg viewBox="0 0 {_WIDTH + _LEFT + 20} {_HEIGHT + 40}" role="img" style="width:{_WIDTH + _LEFT + 20}px">'
    ]
    for share in (0.0, 0.5, 1.0):
        _, y = _place(0, share)
        parts.append(f'<path d="M{_LEFT} {y:.1f} h{_WIDTH}" stroke="var(--line)"/>')
        parts.append(f'<text x="0" y="{y + 5:.1f}">{share:.1f}</text>')
    for mark in (1, 3, 8):
        x, y = _place(mark, 0)
        parts.append(f'<text x="{x - 4:.1f}" y="{y + 20:.1f}">{mark}</text>')
    parts.append(f'<path d="{_path(points)}" fill="none" stroke="var(--bar)" stroke-width="2"/>')
    _, y = _place(0, float(curve["not_private"]))
    parts.append(f'<path d="M{_LEFT} {y:.1f} h{_WIDTH}" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    if accuracy is not None:
        x, y = _place(min(epsilon, _MOST), min(max(accuracy, 0.0), 1.0))
        title = html.escape(f"this run: epsilon {epsilon:.3g}, accuracy {accuracy:.3f}")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="var(--bad)"><title>{title}</title></circle>')
    caption = (
        f"Accuracy against epsilon: the line is what {curve['data']} gave, the dashed one adversarial "
        "training without privacy; the dot is this run, of whatever data."
    )
    return f'<div class="scroll">{"".join(parts)}</svg></div>{paragraph(caption, kind="dim")}'


def _place(epsilon: float, share: float) -> tuple[float, float]:
    return _LEFT + epsilon / _MOST * _WIDTH, _TOP + (1 - share) * _HEIGHT


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(
        f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(_place(*it) for it in points)
    )
