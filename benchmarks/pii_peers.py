"""The peers of `benchmarks.pii`, each in an environment and a process of its own."""

import json
import subprocess
from collections.abc import Sequence

from benchmarks.peers import peer_python

Found = Sequence[tuple[str, int, int]]

PRESIDIO_VERSION = "2.2.366"
DATAFOG_VERSION = "0.4.4"
SCRUBADUB_VERSION = "2.0.1"
PRESIDIO = f"Presidio {PRESIDIO_VERSION}"
DATAFOG = f"DataFog core {DATAFOG_VERSION}"
SCRUBADUB = f"scrubadub {SCRUBADUB_VERSION}"
# Each defines `work`, which takes a text and an operator and returns what it found.
_SETUP = {
    PRESIDIO: """
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
    "mask": {"DEFAULT": OperatorConfig("mask", {"masking_char": "*", "chars_to_mask": 100, "from_end": False})},
}
def work(text, operator):
    results = analyzer.analyze(text, language="en")
    if operator:
        anonymizer.anonymize(text, results, operators[operator])
    return [(it.entity_type, it.start, it.end) for it in results]
""",
    DATAFOG: """
import datafog_core
def work(text, operator):
    return [(it.entity_type, it.codepoint_range.start, it.codepoint_range.end) for it in datafog_core.scan(text)]
""",
    SCRUBADUB: """
import scrubadub
scrubber = scrubadub.Scrubber()
def work(text, operator):
    return [(it.type, it.beg, it.end) for it in scrubber.iter_filth(text)]
""",
}
_REQUIREMENTS = {
    PRESIDIO: (f"presidio-analyzer=={PRESIDIO_VERSION}", f"presidio-anonymizer=={PRESIDIO_VERSION}"),
    DATAFOG: (f"datafog-core=={DATAFOG_VERSION}",),
    SCRUBADUB: (f"scrubadub=={SCRUBADUB_VERSION}",),
}
# Reads one JSON request a line; answers with the processor time it took, and with what it found.
_LOOP = """
import json, sys, time
for line in sys.stdin:
    request = json.loads(line)
    start = time.process_time()
    found = [work(text, request["operator"]) for text in request["texts"]]
    print(json.dumps({"seconds": time.process_time() - start, "found": found}), flush=True)
"""


class Peer:
    """One of them, in a process of its own.

    Raises:
        RuntimeError: It does not start.
        subprocess.CalledProcessError: Its packages cannot be installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        python = peer_python(name.split()[0].lower(), *_REQUIREMENTS[name])
        self._process = subprocess.Popen(
            [str(python), "-c", _SETUP[name] + _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ask(["write to nobody@example.com"], "")

    def ask(self, texts: Sequence[str], operator: str) -> tuple[float, list[list[tuple[str, int, int]]]]:
        """Return the processor time that it took over the texts, and what it found in each."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"texts": texts, "operator": operator}) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        read = json.loads(answer)
        return read["seconds"], read["found"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
