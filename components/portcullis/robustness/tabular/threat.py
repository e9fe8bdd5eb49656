"""What an attacker may change in a row of a table, and the verifier that holds candidates to it.

Which features may change decides the verdict, so it is always said, never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import DatasetSpec
from portcullis.digest import parse_json
from portcullis.errors import ConfigError, DataError
from portcullis.strict_yaml import load_yaml

Rows = NDArray[np.float64]
# What rounding may add to a distance.
TOLERANCE = 1e-9
DIRECTIONS = {"down": -1, "both": 0, "up": 1}
MAX_NUMBER = 2.0**53


@dataclass(frozen=True, eq=False)
class TabularThreat:
    """The changes that count, for rows of D features in their own units.

    Attributes:
        epsilon: How far each feature may move (D,), at least 0; 0 for one that may not, and for those of groups.
        low: Least value of each feature (D,).
        high: Greatest (D,).
        whole: Which features are whole numbers (D,) bool.
        direction: Where each feature may move (D,): -1 only down, 1 only up, 0 both.
        groups: One-hot groups that may change: disjoint places, of which exactly one is 1 and the others are 0.
        swaps: How many groups may change in one row.

    Raises:
        ConfigError: Shapes differ, a value is out of its range, groups overlap or are smaller than 2, or nothing may
            change at all.
    """

    epsilon: Rows
    low: Rows
    high: Rows
    whole: NDArray[np.bool_]
    direction: NDArray[np.int64]
    groups: tuple[tuple[int, ...], ...] = ()
    swaps: int = 0

    def __post_init__(self) -> None:
        width = self.epsilon.shape
        parts = (self.low, self.high, self.whole, self.direction)
        if len(width) != 1 or any(it.shape != width for it in parts):
            raise ConfigError("threat: epsilon, low, high, whole and direction must have one value for each feature")
        if not (np.isfinite(self.epsilon).all() and (self.epsilon >= 0).all()):
            raise ConfigError("threat: epsilon must be finite and at least 0")
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low <= self.high).all()):
            raise ConfigError("threat: bounds must be finite, low at most high")
        if not np.isin(self.direction, (-1, 0, 1)).all():
            raise ConfigError("threat: direction must be -1, 0 or 1")
        members = [place for group in self.groups for place in group]
        if any(len(group) < 2 for group in self.groups) or len(set(members)) != len(members):
            raise ConfigError("threat: a group needs two features or more, of which none is in another group")
        if not all(0 <= place < width[0] for place in members) or self.epsilon[members].any():
            raise ConfigError("threat: a group's features must exist, and have an epsilon of 0")
        if type(self.swaps) is not int or not 0 <= self.swaps <= len(self.groups):
            raise ConfigError("threat: swaps must be a whole number from 0 to the number of groups")
        if not self.epsilon.any() and not self.swaps:
            raise ConfigError("threat: nothing may change; name the features that may")

    @classmethod
    def of_deviations(
        cls, reference: Rows, deviations: float, mutable: Sequence[int], *, whole: Sequence[int] = ()
    ) -> "TabularThreat":
        """Let some features move by a multiple of their standard deviation, within the range seen in a reference.

        Args:
            reference: Rows (N, D) that the bounds and deviations are taken from.
            deviations: How far, in standard deviations.
            mutable: Places of the features that may change.
            whole: Places of those that are whole numbers.

        Raises:
            ConfigError: As of the class.
        """
        epsilon = np.zeros(reference.shape[1])
        epsilon[list(mutable)] = deviations * reference.std(axis=0)[list(mutable)]
        integral = np.zeros(len(epsilon), dtype=bool)
        integral[list(whole)] = True
        low, high = reference.min(axis=0), reference.max(axis=0)
        return cls(epsilon, low, high, integral, np.zeros(len(epsilon), dtype=np.int64))

    def box(self, clean: Rows) -> tuple[Rows, Rows]:
        """Return the least and greatest value that each feature of some rows (n, D) may take, groups apart."""
        low = np.where(self.direction > 0, clean, np.maximum(clean - self.epsilon, self.low))
        high = np.where(self.direction < 0, clean, np.minimum(clean + self.epsilon, self.high))
        still = self.epsilon == 0
        low, high = np.where(still, clean, low), np.where(still, clean, high)
        # A whole number may move to the whole numbers between.
        return np.where(self.whole & ~still, np.ceil(low), low), np.where(self.whole & ~still, np.floor(high), high)

    def belongs(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which rows (n, D) are possible at all: finite, in their bounds, whole and one-hot where they must be."""
        possible = np.isfinite(rows).all(axis=1) & ((rows >= self.low) & (rows <= self.high)).all(axis=1)
        possible &= (rows[:, self.whole] == np.round(rows[:, self.whole])).all(axis=1)
        for group in self.groups:
            members = rows[:, list(group)]
            possible &= np.isin(members, (0.0, 1.0)).all(axis=1) & (members.sum(axis=1) == 1)
        result: NDArray[np.bool_] = possible
        return result

    def holds(self, clean: Rows, candidates: Rows) -> NDArray[np.bool_]:
        """Tell which candidates (n, D) count against their clean rows (n, D): possible, and changed as allowed only."""
        moved = np.abs(candidates - clean)
        near = (moved <= self.epsilon * (1 + TOLERANCE)).all(axis=1, where=~self.grouped)
        direct = ((candidates >= clean) | (self.direction <= 0)) & ((candidates <= clean) | (self.direction >= 0))
        result: NDArray[np.bool_] = (
            self.belongs(candidates) & near & direct.all(axis=1) & (self.swapped(clean, candidates) <= self.swaps)
        )
        return result

    @property
    def counts(self) -> dict[str, int]:
        """How many `features` may move, and how many `groups` may change."""
        return {"features": int((self.epsilon > 0).sum()), "groups": len(self.groups) if self.swaps else 0}

    @property
    def grouped(self) -> NDArray[np.bool_]:
        """Which features are of a group (D,)."""
        members = np.zeros(len(self.epsilon), dtype=bool)
        members[[place for group in self.groups for place in group]] = True
        return members

    def swapped(self, clean: Rows, candidates: Rows) -> NDArray[np.int64]:
        """Count the groups that differ in each row (n,)."""
        count = np.zeros(len(clean), dtype=np.int64)
        for group in self.groups:
            count += (clean[:, list(group)] != candidates[:, list(group)]).any(axis=1)
        return count


def read_threat(text: str, spec: DatasetSpec) -> TabularThreat:
    """Read what may change from text: JSON, as a policy holds it, or YAML, as a user writes it.

    Args:
        text: The document.
        spec: As of `parse_threat`.

    Raises:
        ConfigError: As of `parse_threat`, or it is neither.
    """
    data = text.encode("utf-8", "surrogatepass")  # what is no text is refused by either
    try:
        document = parse_json(data)  # canonical JSON spells 1e-7 in a way that YAML 1.1 takes for text
    except DataError:
        try:
            document = load_yaml(data)
        except DataError as error:
            raise ConfigError(f"threat: {error}") from error
    return parse_threat(document, spec)


def parse_threat(document: object, spec: DatasetSpec) -> TabularThreat:
    """Read what may change from a document such as a YAML file holds.

        mutable:
          age: {epsilon: 2, low: 18, high: 90, whole: true, direction: up}
          income: {epsilon: 500}
        groups: [[colour_red, colour_blue]]
        swaps: 1

    Args:
        document: The mapping; `groups` and `swaps` may be left out, as may all of a feature but `epsilon`.
        spec: What the rows are; its bounds hold where none are given.

    Raises:
        ConfigError: An unknown key or column, a value of another type, or as `TabularThreat`.
    """
    names = {name: place for place, name in enumerate(spec.features.columns)}
    if not isinstance(document, Mapping) or not set(document) <= {"mutable", "groups", "swaps"}:
        raise ConfigError("threat: expected mutable, groups and swaps")
    mutable, groups, swaps = document.get("mutable", {}), document.get("groups", []), document.get("swaps", 0)
    if not isinstance(mutable, Mapping) or not isinstance(groups, list):
        raise ConfigError("threat: mutable must name features, and groups be a list of lists of features")
    width = len(names)
    low, high = np.full(width, float(spec.features.low)), np.full(width, float(spec.features.high))
    epsilon, whole = np.zeros(width), np.zeros(width, dtype=bool)
    direction = np.zeros(width, dtype=np.int64)
    for name, given in mutable.items():
        place = _place(names, name)
        if not isinstance(given, Mapping) or not {"epsilon"} <= set(given) <= {
            "epsilon", "low", "high", "whole", "direction",
        }:  # fmt: skip
            raise ConfigError(f"threat: {name} needs an epsilon, and may have low, high, whole and direction")
        epsilon[place] = _number(name, given["epsilon"])
        low[place], high[place] = (
            _number(name, given.get(key, bounds[place])) for key, bounds in (("low", low), ("high", high))
        )
        integral, moves = given.get("whole", False), given.get("direction", "both")
        if type(integral) is not bool or not isinstance(moves, str) or moves not in DIRECTIONS:
            raise ConfigError(f"threat: {name}: whole is true or false, direction up, down or both")
        whole[place], direction[place] = integral, DIRECTIONS[moves]
    if not all(isinstance(group, list) for group in groups):
        raise ConfigError("threat: groups must be a list of lists of features")
    places = tuple(tuple(_place(names, name) for name in group) for group in groups)
    return TabularThreat(epsilon, low, high, whole, direction, places, swaps)


def _place(names: Mapping[str, int], name: Any) -> int:
    if not isinstance(name, str):
        raise ConfigError("threat: features are named by text")
    if name not in names:
        raise ConfigError(f"threat: there is no feature {name[:80]!a}")
    return names[name]


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float, np.float64) or not abs(value) <= MAX_NUMBER:
        raise ConfigError(f"threat: {name}: epsilon, low and high are numbers of at most 2**53 in size")
    return float(value)
