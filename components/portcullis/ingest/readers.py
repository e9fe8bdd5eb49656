"""Raw sources into one typed table: a CSV, JSON Lines or Parquet file, a folder of one, or the built-in reference data.

A file or folder lies on a file system or in an object store; the same files have the same digests in both.

A source may be of any size: its files are digested in a first pass, its cells checked and its columns typed in a
second, and its rows given, piece by piece, in later ones. Whatever is parsed is what was digested, or it is refused.

Types are decided over the whole source, in this order, so that the CSV, the JSON Lines and the Parquet form of a table
agree:

- feature columns are numbers, never empty, within the description's bounds;
- the label column becomes text, each cell one of the classes (an integer through its decimal spelling);
- sensitive columns are text as written (the ZIP code 02139 keeps its zero);
- of the other columns, Parquet's types and JSON's text are kept. A CSV column, or one of JSON's numbers or booleans as
  they are spelled, is int64 if every filled cell is an integer without leading zero or plus and of at most 18 digits;
  else float64 if every filled cell is a finite decimal number of at most 15 digits before the point; else bool if every
  filled cell is `true` or `false`; else text;
- a float column of whole numbers of at most 2**53 in size is int64 (1.0 and 1 are one spelling), unless it holds -0.0;
- a column without any value is text.

A folder of Parquet may spell columns in its folders' names, as Hive does (`year=2024/rows.parquet`): they come last,
and are text unless the description makes them features.

In CSV an unquoted empty cell is null and a quoted one is empty text. Dates stay text. Without a description every
column is one of the others.

A malformed record is refused, or set aside where `open_source` is given a description that allows it: then every pass
sets the same ones aside, and the table is that of the source without them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from portcullis.dataset import DatasetSpec
from portcullis.digest import FileEntry
from portcullis.errors import DataError, PortcullisError
from portcullis.ingest.column_types import Facts, Survey, marked_rows, typed
from portcullis.ingest.csv_table import MAX_CELL_BYTES, read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ingest.malformed import Check, Malformed, Reason
from portcullis.ingest.partitions import with_partition
from portcullis.ingest.sources import SourceFile, SourceFiles, source_files
from portcullis.table import MAX_BYTES, TableStream, check_size, stream_parquet


@dataclass(frozen=True)
class SourceStream:
    """A source that was digested, checked and typed, to be read in pieces.

    Attributes:
        table: Its rows, columns in the source's order, rows in the order of the files and within them.
        spec: The description, resolved against the header.
        files: Path relative to the source, SHA-256 and size of each file, sorted by path.
        reader: `csv`, `jsonl`, `parquet` or `builtin`.
        raw_digest: What `digest.path_digest` returns for the source, or for the same files on disk.
        records: How many records there are: the rows, and the malformed ones.
        malformed: How many records are not in the table for which reason.
        set_aside: Reads them, each with the path of its file, in the source's order.
    """

    table: TableStream
    spec: DatasetSpec
    files: tuple[FileEntry, ...]
    reader: str
    raw_digest: str
    records: int
    malformed: Mapping[Reason, int]
    set_aside: Callable[[], Iterator[tuple[str, Malformed]]]


@dataclass(frozen=True)
class Source:
    """A source that was read into memory.

    Attributes:
        table: Canonical table; the rest is as in `SourceStream`.
        spec: The description.
        files: The files.
        reader: What read them.
        raw_digest: Their digest.
    """

    table: pa.Table
    spec: DatasetSpec
    files: tuple[FileEntry, ...]
    reader: str
    raw_digest: str


@dataclass(frozen=True)
class _Piece:
    """Some rows as they were read; `position` names a cell by its row and column index, from 0.

    `kinds` says of a JSON Lines file's columns what they hold; those without any value so far are not in it. There were
    `records`: the rows, and those that were set aside as `malformed`.
    """

    path: str
    table: pa.Table
    position: Callable[[int, int], str]
    kinds: Mapping[str, str]
    records: int
    malformed: Sequence[Malformed] = ()


def open_source(uri: str, spec: DatasetSpec) -> SourceStream:
    """Open a local path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`, of any size.

    A path or key names a file or a folder; `portcullis.remote` says where a store's server and credentials come from.
    A folder holds files of one kind (`.csv`, `.jsonl` or `.ndjson`, `.parquet`), at any depth, all with one header;
    rows follow the order of the paths.

    Raises:
        UsageError: Another scheme, a remote host, an unknown built-in, or a store's object that cannot be read.
        DataError: A link, a special or foreign file, nothing to read, or a malformed cell or record, named by file and
            line (CSV with the record's number, JSON Lines) or row (Parquet), all from 1; or more malformed records
            than the description allows to be set aside, or no other ones. Reading the pieces refuses a source that is
            no longer what was digested.
        ConfigError: The description contradicts the header.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    sources = source_files(uri)
    table, malformed, check = _stream(sources, spec, spec.quarantine_at_most)
    return SourceStream(
        table,
        spec.resolve(table.schema.names),
        _entries(sources),
        sources.reader,
        sources.digest,
        table.rows + sum(malformed.values()),
        malformed,
        lambda: set_aside(sources, check),
    )


def read_source(uri: str, spec: DatasetSpec, *, limit: int = MAX_BYTES) -> Source:
    """Read a source into memory; a malformed record is refused, whatever the description allows.

    Args:
        uri: As for `open_source`.
        spec: Its description.
        limit: Most bytes of the source, and of the table in memory.

    Raises:
        UsageError: As `open_source`; so are the others.
        DataError: A malformed source, or one that is too large.
        ConfigError: The description contradicts the header.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    sources = source_files(uri, limit=limit)
    table, _, _ = _stream(sources, spec)
    return Source(
        _read(table, limit), spec.resolve(table.schema.names), _entries(sources), sources.reader, sources.digest
    )


def stream_table(uri: str) -> TableStream:
    """Open a source of any size without a description: columns are typed as those are that a description leaves out.

    Raises:
        UsageError: As `open_source`; so are the next two.
        DataError: A malformed source.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    return _stream(source_files(uri), None)[0]


def read_table(uri: str, *, limit: int = MAX_BYTES) -> pa.Table:
    """Read a source without a description: its columns are typed as those are that a description leaves out.

    Raises:
        UsageError: As `read_source`; so are the next two.
        DataError: A malformed source.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    return _read(_stream(source_files(uri, limit=limit), None)[0], limit)


def _entries(sources: SourceFiles) -> tuple[FileEntry, ...]:
    return tuple(file.entry for file in sources.files)


def _read(table: TableStream, limit: int) -> pa.Table:
    pieces: list[pa.Table] = []
    size = 0
    for piece in table.pieces():
        size += piece.nbytes
        if size > limit:
            raise DataError(f"the table takes more than the {limit} bytes allowed here")
        pieces.append(piece)
    whole = pa.concat_tables(pieces).combine_chunks()
    check_size(whole, limit=limit)
    return whole


def _stream(
    sources: SourceFiles, spec: DatasetSpec | None, at_most: int = 0
) -> tuple[TableStream, Mapping[Reason, int], Check | None]:
    """Check every cell, and type every column.

    Returns:
        The rows; how many records were set aside, by reason; and what sets the same ones aside again, if any were.
    """
    found = survey(sources, spec, at_most=at_most)
    schema = found.schema(spec)
    check = setting_aside(spec, found.malformed)
    return TableStream(schema, found.rows, lambda: typed_pieces(sources, schema, check)), found.malformed, check


@dataclass(frozen=True)
class Surveyed:
    """What a source, or a part of one, holds: every cell was checked.

    Attributes:
        columns: As they were read, in their order.
        rows: How many.
        facts: Column to what holds of all its cells.
        kinds: Of JSON Lines, column to what it holds, and the path of the file that says so.
        text: Whether cells are typed by how they are spelled: not Parquet's.
        malformed: How many records are to be set aside, by reason.
    """

    columns: pa.Schema
    rows: int
    facts: Mapping[str, Facts]
    kinds: Mapping[str, tuple[str, str]]
    text: bool
    malformed: Mapping[Reason, int] = field(default_factory=dict)

    def schema(self, spec: DatasetSpec | None) -> pa.Schema:
        """Return each column's type."""
        words = {name for name, (_, holds) in self.kinds.items() if holds == "text"}
        spelled = frozenset(self.columns.names) - words if self.text else frozenset()
        resolved = spec.resolve(self.columns.names) if spec else None
        return Survey(resolved, dict(self.facts)).schema(self.columns, spelled)


def survey(sources: SourceFiles, spec: DatasetSpec | None, *, at_most: int = 0) -> Surveyed:
    """Check every cell of a source, and gather what its columns hold.

    Args:
        sources: The files.
        spec: What the columns mean; None where nobody says.
        at_most: How many malformed records may be set aside; of Parquet, none.

    Raises:
        DataError: A malformed cell or record, or more of them than may be set aside; or files with different columns.
        ConfigError: The description contradicts the header.
    """
    found = Survey(spec)
    at_most = 0 if sources.kind == "parquet" else at_most
    check = found.faults if at_most else None
    first: _Piece | None = None
    rows = records = 0
    malformed: Counter[Reason] = Counter()
    kinds: dict[str, tuple[str, str]] = {}
    for piece in _pieces(sources, check):
        first = first or piece
        if piece.table.schema != first.table.schema:
            raise DataError(f"{piece.path} has other columns, or other types, than {first.path}")
        for name, holds in piece.kinds.items():
            check_kind(kinds, name, piece.path, holds)
        if check is None:
            found.check(piece.table, partial(partial, _refuse, piece))
        found.add(piece.table)
        rows, records = rows + piece.table.num_rows, records + piece.records
        malformed.update(it.fault.reason for it in piece.malformed)
        if malformed.total() > at_most:
            last = piece.malformed[at_most - malformed.total()]
            where = f"{piece.path}, line {last.line}: {last.fault.reason.replace('_', ' ')}"
            raise DataError(f"{where}; more than the {at_most} malformed records that may be set aside")
    if first is None or rows + malformed.total() != records:
        raise PortcullisError(f"of {records} records, {rows} were read and {malformed.total()} set aside")
    if not rows:
        raise DataError("every record is malformed")
    return Surveyed(first.table.schema, rows, found.facts, kinds, sources.kind != "parquet", malformed)


def check_kind(kinds: dict[str, tuple[str, str]], name: str, path: str, holds: str) -> None:
    """Note what a column of JSON Lines holds.

    Raises:
        DataError: Elsewhere it holds something else.
    """
    where, known = kinds.setdefault(name, (path, holds))
    if holds != known:
        raise DataError(f"{path}: column {name!r} is {holds}, in {where} it is {known}")


def setting_aside(spec: DatasetSpec | None, malformed: Mapping[Reason, int]) -> Check | None:
    """Return what sets the same records aside again as a survey did; None where it set none aside."""
    return Survey(spec).faults if malformed else None


def set_aside(sources: SourceFiles, check: Check | None) -> Iterator[tuple[str, Malformed]]:
    """Yield the malformed records of files, each with its file's path, in the source's order; none without a check.

    Raises:
        DataError: As `survey`.
    """
    if check:
        yield from ((piece.path, it) for piece in _pieces(sources, check) for it in piece.malformed)


def read_pieces(sources: SourceFiles, check: Check | None = None) -> Iterator[pa.Table]:
    """Yield the rows of files as they are read, before any column is typed; the arguments are `typed_pieces`'.

    Raises:
        DataError: As `survey`.
    """
    return (piece.table for piece in _pieces(sources, check) if piece.table.num_rows)


def typed_pieces(sources: SourceFiles, schema: pa.Schema, check: Check | None = None) -> Iterator[pa.Table]:
    """Yield the rows of files that were surveyed, under the types that the survey found.

    Args:
        sources: The files.
        schema: The types.
        check: What sets malformed records aside, where the survey did.

    Raises:
        DataError: They are not what was surveyed.
    """
    return (typed(piece, schema) for piece in read_pieces(sources, check))


def _pieces(sources: SourceFiles, check: Check | None) -> Iterator[_Piece]:
    for file in sources.files:
        yield from _PARSERS[sources.kind](file, check)


def _csv(file: SourceFile, check: Check | None) -> Iterator[_Piece]:
    path = file.entry.path
    with file.open() as opened:
        try:
            for block in read_csv(opened, check=check, beginning=file.beginning):
                yield _Piece(path, block.table, block.position, {}, block.records, block.malformed)
        except DataError as error:
            raise _of_file(path, error) from error


def _jsonl(file: SourceFile, check: Check | None) -> Iterator[_Piece]:
    path = file.entry.path
    with file.open() as opened:
        try:
            for block in read_jsonl(opened, check=check, beginning=file.beginning):
                yield _Piece(path, block.table, block.position, block.kinds, block.records, block.malformed)
        except DataError as error:
            raise _of_file(path, error) from error


def _parquet(file: SourceFile, _: Check | None) -> Iterator[_Piece]:
    path = file.entry.path
    first = 0
    with file.open() as opened:
        for rows in stream_parquet(opened, path, part=file.groups).pieces():
            table = with_partition(rows, path)
            piece = _Piece(path, table, partial(_row, first), {}, table.num_rows)
            for index, column in enumerate(table.columns):
                if pa.types.is_string(column.type):
                    big = pc.greater(pc.binary_length(column), MAX_CELL_BYTES)
                    _refuse(piece, index, big, f"has more than {MAX_CELL_BYTES} bytes", "oversized_cell")
                    _refuse(piece, index, pc.match_substring(column, "\0"), "holds a null byte", "null_byte")
            yield piece
            first += table.num_rows


def _row(first: int, row: int, _: int) -> str:
    return f"row {first + row + 1}"


def _of_file(path: str, error: DataError) -> DataError:
    said = str(error)
    return DataError(said if said.startswith(path) else f"{path}: {said}")


_PARSERS: dict[str, Callable[[SourceFile, Check | None], Iterator[_Piece]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "parquet": _parquet,
}


def _refuse(piece: _Piece, index: int, mask: pa.ChunkedArray, said: str, _: Reason) -> bool:
    """Refuse the first cell that `mask` marks in column `index`. Its value is never shown."""
    if marked := marked_rows(mask):
        name = piece.table.column_names[index]
        raise DataError(f"{piece.path}, {piece.position(marked[0], index)}: column {name!r} {said}")
    return False
