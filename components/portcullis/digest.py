"""Digests: of bytes, of files, of directories, and the one spelling of JSON that is ever hashed or signed.

A *directory* is digested through a manifest of its files, so an added, removed, renamed or altered file changes the
digest, and links and special files are refused. The digest is SHA-256 over the RFC 8785 (JCS) form of
`{"files": [{"path", "sha256", "size"}, ...], "format": "portcullis-tree/v1"}`, files sorted by path. One algorithm is
used throughout: SHA-256, as OCI, SLSA and in-toto do, in lower-case hexadecimal (64 characters).

The *content digest* of a model or data set is the digest of its directory. The *sealed digest* of an encrypted one is
that of its directory without the recipients' sidecar (`exclude`), so that rewrapping a key changes neither.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from portcullis.errors import DataError

SHA256_HEX = re.compile(r"[0-9a-f]{64}")
TREE_FORMAT = "portcullis-tree/v1"
MAX_EXACT_INTEGER = 2**53


def canonical_json(value: Any) -> bytes:
    """Encode as RFC 8785 (JCS) canonical JSON: `64.0` and `64` are one number, keys are sorted, no blanks.

    Raises:
        DataError: The value holds NaN, an infinity, an integer beyond 2**53, or a type JSON does not have.
    """
    try:
        return rfc8785.dumps(value)
    # CanonicalizationError and UnicodeEncodeError are ValueErrors; so is Python's refusal to print a huge integer.
    except (ValueError, RecursionError) as error:
        raise DataError(f"not representable as canonical JSON: {error}") from error


def parse_json(data: bytes, *, limit: int = 16 << 20) -> Any:
    """Parse strict UTF-8 JSON: no duplicate keys, no NaN or Infinity, at most `limit` bytes.

    Raises:
        DataError: Anything else. `ValueError` and `RecursionError` never escape.
    """
    return _parse_json(data, limit, parse_int=int)


def _parse_json(data: bytes, limit: int, *, parse_int: Callable[[str], int | float]) -> Any:
    if len(data) > limit:
        raise DataError(f"JSON of {len(data)} bytes exceeds the {limit} allowed")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise DataError("JSON object repeats a key")
        return result

    def refuse_constant(name: str) -> Any:
        raise DataError(f"JSON holds {name}")

    def finite(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise DataError("JSON holds a number beyond a double's range")
        return number

    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=parse_int,
        )
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}") from error


def parse_canonical_json(data: bytes, *, limit: int = 16 << 20) -> Any:
    """Parse JSON that must already be in canonical form, so that no byte of it can be altered unseen.

    Inverts `canonical_json`: RFC 8785 spells a double such as 1e20 as an integer, so integers beyond 2**53 are doubles.

    Raises:
        DataError: Not JSON, or not the RFC 8785 spelling of what it says.
    """
    value = _parse_json(data, limit, parse_int=_integer_or_double)
    if canonical_json(value) != data:
        raise DataError("JSON is not in canonical form")
    return value


def _integer_or_double(text: str) -> int | float:
    number = int(text)
    return number if abs(number) < MAX_EXACT_INTEGER else float(text)


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes, streamed; links are refused.

    Raises:
        DataError: Missing, unreadable, a link, or not a regular file.
    """
    return _hash_file(path).sha256


@dataclass(frozen=True)
class FileEntry:
    """One file of a tree: POSIX path relative to the root, SHA-256 (hex), size in bytes."""

    path: str
    sha256: str
    size: int


def tree_files(root: Path, *, exclude: Collection[str] = ()) -> tuple[FileEntry, ...]:
    """List and hash every regular file below `root`, sorted by path; `exclude` names top-level entries to leave out.

    Raises:
        DataError: `root` is missing, empty or no directory, or holds a link, a special file or an undecodable name.
    """
    if root.is_symlink() or not root.is_dir():
        raise DataError(f"{root} is missing or not a directory")
    entries: list[FileEntry] = []

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, names, files in os.walk(root, onerror=fail):
        here = Path(folder)
        if here == root:
            names[:] = [name for name in names if name not in exclude]
            files = [name for name in files if name not in exclude]
        for name in names:
            if (here / name).is_symlink():
                raise DataError(f"{here / name} is a link; links are refused")
        for name in files:
            relative = (here / name).relative_to(root).as_posix()
            try:
                relative.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(f"a file name below {root} is not UTF-8") from error
            entry = _hash_file(here / name)
            entries.append(FileEntry(relative, entry.sha256, entry.size))
    if not entries:
        raise DataError(f"{root} holds no file")
    return tuple(sorted(entries, key=lambda entry: entry.path))


def tree_digest(root: Path, *, exclude: Collection[str] = ()) -> str:
    """Return the digest of a directory's manifest (see the module's docstring).

    Raises:
        DataError: As `tree_files`.
    """
    return manifest_digest(tree_files(root, exclude=exclude))


def manifest_digest(entries: Iterable[FileEntry]) -> str:
    """Return the tree digest of a manifest, so that a tree held in memory digests as it would on disk.

    Raises:
        DataError: The manifest is empty or names one path twice.
    """
    files = [vars(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
    if not files or len({entry["path"] for entry in files}) != len(files):
        raise DataError("a tree's manifest is empty or names one path twice")
    return sha256(canonical_json({"files": files, "format": TREE_FORMAT}))


def content_digest(files: Mapping[str, bytes]) -> str:
    """Return the tree digest of files held in memory, by POSIX path: what was read once is what is digested.

    Raises:
        DataError: There is no file.
    """
    return manifest_digest(FileEntry(name, sha256(data), len(data)) for name, data in files.items())


def path_digest(path: Path, *, exclude: Collection[str] = ()) -> str:
    """Digest a directory by its manifest and a file by its bytes.

    Raises:
        DataError: As `tree_digest` and `file_digest`.
    """
    return tree_digest(path, exclude=exclude) if path.is_dir() else file_digest(path)


def is_digest(value: object) -> bool:
    """Tell whether `value` is a SHA-256 in the one spelling used here."""
    return isinstance(value, str) and SHA256_HEX.fullmatch(value) is not None


@dataclass(frozen=True)
class _Hashed:
    sha256: str
    size: int


def _hash_file(path: Path) -> _Hashed:
    try:
        # O_NOFOLLOW closes the gap between looking at a path and opening it; O_NONBLOCK keeps a FIFO from hanging us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            digest = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        return _Hashed(digest.hexdigest(), stream.tell())
