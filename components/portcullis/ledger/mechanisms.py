"""What a release of private data can cost, and what several releases cost together.

One adjacency binds all of them: two data sets with as many units, of which one unit's private values are replaced by
nothing ("zero-out"). A local mechanism costs under it what it costs under any replacement of a value, or less; DP-SGD
with Poisson sampling costs what it costs when a unit is added or removed, since a unit of nothing has no gradient
(Ponomareva et al. 2023, "How to DP-fy ML", arXiv:2303.00654, 2.1.1). So the two may be added up.

At delta 0, only pure mechanisms compose, and their epsilons add up (Dwork, Roth 2014, theorem 3.16). At a delta above
0, everything composes by privacy loss distributions (Sommer et al. 2019; Koskela et al. 2020; Doroshenko et al. 2022,
arXiv:2207.04380), computed pessimistically by Google's `dp-accounting`, in floating point.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from portcullis.errors import ConfigError, MissingDependencyError

MAX_EPSILON = 512.0
MIN_DELTA = 1e-10  # smaller ones drown in the rounding errors of the privacy loss distributions
MIN_NOISE, MAX_NOISE = 0.1, 1e6
MAX_STEPS = 10_000_000

_INTERVAL = 1e-4  # of the privacy losses, dp-accounting's own
_HOPELESS = 64 * MAX_EPSILON  # what may cost more than this is not looked at: no budget is near it
_POINTS = 1_280_000  # of a distribution; beyond, the interval grows, and the result with it, never below the truth


@dataclass(frozen=True)
class Pure:
    """A mechanism of `epsilon` and delta 0.

    Attributes:
        epsilon: Above 0, at most 512; rounded up by whoever measured it.
    """

    epsilon: float

    def __post_init__(self) -> None:
        _require("epsilon", self.epsilon, 0, MAX_EPSILON)


@dataclass(frozen=True)
class Approximate:
    """A mechanism of which only `epsilon` and `delta` are known.

    Attributes:
        epsilon: Above 0, at most 512.
        delta: Above 0, below 1.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _require("epsilon", self.epsilon, 0, MAX_EPSILON)
        _require("delta", self.delta, 0, math.nextafter(1, 0))


@dataclass(frozen=True)
class Gaussian:
    """One release with Gaussian noise.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the L2 sensitivity, 0.1 to 1e6.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _require("noise_multiplier", self.noise_multiplier, math.nextafter(MIN_NOISE, 0), MAX_NOISE)


@dataclass(frozen=True)
class DpSgd:
    """Steps of DP-SGD: of a Poisson sample of the units, clipped gradients with Gaussian noise.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clipping norm, 0.1 to 1e6.
        sample_rate: With what probability a unit is in a step's sample, above 0, at most 1.
        steps: Number of steps, 1 to 10 million.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        _require("noise_multiplier", self.noise_multiplier, math.nextafter(MIN_NOISE, 0), MAX_NOISE)
        _require("sample_rate", self.sample_rate, 0, 1)
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"ledger: steps must be a whole number from 1 to {MAX_STEPS}")


Mechanism = Pure | Approximate | Gaussian | DpSgd
_KINDS: Mapping[str, type[Mechanism]] = {
    "pure": Pure,
    "approximate": Approximate,
    "gaussian": Gaussian,
    "dp-sgd": DpSgd,
}


def mechanism_to_dict(mechanism: Mechanism) -> dict[str, Any]:
    """Return plain values: `kind` and the mechanism's fields. `mechanism_from_dict` inverts it."""
    kind = next(name for name, known in _KINDS.items() if type(mechanism) is known)
    return {"kind": kind, **asdict(mechanism)}


def mechanism_from_dict(value: Any) -> Mechanism:
    """Read a mechanism.

    Raises:
        ConfigError: Of no known kind, a field is missing or unknown, or a value is out of its range.
    """
    kind = _KINDS.get(str(value.get("kind"))) if isinstance(value, Mapping) else None
    if kind is None:
        raise ConfigError(f"ledger: a mechanism is one of {', '.join(_KINDS)}")
    try:
        return kind(**{name: it for name, it in value.items() if name != "kind"})
    except TypeError as error:
        raise ConfigError(f"ledger: a mechanism of kind {value['kind']} has other fields") from error


def describe(mechanism: Mechanism) -> str:
    """Return a mechanism in one short line, for people."""
    given = asdict(mechanism)
    kind = str(mechanism_to_dict(mechanism)["kind"])
    return f"{kind} {', '.join(f'{name} {value:g}' for name, value in given.items())}"


def compose(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """Return an epsilon that bounds what all the mechanisms together cost a unit, at `delta`.

    Args:
        mechanisms: In any order; none costs 0.
        delta: 0, or from 1e-10 to below 1.

    Returns:
        Of pure mechanisms at most the exact sum of their epsilons, rounded up to a float; infinity where no epsilon
        holds, such as for Gaussian noise at delta 0.

    Raises:
        ConfigError: `delta` is out of its range.
        MissingDependencyError: `delta` is above 0 and dp-accounting is not installed.
    """
    if not (delta == 0 or MIN_DELTA <= delta < 1):
        raise ConfigError(f"ledger: delta must be 0, or from {MIN_DELTA:g} to below 1")
    pure = [it.epsilon for it in mechanisms if isinstance(it, Pure)]
    total = _sum_up(pure) if len(pure) == len(mechanisms) else math.inf
    if delta == 0 or not mechanisms:
        return total
    return min(total, _by_privacy_losses(tuple(mechanisms), delta))


@lru_cache(maxsize=64)
def _by_privacy_losses(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    try:
        from dp_accounting.pld import common, privacy_loss_distribution
    except ImportError as error:
        raise MissingDependencyError(
            "a budget with a delta needs dp-accounting; run: pip install 'kfp-portcullis[dp]'"
        ) from error
    counted = Counter(mechanisms)
    bound = sum(count * _loose_bound(it) for it, count in counted.items()) - math.log(delta)
    if not bound <= _HOPELESS:
        return math.inf
    interval = max(_INTERVAL, 2 * bound / _POINTS)
    whole = None
    for it, count in counted.items():
        if isinstance(it, Pure | Approximate):
            loose = common.DifferentialPrivacyParameters(it.epsilon, it.delta if isinstance(it, Approximate) else 0.0)
            one = privacy_loss_distribution.from_privacy_parameters(loose, value_discretization_interval=interval)
        else:
            one = privacy_loss_distribution.from_gaussian_mechanism(
                it.noise_multiplier, value_discretization_interval=interval, sampling_prob=_rate(it)
            )
        several = one.self_compose(count * _steps(it))
        whole = several if whole is None else whole.compose(several)
    epsilon = math.inf if whole is None else float(whole.get_epsilon_for_delta(delta))
    return epsilon if epsilon >= 0 else math.inf  # NaN, too, bounds nothing


def _loose_bound(mechanism: Mechanism) -> float:
    """Return what a mechanism adds to a bound that is quick and far too high: it only says how wide the losses spread.

    Of Gaussian noise, the Renyi divergence of order 2 (Mironov, Talwar, Zhang 2019, arXiv:1908.10530, 3.3), which is an
    epsilon once -log(delta) is added (Mironov 2017, proposition 3).
    """
    if isinstance(mechanism, Pure | Approximate):
        return mechanism.epsilon
    spread = math.expm1(mechanism.noise_multiplier**-2)
    return _steps(mechanism) * math.log1p(_rate(mechanism) ** 2 * spread)


def _rate(mechanism: Mechanism) -> float:
    return mechanism.sample_rate if isinstance(mechanism, DpSgd) else 1.0


def _steps(mechanism: Mechanism) -> int:
    return mechanism.steps if isinstance(mechanism, DpSgd) else 1


def _sum_up(epsilons: Sequence[float]) -> float:
    exact = sum((Fraction(epsilon) for epsilon in epsilons), Fraction(0))
    nearest = float(exact)
    return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)


def _require(name: str, value: object, above: float, most: float) -> None:
    if type(value) not in (int, float) or not above < value <= most:  # type: ignore[operator]
        raise ConfigError(f"ledger: {name} must be a number above {above:g} and at most {most:g}")
