"""A trial of the noise before it is released: does what the sampler draws follow the weights that epsilon is of?

The certificate speaks of whole weights. Whether the noise is drawn by them is a matter of the code that is installed
here, so each column's own noise is drawn many times over for made-up cells, which costs no privacy, and looked at from
outside:

1. Every cell that comes out, and every cell of the data that are released, must be one of the declared outputs to its
   last bit. Noise in floating point fails here: its low bits tell what it was added to (Mironov 2012,
   10.1145/2382196.2382264; Casacuberta and others 2022, arXiv:2207.10635).
2. How often each output comes must fit its chance (Pearson's chi-square).
3. So must the lowest four bits of the whole numbers that come out, or of their places on the grid.
4. No output may come so much oftener for one cell than for another that the stated epsilon is ruled out.

A sound sampler fails about once in 30,000 trials, or less often. A trial that holds proves nothing about what it does
not look at: the rarest outputs, noise that one row shares with another, and cells beside those that it makes up.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from portcullis.errors import EvidenceError
from portcullis.evidence.statement import Check, Figure, judge
from portcullis.privacy.columns import ColumnMechanism
from portcullis.random_bits import RandomBits

CELLS = 50_000  # of each made-up value
HONEST = 1e-5  # how unlikely a sound sampler may look, in each of the three respects that chance decides
BOUNDS: Mapping[str, Mapping[Literal["min", "max"], float]] = {
    "undeclared_outputs": {"min": 0, "max": 0},
    "sampler_p_value": {"min": HONEST, "max": 1},
    "low_bits_p_value": {"min": HONEST, "max": 1},
    "epsilon_excess": {"max": 0},
}

_COMMON = 10.0  # expected samples with which an output is looked at for itself


def trial(mechanisms: Mapping[str, ColumnMechanism], released: pa.Table) -> dict[str, Figure]:
    """Try each column's noise on made-up cells, and look at the outputs that are to be released.

    Args:
        mechanisms: By column, at least one, the noise that the data got.
        released: The data with that noise.

    Returns:
        `trial_cells`, how many were made up; `undeclared_outputs`, how many of those and of the released cells are none
        of the declared outputs; `sampler_p_value` and `low_bits_p_value`, how likely a sound sampler is as far from
        its law, over all columns and values; `epsilon_excess`, by how much the largest lower bound of epsilon that
        the samples give is above the stated one of its column, negative where it is below.
    """
    bits = RandomBits()
    undeclared, cells, excess = 0, 0, -math.inf
    p_values: list[float] = []
    low_p_values: list[float] = []
    ratios = sum(mechanism.law.chances.size * len(mechanism.law.inputs) for mechanism in mechanisms.values())
    for name, mechanism in mechanisms.items():
        law = mechanism.law
        counts = np.zeros(law.chances.shape, dtype=np.int64)
        for place, value in enumerate(law.inputs):
            found, lowest = law.places(mechanism.noise(name, pa.chunked_array([pa.repeat(value, CELLS)]), bits))
            declared = found >= 0
            counts[place] = np.bincount(found[declared], minlength=law.chances.shape[1])
            low_counts = np.bincount(lowest[declared], minlength=law.low_chances.shape[1])
            p_values.append(p_value(counts[place], law.chances[place]))
            low_p_values.append(p_value(low_counts, law.low_chances[place]))
            undeclared += int((~declared).sum())
            cells += CELLS
        undeclared += sum(int((law.places(chunk)[0] < 0).sum()) for chunk in released.column(name).chunks)
        excess = max(excess, epsilon_lower(counts, alpha=HONEST / ratios) - mechanism.epsilon)
    return {
        "trial_cells": cells,
        "undeclared_outputs": undeclared,
        "sampler_p_value": min(1.0, len(p_values) * min(p_values)),
        "low_bits_p_value": min(1.0, len(low_p_values) * min(low_p_values)),
        "epsilon_excess": excess,
    }


def require_sound(figures: Mapping[str, Figure]) -> None:
    """Refuse noise that its trial speaks against.

    Raises:
        EvidenceError: A figure of `trial` is not within `BOUNDS`.
    """
    checks = {name: Check(it.get("min"), it.get("max")) for name, it in BOUNDS.items()}
    if reason := judge(figures, checks)[1]:
        raise EvidenceError(f"the noise is not what its epsilon speaks of; repair what is installed here: {reason}")


def p_value(seen: NDArray[np.int64], chances: NDArray[np.float64]) -> float:
    """Return how likely counts are as far from what is expected; never far below what it is.

    Outputs of which fewer than ten are expected are looked at together: with the others where ten of them all are
    expected, and otherwise by how likely there are so many of them (Chernoff's bound). The tail of the chi-square
    distribution is Wilson and Hilferty's (1931).

    Args:
        seen: How often each output came, (m,).
        chances: How likely each is, (m,).
    """
    count = int(seen.sum())
    if count == 0:
        return 0.0
    expected = count * chances
    common = expected >= _COMMON
    rare, few = float(chances[~common].sum()), int(seen[~common].sum())
    wanted, came = expected[common], seen[common]
    if count * rare >= _COMMON:
        wanted, came = np.append(wanted, count * rare), np.append(came, few)
    # The divergence is 0 from a chance that is not exceeded.
    tail = math.exp(-count * float(_divergence(np.array(max(few / count, rare)), np.array(rare))))
    degrees = len(wanted) - 1
    if degrees < 1:
        return tail
    wanted = wanted * (came.sum() / wanted.sum())
    statistic = float(((came - wanted) ** 2 / wanted).sum())
    spread = 2 / (9 * degrees)
    normal = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return min(1.0, 2 * min(tail, 0.5 * math.erfc(normal / math.sqrt(2))))


def epsilon_lower(counts: NDArray[np.int64], *, alpha: float) -> float:
    """Return a lower bound of epsilon: the largest log-ratio of an output's chances under two inputs that counts allow.

    Each chance is bounded by Chernoff and Hoeffding's inequality, which holds for any number of samples.

    Args:
        counts: How often each output came for each input, (k, m).
        alpha: With which one ratio's bound may fail.
    """
    sizes = counts.sum(axis=1, keepdims=True)
    if not sizes.all():
        return math.inf  # an input that led to no declared output
    shares = counts / sizes
    room = np.broadcast_to(math.log(2 / alpha) / sizes, shares.shape)
    least, most = _reach(shares, np.zeros_like(shares), room), _reach(shares, np.ones_like(shares), room)
    with np.errstate(divide="ignore"):
        return float((np.log(least).max(axis=0) - np.log(most).min(axis=0)).max())


def _reach(shares: NDArray[np.float64], end: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the chances between each share and an end, (k, m), from which the share diverges by `room`."""
    near, far = shares.copy(), end.copy()
    for _ in range(60):
        middle = (near + far) / 2
        within = _divergence(shares, middle) <= room
        near, far = np.where(within, middle, near), np.where(within, far, middle)
    return far


def _divergence(share: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of two coins."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(share > 0, share * np.log(share / chance), 0.0)
        tails = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - chance)), 0.0)
    total: NDArray[np.float64] = heads + tails
    return np.where(np.isnan(total), np.inf, total)
