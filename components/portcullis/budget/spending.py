"""What a ledger says of a run and of all runs, beside what the run's steps say themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from portcullis.evidence.statement import Figure, Statement
from portcullis.keys import PublicKey
from portcullis.ledger.entries import Entry, head_of
from portcullis.ledger.mechanisms import compose
from portcullis.ledger.settings import LedgerSettings


@dataclass(frozen=True)
class Spender:
    """A step of this run that had to charge what it released.

    Attributes:
        step: Its name.
        key: The key that the policy gives it.
        statement: What it signed.
    """

    step: str
    key: PublicKey
    statement: Statement


def spending(entries: Sequence[Entry], settings: LedgerSettings, spenders: Sequence[Spender]) -> dict[str, Figure]:
    """Return the gate's figures: what was spent, and whether each spender's charge is in the ledger.

    Args:
        entries: All of the ledger's, verified.
        settings: The budget.
        spenders: Every step of this run that had to charge.

    Returns:
        `epsilon_total`, what all entries cost a unit together at `delta`, and `epsilon_left`; `epsilon_run`, this run's
        entries alone; `entries`; `runs`; `charges`, spenders whose entry is there; `unmatched`, the others; `head`, the
        SHA-256 of the last entry.

    Raises:
        MissingDependencyError: The budget has a delta, and dp-accounting is not installed.
    """
    total = compose([entry.charge.mechanism for entry in entries], settings.delta)
    runs = {spender.statement.nonce for spender in spenders}
    own = [entry.charge.mechanism for entry in entries if entry.charge.run in runs]
    matched = sum(any(_is_charge(entry, spender) for entry in entries) for spender in spenders)
    return {
        "epsilon_total": total,
        "epsilon_left": max(settings.epsilon - total, 0.0),
        "epsilon_run": compose(own, settings.delta),
        "delta": settings.delta,
        "entries": len(entries),
        "runs": len({entry.charge.run for entry in entries}),
        "charges": matched,
        "unmatched": len(spenders) - matched,
        "head": head_of(tuple(entries)).digest,
    }


def _is_charge(entry: Entry, spender: Spender) -> bool:
    """Tell whether an entry is the one that a step names, by its key, of its run, and for what it made."""
    statement = spender.statement
    return (
        statement.figures.get("ledger_entry") == entry.digest
        and (entry.charge.run, entry.charge.step) == (statement.nonce, spender.step)
        and entry.key == spender.key
        and entry.charge.output in statement.outputs.values()
    )


def by_run(entries: Sequence[Entry], delta: float) -> Mapping[str, float]:
    """Return what each run's entries cost a unit together, by nonce, in the order of the first of them."""
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(entry.charge.run, []).append(entry)
    return {run: compose([entry.charge.mechanism for entry in own], delta) for run, own in runs.items()}
