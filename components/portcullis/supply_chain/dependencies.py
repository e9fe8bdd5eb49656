"""What is installed here, against a lock with hashes: versions, and every file that an installer recorded.

What can be told offline: whether each distribution is one that the lock names, in that version, and whether its files
are still what was recorded when it was installed (`RECORD`: packaging.python.org, "Recording installed projects"). The
lock's hashes are of archives that pip compares on installation (`--require-hashes`) and that are gone afterwards, so
they are not compared here. Whoever alters a file and its `RECORD` too is not found, nor a file added beside, nor
compiled `.pyc` files, which no installer hashes: those are counted.
"""

import base64
import csv
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from portcullis.errors import ConfigError, DataError
from portcullis.files import read_bytes

MAX_LOCK_BYTES = 16 << 20
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)(?: *;[^\\]*)?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# The record cannot hold its own hash, and what an installer compiles is not in the archive; nothing else may lack one.
_UNHASHED = (".dist-info/RECORD", ".pyc")
_ENCODED = re.compile(r"sha256=([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Locked:
    """What a lock says of a distribution: its version, and the SHA-256 of each archive that may be installed."""

    version: str
    archives: frozenset[str]


@dataclass(frozen=True)
class Installed:
    """A distribution that is installed.

    Attributes:
        name: Normalised as PEP 503 says.
        version: Its version.
        files: Files that its record has a SHA-256 of.
        unhashed: Files that the record names without one, as it may: itself, and compiled ones.
        altered: Files whose bytes are others than recorded or lack the hash that they need, or that are gone or
            unreadable, relative to where it lies.
        recorded: Whether it has a record with a hash in it.
    """

    name: str
    version: str
    files: int
    unhashed: int
    altered: tuple[str, ...]
    recorded: bool


@dataclass(frozen=True)
class Dependencies:
    """What was found, and what is wrong with it; sound when `faults` is empty."""

    installed: tuple[Installed, ...]
    faults: tuple[str, ...]


def read_lock(data: bytes) -> Mapping[str, Locked]:
    """Read a requirements file as `pip-compile --generate-hashes` and `uv pip compile --generate-hashes` write it.

    Raises:
        ConfigError: A requirement is not pinned by `==` with at least one SHA-256, or named twice, or there is none.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise ConfigError("the lock is not ASCII text") from error
    locked: dict[str, Locked] = {}
    for number, line in enumerate(re.sub(r"\\\n", " ", text).split("\n"), start=1):
        requirement = line.partition(" #")[0].strip() if not line.lstrip().startswith("#") else ""
        if not requirement:
            continue
        pin, *hashes = re.split(r"\s+(?=--)", requirement)
        named, found = _PIN.fullmatch(pin.strip()), [_HASH.fullmatch(it.strip()) for it in hashes]
        if named is None or not found or None in found:
            raise ConfigError(f"requirement {number} of the lock is not NAME==VERSION with --hash=sha256:…")
        name = normalised(named[1])
        if name in locked:
            raise ConfigError(f"the lock names {name} twice")
        locked[name] = Locked(named[2], frozenset(it[1] for it in found if it))
    if not locked:
        raise ConfigError("the lock names nothing")
    return locked


def normalised(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_installed(path: Iterable[str] | None = None) -> tuple[Installed, ...]:
    """Return every distribution on `path` (default: `sys.path`), its files hashed, sorted by name.

    Raises:
        DataError: One has no name or version, or lies there twice in different versions.
    """
    found: dict[str, Installed] = {}
    for it in importlib.metadata.distributions(path=list(sys.path if path is None else path)):
        name, version = it.metadata["Name"], it.metadata["Version"]
        if not name or not version:
            raise DataError("an installed distribution has no name or version; install again into a fresh environment")
        one = _hashed(it, normalised(name), version)
        other = found.setdefault(one.name, one)
        if other.version != one.version:
            raise DataError(f"{one.name} is installed as {other.version} and {one.version}; use a fresh environment")
    return tuple(found[name] for name in sorted(found))


def judge_dependencies(
    installed: Iterable[Installed], lock: Mapping[str, Locked], *, beside: Collection[str] = ()
) -> Dependencies:
    """Compare what is installed with a lock.

    Args:
        installed: What `find_installed` found.
        lock: What `read_lock` read.
        beside: Names that may be installed although the lock does not name them, in any version.

    Returns:
        What was found. What the lock names and nobody installed is no fault: a lock is for all extras.
    """
    installed = tuple(installed)
    allowed = {normalised(name) for name in beside}
    faults: list[str] = []
    for it in installed:
        locked = lock.get(it.name)
        if locked is None and it.name not in allowed:
            faults.append(f"{it.name} {it.version} is not in the lock")
        elif locked is not None and locked.version != it.version:
            faults.append(f"{it.name} is {it.version}, the lock says {locked.version}")
        if not it.recorded:
            faults.append(f"{it.name} has no record of its files")
        if it.altered:
            faults.append(f"{it.name}: {len(it.altered)} files are not as installed, such as {it.altered[0]}")
    if not installed:
        faults.append("nothing is installed here")
    return Dependencies(installed, tuple(faults))


def require_sound(found: Dependencies) -> None:
    """Refuse what is not as the lock says.

    Raises:
        DataError: Something is not; the message has the first fault and how many there are.
    """
    if found.faults:
        more = f", and {len(found.faults) - 1} more" if len(found.faults) > 1 else ""
        raise DataError(f"{found.faults[0]}{more}; install the lock into a fresh environment (pip --require-hashes)")


def _hashed(it: importlib.metadata.Distribution, name: str, version: str) -> Installed:
    record = it.read_text("RECORD")
    if record is None:
        return Installed(name, version, 0, 0, (), recorded=False)
    files, unhashed, altered = 0, 0, []
    try:
        rows = list(csv.reader(record.splitlines(), strict=True))
    except csv.Error as error:
        raise DataError(f"the record of {name} is malformed; install it again") from error
    for row in rows:
        if len(row) != 3:
            raise DataError(f"the record of {name} is malformed; install it again")
        path, encoded, _ = row
        if not encoded and path.endswith(_UNHASHED):
            unhashed += 1
            continue
        files += 1
        wanted = _ENCODED.fullmatch(encoded)
        if wanted is None or _digest(Path(str(it.locate_file(path)))) != wanted[1]:
            altered.append(path)
    return Installed(name, version, files, unhashed, tuple(altered), recorded=files > 0)


def _digest(path: Path) -> str:
    """Return a file's SHA-256 as records spell it, empty where it cannot be read: that equals no record."""
    try:
        if not path.is_file():  # a link to a file is what some installers make
            return ""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return ""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_lock_file(path: Path) -> Mapping[str, Locked]:
    """Read a lock's file.

    Raises:
        UsageError: It cannot be read.
        ConfigError: As `read_lock`.
    """
    try:
        return read_lock(read_bytes(path, limit=MAX_LOCK_BYTES))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
