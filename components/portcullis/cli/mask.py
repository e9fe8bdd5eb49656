"""The verb that masks a file: what the pipeline's `mask_pii` and its gate do, for one table and without evidence."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from portcullis.cli.show import say
from portcullis.errors import ConfigError, DataError, GateFailedError, UsageError

_FILE = click.Path(dir_okay=False, path_type=Path)
_Write = Callable[[Any], None]


@click.command()
@click.argument("source")
@click.option("--output", type=_FILE, required=True, help="File to write: .csv, .jsonl or .parquet.")
@click.option("--policy", type=_FILE, help="Masking policy, YAML (default: every identifier in text becomes a token).")
@click.option("--key", "uri", help="The masking key: file:/path or env:NAME (default: masking.key of PORTCULLIS_KEYS).")
@click.option("--report", type=_FILE, help="HTML page of what was masked and what is left, also when that is refused.")
def mask(source: str, output: Path, policy: Path | None, uri: str | None, report: Path | None) -> None:
    """Mask the identifiers in SOURCE, a table of any size.

    SOURCE is whatever `run --data` reads: a .csv, .jsonl or .parquet file, a folder of one kind, s3://bucket/key. What
    was masked is searched again by other rules; if anything is left, no file is. The policy is the `masking` mapping of
    a configuration, such as:

    \b
        entities: {EMAIL: token, PHONE: {star: {keep_last: 4}}}
        columns: {name: {token: PERSON_NAME}, zip: {generalise: zip3}, note: scan}

    A key is one line, made once and kept: head -c32 /dev/urandom | base64 > masking.key; chmod 600 masking.key
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped
    import pyarrow as pa

    from portcullis.evidence.step import keys_base
    from portcullis.files import atomic_path, write_bytes
    from portcullis.ingest.readers import stream_table
    from portcullis.keys import role_uri, symmetric_key
    from portcullis.pii.frames import DEFAULT_PLAN
    from portcullis.pii.mask import mask_stream
    from portcullis.pii.page import PiiReport
    from portcullis.pii.plan import MaskingPlan
    from portcullis.pii.residual import ResidualSearch

    if output.suffix.lower() not in _WRITERS:
        raise UsageError(f"{output} is not a .csv, .jsonl or .parquet file")
    pa.set_memory_pool(pa.system_memory_pool())  # NumPy's: what either frees the other takes
    for written in filter(None, (output, report)):
        _require_apart(written, source, policy)
    if report and report.resolve() == output.resolve():
        raise UsageError("--output and --report name one file")
    plan = MaskingPlan.parse(_policy(policy)) if policy else DEFAULT_PLAN
    key = symmetric_key(uri or role_uri(keys_base(), "masking.key"))
    masked = mask_stream(stream_table(source), plan, key=key)
    search = ResidualSearch(masked.table.schema, plan)
    with atomic_path(output, mode=0o600) as temporary:
        with _WRITERS[output.suffix.lower()](temporary, masked.table.schema) as write:
            for piece in masked.table.pieces():
                if output.suffix.lower() != ".parquet":
                    _require_finite(piece)
                write(piece)
                search.update(piece)
        done = masked.report()
        judged = PiiReport.judged(search.found(), done.counts, done.actions)
        if report:
            write_bytes(report, judged.to_html().encode())
        if not judged.passed:
            raise GateFailedError(f"{judged.reason}; nothing was written: say in --policy what becomes of it")
    for column, counts in done.counts.items():
        if counts:
            say(f"{column}: {', '.join(f'{count:,} {entity}' for entity, count in counts.items())}")
    say(f"{done.rows:,} rows in {output}")


def _policy(path: Path) -> dict[str, Any]:
    from portcullis.files import read_bytes
    from portcullis.strict_yaml import MAX_YAML_BYTES, load_yaml

    try:
        return load_yaml(read_bytes(path, limit=MAX_YAML_BYTES))
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error


def _require_apart(written: Path, source: str, policy: Path | None) -> None:
    """Refuse to write over what is read, however it is spelled, or into a folder that is read as a whole.

    Raises:
        UsageError: It would be.
    """
    from portcullis.ingest.sources import local_path

    for read in filter(None, (local_path(source), policy)):
        target, origin = written.resolve(), read.resolve()
        if origin in (target, *target.parents) or (target.exists() and origin.exists() and target.samefile(origin)):
            raise UsageError(f"{written} is, or lies in, {read}, which is read; name another file to write")


def _require_finite(piece: Any) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(piece.column_names, piece.columns, strict=True):
        if pa.types.is_floating(column.type) and pc.any(pc.invert(pc.is_finite(column))).as_py():
            raise DataError(f"column {name!r} holds NaN or an infinity, which only .parquet can hold")


@contextmanager
def _csv(path: Path, schema: Any) -> Iterator[_Write]:
    from pyarrow.csv import CSVWriter

    with CSVWriter(path, schema) as writer:
        yield writer.write_table


@contextmanager
def _jsonl(path: Path, _: Any) -> Iterator[_Write]:
    with path.open("x", encoding="utf-8") as file:

        def write(piece: Any) -> None:
            for batch in piece.to_batches(max_chunksize=1 << 12):
                file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in batch.to_pylist())

        yield write


@contextmanager
def _parquet(path: Path, schema: Any) -> Iterator[_Write]:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_table


_WRITERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
