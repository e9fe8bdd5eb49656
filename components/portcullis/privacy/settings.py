"""Which columns get noise and what becomes of the others: plain values, that a policy demands and a pipeline passes on.

Everything here is public: whoever writes the policy knows it without looking at the data. Bounds and domains that are
read off the data would tell of it, and are nowhere taken.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from portcullis.errors import ConfigError

MAX_NOISED_COLUMNS = 256
MIN_STEPS, MAX_STEPS = 2, 4096
MAX_CATEGORIES = 4096
MAX_EPSILON = 64.0
MAX_BUDGET = 1024.0
MAX_BOUND = 2.0**53
MAX_CONTRIBUTION = 1000

CATEGORY = "category"
LAPLACE = "laplace"
KEEP, DROP, SHUFFLE = "keep", "drop", "shuffle"
# What `others` calls the columns that the description of the data set gives a role.
ROLES = ("features", "label", "ids", "text")

Category = str | int | bool

_GRID_KEYS = {"low", "high", "epsilon", "steps"}
_INTEGER_KEYS = {"low", "high", "epsilon", "mechanism"}
_CATEGORY_KEYS = {"categories", "epsilon"}
# Their figures are those of the whole row, and of a person's rows.
_TAKEN = ("record", "person")


@dataclass(frozen=True)
class NoisedColumn:
    """What a column's numbers are brought to before they get noise, and how much noise.

    Attributes:
        low: Least value; what is below counts as this.
        high: Greatest value; what is above counts as this.
        epsilon: Most that this column may cost a row, above 0 and at most 64.
        steps: Number of equally spaced values from `low` to `high` that can come out, 2 to 4,096.
        nulls: `category` has an empty cell be one value more, that noise makes and takes away as well; if left out, an
            empty cell is refused.

    Raises:
        ConfigError: A value is out of its range.
    """

    low: float
    high: float
    epsilon: float
    steps: int
    nulls: str = ""

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        _check_epsilon(self.epsilon)
        _check_nulls(self.nulls)
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

    @property
    def kind(self) -> str:
        """The type of the noised column, as a data set's schema calls it."""
        return "int64" if self.whole else "float64"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `nulls` only where it is set."""
        return _set_fields(self)


@dataclass(frozen=True)
class IntegerColumn:
    """A column whose values are rounded, brought within bounds and get discrete Laplace noise that has none.

    What comes out is wrong by as much in either direction, so that means and sums over many rows are right on average;
    but a single value can lie far outside the bounds.

    Attributes:
        low: Least value, a whole number; what is below counts as this.
        high: Greatest value, a whole number; what is above counts as this.
        epsilon: Most that this column may cost a row, above 0 and at most 64.

    Raises:
        ConfigError: A value is out of its range.
    """

    low: int
    high: int
    epsilon: float

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        _check_epsilon(self.epsilon)
        if type(self.low) is not int or type(self.high) is not int:
            raise ConfigError("privacy: low and high must be whole numbers where the mechanism is laplace")

    @property
    def kind(self) -> str:
        """The type of the noised column, as a data set's schema calls it."""
        return "int64"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self) | {"mechanism": LAPLACE}


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories, whose values are replaced by others at random (k-ary randomised response).

    Attributes:
        categories: Every value that can come out, 2 to 4,096: all text, all whole numbers, or true and false.
        epsilon: Most that this column may cost a row, above 0 and at most 64.
        other: The category that any other value counts as; if left out, another value is refused.
        nulls: `category` has an empty cell be one category more; if left out, an empty cell is refused.

    Raises:
        ConfigError: A value is out of its range.
    """

    categories: tuple[Category, ...]
    epsilon: float
    other: Category | None = None
    nulls: str = ""

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_nulls(self.nulls)
        if not 2 <= len(self.categories) <= MAX_CATEGORIES:
            raise ConfigError(f"privacy: categories must be a list of 2 to {MAX_CATEGORIES} values")
        kinds = {type(category) for category in self.categories}
        if len(kinds) != 1 or not kinds < {str, int, bool} or not all(map(_is_category, self.categories)):
            raise ConfigError(
                "privacy: categories are all text of 1 to 256 printable characters, all whole, or true and false"
            )
        if len(set(self.categories)) != len(self.categories):
            raise ConfigError("privacy: categories names a value twice")
        if self.other is not None and (type(self.other) not in kinds or self.other not in self.categories):
            raise ConfigError("privacy: other must be one of the categories")

    @property
    def kind(self) -> str:
        """The type of the noised column, as a data set's schema calls it."""
        return {str: "string", int: "int64", bool: "bool"}[type(self.categories[0])]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `other` and `nulls` only where they are set."""
        return _set_fields(self) | {"categories": list(self.categories)}


ColumnNoise = NoisedColumn | IntegerColumn | CategoryColumn


@dataclass(frozen=True)
class Contribution:
    """How many rows of one person stay.

    Attributes:
        column: The column that says whose row it is: an identifier, or a consistent token of one.
        at_most: The most rows of one person, 1 to 1,000; of more, as many are chosen at random.

    Raises:
        ConfigError: A value is out of its range.
    """

    column: str
    at_most: int

    def __post_init__(self) -> None:
        _check_name(self.column, taken=())
        if type(self.at_most) is not int or not 1 <= self.at_most <= MAX_CONTRIBUTION:
            raise ConfigError(f"privacy: contribution.at_most must be a whole number from 1 to {MAX_CONTRIBUTION}")


@dataclass(frozen=True)
class NoisePlan:
    """Everything that `dp_noise` is told. `NoisePlan.parse(plan.to_dict()) == plan` for every plan.

    Where a column gets noise, `rows` and every column without noise must be declared; where none does, nothing is
    claimed, and nothing can be declared.

    Attributes:
        columns: Column to its noise.
        budget: The most that a unit may spend, 0 to 1,024: a row, or a person where contributions are bounded.
        others: What becomes of the columns without noise: `keep` or `drop`, by name of the column or by role, where
            `features` and `label` can only be kept, `ids` are the sensitive columns that are tokens, and `text` those
            that are scanned.
        rows: `keep` their order or `shuffle` them.
        contribution: How many rows of one person stay; all when None.

    Raises:
        ConfigError: A value is out of its range, or something is declared though nothing gets noise.
    """

    columns: Mapping[str, ColumnNoise] = field(default_factory=dict)
    budget: float = 0.0
    others: Mapping[str, str] = field(default_factory=dict)
    rows: str = ""
    contribution: Contribution | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.budget) or not 0 <= self.budget <= MAX_BUDGET:
            raise ConfigError(f"privacy.budget must be a number from 0 to {MAX_BUDGET:g}")
        for name, treatment in self.others.items():
            _check_name(name, taken=())
            if treatment not in (KEEP, DROP):
                raise ConfigError(f"privacy: others.{name} must be {KEEP} or {DROP}")
            if treatment == DROP and name in ("features", "label"):
                raise ConfigError(f"privacy: others.{name} can only be {KEEP}, or there is nothing to learn from")
        if self.columns and self.rows not in (KEEP, SHUFFLE):
            raise ConfigError(f"privacy: declare whether to {KEEP} the order of the rows or {SHUFFLE} them, as rows")
        if not self.columns and (self.others or self.rows or self.contribution):
            raise ConfigError("privacy: no column gets noise, so others, rows and contribution must be left out")
        if self.contribution and self.contribution.column in self.columns:
            raise ConfigError("privacy: the column that says whose row it is cannot get noise")

    @property
    def multiplier(self) -> int:
        """How many rows a unit has at most, and so how many times a row's epsilon it spends."""
        return self.contribution.at_most if self.contribution else 1

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self:
        """Read a plan from plain values; each of its fields may be missing, and `contribution` empty.

        Raises:
            ConfigError: A key is unknown, a value is of the wrong type or out of its range, or parts contradict.
        """
        known = {it.name for it in dataclasses.fields(cls)}
        if set(value) - known:
            raise ConfigError(f"privacy knows only {', '.join(sorted(known))}")
        others, rows = value.get("others", {}), value.get("rows", "")
        if not isinstance(others, Mapping) or not all(isinstance(it, str) for it in others.values()):
            raise ConfigError(f"privacy: others must map columns, or {', '.join(ROLES)}, to {KEEP} or {DROP}")
        if not isinstance(rows, str):
            raise ConfigError(f"privacy: rows must be {KEEP} or {SHUFFLE}")
        return cls(
            columns=noised_columns(value.get("columns", {})),
            budget=value.get("budget", 0.0),
            others=dict(others),
            rows=rows,
            contribution=_contribution(value.get("contribution", {})),
        )

    @classmethod
    def of_statement(cls, parameters: Mapping[str, Any]) -> Self:
        """Read the plan out of what `dp_noise` states as its parameters: beside the plan, its ledger.

        Raises:
            ConfigError: As `parse`.
        """
        return cls.parse({name: value for name, value in parameters.items() if name != "ledger"})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every field present, as the policy demands them."""
        return {
            "columns": {name: column.to_dict() for name, column in self.columns.items()},
            "budget": float(self.budget),
            "others": dict(self.others),
            "rows": self.rows,
            "contribution": dataclasses.asdict(self.contribution) if self.contribution else {},
        }


def noised_columns(value: Any) -> dict[str, ColumnNoise]:
    """Read the columns of a configuration, of a pipeline's parameter or of a policy.

    Args:
        value: Column name to the fields of a `NoisedColumn`, of a `CategoryColumn`, or of an `IntegerColumn` and
            `mechanism: laplace`. KFP has one kind of number, so whole numbers may be floats.

    Returns:
        The columns in the order given; none is allowed.

    Raises:
        ConfigError: Not such a mapping, a key unknown or missing, too many columns, or a value out of its range.
    """
    if not isinstance(value, Mapping):
        raise ConfigError("privacy: columns must map column names to low, high, epsilon and steps, or to categories")
    if len(value) > MAX_NOISED_COLUMNS:
        raise ConfigError(f"privacy: {len(value)} columns; at most {MAX_NOISED_COLUMNS} can get noise")
    return {_check_name(name): _column(name, entry) for name, entry in value.items()}


def _check_name(name: object, *, taken: Sequence[str] = _TAKEN) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
        raise ConfigError("privacy: the name of a column must be 1 to 256 printable characters")
    if name in taken:
        raise ConfigError(f"privacy: rename the column {name!r}; its figure would be that of the whole row or person")
    return name


def _column(name: str, entry: Any) -> ColumnNoise:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    try:
        if "categories" in keys and _CATEGORY_KEYS <= keys <= _CATEGORY_KEYS | {"other", "nulls"}:
            return _category_column(entry)
        if keys == _INTEGER_KEYS and entry["mechanism"] == LAPLACE:
            return IntegerColumn(low=_whole(entry["low"]), high=_whole(entry["high"]), epsilon=entry["epsilon"])
        if _GRID_KEYS <= keys <= _GRID_KEYS | {"nulls"}:
            return NoisedColumn(**{**entry, "steps": _whole(entry["steps"])})
    except ConfigError as error:
        raise ConfigError(f"{error}; column {name!r}") from error
    raise ConfigError(
        f"privacy: column {name!r} needs exactly low, high, epsilon and steps, and may have nulls; or categories and "
        f"epsilon, and may have other and nulls; or low, high, epsilon and mechanism: {LAPLACE}"
    )


def _category_column(entry: Mapping[str, Any]) -> CategoryColumn:
    if not isinstance(entry["categories"], list | tuple):
        raise ConfigError("privacy: categories must be a list of every value that can come out")
    if entry.get("other", "") is None:
        raise ConfigError("privacy: other must be one of the categories")
    return CategoryColumn(
        categories=tuple(_whole(it) for it in entry["categories"]),
        epsilon=entry["epsilon"],
        other=_whole(entry.get("other")),
        nulls=entry.get("nulls", ""),
    )


def _contribution(value: Any) -> Contribution | None:
    if not isinstance(value, Mapping) or set(value) not in (set(), {"column", "at_most"}):
        raise ConfigError("privacy: contribution needs exactly column and at_most")
    return Contribution(column=value["column"], at_most=_whole(value["at_most"])) if value else None


def _whole(value: Any) -> Any:
    """Return a float that is whole as an int, and anything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


def _set_fields(column: NoisedColumn | CategoryColumn) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(column).items() if value not in (None, "")}


def _check_bounds(low: object, high: object) -> None:
    if not (_is_number(low) and _is_number(high)):
        raise ConfigError("privacy: low, high and epsilon must be numbers")
    if not -MAX_BOUND < low < high < MAX_BOUND:  # type: ignore[operator]
        raise ConfigError("privacy: low must be less than high, both finite and below 2**53 in size")


def _check_epsilon(epsilon: object) -> None:
    if not _is_number(epsilon):
        raise ConfigError("privacy: low, high and epsilon must be numbers")
    if not 0 < epsilon <= MAX_EPSILON:  # type: ignore[operator]
        raise ConfigError(f"privacy: epsilon must be above 0 and at most {MAX_EPSILON:g}")


def _check_nulls(nulls: object) -> None:
    if nulls not in ("", CATEGORY) or not isinstance(nulls, str):
        raise ConfigError(f"privacy: nulls can only be {CATEGORY}, or be left out")


def _is_category(value: Category) -> bool:
    if isinstance(value, str):
        return 1 <= len(value) <= 256 and value.isprintable()
    return abs(value) < MAX_BOUND


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
