"""Where a ledger is kept: one object that is replaced only by whoever read what it holds now (compare-and-swap).

| URI | object | two at once |
|---|---|---|
| `local` | a file below PORTCULLIS_LEDGERS; in a pod, a ConfigMap of its own namespace | as those |
| `file:/absolute/path` | a file of this machine | a lock (flock) around compare and atomic replace |
| `kubernetes://namespace/name` | a ConfigMap, which must be there | its resourceVersion |
| `s3://bucket/key`, `minio://bucket/key` | an object | conditional requests (`If-Match`, `If-None-Match`) |
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from portcullis.digest import sha256
from portcullis.errors import UsageError
from portcullis.files import read_bytes, sync_folder, write_bytes
from portcullis.ledger.entries import MAX_LEDGER_BYTES

LEDGERS_ENV = "PORTCULLIS_LEDGERS"
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # where Kubernetes tells a pod


class ChangedError(Exception):
    """Nothing was written: someone else wrote since the object was read."""


@dataclass(frozen=True)
class Held:
    """What an object holds.

    Attributes:
        data: Its bytes; none where there is no object.
        version: What tells this state of it from every other; empty where there is no object.
    """

    data: bytes
    version: str


class Store(Protocol):
    """One object. Its methods raise UsageError, or InconclusiveError when it cannot be reached for now."""

    def read(self) -> Held:
        """Return what it holds now."""

    def replace(self, data: bytes, *, over: Held) -> None:
        """Have it hold `data`, durably, or raise ChangedError when it no longer holds what was read."""


@dataclass(frozen=True)
class FileStore:
    """A file on a local file system; a lock beside it keeps processes of one machine apart.

    Attributes:
        path: The file; its folder is made.
    """

    path: Path

    def read(self) -> Held:
        """Return the file's bytes; it is always replaced as a whole, so no lock is needed."""
        if self.path.is_symlink() or not self.path.exists():
            if self.path.is_symlink():
                raise UsageError(f"{self.path} is a link; a ledger is a file of its own")
            return Held(b"", "")
        data = read_bytes(self.path, limit=MAX_LEDGER_BYTES)
        return Held(data, sha256(data))

    def replace(self, data: bytes, *, over: Held) -> None:
        """Replace the file, and have that reach the disk."""
        try:
            with self._alone():
                if self.read().version != over.version:
                    raise ChangedError(f"{self.path} was changed meanwhile")
                write_bytes(self.path, data, mode=0o600)
                sync_folder(self.path.parent)
        except OSError as error:
            raise UsageError(f"cannot write the ledger {self.path}: {error.strerror}; nothing is released") from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.path.with_name(f".{self.path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


CONFIG_MAP_URI = re.compile(r"kubernetes://([^/]+)/([^/]+)")


def open_store(uri: str) -> Store:
    """Return the store that a URI names; nothing is read yet.

    Raises:
        UsageError: The URI is of no kind that can compare and swap, or is malformed.
        MissingDependencyError: A client is needed and not installed.
    """
    if uri.startswith("file:/"):
        path = Path(uri.removeprefix("file:"))
        if ".." in path.parts or path.name == "":
            raise UsageError("the ledger's file: URI must name a file by an absolute path without '..'")
        return FileStore(path)
    if found := CONFIG_MAP_URI.fullmatch(uri):
        from portcullis.ledger.kubernetes_store import ConfigMapStore

        return ConfigMapStore.connect(found[1], found[2])
    if uri.startswith(("s3://", "minio://")):
        from portcullis.ledger.s3_store import S3Store

        return S3Store.connect(uri)
    # Not shown whole: someone may have put a password into it.
    raise UsageError(
        f"no ledger can be kept at {uri.partition(':')[0][:20]!r} URIs; use file:/absolute/path, "
        "kubernetes://namespace/configmap, s3://bucket/key or minio://bucket/key"
    )


def config_maps(dataset: str) -> tuple[str, str]:
    """Return what the ConfigMaps of a data set's ledger and of its head are called in the namespace of its runs."""
    return f"portcullis-ledger-{dataset}", f"portcullis-ledger-{dataset}-head"


def local_stores(dataset: str, state: Path) -> tuple[Store, Store]:
    """Return ledger and memory of a data set where its runs are: on this machine, or in this pod's namespace.

    Args:
        dataset: The data set's id.
        state: The verifier's state directory, for the memory on one machine.

    Raises:
        UsageError: PORTCULLIS_LEDGERS names no absolute directory, and this is no pod of a cluster.
        MissingDependencyError: This is a pod, and the Kubernetes client is not installed.
    """
    named = os.environ.get(LEDGERS_ENV, "")
    if named.startswith("/"):
        return FileStore(Path(named) / f"{dataset}.jsonl"), FileStore(state.absolute() / f"ledger-{dataset}.json")
    if named or not OWN_NAMESPACE.is_file():
        raise UsageError(
            f"the policy keeps the ledger where the run is, and {LEDGERS_ENV} names no absolute directory here; set "
            "it, or name ledger.store and ledger.memory in the configuration"
        )
    from portcullis.ledger.kubernetes_store import ConfigMapStore

    namespace = read_bytes(OWN_NAMESPACE, limit=1 << 10).decode("ascii", "replace").strip()
    ledger, head = (ConfigMapStore.connect(namespace, name) for name in config_maps(dataset))
    return ledger, head
