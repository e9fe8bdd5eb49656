"""What masking did and what it left, for people (HTML) and for programs (JSON): counts and row numbers, never a value.

The JSON is canonical and has the format `portcullis-pii-report/v1`; the README says what its fields are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from portcullis.digest import canonical_json
from portcullis.pii.figures import Counts
from portcullis.pii.residual import Residual, judge_residual
from portcullis.report import heat_table, page, paragraph, section, stacked_bars, table, tiles

FORMAT = "portcullis-pii-report/v1"
LEFT = "left"
# Bars and lines that a person is shown; the JSON has every column.
MOST_BARS, MOST_LINES = 25, 500


@dataclass(frozen=True)
class PiiReport:
    """What was masked and what is left.

    Attributes:
        residual: What the second search found; None where the table could not be searched.
        masked: By column and entity, how many were masked.
        actions: What became of each column, where that is known better than from the plan alone.
        reason: Why the table is refused, in one line; empty where it passed.
    """

    residual: Residual | None
    masked: Counts
    actions: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @classmethod
    def judged(cls, residual: Residual, masked: Counts, actions: Mapping[str, Any]) -> "PiiReport":
        """Return the report of a table that is judged by the bounds of the reference policy."""
        return cls(residual, masked, actions, judge_residual(residual))

    @property
    def passed(self) -> bool:
        """Whether nothing is left that may not be."""
        return not self.reason

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        it = self.residual
        return {
            "format": FORMAT,
            "verdict": "PASSED" if self.passed else "FAILED",
            "reason": self.reason,
            "rows": it.rows if it else 0,
            "cells_scanned": it.cells_scanned if it else 0,
            "columns_scanned": it.columns_scanned if it else 0,
            "masked": _totals(self.masked),
            "left": _totals(it.identifiers) if it else {},
            "columns": [self._column(name, it) for name in it.columns] if it else [],
        }

    def to_json(self) -> bytes:
        """Return the report as canonical JSON (RFC 8785)."""
        return canonical_json(self.to_dict())

    def to_html(self) -> str:
        """Return the report as one page that needs nothing else."""
        verdict = "PASSED" if self.passed else "FAILED"
        reason = [paragraph(self.reason, kind="FAILED")] if self.reason else []
        return page(f"Masking: {verdict}", [*reason, *self.sections()])

    def sections(self) -> Iterator[str]:
        """Yield the parts of a page, for one that says more."""
        it = self.residual
        if it is None:
            yield paragraph("The table could not be searched, so nothing is known of it.", kind="FAILED")
            return
        masked, left = _totals(self.masked), _totals(it.identifiers)
        yield tiles(
            {
                "rows": it.rows,
                "cells searched": it.cells_scanned,
                "columns searched": it.columns_scanned,
                "masked": sum(masked.values()),
                LEFT: sum(left.values()),
            }
        )
        entities = [name for name, _ in (Counter(masked) + Counter(left)).most_common()]
        if entities:
            yield from self._charts(it, entities)
        yield section("Columns")
        lines = [self._line(name, it) for name in list(it.columns)[:MOST_LINES]]
        yield table(("column", "action", "masked", LEFT, "malformed", "rows with something left, from 1"), lines)
        if len(it.columns) > MOST_LINES:
            yield paragraph(f"And {len(it.columns) - MOST_LINES:,} more columns; the JSON has all.", kind="dim")

    def _charts(self, it: Residual, entities: list[str]) -> Iterator[str]:
        bars = {
            name: {**self.masked.get(name, {}), LEFT: sum(it.identifiers.get(name, {}).values())}
            for name in it.columns
            if self.masked.get(name) or it.identifiers.get(name)
        }
        largest = sorted(bars, key=lambda name: (-bars[name][LEFT], -sum(bars[name].values())))
        shown = [name for name in bars if name in set(largest[:MOST_BARS])]
        yield section("Masked, by column")
        yield stacked_bars({name: bars[name] for name in shown}, [*entities, LEFT], bad=LEFT)
        if len(bars) > MOST_BARS:
            yield paragraph(f"The {MOST_BARS} largest of {len(bars):,} columns.", kind="dim")
        yield section("Masked, by column and entity")
        shown = list(bars)[:MOST_LINES]
        yield heat_table("column", entities, {name: self.masked.get(name, {}) for name in shown}, it.identifiers)

    def _line(self, name: str, it: Residual) -> tuple[object, ...]:
        facts = self._column(name, it)
        notes = [note for note in ("undropped", "suspected_names") if facts[note]]
        action = ", ".join([_spoken(facts["action"]), *(note.replace("_", " ") for note in notes)])
        masked, left = sum(facts["masked"].values()), sum(facts[LEFT].values())
        rows = ", ".join(f"{row:,}" for row in facts["sampled_rows"])
        return name, action, masked or "", left or "", facts["malformed"] or "", rows

    def _column(self, name: str, it: Residual) -> dict[str, Any]:
        return {
            "name": name,
            "action": self.actions.get(name, it.columns[name]),
            "masked": {entity: count for entity, count in self.masked.get(name, {}).items() if count},
            "left": dict(it.identifiers.get(name, {})),
            "malformed": it.misfits.get(name, 0),
            "undropped": name in it.undropped,
            "suspected_names": name in it.suspected_names,
            "sampled_rows": list(it.samples.get(name, ())),
        }


def _totals(counts: Counts) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for entities in counts.values():
        totals.update(entities)
    return dict(sorted((+totals).items()))


def _spoken(action: Any) -> str:
    """Return an operator, as a masking policy spells it, as people read it."""
    if not isinstance(action, dict):
        return str(action)
    return ", ".join(f"{name}: {_spoken(option)}" for name, option in action.items())
