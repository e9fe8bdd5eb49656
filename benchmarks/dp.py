"""`dp`: noise beside OpenDP's mechanisms on vectors of integers, and private training beside plain Opacus and none.

Of noise: what it costs, and whether it follows its law. The training is that of `benchmarks.dp_training`.

The work is a column of ages, 18 to 90, at an epsilon of 2 a value (the Gaussian: of the same scale, which is another
guarantee). OpenDP runs in an environment and process of its own, from lists, as its Python interface takes them, and on
fewer values, since it takes many times as long; so figures are values per second of processor time, of each process.
The table has no counterpart there: its peer is the discrete Laplace noise that would give the same ages the same
epsilon. OpenDP's randomised response takes one value a call, and is called so.

The p-values are Pearson's chi-square of fresh samples against the exact probabilities, cells of fewer than ten expected
samples pooled; with four of them, a right sampler falls below 0.001 once in 250 runs. The epsilons are those that the
implemented integers have, over all outputs.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import chisquare

from benchmarks import Record, command, dp_training
from benchmarks.peers import peer_python
from portcullis.privacy.columns import mechanism_of
from portcullis.privacy.mechanism import TOTAL, laplace_table
from portcullis.privacy.nulls import nullable_table
from portcullis.privacy.response import randomised_response
from portcullis.privacy.samplers import discrete_gaussian, discrete_laplace
from portcullis.privacy.settings import NoisedColumn
from portcullis.privacy.trial import trial
from portcullis.random_bits import RandomBits

VERSION = "0.16.0"
OPENDP = f"OpenDP {VERSION}"
LOW, HIGH, EPSILON, CATEGORIES = 18, 90, 2.0, 10
STEPS = HIGH - LOW + 1
SCALE = Fraction(HIGH - LOW) / Fraction(EPSILON)
# Reads a mechanism's name and a number of values a line; answers with the seconds of processor time that they took.
PEER = """
import json, math, sys, time
import opendp.prelude as dp
dp.enable_features("contrib")
scale, epsilon, low, high, categories = map(float, sys.argv[1:])
space = dp.vector_domain(dp.atom_domain(T=int))
names = [str(name) for name in range(int(categories))]
response = dp.m.make_randomized_response(names, prob=math.exp(epsilon) / (math.exp(epsilon) + categories - 1))
mechanisms = {
    "laplace": dp.m.make_laplace(space, dp.l1_distance(T=int), scale=scale),
    "gaussian": dp.m.make_gaussian(space, dp.l2_distance(T=float), scale=scale),
    "krr": lambda values: [response(name) for name in values],
}
for line in sys.stdin:
    name, count = json.loads(line)
    values = [int(low) + index % int(high - low + 1) for index in range(count)]
    if name == "krr":
        values = [names[index % len(names)] for index in range(count)]
    start = time.process_time()
    noisy = mechanisms[name](values)
    seconds = time.process_time() - start
    assert len(noisy) == count
    print(seconds, flush=True)
"""


class Peer:
    """OpenDP in a process of its own."""

    def __init__(self) -> None:
        python = peer_python("opendp", f"opendp=={VERSION}")
        arguments = [str(float(it)) for it in (SCALE, EPSILON, LOW, HIGH, CATEGORIES)]
        self._process = subprocess.Popen(
            [str(python), "-c", PEER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, mechanism: str, count: int) -> float:
        """Return the processor time that it took over so many values."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([mechanism, count]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    count = 200_000 if quick else 1_000_000
    rounds = 5 if quick else 9
    noise = [*_speed(count, rounds=rounds), *_laws(count), *_epsilons(), *_trial(rounds=rounds)]
    return [*noise, *dp_training.measure(quick)]


def _speed(count: int, *, rounds: int) -> list[Record]:
    bits = RandomBits()
    points = np.arange(count) % STEPS
    categories = np.arange(count) % CATEGORIES
    table, response = laplace_table(EPSILON, STEPS), randomised_response(EPSILON, CATEGORIES)
    work: dict[str, tuple[Callable[[], object], str, int, float | None]] = {
        "laplace": (lambda: points + discrete_laplace(SCALE, count, bits), "laplace", 20, 25),
        "gaussian": (lambda: points + discrete_gaussian(SCALE**2, count, bits), "gaussian", 20, 15),
        "table": (lambda: table.add_noise(points, bits), "laplace", 20, 100),
        "krr": (lambda: response.respond(categories, bits), "krr", 200, None),
    }
    peer = Peer()
    records = []
    for name, (ours, theirs, fewer, target) in work.items():
        ours()
        own, other = [], []
        for _ in range(rounds):
            start = time.process_time()
            ours()
            own.append(count / (time.process_time() - start))
            other.append(count // fewer / peer.seconds(theirs, count // fewer))
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = statistics.median(ratios)
        records.append(
            Record(
                name=name,
                unit="values/s",
                ours=statistics.median(own),
                peer=statistics.median(other),
                peer_name=f"{OPENDP}, {theirs}",
                ratio=ratio,
                spread=(high - low) / ratio,
                target=target,
                better="higher",
            )
        )
    peer.close()
    return records


def _laws(count: int) -> list[Record]:
    bits = RandomBits()
    table, response = laplace_table(EPSILON, STEPS), randomised_response(EPSILON, CATEGORIES)
    reach = np.arange(-40 * int(SCALE), 40 * int(SCALE) + 1)
    noise = table.add_noise(np.full(count, STEPS // 3), bits)
    weights = np.array([table.sums[STEPS - 1 - STEPS // 3], *_inner(table.weights, STEPS // 3), 0], dtype=float)
    weights[-1] = TOTAL - weights[:-1].sum()
    same = np.array([response.same, *[response.weight] * (CATEGORIES - 1)], dtype=float)
    p_values = {
        "laplace": _p(discrete_laplace(SCALE, count, bits) - reach[0], np.exp(-np.abs(reach) / float(SCALE))),
        "gaussian": _p(discrete_gaussian(SCALE**2, count, bits) - reach[0], np.exp(-(reach**2) / float(2 * SCALE**2))),
        "table": _p(noise, weights),
        "krr": _p(response.respond(np.zeros(count, dtype=np.int64), bits), same),
    }
    return [_figure(f"{name}, chi-square", "p", value, 0.001, "higher") for name, value in p_values.items()]


def _inner(weights: Sequence[int], point: int) -> Sequence[int]:
    """Return the weights of the outputs between the two ends."""
    return [weights[output - point + STEPS - 1] for output in range(1, STEPS - 1)]


def _epsilons() -> list[Record]:
    figures = {
        "table": laplace_table(EPSILON, STEPS).epsilon,
        "table with empty cells": nullable_table(EPSILON, STEPS).epsilon,
        "krr": randomised_response(EPSILON, CATEGORIES).epsilon,
    }
    return [_figure(f"{name}, exact", "epsilon", value, EPSILON, "lower") for name, value in figures.items()]


def _trial(*, rounds: int) -> list[Record]:
    """What a run's own look at a column's sampler costs, and what it finds of a sound one."""
    mechanisms = {"age": mechanism_of(NoisedColumn(LOW, HIGH, EPSILON, STEPS))}
    released = pa.table({"age": mechanisms["age"].law.inputs})
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        figures = trial(mechanisms, released)
        seconds.append(time.process_time() - start)
    return [
        Record("trial of a column", "CPU s", statistics.median(seconds), None, "", None, 0.0, None, "lower"),
        _figure("trial, low bits", "p", float(figures["low_bits_p_value"]), 1e-5, "higher"),
    ]


def _p(samples: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    expected = weights / weights.sum() * len(samples)
    seen = np.bincount(samples, minlength=len(weights))
    large = expected >= 10
    seen, expected = (np.append(it[large], it[~large].sum()) for it in (seen, expected))
    if expected[-1] < 10:  # too few even together: with the least of the others
        least = int(np.argmin(expected[:-1]))
        for cells in (seen, expected):
            cells[least] += cells[-1]
        seen, expected = seen[:-1], expected[:-1]
    return float(chisquare(seen, expected * (seen.sum() / expected.sum())).pvalue)


def _figure(name: str, unit: str, value: float, target: float, better: str) -> Record:
    return Record(name, unit, value, None, "", None, 0.0, target, better)  # type: ignore[arg-type]


if __name__ == "__main__":
    command("dp", measure)
