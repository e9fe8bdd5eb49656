"""Reading with a limit and writing atomically: what every stage does at its edges.

A write either appears whole under its final name or not at all, also when the process is killed half way.
"""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from portcullis.errors import UsageError


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
