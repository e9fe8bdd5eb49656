"""Columns that a folder's files do not hold, since its folders' names spell them, as Hive, Spark and Arrow write them.

`region=north/year=2024/rows.parquet`: names and values are percent-encoded, and one value stands for null.
"""

from urllib.parse import unquote

import pyarrow as pa

from portcullis.errors import DataError
from portcullis.table import check_header

_NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_of(path: str) -> list[tuple[str, str | None]]:
    """Return the columns, each with its value, that the folders of a file's path spell.

    Args:
        path: Relative to the source, with slashes.

    Raises:
        DataError: A name or value is not UTF-8 once decoded, or a value holds a null byte.
    """
    return [_decoded(folder, path) for folder in path.split("/")[:-1] if "=" in folder]


def with_partition(table: pa.Table, path: str) -> pa.Table:
    """Return rows of the file at a path with the columns that its folders spell behind their own, as text.

    Raises:
        DataError: As `partition_of`; or the rows have a column of that name, or the name is none.
    """
    for name, value in partition_of(path):
        table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    try:
        check_header(table.column_names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return table


def _decoded(folder: str, path: str) -> tuple[str, str | None]:
    name, _, written = folder.partition("=")
    try:
        name, value = unquote(name, errors="strict"), unquote(written, errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a folder's name is not UTF-8 once decoded") from error
    if "\0" in value:
        raise DataError(f"{path}: a folder's name holds a null byte")
    return name, None if written == _NULL else value
