"""What the command shows a person: lines, tables, and on a terminal a progress bar."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from portcullis_pipelines.outcome import Verified

SHORT = 16  # characters of a digest that people compare
TASKS = 12  # the reference pipeline's tasks: its steps, and one `enforce` more for each of the two gates


def say(text: str) -> None:
    """Print one line of text, unwrapped, so that commands can be copied."""
    click.echo(text)


def complain(text: str) -> None:
    """Print one line on standard error; what untrusted data put into it can neither break nor colour the line."""
    line = " ".join(text.split())
    click.echo("".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in line), err=True)


def chain_table(verified: "Verified") -> None:
    """Print the chain: each step, its verdict, what it made, and how long it took."""
    table = _table("step", "verdict", "output", "sha256", "seconds")
    admission = verified.admission
    for it in verified.statements:
        if it is verified.deployment:
            table.add_row("admit", "", "admission", verified.admission_digest[:SHORT], "")
        seconds = f"{(it.finished - it.started) / 1000:.1f}"
        rows = [(name, digest[:SHORT]) for name, digest in it.outputs.items()]
        for index, (name, digest) in enumerate(rows):
            table.add_row(*((it.step, it.verdict) if index == 0 else ("", "")), name, digest, "" if index else seconds)
    _console().print(table)
    label = " (development keys)" if admission.development else ""
    say(
        f"PASSED: model {admission.content[:SHORT]} admitted under policy {admission.policy_name} "
        f"version {admission.policy_version} for {admission.environment}{label}"
    )


def key_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print signing keys."""
    table = _table("role", "algorithm", "keyid", "file")
    for row in rows:
        table.add_row(row["role"], row["algorithm"], row["keyid"][:SHORT], row["file"])
    _console().print(table)


def ledger_table(rows: Iterable[Sequence[str]]) -> None:
    """Print the entries of a ledger."""
    table = _table("entry", "charged", "run", "policy", "step", "mechanism")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    return Console(markup=False)  # a path may hold brackets


def _table(*columns: str) -> Table:
    table = Table()
    for name in columns:
        table.add_column(name, overflow="fold")  # a narrow terminal shows everything, on more lines
    return table


class Steps:
    """Progress of a run: a bar on a terminal, a line per finished task elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:24}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("starting", total=TASKS)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, task: str, status: str) -> None:
        """Show that a task started or how it ended."""
        if status == "started":
            self._bar.update(self._task, description=task)
            return
        self._bar.advance(self._task)
        if not self._quiet and not sys.stderr.isatty():
            click.echo(f"{task}: {status.lower()}", err=True)
