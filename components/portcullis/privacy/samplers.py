"""Exact samplers of the discrete Laplace and the discrete Gaussian distribution, on arrays and in integers alone.

The algorithms are those of Canonne, Kamath and Steinke, The Discrete Gaussian for Differential Privacy (2020,
arXiv:2004.00010), algorithms 1 to 3. They are built of nothing but comparisons of uniform random integers with rational
numbers, so what comes out follows the distribution itself, and not a rounded one: no floating-point number and no
logarithm or exponential is computed anywhere. What is left to trust is the bits (`random_bits`).

Why an array changes nothing: every candidate is made of random words of its own, and a sampler that rejects takes the
candidates that are left in the order in which they were made, and throws none of them away by its value. So the values
are independent, and each has the distribution of the algorithm that makes one at a time.

- A uniform integer below b is the upper half of b times a random word; words of which the lower half is below
  2**32 mod b are drawn again, which leaves each integer equally many (Lemire 2019, 10.1145/3230636).
- Bernoulli(exp(-g)) for g in [0, 1] is whether K is odd, where K is the first k at which Bernoulli(g / k) fails
  (algorithm 1). Bernoulli(g / k) is Bernoulli(g) and Bernoulli(1 / k), drawn apart, which keeps every number small.
- Where g = 1, K follows from one uniform integer below 12!: the first k of those draws all succeed when it is below
  12! / k!. The one integer in 12! below which all twelve succeed goes on with k = 13, one draw at a time.
- How often Bernoulli(exp(-1)) succeeds in a row is read off one sequence of them: between two failures.
- Algorithm 3 asks for Bernoulli(exp(-g)) of a large fraction g, which is split into parts in [0, 1].

How long a call takes, and how many bits it uses, depends on what it draws.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import UsageError
from portcullis.random_bits import RandomBits

Integers = NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

MAX_SCALE_PART = 1 << 52
MAX_VARIANCE_PART = 1 << 46
LIMIT = 1 << 62

_CHUNK = 1 << 15  # candidates that are made at a time; their arrays stay in a core's cache
_FACTORS = 12
_FACTORIAL = math.factorial(_FACTORS)
_TIMES = 2**32 // _FACTORIAL  # words below this many times 12! are uniform below 12!, in as many equal parts


def uniform_below(bound: int, count: int, bits: RandomBits) -> Integers:
    """Return uniform integers, (count,) int64 in [0, bound).

    Args:
        bound: 1 to 2**62.
        count: How many.
        bits: Where the randomness comes from.
    """
    if not 1 <= bound <= LIMIT:
        raise UsageError("a uniform integer has a bound from 1 to 2**62")
    if bound <= 1 << 32:
        least = np.uint64((1 << 32) % bound)

        def draw(size: int) -> Integers:
            product = bits.halves(size) * np.uint64(bound)
            if least:
                product = product[(product & np.uint64(0xFFFFFFFF)) >= least]
            return (product >> np.uint64(32)).view(np.int64)
    else:
        shift = np.uint64(64 - (bound - 1).bit_length())

        def draw(size: int) -> Integers:
            values = (bits.words(size) >> shift).view(np.int64)
            return values[values < bound]

    return _gather(draw, count)


def bernoulli_exp(factors: Sequence[tuple[Integers, int]], bits: RandomBits) -> NDArray[np.bool_]:
    """Return for each place whether Bernoulli(exp(-g)) succeeded, where g is the product of fractions in [0, 1].

    Args:
        factors: At least one; each has its numerators, (N,) int64 from 0 to its denominator, and the denominator, 1 to
            2**62.
        bits: Where the randomness comes from.

    Returns:
        (N,) bool.
    """
    count = len(factors[0][0])
    odd = np.ones(count, dtype=bool)  # whether K, the round in which each one fails, is odd
    places, k = np.arange(count), 1
    while len(places):
        goes_on = np.ones(len(places), dtype=bool) if k == 1 else uniform_below(k, len(places), bits) == 0
        for numerators, denominator in factors:
            goes_on &= uniform_below(denominator, len(places), bits) < numerators[places]
        places, k = places[goes_on], k + 1
        odd[places] = k % 2 == 1
    return odd


def bernoulli_exp_one(count: int, bits: RandomBits) -> NDArray[np.bool_]:
    """Return draws of Bernoulli(exp(-1)), (count,) bool."""

    def draw(size: int) -> NDArray[np.bool_]:
        words = bits.halves(size)
        words = words[words < _TIMES * _FACTORIAL]
        odd = np.ones(len(words), dtype=bool)
        for k in range(1, _FACTORS + 1):
            odd ^= words < _TIMES * _FACTORIAL // math.factorial(k)
        for place in np.flatnonzero(words < _TIMES):  # all twelve succeeded, and K is 13 unless the next ones do too
            k = _FACTORS + 1
            while uniform_below(k, 1, bits)[0] == 0:
                k += 1
            odd[place] = k % 2 == 1
        return odd

    return _gather(draw, count)


def discrete_laplace(scale: Fraction, count: int, bits: RandomBits) -> Integers:
    """Return integers x with probability proportional to exp(-|x| / scale), (count,) int64.

    Added to integers of sensitivity D (L1), they give pure (D / scale)-differential privacy.

    What would reach 2**62 times the reciprocal of the scale's denominator stays there, in either direction: whoever
    clamps the noisy values within that loses nothing, since to clamp them is to process what is private already.

    Args:
        scale: Above 0; numerator and denominator below 2**52.
        count: How many.
        bits: Where the randomness comes from.

    Raises:
        UsageError: The scale is out of its range.
    """
    if not scale > 0 or not max(scale.numerator, scale.denominator) < MAX_SCALE_PART:
        raise UsageError("the scale of discrete Laplace noise is a fraction above 0 of integers below 2**52")
    t, s = scale.numerator, scale.denominator
    return _gather(lambda size: _laplace(t, s, size, bits), count)


def discrete_gaussian(variance: Fraction, count: int, bits: RandomBits) -> Integers:
    """Return integers x with probability proportional to exp(-x**2 / (2 * variance)), (count,) int64.

    Added to integers of sensitivity D (L2), they give D**2 / (2 * variance)-concentrated differential privacy (zCDP),
    and no pure one.

    Args:
        variance: The parameter sigma**2, at least 1 / 1,024; numerator and denominator below 2**46.
        count: How many.
        bits: Where the randomness comes from.

    Raises:
        UsageError: The variance is out of its range.
    """
    if not Fraction(1, 1024) <= variance or not max(variance.numerator, variance.denominator) < MAX_VARIANCE_PART:
        raise UsageError("the variance of discrete Gaussian noise is a fraction from 1/1024 of integers below 2**46")
    t = math.isqrt(math.floor(variance)) + 1

    def draw(size: int) -> Integers:
        candidates = _laplace(t, 1, size, bits)
        return candidates[_accepted(np.abs(candidates), variance, t, bits)]

    return _gather(draw, count)


def _laplace(t: int, s: int, size: int, bits: RandomBits) -> Integers:
    """Return about `size` draws of discrete Laplace noise of scale t / s: algorithm 2."""
    uniform = uniform_below(t, size * 8 // 5, bits)
    uniform = uniform[bernoulli_exp([(uniform, t)], bits)]  # about 5 of 8
    # A count that would carry the sum beyond 2**62 is as good as any other that does.
    times = np.minimum(_successes(len(uniform), bits), LIMIT // t)
    values = np.minimum(uniform + t * times, LIMIT)
    if s > 1:
        values //= s
    negative = np.unpackbits(bits.words((len(values) + 63) // 64).view(np.uint8), count=len(values)).view(bool)
    signed: Integers = np.where(negative, -values, values)
    kept: Integers = signed[~(negative & (values == 0))]
    return kept


def _successes(count: int, bits: RandomBits) -> Integers:
    """Return how often Bernoulli(exp(-1)) succeeds before it fails, (count,) int64."""
    pieces, missing, open_run = [np.empty(0, dtype=np.int64)], count, 0
    while missing > 0:
        size = min(missing * 8 // 5 + 16, _CHUNK)
        failures = np.flatnonzero(~bernoulli_exp_one(size, bits))
        runs = np.diff(failures, prepend=-1) - 1
        # A run that the end of a sequence cuts off goes on in the next: to begin anew would favour short ones.
        runs[:1] += open_run
        open_run = size - 1 - int(failures[-1]) if len(failures) else open_run + size
        pieces.append(runs[:missing])
        missing -= len(pieces[-1])
    return np.concatenate(pieces)


def _accepted(sizes: Integers, variance: Fraction, t: int, bits: RandomBits) -> NDArray[np.bool_]:
    """Return for each size y whether Bernoulli(exp(-(y - variance / t)**2 / (2 * variance))) succeeded.

    With variance = p / q and a = |y * q * t - p| the exponent is (a / 2p) * (a / qt**2). Each factor is a whole number
    and a fraction, (m + f) * (n + g), so exp of minus it is the product of exp(-m * n), exp(-f) n times, exp(-g) m
    times, and exp(-f * g).
    """
    p, q = variance.numerator, variance.denominator
    # Up to there 64 bits hold every product; beyond, where nothing is ever accepted, Python's own integers do.
    beyond = bool(len(sizes)) and int(sizes.max()) > t << 13
    a = np.abs((sizes.astype(object) if beyond else sizes) * (q * t) - p)
    m, n = a // (2 * p), a // (q * t * t)
    f, g = (a % (2 * p)).astype(np.int64), (a % (q * t * t)).astype(np.int64)
    accepted: NDArray[np.bool_] = bernoulli_exp([(f, 2 * p), (g, q * t * t)], bits)
    for fractions, denominator, times in ((f, 2 * p, n), (g, q * t * t, m)):
        left, done = np.flatnonzero(accepted & (times > 0)), 0
        while len(left):
            held = bernoulli_exp([(fractions[left], denominator)], bits)
            accepted[left[~held]] = False
            done += 1
            left = left[held & (times[left] > done)]
    both = np.flatnonzero(accepted & (m > 0) & (n > 0))
    accepted[both] = _successes(len(both), bits) >= m[both] * n[both]
    return accepted


def _gather(draw: Callable[[int], NDArray[_T]], count: int) -> NDArray[_T]:
    """Return the first `count` of what `draw` makes, asked for a chunk at a time, about as many as are missing."""
    pieces = [draw(0)]
    missing = count
    while missing > 0:
        pieces.append(draw(min(missing + missing // 64 + 16, _CHUNK))[:missing])
        missing -= len(pieces[-1])
    return np.concatenate(pieces)
