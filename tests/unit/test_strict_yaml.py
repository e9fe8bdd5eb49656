"""YAML is one mapping of plain data, and nothing that it says leaks another exception."""

import datetime as dt
import math

import pytest

from portcullis.errors import DataError
from portcullis.strict_yaml import MAX_YAML_BYTES, load_yaml


def test_plain_data_is_read():
    text = "# comment\na: 1\nb: [true, null, 2.5, .inf, text]\nc: {d: 2026-01-31}\ne: |\n  two\n  lines\nf: &anchor x\n"
    assert load_yaml(text.encode()) == {
        "a": 1,
        "b": [True, None, 2.5, math.inf, "text"],
        "c": {"d": dt.date(2026, 1, 31)},
        "e": "two\nlines\n",
        "f": "x",
    }


REFUSED = {
    "nothing": b"",
    "a list": b"- a\n",
    "a scalar": b"text",
    "key that is no text": b"1: a\n",
    "boolean key": b"on: a\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "repeated key": b"a: 1\na: 1\n",
    "repeated key within": b"a:\n  - {b: 1, b: 2}\n",
    "repeated key in two spellings": b'a: 1\n"a": 2\n',
    "key that cannot be hashed": b"? [a]\n: 1\n",
    "alias": b"a: &x [1]\nb: *x\n",
    "alias to itself": b"a: &x [*x]\n",
    "merge key": b"<<: {a: 1}\nb: 2\n",
    "object tag": b"a: !!python/object/apply:os.system ['true']\n",
    "name tag": b"a: !!python/name:os.system ''\n",
    "unknown tag": b"a: !x 1\n",
    "known tag": b"a: !!str 1\n",
    "tag on the document": b"!!map {a: 1}\n",
    "tag on a key": b"!!str a: 1\n",
    "integer tag on nothing": b"a: !!int ''\n",
    "float tag on nothing": b"a: !!float ''\n",
    "boolean tag on text": b"a: !!bool text\n",
    "time tag on text": b"a: !!timestamp text\n",
    "binary tag": b"a: !!binary eA==\n",
    "impossible date": b"a: 2026-99-99\n",
    "impossible offset": b"a: 2026-01-01T00:00:00+99:99\n",
    "empty binary number": b"a: 0b_\n",
    "sexagesimal": b"a: 22:22\n",
    "sexagesimal with a fraction": b"a: 1:30.5\n",
    "sexagesimal without end": b"a: 1" + b":59" * 300_000,
    "sexagesimal beyond a double": b"a: 1" + b":1" * 400 + b".5\n",
    "decimal of too many digits": b"a: " + b"1" * 5000 + b"\n",
    "value tag": b"a: =\n",
    "directive": b"%YAML 9.9\n---\na: 1\n",
    "tab": b"a:\n\tb: 1\n",
    "control character": b"a: \x01\n",
    "not utf-8": b"a: \xff\n",
    "utf-16": "a: 1\n".encode("utf-16"),
    "cut": b"a: [1, 2",
    "too deep": b"a: " + b"[" * 20_000,
    "too large": b"a: " + b"x" * MAX_YAML_BYTES,
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_anything_else_is_refused(text):
    with pytest.raises(DataError):
        load_yaml(text)
