"""Strict RFC 4180 CSV, split into cells as vectors, so that every refusal can name its line.

The dialect is one: UTF-8 without byte-order mark, comma, double quotes around a whole cell or not at all, a quote
inside quotes doubled, lines ended by LF or CRLF, a header, the same number of cells in every record, no blank lines.
What other parsers read differently (a stray quote, a lone CR, a null byte) is refused rather than guessed.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.errors import DataError
from portcullis.table import MAX_COLUMNS, check_header

MAX_CELL_BYTES = 1 << 20

_QUOTE, _COMMA, _LF, _CR = b'",\n\r'
_CHUNK = 1 << 18  # stays in the processor's cache


@dataclass(frozen=True)
class CsvTable:
    """A parsed CSV file: every column a string column, an unquoted empty cell null and a quoted one empty text.

    Attributes:
        table: The records below the header, (N rows, K columns), all of type string.
        data: The file's bytes, ending in LF.
        starts: Where each cell starts in `data`, header included, record after record, and where the file ends:
            ((N + 1) * K + 1,) int64.
    """

    table: pa.Table
    data: bytes
    starts: NDArray[np.int64]

    def position(self, row: int, column: int) -> str:
        """Name a cell by the line that it starts on and by its record, both from 1.

        The line counts LF bytes, so it is what an editor shows, also below a quoted line break; the header is line 1.
        The row counts records below the header.
        """
        start = int(self.starts[(row + 1) * self.table.num_columns + column])
        return f"line {line_of(self.data, start)} (row {row + 1})"


def parse_csv(data: bytes) -> CsvTable:
    """Parse CSV bytes.

    Raises:
        DataError: Not in the dialect above, with the line; an empty file, no record, a bad header, or a cell of more
            than 1 MiB.
    """
    check_encoding(data)
    if not data.endswith(b"\n"):
        data += b"\n"
    buffer = np.frombuffer(data, dtype=np.uint8)
    starts = _cell_starts(data, buffer)
    width = _check_records(data, buffer, starts)
    # The whole file as one array of cells, each with the separator after it: no byte is copied yet.
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    cells = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) - 1, buffers)
    header = [name or "" for name in _unquoted(cells[:width]).to_pylist()]
    check_header(header)
    records = cells[width:]
    if len(records) == 0:
        raise DataError("the file has a header and no row")
    columns = [_unquoted(records.take(pa.array(np.arange(index, len(records), width)))) for index in range(width)]
    return CsvTable(pa.table(columns, names=header), data, starts)


def line_of(data: bytes, offset: int) -> int:
    """Return the line, from 1, that a byte lies on."""
    return data.count(b"\n", 0, offset) + 1


def check_encoding(data: bytes) -> None:
    """Check that a text file is UTF-8 as it is read here.

    Raises:
        DataError: It is empty, begins with a byte-order mark, holds a null byte, or is not UTF-8; with the line.
    """
    if not data:
        raise DataError("the file is empty")
    if data.startswith(b"\xef\xbb\xbf"):
        raise DataError("line 1: the file starts with a byte-order mark; save it as UTF-8 without one")
    null = data.find(b"\0")
    if null >= 0:
        raise DataError(f"line {line_of(data, null)}: null byte")
    whole = pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, len(data)])), pa.py_buffer(data))
    try:
        whole.validate(full=True)  # decodes nothing, so it costs no memory
    except pa.ArrowInvalid as error:
        raise DataError(f"line {line_of(data, _first_undecodable(data))}: not UTF-8") from error


def _first_undecodable(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _cell_starts(data: bytes, buffer: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return where each cell starts, and the end of the file, having checked every quote and CR."""
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
        where = np.flatnonzero(quotes)
        opening, closing = where[inside[where] == 1] + start, where[inside[where] == 0] + start
        before, after = buffer[opening - 1], buffer[np.minimum(closing + 1, len(buffer) - 1)]
        stray = [
            opening[~np.isin(before, [_COMMA, _LF, _QUOTE])],
            closing[~np.isin(after, [_COMMA, _LF, _CR, _QUOTE])],
        ]
        _refuse(data, np.sort(np.concatenate(stray)), "a stray quote; quotes enclose a whole cell, doubled inside it")
        returns = np.flatnonzero((chunk == _CR) & outside) + start
        _refuse(data, returns[buffer[np.minimum(returns + 1, len(buffer) - 1)] != _LF], "a CR without LF")
    if quoted:
        opening = data.rindex(_QUOTE)
        raise DataError(f"line {line_of(data, opening)}: a quote is never closed")
    return np.concatenate(starts)


def _refuse(data: bytes, offsets: NDArray[np.int64], reason: str) -> None:
    if offsets.size:
        raise DataError(f"line {line_of(data, int(offsets[0]))}: {reason}")


def _check_records(data: bytes, buffer: NDArray[np.uint8], starts: NDArray[np.int64]) -> int:
    """Return the number of cells in each record, having checked that it is one number, and every cell's size."""
    lasts = np.flatnonzero(buffer[starts[1:] - 1] == _LF)
    widths = np.diff(lasts, prepend=-1)
    width = int(widths[0])
    if width > MAX_COLUMNS:
        raise DataError(f"line 1: {width} columns; at most {MAX_COLUMNS} are allowed")
    wrong = np.flatnonzero(widths != width)
    if wrong.size:
        record = int(wrong[0])
        line = line_of(data, int(starts[lasts[record - 1] + 1]))
        raise DataError(f"line {line} (row {record}): {widths[record]} instead of {width} cells")
    big = np.flatnonzero(starts[1:] - starts[:-1] > MAX_CELL_BYTES + 1)
    if big.size:
        line = line_of(data, int(starts[big[0]]))
        raise DataError(f"line {line} (row {big[0] // width}): a cell of more than {MAX_CELL_BYTES} bytes")
    return width


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
