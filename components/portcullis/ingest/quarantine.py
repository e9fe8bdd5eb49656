"""The quarantine: malformed records in a sealed file of their own, for whoever holds the pipeline's key.

A sealed directory of one file, `quarantine.jsonl`: a line of canonical JSON that has the format and a random salt, then
one for each record, in the source's order: `path`, `line`, `offset`, `reason`, `column` (empty where it is not one
cell) and `bytes` (base64). The salt keeps the file's digest, which evidence states, from confirming a guess of a
record.
"""

import base64
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from portcullis.digest import canonical_json, parse_canonical_json, path_digest
from portcullis.errors import DataError
from portcullis.evidence.statement import Statement
from portcullis.files import BinaryFile, write_all
from portcullis.ingest.malformed import Malformed, Reason
from portcullis.sealing.recipients import Opener, Recipient
from portcullis.sealing.sealed import open_files, seal_written

FILE = "quarantine.jsonl"
FORMAT = "portcullis-quarantine/v1"
CONTEXT = {"content": "portcullis quarantine"}
_READ_BYTES = 1 << 20
_FIGURE = "quarantined"
_FIELDS = {"path", "line", "offset", "reason", "column", "bytes"}


def quarantine_figures(*malformed: Mapping[Reason, int]) -> dict[str, int]:
    """Return as figures how many records are set aside, in all and by reason; of several shards, together."""
    counts: Counter[str] = Counter()
    for it in malformed:
        counts.update({f"{_FIGURE}_{reason}": count for reason, count in it.items()})
    return {_FIGURE: counts.total(), **dict(sorted(counts.items()))}


def seal_quarantine(
    directory: Path, records: Iterable[tuple[str, Malformed]], *, recipient: Recipient
) -> tuple[int, str]:
    """Seal malformed records as they come, atomically and one at a time in memory.

    Args:
        directory: Where they go; what lies there is replaced.
        records: Each with the path of its file; there may be none.
        recipient: Who can open it.

    Returns:
        How many there were, and SHA-256 of the file in plain text.

    Raises:
        DataError: The source is no longer what was digested.
        UsageError: The directory cannot be written.
    """
    count, digest = 0, hashlib.sha256()

    def write(sink: BinaryFile) -> None:
        nonlocal count

        def put(line: object) -> None:
            data = canonical_json(line) + b"\n"
            digest.update(data)
            write_all(sink, data)

        put({"format": FORMAT, "salt": secrets.token_hex(16)})
        for path, it in records:
            put(
                {
                    "path": path,
                    "line": it.line,
                    "offset": it.offset,
                    "reason": it.fault.reason,
                    "column": it.fault.column,
                    "bytes": base64.b64encode(it.data).decode(),
                }
            )
            count += 1

    seal_written({FILE: write}, directory, recipients=[recipient], context=CONTEXT)
    return count, digest.hexdigest()


@contextmanager
def open_quarantine(directory: Path, stated: Statement, *, key: Opener) -> Iterator[Iterator[Mapping[str, Any]]]:
    """Open a quarantine for its records, one at a time in memory.

    Args:
        directory: The quarantine.
        stated: What `ingest` stated when it made it; the caller has verified that.
        key: The pipeline's.

    Yields:
        The records, as the module's docstring describes them; at the end they are refused unless there were as many for
        each reason as stated.

    Raises:
        DataError: It is not what the statement speaks of, or not a quarantine.
        SealError: It was sealed for another key.
        UsageError: It is no directory.
    """
    if path_digest(directory) != stated.outputs.get("quarantine"):
        raise DataError(f"{directory} is not the quarantine that the evidence speaks of")
    with open_files(directory, private_key=key, context=CONTEXT, names=[FILE]) as files:
        lines = _lines(files[FILE])
        header = next(lines, None)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError(f"{directory} is no {FORMAT}")
        yield _counted(lines, stated)


def _counted(records: Iterable[Any], stated: Statement) -> Iterator[Mapping[str, Any]]:
    counts: Counter[str] = Counter()
    for record in records:
        if not isinstance(record, dict) or set(record) != _FIELDS:
            raise DataError("the quarantine holds a line that is no record")
        counts.update([_FIGURE, f"{_FIGURE}_{record['reason']}"])
        yield record
    expected = {name: count for name, count in stated.figures.items() if name.startswith(_FIGURE) and count}
    if counts != expected:
        raise DataError("the quarantine does not hold what the evidence counts in it")


def _lines(file: BinaryFile) -> Iterator[Any]:
    rest = b""
    while part := file.read(_READ_BYTES):
        *lines, rest = (rest + part).split(b"\n")
        yield from map(parse_canonical_json, lines)
    if rest:
        raise DataError("the quarantine ends within a line")
