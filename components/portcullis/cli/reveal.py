"""The verb that undoes masking, for whoever may: what reversible tokens stand for, on record before it is told."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from portcullis.errors import DataError, MissingDependencyError, UsageError
from portcullis.files import read_bytes, write_bytes

try:
    from portcullis_pipelines.home import home_root
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

AUDIT = "reveal.jsonl"
MAX_TEXT_BYTES = 64 << 20
_TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
_FILE = click.Path(dir_okay=False, path_type=Path)

_Told = tuple[str, bytes, Mapping[str, Mapping[str, int]]]


@click.command()
@click.argument("source")
@click.option("--reason", required=True, help="Why; it stays on record.")
@click.option("--key", "uri", help="The masking key: file:/path or env:NAME (default: masking.key of PORTCULLIS_KEYS).")
@click.option(
    "--output",
    type=_FILE,
    help="File to write, of mode 0600; a table needs one, .csv or .parquet (default: screen).",
)
@click.option("--audit", type=_FILE, help="File that takes the record (default: reveal.jsonl below PORTCULLIS_HOME).")
def reveal(source: str, reason: str, uri: str | None, output: Path | None, audit: Path | None) -> None:
    """Tell what the reversible tokens in SOURCE stand for, after putting it on record.

    SOURCE is a masked table (a data set, or a .csv, .jsonl, .ndjson or .parquet file) or a text with tokens, `-` for
    standard input. The record has who, when, why and how many of what, never a value; where it cannot be written, or a
    token was altered or made under another key, nothing is revealed.
    """
    from portcullis.evidence.step import keys_base
    from portcullis.keys import role_uri, symmetric_key
    from portcullis.pii.reveal import record_revelation

    key = symmetric_key(uri or role_uri(keys_base(), "masking.key"))
    is_table = Path(source).is_dir() or Path(source).suffix.lower() in _TABLES
    given, told, counts = _table(source, key, output) if is_table else _text(source, key)
    record = record_revelation(
        audit or home_root() / AUDIT, key=key, reason=reason, given=given, told=told, counts=counts
    )
    click.echo(f"record {record.number}; keep its digest elsewhere: {record.digest}", err=True)
    if output:
        write_bytes(output, told, mode=0o600)
    else:
        sys.stdout.buffer.write(told)


def _table(source: str, key: bytes, output: Path | None) -> _Told:
    from portcullis.ingest.diff import open_table
    from portcullis.pii.reveal import reveal_table
    from portcullis.table import logical_root

    suffix = output.suffix.lower() if output else ""
    if suffix not in (".csv", ".parquet"):
        raise UsageError("a table that is revealed needs --output, a .csv or .parquet file")
    table = open_table(source)
    told, counts = reveal_table(table, key)
    sink = io.BytesIO()
    if suffix == ".csv":
        write_csv(told, sink)
    else:
        pq.write_table(told, sink)
    return logical_root(table), sink.getvalue(), counts


def _text(source: str, key: bytes) -> _Told:
    from portcullis.digest import sha256
    from portcullis.pii.reveal import reveal_text

    data = (
        sys.stdin.buffer.read(MAX_TEXT_BYTES + 1) if source == "-" else read_bytes(Path(source), limit=MAX_TEXT_BYTES)
    )
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"more than the {MAX_TEXT_BYTES} bytes allowed on standard input; put a table into a file")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError("the text is not UTF-8") from error
    told, counts = reveal_text(text, key)
    return sha256(data), told.encode(), {"": counts}
