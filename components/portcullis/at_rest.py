"""Data sets at rest: sealed between steps, in plain text in a step's memory only.

A step that writes a data set seals it as it is written for the pipeline's recipient, `pipeline.pub.pem`; a step that
reads one opens it with `pipeline.pem`, as a whole in memory (`read_input`) or in pieces (`open_input`). Evidence speaks
of content: the digest of a sealed data set is that of its two files in plain text, so sealing the same rows again,
under a new key, changes no evidence.

A data set in plain text is accepted only where the signed policy says that it comes from outside the chain: a user's
own. What a step made is refused in plain text, whatever its digest; no missing key and no argument changes that.
"""

import contextlib
import io
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa

from portcullis.dataset import (
    DATA_FILE,
    FILE_LIMITS,
    MAX_SPEC_BYTES,
    SPEC_FILE,
    DatasetSpec,
    DatasetStream,
    dataset_digest,
    encode_spec,
    read_dataset_files,
    stream_dataset,
    write_rows,
)
from portcullis.digest import FileEntry, path_digest
from portcullis.errors import DataError, SealError
from portcullis.evidence.policy import EXTERNAL, Policy
from portcullis.evidence.step import keys_base
from portcullis.evidence.trust import TrustStore
from portcullis.files import BinaryFile, write_all
from portcullis.keys import role_uri
from portcullis.sealing.recipients import Opener, Recipient, opener_at, recipient_at
from portcullis.sealing.sealed import SIDECAR, SUFFIX, open_directory, open_files, seal_written, sealed_recipients
from portcullis.table import TableStream, stream_of

CONTEXT = {"content": "portcullis dataset"}
PRIVATE_KEY = "pipeline.pem"
PUBLIC_KEY = "pipeline.pub.pem"
_PLAIN = frozenset(FILE_LIMITS)
_SEALED = frozenset({*(name + SUFFIX for name in FILE_LIMITS), SIDECAR})


def pipeline_recipient() -> Recipient:
    """Return the key that data sets are sealed for, from where PORTCULLIS_KEYS says.

    Raises:
        KeyMaterialError: Missing, malformed, or open to other users.
        UsageError: PORTCULLIS_KEYS is not set.
    """
    return recipient_at(role_uri(keys_base(), PUBLIC_KEY))


def pipeline_key() -> Opener:
    """Return the key that opens data sets, from where PORTCULLIS_KEYS says.

    Raises:
        KeyMaterialError: Missing, malformed, or open to other users.
        UsageError: PORTCULLIS_KEYS is not set.
    """
    return opener_at(role_uri(keys_base(), PRIVATE_KEY))


def seal_dataset(directory: Path, table: pa.Table | TableStream, spec: DatasetSpec, *, recipient: Recipient) -> str:
    """Seal a data set as it is written, atomically and in bounded memory; its plain text never touches a file.

    Args:
        directory: Where it goes; what lies there is replaced.
        table: Its rows. The same ones give the same plain text, however they are cut into pieces.
        spec: Its description.
        recipient: Who can open it.

    Returns:
        Its content digest: that of its two files in plain text.

    Raises:
        DataError: As `write_rows`; or a table has no canonical form, or lacks a column of the description.
        ConfigError: As `encode_spec`.
        UsageError: The directory cannot be written.
    """
    stream = table if isinstance(table, TableStream) else stream_of(table)
    description = encode_spec(spec, stream.schema.names)
    written: list[FileEntry] = []
    files: dict[str, Callable[[BinaryFile], object]] = {
        DATA_FILE: lambda sink: written.append(write_rows(sink, stream)),
        SPEC_FILE: lambda sink: write_all(sink, description),
    }
    seal_written(files, directory, recipients=[recipient], context=CONTEXT)
    return dataset_digest(written[0], description)


def sealed_digest(table: pa.Table | TableStream, spec: DatasetSpec) -> str:
    """Return the content digest that `seal_dataset` would give these rows, and write nothing.

    Raises:
        DataError: As `seal_dataset`; so is the other.
        ConfigError: As `seal_dataset`.
    """
    stream = table if isinstance(table, TableStream) else stream_of(table)
    description = encode_spec(spec, stream.schema.names)
    return dataset_digest(write_rows(_Nowhere(), stream), description)


class _Nowhere(io.RawIOBase):
    """Takes all bytes and keeps none."""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return len(data)


def open_dataset(directory: Path, *, key: Opener) -> dict[str, bytes]:
    """Open a sealed data set in memory; `parse_dataset` reads what comes back.

    Raises:
        DataError: The directory is missing or holds anything but a sealed data set.
        SealError: A byte of it was altered, it is no data set, or it was sealed for another key, or not for this one
            alone.
    """
    _check_sealed(directory, key)
    return open_directory(directory, private_key=key, context=CONTEXT, limits=FILE_LIMITS)


@contextlib.contextmanager
def stream_sealed(directory: Path, *, key: Opener) -> Iterator[DatasetStream]:
    """Open a sealed data set to be read in pieces, whatever its size.

    Raises:
        DataError: As `open_dataset`.
        SealError: As `open_dataset`.
    """
    _check_sealed(directory, key)
    with open_files(directory, private_key=key, context=CONTEXT, names=FILE_LIMITS) as files:
        description = files[SPEC_FILE]
        if description.size > MAX_SPEC_BYTES:
            raise SealError(f"{SPEC_FILE} in {directory} is larger than the {MAX_SPEC_BYTES} bytes allowed here")
        yield DatasetStream.digesting(files[DATA_FILE], description.read_all())


def _check_sealed(directory: Path, key: Opener) -> None:
    if _names(directory) != _SEALED:
        raise DataError(f"{directory} is no sealed data set: it must hold exactly {', '.join(sorted(_SEALED))}")
    if sealed_recipients(directory) != [key.key_id]:
        raise SealError(f"{directory} is sealed for others than this pipeline's key alone")


def read_input(step: str, name: str, directory: Path) -> dict[str, bytes]:
    """Read the data set that is an input of a step, once.

    Args:
        step: The step's name in the policy.
        name: The input's name there.
        directory: Sealed, or in plain text where the policy says that it comes from outside the chain.

    Returns:
        Its two files in plain text, by name: what is digested, and then parsed.

    Raises:
        DataError: The directory is missing or holds anything but a data set.
        SealError: It was altered or is sealed for another key; or it lies in plain text and a step should have made it.
        KeyMaterialError: It is sealed, and `pipeline.pem` is not there.
        TrustStoreError: It lies in plain text, and there is no trust store.
        PolicyError: Likewise, and the policy names no such step.
    """
    if _lies_plain(directory, step, [name]):
        return read_dataset_files(directory)
    return open_dataset(directory, key=pipeline_key())


@contextlib.contextmanager
def open_input(step: str, name: str, directory: Path) -> Iterator[DatasetStream]:
    """Open the data set that is an input of a step, to be read in pieces whatever its size.

    Every byte is digested before any is parsed: take `.digest` first, have the evidence judge it, and then ask for
    `.spec` and `.table`. What is parsed is what was digested, though it be read again and again.

    Args:
        step: As for `read_input`; so are the others.
        name: The input's name.
        directory: The data set.

    Raises:
        DataError: As `read_input`; so are the others.
        SealError: It was altered, is sealed for another key, or lies in plain text where a step should have made it.
        KeyMaterialError: It is sealed, and `pipeline.pem` is not there.
        TrustStoreError: It lies in plain text, and there is no trust store.
        PolicyError: Likewise, and the policy names no such step.
    """
    with _open(directory, step, [name]) as opened:
        yield opened


def input_digest(step: str, name: str, path: Path) -> str:
    """Digest an input of a step that may be anything: a data set by its content, all else by what lies there.

    Raises:
        DataError: Missing or empty, or it holds a link or a special file.
        SealError: As `read_input`, of a data set; so are the others.
    """
    return _digest(path, step, [name]) if _is_dataset(path) else path_digest(path)


def subject_digest(gate: str, path: Path) -> str:
    """Digest what a gate judged, likewise.

    Raises:
        PolicyError: It is a data set, and the policy names no such gate.
        SealError: As `input_digest`; so are the others.
    """
    if not _is_dataset(path):
        return path_digest(path)
    return _digest(path, gate, TrustStore.load().policy.step(gate).outputs)


def product_digest(path: Path) -> str:
    """Digest what a task made, likewise; a data set that a task made is sealed.

    Raises:
        SealError: It is a data set in plain text; or as `input_digest`.
    """
    if not _is_dataset(path):
        return path_digest(path)
    if _names(path) == _PLAIN:
        raise SealError(f"{path} is a data set in plain text; whoever made it must seal it (seal_dataset)")
    with stream_sealed(path, key=pipeline_key()) as opened:
        return opened.digest


def _digest(directory: Path, step: str, inputs: Collection[str]) -> str:
    with _open(directory, step, inputs) as opened:
        return opened.digest


def _open(directory: Path, step: str, inputs: Collection[str]) -> AbstractContextManager[DatasetStream]:
    if _lies_plain(directory, step, inputs):
        return stream_dataset(directory)
    return stream_sealed(directory, key=pipeline_key())


def _lies_plain(directory: Path, step: str, inputs: Collection[str]) -> bool:
    """Tell whether a data set lies in plain text, where the policy allows that for each of these inputs."""
    names = _names(directory)
    if names == _PLAIN:
        policy = TrustStore.load().policy
        for name in inputs:
            _require_from_outside(policy, step, name)
    elif names != _SEALED:
        raise DataError(f"{directory} is no data set: it must hold exactly {', '.join(sorted(_SEALED))}")
    return names == _PLAIN


def _require_from_outside(policy: Policy, step: str, name: str) -> None:
    source = policy.step(step).inputs.get(name, "")
    maker = policy.steps.get(source.partition(".")[0])
    # `start_chain` makes nothing: its output is what it was given from outside.
    if source != EXTERNAL and not (maker and maker.stage == "start_chain"):
        raise SealError(
            f"step {step!r}: its input {name!r} lies in plain text; {source or 'what it takes'} is sealed, so it was "
            "put in its place"
        )


def _is_dataset(path: Path) -> bool:
    return path.is_dir() and _names(path) in (_PLAIN, _SEALED)


def _names(directory: Path) -> frozenset[str]:
    if directory.is_symlink() or not directory.is_dir():
        raise DataError(f"{directory} is missing or not a directory")
    try:
        return frozenset(path.name for path in directory.iterdir())
    except OSError as error:
        raise DataError(f"cannot read {directory}: {error.strerror}") from error
