"""What runs on untrusted bytes is locked in: no keys, no environment, no network, no files, no processes."""

import json
from pathlib import Path

import pytest

from portcullis import isolation
from portcullis.errors import DataError, ModelError, UsageError
from portcullis.isolation import run_isolated


@pytest.fixture(autouse=True)
def hostile_parsers_are_found(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture
def untrusted(tmp_path):
    path = tmp_path / "untrusted"
    path.write_bytes(b"abc")
    with path.open("rb") as stream:
        yield stream


def test_a_subverted_parser_reaches_nothing(untrusted, tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_KEYS", "env:SECRET")
    key = tmp_path / "signing.pem"
    key.write_text("private")
    outcomes = run_isolated(
        "hostile_parsers:escape", [untrusted], {"key": str(key), "folder": str(tmp_path)}, seconds=30
    )
    assert len(outcomes) == 15
    assert {name: outcome for name, outcome in outcomes.items() if not outcome.startswith("PermissionError")} == {}
    assert key.read_text() == "private"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["signing.pem", "untrusted"]


def test_it_works_on_the_files_that_it_was_handed_and_in_threads(untrusted, tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_KEYS", "env:SECRET")
    with (tmp_path / "target").open("w+b") as target:
        answer = run_isolated("hostile_parsers:work", [untrusted, target], {"times": 3}, seconds=30, writes=9)
    assert (tmp_path / "target").read_bytes() == b"abcabcabc"
    assert answer["read"] == 3
    assert not {name for name in answer["environment"] if "PORTCULLIS" in name or name == "HOME"}


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("hang", {"seconds": 1}, "within 1 seconds"),
        ("hoard", {"memory": 1 << 30}, "more memory"),
        ("crash", {}, "brought its parser down"),
        ("leave", {}, "no answer"),
        ("raise_value_error", {}, "no answer"),
        ("chatter", {}, "answer more than is allowed"),
    ],
)
def test_a_parser_that_fails_refuses_the_file(untrusted, function, options, message):
    with pytest.raises(ModelError, match=message):
        run_isolated(f"hostile_parsers:{function}", [untrusted], {}, **{"seconds": 30, **options})


def test_a_refusal_comes_out_as_one_printable_line(untrusted):
    with pytest.raises(ModelError) as refusal:
        run_isolated("hostile_parsers:raise_model_error", [untrusted], {}, seconds=30)
    assert str(refusal.value) == "line one?line ?[31mtwo"


def test_a_file_that_grows_too_large_is_refused(untrusted, tmp_path):
    with (tmp_path / "target").open("w+b") as target, pytest.raises(ModelError):
        run_isolated("hostile_parsers:overwrite", [untrusted, target], {}, seconds=30, writes=50)
    assert (tmp_path / "target").stat().st_size <= 50


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        '{"result": 1',
        '{"result": 1, "error": "DataError", "message": ""}',
        '{"error": "SystemExit", "message": "x"}',
        '{"error": "annotations", "message": "x"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_answer_is_not_believed(untrusted, answer):
    with pytest.raises(ModelError, match="brought its parser down"):
        run_isolated("hostile_parsers:forge", [untrusted], {"answer": answer}, seconds=30)


def test_an_error_of_the_tree_keeps_its_kind(untrusted):
    answer = json.dumps({"error": "DataError", "message": "no rows"})
    with pytest.raises(DataError, match="no rows"):
        run_isolated("hostile_parsers:forge", [untrusted], {"answer": answer}, seconds=30)


def test_what_it_prepares_is_done_before_it_is_locked_in_and_reaches_no_environment(untrusted, tmp_path, monkeypatch):
    (tmp_path / "known").write_text("read")
    monkeypatch.setenv("PORTCULLIS_KEYS", "env:SECRET")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    answer = run_isolated(
        "hostile_parsers:prepared",
        [untrusted],
        {"known": str(tmp_path / "known")},
        seconds=30,
        prepare="hostile_parsers:prepare",
    )
    assert answer["before"] == "read" and answer["after"].startswith("PermissionError")
    assert set(answer["environment"]) <= {"LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH"}


def test_what_fails_while_it_prepares_is_refused(untrusted):
    with pytest.raises(ModelError, match="brought its parser down"):
        run_isolated(
            "hostile_parsers:prepared",
            [untrusted],
            {"known": "/no/file"},
            seconds=30,
            prepare="hostile_parsers:prepare",
        )


def test_a_system_that_cannot_lock_a_process_in_is_refused(untrusted, monkeypatch):
    monkeypatch.setattr(isolation.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="Linux"):
        run_isolated("hostile_parsers:work", [untrusted], {}, seconds=30)
