"""`portcullis diff`: what it prints, for a person and for a program, and its exit code."""

import json
from functools import partial

import pytest

from portcullis.cli import data
from portcullis.cli.main import _guarded, cli

HEADER = "id,name,ssn\n"
CONFIG = """
dataset:
  name: small
  label: {column: name, classes: [ann, bob]}
  features: {columns: [id], shape: [1], low: 0, high: 9}
  sensitive: {ssn: token}
"""


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = _guarded(partial(cli, list(arguments), prog_name="portcullis"))
        return code, *capsys.readouterr()

    return run


def lines(rows):
    return HEADER + "".join(f"{n},name {n},078-05-{n:04d}\n" for n in rows)


def test_equal_exits_with_0(call, tmp_path):
    (tmp_path / "a.csv").write_text(lines(range(9)))
    (tmp_path / "b.jsonl").write_text(
        "".join(f'{{"id":{n},"name":"name {n}","ssn":"078-05-{n:04d}"}}\n' for n in range(9))
    )
    code, out, err = call("diff", "a.csv", "b.jsonl")
    assert (code, err) == (0, "")
    assert out.startswith("equal: 9 rows, logical root ") and len(out.splitlines()) == 1
    code, out, err = call("diff", "a.csv", "b.jsonl", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["equal"] and document["a"]["logical_root"] == document["b"]["logical_root"]
    assert document["blocks"] == [] and document["rows"]["only_a"] == {"count": 0, "ranges": [], "ranges_left_out": 0}


def test_different_exits_with_1_and_says_where(call, tmp_path):
    (tmp_path / "a.csv").write_text(lines(range(2000)))
    (tmp_path / "b.csv").write_text(lines([*range(1500), 7000, *range(1501, 2000), 8000, 8001]))
    code, out, err = call("diff", "a.csv", "b.csv")
    assert (code, err) == (1, "")
    assert out.splitlines()[2:] == [
        "columns with changes: id, name, ssn",
        "rows 1,025 to 2,000 changed: id, name, ssn",
        "rows only in A: 1, at 1,501",
        "rows only in B: 3, at 1,501, 2,001 to 2,002",
    ]
    code, out, err = call("diff", "a.csv", "b.csv", "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert not document["equal"]
    assert document["blocks"] == [{"first": 1025, "last": 2000, "columns": ["id", "name", "ssn"]}]
    assert document["rows"]["only_b"] == {"count": 3, "ranges": [[1501, 1501], [2001, 2002]], "ranges_left_out": 0}


def test_schemas_are_told_apart(call, tmp_path):
    (tmp_path / "a.csv").write_text("id,name,old,zip\n1,ann,x,2139\n")
    (tmp_path / "b.csv").write_text("name,id,new,zip\nann,1,x,02139\n")
    code, out, _ = call("diff", "a.csv", "b.csv")
    assert code == 1
    assert out.splitlines()[2:] == [
        "columns only in A: old",
        "columns only in B: new",
        "columns of another type: zip (int64, string)",
        "the columns of both stand in another order",
    ]
    columns = json.loads(call("diff", "a.csv", "b.csv", "--json")[1])["columns"]
    assert columns["retyped"] == [{"name": "zip", "a": "int64", "b": "string"}]
    assert (columns["only_a"], columns["only_b"], columns["reordered"], columns["changed"]) == (
        ["old"],
        ["new"],
        True,
        [],
    )


def test_reordered_rows(call, tmp_path):
    (tmp_path / "a.csv").write_text(lines([1, 2, 3]))
    (tmp_path / "b.csv").write_text(lines([3, 2, 1]))
    assert call("diff", "a.csv", "b.csv")[1].splitlines()[-1] == "the rows are the same, in another order"


def test_a_value_is_never_printed(call, tmp_path):
    (tmp_path / "a.csv").write_text(lines(range(30)))
    (tmp_path / "b.csv").write_text(lines(range(40, 90)))
    for options in ([], ["--json"]):
        _, out, err = call("diff", "a.csv", "b.csv", *options)
        assert "078-05" not in out + err and "name 4" not in out + err


def test_much_is_counted_whole_and_shown_in_part(call, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_ENTRIES", 30)
    (tmp_path / "a.csv").write_text(lines(range(100)))
    (tmp_path / "b.csv").write_text(lines(range(0, 100, 2)))
    _, out, _ = call("diff", "a.csv", "b.csv")
    assert out.splitlines()[-1].startswith("rows only in A: 50, at 2, 4, 6,")
    assert out.splitlines()[-1].endswith(" 40 and 30 more")
    rows = json.loads(call("diff", "a.csv", "b.csv", "--json")[1])["rows"]["only_a"]
    assert (rows["count"], len(rows["ranges"]), rows["ranges_left_out"]) == (50, 30, 20)


def test_a_configuration_says_how_columns_are_typed(call, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "a.csv").write_text(HEADER + "1,ann,123\n")
    (tmp_path / "b.csv").write_text(HEADER + "1,ann,0123\n")
    assert "columns of another type: ssn" in call("diff", "a.csv", "b.csv")[1]
    assert "columns with changes: ssn" in call("diff", "a.csv", "b.csv", "--config", "config.yaml")[1]
    (tmp_path / "b.csv").write_text(HEADER + "1,carl,0123\n")
    code, out, err = call("diff", "a.csv", "b.csv", "--config", "config.yaml")
    assert (code, out) == (1, "") and err.startswith("DataError: b.csv, line 2 (row 1): column 'name'")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.csv"], 2, "Missing argument"),
        (["a.csv", "nothing.csv"], 1, "DataError: cannot read nothing.csv"),
        (["a.csv", "ftp://x/a.csv"], 2, "UsageError: "),
        (["a.csv", "bad.csv"], 1, "DataError: bad.csv: line 2 (row 1)"),
        (["a.csv", "a.csv", "--config", "nothing.yaml"], 2, "does not exist"),
        (["a.csv", "a.csv", "--config", "a.csv"], 2, "ConfigError: a.csv"),
    ],
    ids=["one table", "missing", "another scheme", "malformed", "no configuration", "a malformed configuration"],
)
def test_what_cannot_be_compared(call, tmp_path, arguments, code, message):
    (tmp_path / "a.csv").write_text(lines([1]))
    (tmp_path / "bad.csv").write_text("a,b\n1\n")
    found, out, err = call("diff", *arguments)
    assert (found, out) == (code, "") and message in err
