"""Ingestion: strict CSV, JSON Lines and Parquet, typed by the description, refused with the position of the fault."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from fsspec.registry import _registry

from portcullis.dataset import DatasetSpec
from portcullis.digest import path_digest
from portcullis.errors import ConfigError, DataError, UsageError
from portcullis.evidence.shards import Shard
from portcullis.ingest import csv_table, jsonl_table
from portcullis.ingest.csv_table import read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ingest.parts import source_part
from portcullis.ingest.readers import open_source, read_pieces, read_source, read_table, survey
from portcullis.table import logical_root, table_schema

SPEC = DatasetSpec.from_yaml("""
name: small
label: {column: label, classes: ["no", "yes"]}
features: {columns: ["f*"], shape: [2], low: -1, high: 10}
sensitive: {zip: token}
""")
HEADER = b"f0,f1,zip,other,label\n"
ROW = b"1,2.5,02139,x,yes\n"


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def parse_csv(data: bytes, block_bytes: int = 1 << 20) -> pa.Table:
    return pa.concat_tables([block.table for block in read_csv(io.BytesIO(data), block_bytes=block_bytes)])


def parse_jsonl(data: bytes, block_bytes: int = 1 << 20) -> pa.Table:
    return pa.concat_tables([block.table for block in read_jsonl(io.BytesIO(data), block_bytes=block_bytes)])


# The CSV dialect.


CSV = {
    "plain": (b"a,b\n1,x\n", [{"a": "1", "b": "x"}]),
    "no final line feed": (b"a,b\n1,x", [{"a": "1", "b": "x"}]),
    "CRLF": (b"a,b\r\n1,x\r\n2,y\r\n", [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]),
    "mixed line ends": (b"a,b\r\n1,x\n2,y", [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]),
    "null and empty": (b'a,b\n,""\n"",\n', [{"a": None, "b": ""}, {"a": "", "b": None}]),
    "one column": (b'a\n1\n""\n', [{"a": "1"}, {"a": ""}]),
    "quotes": (b'a,b\n"x,y","say ""hi"""\n"""",""""""\n', [{"a": "x,y", "b": 'say "hi"'}, {"a": '"', "b": '""'}]),
    "line breaks in quotes": (b'a,b\r\n"1\r\n2","\n"\r\n', [{"a": "1\r\n2", "b": "\n"}]),
    "CR at the end in quotes": (b'a,b\n1,"x\r"\r\n', [{"a": "1", "b": "x\r"}]),
    "quoted header": (b'"a,1","b\xc3\xa9"\n1,x\n', [{"a,1": "1", "bé": "x"}]),
    "multibyte text": ('a,b\né,"日本\U0001f600"\n'.encode(), [{"a": "é", "b": "日本\U0001f600"}]),
    "blanks are text": (b"a,b\n 1 ,\t\n", [{"a": " 1 ", "b": "\t"}]),
}


@pytest.mark.parametrize("block", [1, 2, 5, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 18])
@pytest.mark.parametrize("name", CSV)
def test_csv_is_split_into_cells(name: str, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "_CHUNK", chunk)
    data, rows = CSV[name]
    assert parse_csv(data, block).to_pylist() == rows


BAD_CSV = {
    "empty file": (b"", "empty"),
    "byte-order mark": (b"\xef\xbb\xbfa,b\n1,2\n", "line 1: .*byte-order mark"),
    "null byte": (b'a,b\n"1\n",2\n3,\x00\n', "line 4: null byte"),
    "not UTF-8": (b'a,b\n"1\n",2\n\xff,3\n', "line 4: not UTF-8"),
    "UTF-8 surrogate": (b"a,b\n\xed\xa0\x80,3\n", "line 2: not UTF-8"),
    "UTF-8 overlong": (b"a,b\n1,2\n\xc0\xaf,3\n", "line 3: not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "null byte"),
    "latin-1 at the end": (b"a,b\n1,caf\xe9", "line 2: not UTF-8"),
    "header only": (b"a,b\n", "no row"),
    "header only, no line feed": (b"a,b", "no row"),
    "empty header": (b'""\n1\n', "column 1 is empty"),
    "missing name": (b"a,,c\n1,2,3\n", "column 2 is empty"),
    "repeated name": (b"a,b,a\n1,2,3\n", "'a' appears twice"),
    "unprintable name": (b'a,"b\n"\n1,2\n', "column 2 is empty, unprintable"),
    "too few cells": (b"a,b\n1,2\n3\n", r"line 3 \(row 2\): 1 instead of 2 cells"),
    "too many cells": (b"a,b\n1,2,3\n", r"line 2 \(row 1\): 3 instead of 2 cells"),
    "too few after quoted line feeds": (b'a,b\n"1\n\n",2\n3\n', r"line 5 \(row 2\): 1 instead of 2 cells"),
    "cells that balance out": (b"a,b\n1,2,3\n4\n", r"line 2 \(row 1\): 3 instead of 2 cells"),
    "blank line": (b"a,b\n1,2\n\n3,4\n", r"line 3 \(row 2\): 1 instead of 2 cells"),
    # Other readers skip it: they would see fewer rows.
    "blank line of one column": (b"a\n1\n\n2\n", "line 3: a blank line"),
    "blank line of one column, CRLF": (b"a\r\n\r\n1\r\n", "line 2: a blank line"),
    "blank header": (b"\na\n", "line 1: a blank line"),
    "blank last line": (b"a,b\n1,2\n\n", r"line 3 \(row 2\): 1 instead of 2 cells"),
    "CR line ends": (b"a,b\r1,2\r", "line 1: a CR without LF"),
    "CR in a cell": (b"a,b\n1,2\n3\r4,5\n", "line 3: a CR without LF"),
    "quote in a cell": (b'a,b\n1,2\n3,4"5\n', "line 3: a stray quote"),
    "text after a quote": (b'a,b\n"1"x,2\n', "line 2: a stray quote"),
    "blank before a quote": (b'a,b\n1, "2"\n', "line 2: a stray quote"),
    "backslash escape": (b'a,b\n"x\\"y",2\n', "line 2: a stray quote"),
    "open quote at the end": (b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote is never closed"),
    "lone quote": (b'a,b\n1,"', "line 2: a quote is never closed"),
    "oversize cell": (b'a,b\n"\n",2\n1,' + b"x" * ((1 << 20) + 1), r"line 4 \(row 2\): a cell of more than 1048576"),
    "oversize name": (b"x" * ((1 << 20) + 1) + b"\n1\n", "line 1"),
    "too many columns": (b"," * 10_000 + b"\n", "line 1: 10001 columns"),
}


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
@pytest.mark.parametrize("name", [name for name in BAD_CSV if not name.startswith(("oversize", "too many columns"))])
def test_malformed_csv_is_refused_with_its_line(
    name: str, chunk: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "_CHUNK", chunk)
    data, message = BAD_CSV[name]
    with pytest.raises(DataError, match=message):
        parse_csv(data, block)


@pytest.mark.parametrize("name", [name for name in BAD_CSV if name.startswith(("oversize", "too many columns"))])
def test_oversize_csv_is_refused(name: str) -> None:
    data, message = BAD_CSV[name]
    with pytest.raises(DataError, match=message):
        parse_csv(data)


def test_a_cell_of_the_largest_size_is_read() -> None:
    assert parse_csv(b"a,b\n1," + b"x" * (1 << 20))["b"][0].as_py() == "x" * (1 << 20)


# The JSON Lines dialect.


JSONL = {
    "plain": (b'{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}\n', [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]),
    "no final line feed": (b'{"a":1}', [{"a": "1"}]),
    "CRLF": (b'{"a":1}\r\n{"a":2}\r\n', [{"a": "1"}, {"a": "2"}]),
    "blanks around": (b' {"a" :\t1 } \n', [{"a": "1"}]),
    "another order of keys": (b'{"a":1,"b":2}\n{"b":3,"a":4}\n', [{"a": "1", "b": "2"}, {"a": "4", "b": "3"}]),
    "null and empty": (b'{"a":null}\n{"a":""}\n', [{"a": None}, {"a": ""}]),
    "booleans": (b'{"a":true}\n{"a":null}\n{"a":false}\n', [{"a": "true"}, {"a": None}, {"a": "false"}]),
    "numbers as spelled": (b'{"a":1.50}\n{"a":-0}\n{"a":1E5}\n', [{"a": "1.50"}, {"a": "-0"}, {"a": "1E5"}]),
    "a long integer": (b'{"a":' + b"9" * 5000 + b"}", [{"a": "9" * 5000}]),
    "escapes": (rb'{"\u0061":"\u00e9\ud83d\ude00\n\"\\"}', [{"a": 'é\U0001f600\n"\\'}]),
    "no value at all": (b'{"a":null}\n', [{"a": None}]),
    "a line separator in text": ('{"a":"x\u2028y"}\n'.encode(), [{"a": "x\u2028y"}]),
}


@pytest.mark.parametrize("batch", [1, 2, 4096])
@pytest.mark.parametrize("name", JSONL)
def test_json_lines_are_read(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_table, "_BATCH_LINES", batch)
    data, rows = JSONL[name]
    assert parse_jsonl(data).to_pylist() == rows


BIG = b"x" * ((1 << 20) + 1)
BAD_JSONL = {
    "empty file": (b"", "the file is empty"),
    "byte-order mark": (b'\xef\xbb\xbf{"a":1}\n', "line 1: .*byte-order mark"),
    "null byte": (b'{"a":1}\n{"a":"\0"}\n', "line 2: null byte"),
    "escaped null byte": (b'{"a":"x"}\n{"a":"\\u0000"}\n', "line 2: column 'a' holds a null byte"),
    "not UTF-8": (b'{"a":"x"}\n{"a":"\xff"}\n', "line 2: not UTF-8"),
    "UTF-16": ('{"a":1}\n'.encode("utf-16-le"), "null byte"),
    "half a surrogate pair": (b'{"a":"x"}\n{"a":"\\ud800"}\n', "line 2: column 'a' is not Unicode"),
    "half a surrogate pair in a key": (b'{"\\ud800":1}\n', "line 1: the name of column 1"),
    "CR line ends": (b'{"a":1}\r{"a":2}\r', "line 1: a CR without LF"),
    "CR between": (b'{"a":1}\n{"a":\r2}\n', "line 2: a CR without LF"),
    "blank line": (b'{"a":1}\n\n{"a":2}\n', "line 2: not JSON"),
    "blank first line": (b'\n{"a":1}\n', "line 1: not JSON"),
    "blank last line": (b'{"a":1}\n \n', "line 2: not JSON"),
    "two on one line": (b'{"a":1}\n{"a":2} {"a":3}\n', "line 2: not JSON .extra data"),
    "over two lines": (b'{"a":1}\n{"a":\n2}\n', "line 2: not JSON"),
    "comma at the end": (b'{"a":1},\n{"a":2}\n', "line 1: not JSON"),
    "an array file": (b'[{"a":1}]\n', "line 1: not a JSON object"),
    "an array line": (b'{"a":1}\n["a",1]\n', "line 2: not a JSON object"),
    "a number line": (b'{"a":1}\n7\n', "line 2: not a JSON object"),
    "truncated": (b'{"a":1}\n{"a":2', "line 2: not JSON"),
    "single quotes": (b"{'a':1}\n", "line 1: not JSON"),
    "comment": (b'{"a":1}\n// more\n', "line 2: not JSON"),
    "raw tab in text": (b'{"a":"\t"}\n', "line 1: not JSON"),
    "NaN": (b'{"a":1}\n{"a":NaN}\n', "line 2: NaN is no JSON"),
    "infinity": (b'{"a":-Infinity}\n', "line 1: -Infinity is no JSON"),
    "plus": (b'{"a":+1}\n', "line 1: not JSON"),
    "leading zero": (b'{"a":01}\n', "line 1: not JSON"),
    "no column": (b"{}\n", "line 1: the table has 0 columns"),
    "empty name": (b'{"":1}\n', "line 1: .*column 1 is empty"),
    "repeated key in the first line": (b'{"a":1,"a":1}\n', "line 1: column 'a' appears twice"),
    "repeated key": (b'{"a":1}\n{"a":2,"a":3}\n', "line 2: the object repeats a key"),
    "repeated key, spelled otherwise": (b'{"a":1}\n{"a":2,"\\u0061":3}\n', "line 2: the object repeats a key"),
    "missing key": (b'{"a":1,"b":2}\n{"a":1}\n', "line 2: the key 'b' of line 1 is missing"),
    "further key": (b'{"a":1}\n{"a":1,"ssn 1":2}\n', "line 2: the object has a key that line 1 lacks$"),
    "object": (b'{"a":1}\n{"a":{"b":1}}\n', "line 2: column 'a' is an object or an array"),
    "array": (b'{"a":[1]}\n', "line 1: column 'a' is an object or an array"),
    "empty array": (b'{"a":null}\n{"a":[]}\n', "line 2: column 'a' is an object or an array"),
    "too deep": (b'{"a":' + b"[" * 100_000, "line 1: "),
    "text below numbers": (b'{"a":1}\n{"a":null}\n{"a":"1"}\n', "line 3: column 'a' is text, above it is a number"),
    "number below text": (b'{"a":"1"}\n{"a":1}\n', "line 2: column 'a' is a number, above it is text"),
    "boolean below numbers": (b'{"a":1}\n{"a":true}\n', "line 2: column 'a' is a boolean, above it is a number"),
    "oversize cell": (b'{"a":"x"}\n{"a":"' + BIG + b'"}\n', "line 2: column 'a' has more than 1048576 bytes"),
    "oversize number": (b'{"a":1}\n{"a":1' + b"0" * (1 << 20) + b"}", "line 2: column 'a' has more than"),
    "oversize line": (b'{"a":1}\n{"a":1' + b" " * (16 << 20) + b"}", "line 2: more than 16777216 bytes"),
    "too many columns": (
        b"{" + b",".join(b'"%d":1' % index for index in range(10_001)) + b"}",
        "line 1: the table has 10001 columns",
    ),
}


@pytest.mark.parametrize("batch", [1, 4096])
@pytest.mark.parametrize("name", BAD_JSONL)
def test_malformed_json_lines_are_refused_with_their_line(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl_table, "_BATCH_LINES", batch)
    data, message = BAD_JSONL[name]
    with pytest.raises(DataError, match=message):
        parse_jsonl(data)


def test_a_value_of_json_lines_is_never_part_of_the_message() -> None:
    for line in (b'{"a":"123-45-6789', b'{"a":["123-45-6789"]}', b'{"a":123-45-6789}', b'{"123-45-6789":1}'):
        with pytest.raises(DataError) as caught:
            parse_jsonl(b'{"a":1}\n' + line)
        assert "45" not in str(caught.value)


# Types and values.


def test_columns_are_typed_by_their_role(tmp_path: Path) -> None:
    source = read_source(write(tmp_path / "a.csv", HEADER + ROW + b"2,-0.5,,y,no\n"), SPEC)
    assert table_schema(source.table) == (
        ("f0", "int64"),
        ("f1", "float64"),
        ("zip", "string"),
        ("other", "string"),
        ("label", "string"),
    )
    assert source.table.to_pylist() == [
        {"f0": 1, "f1": 2.5, "zip": "02139", "other": "x", "label": "yes"},
        {"f0": 2, "f1": -0.5, "zip": None, "other": "y", "label": "no"},
    ]
    assert source.spec.features.columns == ("f0", "f1")
    assert source.reader == "csv"


INFERRED = {
    "integers": (["1", "-2", "0", ""], "int64", [1, -2, 0, None]),
    "18 digits": (["999999999999999999"], "int64", [999_999_999_999_999_999]),
    "19 digits": (["1000000000000000000"], "string", ["1000000000000000000"]),
    "leading zero": (["02139", "1"], "string", ["02139", "1"]),
    "plus": (["+1"], "string", ["+1"]),
    "decimals": (["1", "2.5", "-1e-3", ""], "float64", [1.0, 2.5, -0.001, None]),
    "whole decimals": (["1.0", "2e3", "-7"], "int64", [1, 2000, -7]),
    "beyond 2**53": (["1e300"], "float64", [1e300]),
    "negative zero": (["-0"], "float64", [-0.0]),
    "16 digits and a decimal": (["4000001234567899", "1.5"], "string", ["4000001234567899", "1.5"]),
    "overflow": (["1e999"], "string", ["1e999"]),
    "nan": (["nan", "1"], "string", ["nan", "1"]),
    "inf": (["inf"], "string", ["inf"]),
    "hexadecimal": (["0x10"], "string", ["0x10"]),
    "blank": ([" 1"], "string", [" 1"]),
    "bare point": ([".5"], "string", [".5"]),
    "booleans": (["true", "false", ""], "bool", [True, False, None]),
    "capital booleans": (["True"], "string", ["True"]),
    "dates": (["2024-01-01"], "string", ["2024-01-01"]),
    "nothing": (["", ""], "string", [None, None]),
    "quoted empty": (["1", '""'], "string", ["1", ""]),
    "other digits": (["١"], "string", ["١"]),
}


@pytest.mark.parametrize("name", INFERRED)
def test_other_columns_are_inferred_strictly(name: str, tmp_path: Path) -> None:
    cells, kind, values = INFERRED[name]
    data = HEADER + "".join(f"1,2,3,{cell},yes\n" for cell in cells).encode()
    table = read_source(write(tmp_path / "a.csv", data), SPEC).table
    assert dict(table_schema(table))["other"] == kind
    assert str(table["other"].to_pylist()) == str(values)


TYPED_JSON = {
    "integers": ("[1, -2, null]", "int64", [1, -2, None]),
    "integers as text": ('["1", "02139"]', "string", ["1", "02139"]),
    "19 digits": ("[1000000000000000000]", "string", ["1000000000000000000"]),
    "decimals": ("[1, 2.5, -1e-3]", "float64", [1.0, 2.5, -0.001]),
    "whole decimals": ("[1.0, 2e3]", "int64", [1, 2000]),
    "negative zero": ("[-0]", "float64", [-0.0]),
    "overflow": ("[1e999]", "string", ["1e999"]),
    "booleans": ("[true, false, null]", "bool", [True, False, None]),
    "booleans as text": ('["true"]', "string", ["true"]),
    "nothing": ("[null]", "string", [None]),
    "empty text": ('["", null]', "string", ["", None]),
}


@pytest.mark.parametrize("name", TYPED_JSON)
def test_json_numbers_and_booleans_are_typed_as_csv_is_and_text_stays_text(name: str, tmp_path: Path) -> None:
    cells, kind, values = TYPED_JSON[name]
    rows = [{"f0": 1, "f1": 2, "zip": 7, "other": "?", "label": "yes"} for _ in values]
    items = cells.strip("[]").split(", ")
    text = "".join(json.dumps(row).replace('"?"', item) + "\n" for row, item in zip(rows, items, strict=True))
    source = read_source(write(tmp_path / "a.jsonl", text.encode()), SPEC)
    assert dict(table_schema(source.table))["other"] == kind
    assert str(source.table["other"].to_pylist()) == str(values)
    assert source.table["zip"].to_pylist() == ["7"] * len(values)
    assert source.reader == "jsonl"


def jsonl(**columns: str) -> bytes:
    cells = {"f0": "1", "f1": "2.5", "zip": '"02139"', "other": '"x"', "label": '"yes"'} | columns
    return b"{" + ", ".join(f'"{name}": {cell}' for name, cell in cells.items()).encode() + b"}\n"


BAD_JSON_CELLS = {
    "empty feature": ({"f0": "null"}, "'f0' is empty"),
    "word": ({"f1": '"one"'}, "'f1' is text, above it is a number"),
    "above": ({"f1": "10.000000001"}, "'f1' is not in \\[-1, 10\\]"),
    "overflow": ({"f1": "1e999"}, "'f1' is not in"),
    "unknown label": ({"label": '"maybe"'}, "'label' is not one of the label's classes"),
    "empty label": ({"label": "null"}, "'label' is empty"),
}


@pytest.mark.parametrize("name", BAD_JSON_CELLS)
def test_a_bad_json_cell_is_refused_with_file_and_line(name: str, tmp_path: Path) -> None:
    columns, message = BAD_JSON_CELLS[name]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a.ndjson", jsonl() * 2)
    write(tmp_path / "set" / "b.ndjson", jsonl() * 2 + jsonl(**columns) + jsonl())
    with pytest.raises(DataError, match=rf"^b\.ndjson.*line 3: column {message}"):
        read_source(str(tmp_path / "set"), SPEC)


def test_a_column_of_json_lines_is_of_one_kind_in_every_file_or_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(other="null"))
    write(tmp_path / "b.jsonl", jsonl(other="7"))
    assert read_source(str(tmp_path), SPEC).table["other"].to_pylist() == [None, 7]
    write(tmp_path / "c.jsonl", jsonl(other='"7"'))
    with pytest.raises(DataError, match=r"^c\.jsonl: column 'other' is text, in b\.jsonl it is a number"):
        read_source(str(tmp_path), SPEC)


def test_without_a_description_the_other_columns_rule_types_all(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", HEADER + ROW))
    assert [kind for _, kind in table_schema(table)] == ["int64", "float64", "string", "string", "string"]
    as_json = read_table(write(tmp_path / "a.jsonl", jsonl()))
    assert logical_root(as_json) == logical_root(table)


BAD_CELLS = {
    "empty feature": (b",2,3,x,yes\n", "'f0' is empty"),
    "quoted empty feature": (b'"",2,3,x,yes\n', "'f0' is not a number"),
    "word": (b"one,2,3,x,yes\n", "'f0' is not a number"),
    "nan": (b"1,nan,3,x,yes\n", "'f1' is not a number"),
    "infinity": (b"1,inf,3,x,yes\n", "'f1' is not a number"),
    "overflow": (b"1,1e999,3,x,yes\n", "'f1' is not in"),
    "blank": (b"1, 2,3,x,yes\n", "'f1' is not a number"),
    "comma as point": (b'1,"2,5",3,x,yes\n', "'f1' is not a number"),
    "hexadecimal": (b"0x1,2,3,x,yes\n", "'f0' is not a number"),
    "line feed after": (b'"1\n",2,3,x,yes\n', "'f0' is not a number"),
    "above": (b"1,10.000000001,3,x,yes\n", "'f1' is not in \\[-1, 10\\]"),
    "below": (b"-1.5,2,3,x,yes\n", "'f0' is not in \\[-1, 10\\]"),
    "empty label": (b"1,2,3,x,\n", "'label' is empty"),
    "unknown label": (b"1,2,3,x,maybe\n", "'label' is not one of the label's classes"),
    "label with a blank": (b"1,2,3,x,yes \n", "'label' is not one of"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_bad_cell_is_refused_with_file_line_and_row(name: str, tmp_path: Path) -> None:
    row, message = BAD_CELLS[name]
    data = HEADER + ROW + b'1,2,3,"two\nlines",no\n' + row + ROW
    with pytest.raises(DataError, match=rf"^a\.csv, line 5 \(row 3\): column {message}"):
        read_source(write(tmp_path / "a.csv", data), SPEC)


def test_the_line_is_that_of_the_cell_and_not_of_its_record(tmp_path: Path) -> None:
    data = HEADER + ROW + b'1,2,3,"two\nlines",maybe\n'
    with pytest.raises(DataError, match=r"^a\.csv, line 4 \(row 2\): column 'label'"):
        read_source(write(tmp_path / "a.csv", data), SPEC)


def test_a_value_is_never_part_of_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path / "a.csv", HEADER + b"123-45-6789,2,3,x,yes\n"), SPEC)
    assert "123-45" not in str(caught.value)


def test_the_position_in_a_folder_is_that_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "a.csv", HEADER + ROW * 3)
    write(tmp_path / "b" / "c.csv", HEADER + ROW + b"1,2,3,x,maybe\n")
    with pytest.raises(DataError, match=r"^b/c\.csv, line 3 \(row 2\): column 'label'"):
        read_source(str(tmp_path), SPEC)


def parquet_table(**columns: pa.Array) -> pa.Table:
    base = {
        "f0": pa.array([1, 2]),
        "f1": pa.array([2.5, -0.5]),
        "zip": pa.array(["02139", None]),
        "other": pa.array(["x", "y"]),
        "label": pa.array(["yes", "no"]),
    }
    return pa.table(base | columns)


def test_parquet_types_are_kept_or_made_those_of_the_role(tmp_path: Path) -> None:
    table = parquet_table(
        f1=pa.array([2.0, -1.0], pa.float32()),
        zip=pa.array([2139, None]),
        label=pa.array(["yes", "no"]).dictionary_encode(),
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = read_source(str(tmp_path / "a.parquet"), SPEC)
    assert [kind for _, kind in table_schema(source.table)] == ["int64", "int64", "string", "string", "string"]
    assert source.table["zip"].to_pylist() == ["2139", None]
    assert source.reader == "parquet"


def test_integer_labels_are_matched_by_their_decimal_spelling(tmp_path: Path) -> None:
    spec = DatasetSpec.from_dict(SPEC.to_dict() | {"label": {"column": "label", "classes": ["0", "1"]}})
    pq.write_table(parquet_table(label=pa.array([1, 0])), tmp_path / "a.parquet")
    assert read_source(str(tmp_path / "a.parquet"), spec).table["label"].to_pylist() == ["1", "0"]
    assert read_source(write(tmp_path / "b.csv", HEADER + b"1,2,3,x,1\n"), spec).table["label"].to_pylist() == ["1"]


BAD_PARQUET = {
    "null feature": ({"f0": pa.array([1, None])}, "row 2: column 'f0' is empty"),
    "NaN": ({"f1": pa.array([float("nan"), 1.0])}, "row 1: column 'f1' is not in"),
    "infinity": ({"f1": pa.array([1.0, float("inf")])}, "row 2: column 'f1' is not in"),
    "word": ({"f1": pa.array(["1", "x"])}, "row 2: column 'f1' is not a number"),
    "boolean feature": ({"f0": pa.array([True, False])}, "row 1: column 'f0' is a boolean"),
    "float label": ({"label": pa.array([None, 1.0])}, "row 2: column 'label' is double"),
    "null label": ({"label": pa.nulls(2)}, "row 1: column 'label' is empty"),
    "null byte": ({"other": pa.array([None, "a\0b"])}, "row 2: column 'other' holds a null byte"),
    "oversize cell": ({"other": pa.array(["", "x" * ((1 << 20) + 1)])}, "row 2: column 'other' has more than"),
    "timestamp": ({"other": pa.array([0, 1], pa.timestamp("s"))}, "type timestamp"),
    "not UTF-8": ({"other": pa.array([b"\xff", b""]).view(pa.string())}, "malformed"),
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_bad_parquet_cells_are_refused_with_their_row(name: str, tmp_path: Path) -> None:
    columns, message = BAD_PARQUET[name]
    pq.write_table(parquet_table(**columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"^a\.parquet.*{message}"):
        read_source(str(tmp_path / "a.parquet"), SPEC)


# Sources.


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "z.CSV", HEADER + b"3,0,3,x,yes\n")
    write(tmp_path / "sub" / "b.csv", HEADER + b"2,0,3,x,yes\n")
    write(tmp_path / "a.csv", HEADER + b"1,0,3,x,yes\n")
    source = read_source(str(tmp_path), SPEC)
    assert source.table["f0"].to_pylist() == [1, 2, 3]
    assert [entry.path for entry in source.files] == ["a.csv", "sub/b.csv", "z.CSV"]
    assert source.raw_digest == path_digest(tmp_path)


def _partitioned(root: Path, *folders: str, rows: pa.Table | None = None) -> Path:
    for folder in folders:
        (root / "p" / folder).mkdir(parents=True)
        pq.write_table(pa.table({"a": [1, 2]}) if rows is None else rows, root / "p" / folder / "x.parquet")
    return root / "p"


def test_columns_that_a_folders_names_spell_are_read(tmp_path: Path) -> None:
    folder = _partitioned(tmp_path, "k=1/n=a%20b%3D%2F", "k=02/n=__HIVE_DEFAULT_PARTITION__", "k=3/n=")
    table = read_table(str(folder))
    assert table.to_pydict() == {
        "a": [1, 2] * 3,
        "k": ["02", "02", "1", "1", "3", "3"],
        "n": [None, None, "a b=/", "a b=/", "", ""],
    }
    parts = [source_part(str(folder), Shard(index, 3), SPEC).sources for index in range(3)]
    assert [survey(it, None).columns for it in parts] == [table.schema] * 3
    assert pa.concat_tables([pa.concat_tables(read_pieces(it)) for it in parts]).equals(table)


def test_what_arrow_partitions_is_read_whole(tmp_path: Path) -> None:
    table = pa.table(
        {"f0": [1.5, 2.5, 3.0], "label": ["yes", "no", "yes"], "zip": ["02139", "x/y=%", None], "f1": [1, 2, 2]}
    )
    pq.write_to_dataset(table, tmp_path / "p", partition_cols=["zip", "f1", "label"])
    read = read_source(str(tmp_path / "p"), SPEC).table
    assert table_schema(read) == (("f0", "float64"), ("zip", "string"), ("f1", "int64"), ("label", "string"))
    assert sorted(map(repr, read.select(table.column_names).to_pylist())) == sorted(map(repr, table.to_pylist()))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["k=1", "n=1"], "n=1/x.parquet has other columns"),
        (["k=1", "n"], "n/x.parquet has other columns"),
        (["a=1"], "a=1/x.parquet: column 'a' appears twice"),
        (["k=1/k=1"], "column 'k' appears twice"),
        (["=1"], "the name of column 2 is empty"),
        (["k=%ff"], "k=%ff/x.parquet: a folder's name is not UTF-8"),
        (["k=%00"], "holds a null byte"),
    ],
)
def test_folders_that_spell_no_sound_columns_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_table(str(_partitioned(tmp_path, *folders)))


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_columns_in_folders_names_are_never_lost_without_a_word(name: str, tmp_path: Path) -> None:
    (tmp_path / "p" / "k=1").mkdir(parents=True)
    write(tmp_path / "p" / "k=1" / name, b'{"a": 1}\n')
    with pytest.raises(DataError, match=rf"k=1/{name}: .*name folders without '='"):
        read_table(str(tmp_path / "p"))


def test_types_are_decided_over_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + b"1,0,3,7,yes\n")
    write(tmp_path / "b.csv", HEADER + b"1,0,3,07,yes\n")
    assert read_source(str(tmp_path), SPEC).table["other"].to_pylist() == ["7", "07"]


@pytest.mark.parametrize("prefix", ["", "file://", "file://localhost", "file:"])
def test_a_file_is_named_by_path_or_uri(prefix: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a b.csv", HEADER + ROW)
    source = read_source(prefix + (path.replace(" ", "%20") if prefix else path), SPEC)
    assert source.raw_digest == path_digest(Path(path))
    assert source.files[0].path == "a b.csv"


BAD_URIS = [
    *(
        "",
        "s3://bucket",
        "s3:/bucket/key",
        "http://example.com/a.csv",
        "unknown://place/a.csv",
        "simplecache::memory://a.csv",
        "filecache://a.csv",
        "zip://a.csv::memory://b.zip",
        "memory://user:word@place/a.csv",
        "memory://a.csv?word",
        "memory://none/a.csv",
        "local:///etc/passwd",
        "gs:x",
        "file://host/a.csv",
        "file:a.csv",
        "file:///a?b",
    ),
    *("file:///a%00b.csv", "file:///%ff.csv", "a\0b", "builtin:", "builtin:other", "builtin:cheque-digits/"),
]


@pytest.mark.parametrize("uri", BAD_URIS)
def test_other_sources_are_a_usage_error(uri: str) -> None:
    with pytest.raises(UsageError):
        read_source(uri, SPEC)


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def test_another_store_is_read_through_fsspec(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.csv", "b.csv"):
        memory.pipe(f"/place/set/{name}", HEADER + ROW)
        write(tmp_path / "set" / name, HEADER + ROW)
    for name in ("set", "set/", "set/a.csv"):
        there, here = read_source(f"memory://place/{name}", SPEC), read_source(str(tmp_path / name), SPEC)
        assert there.table.equals(here.table) and there.files == here.files
        assert there.raw_digest == here.raw_digest == path_digest(tmp_path / name)


def test_an_object_that_changes_in_another_store_is_refused(memory: Any) -> None:
    memory.pipe("/place/a.csv", HEADER + ROW)
    opened = open_source("memory://place/a.csv", SPEC)
    memory.pipe("/place/a.csv", HEADER + ROW.replace(b"x", b"y"))
    with pytest.raises(DataError, match="changed while it was read"):
        list(opened.table.pieces())
    memory.rm("/place/a.csv")
    with pytest.raises(UsageError, match="cannot read memory://place"):
        list(opened.table.pieces())


def test_a_store_that_does_not_answer_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(fsspec.AbstractFileSystem):  # type: ignore[misc] # some connect as soon as they are made
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no route\nto host")

    monkeypatch.setitem(_registry, "gone", Gone)
    with pytest.raises(UsageError, match=r"cannot read gone://host/a\.csv: no route to host"):
        read_source("gone://host/a.csv", SPEC)


def test_a_word_in_a_url_is_not_repeated(memory: Any) -> None:
    for uri in ("memory://user:hunter2@place/a.csv", "HTTPS://user:hunter2@place/a.csv", "a::s3://user:hunter2@b/c"):
        with pytest.raises(UsageError) as caught:
            read_source(uri, SPEC)
        assert "hunter2" not in str(caught.value)


def _link_to_file(root: Path) -> Path:
    write(root / "real.csv", HEADER + ROW)
    (root / "link.csv").symlink_to(root / "real.csv")
    return root / "link.csv"


def _folder_with(root: Path, *files: str) -> Path:
    (root / "folder").mkdir()
    for name in files:
        write(root / "folder" / name, HEADER + ROW)
    return root / "folder"


def _link_to_folder(root: Path) -> Path:
    (root / "link").symlink_to(_folder_with(root, "a.csv"))
    return root / "link"


def _folder_with_link(root: Path) -> Path:
    folder = _folder_with(root, "a.csv")
    (folder / "b.csv").symlink_to(folder / "a.csv")
    return folder


def _folder_with_linked_folder(root: Path) -> Path:
    (root / "other").mkdir()
    folder = _folder_with(root, "a.csv")
    (folder / "b").symlink_to(root / "other")
    return folder


def _folder_with_fifo(root: Path) -> Path:
    folder = _folder_with(root, "a.csv")
    os.mkfifo(folder / "b.csv")
    return folder


def _folder_with_unprintable_name(root: Path) -> Path:
    folder = _folder_with(root, "a.csv")
    (folder / os.fsdecode(b"\xff.csv")).write_bytes(HEADER + ROW)
    return folder


def _folder_with_other_header(root: Path) -> Path:
    folder = _folder_with(root, "a.csv")
    write(folder / "b.csv", b"f1,f0,zip,other,label\n" + ROW)
    return folder


def _fifo(root: Path) -> Path:
    os.mkfifo(root / "a.csv")
    return root / "a.csv"


BAD_SOURCES = {
    "missing": (lambda root: root / "missing.csv", "cannot read"),
    "name too long": (lambda root: root / ("x" * 300), "cannot read"),
    "link to a file": (_link_to_file, "link"),
    "link to a folder": (_link_to_folder, "link"),
    "link in a folder": (_folder_with_link, "cannot read"),
    "linked folder in a folder": (_folder_with_linked_folder, "link"),
    "fifo": (_fifo, "not a regular file"),
    "fifo in a folder": (_folder_with_fifo, "not a regular file"),
    "empty folder": (_folder_with, "no file"),
    "mixed folder": (lambda root: _folder_with(root, "a.csv", "b.parquet"), "mixes csv and parquet files"),
    "CSV named JSON Lines": (lambda root: _folder_with(root, "a.jsonl"), r"a\.jsonl: line 1: not JSON"),
    "foreign file": (lambda root: _folder_with(root, "a.csv", "_SUCCESS"), "_SUCCESS is not a"),
    "hidden file": (lambda root: _folder_with(root, "a.csv", ".csv"), ".csv is not a"),
    "unprintable file name": (_folder_with_unprintable_name, "unprintable"),
    "other header": (_folder_with_other_header, "b.csv has other columns"),
    "CSV named Parquet": (lambda root: _folder_with(root, "a.parquet"), "not a readable Parquet"),
    "device": (lambda _: Path("/dev/null"), "not a regular file"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_refused(name: str, tmp_path: Path) -> None:
    build, message = BAD_SOURCES[name]
    with pytest.raises(DataError, match=message):
        read_source(str(build(tmp_path)), SPEC)


def test_the_size_of_the_source_is_limited(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", HEADER + ROW)
    write(tmp_path / "b.csv", HEADER + ROW)
    size = 2 * len(HEADER + ROW)
    for path, limit in ((tmp_path, size - 1), (tmp_path / "a.csv", size // 2 - 1)):
        with pytest.raises(DataError, match="larger than"):
            read_source(str(path), SPEC, limit=limit)


def test_the_size_of_the_table_is_limited(tmp_path: Path) -> None:
    pq.write_table(parquet_table(other=pa.array(["x" * 10_000] * 2)), tmp_path / "a.parquet", compression="zstd")
    size = (tmp_path / "a.parquet").stat().st_size
    assert size < 15_000
    with pytest.raises(DataError, match="bytes allowed"):
        read_source(str(tmp_path / "a.parquet"), SPEC, limit=15_000)


def test_a_description_that_contradicts_the_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"f0,f1,f2,zip,label\n1,2,3,4,yes\n")
    with pytest.raises(ConfigError, match="3 feature columns"):
        read_source(path, SPEC)
    with pytest.raises(DataError, match="no column 'zip'"):
        read_source(write(tmp_path / "b.csv", b"f0,f1,label\n1,2,yes\n"), SPEC)


def test_a_source_says_what_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEADER + ROW + b"2,-0.5,,y,no\n")
    source = read_source(path, SPEC)
    assert source.raw_digest == path_digest(Path(path))
    assert (source.table.num_rows, source.table.num_columns, source.reader) == (2, 5, "csv")
    assert [entry.size for entry in source.files] == [Path(path).stat().st_size]
    assert source.spec == SPEC.resolve(source.table.column_names)


def test_csv_and_parquet_of_one_table_have_one_root(tmp_path: Path) -> None:
    table = parquet_table(f1=pa.array([2.0, -1.0]), other=pa.array([0.1, None]))
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink)
    write(tmp_path / "a.csv", sink.getvalue())
    pq.write_table(table, tmp_path / "a.parquet")
    roots = {logical_root(read_source(str(tmp_path / name), SPEC).table) for name in ("a.csv", "a.parquet")}
    assert len(roots) == 1
