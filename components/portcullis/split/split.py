"""Split a data set by a key, so that neither the data's owner nor its order chooses what the model is tested on.

A row's side and its place follow from HMAC-SHA-256(key, its features), where the features are those the model sees:
float32, little-endian, in the description's order, -0.0 as 0.0. The first 64 bits of the MAC, as a fraction of 2**64,
are below `test_fraction` for the test side. Rows of both sides are sorted by their MACs. So the outcome depends on the
rows and the key alone, and not on the rows' order; whoever lacks the key cannot steer a row to a side.

Rows with the same features have the same MAC, so they could not part; of those only one is kept, the first when they
are sorted by all their cells. If they bear different labels the data contradict themselves, and the split refuses
rather than choose.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from portcullis.dataset import Dataset, features_and_labels
from portcullis.errors import DataError, KeyMaterialError, UsageError
from portcullis.table import canonical_table, check_size

KEY_BYTES = 32


@dataclass(frozen=True)
class Split:
    """The two sides, and counts.

    The figures are `rows` of the input, `duplicates` left out, `train`, `test`, `overlap` (always 0), and the rows of
    the rarest class on either side, `smallest_train_class` and `smallest_test_class`.
    """

    train: pa.Table
    test: pa.Table
    figures: Mapping[str, int]


def split(dataset: Dataset, *, key: bytes, test_fraction: float, n_min: int = 100) -> Split:
    """Split by key (see the module's docstring).

    Args:
        dataset: Its features must be valid: see `features_and_labels`.
        key: 32 secret bytes.
        test_fraction: Expected share of test rows, above 0 and below 1.
        n_min: The fewest test rows with which anything can be judged.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        UsageError: `test_fraction` is not between 0 and 1, or `n_min` is not positive.
        DataError: Invalid features or labels, equal features with different labels, a class that is missing on a side,
            fewer than `n_min` test rows, or a row on both sides.
    """
    if len(key) != KEY_BYTES:
        raise KeyMaterialError(f"the split key has {len(key)} bytes; it needs {KEY_BYTES}")
    if not 0 < test_fraction < 1:
        raise UsageError("test_fraction must be above 0 and below 1")
    if n_min < 1:
        raise UsageError("n_min must be at least 1")
    table = canonical_table(dataset.table)
    check_size(table)
    features, labels = features_and_labels(dataset)
    macs = _macs(key, features)
    kept = _distinct(table, macs, labels)
    is_test = macs[kept, 0] < int(test_fraction * 2**64)
    train, test = kept[~is_test], kept[is_test]
    classes = len(dataset.spec.label.classes)
    smallest_train = int(np.bincount(labels[train], minlength=classes).min())
    smallest_test = int(np.bincount(labels[test], minlength=classes).min())
    if min(smallest_train, smallest_test) == 0:
        raise DataError("a class is missing from the training or the test rows; bring more data or merge classes")
    if len(test) < n_min:
        raise DataError(f"{len(test)} test rows, fewer than {n_min}; bring more data or raise test_fraction")
    sides = [Dataset(table.take(rows), dataset.spec) for rows in (train, test)]
    shared = overlap(*sides)
    if shared:
        raise DataError(f"{shared} rows lie on both sides of the split")
    figures = {
        "rows": len(labels),
        "duplicates": len(labels) - len(kept),
        "train": len(train),
        "test": len(test),
        "overlap": shared,
        "smallest_train_class": smallest_train,
        "smallest_test_class": smallest_test,
    }
    return Split(sides[0].table, sides[1].table, figures)


def overlap(train: Dataset, test: Dataset) -> int:
    """Count the distinct feature rows that occur in both data sets. It needs no key and knows nothing of the split.

    Raises:
        DataError: Invalid features or labels, or feature columns that differ.
    """
    if train.spec.features != test.spec.features:
        raise DataError("the two data sets do not have the same features")
    return len(_feature_digests(train) & _feature_digests(test))


def _feature_digests(dataset: Dataset) -> set[bytes]:
    features, _ = features_and_labels(dataset)
    return {hashlib.sha256(row).digest() for row in _feature_bytes(features)}


def _feature_bytes(features: NDArray[np.float32]) -> list[bytes]:
    canonical = (features + np.float32(0)).astype("<f4", copy=False)  # -0.0 + 0.0 is 0.0
    return [row.tobytes() for row in canonical]


def _macs(key: bytes, features: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return each row's MAC as four big-endian words, (N, 4), so that the words' order is the bytes' order."""
    joined = b"".join(hmac.digest(key, row, "sha256") for row in _feature_bytes(features))
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 4)


def _distinct(table: pa.Table, macs: NDArray[np.uint64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one row index for each different MAC, sorted by MAC."""
    order = np.lexsort(macs.T[::-1])
    same = (macs[order[1:]] == macs[order[:-1]]).all(axis=1)
    conflict = np.flatnonzero(same & (labels[order[1:]] != labels[order[:-1]]))
    if conflict.size:
        first, second = sorted(order[conflict[0] : conflict[0] + 2] + 1)
        raise DataError(f"rows {first} and {second} have the same features and different labels; correct the source")
    twins = order[np.append(same, False) | np.insert(same, 0, False)]
    rank = np.zeros(len(order), dtype=np.int64)
    rank[twins] = _content_rank(table.take(twins))
    order = np.lexsort((rank, *macs.T[::-1]))
    kept: NDArray[np.int64] = order[np.insert(~same, 0, True)]
    return kept


def _content_rank(table: pa.Table) -> NDArray[np.int64]:
    """Return each row's place when sorted by the cells; floats count as bits, so that -0.0 is not 0.0."""
    bits = [
        column.combine_chunks().view(pa.int64()) if pa.types.is_floating(column.type) else column
        for column in table.columns
    ]
    order = pc.sort_indices(
        pa.table(bits, names=table.column_names), sort_keys=[(name, "ascending") for name in table.column_names]
    )
    rank = np.empty(table.num_rows, dtype=np.int64)
    rank[order.to_numpy()] = np.arange(table.num_rows)
    return rank
