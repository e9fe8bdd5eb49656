"""What the command shows a person: lines, tables, and on a terminal a progress bar."""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from portcullis_pipelines.outcome import Verified

TASKS = 12  # the reference pipeline's tasks: its steps, and one `enforce` more for each of the two gates


def say(text: str) -> None:
    """Print one line of text, unwrapped, so that commands can be copied."""
    click.echo(text)


def chain_table(verified: "Verified") -> None:
    """Print the chain: each step, its verdict, what it made, and how long it took."""
    table = Table("step", "stage", "verdict", "output", "sha256", "seconds")
    for it in verified.statements:
        for index, (name, digest) in enumerate(it.outputs.items()):
            first = index == 0
            seconds = f"{(it.finished - it.started) / 1000:.1f}"
            table.add_row(
                it.step if first else "",
                it.stage if first else "",
                (it.verdict or "") if first else "",
                name,
                digest[:16],
                seconds if first else "",
            )
    console = Console()
    console.print(table)
    admission = verified.admission
    label = "  (development keys)" if admission.development else ""
    console.print(
        f"PASSED: model {admission.content[:16]} admitted under policy {admission.policy_name} "
        f"version {admission.policy_version} for {admission.environment}{label}",
        highlight=False,
        soft_wrap=True,
    )


def key_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print signing keys."""
    table = Table("role", "algorithm", "keyid", "file")
    for row in rows:
        table.add_row(row["role"], row["algorithm"], row["keyid"][:16], row["file"])
    Console().print(table)


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
