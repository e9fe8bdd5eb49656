"""Discrete Laplace noise from a table of integers, whose epsilon is that of the very integers and not of a formula.

A value is brought to one of `steps` grid points, an integer of discrete Laplace noise is added, and the sum is clamped
to the grid. The noise is drawn by comparing a uniform random integer below 2**62 with the table's running sums, so each
output has an exact integer weight out of 2**62 for each input. Inputs and outputs are finitely many: epsilon, the
greatest log-ratio of the weights of one output under two inputs, is computed over all of them.

A column that may be empty has a composite of that table and of a coin (`nulls`); one of categories, k-ary randomised
response (`response`), drawn from the same kind of integers; both state their epsilon in the same way.

The unit is one value, replaced by any other (local differential privacy); delta is 0. Noise in floating point cannot
keep such a promise: its low bits tell which value it was added to (Mironov 2012, 10.1145/2382196.2382264).

Clamping gives the truncated geometric mechanism (Ghosh, Roughgarden, Sundararajan 2009, arXiv:0811.2841).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, DataError
from portcullis.privacy.settings import MAX_STEPS, MIN_STEPS
from portcullis.random_bits import WORD_BITS, RandomBits

BITS = 62  # one below int64's 63, so that sums and differences of weights stay exact in it
TOTAL = 1 << BITS

_CHUNK = 1 << 16
_GUIDE_BITS = 16
_PRECISION = 60
# The table is built a hair below the epsilon that is asked for, so that rounding never lifts it above.
_HAIR = Decimal("1e-12")
# Far above the error of Decimal's logarithm in 60 digits, and far below half a unit in a float's last place.
_LOGARITHM_ERROR = Decimal("1e-40")


@dataclass(frozen=True)
class NoiseTable:
    """The weights of the noise -(steps - 1) … steps - 1, out of 2**62; the two ends hold what lies beyond them too.

    Raises:
        DataError: Not 2 * steps - 1 whole numbers of at least 1 that add up to 2**62.
    """

    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        sized = len(self.weights) % 2 == 1 and MIN_STEPS <= self.steps <= MAX_STEPS
        if not sized or any(type(weight) is not int or weight < 1 for weight in self.weights):
            raise DataError(
                "a table of noise needs 2 * steps - 1 whole weights of at least 1, or some output is impossible"
            )
        if sum(self.weights) != TOTAL:
            raise DataError(f"the weights of a table of noise add up to {sum(self.weights)}, not 2**{BITS}")

    @property
    def steps(self) -> int:
        """The number of grid points."""
        return (len(self.weights) + 1) // 2

    @cached_property
    def sums(self) -> NDArray[np.int64]:
        """The running sums of the weights, (2 * steps - 1,) int64, the last one 2**62."""
        return np.cumsum(np.array(self.weights, dtype=np.int64))

    @cached_property
    def epsilon(self) -> float:
        """The exact epsilon of this table, rounded up: over every output and every pair of inputs."""
        return logarithm_up(max(Fraction(most, least) for most, least in self.extremes))

    @cached_property
    def extremes(self) -> list[tuple[int, int]]:
        """Return for each output its greatest and its least weight over all inputs."""
        steps, sums = self.steps, self.sums
        # The lowest output takes all noise up to -input, the highest all from steps - 1 - input, any other one weight.
        lowest, highest = sums[:steps], TOTAL - sums[steps - 2 : -1]
        within = np.lib.stride_tricks.sliding_window_view(np.array(self.weights, dtype=np.int64), steps)[1:-1]
        first, last = ((int(side.max()), int(side.min())) for side in (lowest, highest))
        return [first, *zip(within.max(axis=1).tolist(), within.min(axis=1).tolist(), strict=True), last]

    @cached_property
    def expected_error(self) -> Fraction:
        """The mean distance of output and input in steps, over all grid points as inputs alike; exact."""
        steps, sums = self.steps, self.sums.tolist()
        whole = 0
        for noise in range(2 - steps, steps - 1):
            # Inputs for which this noise leads to neither end.
            inputs = min(steps - 1, steps - 2 - noise) - max(0, 1 - noise) + 1
            whole += inputs * abs(noise) * self.weights[noise + steps - 1]
        for distance in range(1, steps):
            whole += distance * (sums[steps - 1 - distance] + TOTAL - sums[steps - 2 + distance])
        return Fraction(whole, TOTAL * steps)

    @cached_property
    def totals(self) -> list[int]:
        """Each output's weight, added up over all inputs."""
        steps, sums = self.steps, self.sums.tolist()
        lowest, highest = sum(sums[:steps]), sum(TOTAL - it for it in sums[steps - 2 : -1])
        within = [sums[output + steps - 1] - sums[output - 1] for output in range(1, steps - 1)]
        return [lowest, *within, highest]

    def weights_of(self, point: int) -> list[int]:
        """Return each output's weight out of 2**62 where the input is a grid point, 0 to steps - 1."""
        steps, sums = self.steps, self.sums.tolist()
        within = self.weights[steps - point : 2 * steps - 2 - point]
        return [sums[steps - 1 - point], *within, TOTAL - sums[2 * steps - 3 - point]]

    def add_noise(self, points: NDArray[np.int64], bits: RandomBits) -> NDArray[np.int64]:
        """Return noisy grid points for grid points.

        Args:
            points: Indices on the grid (N,), int64 in [0, steps).
            bits: Where the randomness comes from.

        Returns:
            Indices (N,), int64 in [0, steps).

        Raises:
            DataError: An index is not on the grid.
        """
        if points.dtype != np.int64 or points.ndim != 1 or (points.size and not self._on_grid(points)):
            raise DataError(f"noise is added to int64 indices from 0 to {self.steps - 1}")
        noisy = np.empty_like(points)
        for start in range(0, len(points), _CHUNK):
            chunk = points[start : start + _CHUNK]
            noise = self._entries(uniform(len(chunk), bits)) - (self.steps - 1)
            noisy[start : start + _CHUNK] = np.clip(chunk + noise, 0, self.steps - 1)
        return noisy

    def _entries(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each word's place in the table: how many of the running sums are at most the word."""
        entries: NDArray[np.int64] = self._guide[words >> (BITS - _GUIDE_BITS)]
        undecided = np.flatnonzero(entries < 0)
        entries[undecided] = np.searchsorted(self.sums, words[undecided], side="right")
        return entries

    @cached_property
    def _guide(self) -> NDArray[np.int64]:
        """The place in the table that a word's leading bits decide, -1 where they do not; it spares most searches."""
        starts = np.arange((1 << _GUIDE_BITS) + 1, dtype=np.int64) << (BITS - _GUIDE_BITS)
        first = np.searchsorted(self.sums, starts[:-1], side="right")
        last = np.searchsorted(self.sums, starts[1:] - 1, side="right")
        return np.where(first == last, first, -1)

    def _on_grid(self, points: NDArray[np.int64]) -> bool:
        return bool(points.min() >= 0 and points.max() < self.steps)


def laplace_table(epsilon: float, steps: int) -> NoiseTable:
    """Build a table whose epsilon is at most `epsilon`; hardly less, up to about 40, beyond which 62 bits do not reach.

    Every weight but the middle one is rounded up, which takes from the middle: the ratio of the two shrinks.

    Args:
        epsilon: Above 0.
        steps: Number of grid points, 2 to 4,096.

    Raises:
        ConfigError: So small an epsilon has no table of 62 bits with so many steps.
    """
    with localcontext(Context(prec=_PRECISION)):
        ratio = (-Decimal(epsilon) * (1 - _HAIR) / (steps - 1)).exp()
        weight = TOTAL * (1 - ratio) / (1 + ratio)
        side: list[int] = []
        for _ in range(1, steps - 1):
            weight *= ratio
            side.append(ceiling(weight))
        side.append(ceiling(TOTAL * ratio ** (steps - 1) / (1 + ratio)))
    middle = TOTAL - 2 * sum(side)
    table = NoiseTable((*reversed(side), middle, *side)) if middle >= 1 else None
    if table is None or not table.epsilon <= epsilon:
        raise ConfigError(f"privacy: epsilon {epsilon:g} is too small for {steps} steps; take fewer steps")
    return table


def logarithm_up(ratio: Fraction) -> float:
    """Return the natural logarithm of a ratio of at least 1, rounded up to a float."""
    with localcontext(Context(prec=_PRECISION)):
        exact = (Decimal(ratio.numerator) / Decimal(ratio.denominator)).ln() + _LOGARITHM_ERROR
    return float_up(Fraction(exact))


def float_up(value: Fraction) -> float:
    """Return the least float that is not below `value`."""
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def total_epsilon(epsilons: Sequence[float]) -> float:
    """Return what several columns cost a row together: their sum, rounded up."""
    return float_up(sum((Fraction(epsilon) for epsilon in epsilons), Fraction(0)))


def uniform(count: int, bits: RandomBits) -> NDArray[np.int64]:
    """Return uniform integers in [0, 2**62), (count,) int64. 2**62 divides 2**64, so none is likelier than another."""
    return (bits.words(count) >> np.uint64(WORD_BITS - BITS)).view(np.int64)


def exponential(epsilon: float) -> Decimal:
    """Return exp(epsilon) to 60 digits, for an epsilon that is a hair smaller: what is built for it stays within."""
    with localcontext(Context(prec=_PRECISION)):
        return (Decimal(epsilon) * (1 - _HAIR)).exp()


def ceiling(value: Decimal | Fraction) -> int:
    """Return the least integer that is not below `value`."""
    return math.ceil(value)
