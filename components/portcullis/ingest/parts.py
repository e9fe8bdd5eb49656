"""A source cut into parts, one for each shard of `ingest`; the cut follows from the files' names and sizes alone.

- Of at least as many files as parts, each part is whole files, in the order of their paths. Part *k* of *n* begins with
  the file whose first byte is nearest to *k* / *n* of all bytes (of two as near, the earlier), but so that no part is
  empty.
- Of fewer files, each is cut by itself. It gets one part, and then the file with the most bytes per part (the quotient
  rounded down; of two the earlier) gets one more until there are *n*. Part *j* of *m* of a CSV or JSON Lines file
  begins with the first record that starts at byte *j* · size / *m*, rounded down, or after; of a Parquet file with row
  group *j* · groups / *m*, rounded down.

A malformed record is one record (`portcullis.ingest.malformed`), so it moves no cut. A file that is cut is digested
whole, and its line breaks and quotes are counted from the beginning on, by each shard that reads a part of it; of JSON
Lines where records may be set aside, the lines before the part are read until each column has a value. A large table is
better a folder of files.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, sha256
from portcullis.errors import DataError
from portcullis.evidence.shards import Shard
from portcullis.files import PinnedFile
from portcullis.ingest.beginning import Beginning
from portcullis.ingest.column_types import Survey
from portcullis.ingest.csv_table import read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ingest.sources import SourceFile, SourceFiles, list_source, source_files

PART_FORMAT = "portcullis-part/v1"
_CHUNK = 1 << 20
_QUOTE, _LF = b'"\n'


@dataclass(frozen=True)
class Part:
    """What one shard reads: some whole files, or of one file the part `piece` of `pieces`."""

    paths: tuple[str, ...]
    piece: int = 0
    pieces: int = 1


def cut(sizes: Sequence[tuple[str, int]], count: int) -> list[Part]:
    """Cut files, sorted by path and with their sizes in bytes, into `count` parts (see the module's docstring)."""
    if len(sizes) < count:
        pieces = [1] * len(sizes)
        while sum(pieces) < count:
            place = max(range(len(sizes)), key=lambda it: (sizes[it][1] // pieces[it], -it))
            pieces[place] += 1
        return [
            Part((path,), piece, number)
            for (path, _), number in zip(sizes, pieces, strict=True)
            for piece in range(number)
        ]
    starts = [0, *accumulate(size for _, size in sizes)]
    total, bounds = starts.pop(), [0]
    for part in range(1, count):
        possible = range(bounds[-1] + 1, len(sizes) - (count - part) + 1)
        bounds.append(min(possible, key=lambda it: (abs(starts[it] * count - part * total), it)))
    paths = [path for path, _ in sizes]
    return [Part(tuple(paths[start:end])) for start, end in zip(bounds, [*bounds[1:], len(sizes)], strict=True)]


class Place(NamedTuple):
    """Where a record starts in a file: its first byte, from 0; its line, from 1; how many records come before it."""

    offset: int
    line: int
    record: int


@dataclass(frozen=True)
class SourcePart:
    """The part of a source that a shard reads, digested.

    Attributes:
        part: Which part.
        sources: Its files; `digest` is that of the part.
        listing: SHA-256 (hex) of all names and sizes of the source, by which it was cut.
        in_folder: Whether the source is a folder.
    """

    part: Part
    sources: SourceFiles
    listing: str
    in_folder: bool


def source_part(uri: str, shard: Shard, spec: DatasetSpec) -> SourcePart:
    """Find and digest the part of a source that a shard reads.

    Args:
        uri: The source.
        shard: Which shard.
        spec: The description, which says what a malformed record is and whether one may be set aside.

    Raises:
        UsageError: As `sources.source_files`; so are the others.
        DataError: A link, a special or foreign file, or nothing to read.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    listed = list_source(uri)
    sizes = list(listed.sizes.items())
    part = cut(sizes, shard.count)[shard.index]
    found = source_files(uri, only=part.paths)
    if [(it.entry.path, it.entry.size) for it in found.files] != [(it, listed.sizes[it]) for it in part.paths]:
        raise DataError("the source changed while it was read; leave it alone and run again")
    files = found.files
    if part.pieces > 1:
        files = (_cut_file(found.files[0], found.kind, part, spec),)
    sources = replace(found, files=files, digest=part_digest(part, files))
    listing = listing_digest(sizes, in_folder=listed.in_folder)
    return SourcePart(part, sources, listing, listed.in_folder)


def part_digest(part: Part, files: Sequence[SourceFile]) -> str:
    """Return the digest of a part: of its files as a whole, and of which part of them it is."""
    entries = [vars(file.entry) for file in files]
    return sha256(canonical_json({"files": entries, "format": PART_FORMAT, "part": [part.piece, part.pieces]}))


def listing_digest(sizes: Sequence[tuple[str, int]], *, in_folder: bool) -> str:
    """Return the digest of the names and sizes by which a source is cut."""
    return sha256(canonical_json({"files": [list(it) for it in sizes], "folder": in_folder, "format": PART_FORMAT}))


def _cut_file(file: SourceFile, kind: str, part: Part, spec: DatasetSpec) -> SourceFile:
    if kind == "parquet":
        return replace(file, groups=(part.piece, part.pieces))
    with _opened(file) as opened:
        first = 1 if kind == "csv" else 0  # a header, which starts at 0, is no record
        offsets = [max(first, opened.size * (part.piece + more) // part.pieces) for more in (0, 1)]
        start, end = record_starts(opened, offsets, quoted=kind == "csv")
        if start.offset >= end.offset:
            where = f"{file.entry.path}: no record starts in part {part.piece} of {part.pieces}"
            raise DataError(f"{where}; use fewer shards")
        beginning = _beginning(opened, file.entry.path, kind, start, spec) if part.piece else None
    bounds = (start.offset if part.piece else 0), end.offset
    return replace(file, view=lambda opened: _FilePart(opened, *bounds), beginning=beginning)


def _beginning(file: PinnedFile, path: str, kind: str, start: Place, spec: DatasetSpec) -> Beginning:
    """Return what the records before a part, which are read as far as need be, say of it."""
    check = Survey(spec).faults if spec.quarantine_at_most else None
    file.seek(0)
    try:
        if kind == "csv":
            header = next(read_csv(file, check=check)).table.column_names
            return Beginning(header, start.line, start.record - 1, start.offset)
        # What a column holds its first sound value says; where none is set aside, the plan compares the parts.
        for block in read_jsonl(_FilePart(file, 0, start.offset), check=check):
            if check is None or len(block.kinds) == block.table.num_columns:
                break
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    kinds = block.kinds if check else {}
    return Beginning(block.table.column_names, start.line, start.record, start.offset, kinds)


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[PinnedFile]:
    with file.open() as opened:
        assert isinstance(opened, PinnedFile)  # noqa: S101 - it is not cut yet
        yield opened


def record_starts(file: PinnedFile, offsets: Sequence[int], *, quoted: bool) -> list[Place]:
    """Return where the first record starts at each of these offsets or after it; the file's end where none does.

    Args:
        file: Lines; the first record starts at 0.
        offsets: In ascending order.
        quoted: Whether a line break between double quotes ends no record, as in CSV.
    """
    found: list[Place] = []
    wanted = list(offsets)
    while wanted and wanted[0] == 0:
        found.append(Place(wanted.pop(0), 1, 0))
    inside, place, line, record = np.uint8(0), 0, 1, 0
    file.seek(0)
    while wanted and (chunk := file.read(_CHUNK)):
        data = np.frombuffer(chunk, np.uint8)
        breaks = data == _LF
        ends = breaks
        if quoted:
            state = np.bitwise_xor.accumulate((data == _QUOTE).view(np.uint8)) ^ inside
            inside, ends = state[-1], breaks & (state == 0)
        starts = np.flatnonzero(ends) + (place + 1)
        while wanted and len(starts) and starts[-1] >= wanted[0]:
            at = int(np.searchsorted(starts, wanted.pop(0)))
            start = int(starts[at])
            found.append(Place(start, line + int(np.count_nonzero(breaks[: start - place])), record + at + 1))
        place, line, record = place + len(chunk), line + int(np.count_nonzero(breaks)), record + len(starts)
    return found + [Place(file.size, line, record)] * len(wanted)


class _FilePart(io.RawIOBase):
    """The bytes of a file from `start` to before `end`; to be read once, from its start on."""

    def __init__(self, file: PinnedFile, start: int, end: int) -> None:
        self._file, self._left = file, end - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size) if size else b""
        self._left -= len(data)
        return data
