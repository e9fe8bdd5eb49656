"""Reading objects of a store with a limit: `s3://bucket/key`, `gs://bucket/key`, and KFP's `minio://bucket/key`.

A key names one object, or a folder: all the objects whose keys begin with it and a slash. It is taken as written, with
no escapes and no query, so a URI can choose neither a server nor credentials; those come from the environment alone:

- `AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`: the server of `s3://` and `minio://`, such as
  `http://minio-service.kubeflow:9000`, https without a scheme. By default AWS; `minio://` needs it.
- `AWS_REGION`, else `AWS_DEFAULT_REGION`: by default the bucket's own, or `us-east-1` on a server of one's own. Under
  another region than that, a server of one's own may send this process on to another address.
- `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and where else the AWS SDK looks for credentials.
- `GOOGLE_APPLICATION_CREDENTIALS` and where else Google's SDK looks, for `gs://`.

A store can name its objects as no file may be named, so every name is checked before it is used. An object whose key
ends in a slash only marks a folder and is not read.
"""

import contextlib
import datetime as dt
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from portcullis.errors import DataError, UsageError
from portcullis.files import atomic_path, write_bytes

MAX_ENTRIES = 100_000
# A server's address: scheme, then host and port.
ENDPOINT = re.compile(r"(https?)://((?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?)/?")
_PATIENCE = {"connect_timeout": 10, "request_timeout": 60}  # seconds, of each of three attempts
_GOOGLE_PATIENCE = dt.timedelta(seconds=30)

_URI = re.compile(r"(s3|gs|minio)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/(.+)", re.DOTALL)
_ENDPOINT_ENV = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGION_ENV = ("AWS_REGION", "AWS_DEFAULT_REGION")
# pyarrow raises its own errors beside OSError, and a name that is not UTF-8 does not decode.
_FOREIGN_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True)
class _Object:
    """One object: its path relative to the source, where the store has it, and its size in bytes."""

    name: str
    location: str
    size: int

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise DataError(f"the store names no size of {self.name[:80]!a}")


@dataclass(frozen=True)
class _Source:
    """What a URI names, listed and checked but not yet read."""

    uri: str
    store: fs.FileSystem
    objects: tuple[_Object, ...]
    is_folder: bool

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each object; one whose size is no longer the listed one is refused."""
        for entry in self.objects:
            with _store_errors(self.uri), self.store.open_input_stream(entry.location, compression=None) as stream:
                # One read is one request, so an object that is replaced meanwhile is not read half old, half new.
                data = stream.read(entry.size + 1)
            if len(data) != entry.size:
                raise DataError(f"{self.uri}: {entry.name} changed while it was read")
            yield entry.name, data


def is_remote(uri: str) -> bool:
    """Tell whether a URI is of a store that is read here."""
    return uri.startswith(("s3://", "gs://", "minio://"))


def parse_uri(uri: str) -> tuple[str, str, str]:
    """Return scheme, bucket and key of a store's URI, without asking the store.

    Raises:
        UsageError: The URI is malformed.
    """
    match = _URI.fullmatch(uri)
    if match is None or not _is_path(match[3].removesuffix("/")):
        # Not shown whole: someone may have put a password into it.
        raise UsageError(
            f"{uri.partition('://')[0]!r} URIs are written s3://bucket/key, gs://… or minio://…, as plain text"
        )
    return match[1], match[2], match[3]


def remote_files(uri: str, *, limit: int) -> tuple[dict[str, bytes], bool]:
    """Read an object, or every object of a folder, into memory.

    Args:
        uri: The source (see the module's docstring); a slash at its end says that it is a folder.
        limit: Most bytes of all objects together; they are summed before any is read.

    Returns:
        Path relative to the source (of a single object its last part) to bytes, and whether the source is a folder.

    Raises:
        UsageError: The URI or the environment is malformed, or the source is missing or cannot be read.
        DataError: More than `limit` bytes or 100,000 names, a name that no file may have, an object that changed while
            it was read, or an empty folder.
    """
    source = _listed(uri, limit)
    return dict(source.read()), source.is_folder


def fetch(uri: str, destination: Path, *, is_folder: bool, limit: int) -> None:
    """Write an object to a file, or a folder to a directory, whole or not at all; what was there is replaced.

    Args:
        uri: As in `remote_files`.
        destination: The file or directory; one object is in memory at a time.
        is_folder: Which of the two the source must be.
        limit: Most bytes of all objects together.

    Raises:
        UsageError: As `remote_files`, or the source is of the other kind, or the destination cannot be written.
        DataError: As `remote_files`.
    """
    source = _listed(uri, limit)
    if source.is_folder != is_folder:
        raise UsageError(f"{uri} is {'a folder' if source.is_folder else 'one object'}; name the other kind")
    try:
        if not is_folder:
            ((_, data),) = source.read()
            write_bytes(destination, data)
            return
        with atomic_path(destination) as temporary:
            temporary.mkdir()
            for name, data in source.read():
                write_bytes(temporary / name, data)
    except OSError as error:
        raise UsageError(f"cannot write {destination}: {error.strerror}") from error


@contextlib.contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except _FOREIGN_ERRORS as error:
        said = "".join(character if character.isprintable() else "?" for character in " ".join(str(error).split()))
        advice = "check its name, the endpoint, the region and the credentials"
        raise UsageError(f"cannot read {uri}: {said[:400]}; {advice}") from error


def _listed(uri: str, limit: int) -> _Source:
    scheme, bucket, key = parse_uri(uri)
    location = f"{bucket}/{key.removesuffix('/')}"
    with _store_errors(uri):
        store = _google() if scheme == "gs" else _s3(bucket, own_server=scheme == "minio")
        info = store.get_file_info(location)
    if info.type == fs.FileType.File and not key.endswith("/"):
        objects = [_Object(location.rpartition("/")[2], location, info.size)]
    elif info.type == fs.FileType.Directory:
        objects = _below(uri, store, location)
    else:
        raise UsageError(f"cannot read {uri}: there is no such object or folder; check its name and the endpoint")
    total = sum(entry.size for entry in objects)
    if total > limit:
        raise DataError(f"{uri} holds {total} bytes, larger than the {limit} allowed here")
    return _Source(uri, store, tuple(objects), info.type == fs.FileType.Directory)


def _below(uri: str, store: fs.FileSystem, root: str) -> list[_Object]:
    """List every object of a folder, sorted by name."""
    with _store_errors(uri):
        # At once: level by level, Arrow finds a folder of Google's store only where someone made an object for it.
        listing = store.get_file_info(fs.FileSelector(root, recursive=True))
    if len(listing) > MAX_ENTRIES:
        raise DataError(f"{uri} holds more than {MAX_ENTRIES} names")
    objects: dict[str, _Object] = {}
    for info in listing:
        name = info.path.removeprefix(f"{root}/")
        if not info.path.startswith(f"{root}/") or not _is_path(name):
            raise DataError(f"{uri} holds {name[:80]!a}, a name that no file may have")
        if info.type == fs.FileType.Directory:
            continue
        if name in objects:
            raise DataError(f"{uri} holds {name} twice")
        objects[name] = _Object(name, info.path, info.size)
    parents = {str(parent) for name in objects for parent in PurePosixPath(name).parents}
    if both := parents & objects.keys():
        raise DataError(f"{uri}: {min(both)} is both an object and a folder")
    if not objects:
        raise DataError(f"{uri} holds no object")
    return [objects[name] for name in sorted(objects)]


def _is_path(name: str) -> bool:
    """Tell whether a name is a relative path of printable parts that leads down only."""
    return name.isprintable() and not {"", ".", ".."} & set(name.split("/"))


def _s3(bucket: str, *, own_server: bool) -> fs.FileSystem:
    named = next((name for name in _ENDPOINT_ENV if os.environ.get(name)), None)
    region = next((os.environ[name] for name in _REGION_ENV if os.environ.get(name)), None)
    if named is None:
        if own_server:
            raise UsageError(f"minio:// needs a server: set {_ENDPOINT_ENV[0]} to http://host:port")
        return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **_PATIENCE)
    address = os.environ[named]
    match = ENDPOINT.fullmatch(address if "://" in address else f"https://{address}")
    if match is None:
        raise UsageError(f"{named} is not a server's address; write https://host:port")
    # The AWS SDK follows no redirect in this region only, which it signs for as us-east-1. A redirect would have this
    # process read whatever the store's operator names, with its session token.
    region = "aws-global" if region in (None, "us-east-1") else region
    return fs.S3FileSystem(endpoint_override=match[2], scheme=match[1], region=region, **_PATIENCE)


def _google() -> fs.FileSystem:
    return fs.GcsFileSystem(retry_time_limit=_GOOGLE_PATIENCE)
