"""Where a part of a text file begins, and what only the file's own beginning says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Beginning:
    """What a reader knows that starts within a file, as if it had read all that comes before.

    Attributes:
        header: The names of the columns, in order.
        line: The line of the file that the part begins on, from 1.
        row: How many records come before it, the header not counted.
        offset: The byte of the file that it begins at.
        kinds: Of JSON Lines, column to what it holds by the lines before; those without any value so far are not in it.
    """

    header: Sequence[str]
    line: int
    row: int
    offset: int
    kinds: Mapping[str, str] = field(default_factory=dict)
