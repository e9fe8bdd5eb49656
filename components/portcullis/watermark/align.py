"""A suspect model's neurons put back into the order of the unmarked model, so that its mark can be read.

Whoever reorders, rescales, splits or adds neurons leaves what the network computes and hides the mark, which is read by
position (Yan et al. 2023, arXiv:2303.09732). The unmarked model has the right order: marking moves each weight by a few
per cent, so neurons resemble their originals more than one another.

**No graph is needed.** Each tensor is a matrix of rows by columns (by kernel). Balanced, it no longer knows of scales.
Given an order of its columns, its rows follow from their likeness to the original's, one to one and of the largest sum
(Kuhn 1955); given the rows, so do the columns; the two are settled in turn. It starts from what may be in order: rows
or columns as they stand (inputs, classes, words), the order found for a tensor whose rows these columns are or may be,
and the spread of values of each row, which no order changes. The best start wins, and tensors are gone through again
until none gains. A suspect's tensor may be wider than its original, or narrower: what resembles nothing is left out,
what is lacking is zero. Tensors that were renamed are paired with the original that they resemble most.

**The p-values stay what they are.** Nothing here knows the key. Whatever order comes out, of whatever suspect, is as
fixed as any other weights are, so a wrong order costs a mark that is there and never makes one that is not.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import MissingDependencyError, ModelError
from portcullis.watermark.mark import Tensors, is_carrier
from portcullis.watermark.scaling import balance, wide

# An axis of more lines than this stands as it is, or as another tensor's order says; matching takes lines squared.
MAX_LINES = 4096
# A likeness from which a tensor counts as settled, and one from which its order is worth a try elsewhere.
_SETTLED = 0.9
_TELLING = 0.3
_PASSES = 6
_TURNS = 8
_STARTS = 24
_FINALISTS = 2
_GAIN = 1e-3
_HOPE = 1.3
_LEVELS = 64
_PAIRED_LINES = 256

Order = NDArray[np.intp]


@dataclass(frozen=True)
class Alignment:
    """A suspect's weights in the unmarked model's order.

    Attributes:
        tensors: The unmarked model's carriers by name, in its shapes, with the suspect's values; of one that the
            suspect lacks, zeros.
        likeness: Mean cosine of their weights, balanced, -1..1: near 1 for a copy, near 0 for another model.
    """

    tensors: Tensors
    likeness: float


def align(suspect: Tensors, unmarked: Tensors) -> Alignment:
    """Put a suspect's neurons into the order of the unmarked model's.

    Args:
        suspect: Its tensors by name, finite.
        unmarked: The unmarked model's.

    Raises:
        ModelError: The unmarked model has no tensor that carries a mark, or no tensor of the suspect may be one of
            its tensors.
        MissingDependencyError: SciPy is needed and not installed.
    """
    carriers = [name for name in sorted(unmarked) if is_carrier(unmarked[name])]
    if not carriers:
        raise ModelError("the unmarked model has no tensor that carries a mark")
    # Tensors too small to carry a mark still tell the order of their neighbours' neurons.
    originals = {name: _Matrix.of(unmarked[name]) for name in sorted(unmarked) if _is_matrix(unmarked[name])}
    found = {name: _Matrix.of(suspect[name]) for name in sorted(suspect) if _is_matrix(suspect[name])}
    pairs = {name: _Pair(originals[name], found[other]) for name, other in _paired(originals, found).items()}
    if not pairs.keys() & set(carriers):
        raise ModelError("no tensor of the suspect may be one of the unmarked model's: it is of another architecture")
    _settle(list(pairs.values()))
    aligned = {
        name: pairs[name].restored() if name in pairs else np.zeros(unmarked[name].shape, np.float32)
        for name in carriers
    }
    sizes = [unmarked[name].size for name in carriers]
    likeness = np.average([pairs[name].likeness if name in pairs else 0.0 for name in carriers], weights=sizes)
    return Alignment(aligned, float(likeness))


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A tensor (rows, columns, *kernel), and its balanced values (rows, columns, kernel) float32."""

    weights: NDArray[Any]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, weights: NDArray[Any]) -> "_Matrix":
        values, _, _ = balance(wide(weights))
        return cls(weights, values.reshape(*weights.shape[:2], -1))

    def may_be(self, other: "_Matrix") -> bool:
        """Tell whether the one may be the other with neurons added or taken out."""
        return self.weights.shape[2:] == other.weights.shape[2:]

    def at_least(self, other: "_Matrix") -> "_Matrix":
        """Return it with lines of zeros for the neurons that it has fewer."""
        lacking = [max(its - own, 0) for own, its in zip(self.values.shape, other.values.shape, strict=True)]
        if not any(lacking):
            return self
        weights, values = (
            np.pad(array, [(0, more) for more in (*lacking[:2], *[0] * (array.ndim - 2))])
            for array in (self.weights, self.values)
        )
        return _Matrix(weights, values)


class _Pair:
    """An original, the suspect's tensor that is compared with it, and the order found so far."""

    def __init__(self, original: _Matrix, found: _Matrix) -> None:
        self.original, self.found = original, found.at_least(original)
        self.shape, self.wider = original.values.shape[:2], self.found.values.shape[:2]
        self.order: tuple[Order, Order] = (np.arange(self.shape[0]), np.arange(self.shape[1]))
        self.likeness = self._likeness(self.order)
        self._tried: set[tuple[int, bytes]] = set()

    def improve(self, starts: Iterable[tuple[int, Order]]) -> bool:
        """Settle rows and columns from the start that promises most; tell whether they resemble the original more."""
        fresh = [it for it in starts if (it[0], it[1].tobytes()) not in self._tried][:_STARTS]
        self._tried |= {(axis, order.tobytes()) for axis, order in fresh}
        usable = [(axis, order) for axis, order in fresh if self.wider[1 - axis] <= MAX_LINES]
        if not usable:
            return False
        # Long lines resemble one another less by chance than short ones, so each axis has finalists of its own.
        promising: dict[int, list[tuple[float, Order, NDArray[np.float32]]]] = {0: [], 1: []}
        for axis, order in usable:
            alike = self._alike(axis, order)
            promise = float(alike.max(axis=1).mean())
            if promise >= min(_HOPE * self._chance(axis), 0.5):
                finalists = [*promising[axis], (promise, order, alike)]
                promising[axis] = sorted(finalists, key=lambda it: -it[0])[:_FINALISTS]
        gained = False
        for axis, finalists in promising.items():
            for _, order, alike in finalists:
                settled = self._in_turn(axis, order, alike)
                likeness = self._likeness(settled)
                if likeness > self.likeness + _GAIN:
                    self.order, self.likeness, gained = settled, likeness, True
        return gained

    @cached_property
    def own_starts(self) -> tuple[tuple[int, Order], ...]:
        """What an axis may be without help: in order, or in the order of its lines' spread."""
        as_it_stands = [(axis, np.arange(size)) for axis, size in enumerate(self.shape) if size == self.wider[axis]]
        by_spread = [
            (axis, _match(_spreads(self.original.values, axis) @ _spreads(self.found.values, axis).T))
            for axis in (0, 1)
            if self.wider[axis] <= MAX_LINES
        ]
        return (*as_it_stands, *by_spread)

    def restored(self) -> NDArray[Any]:
        """The suspect's weights in the original's order and shape."""
        rows, columns = self.order
        weights: NDArray[Any] = self.found.weights[rows][:, columns]
        return weights

    def _in_turn(self, axis: int, order: Order, alike: NDArray[np.float32]) -> tuple[Order, Order]:
        orders, before = [order, order], -np.inf
        orders[axis] = order
        for _ in range(_TURNS):
            axis = 1 - axis
            orders[axis] = _match(alike)
            now = float(alike[np.arange(len(alike)), orders[axis]].mean())
            if now <= before + 1e-4 or self.wider[1 - axis] > MAX_LINES:
                break
            before = now
            alike = self._alike(axis, orders[axis])
        return orders[0], orders[1]

    def _alike(self, axis: int, order: Order) -> NDArray[np.float32]:
        """Cosines of each original line across `axis`, whose order is given, with each of the suspect's."""
        own = _lines(self.original.values, 1 - axis)
        its = _lines(np.take(self.found.values, order, axis=axis), 1 - axis)
        return own @ its.T

    def _chance(self, axis: int) -> float:
        """The likeness of a line to the nearest of lines that have nothing to do with it, roughly."""
        length = self.original.values[0].size if axis == 1 else self.original.values[:, 0].size
        return math.sqrt(2 * math.log(max(self.wider[1 - axis], 2)) / max(length, 1))

    def _likeness(self, order: tuple[Order, Order]) -> float:
        its, _, _ = balance(self.found.values[order[0]][:, order[1]].reshape(self.shape[0], -1))
        own = self.original.values.reshape(-1)
        norm = float(np.linalg.norm(own) * np.linalg.norm(its))
        return float(own @ its.reshape(-1)) / norm if norm > 0 else 0.0


def _settle(pairs: list[_Pair]) -> None:
    for _ in range(_PASSES):
        gained = False
        for index, pair in enumerate(pairs):
            if pair.likeness < _SETTLED:
                near = sorted(range(len(pairs)), key=lambda other: abs(other - index))
                told = [pairs[other] for other in near if other != index and pairs[other].likeness >= _TELLING]
                gained |= pair.improve([*pair.own_starts, *_told_starts(pair, told)])
        if not gained:
            return


def _told_starts(pair: _Pair, others: Iterable[_Pair]) -> Iterator[tuple[int, Order]]:
    """What the order of other tensors may say of this one's: its columns are their rows, or shared with them."""
    for other in others:
        for axis in (1, 0):
            for lines in (0, 1):
                yield from ((axis, order) for order in _carried(other, lines, pair, axis))


def _carried(source: _Pair, lines: int, target: _Pair, axis: int) -> Iterator[Order]:
    """Carry an order from one axis to another that has as many lines, or a whole number of lines for each."""
    few, fewer = source.shape[lines], source.wider[lines]
    many, more = target.shape[axis], target.wider[axis]
    order = source.order[lines]
    if many % few == 0 and many // few * fewer == more:
        each = many // few
        yield (order[:, None] * each + np.arange(each)).reshape(-1)  # channels first
        if each > 1:
            yield (np.arange(each)[:, None] * fewer + order).reshape(-1)  # channels last
    elif few % many == 0 and few // many * more == fewer:
        each = few // many
        kept = order[::each] // each
        if len(np.unique(kept)) == many:
            yield kept


def _paired(originals: dict[str, _Matrix], found: dict[str, _Matrix]) -> dict[str, str]:
    """Name the suspect's tensor for each original's: of the same name, else the one whose values are spread alike."""
    pairs = {name: name for name in originals if name in found and found[name].may_be(originals[name])}
    lost = [name for name in originals if name not in pairs]
    free = [name for name in found if name not in pairs]
    if lost and free:
        fits = np.array([[found[other].may_be(originals[name]) for other in free] for name in lost])
        same = np.array(
            [[found[other].values.shape == originals[name].values.shape for other in free] for name in lost]
        )
        own, its = (
            [_spreads(it.values[:lines], 0) for it in matrices]
            for lines, matrices in (
                (_PAIRED_LINES, [originals[name] for name in lost]),
                (MAX_LINES, [found[name] for name in free]),
            )
        )
        alike = np.array([[(mine @ other.T).max(axis=1).mean() for other in its] for mine in own], np.float32)
        for row, column in _assignment(np.where(fits, alike + same, np.float32(-2))):
            if fits[row, column]:
                pairs[lost[row]] = free[column]
    return pairs


def _spreads(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return what of each line no order of its values changes: their quantiles, less those of all, at length one."""
    lines = np.sort(_lines(values, axis), axis=1)
    places = np.linspace(0, lines.shape[1] - 1, min(_LEVELS, lines.shape[1])).astype(np.intp)
    levels = lines[:, places] * np.float32(np.sqrt(lines.shape[1]))
    if levels.shape[1] < _LEVELS:
        levels = np.pad(levels, ((0, 0), (0, _LEVELS - levels.shape[1])), mode="edge")
    return _unit(levels - levels.mean(axis=0, dtype=np.float32))


def _lines(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the lines along an axis of (rows, columns, kernel), flat and of length one."""
    lines = values if axis == 0 else values.swapaxes(0, 1)
    return _unit(lines.reshape(len(lines), -1))


def _unit(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(lines, axis=1, keepdims=True)
    return (lines / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)


def _match(alike: NDArray[np.float32]) -> Order:
    """Return for each row the column that it is matched with: each column at most once, of the largest sum."""
    order = np.empty(len(alike), np.intp)
    for row, column in _assignment(alike):
        order[row] = column
    return order


def _assignment(alike: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    best = alike.argmax(axis=1)
    if len(np.unique(best)) == len(best):  # each row has its best: no sum is larger
        return zip(range(len(best)), best.tolist(), strict=True)
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "SciPy is needed to align neurons; run: pip install 'kfp-portcullis[torch]'"
        ) from error
    rows, columns = linear_sum_assignment(alike, maximize=True)
    return zip(rows.tolist(), columns.tolist(), strict=True)


def _is_matrix(weights: NDArray[Any]) -> bool:
    return weights.dtype.kind == "f" and weights.ndim >= 2 and weights.size > 0
