"""Reading with a limit, reading twice and writing atomically: what every stage does at its edges.

A file that is too large for memory is digested in one pass and parsed in later ones; `PinnedFile` sees to it that what
is parsed is what was digested. A write either appears whole under its final name or not at all, also when the process
is killed half way.
"""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from portcullis.errors import DataError, UsageError

BinaryFile = BinaryIO | io.RawIOBase
PIN_BYTES = 1 << 20
_RECENT_SEGMENTS = 2


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        UsageError: The file is missing, not a regular file, unreadable, or larger than `limit`.
    """
    try:
        # O_NONBLOCK keeps a FIFO from hanging us; what is looked at is what was opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(f"{path} is not a regular file")
        with os.fdopen(descriptor, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(f"{path} is larger than the {limit} bytes allowed here")
    return data


class SegmentedFile(io.RawIOBase):
    """A file to read and seek in that comes segment by segment; it keeps the segments that were read last.

    Attributes:
        size: Number of bytes.
    """

    def __init__(self, size: int, segment_size: int) -> None:
        self.size, self._segment_size = size, segment_size
        self._position = 0
        self._recent: dict[int, bytes] = {}

    def segment(self, index: int) -> bytes:
        """Load the segment, which is as long as the others unless it is the last."""
        raise NotImplementedError

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, from the start, from where it is, or from the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the start of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes; returns the number of bytes."""
        wanted = memoryview(buffer).cast("B")
        wanted = wanted[: max(0, self.size - self._position)]
        filled = 0
        while filled < len(wanted):
            index, start = divmod(self._position, self._segment_size)
            part = self._cached(index)[start : start + len(wanted) - filled]
            wanted[filled : filled + len(part)] = part
            filled += len(part)
            self._position += len(part)
        return filled

    def _cached(self, index: int) -> bytes:
        segment = self._recent.pop(index, None) or self.segment(index)
        self._recent[index] = segment  # the last one is the one used last
        if len(self._recent) > _RECENT_SEGMENTS:
            del self._recent[next(iter(self._recent))]
        return segment


class PinnedFile(SegmentedFile):
    """A file that is read once from end to end to be digested, and from then on gives those very bytes or refuses.

    It keeps a digest of 32 bytes for each MiB. It reads from the file that it was given, which is its owner's to close,
    and never opens it again by its name.

    Args:
        source: Seekable.
        name: Names the file in messages.
        pinned: The same file as it was digested through another handle; then nothing is read now.

    Attributes:
        sha256: SHA-256 of all bytes (hex).
        pins: SHA-256 of each MiB, 32 bytes.
    """

    def __init__(self, source: BinaryFile, name: str, *, pinned: "PinnedFile | None" = None) -> None:
        self._source, self._name = source, name
        self.pins: list[bytes] = []
        self.sha256 = ""
        if pinned is not None:
            self.pins, self.sha256 = pinned.pins, pinned.sha256
            super().__init__(pinned.size, PIN_BYTES)
            return
        size = 0
        whole = hashlib.sha256()
        while chunk := self._read_source(size, PIN_BYTES):
            whole.update(chunk)
            self.pins.append(hashlib.sha256(chunk).digest())
            size += len(chunk)
        self.sha256 = whole.hexdigest()
        super().__init__(size, PIN_BYTES)

    def over(self, source: BinaryFile) -> "PinnedFile":
        """Return the file read through another handle, from its start: the same bytes, or refused."""
        return PinnedFile(source, self._name, pinned=self)

    def segment(self, index: int) -> bytes:
        """Load the bytes.

        Raises:
            DataError: What is there now is not what was digested.
        """
        start = index * PIN_BYTES
        chunk = self._read_source(start, min(PIN_BYTES, self.size - start))
        if hashlib.sha256(chunk).digest() != self.pins[index]:
            raise DataError(f"{self._name} changed while it was read; leave it alone and run again")
        return chunk

    def _read_source(self, start: int, size: int) -> bytes:
        chunk = bytearray()
        try:
            self._source.seek(start)
            while part := self._source.read(size - len(chunk)):
                chunk += part
        except OSError as error:
            raise DataError(f"cannot read {self._name}: {error.strerror}") from error
        return bytes(chunk)


@contextlib.contextmanager
def atomic_path(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield a sibling temporary path (nothing exists there yet); rename it to `path` on success.

    The caller creates a file or a directory at the yielded path. A file replaces an existing file; a directory
    replaces an existing directory. On an exception the temporary is deleted and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if temporary.is_dir():
            _replace_directory(temporary, path, holder / ".replaced")
        else:
            temporary.chmod(mode)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.rename(path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _replace_directory(temporary: Path, path: Path, aside: Path) -> None:
    # A directory cannot be renamed over a full one, so the old one steps aside, and back should the new one not come.
    if path.is_dir():
        path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        if aside.is_dir():
            aside.rename(path)
        raise


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` atomically; `mode` is the file's permission bits."""
    with atomic_path(path, mode=mode) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)


def sync_folder(folder: Path) -> None:
    """Have a folder's entries reach the disk: without it, a file that was just made may be gone after a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_full(source: BinaryFile, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end of the file."""
    data = bytearray()
    while len(data) < size and (part := source.read(size - len(data))):
        data += part
    return bytes(data)


def memory_file(data: bytes) -> BinaryIO:
    """Return a file of these bytes that has no name, at its start."""
    stream: BinaryIO = os.fdopen(os.memfd_create("portcullis", os.MFD_CLOEXEC), "w+b", buffering=0)
    write_all(stream, data)
    stream.seek(0)
    return stream


def write_all(target: BinaryFile, data: bytes | memoryview) -> None:
    """Write all of `data` into a file that may take less at a time.

    Raises:
        UsageError: It takes no more bytes.
    """
    rest = memoryview(data)
    while rest:
        written = target.write(rest)
        if not written:
            raise UsageError("the target is in non-blocking mode, or takes no more bytes")
        rest = rest[written:]
