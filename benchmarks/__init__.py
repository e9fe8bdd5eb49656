"""Benchmarks: every figure that the documentation claims, measured beside the peer on the same work in one run.

`python -m benchmarks.<name> [--quick] --json FILE` prints a table and writes records; `python -m benchmarks` runs all.
A record's ratio is higher for better, whatever its unit. Spread is the interquartile range of the paired ratios (of our
own runs where there is no peer), relative to the median.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Record:
    """One figure; None where there is none. The target is the ratio's if there is a peer, else our own figure's."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    spread: float
    target: float | None
    better: Literal["higher", "lower"]


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object] | None,
    *,
    peer_name: str = "",
    rounds: int,
    target: float | None,
    unit: str = "s",
    scale: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Time both, interleaved, so that a noisy machine disturbs both alike; lower is better.

    Args:
        name: The record's name.
        ours: One run of ours.
        peer: One run of the peer's, on the same work.
        peer_name: Who the peer is.
        rounds: How many pairs.
        target: Of the ratio, or of our own time where there is no peer.
        unit: Of the times.
        scale: Seconds to unit.
        clock: What tells the seconds; `time.process_time` counts those of this process alone, on all its threads.
    """
    own, other = [], []
    for _ in range(rounds):
        own.append(_seconds(ours, clock) * scale)
        if peer is not None:
            other.append(_seconds(peer, clock) * scale)
    ratios = [b / a for a, b in zip(own, other, strict=True)] if other else []
    return Record(
        name=name,
        unit=unit,
        ours=statistics.median(own),
        peer=statistics.median(other) if other else None,
        peer_name=peer_name,
        ratio=statistics.median(ratios) if ratios else None,
        spread=spread(ratios or own),
        target=target,
        better="lower",
    )


def command(name: str, measure: Callable[[bool], Sequence[Record]]) -> None:
    """Be the command line of one benchmark."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=f"Benchmark `{name}`.")
    parser.add_argument("--quick", action="store_true", help="less work, fewer rounds")
    parser.add_argument("--json", type=Path, help="write the records here")
    arguments = parser.parse_args()
    publish(measure(arguments.quick), arguments.json)


def publish(records: Sequence[Record], path: Path | None) -> None:
    """Print the records as a table, and write them as JSON."""
    table = Table("figure", "unit", "ours", "peer", "", "ratio", "spread", "target")
    for it in records:
        numbers = (_show(it.ours), _show(it.peer), it.peer_name, _show(it.ratio), f"{it.spread:.0%}", _aim(it))
        table.add_row(it.name, it.unit, *numbers)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(it) for it in records], indent=2) + "\n")


def _seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range, relative to the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _aim(record: Record) -> str:
    if record.target is None:
        return ""
    if record.ratio is not None:
        return f">= {record.target:g}x"
    return f"{'>=' if record.better == 'higher' else '<='} {record.target:g} {record.unit}"
