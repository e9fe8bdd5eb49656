import os
import sys
import time
from pathlib import Path

import pytest

from portcullis.deploy import local
from portcullis.deploy.local import run_local
from portcullis.deploy.probe import ProbeReport, figures, probe
from portcullis.errors import DeploymentError, UsageError

SERVER = """
import hashlib, os, pathlib
from portcullis.serving.app import build_app
from portcullis.serving.protocol import ServedModel
from portcullis.serving.server import serve

model = ServedModel("m", "1", "x", (2,), 0.0, 1.0, ("a", "b"), lambda rows: rows)
serve(build_app(model, token_digest=os.environ["DIGEST"]), ready_file=pathlib.Path(os.environ["READY"]))
"""
# A server that is none: it tells its process id and a grandchild's, and names a port.
IMPOSTOR = """
import os, pathlib, subprocess, sys, time
{before}
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(os.environ["PIDS"]).write_text(f"{{os.getpid()}} {{grandchild.pid}}")
ready = pathlib.Path(os.environ["READY"])
ready.with_suffix(".new").write_text({port!r})
ready.with_suffix(".new").rename(ready)
print("started", flush=True)
time.sleep(60)
"""
REPORT = ProbeReport({}, None, ())


@pytest.fixture
def ready(tmp_path):
    return tmp_path / "ready"


@pytest.fixture
def pids(tmp_path):
    return tmp_path / "pids"


@pytest.fixture
def run(ready, pids):
    def go(program, probe=lambda host, port: REPORT, deadline=20.0, **environment):
        return run_local(
            [sys.executable, "-c", program],
            environment={"READY": str(ready), "PIDS": str(pids), **environment},
            ready_file=ready,
            probe=probe,
            deadline=deadline,
        )

    return go


def impostor(before="", port="4711\n"):
    return IMPOSTOR.format(before=before, port=port)


def lives(pid):
    try:
        # Whoever adopts an orphan may be slow to reap it; a zombie lives no more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_none_lives(pids):
    family = [int(pid) for pid in pids.read_text().split()]
    assert len(family) == 2
    end = time.monotonic() + 5
    while any(map(lives, family)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(lives, family))


def test_probes_a_real_server_and_leaves_nothing_behind(run, pids):
    import hashlib

    seen = []

    def ask(host, port):
        seen.append((host, port))
        return probe(
            host, port, token="token", model="m", input_name="x", labels=("a", "b"), good_row=(0, 1), timeout=10
        )

    report = run(SERVER, ask, DIGEST=hashlib.sha256(b"token").hexdigest())
    assert report.passed
    assert report.label == "b"
    assert figures(report)["failed_checks"] == 0
    with pytest.raises(DeploymentError, match="did not answer"):
        probe(*seen[0], token="t", model="m", input_name="x", labels=("a", "b"), good_row=(0, 1), timeout=0.1)


def test_gives_the_child_only_its_environment(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PORTCULLIS_SECRET", "visible")
    dump = "import pathlib; pathlib.Path(os.environ['DUMP']).write_text(repr(sorted(os.environ)))"
    run(impostor(dump), DUMP=str(tmp_path / "environment"))
    seen = (tmp_path / "environment").read_text()
    assert "READY" in seen
    assert "PORTCULLIS_SECRET" not in seen
    assert "'PATH'" not in seen


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, RuntimeError, DeploymentError])
def test_no_orphan_whatever_the_probe_raises(run, pids, raised):
    def interrupted(host, port):
        raise raised("while probing")

    with pytest.raises(raised):
        run(impostor(), interrupted)
    assert_none_lives(pids)


def test_kills_a_child_that_ignores_sigterm(run, pids, monkeypatch):
    monkeypatch.setattr(local, "STOP_SECONDS", 0.2)
    assert run(impostor("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")) is REPORT
    assert_none_lives(pids)


def test_kills_what_a_dead_child_left(run, pids, ready):
    dies = impostor().rpartition("time.sleep(60)")[0] + "while ready.exists(): time.sleep(0.01)\nos._exit(3)"

    def probing(host, port):
        ready.unlink()
        pid = int(pids.read_text().split()[0])
        while lives(pid):
            time.sleep(0.01)
        raise DeploymentError("gone")

    with pytest.raises(DeploymentError, match=r"^gone; its output ended: started$"):
        run(dies, probing)
    assert_none_lives(pids)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        pytest.param("raise SystemExit('no model:\\n\\tno server')", "no model: no server$", id="dies-at-start"),
        pytest.param(
            "import sys; sys.stderr.write('x' * 9000 + 'the end')", "ended: x{1993}the end$", id="long-output"
        ),
        pytest.param("import os; os.write(2, b'\\xff\\x00')", "before it listened; its output ended: ", id="not-text"),
        pytest.param("pass", "before it listened; it wrote nothing$", id="silent"),
        pytest.param(impostor(port="0\n"), "does not hold a port", id="port-zero"),
        pytest.param(impostor(port="65536\n"), "does not hold a port", id="port-too-large"),
        pytest.param(impostor(port="127.0.0.1:80\n"), "does not hold a port", id="port-with-host"),
        pytest.param(impostor(port=""), "does not hold a port", id="empty-file"),
        pytest.param(impostor(port="8" * 99), "larger than", id="long-file"),
    ],
)
def test_a_child_that_never_serves(run, program, reason):
    with pytest.raises(DeploymentError, match=reason) as refusal:
        run(program, lambda host, port: pytest.fail("there is nothing to probe"))
    assert "\n" not in str(refusal.value)


def test_a_child_that_never_names_its_port(run):
    with pytest.raises(DeploymentError, match=r"^not done within 0.3 s: the server ended before it listened"):
        run("import time; time.sleep(60)", deadline=0.3)


def test_a_probe_that_hangs_on_the_server_ends_with_it(run, pids):
    def hang(host, port):
        pid = int(pids.read_text().split()[0])
        while lives(pid):
            time.sleep(0.01)
        raise DeploymentError("the server was gone")

    with pytest.raises(DeploymentError, match=r"^not done within 1.0 s: the server was gone"):
        run(impostor(), hang, deadline=1.0)
    assert_none_lives(pids)


def test_refuses_a_stale_ready_file(run, ready):
    ready.write_text("4711\n")
    with pytest.raises(UsageError, match="exists"):
        run("pass")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([], UsageError),
        (["/nonexistent/server"], DeploymentError),
        ([os.devnull], DeploymentError),
        (["a\0"], DeploymentError),
    ],
    ids=["empty", "missing", "not-executable", "nul"],
)
def test_a_command_that_cannot_run(command, error, ready):
    with pytest.raises(error):
        run_local(command, environment={}, ready_file=ready, probe=lambda host, port: REPORT, deadline=5.0)
