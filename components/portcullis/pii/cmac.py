"""AES-CMAC (NIST SP 800-38B, RFC 4493) of many short messages at once, bit for bit that of each alone.

CMAC chains the blocks of a message, so one message cannot be hurried; but block k of all messages is one array, which
AES in ECB mode takes in one call.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from portcullis.pii.reading import buffers

_BLOCK = 16
# Longer messages are taken one by one: there AES itself takes the time, and few are of one length.
_MOST_BLOCKS = 16


def cmac(key: bytes, prefix: bytes, values: pa.LargeStringArray) -> npt.NDArray[np.uint8]:
    """Return the CMAC of `prefix` and each value, uint8 of shape (n, 16).

    Args:
        key: An AES key.
        prefix: Whole blocks, at least one, the same before each value.
        values: A large_string array without nulls.
    """
    encrypt = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305 - CMAC is built on single blocks
    whole, partial = _subkeys(encrypt(bytes(_BLOCK)))
    start = np.zeros(2, np.uint64)
    for block in np.frombuffer(prefix, np.uint64).reshape(-1, 2):
        start = np.frombuffer(encrypt((start ^ block).tobytes()), np.uint64)
    offsets, _ = buffers(values)
    lengths = np.diff(offsets)
    counts = (lengths + _BLOCK - 1) // _BLOCK
    codes = np.empty((len(values), _BLOCK), np.uint8)
    for count in np.unique(counts).tolist():
        which = np.flatnonzero(counts == count)
        group = values if len(which) == len(values) else values.take(pa.array(which))
        if not 0 < count <= _MOST_BLOCKS:
            codes[which] = [np.frombuffer(_one(key, prefix + text.encode()), np.uint8) for text in group.to_pylist()]
            continue
        text = buffers(pc.ascii_rpad(group, width=_BLOCK * count, padding="\0"))[1].reshape(len(group), -1).copy()
        short = np.flatnonzero(lengths[which] < _BLOCK * count)
        text[short, lengths[which][short]] = 0x80
        blocks = text.view(np.uint64).reshape(len(group), count, 2)
        blocks[:, -1] ^= whole
        blocks[short, -1] ^= whole ^ partial
        state = start[np.newaxis]
        for index in range(count):
            state = np.frombuffer(encrypt((blocks[:, index] ^ state).view(np.uint8).data), np.uint64).reshape(-1, 2)
        codes[which] = state.view(np.uint8)
    return codes


def _one(key: bytes, message: bytes) -> bytes:
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def _subkeys(zero: bytes) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return what is added to a last block that is whole, and to one that is filled up: RFC 4493, section 2.3."""
    first = _doubled(int.from_bytes(zero, "big"))
    second = _doubled(first)
    return tuple(np.frombuffer(number.to_bytes(_BLOCK, "big"), np.uint64) for number in (first, second))  # type: ignore[return-value]


def _doubled(number: int) -> int:
    return (number << 1 & (1 << 128) - 1) ^ (0x87 if number >> 127 else 0)
