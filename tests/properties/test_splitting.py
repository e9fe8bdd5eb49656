"""Laws of the split: the same for any order of the rows, complete, and without overlap."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from portcullis.dataset import Dataset, DatasetSpec, Features, Label, features_and_labels
from portcullis.errors import DataError
from portcullis.split.split import Split, overlap, split
from portcullis.table import logical_root

SPEC = DatasetSpec("x", Label("label", ("0", "1")), Features(("a", "b"), (2,), -4, 4))
VALUE = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-12, -2.5]) | st.floats(-4, 4)
ROWS = st.lists(st.tuples(VALUE, VALUE, st.text("xy", max_size=1)), min_size=8, max_size=40)
KEYS = st.binary(min_size=32, max_size=32)


def dataset(rows: list[tuple[float, float, str]]) -> Dataset:
    columns = list(zip(*rows, strict=True))
    # The label follows from the features as a model sees them, so that equal features never contradict each other.
    label = ["01"[int(np.float32(a) + np.float32(b) > 0.5)] for a, b, _ in rows]
    return Dataset(pa.table({"a": columns[0], "b": columns[1], "note": columns[2], "label": label}), SPEC)


def parted(data: Dataset, key: bytes, fraction: float = 0.5) -> Split | None:
    try:
        return split(data, key=key, test_fraction=fraction, n_min=1)
    except DataError as error:
        if "class is missing" not in str(error):
            raise
        return None


@given(ROWS, KEYS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[float, float, str]], key: bytes, random) -> None:
    first = parted(dataset(rows), key)
    random.shuffle(rows)
    second = parted(dataset(rows), key)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert logical_root(first.train) == logical_root(second.train)
        assert logical_root(first.test) == logical_root(second.test)
        assert first.figures == second.figures


@given(ROWS, KEYS)
def test_every_input_is_on_exactly_one_side(rows: list[tuple[float, float, str]], key: bytes) -> None:
    data = dataset(rows)
    result = parted(data, key)
    if result is None:
        return
    inputs = {tuple(row) for row in features_and_labels(data)[0].tolist()}
    sides = [Dataset(table, SPEC) for table in (result.train, result.test)]
    train, test = ({tuple(row) for row in features_and_labels(side)[0].tolist()} for side in sides)
    assert train | test == inputs
    assert not train & test
    assert overlap(*sides) == result.figures["overlap"] == 0
    assert len(inputs) == result.train.num_rows + result.test.num_rows
    assert result.figures["rows"] == len(rows) == len(inputs) + result.figures["duplicates"]


@given(ROWS, KEYS, st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_larger_fraction_only_adds_test_rows(
    rows: list[tuple[float, float, str]], key: bytes, one: float, other: float
) -> None:
    data = dataset(rows)
    small, large = (parted(data, key, fraction) for fraction in sorted((one, other)))
    if small is not None and large is not None:
        assert large.test.slice(0, small.test.num_rows).equals(small.test)
