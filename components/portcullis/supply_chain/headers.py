"""Tensor files that begin with a header that describes them: safetensors, GGUF, NumPy arrays.

Each is judged by its header and its length alone: every tensor must have a known type and lie within the file, once,
and nothing may lie beside them.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from portcullis.errors import ModelError
from portcullis.files import read_full

MAX_HEADER_BYTES = 64 << 20
MAX_NPY_HEADER_BYTES = 10_000
MAX_TENSORS = 1_000_000
MAX_AXES = 32
# Bits of one element, as safetensors names the types.
_SAFETENSORS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# GGML's types: elements and bytes of one block (ggml.h).
_GGML = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    30: (1, 2),  # BF16
}
# GGUF's scalar metadata types and their bytes; 8 is text, 9 an array.
_GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = re.compile(
    rb"\{'descr': '[<>|](?P<type>b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32))', 'fortran_order': (?:True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,19},(?: \d{1,19}(?:, \d{1,19}){0,31})?)?)\), \} *\n"
)
_GGUF_TEXT, _GGUF_ARRAY, _GGUF_UINT32 = 8, 9, 4


@dataclass(frozen=True)
class Tensors:
    """What a file holds.

    Attributes:
        tensors: How many.
        elements: Of all of them.
    """

    tensors: int
    elements: int


def read_safetensors(stream: BinaryIO, size: int) -> Tensors:
    """Judge a safetensors file (format 0.4 and later).

    Raises:
        ModelError: The header is no JSON of the format, names a tensor twice, or describes anything but tensors that
            fill the rest of the file without gap or overlap.
    """
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelError("the safetensors header is longer than the file or the limit")
    header = strict_json(_exactly(stream, length).rstrip(b" "))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError("the safetensors metadata are not text")
    if not 1 <= len(header) <= MAX_TENSORS:
        raise ModelError("the safetensors file holds no tensors, or too many")
    spans = []
    elements = 0
    for described in header.values():
        match described:
            case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [int() as start, int() as end]}:
                pass
            case _:
                raise ModelError("the safetensors header describes something that is no tensor")
        known = dtype in _SAFETENSORS and len(described) == 3 and len(shape) <= MAX_AXES
        if not known or not all(map(_is_size, (*shape, start, end))):
            raise ModelError("the safetensors header describes something that is no tensor")
        count = math.prod(shape)
        if (end - start) * 8 != count * _SAFETENSORS[dtype]:
            raise ModelError("a tensor of the safetensors file has another length than its shape")
        elements += count
        spans.append((start, end))
    _require_filled(spans, size - 8 - length)
    return Tensors(len(spans), elements)


def _require_filled(spans: list[tuple[int, int]], size: int) -> None:
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise ModelError("the file's tensors overlap or leave gaps")
        position = end
    if position != size:
        raise ModelError("the file is longer or shorter than its tensors")


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


def read_npy(stream: BinaryIO, size: int) -> Tensors:
    """Judge a NumPy array file (format 1.0 and 2.0), by the very spelling that NumPy gives a header.

    Raises:
        ModelError: The array holds Python objects, which are pickles, or anything but numbers, or has another length
            than its shape.
    """
    start = _exactly(stream, len(_NPY_MAGIC) + 2)
    layout = {_NPY_MAGIC + b"\x01\x00": "<H", _NPY_MAGIC + b"\x02\x00": "<I"}.get(start)
    if layout is None:
        raise ModelError("a NumPy file of this version is not known")
    (length,) = struct.unpack(layout, _exactly(stream, struct.calcsize(layout)))
    if length > MAX_NPY_HEADER_BYTES:
        raise ModelError("the NumPy header is longer than the limit")
    header = _NPY_HEADER.fullmatch(_exactly(stream, length))
    if header is None:
        raise ModelError("the NumPy file holds something else than numbers, or its header is malformed")
    count = math.prod(int(axis) for axis in header["shape"].split(b",") if axis.strip())
    beginning = len(_NPY_MAGIC) + 2 + struct.calcsize(layout) + length
    if beginning + count * int(header["type"][1:]) != size:
        raise ModelError("the NumPy array has another length than its shape")
    return Tensors(1, count)


def read_gguf(stream: BinaryIO, size: int) -> Tensors:
    """Judge a GGUF file (version 2 and 3, little-endian).

    Raises:
        ModelError: The header is malformed, of unknown types, or carries a chat template, which servers run as code;
            or its tensors do not lie in the file one after the other.
    """
    reader = _Gguf(stream, min(size, MAX_HEADER_BYTES))
    if reader.take(4) != b"GGUF" or reader.number("<I") not in (2, 3):
        raise ModelError("a GGUF file of this version is not known")
    tensors, pairs = reader.number("<Q"), reader.number("<Q")
    if not 1 <= tensors <= MAX_TENSORS or pairs > MAX_TENSORS:
        raise ModelError("the GGUF file holds no tensors, or too many")
    alignment = 32
    seen = set()
    for _ in range(pairs):
        key, kind = reader.text(), reader.number("<I")
        if key in seen:
            raise ModelError("the header names something twice")
        seen.add(key)
        if key.startswith("tokenizer.chat_template"):
            raise ModelError("the GGUF file carries a chat template, a program that servers run")
        if key == "general.alignment" and kind == _GGUF_UINT32:
            alignment = reader.number("<I")
            if not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
                raise ModelError("the GGUF file's alignment is no power of two")
        else:
            reader.skip_value(kind)
    described = [reader.tensor() for _ in range(tensors)]
    if len({name for name, _, _, _ in described}) != tensors:
        raise ModelError("the header names something twice")
    position, start = 0, -(-reader.position // alignment) * alignment
    for _, _, length, offset in sorted(described, key=lambda it: it[3]):
        if offset != position:
            raise ModelError("the file's tensors overlap or leave gaps")
        position = -(-(offset + length) // alignment) * alignment
        end = offset + length
    if size not in (start + end, start + position):  # the last one may be padded or not
        raise ModelError("the file is longer or shorter than its tensors")
    return Tensors(tensors, sum(count for _, count, _, _ in described))


class _Gguf:
    """Reads a GGUF header, up to a limit."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self.position = 0

    def take(self, size: int) -> bytes:
        self.position += size
        if self.position > self._limit:
            raise ModelError("the GGUF header is longer than the file or the limit")
        return _exactly(self._stream, size)

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def text(self) -> str:
        data = self.take(self.number("<Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError("the GGUF header holds text that is no UTF-8") from error

    def skip_value(self, kind: int) -> None:
        if kind == _GGUF_TEXT:
            self.take(self.number("<Q"))
        elif kind == _GGUF_ARRAY:
            of, count = self.number("<I"), self.number("<Q")
            if of in _GGUF_SCALARS:
                self.take(_GGUF_SCALARS[of] * count)
            elif of == _GGUF_TEXT and count <= self._limit:
                for _ in range(count):
                    self.take(self.number("<Q"))
            else:
                raise ModelError("the GGUF header holds an array of arrays, or of an unknown type")
        elif kind in _GGUF_SCALARS:
            self.take(_GGUF_SCALARS[kind])
        else:
            raise ModelError("the GGUF header holds a value of an unknown type")

    def tensor(self) -> tuple[str, int, int, int]:
        """Return name, elements, bytes and offset."""
        name, axes = self.text(), self.number("<I")
        if not 1 <= axes <= 4:
            raise ModelError("a tensor of the GGUF file has no sound shape")
        count = math.prod(self.number("<Q") for _ in range(axes))
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in _GGML:
            raise ModelError("a tensor of the GGUF file is of an unknown type")
        block, length = _GGML[kind]
        if count < 1 or count % block:
            raise ModelError("a tensor of the GGUF file has no sound shape")
        return name, count, count // block * length, offset


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = read_full(stream, size)
    if len(data) != size:
        raise ModelError("the file ends within its header")
    return data


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
