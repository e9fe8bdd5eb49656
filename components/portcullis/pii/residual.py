"""The gate's measurement: what identifiers a masked table still holds, found another way than they were masked.

Text is folded and searched here by rules of its own, more tolerant of separators than the scan (`123 / 45 / 6789`,
`4 1 1 1 …`, `192[.]0[.]2[.]1`, a number broken over two lines), so that a spelling that fooled the one does not fool
the other by itself; only the checksum and numbering rules are shared. The price: what the scan leaves alone may be
counted here. Then the gate refuses, and that column wants `token` or `drop`.

As in `portcullis.pii.entities`, repetitions are bounded, possessive, or of characters that cannot continue what stands
before them, so a search is linear.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from portcullis.pii.entities import IBAN_LENGTHS, Entity, valid_card, valid_iban, valid_ip, valid_mac, valid_ssn
from portcullis.pii.figures import Counts, pair_figures
from portcullis.pii.generalise import OLDEST, RESTRICTED_ZIP3
from portcullis.pii.locales.eu import valid_dni, valid_nie, valid_nino, valid_nir, valid_steuer_id, valid_vat
from portcullis.pii.locales.us import valid_aba, valid_ein, valid_itin
from portcullis.pii.name_columns import SUSPECT_SHARE, called_as_persons, shaped_as_person
from portcullis.pii.operators import Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.rules import Rule, compiled, context_pattern, named_by
from portcullis.pii.spelling import cell_spelling, masked_spelling
from portcullis.pii.tokens import spellings

_GAP = r"[ \t\-._/()\[\]*~]{1,3}"
_END = r"(?![^\W_])"
_EMAIL = re.compile(r"[\w\"](?:@| @ )(?:[\w-]++\.)+[^\W\d_]{2,}")
_IBAN = re.compile(rf"(?<![^\W_])[A-Za-z]{{2}}\d\d(?:(?:{_GAP})?[A-Za-z0-9]){{11,30}}")
# No possessive group: before Python 3.11.5 those lose matches.
_NUMBERS = re.compile(
    rf"(?<![^\W_])(?<!\d,)([A-Za-z]{{0,12}})(\d+(?:{_GAP}\d+)*)"
)  # a possessive group loses matches before Python 3.11.5
_SSN = re.compile(rf"(?<!\d)\d{{3}}{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
_CUED_SSN = re.compile(rf"(?:ssn|social.?security)(?: no| number)?[^\w<>]{{0,4}}(\d(?:(?:{_GAP})?\d){{8}}){_END}", re.I)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:[\[(]?\.[\])]?\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![^\W_])[0-9A-Fa-f:]{3,}")
_NANP = re.compile(rf"(?<![^\W_])(?<!\d[.,])1?[2-9]\d\d(?:{_GAP})?[2-9]\d\d(?:{_GAP})?\d{{4}}{_END}")
_E164 = re.compile(rf"\+(?:{_GAP})?[1-9](?:(?:{_GAP})?\d){{7,14}}{_END}")
_MAC = re.compile(r"(?<![^\W_:-])[\dA-Fa-f]{2}(?:[:-][\dA-Fa-f]{2}){5}(?![^\W_]|[:-][^\W_])")
_ITIN = re.compile(rf"(?<!\d)9\d\d{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
# After a word that names it, with anything but digits and tokens between.
_BETWEEN = r"[^\d<>|]{0,25}?"
_CUED_ITIN = re.compile(rf"(?:itin|tax.?(?:payer.?)?id){_BETWEEN}(?<!\d)(9\d{{8}}){_END}", re.IGNORECASE)
_EIN = re.compile(rf"(?:ein|employer.?id|tax.?id){_BETWEEN}(?<!\d)(\d\d(?:{_GAP})?\d{{7}}){_END}", re.IGNORECASE)
_ABA = re.compile(rf"(?:aba|routing|rtn){_BETWEEN}(?<!\d)(\d{{9}}){_END}", re.IGNORECASE)
_PASSPORT = re.compile(rf"passport{_BETWEEN}(?<![^\W_])((?:[A-Z]\d{{8}}|\d{{9}})){_END}", re.IGNORECASE)
_LICENSE = re.compile(
    rf"(?:driv\w{{1,5}}\W{{0,3}}licen[cs]e|licen[cs]e.?(?:number|no|num)){_BETWEEN}"
    rf"(?<![^\W_])([A-Z]{{0,2}}(?:\d(?:{_GAP})?){{5,13}}\d[A-Z]?){_END}",
    re.IGNORECASE,
)
_NINO = re.compile(rf"(?<![^\W_])[A-Za-z]{{2}}(?:(?:{_GAP})?\d\d){{3}}(?:{_GAP})?[A-Da-d]{_END}")
_STEUER_ID = re.compile(rf"(?<![^\W_])(?<!\d[.,])(?:\d{{11}}|\d\d(?:{_GAP}\d{{3}}){{3}}){_END}(?![.,]\d)")
_NIR = re.compile(
    rf"(?<![^\W_])(?<!\d[.,])[123478](?:(?:{_GAP})?\d\d){{2}}(?:{_GAP})?(?:\d\d|2[ABab])"
    rf"(?:(?:{_GAP})?\d{{3}}){{2}}(?:{_GAP})?\d\d{_END}(?![.,]\d)"
)
_DNI = re.compile(rf"(?<![^\W_])(?:\d{{8}}|\d\d(?:{_GAP}\d{{3}}){{2}})(?:{_GAP})?[A-Za-z]{_END}")
_NIE = re.compile(rf"(?<![^\W_])[X-Zx-z](?:{_GAP})?(?:\d{{7}}|\d{_GAP}\d{{3}}{_GAP}\d{{3}})(?:{_GAP})?[A-Za-z]{_END}")
_VAT = re.compile(
    rf"(?<![^\W_])(?:ATU|BE|DE|DK|EL|FI|FR|GB|IT|LU|NL|PL|PT|SE)(?:(?:{_GAP})?\d){{8,12}}(?:(?:{_GAP})?B\d\d)?",
    re.IGNORECASE,
)


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
        self._searches = [(str(entity), search) for entity, search in _SEARCHES.items() if entity in plan.entities]
        self._spelling = masked_spelling(plan)
        self._kinds = plan.kinds
        self._begun = spellings(plan.kinds).begun
        self._rules = [(rule, _rule_search(rule)) for rule in plan.rules.values()]
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
        left = []
        distinct = _distinct(values)
        encoded = worth_decoding(distinct)
        for text, rows in distinct.items():
            misfit = not _fits(tally.operator, text, self._kinds)
            tally.misfits += rows if misfit else 0
            found: Counter[str] = Counter()
            if self._spelling.fullmatch(text) is None:
                tally.unmasked += rows
                tally.name_shaped += rows if tally.may_hold_names and shaped_as_person(text) else 0
                found = self._found_in(text, called=f"{tally.name}: ", encoded=text in encoded)
            for entity, count in found.items():
                tally.found[entity] += rows * count
            if found or misfit:
                left.append(text)
        if left:
            self._sample(tally, pc.is_in(values, value_set=pa.array(left, values.type)).to_numpy().nonzero()[0])

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
        visible = f"{called}{text}".translate(_VISIBLE)
        found = Counter({entity: search(visible) for entity, search in self._searches})
        for rule, count in self._rules:
            found[rule.name] += count(text.translate(_VISIBLE), called)
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


def _fits_as_number(operator: Operator, text: str, kinds: tuple[str, ...]) -> bool:
    """Likewise, in a column of numbers, where 90 stands for all ages above 89."""
    return _fits(operator, text, kinds) or (operator.form == "age" and text == f"{OLDEST + 1}")


def _is_whole(number: float) -> bool:
    return math.isfinite(number) and abs(number - round(number)) < 1e-6 * max(1.0, abs(number))


def _distinct(values: Any) -> Mapping[str, int]:
    counted = pc.value_counts(values.drop_null())
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


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
    words = tuple(word.translate(_VISIBLE).strip() for word in rule.context)
    context = compiled(context_pattern(tuple(filter(None, words)))) if rule.context else None

    def count(text: str, called: str) -> int:
        if context is not None and not named_by(rule, called) and context.search(text) is None:
            return 0
        return sum(rule.valid(match[0]) for match in rule.program.finditer(text))

    return count


class _Visible(dict[int, str]):
    """Code points as a reader sees them: digits as ASCII, compatibility forms plain, marks and controls gone."""

    def __missing__(self, code: int) -> str:
        self[code] = "".join(map(self._one, unicodedata.normalize("NFKD", chr(code))))
        return self[code]

    @staticmethod
    def _one(character: str) -> str:
        match unicodedata.category(character):
            case "Nd":
                return str(unicodedata.digit(character))
            case "Zs" | "Zl" | "Zp":
                return " "
            case "Pd":
                return "-"
            case "Cc":
                return " " if character in "\t\n\r" else ""
            case "Cf" | "Mn" | "Me":
                return ""
        return {"\u2212": "-", "\u2800": " ", "\u3002": ".", "\u115f": "", "\u1160": ""}.get(character, character)


_VISIBLE = _Visible()


def _emails(text: str) -> int:
    return sum(1 for _ in _EMAIL.finditer(text))


def _ibans(text: str) -> int:
    return sum(_begins_with_iban(match[0]) for match in _IBAN.finditer(text))


def _begins_with_iban(text: str) -> bool:
    places = [index for index, character in enumerate(text) if character.isalnum()]
    length = IBAN_LENGTHS.get(text[:2].upper(), len(places) + 1)
    if length > len(places):
        return False
    end = places[length - 1] + 1
    return not text[end : end + 1].isalnum() and valid_iban(text[:end])


def _cards(text: str) -> int:
    return sum(any(map(valid_card, _windows(text, match))) for match in _NUMBERS.finditer(text))


def _windows(text: str, numbers: re.Match[str]) -> Iterator[str]:
    """Yield every 12 to 19 digits in a row of numbers that stand in groups as cards do, or are spelled out evenly."""
    word, row = numbers.groups()
    groups = re.findall(r"\d+", row)
    gaps = ["", *re.findall(r"\D+", row)]
    if text[numbers.end() : numbers.end() + 1].isalpha():
        groups.pop()  # the start of a word such as a hash
    for first, gap in enumerate(gaps[: len(groups)]):
        if gap == ".":
            continue  # the fraction of a decimal
        window = ""
        for last in range(first, len(groups)):
            window += groups[last]
            if len(window) > 19 or (word and first == 0 < last):
                break
            sizes = [len(group) for group in groups[first : last + 1]]
            spelled_out = len(sizes) == len(groups) and max(sizes) <= 2
            decimal = len(sizes) == 2 and gaps[last] == "."
            if len(window) >= 12 and not decimal and (spelled_out or min(sizes[:-1], default=3) >= 3):
                yield window


def _ssns(text: str) -> int:
    spaced = sum(valid_ssn(match[0]) for match in _SSN.finditer(text))
    return spaced + sum(valid_ssn(match[1]) for match in _CUED_SSN.finditer(text) if not _SSN.search(match[1]))


def _addresses(text: str) -> int:
    plain = (match[0].translate(_BRACKETS) for match in _IPV4.finditer(text))
    return sum(map(valid_ip, plain)) + sum(
        valid_ip(match[0] if match[0].endswith("::") else match[0].rstrip(":"))
        for match in _IPV6.finditer(text)
        if len(match[0]) <= 40
    )


_BRACKETS = str.maketrans("", "", "[]()")


def _phones(text: str) -> int:
    return sum(1 for _ in _NANP.finditer(text)) + sum(1 for _ in _E164.finditer(text))


def _matching(pattern: re.Pattern[str], valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Return the search that counts valid matches: of group 1 where the pattern has one."""
    return lambda text: sum(valid(match[pattern.groups]) for match in pattern.finditer(text))


def _vat_numbers(text: str) -> int:
    return sum(any(map(valid_vat, _beginnings(text, match))) for match in _VAT.finditer(text))


def _beginnings(text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield what a match begins with, up to each place where a word ends."""
    for end in range(match.start() + 1, match.end() + 1):
        if text[end - 1].isalnum() and not text[end : end + 1].isalnum():
            yield text[match.start() : end]


_itins, _cued_itins = _matching(_ITIN, valid_itin), _matching(_CUED_ITIN, valid_itin)

_SEARCHES: Mapping[Entity, Callable[[str], int]] = {
    Entity.EMAIL: _emails,
    Entity.IBAN: _ibans,
    Entity.CREDIT_CARD: _cards,
    Entity.US_SSN: _ssns,
    Entity.US_ITIN: lambda text: _itins(text) + _cued_itins(text),
    Entity.US_EIN: _matching(_EIN, valid_ein),
    Entity.US_ABA: _matching(_ABA, valid_aba),
    Entity.US_PASSPORT: _matching(_PASSPORT, bool),
    Entity.US_DRIVER_LICENSE: _matching(_LICENSE, bool),
    Entity.UK_NINO: _matching(_NINO, valid_nino),
    Entity.DE_STEUER_ID: _matching(_STEUER_ID, valid_steuer_id),
    Entity.FR_NIR: _matching(_NIR, valid_nir),
    Entity.ES_DNI: _matching(_DNI, valid_dni),
    Entity.ES_NIE: _matching(_NIE, valid_nie),
    Entity.EU_VAT: _vat_numbers,
    Entity.IP_ADDRESS: _addresses,
    Entity.MAC_ADDRESS: _matching(_MAC, valid_mac),
    Entity.PHONE: _phones,
}
