"""Where the identifiers are: exact spans in every distinct value of a column of text."""

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from portcullis.errors import DataError
from portcullis.pii.entities import RECOGNISERS, Cue, Entity, Recogniser, canonical
from portcullis.pii.folding import fold

# Distinct values held as Python strings at a time; bounds the memory, not the result.
_BATCH = 1 << 14
# No pattern matches it, so values joined by it are searched in one go and no finding crosses two of them.
_SEPARATOR = "\0"
_PLAIN = re.compile(r"[\t\n\r -~]*")
_PRIORITY = {entity: rank for rank, entity in enumerate(Entity)}


class Span(NamedTuple):
    """An identifier at characters `start` (inclusive) to `end` (exclusive) of a value."""

    start: int
    end: int
    entity: Entity


@dataclass(frozen=True)
class Findings:
    """What a scan found, once per distinct value.

    Attributes:
        distinct: The distinct values, a large_string array without nulls.
        codes: The index into `distinct` of each row, int32, null where the row is null.
        spans: The spans of each distinct value that has any, in order of position, not overlapping.
    """

    distinct: Any
    codes: Any
    spans: Mapping[int, tuple[Span, ...]]

    def __getitem__(self, row: int) -> tuple[Span, ...]:
        """Return the spans in the value of `row`."""
        return self.spans.get(self.codes[row].as_py(), ())

    def counts(self) -> Counter[Entity]:
        """Return how many identifiers of each entity all rows hold together."""
        rows = rows_of(self.codes, len(self.distinct))
        total: Counter[Entity] = Counter()
        for value, spans in self.spans.items():
            for span in spans:
                total[span.entity] += int(rows[value])
        return total


def rows_of(codes: Any, distinct: int) -> npt.NDArray[np.int64]:
    """Return, for each of `distinct` values, the number of rows whose code it is; shape (distinct,), int64."""
    return np.bincount(codes.drop_null().to_numpy(), minlength=distinct)


def scan(values: Any, entities: Collection[Entity], *, column: str = "") -> Findings:
    """Find the identifiers in a column of text.

    Each distinct value is scanned once. A value with any character that is not printable ASCII is scanned a second time
    after folding (see `portcullis.pii.folding`); when that shows an identifier that the value itself did not, the
    whole value is one finding.

    Args:
        values: A string or large_string Array or ChunkedArray; nulls have no findings.
        entities: What to look for.
        column: The column's name, which may say what bare digits are (`phone`, `ssn`).

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
    encoded = (text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text).dictionary_encode()
    distinct = encoded.dictionary
    spans: dict[int, tuple[Span, ...]] = {}
    for first in range(0, len(distinct), _BATCH):
        found = find(distinct.slice(first, _BATCH).to_pylist(), entities, column=column)
        spans.update((first + index, value) for index, value in found.items())
    return Findings(distinct, encoded.indices, spans)


def find(texts: Sequence[str], entities: Collection[Entity], *, column: str = "") -> dict[int, tuple[Span, ...]]:
    """Return the spans found in each text that has any, by its index; as `scan`, for texts in memory."""
    recognisers = [recogniser for recogniser in RECOGNISERS if recogniser.entity in entities]
    found = _find(texts, recognisers, column)
    odd = [index for index, text in enumerate(texts) if not _PLAIN.fullmatch(text)]
    folded = [fold(texts[index]) for index in odd]
    for position, spans in _find(folded, recognisers, column).items():
        index = odd[position]
        hidden = _identities(folded[position], spans) - _identities(texts[index], found.get(index, ()))
        if hidden:
            entity = min((entity for entity, _ in hidden), key=_PRIORITY.__getitem__)
            found[index] = (Span(0, len(texts[index]), entity),)
    return found


def named_identifier(column: str, entities: Collection[Entity]) -> bool:
    """Tell whether a column's name says that bare digits in it are identifiers (`phone`, `ssn`)."""
    cues = (recogniser.cue for recogniser in RECOGNISERS if recogniser.entity in entities)
    return any(cue is not None and _names(cue, column) for cue in cues)


_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


def _identities(text: str, spans: Sequence[Span]) -> Counter[tuple[Entity, str]]:
    return Counter((span.entity, canonical(span.entity, text[span.start : span.end])) for span in spans)


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
        length = _longest_valid(recogniser, match[1])
        position = start + 1
        if length and (cue is None or cue.speaks_for(text, start, start + length)):
            position = start + length
            yield start, position


def _longest_valid(recogniser: Recogniser, candidate: str) -> int:
    """Return the length of the longest prefix that is valid and ends between two words, or 0."""
    if recogniser.valid(candidate):
        return len(candidate)
    for end in range(len(candidate) - 1, 0, -1):
        if candidate[end - 1].isalnum() and not candidate[end].isalnum() and recogniser.valid(candidate[:end]):
            return end
    return 0


def _united(candidates: Sequence[Span]) -> Iterator[Span]:
    """Unite spans that overlap, so that nothing any recogniser saw is left; the first entity in priority names them."""
    current: Span | None = None
    for span in candidates:
        if current is None or span.start >= current.end:
            if current is not None:
                yield current
            current = span
        else:
            entity = min(current.entity, span.entity, key=_PRIORITY.__getitem__)
            current = Span(current.start, max(current.end, span.end), entity)
    if current is not None:
        yield current
