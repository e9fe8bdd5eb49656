"""Discrete Laplace noise without bounds on integers within bounds: unbiased, and of an epsilon that is a fraction.

The scale is a fraction t / s, so each output has a probability proportional to exp(-|x| * s / t), and with inputs in
[low, high] the epsilon is exactly (high - low) * s / t: by the theorem about that distribution, which the sampler
follows exactly, and not by looking at all outputs, of which there is no end. What lies beyond 2**53 is brought back to
it after the noise, which can tell nothing more. The unit is one value, replaced by any other; delta is 0.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, DataError
from portcullis.privacy.mechanism import float_up
from portcullis.privacy.samplers import LIMIT, MAX_SCALE_PART, discrete_laplace
from portcullis.random_bits import RandomBits

GREATEST = 2**53 - 1  # the greatest integer that every reader of a table holds exactly

_MAX_DIVISOR = 256  # so that what the sampler leaves at its limit lies beyond what is clamped here, bounds and all


@dataclass(frozen=True)
class IntegerNoise:
    """Discrete Laplace noise of a scale, for integers in [low, high].

    Raises:
        DataError: The scale is not above 0, or its numerator or denominator is too large.
    """

    low: int
    high: int
    scale: Fraction

    def __post_init__(self) -> None:
        if not -GREATEST <= self.low < self.high <= GREATEST:
            raise DataError("integers that get noise lie between bounds below 2**53 in size")
        fits = self.scale > 0 and self.scale.numerator < MAX_SCALE_PART and self.scale.denominator <= _MAX_DIVISOR
        if not fits or not LIMIT // self.scale.denominator >= 2 * GREATEST:
            raise DataError("the scale of integer noise is a fraction above 0, its denominator at most 256")

    @property
    def epsilon(self) -> float:
        """The exact epsilon of this scale, rounded up."""
        return float_up((self.high - self.low) / self.scale)

    @property
    def expected_error(self) -> float:
        """The mean distance of output and input, to a float's precision."""
        return 1 / math.sinh(1 / self.scale) if self.scale > Fraction(1, 700) else 0.0

    def add_noise(self, values: NDArray[np.int64], bits: RandomBits) -> NDArray[np.int64]:
        """Return noisy integers for integers.

        Args:
            values: (N,) int64 in [low, high].
            bits: Where the randomness comes from.

        Returns:
            (N,) int64, below 2**53 in size.

        Raises:
            DataError: A value lies outside the bounds.
        """
        if values.dtype != np.int64 or (values.size and not (values.min() >= self.low and values.max() <= self.high)):
            raise DataError(f"noise is added to int64 values from {self.low} to {self.high}")
        noisy: NDArray[np.int64] = values + discrete_laplace(self.scale, len(values), bits)
        return noisy.clip(-GREATEST, GREATEST)


def integer_noise(low: int, high: int, epsilon: float) -> IntegerNoise:
    """Build noise whose epsilon is at most `epsilon`, of all scales with so small denominators the nearest to it.

    Raises:
        ConfigError: So small an epsilon needs a scale of 2**52 or more.
    """
    least = Fraction(high - low) / Fraction(epsilon)
    scale = min(Fraction(math.ceil(least * s), s) for s in range(1, _MAX_DIVISOR + 1))
    if not scale.numerator < MAX_SCALE_PART:
        scale = Fraction(math.ceil(least))
    if not scale.numerator < MAX_SCALE_PART:
        raise ConfigError(f"privacy: epsilon {epsilon:g} is too small for bounds so far apart")
    noise = IntegerNoise(low, high, scale)
    if not noise.epsilon <= epsilon:
        raise ConfigError(f"privacy: no scale keeps epsilon {epsilon:g}")
    return noise
