"""Run a server as a child process on the loopback interface for as long as it takes to probe it."""

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from portcullis.deploy.probe import ProbeReport
from portcullis.errors import DeploymentError, UsageError
from portcullis.files import read_bytes

HOST = "127.0.0.1"
STOP_SECONDS = 10.0

_POLL_SECONDS = 0.02
_TAIL_BYTES = 2000
_PORT = re.compile(rb"([1-9][0-9]{0,4})\n")


def run_local(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    ready_file: Path,
    probe: Callable[[str, int], ProbeReport],
    deadline: float,
) -> ProbeReport:
    """Start `command`, probe the server that it becomes, stop it, and return the report.

    The child and all that it starts (its process group) are gone when this returns or raises, whatever is raised.

    Args:
        command: Program (an absolute path) and arguments; never a shell line.
        environment: The child's whole environment.
        ready_file: Where the child writes the loopback port it listens on; nothing may exist there yet.
        probe: Called with host and port once the port is known.
        deadline: Seconds for starting and probing together; the child is killed then.

    Raises:
        UsageError: `command` is empty, or `ready_file` exists already.
        DeploymentError: The child cannot be started, ended early, or was not done in time; its last output is quoted.
    """
    if not command:
        raise UsageError("there is no command to run")
    if ready_file.exists():
        raise UsageError(f"{ready_file} exists; name a new file")
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise DeploymentError(f"cannot start {command[0]}: {error}") from error
        end = time.monotonic() + deadline
        watchdog = threading.Timer(deadline, os.killpg, (child.pid, signal.SIGKILL))
        try:
            watchdog.start()
            return probe(HOST, _await_port(child, ready_file))
        except DeploymentError as error:
            late = f"not done within {deadline} s: " if time.monotonic() >= end else ""
            raise DeploymentError(f"{late}{error}; {_tail(output)}") from error
        finally:
            watchdog.cancel()
            _stop(child, watchdog)


def _await_port(child: subprocess.Popen[bytes], ready_file: Path) -> int:
    while not _has_ended(child):
        if ready_file.exists():
            return _read_port(ready_file)
        time.sleep(_POLL_SECONDS)
    raise DeploymentError("the server ended before it listened")


def _read_port(ready_file: Path) -> int:
    try:
        found = _PORT.fullmatch(read_bytes(ready_file, limit=16))
    except UsageError as error:
        raise DeploymentError(f"the server's ready file: {error}") from error
    if found is None or int(found[1]) > 0xFFFF:
        raise DeploymentError("the server's ready file does not hold a port")
    return int(found[1])


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Tell whether the child ended, without reaping it: until then its process group's number stays taken."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _stop(child: subprocess.Popen[bytes], watchdog: threading.Timer) -> None:
    try:
        os.killpg(child.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while not _has_ended(child) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
    finally:
        os.killpg(child.pid, signal.SIGKILL)  # the rest of the group too, while the unreaped child still holds it
        if watchdog.is_alive():
            watchdog.join()
        child.wait()


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    text = " ".join(output.read().decode("utf-8", "replace").split())
    return f"its output ended: {text}" if text else "it wrote nothing"
