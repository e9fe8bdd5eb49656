"""The files of a source: listed, checked and digested once, and then given again, the very same bytes, or refused.

A source is a file or a folder, on a file system or in an object store, or the built-in reference data; the same files
have the same digests wherever they lie.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

from portcullis.dataset import open_regular_file
from portcullis.digest import FileEntry, manifest_digest
from portcullis.errors import DataError, UsageError
from portcullis.files import BinaryFile, PinnedFile
from portcullis.ingest import cheque_digits
from portcullis.remote import StoreObject, is_fsspec, is_remote, remote_objects

_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_READERS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source, which was digested.

    Attributes:
        entry: Path relative to the source, SHA-256 and size.
    """

    entry: FileEntry
    _pinned: PinnedFile
    _opened: Callable[[], AbstractContextManager[BinaryFile]]

    @contextlib.contextmanager
    def open(self) -> Iterator[PinnedFile]:
        """Open it again, at its start.

        Raises:
            DataError: It cannot be opened any more, or while it is read: it is no longer what was digested.
        """
        with self._opened() as handle:
            yield self._pinned.over(handle)


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


def source_files(uri: str, *, limit: int | None = None) -> SourceFiles:
    """Find and digest the files of a source.

    Args:
        uri: As for `readers.open_source`.
        limit: Most bytes of all files together.

    Raises:
        UsageError: Another scheme, a remote host, an unknown built-in, or a store's object that cannot be read.
        DataError: A link, a special or foreign file, nothing to read, or more than `limit`.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    is_folder = False
    if uri.startswith("builtin:"):
        name, data = _builtin_name(uri), cheque_digits.csv_bytes()
        files = [_digested(name, lambda: contextlib.nullcontext(BytesIO(data)))]
    elif is_remote(uri) or (is_fsspec(uri) and not uri.startswith("file://")):
        objects, is_folder = remote_objects(uri, limit=limit)
        files = [_stored(entry) for entry in objects]
    else:
        files, is_folder = _local(_local_path(uri), limit)
    files.sort(key=lambda file: file.entry.path)
    kind = _kind([file.entry.path for file in files])
    reader = "builtin" if uri.startswith("builtin:") else kind
    digest = manifest_digest(file.entry for file in files) if is_folder else files[0].entry.sha256
    return SourceFiles(tuple(files), kind, reader, digest)


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


def _local_path(uri: str) -> Path:
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


def _local(path: Path, limit: int | None) -> tuple[list[SourceFile], bool]:
    """Digest every file of the source: the files, and whether the source is a folder."""
    try:
        is_link, is_folder = path.is_symlink(), path.is_dir()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if is_link:
        raise DataError(f"{path} is a link; links are refused")
    if not is_folder:
        return [_local_file(path, path.name, None, limit)], False
    files: list[SourceFile] = []

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
            files.append(_local_file(here / name, relative, descriptor, limit))
            limit = None if limit is None else limit - files[-1].entry.size
    if not files:
        raise DataError(f"{path} holds no file")
    return files, True


def _local_file(path: Path, relative: str, folder: int | None, limit: int | None) -> SourceFile:
    # The first time relative to the open folder, so that no folder on the way can be swapped for a link; later by
    # path, since any other bytes than the digested ones are refused.
    name = path if folder is None else path.name
    with open_regular_file(name, dir_fd=folder) as handle:
        if limit is not None and os.fstat(handle.fileno()).st_size > limit:
            raise DataError(f"{path} is larger than the {limit} bytes allowed here")
        pinned = PinnedFile(handle, relative)
    return SourceFile(FileEntry(relative, pinned.sha256, pinned.size), pinned, lambda: open_regular_file(path))


def _kind(paths: Collection[str]) -> str:
    kinds = {path: _READERS.get(Path(path).suffix.lower()) for path in sorted(paths)}
    for path, kind in kinds.items():
        if kind is None:
            raise DataError(f"{path} is not a .csv, .jsonl, .ndjson or .parquet file")
    found = sorted({kind for kind in kinds.values() if kind})
    if len(found) != 1:
        raise DataError(f"the folder mixes {' and '.join(found)} files")
    return found[0]
