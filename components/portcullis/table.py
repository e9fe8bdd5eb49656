"""Tables between steps: the canonical form of one, read from untrusted Parquet, and the digest of its rows.

A table that may be larger than memory is a `TableStream`: read in pieces, again and again. How it is cut into pieces
changes no digest and no byte of what is written of it.

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

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from portcullis.digest import canonical_json
from portcullis.errors import DataError, PortcullisError
from portcullis.files import BinaryFile

ROWS_FORMAT = "portcullis-rows/v1"
COLUMN_FORMAT = "portcullis-column/v1"
LEAF_ROWS = 1024

MAX_BYTES = (1 << 31) - 1  # of what is held in memory as a whole; Arrow's string offsets are int32
MAX_COLUMNS = 10_000
MAX_ROWS = 100_000_000  # likewise
MAX_BLOCK_BYTES = 256 << 20  # of 1,024 rows, which a digest and a writer hold in memory whatever the table's size
MAX_UNFOLDING = 100  # times the file's size, and more than a block's bytes: such a row group is taken for a bomb
PIECE_BYTES = 8 << 20

HEAD_ROWS = 8 * LEAF_ROWS  # what is looked at to tell what a column holds

_BATCH_ROWS = 64 * LEAF_ROWS
_READ_ROWS = 16 * LEAF_ROWS
_READ_AHEAD = 16 << 20  # over all columns of a Parquet file
_UNFOLDED_BYTES = 64 << 20
_TYPES = {pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool", pa.string(): "string"}


def canonical_table(table: pa.Table) -> pa.Table:
    """Return the table with every column as int64, float64, bool or string, and without metadata.

    Narrower numbers are widened, dictionaries decoded, large and view strings made plain; a column of type null becomes
    a string column of nulls. No value changes.

    Raises:
        DataError: A column name is repeated, empty or unprintable, a type has no canonical form, an unsigned integer
            exceeds int64, or a string is not UTF-8.
    """
    schema = canonical_schema(table.schema)
    columns = []
    for column_field, column in zip(schema, table.columns, strict=True):
        try:
            columns.append(column.cast(column_field.type))
        except pa.ArrowException as error:
            raise DataError(
                f"column {column_field.name!r} holds a value that {column_field.type} cannot hold"
            ) from error
    result = pa.table(columns, schema=schema)
    try:
        result.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"the table is malformed: {error}") from error
    return result


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema that `canonical_table` gives a table of this one.

    Raises:
        DataError: A column name is repeated, empty or unprintable, or a type has no canonical form.
    """
    check_header(schema.names)
    fields = []
    for column in schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        canonical = _canonical_type(kind)
        if canonical is None:
            raise DataError(
                f"column {column.name!r} has type {kind}; store integers, floats, booleans or text "
                "(instants as ISO 8601 text)"
            )
        fields.append((column.name, canonical))
    return pa.schema(fields)


def _canonical_type(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if types.is_boolean(kind):
        return pa.bool_()
    if _is_text(kind) or types.is_null(kind):
        return pa.string()
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


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


def table_schema(table: "pa.Table | TableStream | pa.Schema") -> tuple[tuple[str, str], ...]:
    """Return a canonical table's columns in order: (name, one of int64, float64, bool, string)."""
    return _described(table if isinstance(table, pa.Schema) else table.schema)


def schema_of(columns: Sequence[Sequence[str]]) -> pa.Schema:
    """Return the schema of which `table_schema` says this.

    Raises:
        KeyError: A type is none of the four.
    """
    types = {name: type_ for type_, name in _TYPES.items()}
    return pa.schema([(name, types[kind]) for name, kind in columns])


def _described(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, _TYPES[column.type]) for column in schema)


# Tables in pieces.


@dataclass(frozen=True)
class TableStream:
    """A canonical table that is read in pieces, again and again, each time the same rows.

    Attributes:
        schema: Its columns, of canonical types only, without metadata.
        rows: Their exact number, known before the first piece.
        pieces: Gives the rows in order, in tables of that schema of at least one row and about `PIECE_BYTES` at most;
            where they are cut means nothing.
    """

    schema: pa.Schema
    rows: int
    pieces: Callable[[], Iterator[pa.Table]]

    def __post_init__(self) -> None:
        if not self.schema.equals(canonical_schema(self.schema), check_metadata=True):
            raise PortcullisError("the schema of a stream of rows is not canonical")


def stream_of(table: pa.Table) -> TableStream:
    """Return a table in memory as a stream; its pieces are views of it.

    Raises:
        DataError: The table has no canonical form.
    """
    table = canonical_table(table)
    return TableStream(table.schema, table.num_rows, lambda: _cut(table))


def head_of(table: TableStream, rows: int = HEAD_ROWS) -> pa.Table:
    """Return the first rows of a stream as a table; fewer where it has no more."""
    parts, read = [table.schema.empty_table()], 0
    for piece in table.pieces():
        parts.append(piece.slice(0, rows - read))
        read += parts[-1].num_rows
        if read == rows:
            break
    return pa.concat_tables(parts)


def row_bytes(table: pa.Table | pa.RecordBatch) -> NDArray[np.int64]:
    """Return how many bytes each row takes in memory, (N,): 8 a number, 1 a boolean, 4 and its UTF-8 a text.

    It depends on the values alone: not on nulls' hidden bytes, on chunks, or on whether text lies in a dictionary.
    """
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    fixed = 0
    for column in table.columns:
        if _canonical_type(column.type) in (pa.int64(), pa.float64()):
            fixed += 8
        elif pa.types.is_boolean(column.type):
            fixed += 1
        else:
            fixed += 4
            sizes += _text_lengths(column)
    sizes += fixed
    return sizes


def _text_lengths(column: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    if isinstance(column, pa.ChunkedArray):
        return np.concatenate([np.zeros(0, dtype=np.int64), *map(_text_lengths, column.chunks)])
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64)
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = pc.binary_length(column)
    found: NDArray[np.int64] = lengths.fill_null(0).to_numpy().astype(np.int64, copy=False)
    return found


def _cut(table: pa.Table | pa.RecordBatch) -> Iterator[pa.Table | pa.RecordBatch]:
    """Cut into slices of at most `PIECE_BYTES`, or of one row."""
    for first in range(0, table.num_rows, _BATCH_ROWS):
        batch = table.slice(first, _BATCH_ROWS)
        ends = np.cumsum(row_bytes(batch))
        start = 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, before + PIECE_BYTES, side="right")))
            yield batch.slice(start, end - start)
            start = end


class _BlockLimit:
    """Refuses rows of which a block of 1,024 could not be held in memory."""

    def __init__(self) -> None:
        self._rows = self._size = 0  # of the unfinished block

    def add(self, sizes: NDArray[np.int64]) -> None:
        """Take the sizes of the next rows, at least one.

        Raises:
            DataError: A block takes more than 256 MiB.
        """
        blocks = [int(part.sum()) for part in np.split(sizes, range(LEAF_ROWS - self._rows, len(sizes), LEAF_ROWS))]
        blocks[0] += self._size
        if max(blocks) > MAX_BLOCK_BYTES:
            raise DataError(f"{LEAF_ROWS} rows take more than the {MAX_BLOCK_BYTES} bytes allowed; shorten their cells")
        self._rows = (self._rows + len(sizes)) % LEAF_ROWS
        self._size = blocks[-1] if self._rows else 0


class BlockCutter:
    """Cuts pieces of a stream anew, into whole blocks of 1,024 rows; it holds less than a block between two pieces."""

    def __init__(self, schema: pa.Schema, rows: int) -> None:
        self._schema, self._rows = schema, rows
        self._left = rows
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._limit = _BlockLimit()

    def push(self, piece: pa.Table) -> Iterator[pa.Table]:
        """Take the next rows; yields tables of the blocks that they finish, of the last block at the last row.

        Raises:
            DataError: A block takes more than 256 MiB, or there are more rows than were promised.
        """
        if not piece.schema.equals(self._schema):
            raise PortcullisError("a piece does not have the columns of its stream")
        for part in _cut(piece):
            self._left -= part.num_rows
            if self._left < 0:
                raise DataError(f"the table promises {self._rows} rows and holds more")
            self._limit.add(row_bytes(part))
            self._held.append(part)
            self._held_rows += part.num_rows
            whole = self._held_rows // LEAF_ROWS * LEAF_ROWS if self._left else self._held_rows
            if whole:
                table = pa.concat_tables(self._held)
                self._held_rows -= whole
                self._held = [table.slice(whole)] if self._held_rows else []
                yield table.slice(0, whole)

    def finish(self) -> None:
        """Check that every row came.

        Raises:
            DataError: There are fewer than were promised.
        """
        if self._left:
            raise DataError(f"the table promises {self._rows} rows and holds {self._rows - self._left}")


# Digests.


@dataclass(frozen=True)
class RowDigests:
    """The digests of one table (see the module's docstring).

    Attributes:
        root: The logical root, 64 hexadecimal characters.
        columns: Column name to column digest, 64 hexadecimal characters; empty where they were not asked for.
    """

    root: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class TableDigests(RowDigests):
    """Those of a table in memory, and where they are from.

    Attributes:
        blocks: Column name to the leaves of its blocks of 1,024 rows, 32 bytes each.
    """

    blocks: Mapping[str, tuple[bytes, ...]]


class RowDigester:
    """The digests of a table that comes in pieces; it holds a hash per level of each tree, and less than a block.

    Args:
        schema: The table's, of canonical types only.
        rows: How many rows will come.
        columns: Whether to digest the columns too, which hashes every byte twice.
    """

    def __init__(self, schema: pa.Schema, rows: int, *, columns: bool = False) -> None:
        described = [{"name": name, "type": kind} for name, kind in _described(schema)]
        self._cutter = BlockCutter(schema, rows)
        self._tree = _Tree({"columns": described, "format": ROWS_FORMAT, "rows": rows})
        self._columns = {
            column["name"]: _Tree({"format": COLUMN_FORMAT, "rows": rows, "type": column["type"]})
            for column in (described if columns else [])
        }

    def update(self, piece: pa.Table) -> list[tuple[bytes, ...]]:
        """Take the next rows.

        Returns:
            For each block that they finish, its leaf in each column, 32 bytes; empty tuples without `columns`.

        Raises:
            DataError: 1,024 rows take more than 256 MiB, or there are more rows than were promised.
        """
        finished = []
        for table in self._cutter.push(piece):
            columns = [_cells(column) for column in table.columns]
            for leaf in _block_leaves(columns, table.num_rows):
                self._tree.append(leaf)
            trees = zip(self._columns.values(), columns, strict=False)
            leaves = [(tree, _block_leaves([column], table.num_rows)) for tree, column in trees]
            for tree, found in leaves:
                for leaf in found:
                    tree.append(leaf)
            finished += list(zip(*(found for _, found in leaves), strict=True))
        return finished

    def digests(self) -> RowDigests:
        """Return the digests, once every row has come.

        Raises:
            DataError: There are fewer rows than were promised.
        """
        self._cutter.finish()
        return RowDigests(self._tree.root().hex(), {name: tree.root().hex() for name, tree in self._columns.items()})


def digested(table: TableStream, digester: RowDigester) -> TableStream:
    """Return the same stream, to be read once: the digester takes each piece that is read of it."""

    def pieces() -> Iterator[pa.Table]:
        for piece in table.pieces():
            digester.update(piece)
            yield piece

    return replace(table, pieces=pieces)


def logical_root(table: pa.Table | TableStream) -> str:
    """Return the table's logical root (see the module's docstring): 64 hexadecimal characters.

    Raises:
        DataError: The table has no canonical form, or 1,024 rows take more than 256 MiB.
    """
    stream = table if isinstance(table, TableStream) else stream_of(table)
    digester = RowDigester(stream.schema, stream.rows)
    for piece in stream.pieces():
        digester.update(piece)
    return digester.digests().root


def table_digests(table: pa.Table) -> TableDigests:
    """Return the logical root and the digests of the columns and of their blocks.

    Raises:
        DataError: As `logical_root`.
    """
    stream = stream_of(table)
    digester = RowDigester(stream.schema, stream.rows, columns=True)
    blocks = [leaves for piece in stream.pieces() for leaves in digester.update(piece)]
    digests = digester.digests()
    by_column = zip(*blocks, strict=True) if blocks else itertools.repeat(())
    return TableDigests(digests.root, digests.columns, dict(zip(stream.schema.names, by_column, strict=False)))


def row_digests(table: pa.Table) -> list[bytes]:
    """Return each row's digest, 32 bytes.

    Raises:
        DataError: The table has no canonical form.
    """
    digests: list[bytes] = []
    for piece in stream_of(table).pieces():
        columns, rows = [_cells(column) for column in piece.columns], piece.num_rows
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


class _Tree:
    """The root of RFC 6962 over leaves that come one after another; it holds the roots of the complete subtrees."""

    def __init__(self, described: Mapping[str, object]) -> None:
        self._leaves = 0
        self._subtrees: list[bytes] = []  # the largest first, one for each bit of the number of leaves
        self.append(hashlib.sha256(b"\0" + canonical_json(described)).digest())

    def append(self, leaf: bytes) -> None:
        """Add the next leaf, which is hashed already."""
        node, full = leaf, self._leaves
        while full & 1:
            node, full = _parent(self._subtrees.pop(), node), full >> 1
        self._subtrees.append(node)
        self._leaves += 1

    def root(self) -> bytes:
        """Return the root of the leaves so far."""
        return functools.reduce(lambda right, left: _parent(left, right), reversed(self._subtrees))


def _parent(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


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
        raise DataError(f"a column holds more than 2 GiB of text in {LEAF_ROWS} rows") from error
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


# Parquet.


def parse_parquet(data: bytes, what: str, *, limit: int = MAX_BYTES) -> pa.Table:
    """Parse untrusted Parquet bytes into a canonical table of at least one row and at most `limit` bytes in memory.

    Raises:
        DataError: Not Parquet, damaged, empty, too large, or without a canonical form; `what` names it in the message.
    """
    with _parquet_errors(what):
        file = _open_parquet(pa.BufferReader(data))
        if file.metadata.num_rows > MAX_ROWS:
            raise DataError(f"more than {MAX_ROWS} rows")
        canonical_schema(file.schema)
        batches: list[pa.RecordBatch] = []
        size = 0
        # In batches, so that a small file that unfolds without end is refused while it is still small.
        for batch, sizes in file.batches():
            size += int(sizes.sum())
            if size > limit:
                raise DataError(f"more than the {limit} bytes allowed here")
            batches.append(batch)
        table = canonical_table(pa.Table.from_batches(batches, schema=file.schema))
        check_size(table, limit=limit)
    return table


def stream_parquet(file: BinaryFile, what: str, *, part: tuple[int, int] = (0, 1)) -> TableStream:
    """Read untrusted Parquet as a canonical table in pieces, in bounded memory whatever its row groups.

    Arrow unpacks a page as a whole, so one page of each column comes on top; a file whose pages lie of their size can
    make it take gigabytes before it is refused, as only a limit on the process's memory prevents.

    Args:
        file: Seekable, and open as long as pieces are read; it must not change (see `PinnedFile`).
        what: Names it in messages.
        part: Which of how many parts is read, from 0: of N row groups, those from N * place // number on.

    Returns:
        The stream. Reading its pieces raises `DataError` where what follows is damaged, where 1,024 rows take more than
        256 MiB, and at the end unless there are as many rows as promised.

    Raises:
        DataError: Not Parquet, damaged, empty, or without a canonical form.
    """
    with _parquet_errors(what):
        opened = _open_parquet(file, part)
        schema, rows = canonical_schema(opened.schema), opened.rows
        if rows < 1:
            raise DataError("the table has 0 rows; at least 1 is needed")

    def pieces() -> Iterator[pa.Table]:
        with _parquet_errors(what):
            limit = _BlockLimit()
            for batch, sizes in _open_parquet(file, part).batches():
                limit.add(sizes)
                for piece in _cut(batch):
                    yield canonical_table(pa.Table.from_batches([piece]))

    return TableStream(schema, rows, pieces)


@contextlib.contextmanager
def _parquet_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} is not a readable Parquet file: {' '.join(str(error).split()):.200}") from error
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


def _open_parquet(source: BinaryFile | pa.NativeFile, part: tuple[int, int] = (0, 1)) -> "_ParquetReader":
    file = pq.ParquetFile(source)
    if file.metadata.num_columns > MAX_COLUMNS:
        raise DataError(f"more than {MAX_COLUMNS} columns")
    source.seek(0, os.SEEK_END)
    most = max(MAX_BLOCK_BYTES, MAX_UNFOLDING * source.tell())
    # Of the groups as a whole: to ask for a column's own figures makes Arrow abort where they are malformed.
    if any(file.metadata.row_group(it).total_byte_size > most for it in range(file.metadata.num_row_groups)):
        raise DataError(_BOMB)
    groups = file.metadata.num_row_groups
    place, number = part
    chosen = range(groups * place // number, groups * (place + 1) // number)
    if number > 1 and not chosen:
        raise DataError(f"it has {groups} row groups, too few for {number} parts; use fewer shards")
    return _ParquetReader(source, file.metadata, file.schema_arrow, chosen, most)


_BOMB = f"a row group unfolds to more than {MAX_UNFOLDING} times the file's size; write smaller row groups"


@dataclass(frozen=True)
class _ParquetReader:
    """Reads the row groups of a file in batches that fit into memory also where their text unfolds."""

    source: BinaryFile | pa.NativeFile
    metadata: pq.FileMetaData
    schema: pa.Schema
    groups: range
    most: int  # bytes of a group's rows in memory

    @property
    def rows(self) -> int:
        """How many rows the groups promise."""
        whole = len(self.groups) == self.metadata.num_row_groups
        return int(self.metadata.num_rows if whole else sum(self.metadata.row_group(it).num_rows for it in self.groups))

    def batches(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.int64]]]:
        """Yield the rows in batches of at least one, with `row_bytes`; refuse unless they are as many as promised.

        What a group promises to take leaves out that a million of its cells may name one text, so it is counted here.
        """
        # Not as dictionaries: Arrow would keep that of a whole row group, which may be all of its text.
        file = self._file(buffer_size=max(1 << 12, _READ_AHEAD // max(1, self.metadata.num_columns)))
        left = promised = self.rows
        for index in self.groups:
            rows = self._batch_rows(index)
            unfolded = 0
            for batch in file.iter_batches(batch_size=rows, row_groups=[index], use_threads=False):
                left -= batch.num_rows
                sizes = row_bytes(batch)
                unfolded += int(sizes.sum())
                if unfolded > self.most:
                    raise DataError(_BOMB)
                if batch.num_rows:
                    yield batch, sizes
        if left:
            raise DataError(f"it promises {promised} rows and holds {promised - left}")

    def _batch_rows(self, index: int) -> int:
        """Return how many rows of a group make a batch of about a piece's bytes.

        A small file can unfold without end, since a million cells may name one large text of a dictionary; so a batch
        has no more rows than fit into `_UNFOLDED_BYTES` were each cell the longest of its column's dictionary.
        """
        group = self.metadata.row_group(index)
        usual = PIECE_BYTES * group.num_rows // max(1, group.total_byte_size)
        texts = [column.name for column in self.schema if _is_text(column.type)]
        file = self._file(read_dictionary=texts, buffer_size=1 << 16)
        longest = 8 * len(self.schema)
        for name in texts:
            for batch in itertools.islice(file.iter_batches(1, [index], [name], use_threads=False), 1):
                longest += pc.max(pc.binary_length(batch.column(0).dictionary)).as_py() or 0
        return int(max(1, min(_READ_ROWS, usual, _UNFOLDED_BYTES // longest)))

    def _file(self, **options: Any) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.source, metadata=self.metadata, pre_buffer=False, page_checksum_verification=True, **options
        )


def check_size(table: pa.Table, *, limit: int = MAX_BYTES) -> None:
    """Check that a table has at least one row, and is within the limits of what is ever read.

    Raises:
        DataError: It has no row, more than 100,000,000, or takes more than `limit` bytes in memory.
    """
    if not 1 <= table.num_rows <= MAX_ROWS:
        raise DataError(f"the table has {table.num_rows} rows; 1 to {MAX_ROWS} are allowed")
    if table.nbytes > limit:
        raise DataError(f"the table takes more than the {limit} bytes allowed here")
