"""Laws of tables and data sets: one root per table, whatever its file; another root for any change."""

import io
import json
import math
import string
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portcullis.dataset import PROVENANCE, DatasetSpec, Features, Label, read_dataset, write_dataset
from portcullis.digest import canonical_json, parse_canonical_json, tree_digest
from portcullis.errors import DataError, PortcullisError
from portcullis.ingest.csv_table import read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ingest.readers import read_source
from portcullis.table import logical_root, parse_parquet


def parse_csv(data: bytes, block_bytes: int = 1 << 20) -> pa.Table:
    return pa.concat_tables([it.table for it in read_csv(io.BytesIO(data), block_bytes=block_bytes)]).combine_chunks()


def parse_jsonl(data: bytes, block_bytes: int = 1 << 20) -> pa.Table:
    return pa.concat_tables([it.table for it in read_jsonl(io.BytesIO(data), block_bytes=block_bytes)]).combine_chunks()


VALUES = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(),
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8"), max_size=8),
}
TYPES = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
NAMES = st.text(string.ascii_letters + "é _", min_size=1, max_size=5)


@st.composite
def tables(draw: st.DrawFn, *, rows: tuple[int, int] = (1, 6)) -> pa.Table:
    count = draw(st.integers(*rows))
    columns = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        kind = draw(st.sampled_from(sorted(TYPES)))
        cells = st.one_of(st.none(), VALUES[kind])
        columns[name] = pa.array(draw(st.lists(cells, min_size=count, max_size=count)), TYPES[kind])
    return pa.table(columns)


def same(left: object, right: object) -> bool:
    """Equality of cells as the root sees them: NaN equals NaN, 0.0 is not -0.0, and True is not 1."""
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    return type(left) is type(right) and left == right


@given(tables(), st.data())
def test_changing_a_cell_changes_the_root(table: pa.Table, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, table.num_columns - 1))
    row = data.draw(st.integers(0, table.num_rows - 1))
    kind = table.schema.field(index).type
    cells = table.column(index).to_pylist()
    value = data.draw(st.one_of(st.none(), VALUES[next(name for name in TYPES if TYPES[name] == kind)]))
    changed = table.set_column(
        index, table.column_names[index], pa.array([*cells[:row], value, *cells[row + 1 :]], kind)
    )
    assert (logical_root(changed) == logical_root(table)) == same(cells[row], value)


@given(tables(rows=(2, 6)), st.data())
def test_swapping_rows_changes_the_root_unless_they_are_equal(table: pa.Table, data: st.DataObject) -> None:
    first, second = data.draw(st.lists(st.integers(0, table.num_rows - 1), min_size=2, max_size=2, unique=True))
    order = list(range(table.num_rows))
    order[first], order[second] = second, first
    equal = all(same(cells[first], cells[second]) for cells in (column.to_pylist() for column in table.columns))
    assert (logical_root(table.take(order)) == logical_root(table)) == equal


@given(tables(), st.data())
def test_renaming_swapping_dropping_and_retyping_columns_change_the_root(table: pa.Table, data: st.DataObject) -> None:
    root = logical_root(table)
    index = data.draw(st.integers(0, table.num_columns - 1))
    names = list(table.column_names)
    names[index] += "x"
    assert len(set(names)) < len(names) or logical_root(table.rename_columns(names)) != root
    if table.num_columns > 1:
        assert logical_root(table.remove_column(index)) != root
        assert logical_root(table.select(table.column_names[1:] + table.column_names[:1])) != root
    nulls = pa.table({"x": pa.nulls(table.num_rows, TYPES["int64"])})
    assert logical_root(nulls) != logical_root(pa.table({"x": pa.nulls(table.num_rows, TYPES["float64"])}))


@given(tables(), st.data())
def test_dropping_or_repeating_a_row_changes_the_root(table: pa.Table, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, table.num_rows - 1))
    rows = list(range(table.num_rows))
    assert logical_root(table.take([*rows, row])) != logical_root(table)
    assert logical_root(table.take(pa.array(rows[:row] + rows[row + 1 :], pa.int64()))) != logical_root(table)


@given(tables(), st.integers(1, 3), st.sampled_from(["none", "snappy", "zstd"]))
def test_the_root_survives_parquet(table: pa.Table, group: int, compression: str) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group, compression=compression)
    assert logical_root(parse_parquet(sink.getvalue(), "x")) == logical_root(table)


CSV_VALUES = {
    "int64": st.integers(-(10**18) + 1, 10**18 - 1),
    # Below 1e15, which Python spells with 16 digits before the point.
    "float64": st.floats(allow_nan=False, allow_infinity=False, max_value=1e15 - 1, min_value=1 - 1e15),
    "bool": st.booleans(),
    # A letter first, so that a text is no number, boolean or lone blank: CSV cannot tell those apart.
    "string": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8).map("x".__add__),
}
SPEC = DatasetSpec("x", Label("the label", ("0", "1")), Features(("the feature",), (1,), -(2.0**53) + 1, 2.0**53 - 1))


@st.composite
def csv_tables(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(1, 6))
    columns = {
        "the feature": pa.array(draw(st.lists(CSV_VALUES["float64"], min_size=count, max_size=count))),
        "the label": pa.array(draw(st.lists(st.sampled_from(["0", "1"]), min_size=count, max_size=count))),
    }
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        kind = draw(st.sampled_from(sorted(TYPES)))
        cells = st.one_of(st.none(), CSV_VALUES[kind])
        columns[name] = pa.array(draw(st.lists(cells, min_size=count, max_size=count)), TYPES[kind])
    return pa.table(columns)


@given(csv_tables(), st.booleans())
def test_csv_json_lines_and_parquet_of_one_table_have_one_root(table: pa.Table, ascii_only: bool) -> None:
    with TemporaryDirectory() as folder:
        pa_csv.write_csv(table, f"{folder}/a.csv")
        pq.write_table(table, f"{folder}/a.parquet")
        lines = "".join(f"{json.dumps(row, ensure_ascii=ascii_only)}\n" for row in table.to_pylist())
        Path(f"{folder}/a.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        csv, jsonl, parquet = (read_source(f"{folder}/a.{kind}", SPEC) for kind in ("csv", "jsonl", "parquet"))
    assert csv.table.schema == jsonl.table.schema == parquet.table.schema
    assert logical_root(csv.table) == logical_root(jsonl.table) == logical_root(parquet.table)


PIECES = [*(b'{"a":', b"}", b"1", b'"x"', b",", b"null", b"true", b"[", b"]", b"\n", b"\r\n", b"\r", b" ", b"\xc3")]
WHOLE = [b'{"a":1}', b'{"a":null}', b'{"a":"x"}', rb'{"a":"\ud800"}', rb'{"a":"\u0000"}']


@given(st.lists(st.sampled_from([*PIECES, *WHOLE]), max_size=12))
def test_any_bytes_are_json_lines_or_are_refused(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        parsed = parse_jsonl(data)
    except DataError:
        return
    rows = [json.loads(line) for line in data.decode().splitlines()]
    assert [set(row) for row in rows] == [{"a"}] * len(rows)
    spelled = [None if row["a"] is None else "true" if row["a"] is True else str(row["a"]) for row in rows]
    assert parsed["a"].to_pylist() == spelled
    assert len({type(row["a"]) for row in rows} - {type(None)}) <= 1


@given(st.lists(st.lists(st.text(st.sampled_from('ab",\r\n é'), max_size=4), min_size=2, max_size=2), min_size=1))
def test_csv_cells_come_back_as_written(rows: list[list[str]]) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    text = "a,b\n" + "".join(",".join(map(quoted, row)) + "\r\n" for row in rows)
    assert [list(row.values()) for row in parse_csv(text.encode()).to_pylist()] == rows


@given(st.lists(st.sampled_from([b"a", b'"', b",", b"\n", b"\r", b"\r\n", b"\xc3", b"\xa9", b"\0", b"1"]), max_size=30))
def test_any_bytes_parse_or_are_refused(pieces: list[bytes]) -> None:
    data = b"a,b\n" + b"".join(pieces)
    try:
        table = parse_csv(data)
    except DataError:
        return
    assert table.column_names == ["a", "b"]
    # What was accepted means what it says: written in the one strict form, it reads the same.
    again = "a,b\n" + "".join(
        ",".join("" if cell is None else '"' + cell.replace('"', '""') + '"' for cell in row.values()) + "\n"
        for row in table.to_pylist()
    )
    assert parse_csv(again.encode()).equals(table)


CSV_PIECES = st.lists(
    st.sampled_from([b"a", b'"', b",", b"\n", b"\r\n", b"\xc3\xa9", b"1", b'"x\ny"', b"a,b\n"]), max_size=30
)
BLOCKS = st.integers(3, 40)  # at least what a byte-order mark takes


@given(CSV_PIECES, BLOCKS)
def test_where_a_csv_file_is_cut_decides_nothing(pieces: list[bytes], block: int) -> None:
    data = b"a,b\n" + b"".join(pieces)
    positions = []
    try:
        whole = parse_csv(data)
    except DataError:
        with pytest.raises(DataError):
            parse_csv(data, block)
        return
    assert parse_csv(data, block).equals(whole)
    for size in (block, 1 << 20):
        blocks = list(read_csv(io.BytesIO(data), block_bytes=size))
        positions.append(
            [it.position(row, column) for it in blocks for row in range(len(it.table)) for column in (0, 1)]
        )
    assert positions[0] == positions[1]


@given(st.lists(st.sampled_from([*PIECES, *WHOLE, b"\n", b"\n"]), max_size=20), BLOCKS)
def test_where_json_lines_are_cut_decides_nothing(pieces: list[bytes], block: int) -> None:
    data = b"".join(pieces)
    try:
        whole = parse_jsonl(data)
    except DataError:
        with pytest.raises(DataError):
            parse_jsonl(data, block)
        return
    assert parse_jsonl(data, block).equals(whole)


# Descriptions and directories.


COLUMN = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=9).filter(
    lambda name: name.isprintable() and "*" not in name
)
TREATMENTS = st.sampled_from(["token", "drop", "scan"])


@st.composite
def specs(draw: st.DrawFn) -> DatasetSpec:
    names = draw(st.lists(COLUMN, min_size=2, max_size=8, unique=True))
    count = draw(st.integers(1, len(names) - 1))
    low, high = sorted(draw(st.lists(st.floats(-(2.0**53) + 1, 2.0**53 - 1), min_size=2, max_size=2, unique=True)))
    return DatasetSpec(
        name=draw(st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)),
        label=Label(names[0], tuple(draw(st.lists(COLUMN, min_size=2, max_size=5, unique=True)))),
        features=Features(tuple(names[1 : count + 1]), draw(st.sampled_from([(count,), (1, count)])), low, high),
        sensitive={name: draw(TREATMENTS) for name in names[count + 1 :]},
        description=draw(st.sampled_from(["", "two\nlines"]) | COLUMN),
        synthetic=tuple(draw(st.lists(st.sampled_from(names), unique=True))),
        **{name: draw(st.sampled_from(["", "two\nlines"]) | COLUMN) for name in PROVENANCE},
    )


@given(specs())
def test_a_description_survives_its_canonical_json(spec: DatasetSpec) -> None:
    text = canonical_json(spec.to_dict())
    again = DatasetSpec.from_dict(parse_canonical_json(text))
    assert again == spec
    assert canonical_json(again.to_dict()) == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(specs(), st.data())
def test_a_description_with_any_value_replaced_is_valid_or_refused(spec: DatasetSpec, data: st.DataObject) -> None:
    value = spec.to_dict()
    target = data.draw(st.sampled_from([value, value["label"], value["features"]]))
    target[data.draw(st.sampled_from([*target, "other"]))] = data.draw(JSON)
    try:
        parsed = DatasetSpec.from_dict(value)
    except PortcullisError:
        return
    assert DatasetSpec.from_dict(parsed.to_dict()) == parsed


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    directory = tmp_path_factory.mktemp("tamper") / "set"
    table = pa.table({"f": [0.5, 1.0, 0.25], "s": ["a", None, "bcd"], "label": ["0", "1", "1"]})
    spec = DatasetSpec("x", Label("label", ("0", "1")), Features(("f",), (1,), 0, 1), {"s": "scan"})
    write_dataset(directory, table, spec)
    return directory, {path.name: path.read_bytes() for path in directory.iterdir()}


@given(st.data())
def test_a_flipped_byte_changes_the_digest_and_is_refused_or_still_valid(
    written: tuple[Path, dict[str, bytes]], data: st.DataObject
) -> None:
    directory, files = written
    name = data.draw(st.sampled_from(sorted(files)))
    position = data.draw(st.integers(0, len(files[name]) - 1))
    tampered = bytearray(files[name])
    tampered[position] ^= data.draw(st.integers(1, 255))
    before = tree_digest(directory)
    (directory / name).write_bytes(tampered)
    try:
        assert tree_digest(directory) != before
        dataset = read_dataset(directory)
    except DataError:
        return
    finally:
        (directory / name).write_bytes(files[name])
    # A Parquet footer has no checksum: what it still yields must be a whole data set, as any other.
    dataset.table.validate(full=True)
    assert dataset.spec.resolve(dataset.table.column_names, masked=True) == dataset.spec
    assert name == "data.parquet" or canonical_json(dataset.spec.to_dict()) == bytes(tampered)
