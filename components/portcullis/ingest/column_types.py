"""How the columns of a source are typed: facts that are gathered over all of it, and then one type for each column.

The rules are those of `portcullis.ingest.readers`. `survey` refuses the first bad cell that it sees; no value is ever
part of a message.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.errors import DataError
from portcullis.ingest.malformed import Fault, Reason

Refuse = Callable[[pa.ChunkedArray, str, Reason], bool]
"""Refuses the first cell that a mask marks, saying what is wrong; or notes them all, and tells whether there is one."""

_INTEGER = r"\A(?:0|-?[1-9][0-9]{0,17})\z"
_DECIMAL = r"\A-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,25})?(?:[eE][+-]?[0-9]{1,3})?\z"


@dataclass
class Facts:
    """What holds of all filled cells of a column so far; a column without any is text."""

    filled: bool = False
    integers: bool = True
    decimals: bool = True
    booleans: bool = True
    whole: bool = True

    def add(self, column: pa.ChunkedArray) -> None:
        """Take the next cells."""
        if column.null_count == len(column):
            return
        self.filled = True
        if pa.types.is_string(column.type):
            self.integers = self.integers and _all(pc.match_substring_regex(column, _INTEGER))
            self.decimals = self.decimals and _all(pc.match_substring_regex(column, _DECIMAL))
            self.booleans = self.booleans and _all(pc.is_in(column.drop_null(), pa.array(["true", "false"])))
            if not self.decimals:
                return
            column = column.cast(pa.float64())
            self.decimals = _all(pc.is_finite(column))
        if pa.types.is_floating(column.type):
            self.whole = self.whole and _whole(column)

    def with_(self, other: "Facts") -> "Facts":
        """Return what holds of this column's cells and of another part's together."""
        return Facts(
            filled=self.filled or other.filled,
            integers=self.integers and other.integers,
            decimals=self.decimals and other.decimals,
            booleans=self.booleans and other.booleans,
            whole=self.whole and other.whole,
        )


def _all(mask: pa.ChunkedArray) -> bool:
    return bool(pc.all(mask).as_py())


def _whole(column: pa.ChunkedArray) -> bool:
    """Tell whether all are whole numbers of at most 2**53 in size, and none is -0.0."""
    values = column.drop_null().to_numpy()
    whole = (np.floor(values) == values) & (np.abs(values) <= 2**53) & ~(np.signbit(values) & (values == 0))
    return bool(whole.all())


@dataclass
class Survey:
    """Checks the cells of a source and gathers the facts of its columns, piece by piece.

    Attributes:
        spec: What the columns mean; None where nobody says. Its glob is resolved by the first piece.
        facts: Column to what holds of it so far.
    """

    spec: DatasetSpec | None
    facts: dict[str, Facts] = field(default_factory=dict)
    _names: list[str] = field(default_factory=list)

    def check(self, piece: pa.Table, refuse: Callable[[int], Refuse]) -> None:
        """Check rows.

        Args:
            piece: Their cells as they were read.
            refuse: Given a column's place, what refuses a cell of it.

        Raises:
            DataError: A cell that its column may not hold, or the description names a column that is not there.
            ConfigError: The description contradicts the header.
        """
        if self.spec and self._names != piece.column_names:
            self.spec, self._names = self.spec.resolve(piece.column_names), piece.column_names
        for index, (name, column) in enumerate(zip(piece.column_names, piece.columns, strict=True)):
            if self.spec and name in self.spec.features.columns:
                _check_feature(column, self.spec.features, refuse(index))
            elif self.spec and name == self.spec.label.column:
                _check_label(column, self.spec.label, refuse(index))

    def faults(self, piece: pa.Table) -> dict[int, Fault]:
        """Return the first fault of each row that has one, where `check` would refuse the first of them."""
        found: dict[int, Fault] = {}

        def noting(index: int) -> Refuse:
            def note(mask: pa.ChunkedArray, _: str, reason: Reason) -> bool:
                marked = marked_rows(mask)
                for row in marked:
                    found.setdefault(row, Fault(reason, piece.column_names[index]))
                return bool(marked)

            return note

        self.check(piece, noting)
        return found

    def add(self, piece: pa.Table) -> None:
        """Gather the facts of rows that were checked."""
        for name, column in zip(piece.column_names, piece.columns, strict=True):
            self.facts.setdefault(name, Facts()).add(column)

    def schema(self, read: pa.Schema, spelled: frozenset[str]) -> pa.Schema:
        """Return the type of each column.

        Args:
            read: The columns as they were read.
            spelled: Those of text that are typed by how their cells are spelled.
        """
        return pa.schema([(it.name, self._type(it.name, it.type, spelled)) for it in read])

    def _type(self, name: str, read: pa.DataType, spelled: frozenset[str]) -> pa.DataType:
        facts = self.facts[name]
        if self.spec and name in self.spec.features.columns:
            typed = pa.float64() if pa.types.is_string(read) else read
        elif (self.spec and (name == self.spec.label.column or name in self.spec.sensitive)) or not facts.filled:
            typed = pa.string()
        elif name not in spelled:
            typed = read
        elif facts.integers:
            typed = pa.int64()
        elif facts.decimals:
            typed = pa.float64()
        else:
            typed = pa.bool_() if facts.booleans else pa.string()
        return pa.int64() if pa.types.is_floating(typed) and facts.whole else typed


def typed(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows that were surveyed with the types that the survey found.

    Raises:
        DataError: They are not the rows that were surveyed.
    """
    try:
        columns = [
            # Numbers are read as numbers are spelled, and only then made whole.
            (column.cast(pa.float64()) if _is_number(column, type_) else column).cast(type_)
            for column, type_ in zip(piece.columns, schema.types, strict=True)
        ]
    except pa.ArrowException as error:
        raise DataError("the source changed while it was read; leave it alone and run again") from error
    return pa.table(columns, schema=schema)


def _is_number(column: pa.ChunkedArray, type_: pa.DataType) -> bool:
    if not (pa.types.is_string(column.type) and pa.types.is_integer(type_)):
        return False
    return not _all(pc.match_substring_regex(column, _INTEGER))


def marked_rows(mask: pa.ChunkedArray) -> list[int]:
    """Return the places that a mask marks; null marks nothing."""
    return np.flatnonzero(pc.fill_null(mask, fill_value=False).to_numpy()).tolist()


def _check_feature(column: pa.ChunkedArray, features: Features, refuse: Refuse) -> None:
    refuse(pc.is_null(column), "is empty", "empty")
    if pa.types.is_string(column.type):
        other = pc.invert(pc.match_substring_regex(column, _DECIMAL))
        if refuse(other, "is not a number", "not_a_number"):
            column = pc.if_else(other, pa.scalar(None, pa.string()), column)
        column = column.cast(pa.float64())
    elif pa.types.is_boolean(column.type):
        refuse(pc.is_valid(column), "is a boolean, not a number", "not_a_number")
    inside = pc.and_(pc.greater_equal(column, features.low), pc.less_equal(column, features.high))
    refuse(pc.invert(inside), f"is not in [{features.low:g}, {features.high:g}]", "out_of_bounds")


def _check_label(column: pa.ChunkedArray, label: Label, refuse: Refuse) -> None:
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        refuse(pc.is_valid(column), f"is {column.type}; a label is text or an integer", "unknown_class")
    refuse(pc.is_null(column), "is empty", "empty")
    unknown = pc.invert(pc.is_in(column.cast(pa.string()), pa.array(label.classes)))
    refuse(unknown, "is not one of the label's classes", "unknown_class")
