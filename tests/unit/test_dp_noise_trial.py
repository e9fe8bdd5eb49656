"""The trial of the noise: its laws are those of the weights, and its figures mean what they say."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from portcullis.errors import EvidenceError
from portcullis.privacy import trial
from portcullis.privacy.columns import mechanism_of
from portcullis.privacy.law import RESIDUES, integer_law
from portcullis.privacy.mechanism import TOTAL, NoiseTable
from portcullis.privacy.settings import CategoryColumn, ColumnNoise, IntegerColumn, NoisedColumn
from portcullis.privacy.trial import BOUNDS, epsilon_lower, p_value, require_sound
from portcullis.privacy.unbounded import GREATEST, IntegerNoise
from portcullis.random_bits import RandomBits

COLUMNS: dict[str, ColumnNoise] = {
    "whole numbers": NoisedColumn(18, 90, 3, 73),
    "fractions": NoisedColumn(-0.3, 1.7, 0.5, 4096),
    "maybe empty": NoisedColumn(-0.3, 1.7, 1, 21, nulls="category"),
    "two steps, hardly any noise": NoisedColumn(0, 1, 64, 2),
    "categories": CategoryColumn(("a", "b", "c"), 1.0, nulls="category"),
    "true and false": CategoryColumn((True, False), 0.1),
    "many categories": CategoryColumn(tuple(range(4096)), 9.0),
    "integers": IntegerColumn(0, 20, 1.0),
    "integers, hardly any noise": IntegerColumn(0, 1, 64.0),
    "integers that doubles hardly hold": IntegerColumn(-(2**52), 2**52, 3.0),
    "integers, much of which is clamped": IntegerColumn(0, 2**52, 2.0),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_sound_noise_of_any_kind_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "RandomBits", lambda: RandomBits.unsafe_fixed_seed(b"known"))
    mechanism = mechanism_of(COLUMNS[name])
    law = mechanism.law
    assert law.chances.sum(axis=1) == pytest.approx(1, abs=1e-9) and (law.chances >= 0).all()
    assert law.low_chances.sum(axis=1) == pytest.approx(1, abs=1e-9) and (law.low_chances >= 0).all()
    released = pa.table({"x": mechanism.noise("x", pa.chunked_array([law.inputs]), RandomBits())})
    figures = trial.trial({"x": mechanism}, released)
    assert figures["trial_cells"] == trial.CELLS * len(law.inputs) and figures["undeclared_outputs"] == 0
    assert min(figures["sampler_p_value"], figures["low_bits_p_value"]) > 0.001
    assert figures["epsilon_excess"] < 0
    require_sound(figures)


def test_all_columns_are_tried_and_the_worst_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanisms = {name: mechanism_of(column) for name, column in COLUMNS.items()}
    drawn = {name: it.noise(name, pa.chunked_array([it.law.inputs]), RandomBits()) for name, it in mechanisms.items()}
    released = pa.table({name: column.take(pa.array([0, 1])) for name, column in drawn.items()})
    require_sound(trial.trial(mechanisms, released))
    released = released.set_column(3, released.column_names[3], [[0.5, 0.0]])
    figures = trial.trial(mechanisms, released)
    assert figures["undeclared_outputs"] == 2  # a double, where the declaration speaks of whole numbers
    with pytest.raises(EvidenceError, match="undeclared_outputs = 2, required"):
        require_sound(figures)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-9, None])
def test_a_figure_that_is_no_finite_number_within_its_bounds_is_refused(name: str, value: float | None) -> None:
    sound = {"undeclared_outputs": 0, "sampler_p_value": 0.5, "low_bits_p_value": 0.5, "epsilon_excess": -0.1}
    require_sound(sound)
    if name == "epsilon_excess" and value == -1e-9:
        value = 1e-9
    wrong = {key: it for key, it in sound.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(EvidenceError, match=name):
        require_sound(wrong)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_weights_of_an_input_are_those_of_all_noise_added_and_clamped(data: st.DataObject) -> None:
    steps = data.draw(st.integers(2, 9))
    weights = data.draw(st.lists(st.integers(1, 1 << 50), min_size=2 * steps - 1, max_size=2 * steps - 1))
    weights[data.draw(st.integers(0, 2 * steps - 2))] += TOTAL - sum(weights)
    table = NoiseTable(tuple(weights))
    for point in range(steps):
        wanted = [0] * steps
        for place, weight in enumerate(weights):
            wanted[min(max(point + place - (steps - 1), 0), steps - 1)] += weight
        assert table.weights_of(point) == wanted


@pytest.mark.parametrize("scale", [Fraction(1, 3), Fraction(1), Fraction(17, 5), Fraction(200)])
def test_the_law_of_integers_adds_up_to_that_of_each_integer(scale: Fraction) -> None:
    law = integer_law(IntegerNoise(-7, 20, scale))
    reach = np.arange(-9000, 9001)
    chances = np.exp(-np.abs(reach) / float(scale))
    chances /= chances.sum()
    for value, wanted, lowest in zip(law.inputs.to_pylist(), law.chances, law.low_chances, strict=True):
        places, residues = law.places(pa.array(reach + value))
        assert np.bincount(places, chances, len(wanted)) == pytest.approx(wanted, abs=1e-12)
        assert np.bincount(residues, chances, len(lowest)) == pytest.approx(lowest, abs=1e-12)


def test_integers_that_were_brought_back_say_nothing_by_their_lowest_bits() -> None:
    law = integer_law(IntegerNoise(0, 2**52, Fraction(2**51)))
    cells = pa.array([-GREATEST, -GREATEST + 1, 5, GREATEST - 1, GREATEST, GREATEST + 1, None])
    places, lowest = law.places(cells)
    assert lowest[:5].tolist() == [RESIDUES, 2, 5, 14, RESIDUES + 1]
    assert (places[:5] >= 0).all() and places[5:].tolist() == [-1, -1]
    assert law.places(cells.cast(pa.float64()))[0].tolist() == [-1] * 7


def test_an_output_is_declared_to_its_last_bit_only() -> None:
    law = mechanism_of(NoisedColumn(-1, 1, 2, 21)).law
    grid = np.linspace(-1, 1, 21)
    assert law.places(pa.array(grid))[0].tolist() == list(range(21))
    others = [np.nextafter(0.5, 1), -0.0, math.nan, math.inf, 1.1]
    assert law.places(pa.array([*others, None], pa.float64()))[0].tolist() == [-1] * 6
    assert law.places(pa.array([0, 1]))[0].tolist() == [-1, -1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(10, 400), min_size=2, max_size=40), st.floats(0.02, 4))
def test_p_values_are_those_of_the_chi_square_distribution_or_higher(wanted: list[int], away: float) -> None:
    expected = np.array(wanted) * 100
    moved = np.sqrt(expected) * np.where(np.arange(len(wanted)) % 2, 1, -1) * away
    seen = (expected + moved).astype(np.int64)
    exact = stats.chisquare(seen, expected * (seen.sum() / expected.sum())).pvalue
    found = p_value(seen, expected / expected.sum())
    assert found >= min(1, exact) * 0.9  # the factor of two allows for Wilson and Hilferty's error
    assert found <= 10 * max(exact, 1e-6)  # so that what is far below the bound of 1e-5 is refused


def test_what_cannot_come_is_refused_however_sure_the_rest_is() -> None:
    chances = np.array([1 - 1e-28, 1e-28])
    assert p_value(np.array([50_000, 0]), chances) == 1
    assert p_value(np.array([49_999, 1]), chances) < 1e-20
    assert p_value(np.array([50_000, 0]), np.array([1.0, 0.0])) == 1
    assert p_value(np.array([49_999, 1]), np.array([1.0, 0.0])) == 0
    assert p_value(np.array([0, 0]), chances) == 0


def test_rare_outputs_may_come_as_often_as_they_should() -> None:
    generator = np.random.default_rng(0)
    chances = np.append(np.full(5, 0.19999), np.full(50, 1e-6))
    found = [p_value(generator.multinomial(20_000, chances), chances) for _ in range(300)]
    assert min(found) > 1e-4
    assert p_value(np.append(np.full(5, 3994), np.full(50, 2)), chances) < 1e-20


def test_the_lower_bound_of_epsilon_is_one() -> None:
    """With fair samples it is hardly ever above the truth, and with many it is near."""
    generator = np.random.default_rng(0)
    low, high = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    truth = math.log(7)
    few = [
        epsilon_lower(np.array([generator.multinomial(500, it) for it in (low, high)]), alpha=0.01) for _ in range(60)
    ]
    assert max(few) < truth and np.mean(few) > 1
    many = epsilon_lower(np.array([generator.multinomial(10**7, it) for it in (low, high)]), alpha=1e-5)
    assert truth - 0.02 < many < truth
    assert epsilon_lower(np.array([[100, 0], [0, 0]]), alpha=0.01) == math.inf
    assert epsilon_lower(np.array([[10**5, 0], [0, 10**5]]), alpha=1e-5) > 8
