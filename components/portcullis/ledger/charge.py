"""Charging a release to a data set's ledger, before it is made.

    ledger = open_ledger(settings, state)
    receipt = charge(ledger, Charge(…, mechanism=Pure(0.5), output=digest), signer)
    …only now write the output, and state receipt.figures…

1. The head that was seen last, kept apart from the ledger, is read before the ledger, so it can only be the older one.
2. The ledger is read and verified, line by line, and must hold that head: nothing was cut off, nothing put back.
3. A step of a run is charged once. The same charge again is the same entry; another output or another mechanism under
   that run and step is refused, because what was charged may have been released.
4. What all entries and this one cost together must be within the policy's budget.
5. The entry is appended where the ledger still is what was read; else all begins anew.
6. The new head is kept.

A crash after 5 leaves a charge without a release; nothing is ever refunded. A crash between 5 and 6 leaves a head that
is kept too old, of an entry whose output was not released.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from portcullis.errors import BudgetError, EvidenceError, InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.evidence.step import Step
from portcullis.evidence.trust import now_ms, state_directory
from portcullis.keys import Signer
from portcullis.ledger.entries import Charge, Entry, Head, append, head_of, read_entries, require_extends
from portcullis.ledger.mechanisms import Mechanism, compose
from portcullis.ledger.settings import LOCAL, LedgerSettings
from portcullis.ledger.stores import ChangedError, Held, Store, local_stores, open_store

ATTEMPTS = 50
_PAUSE_SECONDS = 0.2  # at most, before another attempt, so that two runs do not keep in step


@dataclass(frozen=True)
class Ledger:
    """A data set's ledger, the place where its last head is kept, and its budget."""

    settings: LedgerSettings
    store: Store
    memory: Store

    def read(self) -> tuple[Entry, ...]:
        """Return all entries.

        Raises:
            EvidenceError: The ledger was altered, rolled back or exchanged, or an entry is per another unit.
            UsageError: It cannot be read.
            InconclusiveError: It cannot be reached for now.
        """
        return self._read()[1]

    def _read(self) -> tuple[Held, tuple[Entry, ...]]:
        dataset = self.settings.dataset
        seen = Head.parse(self.memory.read().data, dataset)
        held = self.store.read()
        entries = read_entries(held.data, dataset)
        require_extends(entries, seen, dataset)
        if other := next((entry for entry in entries if entry.charge.unit != self.settings.unit), None):
            raise EvidenceError(
                f"entry {other.number} of the ledger of {dataset} is counted per {other.charge.unit}, and the policy's "
                f"budget per {self.settings.unit}; the two cannot be added up"
            )
        return held, entries

    def spent(self, entries: tuple[Entry, ...], *more: Mechanism) -> float:
        """Return what entries, and mechanisms that may follow, cost a unit together at the policy's delta."""
        return compose([*(entry.charge.mechanism for entry in entries), *more], self.settings.delta)

    def _remember(self, head: Head) -> None:
        dataset = self.settings.dataset
        for _ in range(ATTEMPTS):
            held = self.memory.read()
            if Head.parse(held.data, dataset).number >= head.number:
                return
            try:
                self.memory.replace(head.encode(dataset), over=held)
            except ChangedError:
                _pause()
            else:
                return
        raise InconclusiveError(f"the head of the ledger of {dataset} could not be kept; run again")


@dataclass(frozen=True)
class Receipt:
    """What a charge came to.

    Attributes:
        entry: SHA-256 of its line in the ledger, hexadecimal.
        number: Its place there, from 1.
        spent: What all entries up to this one cost a unit together.
    """

    entry: str
    number: int
    spent: float

    @property
    def figures(self) -> Mapping[str, Figure]:
        """What the charging step states: the budget gate looks for this very entry in the ledger."""
        return {"ledger_entry": self.entry, "ledger_number": self.number, "ledger_epsilon": self.spent}


def open_ledger(settings: LedgerSettings, state: Path) -> Ledger:
    """Return the ledger that the policy names; nothing is read yet.

    Args:
        settings: As the policy's owner signed them.
        state: The verifier's state directory, where a `local` memory is kept.

    Raises:
        UsageError: A URI is malformed, or of no kind that can compare and swap, or `local` has no place here.
        MissingDependencyError: A client is needed and not installed.
    """
    uris = (settings.store, settings.memory)
    here = local_stores(settings.dataset, state) if LOCAL in uris else None
    store, memory = (here[place] if here and uri == LOCAL else open_store(uri) for place, uri in enumerate(uris))
    return Ledger(settings, store, memory)


def charge(ledger: Ledger, wanted: Charge, signer: Signer) -> Receipt:
    """Charge a release; only when this returns may it be made.

    Args:
        ledger: Where.
        wanted: What is to be released, and what it costs.
        signer: The charging step's key.

    Raises:
        BudgetError: With it, all releases together would cost more than the policy allows; nothing was charged.
        EvidenceError: The ledger was altered, rolled back or exchanged; or this run's step was charged for something
            else, or the charge is of another data set or unit.
        InconclusiveError: The ledger cannot be reached for now, or others kept changing it.
        UsageError: It cannot be read or written.
        MissingDependencyError: The budget has a delta, and dp-accounting is not installed.
    """
    settings = ledger.settings
    if (wanted.dataset, wanted.unit) != (settings.dataset, settings.unit):
        raise EvidenceError(
            f"a release of {wanted.dataset} per {wanted.unit} cannot be charged to the ledger of {settings.dataset} "
            f"per {settings.unit}"
        )
    for _ in range(ATTEMPTS):
        held, entries = ledger._read()  # noqa: SLF001 - one module
        known = _known(entries, wanted, signer)
        if known is None:
            _require_affordable(ledger, entries, wanted.mechanism)
            try:
                ledger.store.replace(append(held.data, head_of(entries), wanted, signer, time=now_ms()), over=held)
            except ChangedError:
                _pause()
            # Whatever the store said, the ledger itself says whether the entry is in it: an answer may have been lost.
            continue
        ledger._remember(Head(known.number, known.digest))  # noqa: SLF001 - one module
        return Receipt(known.digest, known.number, ledger.spent(entries[: known.number]))
    raise InconclusiveError(f"the ledger of {settings.dataset} kept changing; nothing is released, so run again")


def require_affordable(ledger: Ledger, mechanism: Mechanism) -> None:
    """Refuse early what could not be charged now, so that no long work is done in vain. It reserves nothing.

    Raises:
        BudgetError: It costs more than what is left.
        EvidenceError: As `charge`; so are the others.
        InconclusiveError: The ledger cannot be reached.
        UsageError: It cannot be read.
        MissingDependencyError: dp-accounting is needed.
    """
    _require_affordable(ledger, ledger.read(), mechanism)


def charge_step(begun: Step, settings: LedgerSettings, mechanism: Mechanism, *, unit: str, output: str) -> Receipt:
    """Charge what a step is about to release, in the name of its run and policy and by its key.

    Args:
        begun: The step, as `begin` returned it.
        settings: The ledger's, from the step's parameters, which `begin` compared with the policy.
        mechanism: What the release costs, as it was measured.
        unit: Whom the mechanism protects at that cost, `row` or `person`.
        output: SHA-256 of what is to be released, as the step's statement will name it.

    Raises:
        BudgetError: As `charge`; so are the others.
        EvidenceError: As `charge`.
        InconclusiveError: As `charge`.
        UsageError: As `charge` and `open_ledger`.
    """
    ledger = open_ledger(settings, state_directory(begun.store.path))
    policy = begun.store.policy.name
    wanted = Charge(settings.dataset, policy, begun.nonce, begun.rule.name, unit, mechanism, output)
    return charge(ledger, wanted, begun.signer)


def _known(entries: tuple[Entry, ...], wanted: Charge, signer: Signer) -> Entry | None:
    """Return the entry of this run and step, if there is one; it must be this very charge."""
    for entry in entries:
        if (entry.charge.run, entry.charge.step) == (wanted.run, wanted.step):
            if entry.charge == wanted and entry.key == signer.public_key:
                return entry
            raise EvidenceError(
                f"step {wanted.step!r} of this run was charged before, for another output or mechanism, which may have "
                "been released; begin a new run"
            )
    return None


def _require_affordable(ledger: Ledger, entries: tuple[Entry, ...], mechanism: Mechanism) -> None:
    settings = ledger.settings
    total = ledger.spent(entries, mechanism)
    if not 0 <= total <= settings.epsilon:
        raise BudgetError(
            f"data set {settings.dataset}: {len(entries)} releases have spent an epsilon of "
            f"{ledger.spent(entries):.6g}, with this one {total:.6g} at delta {settings.delta:g}; the policy allows "
            f"{settings.epsilon:g} over all runs"
        )


def _pause() -> None:
    time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 - no secret
