"""Laws of the noise: its stated epsilon is that of its own numbers, and the samples follow them."""

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.errors import ConfigError, DataError
from portcullis.privacy.mechanism import TOTAL, NoiseTable, float_up, laplace_table, logarithm_up, total_epsilon
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.nulls import NullableTable, nullable_table
from portcullis.privacy.response import RandomisedResponse, randomised_response
from portcullis.privacy.settings import NoisedColumn, NoisePlan
from portcullis.privacy.unbounded import GREATEST, IntegerNoise, integer_noise
from portcullis.random_bits import RandomBits

SEED = b"a seed that every test knows"
SPEC = DatasetSpec("x", Label("label", ("0", "1")), Features(("pixel",), (1,), 0, 1))


def known_bits() -> RandomBits:
    return RandomBits.unsafe_fixed_seed(SEED)


def outputs(table: NoiseTable, point: int) -> list[int]:
    """Return each output's weight for one input: add every noise there is, clamp, and count."""
    weights = [0] * table.steps
    for place, weight in enumerate(table.weights):
        noisy = point + place - (table.steps - 1)
        weights[min(max(noisy, 0), table.steps - 1)] += weight
    return weights


def greatest_ratio(table: NoiseTable) -> Fraction:
    """Return the greatest ratio of one output's weights, over every output and every pair of inputs, one by one."""
    rows = [outputs(table, point) for point in range(table.steps)]
    assert all(sum(row) == TOTAL for row in rows)
    return max(Fraction(one[place], other[place]) for one in rows for other in rows for place in range(table.steps))


def exponential(value: float) -> Fraction:
    with localcontext(Context(prec=80)):
        return Fraction(Decimal(value).exp())


@st.composite
def any_table(draw: st.DrawFn) -> NoiseTable:
    """A table of noise that is neither Laplace's nor symmetric."""
    steps = draw(st.integers(2, 9))
    weights = draw(st.lists(st.integers(1, 1 << 50), min_size=2 * steps - 1, max_size=2 * steps - 1))
    place = draw(st.integers(0, 2 * steps - 2))
    weights[place] += TOTAL - sum(weights)
    return NoiseTable(tuple(weights))


@settings(deadline=None)
@given(st.floats(1e-3, 64), st.integers(2, 24))
def test_the_stated_epsilon_bounds_every_output_under_every_pair_of_inputs(epsilon: float, steps: int) -> None:
    table = laplace_table(epsilon, steps)
    ratio = greatest_ratio(table)
    assert ratio <= exponential(table.epsilon) <= exponential(epsilon)
    assert ratio > exponential(table.epsilon * (1 - 1e-15))
    if epsilon < 20:
        assert table.epsilon > epsilon * (1 - 1e-9)


@settings(deadline=None)
@given(any_table())
def test_epsilon_is_exact_for_any_table(table: NoiseTable) -> None:
    ratio = greatest_ratio(table)
    assert exponential(table.epsilon * (1 - 1e-15)) < ratio <= exponential(table.epsilon)


@settings(deadline=None)
@given(any_table())
def test_the_expected_error_is_exact_for_any_table(table: NoiseTable) -> None:
    distances = (
        weight * abs(place - point)
        for point in range(table.steps)
        for place, weight in enumerate(outputs(table, point))
    )
    assert table.expected_error == Fraction(sum(distances), TOTAL * table.steps)


@pytest.mark.parametrize("steps", [2, 3, 73, 4096])
def test_a_large_table_is_within_its_epsilon_at_its_corners(steps: int) -> None:
    table = laplace_table(2.0, steps)
    low, high = outputs(table, 0), outputs(table, steps - 1)
    ratio = max(Fraction(one, other) for one, other in zip(low, high, strict=True))
    assert exponential(2 * (1 - 1e-9)) < ratio <= exponential(table.epsilon) <= exponential(2.0)


@given(st.floats(1e-12, 1e-3), st.integers(2, 4096))
@settings(deadline=None, max_examples=25)
def test_a_tiny_epsilon_is_kept_or_refused(epsilon: float, steps: int) -> None:
    try:
        table = laplace_table(epsilon, steps)
    except ConfigError as error:
        assert "too small" in str(error)  # noqa: PT017 - both outcomes are right
    else:
        assert table.epsilon <= epsilon


@given(st.fractions(min_value=1, max_value=10**30))
def test_a_logarithm_is_rounded_up(ratio: Fraction) -> None:
    value = logarithm_up(ratio)
    assert ratio <= exponential(value)
    assert value == 0 or ratio > exponential(np.nextafter(value, 0)) * (1 - Fraction(1, 10**30))


@given(st.lists(st.floats(0, 64), max_size=8))
def test_a_sum_of_epsilons_is_rounded_up_and_exact_up_to_that(epsilons: list[float]) -> None:
    exact = sum((Fraction(epsilon) for epsilon in epsilons), Fraction(0))
    total = total_epsilon(epsilons)
    assert exact <= Fraction(total) == Fraction(float_up(exact))
    assert total == 0 or Fraction(float(np.nextafter(total, 0))) < exact


# Categories, numbers that may be missing, and integers without bounds.


def responses(response: RandomisedResponse, category: int) -> list[int]:
    """Return each output's weight for one input."""
    return [response.same if output == category else response.weight for output in range(response.size)]


@settings(deadline=None)
@given(st.floats(1e-3, 64), st.integers(2, 12))
def test_the_epsilon_of_randomised_response_is_exact(epsilon: float, size: int) -> None:
    response = randomised_response(epsilon, size)
    rows = [responses(response, category) for category in range(size)]
    assert all(sum(row) == TOTAL for row in rows)
    ratio = max(Fraction(one[place], other[place]) for one in rows for other in rows for place in range(size))
    assert exponential(response.epsilon * (1 - 1e-15)) < ratio <= exponential(response.epsilon) <= exponential(epsilon)
    assert response.expected_error == Fraction(TOTAL - response.same, TOTAL)
    if epsilon < 20:
        assert response.epsilon > epsilon * (1 - 1e-9)


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, TOTAL))
def test_the_epsilon_of_any_response_is_exact(size: int, weight: int) -> None:
    try:
        response = RandomisedResponse(size, weight)
    except DataError:
        assert (size - 1) * weight >= TOTAL
    else:
        low, high = sorted((response.same, response.weight))
        assert exponential(response.epsilon * (1 - 1e-15)) <= Fraction(high, low) <= exponential(response.epsilon)


def nullable_outputs(noise: NullableTable, point: int | None) -> list[Fraction]:
    """Return each output's probability for one input, the empty cell as the last."""
    rows = [[Fraction(weight, TOTAL) for weight in outputs(noise.table, it)] for it in range(noise.table.steps)]
    if point is None:
        filled = Fraction(noise.filled, TOTAL)
        return [filled * sum(column) / noise.table.steps for column in zip(*rows, strict=True)] + [1 - filled]
    made = Fraction(noise.made, TOTAL)
    return [(1 - made) * weight for weight in rows[point]] + [made]


def nullable_ratio(noise: NullableTable) -> Fraction:
    inputs = [nullable_outputs(noise, point) for point in (None, *range(noise.table.steps))]
    assert all(sum(row) == 1 for row in inputs)
    return max(one[place] / other[place] for one in inputs for other in inputs for place in range(len(one)))


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-3, 40), st.integers(2, 12))
def test_an_empty_cell_is_within_epsilon_of_every_number_and_the_other_way_round(epsilon: float, steps: int) -> None:
    noise = nullable_table(epsilon, steps)
    ratio = nullable_ratio(noise)
    assert exponential(noise.epsilon * (1 - 1e-15)) < ratio <= exponential(noise.epsilon) <= exponential(epsilon)
    if epsilon < 20:
        assert noise.epsilon > epsilon * (1 - 1e-9)


@settings(deadline=None, max_examples=50)
@given(any_table(), st.integers(1, TOTAL - 1), st.integers(1, TOTAL - 1))
def test_the_epsilon_of_any_table_with_empty_cells_is_exact(table: NoiseTable, made: int, filled: int) -> None:
    noise = NullableTable(table, made, filled)
    ratio = nullable_ratio(noise)
    assert exponential(noise.epsilon * (1 - 1e-15)) < ratio <= exponential(noise.epsilon)


@settings(deadline=None)
@given(st.integers(-(2**52), 2**52), st.integers(1, 2**40), st.floats(1e-3, 64))
def test_the_scale_of_integer_noise_keeps_its_epsilon(low: int, width: int, epsilon: float) -> None:
    try:
        noise = integer_noise(low, low + width, epsilon)
    except ConfigError as error:
        assert "too small" in str(error) and width / epsilon > 2**51  # noqa: PT017 - both outcomes are right
    else:
        assert Fraction(noise.epsilon) >= width / noise.scale
        # The scale is at most 1/256 above the one that was asked for.
        assert width / (width / epsilon + 1 / 256) * (1 - 1e-9) <= noise.epsilon <= epsilon


# The samples.


def chi_square(samples: np.ndarray, weights: Sequence[int]) -> float:
    expected = np.array([float(Fraction(weight, TOTAL)) for weight in weights]) * len(samples)
    counts = np.bincount(samples, minlength=len(weights))
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("point", [0, 1, 9, 19])
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_samples_follow_the_table(point: int, epsilon: float) -> None:
    """With 19 degrees of freedom, 60 is exceeded by chance once in 200,000 times; here the seed is fixed."""
    table, other = laplace_table(epsilon, 20), laplace_table(epsilon * 1.2, 20)
    samples = table.add_noise(np.full(200_000, point), known_bits())
    assert chi_square(samples, outputs(table, point)) < 60
    assert chi_square(samples, outputs(other, point)) > 60  # a slightly other table would be noticed


@pytest.mark.parametrize("category", [0, 3, 6])
def test_responses_follow_their_weights(category: int) -> None:
    """With 6 degrees of freedom, 40 is exceeded by chance once in two million times; here the seed is fixed."""
    response, other = randomised_response(1.0, 7), randomised_response(1.1, 7)
    samples = response.respond(np.full(200_000, category), known_bits())
    assert chi_square(samples, responses(response, category)) < 40
    assert chi_square(samples, responses(other, category)) > 40


@pytest.mark.parametrize("point", [None, 0, 4, 9])
def test_numbers_that_may_be_missing_follow_their_weights(point: int | None) -> None:
    """With 10 degrees of freedom, 50 is exceeded by chance once in four million times; here the seed is fixed."""
    noise, other = nullable_table(1.0, 10), nullable_table(1.15, 10)
    noisy, empty = noise.add_noise(np.full(200_000, point or 0), np.full(200_000, point is None), known_bits())
    samples = np.where(empty, 10, noisy)
    assert chi_square(samples, [int(it * TOTAL) for it in nullable_outputs(noise, point)]) < 50
    assert chi_square(samples, [int(it * TOTAL) for it in nullable_outputs(other, point)]) > 50


def test_integer_noise_is_unbiased_and_as_wrong_as_stated() -> None:
    noise = integer_noise(18, 90, 2.0)
    values = np.arange(18, 91).repeat(4000)
    off = noise.add_noise(values, known_bits()) - values
    assert abs(off.mean()) < 5 * noise.expected_error * 1.5 / len(off) ** 0.5
    assert np.abs(off).mean() == pytest.approx(noise.expected_error, rel=0.01)
    assert off.min() < -72 and off.max() > 72


def test_integer_noise_beyond_what_doubles_hold_stays_at_the_end() -> None:
    noise = IntegerNoise(0, 2**52, Fraction(2**52 - 1))
    noisy = noise.add_noise(np.full(20_000, 2**52), known_bits())
    assert noisy.max() == GREATEST and noisy.min() >= -GREATEST


def test_the_guide_to_the_table_changes_no_sample() -> None:
    """A word that lies at, just below or just above a running sum is where a shortcut would go wrong."""
    for table in (laplace_table(1.0, 73), laplace_table(40.0, 4096), laplace_table(64.0, 2)):
        edges = table.sums[:-1]
        words = np.concatenate([[0], edges - 1, edges, edges + 1, [TOTAL - 1]])
        words = words[(words >= 0) & (words < TOTAL)]
        assert table._entries(words).tolist() == np.searchsorted(table.sums, words, side="right").tolist()


def test_noise_differs_from_call_to_call_and_from_value_to_value() -> None:
    table = laplace_table(20.0, 4096)
    points = np.full(1000, 2000)
    bits = RandomBits()
    one, other = table.add_noise(points, bits), table.add_noise(points, bits)
    assert (one != other).mean() > 0.9
    assert len(set(one.tolist())) > 500


def test_a_chunk_does_not_repeat_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portcullis.privacy.mechanism._CHUNK", 100)
    noisy = laplace_table(20.0, 4096).add_noise(np.full(250, 2000), known_bits())
    assert (noisy[:100] != noisy[100:200]).mean() > 0.9
    assert noisy.min() >= 0 and noisy.max() < 4096 and len(set(noisy.tolist())) > 100


# Low bits.


def finer_than_one_can_be(values: np.ndarray) -> np.ndarray:
    """Tell which floats in (0, 1/2) are no multiples of 2**-53, and so no sum of 1 and another float."""
    return (values > 0) & (values < 0.5) & (values * 2.0**53 % 1 != 0)


def test_neighbours_can_give_the_same_outputs_and_float_noise_cannot() -> None:
    generator = np.random.default_rng(0)
    zero, one = (value + generator.laplace(size=200_000) for value in (0.0, 1.0))
    assert finer_than_one_can_be(zero).mean() > 0.1  # each of these tells that the value was not 1
    assert not finer_than_one_can_be(one).any()

    column = NoisedColumn(low=-0.3, high=1.7, epsilon=2, steps=21)
    values = pa.array([0.0] * 50_000 + [1.0] * 50_000 + [1 / 3] * 50_000)
    label = pa.array(["0"] * len(values))
    data = Dataset(pa.table({"value": values, "pixel": pa.array([0.5] * len(values)), "label": label}), SPEC)
    plan = NoisePlan({"value": column}, 2, {"features": "keep", "label": "keep"}, "keep")
    noisy = noise_dataset(data, plan).table["value"].to_numpy().reshape(3, -1)
    grid = set(np.linspace(-0.3, 1.7, 21).tolist())
    assert set(noisy[0].tolist()) == set(noisy[1].tolist()) == set(noisy[2].tolist()) == grid
