"""A source cut into parts, one for each shard of `ingest`; the cut follows from the files' names and sizes alone.

- Of at least as many files as parts, each part is whole files, in the order of their paths. Part *k* of *n* begins with
  the file whose first byte is nearest to *k* / *n* of all bytes (of two as near, the earlier), but so that no part is
  empty.
- Of fewer files, each is cut by itself. It gets one part, and then the file with the most bytes per part (the quotient
  rounded down; of two the earlier) gets one more until there are *n*. Part *j* of *m* of a CSV or JSON Lines file
  begins with the first record that starts at byte *j* · size / *m*, rounded down, or after; of a Parquet file with row
  group *j* · groups / *m*, rounded down.

A file that is cut is digested whole, and in CSV its quotes are counted from the beginning on, by each shard that reads
a part of it. A large table is better a folder of files.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from portcullis.digest import canonical_json, sha256
from portcullis.errors import DataError
from portcullis.evidence.shards import Shard
from portcullis.files import PinnedFile
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


@dataclass(frozen=True)
class SourcePart:
    """The part of a source that a shard reads, digested.

    Attributes:
        part: Which part.
        sources: Its files; `digest` is that of the part.
        listing: SHA-256 (hex) of all names and sizes of the source, by which it was cut.
        in_folder: Whether the source is a folder.
        columns: Their names in order where a part of a JSON Lines file does not say it: the keys of the file's line 1.
    """

    part: Part
    sources: SourceFiles
    listing: str
    in_folder: bool
    columns: list[str] | None


def source_part(uri: str, shard: Shard) -> SourcePart:
    """Find and digest the part of a source that a shard reads.

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
    files, columns = found.files, None
    if part.pieces > 1:
        files = (_cut_file(found.files[0], found.kind, part),)
        columns = _keys(found.files[0]) if found.kind == "jsonl" else None
    sources = replace(found, files=files, digest=part_digest(part, files))
    listing = listing_digest(sizes, in_folder=listed.in_folder)
    return SourcePart(part, sources, listing, listed.in_folder, columns)


def part_digest(part: Part, files: Sequence[SourceFile]) -> str:
    """Return the digest of a part: of its files as a whole, and of which part of them it is."""
    entries = [vars(file.entry) for file in files]
    return sha256(canonical_json({"files": entries, "format": PART_FORMAT, "part": [part.piece, part.pieces]}))


def listing_digest(sizes: Sequence[tuple[str, int]], *, in_folder: bool) -> str:
    """Return the digest of the names and sizes by which a source is cut."""
    return sha256(canonical_json({"files": [list(it) for it in sizes], "folder": in_folder, "format": PART_FORMAT}))


def _cut_file(file: SourceFile, kind: str, part: Part) -> SourceFile:
    if kind == "parquet":
        return replace(file, groups=(part.piece, part.pieces))
    with _opened(file) as opened:
        offsets = [opened.size * (part.piece + more) // part.pieces for more in (0, 1)]
        start, end = record_starts(opened, offsets, quoted=kind == "csv")
        header = _range(opened, 0, record_starts(opened, [1], quoted=True)[0]) if kind == "csv" else b""
    start = max(start, len(header))
    if start >= end:
        raise DataError(f"{file.entry.path}: no record starts in part {part.piece} of {part.pieces}; use fewer shards")
    return replace(file, view=lambda opened: _FilePart(opened, header, start, end))


def _keys(file: SourceFile) -> list[str]:
    """Return the keys of the first line of a JSON Lines file."""
    with _opened(file) as opened:
        end = record_starts(opened, [1], quoted=False)[0]
        try:
            return next(read_jsonl(_FilePart(opened, b"", 0, end))).table.column_names  # type: ignore[no-any-return]
        except DataError as error:
            raise DataError(f"{file.entry.path}: {error}") from error


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[PinnedFile]:
    with file.open() as opened:
        assert isinstance(opened, PinnedFile)  # noqa: S101 - it is not cut yet
        yield opened


def record_starts(file: PinnedFile, offsets: Sequence[int], *, quoted: bool) -> list[int]:
    """Return where the first record starts at each of these offsets or after it; the file's size where none does.

    Args:
        file: Lines; the first record starts at 0.
        offsets: In ascending order.
        quoted: Whether a line break between double quotes ends no record, as in CSV.
    """
    found: list[int] = []
    wanted = list(offsets)
    while wanted and wanted[0] == 0:
        found.append(wanted.pop(0))
    inside, place = np.uint8(0), 0
    if wanted and not quoted:
        place = wanted[0] - 1
    file.seek(place)
    while wanted and (chunk := file.read(_CHUNK)):
        data = np.frombuffer(chunk, np.uint8)
        ends = data == _LF
        if quoted:
            state = np.bitwise_xor.accumulate((data == _QUOTE).view(np.uint8)) ^ inside
            inside, ends = state[-1], ends & (state == 0)
        starts = np.flatnonzero(ends) + (place + 1)
        while wanted and len(starts) and starts[-1] >= wanted[0]:
            found.append(int(starts[np.searchsorted(starts, wanted.pop(0))]))
        place += len(chunk)
    return found + [file.size] * len(wanted)


def _range(file: PinnedFile, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


class _FilePart(io.RawIOBase):
    """The bytes of a file from `start` to before `end`, after a header; to be read once, from its start on."""

    def __init__(self, file: PinnedFile, header: bytes, start: int, end: int) -> None:
        self._file, self._header, self._left = file, header, end - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = len(self._header) + self._left if size < 0 else size
        if self._header:
            data, self._header = self._header[:size], self._header[size:]
            return data
        size = min(size, self._left)
        data = self._file.read(size) if size else b""
        self._left -= len(data)
        return data
