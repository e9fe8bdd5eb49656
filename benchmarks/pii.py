"""`pii`: detection and masking of identifiers beside Presidio's patterns, and what either leaks of labelled text.

The table is synthetic: six columns of one identifier each in several spellings, three of notes with two identifiers in
each, one of text without any. Presidio runs in an environment and process of its own, without a language model
(`NoOpNlpEngine`, its recognisers of the same six entities), on the first rows of the same table, since it takes
thousands of times as long; so figures are cells per second of processor time, of each process.

Labelled texts are read from `$PORTCULLIS_TEST_DATA/pii/development.json` (presidio-research's `full_text` and `spans`);
where that is not set, those records are left out.
"""

import ipaddress
import json
import os
import random
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks import Record, command
from benchmarks.peers import peer_python
from portcullis.pii.entities import IBAN_LENGTHS, Entity
from portcullis.pii.locales.eu import luhn
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.scan import find, scan

VERSION = "2.2.366"
PRESIDIO = f"Presidio {VERSION}"
# Our names, and Presidio's.
ENTITIES = {
    Entity.EMAIL: "EMAIL_ADDRESS",
    Entity.IBAN: "IBAN_CODE",
    Entity.CREDIT_CARD: "CREDIT_CARD",
    Entity.US_SSN: "US_SSN",
    Entity.IP_ADDRESS: "IP_ADDRESS",
    Entity.PHONE: "PHONE_NUMBER",
}
# Reads one JSON request a line; answers with the seconds it took, and with what it found where that is asked.
PEER = """
import json, sys, time
import tldextract
tldextract.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # no network
from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
from presidio_analyzer.nlp_engine import NoOpNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer, EmailRecognizer, IbanRecognizer, IpRecognizer, PhoneRecognizer, UsSsnRecognizer)
from presidio_anonymizer import AnonymizerEngine
from presidio_anonymizer.entities import OperatorConfig
kinds = (CreditCardRecognizer, EmailRecognizer, IbanRecognizer, IpRecognizer, PhoneRecognizer, UsSsnRecognizer)
registry = RecognizerRegistry(recognizers=[kind() for kind in kinds], supported_languages=["en"])
engine = NoOpNlpEngine([{"lang_code": "en", "model_name": "none"}])
analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])
anonymizer = AnonymizerEngine()
operators = {
    "hash": {"DEFAULT": OperatorConfig("hash", {"hash_type": "sha256"})},
}
for line in sys.stdin:
    request = json.loads(line)
    operator = operators.get(request["operator"])
    start = time.process_time()
    found = []
    for text in request["texts"]:
        results = analyzer.analyze(text, language="en")
        if operator:
            anonymizer.anonymize(text, results, operator)
        found.append([(it.entity_type, it.start, it.end) for it in results])
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "found": found}), flush=True)
"""


class Peer:
    """Presidio in a process of its own."""

    def __init__(self) -> None:
        requirements = (f"presidio-analyzer=={VERSION}", f"presidio-anonymizer=={VERSION}")
        python = peer_python("presidio", *requirements)
        self._process = subprocess.Popen(
            [str(python), "-c", PEER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ask([], "")

    def ask(self, texts: Sequence[str], operator: str) -> tuple[float, list[list[tuple[str, int, int]]]]:
        """Return the processor time that it took over the texts, and what it found in each."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"texts": texts, "operator": operator}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["seconds"], answer["found"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


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

    def detect() -> None:
        for name in whole.column_names:
            scan(whole[name], plan.entities, column=name)

    peer = Peer()
    try:
        records = [
            _rate("detection, six entities", whole, detect, peer, sample, "", rounds, 1000),
            _rate(
                "detection and keyed tokens; the peer hashes",
                whole,
                lambda: mask_table(whole, plan, key=bytes(32)),
                peer,
                sample,
                "hash",
                rounds,
                400,
            ),
        ]
        if (root := os.environ.get("PORTCULLIS_TEST_DATA")) is not None:
            records += _accuracy(Path(root) / "pii" / "development.json", peer)
    finally:
        peer.close()
    return records


def _rate(
    name: str,
    whole: pa.Table,
    work: Callable[[], object],
    peer: Peer,
    sample: Sequence[str],
    operator: str,
    rounds: int,
    target: float,
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
        peer_name=PRESIDIO,
        ratio=statistics.median(ratios),
        spread=(high - low) / statistics.median(ratios),
        target=target,
        better="higher",
    )


Found = Sequence[tuple[str, int, int]]


def _accuracy(path: Path, peer: Peer) -> list[Record]:
    documents = json.loads(path.read_text())
    texts = [document["full_text"] for document in documents]
    labels = [[(it["entity_type"], it["start_position"], it["end_position"]) for it in d["spans"]] for d in documents]
    spans = find(texts, tuple(ENTITIES))
    ours = [[(ENTITIES[it.entity], it.start, it.end) for it in spans.get(index, ())] for index in range(len(texts))]
    theirs = peer.ask(texts, "")[1]
    records = [
        _record(
            "leaked characters of all identifiers", "%", *(_leaked(labels, it, None) for it in (ours, theirs)), "lower"
        )
    ]
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
