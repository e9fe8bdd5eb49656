"""Raw sources into one typed table: a CSV, JSON Lines or Parquet file, a folder of one, or the built-in reference data.

A file or folder lies on a file system or in an object store; the same files have the same digests in both.

Each file is read into memory once, and those very bytes are both hashed and parsed, so nothing can change in between.

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

In CSV an unquoted empty cell is null and a quoted one is empty text. Dates stay text. Without a description every
column is one of the others.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.dataset import DatasetSpec, Features, Label, read_regular_file
from portcullis.digest import FileEntry, manifest_digest, sha256
from portcullis.errors import DataError, UsageError
from portcullis.ingest import cheque_digits
from portcullis.ingest.csv_table import MAX_CELL_BYTES, parse_csv
from portcullis.ingest.jsonl_table import parse_jsonl
from portcullis.remote import is_remote, remote_files
from portcullis.table import MAX_BYTES, check_size, parse_parquet

_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_READERS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_INTEGER = r"\A(?:0|-?[1-9][0-9]{0,17})\z"
_DECIMAL = r"\A-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,25})?(?:[eE][+-]?[0-9]{1,3})?\z"


_Refuse = Callable[[pa.ChunkedArray, str], None]


@dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        table: Canonical table, columns in the source's order, rows in the order of the files and within them.
        spec: The description, resolved against the header.
        files: Path relative to the source, SHA-256 and size of each file, sorted by path.
        reader: `csv`, `jsonl`, `parquet` or `builtin`.
        raw_digest: What `digest.path_digest` returns for the source, or for the same files on disk.
    """

    table: pa.Table
    spec: DatasetSpec
    files: tuple[FileEntry, ...]
    reader: str
    raw_digest: str


@dataclass(frozen=True)
class _Part:
    """One parsed file; `position` names a cell by its row and column index, from 0.

    `kinds` says of a JSON Lines file's columns what they hold; those without any value are not in it.
    """

    path: str
    table: pa.Table
    position: Callable[[int, int], str]
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raw:
    """A source that was parsed, not yet typed; `spelled` names the columns that are typed by their cells' spelling."""

    parts: tuple[_Part, ...]
    spelled: frozenset[str]
    files: tuple[FileEntry, ...]
    reader: str
    digest: str


def read_source(uri: str, spec: DatasetSpec, *, limit: int = MAX_BYTES) -> Source:
    """Read a local path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`.

    A path or key names a file or a folder; `portcullis.remote` says where a store's server and credentials come from.
    A folder holds files of one kind (`.csv`, `.jsonl` or `.ndjson`, `.parquet`), at any depth, all with one header;
    rows follow the order of the paths. `limit` bounds the bytes of the source and of the table in memory.

    Raises:
        UsageError: Another scheme, a remote host, an unknown built-in, or a store's object that cannot be read.
        DataError: A link, a special or foreign file, nothing to read, too much of it, or a malformed cell or record,
            named by file and line (CSV with the record's number, JSON Lines) or row (Parquet), all from 1.
        ConfigError: The description contradicts the header.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    raw = _read(uri, limit)
    spec = spec.resolve(raw.parts[0].table.column_names)
    table = _typed(raw, spec)
    check_size(table, limit=limit)
    return Source(table, spec, raw.files, raw.reader, raw.digest)


def read_table(uri: str, *, limit: int = MAX_BYTES) -> pa.Table:
    """Read a source without a description: its columns are typed as those are that a description leaves out.

    Raises:
        UsageError: As `read_source`; so are the next two.
        DataError: A malformed source.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    table = _typed(_read(uri, limit), None)
    check_size(table, limit=limit)
    return table


def _read(uri: str, limit: int) -> _Raw:
    if uri.startswith("builtin:"):
        contents, is_folder = {_builtin_name(uri): cheque_digits.csv_bytes()}, False
        kind, reader = "csv", "builtin"
    else:
        contents, is_folder = remote_files(uri, limit=limit) if is_remote(uri) else _contents(_local_path(uri), limit)
        reader = kind = _kind(contents)
    files = tuple(FileEntry(path, sha256(data), len(data)) for path, data in sorted(contents.items()))
    parts = tuple(_parse(kind, entry.path, contents.pop(entry.path), limit) for entry in files)
    _check_one_schema(parts)
    names = frozenset(parts[0].table.column_names) if kind != "parquet" else frozenset()
    text = {name for part in parts for name, holds in part.kinds.items() if holds == "text"}
    return _Raw(parts, names - text, files, reader, manifest_digest(files) if is_folder else files[0].sha256)


def _builtin_name(uri: str) -> str:
    if uri != cheque_digits.URI:
        raise UsageError(f"unknown built-in data {uri!r}; the only one is {cheque_digits.URI!r}")
    return "cheque-digits.csv"


def _local_path(uri: str) -> Path:
    path = uri
    if uri.startswith("file:"):
        match = _FILE_URI.fullmatch(uri)
        if match is None:
            raise UsageError(f"{uri!r} is not a local file; write file:///path")
        path = unquote(match[1], errors="surrogateescape")
    elif _SCHEME.match(uri):
        raise UsageError(
            f"{uri!r}: only paths, file:, s3://, gs://, minio:// and builtin: are read; mount the data first"
        )
    if not path or not path.isprintable():
        raise UsageError("the source is empty or holds an unprintable character; give the path of a file or folder")
    return Path(path)


def _contents(path: Path, limit: int) -> tuple[dict[str, bytes], bool]:
    """Read every file of the source once: relative path to bytes, and whether the source is a folder."""
    try:
        is_link, is_folder = path.is_symlink(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if is_link:
        raise DataError(f"{path} is a link; links are refused")
    if not is_folder:
        return {path.name: read_regular_file(path, limit=limit)}, False
    contents: dict[str, bytes] = {}

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, folders, names, descriptor in os.fwalk(path, onerror=fail):
        here = Path(folder)
        for name in folders:
            if (here / name).is_symlink():
                raise DataError(f"{here / name} is a link; links are refused")
        for name in names:
            relative = (here / name).relative_to(path).as_posix()
            if not relative.isprintable():
                raise DataError(f"a file name below {path} is unprintable or not UTF-8")
            # Relative to the open folder, so that no folder on the way can be swapped for a link.
            contents[relative] = read_regular_file(name, limit=limit, dir_fd=descriptor)
            limit -= len(contents[relative])
    if not contents:
        raise DataError(f"{path} holds no file")
    return contents, True


def _kind(paths: Collection[str]) -> str:
    kinds = {path: _READERS.get(Path(path).suffix.lower()) for path in sorted(paths)}
    for path, kind in kinds.items():
        if kind is None:
            raise DataError(f"{path} is not a .csv, .jsonl, .ndjson or .parquet file")
    found = sorted({kind for kind in kinds.values() if kind})
    if len(found) != 1:
        raise DataError(f"the folder mixes {' and '.join(found)} files")
    return found[0]


def _parse(kind: str, path: str, data: bytes, limit: int) -> _Part:
    try:
        if kind == "csv":
            csv = parse_csv(data)
            return _Part(path, csv.table, csv.position)
        if kind == "jsonl":
            jsonl = parse_jsonl(data)
            return _Part(path, jsonl.table, lambda row, _: f"line {row + 1}", jsonl.kinds)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    part = _Part(path, parse_parquet(data, path, limit=limit), lambda row, _: f"row {row + 1}")
    for index, column in enumerate(part.table.columns):
        if pa.types.is_string(column.type):
            big = pc.greater(pc.binary_length(column), MAX_CELL_BYTES)
            _refuse([part], index, big, f"has more than {MAX_CELL_BYTES} bytes")
            _refuse([part], index, pc.match_substring(column, "\0"), "holds a null byte")
    return part


def _check_one_schema(parts: Sequence[_Part]) -> None:
    for part in parts[1:]:
        if part.table.schema != parts[0].table.schema:
            raise DataError(f"{part.path} has other columns, or other types, than {parts[0].path}")
    held: dict[str, tuple[str, str]] = {}
    for part in parts:
        for name, holds in part.kinds.items():
            first, known = held.setdefault(name, (part.path, holds))
            if holds != known:
                raise DataError(f"{part.path}: column {name!r} is {holds}, in {first} it is {known}")


def _refuse(parts: Sequence[_Part], index: int, mask: pa.ChunkedArray, reason: str) -> None:
    """Refuse the first cell that `mask` marks in column `index` of the joined table. Its value is never shown."""
    marked = np.flatnonzero(pc.fill_null(mask, fill_value=False).to_numpy())
    if not marked.size:
        return
    row = int(marked[0])
    for part in parts:
        if row < part.table.num_rows:
            name = part.table.column_names[index]
            raise DataError(f"{part.path}, {part.position(row, index)}: column {name!r} {reason}")
        row -= part.table.num_rows


def _typed(raw: _Raw, spec: DatasetSpec | None) -> pa.Table:
    table = pa.concat_tables([part.table for part in raw.parts])
    features = set(spec.features.columns) if spec else set()
    columns = []
    for index, (name, column) in enumerate(zip(table.column_names, table.columns, strict=True)):
        refuse = partial(_refuse, raw.parts, index)
        if spec and name in features:
            typed = _feature(column, spec.features, refuse)
        elif spec and name == spec.label.column:
            typed = _label(column, spec.label, refuse)
        elif (spec and name in spec.sensitive) or column.null_count == len(column):
            typed = column.cast(pa.string())
        else:
            typed = _inferred(column) if name in raw.spelled else column
        columns.append(_narrowed(typed))
    return pa.table(columns, names=table.column_names)


def _feature(column: pa.ChunkedArray, features: Features, refuse: _Refuse) -> pa.ChunkedArray:
    refuse(pc.is_null(column), "is empty")
    if pa.types.is_string(column.type):
        refuse(pc.invert(pc.match_substring_regex(column, _DECIMAL)), "is not a number")
        column = column.cast(pa.float64())
    elif pa.types.is_boolean(column.type):
        refuse(pc.is_valid(column), "is a boolean, not a number")
    inside = pc.and_(pc.greater_equal(column, features.low), pc.less_equal(column, features.high))
    refuse(pc.invert(inside), f"is not in [{features.low:g}, {features.high:g}]")
    return column


def _label(column: pa.ChunkedArray, label: Label, refuse: _Refuse) -> pa.ChunkedArray:
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        refuse(pc.is_valid(column), f"is {column.type}; a label is text or an integer")
    refuse(pc.is_null(column), "is empty")
    column = column.cast(pa.string())
    refuse(pc.invert(pc.is_in(column, pa.array(label.classes))), "is not one of the label's classes")
    return column


def _inferred(text: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.all(pc.match_substring_regex(text, _INTEGER)).as_py():
        return text.cast(pa.int64())
    if pc.all(pc.match_substring_regex(text, _DECIMAL)).as_py():
        numbers = text.cast(pa.float64())
        return numbers if pc.all(pc.is_finite(numbers)).as_py() else text
    if pc.all(pc.is_in(text, pa.array(["true", "false", None]))).as_py():
        return text.cast(pa.bool_())
    return text


def _narrowed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    values = column.drop_null().to_numpy()
    whole = (np.floor(values) == values) & (np.abs(values) <= 2**53) & ~(np.signbit(values) & (values == 0))
    return column.cast(pa.int64()) if whole.all() else column
