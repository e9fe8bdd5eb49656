"""Strict RFC 4180 CSV, split into cells as vectors, block by block, so that every refusal can name its line.

The dialect is one: UTF-8 without byte-order mark, comma, double quotes around a whole cell or not at all, a quote
inside quotes doubled, lines ended by LF or CRLF, a header, the same number of cells in every record, no blank lines.
What other parsers read differently (a stray quote, a lone CR, a null byte) is refused rather than guessed.

Where malformed records are set aside, what `portcullis.ingest.malformed` says is one record.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.errors import DataError
from portcullis.files import BinaryFile, read_full
from portcullis.ingest.beginning import Beginning
from portcullis.ingest.malformed import Check, Fault, Malformed, MalformedError, Reason
from portcullis.table import MAX_COLUMNS, check_header

MAX_CELL_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20

_QUOTE, _COMMA, _LF, _CR = b'",\n\r'
_CHUNK = 1 << 18  # stays in the processor's cache
_STRAY: Mapping[Reason, str] = {
    "stray_quote": "a stray quote; quotes enclose a whole cell, doubled inside it",
    "cr_without_lf": "a CR without LF",
}
_UNCLEAR = ", in a record of several lines; where it ends is not clear, so it cannot be set aside"


@dataclass(frozen=True)
class CsvBlock:
    """Whole records of a CSV file, all cells text: an unquoted empty cell is null, a quoted one empty.

    Attributes:
        table: The records, (N rows, K columns), all of type string; the header is not among them.
        data: The block's bytes, ending in LF.
        starts: Where each cell of the N records starts in `data`, record after record: (N * K,) int64.
        line: The line of the file, from 1, that `data` begins on.
        rows: The number of each of the N records, from 1: (N,) int64.
        records: How many records the block holds: N, and those that were set aside.
        malformed: Those, in order.
    """

    table: pa.Table
    data: bytes
    starts: NDArray[np.int64]
    line: int
    rows: NDArray[np.int64]
    records: int
    malformed: Sequence[Malformed] = ()

    def position(self, row: int, column: int) -> str:
        """Name a cell of the block by the line of the file that it starts on and by its record, both from 1.

        The line counts LF bytes, so it is what an editor shows, also below a quoted line break; the header is line 1.
        The row counts records below the header.
        """
        start = int(self.starts[row * self.table.num_columns + column])
        return f"line {line_of(self.data, start, self.line)} (row {self.rows[row]})"


def read_csv(
    file: BinaryFile,
    *,
    block_bytes: int = BLOCK_BYTES,
    check: Check | None = None,
    beginning: Beginning | None = None,
) -> Iterator[CsvBlock]:
    """Read a CSV file block by block; how it is cut shows in no cell and no position.

    Args:
        file: At its start, or at that of a part of it, which ends with a record.
        block_bytes: About how many bytes are parsed at a time; a record of more makes for a larger block.
        check: What a description demands. With it, malformed records are set aside; without it the first is refused.
        beginning: Where the part begins; None for a file from its start.

    Yields:
        The blocks, each of at least one record, at least one block.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, no record, a bad header, a cell of more than
            1 MiB, or a record of more than 64 MiB. With `check`, only what concerns more than one record of one line.
    """
    begun = beginning or Beginning([], line=1, row=0, offset=0)
    header, line, row, offset = list(begun.header), begun.line, begun.row, begun.offset
    rest, at_end = b"", False
    while not at_end:
        part = read_full(file, block_bytes)
        at_end = len(part) < block_bytes
        data = rest + part
        if not header:
            check_beginning(data)
        if at_end:
            if check is None:
                check_encoding(data, line)
            data += b"" if data.endswith(b"\n") or not data else b"\n"
        strays: _Strays = {reason: [] for reason in _STRAY} if check else {}
        starts = _cell_starts(data, line, strays, at_end=at_end)
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8)[starts[1:] - 1] == _LF) + 1  # in cells
        whole = int(starts[ends[-1]]) if len(ends) else 0
        _check_sizes(data, np.append(_bounds(starts, ends), len(data)), line, row + bool(header))
        _check_open(data, whole, strays, line)
        if not len(ends):
            rest = data
            continue
        starts = starts[: ends[-1] + 1]
        data, rest = data[:whole], data[whole:]
        faults: dict[int, Fault] = {}
        if check:
            faults = _faults(data, starts, ends, len(header), strays, line, row)
        else:
            if not at_end:
                check_encoding(data, line)
            _check_records(data, starts, ends, len(header), line, row)
        first = 0  # the first record of the block that is not the header
        if not header:
            first = 1
            header = [name or "" for name in _unquoted(_cells(data, starts[: ends[0] + 1])).to_pylist()]
            check_header(header)
        if len(ends) > first:
            records = _Records(data, starts, ends, first, line, row, offset)
            yield records.block(header, faults, check)
            row += len(ends) - first
        line += data.count(b"\n")
        offset += len(data)
    if not row:
        raise DataError("the file has a header and no row")


_Strays = dict[Reason, list[NDArray[np.int64]]]
"""Where what is no part of the dialect lies in a block, by what it is; empty where the first is refused."""


@dataclass(frozen=True)
class _Records:
    """Whole records of a block; those before `first` are the header."""

    data: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    first: int
    line: int
    row: int
    offset: int

    def block(self, header: Sequence[str], faults: dict[int, Fault], check: Check | None) -> CsvBlock:
        """Split the sound records into columns, and set those with a fault aside."""
        width, cells = len(header), _cells(self.data, self.starts)
        numbers = np.arange(self.first, len(self.ends))
        starts = self.starts[int(self.ends[self.first - 1]) if self.first else 0 : -1]
        if faults:
            numbers = np.setdiff1d(numbers, list(faults))
            where = (np.append(0, self.ends)[numbers][:, None] + np.arange(width)).ravel()
            starts, cells = self.starts[where], cells.take(pa.array(where))
        else:
            cells = cells[len(cells) - len(starts) :]
        columns = [_unquoted(cells.take(pa.array(np.arange(at, len(cells), width)))) for at in range(width)]
        table = pa.table(columns, names=header)
        if found := check(table) if check else {}:
            sound = np.setdiff1d(np.arange(len(numbers)), list(found))
            faults |= {int(numbers[row]): fault for row, fault in found.items()}
            table, numbers = table.take(pa.array(sound)), numbers[sound]
            starts = starts.reshape(-1, width)[sound].ravel()
        rows = self.row + numbers + (1 - self.first)
        records = len(self.ends) - self.first
        return CsvBlock(table, self.data, starts, self.line, rows, records, self._malformed(faults))

    def _malformed(self, faults: Mapping[int, Fault]) -> list[Malformed]:
        found, line, counted = [], self.line, 0
        bounds = _bounds(self.starts, self.ends)
        for record in sorted(faults):
            start, end = int(bounds[record]), int(bounds[record + 1])
            line, counted = line + self.data.count(b"\n", counted, start), start
            found.append(Malformed(line, self.offset + start, faults[record], self.data[start : end - 1]))
        return found


def _bounds(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each record starts, and where the last ends."""
    found: NDArray[np.int64] = starts[np.append(0, ends)]
    return found


def _check_sizes(data: bytes, bounds: NDArray[np.int64], line: int, row: int) -> None:
    """Check the size of each record, the first being number `row`."""
    big = np.flatnonzero(np.diff(bounds) > MAX_RECORD_BYTES)
    if big.size:
        where = f"line {line_of(data, int(bounds[big[0]]), line)} (row {row + big[0]})"
        raise DataError(f"{where}: a record of more than {MAX_RECORD_BYTES} bytes")


def _check_open(data: bytes, start: int, strays: _Strays, line: int) -> None:
    """Check the record from `start` on that a block ends within: no line of it ends after a stray quote."""
    last = data.rfind(b"\n", start)
    for reason, found in strays.items():
        for offsets in found:
            _refuse(data, line, offsets[(offsets >= start) & (offsets < last)], f"{_STRAY[reason]}{_UNCLEAR}")


def _faults(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], width: int, strays: _Strays, line: int, row: int
) -> dict[int, Fault]:
    """Return the first fault of each record that has one; the arguments are those of `_check_records`.

    Raises:
        DataError: The header has one, or a record where it is not clear what is one record.
    """
    bounds = _bounds(starts, ends)
    if not width:
        width = int(ends[0])
        for reason, found in strays.items():
            for offsets in found:
                _refuse(data, line, offsets[offsets < bounds[1]], _STRAY[reason])
        check_encoding(data[: bounds[1]], line)
        _check_records(data[: bounds[1]], starts[: width + 1], ends[:1], 0, line, row)
        row -= 1
    first_bytes = np.frombuffer(data, dtype=np.uint8)[bounds[:-1]]
    wrong: dict[Reason, NDArray[np.int64]] = {
        **{
            reason: np.searchsorted(bounds, np.concatenate(found), side="right") - 1
            for reason, found in strays.items()
            if found
        },
        "number_of_cells": np.flatnonzero(np.diff(ends, prepend=0) != width),
        "blank_line": np.flatnonzero((width == 1) & ((first_bytes == _LF) | (first_bytes == _CR))),
        "oversized_cell": np.searchsorted(ends, np.flatnonzero(np.diff(starts) > MAX_CELL_BYTES + 1), side="right"),
    }
    faults: dict[int, Fault] = {}
    for reason, records in wrong.items():
        for record in np.unique(records).tolist():
            if record >= len(ends):
                continue  # in what is read again, with what follows
            start, end = int(bounds[record]), int(bounds[record + 1])
            if data.find(b"\n", start, end) < end - 1:
                where = f"line {line_of(data, start, line)} (row {row + record + 1})"
                raise DataError(f"{where}: {reason.replace('_', ' ')}{_UNCLEAR}")
            faults.setdefault(record, Fault(reason))
    if byte_fault(data):
        for record, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
            if record not in faults and (fault := byte_fault(data[start:end])):
                faults[record] = fault
    return faults


def _cells(data: bytes, starts: NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Return the cells as one array, each with the separator after it: no byte is copied."""
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) - 1, buffers)


def line_of(data: bytes, offset: int, first: int = 1) -> int:
    """Return the line that a byte lies on, where `data` begins on line `first`."""
    return data.count(b"\n", 0, offset) + first


def check_beginning(data: bytes) -> None:
    """Check that a text file begins as one is read here.

    Raises:
        DataError: It is empty, or begins with a byte-order mark.
    """
    if not data:
        raise DataError("the file is empty")
    if data.startswith(b"\xef\xbb\xbf"):
        raise DataError("line 1: the file starts with a byte-order mark; save it as UTF-8 without one")


def byte_fault(data: bytes) -> Fault | None:
    """Return what `check_encoding` would refuse bytes for."""
    try:
        check_encoding(data, 1)
    except MalformedError as error:
        return error.fault
    return None


def check_encoding(data: bytes, line: int) -> None:
    """Check that a part of a text file, which begins on `line`, is UTF-8 as it is read here.

    Raises:
        MalformedError: It holds a null byte, or is not UTF-8; with the line.
    """
    null = data.find(b"\0")
    if null >= 0:
        raise MalformedError(f"line {line_of(data, null, line)}: null byte", "null_byte")
    whole = pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, len(data)])), pa.py_buffer(data))
    try:
        whole.validate(full=True)  # decodes nothing, so it costs no memory
    except pa.ArrowInvalid as error:
        where = f"line {line_of(data, _first_undecodable(data), line)}"
        raise MalformedError(f"{where}: not UTF-8", "not_utf8") from error


def _first_undecodable(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _cell_starts(data: bytes, line: int, strays: _Strays, *, at_end: bool) -> NDArray[np.int64]:
    """Return where each cell starts, and where the last that is whole ends, having checked every quote and CR.

    What is stray goes into `strays`, or is refused where that is empty.
    """
    buffer = np.frombuffer(data, dtype=np.uint8)
    starts = [np.zeros(1, dtype=np.int64)]
    quoted = np.uint8(0)  # 1 between an opening quote and its closing one; carried from chunk to chunk
    for start in range(0, len(buffer), _CHUNK):
        chunk = buffer[start : start + _CHUNK]
        quotes = chunk == _QUOTE
        inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ quoted
        outside = inside == 0
        quoted = inside[-1]
        starts.append(np.flatnonzero(((chunk == _COMMA) | (chunk == _LF)) & outside) + (start + 1))
        # An opening quote follows a separator, a closing one precedes it; a doubled quote is a closing and an opening.
        # What follows the last byte is not known yet; then that byte is looked at again with what does.
        where = np.flatnonzero(quotes)
        opening, closing = where[inside[where] == 1] + start, where[inside[where] == 0] + start
        before = np.where(opening == 0, _LF, buffer[opening - 1])
        after = buffer[np.minimum(closing + 1, len(buffer) - 1)]
        stray = [
            opening[~np.isin(before, [_COMMA, _LF, _QUOTE])],
            closing[~np.isin(after, [_COMMA, _LF, _CR, _QUOTE])],
        ]
        _stray(data, line, np.sort(np.concatenate(stray)), "stray_quote", strays)
        returns = np.flatnonzero((chunk == _CR) & outside) + start
        returns = returns[returns < len(buffer) - 1]
        _stray(data, line, returns[buffer[returns + 1] != _LF], "cr_without_lf", strays)
    if quoted and at_end:
        raise DataError(f"line {line_of(data, data.rindex(_QUOTE), line)}: a quote is never closed")
    return np.concatenate(starts)


def _stray(data: bytes, line: int, offsets: NDArray[np.int64], reason: Reason, strays: _Strays) -> None:
    if reason in strays:
        strays[reason] += [offsets] if offsets.size else []
    else:
        _refuse(data, line, offsets, _STRAY[reason])


def _refuse(data: bytes, line: int, offsets: NDArray[np.int64], reason: str) -> None:
    if offsets.size:
        raise DataError(f"line {line_of(data, int(offsets[0]), line)}: {reason}")


def _check_records(
    data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], width: int, line: int, row: int
) -> None:
    """Check that each record has `width` cells, as many as the first one where that is 0, and every cell's size.

    Args:
        data: Whole records.
        starts: Where each cell starts.
        ends: After how many cells each record ends.
        width: Cells of the header, 0 where it is the first record.
        line: The line that `data` begins on.
        row: The number of the first record, less 1; one more where the first is the header.
    """
    first = row + 1 if width else 0  # the header's number is 0
    widths = np.diff(ends, prepend=0)
    width = width or int(widths[0])
    if width > MAX_COLUMNS:
        raise DataError(f"line 1: {width} columns; at most {MAX_COLUMNS} are allowed")
    wrong = np.flatnonzero(widths != width)
    if wrong.size:
        record = int(wrong[0])
        where = line_of(data, int(starts[ends[record - 1]]) if record else 0, line)
        raise DataError(f"line {where} (row {first + record}): {widths[record]} instead of {width} cells")
    if width == 1:  # where there are more columns, a blank line has too few cells
        first_bytes = np.frombuffer(data, dtype=np.uint8)[starts[:-1]]
        _refuse(data, line, starts[:-1][(first_bytes == _LF) | (first_bytes == _CR)], "a blank line")
    big = np.flatnonzero(starts[1:] - starts[:-1] > MAX_CELL_BYTES + 1)
    if big.size:
        where = line_of(data, int(starts[big[0]]), line)
        raise DataError(f"line {where} (row {first + big[0] // width}): a cell of more than {MAX_CELL_BYTES} bytes")


def _unquoted(raw: pa.LargeBinaryArray) -> pa.StringArray:
    """Turn raw cells, each with the separator after it, into text."""
    text = pc.binary_slice(raw, 0, -1).cast(pa.string())
    text = pc.utf8_rtrim(text, "\r")  # of CRLF; any other CR lies inside quotes
    text = pc.if_else(pc.equal(pc.binary_length(text), 0), pa.scalar(None, pa.string()), text)
    quoted = pc.starts_with(text, '"')
    if pc.any(quoted).as_py():
        inner = pc.replace_substring(pc.utf8_slice_codeunits(text, 1, -1), '""', '"')
        return pc.if_else(quoted, inner, text)
    return text
