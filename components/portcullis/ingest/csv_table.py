"""Strict RFC 4180 CSV, split into cells as vectors, block by block, so that every refusal can name its line.

The dialect is one: UTF-8 without byte-order mark, comma, double quotes around a whole cell or not at all, a quote
inside quotes doubled, lines ended by LF or CRLF, a header, the same number of cells in every record, no blank lines.
What other parsers read differently (a stray quote, a lone CR, a null byte) is refused rather than guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.errors import DataError
from portcullis.files import BinaryFile, read_full
from portcullis.table import MAX_COLUMNS, check_header

MAX_CELL_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20

_QUOTE, _COMMA, _LF, _CR = b'",\n\r'
_CHUNK = 1 << 18  # stays in the processor's cache


@dataclass(frozen=True)
class CsvBlock:
    """Whole records of a CSV file, all cells text: an unquoted empty cell is null, a quoted one empty.

    Attributes:
        table: The records, (N rows, K columns), all of type string; the header is not among them.
        data: The block's bytes, ending in LF.
        starts: Where each cell of the N records starts in `data`, record after record: (N * K,) int64.
        line: The line of the file, from 1, that `data` begins on.
        row: How many records below the header come before the block.
    """

    table: pa.Table
    data: bytes
    starts: NDArray[np.int64]
    line: int
    row: int

    def position(self, row: int, column: int) -> str:
        """Name a cell of the block by the line of the file that it starts on and by its record, both from 1.

        The line counts LF bytes, so it is what an editor shows, also below a quoted line break; the header is line 1.
        The row counts records below the header.
        """
        start = int(self.starts[row * self.table.num_columns + column])
        return f"line {line_of(self.data, start, self.line)} (row {self.row + row + 1})"


def read_csv(file: BinaryFile, *, block_bytes: int = BLOCK_BYTES) -> Iterator[CsvBlock]:
    """Read a CSV file block by block; how it is cut shows in no cell and no position.

    Args:
        file: At its start.
        block_bytes: About how many bytes are parsed at a time; a record of more makes for a larger block.

    Yields:
        The blocks, each of at least one record, at least one block.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, no record, a bad header, a cell of more than
            1 MiB, or a record of more than 64 MiB.
    """
    header: list[str] = []
    line, row, rest, at_end = 1, 0, b"", False
    while not at_end:
        part = read_full(file, block_bytes)
        at_end = len(part) < block_bytes
        data = rest + part
        if not header:
            check_beginning(data)
        if at_end:
            check_encoding(data, line)
            data += b"" if data.endswith(b"\n") or not data else b"\n"
        starts = _cell_starts(data, line, at_end=at_end)
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8)[starts[1:] - 1] == _LF) + 1  # in cells
        if not len(ends):
            if len(data) > MAX_RECORD_BYTES:
                raise DataError(f"line {line} (row {row}): a record of more than {MAX_RECORD_BYTES} bytes")
            rest = data
            continue
        starts = starts[: ends[-1] + 1]
        data, rest = data[: starts[-1]], data[starts[-1] :]
        if not at_end:
            check_encoding(data, line)
        _check_records(data, starts, ends, len(header), line, row)
        cells = _cells(data, starts)
        if header:
            records, first = cells, starts[:-1]
        else:
            width = int(ends[0])
            header = [name or "" for name in _unquoted(cells[:width]).to_pylist()]
            check_header(header)
            records, first = cells[width:], starts[width:-1]
        width = len(header)
        if len(records):
            columns = [_unquoted(records.take(pa.array(np.arange(at, len(records), width)))) for at in range(width)]
            yield CsvBlock(pa.table(columns, names=header), data, first, line, row)
            row += len(records) // width
        line += data.count(b"\n")
    if not row:
        raise DataError("the file has a header and no row")


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


def check_encoding(data: bytes, line: int) -> None:
    """Check that a part of a text file, which begins on `line`, is UTF-8 as it is read here.

    Raises:
        DataError: It holds a null byte, or is not UTF-8; with the line.
    """
    null = data.find(b"\0")
    if null >= 0:
        raise DataError(f"line {line_of(data, null, line)}: null byte")
    whole = pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, len(data)])), pa.py_buffer(data))
    try:
        whole.validate(full=True)  # decodes nothing, so it costs no memory
    except pa.ArrowInvalid as error:
        raise DataError(f"line {line_of(data, _first_undecodable(data), line)}: not UTF-8") from error


def _first_undecodable(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _cell_starts(data: bytes, line: int, *, at_end: bool) -> NDArray[np.int64]:
    """Return where each cell starts, and where the last that is whole ends, having checked every quote and CR."""
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
        reason = "a stray quote; quotes enclose a whole cell, doubled inside it"
        _refuse(data, line, np.sort(np.concatenate(stray)), reason)
        returns = np.flatnonzero((chunk == _CR) & outside) + start
        returns = returns[returns < len(buffer) - 1]
        _refuse(data, line, returns[buffer[returns + 1] != _LF], "a CR without LF")
    if quoted and at_end:
        raise DataError(f"line {line_of(data, data.rindex(_QUOTE), line)}: a quote is never closed")
    return np.concatenate(starts)


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
