"""The split: decided by key and content alone, with no input on both sides."""

import hashlib
import hmac
import struct

import numpy as np
import pyarrow as pa
import pytest

from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.errors import DataError, KeyMaterialError, UsageError
from portcullis.split.split import Split, overlap, split

KEY = bytes(range(32))
SPEC = DatasetSpec("pairs", Label("label", ("a", "b")), Features(("x", "y"), (2,), -1, 1000), {"name": "token"})


def dataset(rows: int = 400, **columns: object) -> Dataset:
    values = {
        "x": np.arange(rows) / 4,
        "y": -(np.arange(rows) % 2),
        "name": [f"person {row}" for row in range(rows)],
        "label": ["ab"[row % 2] for row in range(rows)],
    }
    return Dataset(pa.table(values | columns), SPEC)


def parted(data: Dataset, **options: object) -> Split:
    return split(data, **({"key": KEY, "test_fraction": 0.3, "n_min": 10} | options))


def test_the_side_and_the_order_follow_from_the_mac_of_the_features() -> None:
    data = dataset()
    macs = {}
    for row in data.table.to_pylist():
        message = struct.pack("<2f", row["x"], row["y"] + 0.0)
        macs[row["name"]] = hmac.new(KEY, message, hashlib.sha256).digest()
    names = sorted(macs, key=macs.__getitem__)
    result = parted(data)
    assert result.test["name"].to_pylist() == [n for n in names if int.from_bytes(macs[n][:8]) / 2**64 < 0.3]
    assert result.train["name"].to_pylist() == [n for n in names if int.from_bytes(macs[n][:8]) / 2**64 >= 0.3]


def test_figures_count_what_was_done() -> None:
    data = dataset()
    twice = Dataset(pa.concat_tables([data.table, data.table.slice(0, 50)]), SPEC)
    result = parted(twice)
    assert dict(result.figures) == {
        "rows": 450,
        "duplicates": 50,
        "train": result.train.num_rows,
        "test": result.test.num_rows,
        "overlap": 0,
        "smallest_train_class": min(result.train["label"].to_pylist().count(name) for name in "ab"),
        "smallest_test_class": min(result.test["label"].to_pylist().count(name) for name in "ab"),
    }
    assert all(type(value) is int for value in result.figures.values())
    assert result.train.num_rows + result.test.num_rows == 400
    assert result.train.schema == result.test.schema == data.table.schema


def test_another_key_gives_another_split() -> None:
    assert not parted(dataset()).test.equals(parted(dataset(), key=bytes(32)).test)


def test_rows_that_a_model_cannot_tell_apart_are_one_row() -> None:
    nearly = dataset(
        x=1 + np.arange(400) // 2 * 2 / 4 + np.arange(400) % 2 * 1e-9, y=np.zeros(400), label=["a", "a", "b", "b"] * 100
    )
    assert parted(nearly).figures["duplicates"] == 200
    zeros = dataset(x=np.arange(400) // 2 * 1.0, y=np.array([0.0, -0.0] * 200), label=["a", "a", "b", "b"] * 100)
    assert parted(zeros).figures["duplicates"] == 200


def test_of_equal_features_one_row_is_kept_whatever_the_order() -> None:
    data = dataset(x=np.arange(400) // 2 * 1.0, y=np.zeros(400), label=["a", "a", "b", "b"] * 100)
    backwards = Dataset(data.table.take(np.arange(400)[::-1]), SPEC)
    assert parted(data).train.equals(parted(backwards).train)
    assert parted(data).test.equals(parted(backwards).test)


def test_equal_features_with_different_labels_are_refused() -> None:
    x = np.arange(400) / 4
    x[7] = x[301]
    labels = ["a"] * 301 + ["b"] * 99
    with pytest.raises(DataError, match="rows 8 and 302 have the same features and different labels"):
        parted(dataset(x=x, y=np.zeros(400), label=labels))


BAD_CALLS = {
    "short key": ({"key": bytes(31)}, KeyMaterialError, "31 bytes"),
    "long key": ({"key": bytes(33)}, KeyMaterialError, "33 bytes"),
    "no key": ({"key": b""}, KeyMaterialError, "0 bytes"),
    "fraction 0": ({"test_fraction": 0.0}, UsageError, "test_fraction"),
    "fraction 1": ({"test_fraction": 1.0}, UsageError, "test_fraction"),
    "fraction NaN": ({"test_fraction": float("nan")}, UsageError, "test_fraction"),
    "no minimum": ({"n_min": 0}, UsageError, "n_min"),
    "too few test rows": ({"n_min": 300}, DataError, "test rows, fewer than 300"),
    "no test row": ({"test_fraction": 1e-12}, DataError, "class is missing"),
    "no training row": ({"test_fraction": 1 - 1e-12}, DataError, "class is missing"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_refused(name: str) -> None:
    options, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        parted(dataset(), **options)


BAD_DATA = {
    "null feature": {"x": [None, *range(399)]},
    "NaN": {"x": [float("nan"), *range(399)]},
    "out of bounds": {"x": [-2, *range(399)]},
    "unknown label": {"label": ["c", *("ab" * 199), "a"]},
    "no row": {name: pa.array([], kind) for name, kind in zip("xy", [pa.int64()] * 2, strict=True)}
    | {name: pa.array([], pa.string()) for name in ("name", "label")},
    "class with one row": {"label": ["a"] * 399 + ["b"]},
    "class without rows": {"label": ["a"] * 400},
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_refused(name: str) -> None:
    with pytest.raises(DataError):
        parted(dataset(**BAD_DATA[name]))


def test_the_default_wants_a_hundred_test_rows() -> None:
    with pytest.raises(DataError, match="fewer than 100"):
        split(dataset(), key=KEY, test_fraction=0.1)


def test_overlap_counts_shared_feature_rows() -> None:
    data = dataset()
    left, right = (Dataset(data.table.slice(start, 210), SPEC) for start in (0, 190))
    assert overlap(left, right) == 20
    assert overlap(left, Dataset(data.table.slice(210), SPEC)) == 0
    assert overlap(data, data) == 400
    relabelled = Dataset(data.table.set_column(3, "label", pa.array(["b"] * 400)), SPEC)
    assert overlap(data, relabelled) == 400


def test_overlap_refuses_other_features() -> None:
    other = DatasetSpec("pairs", SPEC.label, Features(("x",), (1,), -1, 1000))
    with pytest.raises(DataError, match="same features"):
        overlap(dataset(), Dataset(dataset().table, other))
