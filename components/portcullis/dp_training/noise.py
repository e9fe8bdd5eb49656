"""Random numbers for private training, from AES-256-CTR under a key of the operating system's generator.

PyTorch's generator for the CPU has 32 bits of seed: whoever knows all rows but one could try every seed, and so take
the noise off again.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from portcullis.random_bits import RandomBits

_PIECE = 1 << 20


class RandomStream:
    """A stream of independent random numbers, in double precision."""

    def __init__(self) -> None:
        self._bits = RandomBits()

    @classmethod
    def unsafe_fixed_key(cls, key: bytes) -> "RandomStream":
        """Return a stream that whoever knows the key can repeat. For tests only: nothing is private."""
        stream = cls()
        stream._bits = RandomBits.unsafe_fixed_seed(key)
        return stream

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers in (0, 1), each the middle of one of 2**52 equal cells."""
        words = self._bits.words(count) >> np.uint64(12)
        return (words.astype(np.float64) + 0.5) * 2.0**-52  # exact: 53 bits

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return `count` numbers of the standard normal distribution, in floating point, at most 8.2 in size."""
        drawn = np.empty(count)
        for start in range(0, count, _PIECE):
            stop = min(start + _PIECE, count)
            drawn[start:stop] = ndtri(self.uniform(stop - start))
        return drawn
