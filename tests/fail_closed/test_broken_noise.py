"""Noise that is less private than its epsilon says: `dp_noise` refuses each before it charges or releases anything."""

import dataclasses
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from private_run import PrivateRun

from portcullis.errors import EvidenceError
from portcullis.privacy import noise, trial
from portcullis.privacy.mechanism import NoiseTable, laplace_table
from portcullis.privacy.nulls import NullableTable
from portcullis.privacy.response import RandomisedResponse, randomised_response
from portcullis.privacy.samplers import discrete_laplace

SHARE = {"share": {"low": 0, "high": 1, "epsilon": 2, "steps": 21}}
SHARE_OR_EMPTY = {"share": {"low": -1, "high": 1, "epsilon": 2, "steps": 21, "nulls": "category"}}
DEBT = {"debt": {"low": 0, "high": 2**31, "epsilon": 2, "mechanism": "laplace"}}
AGE = {"age": {"low": 18, "high": 90, "epsilon": 1, "mechanism": "laplace"}}
CITY = {"city": {"categories": ["Paris", "Rome", "Oslo"], "epsilon": 1}}
FLOATS = np.random.default_rng(0)


def run_of(root, entry: dict) -> PrivateRun:
    return PrivateRun(root, columns=entry)


def refused(run: PrivateRun, *figures: str) -> None:
    """The run is refused for these figures, and leaves nothing."""
    run.start()
    with pytest.raises(EvidenceError, match="not what its epsilon speaks of") as refusal:
        run.noise()
    assert all(figure in str(refusal.value) for figure in figures)
    assert not (run.root / "noised").exists() and not (run.root / "evidence").exists()
    assert not (run.root / "noise.html").exists() and run.entries() == ()


@pytest.mark.parametrize("entry", [SHARE, SHARE_OR_EMPTY, DEBT, AGE, CITY], ids=lambda it: str(next(iter(it.values()))))
def test_sound_noise_passes_and_says_what_its_trial_gave(tmp_path, entry) -> None:
    run = run_of(tmp_path, entry)
    run.start()
    figures = run.noise().figures
    assert figures["undeclared_outputs"] == 0 and figures["trial_cells"] >= 100_000
    assert figures["epsilon_excess"] <= 0
    assert "low bits" in (tmp_path / "noise.html").read_text()


# Low bits.


def with_noise(monkeypatch, change) -> None:
    """Have each column's cells go through `change` after, or in place of, their noise."""
    build = noise.mechanism_of

    def broken(column):
        mechanism = build(column)
        return dataclasses.replace(
            mechanism, noise=lambda name, cells, bits: change(cells, mechanism.noise(name, cells, bits))
        )

    monkeypatch.setattr(noise, "mechanism_of", broken)


def test_floating_point_laplace_noise_added_to_the_values(tmp_path, monkeypatch) -> None:
    """As the article does it, of the right scale and clipped to the bounds: what comes out tells what went in."""

    def floats(cells, _):
        values = cells.to_numpy().astype(float)
        return pa.array(np.clip(values + FLOATS.laplace(scale=0.5, size=len(values)), 0, 1))

    with_noise(monkeypatch, floats)
    refused(run_of(tmp_path, SHARE), "undeclared_outputs")


def test_floating_point_noise_that_is_rounded_to_whole_numbers(tmp_path, monkeypatch) -> None:
    """Wide noise of 24 bits has no low bits of its own: those of the value show through."""

    def floats(scale, count, bits):
        return np.rint(FLOATS.laplace(scale=float(scale), size=count).astype(np.float32)).astype(np.int64)

    monkeypatch.setattr("portcullis.privacy.unbounded.discrete_laplace", floats)
    refused(run_of(tmp_path, DEBT), "low_bits_p_value")


def test_noise_in_steps_of_two(tmp_path, monkeypatch) -> None:
    """An odd value stays odd."""
    monkeypatch.setattr(
        "portcullis.privacy.unbounded.discrete_laplace",
        lambda scale, count, bits: 2 * discrete_laplace(scale / 2, count, bits),
    )
    refused(run_of(tmp_path, DEBT), "low_bits_p_value")


@pytest.mark.parametrize("trace", [2.0**-52, -(2.0**-52)])
def test_a_trace_of_the_value_in_the_last_bit(tmp_path, monkeypatch, trace) -> None:
    def traced(cells, noisy):
        return pa.array(noisy.to_numpy() * np.where(cells.to_numpy() > 0.5, 1 + trace, 1))

    with_noise(monkeypatch, traced)
    refused(run_of(tmp_path, SHARE), "undeclared_outputs")


def test_a_trace_of_the_value_in_the_sign_of_zero(tmp_path, monkeypatch) -> None:
    def traced(cells, noisy):
        outputs = noisy.to_numpy()
        return pa.array(np.where((outputs == 0) & (cells.to_numpy() > 0.5), -0.0, outputs))

    with_noise(monkeypatch, traced)
    refused(run_of(tmp_path, SHARE), "undeclared_outputs")


def test_cells_that_are_released_as_they_came_though_the_made_up_ones_are_noised(tmp_path, monkeypatch) -> None:
    """Off the grid, a cell without noise shows for itself, whatever the trial drew."""

    def only_few(cells, noisy):
        return noisy if len(cells) == trial.CELLS else pa.array(cells.to_numpy().astype(float))

    with_noise(monkeypatch, only_few)
    refused(run_of(tmp_path, SHARE), "undeclared_outputs")


# No noise, too little, or none of its own.


def without_noise(monkeypatch) -> None:
    monkeypatch.setattr(NoiseTable, "add_noise", lambda self, points, bits: points)
    monkeypatch.setattr(RandomisedResponse, "respond", lambda self, categories, bits: categories)
    monkeypatch.setattr(
        "portcullis.privacy.unbounded.discrete_laplace", lambda scale, count, bits: np.zeros(count, dtype=np.int64)
    )


@pytest.mark.parametrize("entry", [SHARE, DEBT, AGE, CITY], ids=["grid", "wide integers", "integers", "categories"])
def test_noise_that_is_zeroed(tmp_path, monkeypatch, entry) -> None:
    without_noise(monkeypatch)
    refused(run_of(tmp_path, entry), "epsilon_excess", "sampler_p_value")


def test_noise_of_another_scale(tmp_path, monkeypatch) -> None:
    """A fifth less than the epsilon asks for, in all three mechanisms."""
    add, respond = NoiseTable.add_noise, RandomisedResponse.respond
    less, bolder = laplace_table(2.4, 21), randomised_response(1.2, 3)
    monkeypatch.setattr(NoiseTable, "add_noise", lambda self, points, bits: add(less, points, bits))
    monkeypatch.setattr(RandomisedResponse, "respond", lambda self, given, bits: respond(bolder, given, bits))
    monkeypatch.setattr(
        "portcullis.privacy.unbounded.discrete_laplace",
        lambda scale, count, bits: discrete_laplace(scale * Fraction(5, 6), count, bits),
    )
    for entry in (SHARE, DEBT, CITY):
        refused(run_of(tmp_path / next(iter(entry)), entry), "sampler_p_value")


def test_half_the_noise_is_ruled_out_by_how_often_outputs_come(tmp_path, monkeypatch) -> None:
    add, less = NoiseTable.add_noise, laplace_table(4.0, 21)
    monkeypatch.setattr(NoiseTable, "add_noise", lambda self, points, bits: add(less, points, bits))
    refused(run_of(tmp_path, SHARE), "epsilon_excess")


def test_noise_that_is_drawn_once_for_all_rows(tmp_path, monkeypatch) -> None:
    """Two rows, and whose each is, would give all others away."""
    add = NoiseTable.add_noise

    def once(self, points, bits):
        same = int(add(self, np.array([self.steps // 2]), bits)[0]) - self.steps // 2
        return np.clip(points + same, 0, self.steps - 1)

    monkeypatch.setattr(NoiseTable, "add_noise", once)
    refused(run_of(tmp_path, SHARE), "sampler_p_value")


def test_every_other_cell_without_noise(tmp_path, monkeypatch) -> None:
    add = NoiseTable.add_noise
    monkeypatch.setattr(
        NoiseTable,
        "add_noise",
        lambda self, points, bits: np.where(np.arange(len(points)) % 2, points, add(self, points, bits)),
    )
    refused(run_of(tmp_path, SHARE), "sampler_p_value")


def test_empty_cells_that_stay_empty(tmp_path, monkeypatch) -> None:
    """Whether there is a value is told as it is."""

    def told(self, points, empty, bits):
        return self.table.add_noise(points, bits), empty

    monkeypatch.setattr(NullableTable, "add_noise", told)
    refused(run_of(tmp_path, SHARE_OR_EMPTY), "epsilon_excess")


# What the statement says.


def test_the_figures_of_the_trial_are_bounded_by_the_policy(tmp_path) -> None:
    """A statement without them, or with others, ends the run at the next step, whoever signed it."""
    changes = (
        lambda figures: {name: it for name, it in figures.items() if name != "low_bits_p_value"},
        lambda figures: figures | {"sampler_p_value": 0.0},
        lambda figures: figures | {"undeclared_outputs": 1},
        lambda figures: figures | {"epsilon_excess": 0.5},
    )
    run = run_of(tmp_path, SHARE)
    run.start()
    run.noise()
    honest = (tmp_path / "evidence").read_bytes()
    for change in changes:
        (tmp_path / "evidence").write_bytes(honest)
        run.forge("dp_noise", lambda it, change=change: dataclasses.replace(it, figures=change(dict(it.figures))))
        with pytest.raises(EvidenceError, match="dp_noise"):
            run.train()
    (tmp_path / "evidence").write_bytes(honest)
    run.train()
