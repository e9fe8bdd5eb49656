"""The digests of docs/dataset-digests.md: the published vectors, and a second implementation from the page alone."""

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portcullis.digest import path_digest
from portcullis.table import logical_root, row_digests, table_digests

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "dataset-digests.json").read_text("utf-8"))
TYPES = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "string": pa.string()}

# The second implementation: section by section, sharing nothing with the first. A table is a list of
# (name, type, cells); a cell is None or the value.


def h(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def jcs(value: Any) -> bytes:
    """Canonical JSON, as far as it is needed here: keys in ASCII, whole numbers, text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def folder_digest(folder: Path) -> str:  # section 1
    files = [
        {"path": path.relative_to(folder).as_posix(), "sha256": h(path.read_bytes()).hex(), "size": path.stat().st_size}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    files.sort(key=lambda entry: entry["path"])
    return h(jcs({"files": files, "format": "portcullis-tree/v1"})).hex()


def cell_bytes(kind: str, value: Any) -> bytes | None:  # section 2
    if value is None:
        return None
    if kind == "int64":
        return struct.pack("<q", value)
    if kind == "float64":
        return bytes.fromhex("000000000000f87f") if math.isnan(value) else struct.pack("<d", value)
    return bytes([value]) if kind == "bool" else value.encode()


def part(kind: str, cells: Sequence[Any]) -> bytes:  # section 3
    encoded = [cell_bytes(kind, value) for value in cells]
    lengths = b"".join(struct.pack("<i", -1 if cell is None else len(cell)) for cell in encoded)
    return lengths + b"".join(cell for cell in encoded if cell is not None)


def root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return h(b"\x01" + root(leaves[:k]) + root(leaves[k:]))


def block_leaves(columns: Sequence[tuple[str, str, Sequence[Any]]], rows: int) -> list[bytes]:
    return [
        h(b"\x00" + b"".join(part(kind, cells[start : start + 1024]) for _, kind, cells in columns))
        for start in range(0, rows, 1024)
    ]


def second(columns: Sequence[tuple[str, str, Sequence[Any]]], rows: int) -> dict[str, Any]:  # section 4
    schema = {
        "columns": [{"name": name, "type": kind} for name, kind, _ in columns],
        "format": "portcullis-rows/v1",
        "rows": rows,
    }
    of_columns = {}
    for column in columns:
        kind = {"format": "portcullis-column/v1", "rows": rows, "type": column[1]}
        of_columns[column[0]] = root([h(b"\x00" + jcs(kind)), *block_leaves([column], rows)]).hex()
    return {
        "logical_root": root([h(b"\x00" + jcs(schema)), *block_leaves(columns, rows)]).hex(),
        "column_digests": of_columns,
        "rows": [
            h(b"\x00" + b"".join(part(kind, [cells[row]]) for _, kind, cells in columns)).hex() for row in range(rows)
        ],
    }


# Both implementations, and what is published.


def decoded(vector: dict[str, Any]) -> list[tuple[str, str, list[Any]]]:  # section 6
    columns = []
    for column in vector["columns"]:
        cells = column["cells"] * vector["repeat"]
        if column["type"] == "int64":
            cells = [None if cell is None else int(cell) for cell in cells]
        elif column["type"] == "float64":
            cells = [None if cell is None else struct.unpack(">d", bytes.fromhex(cell))[0] for cell in cells]
        columns.append((column["name"], column["type"], cells))
    return columns


def arrow(columns: Sequence[tuple[str, str, Sequence[Any]]]) -> pa.Table:
    arrays = []
    for _, kind, cells in columns:
        if kind == "float64":  # through NumPy, so that a NaN keeps its bits
            values = np.array([0.0 if cell is None else cell for cell in cells], dtype=np.float64)
            arrays.append(pa.array(values, mask=np.array([cell is None for cell in cells], dtype=bool)))
        else:
            arrays.append(pa.array(cells, TYPES[kind]))
    return pa.table(arrays, names=[name for name, _, _ in columns])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_published_vector_holds_in_both_implementations(vector: dict[str, Any]) -> None:
    columns = decoded(vector)
    table = arrow(columns)
    assert table.num_rows == vector["rows"]
    digests = table_digests(table)
    assert digests.root == logical_root(table) == vector["logical_root"]
    assert digests.columns == vector["column_digests"]
    assert [row.hex() for row in row_digests(table)[:1]] == [row for row in [vector["first_row"]] if row]
    other = second(columns, vector["rows"])
    assert other["logical_root"] == vector["logical_root"]
    assert other["column_digests"] == vector["column_digests"]
    assert other["rows"][:1] == [row for row in [vector["first_row"]] if row]


def test_the_vectors_hold_every_type_null_and_edge() -> None:
    columns = [column for vector in VECTORS for column in vector["columns"]]
    assert {column["type"] for column in columns} == set(TYPES)
    cells = [(column["type"], cell) for column in columns for cell in column["cells"]]
    for kind in TYPES:
        assert (kind, None) in cells
    for edge in (
        *(("int64", str(bound)) for bound in (-(2**63), 2**63 - 1)),
        ("float64", "8000000000000000"),
        ("float64", "fff8000000000001"),
        ("float64", "7ff0000000000000"),
        ("string", ""),
        ("string", "e\u0301"),
        ("string", "é"),
        ("string", 'line\n"quoted" \U0001f600'),
    ):
        assert edge in cells
    assert {vector["rows"] for vector in VECTORS} >= {0, 1, 1024, 1025, 3073}


CELLS = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(),
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8"), max_size=6),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, str, list[Any]]], int]:
    rows = draw(st.integers(1, 4))
    repeat = draw(st.sampled_from([1, 1, 341, 1024, 20_000]))
    columns = []
    for name in draw(st.lists(st.text("abé ", min_size=1, max_size=3), min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(sorted(CELLS)))
        cells = draw(st.lists(st.none() | CELLS[kind], min_size=rows, max_size=rows))
        columns.append((name, kind, cells * repeat))
    return columns, rows * repeat


@given(tables())
def test_any_table_has_the_same_digests_in_both_implementations(
    made: tuple[list[tuple[str, str, list[Any]]], int],
) -> None:
    columns, rows = made
    table = arrow(columns)
    digests = table_digests(table)
    expected = second(columns, min(rows, 4))["rows"]
    assert [row.hex() for row in row_digests(table)[:4]] == expected
    assert len(row_digests(table)) == rows
    if rows <= 4096:
        other = second(columns, rows)
        assert (digests.root, digests.columns) == (other["logical_root"], other["column_digests"])
    for column in columns:
        assert list(digests.blocks[column[0]]) == block_leaves([column], rows)


@given(tables(), st.data())
def test_a_changed_cell_changes_its_column_and_block_alone(
    made: tuple[list[tuple[str, str, list[Any]]], int], data: st.DataObject
) -> None:
    columns, rows = made
    index, row = data.draw(st.integers(0, len(columns) - 1)), data.draw(st.integers(0, rows - 1))
    name, kind, cells = columns[index]
    value = data.draw(st.none() | CELLS[kind])
    if cell_bytes(kind, value) == cell_bytes(kind, cells[row]):
        return
    changed = list(columns)
    changed[index] = (name, kind, [*cells[:row], value, *cells[row + 1 :]])
    before, after = table_digests(arrow(columns)), table_digests(arrow(changed))
    assert before.root != after.root
    assert [it for it in before.columns if before.columns[it] != after.columns[it]] == [name]
    for it in before.blocks:
        pairs = enumerate(zip(before.blocks[it], after.blocks[it], strict=True))
        assert [block for block, (one, two) in pairs if one != two] == ([row // 1024] if it == name else [])


def test_a_renamed_column_keeps_its_digest_and_a_retyped_one_does_not() -> None:
    digests = table_digests(pa.table({"a": [1, None], "b": [1, None]}))
    assert digests.columns["a"] == digests.columns["b"]
    floats = table_digests(pa.table({"a": pa.nulls(2, pa.int64()), "b": pa.nulls(2, pa.float64())}))
    assert floats.columns["a"] != floats.columns["b"]
    assert floats.blocks["a"] == floats.blocks["b"]


def test_row_digests_do_not_depend_on_chunks_or_slices() -> None:
    table = pa.table({"s": ["a", None, "ü", ""], "n": [1, 2, None, 4], "f": [True, False, None, True]})
    whole = row_digests(table)
    chunked = pa.concat_tables([table.slice(2), table, table.slice(0, 1)])
    assert row_digests(chunked) == [*whole[2:], *whole, whole[0]]
    assert row_digests(chunked.combine_chunks().slice(2, 4)) == whole
    assert row_digests(table.slice(0, 0)) == []


def test_a_folder_digests_in_both_implementations(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.csv", "a.csv", "sub/é.csv", "sub/\U0001f600.csv", "sub.csv"):
        (tmp_path / name).write_bytes(name.encode())
    assert path_digest(tmp_path) == folder_digest(tmp_path)
    assert path_digest(tmp_path / "a.csv") == hashlib.sha256(b"a.csv").hexdigest()
