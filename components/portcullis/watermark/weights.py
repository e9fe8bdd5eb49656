"""The tensors of a safetensors file as numpy arrays, and the same file with other values in it.

bfloat16, which numpy does not know, is widened to float32 on reading and rounded to the nearest, ties to even, on
writing; a value that came out of such a file goes back unchanged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from portcullis.digest import parse_json
from portcullis.errors import DataError, ModelError
from portcullis.models.store import MAX_WEIGHTS_BYTES, WEIGHTS_FILE

_BFLOAT16 = "BF16"
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    _BFLOAT16: "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}
_LENGTH_BYTES = 8


def decode_weights(data: bytes) -> dict[str, NDArray[Any]]:
    """Read a safetensors file.

    Args:
        data: Its bytes; they are not trusted.

    Returns:
        Tensors by name; those of floating-point numbers are finite.

    Raises:
        ModelError: It is no safetensors file, too large, holds a type that no model has, or a value that is not finite.
    """
    if len(data) > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{WEIGHTS_FILE} has {len(data)} bytes; {MAX_WEIGHTS_BYTES} are allowed")
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ModelError(f"{WEIGHTS_FILE} is not a safetensors file: {error}") from error
    tensors: dict[str, NDArray[Any]] = {}
    for name, stored in found:
        if stored["dtype"] not in _DTYPES:
            raise ModelError(f"tensor {name!r} is of type {stored['dtype']}, which no model has")
        try:
            flat = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]])
            shaped = flat.reshape(stored["shape"])
        except (ValueError, OverflowError) as error:  # of sizes that no array can have
            raise ModelError(f"tensor {name!r} has a shape that no model has: {error}") from error
        if stored["dtype"] == _BFLOAT16:
            shaped = (shaped.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(shaped).all():
            raise ModelError(f"tensor {name!r} holds NaN or an infinity")
        tensors[name] = shaped
    return tensors


def replace_weights(data: bytes, tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a safetensors file with other values, and the same names, types, shapes and order to the byte.

    Args:
        data: A file that `decode_weights` reads.
        tensors: Every tensor of it by name, of the shape and type that `decode_weights` gives it.

    Raises:
        ModelError: The header is not strict JSON, or the tensors are not those of the file.
    """
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header = parse_json(data[_LENGTH_BYTES:start], limit=len(data))
    except DataError as error:
        raise ModelError(f"{WEIGHTS_FILE}: {error}") from error
    header.pop("__metadata__", None)
    if header.keys() != tensors.keys():
        raise ModelError(f"other tensors than those of {WEIGHTS_FILE}")
    replaced = bytearray(data)
    for name, entry in header.items():
        narrow = tensors[name]
        if entry["dtype"] == _BFLOAT16 and narrow.dtype == np.float32:
            narrow = _to_bfloat16(narrow)
        if narrow.dtype != np.dtype(_DTYPES[entry["dtype"]]) or list(narrow.shape) != entry["shape"]:
            raise ModelError(f"tensor {name!r} is not of the type and shape that it has in {WEIGHTS_FILE}")
        first, last = entry["data_offsets"]
        replaced[start + first : start + last] = narrow.tobytes()
    return bytes(replaced)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite values to nearest, ties to even (IEEE 754); beyond the largest bfloat16 lies infinity."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
