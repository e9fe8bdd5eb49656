"""The verbs for data: what changed between two tables, where a run's data came from, and what it set aside."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portcullis.cli.show import SHORT, say
from portcullis.errors import MissingDependencyError
from portcullis.files import atomic_path, write_bytes

try:
    from portcullis_pipelines import home as homes
    from portcullis_pipelines.config import ReferenceConfig
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

if TYPE_CHECKING:
    from portcullis.ingest.diff import Difference

MAX_LINES = 20  # of each kind that a person is shown
MAX_ENTRIES = 10_000  # of each kind that a program is told; the counts are always whole

_EXISTING = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--config", type=_EXISTING, help="A configuration, YAML, that says how the columns are typed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def diff(a: str, b: str, config: Path | None, as_json: bool) -> int:  # noqa: FBT001
    """Tell how table B differs from table A: columns, blocks of 1,024 rows, rows; never a value.

    A and B are data sets that a step wrote (sealed: PORTCULLIS_KEYS names the folder that holds pipeline.pem), or
    whatever `run --data` reads, of one kind or of two: a CSV file and its Parquet form are equal. Exit code 0 means
    equal, 1 different or not readable.
    """
    from portcullis.ingest.diff import diff_tables, open_table

    spec = ReferenceConfig.load(config).dataset if config else None
    difference = diff_tables(open_table(a, spec), open_table(b, spec))
    if as_json:
        click.echo(json.dumps(_document(a, b, difference), indent=2))
    else:
        for line in _lines(a, b, difference):
            say(line)
    return 0 if difference.equal else 1


@click.command()
@click.argument("directory", type=_EXISTING)
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Your trust store (default: PORTCULLIS_TRUST, or the only one below PORTCULLIS_HOME).",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write, one event per line; an earlier one is replaced.",
)
def lineage(directory: Path, trust: Path | None, output: Path) -> None:
    """Export what a run that passed says of its data, as OpenLineage events for a data catalogue.

    The run is verified first, offline, by your own trust store. The events hold names, types, digests, counts and what
    became of each column, never a value.
    """
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.lineage import lineage as events
    from portcullis_pipelines.outcome import verify_directory

    data = events(verify_directory(directory, TrustStore.load(trust or homes.default_trust())))
    write_bytes(output, data)
    say(f"{data.count(bytes([10]))} events in {output}")


@click.command()
@click.argument("directory", type=_EXISTING)
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Your trust store (default: PORTCULLIS_TRUST, or the only one below PORTCULLIS_HOME).",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write, of mode 0600; an earlier one is replaced.",
)
def quarantine(directory: Path, trust: Path | None, output: Path) -> None:
    """Open the malformed records that a run that passed set aside: where each lies, why, and its bytes in base64.

    The run is verified first, offline, by your own trust store; PORTCULLIS_KEYS names the folder that holds
    pipeline.pem. The file that is written holds raw data, in plain text.
    """
    from portcullis.at_rest import pipeline_key
    from portcullis.digest import canonical_json
    from portcullis.evidence.trust import TrustStore
    from portcullis.ingest.quarantine import open_quarantine
    from portcullis_pipelines.outcome import ingested, quarantine_of, verify_directory

    verified = verify_directory(directory, TrustStore.load(trust or homes.default_trust()))
    key = pipeline_key()
    count = 0
    with (
        atomic_path(output, mode=0o600) as temporary,  # in a folder that nobody else may enter
        temporary.open("xb") as sink,
    ):
        for stated in ingested(verified.chain):
            with open_quarantine(quarantine_of(directory, stated), stated, key=key) as records:
                for record in records:
                    sink.write(canonical_json(record) + b"\n")
                    count += 1
    say(f"{count:,} records in {output}")


def _document(a: str, b: str, it: "Difference") -> dict[str, Any]:
    def rows(numbers: tuple[int, ...]) -> dict[str, Any]:
        found = _ranges(numbers)
        return {"count": len(numbers), "ranges": found[:MAX_ENTRIES], "ranges_left_out": len(found[MAX_ENTRIES:])}

    return {
        "format": "portcullis-diff/v1",
        "equal": it.equal,
        "a": {"source": a, "rows": it.rows[0], "logical_root": it.roots[0]},
        "b": {"source": b, "rows": it.rows[1], "logical_root": it.roots[1]},
        "columns": {
            "only_a": it.only_a,
            "only_b": it.only_b,
            "retyped": [{"name": name, "a": kinds[0], "b": kinds[1]} for name, kinds in it.retyped.items()],
            "reordered": it.reordered,
            "changed": it.columns,
        },
        "blocks": [
            {"first": block.first, "last": block.last, "columns": block.columns} for block in it.blocks[:MAX_ENTRIES]
        ],
        "blocks_left_out": len(it.blocks[MAX_ENTRIES:]),
        "rows": {"only_a": rows(it.rows_only_a), "only_b": rows(it.rows_only_b)},
    }


def _lines(a: str, b: str, it: "Difference") -> Iterable[str]:
    if it.equal:
        yield f"equal: {it.rows[0]:,} rows, logical root {it.roots[0][:SHORT]}"
        return
    for letter, source, count, root in (("A", a, it.rows[0], it.roots[0]), ("B", b, it.rows[1], it.roots[1])):
        yield f"{letter}: {count:,} rows, logical root {root[:SHORT]}, {source}"
    for letter, names in (("A", it.only_a), ("B", it.only_b)):
        if names:
            yield f"columns only in {letter}: {_some(names)}"
    if it.retyped:
        yield f"columns of another type: {_some(f'{name} ({one}, {two})' for name, (one, two) in it.retyped.items())}"
    if it.reordered:
        yield "the columns of both stand in another order"
    if it.blocks:
        yield f"columns with changes: {_some(it.columns)}"
    for block in it.blocks[:MAX_LINES]:
        yield f"rows {block.first:,} to {block.last:,} changed: {_some(block.columns)}"
    if len(it.blocks) > MAX_LINES:
        yield f"and {len(it.blocks) - MAX_LINES:,} more blocks of rows"
    for letter, numbers in (("A", it.rows_only_a), ("B", it.rows_only_b)):
        if numbers:
            spans = (f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in _ranges(numbers))
            yield f"rows only in {letter}: {len(numbers):,}, at {_some(spans)}"
    if it.blocks and not it.rows_only_a and not it.rows_only_b:
        yield "the rows are the same, in another order"


def _some(parts: Iterable[str]) -> str:
    found = list(parts)
    more = f" and {len(found) - MAX_LINES:,} more" if len(found) > MAX_LINES else ""
    return ", ".join(found[:MAX_LINES]) + more


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges, first and last inclusive."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
