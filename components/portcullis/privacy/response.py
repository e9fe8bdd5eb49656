"""k-ary randomised response: a category stays what it is, or becomes any other one, each of those equally likely.

Warner 1965 for two categories; Kairouz, Bonawitz, Ramage 2016, arXiv:1602.07387, for k. Each output has a whole weight
out of 2**62, drawn by comparing a uniform integer below 2**62; epsilon is the log-ratio of the two weights that there
are, exact. The unit is one value, replaced by any other; delta is 0.
"""

from dataclasses import dataclass
from decimal import Context, localcontext
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, DataError
from portcullis.privacy.mechanism import TOTAL, ceiling, exponential, logarithm_up, uniform
from portcullis.privacy.settings import MAX_CATEGORIES
from portcullis.random_bits import RandomBits

_CHUNK = 1 << 16


@dataclass(frozen=True)
class RandomisedResponse:
    """Randomised response over `size` categories: each other one has weight `weight` out of 2**62, the same the rest.

    Raises:
        DataError: Fewer than 2 or too many categories, or a weight that is not whole or leaves none for the same.
    """

    size: int
    weight: int

    def __post_init__(self) -> None:
        # An empty cell may be one category more.
        if not 2 <= self.size <= MAX_CATEGORIES + 1 or type(self.weight) is not int or not self.weight >= 1:
            raise DataError(f"randomised response needs 2 to {MAX_CATEGORIES} categories and a whole weight from 1 on")
        if not self.same >= 1:
            raise DataError("the weights of randomised response add up to more than 2**62")

    @property
    def same(self) -> int:
        """The weight of a category that stays what it is."""
        return TOTAL - (self.size - 1) * self.weight

    @cached_property
    def epsilon(self) -> float:
        """The exact epsilon of these weights, rounded up: over every output and every pair of inputs."""
        return logarithm_up(Fraction(max(self.same, self.weight), min(self.same, self.weight)))

    @property
    def expected_error(self) -> Fraction:
        """How likely a category becomes another one; exact."""
        return Fraction((self.size - 1) * self.weight, TOTAL)

    def respond(self, categories: NDArray[np.int64], bits: RandomBits) -> NDArray[np.int64]:
        """Return noisy categories for categories.

        Args:
            categories: Indices (N,), int64 in [0, size).
            bits: Where the randomness comes from.

        Returns:
            Indices (N,), int64 in [0, size).

        Raises:
            DataError: An index is not of a category.
        """
        if categories.dtype != np.int64 or categories.ndim != 1 or (categories.size and not self._known(categories)):
            raise DataError(f"randomised response takes int64 indices from 0 to {self.size - 1}")
        noisy = categories.copy()
        for start in range(0, len(noisy), _CHUNK):
            chunk = noisy[start : start + _CHUNK]
            words = uniform(len(chunk), bits)
            changed = np.flatnonzero(words >= self.same)
            steps = (words[changed] - self.same) // self.weight + 1  # to another category, 1 to size - 1 further on
            chunk[changed] = (chunk[changed] + steps) % self.size
        return noisy

    def _known(self, categories: NDArray[np.int64]) -> bool:
        return bool(categories.min() >= 0 and categories.max() < self.size)


def randomised_response(epsilon: float, size: int) -> RandomisedResponse:
    """Build randomised response whose epsilon is at most `epsilon`; hardly less, up to about 40.

    Args:
        epsilon: Above 0.
        size: Number of categories, 2 to 4,096, and an empty cell.

    Raises:
        ConfigError: So small an epsilon has no weights of 62 bits with so many categories.
    """
    with localcontext(Context(prec=60)):
        weight = ceiling(TOTAL / (exponential(epsilon) + size - 1))
    if (size - 1) * weight < TOTAL:
        response = RandomisedResponse(size, weight)
        if response.epsilon <= epsilon:
            return response
    raise ConfigError(f"privacy: epsilon {epsilon:g} is too small for {size} categories")
