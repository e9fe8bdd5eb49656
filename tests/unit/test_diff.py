"""How two tables differ: columns, blocks and rows, by position and by content, and never a value."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portcullis.at_rest import seal_dataset
from portcullis.dataset import DatasetSpec, Features, Label, write_dataset
from portcullis.errors import DataError, UsageError
from portcullis.ingest.diff import ChangedBlock, Difference, diff_tables, open_table
from portcullis.ingest.readers import read_source
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis.table import logical_root

ROWS = 2500
TABLE = pa.table(
    {"id": range(ROWS), "name": [f"row {n}" for n in range(ROWS)], "flag": [n % 3 == 0 for n in range(ROWS)]}
)


def changed(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    cells = table[name].to_pylist()
    cells[row] = value
    index = table.column_names.index(name)
    return table.set_column(index, name, pa.array(cells, table.schema.field(name).type))


def test_equal_tables_do_not_differ() -> None:
    found = diff_tables(TABLE, pa.concat_tables([TABLE.slice(0, 7), TABLE.slice(7)]))
    assert found.equal
    assert found == Difference((logical_root(TABLE),) * 2, (ROWS, ROWS))


def test_a_changed_cell_is_named_by_block_and_column_and_row() -> None:
    other = changed(changed(TABLE, "name", 1500, None), "flag", 2499, None)
    found = diff_tables(TABLE, other)
    assert not found.equal
    assert found.blocks == (ChangedBlock(1025, 2048, ("name",)), ChangedBlock(2049, 2500, ("flag",)))
    assert found.columns == ("name", "flag")
    assert (found.rows_only_a, found.rows_only_b) == ((1501, 2500), (1501, 2500))
    assert (found.only_a, found.only_b, found.retyped, found.reordered) == ((), (), {}, False)


def test_a_row_put_in_at_the_top_is_one_row_though_every_block_changed() -> None:
    other = pa.concat_tables([TABLE.slice(5, 1), TABLE])
    found = diff_tables(TABLE, other)
    assert found.rows == (ROWS, ROWS + 1)
    assert [block.first for block in found.blocks] == [1, 1025, 2049]
    assert found.rows_only_a == ()
    assert found.rows_only_b == (7,)  # the second of the two equal rows


def test_rows_added_at_the_end_change_no_block() -> None:
    found = diff_tables(TABLE, pa.concat_tables([TABLE, TABLE.slice(0, 2)]))
    assert found.blocks == ()
    assert (found.rows_only_a, found.rows_only_b) == ((), (ROWS + 1, ROWS + 2))


def test_removed_rows_are_the_other_way_round() -> None:
    found = diff_tables(TABLE, TABLE.slice(0, ROWS - 3))
    assert (found.rows_only_a, found.rows_only_b) == ((2498, 2499, 2500), ())
    assert found.blocks == ()


def test_reordered_rows_are_the_same_rows() -> None:
    order = [*range(1, 1024), 0, *range(1024, ROWS)]
    found = diff_tables(TABLE, TABLE.take(order))
    assert not found.equal
    assert (found.rows_only_a, found.rows_only_b) == ((), ())
    assert found.blocks == (ChangedBlock(1, 1024, ("id", "name", "flag")),)


def test_columns_are_compared_by_name_wherever_they_stand() -> None:
    found = diff_tables(TABLE, TABLE.select(["flag", "name", "id"]))
    assert found.reordered
    assert (found.blocks, found.rows_only_a, found.rows_only_b) == ((), (), ())


def test_other_columns_and_other_types_are_named_and_the_rest_is_compared() -> None:
    other = changed(TABLE, "name", 0, "x").append_column("new", TABLE["id"]).drop_columns(["flag"])
    other = other.set_column(0, "id", TABLE["id"].cast(pa.string()))
    found = diff_tables(TABLE, other)
    assert (found.only_a, found.only_b) == (("flag",), ("new",))
    assert found.retyped == {"id": ("int64", "string")}
    assert found.blocks == (ChangedBlock(1, 1024, ("name",)),)
    assert (found.rows_only_a, found.rows_only_b) == ((1,), (1,))


def test_without_a_common_column_only_the_columns_are_told() -> None:
    found = diff_tables(pa.table({"a": [1]}), pa.table({"b": [1, 2]}))
    assert (found.only_a, found.only_b, found.rows, found.blocks) == (("a",), ("b",), (1, 2), ())
    assert (found.rows_only_a, found.rows_only_b) == ((), ())


CELLS = st.sampled_from([None, "", "x", "y"])
TABLES = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6).map(
    lambda rows: pa.table(
        {"a": pa.array([a for a, _ in rows], pa.string()), "b": pa.array([b for _, b in rows], pa.string())}
    )
)


@given(TABLES, TABLES)
def test_taking_and_adding_the_rows_makes_one_table_of_the_other(a: pa.Table, b: pa.Table) -> None:
    found = diff_tables(a, b)
    assert found.equal == (a.to_pylist() == b.to_pylist())
    rows_a, rows_b = (list(map(tuple, zip(*table.to_pydict().values(), strict=True))) for table in (a, b))
    taken = Counter(rows_a[row - 1] for row in found.rows_only_a)
    added = Counter(rows_b[row - 1] for row in found.rows_only_b)
    assert not taken & added
    assert Counter(rows_a) - taken + added == Counter(rows_b)
    back = diff_tables(b, a)
    assert (back.rows_only_a, back.rows_only_b) == (found.rows_only_b, found.rows_only_a)
    assert back.blocks == found.blocks
    count = min(len(rows_a), len(rows_b))
    differ = [name for name in "ab" if a[name].to_pylist()[:count] != b[name].to_pylist()[:count]]
    assert list(found.columns) == differ


SPEC = DatasetSpec.from_yaml("""
name: small
label: {column: label, classes: ["no", "yes"]}
features: {columns: [f], shape: [1], low: 0, high: 9}
sensitive: {zip: token}
""")


def test_files_of_every_kind_and_a_data_set_are_opened(tmp_path: Path) -> None:
    table = pa.table({"f": [1, 2], "zip": ["02139", "x"], "label": ["yes", "no"]})
    pa_csv.write_csv(table, tmp_path / "a.csv")
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"f":1,"zip":"02139","label":"yes"}\n{"f":2,"zip":"x","label":"no"}\n')
    write_dataset(tmp_path / "set", table, SPEC)
    for name in ("a.csv", "a.parquet", "a.jsonl", "set"):
        for spec in (None, SPEC):
            assert diff_tables(open_table(str(tmp_path / name), spec), table).equal


def test_a_description_types_what_a_csv_file_leaves_open(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("f,zip,label\n1,2139,yes\n")
    typed = open_table(str(tmp_path / "a.csv"), SPEC)
    found = diff_tables(open_table(str(tmp_path / "a.csv")), typed)
    assert found.retyped == {"zip": ("int64", "string")}


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing.csv", DataError), ("bad.csv", DataError), ("set", DataError), ("ftp://x/a.csv", UsageError)],
)
def test_what_cannot_be_read_is_refused(name: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text("{}")
    with pytest.raises(error):
        open_table(name if ":" in name else str(tmp_path / name))


def test_a_sealed_data_set_is_compared_with_its_source(tmp_path, monkeypatch):
    monkeypatch.delenv("PORTCULLIS_KEYS", raising=False)
    (tmp_path / "a.csv").write_text("v0,v1,y\n0,1,a\n1,0,b\n")
    spec = DatasetSpec("d", Label("y", ("a", "b")), Features(("v0", "v1"), (2,), 0, 1))
    source = read_source(str(tmp_path / "a.csv"), spec)
    key = SealingPrivateKey.generate()
    seal_dataset(tmp_path / "sealed", source.table, source.spec, recipient=key.public_key())
    with pytest.raises(UsageError, match="PORTCULLIS_KEYS"):
        open_table(str(tmp_path / "sealed"))
    (tmp_path / "pipeline.pem").write_bytes(key.to_pem())
    (tmp_path / "pipeline.pem").chmod(0o600)
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path}")
    assert diff_tables(open_table(str(tmp_path / "sealed")), source.table).equal
