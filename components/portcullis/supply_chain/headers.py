"""Tensor files that begin with a header that describes them: safetensors, GGUF, NumPy arrays.

Each is judged by its header and its length alone: every tensor must have a known type and lie within the file, once,
and nothing may lie beside them.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from portcullis.errors import ModelError
from portcullis.safetensors_header import MAX_HEADER_BYTES, MAX_TENSORS, read_exactly, read_header

MAX_NPY_HEADER_BYTES = 10_000
MAX_AXES = 32
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
        ModelError: As `safetensors_header.read_header`.
    """
    found = read_header(stream, size).values()
    return Tensors(len(found), sum(math.prod(entry.shape) for entry in found))


def read_npy(stream: BinaryIO, size: int) -> Tensors:
    """Judge a NumPy array file (format 1.0 and 2.0), by the very spelling that NumPy gives a header.

    Raises:
        ModelError: The array holds Python objects, which are pickles, or anything but numbers, or has another length
            than its shape.
    """
    start = read_exactly(stream, len(_NPY_MAGIC) + 2)
    layout = {_NPY_MAGIC + b"\x01\x00": "<H", _NPY_MAGIC + b"\x02\x00": "<I"}.get(start)
    if layout is None:
        raise ModelError("a NumPy file of this version is not known")
    (length,) = struct.unpack(layout, read_exactly(stream, struct.calcsize(layout)))
    if length > MAX_NPY_HEADER_BYTES:
        raise ModelError("the NumPy header is longer than the limit")
    header = _NPY_HEADER.fullmatch(read_exactly(stream, length))
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
        return read_exactly(self._stream, size)

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
