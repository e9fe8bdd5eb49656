"""Strict JSON Lines: one object per line, each with the same keys, its values text, numbers, booleans or null.

The dialect is one: UTF-8 without byte-order mark, lines ended by LF or CRLF, no blank line, RFC 8259 JSON without
repeated keys, NaN or Infinity, nothing nested. The first line's keys are the columns, in its order; a later line may
order them otherwise. A column holds one kind of value, and null.

Numbers are kept as they are spelled, so that they are typed by the very rules that type a CSV file's cells.

Where malformed lines are set aside, none of them says what a column holds. The first line never is: it names the
columns.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.files import BinaryFile, read_full
from portcullis.ingest.beginning import Beginning
from portcullis.ingest.csv_table import BLOCK_BYTES, MAX_CELL_BYTES, check_beginning, check_encoding, line_of
from portcullis.ingest.malformed import Check, Fault, Malformed, MalformedError, Reason
from portcullis.table import check_header

MAX_LINE_BYTES = 16 << 20  # parsed values take many times the bytes of their line
_BATCH_LINES = 4096
_BATCH_BYTES = 16 << 20
_LONE_CR = re.compile(rb"\r(?!\n)")


class _Number(str):
    """A number as it is spelled."""

    __slots__ = ()


_KINDS: Mapping[type, str] = {str: "text", _Number: "a number", bool: "a boolean"}
_TYPES = {said: kind for kind, said in _KINDS.items()}


@dataclass(frozen=True)
class JsonlBlock:
    """Some lines of a JSON Lines file.

    Attributes:
        table: One row per line, every column of type string: text, the spelling of numbers, `true` and `false`.
        lines: The number of each row's line in the file, from 1.
        kinds: Column to `text`, `a number` or `a boolean`, by the lines up to the last one here; a column without any
            value so far is not in it.
        records: How many lines the block holds: those of the table, and those that were set aside.
        malformed: Those, in order.
    """

    table: pa.Table
    lines: Sequence[int]
    kinds: Mapping[str, str]
    records: int
    malformed: Sequence[Malformed] = ()

    def position(self, row: int, _: int) -> str:
        """Name a row of the block by its line of the file, from 1."""
        return f"line {self.lines[row]}"


def read_jsonl(
    file: BinaryFile,
    *,
    block_bytes: int = BLOCK_BYTES,
    check: Check | None = None,
    beginning: Beginning | None = None,
) -> Iterator[JsonlBlock]:
    """Read a JSON Lines file block by block.

    Args:
        file: At its start, or at that of a part of it, which ends with a line.
        block_bytes: About how many bytes are read at a time.
        check: What a description demands. With it, malformed lines are set aside; without it the first is refused.
        beginning: Where the part begins; None for a file from its start.

    Yields:
        The blocks, each of at least one line, at least one block.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, a cell of more than 1 MiB, or a line of more
            than 16 MiB. With `check`, only the last, an empty file, or a malformed first line.
    """
    begun = beginning or Beginning([], line=1, row=0, offset=0)
    header, number, offset = list(begun.header), begun.line - 1, begun.offset
    kinds = {name: _TYPES[said] for name, said in begun.kinds.items()}
    for data in _whole_lines(file, block_bytes, begun.line):
        faults = _byte_faults(data, number + 1) if check else _check_bytes(data, number + 1)
        for lines in _batches(data):
            first = number + 1
            number += len(lines)
            if first == 1:
                _require_first(faults)
                header = _header(_parse(lines[0], 1))
            if check:
                table = _sifted(lines, header, kinds, first, faults, check)
                _require_first(faults)
            else:
                rows = [_row(_parse(line, at), header, at) for at, line in enumerate(lines, start=first)]
                table = _table(rows, header, kinds, first)
            malformed = []
            for at, line in enumerate(lines if faults else [], start=first):
                if at in faults:
                    malformed.append(Malformed(at, offset, faults[at], line))
                offset += len(line) + 1
            offset += 0 if faults else sum(map(len, lines)) + len(lines)
            yield JsonlBlock(
                table,
                [at for at in range(first, number + 1) if at not in faults],
                {name: _KINDS[kind] for name, kind in kinds.items()},
                len(lines),
                malformed,
            )


def _require_first(faults: Mapping[int, Fault]) -> None:
    if 1 in faults:
        reason = faults[1].reason.replace("_", " ")
        raise DataError(f"line 1: {reason}; the first line names the columns, so it is never set aside")


def _check_bytes(data: bytes, number: int) -> dict[int, Fault]:
    """Check the bytes of whole lines from line `number` on; returns no fault."""
    check_encoding(data, number)
    lone = _LONE_CR.search(data)
    if lone:
        raise MalformedError(f"line {line_of(data, lone.start(), number)}: a CR without LF", "cr_without_lf")
    return {}


def _byte_faults(data: bytes, number: int) -> dict[int, Fault]:
    """Return what is wrong with the bytes of whole lines, by line."""
    try:
        return _check_bytes(data, number)
    except MalformedError:
        faults = {}
    for at, line in enumerate(io.BytesIO(data), start=number):
        try:
            _check_bytes(line, at)
        except MalformedError as error:
            faults[at] = error.fault
    return faults


def _sifted(
    lines: Sequence[bytes],
    header: Sequence[str],
    kinds: dict[str, type],
    first: int,
    faults: dict[int, Fault],
    check: Check,
) -> pa.Table:
    """Return the sound lines as a table, and add what is wrong with the others to `faults`, by line."""
    rows: dict[int, tuple[Any, ...]] = {}
    for at, line in enumerate(lines, start=first):
        if at in faults:
            continue
        try:
            rows[at] = _row(_parse(line, at), header, at)
        except MalformedError as error:
            faults[at] = error.fault
    known = dict(kinds)
    try:
        table = _table(list(rows.values()), header, known, first)
    except MalformedError:
        pass
    else:
        if not check(table):
            kinds.update(known)
            return table
    # One by one, in order: what a column holds is what the first sound line says.
    found = {at: fault for at, values in rows.items() if (fault := _cell_fault(values, header))}
    rest = [at for at in rows if at not in found]
    spelled = [[_spelled(rows[at][place]) for at in rest] for place in range(len(header))]
    demanded = check(pa.table([pa.array(column, pa.string()) for column in spelled], names=header))
    found |= {rest[row]: fault for row, fault in demanded.items()}
    for at in rest:
        if at not in found and (fault := _other_kind(rows[at], header, kinds)):
            found[at] = fault
    faults |= found
    return _table([values for at, values in rows.items() if at not in found], header, kinds, first)


def _cell_fault(values: Sequence[Any], header: Sequence[str]) -> Fault | None:
    for name, value in zip(header, values, strict=True):
        if isinstance(value, tuple | list):
            return Fault("nested_value", name)
        if isinstance(value, str):
            if not _is_unicode(value):
                return Fault("not_unicode", name)
            if "\0" in value:
                return Fault("null_byte", name)
            if len(value.encode()) > MAX_CELL_BYTES:
                return Fault("oversized_cell", name)
    return None


def _other_kind(values: Sequence[Any], header: Sequence[str], kinds: dict[str, type]) -> Fault | None:
    """Tell in which column a line holds another kind of value than those above; if in none, `kinds` remembers it."""
    held = {name: type(value) for name, value in zip(header, values, strict=True) if value is not None}
    for name, kind in held.items():
        if kinds.get(name, kind) is not kind:
            return Fault("kind_of_value", name)
    kinds.update(held)
    return None


def _spelled(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _whole_lines(file: BinaryFile, block_bytes: int, number: int) -> Iterator[bytes]:
    rest, at_end = b"", False
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
        raise MalformedError(f"line {number}: {name} is no JSON", "not_json")

    try:
        value = json.loads(
            line.decode(), object_pairs_hook=tuple, parse_int=_Number, parse_float=_Number, parse_constant=refuse
        )
    except json.JSONDecodeError as error:
        where = f"line {number}: not JSON ({error.msg.lower()}, column {error.colno})"
        raise MalformedError(where, "not_json") from error
    except RecursionError as error:
        raise MalformedError(f"line {number}: JSON nested too deep", "nested_value") from error
    if type(value) is not tuple:
        raise MalformedError(f"line {number}: not a JSON object", "not_json")
    return value


def _row(pairs: tuple[tuple[str, Any], ...], header: Sequence[str], number: int) -> tuple[Any, ...]:
    """Return the values in the header's order."""
    names = [name for name, _ in pairs]
    if names != header:
        values = dict(pairs)
        if len(values) != len(names):
            raise MalformedError(f"line {number}: the object repeats a key", "other_keys")
        missing = next((name for name in header if name not in values), None)
        if missing is not None:
            raise MalformedError(f"line {number}: the key {missing!r} of line 1 is missing", "other_keys")
        if len(values) != len(header):
            raise MalformedError(f"line {number}: the object has a key that line 1 lacks", "other_keys")
        return tuple(values[name] for name in header)
    return tuple(value for _, value in pairs)


def _table(rows: Sequence[tuple[Any, ...]], header: Sequence[str], kinds: dict[str, type], first: int) -> pa.Table:
    cells = zip(*rows, strict=True) if rows else itertools.repeat((), len(header))
    columns = [_column(values, name, kinds, first) for name, values in zip(header, cells, strict=True)]
    return pa.Table.from_batches([pa.record_batch(columns, names=header)])


def _column(values: Sequence[Any], name: str, kinds: dict[str, type], first: int) -> pa.StringArray:
    """Return a column of one batch as text; `kinds` remembers what a column holds."""

    def refuse(index: int, text: str, reason: Reason) -> NoReturn:
        raise MalformedError(f"line {first + index}: column {name!r} {text}", reason, name)

    found = set(map(type, values)) - {type(None)}
    if found - {kinds.get(name)}:
        for index, value in enumerate(values):
            kind = type(value)
            if kind in (tuple, list):
                refuse(index, "is an object or an array; store text, numbers or booleans", "nested_value")
            if value is not None and kinds.setdefault(name, kind) is not kind:
                refuse(index, f"is {_KINDS[kind]}, above it is {_KINDS[kinds[name]]}", "kind_of_value")
    if found == {bool}:
        values = [_spelled(value) for value in values]
    try:
        array = pa.array(values, pa.string())
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; UTF-8 cannot
        refuse(
            next(index for index, value in enumerate(values) if value and not _is_unicode(value)),
            "is not Unicode",
            "not_unicode",
        )
    checks: tuple[tuple[pa.BooleanArray, str, Reason], ...] = (
        (pc.match_substring(array, "\0"), "holds a null byte", "null_byte"),
        (
            pc.greater(pc.binary_length(array), MAX_CELL_BYTES),
            f"has more than {MAX_CELL_BYTES} bytes",
            "oversized_cell",
        ),
    )
    for mask, text, reason in checks:
        index = pc.index(mask, True).as_py()
        if index >= 0:
            refuse(index, text, reason)
    return array


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
