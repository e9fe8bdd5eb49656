"""Which columns get noise: plain values, so that a policy can demand them and a pipeline can pass them on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from portcullis.errors import ConfigError

MAX_NOISED_COLUMNS = 256
MIN_STEPS, MAX_STEPS = 2, 4096
MAX_EPSILON = 64.0
MAX_BOUND = 2.0**53

_KEYS = ("low", "high", "epsilon", "steps")
# `epsilon_record` is the figure for the whole row.
_TAKEN = "record"


@dataclass(frozen=True)
class NoisedColumn:
    """What a column's values are brought to before they get noise, and how much noise.

    The bounds are public: whoever writes the policy knows them without looking at the data. Bounds that are read off
    the data would tell of it, and are nowhere taken.

    Attributes:
        low: Least value; what is below counts as this.
        high: Greatest value; what is above counts as this.
        epsilon: Most that this column may cost a row, above 0 and at most 64.
        steps: Number of equally spaced values from `low` to `high` that can come out, 2 to 4,096.

    Raises:
        ConfigError: A value is out of its range.
    """

    low: float
    high: float
    epsilon: float
    steps: int

    def __post_init__(self) -> None:
        if not all(_is_number(value) for value in (self.low, self.high, self.epsilon)):
            raise ConfigError("privacy: low, high and epsilon must be numbers")
        if not -MAX_BOUND < self.low < self.high < MAX_BOUND:
            raise ConfigError("privacy: low must be less than high, both finite and below 2**53 in size")
        if not 0 < self.epsilon <= MAX_EPSILON:
            raise ConfigError(f"privacy: epsilon must be above 0 and at most {MAX_EPSILON:g}")
        if type(self.steps) is not int or not MIN_STEPS <= self.steps <= MAX_STEPS:
            raise ConfigError(f"privacy: steps must be a whole number from {MIN_STEPS} to {MAX_STEPS}")
        # Neighbours on the grid must be different numbers, or fewer values come out than the figures speak of.
        if not (self.high - self.low) / (self.steps - 1) > 4 * max(abs(self.low), abs(self.high)) * 2.0**-52:
            raise ConfigError("privacy: low and high are too close for so many steps")

    @property
    def width(self) -> float:
        """The distance between two values that can come out."""
        return (self.high - self.low) / (self.steps - 1)

    @property
    def whole(self) -> bool:
        """Whether every value that can come out is a whole number, because `low` and `width` are."""
        return float(self.low).is_integer() and self.width.is_integer()


def noised_columns(value: Any) -> dict[str, NoisedColumn]:
    """Read the columns of a configuration, of a pipeline's parameter or of a policy.

    Args:
        value: Column name to a mapping of exactly `low`, `high`, `epsilon` and `steps`. KFP has one kind of number, so
            `steps` may be a float that is whole.

    Returns:
        The columns in the order given; none is allowed.

    Raises:
        ConfigError: Not such a mapping, a key unknown or missing, too many columns, or a value out of its range.
    """
    if not isinstance(value, Mapping):
        raise ConfigError("privacy: columns must map column names to low, high, epsilon and steps")
    if len(value) > MAX_NOISED_COLUMNS:
        raise ConfigError(f"privacy: {len(value)} columns; at most {MAX_NOISED_COLUMNS} can get noise")
    return {_name(name): _column(name, entry) for name, entry in value.items()}


def _name(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
        raise ConfigError("privacy: the name of a column must be 1 to 256 printable characters")
    if name == _TAKEN:
        raise ConfigError(f"privacy: rename the column {name!r}; its figure would be that of the whole row")
    return name


def _column(name: str, entry: Any) -> NoisedColumn:
    if not isinstance(entry, Mapping) or set(entry) != set(_KEYS):
        raise ConfigError(f"privacy: column {name!r} needs exactly {', '.join(_KEYS)}")
    steps = entry["steps"]
    if type(steps) is float and steps.is_integer():
        steps = int(steps)
    try:
        return NoisedColumn(low=entry["low"], high=entry["high"], epsilon=entry["epsilon"], steps=steps)
    except ConfigError as error:
        raise ConfigError(f"{error}; column {name!r}") from error


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
