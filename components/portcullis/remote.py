"""Reading objects of a store with a limit: `s3://bucket/key`, `gs://bucket/key`, and KFP's `minio://bucket/key`.

A key names one object, or a folder: all the objects whose keys begin with it and a slash. It is taken as written, with
no escapes and no query, so a URI can choose neither a server nor credentials; those come from the environment alone:

- `AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`: the server of `s3://` and `minio://`, such as
  `http://minio-service.kubeflow:9000`, https without a scheme. By default AWS; `minio://` needs it.
- `AWS_REGION`, else `AWS_DEFAULT_REGION`: by default the bucket's own, or `us-east-1` on a server of one's own. Under
  another region than that, a server of one's own may send this process on to another address.
- `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and where else the AWS SDK looks for credentials.
- `GOOGLE_APPLICATION_CREDENTIALS` and where else Google's SDK looks, for `gs://`.

Any other URL, such as `abfs://container/key` or `https://host/file.csv`, is read by fsspec, where it and its package
for that scheme are installed; options and credentials come from fsspec's own configuration and that package's
environment, never from the URL. Refused are `http://` and schemes that read this machine's files, chain another URL or
keep copies.

A store can name its objects as no file may be named, so every name is checked before it is used. An object whose key
ends in a slash only marks a folder and is not read.
"""

import contextlib
import datetime as dt
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from portcullis.errors import DataError, MissingDependencyError, PortcullisError, UsageError
from portcullis.files import atomic_path, write_bytes

MAX_ENTRIES = 100_000
# A server's address: scheme, then host and port.
ENDPOINT = re.compile(r"(https?)://((?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?)/?")
_PATIENCE = {"connect_timeout": 10, "request_timeout": 60}  # seconds, of each of three attempts
_GOOGLE_PATIENCE = dt.timedelta(seconds=30)

_FSSPEC = re.compile(r"([a-z][a-z0-9+.-]*)://")
_FSSPEC_URI = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._/=,:+ -]+")
# Those that read this machine's files, wrap another URI, keep copies, or believe whoever answers.
_NOT_FSSPEC = frozenset(
    [
        "file",
        "local",
        "asynclocal",
        "asyncwrapper",
        "data",
        "dir",
        "generic",
        "reference",
        "zip",
        "tar",
        "libarchive",
        "git",
        "blockcache",
        "cached",
        "filecache",
        "simplecache",
        "dask",
        "worker",
        "jupyter",
        "jlab",
        "http",
    ]
)
_URI = re.compile(r"(s3|gs|minio)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])/(.+)", re.DOTALL)
_ENDPOINT_ENV = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGION_ENV = ("AWS_REGION", "AWS_DEFAULT_REGION")
# pyarrow raises its own errors beside OSError, and a name that is not UTF-8 does not decode.
_FOREIGN_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True)
class StoreObject:
    """One object of a store, listed and checked but not yet read.

    Attributes:
        uri: The URI that it was found by, for messages.
        name: Its path relative to that source; of a single object the last part of its key.
        size: In bytes.
    """

    uri: str
    name: str
    size: int
    _location: str
    _store: fs.FileSystem

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise DataError(f"the store names no size of {self.name[:80]!a}")

    def read(self) -> bytes:
        """Read it whole, by one request, so that one that is replaced meanwhile is not read half old, half new.

        Raises:
            UsageError: It cannot be read.
            DataError: Its size is no longer the listed one.
        """
        with _store_errors(self.uri), self._store.open_input_stream(self._location, compression=None) as stream:
            data: bytes = stream.read(self.size + 1)
        if len(data) != self.size:
            raise DataError(f"{self.uri}: {self.name} changed while it was read")
        return data

    @contextlib.contextmanager
    def open(self) -> Iterator[io.RawIOBase]:
        """Open it to read and seek in, by one request for each part; whether it stays the same is not checked.

        Raises:
            UsageError: It cannot be read, now or later.
            DataError: Its size is no longer the listed one.
        """
        with _store_errors(self.uri):
            opened = self._store.open_input_file(self._location)
        with opened:
            if opened.size() != self.size:
                raise DataError(f"{self.uri}: {self.name} changed while it was read")
            yield _StoreFile(self.uri, opened)


class _StoreFile(io.RawIOBase):
    """An object that is open, whose errors are ours."""

    def __init__(self, uri: str, opened: pa.NativeFile) -> None:
        self._uri, self._opened = uri, opened

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _store_errors(self._uri):
            return int(self._opened.seek(offset, whence))

    def read(self, size: int = -1) -> bytes:
        with _store_errors(self._uri):
            data: bytes = self._opened.read(size)
            return data


def is_fsspec(uri: str) -> bool:
    """Tell whether a URI is of another store, which fsspec reads where its package for it is installed."""
    return not is_remote(uri) and _FSSPEC.match(uri) is not None


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


def remote_objects(uri: str, *, limit: int | None = None) -> tuple[tuple[StoreObject, ...], bool]:
    """List an object, or every object of a folder, sorted by name; nothing of them is read yet.

    Args:
        uri: The source (see the module's docstring); a slash at its end says that it is a folder.
        limit: Most bytes of all objects together.

    Returns:
        The objects, and whether the source is a folder.

    Raises:
        UsageError: The URI or the environment is malformed, or the source is missing or cannot be listed.
        DataError: More than `limit` bytes or 100,000 names, a name that no file may have, or an empty folder.
    """
    if is_fsspec(uri):
        store, location = _fsspec(uri)
    else:
        scheme, bucket, key = parse_uri(uri)
        location = f"{bucket}/{key}"
        with _store_errors(uri):
            store = _google() if scheme == "gs" else _s3(bucket, own_server=scheme == "minio")
    is_named_folder, location = location.endswith("/"), location.rstrip("/")
    with _store_errors(uri):
        info = store.get_file_info(location)
    if info.type == fs.FileType.File and not is_named_folder:
        objects: tuple[StoreObject, ...] = (StoreObject(uri, location.rpartition("/")[2], info.size, location, store),)
    elif info.type == fs.FileType.Directory:
        objects = _below(uri, store, location)
    else:
        raise UsageError(f"cannot read {uri}: there is no such object or folder; check its name and the endpoint")
    total = sum(entry.size for entry in objects)
    if limit is not None and total > limit:
        raise DataError(f"{uri} holds {total} bytes, larger than the {limit} allowed here")
    return objects, info.type == fs.FileType.Directory


def fetch(uri: str, destination: Path, *, is_folder: bool, limit: int) -> None:
    """Write an object to a file, or a folder to a directory, whole or not at all; what was there is replaced.

    Args:
        uri: As in `remote_objects`.
        destination: The file or directory; one object is in memory at a time.
        is_folder: Which of the two the source must be.
        limit: Most bytes of all objects together.

    Raises:
        UsageError: As `remote_objects`, or an object cannot be read, or the source is of the other kind, or the
            destination cannot be written.
        DataError: As `remote_objects`, or an object changed while it was read.
    """
    objects, found_folder = remote_objects(uri, limit=limit)
    if found_folder != is_folder:
        raise UsageError(f"{uri} is {'a folder' if found_folder else 'one object'}; name the other kind")
    try:
        if not is_folder:
            write_bytes(destination, objects[0].read())
            return
        with atomic_path(destination) as temporary:
            temporary.mkdir()
            for entry in objects:
                write_bytes(temporary / entry.name, entry.read())
    except OSError as error:
        raise UsageError(f"cannot write {destination}: {error.strerror}") from error


@contextlib.contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    foreign = (Exception,) if is_fsspec(uri) else _FOREIGN_ERRORS  # each of fsspec's packages has errors of its own
    try:
        yield
    except PortcullisError:
        raise
    except foreign as error:
        said = "".join(character if character.isprintable() else "?" for character in " ".join(str(error).split()))
        advice = "check its name, the endpoint, the region and the credentials"
        raise UsageError(f"cannot read {uri}: {said[:400]}; {advice}") from error


def _below(uri: str, store: fs.FileSystem, root: str) -> tuple[StoreObject, ...]:
    """List every object of a folder, sorted by name."""
    with _store_errors(uri):
        # At once: level by level, Arrow finds a folder of Google's store only where someone made an object for it.
        listing = store.get_file_info(fs.FileSelector(root, recursive=True))
    if len(listing) > MAX_ENTRIES:
        raise DataError(f"{uri} holds more than {MAX_ENTRIES} names")
    objects: dict[str, StoreObject] = {}
    for info in listing:
        name = info.path.removeprefix(f"{root}/")
        if not info.path.startswith(f"{root}/") or not _is_path(name):
            raise DataError(f"{uri} holds {name[:80]!a}, a name that no file may have")
        if info.type == fs.FileType.Directory:
            continue
        if name in objects:
            raise DataError(f"{uri} holds {name} twice")
        objects[name] = StoreObject(uri, name, info.size, info.path, store)
    parents = {str(parent) for name in objects for parent in PurePosixPath(name).parents}
    if both := parents & objects.keys():
        raise DataError(f"{uri}: {min(both)} is both an object and a folder")
    if not objects:
        raise DataError(f"{uri} holds no object")
    return tuple(objects[name] for name in sorted(objects))


def _is_path(name: str) -> bool:
    """Tell whether a name is a relative path of printable parts that leads down only."""
    return name.isprintable() and not {"", ".", ".."} & set(name.split("/"))


def _fsspec(uri: str) -> tuple[fs.FileSystem, str]:
    """Return fsspec's file system for a URI, and where the source is in it."""
    match = _FSSPEC.match(uri)
    scheme = match[1] if match else ""
    if scheme in _NOT_FSSPEC or not _FSSPEC_URI.fullmatch(uri):
        # Not shown whole: someone may have put a password into it.
        raise UsageError(
            f"{scheme[:20]!r} URIs are not read here; others are written scheme://place/path, as plain text without "
            "credentials, query or a second URI"
        )
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependencyError(f"{scheme}:// needs fsspec: pip install 'kfp-portcullis[fsspec]'") from error
    with _store_errors(uri):  # some connect at once
        try:
            system, location = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"nothing here reads {scheme[:20]}://; install fsspec's package for it, such as adlfs for abfs"
            ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), location + "/" * (uri.endswith("/") and location[-1:] != "/")


def s3_endpoint(*, own_server: bool) -> tuple[str, str, str]:
    """Return scheme, host and port, and region of the server that the environment names for `s3://` and `minio://`.

    Args:
        own_server: Whether there must be one named, as for `minio://`; else AWS's own in the region.

    Raises:
        UsageError: None is named, or not as an address; or AWS is meant and no region is named.
    """
    region = _region()
    named = _named_endpoint(own_server=own_server)
    if named:
        return *named, region or "us-east-1"
    if region is None:
        raise UsageError(f"set {_REGION_ENV[0]} to the bucket's region")
    return "https", f"s3.{region}.amazonaws.com", region


def _s3(bucket: str, *, own_server: bool) -> fs.FileSystem:
    named, region = _named_endpoint(own_server=own_server), _region()
    if named is None:
        return fs.S3FileSystem(region=region or fs.resolve_s3_region(bucket), **_PATIENCE)
    # The AWS SDK follows no redirect in this region only, which it signs for as us-east-1. A redirect would have this
    # process read whatever the store's operator names, with its session token.
    region = "aws-global" if region in (None, "us-east-1") else region
    return fs.S3FileSystem(endpoint_override=named[1], scheme=named[0], region=region, **_PATIENCE)


def _region() -> str | None:
    return next((os.environ[name] for name in _REGION_ENV if os.environ.get(name)), None)


def _named_endpoint(*, own_server: bool) -> tuple[str, str] | None:
    named = next((name for name in _ENDPOINT_ENV if os.environ.get(name)), None)
    if named is None:
        if own_server:
            raise UsageError(f"minio:// needs a server: set {_ENDPOINT_ENV[0]} to http://host:port")
        return None
    address = os.environ[named]
    match = ENDPOINT.fullmatch(address if "://" in address else f"https://{address}")
    if match is None:
        raise UsageError(f"{named} is not a server's address; write https://host:port")
    return match[1], match[2]


def _google() -> fs.FileSystem:
    return fs.GcsFileSystem(retry_time_limit=_GOOGLE_PATIENCE)
