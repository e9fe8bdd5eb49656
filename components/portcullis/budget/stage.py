"""The budget gate's `evaluate`: look the run's charges up in the ledger, add all of it up, and sign the verdict."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from portcullis.budget.spending import Spender, by_run, spending
from portcullis.digest import path_digest
from portcullis.errors import ConfigError, EvidenceError, InconclusiveError, UsageError
from portcullis.evidence.statement import Figure, Statement, format_time
from portcullis.evidence.step import Step, begin
from portcullis.evidence.trust import state_directory
from portcullis.files import write_bytes
from portcullis.ledger.charge import open_ledger
from portcullis.ledger.entries import Entry
from portcullis.ledger.mechanisms import describe
from portcullis.ledger.settings import LedgerSettings
from portcullis.report import budget_bar, gate_page, paragraph, section, table

SHOWN_ENTRIES = 200


def evaluate_budget(
    *,
    step: str,
    model: Path,
    evidence: Path,
    ledger: Mapping[str, Any],
    charging: Sequence[str],
    report: Path,
    bundle: Path,
) -> Statement:
    """Judge the privacy budget by the ledger as it is now and by what the charging steps signed.

    A ledger that cannot be reached, or was altered or rolled back, is FAILED with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model that was made with what was released.
        evidence: The bundle of its evidence.
        ledger: The fields of `LedgerSettings`; none where no step charges.
        charging: The steps before this one that had to charge.
        report: Where the HTML report goes: what was spent, by run, and what is left.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model.
        PolicyError: The policy does not name these parameters, or knows no such step.
        ConfigError: The ledger is not described so, or a step charges and no ledger is.
        DataError: The model is missing.
        MissingDependencyError: The budget has a delta, and dp-accounting is not installed.
    """
    settings = LedgerSettings.from_dict(ledger) if ledger else None
    begun = begin(
        step,
        stage="budget_gate",
        inputs={"model": path_digest(model)},
        parameters={"ledger": dict(ledger), "charging": list(charging)},
        evidence=[evidence],
    )
    spenders = _spenders(begun, charging)
    if settings is None:
        if spenders:
            raise ConfigError(f"step {spenders[0].step!r} charges a privacy budget, and the policy names no ledger")
        statement = begun.finish(bundle=bundle, figures={"charges": 0, "unmatched": 0})
        nothing = paragraph("No step of this run claims differential privacy, so nothing was charged.")
        write_bytes(report, gate_page(statement, begun.rule, [nothing]).encode())
        return statement
    figures: dict[str, Figure] = {}
    entries: tuple[Entry, ...] = ()
    inconclusive = ""
    try:
        entries = open_ledger(settings, state_directory(begun.store.path)).read()
        figures = spending(entries, settings, spenders)
        if not math.isfinite(float(figures["epsilon_total"])):
            inconclusive = f"no epsilon holds for all entries together at delta {settings.delta:g}"
            figures = {}
    except (InconclusiveError, EvidenceError, UsageError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, ledger_details(entries, settings)).encode())
    return statement


def _spenders(begun: Step, charging: Sequence[str]) -> list[Spender]:
    """Return the steps that the policy says charge, and whichever else says that it did."""
    statements = begun.chain.statements
    missing = [name for name in charging if name not in statements]
    if missing:
        raise EvidenceError(f"step {begun.rule.name!r}: no evidence of {missing[0]!r}, which must have charged")
    names = dict.fromkeys([*charging, *(name for name, it in statements.items() if "ledger_entry" in it.figures)])
    return [Spender(name, begun.store.policy.step(name).key, statements[name]) for name in names]


def ledger_details(entries: Sequence[Entry], settings: LedgerSettings) -> Iterator[str]:
    """Yield HTML of what a ledger holds: a bar of what each run spent, and the entries, the newest first."""
    yield section(f"What was spent of {settings.dataset}")
    if not entries:
        yield paragraph("Nothing yet.")
        return
    runs = {run[:8]: spent for run, spent in by_run(entries, settings.delta).items()}
    yield budget_bar(runs, settings.epsilon)
    yield paragraph(
        f"Each run by itself, at delta {settings.delta:g}, per {settings.unit}; the dashed line is the policy's budget."
        " With a delta, all together cost less than their sum.",
        kind="dim",
    )
    rows = [
        (
            entry.number,
            format_time(entry.time),
            entry.charge.run[:8],
            entry.charge.policy,
            entry.charge.step,
            describe(entry.charge.mechanism),
            entry.digest,
        )
        for entry in reversed(entries[-SHOWN_ENTRIES:])
    ]
    yield table(("entry", "charged", "run", "policy", "step", "mechanism", "sha256"), rows)
    if len(entries) > SHOWN_ENTRIES:
        yield paragraph(f"The newest {SHOWN_ENTRIES} of {len(entries)}.", kind="dim")
