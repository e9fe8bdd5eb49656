"""Sealed directories: every file of a tree sealed under one data encryption key, and opened in memory only.

`name` of the tree becomes `name.sealed`, and `recipients.json` beside them holds the wrapped keys. Each file is bound
to its own name and to the names of all the others, so that none can be added, removed or renamed unseen.
"""

import contextlib
import functools
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from portcullis.digest import canonical_json, sha256, tree_digest, tree_files
from portcullis.errors import SealError, UsageError
from portcullis.files import BinaryFile, atomic_path, read_bytes, write_all, write_bytes
from portcullis.remote import remote_objects
from portcullis.sealing.recipients import (
    Opener,
    Recipient,
    claimed_recipients,
    unwrap_dek,
    wrap_dek,
)
from portcullis.sealing.stream import DEK_SIZE, SEGMENT_SIZE, EncryptedFile, open_regular, open_sealed, sealing

SIDECAR = "recipients.json"
SUFFIX = ".sealed"
SIDECAR_LIMIT = 4 << 20
NAME = "file name"
NAMES = "file names in directory"


def seal_directory(
    source: Path,
    target: Path,
    *,
    recipients: Collection[Recipient],
    context: Mapping[str, str],
) -> None:
    """Seal every file below `source` into the new directory `target`, which appears whole or not at all.

    Args:
        source: Holds regular files and directories only; empty directories are left out.
        target: Replaced if it exists; neither inside `source` nor around it.
        recipients: Who can open it.
        context: What the tree is, such as a model's digest; demanded again of whoever opens it.

    Raises:
        DataError: `source` is missing or empty, or holds a link, a special file or an undecodable name.
        KeyMaterialError: A recipient's key is degenerate.
        UsageError: The context or the recipients are unusable (see `seal`, `wrap_dek`), a file's name is not printable
            text, `source` and `target` overlap, or a file cannot be read or written.
    """
    here, there = source.resolve(), target.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UsageError(f"{source} and {target} overlap; seal into a directory apart")

    files = {entry.path: functools.partial(_copy, source / entry.path) for entry in tree_files(source)}
    seal_written(files, target, recipients=recipients, context=context)


def seal_files(
    files: Mapping[str, bytes],
    target: Path,
    *,
    recipients: Collection[Recipient],
    context: Mapping[str, str],
) -> None:
    """Seal files held in memory, by POSIX path, into the new directory `target`: none of them ever lies there plain.

    Args:
        files: As `open_directory` returns them; paths are relative, and none leaves `target`.
        target: Replaced if it exists; it appears whole or not at all.
        recipients: Who can open it.
        context: What the files are; demanded again of whoever opens them.

    Raises:
        KeyMaterialError: A recipient's key is degenerate.
        UsageError: As `seal_directory`.
    """
    written = {name: functools.partial(_write, data) for name, data in files.items()}
    seal_written(written, target, recipients=recipients, context=context)


def seal_written(
    files: Mapping[str, Callable[[BinaryFile], object]],
    target: Path,
    *,
    recipients: Collection[Recipient],
    context: Mapping[str, str],
) -> None:
    """Seal files of any length as they are written, by POSIX path, into the new directory `target`.

    Args:
        files: What writes each file into the sink that it is given; if it raises, nothing appears.
        target: As for `seal_files`; so are the others.
        recipients: Who can open it.
        context: What the files are.

    Raises:
        KeyMaterialError: A recipient's key is degenerate.
        UsageError: As `seal_directory`.
    """
    contexts = _file_contexts(context, sorted(files))
    dek = secrets.token_bytes(DEK_SIZE)
    sidecar = wrap_dek(dek, recipients, context=context)
    try:
        with atomic_path(target) as temporary:
            for name, file_context in contexts.items():
                sealed = temporary / (name + SUFFIX)
                sealed.parent.mkdir(parents=True, exist_ok=True)
                with sealed.open("xb", buffering=0) as stream:
                    with sealing(stream, dek=dek, context=file_context) as sink:
                        files[name](sink)
                    os.fsync(stream.fileno())
            write_bytes(temporary / SIDECAR, sidecar)
    except OSError as error:
        raise UsageError(f"cannot seal into {target}: {error.strerror}") from error


def _write(data: bytes, sink: BinaryFile) -> None:
    write_all(sink, data)


def _copy(path: Path, sink: BinaryFile) -> None:
    with open_regular(path) as plain:
        while part := plain.read(SEGMENT_SIZE):
            write_all(sink, part)


def open_directory(
    sealed: Path,
    *,
    private_key: Opener,
    context: Mapping[str, str],
    limits: Mapping[str, int] | None = None,
) -> dict[str, bytes]:
    """Decrypt a sealed directory in memory; returns each file's bytes by its POSIX path. Nothing is written to disk.

    Args:
        sealed: The sealed directory.
        private_key: Of one of its recipients.
        context: What it was sealed for.
        limits: The very files that must be in it, each with the most bytes that it may have; any when None.

    Raises:
        SealError: A file was altered, truncated, added, removed or renamed, the recipients were altered, or the key or
            the context is the wrong one; or a file is not among `limits`, missing, or larger.
        UsageError: `sealed` is no directory or cannot be read, or the context is unusable.
    """
    dek, contexts = _unlock(sealed, private_key, context, limits)
    files = {}
    for name, file_context in contexts.items():
        with open_sealed(sealed / (name + SUFFIX), dek=dek, context=file_context) as file:
            if limits is not None and file.size > limits[name]:
                raise SealError(f"{name} in {sealed} is larger than the {limits[name]} bytes allowed here")
            files[name] = file.read_all()
    return files


@contextlib.contextmanager
def open_files(
    sealed: Path, *, private_key: Opener, context: Mapping[str, str], names: Collection[str]
) -> Iterator[dict[str, EncryptedFile]]:
    """Open the files of a sealed directory to read and seek in, holding a few segments of each in memory.

    Args:
        sealed: The sealed directory.
        private_key: Of one of its recipients.
        context: What it was sealed for.
        names: The very files that must be in it.

    Raises:
        SealError: As `open_directory`.
        UsageError: As `open_directory`.
    """
    dek, contexts = _unlock(sealed, private_key, context, names)
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(open_sealed(sealed / (name + SUFFIX), dek=dek, context=file_context))
            for name, file_context in contexts.items()
        }


@contextlib.contextmanager
def open_remote_files(
    uri: str, *, private_key: Opener, context: Mapping[str, str], names: Collection[str]
) -> Iterator[dict[str, EncryptedFile]]:
    """Open the files of a sealed directory where it lies in a store; what is read costs requests for its segments.

    Args:
        uri: The directory: `s3://`, `gs://`, `minio://`, or another that fsspec reads (`portcullis.remote`).
        private_key: Of one of its recipients.
        context: What it was sealed for.
        names: The very files that must be in it.

    Raises:
        SealError: As `open_directory`.
        DataError: A name is none that a file may have.
        UsageError: The store cannot be read, or the context is unusable.
    """
    found = {entry.name: entry for entry in remote_objects(f"{uri.rstrip('/')}/")[0]}
    if set(found) != {SIDECAR, *(name + SUFFIX for name in names)}:
        raise SealError(f"{uri} holds {sorted(found)}, not the sealed files {sorted(names)}")
    if found[SIDECAR].size > SIDECAR_LIMIT:
        raise SealError(f"{SIDECAR} in {uri} is larger than the {SIDECAR_LIMIT} bytes allowed here")
    dek = unwrap_dek(found[SIDECAR].read(), private_key, context=context)
    with contextlib.ExitStack() as stack:
        opened = {}
        for name, file_context in _file_contexts(context, sorted(names)).items():
            stream = stack.enter_context(found[name + SUFFIX].open())
            opened[name] = stack.enter_context(open_sealed(stream, dek=dek, context=file_context, name=f"{uri}/{name}"))
        yield opened


def _unlock(
    sealed: Path, private_key: Opener, context: Mapping[str, str], names: Collection[str] | None
) -> tuple[bytes, dict[str, dict[str, str]]]:
    """Return the data encryption key of a sealed directory, and the context of each of its files."""
    contexts = _file_contexts(context, _sealed_names(sealed))
    if names is not None and set(contexts) != set(names):
        raise SealError(f"{sealed} holds {sorted(contexts)}, not {sorted(names)}")
    return unwrap_dek(read_bytes(sealed / SIDECAR, limit=SIDECAR_LIMIT), private_key, context=context), contexts


def rewrap(sealed: Path, *, opener: Opener, recipients: Collection[Recipient], context: Mapping[str, str]) -> None:
    """Wrap a sealed directory's data encryption key anew: no sealed file changes, nor the sealed digest.

    Args:
        sealed: The sealed directory; its list of recipients is replaced atomically.
        opener: Of one of its recipients.
        recipients: Who can open it from now on. Who could before may have kept the key that opens it.
        context: What it was sealed for.

    Raises:
        SealError: As `open_directory`.
        KeyMaterialError: As `seal_directory`, or a service did not unwrap or wrap.
        UsageError: As `seal_directory`; or the list cannot be written.
    """
    dek, contexts = _unlock(sealed, opener, context, None)
    for name, file_context in contexts.items():
        with open_sealed(sealed / (name + SUFFIX), dek=dek, context=file_context):
            pass  # it is this key that opens each file
    try:
        write_bytes(sealed / SIDECAR, wrap_dek(dek, recipients, context=context))
    except OSError as error:
        raise UsageError(f"cannot write {sealed / SIDECAR}: {error.strerror}") from error


def sealed_recipients(sealed: Path) -> list[str]:
    """Return the key ids, sorted, that a sealed directory claims to be sealed for; only opening it shows that it is.

    Raises:
        SealError: A file does not belong there, or the list of recipients is malformed.
        UsageError: `sealed` is no directory or cannot be read.
    """
    _sealed_names(sealed)
    return claimed_recipients(read_bytes(sealed / SIDECAR, limit=SIDECAR_LIMIT))


def sealed_digest(path: Path) -> str:
    """Digest a sealed directory without its recipients, so that wrapping the key for others leaves it as it is.

    Raises:
        DataError: As `tree_digest`.
    """
    return tree_digest(path, exclude={SIDECAR})


def _file_contexts(context: Mapping[str, str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Add to the context what binds each file to its place: its name, and a digest of the names of all the files."""
    if reserved := context.keys() & {NAME, NAMES}:
        raise UsageError(f"the context may not use the reserved name {min(reserved)!r}")
    listing = sha256(canonical_json(sorted(names)))
    return {name: {**context, NAME: name, NAMES: listing} for name in names}


def _sealed_names(sealed: Path) -> list[str]:
    """List what the files of a sealed directory are named without their suffix; whatever does not belong is refused."""
    if not sealed.is_dir():
        raise UsageError(f"{sealed} is missing or not a directory")
    names = []
    for path in sealed.rglob("*"):
        name = path.relative_to(sealed).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()) or not name.isprintable():
            raise SealError(f"{name!r} does not belong in a sealed directory: a link, a special file or a strange name")
        if path.is_file() and name != SIDECAR:
            if not name.endswith(SUFFIX):
                raise SealError(f"{name!r} does not belong in a sealed directory: it is not a sealed file")
            names.append(name.removesuffix(SUFFIX))
    if not names or not (sealed / SIDECAR).is_file():
        raise SealError(f"{sealed} is no sealed directory: it holds no sealed file, or no {SIDECAR}")
    return sorted(names)
