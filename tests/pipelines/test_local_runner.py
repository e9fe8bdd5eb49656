"""A pipeline of one's own on the local runner: what it says in the end, and with which exit code."""

import subprocess
import sys

import pytest

PROGRAM = """\
import sys
from pathlib import Path

from portcullis.container import component
from portcullis.harden import secure_pipeline
from portcullis_pipelines.local import guarded, run_pipeline


@component()
def task(kind: str):
    import portcullis.errors

    print("a line of the task's")
    if kind == "crash":
        raise ZeroDivisionError("no reason of ours")
    if kind == "caused":
        try:
            raise portcullis.errors.DataError("the cause")
        except portcullis.errors.DataError as error:
            raise portcullis.errors.GateInconclusiveError("cannot be judged") from error
    if kind:
        raise getattr(portcullis.errors, kind)("row 7 is malformed")


@component()
def before():
    print("portcullis.errors.DataError: what an earlier task only spoke of")


@secure_pipeline(name="own")
def own(kind: str):
    task(kind=kind).after(before())


def main():
    if sys.argv[1] == "internal":
        raise ZeroDivisionError
    log = sys.stdout if sys.argv[2] == "log" else None
    run_pipeline(own, {"kind": sys.argv[1]}, Path("root"), log=log)
    print("done")


if __name__ == "__main__":
    sys.exit(guarded(main))
"""


@pytest.fixture
def call(tmp_path):
    (tmp_path / "own.py").write_text(PROGRAM)

    def run(kind, log="quiet"):
        command = [sys.executable, "own.py", kind, log]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_run_that_ends_well_says_nothing_of_the_runners(call):
    assert call("") == (0, "done\n", "")


ENDS = {
    "a refusal": ("DataError", 1, "DataError: row 7 is malformed\n"),
    "usage": ("ConfigError", 2, "ConfigError: row 7 is malformed\n"),
    "inconclusive, for a reason": ("caused", 3, "GateInconclusiveError: cannot be judged\n"),
}


@pytest.mark.parametrize(("kind", "code", "line"), ENDS.values(), ids=ENDS)
def test_a_task_that_refuses_is_one_line_and_its_exit_code(call, kind, code, line):
    assert call(kind) == (code, "", line)


def test_a_task_that_crashes_gives_no_verdict(call):
    code, out, err = call("crash")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("PipelineError: ") and "ZeroDivisionError: no reason of ours" in err


def test_a_program_that_crashes_is_an_internal_error(call):
    code, out, err = call("internal")
    assert (code, out) == (4, "") and err.splitlines()[-1].startswith("internal error: ZeroDivisionError()")


def test_the_log_is_there_when_it_is_asked_for(call):
    code, out, err = call("DataError", "log")
    assert (code, err) == (1, "DataError: row 7 is malformed\n")
    assert "Executing task" in out and "a line of the task's" in out and "FAILURE" in out
