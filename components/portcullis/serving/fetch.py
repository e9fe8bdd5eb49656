"""`python -m portcullis.serving.fetch`: bring an admitted model to where its server will look for it.

An init container of the server runs it. It verifies nothing: whatever it brings, the server verifies before it serves.
So it needs no key and no trust store, and a store that was tampered with costs a start, never a wrong model.
"""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from portcullis.digest import tree_files
from portcullis.errors import DataError, PortcullisError, UsageError
from portcullis.evidence.chain import MAX_BUNDLE_BYTES
from portcullis.files import atomic_path, read_bytes, write_bytes
from portcullis.models.store import MAX_WEIGHTS_BYTES
from portcullis.remote import fetch, is_remote
from portcullis.serving.admitted import MAX_ADMISSION_BYTES

MODEL, ADMISSION, EVIDENCE = "model", "admission.json", "evidence.intoto.jsonl"
# Beside the weights: their description, the recipients, and what sealing adds.
MAX_SEALED_BYTES = MAX_WEIGHTS_BYTES + (64 << 20)
_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(/(?!/)[^?#]*)")


def fetch_admitted(*, sealed: str, admission: str, evidence: str, output: Path) -> None:
    """Write a sealed model, its admission and its evidence below `output`, each whole or not at all. Verifies nothing.

    Args:
        sealed: The sealed model's folder: an absolute path, or a `file:`, `s3://`, `gs://` or `minio://` URI.
        admission: The admission's file, likewise.
        evidence: The bundle of evidence, likewise.
        output: Gets `model/`, `admission.json` and `evidence.intoto.jsonl`, which replace what was there.

    Raises:
        UsageError: A source is missing, unreadable or of the wrong kind, or the output cannot be written.
        DataError: A source is too large or empty, or holds a link, a special file or a name that no file may have.
    """
    _bring(sealed, output / MODEL, is_folder=True, limit=MAX_SEALED_BYTES)
    _bring(evidence, output / EVIDENCE, is_folder=False, limit=MAX_BUNDLE_BYTES)
    _bring(admission, output / ADMISSION, is_folder=False, limit=MAX_ADMISSION_BYTES)


def _bring(uri: str, destination: Path, *, is_folder: bool, limit: int) -> None:
    if is_remote(uri):
        fetch(uri, destination, is_folder=is_folder, limit=limit)
        return
    source = _local_path(uri)
    try:
        if not is_folder:
            write_bytes(destination, read_bytes(source, limit=limit))
            return
        entries = tree_files(source)
        if sum(entry.size for entry in entries) > limit:
            raise DataError(f"{source} is larger than the {limit} bytes allowed here")
        with atomic_path(destination) as temporary:
            for entry in entries:
                write_bytes(temporary / entry.path, read_bytes(source / entry.path, limit=entry.size))
    except OSError as error:
        raise UsageError(f"cannot write {destination}: {error.strerror}") from error


def _local_path(uri: str) -> Path:
    match = _FILE_URI.fullmatch(uri)
    path = unquote(match[1]) if match else uri
    if not path.startswith("/") or not path.isprintable():
        raise UsageError(f"{uri[:80]!a} is neither an absolute path nor a file:, s3://, gs:// or minio:// URI")
    return Path(path)


def main() -> int:
    """Bring an admitted model to where its server will look for it; verifies nothing, the server does."""
    parser = argparse.ArgumentParser(prog="python -m portcullis.serving.fetch", description=main.__doc__)
    parser.add_argument("--sealed", required=True, help="folder of the sealed model: a path or URI")
    parser.add_argument("--admission", required=True, help="the admission: a path or URI")
    parser.add_argument("--evidence", required=True, help="the bundle of evidence: a path or URI")
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    try:
        fetch_admitted(**vars(parser.parse_args()))
    except PortcullisError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
