"""An interrupted run leaves no process, no data and no half output, and what was there before."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def processes() -> dict[int, int]:
    """Return every living process and its parent."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(folder.name)] = int(parent)
    return found


def descendants(root: int) -> set[int]:
    parents = processes()
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def command_of(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def temporary_directory_of(process: int) -> Path | None:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_text().split("\0"):
            if entry.startswith("TMPDIR="):
                return Path(entry.removeprefix("TMPDIR="))
    return None


def reads(process: int) -> bool:
    return "executor_main" in command_of(process)


def listens(process: int) -> bool:
    name = command_of(process).partition("--ready-file\0")[2].rstrip("\0")
    return bool(name) and Path(name).exists()


# The deployed server has a session of its own, and so no share in the terminal's Ctrl-C.
@pytest.mark.parametrize(
    ("number", "after", "busy"),
    [(signal.SIGTERM, "preflight", reads), (signal.SIGINT, "admit", listens)],
    ids=["told to stop while it reads", "Ctrl-C while it deploys"],
)
def test_an_interrupted_run_leaves_nothing(tmp_path, number, after, busy):
    config = tmp_path / "own.yaml"
    rows = tmp_path / "rows.csv"
    config.write_text(
        """\
dataset:
  name: own
  label: {column: kind, classes: [a, b]}
  features: {columns: ["v*"], shape: [1, 2, 2], low: 0, high: 1}
model: {options: {width: 32, hidden: 16}}
split: {test_fraction: 0.4}
training: {method: plain, epochs: 20}
robustness: {epsilon: 0.01, l2_budget: 0.01, cw_steps: 1, deepfool_steps: 1}
thresholds: {robust_accuracy: 0.1, clean_accuracy: 0.1}
"""
    )
    lines = [f"{'ab'[row % 2]},{row % 2},{row % 2},{row % 2},{row / 1000}\n" for row in range(600)]
    rows.write_text("kind,v0,v1,v2,v3\n" + "".join(lines))
    output = tmp_path / "out"
    output.mkdir()
    (output / "run.json").write_text("an earlier run")
    command = [sys.executable, "-m", "portcullis.cli", "run", "--data", rows, "--config", config, "--output", output]
    with subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, "PORTCULLIS_HOME": str(tmp_path / "home")},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as run:
        try:
            said = iter(run.stderr.readline, "")
            assert f"{after}: success\n" in said
            while not any(map(busy, descendants(run.pid))):
                assert run.poll() is None
                time.sleep(0.01)
            children = descendants(run.pid)
            scratch = {temporary_directory_of(it) for it in children} - {None}
            assert any("portcullis-run-" in path.name and path.is_dir() for path in scratch)
            run.send_signal(number)
            run.send_signal(number)  # an impatient user
            assert list(said)[-1] == "interrupted\n"
            assert run.wait(timeout=60) == 130
        finally:
            run.kill()
    end = time.monotonic() + 10
    while children & processes().keys() and time.monotonic() < end:
        time.sleep(0.01)  # what was killed may need a moment to be gone
    assert not children & processes().keys()
    assert not [path for path in scratch if path.exists()]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "own.yaml", "rows.csv"}
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [("run.json", "an earlier run")]
