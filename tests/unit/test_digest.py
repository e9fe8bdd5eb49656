"""One spelling of JSON, and digests that no change of a tree escapes."""

import datetime as dt
import hashlib
import math
import os

import pytest

from portcullis.digest import (
    FileEntry,
    canonical_json,
    file_digest,
    is_digest,
    manifest_digest,
    parse_canonical_json,
    parse_json,
    path_digest,
    sha256,
    tree_digest,
    tree_files,
)
from portcullis.errors import DataError

# RFC 8785, 3.2.2 and appendix B, and the key order of 3.2.3 (UTF-16, so that U+1F600 comes before U+FB33).
CANONICAL = {
    "numbers": (
        [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        b"[333333333.3333333,1e+30,4.5,0.002,1e-27]",
    ),
    "integral doubles": (
        [64.0, -0.0, 1e20, 1e21, 9007199254740992.0],
        b"[64,0,100000000000000000000,1e+21,9007199254740992]",
    ),
    "smallest and greatest": ([5e-324, 1.7976931348623157e308], b"[5e-324,1.7976931348623157e+308]"),
    "escapes": ('\u20ac$\u000f\nA\'B"\\\\"/', b'"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),
    "key order": (
        {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7},
        '{"\\r":2,"1":4,"\u0080":6,"\u00f6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}'.encode(),
    ),
    "literals": ({"b": [None, True, False], "a": ()}, b'{"a":[],"b":[null,true,false]}'),
}


@pytest.mark.parametrize(("value", "text"), CANONICAL.values(), ids=CANONICAL.keys())
def test_canonical_json_is_rfc_8785_and_reads_back(value, text):
    assert canonical_json(value) == text
    assert canonical_json(parse_canonical_json(text)) == text


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NOT_JSON_VALUES = {
    "nan": math.nan,
    "infinity": -math.inf,
    "integer beyond a double": 2**53,
    "huge integer": 10**5000,
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\ud800": 1},
    "key that is no text": {1: 2},
    "bytes": b"x",
    "set": {1},
    "date": dt.date(2026, 1, 1),
    "too deep": nested(100_000),
}


@pytest.mark.parametrize("value", NOT_JSON_VALUES.values(), ids=NOT_JSON_VALUES.keys())
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(DataError):
        canonical_json(value)


NOT_JSON = {
    "nothing": b"",
    "repeated key": b'{"a":1,"a":1}',
    "repeated key within": b'[{"a":{"b":1,"b":2}}]',
    "nan": b"[NaN]",
    "infinity": b"Infinity",
    "negative infinity": b"[-Infinity]",
    "number beyond a double": b"[1e999]",
    "negative number beyond a double": b"-1e999",
    "huge integer": b"1" * 5000,
    "byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "not utf-8": b'"\xff"',
    "two values": b"{} {}",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "comment": b"{}//",
    "cut": b'{"a":',
    "control character": b'"\x01"',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_strict_json_is_refused(data):
    with pytest.raises(DataError):
        parse_json(data)
    with pytest.raises(DataError):
        parse_canonical_json(data)


NOT_CANONICAL = {
    "blank": b"[1, 2]",
    "newline at the end": b"{}\n",
    "keys out of order": b'{"b":1,"a":2}',
    "integer as a fraction": b"1.0",
    "upper-case exponent": b"1E+30",
    "exponent without a sign": b"1e30",
    "negative zero": b"-0",
    "negative zero as a fraction": b"-0.0",
    "needless escape": b'"\\u0041"',
    "upper-case escape": b'"\\u000F"',
    "escaped slash": b'"\\/"',
    "integer that no double equals": b"9007199254740993",
    "integer beyond every double": b"1" + b"0" * 400,
    "escaped surrogate pair": b'"\\ud83d\\ude00"',
    "lone surrogate": b'"\\ud800"',
}


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_another_spelling_is_refused(data):
    with pytest.raises(DataError):
        parse_canonical_json(data)


def test_integers_keep_every_digit_outside_canonical_json():
    assert parse_json(b"9007199254740993") == 9007199254740993


@pytest.mark.parametrize("parse", [parse_json, parse_canonical_json])
def test_json_is_bounded(parse):
    assert parse(b'"aa"', limit=4) == "aa"
    with pytest.raises(DataError, match="4 bytes exceeds the 3"):
        parse(b'"aa"', limit=3)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "b").write_bytes(b"two")
    (root / "a.txt").write_bytes(b"one")
    (root / "sub" / "deep" / "c").write_bytes(b"")
    (root / "sub" / "b").write_bytes(b"three")
    return root


def test_a_trees_digest_is_that_of_its_written_manifest(tree):
    entries = ",".join(
        f'{{"path":"{path}","sha256":"{hashlib.sha256(data).hexdigest()}","size":{len(data)}}}'
        for path, data in [("a.txt", b"one"), ("b", b"two"), ("sub/b", b"three"), ("sub/deep/c", b"")]
    )
    manifest = f'{{"files":[{entries}],"format":"portcullis-tree/v1"}}'
    assert tree_digest(tree) == hashlib.sha256(manifest.encode()).hexdigest()
    assert path_digest(tree) == tree_digest(tree)


def test_a_tree_in_memory_digests_as_on_disk_in_any_order(tree):
    entries = tree_files(tree)
    assert [entry.path for entry in entries] == ["a.txt", "b", "sub/b", "sub/deep/c"]
    assert manifest_digest(reversed(entries)) == tree_digest(tree)


CHANGES = {
    "byte": lambda root: (root / "b").write_bytes(b"twO"),
    "appended": lambda root: (root / "b").write_bytes(b"two\0"),
    "emptied": lambda root: (root / "b").write_bytes(b""),
    "added": lambda root: (root / "sub" / "new").write_bytes(b""),
    "hidden file added": lambda root: (root / ".hidden").write_bytes(b""),
    "removed": lambda root: (root / "sub" / "b").unlink(),
    "renamed": lambda root: (root / "b").rename(root / "B"),
    "moved": lambda root: (root / "b").rename(root / "sub" / "deep" / "b"),
    "folder renamed": lambda root: (root / "sub").rename(root / "Sub"),
    "contents swapped": lambda root: [(root / "b").write_bytes(b"one"), (root / "a.txt").write_bytes(b"two")],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_of_a_tree_changes_its_digest(tree, change):
    before = tree_digest(tree)
    change(tree)
    assert tree_digest(tree) != before


def test_the_same_tree_elsewhere_has_the_same_digest(tree, tmp_path):
    before = tree_digest(tree)
    (tree / "a.txt").chmod(0o600)
    os.utime(tree / "b", (1, 1))
    assert tree_digest(tree.rename(tmp_path / "moved")) == before


def test_exclude_leaves_out_top_level_entries_only(tree):
    without = tree_digest(tree, exclude=["b"])
    (tree / "b").write_bytes(b"rotated")
    assert tree_digest(tree, exclude=["b"]) == without == path_digest(tree, exclude=["b"])
    (tree / "sub" / "b").write_bytes(b"changed")
    assert tree_digest(tree, exclude=["b"]) != without
    assert [entry.path for entry in tree_files(tree, exclude=["sub"])] == ["a.txt", "b"]


def remove(path):
    for child in path.iterdir():
        if child.is_dir():
            remove(child)
        else:
            child.unlink()
    path.rmdir()


REFUSED_TREES = {
    "missing": remove,
    "a file": lambda root: [remove(root), root.write_bytes(b"x")],
    "no file in it": lambda root: [remove(root), (root / "empty").mkdir(parents=True)],
    "link to a file": lambda root: (root / "link").symlink_to("b"),
    "link to a folder": lambda root: (root / "sub" / "link").symlink_to(root / "sub" / "deep"),
    "dangling link": lambda root: (root / "link").symlink_to("nowhere"),
    "loop of links": lambda root: (root / "link").symlink_to("link"),
    "named pipe": lambda root: os.mkfifo(root / "pipe"),
    "name that is not utf-8": lambda root: (root / os.fsdecode(b"\xff")).write_bytes(b"x"),
    "itself a link": lambda root: [root.rename(root.parent / "real"), root.symlink_to("real")],
}


@pytest.mark.parametrize("change", REFUSED_TREES.values(), ids=REFUSED_TREES.keys())
def test_what_a_manifest_cannot_pin_is_refused(tree, change):
    change(tree)
    with pytest.raises(DataError):
        tree_digest(tree)


@pytest.mark.parametrize(
    "entries", [[], [FileEntry("a", "0" * 64, 1), FileEntry("a", "1" * 64, 1)]], ids=["empty", "twice"]
)
def test_a_manifest_that_is_no_tree_is_refused(entries):
    with pytest.raises(DataError, match="empty or names one path twice"):
        manifest_digest(entries)


def test_a_files_digest_is_that_of_its_bytes(tree):
    assert file_digest(tree / "b") == path_digest(tree / "b") == sha256(b"two") == hashlib.sha256(b"two").hexdigest()


REFUSED_FILES = {
    "missing": lambda path: path.unlink(),
    "directory": lambda path: [path.unlink(), path.mkdir()],
    "link": lambda path: [path.rename(path.with_name("real")), path.symlink_to("real")],
    "named pipe": lambda path: [path.unlink(), os.mkfifo(path)],
}


@pytest.mark.parametrize("change", REFUSED_FILES.values(), ids=REFUSED_FILES.keys())
def test_only_a_regular_file_is_digested(tree, change):
    change(tree / "b")
    with pytest.raises(DataError):
        file_digest(tree / "b")


DIGESTS = {
    "digest": ("0123456789abcdef" * 4, True),
    "upper case": ("0123456789ABCDEF" * 4, False),
    "short": ("0" * 63, False),
    "long": ("0" * 65, False),
    "newline at the end": ("0" * 64 + "\n", False),
    "prefixed": ("sha256:" + "0" * 64, False),
    "other digits": ("\u0660" * 64, False),
    "bytes": (b"0" * 64, False),
    "nothing": (None, False),
}


@pytest.mark.parametrize(("value", "expected"), DIGESTS.values(), ids=DIGESTS.keys())
def test_a_digest_has_one_spelling(value, expected):
    assert is_digest(value) is expected
