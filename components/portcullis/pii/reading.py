"""Values laid out for scanning: one byte per character, a separator between values, and the way back to their bytes.

A reading has only printable ASCII, tab, line breaks and three stand-ins: `LETTER` for any other letter, `DASH` for any
other dash, and `SYMBOL` for whatever else. That is all that recognisers ask about a character, and it lets them work on
arrays of bytes.

Plain values are read as they are. The others are read twice, since characters that nobody sees may hide an identifier
or keep two apart: as written, each character on its own; and folded (see `portcullis.pii.folding`), where one
character may become several or none. Either way a finding leads back to the exact bytes that spell it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.folding import fold

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.intp]

SEPARATOR = 0
# The encoding of a reading, in which the stand-ins are a letter, a dash and a symbol.
ENCODING = "cp1252"
LETTER, DASH, SYMBOL = "ä–¤".encode(ENCODING)
# Separators before the first value and after the last, so that looking a little around needs no check for the end.
MARGIN = 80
_BLOCK = 1 << 16

_ODD = np.ones(256, np.bool_)
_ODD[[*b"\t\n\r", *range(ord(" "), ord("~") + 1)]] = False
_VALUE_START = 0x110000  # beyond Unicode


@dataclass(frozen=True)
class Reading:
    """Some values of a column as bytes to scan.

    Attributes:
        text: The values in one row with a separator between two, and a margin of them at both ends.
        starts: Where in `text` each value starts, ascending.
        values: Which value of the column each is.
        begins: For each place of `text`, where in its value's bytes that character begins; None where a reading has a
            byte for each byte.
        ends: And where it ends, exclusive.
    """

    text: bytes
    starts: Ints
    values: Ints
    begins: Ints | None = None
    ends: Ints | None = None

    def cell_of(self, places: Ints) -> Ints:
        """Return which of the values each place of `text` lies in."""
        return np.searchsorted(self.starts, places, "right") - 1

    def stops(self) -> Ints:
        """Return where in `text` each value stops, exclusive."""
        return np.append(self.starts[1:] - 1, len(self.text) - MARGIN)

    def original(self, cells: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Return the bytes of the values that spell `text[starts:ends]`."""
        if self.begins is None or self.ends is None:
            return starts - self.starts[cells], ends - self.starts[cells]
        return self.begins[starts], self.ends[ends - 1]


def readings(values: Any, first: int) -> Iterator[Reading]:
    """Read values; `first` is the number of the first of them in its column.

    Args:
        values: A large_string array without nulls, of valid UTF-8.
        first: What to add to their numbers.
    """
    offsets, data = buffers(values)
    odd = np.zeros(len(values), np.bool_)
    if not _all_printable(data):
        odd[np.searchsorted(offsets, np.flatnonzero(looked_up(_ODD, data)), "right") - 1] = True
    if not odd.any():
        yield _as_written(values, np.arange(first, first + len(values)))
        return
    plain = np.flatnonzero(~odd)
    if len(plain):
        yield _as_written(values.take(pa.array(plain)), first + plain)
    strange = np.flatnonzero(odd)
    others = values.take(pa.array(strange))
    for folded in (False, True):
        yield _translated(others, first + strange, folded=folded)


def buffers(values: Any) -> tuple[Ints, Bytes]:
    """Return the offsets of a large_string array, from 0, and its bytes."""
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    data = values.buffers()[2]
    whole = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return offsets - offsets[0], whole[offsets[0] : offsets[-1]]


def _all_printable(data: Bytes) -> bool:
    """Tell whether all bytes are printable ASCII; in blocks, so that nothing large is made on the way."""
    blocks = (data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK))
    span = ord("~") - ord(" ")
    return all((block - ord(" ")).max() <= span for block in blocks)  # unsigned: what lies below wraps around


def looked_up(table: npt.NDArray[np.generic], data: Bytes) -> Bytes:
    """Return the entry of a table of 256 single bytes for each byte; several times as fast as `table[data]`."""
    return np.frombuffer(data.tobytes().translate(table.tobytes()), np.uint8)


def _as_written(values: Any, numbers: Ints) -> Reading:
    offsets, _ = buffers(values)
    row = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    joined = pc.binary_join(row, pa.scalar("\0", pa.large_string()))
    margin = bytes(MARGIN)
    text = b"".join((margin, buffers(joined)[1].data, margin))
    return Reading(text, offsets[:-1] + np.arange(MARGIN, len(values) + MARGIN), numbers)


def _translated(values: Any, numbers: Ints, *, folded: bool) -> Reading:
    offsets, data = buffers(values)
    codes = np.frombuffer(data.tobytes().decode().encode("utf-32-le"), np.uint32)
    widths = np.asarray(1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16), np.intp)
    firsts = np.searchsorted(np.cumsum(widths) - widths, offsets[:-1])
    codes = np.insert(codes, firsts, np.uint32(_VALUE_START))
    widths = np.insert(widths, firsts, 0)
    kinds, which = np.unique(codes, return_inverse=True)
    spellings = [_spelling(int(code), folded=folded) for code in kinds]
    lengths = np.array([len(spelling) for spelling in spellings], np.intp)
    before = np.cumsum(lengths) - lengths
    counts = lengths[which]
    source = np.repeat(np.arange(len(codes)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    text = np.frombuffer(b"".join(spellings), np.uint8)[before[which[source]] + within]
    # Each value's own separator comes before it: the margin is that much shorter.
    starts = np.flatnonzero(text == SEPARATOR) + MARGIN
    begins = np.cumsum(widths) - widths
    begins -= np.repeat(offsets[:-1], np.diff(np.append(np.flatnonzero(codes == _VALUE_START), len(codes))))
    pad = (MARGIN - 1, MARGIN)
    written = np.pad(text, pad).tobytes()
    return Reading(written, starts, numbers, np.pad(begins[source], pad), np.pad((begins + widths)[source], pad))


def _spelling(code: int, *, folded: bool) -> bytes:
    if code == _VALUE_START:
        return bytes([SEPARATOR])
    spelling = b"".join(map(_stand_in, fold(chr(code))))
    if folded:
        return spelling
    if spelling == b"-" and code != ord("-"):
        return bytes([DASH])
    if len(spelling) == 1:
        return spelling
    return b"\n" if chr(code).isspace() else _stand_in(chr(code))


def _stand_in(character: str) -> bytes:
    if character.isascii() and not _ODD[ord(character)]:
        return character.encode()
    return bytes([LETTER if character.isalnum() else SYMBOL])
