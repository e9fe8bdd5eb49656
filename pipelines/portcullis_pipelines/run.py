"""Run the reference pipeline locally, audit what it left, and publish it whole or not at all.

The pipeline runs in a child process with a temporary directory of its own. Whatever the runner says, the outcome is
what this process verifies itself: the evidence, the admission and the deployment, newly made, by the trust store.
"""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from portcullis.audit.log import AUDIT_ENV, CHECKPOINTS, CHECKPOINTS_ENV, AuditLog, refused
from portcullis.audit.verify import read_checkpoints
from portcullis.errors import EvidenceError, PipelineError, PortcullisError, UsageError
from portcullis.evidence.policy import Policy
from portcullis.evidence.step import read_evidence
from portcullis.evidence.trust import TrustStore, now_ms
from portcullis.files import write_bytes
from portcullis_pipelines import outcome
from portcullis_pipelines.config import DEVELOPMENT, ReferenceConfig
from portcullis_pipelines.home import Home
from portcullis_pipelines.local import last_error
from portcullis_pipelines.outcome import Verified, publish_refusal, verify_directory

Progress = Callable[[str, str], None]

# What the runner prints serves progress bars and error messages only; it decides nothing.
_STARTED = re.compile(r"Executing task .*?'([\w-]+)'")
_FINISHED = re.compile(r"Task .*?'([\w-]+)'.*? finished with status .*?(SUCCESS|FAILURE)")
_WHOLE = re.compile(r"Pipeline .*? finished with status .*?SUCCESS")

STOP_SECONDS = 15.0  # for interrupted tasks to clean up: `deploy` stops its server, which has a session of its own


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
        UsageError: `output` exists and is not what an earlier run left, or the configuration deploys to a cluster.
        RefusedError: A step refused, or the audit of its result did.
        PipelineError: The pipeline did not run to its end and gave no reason.
    """
    if config.deployment.target != "local":
        raise UsageError(f"this configuration deploys to {config.deployment.target}; compile it and submit it instead")
    if config.deployment.environment != DEVELOPMENT:
        raise UsageError(
            f"a run on one machine, where all steps share their keys, is for {DEVELOPMENT}, not for "
            f"{config.deployment.environment}; leave deployment.environment out, or compile and submit"
        )
    _require_replaceable(output)
    started = now_ms()
    with _scratch() as scratch:
        root = scratch / "root"
        log = _run_child(config, uri, home, root, scratch, progress)
        try:
            verified = _publish(root, store, output, started=started)
            _keep_checkpoints(root / outcome.AUDIT, home.state / outcome.AUDIT / f"{verified.admission.nonce}.jsonl")
        except PortcullisError as error:
            step, reason = _reason(log, store.policy)
            _record_refusal(home, root / outcome.AUDIT, step, reason or error)
            publish_refusal(
                output, store.policy, reason or error, _all_evidence(root), step=step, audit=root / outcome.AUDIT
            )
            raise reason or error from error
        return verified


def _require_replaceable(output: Path) -> None:
    """Refuse before the run what could not be replaced after it.

    Raises:
        UsageError: Something else than an earlier run lies there, or it cannot be written.
    """
    # A directory is replaced by renaming, which neither a link nor a mount point allows.
    if output.is_symlink() or output.is_mount():
        raise UsageError(f"{output} is a circular link or a mount point and cannot be replaced; name another --output")
    try:
        names = {path.name for path in output.iterdir()} if output.exists() else set()
        if names and not (outcome.RUN in names and names <= outcome.PARTS):
            raise UsageError(f"{output} is not empty and not an earlier run; name another --output")
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent):
            pass  # only to see that it can be made
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}; name another --output") from error


def _publish(root: Path, store: TrustStore, output: Path, *, started: int) -> Verified:
    with outcome.written(output) as temporary:
        shutil.copytree(_only(root, "encrypt*/sealed"), temporary / outcome.MODEL)
        shutil.copyfile(_only(root, "sign*/signature"), temporary / outcome.SIGNATURE)
        shutil.copyfile(_only(root, "sign*/signature_evidence"), temporary / outcome.EVIDENCE)
        outcome.place_quarantines(temporary, store.policy, list(root.glob("**/ingest*/quarantine")))
        shutil.copyfile(_only(root, "admit*/admission"), temporary / outcome.ADMISSION)
        shutil.copyfile(_only(root, "deploy*/deployment"), temporary / outcome.DEPLOYMENT)
        shutil.copytree(root / outcome.AUDIT, temporary / outcome.AUDIT)
        write_bytes(temporary / outcome.POLICY, store.policy_bytes)
        verified = verify_directory(temporary, store, published=False)
        old = [statement.step for statement in verified.statements if statement.started < started]
        if old:
            raise EvidenceError(f"evidence of {', '.join(old)} is older than this run; was a task's result cached?")
        outcome.write_reports(temporary, verified)
    return verified


def _record_refusal(home: Home, audit: Path, step: str, error: PortcullisError) -> None:
    """Record in a step's name what it refused before it could do so itself: while it read what it was given."""
    name = re.escape(step.replace(":", "."))
    own = [it for it in audit.glob("*.jsonl") if re.fullmatch(rf"{name}\.[0-9]+\.[0-9a-f]+", it.stem)]
    if step and not any(b'"event":"step.refused"' in it.read_bytes() for it in own):
        refused(AuditLog(audit, step, home.signer(step)), error)


def _keep_checkpoints(audit: Path, path: Path) -> None:
    """Keep the audit log's checkpoints apart from it, so that what is taken from it later shows."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = [it.envelope.encode() for it in read_checkpoints(audit / CHECKPOINTS)]
    write_bytes(path, b"".join(line + b"\n" for line in kept), mode=0o600)


def _only(root: Path, pattern: str) -> Path:
    found = list(root.glob(f"**/{pattern}"))
    if len(found) != 1:
        raise PipelineError(f"the pipeline left {len(found)} of {pattern.partition('*')[0]}'s output, not one")
    return found[0]


def _all_evidence(root: Path) -> list[bytes]:
    """Return what the tasks of a refused run left. It is shown and proves nothing, so what is no bundle is left out."""
    lines: dict[bytes, None] = {}
    for path in [*sorted(root.glob("**/*evidence")), *sorted(root.glob("**/deploy*/deployment"))]:
        with suppress(EvidenceError):
            lines.update(dict.fromkeys(read_evidence([path])))
    return list(lines)


def _reason(log: str, policy: Policy) -> tuple[str, PortcullisError | None]:
    """Return the step whose task failed first, `""` if none did, and what it or the runner said, None for nothing."""
    failed = next((match for match in _FINISHED.finditer(log) if match[2] == "FAILURE"), None)
    step = where = before = ""
    said = log
    if failed:
        began = max((match.start() for match in _STARTED.finditer(log, 0, failed.start())), default=0)
        before = log[:began]
        said = log[began : log.rfind("\n", 0, failed.start()) + 1]
        name = failed[1].replace("-", "_")
        step = name if name in policy.steps else ""
        where = f"step {step!r}: " if step else f"task {failed[1]!r}: "
    if error := last_error(said, before):
        return step, error if "step '" in str(error) else type(error)(f"{where}{error}")
    if failed or not _WHOLE.search(log):
        last = " ".join(next((line for line in reversed(said.splitlines()) if line.strip()), "nothing").split())
        return step, PipelineError(f"{where or 'the runner '}ended without giving a reason; it last said: {last[:300]}")
    return "", None


@contextmanager
def _scratch() -> Iterator[Path]:
    # Models lie here in plain text while the pipeline runs; memory-backed where the system offers it.
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a private directory
    parent = memory if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30 else None
    with tempfile.TemporaryDirectory(prefix="portcullis-run-", dir=parent) as folder:
        yield Path(folder)


def _run_child(config: ReferenceConfig, uri: str, home: Home, root: Path, scratch: Path, progress: Progress) -> str:
    environment = {
        **os.environ,
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",
        **home.environment,
        AUDIT_ENV: str(root / outcome.AUDIT),
        CHECKPOINTS_ENV: str(root / outcome.AUDIT / CHECKPOINTS),
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
                private = config.dp_training is not None
                json.dump({"arguments": config.arguments(uri), "root": str(root), "private": private}, stream)
            for line in _pipe(child.stdout):
                log.append(line)
                if started := _STARTED.search(line):
                    progress(started[1], "started")
                elif finished := _FINISHED.search(line):
                    progress(finished[1], finished[2])
        finally:
            _stop(child)
    return "".join(log)


def _stop(child: subprocess.Popen[str]) -> None:
    """End the runner and its tasks, which share its process group; they end first when they are told in time."""
    output = _pipe(child.stdout).fileno()
    end = time.monotonic() + STOP_SECONDS
    with suppress(ProcessLookupError):
        try:
            os.killpg(child.pid, signal.SIGINT)
            # Each of them holds the other end of this pipe, so it is at its end when the last one is gone.
            while (left := end - time.monotonic()) > 0 and select.select([output], [], [], left)[0]:
                if not os.read(output, 1 << 16):
                    break
        finally:
            os.killpg(child.pid, signal.SIGKILL)


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise PipelineError("the runner's process has no pipe")
    return stream
