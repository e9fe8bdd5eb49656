"""Attacks on the audit log: whatever is edited, deleted, moved or cut is found, and told by segment and line."""

import json
import shutil
import subprocess
import sys

import pytest
from chains import World
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.audit.log import AUDIT_ENV, EVENTS, AuditLog, Refusals, open_log, parse_event, recording
from portcullis.audit.verify import log_head, verify_log
from portcullis.cli.audit import audit
from portcullis.digest import canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, PortcullisError, UsageError
from portcullis.evidence.trust import TrustStore
from portcullis.keys import Signer

WORLD = World()
MODEL = sha256(b"model")


def write_log(folder):
    """Two steps and a server, as they would write."""
    for step in ("train", "robustness:trained"):
        log = AuditLog(folder, step, WORLD.keys[step])
        log.append("step.began", stage="train", nonce="0" * 32)
        log.append("step.finished", verdict="", statement=sha256(step.encode()))
        log.close()
    server = AuditLog(folder, "server", WORLD.keys["deploy"])
    server.append("model.opened", model=MODEL)
    server.append("server.started", model=MODEL)
    server.append("request.refused", status=401, count=3)
    server.close()
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return WORLD.store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "audit")


@pytest.fixture
def log(original, tmp_path):
    shutil.copytree(original, tmp_path / "audit")
    return tmp_path / "audit"


def segment(log, process):
    (found,) = log.glob(f"{process}.*.jsonl")
    return found


def checkpoint(log, process):
    (found,) = (log / "checkpoints").glob(f"{process}.*.json")
    return found


def rewrite(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def chained(lines):
    """Number and chain lines anew, as whoever can write the file could."""
    previous, made = "0" * 64, []
    for number, line in enumerate(lines, start=1):
        made.append(canonical_json(json.loads(line) | {"number": number, "previous": previous}))
        previous = sha256(made[-1])
    return made


def refused(log, store, words, **kept):
    with pytest.raises(EvidenceError, match=words) as caught:
        verify_log(log, store, **kept)
    assert "\n" not in str(caught.value)


def test_a_whole_log_verifies(log, store):
    segments = verify_log(log, store, kept=log / "checkpoints")
    assert [(it.process, len(it.records), it.closed) for it in segments] == [
        ("robustness:trained", 4, True),
        ("server", 5, True),
        ("train", 4, True),
    ]
    assert len(log_head(segments)) == 64


def test_an_edited_line_is_located(log, store):
    path = segment(log, "server")
    path.write_bytes(path.read_bytes().replace(b'"count":3', b'"count":1'))
    refused(log, store, r"server\.\S+ was altered at line 5")  # the line that no longer follows


def test_an_edited_last_line_is_located(log, store):
    path = segment(log, "server")
    *lines, last = path.read_bytes().splitlines()
    rewrite(path, [*lines, last.replace(b'"time":"2', b'"time":"1')])
    refused(log, store, r"server\.\S+ was altered at line 5")


def test_a_line_deleted_from_the_middle_is_located(log, store):
    path = segment(log, "server")
    lines = path.read_bytes().splitlines()
    rewrite(path, lines[:2] + lines[3:])
    refused(log, store, "altered at line 3")


def test_two_lines_swapped_are_located(log, store):
    path = segment(log, "server")
    lines = path.read_bytes().splitlines()
    rewrite(path, [lines[0], lines[2], lines[1], *lines[3:]])
    refused(log, store, "altered at line 2")


def test_a_line_put_in_between_is_located(log, store):
    path = segment(log, "train")
    lines = path.read_bytes().splitlines()
    rewrite(path, [*lines[:2], lines[1], *lines[2:]])
    refused(log, store, "altered at line 3")


def test_a_tail_cut_off_is_located(log, store):
    path = segment(log, "server")
    rewrite(path, path.read_bytes().splitlines()[:3])
    refused(log, store, "cut at line 4 of 5")


def test_a_line_cut_in_half_is_located(log, store):
    path = segment(log, "server")
    path.write_bytes(path.read_bytes()[:-20])
    refused(log, store, "altered at line 5")


def test_an_emptied_segment_is_found(log, store):
    segment(log, "train").write_bytes(b"")
    refused(log, store, "cut at line 1")


def test_a_segment_written_anew_is_found(log, store):
    path = segment(log, "server")
    rewrite(path, chained(it.replace(b'"count":3', b'"count":1') for it in path.read_bytes().splitlines()))
    refused(log, store, "written anew")


def test_a_line_added_without_the_key_is_found(log, store):
    path = segment(log, "train")
    lines = path.read_bytes().splitlines()
    rewrite(path, chained([*lines[:-1], lines[-2], lines[-1]]))
    refused(log, store, "line 5 is not signed")


def test_a_deleted_segment_is_found(log, store):
    segment(log, "train").unlink()
    refused(log, store, r"train\.\S+ of 4 lines was deleted")


def test_a_deleted_checkpoint_is_found(log, store):
    checkpoint(log, "train").unlink()
    refused(log, store, r"train\.\S+ has no checkpoint")


def test_every_checkpoint_deleted_is_found(log, store):
    shutil.rmtree(log / "checkpoints")
    refused(log, store, "has no checkpoints")


def test_a_segment_deleted_with_its_checkpoint_shows_against_those_kept_elsewhere(log, store, original, tmp_path):
    segment(log, "train").unlink()
    checkpoint(log, "train").unlink()
    assert len(verify_log(log, store)) == 2
    refused(log, store, r"train\.\S+ of 4 lines was deleted", kept=original / "checkpoints")
    lines = tmp_path / "kept.jsonl"
    rewrite(lines, [it.read_bytes() for it in sorted((original / "checkpoints").iterdir())])
    refused(log, store, "was deleted", kept=lines)


def test_a_log_cut_back_to_an_older_checkpoint_shows_against_those_kept_elsewhere(store, tmp_path):
    log = AuditLog(tmp_path / "audit", "train", WORLD.keys["train"])
    older = checkpoint(tmp_path / "audit", "train").read_bytes()
    log.append("step.began", stage="train", nonce="0" * 32)
    shutil.copytree(tmp_path / "audit" / "checkpoints", tmp_path / "kept")
    path = segment(tmp_path / "audit", "train")
    rewrite(path, path.read_bytes().splitlines()[:1])
    checkpoint(tmp_path / "audit", "train").write_bytes(older)
    (cut,) = verify_log(tmp_path / "audit", store)
    assert not cut.closed  # which `audit verify` tells
    refused(tmp_path / "audit", store, "cut at line 2 of 2, which a checkpoint kept", kept=tmp_path / "kept")


@pytest.mark.parametrize("verb", ["verify", "show"])
def test_a_runs_folder_is_judged_by_the_log_in_it(log, store, verb, monkeypatch):
    monkeypatch.setattr(TrustStore, "load", lambda *_: store)

    def told(folder):
        return CliRunner().invoke(audit, [verb, str(folder), "--trust", str(store.path)])

    assert told(log).exit_code == 0
    assert isinstance(told(log.parent).exception, EvidenceError)  # nothing says that it is a run's
    (log.parent / "run.json").write_text("{}")
    assert told(log.parent).output == told(log).output != ""
    rewrite(segment(log, "train"), [])
    assert isinstance(told(log.parent).exception, EvidenceError)
    shutil.rmtree(log)
    assert isinstance(told(log.parent).exception, UsageError)


def test_a_segment_under_another_name_is_found(log, store):
    path = segment(log, "train")
    other = path.with_name(path.name.replace("train", "encrypt"))
    path.rename(other)
    checkpoint(log, "train").rename(log / "checkpoints" / f"{other.stem}.json")
    refused(log, store, "of another segment")


def test_one_steps_key_signs_no_other_steps_log(store, tmp_path):
    AuditLog(tmp_path / "audit", "train", WORLD.keys["encrypt"]).close()
    refused(tmp_path / "audit", store, "checkpoint of segment train.* does not hold")


def test_a_strangers_key_signs_nothing(store, tmp_path):
    AuditLog(tmp_path / "audit", "server", Signer.generate()).close()
    refused(tmp_path / "audit", store, "does not hold")


def test_a_process_that_the_policy_does_not_name_is_refused(store, tmp_path):
    AuditLog(tmp_path / "audit", "somebody", WORLD.keys["train"]).close()
    refused(tmp_path / "audit", store, "names no step 'somebody'")


def test_what_is_no_segment_has_no_place_there(log, store):
    (log / "note.txt").write_text("hello")
    refused(log, store, "is no segment")
    (log / "note.txt").unlink()
    (log / "train.1700000000000.00000000.jsonl").symlink_to(segment(log, "train"))
    refused(log, store, "is no segment")


def test_no_log_and_an_empty_one_are_refused(store, tmp_path):
    with pytest.raises(UsageError):
        verify_log(tmp_path / "missing", store)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", store, "every segment of it was deleted")


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_no_byte_of_a_log_can_be_altered(original, store, tmp_path_factory, data):
    copy = tmp_path_factory.mktemp("altered") / "audit"
    shutil.copytree(original, copy)
    files = sorted(it for it in copy.rglob("*") if it.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = bytes([data.draw(st.integers(0, 255).filter(lambda it: it != whole[at]))])
    edits = [whole[:at] + byte + whole[at + 1 :], whole[:at] + whole[at + 1 :], whole[:at] + byte + whole[at:]]
    path.write_bytes(data.draw(st.sampled_from([*edits, whole[:at], whole + byte])))
    with pytest.raises(PortcullisError):
        verify_log(copy, store)


# What is written, and what never is.

SCALARS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats(), st.binary(), st.lists(st.text()))


@settings(deadline=None, max_examples=300)
@given(event=st.sampled_from(sorted(EVENTS)), data=st.data())
def test_nothing_that_was_not_foreseen_is_written(tmp_path_factory, event, data):
    """A field holds what its kind allows, or nothing is written and the error does not tell the value."""
    secret = "hunter2 4111-1111-1111-1111"
    log = AuditLog(tmp_path_factory.mktemp("log"), "train", WORLD.keys["train"])
    before = log._number
    fields = {name: data.draw(SCALARS | st.just(secret)) for name in EVENTS[event]}
    fields |= data.draw(st.dictionaries(st.sampled_from(["payload", "token", "row"]), st.just(secret), min_size=1))
    with pytest.raises(DataError) as caught:
        log.append(event, **fields)
    assert "hunter2" not in str(caught.value) and log._number == before


@pytest.mark.parametrize("field", ["error", "stage", "nonce", "model", "verdict", "process"])
@pytest.mark.parametrize("value", ["a secret", "x\ny", "4111-1111 1111", "", " ", "../x", "é", 7, None, True, 1.5])
def test_a_field_holds_no_free_text(tmp_path, field, value):
    if (field, value) == ("verdict", ""):
        return
    event = next(event for event, fields in EVENTS.items() if field in fields)
    good = {"process": "train", "segment": "train.1700000000000.00000000", "keyid": MODEL, "error": "ValueError"}
    good |= {"stage": "train", "nonce": "0" * 32, "model": MODEL, "verdict": "", "statement": MODEL}
    fields = {name: good[name] for name in EVENTS[event]} | {field: value}
    with pytest.raises(DataError, match=field):
        AuditLog(tmp_path, "train", WORLD.keys["train"]).append(event, **fields)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b'{"event":"x"}', b'{"event":["log.closed"]}', b"\xff"])
def test_a_malformed_line_is_refused(line):
    with pytest.raises(DataError):
        parse_event(line)


def test_a_refusal_is_recorded_by_its_class_only(store, tmp_path):
    log = AuditLog(tmp_path / "audit", "train", WORLD.keys["train"])
    with pytest.raises(DataError), recording(log):
        raise DataError("row 7 holds 4111111111111111")
    (found,) = verify_log(tmp_path / "audit", store)
    assert [it.said["event"] for it in found.records] == ["log.opened", "step.refused", "log.closed"]
    assert b"4111111111111111" not in segment(tmp_path / "audit", "train").read_bytes()


def test_requests_without_a_token_do_not_fill_the_disk(store, tmp_path):
    log = AuditLog(tmp_path / "audit", "server", WORLD.keys["deploy"])
    refusals = Refusals(log, every=3600)
    for _ in range(1000):
        refusals.count(401)
    refusals.count(400)
    refusals.flush()
    log.close()
    (found,) = verify_log(tmp_path / "audit", store)
    told = [(it.said["status"], it.said["count"]) for it in found.records if it.said["event"] == "request.refused"]
    assert told == [(401, 1), (400, 1), (401, 999)]


def test_without_the_variable_nothing_is_written_and_with_a_bad_one_nothing_goes_on(monkeypatch, tmp_path):
    monkeypatch.delenv(AUDIT_ENV, raising=False)
    assert open_log("train", lambda: pytest.fail("no key is needed")) is None
    monkeypatch.setenv(AUDIT_ENV, "relative")
    with pytest.raises(UsageError, match="absolute"):
        open_log("train", lambda: WORLD.keys["train"])
    (tmp_path / "file").touch()
    monkeypatch.setenv(AUDIT_ENV, str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot write"):
        open_log("train", lambda: WORLD.keys["train"])


def test_a_closed_log_takes_no_more(tmp_path):
    log = AuditLog(tmp_path, "train", WORLD.keys["train"])
    log.close()
    log.close()
    with pytest.raises(UsageError, match="closed"):
        log.append("log.closed")


def test_a_process_that_an_exception_ends_records_its_class_and_nothing_else(store, tmp_path):
    """As a step's process ends that refuses half way: by Python's own hook, which still tells the person."""
    (tmp_path / "key.pem").write_bytes(WORLD.keys["train"].private_pem())
    (tmp_path / "key.pem").chmod(0o600)
    program = f"""
from pathlib import Path
from portcullis.audit.log import AuditLog, record_unhandled
from portcullis.errors import DataError
from portcullis.keys import Signer
signer = Signer.from_uri({f"file:{tmp_path / 'key.pem'}"!r})
record_unhandled(AuditLog(Path({str(tmp_path / "audit")!r}), "train", signer))
raise DataError("row 7 holds 4111111111111111")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "row 7" in done.stderr
    (found,) = verify_log(tmp_path / "audit", store)
    assert [(it.said["event"], it.said.get("error")) for it in found.records] == [
        ("log.opened", None),
        ("step.refused", "DataError"),
        ("log.closed", None),
    ]
    assert b"4111111111111111" not in segment(tmp_path / "audit", "train").read_bytes()
