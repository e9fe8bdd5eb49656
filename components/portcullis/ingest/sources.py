"""The files of a source: listed, checked and digested once, and then given again, the very same bytes, or refused.

A source is a file or a folder, on a file system or in an object store, or the built-in reference data; the same files
have the same digests wherever they lie.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

from portcullis.dataset import open_regular_file
from portcullis.digest import FileEntry, manifest_digest
from portcullis.errors import DataError, UsageError
from portcullis.files import BinaryFile, PinnedFile
from portcullis.ingest import cheque_digits
from portcullis.ingest.beginning import Beginning
from portcullis.ingest.partitions import partition_of
from portcullis.remote import StoreObject, is_fsspec, is_remote, remote_objects

_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_READERS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, which was digested.

    Attributes:
        entry: Path relative to the source, SHA-256 and size.
        view: Given the open file, what is read of it: all, or a part (see `portcullis.ingest.parts`).
        groups: The part of a Parquet file's row groups that is read, as place and number of equal parts.
        beginning: Where a part of a text file begins; None from the file's start.
    """

    entry: FileEntry
    _pinned: PinnedFile
    _opened: Callable[[], AbstractContextManager[BinaryFile]]
    view: Callable[[PinnedFile], BinaryFile] = field(default=lambda opened: opened)
    groups: tuple[int, int] = (0, 1)
    beginning: Beginning | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryFile]:
        """Open it again, at its start.

        Raises:
            DataError: It cannot be opened any more, or while it is read: it is no longer what was digested.
        """
        with self._opened() as handle:
            yield self.view(self._pinned.over(handle))


@dataclass(frozen=True)
class SourceFiles:
    """What a URI names.

    Attributes:
        files: Sorted by path.
        kind: `csv`, `jsonl` or `parquet`.
        reader: The same, or `builtin`.
        digest: What `digest.path_digest` returns for the source, or for the same files on disk.
    """

    files: tuple[SourceFile, ...]
    kind: str
    reader: str
    digest: str


def source_files(uri: str, *, limit: int | None = None, only: Collection[str] | None = None) -> SourceFiles:
    """Find and digest the files of a source.

    Args:
        uri: As for `readers.open_source`.
        limit: Most bytes of all files together.
        only: Paths of those that are digested and returned; all when None.

    Raises:
        UsageError: Another scheme, a remote host, an unknown built-in, or a store's object that cannot be read.
        DataError: A link, a special or foreign file, nothing to read, or more than `limit`.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    paths: list[str] = []
    files: list[SourceFile] = []
    is_folder = False
    for found in _found(uri, limit):
        paths.append(found.path)
        is_folder = found.in_folder
        if only is None or found.path in only:
            files.append(found.digest())
    files.sort(key=lambda file: file.entry.path)
    kind = _kind(paths)
    digest = manifest_digest(file.entry for file in files) if is_folder else files[0].entry.sha256
    return SourceFiles(tuple(files), kind, "builtin" if uri.startswith("builtin:") else kind, digest)


@dataclass(frozen=True)
class SourceListing:
    """What a URI names, listed but not read.

    Attributes:
        sizes: Path to size in bytes, sorted by path.
        kind: `csv`, `jsonl` or `parquet`.
        in_folder: Whether the source is a folder.
    """

    sizes: dict[str, int]
    kind: str
    in_folder: bool


def list_source(uri: str) -> SourceListing:
    """List the files of a source without reading them.

    Raises:
        UsageError: As `source_files`; so are the others.
        DataError: A link, a special or foreign file, or nothing to read.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    found = sorted((it.path, it.size, it.in_folder) for it in _found(uri, None))
    return SourceListing({path: size for path, size, _ in found}, _kind([it[0] for it in found]), found[0][2])


@dataclass(frozen=True)
class _Found:
    """A file of a source that was found; `digest` reads it, and must be called before the next one is asked for."""

    path: str
    size: int
    digest: Callable[[], SourceFile]
    in_folder: bool = False


def _found(uri: str, limit: int | None) -> Iterator[_Found]:
    if uri.startswith("builtin:"):
        name, data = _builtin_name(uri), cheque_digits.csv_bytes()
        yield _Found(name, len(data), lambda: _digested(name, lambda: contextlib.nullcontext(BytesIO(data))))
    elif (path := local_path(uri)) is not None:
        yield from _local(path, limit)
    else:
        objects, is_folder = remote_objects(uri, limit=limit)
        for entry in objects:
            yield _Found(entry.name, entry.size, partial(_stored, entry), is_folder)


def _digested(path: str, opened: Callable[[], AbstractContextManager[BinaryFile]]) -> SourceFile:
    with opened() as handle:
        pinned = PinnedFile(handle, path)
    return SourceFile(FileEntry(path, pinned.sha256, pinned.size), pinned, opened)


def _stored(entry: StoreObject) -> SourceFile:
    file = _digested(entry.name, entry.open)
    if file.entry.size != entry.size:
        raise DataError(f"{entry.uri}: {entry.name} changed while it was read")
    return file


def _builtin_name(uri: str) -> str:
    if uri != cheque_digits.URI:
        raise UsageError(f"unknown built-in data {uri!r}; the only one is {cheque_digits.URI!r}")
    return "cheque-digits.csv"


def local_path(uri: str) -> Path | None:
    """Return the file or folder that a URI names on this machine; None where it is a store's or built in.

    Raises:
        UsageError: Another scheme, a remote host, or an unprintable path.
    """
    if uri.startswith("builtin:") or is_remote(uri) or (is_fsspec(uri) and not uri.startswith("file://")):
        return None
    path = uri
    if uri.startswith("file:"):
        match = _FILE_URI.fullmatch(uri)
        if match is None:
            raise UsageError(f"{uri!r} is not a local file; write file:///path")
        path = unquote(match[1], errors="surrogateescape")
    elif _SCHEME.match(uri):
        # Not shown whole: someone may have put a password into it.
        raise UsageError(
            f"{uri.partition(':')[0][:20]!r}: only paths, file:, builtin: and scheme://place/path are read; mount the "
            "data first"
        )
    if not path or not path.isprintable():
        raise UsageError("the source is empty or holds an unprintable character; give the path of a file or folder")
    return Path(path)


def _local(path: Path, limit: int | None) -> Iterator[_Found]:
    """Find every file of a local source."""
    try:
        is_link, is_folder = path.is_symlink(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if is_link:
        raise DataError(f"{path} is a link; links are refused")
    if not is_folder:
        yield _local_file(path, path.name, None, limit)
        return
    empty = True

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
            found = _local_file(here / name, relative, descriptor, limit)
            limit = None if limit is None else limit - found.size
            empty = False
            yield found
    if empty:
        raise DataError(f"{path} holds no file")


def _local_file(path: Path, relative: str, folder: int | None, limit: int | None) -> _Found:
    # The first time relative to the open folder, so that no folder on the way can be swapped for a link; later by
    # path, since any other bytes than the digested ones are refused.
    name = path if folder is None else path.name
    with open_regular_file(name, dir_fd=folder) as handle:
        size = os.fstat(handle.fileno()).st_size
    if limit is not None and size > limit:
        raise DataError(f"{path} is larger than the {limit} bytes allowed here")

    def digest() -> SourceFile:
        with open_regular_file(name, dir_fd=folder) as handle:
            pinned = PinnedFile(handle, relative)
        if limit is not None and pinned.size > limit:
            raise DataError(f"{path} is larger than the {limit} bytes allowed here")
        return SourceFile(FileEntry(relative, pinned.sha256, pinned.size), pinned, lambda: open_regular_file(path))

    return _Found(relative, size, digest, folder is not None)


def _kind(paths: Collection[str]) -> str:
    kinds = {path: _READERS.get(Path(path).suffix.lower()) for path in sorted(paths)}
    for path, kind in kinds.items():
        if kind is None:
            raise DataError(f"{path} is not a .csv, .jsonl, .ndjson or .parquet file")
    found = sorted({kind for kind in kinds.values() if kind})
    if len(found) != 1:
        raise DataError(f"the folder mixes {' and '.join(found)} files")
    for path in kinds:
        if found[0] != "parquet" and partition_of(path):
            raise DataError(
                f"{path}: its folders' names spell columns, which are read of Parquet alone; write them into the files "
                "and name folders without '='"
            )
    return found[0]
