"""Sealed directories: every file of a tree sealed under one data encryption key, and opened in memory only.

`name` of the tree becomes `name.sealed`, and `recipients.json` beside them holds the wrapped keys. Each file is bound
to its own name and to the names of all the others, so that none can be added, removed or renamed unseen.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from portcullis.digest import canonical_json, sha256, tree_digest, tree_files
from portcullis.encryption.recipients import (
    SealingPrivateKey,
    SealingPublicKey,
    claimed_recipients,
    unwrap_dek,
    wrap_dek,
)
from portcullis.encryption.stream import DEK_SIZE, open_regular, open_sealed, seal
from portcullis.errors import SealError, UsageError
from portcullis.files import atomic_path, read_bytes, write_bytes

SIDECAR = "recipients.json"
SUFFIX = ".sealed"
SIDECAR_LIMIT = 4 << 20
NAME = "file name"
NAMES = "file names in directory"


def seal_directory(
    source: Path,
    target: Path,
    *,
    recipients: Collection[SealingPublicKey],
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
    contexts = _file_contexts(context, [entry.path for entry in tree_files(source)])
    dek = secrets.token_bytes(DEK_SIZE)
    sidecar = wrap_dek(dek, recipients, context=context)
    try:
        with atomic_path(target) as temporary:
            for name, file_context in contexts.items():
                sealed = temporary / (name + SUFFIX)
                sealed.parent.mkdir(parents=True, exist_ok=True)
                with open_regular(source / name) as plain, sealed.open("xb", buffering=0) as stream:
                    seal(plain, stream, dek=dek, context=file_context)
            write_bytes(temporary / SIDECAR, sidecar)
    except OSError as error:
        raise UsageError(f"cannot seal {source} into {target}: {error.strerror}") from error


def open_directory(sealed: Path, *, private_key: SealingPrivateKey, context: Mapping[str, str]) -> dict[str, bytes]:
    """Decrypt a sealed directory in memory; returns each file's bytes by its POSIX path. Nothing is written to disk.

    Raises:
        SealError: A file was altered, truncated, added, removed or renamed, the recipients were altered, or the key or
            the context is the wrong one.
        UsageError: `sealed` is no directory or cannot be read, or the context is unusable.
    """
    contexts = _file_contexts(context, _sealed_names(sealed))
    dek = unwrap_dek(read_bytes(sealed / SIDECAR, limit=SIDECAR_LIMIT), private_key, context=context)
    files = {}
    for name, file_context in contexts.items():
        with open_sealed(sealed / (name + SUFFIX), dek=dek, context=file_context) as file:
            files[name] = file.read_all()
    return files


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
