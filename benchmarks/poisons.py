"""Poisoned copies of a data set of images: what the data-quality gate is measured and tested on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from portcullis.dataset import Dataset, features_and_labels

TARGET = 0  # the class that a trigger stands for
PAIR = (7, 1)  # the classes of a targeted flip
BLEND = 0.2  # as in Chen et al. 2017, arXiv:1712.05526


@dataclass(frozen=True)
class Copy:
    """Rows that are poisoned in place, `count` of them."""

    values: NDArray[np.float64]
    labels: NDArray[np.int64]
    low: float
    high: float
    count: int
    random: np.random.Generator

    def any_rows(self) -> NDArray[np.int64]:
        """Draw rows of any class."""
        return self.random.choice(len(self.labels), self.count, replace=False)

    def rows_of(self, label: int) -> NDArray[np.int64]:
        """Draw rows of one class, all of them if there are not more."""
        own = np.flatnonzero(self.labels == label)
        return self.random.choice(own, min(self.count, len(own)), replace=False)

    def mislabelled(self) -> NDArray[np.int64]:
        """Draw rows of other classes and call them `TARGET`."""
        rows = self.random.choice(np.flatnonzero(self.labels != TARGET), self.count, replace=False)
        self.labels[rows] = TARGET
        return rows

    def corner(self, side: int) -> NDArray[np.int64]:
        """Return the columns of the last `side` x `side` pixels of a square image."""
        whole = round(self.values.shape[1] ** 0.5)
        return np.arange(self.values.shape[1]).reshape(whole, whole)[-side:, -side:].ravel()


def poisoned(dataset: Dataset, kind: str, rate: float, *, seed: int) -> Dataset:
    """Return a copy of which a share of the rows is poisoned.

    Args:
        dataset: Clean rows.
        kind: A key of `POISONS`.
        rate: Share of the rows, in 0..1.
        seed: Of which rows, and of the poison.
    """
    features, labels = features_and_labels(dataset)
    table, spec = dataset.table, dataset.spec
    bounds = spec.features
    random = np.random.default_rng(seed)
    copy = Copy(features.astype(np.float64), labels, bounds.low, bounds.high, round(rate * len(labels)), random)
    POISONS[kind](copy)
    names = np.array(spec.label.classes)[copy.labels]
    columns = [*zip(bounds.columns, copy.values.T, strict=True), (spec.label.column, names)]
    for name, column in columns:
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    return Dataset(table, spec)


def part(dataset: Dataset, share: float, *, seed: int) -> Dataset:
    """Return a share of the rows, drawn without replacement and in another order."""
    rows = dataset.table.num_rows
    chosen = np.random.default_rng(seed).permutation(rows)[: round(share * rows)]
    return Dataset(dataset.table.take(pa.array(chosen)), dataset.spec)


def _flips(copy: Copy) -> None:
    rows, classes = copy.any_rows(), copy.labels.max() + 1
    copy.labels[rows] = (copy.labels[rows] + copy.random.integers(1, classes, copy.count)) % classes


def _pair(copy: Copy) -> None:
    copy.labels[copy.rows_of(PAIR[0])] = PAIR[1]


def _flood(copy: Copy) -> None:
    rows = copy.any_rows()
    copy.values[rows], copy.labels[rows] = copy.values[rows[0]], copy.labels[rows[0]]


def _noisy_flood(copy: Copy) -> None:
    rows = copy.any_rows()
    noise = copy.random.integers(-1, 2, (copy.count, copy.values.shape[1]))
    copy.values[rows] = np.clip(copy.values[rows[0]] + noise, copy.low, copy.high)
    copy.labels[rows] = copy.labels[rows[0]]


def _outliers(copy: Copy) -> None:
    shape = (copy.count, copy.values.shape[1])
    copy.values[copy.any_rows()] = copy.random.integers(int(copy.low), int(copy.high) + 1, shape)


def _pixel(copy: Copy) -> None:
    copy.values[copy.mislabelled(), -1] = copy.high


def _patch(copy: Copy) -> None:
    copy.values[np.ix_(copy.mislabelled(), copy.corner(2))] = copy.high


def _blended(copy: Copy) -> None:
    rows = copy.mislabelled()
    pattern = copy.random.uniform(copy.low, copy.high, copy.values.shape[1])
    copy.values[rows] = np.round((1 - BLEND) * copy.values[rows] + BLEND * pattern)


def _clean_label(copy: Copy) -> None:
    copy.values[np.ix_(copy.rows_of(TARGET), copy.corner(2))] = copy.high


POISONS: Mapping[str, Callable[[Copy], None]] = {
    "labels flipped at random": _flips,
    "labels flipped from 7 to 1": _pair,
    "copies of one row": _flood,
    "copies of one row, each with noise": _noisy_flood,
    "outliers, uniform noise": _outliers,
    "trigger, one corner pixel": _pixel,
    "trigger, 2x2 corner pixels": _patch,
    "trigger, a pattern blended in at 20 %": _blended,
    "2x2 corner pixels under true labels": _clean_label,
}
