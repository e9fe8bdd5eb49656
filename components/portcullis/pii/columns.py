"""What a table may hold here: named columns of text, numbers, and a few other plain types; all else is refused."""

from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError


class Kind(Enum):
    """How a column is treated: text is scanned, numbers are checked for card numbers, other types hold no digits."""

    TEXT = "text"
    NUMBER = "number"
    OTHER = "other"


def checked_names(table: Any) -> list[str]:
    """Return the column names of a table that is sound and not empty.

    Raises:
        DataError: No rows, no columns, malformed buffers or text, a name that is not UTF-8, or one name twice.
    """
    names = names_of(table.schema)
    check_sound(table)
    if not table.num_rows:
        raise DataError("the table is empty; there is nothing to judge")
    return names


def check_sound(table: Any) -> None:
    """Check a table's buffers and its text.

    Raises:
        DataError: They are malformed.
    """
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError("the table is malformed; write its text as UTF-8") from error


def names_of(schema: Any) -> list[str]:
    """Return the names of the columns of a schema that has some, each once.

    Raises:
        DataError: There is none, one is not UTF-8, or one occurs twice.
    """
    try:
        names: list[str] = schema.names
    except UnicodeDecodeError as error:
        raise DataError("a column's name is not UTF-8; rename it") from error
    if not names:
        raise DataError("the table is empty; there is nothing to judge")
    if len(set(names)) != len(names):
        raise DataError("two columns have the same name; rename one")
    return names


def kind(name: str, type_: Any) -> Kind:
    """Return how a column of this Arrow type is treated.

    Raises:
        DataError: A nested, dictionary, binary, view, interval or extension type, which could carry text unseen.
    """
    types = pa.types
    if types.is_string(type_) or types.is_large_string(type_):
        return Kind.TEXT
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        return Kind.NUMBER
    if types.is_boolean(type_) or types.is_null(type_) or (types.is_temporal(type_) and not types.is_interval(type_)):
        return Kind.OTHER
    raise DataError(f"column {name!r} has type {type_}, which is not scanned; make it a string column or drop it")


def text_of(values: Any) -> Any:
    """Return a column as large_string, whole numbers without exponent or fraction (`4111111111111111`); nulls stay.

    `values` is a ChunkedArray of any type that `kind` accepts.
    """
    values = values.combine_chunks()
    if pa.types.is_floating(values.type):
        numbers = values.cast(pa.float64()).to_pylist()
        texts = (None if x is None else f"{x:.0f}" if x.is_integer() else repr(x) for x in numbers)
        return pa.array(texts, pa.large_string())
    text = values.cast(pa.large_string())
    return pc.replace_substring_regex(text, r"\.0*$", "") if pa.types.is_decimal(values.type) else text


def long_numbers(values: Any) -> list[str]:
    """Return the distinct whole numbers of 9 to 19 digits in a column of numbers, as text without sign."""
    if pa.types.is_floating(values.type):
        values = values.filter(pc.greater_equal(pc.abs(values.cast(pa.float64())), 1e8))
    text = pc.unique(text_of(values))
    found: list[str] = text.filter(pc.match_substring_regex(text, r"^-?[0-9]{9,19}$")).to_pylist()
    return [number.lstrip("-") for number in found]
