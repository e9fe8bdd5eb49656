"""Revealing: only what authenticates, and nothing before it is on record."""

import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portcullis.cli.main import main
from portcullis.digest import sha256
from portcullis.errors import DataError, EvidenceError, UsageError
from portcullis.files import write_bytes
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.reveal import record_revelation, reveal_table, reveal_text, verify_audit

KEY = bytes(range(32))
PLAN = MaskingPlan({"EMAIL": "reversible", "US_SSN": "token"}, {"name": "reversible"})
TABLE = pa.table(
    {
        "name": ['Ann <"x">', "", None, "Ann@Example.com"],
        "note": ["Ann@Example.com", "x é bob@example.com", None, "ann@example.com"],
        "n": [1, 2, 3, 4],
    }
)


@pytest.fixture
def masked():
    return mask_table(TABLE, PLAN, key=KEY)[0]


def test_a_table_is_as_it_was(masked) -> None:
    told, counts = reveal_table(masked, KEY)
    assert told.equals(TABLE)
    assert counts == {"name": {"VALUE": 2, "EMAIL": 1}, "note": {"EMAIL": 3}}


def test_text_around_tokens_stays(masked) -> None:
    made = masked["note"][0].as_py()
    assert reveal_text(f"see {made} and <EMAIL> <b>", KEY) == ("see Ann@Example.com and <EMAIL> <b>", {"EMAIL": 1})


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.replace("~b", "~c", 1) if "~b" in it else it.replace("~" + it[7], "~b", 1),
        lambda it: it[:-3] + ">",
        lambda it: it[:-2] + ">",
        lambda it: it.replace("EMAIL", "PHONE"),
        lambda it: it.replace("EMAIL", "NOBODY"),
        lambda it: it[:-1],
        lambda it: it.upper(),
        lambda it: it + it[:-4] + ">",
    ],
    ids=["letter", "cut", "odd", "entity", "unknown", "open", "case", "second"],
)
def test_what_does_not_authenticate_is_refused(masked, change) -> None:
    with pytest.raises(DataError, match="nothing is revealed"):
        reveal_text(change(masked["note"][0].as_py()), KEY)


def test_another_key_reveals_nothing(masked) -> None:
    with pytest.raises(DataError, match="another key"):
        reveal_table(masked, bytes(32))


def test_what_holds_no_token_is_refused() -> None:
    with pytest.raises(DataError, match="no reversible token"):
        reveal_text("<EMAIL>", KEY)


def record(path, reason="incident 7"):
    counts = {"note": {"EMAIL": 1}}
    return record_revelation(path, key=KEY, reason=reason, given="0" * 64, told=b"ann@example.com", counts=counts)


def test_records_chain_and_hold_no_value(tmp_path) -> None:
    path = tmp_path / "below" / "audit.jsonl"
    made = [record(path) for _ in range(3)]
    assert [it.number for it in made] == [1, 2, 3]
    assert verify_audit(path.read_bytes()) == tuple(made)
    assert path.stat().st_mode & 0o777 == 0o600
    said = json.loads(path.read_text().splitlines()[0])
    assert (said["reason"], said["counts"]) == ("incident 7", {"note": {"EMAIL": 1}})
    assert b"ann@" not in path.read_bytes()
    assert verify_audit(b"") == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace(b"incident 7", b"incident 8"), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: lines[1:],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines, lines[2]],
        lambda lines: [*lines[:2], lines[2][:-1]],
        lambda lines: [*lines[:2], b"{}\n"],
        lambda lines: [*lines, b"\n"],
        lambda lines: [*lines[:2], lines[2].replace(b'":', b'": ', 1)],
    ],
    ids=["altered", "cut out", "headless", "swapped", "twice", "cut short", "empty", "blank line", "not canonical"],
)
def test_a_broken_chain_is_refused_and_left_as_it_is(tmp_path, change) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        record(path)
    broken = b"".join(change(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(broken)
    with pytest.raises(EvidenceError, match="altered or cut"):
        record(path)
    assert path.read_bytes() == broken


@pytest.mark.parametrize("reason", ["", "  ", "two\nlines", "x" * 1025])
def test_a_reason_is_needed(tmp_path, reason) -> None:
    with pytest.raises(UsageError, match="reason"):
        record(tmp_path / "audit.jsonl", reason)
    assert not (tmp_path / "audit.jsonl").exists()


def test_what_cannot_be_recorded_is_refused(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("folder", "link"):
        with pytest.raises(UsageError, match="nothing is revealed"):
            record(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="nothing is revealed"):
        record(tmp_path / "file" / "audit.jsonl")


@pytest.fixture
def call(tmp_path, monkeypatch, capfdbinary):
    keys = tmp_path / "keys"
    write_bytes(keys / "masking.key", base64.b64encode(KEY), mode=0o600)
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{keys}")
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> tuple[int, bytes, bytes]:
        monkeypatch.setattr("sys.argv", ["portcullis", "reveal", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        return int(done.value.code or 0), *capfdbinary.readouterr()

    return run


def test_the_command_tells_a_text_once_it_is_on_record(call, masked, tmp_path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(masked["note"][0].as_py() + "\n")
    code, out, err = call(path, "--reason", "incident 7")
    assert (code, out) == (0, b"Ann@Example.com\n")
    (record,) = verify_audit((tmp_path / "home" / "reveal.jsonl").read_bytes())
    assert record.digest.encode() in err and record.said["input"] == sha256(path.read_bytes())
    assert call(path)[0] == 2  # no reason
    (tmp_path / "home" / "reveal.jsonl").write_text("x")
    assert call(path, "--reason", "incident 7")[:2] == (1, b"")


def test_the_command_tells_a_table_into_a_file_of_ones_own(call, masked, tmp_path) -> None:
    pq.write_table(masked, tmp_path / "masked.parquet")
    assert call(tmp_path / "masked.parquet", "--reason", "x")[0] == 2
    told = tmp_path / "told.parquet"
    assert call(tmp_path / "masked.parquet", "--reason", "x", "--output", told)[:2] == (0, b"")
    assert pq.read_table(told).equals(TABLE)
    assert told.stat().st_mode & 0o777 == 0o600
    told.unlink()
    (tmp_path / "other.key").write_bytes(base64.b64encode(bytes(32)))
    (tmp_path / "other.key").chmod(0o600)
    other = "--key", f"file:{tmp_path / 'other.key'}"
    assert call(tmp_path / "masked.parquet", "--reason", "x", "--output", told, *other)[0] == 1
    assert not told.exists()
