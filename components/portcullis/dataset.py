"""A data set between two steps: a directory of exactly `data.parquet` and `dataset.json`.

Between two steps that directory rests sealed (`portcullis.at_rest`); in plain text it is a user's own.

`dataset.json` is the canonical JSON of a `DatasetSpec`: what the label is, which columns are features, which are
sensitive. `data.parquet` holds a canonical table (see `portcullis.table`).
"""

import contextlib
import difflib
import functools
import hashlib
import io
import math
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from portcullis.digest import FileEntry, canonical_json, manifest_digest, parse_canonical_json, sha256
from portcullis.errors import ConfigError, DataError
from portcullis.files import BinaryFile, PinnedFile, atomic_path, write_all, write_bytes
from portcullis.strict_yaml import load_yaml
from portcullis.table import (
    LEAF_ROWS,
    MAX_BYTES,
    MAX_COLUMNS,
    BlockCutter,
    TableStream,
    check_size,
    logical_root,
    parse_parquet,
    row_bytes,
    stream_of,
    stream_parquet,
)

__all__ = [
    "Dataset",
    "DatasetSpec",
    "DatasetStream",
    "Features",
    "Label",
    "Treatment",
    "dataset_digest",
    "encode_dataset",
    "encode_spec",
    "features_and_labels",
    "logical_root",
    "parse_dataset",
    "read_dataset",
    "read_dataset_files",
    "read_regular_file",
    "stream_dataset",
    "write_dataset",
    "write_rows",
]

DATA_FILE = "data.parquet"
SPEC_FILE = "dataset.json"
MAX_SPEC_BYTES = 16 << 20
FILE_LIMITS = {DATA_FILE: MAX_BYTES, SPEC_FILE: MAX_SPEC_BYTES}  # the most bytes that are held in memory
MAX_CLASSES = 1_000
MAX_QUARANTINE = 1_000_000
GROUP_ROWS = 1 << 17
GROUP_BYTES = 32 << 20

Treatment = Literal["token", "drop", "scan"]
PROVENANCE = ("licence", "consent", "contact", "retention")  # of a `DatasetSpec`, what its user says of the data

_NAME = re.compile(r"[a-z0-9-]{1,63}")


# The description of a data set.


@dataclass(frozen=True)
class Label:
    """The column to predict, and its values in the order of the model's outputs."""

    column: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_text(self.column, "label.column")
        for name in self.classes:
            _check_text(name, "a class of label.classes")
        if not 2 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"label.classes must be 2 to {MAX_CLASSES} different names")


@dataclass(frozen=True)
class Features:
    """The numeric columns that the model sees, in order: `shape` is (channels, height, width) or any other shape.

    Until it is resolved against a header, `columns` may be a single glob with one `*`. Every value must lie in
    [`low`, `high`], bounds that are known without looking at the data.
    """

    columns: tuple[str, ...]
    shape: tuple[int, ...]
    low: float
    high: float

    def __post_init__(self) -> None:
        for name in self.columns:
            _check_text(name, "a column of features.columns")
        if len(set(self.columns)) != len(self.columns) or not 1 <= len(self.columns) <= MAX_COLUMNS:
            raise ConfigError(f"features.columns must be 1 to {MAX_COLUMNS} different names, or one glob")
        stars = sum(name.count("*") for name in self.columns)
        if stars and (stars, len(self.columns)) != (1, 1):
            raise ConfigError("features.columns holds a glob: it must then be the only entry and have one '*'")
        if not 1 <= len(self.shape) <= 8 or any(type(size) is not int or size < 1 for size in self.shape):
            raise ConfigError("features.shape must be 1 to 8 positive integers")
        if self.resolved and math.prod(self.shape) != len(self.columns):
            raise ConfigError(
                f"features.shape {list(self.shape)} has {math.prod(self.shape)} values, but there are "
                f"{len(self.columns)} feature columns"
            )
        # From 2**53 on a float64 no longer holds every integer, and canonical JSON refuses the number.
        if not -(2.0**53) < self.low < self.high < 2.0**53:
            raise ConfigError("features.low must be less than features.high, both finite and below 2**53 in size")

    @property
    def resolved(self) -> bool:
        """Whether `columns` are names and not a glob."""
        return "*" not in self.columns[0]


@dataclass(frozen=True)
class DatasetSpec:
    """What a table means. `from_dict(spec.to_dict()) == spec` for every spec.

    Attributes:
        name: 1 to 63 of a-z, 0-9 and hyphen.
        label: The column to predict.
        features: The columns that the model sees.
        sensitive: Column to treatment: `token` (replace each value), `drop` (remove the column) or `scan` (search free
            text). These columns are always read as text.
        description: Free text for people.
        synthetic: Columns that are known to be made up.
        licence: Under which terms the data may be used, such as an SPDX expression; this and the next three are free
            text for people, signed with the rest, and judged by nobody.
        consent: On what ground persons' data are in it.
        contact: Whom to ask.
        retention: Until when it may be kept.
        quarantine_at_most: How many malformed records `ingest` may set aside instead of refusing the data; 0 for none.
    """

    name: str
    label: Label
    features: Features
    sensitive: Mapping[str, Treatment] = field(default_factory=dict)
    description: str = ""
    synthetic: tuple[str, ...] = ()
    licence: str = ""
    consent: str = ""
    contact: str = ""
    retention: str = ""
    quarantine_at_most: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name must be 1 to 63 of a-z, 0-9 and '-'")
        for column, treatment in self.sensitive.items():
            _check_text(column, "a column of sensitive")
            if treatment not in get_args(Treatment):
                raise ConfigError(f"sensitive.{column} must be one of {', '.join(get_args(Treatment))}")
        for column in self.synthetic:
            _check_text(column, "a column of synthetic")
        if len(set(self.synthetic)) != len(self.synthetic):
            raise ConfigError("synthetic names a column twice")
        for name in ("description", *PROVENANCE):
            text = getattr(self, name)
            if len(text) > 4096 or not text.replace("\n", "").isprintable():
                raise ConfigError(f"{name} must be at most 4,096 printable characters")
        if type(self.quarantine_at_most) is not int or not 0 <= self.quarantine_at_most <= MAX_QUARANTINE:
            raise ConfigError(f"quarantine_at_most must be a whole number from 0 to {MAX_QUARANTINE:,}")
        roles = [self.label.column, *self.features.columns, *self.sensitive]
        if len(set(roles)) != len(roles):
            twice = next(name for name in roles if roles.count(name) > 1)
            raise ConfigError(f"column {twice!r} has two roles: a column is label, feature or sensitive")

    @classmethod
    def from_yaml(cls, text: str) -> "DatasetSpec":
        """Parse a description written by a person.

        Raises:
            ConfigError: Larger than 1 MiB, not YAML, repeats a key, uses an alias, or is no valid description.
        """
        try:
            value = load_yaml(text.encode("utf-8", "surrogatepass"))
        except DataError as error:
            raise ConfigError(f"the data-set description: {error}") from error
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: Any) -> "DatasetSpec":
        """Build a description from plain JSON values.

        Raises:
            ConfigError: A key is unknown or missing, a value has the wrong type, or the parts contradict one another.
        """
        optional = " ".join(["sensitive description synthetic quarantine_at_most", *PROVENANCE])
        top = _keys(value, "the data-set description", "name label features", optional)
        label = _keys(top["label"], "label", "column classes")
        features = _keys(top["features"], "features", "columns shape low high")
        sensitive = top.get("sensitive", {})
        if not isinstance(sensitive, dict):
            raise ConfigError("sensitive must map column names to token, drop or scan")
        return cls(
            name=_string(top["name"], "name"),
            label=Label(_string(label["column"], "label.column"), _strings(label["classes"], "label.classes")),
            features=Features(
                columns=_strings(features["columns"], "features.columns"),
                shape=tuple(_list(features["shape"], "features.shape")),
                low=_number(features["low"], "features.low"),
                high=_number(features["high"], "features.high"),
            ),
            sensitive={
                _string(column, "a column of sensitive"): _string(treatment, f"sensitive.{column}")  # type: ignore[misc]
                for column, treatment in sensitive.items()
            },
            description=_string(top.get("description", ""), "description"),
            synthetic=_strings(top.get("synthetic", []), "synthetic"),
            **{name: _string(top.get(name, ""), name) for name in PROVENANCE},
            quarantine_at_most=top.get("quarantine_at_most", 0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, every key present."""
        return {
            "name": self.name,
            "label": {"column": self.label.column, "classes": list(self.label.classes)},
            "features": {
                "columns": list(self.features.columns),
                "shape": list(self.features.shape),
                "low": self.features.low,
                "high": self.features.high,
            },
            "sensitive": dict(self.sensitive),
            "description": self.description,
            "synthetic": list(self.synthetic),
            **{name: getattr(self, name) for name in PROVENANCE},
            "quarantine_at_most": self.quarantine_at_most,
        }

    def resolve(self, header: Collection[str], *, masked: bool = False) -> "DatasetSpec":
        """Check the description against a table's column names, and expand the glob (sorted by name).

        With `masked`, columns whose treatment is `drop` may be gone.

        Raises:
            DataError: A column of the description is not in the header, or the glob matches none.
            ConfigError: The expanded columns do not fill `shape`, contradict another role, or sort badly: `p10` before
                `p2` would scramble an image, so numbers need leading zeros or the columns a list.
        """
        columns = self.features.columns
        if not self.features.resolved:
            head, tail = columns[0].split("*")
            fits = re.compile(f"{re.escape(head)}.*{re.escape(tail)}")
            columns = tuple(sorted(name for name in header if fits.fullmatch(name)))
            if not columns:
                raise DataError(f"no column matches {self.features.columns[0]!r} of the data-set description")
            if any("*" in name for name in columns):
                raise DataError("the name of a feature column holds '*'; rename it")
            if list(columns) != sorted(columns, key=_natural_order):
                raise ConfigError(f"columns {head}*{tail} do not sort in numeric order; list them, or pad with zeros")
        dropped = {name for name, treatment in self.sensitive.items() if masked and treatment == "drop"}
        present = dropped.union(header)
        for name in (self.label.column, *columns, *self.sensitive, *self.synthetic):
            if name not in present:
                raise DataError(f"the data has no column {name!r}{_nearest(name, header)}")
        return replace(self, features=replace(self.features, columns=columns))


def _keys(value: Any, what: str, required: str, optional: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be a mapping")
    known = [*required.split(), *optional.split()]
    for key in value:
        if key not in known:
            raise ConfigError(f"{what} has an unknown key {str(key)[:80]!r}{_nearest(str(key), known)}")
    for key in required.split():
        if key not in value:
            raise ConfigError(f"{what} lacks the key {key!r}")
    return value


def _nearest(name: str, known: Collection[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; the nearest is {matches[0]!r}" if matches else ""


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be text; put it in quotes")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{what} must be a list")
    return value


def _strings(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_string(item, f"each entry of {what}") for item in _list(value, what))


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 2**53:
        raise ConfigError(f"{what} must be a finite number below 2**53 in size")
    return float(value)


def _check_text(value: str, what: str) -> None:
    # isprintable also excludes lone surrogates, which no UTF-8 file can hold.
    if not 1 <= len(value) <= 256 or not value.isprintable():
        raise ConfigError(f"{what} must be 1 to 256 printable characters")


def _natural_order(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


# The directory.


@dataclass(frozen=True)
class Dataset:
    """A canonical table and what it means; the description is resolved (no glob)."""

    table: pa.Table
    spec: DatasetSpec


def encode_dataset(table: pa.Table, spec: DatasetSpec) -> dict[str, bytes]:
    """Return a data set's two files. One table and description give the same bytes under one version of pyarrow.

    Columns whose treatment is `drop` may already be gone.

    Raises:
        DataError: The table has no canonical form, is empty or too large, or lacks a column of the description.
        ConfigError: The description does not fit the table.
    """
    stream = stream_of(table)
    check_size(table)
    description = encode_spec(spec, stream.schema.names)
    sink = io.BytesIO()
    write_rows(sink, stream)
    return {DATA_FILE: sink.getvalue(), SPEC_FILE: description}


def encode_spec(spec: DatasetSpec, header: Sequence[str]) -> bytes:
    """Return `dataset.json` for a table with these columns.

    Raises:
        DataError: The table lacks a column of the description.
        ConfigError: The description does not fit the table, or is too large.
    """
    description = canonical_json(spec.resolve(header, masked=True).to_dict())
    if len(description) > MAX_SPEC_BYTES:
        raise ConfigError(f"the data-set description is larger than the {MAX_SPEC_BYTES} bytes allowed")
    return description


def write_rows(sink: BinaryFile, table: TableStream) -> FileEntry:
    """Write `data.parquet` into a sink that need not be seekable, holding one row group in memory.

    The same rows give the same bytes, however they are cut into pieces.

    Returns:
        Its manifest entry, of the bytes as they were written.

    Raises:
        DataError: There is no row, there are not as many as promised, or 1,024 of them take more than 256 MiB.
    """
    if table.rows < 1:
        raise DataError("the table has 0 rows; at least 1 is needed")
    hashed = _HashingSink(sink)
    # Everything that decides the bytes is fixed here: no Arrow schema blob, one chunk, one rule for row groups.
    with pq.ParquetWriter(
        hashed,
        table.schema,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=True,
        write_statistics=False,
        store_schema=False,
        write_page_checksum=True,
    ) as writer:
        for group in _row_groups(table):
            writer.write_table(group, row_group_size=group.num_rows)
            del group  # before the next one is gathered
    return FileEntry(DATA_FILE, hashed.sha256.hexdigest(), hashed.size)


class _HashingSink(io.RawIOBase):
    """Passes on what is written into it, and hashes it."""

    def __init__(self, sink: BinaryFile) -> None:
        self._sink = sink
        self.sha256, self.size = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        self.size += len(data)
        write_all(self._sink, data)
        return len(data)


def _row_groups(table: TableStream) -> Iterator[pa.Table]:
    """Cut into row groups, after the block of 1,024 rows that fills one: 131,072 rows, or 32 MiB in memory."""
    cutter = BlockCutter(table.schema, table.rows)
    held: list[pa.Table] = []
    rows = size = 0
    for piece in table.pieces():
        for blocks in cutter.push(piece):
            starts = range(0, blocks.num_rows, LEAF_ROWS)
            for start, block_size in zip(starts, np.add.reduceat(row_bytes(blocks), starts), strict=True):
                held.append(blocks.slice(start, LEAF_ROWS))
                rows, size = rows + LEAF_ROWS, size + int(block_size)
                if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                    rows = size = 0
                    yield _join(held)
    cutter.finish()
    if held:
        yield _join(held)


def _join(held: list[pa.Table]) -> pa.Table:
    """Return one table of one chunk; the list is emptied, so that nothing else keeps the parts alive."""
    table = pa.concat_tables(held)
    held.clear()
    return table.combine_chunks()


def write_dataset(directory: Path, table: pa.Table | TableStream, spec: DatasetSpec) -> str:
    """Write a data set of one's own atomically, in plain text. What a stage makes is sealed (`portcullis.at_rest`).

    Returns:
        Its content digest, of what was written, taken as it was: what lies there afterwards may be another.

    Raises:
        DataError: As `write_rows`; or a table has no canonical form, or lacks a column of the description.
        ConfigError: As `encode_spec`.
    """
    stream = table if isinstance(table, TableStream) else stream_of(table)
    description = encode_spec(spec, stream.schema.names)
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        with (temporary / DATA_FILE).open("xb", buffering=0) as sink:
            entry = write_rows(sink, stream)
            os.fsync(sink.fileno())
        write_bytes(temporary / SPEC_FILE, description)
    return dataset_digest(entry, description)


def dataset_digest(rows: FileEntry, description: bytes) -> str:
    """Return the content digest of a data set from the manifest entry of its rows and from its description."""
    return manifest_digest([rows, FileEntry(SPEC_FILE, sha256(description), len(description))])


@dataclass(frozen=True, eq=False)
class DatasetStream:
    """A data set that is open to be read in pieces, and that was digested before anything of it is parsed.

    Attributes:
        digest: Its content digest.
    """

    digest: str
    _rows: PinnedFile = field(repr=False)
    _description: bytes = field(repr=False)

    @classmethod
    def digesting(cls, rows: BinaryFile, description: bytes) -> Self:
        """Digest open files: `rows` in one pass, and from then on nothing but the bytes that were digested is read.

        Raises:
            DataError: They cannot be read.
        """
        pinned = PinnedFile(rows, DATA_FILE)
        return cls(dataset_digest(FileEntry(DATA_FILE, pinned.sha256, pinned.size), description), pinned, description)

    @functools.cached_property
    def table(self) -> TableStream:
        """The rows, parsed when first asked for.

        Raises:
            DataError: They are malformed (see `stream_parquet`, also for what reading the pieces raises).
        """
        return stream_parquet(self._rows, DATA_FILE)

    @functools.cached_property
    def spec(self) -> DatasetSpec:
        """The description, parsed when first asked for.

        Raises:
            DataError: It is malformed, or names a column that the table lacks.
        """
        return _parse_spec(self._description, self.table.schema.names)


@contextlib.contextmanager
def stream_dataset(directory: Path) -> Iterator[DatasetStream]:
    """Open a data set of one's own, in plain text, to be read in pieces whatever its size.

    Raises:
        DataError: Anything but exactly the two regular files, or they cannot be read.
    """
    _check_names(directory)
    description = read_regular_file(directory / SPEC_FILE, limit=MAX_SPEC_BYTES)
    with open_regular_file(directory / DATA_FILE) as rows:
        yield DatasetStream.digesting(rows, description)


def read_dataset_files(directory: Path) -> dict[str, bytes]:
    """Read the two files of a data set in plain text once, so that what is digested is what is parsed.

    Raises:
        DataError: Anything but exactly the two regular files, or one that is too large.
    """
    _check_names(directory)
    return {name: read_regular_file(directory / name, limit=limit) for name, limit in FILE_LIMITS.items()}


def _check_names(directory: Path) -> None:
    if directory.is_symlink() or not directory.is_dir():
        raise DataError(f"{directory} is missing or not a directory")
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise DataError(f"cannot read {directory}: {error.strerror}") from error
    if names != [DATA_FILE, SPEC_FILE]:
        raise DataError(f"{directory} must hold exactly {DATA_FILE} and {SPEC_FILE}")


def read_dataset(directory: Path) -> Dataset:
    """Read a data set that `write_dataset` wrote.

    Raises:
        DataError: As `read_dataset_files` and `parse_dataset`.
    """
    return parse_dataset(read_dataset_files(directory))


def parse_dataset(files: Mapping[str, bytes]) -> Dataset:
    """Parse what `read_dataset_files` read.

    Raises:
        DataError: A malformed or too large table or description, or a column of the description that the table lacks.
    """
    table = parse_parquet(files[DATA_FILE], DATA_FILE)
    return Dataset(table, _parse_spec(files[SPEC_FILE], table.column_names))


def _parse_spec(description: bytes, header: Sequence[str]) -> DatasetSpec:
    try:
        spec = DatasetSpec.from_dict(parse_canonical_json(description)).resolve(header, masked=True)
    except ConfigError as error:
        raise DataError(f"{SPEC_FILE}: {error}") from error
    if canonical_json(spec.to_dict()) != description:
        raise DataError(f"{SPEC_FILE} leaves out a key or still holds a glob")
    return spec


def read_regular_file(path: Path | str, *, limit: int, dir_fd: int | None = None) -> bytes:
    """Read a regular file of at most `limit` bytes once; a link or special file is refused and never waited for.

    Raises:
        DataError: Missing, unreadable, a link, not a regular file, or larger than `limit`.
    """
    with open_regular_file(path, dir_fd) as stream:
        try:
            data = stream.read(limit + 1)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise DataError(f"{path} is larger than the {limit} bytes allowed here")
    return data


def open_regular_file(path: Path | str, dir_fd: int | None = None) -> BinaryIO:
    """Open a regular file to read; a link or special file is refused and never waited for.

    Args:
        path: The file.
        dir_fd: What a relative path is relative to: an open folder, that no link can be put in the place of.

    Raises:
        DataError: Missing, unreadable, a link, or not a regular file.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)

    try:
        stream = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller's to close
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise DataError(f"{path} is not a regular file")
    return stream


def features_and_labels(dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what a model sees: raw features, (N, D) float32 in [low, high], and class indices, (N,) int64.

    The bounds are checked before the conversion to float32, which may move a value by half a unit in its last place.

    Raises:
        DataError: A null, NaN or infinity, a value out of bounds, a column that is not numeric, or an unknown class.
    """
    table, spec = dataset.table, dataset.spec
    features = np.empty((table.num_rows, len(spec.features.columns)), dtype=np.float32)
    for index, name in enumerate(spec.features.columns):
        features[:, index] = _feature_values(_column(table, name), name, spec.features)
    return features, _class_indices(_column(table, spec.label.column), spec.label)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if table.column_names.count(name) != 1:
        raise DataError(f"the table does not have exactly one column {name!r}")
    return table.column(name)


def _feature_values(column: pa.ChunkedArray, name: str, features: Features) -> NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"feature column {name!r} is {column.type}, not numeric")
    if column.null_count:
        raise DataError(f"feature column {name!r} has {column.null_count} empty cells")
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64, copy=False)
    good = (values >= features.low) & (values <= features.high)  # False for NaN
    if not good.all():
        row = int(np.argmin(good)) + 1
        raise DataError(f"feature column {name!r}, row {row}: not in [{features.low:g}, {features.high:g}]")
    return values


def _class_indices(column: pa.ChunkedArray, label: Label) -> NDArray[np.int64]:
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        raise DataError(f"label column {label.column!r} is {column.type}, not text or integers")
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(label.classes, pa.string()))
    if found.null_count:
        row = int(np.argmin(found.is_valid().to_numpy())) + 1
        raise DataError(f"label column {label.column!r}, row {row}: not one of the {len(label.classes)} classes")
    indices: NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return indices
