"""The gate's measurement: what identifiers a masked table still holds, found another way than they were masked.

Text is folded and searched here by rules of its own (`portcullis.pii.residual_searches`), more tolerant of separators
than the scan, so that a spelling that fooled the one does not fool the other by itself. The price: what the scan leaves
alone may be counted here. Then the gate refuses, and that column wants `token` or `drop`.

Texts in which no search could find anything are told from the others all at once (`portcullis.pii.sieve`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.evidence.statement import Check, judge
from portcullis.pii.columns import Kind, check_sound, kind, names_of, text_of
from portcullis.pii.decoding import decoded_texts, worth_decoding
from portcullis.pii.entities import Entity, valid_card
from portcullis.pii.figures import Counts, pair_figures
from portcullis.pii.generalise import OLDEST, RESTRICTED_ZIP3
from portcullis.pii.name_columns import SUSPECT_SHARE, called_as_persons, shaped_as_person
from portcullis.pii.operators import Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual_searches import SEARCHES, VISIBLE
from portcullis.pii.rules import Rule, compiled, context_pattern, named_by
from portcullis.pii.sieve import Sieve
from portcullis.pii.spelling import cell_spelling, masked_spelling
from portcullis.pii.tokens import spellings

SAMPLED_ROWS = 10
SHOWN_COLUMNS = 5


@dataclass(frozen=True)
class Residual:
    """What a masked table still holds, in counts; never a value. A column whose name is an identifier is `column 3`.

    Attributes:
        rows: The table's rows.
        columns: What became of each column by the plan, those that were dropped last: its operator as a masking policy
            spells it, else `scan` (text) or nothing (other types).
        identifiers: By column and entity, how many are left in its cells and its name; none are left out.
        misfits: By column, its cells that its operator cannot have put out; where there are any.
        undropped: The columns that should be gone.
        suspected_names: The columns that nobody declared and that look like names of persons.
        samples: By column, the first rows, counted from 1, in which something is left.
        cells_scanned: Cells of text and numbers that were searched; nulls are not counted.
        columns_scanned: Columns of text and numbers.
    """

    rows: int
    columns: Mapping[str, Any]
    identifiers: Counts
    misfits: Mapping[str, int]
    undropped: tuple[str, ...]
    suspected_names: tuple[str, ...]
    samples: Mapping[str, tuple[int, ...]]
    cells_scanned: int
    columns_scanned: int

    def figures(self) -> dict[str, int]:
        """Return what a gate states.

        Those that `MUST_BE_ZERO` names; `cells_scanned` and `columns_scanned`; and what the first is made of, by entity
        and column (`pair_figures`).
        """
        tokens = sum(count for column, count in self.misfits.items() if self.columns[column] == "token")
        return {
            "residual_identifiers": sum(sum(counts.values()) for counts in self.identifiers.values()),
            "untokenised_cells": tokens,
            "undropped_columns": len(self.undropped),
            "malformed_cells": sum(self.misfits.values()) - tokens,
            "suspected_name_columns": len(self.suspected_names),
            "cells_scanned": self.cells_scanned,
            "columns_scanned": self.columns_scanned,
            **pair_figures("residual", self.identifiers),
        }


MUST_BE_ZERO = (
    "residual_identifiers",
    "untokenised_cells",
    "undropped_columns",
    "malformed_cells",
    "suspected_name_columns",
)
BOUNDS: Mapping[str, Mapping[Literal["min", "max"], float]] = {
    **{name: {"min": 0, "max": 0} for name in MUST_BE_ZERO},
    "cells_scanned": {"min": 1},
}


def judge_residual(residual: Residual) -> str:
    """Return why a masked table is refused by the bounds of the reference policy, in one line; empty where it passes.

    The line names the columns. Whoever judges by a policy of their own derives the verdict from the figures.
    """
    reason = judge(residual.figures(), {name: Check(it.get("min"), it.get("max")) for name, it in BOUNDS.items()})[1]
    left = {*residual.identifiers, *residual.misfits, *residual.undropped, *residual.suspected_names}
    names = [repr(name) for name in residual.columns if name in left]
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return f"{reason} (column {', '.join(names[:SHOWN_COLUMNS])}{more})" if reason and names else reason


def residual_figures(table: Any, plan: MaskingPlan) -> dict[str, int]:
    """Measure what one masked table still holds; see `Residual.figures`.

    Raises:
        DataError: As `ResidualSearch`.
    """
    return search_residual(table.schema, [table], plan).figures()


def search_residual(schema: Any, pieces: Iterable[Any], plan: MaskingPlan) -> Residual:
    """Search a masked table piece by piece; where it is cut decides nothing.

    Raises:
        DataError: As `ResidualSearch`.
    """
    search = ResidualSearch(schema, plan)
    for piece in pieces:
        search.update(piece)
    return search.found()


@dataclass
class _Tally:
    """What was found in one column so far."""

    place: int
    name: str
    kind: Kind
    operator: Operator | None
    may_hold_names: bool
    found: Counter[str]
    misfits: int = 0
    cells: int = 0
    unmasked: int = 0
    name_shaped: int = 0
    samples: list[int] = field(default_factory=list)
    in_name: bool = False

    @property
    def shown(self) -> str:
        return f"column {self.place}" if self.in_name else self.name

    @property
    def action(self) -> Any:
        if self.operator is not None:
            return self.operator.spelled()
        return "scan" if self.kind is Kind.TEXT else ""

    @property
    def searched(self) -> bool:
        """Whether identifiers are looked for in it, also where the plan gives a reason to keep it as it is."""
        return self.kind is not Kind.OTHER


class ResidualSearch:
    """Searches a masked table piece by piece, in memory that the table's length does not decide.

    Args:
        schema: The schema that all pieces have.
        plan: The plan that the table was masked by.

    Raises:
        DataError: A column that should have been kept is missing, one name occurs twice, or a type cannot be searched.
    """

    def __init__(self, schema: Any, plan: MaskingPlan) -> None:
        names = names_of(schema)
        dropped = {name for name, operator in plan.columns.items() if operator.name == "drop"}
        if missing := sorted(set(plan.columns).difference(dropped, names)):
            raise DataError(f"the masked table lacks columns of the plan: {', '.join(map(repr, missing))}")
        self._dropped = sorted(dropped.difference(names))
        self._searches = [(str(entity), search) for entity, search in SEARCHES.items() if entity in plan.entities]
        self._spelling = masked_spelling(plan)
        self._kinds = plan.kinds
        self._begun = spellings(plan.kinds).begun
        self._rules = [(rule, _rule_search(rule)) for rule in plan.rules.values()]
        operators = {operator.name for operator in plan.entities.values()}
        self._others_made = not operators.isdisjoint(("synthetic", "generalise")) or bool(plan.own)
        self._sieve = Sieve([entity for entity, _ in self._searches], starred="star" in operators)
        self._rows = 0
        self._columns = []
        for place, (name, type_) in enumerate(zip(names, schema.types, strict=True), start=1):
            found = self._found_in(name)
            shown = f"column {place}" if found else name
            column_kind = kind(shown, type_)
            suspect = column_kind is Kind.TEXT and name not in plan.columns and called_as_persons(name)
            tally = _Tally(place, name, column_kind, plan.columns.get(name), suspect, found, in_name=bool(found))
            self._columns.append(tally)

    def update(self, piece: Any) -> None:
        """Search the next piece, a pyarrow Table of the schema.

        Raises:
            DataError: Its buffers or its text are malformed.
        """
        check_sound(piece)
        for tally in self._columns:
            values = piece.column(tally.place - 1)
            tally.cells += len(values) - values.null_count
            if tally.kind is Kind.TEXT and tally.searched:
                self._search_text(tally, values)
            elif tally.searched:
                self._search_numbers(tally, values)
            if tally.kind is not Kind.TEXT:
                self._fit(tally, values)
        self._rows += piece.num_rows

    def found(self) -> Residual:
        """Return what all pieces hold together.

        Raises:
            DataError: There was no row.
        """
        if not self._rows:
            raise DataError("the table is empty; there is nothing to judge")
        searched = [it for it in self._columns if it.searched]
        return Residual(
            rows=self._rows,
            columns={it.shown: it.action for it in self._columns} | dict.fromkeys(self._dropped, "drop"),
            identifiers={it.shown: dict(sorted(it.found.items())) for it in self._columns if it.found},
            misfits={it.shown: it.misfits for it in self._columns if it.misfits},
            undropped=tuple(it.shown for it in self._columns if it.action == "drop"),
            suspected_names=tuple(
                it.shown for it in self._columns if it.name_shaped and it.name_shaped >= SUSPECT_SHARE * it.unmasked
            ),
            samples={it.shown: tuple(it.samples) for it in self._columns if it.samples},
            cells_scanned=sum(it.cells for it in searched),
            columns_scanned=len(searched),
        )

    def _search_text(self, tally: _Tally, values: Any) -> None:
        counted = pc.value_counts(values.drop_null())
        texts, rows = counted.field("values"), counted.field("counts").to_numpy()
        fits = _fitting(tally.operator, texts, self._kinds)
        misfit = np.flatnonzero(~fits)
        made = self._sieve.made(texts)
        if tally.operator is not None and (tally.operator.name == "synthetic" or tally.operator.form == "network"):
            made |= fits  # addresses, to whoever does not know what the operator of this column puts out
        tally.misfits += int(rows[misfit].sum())
        bare = np.flatnonzero(~made)
        if self._others_made:
            spelled = [self._spelling.fullmatch(text) is not None for text in texts.take(pa.array(bare)).to_pylist()]
            bare = bare[~np.array(spelled, np.bool_)]
        unmasked = texts.take(pa.array(bare))
        tally.unmasked += int(rows[bare].sum())
        if tally.may_hold_names:
            shaped = np.array([shaped_as_person(text) for text in unmasked.to_pylist()], np.bool_)
            tally.name_shaped += int(rows[bare][shaped].sum())
        called = f"{tally.name}: "
        encoded = worth_decoding(unmasked)
        # Most are the letters of a token: they look like base64 as any others.
        some = np.flatnonzero(encoded)
        rests = [self._spelling.sub("|", text) for text in unmasked.take(pa.array(some)).to_pylist()]
        encoded[some] = worth_decoding(pa.array(rests, pa.large_string()))
        if self._rules or self._found_in("", called=called):
            may = np.arange(len(bare))
        else:
            may = np.union1d(self._sieve.kept(unmasked, called=called), np.flatnonzero(encoded))
        left = set(misfit.tolist())
        read = zip(bare[may].tolist(), encoded[may].tolist(), unmasked.take(pa.array(may)).to_pylist(), strict=True)
        for place, decode, text in read:
            if found := self._found_in(text, called=called, encoded=decode):
                left.add(place)
                for entity, count in found.items():
                    tally.found[entity] += int(rows[place]) * count
        if left:
            remaining = texts.take(pa.array(sorted(left)))
            self._sample(tally, pc.is_in(values, value_set=remaining).to_numpy().nonzero()[0])

    def _search_numbers(self, tally: _Tally, values: Any) -> None:
        if Entity.CREDIT_CARD not in dict(self._searches):
            return
        places, texts = _long_numbers(values)
        cards = np.array([valid_card(text) for text in texts], bool)
        if cards.any():
            tally.found[str(Entity.CREDIT_CARD)] += int(cards.sum())
            self._sample(tally, places[cards])

    def _fit(self, tally: _Tally, values: Any) -> None:
        """Count the cells, none of them text, that the column's operator cannot have put out."""
        if tally.operator is None or cell_spelling(tally.operator, self._kinds) is None:
            return
        numbers = tally.kind is Kind.NUMBER and tally.operator.name == "generalise"
        texts = pc.unique(text_of(values) if numbers else values.drop_null().slice(0, 0))
        fitting = [text for text in texts.drop_null().to_pylist() if _fits_as_number(tally.operator, text, self._kinds)]
        cells = text_of(values) if fitting else values
        misfits = values.is_valid()
        if fitting:
            misfits = pc.and_(misfits, pc.invert(pc.is_in(cells, value_set=pa.array(fitting, pa.large_string()))))
        count = pc.sum(misfits).as_py() or 0
        tally.misfits += count
        if count:
            self._sample(tally, misfits.to_numpy(zero_copy_only=False).nonzero()[0])

    def _sample(self, tally: _Tally, places: npt.NDArray[np.intp]) -> None:
        room = SAMPLED_ROWS - len(tally.samples)
        tally.samples += (self._rows + 1 + places[:room]).tolist()

    def _found_in(self, text: str, *, called: str = "", encoded: bool = True) -> Counter[str]:
        """Count by entity what a text holds, decoded too where it is to be tried.

        `called` is put before it, and may say what its numbers are.
        """
        rest = self._spelling.sub("|", text)
        # What begins like a spelling of ours and is none was tampered with, or never masked.
        found = Counter(made[1] for made in self._begun.finditer(rest))
        found += self._identifiers(rest, called)
        for plain in decoded_texts(rest) if encoded else ():
            found |= self._identifiers(plain, called)
        return +found

    def _identifiers(self, text: str, called: str) -> Counter[str]:
        visible = f"{called}{text}".translate(VISIBLE)
        found = Counter({entity: search(visible) for entity, search in self._searches})
        for rule, count in self._rules:
            found[rule.name] += count(text.translate(VISIBLE), called)
        return found


def _fits(operator: Operator | None, text: str, kinds: tuple[str, ...]) -> bool:
    """Tell whether the operator of a column can have put out this cell."""
    pattern = None if operator is None else cell_spelling(operator, kinds)
    if operator is None or pattern is None:
        return True
    if pattern.fullmatch(text) is None:
        return False
    match operator.form:
        case "zip3":
            return text not in RESTRICTED_ZIP3
        case "bin" if not text.startswith("<"):
            return _is_whole(float(text) / operator.width)
    return True


# Operators whose spelling has no character but those of ASCII, so that RE2 reads its pattern as Python does.
_WHOLE = frozenset({"token", "hash", "reversible", "redact"})


def _fitting(operator: Operator | None, texts: Any, kinds: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Tell which texts the operator of a column can have put out."""
    fits = np.ones(len(texts), np.bool_)
    if operator is None or (pattern := cell_spelling(operator, kinds)) is None:
        return fits
    if operator.name in _WHOLE:
        fits &= pc.match_substring_regex(texts, rf"\A(?:{pattern.pattern})\z").to_numpy(zero_copy_only=False)
        return fits
    fits[:] = [_fits(operator, text, kinds) for text in texts.to_pylist()]
    return fits


def _fits_as_number(operator: Operator, text: str, kinds: tuple[str, ...]) -> bool:
    """Likewise, in a column of numbers, where 90 stands for all ages above 89."""
    return _fits(operator, text, kinds) or (operator.form == "age" and text == f"{OLDEST + 1}")


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and abs(number - round(number)) < 1e-6 * max(1.0, abs(number))


def _long_numbers(values: Any) -> tuple[npt.NDArray[np.intp], list[str]]:
    """Return the numbers of a column that are long enough for a card, as text without sign, and their places."""
    if pa.types.is_decimal(values.type):
        long = values.is_valid()
    else:
        long = pc.or_(pc.greater_equal(values, _SHORTEST_CARD), pc.less_equal(values, -_SHORTEST_CARD))
    places = np.flatnonzero(pc.fill_null(long, fill_value=False).to_numpy())
    return places, [text.lstrip("-") for text in text_of(values.take(pa.array(places))).to_pylist()]


_SHORTEST_CARD = 10**11


def _rule_search(rule: Rule) -> Callable[[str, str], int]:
    """Return the search that counts what a user's rule finds in a text, given what names the text."""
    words = tuple(word.translate(VISIBLE).strip() for word in rule.context)
    context = compiled(context_pattern(tuple(filter(None, words)))) if rule.context else None

    def count(text: str, called: str) -> int:
        if context is not None and not named_by(rule, called) and context.search(text) is None:
            return 0
        return sum(rule.valid(match[0]) for match in rule.program.finditer(text))

    return count
