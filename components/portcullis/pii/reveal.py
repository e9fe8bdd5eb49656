"""What reversible tokens stand for, and the record that is made before anybody sees it.

The record is a file of one line of canonical JSON per revelation, each with the SHA-256 of the line before it, so that
a line that was altered, removed or put in between is noticed. Who can write the file can also write it anew from the
start, cut lines off its end, or alter the last one: keep the digest that each revelation tells somewhere else.

A record has who (the system's user), when, why, how many of which entity in which column, and digests of what came in
and went out. The latter is keyed, since what goes out may be one short number that a plain digest would give away.
"""

import fcntl
import hmac
import io
import os
import pwd
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from portcullis.digest import canonical_json, parse_canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, UsageError
from portcullis.evidence.statement import format_time
from portcullis.files import sync_folder
from portcullis.hash_chain import FIRST, Record, read_records
from portcullis.pii.scan import rows_of
from portcullis.pii.tokens import REVERSIBLE, MaskingKeys, derived, revealed

FORMAT = "portcullis-reveal/v1"
MAX_AUDIT_BYTES = 1 << 30
MAX_REASON = 1024
_FIELDS = frozenset({"format", "number", "previous", "time", "user", "uid", "reason", "input", "output", "counts"})
# Whatever looks like a reversible token but is none must not pass as ordinary text.
_LIKE = re.compile("<[A-Z_]+~[^<>]*>?")

Counts = Mapping[str, Mapping[str, int]]


def reveal_text(text: str, key: bytes) -> tuple[str, Counter[str]]:
    """Return text with what was written in the place of each reversible token, and how many of each entity.

    Raises:
        KeyMaterialError: The masking key is not 32 bytes.
        DataError: There is none, or one was altered or made under another key; nothing is revealed.
    """
    counts: Counter[str] = Counter()
    told = _told(text, MaskingKeys.derive(key), counts)
    _require_any(counts)
    return told, counts


def reveal_table(table: pa.Table, key: bytes) -> tuple[pa.Table, Counts]:
    """Return a table with what was written in the place of each reversible token, and how many by column and entity.

    Raises:
        KeyMaterialError: As `reveal_text`; so is the other.
        DataError: As `reveal_text`.
    """
    keys = MaskingKeys.derive(key)
    counts: dict[str, Counter[str]] = {}
    columns = {}
    for name in table.column_names:
        values = table.column(name)
        columns[name] = values
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            continue
        encoded = values.combine_chunks().dictionary_encode()
        rows = rows_of(encoded.indices, len(encoded.dictionary)).tolist()
        found: Counter[str] = Counter()
        told = []
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            here: Counter[str] = Counter()
            told.append(_told(text, keys, here))
            found.update({entity: count * rows[code] for entity, count in here.items()})
        if found:
            counts[name] = found
            columns[name] = pa.array(told, values.type).take(encoded.indices)
    _require_any(counts)
    return pa.table(columns), counts


def _told(text: str, keys: MaskingKeys, counts: Counter[str]) -> str:
    def one(made: re.Match[str]) -> str:
        token = REVERSIBLE.fullmatch(made[0])
        if token is None:
            raise DataError("a reversible token is malformed; nothing is revealed")
        counts[token[1]] += 1
        return revealed(keys, token)

    return _LIKE.sub(one, text)


def _require_any(counts: object) -> None:
    if not counts:
        raise DataError("there is no reversible token; only the operator `reversible` makes what can be revealed")


def verify_audit(lines: bytes) -> tuple[Record, ...]:
    """Return the records of an audit file, none where it is empty.

    Raises:
        EvidenceError: A line was altered, removed or put in between, or the last one is cut short.
    """
    return read_records(lines, _said, _broken)


def _said(line: bytes) -> Mapping[str, Any]:
    said = parse_canonical_json(line)
    if not isinstance(said, dict) or set(said) != _FIELDS or said["format"] != FORMAT:
        raise DataError("not a line of an audit file")
    return said


def _broken(number: int) -> EvidenceError:
    return EvidenceError(
        f"the audit file was altered or cut at line {number}; nothing is revealed. Keep it for whoever looks into "
        "that, and name a new file with --audit"
    )


def record_revelation(audit: Path, *, key: bytes, reason: str, given: str, told: bytes, counts: Counts) -> Record:
    """Append to an audit file what is about to be revealed, and have it reach the disk.

    Args:
        audit: The file; it is made, of mode 0600, where it is not there.
        key: The masking key, from which the one that digests `told` is derived.
        reason: Why, one line.
        given: SHA-256 of what came in, hexadecimal: of its bytes, or the logical root of a table.
        told: What will go out.
        counts: By column and entity, how many are revealed.

    Raises:
        UsageError: There is no reason, or the file cannot be written; then nothing may be revealed.
        EvidenceError: As `verify_audit`, of what the file holds.
    """
    if not reason.strip() or not reason.isprintable() or len(reason) > MAX_REASON:
        raise UsageError(f"a revelation needs its reason, one line of at most {MAX_REASON} characters")
    try:
        with _alone(audit) as file:
            records = verify_audit(_whole(file, audit))
            said = {
                "format": FORMAT,
                "number": len(records) + 1,
                "previous": records[-1].digest if records else FIRST,
                "time": format_time(time.time_ns() // 1_000_000),
                "user": _user(),
                "uid": os.getuid(),
                "reason": reason,
                "input": given,
                "output": hmac.digest(derived(key, "reveal"), told, "sha256").hex(),
                "counts": {column: dict(found) for column, found in counts.items()},
            }
            line = canonical_json(said)
            if file.write(line + b"\n") != len(line) + 1:
                raise UsageError(f"the audit file {audit} took only a part of the record; nothing is revealed")
            os.fsync(file.fileno())
        sync_folder(audit.parent)
    except OSError as error:
        raise UsageError(f"cannot write the audit file {audit}: {error.strerror}; nothing is revealed") from error
    return Record(len(records) + 1, sha256(line), said)


@contextmanager
def _alone(audit: Path) -> Iterator[io.FileIO]:
    audit.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with io.FileIO(os.open(audit, flags, 0o600), "r+") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UsageError(f"{audit} is not a regular file; nothing is revealed")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _whole(file: io.FileIO, audit: Path) -> bytes:
    if os.fstat(file.fileno()).st_size > MAX_AUDIT_BYTES:
        raise UsageError(f"the audit file {audit} is larger than {MAX_AUDIT_BYTES} bytes; name a new one with --audit")
    file.seek(0)
    return file.readall()


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user has no name
        return str(os.getuid())
