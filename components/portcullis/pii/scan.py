"""Where the identifiers are: exact spans in every distinct value of a column of text."""

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.pii.entities import PRIORITY, Cue, Entity, Recogniser
from portcullis.pii.locales import RECOGNISERS
from portcullis.pii.reading import ENCODING, Ints, Reading, buffers, readings
from portcullis.pii.structure import survey
from portcullis.pii.structure.spans import Spans, joined

# Bytes scanned at a time; bounds the memory, not the result.
_CHUNK = 2 << 20
# glibc's malloc hands what is freed back to the system and asks for it again at once, where it is larger than anything
# that was freed before (mallopt(3), M_MMAP_THRESHOLD); each page is then zeroed anew, which took a fifth of a scan's
# time. To free one such array, of which no page was touched, is all that it takes to have it keep those of a chunk.
np.empty(8 * _CHUNK, np.uint8)
# Sampled to tell whether a column repeats its values.
_SAMPLE = 1 << 10
# No pattern matches it, so values joined by it are searched in one go and no finding crosses two of them.
_SEPARATOR = "\0"
ENTITIES = tuple(Entity)


Found = tuple[Ints, Ints, Ints, npt.NDArray[np.uint8]]
"""Of each finding: the place of its value, its first byte in that, the one after its last, and its entity's rank."""


class Finder(Protocol):
    """Finds what the built-in recognisers do not: a user's rules, a detector, encoded identifiers."""

    def __call__(self, values: Any, column: str) -> Found:
        """Return the findings, in any order, in a large_string array without nulls of a column of this name."""
        ...


def found_of(rows: Sequence[tuple[int, int, int, int]]) -> Found:
    """Return findings given as rows of value, start, end and rank."""
    table = np.array(rows, np.intp).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.uint8)


class Span(NamedTuple):
    """An identifier at `start` (inclusive) to `end` (exclusive) of a value, in bytes or in characters as is said."""

    start: int
    end: int
    entity: Entity


@dataclass(frozen=True)
class Findings:
    """What a scan found, once per distinct value.

    Attributes:
        distinct: The distinct values, a large_string array without nulls; where values hardly repeat, all that there
            are, repetitions included.
        codes: The index into `distinct` of each row, an integer array, null where the row is null.
        values: The index into `distinct` of each finding, ascending; within a value by position, not overlapping.
        starts: The byte of its value where each finding starts.
        ends: And where it ends, exclusive.
        ranks: The place in `Entity` of each finding's entity; what finders find has their ranks.
    """

    distinct: Any
    codes: Any
    values: Ints
    starts: Ints
    ends: Ints
    ranks: npt.NDArray[np.uint8]

    @cached_property
    def spans(self) -> Mapping[int, tuple[Span, ...]]:
        """The spans, in bytes, of each distinct value that has any; without what finders found."""
        found: dict[int, list[Span]] = {}
        rows = zip(self.values.tolist(), self.starts.tolist(), self.ends.tolist(), self.ranks.tolist(), strict=True)
        for value, start, end, rank in rows:
            if rank >= len(ENTITIES):
                continue
            found.setdefault(value, []).append(Span(start, end, ENTITIES[rank]))
        return {value: tuple(spans) for value, spans in found.items()}

    def __getitem__(self, row: int) -> tuple[Span, ...]:
        """Return the spans in the value of `row`."""
        return self.spans.get(self.codes[row].as_py(), ())

    def counts(self) -> Counter[Entity]:
        """Return how many identifiers of each entity all rows hold together; without what finders found."""
        rows = rows_of(self.codes, len(self.distinct))[self.values]
        totals = np.bincount(self.ranks, weights=rows, minlength=len(ENTITIES)).astype(np.int64)
        return Counter({ENTITIES[rank]: int(total) for rank, total in enumerate(totals[: len(ENTITIES)]) if total})


def rows_of(codes: Any, distinct: int) -> npt.NDArray[np.int64]:
    """Return, for each of `distinct` values, the number of rows whose code it is; shape (distinct,), int64."""
    return np.bincount(codes.drop_null().to_numpy(), minlength=distinct)


def scan(
    values: Any, entities: Collection[str], *, column: str = "", recall: bool = False, finders: Sequence[Finder] = ()
) -> Findings:
    """Find the identifiers in a column of text.

    Each distinct value is scanned once where values repeat. A value with any character that is not printable ASCII is
    scanned as written and folded (see `portcullis.pii.folding`), and what either shows is found.

    Args:
        values: A string or large_string Array or ChunkedArray; nulls have no findings.
        entities: What to look for.
        column: The column's name, which may say what bare digits are (`phone`, `ssn`).
        recall: Find numbers whose check digit fails too, where a word or the column's name says what they are.
        finders: What finds more; of findings that overlap, the lowest rank names their union.

    Raises:
        DataError: Another type, or text that is not valid UTF-8.
    """
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise DataError(f"cannot scan values of type {values.type}; only string columns are scanned")
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError("a string column holds malformed text; write it as UTF-8") from error
    text = values.cast(pa.large_string())
    distinct, codes = _distinct(text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text)
    return _findings(distinct, codes, _Request(entities, column, recall, finders))


def scan_values(
    values: Any, entities: Collection[str], *, column: str = "", recall: bool = False, finders: Sequence[Finder] = ()
) -> Findings:
    """As `scan`, of a large_string array without nulls, each value on its own."""
    return _findings(values, pa.array(np.arange(len(values))), _Request(entities, column, recall, finders))


def find(
    texts: Sequence[str], entities: Collection[Entity], *, column: str = "", recall: bool = False
) -> dict[int, tuple[Span, ...]]:
    """Return the spans found in each text that has any, in characters, by its index; as `scan`, for texts in memory."""
    spans = scan_values(pa.array(texts, pa.large_string()), entities, column=column, recall=recall).spans
    return {index: tuple(_in_characters(texts[index], span) for span in found) for index, found in spans.items()}


@dataclass(frozen=True)
class _Request:
    entities: Collection[str]
    column: str
    recall: bool
    finders: Sequence[Finder] = ()

    @cached_property
    def recognisers(self) -> list[Recogniser]:
        asked = [it for it in RECOGNISERS if it.entity in self.entities and (self.recall or not it.recall)]
        return [_for_column(it, self.column) for it in asked]

    @cached_property
    def speaking(self) -> set[Entity]:
        return {it.entity for it in self.recognisers if it.cue is not None and _names(it.cue, self.column)}


def _findings(values: Any, codes: Any, request: _Request) -> Findings:
    offsets, _ = buffers(values)
    parts = [(_NONE, _NONE, _NONE, np.zeros(0, np.uint8))]
    first = 0
    while first < len(values):
        last = max(int(np.searchsorted(offsets, offsets[first] + _CHUNK, "right")) - 1, first + 1)
        parts.append(_scan(values.slice(first, last - first), first, request))
        first = last
    numbers, starts, ends, ranks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Findings(values, codes, numbers, starts, ends, ranks)


_NONE = np.zeros(0, np.intp)


def _in_characters(text: str, span: Span) -> Span:
    if text.isascii():
        return span
    written = text.encode()
    start, end = (len(written[:place].decode()) for place in (span.start, span.end))
    return Span(start, end, span.entity)


def _distinct(text: Any) -> tuple[Any, Any]:
    """Return the distinct values of a large_string array and each row's code; all values where they hardly repeat."""
    sample = text.slice(0, _SAMPLE)
    if len(text) > _SAMPLE and pc.count_distinct(sample).as_py() > len(sample) // 2:
        if not text.null_count:
            return text, pa.array(np.arange(len(text)))
        present = text.is_valid()
        codes = pc.if_else(present, pc.subtract(pc.cumulative_sum(present.cast(pa.int64())), 1), None)
        return text.drop_null(), codes
    encoded = text.dictionary_encode()
    return encoded.dictionary, encoded.indices


def _scan(values: Any, first: int, request: _Request) -> tuple[Ints, Ints, Ints, npt.NDArray[np.uint8]]:
    """Return, of each finding in `values`, its value's number from `first`, its start, end and rank."""
    parts = [_read(reading, request) for reading in readings(values, first)]
    for finder in request.finders:
        which, starts, ends, ranks = finder(values, request.column)
        if len(which):
            found = (which + first, starts, ends, ranks)
            parts = [_outside_escapes(part, found, values, first) for part in (*parts, found)]
    numbers, starts, ends, ranks = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if len(parts) == 1:
        return numbers, starts, ends, ranks
    # Readings of one value, and finders, may find the same: as places in all values' bytes, one after the other.
    offsets, _ = buffers(values)
    # A byte between two values, so that findings that touch stay two.
    base = offsets[numbers - first] + (numbers - first)
    united = joined([Spans(base + starts, base + ends, ranks)])
    cells = np.searchsorted(offsets[:-1] + np.arange(len(values)), united.starts, "right") - 1
    base = offsets[cells] + cells
    return first + cells, united.starts - base, united.ends - base, united.ranks


# An escape such as those of JSON, or a terminal's control sequence, plain or escaped; no longer one is looked at.
_ESCAPE_END = re.compile(
    rb"(?:\\(?:[bfnrt]|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})|(?:\x1b|\\u001[Bb]|\\x1[Bb])\[[0-?]{0,32}[ -/]{0,8}[@-~])\Z"
)
_LONGEST_ESCAPE = 48


def _outside_escapes(part: Found, decoded: Found, values: Any, first: int) -> Found:
    r"""Return findings, of which each that begins inside of an escape begins behind it if a finder found just that.

    Read as written, `\njane@example.com` holds `njane@example.com`: another mailbox, and half an escape is no JSON.
    """
    which, starts, ends, ranks = part
    behind: dict[tuple[int, int, int], int] = {}
    for value, start, end, rank in zip(*(array.tolist() for array in decoded), strict=True):
        behind[value, end, rank] = max(start, behind.get((value, end, rank), start))
    begins = starts.copy()
    for place in np.flatnonzero(np.isin(which, decoded[0])).tolist():
        value, start = int(which[place]), int(starts[place])
        begin = behind.get((value, int(ends[place]), int(ranks[place])), start)
        if start < begin <= start + _LONGEST_ESCAPE:
            before = values[value - first].as_py().encode()[max(begin - _LONGEST_ESCAPE, 0) : begin]
            escape = _ESCAPE_END.search(before)
            if escape and begin - len(before) + escape.start() < start:
                begins[place] = begin
    return which, begins, ends, ranks


def _for_column(recogniser: Recogniser, column: str) -> Recogniser:
    """Return a recogniser with a hint as it is in a column whose name may speak for it: without need of a cue."""
    if recogniser.hint is None or recogniser.cue is None or not _names(recogniser.cue, column):
        return recogniser
    return replace(recogniser, cue=None)


def _read(reading: Reading, request: _Request) -> tuple[Ints, Ints, Ints, npt.NDArray[np.uint8]]:
    recognisers, column = request.recognisers, request.column
    seen = survey(reading.text, recognisers, request.speaking)
    spans = seen.spans
    parts = [spans]
    if len(seen.deferred):
        deferred = np.unique(reading.cell_of(seen.deferred))
        settled = ~np.isin(reading.cell_of(spans.starts), deferred)
        parts = [Spans(spans.starts[settled], spans.ends[settled], spans.ranks[settled])]
        general = [recogniser for recogniser in recognisers if recogniser.hint is None]
        parts.append(_recognised(reading, deferred, general, column))
    parts += [_recognised(reading, np.unique(reading.cell_of(at)), [it], column) for it, at in seen.hinted]
    if len(parts) > 1:
        spans = joined(parts)
    cells = reading.cell_of(spans.starts)
    starts, ends = reading.original(cells, spans.starts, spans.ends)
    return reading.values[cells], starts, ends, spans.ranks


def _recognised(reading: Reading, cells: Ints, recognisers: Sequence[Recogniser], column: str) -> Spans:
    """Return what the recognisers find in some cells of a reading."""
    firsts, stops = reading.starts[cells], reading.stops()[cells]
    pieces = zip(firsts.tolist(), stops.tolist(), strict=True)
    found = _find([reading.text[start:stop].decode(ENCODING) for start, stop in pieces], recognisers, column)
    rows = [
        (firsts[index] + span.start, firsts[index] + span.end, PRIORITY[span.entity])
        for index, spans in found.items()
        for span in spans
    ]
    table = np.array(rows, np.intp).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2].astype(np.uint8))


def named_identifier(column: str, entities: Collection[str]) -> bool:
    """Tell whether a column's name says that bare digits in it are identifiers (`phone`, `ssn`)."""
    cues = (recogniser.cue for recogniser in RECOGNISERS if recogniser.entity in entities)
    return any(cue is not None and _names(cue, column) for cue in cues)


_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _find(texts: Sequence[str], recognisers: Sequence[Recogniser], column: str) -> dict[int, tuple[Span, ...]]:
    joined = _SEPARATOR.join(texts)
    starts = list(itertools.accumulate((len(text) + 1 for text in texts), initial=0))
    candidates = sorted(
        Span(start, end, recogniser.entity)
        for recogniser in recognisers
        for start, end in _matches(recogniser, joined, column)
    )
    found: dict[int, list[Span]] = {}
    for span in _united(candidates):
        index = bisect.bisect_right(starts, span.start) - 1
        found.setdefault(index, []).append(Span(span.start - starts[index], span.end - starts[index], span.entity))
    return {index: tuple(spans) for index, spans in found.items()}


def _names(cue: Cue, column: str) -> bool:
    return cue.column.search(_CAMEL_CASE.sub(" ", column)) is not None


def _matches(recogniser: Recogniser, text: str, column: str) -> Iterator[tuple[int, int]]:
    cue = recogniser.cue if recogniser.cue and not _names(recogniser.cue, column) else None
    position = 0
    while match := recogniser.pattern.search(text, position):
        start = match.start(1)
        length = _longest_valid(recogniser, text, start, match.end(1)) - start
        position = start + 1
        if length > 0 and (cue is None or cue.speaks_for(text, start, start + length)):
            position = start + length
            yield start, position


def _longest_valid(recogniser: Recogniser, text: str, start: int, stop: int) -> int:
    """Return where the longest part of `text[start:stop]` ends that begins it and is one; `start` if none is.

    A part ends between two words.
    """
    if recogniser.accepts(text, start, stop):
        return stop
    for end in range(stop - 1, start, -1):
        if text[end - 1].isalnum() and not text[end].isalnum() and recogniser.accepts(text, start, end):
            return end
    return start


def _united(candidates: Sequence[Span]) -> Iterator[Span]:
    """Unite spans that overlap, so that nothing any recogniser saw is left; the first entity in priority names them."""
    current: Span | None = None
    for span in candidates:
        if current is None or span.start >= current.end:
            if current is not None:
                yield current
            current = span
        else:
            entity = min(current.entity, span.entity, key=PRIORITY.__getitem__)
            current = Span(current.start, max(current.end, span.end), entity)
    if current is not None:
        yield current
