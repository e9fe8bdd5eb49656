"""Run the reference pipeline locally, audit what it left, and publish it whole or not at all.

The pipeline runs in a child process with a temporary directory of its own. Whatever the runner says, the outcome is
what this process verifies itself: the evidence, the admission and the deployment, newly made, by the trust store.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from portcullis import errors
from portcullis.errors import EvidenceError, PipelineError, PortcullisError, UsageError
from portcullis.evidence.step import KEYS_ENV, read_evidence
from portcullis.evidence.trust import STATE_ENV, TRUST_ENV, TrustStore, now_ms
from portcullis.files import atomic_path, write_bytes
from portcullis_pipelines import outcome
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home
from portcullis_pipelines.outcome import Verified, publish_refusal, verify_directory

Progress = Callable[[str, str], None]

# What the runner prints serves progress bars and error messages only; it decides nothing.
_ERROR = re.compile(r"^\s*portcullis\.errors\.(\w+): (.*)$", re.MULTILINE)
_STARTED = re.compile(r"Executing task .*?'([\w-]+)'")
_FINISHED = re.compile(r"Task .*?'([\w-]+)'.*? finished with status .*?(SUCCESS|FAILURE)")


def run_reference(
    config: ReferenceConfig, uri: str, home: Home, store: TrustStore, output: Path, progress: Progress
) -> Verified:
    """Run the pipeline and publish its outcome at `output`.

    Args:
        config: What the policy demands and the pipeline is called with.
        uri: The data.
        home: Keys and state.
        store: The trust store that the run is judged by.
        output: The directory to make. What an earlier run left there is replaced, also when this run is refused: then
            by its report and evidence, so that nothing deployable is left.
        progress: Called with a task's name and `started`, `SUCCESS` or `FAILURE`.

    Returns:
        What was verified.

    Raises:
        UsageError: `output` exists and is not what an earlier run left.
        RefusedError: A step refused, or the audit of its result did.
        PipelineError: The pipeline did not run to its end and gave no reason.
    """
    if output.exists() and any(output.iterdir()) and not (output / outcome.RUN).is_file():
        raise UsageError(f"{output} is not empty and not an earlier run; name another --output")
    started = now_ms()
    with _scratch() as scratch:
        root = scratch / "root"
        log = _run_child(config.arguments(uri), home, root, scratch, progress)
        try:
            return _publish(root, store, output, started=started)
        except PortcullisError as error:
            reason = _reason(log) or error
            publish_refusal(output, store.policy, reason, _all_evidence(root))
            raise reason from error


def _publish(root: Path, store: TrustStore, output: Path, *, started: int) -> Verified:
    with atomic_path(output) as temporary:
        temporary.mkdir()
        shutil.copytree(_only(root, "encrypt*/sealed"), temporary / outcome.MODEL)
        shutil.copyfile(_only(root, "encrypt*/sealed_evidence"), temporary / outcome.EVIDENCE)
        shutil.copyfile(_only(root, "admit*/admission"), temporary / outcome.ADMISSION)
        shutil.copyfile(_only(root, "deploy*/deployment"), temporary / outcome.DEPLOYMENT)
        write_bytes(temporary / outcome.POLICY, store.policy_bytes)
        verified = verify_directory(temporary, store, published=False)
        old = [statement.step for statement in verified.statements if statement.started < started]
        if old:
            raise EvidenceError(f"evidence of {', '.join(old)} is older than this run; was a task's result cached?")
        outcome.write_reports(temporary, verified)
    return verified


def _only(root: Path, pattern: str) -> Path:
    found = list(root.glob(f"**/{pattern}"))
    if len(found) != 1:
        raise PipelineError(f"the pipeline left {len(found)} of {pattern.partition('*')[0]}'s output, not one")
    return found[0]


def _all_evidence(root: Path) -> list[bytes]:
    bundles = [path for path in sorted(root.glob("**/*evidence")) if path.is_file()]
    deployments = [path for path in sorted(root.glob("**/deploy*/deployment")) if path.is_file()]
    return read_evidence([*bundles, *deployments])


def _reason(log: str) -> PortcullisError | None:
    """Return the first refusal that a task printed: those after it follow from it."""
    for name, message in _ERROR.findall(log):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, PortcullisError):
            return kind(message)
    return None


@contextmanager
def _scratch() -> Iterator[Path]:
    # Data lies here in plain text while the pipeline runs; memory-backed where the system offers it.
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a private directory
    parent = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30 else None
    with tempfile.TemporaryDirectory(prefix="portcullis-run-", dir=parent) as folder:
        yield Path(folder)


def _run_child(arguments: dict[str, object], home: Home, root: Path, scratch: Path, progress: Progress) -> str:
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        KEYS_ENV: f"file:{home.keys}",
        TRUST_ENV: str(home.trust),
        STATE_ENV: str(home.state),
    }
    log: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "portcullis_pipelines.local"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            with _pipe(child.stdin) as stream:
                json.dump({"arguments": arguments, "root": str(root)}, stream)
            for line in _pipe(child.stdout):
                log.append(line)
                if started := _STARTED.search(line):
                    progress(started[1], "started")
                elif finished := _FINISHED.search(line):
                    progress(finished[1], finished[2])
        finally:
            # Also on Ctrl-C: the runner's own children share the group and must not outlive us.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return "".join(log)


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise PipelineError("the runner's process has no pipe")
    return stream
