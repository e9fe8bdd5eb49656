"""`portcullis ledger`: who spent what, what is left, and whether the ledger is whole."""

import json
from functools import partial

import pytest
from ledgers import lines_of
from private_run import PrivateRun

from portcullis.cli.ledger import ledger
from portcullis.cli.main import _guarded


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """A folder as `PORTCULLIS_HOME` has it, after two runs, and the command."""
    for name in ("PORTCULLIS_LEDGERS", "PORTCULLIS_STATE", "PORTCULLIS_TRUST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path))
    run = PrivateRun(tmp_path / "demo")
    run.run()
    run.run()
    (tmp_path / "demo" / "ledgers").rename(tmp_path / "ledgers")

    def command(*options):
        capfd.readouterr()
        code = _guarded(partial(ledger, [*map(str, options)], prog_name="portcullis ledger"))
        return code, *capfd.readouterr()

    command.file = tmp_path / "ledgers" / "customers.jsonl"
    yield command
    monkeypatch.delenv("PORTCULLIS_LEDGERS", raising=False)  # the command set it


def test_show_says_who_spent_what_and_what_is_left(call):
    code, out, err = call("show")
    assert (code, err) == (0, "")
    assert "customers: an epsilon of 2 of 2.5 per row is spent at delta 0, 0.5 is left" in out
    assert out.count("dp_noise") == 2 and "head 2:" in out
    document = json.loads(call("show", "--json")[1])
    assert document["spent"] == pytest.approx(2) and document["left"] == pytest.approx(0.5)
    assert [entry["number"] for entry in document["entries"]] == [1, 2]
    assert document["head"] == {"number": 2, "digest": document["entries"][1]["digest"]}
    assert document["entries"][0]["mechanism"]["kind"] == "pure"


def test_verify_finds_what_was_done_to_it(call):
    code, out, _ = call("verify")
    head = out.strip().rpartition("head ")[2]
    assert code == 0 and head.startswith("2:")
    assert call("verify", "--head", head)[0] == 0
    lines = call.file.read_bytes().splitlines(keepends=True)
    attacks = {
        "altered": lines[0].replace(b"e", b"f", 1) + lines[1],
        "deleted": lines[1],
        "moved": lines[1] + lines[0],
        "cut off": lines[0],
        "all gone": b"",
    }
    for name, attacked in attacks.items():
        call.file.write_bytes(attacked)
        code, out, err = call("verify")
        assert (code, out) == (1, "") and err.startswith("EvidenceError: the ledger of customers"), name


def test_verify_finds_by_a_kept_head_what_was_rolled_back_everywhere(call):
    head = call("verify")[1].strip().rpartition("head ")[2]
    call.file.unlink()
    (call.file.parents[1] / "demo" / "state" / "ledger-customers.json").unlink()
    assert call("verify")[0] == 0
    code, _, err = call("verify", "--head", head)
    assert code == 1 and "was rolled back: it holds 0 entries, and 2 were seen before" in err


def test_a_copy_is_looked_at_by_its_uri(call, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(call.file.read_bytes())
    assert call("verify", f"file:{copy}")[0] == 0
    copy.write_bytes(lines_of())
    assert call("verify", f"file:{copy}")[0] == 1


@pytest.mark.parametrize("head", ["2", "x:y", f"-1:{'a' * 64}", f"0:{'a' * 64}", ":"])
def test_a_head_that_is_none_is_a_usage_error(call, head):
    code, _, err = call("verify", f"--head={head}")
    assert code == 2 and "--head is NUMBER:SHA256" in err


def test_a_policy_without_a_ledger_is_a_usage_error(call, tmp_path):
    PrivateRun(tmp_path / "plain", charging=(), columns={})
    code, _, err = call("show", "--trust", tmp_path / "plain" / "trust")
    assert code == 2 and "names no ledgers" in err
    code, _, err = call("show", "--trust", tmp_path / "nothing")
    assert code == 2 and "no trust store" in err
