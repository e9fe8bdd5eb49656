"""Append-only records: lines that each hold the SHA-256 of the line before.

A line that was altered, removed, put in between or moved breaks the chain. Who can write the file can also write it
anew from the start or cut lines off its end: that shows only against a head (the last line's number and digest) that
was kept somewhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import DataError, EvidenceError, KeyMaterialError

FIRST = "0" * 64  # what the first line holds in the place of a digest


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        number: From 1.
        digest: SHA-256 of the line, hexadecimal: what the next one holds.
        said: The line's fields.
    """

    number: int
    digest: str
    said: Mapping[str, Any]


def read_records(
    lines: bytes, parse: Callable[[bytes], Mapping[str, Any]], broken: Callable[[int], EvidenceError]
) -> tuple[Record, ...]:
    """Return the records of a file, none where it is empty.

    Args:
        lines: The whole file; each line ends in one newline.
        parse: Reads one line, without its newline, into its fields, `number` and `previous` among them.
        broken: Makes the error for the line of a number, from 1.

    Raises:
        EvidenceError: `broken`'s, for the first line that does not parse or does not follow the one before, or that is
            cut short.
    """
    if lines and not lines.endswith(b"\n"):
        raise broken(lines.count(b"\n") + 1)
    records: list[Record] = []
    previous = FIRST
    for number, line in enumerate(lines.split(b"\n")[:-1], start=1):
        try:
            said = parse(line)
            follows = (said["number"], said["previous"]) == (number, previous) and type(said["number"]) is int
        except (DataError, EvidenceError, KeyMaterialError, KeyError, TypeError) as error:
            raise broken(number) from error
        if not follows:
            raise broken(number)
        previous = sha256(line)
        records.append(Record(number, previous, said))
    return tuple(records)
