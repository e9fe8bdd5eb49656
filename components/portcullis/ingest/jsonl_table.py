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
from portcullis.files import BinaryFile, read_full
from portcullis.ingest.csv_table import BLOCK_BYTES, MAX_CELL_BYTES, check_beginning, check_encoding, line_of
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
class JsonlBlock:
    """Some lines of a JSON Lines file.

    Attributes:
        table: One row per line, every column of type string: text, the spelling of numbers, `true` and `false`.
        row: How many lines come before the first.
        kinds: Column to `text`, `a number` or `a boolean`, by the lines up to the last one here; a column without any
            value so far is not in it.
    """

    table: pa.Table
    row: int
    kinds: Mapping[str, str]

    def position(self, row: int, _: int) -> str:
        """Name a row of the block by its line of the file, from 1."""
        return f"line {self.row + row + 1}"


def read_jsonl(file: BinaryFile, *, block_bytes: int = BLOCK_BYTES) -> Iterator[JsonlBlock]:
    """Read a JSON Lines file block by block.

    Args:
        file: At its start.
        block_bytes: About how many bytes are read at a time.

    Yields:
        The blocks, each of at least one row, at least one block.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, a cell of more than 1 MiB, or a line of more
            than 16 MiB.
    """
    header: list[str] = []
    kinds: dict[str, type] = {}
    number = 0
    for data in _whole_lines(file, block_bytes):
        check_encoding(data, number + 1)
        lone = _LONE_CR.search(data)
        if lone:
            raise DataError(f"line {line_of(data, lone.start(), number + 1)}: a CR without LF")
        for lines in _batches(data):
            first = number
            rows: list[tuple[Any, ...]] = []
            for line in lines:
                number += 1
                pairs = _parse(line, number)
                if number == 1:
                    header = _header(pairs)
                rows.append(_row(pairs, header, number))
            yield JsonlBlock(
                pa.Table.from_batches([_batch(rows, header, kinds, first + 1)]),
                first,
                {name: _KINDS[kind] for name, kind in kinds.items()},
            )


def _whole_lines(file: BinaryFile, block_bytes: int) -> Iterator[bytes]:
    rest, number, at_end = b"", 1, False
    while not at_end:
        part = read_full(file, block_bytes)
        at_end = len(part) < block_bytes
        if number == 1 and not rest:
            check_beginning(part)
        data = rest + part
        end = len(data) if at_end else data.rfind(b"\n") + 1
        if not end and len(data) > MAX_LINE_BYTES:
            raise DataError(f"line {number}: more than {MAX_LINE_BYTES} bytes")
        if end:
            yield data[:end]
        number += data.count(b"\n", 0, end)
        rest = data[end:]


def _batches(data: bytes) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        lines.append(data[start:end])
        size += end - start
        start = end + 1
        if len(lines) == _BATCH_LINES or size > _BATCH_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _header(pairs: tuple[tuple[str, Any], ...]) -> list[str]:
    header = [name for name, _ in pairs]
    try:
        check_header(header)
    except DataError as error:
        raise DataError(f"line 1: {error}") from error
    return header


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


def _batch(
    rows: Sequence[tuple[Any, ...]], header: Sequence[str], kinds: dict[str, type], first: int
) -> pa.RecordBatch:
    columns = [
        _column(values, name, kinds, first) for name, values in zip(header, zip(*rows, strict=True), strict=True)
    ]
    return pa.record_batch(columns, names=header)


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
