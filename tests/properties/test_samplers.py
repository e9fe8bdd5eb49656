"""Laws of the samplers: what they draw follows the exact distribution, however it is cut into chunks."""

import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.errors import UsageError
from portcullis.privacy import samplers
from portcullis.privacy.samplers import (
    LIMIT,
    bernoulli_exp,
    bernoulli_exp_one,
    discrete_gaussian,
    discrete_laplace,
    uniform_below,
)
from portcullis.random_bits import RandomBits

COUNT = 200_000


def known_bits(seed: bytes = b"a seed that every test knows") -> RandomBits:
    return RandomBits.unsafe_fixed_seed(seed)


def p_value(samples: np.ndarray, logarithm: Callable[[int], float]) -> float:
    """Return Pearson's chi-square p-value (Wilson and Hilferty's) of integers under weights exp(logarithm(x))."""
    weights = {x: math.exp(logarithm(x)) for x in range(-3000, 3001)}
    whole = math.fsum(weights.values())
    expected = {x: weight / whole * len(samples) for x, weight in weights.items()}
    cells = [x for x, often in expected.items() if often >= 10]
    seen = [int((samples == x).sum()) for x in cells]
    wanted = [expected[x] for x in cells]
    seen.append(len(samples) - sum(seen))
    wanted.append(len(samples) - math.fsum(wanted))
    if wanted[-1] < 5:
        seen[-2:], wanted[-2:] = [sum(seen[-2:])], [sum(wanted[-2:])]
    statistic = math.fsum((a - b) ** 2 / b for a, b in zip(seen, wanted, strict=True))
    degrees = len(seen) - 1
    normal = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(normal / math.sqrt(2))


# The bits.


def test_a_stream_is_aes_256_ctr_and_no_word_comes_twice() -> None:
    """NIST SP 800-38A, F.5.5, has another first counter; here the key stream of key 0 from counter 0 on."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    bits = RandomBits()
    bits._start(bytes(32))
    block = Cipher(AES256(bytes(32)), ECB()).encryptor()
    whole = b"".join(block.update(counter.to_bytes(16)) for counter in range(400_000))
    pieces = [bits.words(size) for size in (1, 2, 0, 131_073, 3, 262_144)]
    # A word is half a block, and what a call leaves of a block the next one goes on with.
    assert np.concatenate(pieces).tobytes() == whole[: 8 * sum(map(len, pieces))]


def test_two_streams_differ_and_one_goes_on() -> None:
    one, other = RandomBits(), RandomBits()
    words = [one.words(1000), one.words(1000), other.words(1000)]
    assert len(set(np.concatenate(words).tolist())) == 3000
    assert known_bits().words(9).tolist() == known_bits().words(9).tolist() != known_bits(b"x").words(9).tolist()


def test_a_forked_process_does_not_repeat_its_parents_noise() -> None:
    bits = RandomBits()
    bits.words(1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, bits.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 32) != bits.words(4).tobytes()
    os.close(read)
    os.close(write)


@given(st.integers(1, LIMIT), st.integers(0, 70))
def test_uniform_integers_lie_below_their_bound(bound: int, count: int) -> None:
    values = uniform_below(bound, count, known_bits())
    assert values.dtype == np.int64 and values.shape == (count,)
    assert ((values >= 0) & (values < bound)).all()


@pytest.mark.parametrize("bound", [0, -1, LIMIT + 1])
def test_a_bound_that_is_none_is_refused(bound: int) -> None:
    with pytest.raises(UsageError, match="from 1 to"):
        uniform_below(bound, 1, known_bits())


@pytest.mark.parametrize("bound", [1, 2, 7, 10, 64, 100])
def test_uniform_integers_are_uniform(bound: int) -> None:
    values = uniform_below(bound, COUNT, known_bits())
    assert bound == 1 or p_value(values, lambda x: 0.0 if 0 <= x < bound else -math.inf) > 0.001


def test_a_bound_just_above_half_the_words_is_uniform() -> None:
    """There, every second word would lead to a value twice as likely, were none drawn again."""
    for bound in (3 << 30, (3 << 60) + 1):
        thirds = uniform_below(bound, COUNT, known_bits()) // -(-bound // 3)
        assert p_value(thirds, lambda x: 0.0 if 0 <= x < 3 else -math.inf) > 0.001


# The distributions.


@pytest.mark.parametrize("numerator", [0, 1, 3, 7])
def test_bernoulli_of_an_exponential(numerator: int) -> None:
    drawn = bernoulli_exp([(np.full(COUNT, numerator), 7)], known_bits()).astype(int)
    chance = math.exp(-numerator / 7)
    assert abs(drawn.mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / COUNT)


def test_bernoulli_of_the_exponential_of_a_product() -> None:
    drawn = bernoulli_exp([(np.full(COUNT, 3), 4), (np.full(COUNT, 5), 6)], known_bits())
    chance = math.exp(-3 / 4 * 5 / 6)
    assert abs(drawn.mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / COUNT)


def test_bernoulli_of_one_over_e(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = bernoulli_exp_one(10 * COUNT, known_bits())
    chance = math.exp(-1)
    assert abs(drawn.mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / len(drawn))
    # The last of the twelve factors is reached once in half a thousand million draws; with four, often.
    monkeypatch.setattr(samplers, "_FACTORS", 4)
    monkeypatch.setattr(samplers, "_FACTORIAL", 24)
    monkeypatch.setattr(samplers, "_TIMES", 2**32 // 24)
    drawn = bernoulli_exp_one(COUNT, known_bits())
    assert abs(drawn.mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / len(drawn))


SCALES = [Fraction(1, 3), Fraction(1), Fraction(7, 2), Fraction(10), Fraction(72, 5), Fraction(355, 113)]
VARIANCES = [Fraction(1, 10), Fraction(1, 4), Fraction(1), Fraction(4), Fraction(100), Fraction(1001, 10)]


def _laplace(scale: Fraction) -> Callable[[int], float]:
    return lambda x: -abs(x) / float(scale)


def _gaussian(variance: Fraction) -> Callable[[int], float]:
    return lambda x: -(x**2) / (2 * float(variance))


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_discrete_laplace_follows_its_law(scale: Fraction) -> None:
    samples = discrete_laplace(scale, COUNT, known_bits())
    assert p_value(samples, _laplace(scale)) > 0.001
    assert p_value(samples, _laplace(scale * Fraction(26, 25))) < 0.001  # a scale 4 % larger would be noticed


@pytest.mark.parametrize("variance", VARIANCES, ids=str)
def test_discrete_gaussian_follows_its_law(variance: Fraction) -> None:
    samples = discrete_gaussian(variance, COUNT, known_bits())
    assert p_value(samples, _gaussian(variance)) > 0.001
    assert p_value(samples, _gaussian(variance * Fraction(21, 20))) < 0.001


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_small_chunks_do_not_favour_what_fits_into_them(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of successes that a chunk cuts off counts on: to drop it would favour small values."""
    monkeypatch.setattr(samplers, "_CHUNK", chunk)
    assert p_value(discrete_laplace(Fraction(7, 2), 4000, known_bits()), _laplace(Fraction(7, 2))) > 0.001
    assert p_value(discrete_gaussian(Fraction(9), 2000, known_bits()), _gaussian(Fraction(9))) > 0.001


def test_wide_distributions_have_their_moments() -> None:
    for scale in (Fraction(10**6), Fraction(2**52 - 1), Fraction(10**9, 7)):
        samples = discrete_laplace(scale, COUNT, known_bits()).astype(float)
        assert np.abs(samples).mean() == pytest.approx(float(scale), rel=0.02)
        assert abs(samples.mean()) < 5 * float(scale) * math.sqrt(2 / COUNT)
    for sigma in (10**4, 10**6, 8 * 10**6):
        samples = discrete_gaussian(Fraction(sigma**2), COUNT, known_bits()).astype(float)
        assert samples.std() == pytest.approx(sigma, rel=0.02)
        assert abs(samples.mean()) < 5 * sigma / math.sqrt(COUNT)


def test_a_candidate_too_large_for_64_bits_is_judged_with_whole_numbers() -> None:
    variance = Fraction(2**45 + 1, 3)
    t = math.isqrt(math.floor(variance)) + 1
    sizes = np.array([0, t, t << 20, (1 << 62)])
    accepted = samplers._accepted(np.tile(sizes, 400), variance, t, known_bits()).reshape(400, 4).mean(axis=0)
    # At 0 the exponent is a half, at t it is the square of next to nothing.
    assert accepted == pytest.approx([math.exp(-0.5), 1.0, 0.0, 0.0], abs=0.1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2**46 - 1), st.integers(1, 2**46 - 1), st.integers(0, 50))
def test_any_variance_gives_as_many_integers_as_asked(p: int, q: int, count: int) -> None:
    variance = Fraction(max(p, -(-q // 1024)), q)
    samples = discrete_gaussian(variance, count, known_bits())
    assert samples.dtype == np.int64 and samples.shape == (count,)
    assert (np.abs(samples) <= 40 * (1 + math.isqrt(math.floor(variance)))).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2**52 - 1), st.integers(1, 2**52 - 1), st.integers(0, 50))
def test_any_scale_gives_as_many_integers_as_asked(t: int, s: int, count: int) -> None:
    samples = discrete_laplace(Fraction(t, s), count, known_bits())
    assert samples.dtype == np.int64 and samples.shape == (count,)
    assert (np.abs(samples) <= 100 * (1 + t // s)).all()


@pytest.mark.parametrize("scale", [Fraction(0), Fraction(-1), Fraction(2**52), Fraction(1, 2**52)])
def test_a_scale_out_of_range_is_refused(scale: Fraction) -> None:
    with pytest.raises(UsageError, match="scale"):
        discrete_laplace(scale, 1, known_bits())


@pytest.mark.parametrize(
    "variance", [Fraction(0), Fraction(-1), Fraction(1, 1025), Fraction(2**46), Fraction(1, 2**46)]
)
def test_a_variance_out_of_range_is_refused(variance: Fraction) -> None:
    with pytest.raises(UsageError, match="variance"):
        discrete_gaussian(variance, 1, known_bits())


def test_no_float_takes_part_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that the samplers make is of integers or truth values."""
    seen: set[np.dtype] = set()

    class Watched:
        def __getattr__(self, name: str) -> object:
            made = getattr(np, name)
            if not callable(made) or isinstance(made, type):
                return made

            def call(*args: object, **kwargs: object) -> object:
                result = made(*args, **kwargs)
                seen.update(it.dtype for it in (result, *args) if isinstance(it, np.ndarray))
                return result

            return call

    monkeypatch.setattr(samplers, "np", Watched())
    discrete_laplace(Fraction(7, 2), 1000, known_bits())
    discrete_gaussian(Fraction(90, 7), 1000, known_bits())
    assert seen and not {kind for kind in seen if kind.kind not in "iub"}
