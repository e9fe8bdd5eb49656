"""Tables between steps: the canonical form of one, read from untrusted Parquet, and the digest of its rows.

A *canonical table* has unique column names and only the types `int64`, `float64`, `bool` and `string` (null allowed),
so that one table has one form whichever file it came from. Timestamps, decimals, binary and nested columns are refused;
store instants as ISO 8601 text.

The *logical root* digests the rows and not the file, so the CSV and the Parquet form of one table have one root. It is
the root of an RFC 6962 Merkle tree (SHA-256, leaf = H(0x00 || data), node = H(0x01 || left || right)):

- leaf 0 is the canonical JSON of `{"columns": [{"name", "type"}, ...], "format": "portcullis-rows/v1", "rows": N}`;
- each further leaf is a block: the next 1,024 rows (the last one: the rest), column after column in the table's order;
- a column's part of a block is one little-endian int32 length per row (bytes of the cell; -1 for null, which has no
  bytes), and then the cells' bytes without separators;
- a cell is: int64, 8 bytes little-endian two's complement; float64, 8 bytes little-endian IEEE 754, where every NaN is
  0x7ff8000000000000 and -0.0 keeps its sign; bool, one byte 0 or 1; string, its UTF-8 bytes, not normalised.

Rows, columns and their names are therefore all ordered and all bound. Cells lie column by column so that a leaf is
hashed straight from Arrow's buffers.

A *column digest* is the root of the like tree over one column's parts alone, leaf 0 being the canonical JSON of
`{"format": "portcullis-column/v1", "rows": N, "type"}`, so that a change is located as block and column. It does not
bind the column's name. A *row digest* is the leaf that the row alone would be.

docs/dataset-digests.md says the same for other implementations. A digest of few or guessable values can be guessed: it
commits, it does not hide.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from portcullis.digest import canonical_json
from portcullis.errors import DataError

ROWS_FORMAT = "portcullis-rows/v1"
COLUMN_FORMAT = "portcullis-column/v1"
LEAF_ROWS = 1024

MAX_BYTES = (1 << 31) - 1  # of a source, of a Parquet file and of a table in memory; Arrow's string offsets are int32
MAX_COLUMNS = 10_000
MAX_ROWS = 100_000_000

_BATCH_ROWS = 64 * LEAF_ROWS
_TYPES = {pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool", pa.string(): "string"}


def canonical_table(table: pa.Table) -> pa.Table:
    """Return the table with every column as int64, float64, bool or string, and without metadata.

    Narrower numbers are widened, dictionaries decoded, large and view strings made plain; a column of type null becomes
    a string column of nulls. No value changes.

    Raises:
        DataError: A column name is repeated, empty or unprintable, a type has no canonical form, an unsigned integer
            exceeds int64, or a string is not UTF-8.
    """
    check_header(table.column_names)
    columns = []
    for column_field, column in zip(table.schema, table.columns, strict=True):
        kind = column_field.type.value_type if pa.types.is_dictionary(column_field.type) else column_field.type
        canonical = _canonical_type(kind)
        if canonical is None:
            raise DataError(
                f"column {column_field.name!r} has type {kind}; store integers, floats, booleans or text "
                "(instants as ISO 8601 text)"
            )
        try:
            columns.append(column.cast(canonical))
        except pa.ArrowException as error:
            raise DataError(f"column {column_field.name!r} holds a value that {canonical} cannot hold") from error
    result = pa.table(columns, names=table.column_names)
    try:
        result.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"the table is malformed: {error}") from error
    return result


def _canonical_type(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    return None


def check_header(names: Sequence[str]) -> None:
    """Check a table's column names.

    Raises:
        DataError: There is none or there are more than 10,000, or one is empty, unprintable, too long or repeated.
    """
    if not 1 <= len(names) <= MAX_COLUMNS:
        raise DataError(f"the table has {len(names)} columns; 1 to {MAX_COLUMNS} are allowed")
    seen = set()
    for position, name in enumerate(names, start=1):
        if not 1 <= len(name) <= 256 or not name.isprintable():
            raise DataError(f"the name of column {position} is empty, unprintable or longer than 256 characters")
        if name in seen:
            raise DataError(f"column {name!r} appears twice")
        seen.add(name)


def table_schema(table: pa.Table) -> tuple[tuple[str, str], ...]:
    """Return a canonical table's columns in order: (name, one of int64, float64, bool, string)."""
    return tuple((column_field.name, _TYPES[column_field.type]) for column_field in table.schema)


@dataclass(frozen=True)
class TableDigests:
    """The digests of one table (see the module's docstring).

    Attributes:
        root: The logical root, 64 hexadecimal characters.
        columns: Column name to column digest, 64 hexadecimal characters.
        blocks: Column name to the leaves of its blocks of 1,024 rows, 32 bytes each.
    """

    root: str
    columns: Mapping[str, str]
    blocks: Mapping[str, tuple[bytes, ...]]


def logical_root(table: pa.Table) -> str:
    """Return the table's logical root (see the module's docstring): 64 hexadecimal characters.

    Raises:
        DataError: The table has no canonical form.
    """
    table = canonical_table(table)
    leaves = [_schema_leaf(table)]
    for columns, rows in _encoded(table):
        leaves += _block_leaves(columns, rows)
    return _merkle_root(leaves).hex()


def table_digests(table: pa.Table) -> TableDigests:
    """Return the logical root and the digests of the columns and of their blocks.

    Raises:
        DataError: The table has no canonical form.
    """
    table = canonical_table(table)
    leaves = [_schema_leaf(table)]
    blocks: list[list[bytes]] = [[] for _ in table.column_names]
    for columns, rows in _encoded(table):
        leaves += _block_leaves(columns, rows)
        for column, found in zip(columns, blocks, strict=True):
            found += _block_leaves([column], rows)
    digests = {}
    for (name, kind), found in zip(table_schema(table), blocks, strict=True):
        described = canonical_json({"format": COLUMN_FORMAT, "rows": table.num_rows, "type": kind})
        digests[name] = _merkle_root([_leaf(described), *found]).hex()
    return TableDigests(
        root=_merkle_root(leaves).hex(),
        columns=digests,
        blocks={name: tuple(found) for name, found in zip(table.column_names, blocks, strict=True)},
    )


def row_digests(table: pa.Table) -> list[bytes]:
    """Return each row's digest, 32 bytes.

    Raises:
        DataError: The table has no canonical form.
    """
    digests: list[bytes] = []
    for columns, rows in _encoded(canonical_table(table)):
        parts = [pa.scalar(b"\0", pa.large_binary())]
        for lengths, offsets, payload in columns:
            width = np.arange(0, 4 * rows + 1, 4)
            parts.append(_binary(width, lengths.view(np.uint8)))
            parts.append(_binary(offsets, payload))
        _, ends, data = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary())).buffers()
        leaves = memoryview(data).tobytes()
        bounds = np.frombuffer(ends, dtype=np.int64)[: rows + 1].tolist()
        digests += [hashlib.sha256(leaves[start:end]).digest() for start, end in itertools.pairwise(bounds)]
    return digests


def _binary(offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


_Cells = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]


def _schema_leaf(table: pa.Table) -> bytes:
    schema = {
        "columns": [{"name": name, "type": kind} for name, kind in table_schema(table)],
        "format": ROWS_FORMAT,
        "rows": table.num_rows,
    }
    return _leaf(canonical_json(schema))


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def _encoded(table: pa.Table) -> Iterator[tuple[list[_Cells], int]]:
    """Yield the encoded columns of each batch of rows, and how many rows it has."""
    for start in range(0, table.num_rows, _BATCH_ROWS):
        batch = table.slice(start, _BATCH_ROWS)
        yield [_cells(column) for column in batch.columns], batch.num_rows


def _block_leaves(columns: Sequence[_Cells], rows: int) -> list[bytes]:
    hashes = []
    for start in range(0, rows, LEAF_ROWS):
        end = min(start + LEAF_ROWS, rows)
        leaf = hashlib.sha256(b"\0")
        for lengths, offsets, payload in columns:
            leaf.update(lengths[start:end].data)
            leaf.update(payload[offsets[start] : offsets[end]].data)
        hashes.append(leaf.digest())
    return hashes


def _cells(column: pa.ChunkedArray) -> _Cells:
    """Encode a column: lengths (N,), where each row's bytes start (N + 1,), and the bytes of the cells, joined."""
    try:
        array = column.combine_chunks()
    except pa.ArrowException as error:
        raise DataError(f"a column holds more than 2 GiB of text in {_BATCH_ROWS} rows") from error
    present = array.drop_null()
    widths, payload = _text_cells(present) if pa.types.is_string(array.type) else _fixed_cells(present)
    if array.null_count:
        lengths = np.full(len(array), -1, dtype="<i4")
        lengths[array.is_valid().to_numpy(zero_copy_only=False)] = widths
    else:
        lengths = np.ascontiguousarray(widths, dtype="<i4")
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(np.maximum(lengths, 0), out=offsets[1:])
    return lengths, offsets, payload


def _text_cells(present: pa.StringArray) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    if len(present) == 0:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint8)
    _, offset_buffer, data = present.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[present.offset : present.offset + len(present) + 1]
    payload = np.frombuffer(data or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    return np.diff(offsets), payload


def _fixed_cells(present: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    if pa.types.is_boolean(present.type):
        values = present.cast(pa.uint8()).to_numpy()
    elif pa.types.is_floating(present.type):
        values = present.to_numpy().astype("<f8", copy=False)
        if np.isnan(values).any():
            values = np.where(np.isnan(values), np.nan, values)  # one bit pattern for every NaN
    else:
        values = present.to_numpy().astype("<i8", copy=False)
    return np.full(len(values), values.itemsize, dtype=np.int32), values.view(np.uint8)


def _merkle_root(level: list[bytes]) -> bytes:
    # Pairing from the left and carrying an odd node up gives RFC 6962's split at the largest power of two.
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [hashlib.sha256(b"\1" + left + right).digest() for left, right in pairs] + level[len(level) & ~1 :]
    return level[0]


def parse_parquet(data: bytes, what: str, *, limit: int = MAX_BYTES) -> pa.Table:
    """Parse untrusted Parquet bytes into a canonical table of at least one row and at most `limit` bytes in memory.

    Raises:
        DataError: Not Parquet, damaged, empty, too large, or without a canonical form; `what` names it in the message.
    """
    try:
        table = canonical_table(_read_parquet(data, limit))
        check_size(table, limit=limit)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} is not a readable Parquet file: {' '.join(str(error).split()):.200}") from error
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    return table


def _read_parquet(data: bytes, limit: int) -> pa.Table:
    source = pa.BufferReader(data)
    # Text stays a dictionary until its size is known: one large value may be named by a million cells.
    texts = [it.name for it in pq.ParquetFile(source).schema_arrow if pa.types.is_string(it.type)]
    file = pq.ParquetFile(source, read_dictionary=texts, page_checksum_verification=True)
    if file.metadata.num_columns > MAX_COLUMNS or file.metadata.num_rows > MAX_ROWS:
        raise DataError(f"more than {MAX_COLUMNS} columns or {MAX_ROWS} rows")
    batches: list[pa.RecordBatch] = []
    size = 0
    # In batches, so that a small file that unfolds without end is refused while it is still small.
    for batch in file.iter_batches():
        size += sum(_unfolded(column) for column in batch.columns)
        if size > limit:
            raise DataError(f"more than the {limit} bytes allowed here")
        batches.append(batch)
    table = pa.Table.from_batches(batches, schema=file.schema_arrow)
    if table.num_rows != file.metadata.num_rows:
        raise DataError(f"it promises {file.metadata.num_rows} rows and holds {table.num_rows}")
    return table


def _unfolded(column: pa.Array) -> int:
    """Return how many bytes a column takes once its dictionary is decoded."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64()).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0) + 4 * len(column)


def check_size(table: pa.Table, *, limit: int = MAX_BYTES) -> None:
    """Check that a table has at least one row, and is within the limits of what is ever read.

    Raises:
        DataError: It has no row, more than 100,000,000, or takes more than `limit` bytes in memory.
    """
    if not 1 <= table.num_rows <= MAX_ROWS:
        raise DataError(f"the table has {table.num_rows} rows; 1 to {MAX_ROWS} are allowed")
    if table.nbytes > limit:
        raise DataError(f"the table takes more than the {limit} bytes allowed here")
