"""The header of a safetensors file (format 0.4 and later), which says which tensors fill the rest of it."""

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from portcullis.errors import ModelError
from portcullis.files import BinaryFile, read_full

MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 1_000_000
MAX_AXES = 32
# Bits of one element, as safetensors names the types.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, order=True)
class Entry:
    """Where one tensor lies in the file, and what it is.

    Attributes:
        start: Its first byte, from the start of the file.
        end: The byte after its last.
        dtype: Its type, as safetensors names it.
        shape: Its axes.
    """

    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


def read_header(stream: BinaryFile, size: int) -> dict[str, Entry]:
    """Read the header of a file from its start; the tensors come in the order of the header.

    Args:
        stream: The file, at its start; it stands at its first tensor afterwards.
        size: Bytes of the whole file.

    Raises:
        ModelError: The header is no JSON of the format, names a tensor twice, or describes anything but tensors that
            fill the rest of the file without gap or overlap.
    """
    (length,) = struct.unpack("<Q", read_exactly(stream, 8))
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelError("the safetensors header is longer than the file or the limit")
    header = strict_json(read_exactly(stream, length).rstrip(b" "))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError("the safetensors metadata are not text")
    if not 1 <= len(header) <= MAX_TENSORS:
        raise ModelError("the safetensors file holds no tensors, or too many")
    entries = {name: _entry(described, 8 + length) for name, described in header.items()}
    position = 8 + length
    for entry in sorted(entries.values()):
        if entry.start != position:
            raise ModelError("the file's tensors overlap or leave gaps")
        position = entry.end
    if position != size:
        raise ModelError("the file is longer or shorter than its tensors")
    return entries


def _entry(described: Any, offset: int) -> Entry:
    match described:
        case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [int() as start, int() as end]}:
            pass
        case _:
            raise ModelError("the safetensors header describes something that is no tensor")
    known = dtype in _BITS and len(described) == 3 and len(shape) <= MAX_AXES
    if not known or not all(map(_is_size, (*shape, start, end))):
        raise ModelError("the safetensors header describes something that is no tensor")
    if (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ModelError("a tensor of the safetensors file has another length than its shape")
    return Entry(offset + start, offset + end, dtype, tuple(shape))


def strict_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object that names nothing twice.

    Raises:
        ModelError: It is something else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ModelError("its JSON names something twice")
        return found

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError("its JSON is malformed") from error
    if not isinstance(document, dict) or not data.startswith(b"{"):
        raise ModelError("its JSON is no object")
    return document


def _no_constant(name: str) -> None:
    raise ModelError(f"its JSON holds {name}")


def read_exactly(stream: BinaryFile, size: int) -> bytes:
    """Read bytes of a header.

    Raises:
        ModelError: The file ends before.
    """
    data = read_full(stream, size)
    if len(data) != size:
        raise ModelError("the file ends within its header")
    return data


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
