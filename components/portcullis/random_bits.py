"""Random bits for noise: the AES-256-CTR key stream under a key from the operating system's random generator.

AES in counter mode under a fresh secret key is a random generator as strong as AES (it is the heart of CTR_DRBG, NIST
SP 800-90A). That its bits cannot be told from uniform ones is the one assumption, beside arithmetic, that the privacy
of the noise rests on: against whoever could, no differential privacy is claimed.
"""

import hashlib
import logging
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

KEY_BYTES = 32
WORD_BITS = 64

_BLOCK = 16
_PIECE = 1 << 20

_log = logging.getLogger(__name__)


class RandomBits:
    """A stream of random 64-bit words that only moves forward: no word is handed out twice, and none can be had again.

    The key is drawn when the stream is made, is kept nowhere, and encrypts zeros from counter 0 on; the counter has 128
    bits and does not come round. A stream belongs to one thread; in a forked process it goes on under a key of its own.
    """

    def __init__(self) -> None:
        self._start(os.urandom(KEY_BYTES))
        self._fixed = False

    @classmethod
    def unsafe_fixed_seed(cls, seed: bytes) -> "RandomBits":
        """Return a stream that whoever knows the seed can repeat, and so take the noise off again. For tests only."""
        _log.warning("the noise comes from a fixed seed; the result is not private")
        bits = cls()
        bits._start(hashlib.sha256(seed).digest())
        bits._fixed = True
        return bits

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next `count` words, (count,) uint64, uniform in [0, 2**64)."""
        if self._process != os.getpid() and not self._fixed:
            self._start(os.urandom(KEY_BYTES))
        size = 8 * count
        room = np.empty(size + _BLOCK, dtype=np.uint8)  # OpenSSL asks for room for a block more than it writes
        view = room.data
        for start in range(0, size, _PIECE):
            piece = min(_PIECE, size - start)
            self._stream.update_into(_ZEROS[:piece], view[start : start + piece + _BLOCK])
        return room[:size].view("<u8")

    def halves(self, count: int) -> NDArray[np.uint32]:
        """Return `count` words of half the size, (count,) uint32, uniform in [0, 2**32)."""
        return self.words((count + 1) // 2).view("<u4")[:count]

    def _start(self, key: bytes) -> None:
        # No key and counter ever meet again: the key is new, and so the counter may begin at 0.
        self._stream = Cipher(AES256(key), CTR(bytes(_BLOCK))).encryptor()
        self._process = os.getpid()


_ZEROS = memoryview(bytes(_PIECE))
