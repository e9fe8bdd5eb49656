"""The lines of a ledger: what a step spent, chained to the line before and signed by the step.

A line is a DSSE envelope in canonical form. The key that must have signed it stands in it, since policies and keys come
and go while a ledger stays; that it is the key of the step that it names, the budget gate looks at for the run at hand.
An entry by whatever key counts: to forge one spends budget and never frees any.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from portcullis.digest import canonical_json, is_digest, parse_canonical_json
from portcullis.errors import ConfigError, DataError, EvidenceError
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import NONCE, format_time, parse_time
from portcullis.hash_chain import FIRST, read_records
from portcullis.keys import PublicKey, Signer
from portcullis.ledger.mechanisms import Mechanism, mechanism_from_dict, mechanism_to_dict

ENTRY_TYPE = "application/vnd.portcullis.ledger-entry+json"
ENTRY_FORMAT = "portcullis-ledger/v1"
MAX_LEDGER_BYTES = 16 << 20
_FIELDS = frozenset(
    "format number previous time key dataset policy run step unit mechanism output".split()  # noqa: SIM905
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}(:[a-z][a-z0-9_]{0,62})?")


@dataclass(frozen=True)
class Charge:
    """What a step of a run wants to release, and what that costs.

    Attributes:
        dataset: Id of the data set.
        policy: Name of the policy of the run.
        run: The run's nonce.
        step: The step's name.
        unit: Whose privacy the mechanism protects, `row` or `person`.
        mechanism: What it costs.
        output: SHA-256 of the very thing that is to be released. A second draw of the noise is another thing.
    """

    dataset: str
    policy: str
    run: str
    step: str
    unit: str
    mechanism: Mechanism
    output: str


@dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    Attributes:
        number: From 1.
        digest: SHA-256 of the line, hexadecimal.
        time: When it was charged, milliseconds since the epoch, by the clock of whoever charged it.
        key: Whose signature the line bears.
        charge: What was charged.
    """

    number: int
    digest: str
    time: int
    key: PublicKey
    charge: Charge


@dataclass(frozen=True)
class Head:
    """The last line of a ledger: all of it, since each line holds the digest of the one before.

    Attributes:
        number: How many lines there are; 0 for none.
        digest: SHA-256 of the last one, hexadecimal; 64 zeros for none.
    """

    number: int = 0
    digest: str = FIRST

    def __post_init__(self) -> None:
        sound = type(self.number) is int and self.number >= 0 and is_digest(self.digest)
        if not sound or (self.number == 0) != (self.digest == FIRST):
            raise DataError("a ledger's head is the number of its lines and the SHA-256 of the last one")

    def encode(self, dataset: str) -> bytes:
        """Return the head of a data set's ledger as canonical JSON. `Head.parse` inverts it."""
        return canonical_json(
            {"format": ENTRY_FORMAT, "dataset": dataset, "number": self.number, "digest": self.digest}
        )

    @classmethod
    def parse(cls, data: bytes, dataset: str) -> "Head":
        """Read a head that was kept; no bytes for none.

        Raises:
            EvidenceError: Anything that `encode` would not have written for this data set.
        """
        if not data:
            return cls()
        try:
            document = parse_canonical_json(data, limit=1 << 16)
            head = cls(document["number"], document["digest"])
            whole = head.encode(dataset) == data
        except (DataError, KeyError, TypeError) as error:
            raise EvidenceError(f"the kept head of the ledger of {dataset} is damaged; restore it") from error
        if not whole:
            raise EvidenceError(f"what is kept as the head of the ledger of {dataset} is another one's")
        return head


def append(lines: bytes, head: Head, charge: Charge, signer: Signer, *, time: int) -> bytes:
    """Return a ledger's bytes with one more entry."""
    payload = canonical_json(
        {
            "format": ENTRY_FORMAT,
            "number": head.number + 1,
            "previous": head.digest,
            "time": format_time(time),
            "key": signer.public_key.pem,
            "dataset": charge.dataset,
            "policy": charge.policy,
            "run": charge.run,
            "step": charge.step,
            "unit": charge.unit,
            "mechanism": mechanism_to_dict(charge.mechanism),
            "output": charge.output,
        }
    )
    return lines + seal_payload(payload, signer, payload_type=ENTRY_TYPE).encode() + b"\n"


def read_entries(lines: bytes, dataset: str) -> tuple[Entry, ...]:
    """Return a ledger's entries, none where it is empty.

    Raises:
        EvidenceError: Too large; or a line was altered, removed, put in between, moved or cut short, is not signed, or
            is of another data set.
    """
    if len(lines) > MAX_LEDGER_BYTES:
        raise EvidenceError(f"the ledger of {dataset} is larger than the {MAX_LEDGER_BYTES} bytes allowed")

    def broken(number: int) -> EvidenceError:
        return EvidenceError(
            f"the ledger of {dataset} was altered or cut at line {number}; nothing is released. Keep it for whoever "
            "looks into that"
        )

    try:
        records = read_records(lines, _said, broken)
        entries = tuple(_entry(record.number, record.digest, record.said) for record in records)
    except (DataError, ConfigError) as error:
        raise EvidenceError(f"the ledger of {dataset} holds an entry that no step writes: {error}") from error
    for entry in entries:
        if entry.charge.dataset != dataset:
            raise EvidenceError(f"line {entry.number} of the ledger of {dataset} is of another data set")
    return entries


def head_of(entries: tuple[Entry, ...]) -> Head:
    """Return the head of a ledger with these entries."""
    return Head(entries[-1].number, entries[-1].digest) if entries else Head()


def require_extends(entries: tuple[Entry, ...], seen: Head, dataset: str) -> None:
    """Refuse a ledger that does not hold all that was seen of it before.

    Raises:
        EvidenceError: It is shorter, or another one.
    """
    if len(entries) < seen.number:
        raise EvidenceError(
            f"the ledger of {dataset} was rolled back: it holds {len(entries)} entries, and {seen.number} were seen "
            "before; restore the newer one"
        )
    if head_of(entries[: seen.number]) != seen:
        raise EvidenceError(
            f"the ledger of {dataset} is another one than was seen before: its entry {seen.number} differs; restore it"
        )


def _said(line: bytes) -> Mapping[str, Any]:
    envelope = Envelope.parse(line)
    said = parse_canonical_json(envelope.payload)
    if not isinstance(said, dict) or set(said) != _FIELDS or said["format"] != ENTRY_FORMAT:
        raise DataError("not an entry of a ledger")
    envelope.verify(_key(said["key"]), payload_type=ENTRY_TYPE)
    return said


@lru_cache(maxsize=256)
def _key(pem: str) -> PublicKey:
    return PublicKey.from_pem(pem)


def _entry(number: int, digest: str, said: Mapping[str, Any]) -> Entry:
    names = [said[name] for name in ("dataset", "policy", "run", "step", "unit", "output")]
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= 128 for name in names):
        raise DataError("a name is not short, printable text")
    if not (NONCE.fullmatch(said["run"]) and _NAME.fullmatch(said["step"]) and is_digest(said["output"])):
        raise DataError("run, step or output is malformed")
    charge = Charge(
        dataset=said["dataset"],
        policy=said["policy"],
        run=said["run"],
        step=said["step"],
        unit=said["unit"],
        mechanism=mechanism_from_dict(said["mechanism"]),
        output=said["output"],
    )
    key = _key(said["key"])
    if key.pem != said["key"]:
        raise DataError("its key is not in the one form")
    return Entry(number, digest, parse_time(said["time"]), key, charge)
