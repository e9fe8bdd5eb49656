"""Reading the audit log: every edit, deletion, insertion, move and cut is found, and told by segment and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portcullis.audit.log import (
    CHECKPOINT_TYPE,
    CHECKPOINTS,
    FORMAT,
    SEGMENT,
    SERVER,
    parse_event,
)
from portcullis.digest import canonical_json, is_digest, parse_canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, UsageError
from portcullis.evidence.dsse import MAX_ENVELOPE_BYTES, Envelope
from portcullis.evidence.trust import TrustStore
from portcullis.files import read_bytes
from portcullis.hash_chain import Record, read_records
from portcullis.keys import PublicKey

MAX_SEGMENT_BYTES = 1 << 30
MAX_SEGMENTS = 100_000


@dataclass(frozen=True)
class Segment:
    """One process's part of the log, verified.

    Attributes:
        name: Its file's, without the suffix.
        process: The step's name, or `server`.
        records: Its lines.
        closed: Whether the process wrote that it ended; False for one that goes on, was killed, or was cut back to an
            earlier signed state.
    """

    name: str
    process: str
    records: tuple[Record, ...]
    closed: bool


@dataclass(frozen=True)
class Checkpoint:
    """A signed state of a segment: number of lines, and the last one's SHA-256."""

    segment: str
    count: int
    head: str
    envelope: Envelope


def verify_log(folder: Path, store: TrustStore, *, kept: Path | None = None) -> tuple[Segment, ...]:
    """Verify every segment of an audit log by one's own trust store.

    Args:
        folder: What PORTCULLIS_AUDIT named.
        store: Its policy names the key of each step; the server signs by the key of the step that deploys.
        kept: Checkpoints that were kept elsewhere, a folder of them or a file of one a line; the log must hold all of
            what they speak of. Below `folder` lie the newest ones.

    Returns:
        The segments, by name.

    Raises:
        EvidenceError: A line was edited, deleted, put in, moved or cut off, a segment or checkpoint is missing, or not
            signed by the key that the policy names. The message says which segment and line.
        UsageError: There is no such log.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of an audit log")
    names = _segments(folder)
    own = folder / CHECKPOINTS
    if not own.is_dir() and kept is None:
        raise EvidenceError(f"{folder} has no checkpoints; name where they are kept by --checkpoints")
    newest = _by_segment(read_checkpoints(own)) if own.is_dir() else {}
    older = read_checkpoints(kept) if kept else ()
    for checkpoint in (*newest.values(), *older):
        if checkpoint.segment not in names:
            raise EvidenceError(f"segment {checkpoint.segment} of {checkpoint.count} lines was deleted")
    beside = newest or _by_segment(older)
    segments = []
    for name in names:
        if name not in beside:
            raise EvidenceError(f"segment {name} has no checkpoint; it was added, or its checkpoint was deleted")
        segment = _verify_segment(folder / f"{name}.jsonl", beside[name], store)
        for checkpoint in older:
            if checkpoint.segment == name:
                _require_kept(segment, checkpoint, _key(store, segment.process))
        segments.append(segment)
    return tuple(segments)


def read_checkpoints(path: Path) -> tuple[Checkpoint, ...]:
    """Read checkpoints, whose signatures are not verified here.

    Args:
        path: A folder of them, or a file of one a line.

    Raises:
        EvidenceError: One is malformed, or lies under another segment's name.
        UsageError: They cannot be read.
    """
    if not path.is_dir():
        return tuple(map(_parse_checkpoint, read_bytes(path, limit=MAX_SEGMENT_BYTES).splitlines()))
    found = []
    for it in sorted(path.iterdir()):
        checkpoint = _parse_checkpoint(read_bytes(it, limit=MAX_ENVELOPE_BYTES))
        if it.name != f"{checkpoint.segment}.json":
            raise EvidenceError(f"the checkpoint {it.name[:120]!a} is of another segment")
        found.append(checkpoint)
    return tuple(found)


def log_head(segments: tuple[Segment, ...]) -> str:
    """Return one SHA-256 over the state of all segments, short enough to be written down elsewhere."""
    return sha256(canonical_json([[it.name, len(it.records), it.records[-1].digest] for it in segments]))


def _segments(folder: Path) -> tuple[str, ...]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.name == CHECKPOINTS and not path.is_symlink():
            continue
        name = path.name.removesuffix(".jsonl")
        if path.is_symlink() or name == path.name or not SEGMENT.fullmatch(name):
            raise EvidenceError(f"{path.name[:120]!a} is no segment of an audit log")
        names.append(name)
    if not names:
        raise EvidenceError(f"the audit log {folder} is empty; every segment of it was deleted")
    if len(names) > MAX_SEGMENTS:
        raise EvidenceError(f"the audit log {folder} has more than {MAX_SEGMENTS} segments")
    return tuple(names)


def _verify_segment(path: Path, checkpoint: Checkpoint, store: TrustStore) -> Segment:
    name = checkpoint.segment
    data = read_bytes(path, limit=MAX_SEGMENT_BYTES)
    records = read_records(
        data,
        parse_event,
        lambda number: EvidenceError(f"segment {name} was altered at line {number}: edited, deleted, moved or cut"),
    )
    if not records:
        raise EvidenceError(f"segment {name} was cut at line 1; its checkpoint says {checkpoint.count} lines")
    opening: Mapping[str, Any] = records[0].said
    if opening["event"] != "log.opened" or opening["segment"] != name:
        raise EvidenceError(f"segment {name} does not begin with its own opening; it was written anew or renamed")
    process = opening["process"]
    key = _key(store, process)
    _require_signed(checkpoint, key)
    if opening["keyid"] != key.keyid:
        raise EvidenceError(f"segment {name} was opened by another key than that of {process}")
    if len(records) < checkpoint.count:
        raise EvidenceError(f"segment {name} was cut at line {len(records) + 1} of {checkpoint.count}")
    if len(records) > checkpoint.count:
        raise EvidenceError(f"segment {name}: line {checkpoint.count + 1} is not signed; it was added, or never ended")
    if records[-1].digest != checkpoint.head:
        raise EvidenceError(f"segment {name} was altered at line {len(records)}, or written anew up to it")
    ends = [it.number for it in records if it.said["event"] == "log.closed"]
    if ends and ends != [len(records)]:
        raise EvidenceError(f"segment {name} goes on after line {ends[0]}, where it was closed")
    return Segment(name, process, records, bool(ends))


def _require_kept(segment: Segment, checkpoint: Checkpoint, key: PublicKey) -> None:
    _require_signed(checkpoint, key)
    if len(segment.records) < checkpoint.count:
        at = f"line {len(segment.records) + 1} of {checkpoint.count}"
        raise EvidenceError(f"segment {segment.name} was cut at {at}, which a checkpoint kept elsewhere tells")
    if segment.records[checkpoint.count - 1].digest != checkpoint.head:
        raise EvidenceError(f"segment {segment.name} was written anew up to line {checkpoint.count}, or before")


def _key(store: TrustStore, process: str) -> PublicKey:
    steps = store.policy.steps
    rule = next((it for it in steps.values() if it.stage == "deploy"), None) if process == SERVER else None
    rule = rule or steps.get(process)
    if rule is None:
        raise EvidenceError(f"the policy names no step {process!r} whose key could sign an audit log")
    return rule.key


def _require_signed(checkpoint: Checkpoint, key: PublicKey) -> None:
    try:
        checkpoint.envelope.verify(key, payload_type=CHECKPOINT_TYPE)
    except EvidenceError as error:
        raise EvidenceError(f"the checkpoint of segment {checkpoint.segment} does not hold: {error}") from error


def _parse_checkpoint(data: bytes) -> Checkpoint:
    try:
        envelope = Envelope.parse(data)
        said = parse_canonical_json(envelope.payload, limit=1 << 12)
        state = (said["segment"], said["count"], said["head"])
        whole = set(said) == {"format", "segment", "count", "head"} and said["format"] == FORMAT
        sound = isinstance(state[0], str) and SEGMENT.fullmatch(state[0]) and type(state[1]) is int and state[1] >= 1
    except (EvidenceError, DataError, KeyError, TypeError) as error:
        raise EvidenceError(f"a checkpoint of the audit log is malformed: {error}") from error
    if not (whole and sound and is_digest(state[2])):
        raise EvidenceError("a checkpoint of the audit log is malformed")
    return Checkpoint(*state, envelope)


def _by_segment(checkpoints: tuple[Checkpoint, ...]) -> dict[str, Checkpoint]:
    newest: dict[str, Checkpoint] = {}
    for it in checkpoints:
        if it.segment not in newest or newest[it.segment].count < it.count:
            newest[it.segment] = it
    return newest
