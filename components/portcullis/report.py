"""HTML that people look at: one self-contained page, no script, nothing fetched, every value escaped.

A page repeats what signed evidence says; it is never evidence itself.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from portcullis.digest import is_digest
from portcullis.evidence.policy import StepRule
from portcullis.evidence.statement import Check, Figure, Statement, format_time

Counts = Mapping[str, Mapping[str, int]]
Pixels = Sequence[Sequence[tuple[float, float, float]]]
LARGEST_SIDE = 32

_STYLE = resources.files("portcullis").joinpath("report.css").read_text("utf-8")


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole HTML document. `title` is text; `body` is HTML made by this module's functions."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def section(title: str) -> str:
    """Return a heading."""
    return f"<h2>{html.escape(title)}</h2>"


def paragraph(text: str, *, kind: str = "") -> str:
    """Return a paragraph of text; `kind` is a class of the style sheet."""
    return f'<p class="{html.escape(kind)}">{html.escape(text)}</p>'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a cell that reads PASSED or FAILED is coloured, and a digest may be broken anywhere."""

    def cell(value: object) -> str:
        text = html.escape(plain(value))
        kind = text if text in ("PASSED", "FAILED") else "digest" if is_digest(value) else ""
        return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bar_chart(values: Mapping[str, float], lows: Mapping[str, float]) -> str:
    """Draw shares (0..1) as horizontal bars in SVG; a bar that falls short of its line in `lows` is coloured."""
    row, label, width = 26, 200, 360
    whole = label + width + 60
    parts = [f'<svg viewBox="0 0 {whole} {row * len(values)}" role="img" style="width:{whole}px">']
    for index, (name, value) in enumerate(values.items()):
        y = index * row + 3
        low = lows.get(name)
        colour = "var(--bad)" if low is not None and not value >= low else "var(--bar)"
        share = min(max(value, 0.0), 1.0)
        parts.append(f'<text x="0" y="{y + 15}">{html.escape(name)}</text>')
        parts.append(f'<rect x="{label}" y="{y}" width="{share * width:.1f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{label + width + 10}" y="{y + 15}">{value:.3f}</text>')
        if low is not None:
            x = label + low * width
            parts.append(f'<path d="M{x:.1f} {y - 3} v{row}" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def line_chart(points: Mapping[float, float], *, across: str, marked: float) -> str:
    """Draw shares (0..1) by a number above or equal to 0 as a line in SVG, with a dashed line at `marked`."""
    width, height, left, top = 420, 160, 40, 10
    most = max(points)
    places = [(left + x / most * width, top + (1 - points[x]) * height) for x in sorted(points)]
    drawn = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(places))
    line = left + marked / most * width
    parts = [
        f'<svg viewBox="0 0 {left + width + 40} {top + height + 40}" role="img" style="width:{left + width + 40}px">',
        *(f'<text x="0" y="{top + (1 - share) * height + 5:.1f}">{share:g}</text>' for share in (0, 0.5, 1)),
        *(
            f'<text x="{x:.1f}" y="{top + height + 18}">{value:.3g}</text>'
            for value, (x, _) in zip(sorted(points), places, strict=True)
        ),
        f'<text x="{left}" y="{top + height + 36}">{html.escape(across)}</text>',
        f'<path d="M{line:.1f} {top} v{height}" stroke="var(--ink)" stroke-dasharray="4 3"/>',
        f'<path d="{drawn}" fill="none" stroke="var(--bar)" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--bar)"/>' for x, y in places),
    ]
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def bound_chart(figures: Mapping[str, Figure], checks: Mapping[str, Check]) -> str:
    """Draw each figure that a policy bounds from above as its share of that bound, which is a dashed line.

    A bar is cut off at twice its bound. A figure that is missing or no number has no bar and reads so; a bound of 0
    has no shares, so whatever is above it is drawn cut off.
    """
    row, label, width = 26, 200, 360
    highs = {name: check.high for name, check in checks.items() if check.high is not None}
    whole = label + width + 190
    parts = [f'<svg viewBox="0 0 {whole} {row * len(highs)}" role="img" style="width:{whole}px">']
    for index, (name, high) in enumerate(highs.items()):
        y, value = index * row + 3, figures.get(name, "missing")
        share, held = 0.0, checks[name].holds(value)
        if isinstance(value, int | float) and value > 0:
            share = min(value / high, 2.0) if high > 0 else 2.0
        colour = "var(--bar)" if held else "var(--bad)"
        said = f"{plain(value)} of {plain(high)}"
        parts.append(f'<text x="0" y="{y + 15}">{html.escape(name)}</text>')
        parts.append(f'<rect x="{label}" y="{y}" width="{share * width / 2:.1f}" height="20" fill="{colour}"/>')
        parts.append(f'<text x="{label + width + 10}" y="{y + 15}">{html.escape(said)}</text>')
    line = f'<path d="M{label + width / 2:.1f} 0 v{row * len(highs)}" stroke="var(--ink)" stroke-dasharray="4 3"/>'
    return f'<div class="scroll">{"".join(parts)}{line}</svg></div>'


def histogram(counts: Sequence[int], *, low: float, high: float, across: str, marked: float) -> str:
    """Draw how many values fall into bins of one width in SVG, with a dashed line at `marked`; what is beyond is red.

    Args:
        counts: Of each bin; the last also has all that is larger. A bin with any is at least a thin line.
        low: Where the first bin begins.
        high: Where the last one ends.
        across: What is counted.
        marked: From where on a value is bad, between `low` and `high`.
    """
    width, height, top = 520, 120, 18
    each, most = width / len(counts), max(*counts, 1)
    line = (marked - low) / (high - low) * width
    parts = [f'<svg viewBox="0 0 {width + 30} {height + top + 40}" role="img" style="width:{width + 30}px">']
    for index, count in enumerate(counts):
        if count:
            x, tall = index * each, max(count / most * height, 1.5)
            colour = "var(--bad)" if x + each / 2 > line else "var(--bar)"
            title = f"<title>{count:,}</title>"
            box = f'x="{x:.1f}" y="{top + height - tall:.1f}" width="{each - 1:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {box} fill="{colour}">{title}</rect>')
    parts += [
        f'<path d="M{line:.1f} {top} v{height}" stroke="var(--ink)" stroke-dasharray="4 3"/>',
        f'<text x="0" y="{top - 4}">{most:,} rows at most</text>',
        *(
            f'<text x="{(at - low) / (high - low) * width:.1f}" y="{top + height + 18}">{at:.3g}</text>'
            for at in (low, marked, high)
        ),
        f'<text x="0" y="{top + height + 36}">{html.escape(across)}</text>',
    ]
    return f'<div class="scroll">{"".join(parts)}</svg></div>'


def pictures(rows: Iterable[tuple[str, Sequence[tuple[str, Pixels]]]]) -> str:
    """Draw small pictures side by side in SVG, one row below the other.

    Args:
        rows: A text below each row, and its pictures: a text above each, and lines of pixels of red, green and blue in
            0..1.
    """
    size, gap = 96, 24
    drawn = []
    for below, row in rows:
        whole = (size + gap) * len(row)
        parts = [f'<svg viewBox="0 0 {whole} {size + 44}" role="img" style="width:{whole}px">']
        for place, (above, pixels) in enumerate(row):
            parts.append(f'<text class="small" x="{place * (size + gap)}" y="12">{html.escape(above)}</text>')
            side = size / max(len(pixels), len(pixels[0]))
            for down, line in enumerate(pixels):
                for right, colour in enumerate(line):
                    x, y = place * (size + gap) + right * side, 18 + down * side
                    fill = "".join(f"{round(min(max(part, 0.0), 1.0) * 255):02x}" for part in colour)
                    parts.append(
                        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="#{fill}"/>'
                    )
        parts.append(f'<text class="small" x="0" y="{size + 36}">{html.escape(below)}</text></svg>')
        drawn.append("".join(parts))
    return f'<div class="scroll tiles">{"".join(drawn)}</div>'


def pixels_of(image: NDArray[Any]) -> Pixels:
    """Return an image (channels, height, width) as a picture of at most 32 by 32 pixels."""
    colours = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    step = math.ceil(max(image.shape[1:]) / LARGEST_SIDE)
    return [
        [(float(red), float(green), float(blue)) for red, green, blue in line]
        for line in colours[:, ::step, ::step].transpose(1, 2, 0)
    ]


def budget_bar(parts: Mapping[str, float], budget: float) -> str:
    """Draw what each part spent, one after the other in one bar of SVG, and the budget as a dashed line."""
    width, height = 620, 26
    total = sum(parts.values())
    scale = width / max(total, budget)
    drawn, x = [], 0.0
    for place, (name, value) in enumerate(parts.items()):
        title = f"<title>{html.escape(f'{name}: {value:.6g}')}</title>"
        colour = "var(--bad)" if x / scale + value > budget * (1 + 1e-9) else f"var(--s{place % 8})"
        long = max(value * scale - 1, 0.5)
        drawn.append(f'<rect x="{x:.1f}" y="3" width="{long:.1f}" height="{height}" fill="{colour}">{title}</rect>')
        x += value * scale
    line = budget * scale
    drawn.append(f'<path d="M{line:.1f} 0 v{height + 6}" stroke="var(--ink)" stroke-dasharray="4 3"/>')
    said = f"{len(parts)} runs, {total:.6g} of {budget:.6g}"
    drawn.append(f'<text x="0" y="{height + 22}">{html.escape(said)}</text>')
    whole = f'viewBox="0 0 {width + 4} {height + 28}" role="img" style="width:{width + 4}px"'
    return f'<div class="scroll"><svg {whole}>{"".join(drawn)}</svg></div>'


def tiles(facts: Mapping[str, object]) -> str:
    """Return a few facts side by side, each a large figure over its name."""
    cells = (
        f'<div class="tile"><b>{html.escape(grouped(value))}</b><span>{html.escape(name)}</span></div>'
        for name, value in facts.items()
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def heat_table(corner: str, kinds: Sequence[str], rows: Counts, left: Counts) -> str:
    """Return counts as a table, each cell the darker the larger its count; what is left stands beside it in red.

    Args:
        corner: What a row is.
        kinds: The columns of the table.
        rows: By row and kind, a count; so is `left`.
        left: How many are left, where there are any.
    """
    most = max((count for counts in rows.values() for count in counts.values()), default=0)

    def cell(count: int, still: int) -> str:
        if not count and not still:
            return '<td class="heat none">·</td>'
        heat = math.log1p(count) / math.log1p(most) if count else 0.0
        mark = f' <b class="FAILED">{still:,} left</b>' if still else ""
        return f'<td class="heat" style="--heat:{heat:.2f}">{count:,}{mark}</td>'

    head = "".join(f'<th class="turned"><span>{html.escape(kind)}</span></th>' for kind in kinds)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(cell(counts.get(kind, 0), left.get(name, {}).get(kind, 0)) for kind in kinds)
        + "</tr>"
        for name, counts in rows.items()
    )
    return (
        f'<div class="scroll"><table class="heats"><thead><tr><th>{html.escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def stacked_bars(rows: Counts, kinds: Sequence[str], *, bad: str = "") -> str:
    """Draw counts as horizontal bars in SVG, one for each row, stacked by kind; the kind `bad` is red.

    The first eight other kinds have colours of their own; the rest share one.
    """
    row, label, width = 26, 200, 420
    whole = label + width + 90
    most = max((sum(counts.values()) for counts in rows.values()), default=0) or 1
    colours = {kind: f"var(--s{min(place, 8)})" for place, kind in enumerate(it for it in kinds if it != bad)}
    colours[bad] = "var(--bad)"
    parts = [f'<svg viewBox="0 0 {whole} {row * len(rows)}" role="img" style="width:{whole}px">']
    for index, (name, counts) in enumerate(rows.items()):
        y, x = index * row + 3, float(label)
        shown = name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"
        parts.append(f'<text x="0" y="{y + 15}">{html.escape(shown)}<title>{html.escape(name)}</title></text>')
        for kind in kinds:
            if count := counts.get(kind, 0):
                long = max(count / most * width, 1.5)  # one in a million is still seen
                title = f"<title>{html.escape(f'{name}, {kind}: {count:,}')}</title>"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="20" fill="{colours[kind]}">{title}</rect>'
                )
                x += long
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{sum(counts.values()):,}</text>')
    key = "".join(
        f'<span><i style="background:{colours[kind]}"></i>{html.escape(kind)}</span>'
        for kind in kinds
        if any(counts.get(kind) for counts in rows.values())
    )
    return f'<div class="scroll">{"".join(parts)}</svg></div><p class="key">{key}</p>'


_LABEL = 26  # characters of a label beside a bar


def gate_section(statement: Statement, checks: Mapping[str, Check]) -> list[str]:
    """Return a gate's verdict, its figures beside their bounds, and a chart of those that are shares."""
    rows = [
        (name, statement.figures.get(name, "missing"), check.low, check.high, "PASSED" if held else "FAILED")
        for name, check in checks.items()
        for held in [check.holds(statement.figures.get(name))]
    ]
    others = [(name, value, None, None, "") for name, value in statement.figures.items() if name not in checks]
    shares = accuracies(statement.figures)
    # What an accuracy is made of (`robust_accuracy_pgd`) shares its line.
    lows = {
        share: check.low
        for name, check in checks.items()
        if check.low is not None
        for share in shares
        if share == name or share.startswith(f"{name}_")
    }
    return [
        f'<h3>{html.escape(statement.step)}: <span class="{statement.verdict}">{statement.verdict}</span></h3>',
        *([paragraph(statement.reason, kind="FAILED")] if statement.reason else []),
        *([bar_chart(shares, lows)] if shares else []),
        *([paragraph("The dashed lines are what the policy requires.", kind="dim")] if lows else []),
        table(("figure", "measured", "at least", "at most", ""), [*rows, *others]),
    ]


def gate_page(statement: Statement, rule: StepRule, details: Iterable[str] = ()) -> str:
    """Return the page of one gate, for KFP's user interface; `details` is HTML made by this module's functions."""
    return page(
        f"{rule.stage}: {statement.verdict}",
        [
            *gate_section(statement, rule.checks),
            *details,
            section("Parameters"),
            table(("parameter", "value"), statement.parameters.items()),
            paragraph(f"Run {statement.nonce}, judged at {format_time(statement.finished)}.", kind="dim"),
        ],
    )


class MetricsArtifact(Protocol):
    """What this module needs of KFP's `Metrics`."""

    def log_metric(self, metric: str, value: float) -> None:
        """Record one number."""


def log_figures(metrics: MetricsArtifact, statement: Statement) -> None:
    """Show a statement's numbers in KFP's user interface."""
    for name, value in statement.figures.items():
        if not isinstance(value, str):
            metrics.log_metric(name, float(value))


def accuracies(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Return the figures that are accuracies, in 0..1."""
    return {name: float(value) for name, value in figures.items() if "accuracy" in name and not isinstance(value, str)}


def plain(value: object) -> str:
    """Return a value as people read it: floats to six digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def grouped(value: object) -> str:
    """Return a value as people read it, whole numbers in groups of three digits."""
    return f"{value:,}" if isinstance(value, int) else plain(value)
