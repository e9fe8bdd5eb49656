"""Targets that read tables: CSV, JSON Lines, Parquet, and the description of a data set."""

import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import yaml

from fuzz import Target
from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, parse_canonical_json
from portcullis.errors import ConfigError, DataError, RefusedError
from portcullis.ingest.csv_table import read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ingest.readers import read_table
from portcullis.strict_yaml import load_yaml
from portcullis.table import canonical_table, logical_root, parse_parquet, stream_parquet

_LIMIT = 64 << 20
_FOLDER = tempfile.TemporaryDirectory(prefix="portcullis-fuzz-")


def _read(data: bytes, kind: str) -> pa.Table | None:
    """Read bytes as a source of one file; None when they are refused."""
    path = Path(_FOLDER.name) / f"input.{kind}"
    path.write_bytes(data)
    try:
        table = read_table(str(path), limit=_LIMIT)
    except RefusedError:
        return None
    table.validate(full=True)
    logical_root(table)
    return table


def _check_set_aside(data: bytes, read: Callable[..., Iterator[Any]], table: pa.Table | None) -> None:
    """Check that malformed records are found just where a file is refused, and that what is left of it is sound."""
    try:
        blocks = list(read(io.BytesIO(data), check=lambda _: {}))
    except DataError:
        assert table is None
        return
    malformed = [it for block in blocks for it in block.malformed]
    assert (table is None) == bool(malformed)
    lines = data.split(b"\n")
    rows = [row for block in blocks for row in block.table.to_pylist()]
    rest, end = b"", 0
    for it in malformed:
        assert b"\n".join(lines[it.line - 1 :]).startswith(it.data) and data[it.offset :].startswith(it.data)
        rest, end = rest + data[end : it.offset], it.offset + len(it.data) + 1
    rest += data[end:]
    if rows:
        assert [row for block in read(io.BytesIO(rest)) for row in block.table.to_pylist()] == rows


def _check_spelled(name: str, column: pa.ChunkedArray, spelled: Sequence[str | None]) -> None:
    """Check that typed cells are what their spelling says, as Python reads it; null where there is none."""
    read = {pa.int64(): int, pa.float64(): float, pa.bool_(): {"true": True, "false": False}.__getitem__}
    for cell, text in zip(column.to_pylist(), spelled, strict=True):
        if text is None or cell is None:
            assert cell is None and text is None, (name, cell, text)
        elif column.type == pa.string():
            assert cell == text, (name, cell, text)
        elif column.type == pa.int64():  # 1e2 and 1.0 are whole too
            assert cell == (int(text) if text.lstrip("-").isdigit() else float(text)), (name, cell, text)
        else:
            expected = read[column.type](text)
            same_sign = math.copysign(1, cell) == math.copysign(1, expected)
            assert cell == expected and same_sign, (name, cell, text)


def fuzz_csv(data: bytes) -> None:
    """Whatever is accepted, Python's csv module and Arrow's reader see the same cells in."""
    table = _read(data, "csv")
    _check_set_aside(data, read_csv, table)
    if table is None:
        return
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    assert rows[0] == table.column_names
    assert [len(row) for row in rows] == [table.num_columns] * (table.num_rows + 1)
    # Arrow takes an empty cell at the very end for quoted where the one before it is.
    ended = data if data.endswith(b"\n") else data + b"\n"
    peer = pa_csv.read_csv(
        pa.BufferReader(ended),
        read_options=pa_csv.ReadOptions(use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(table.column_names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    assert peer.column_names == table.column_names
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        spelled = peer.column(index).to_pylist()
        assert [cell or "" for cell in spelled] == [row[index] for row in rows[1:]], name
        _check_spelled(name, column, spelled)


def fuzz_json_lines(data: bytes) -> None:
    """Whatever is accepted, Python's json reads the same cells from, line by line, and no key twice."""
    table = _read(data, "jsonl")
    _check_set_aside(data, read_jsonl, table)
    if table is None:
        return
    lines = data.decode().removesuffix("\n").split("\n")
    objects = [json.loads(line, object_pairs_hook=list, parse_int=_Number, parse_float=_Number) for line in lines]
    rows = [dict(pairs) for pairs in objects]
    assert len(rows) == table.num_rows
    assert [name for name, _ in objects[0]] == table.column_names
    for pairs, row in zip(objects, rows, strict=True):
        assert len(pairs) == len(row) == table.num_columns
    for name, column in zip(table.column_names, table.columns, strict=True):
        cells = [row[name] for row in rows]
        assert len({type(cell) for cell in cells} - {type(None)}) <= 1, name
        if column.type == pa.string() and any(type(cell) is not str and cell is not None for cell in cells):
            # Numbers that no column type holds stay as they are spelled.
            assert not any(isinstance(cell, bool) for cell in cells), name
        spelled = [str(cell).lower() if isinstance(cell, bool) else cell for cell in cells]
        _check_spelled(name, column, spelled)


class _Number(str):
    __slots__ = ()


def fuzz_parquet(data: bytes) -> None:
    """Whatever is accepted, whole or in pieces, is the table that Arrow reads."""
    try:
        table = parse_parquet(data, "x", limit=_LIMIT)
    except DataError:
        table = None
    try:
        stream = stream_parquet(io.BytesIO(data), "x")
        pieces: pa.Table | None = pa.concat_tables(stream.pieces())
    except DataError:
        pieces = None
    if table is None or pieces is None:
        assert table is None and pieces is None, "one way reads what the other refuses"
        return
    table.validate(full=True)
    assert stream.rows == table.num_rows and stream.schema == table.schema
    assert logical_root(pieces) == logical_root(table)
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    if any(group.column(at).num_values != group.num_rows for group in groups for at in range(group.num_columns)):
        return  # read as a whole, a column is given the memory for as many values as it claims
    peer = canonical_table(file.read())
    assert logical_root(peer) == logical_root(table)


def fuzz_description(data: bytes) -> None:
    """Whatever YAML is accepted says what PyYAML's safe loader says; an accepted description survives its JSON."""
    try:
        document = load_yaml(data)
    except DataError:
        return
    peer = yaml.safe_load(data.decode())
    assert _same(document, peer)
    try:
        spec = DatasetSpec.from_yaml(data.decode())
    except ConfigError:
        return
    again = DatasetSpec.from_dict(parse_canonical_json(canonical_json(spec.to_dict())))
    assert again == spec
    header = [spec.label.column, *spec.features.columns, *spec.sensitive, *spec.synthetic, "pixel_1", "pixel_2"]
    try:
        resolved = spec.resolve(header)
    except (ConfigError, DataError):
        return
    assert resolved.features.resolved and resolved.resolve(header) == resolved


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(_same(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return type(one) is type(two) and (one == two or one != one)  # NaN


def _csv_seeds() -> list[bytes]:
    return [
        b'a,b\n1,x\r\n-2,"y ""z"" \n,"\n,""\n',
        b"n,f,b,z\n1,1.5,true,02139\n-7,-0.0,false,\n0,1e22,,1\n",
        b"only\nx\ny",
        b'"a b",\xc3\xa9\n123456789012345678,999999999999999.5e-3\n',
    ]


def _json_lines_seeds() -> list[bytes]:
    return [
        b'{"a":1,"b":"x","c":true,"d":null}\n{"b":"\\u00e9","a":-2,"c":false,"d":null}\r\n',
        b'{"f":1.5e3,"s":""}\n{"f":-0.0,"s":"\\ud83d\\ude00"}\n{"f":null,"s":null}',
        b'{ "n" : 123456789012345678 }\n{"n":9007199254740993}\n',
    ]


def _parquet_seeds() -> list[bytes]:
    table = pa.table(
        {
            "i": pa.array([1, None, -3]),
            "f": pa.array([0.5, float("nan"), None]),
            "b": pa.array([True, False, None]),
            "s": pa.array(["x", "x", None]),
        }
    )
    narrow = pa.table({"i": pa.array([1, 2], pa.uint8()), "f": pa.array([1, 2], pa.float32())})
    forms: list[tuple[pa.Table, dict[str, Any]]] = [
        (table, {"compression": "none"}),
        (table, {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}),
        (table, {"compression": "zstd", "row_group_size": 1, "write_page_checksum": True}),
        (table.select(["s"]), {"compression": "snappy", "store_schema": False}),
        (narrow, {"compression": "none", "write_statistics": False}),
        (pa.table({"d": table["s"].dictionary_encode()}), {"compression": "none"}),
    ]
    seeds = []
    for it, options in forms:
        sink = io.BytesIO()
        pq.write_table(it, sink, **options)
        seeds.append(sink.getvalue())
    return seeds


def _description_seeds() -> list[bytes]:
    columns = (
        b"name: x\nlabel: {column: label, classes: ['0', '1']}\n"
        b"features: {columns: [f, g], shape: [2], low: 0, high: 16.5}\n"
        b"sensitive:\n  n: token\n  d: drop\n  s: scan\nlicence: CC-BY-4.0\nsynthetic: [n]\n"
    )
    pixels = (
        b'name: "y"\nlabel:\n  column: l\n  classes:\n  - a\n  - b\n'
        b"features:\n  columns: [pixel_*]\n  shape: [1, 2, 1]\n  low: -1.0e+3\n  high: 1_000\n"
        b"description: |\n  two\n  lines\n"
    )
    return [columns, pixels]


TARGETS = (
    Target("csv", fuzz_csv, _csv_seeds, (b'""', b"\r\n", b'",', b',"', b'"\n', b"\xef\xbb\xbf", b"true", b"1e5"), 512),
    Target(
        "json-lines",
        fuzz_json_lines,
        _json_lines_seeds,
        (b'{"', b'":', b'","', b"null", b"true", b"NaN", b"\\u", b"\\ud800", b"}\n{", b"1e400", b"-0"),
        512,
    ),
    # A page's header may promise billions of values, and Arrow makes room for them before it looks for any.
    Target("parquet", fuzz_parquet, _parquet_seeds, (b"PAR1", b"ARROW:schema"), 4096, allocations_mb=1024),
    Target(
        "description",
        fuzz_description,
        _description_seeds,
        (
            *(b"name: ", b"label: ", b"features: ", b"sensitive: ", b"columns: ", b"classes: ", b"shape: ", b"low: "),
            *(b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"<<: ", b"!!", b"? ", b"---\n", b".inf", b"0x", b":59"),
            *(b"|\n", b"2001-01-01", b"high: ", b"synthetic: ", b"token", b"drop", b"scan", b"pixel_*"),
        ),
    ),
)
