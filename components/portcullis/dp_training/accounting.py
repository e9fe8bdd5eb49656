"""How much noise a training needs, and what it then costs, by two accountants that share no code.

The mechanism is the Poisson-subsampled Gaussian mechanism, composed over the steps (Abadi et al. 2016,
arXiv:1607.00133). Opacus's PRV accountant (Gopi, Lee, Wutschitz 2021, arXiv:2106.02848) and the PLD accountant of
dp-accounting (Doroshenko et al. 2022, arXiv:2207.04380) both bound its epsilon from above. The larger bound is stated.
"""

import math
import warnings
from dataclasses import dataclass

from portcullis.dp_training.settings import PrivateSettings
from portcullis.errors import ConfigError, DataError, InconclusiveError, MissingDependencyError

MAX_NOISE = 1e4
MAX_STEPS = 1_000_000

_DISAGREEMENT = 0.03  # the PRV accountant adds an error of 0.01 to its bound
_GRID = 1e-3  # of the privacy loss, on which the PLD accountant rounds up
_SEARCH = 1e-3  # relative, of the noise multiplier


@dataclass(frozen=True)
class Plan:
    """What is done to n rows, and what it costs.

    Attributes:
        rows: n, which is public.
        sampling_rate: The probability with which a row is in a batch, above 0 and below 1, each row and step apart.
        steps: Number of batches.
        noise_multiplier: Standard deviation of the noise on the sum of clipped gradients, in clipping norms.
        epsilon_prv: Upper bound of epsilon by Opacus's PRV accountant.
        epsilon_pld: Upper bound of epsilon by dp-accounting's PLD accountant.
    """

    rows: int
    sampling_rate: float
    steps: int
    noise_multiplier: float
    epsilon_prv: float
    epsilon_pld: float

    @property
    def epsilon(self) -> float:
        """The larger of the two bounds."""
        return max(self.epsilon_prv, self.epsilon_pld)


def plan(rows: int, settings: PrivateSettings) -> Plan:
    """Find the least noise, to about 0.1 %, with which both accountants stay within `settings.target_epsilon`.

    Raises:
        DataError: There are no more rows than a batch has, or delta is above 1/(10 rows).
        ConfigError: No noise of a sensible size is enough, or there are too many steps.
        InconclusiveError: The accountants contradict each other.
        MissingDependencyError: Opacus or dp-accounting is not installed.
    """
    if not rows > settings.batch_size:
        raise DataError(f"{rows} rows; a private batch of {settings.batch_size} needs more than that to sample from")
    if not settings.delta <= 1 / (10 * rows):
        raise DataError(f"delta {settings.delta:g} is too large for {rows} rows; take at most 1/(10 n)")
    rate = settings.batch_size / rows
    steps = math.ceil(settings.epochs / rate)
    if steps > MAX_STEPS:
        raise ConfigError(f"dp_training: {steps} steps; at most {MAX_STEPS} are accounted for")
    target = settings.target_epsilon
    low, high = 0.0, 1.0
    while not epsilon_pld(high, rate, steps, settings.delta) <= target:
        low, high = high, 2 * high
        if high > MAX_NOISE:
            raise ConfigError(f"dp_training: target_epsilon {target:g} is out of reach; take fewer epochs")
    while high - low > _SEARCH * high:
        middle = (low + high) / 2
        if epsilon_pld(middle, rate, steps, settings.delta) <= target:
            high = middle
        else:
            low = middle
    prv = epsilon_prv(high, rate, steps, settings.delta)
    while not prv <= target:
        if not prv <= target + _DISAGREEMENT:
            raise InconclusiveError(f"two accountants disagree: epsilon {prv:.4g} and at most {target:.4g}")
        high *= 1 + max((prv - target) / (2 * target), _SEARCH)  # epsilon falls a little faster than 1/noise
        prv = epsilon_prv(high, rate, steps, settings.delta)
    found = Plan(rows, rate, steps, high, prv, epsilon_pld(high, rate, steps, settings.delta))
    if not (0 < found.epsilon <= target and abs(found.epsilon_prv - found.epsilon_pld) <= _DISAGREEMENT):
        raise InconclusiveError(
            f"two accountants disagree: epsilon {found.epsilon_prv:.4g} and {found.epsilon_pld:.4g}, of {target:.4g}"
        )
    return found


def epsilon_pld(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return an upper bound of epsilon by dp-accounting; rows are added or removed.

    Raises:
        MissingDependencyError: dp-accounting is not installed.
    """
    try:
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
        from dp_accounting.pld import PLDAccountant
    except ImportError as error:
        raise MissingDependencyError("dp-accounting is missing; run: pip install 'kfp-portcullis[dp]'") from error
    accountant = PLDAccountant(value_discretization_interval=_GRID)
    accountant.compose(PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)), steps)
    return float(accountant.get_epsilon(delta))


def epsilon_prv(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return an upper bound of epsilon by Opacus; rows are added or removed.

    Raises:
        MissingDependencyError: Opacus is not installed.
        InconclusiveError: The accountant gave no number.
    """
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise MissingDependencyError("Opacus is missing; run: pip install 'kfp-portcullis[dp]'") from error
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sampling_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tails, and of the search for a first bound; what comes out is checked
        try:
            epsilon = float(accountant.get_epsilon(delta))
        except (ArithmeticError, RuntimeError, ValueError) as error:
            raise InconclusiveError(f"Opacus's accountant could not bound epsilon: {error}") from error
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise InconclusiveError("Opacus's accountant gave no finite epsilon; take fewer epochs or a larger batch")
    return epsilon
