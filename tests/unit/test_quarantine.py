"""Malformed records: refused by default, set aside where the description allows it, and never more than it allows."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resting

from portcullis.dataset import DatasetSpec
from portcullis.digest import path_digest
from portcullis.errors import ConfigError, DataError, SealError
from portcullis.evidence.statement import Statement
from portcullis.ingest import csv_table
from portcullis.ingest.malformed import Fault, Malformed, Reason
from portcullis.ingest.quarantine import CONTEXT, FILE, open_quarantine, seal_quarantine
from portcullis.ingest.readers import open_source, read_source
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis.sealing.sealed import open_directory, seal_files
from portcullis.table import logical_root

REFUSING = DatasetSpec.from_yaml("""
name: small
label: {column: label, classes: ["no", "yes"]}
features: {columns: [f], shape: [1], low: -1, high: 10}
sensitive: {note: scan}
""")
SPEC = replace(REFUSING, quarantine_at_most=3)
BIG = b"x" * ((1 << 20) + 1)
TAIL = b'3,"two\nlines",no\n', b'{"f":3,"note":"two\\nlines","label":"no"}\n'
HEAD = {
    "csv": b'f,note,label\n1,"two\nlines",yes\n2,,no\n',
    "jsonl": b'{"f":1,"note":"two\\nlines","label":"yes"}\n{"label":"no","f":2,"note":null}\n',
}
TAILS = dict(zip(HEAD, TAIL, strict=True))
LINE = {"csv": 5, "jsonl": 3}

MALFORMED: dict[str, dict[str, tuple[bytes, Reason, str, str]]] = {  # record, reason, column, what a refusal says
    "csv": {
        "too few cells": (b"1,x", "number_of_cells", "", "2 instead of 3 cells"),
        "too many cells": (b"1,x,yes,", "number_of_cells", "", "4 instead of 3 cells"),
        "blank line": (b"", "number_of_cells", "", "1 instead of 3 cells"),
        "quotes in a cell": (b'1,a "word" b,yes', "stray_quote", "", "a stray quote"),
        "text after quotes": (b'1,"a"b"",yes', "stray_quote", "", "a stray quote"),
        "CR in a line": (b"1,a\rb,yes", "cr_without_lf", "", "a CR without LF"),
        "null byte": (b"1,a\0b,yes", "null_byte", "", "null byte"),
        "Latin-1": (b"1,caf\xe9,yes", "not_utf8", "", "not UTF-8"),
        "Latin-1 in a cell of two lines": (b'1,"caf\xe9\n",yes', "not_utf8", "", "not UTF-8"),
        "oversized cell": (b"1," + BIG + b",yes", "oversized_cell", "", "a cell of more than 1048576 bytes"),
        "empty feature": (b",x,yes", "empty", "f", "column 'f' is empty"),
        "word": (b"one,x,yes", "not_a_number", "f", "column 'f' is not a number"),
        "NaN": (b"nan,x,yes", "not_a_number", "f", "column 'f' is not a number"),
        "infinity": (b"-inf,x,yes", "not_a_number", "f", "column 'f' is not a number"),
        "overflow": (b"1e999,x,yes", "out_of_bounds", "f", r"column 'f' is not in \[-1, 10\]"),
        "out of bounds": (b"11,x,yes", "out_of_bounds", "f", r"column 'f' is not in \[-1, 10\]"),
        "unknown class": (b"1,x,maybe", "unknown_class", "label", "column 'label' is not one of"),
        "unknown class below a line break": (b'1,"x\n\ny",maybe', "unknown_class", "label", "column 'label'"),
    },
    "jsonl": {
        "not JSON": (b'{"f":1,"note":"x","label":"yes"', "not_json", "", "not JSON"),
        "two on one line": (b'{"f":1} {"f":2}', "not_json", "", "not JSON"),
        "blank line": (b"", "not_json", "", "not JSON"),
        "a number": (b"7", "not_json", "", "not a JSON object"),
        "NaN": (b'{"f":NaN,"note":"x","label":"yes"}', "not_json", "", "NaN is no JSON"),
        "infinity": (b'{"f":-Infinity,"note":"x","label":"yes"}', "not_json", "", "-Infinity is no JSON"),
        "missing key": (b'{"f":1,"label":"yes"}', "other_keys", "", "the key 'note' of line 1 is missing"),
        "further key": (b'{"f":1,"note":"x","label":"yes","x":1}', "other_keys", "", "a key that line 1 lacks"),
        "repeated key": (b'{"f":1,"f":1,"note":"x","label":"yes"}', "other_keys", "", "repeats a key"),
        "CR in a line": (b'{"f":1,\r"note":"x","label":"yes"}', "cr_without_lf", "", "a CR without LF"),
        "null byte": (b'{"f":1,"note":"\0","label":"yes"}', "null_byte", "", "null byte"),
        "escaped null byte": (b'{"f":1,"note":"\\u0000","label":"yes"}', "null_byte", "note", "holds a null byte"),
        "Latin-1": (b'{"f":1,"note":"caf\xe9","label":"yes"}', "not_utf8", "", "not UTF-8"),
        "half a pair": (b'{"f":1,"note":"\\ud800","label":"yes"}', "not_unicode", "note", "is not Unicode"),
        "oversized cell": (b'{"f":1,"note":"' + BIG + b'","label":"yes"}', "oversized_cell", "note", "has more than"),
        "nested": (b'{"f":[1],"note":"x","label":"yes"}', "nested_value", "f", "is an object or an array"),
        "too deep": (b'{"f":' + b"[" * 100_000, "nested_value", "", "JSON nested too deep"),
        "number below text": (b'{"f":1,"note":7,"label":"yes"}', "kind_of_value", "note", "is a number, above it is"),
        "text below numbers": (b'{"f":"1","note":"x","label":"yes"}', "kind_of_value", "f", "is text, above it is"),
        "empty feature": (b'{"f":null,"note":"x","label":"yes"}', "empty", "f", "column 'f' is empty"),
        "out of bounds": (b'{"f":11,"note":"x","label":"yes"}', "out_of_bounds", "f", "column 'f' is not in"),
        "unknown class": (b'{"f":1,"note":"x","label":"maybe"}', "unknown_class", "label", "column 'label' is not"),
    },
}
CASES = [(kind, name) for kind, cases in MALFORMED.items() for name in cases]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_malformed_record_is_refused_with_its_line(kind: str, name: str, tmp_path: Path) -> None:
    record, _, _, message = MALFORMED[kind][name]
    path = write(tmp_path / f"a.{kind}", HEAD[kind] + record + b"\n" + TAILS[kind])
    line = LINE[kind] + (record.count(b"\n") if "unknown class below" in name else 0)
    with pytest.raises(DataError, match=rf"^a\.{kind}[:,] line {line}\b.*{message}"):
        open_source(path, REFUSING)
    with pytest.raises(DataError, match=message):  # nobody would count what is set aside
        read_source(path, SPEC)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=["LF", "CRLF", "at the end"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_malformed_record_is_set_aside_and_the_others_are_read(
    kind: str, name: str, end: bytes, tmp_path: Path
) -> None:
    record, reason, column, _ = MALFORMED[kind][name]
    tail = TAILS[kind] if end else b""
    source = open_source(write(tmp_path / f"a.{kind}", HEAD[kind] + record + end + tail), SPEC)
    if not record and not end:
        assert source.malformed == {}
        return
    clean = read_source(write(tmp_path / f"b.{kind}", HEAD[kind] + tail), REFUSING)
    assert source.malformed == {reason: 1}
    assert (source.records, source.table.rows) == (clean.table.num_rows + 1, clean.table.num_rows)
    assert logical_root(source.table) == logical_root(clean.table)
    data = record + (b"\r" if end == b"\r\n" else b"")
    assert list(source.set_aside()) == [
        (f"a.{kind}", Malformed(LINE[kind], len(HEAD[kind]), Fault(reason, column), data))
    ]


@pytest.mark.parametrize("kind", MALFORMED)
def test_no_more_are_set_aside_than_the_description_allows(kind: str, tmp_path: Path) -> None:
    records = [record for record, *_ in MALFORMED[kind].values() if b"\n" not in record][:4]
    allowed = write(tmp_path / f"a.{kind}", HEAD[kind] + b"\n".join(records[:3]) + b"\n" + TAILS[kind])
    assert sum(open_source(allowed, SPEC).malformed.values()) == 3
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / f"a.{kind}", HEAD[kind] + b"\n".join(records[:2]) + b"\n")
    write(tmp_path / "b" / f"b.{kind}", HEAD[kind] + b"\n".join(records[2:]) + b"\n" + TAILS[kind])
    with pytest.raises(DataError, match=rf"^b\.{kind}, line {LINE[kind] + 1}: .*; more than the 3 malformed records"):
        open_source(str(tmp_path / "b"), SPEC)


NEVER = {
    "repeated name": ("csv", b"f,note,note,label\n1,x,x,yes\n", "appears twice"),
    "missing column": ("csv", b"f,label\n1,yes\n", "no column 'note'"),
    "stray quote in the header": ("csv", b'f,no"t"e,label\n1,x,yes\n', "line 1: a stray quote"),
    "null byte in the header": ("csv", b"f,no\0te,label\n1,x,yes\n", "line 1: null byte"),
    "another encoding": ("csv", (HEAD["csv"]).decode().encode("utf-16-le"), "line 1: null byte"),
    "byte-order mark": ("csv", b"\xef\xbb\xbf" + HEAD["csv"], "byte-order mark"),
    "quote never closed": ("csv", HEAD["csv"] + b'1,"x,yes\n2,x,no\n', "a quote is never closed"),
    "stray quote that swallows the next": ("csv", HEAD["csv"] + b'1,a"b,yes\n2,c"d,no\n', "line 5 .*is not clear"),
    "quote that is closed two records below": ("csv", HEAD["csv"] + b'1,"x\n2,y\n3,z"\n', "line 5 .*is not clear"),
    "quote that is closed within a cell": ("csv", HEAD["csv"] + b'1,"x,yes\n2,y"z,no\n', "line 5 .*is not clear"),
    "oversized cell of lines": ("csv", HEAD["csv"] + b'1,"' + BIG + b'\n",yes\n', "oversized cell.*is not clear"),
    "CR line ends": ("csv", HEAD["csv"].replace(b"\n", b"\r"), "line 1: a CR without LF"),
    "no sound record": ("csv", b"f,note,label\n1,x\n", "every record is malformed"),
    "no record": ("csv", b"f,note,label\n", "no row"),
    "first line not JSON": ("jsonl", b"{\n" + HEAD["jsonl"], "line 1: not JSON"),
    "first line not UTF-8": ("jsonl", b'{"f":1,"note":"\xff","label":"no"}\n' + HEAD["jsonl"], "line 1: not utf8"),
    "first line out of bounds": ("jsonl", b'{"f":11,"note":"x","label":"no"}\n' + HEAD["jsonl"], "line 1: out of"),
    "oversized line": ("jsonl", HEAD["jsonl"] + b'{"f":1' + b" " * (16 << 20) + b"}\n", "line 3: more than 16777216"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_concerns_more_than_one_record_is_always_refused(name: str, tmp_path: Path) -> None:
    kind, data, message = NEVER[name]
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / f"a.{kind}", data), SPEC)


def test_a_record_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "MAX_RECORD_BYTES", 30)
    with pytest.raises(DataError, match=r"line 5 \(row 3\): a record of more than 30 bytes"):
        open_source(write(tmp_path / "a.csv", HEAD["csv"] + b"1," + b"x" * 30 + b",yes\n" + TAILS["csv"]), SPEC)


def test_a_link_in_the_folder_is_always_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a.csv", HEAD["csv"])
    (tmp_path / "set" / "b.csv").symlink_to(write(tmp_path / "b.csv", HEAD["csv"]))
    with pytest.raises(DataError, match="cannot read"):
        open_source(str(tmp_path / "set"), SPEC)


def test_parquet_sets_nothing_aside(tmp_path: Path) -> None:
    table = pa.table({"f": [1.0, 11.0], "note": ["x", None], "label": ["yes", "no"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 2: column 'f' is not in"):
        open_source(str(tmp_path / "a.parquet"), SPEC)


def test_a_line_that_is_set_aside_does_not_say_what_a_column_holds(tmp_path: Path) -> None:
    data = b'{"f":1,"note":null,"label":"no"}\n{"f":99,"note":7,"label":"no"}\n{"f":1,"note":"x","label":"no"}\n'
    source = open_source(write(tmp_path / "a.jsonl", data), SPEC)
    assert source.malformed == {"out_of_bounds": 1}
    assert [row["note"] for piece in source.table.pieces() for row in piece.to_pylist()] == [None, "x"]


def test_a_record_that_is_set_aside_types_no_column(tmp_path: Path) -> None:
    header = b"f,note,label,count\n"
    source = open_source(write(tmp_path / "a.csv", header + b"1,x,yes,5\nno,x,yes,many\n2,x,no,6\n"), SPEC)
    assert source.table.schema.field("count").type == pa.int64()
    assert [row["count"] for piece in source.table.pieces() for row in piece.to_pylist()] == [5, 6]


def test_many_of_many_are_set_aside_in_order_over_blocks_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "BLOCK_BYTES", 64)
    for name in ("a", "b"):
        rows = (b"x,,yes\n" if index % 7 == 3 else b"1,,yes\n" for index in range(700))
        write(tmp_path / f"{name}.csv", b"f,note,label\n" + b"".join(rows))
    source = open_source(str(tmp_path), replace(SPEC, quarantine_at_most=200))
    assert (source.malformed, source.records, source.table.rows) == ({"not_a_number": 200}, 1400, 1200)
    found = [(path, it.line) for path, it in source.set_aside()]
    assert found == [(f"{name}.csv", index + 2) for name in "ab" for index in range(700) if index % 7 == 3]


@pytest.mark.parametrize("value", [-1, 1.0, True, "3", None, 1_000_001])
def test_the_bound_is_a_whole_number(value: object) -> None:
    with pytest.raises(ConfigError, match="quarantine_at_most must be a whole number from 0"):
        DatasetSpec.from_dict({**SPEC.to_dict(), "quarantine_at_most": value})


# The sealed file.


RECORDS = [
    ("a.csv", Malformed(3, 12, Fault("not_utf8"), b"caf\xe9,123-45-6789")),
    ("b/c.csv", Malformed(9, 99, Fault("not_a_number", "f0"), b"x" * (3 << 20))),
    ("b/c.csv", Malformed(10, 1 << 40, Fault("not_a_number", "f0"), b"")),
]


def statement(directory: Path, digest: str | None = None, **counts: int) -> Statement:
    return Statement(
        *("ingest", "ingest", "transform", "0" * 32, 0, 0),
        inputs={},
        outputs={"quarantine": digest or path_digest(directory)},
        parameters={},
        figures={"rows": 7, "quarantine_sha256": "0", **counts},
        environment={},
    )


COUNTS = {"quarantined": 3, "quarantined_not_utf8": 1, "quarantined_not_a_number": 2}


def test_what_was_set_aside_comes_back_with_the_key(tmp_path: Path) -> None:
    count, _ = seal_quarantine(tmp_path / "q", iter(RECORDS), recipient=resting.KEY.public_key())
    assert count == 3
    stored = b"".join(path.read_bytes() for path in (tmp_path / "q").iterdir())
    assert b"123-45-6789" not in stored and base64.b64encode(RECORDS[0][1].data) not in stored
    with open_quarantine(tmp_path / "q", statement(tmp_path / "q", **COUNTS), key=resting.KEY) as found:
        records = list(found)
    assert [
        (it["path"], it["line"], it["offset"], it["reason"], it["column"], base64.b64decode(it["bytes"]))
        for it in records
    ] == [(path, it.line, it.offset, *it.fault, it.data) for path, it in RECORDS]


def test_an_empty_quarantine_is_one_too(tmp_path: Path) -> None:
    digests = {seal_quarantine(tmp_path / name, [], recipient=resting.KEY.public_key()) for name in "ab"}
    assert [count for count, _ in digests] == [0, 0]  # of two digests: the salt differs
    with open_quarantine(tmp_path / "a", statement(tmp_path / "a", quarantined=0), key=resting.KEY) as found:
        assert list(found) == []


@pytest.mark.parametrize(
    "counts",
    [COUNTS | {"quarantined": 2}, COUNTS | {"quarantined_not_utf8": 2}, COUNTS | {"quarantined_null_byte": 1}, {}],
    ids=["sum", "reason", "another reason", "none"],
)
def test_a_quarantine_that_does_not_hold_what_was_counted_is_refused(counts: dict[str, int], tmp_path: Path) -> None:
    seal_quarantine(tmp_path / "q", RECORDS, recipient=resting.KEY.public_key())
    with (
        pytest.raises(DataError, match="does not hold what the evidence counts"),
        open_quarantine(tmp_path / "q", statement(tmp_path / "q", **counts), key=resting.KEY) as found,
    ):
        list(found)


def test_another_quarantine_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        seal_quarantine(tmp_path / name, RECORDS, recipient=resting.KEY.public_key())
    stated = statement(tmp_path / "a", **COUNTS)
    with (
        pytest.raises(DataError, match="not the quarantine that the evidence speaks of"),
        open_quarantine(tmp_path / "b", stated, key=resting.KEY),
    ):
        pass
    with (
        pytest.raises(SealError),
        open_quarantine(tmp_path / "a", stated, key=SealingPrivateKey.generate()),
    ):
        pass
    data = open_directory(tmp_path / "a", private_key=resting.KEY, context=CONTEXT)[FILE]
    header = data.split(b"\n", 1)[0] + b"\n"
    for spoiled in (data[:-1], data[len(header) :], header, header + b"{}\n", b"", b"[]\n", b"{}\n", b"x\n"):
        seal_files({FILE: spoiled}, tmp_path / "c", recipients=[resting.KEY.public_key()], context=CONTEXT)
        with (
            pytest.raises(DataError),
            open_quarantine(tmp_path / "c", statement(tmp_path / "c", **COUNTS), key=resting.KEY) as found,
        ):
            list(found)


def test_a_failure_leaves_no_quarantine(tmp_path: Path) -> None:
    def records():
        yield RECORDS[0]
        raise DataError("changed")

    with pytest.raises(DataError, match="changed"):
        seal_quarantine(tmp_path / "q", records(), recipient=resting.KEY.public_key())
    assert list(tmp_path.iterdir()) == []


def test_a_reason_is_a_word_and_never_a_value() -> None:
    tried = {reason for cases in MALFORMED.values() for _, reason, _, _ in cases.values()}
    assert tried == set(get_args(Reason)) - {"blank_line"}
    assert json.dumps(sorted(get_args(Reason))).isascii()


def test_a_blank_line_of_a_single_column_is_set_aside() -> None:
    blocks = list(csv_table.read_csv(io.BytesIO(b"a\n1\n\n2\n"), check=lambda _: {}))
    assert [(it.line, it.offset, it.fault.reason) for one in blocks for it in one.malformed] == [(3, 4, "blank_line")]
    assert [row["a"] for one in blocks for row in one.table.to_pylist()] == ["1", "2"]
