"""Noise for numbers that may be missing: an empty cell is one value more, which noise makes and takes away.

A number is lost with weight `made` out of 2**62, and else gets the noise of a table; an empty cell is filled with
weight `filled`: by a number drawn uniformly from the grid, with the same noise; else it stays. So no output is ever
impossible, and epsilon is again the greatest log-ratio of whole numbers over every output and every pair of inputs, of
which a missing value is one.

With E = exp(epsilon), of a table within epsilon, and S the most that a number's output is likelier under one point than
under a uniformly drawn one, both bounds are met with equality when

    made  = (E / S - 1) / (E**2 / S - 1)        an empty output: (1 - filled) / made = E
    filled = 1 - E * made                        a number's:      (1 - made) * S / filled = E
"""

from dataclasses import dataclass
from decimal import Context, localcontext
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, DataError
from portcullis.privacy.mechanism import TOTAL, NoiseTable, ceiling, exponential, laplace_table, logarithm_up, uniform
from portcullis.privacy.samplers import uniform_below
from portcullis.random_bits import RandomBits


@dataclass(frozen=True)
class NullableTable:
    """A table of noise, and how likely a number is lost and an empty cell becomes a number.

    Attributes:
        table: The noise of numbers.
        made: The weight, out of 2**62, with which a number is lost.
        filled: The weight, out of 2**62, with which an empty cell becomes a number.

    Raises:
        DataError: A weight is not whole, or makes something certain or impossible.
    """

    table: NoiseTable
    made: int
    filled: int

    def __post_init__(self) -> None:
        if not all(type(weight) is int and 1 <= weight < TOTAL for weight in (self.made, self.filled)):
            raise DataError("the weights of empty cells are whole numbers from 1 to 2**62 - 1")

    @cached_property
    def epsilon(self) -> float:
        """The exact epsilon, rounded up: over every output and every pair of inputs, an empty cell included."""
        return logarithm_up(max(Fraction(max(weights), min(weights)) for weights in self._weights()))

    def _weights(self) -> list[tuple[int, ...]]:
        """Return for each output its extreme weights over all inputs, to a scale that is the output's own."""
        number, steps = TOTAL - self.made, self.table.steps
        outputs = zip(self.table.extremes, self.table.totals, strict=True)
        return [
            (self.made, TOTAL - self.filled),
            *((number * steps * most, number * steps * least, self.filled * total) for (most, least), total in outputs),
        ]

    def add_noise(
        self, points: NDArray[np.int64], empty: NDArray[np.bool_], bits: RandomBits
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return noisy grid points and which cells are empty now.

        Args:
            points: Indices on the grid (N,), int64 in [0, steps); any where the cell is empty.
            empty: Which cells are empty, (N,) bool.
            bits: Where the randomness comes from.

        Returns:
            Indices (N,), int64 in [0, steps), and which cells are empty, (N,) bool; an index there says nothing.

        Raises:
            DataError: An index is not on the grid.
        """
        drawn = uniform_below(self.table.steps, len(points), bits)
        noisy = self.table.add_noise(np.where(empty, drawn, points), bits)
        words = uniform(len(points), bits)
        return noisy, np.where(empty, words >= self.filled, words < self.made)


def nullable_table(epsilon: float, steps: int) -> NullableTable:
    """Build a table with empty cells whose epsilon is at most `epsilon`; hardly less, up to about 20.

    Args:
        epsilon: Above 0.
        steps: Number of grid points, 2 to 4,096.

    Raises:
        ConfigError: So small an epsilon has no table of 62 bits with so many steps.
    """
    table = laplace_table(epsilon, steps)
    with localcontext(Context(prec=60)):
        pairs = zip(table.extremes, table.totals, strict=True)
        surplus = max(Fraction(most * steps, total) for (most, _), total in pairs)
        bound = exponential(epsilon)
        ratio = bound * surplus.denominator / surplus.numerator
        lost = (ratio - 1) / (ratio * bound - 1)
        made, filled = ceiling(TOTAL * lost), ceiling(TOTAL * (1 - bound * lost))
    if 1 <= made < TOTAL and 1 <= filled < TOTAL:
        noise = NullableTable(table, made, filled)
        if noise.epsilon <= epsilon:
            return noise
    raise ConfigError(f"privacy: epsilon {epsilon:g} is too small for {steps} steps and empty cells; take fewer steps")
