"""Strict JSON Lines: one object per line, each with the same keys, its values text, numbers, booleans or null.

The dialect is one: UTF-8 without byte-order mark, lines ended by LF or CRLF, no blank line, RFC 8259 JSON without
repeated keys, NaN or Infinity, nothing nested. The first line's keys are the columns, in its order; a later line may
order them otherwise. A column holds one kind of value, and null.

Numbers are kept as they are spelled, so that they are typed by the very rules that type a CSV file's cells.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.ingest.csv_table import MAX_CELL_BYTES, check_encoding, line_of
from portcullis.table import check_header

MAX_LINE_BYTES = 16 << 20  # parsed values take many times the bytes of their line
_BATCH_LINES = 4096
_BATCH_BYTES = 16 << 20
_LONE_CR = re.compile(rb"\r(?!\n)")


class _Number(str):
    """A number as it is spelled."""

    __slots__ = ()


_KINDS: Mapping[type, str] = {str: "text", _Number: "a number", bool: "a boolean"}


@dataclass(frozen=True)
class JsonlTable:
    """A parsed JSON Lines file.

    Attributes:
        table: One row per line, every column of type string: text, the spelling of numbers, `true` and `false`.
        kinds: Column to `text`, `a number` or `a boolean`; a column without any value is not in it.
    """

    table: pa.Table
    kinds: Mapping[str, str]


def parse_jsonl(data: bytes) -> JsonlTable:
    """Parse JSON Lines.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, or a cell of more than 1 MiB.
    """
    check_encoding(data)
    lone = _LONE_CR.search(data)
    if lone:
        raise DataError(f"line {line_of(data, lone.start())}: a CR without LF")
    header: list[str] = []
    kinds: dict[str, type] = {}
    batches: list[pa.RecordBatch] = []
    rows: list[tuple[Any, ...]] = []
    schema = pa.schema([])
    size = 0
    for number, line in enumerate(_lines(data), start=1):
        pairs = _parse(line, number)
        if number == 1:
            header = [name for name, _ in pairs]
            try:
                check_header(header)
            except DataError as error:
                raise DataError(f"line 1: {error}") from error
            schema = pa.schema([(name, pa.string()) for name in header])
        rows.append(_row(pairs, header, number))
        size += len(line)
        if len(rows) == _BATCH_LINES or size > _BATCH_BYTES:
            batches.append(_batch(rows, schema, kinds, number))
            rows, size = [], 0
    if rows:
        batches.append(_batch(rows, schema, kinds, number))
    return JsonlTable(pa.Table.from_batches(batches, schema), {name: _KINDS[kind] for name, kind in kinds.items()})


def _lines(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield data[start:end]
        start = end + 1


def _parse(line: bytes, number: int) -> tuple[tuple[str, Any], ...]:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"line {number}: more than {MAX_LINE_BYTES} bytes")

    def refuse(name: str) -> NoReturn:
        raise DataError(f"line {number}: {name} is no JSON")

    try:
        value = json.loads(
            line.decode(), object_pairs_hook=tuple, parse_int=_Number, parse_float=_Number, parse_constant=refuse
        )
    except json.JSONDecodeError as error:
        raise DataError(f"line {number}: not JSON ({error.msg.lower()}, column {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"line {number}: JSON nested too deep") from error
    if type(value) is not tuple:
        raise DataError(f"line {number}: not a JSON object")
    return value


def _row(pairs: tuple[tuple[str, Any], ...], header: Sequence[str], number: int) -> tuple[Any, ...]:
    """Return the values in the header's order."""
    names = [name for name, _ in pairs]
    if names != header:
        values = dict(pairs)
        if len(values) != len(names):
            raise DataError(f"line {number}: the object repeats a key")
        missing = next((name for name in header if name not in values), None)
        if missing is not None:
            raise DataError(f"line {number}: the key {missing!r} of line 1 is missing")
        if len(values) != len(header):
            raise DataError(f"line {number}: the object has a key that line 1 lacks")
        return tuple(values[name] for name in header)
    return tuple(value for _, value in pairs)


def _batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema, kinds: dict[str, type], last: int) -> pa.RecordBatch:
    first = last - len(rows) + 1
    columns = [
        _column(values, name, kinds, first) for name, values in zip(schema.names, zip(*rows, strict=True), strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


def _column(values: Sequence[Any], name: str, kinds: dict[str, type], first: int) -> pa.StringArray:
    """Return a column of one batch as text; `kinds` remembers what a column holds."""

    def refuse(index: int, reason: str) -> NoReturn:
        raise DataError(f"line {first + index}: column {name!r} {reason}")

    found = set(map(type, values)) - {type(None)}
    if found - {kinds.get(name)}:
        for index, value in enumerate(values):
            kind = type(value)
            if kind in (tuple, list):
                refuse(index, "is an object or an array; store text, numbers or booleans")
            if value is not None and kinds.setdefault(name, kind) is not kind:
                refuse(index, f"is {_KINDS[kind]}, above it is {_KINDS[kinds[name]]}")
    if found == {bool}:
        values = [None if value is None else "true" if value else "false" for value in values]
    try:
        array = pa.array(values, pa.string())
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; UTF-8 cannot
        refuse(next(index for index, value in enumerate(values) if value and not _is_unicode(value)), "is not Unicode")
    for mask, reason in (
        (pc.match_substring(array, "\0"), "holds a null byte"),
        (pc.greater(pc.binary_length(array), MAX_CELL_BYTES), f"has more than {MAX_CELL_BYTES} bytes"),
    ):
        index = pc.index(mask, True).as_py()
        if index >= 0:
            refuse(index, reason)
    return array


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
