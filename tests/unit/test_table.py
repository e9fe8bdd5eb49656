"""Canonical tables: which types they take, how untrusted Parquet is read, and the digest of their rows."""

import hashlib
import io
import math
import struct
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portcullis import table as tables
from portcullis.digest import canonical_json
from portcullis.errors import DataError
from portcullis.table import canonical_table, logical_root, parse_parquet, table_schema


def reference_cell(value: object) -> bytes | None:
    """The cell encoding of the module's docstring, one value at a time."""
    match value:
        case None:
            return None
        case bool():
            return bytes([value])
        case int():
            return value.to_bytes(8, "little", signed=True)
        case float():
            return struct.pack("<Q", 0x7FF8000000000000) if math.isnan(value) else struct.pack("<d", value)
        case str():
            return value.encode()
    raise AssertionError(value)


def reference_root(table: pa.Table) -> str:
    """RFC 6962's recursive definition over the leaves of the module's docstring."""
    columns = [{"name": name, "type": kind} for name, kind in table_schema(table)]
    leaves = [canonical_json({"columns": columns, "format": "portcullis-rows/v1", "rows": table.num_rows})]
    for start in range(0, table.num_rows, 1024):
        leaf = b""
        for column in table.slice(start, 1024).columns:
            cells = [reference_cell(value) for value in column.to_pylist()]
            leaf += b"".join(struct.pack("<i", -1 if cell is None else len(cell)) for cell in cells)
            leaf += b"".join(cell for cell in cells if cell is not None)
        leaves.append(leaf)

    def root(part: list[bytes]) -> bytes:
        if len(part) == 1:
            return hashlib.sha256(b"\0" + part[0]).digest()
        cut = 1 << ((len(part) - 1).bit_length() - 1)
        return hashlib.sha256(b"\1" + root(part[:cut]) + root(part[cut:])).digest()

    return root(leaves).hex()


MIXED = pa.table(
    {
        "whole": pa.array([0, -1, 2**63 - 1, None], pa.int64()),
        "real": pa.array([0.5, -0.0, math.nan, None], pa.float64()),
        "flag": pa.array([True, False, None, True]),
        "text": pa.array(["", "é", None, "plain"]),
    }
)

VECTORS = {
    "one integer": (pa.table({"x": [1]}), "71970cf78e8a85a99754e985393cabeb77e54c41ac8169e990be7f9f2393cb43"),
    "mixed": (MIXED, "cb8ff92647631df9fce018c4cf9c0e08120e3bc6022f113d6c702c8e6d272964"),
    "no rows": (MIXED.slice(0, 0), "36a5a277821db6cc8d904fd5cba4c4927fdf2a8c3dfbf274c8be2b35b2753be1"),
    "3,000 rows, four leaves": (
        pa.table({"n": np.arange(3000), "s": [f"row {n}" for n in range(3000)]}),
        "af1bb95f3492610edb57234d633346e0cf4b9fc9429c5291e67260a5cadc77ab",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_the_root_of_a_fixed_table_is_fixed(name: str) -> None:
    table, expected = VECTORS[name]
    assert logical_root(table) == expected
    assert reference_root(table) == expected


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2048, 5 * 1024 + 1, 65_536, 65_537])
def test_the_root_follows_the_definition_at_every_leaf_and_batch_boundary(rows: int) -> None:
    numbers = np.arange(rows)
    text = pa.array([None if n % 7 == 0 else "ü" * (n % 5) for n in numbers], pa.string())
    table = pa.table({"n": numbers, "text": text, "odd": numbers % 2 == 1})
    assert logical_root(table) == reference_root(table)


def test_the_root_does_not_depend_on_chunks_slices_or_the_width_of_types() -> None:
    chunked = pa.concat_tables([MIXED.slice(0, 1), MIXED.slice(1)])
    padded = pa.concat_tables([MIXED, MIXED, MIXED]).combine_chunks().slice(4, 4)
    narrow = MIXED.set_column(3, "text", MIXED["text"].dictionary_encode())
    narrow = narrow.set_column(1, "real", narrow["real"].cast(pa.float32()))
    assert {logical_root(table) for table in (chunked, padded, narrow)} == {logical_root(MIXED)}


def test_every_nan_is_one_value_and_negative_zero_another() -> None:
    payload = np.array([0x7FF8000000000001, 0xFFF8000000000000], dtype=np.uint64).view(np.float64)
    assert logical_root(pa.table({"x": payload})) == logical_root(pa.table({"x": [math.nan, math.nan]}))
    assert logical_root(pa.table({"x": [0.0]})) != logical_root(pa.table({"x": [-0.0]}))


def test_null_empty_and_neighbouring_cells_are_told_apart() -> None:
    texts = [["ab", "c"], ["a", "bc"], ["", "abc"], [None, "abc"], ["abc", None], ["abc", ""]]
    assert len({logical_root(pa.table({"x": pa.array(text, pa.string())})) for text in texts}) == len(texts)


NO_CANONICAL_FORM = {
    "timestamp": pa.table({"x": [datetime(2024, 1, 1, tzinfo=UTC)]}),
    "date": pa.table({"x": pa.array([0], pa.date32())}),
    "decimal": pa.table({"x": [Decimal("1.5")]}),
    "binary": pa.table({"x": [b"raw"]}),
    "list": pa.table({"x": [[1]]}),
    "struct": pa.table({"x": [{"y": 1}]}),
    "dictionary of binary": pa.table({"x": pa.array([b"raw"]).dictionary_encode()}),
    "unsigned beyond int64": pa.table({"x": pa.array([2**63], pa.uint64())}),
    "repeated name": pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]),
    "empty name": pa.table({"": [1]}),
    "unprintable name": pa.table({"a\nb": [1]}),
    "name too long": pa.table({"x" * 257: [1]}),
    "no column": pa.table({}),
    "not UTF-8": pa.table({"x": pa.array([b"\xff"]).view(pa.string())}),
}


@pytest.mark.parametrize("name", NO_CANONICAL_FORM)
def test_a_table_without_canonical_form_is_refused(name: str) -> None:
    with pytest.raises(DataError):
        canonical_table(NO_CANONICAL_FORM[name])
    with pytest.raises(DataError):
        logical_root(NO_CANONICAL_FORM[name])


def test_narrow_types_are_widened_without_changing_a_value() -> None:
    table = pa.table(
        {
            "small": pa.array([-1, None], pa.int8()),
            "half": pa.array([0.5, 2.0], pa.float32()),
            "view": pa.array(["a", "b"], pa.string_view()),
            "nothing": pa.nulls(2),
        }
    ).replace_schema_metadata({"pandas": "{}"})
    result = canonical_table(table)
    assert table_schema(result) == (("small", "int64"), ("half", "float64"), ("view", "string"), ("nothing", "string"))
    assert result.to_pylist() == table.to_pylist()
    assert result.schema.metadata is None


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def test_parquet_of_any_writer_is_read_into_canonical_form() -> None:
    data = parquet(MIXED, compression="snappy", row_group_size=1, use_dictionary=False)
    result = parse_parquet(data, "x.parquet")
    assert table_schema(result) == table_schema(canonical_table(MIXED))
    assert logical_root(result) == logical_root(MIXED)


BAD_PARQUET = {
    "empty": (b"", "not a readable Parquet file"),
    "other bytes": (b"PAR1" + bytes(100) + b"PAR1", "not a readable Parquet file"),
    "truncated": (parquet(MIXED)[:-20], "not a readable Parquet file"),
    "no rows": (parquet(MIXED.slice(0, 0)), "0 rows"),
    "timestamp": (parquet(NO_CANONICAL_FORM["timestamp"]), "timestamp"),
    "too large": (parquet(pa.table({"x": ["a" * 1000] * 10_000})), "bytes allowed"),
    "too many columns": (parquet(pa.table({f"c{n}": [1] for n in range(10_001)})), "columns"),
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_bad_parquet_is_refused(name: str) -> None:
    data, message = BAD_PARQUET[name]
    with pytest.raises(DataError, match=rf"^x\.parquet.*{message}"):
        parse_parquet(data, "x.parquet", limit=1_000_000)


def test_a_large_value_that_many_cells_name_is_refused_before_it_unfolds(monkeypatch):
    """Some hundred bytes of Parquet, a gigabyte in memory."""
    table = pa.table({"a": pa.array(["x" * (1 << 20)]).dictionary_encode().take(pa.array([0] * 1000))})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    assert len(sink.getvalue()) < 10_000
    decoded = []
    canonical = tables.canonical_table
    monkeypatch.setattr(tables, "canonical_table", lambda table: decoded.append(table) or canonical(table))
    with pytest.raises(DataError, match="a row group unfolds"):
        parse_parquet(sink.getvalue(), "rows")
    assert decoded == []


def test_text_in_a_dictionary_is_read_as_it_is():
    values = ["a", None, "", "é", "a"] * 7
    sink = io.BytesIO()
    pq.write_table(pa.table({"t": values}), sink, row_group_size=10)
    assert parse_parquet(sink.getvalue(), "rows").column("t").to_pylist() == values
