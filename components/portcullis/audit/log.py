"""Writing the audit log: each process a segment of its own, each line chained, each state signed.

    PORTCULLIS_AUDIT=/dir               SEGMENT.jsonl, one line of canonical JSON per event
    PORTCULLIS_AUDIT_CHECKPOINTS=/dir2  SEGMENT.json, its newest signed checkpoint (default: /dir/checkpoints)

A line holds the SHA-256 of the line before (`portcullis.hash_chain`), so an edit, a deletion, an insertion and a move
break the chain. A checkpoint is a DSSE envelope over the segment's name, its number of lines and its last line's
digest, by the key of the process; it is replaced after every line, so what was cut off or written anew does not match.
Who also puts an *older* checkpoint back, or takes a segment away with its checkpoint, shows only against checkpoints
that were kept where they cannot write (RFC 6962 keeps tree heads at monitors for the same reason).

Never a secret or a data value: an event has the fields that `EVENTS` names, and each is a name, a digest, a number, an
error's class or a time, checked before it is written. Without PORTCULLIS_AUDIT nothing is written. Where it is set and
a line cannot be written or signed, what was to be recorded fails.
"""

import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from portcullis.digest import canonical_json, is_digest, parse_canonical_json, sha256
from portcullis.errors import DataError, UsageError
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.statement import format_time
from portcullis.evidence.trust import now_ms
from portcullis.files import write_bytes
from portcullis.hash_chain import FIRST
from portcullis.keys import Signer

AUDIT_ENV = "PORTCULLIS_AUDIT"
CHECKPOINTS_ENV = "PORTCULLIS_AUDIT_CHECKPOINTS"
CHECKPOINTS = "checkpoints"
CHECKPOINT_TYPE = "application/vnd.portcullis.audit-checkpoint+json"
FORMAT = "portcullis-audit/v1"
SERVER = "server"  # the server's process; it signs by the key of the step that deploys
MAX_LINE_BYTES = 4096
SEGMENT = re.compile(r"[a-z][a-z0-9_.]{0,127}\.[0-9]{13,}\.[0-9a-f]{8}")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(?:[:.#/-][a-z0-9_]{1,63}){0,4}")
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NONCE = re.compile(r"[0-9a-f]{32}")


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    "process": _matches(_NAME),
    "segment": _matches(SEGMENT),
    "keyid": is_digest,
    "stage": _matches(_NAME),
    "nonce": _matches(_NONCE),
    "verdict": lambda value: value in ("", "PASSED", "FAILED"),
    "error": _matches(_CLASS),
    "model": is_digest,
    "statement": is_digest,
    "status": lambda value: type(value) is int and 400 <= value < 600,
    "count": _count,
}
EVENTS: Mapping[str, frozenset[str]] = {
    "log.opened": frozenset({"process", "segment", "keyid"}),
    "log.closed": frozenset(),
    "step.began": frozenset({"stage", "nonce"}),
    "step.finished": frozenset({"verdict", "statement"}),
    "step.refused": frozenset({"error"}),
    "model.opened": frozenset({"model"}),
    "server.started": frozenset({"model"}),
    "request.refused": frozenset({"status", "count"}),
}
_ALWAYS = frozenset({"number", "previous", "time", "event"})
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}Z")


def parse_event(line: bytes) -> dict[str, Any]:
    """Read one line of a segment, without its newline.

    Raises:
        DataError: Not what `AuditLog.append` writes.
    """
    said = parse_canonical_json(line, limit=MAX_LINE_BYTES)
    event = said.get("event") if isinstance(said, dict) else None
    if not isinstance(event, str) or event not in EVENTS:
        raise DataError("not an event of an audit log")
    fields = EVENTS[event]
    if set(said) != fields | _ALWAYS or not _matches(_TIME)(said["time"]):
        raise DataError("an event of an audit log has other fields")
    _require_fields(event, {name: said[name] for name in fields})
    return dict(said)


def _require_fields(event: str, fields: Mapping[str, object]) -> None:
    wanted = EVENTS.get(event)
    if wanted is None or set(fields) != wanted:
        raise DataError("the audit log knows no such event, or it has other fields")
    for name, value in fields.items():
        if not _FIELDS[name](value):  # the value is not told: it may be what must not be told
            raise DataError(f"the field {name!r} of an audit event holds something else than it may")


class AuditLog:
    """One process's segment, open for appending; safe to use from several threads."""

    def __init__(self, folder: Path, process: str, signer: Signer, *, checkpoints: Path | None = None) -> None:
        """Begin a segment.

        Args:
            folder: Where the segments lie; it is made when missing.
            process: The step's name, or `server`.
            signer: Signs the checkpoints.
            checkpoints: Where those lie; below `folder` when None.

        Raises:
            UsageError: The folder cannot be written.
            DataError: That is no name of a process.
        """
        name = re.sub(r"[^a-z0-9_]", ".", process)
        self.segment = f"{name}.{now_ms()}.{secrets.token_hex(4)}"
        opening = {"process": process, "segment": self.segment, "keyid": signer.public_key.keyid}
        _require_fields("log.opened", opening)
        self._signer, self._lock = signer, threading.Lock()
        self._checkpoint = (checkpoints or folder / CHECKPOINTS) / f"{self.segment}.json"
        self._number, self._head, self._closed = 0, FIRST, False
        try:
            for made in (folder, self._checkpoint.parent):
                made.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(folder / f"{self.segment}.jsonl", flags, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write the audit log below {folder}: {error.strerror}") from error
        self.append("log.opened", **opening)

    def append(self, event: str, **fields: str | int) -> None:
        """Write one event, and sign the state that the segment then has.

        Raises:
            DataError: The event or a field is none that `EVENTS` allows.
            UsageError: It cannot be written, or the log is closed.
        """
        _require_fields(event, fields)
        with self._lock:
            if self._closed:
                raise UsageError("the audit log of this process is closed")
            said = {"number": self._number + 1, "previous": self._head, "time": format_time(now_ms()), "event": event}
            line = canonical_json({**said, **fields})
            try:
                if os.write(self._file, line + b"\n") != len(line) + 1:
                    raise UsageError("the audit log took only a part of an event; is the disk full?")
                os.fsync(self._file)
                self._number, self._head = self._number + 1, sha256(line)
                write_bytes(self._checkpoint, self._signed(), mode=0o600)
            except OSError as error:
                raise UsageError(f"cannot write the audit log: {error.strerror}") from error
            if event == "log.closed":
                self._closed = True
                os.close(self._file)

    def close(self) -> None:
        """Write that the process ended as it should; a second time does nothing."""
        if not self._closed:
            self.append("log.closed")

    def _signed(self) -> bytes:
        state = {"format": FORMAT, "segment": self.segment, "count": self._number, "head": self._head}
        return seal_payload(canonical_json(state), self._signer, payload_type=CHECKPOINT_TYPE).encode()


def open_log(process: str, signer: Callable[[], Signer]) -> AuditLog | None:
    """Begin this process's segment where PORTCULLIS_AUDIT says, None where it is not set.

    Args:
        process: The step's name, or `server`.
        signer: Called for the key only when there is a log.

    Raises:
        UsageError: The folder is not absolute or cannot be written.
        KeyMaterialError: `signer`'s.
    """
    named = os.environ.get(AUDIT_ENV)
    if not named:
        return None
    elsewhere = os.environ.get(CHECKPOINTS_ENV)
    for folder in (named, elsewhere):
        if folder and not Path(folder).is_absolute():
            raise UsageError(f"{AUDIT_ENV} and {CHECKPOINTS_ENV} must be absolute paths")
    return AuditLog(Path(named), process, signer(), checkpoints=Path(elsewhere) if elsewhere else None)


@contextmanager
def recording(log: AuditLog | None) -> Iterator[None]:
    """Record that what is done within was refused, by the error's class, if it was; always close the log."""
    try:
        yield
    except BaseException as error:
        refused(log, error)
        raise
    if log is not None:
        log.close()


def refused(log: AuditLog | None, error: BaseException) -> None:
    """Record an error's class, never its text, and close the log."""
    if log is not None and not log._closed:  # noqa: SLF001 - one module
        log.append("step.refused", error=type(error).__name__)
        log.close()


def record_unhandled(log: AuditLog | None) -> None:
    """Record what ends this process, should an exception do it, before Python tells it."""
    if log is None:
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            refused(log, error)
        finally:
            before(kind, error, trace)

    sys.excepthook = hook


class Refusals:
    """Counts a server's refused requests by status, and records them at most every `every` seconds.

    One line per request would let whoever has no token fill the disk. The first of a kind is recorded at once.
    """

    def __init__(self, log: AuditLog | None, *, every: float = 10.0) -> None:
        self._log, self._every, self._lock = log, every, threading.Lock()
        self._waiting: dict[int, int] = {}
        self._told: dict[int, float] = {}

    def count(self, status: int) -> None:
        """Count one refused request, by its HTTP status from 400 to 599.

        Raises:
            UsageError: It cannot be recorded.
        """
        with self._lock:
            self._waiting[status] = self._waiting.get(status, 0) + 1
            due = time.monotonic() - self._told.get(status, -self._every) >= self._every
        if due:
            self.flush(status)

    def flush(self, status: int | None = None) -> None:
        """Record what was counted since, of one status or of all."""
        with self._lock:
            for it in sorted(self._waiting) if status is None else [status]:
                if self._log is not None and it in self._waiting:
                    self._log.append("request.refused", status=it, count=self._waiting[it])
                    self._told[it] = time.monotonic()
                self._waiting.pop(it, None)
