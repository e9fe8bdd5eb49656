"""Malformed records of a text source: why one is, where it lies, and the bytes that it is.

A record is a line of JSON, or a CSV record by RFC 4180: it ends at the first LF that an even number of quotes comes
before. Where the very quotes, or the number of cells, are wrong, only a record of one line is told from its neighbours
without doubt, by any reading of the quotes; a longer one is refused, since a stray quote may have swallowed others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa

from portcullis.errors import DataError

Reason = Literal[
    "stray_quote",
    "cr_without_lf",
    "number_of_cells",
    "blank_line",
    "oversized_cell",
    "null_byte",
    "not_utf8",
    "not_json",
    "other_keys",
    "nested_value",
    "not_unicode",
    "kind_of_value",
    "empty",
    "not_a_number",
    "out_of_bounds",
    "unknown_class",
]


class Fault(NamedTuple):
    """What is wrong with a record; the column where it is one cell's."""

    reason: Reason
    column: str = ""


Check = Callable[[pa.Table], Mapping[int, Fault]]
"""What a description demands of cells as they were read: row, from 0, to the first fault of each row that has one."""


class MalformedError(DataError):
    """A record is malformed, which a user may have set aside."""

    def __init__(self, message: str, reason: Reason, column: str = "") -> None:
        super().__init__(message)
        self.fault = Fault(reason, column)


@dataclass(frozen=True)
class Malformed:
    """A record that was set aside.

    Attributes:
        line: The line of the file that it starts on, from 1.
        offset: The byte of the file that it starts at, from 0.
        fault: The first thing that is wrong with it, in the order of the reader's checks.
        data: Its bytes, without the LF that ends it.
    """

    line: int
    offset: int
    fault: Fault
    data: bytes
