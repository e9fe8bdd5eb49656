"""`pii`: detection and masking of identifiers beside Presidio's patterns, and what either leaks of labelled text.

The table is synthetic: six columns of one identifier each in several spellings, three of notes with two identifiers in
each, one of text without any. Presidio runs in an environment and process of its own, without a language model
(`NoOpNlpEngine`, its recognisers of the same six entities), on the first rows of the same table, since it takes
thousands of times as long; so figures are cells per second of processor time, of each process. So do the other peers,
with the detectors that each has by default: of these six, DataFog knows no IBAN, scrubadub neither that nor addresses.
Detection is of exact spans, checksums included; where we put keyed tokens or stars in their place, Presidio hashes or
masks them.

The gate's time is that of searching the table that the default policy leaves. Memory is that of the command `mask`, its
gate included, over what the process held once all was imported; the table is the same one, over and over.

Labelled texts are read from `$PORTCULLIS_TEST_DATA/pii/development.json` (presidio-research's `full_text` and `spans`);
where that is not set, those records are left out.
"""

import base64
import ipaddress
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from benchmarks import Record, command
from benchmarks.pii_peers import DATAFOG, PRESIDIO, SCRUBADUB, Found, Peer
from portcullis.pii.entities import IBAN_LENGTHS, Entity
from portcullis.pii.frames import DEFAULT_PLAN
from portcullis.pii.locales.eu import luhn
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import search_residual
from portcullis.pii.scan import find, scan

# Our names, and Presidio's.
ENTITIES = {
    Entity.EMAIL: "EMAIL_ADDRESS",
    Entity.IBAN: "IBAN_CODE",
    Entity.CREDIT_CARD: "CREDIT_CARD",
    Entity.US_SSN: "US_SSN",
    Entity.IP_ADDRESS: "IP_ADDRESS",
    Entity.PHONE: "PHONE_NUMBER",
}


def table(rows: int) -> pa.Table:
    """Return the table of this benchmark; the same one for the same number of rows."""
    rng = random.Random(0)  # noqa: S311 - the same table each time

    def number(size: int) -> str:
        return "".join(rng.choices("0123456789", k=size))

    def mail() -> str:
        names = rng.choice(("ann", "bob", "carla", "dmitri")), rng.choice(("smith", "garcia", "novak"))
        return f"{names[0]}.{names[1]}{number(3)}@{rng.choice(('example.com', 'mail.example.org', 'example.co.uk'))}"

    def phone() -> str:
        area, exchange, line = rng.randint(201, 989), rng.randint(200, 999), number(4)
        form = rng.choice(("({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "{}{}{}"))
        return form.format(area, exchange, line)

    def ssn() -> str:
        return f"{rng.randint(1, 665):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"

    def card() -> str:
        body = "4" + number(14)
        card = next(body + str(digit) for digit in range(10) if luhn(body + str(digit)))
        return rng.choice(("", " ", "-")).join(re.findall("....", card))

    def iban() -> str:
        country = rng.choice(("DE", "FR", "ES"))
        account = number(IBAN_LENGTHS[country] - 4)
        check = 98 - int("".join(str(int(letter, 36)) for letter in f"{account}{country}00")) % 97
        return rng.choice(("", " ")).join(re.findall(".{1,4}", f"{country}{check:02}{account}"))

    def address() -> str:
        six = ipaddress.IPv6Address((0x2001 << 112) | rng.getrandbits(112))
        return str(rng.choice((ipaddress.IPv4Address(rng.randint(1 << 24, (1 << 32) - 1)), six)))

    def words() -> str:
        vocabulary = ("the", "customer", "asked", "about", "a", "refund", "and", "we", "said", "that", "please", "see")
        return " ".join(rng.choices(vocabulary, k=rng.randint(4, 9)))

    kinds = (mail, phone, ssn, card, iban, address)

    def note() -> str:
        return f"{words()} {rng.choice(kinds)()} {words()}, {rng.choice(kinds)()}."

    makers: dict[str, Callable[[], str]] = {f"c{index}": kind for index, kind in enumerate(kinds)}
    makers |= dict.fromkeys(("note", "remark", "text"), note)
    makers["plain"] = lambda: f"{words()} {rng.randint(1, 999)} on 2024-01-{rng.randint(10, 28)} {words()}"
    return pa.table({name: [make() for _ in range(rows)] for name, make in makers.items()})


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    whole = table(2_000 if quick else 10_000)
    rounds = 3 if quick else 5
    sample = [text for row in whole.slice(0, 20 if quick else 50).to_pylist() for text in row.values()]
    plan = MaskingPlan(tuple(ENTITIES), {})
    stars = MaskingPlan(dict.fromkeys(ENTITIES, "star"), {})

    def detect() -> None:
        for name in whole.column_names:
            scan(whole[name], plan.entities, column=name)

    def mask(plan: MaskingPlan) -> Callable[[], object]:
        return lambda: mask_table(whole, plan, key=bytes(32))

    records = [*_gate(whole, rounds), *_memory(100 if quick else 1000)]
    peer = Peer(PRESIDIO)
    try:
        records += [
            _rate("detection", whole, detect, peer, sample, "", rounds, 1000),
            _rate("token masking", whole, mask(plan), peer, sample, "hash", rounds, 400),
            _rate("star masking", whole, mask(stars), peer, sample, "mask", rounds, 700),
        ]
        if (root := os.environ.get("PORTCULLIS_TEST_DATA")) is not None:
            records += _accuracy(Path(root) / "pii" / "development.json", peer)
    finally:
        peer.close()
    return records + [_other_peer(name, whole, detect, sample, rounds) for name in (DATAFOG, SCRUBADUB)]


def _other_peer(name: str, whole: pa.Table, detect: Callable[[], object], sample: Sequence[str], rounds: int) -> Record:
    """Compare detection with a peer that looks for other entities too, or not for all six."""
    title = "detection, by the peer's own default entities"
    try:
        peer = Peer(name)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        missing = f"{name}, which could not be run here: {type(error).__name__}"
        rate = whole.num_rows * whole.num_columns / _processor_time(detect)
        return Record(title, "cells/CPU-s", rate, None, missing, None, 0.0, None, "higher")
    try:
        return _rate(title, whole, detect, peer, sample, "", rounds, None)
    finally:
        peer.close()


def _gate(whole: pa.Table, rounds: int) -> list[Record]:
    """Compare what the residual gate takes with what masking took, of the default policy."""
    plan = DEFAULT_PLAN
    gigabytes = whole.nbytes / 1e9
    masked, _ = mask_table(whole, plan, key=bytes(32))
    masking, gate = [], []
    for _ in range(rounds):
        masking.append(_processor_time(lambda: mask_table(whole, plan, key=bytes(32))) / gigabytes)
        gate.append(_processor_time(lambda: search_residual(masked.schema, [masked], plan)) / gigabytes)
    ratios = [b / a for a, b in zip(gate, masking, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return [
        Record(
            name="residual gate, per GB that was masked",
            unit="CPU-s",
            ours=statistics.median(gate),
            peer=statistics.median(masking),
            peer_name="masking itself",
            ratio=middle,
            spread=(high - low) / middle,
            target=1 / 3,
            better="lower",
        )
    ]


def _processor_time(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


# Masks a small and a large file as the command does; prints, in MiB, how far the large one raised the peak over what
# the process had once all was imported.
_MASK = """
import sys
from pathlib import Path
from portcullis.cli.mask import mask
from portcullis.evidence import step
from portcullis.ingest import readers
from portcullis.pii import mask as _, page, residual
def peak():  # not ru_maxrss, which begins with what the process held that started this one
    return next(int(it.split()[1]) >> 10 for it in open("/proc/self/status") if it.startswith("VmHWM:"))
before = peak()
mask.callback(sys.argv[1], Path(sys.argv[2]), None, sys.argv[3], None)
print(peak() - before)
"""


def _memory(megabytes: int) -> list[Record]:
    """Measure the memory that `portcullis mask` takes for a CSV file of this size, its gate included."""
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as folder:
        source, output, key = Path(folder) / "source.csv", Path(folder) / "masked.csv", Path(folder) / "masking.key"
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(bytes(range(32))).decode())
        block = table(10_000)
        with csv.CSVWriter(source, block.schema) as writer:
            while source.stat().st_size < megabytes * 1_000_000:
                writer.write(block)
        command = [sys.executable, "-c", _MASK, str(source), str(output), f"file:{key}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = float(done.stdout.splitlines()[-1])
    return [
        Record(
            name=f"extra memory to mask a CSV file of {megabytes:,} MB",
            unit="MiB",
            ours=grown,
            peer=None,
            peer_name="",
            ratio=None,
            spread=0.0,
            target=128.0,
            better="lower",
        )
    ]


def _rate(
    name: str,
    whole: pa.Table,
    work: Callable[[], object],
    peer: Peer,
    sample: Sequence[str],
    operator: str,
    rounds: int,
    target: float | None,
) -> Record:
    own, other = [], []
    for _ in range(rounds):
        start = time.process_time()
        work()
        own.append(whole.num_rows * whole.num_columns / (time.process_time() - start))
        other.append(len(sample) / peer.ask(sample, operator)[0])
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Record(
        name=name,
        unit="cells/CPU-s",
        ours=statistics.median(own),
        peer=statistics.median(other),
        peer_name=peer.name,
        ratio=statistics.median(ratios),
        spread=(high - low) / statistics.median(ratios),
        target=target,
        better="higher",
    )


def _accuracy(path: Path, peer: Peer) -> list[Record]:
    documents = json.loads(path.read_text())
    texts = [document["full_text"] for document in documents]
    labels = [[(it["entity_type"], it["start_position"], it["end_position"]) for it in d["spans"]] for d in documents]
    spans = find(texts, tuple(ENTITIES))
    ours = [[(ENTITIES[it.entity], it.start, it.end) for it in spans.get(index, ())] for index in range(len(texts))]
    theirs = peer.ask(texts, "")[1]
    records = [_record("leaked characters", "%", *(_leaked(labels, it, None) for it in (ours, theirs)), "lower")]
    for entity, name in ENTITIES.items():
        for figure, measured in (("precision", _precision), ("recall", _recall)):
            pair = [100 * measured(labels, it, name) for it in (ours, theirs)]
            records.append(_record(f"{figure} of {entity}", "%", *pair, "higher"))
    return records


def _record(name: str, unit: str, ours: float, peer: float, better: str) -> Record:
    best, worst = (peer, ours) if better == "lower" else (ours, peer)
    return Record(
        name=name,
        unit=unit,
        ours=ours,
        peer=peer,
        peer_name=PRESIDIO,
        ratio=best / worst if worst else None,
        spread=0.0,
        target=None,
        better="lower" if better == "lower" else "higher",
    )


def _places(spans: Found, name: str | None) -> set[int]:
    wanted = set(ENTITIES.values()) if name is None else {name}
    return {place for kind, start, end in spans if kind in wanted for place in range(start, end)}


def _leaked(labels: Sequence[Found], found: Sequence[Found], name: str | None) -> float:
    """Return the share of labelled characters, in percent, that nothing covers."""
    total = leaked = 0
    for label, spans in zip(labels, found, strict=True):
        places = _places(label, name)
        total += len(places)
        leaked += len(places - _places(spans, None))
    return 100 * leaked / total


def _precision(labels: Sequence[Found], found: Sequence[Found], name: str) -> float:
    """Return the share of findings of an entity that touch a label of it."""
    right = Counter(
        bool(_places(label, name).intersection(range(start, end)))
        for label, spans in zip(labels, found, strict=True)
        for kind, start, end in spans
        if kind == name
    )
    return right[True] / max(right.total(), 1)


def _recall(labels: Sequence[Found], found: Sequence[Found], name: str) -> float:
    """Return the share of labels of an entity that a finding of it touches."""
    return _precision(found, labels, name)


if __name__ == "__main__":
    command("pii", measure)
