"""What tests of the privacy ledger share: ledgers in a folder, charges, and a run of two processes."""

from pathlib import Path

from portcullis.digest import sha256
from portcullis.keys import Signer
from portcullis.ledger.charge import Ledger
from portcullis.ledger.entries import Charge, Entry, append, head_of, read_entries
from portcullis.ledger.mechanisms import Mechanism, Pure
from portcullis.ledger.settings import LedgerSettings
from portcullis.ledger.stores import ChangedError, FileStore, Held

DATASET = "customers"
NOW = 1_800_000_000_000


def settings(epsilon: float = 3.0, **changes) -> LedgerSettings:
    return LedgerSettings(**{"dataset": DATASET, "epsilon": epsilon, **changes})


def file_ledger(folder: Path, epsilon: float = 3.0, **changes) -> Ledger:
    store, memory = FileStore(folder / "ledgers" / "customers.jsonl"), FileStore(folder / "state" / "head.json")
    return Ledger(settings(epsilon, **changes), store, memory)


def wanted(number: int = 1, mechanism: Mechanism | None = None, **changes) -> Charge:
    """A release by a run of its own."""
    given = {
        "dataset": DATASET,
        "policy": "demo",
        "run": f"{number:032x}",
        "step": "dp_noise",
        "unit": "row",
        "mechanism": mechanism or Pure(1.0),
        "output": sha256(str(number).encode()),
    }
    return Charge(**{**given, **changes})


def lines_of(*charges: Charge, signer: Signer | None = None) -> bytes:
    """A ledger with these entries, whatever the budget."""
    data = b""
    for charge in charges:
        head = head_of(read_entries(data, charge.dataset))
        data = append(data, head, charge, signer or Signer.generate(), time=NOW)
    return data


class MemoryStore:
    """One object in memory, with the compare-and-swap of the others, and hooks between its steps."""

    def __init__(self, data: bytes = b""):
        self.data, self.version = data, 0
        self.before_read = self.before_replace = lambda: None
        self.lost_answers = 0

    def read(self) -> Held:
        self.before_read()
        return Held(self.data, str(self.version))

    def replace(self, data: bytes, *, over: Held) -> None:
        self.before_replace()
        if over.version != str(self.version):
            raise ChangedError("changed")
        self.data, self.version = data, self.version + 1
        if self.lost_answers:
            self.lost_answers -= 1
            raise ChangedError("the answer was lost")


def memory_ledger(epsilon: float = 3.0, **changes) -> Ledger:
    return Ledger(settings(epsilon, **changes), MemoryStore(), MemoryStore())


def spent_by(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.charge.run for entry in entries]
