"""Random numbers for private training, from AES-256-CTR under a key of the operating system's generator.

PyTorch's generator for the CPU has 32 bits of seed: whoever knows all rows but one could try every seed, and so take
the noise off again.
"""

import logging
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from scipy.special import ndtri

KEY_BYTES = 32

_PIECE = 1 << 20
_log = logging.getLogger(__name__)


class RandomStream:
    """A stream of independent random numbers, in double precision."""

    def __init__(self) -> None:
        self._start(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def unsafe_fixed_key(cls, key: bytes) -> "RandomStream":
        """Return a stream that whoever knows the key of 32 bytes can repeat. For tests only: nothing is private."""
        _log.warning("noise and sampling come from a fixed key; what is trained is not private")
        stream = cls()
        stream._start(key)
        return stream

    def _start(self, key: bytes) -> None:
        self._cipher = Cipher(AES256(key), CTR(bytes(16))).encryptor()  # one key, one stream: no counter repeats

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in (0, 1), each the middle of one of 2**52 equal cells."""
        words = np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8") >> np.uint64(12)
        return (words.astype(np.float64) + 0.5) * 2.0**-52  # exact: 53 bits

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers of the standard normal distribution, in floating point, at most 8.2 in size."""
        drawn = np.empty(count)
        for start in range(0, count, _PIECE):
            stop = min(start + _PIECE, count)
            drawn[start:stop] = ndtri(self.uniform(stop - start))
        return drawn
