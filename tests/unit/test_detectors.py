"""Detectors that others wrote: what they find is masked, and whatever they do wrong refuses the table."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import portcullis.pii.detectors
from benchmarks.peers import peer_python
from benchmarks.pii_peers import PRESIDIO_VERSION
from portcullis.errors import ConfigError, DataError, MissingDependencyError
from portcullis.pii.detectors import GROUP, Detection
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.tokens import token

ROOT = Path(__file__).parents[2]
# Those of the benchmark, which has the same environment.
PRESIDIO_REQUIREMENTS = (f"presidio-analyzer=={PRESIDIO_VERSION}", f"presidio-anonymizer=={PRESIDIO_VERSION}")
KEY = bytes(range(32))
EIGHT = "ABCDEFGH"


class Gazetteer:
    """The smallest detector there is: it finds the words of its option `words`."""

    version = "1.0"

    def __init__(self, entities: Sequence[str], options: Mapping[str, Any]) -> None:
        self.entity, self.words = entities[0], options.get("words", ["Zoë", "Bob"])

    def detect(self, texts: Sequence[str]) -> Iterable[Detection]:
        for index, text in enumerate(texts):
            for word in self.words:
                if (start := text.find(word)) >= 0:
                    yield Detection(index, start, start + len(word), self.entity, 0.9 if word.isascii() else 0.5)


def plan(columns: dict[str, Any] | None = None, entities: Any = None, **choice: Any) -> MaskingPlan:
    choice = {"version": "1.0", "entities": {"PERSON": "PERSON_NAME"}, **choice}
    document = {"detectors": {"words": choice}, "columns": columns or {}, "entities": entities or ["EMAIL"]}
    return MaskingPlan.parse(document)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs detectors under the name `words`."""

    def installed(*made: Any) -> None:
        names = []
        for number, it in enumerate(made):
            monkeypatch.setattr(sys.modules[__name__], f"_made_{number}", it, raising=False)
            names.append(EntryPoint("words", f"{__name__}:_made_{number}", GROUP))
        monkeypatch.setattr(portcullis.pii.detectors, "entry_points", lambda group: EntryPoints(names))

    return installed


def test_what_a_detector_finds_is_masked_to_the_byte(install: Any) -> None:
    install(Gazetteer)
    its = plan({"who": {"token": "PERSON_NAME"}})
    table = pa.table({"note": ["für Zoë: zoe@a.example", "Bob", None, "nobody"], "who": ["Zoë"] * 4})
    made, report = mask_table(table, its, key=KEY)
    name = token(KEY, "PERSON_NAME", "zoë")
    email = token(KEY, "EMAIL", "zoe@a.example")
    assert made["note"].to_pylist() == [f"für {name}: {email}", token(KEY, "PERSON_NAME", "bob"), None, "nobody"]
    assert made["who"][0].as_py() == name
    assert report.counts["note"] == {"EMAIL": 1, "PERSON_NAME": 2}
    assert residual_figures(made, its)["residual_identifiers"] == 0


def test_what_is_found_with_a_lower_score_is_left(install: Any) -> None:
    install(Gazetteer)
    made, _ = mask_table(pa.table({"note": ["Zoë", "Bob"]}), plan(min_score=0.9), key=KEY)
    assert made["note"].to_pylist() == ["Zoë", token(KEY, "PERSON_NAME", "bob")]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_where_a_table_is_cut_makes_no_difference(install: Any, cut: int) -> None:
    install(Gazetteer)
    table = pa.table({"note": ["Zoë and Bob", "Bob", "x", "Zoë"]})
    whole, _ = mask_table(table, plan(), key=KEY)
    parts = [mask_table(table.slice(0, cut), plan(), key=KEY)[0], mask_table(table.slice(cut), plan(), key=KEY)[0]]
    assert pa.concat_tables(parts).combine_chunks() == whole.combine_chunks()


def one(*detection: Any) -> Any:
    return lambda _: [Detection(*detection)]


def endless(_: Sequence[str]) -> Iterable[Detection]:
    while True:
        yield Detection(0, 0, 1, "PERSON", 1.0)


def failing(texts: Sequence[str]) -> Iterable[Detection]:
    yield Detection(0, 0, 1, "PERSON", 1.0)
    raise RuntimeError(f"cannot judge {texts[0]}")


def connecting(_: Sequence[str]) -> Iterable[Detection]:
    with socket.socket() as it:
        it.connect(("127.0.0.1", 9))
    return []


def hiding(_: Sequence[str]) -> Iterable[Detection]:
    with contextlib.suppress(Exception):  # what a library does that has a fallback
        urllib.request.urlopen("http://203.0.113.1/", timeout=1)
    return []


def threading_(_: Sequence[str]) -> Iterable[Detection]:
    other = threading.Thread(target=lambda: hiding([]))
    other.start()
    other.join()
    return []


def asking(_: Sequence[str]) -> Iterable[Detection]:
    socket.getaddrinfo("example.com", 80)
    return []


def sending(_: Sequence[str]) -> Iterable[Detection]:
    with socket.socket(type=socket.SOCK_DGRAM) as it:
        it.sendto(b"x", ("127.0.0.1", 9))
    return []


def running(_: Sequence[str]) -> Iterable[Detection]:
    subprocess.run(["true"], check=True)
    return []


def forking(_: Sequence[str]) -> Iterable[Detection]:
    if os.fork() == 0:
        os._exit(0)
    return []


HOSTILE: dict[str, Any] = {
    "returns nothing": lambda _: None,
    "returns no detections": lambda _: [(0, 0, 3, "PERSON", 0.5)],
    "returns text": lambda _: "PERSON",
    "another text": one(1, 0, 3, "PERSON", 0.5),
    "a text before the first": one(-1, 0, 3, "PERSON", 0.5),
    "before the text": one(0, -1, 3, "PERSON", 0.5),
    "past the end": one(0, 0, 99, "PERSON", 0.5),
    "empty": one(0, 2, 2, "PERSON", 0.5),
    "backwards": one(0, 3, 1, "PERSON", 0.5),
    "a fraction": one(0, 0.0, 3, "PERSON", 0.5),
    "a truth value": one(0, False, True, "PERSON", 0.5),
    "a number of numpy": one(0, np.int64(0), 3, "PERSON", 0.5),
    "no place": one(0, None, 3, "PERSON", 0.5),
    "undeclared": one(0, 0, 3, "PLACE", 0.5),
    "our word for it": one(0, 0, 3, "PERSON_NAME", 0.5),
    "no entity": one(0, 0, 3, None, 0.5),
    "a score that is none": one(0, 0, 3, "PERSON", math.nan),
    "an infinite score": one(0, 0, 3, "PERSON", math.inf),
    "a score above 1": one(0, 0, 3, "PERSON", 1.5),
    "a score below 0": one(0, 0, 3, "PERSON", -0.5),
    "a score as text": one(0, 0, 3, "PERSON", "0.5"),
    "no score": one(0, 0, 3, "PERSON", None),
    "without an end": endless,
    "fails": failing,
    "connects": connecting,
    "connects and hides it": hiding,
    "connects in a thread": threading_,
    "asks for a name": asking,
    "sends": sending,
    "runs a program": running,
    "forks": forking,
}


def detector(detect: Any) -> Any:
    return type(
        "Hostile", (), {"version": "1.0", "__init__": lambda *_: None, "detect": lambda _, texts: detect(texts)}
    )


@pytest.mark.parametrize("case", HOSTILE)
def test_a_detector_that_is_wrong_refuses(install: Any, case: str) -> None:
    install(detector(HOSTILE[case]))
    with pytest.raises(DataError, match="detector 'words'") as refused:
        mask_table(pa.table({"note": ["Zoë Miller"]}), plan(), key=KEY)
    assert "Miller" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("detect", [hiding, connecting])
def test_a_network_is_refused_while_a_detector_is_made(install: Any, detect: Any) -> None:
    install(type("Hostile", (Gazetteer,), {"__init__": lambda *_: detect([])}))
    with pytest.raises(DataError, match="reached for a network"):
        mask_table(pa.table({"note": ["x"]}), plan(), key=KEY)


def test_networks_are_open_again_once_a_detector_is_done(install: Any) -> None:
    install(Gazetteer)
    mask_table(pa.table({"note": ["Bob"]}), plan(), key=KEY)
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def refusing(_: Sequence[str], options: Mapping[str, Any]) -> Any:
    raise ConfigError(f"no option {min(options)}")


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        ((), ConfigError, "0 detectors are called"),
        ((Gazetteer, Gazetteer), ConfigError, "2 detectors are called"),
        ((refusing,), ConfigError, "no option a"),
        ((lambda *_: object(),), DataError, "failed with AttributeError"),
        ((type("Newer", (Gazetteer,), {"version": "1.1"}),), ConfigError, "'1.1' is installed"),
        ((type("Number", (Gazetteer,), {"version": 1.0}),), ConfigError, "is installed"),
        ((7,), DataError, "failed with TypeError"),
    ],
)
def test_a_detector_that_is_not_the_declared_one_is_refused(
    install: Any, made: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    install(*made)
    with pytest.raises(error, match=message):
        mask_table(pa.table({"note": ["x"]}), plan(options={"a": 1}), key=KEY)


def test_a_detector_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("words", "portcullis.no_such_module:x", GROUP)
    monkeypatch.setattr(portcullis.pii.detectors, "entry_points", lambda group: EntryPoints([entry]))
    with pytest.raises(ConfigError, match="cannot be imported"):
        mask_table(pa.table({"note": ["x"]}), plan(), key=KEY)


def test_presidio_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.delitem(sys.modules, "portcullis.pii.presidio", raising=False)
    entry = EntryPoint("words", "portcullis.pii.presidio:PresidioDetector", GROUP)
    monkeypatch.setattr(portcullis.pii.detectors, "entry_points", lambda group: EntryPoints([entry]))
    with pytest.raises(MissingDependencyError, match=r"pip install 'kfp-portcullis\[presidio\]'"):
        mask_table(pa.table({"note": ["x"]}), plan(), key=KEY)


def test_a_gate_needs_no_detector_and_knows_its_spellings(install: Any) -> None:
    install(Gazetteer)
    choice = {"version": "1.0", "entities": ["NICK_NAME"]}
    its = MaskingPlan.parse({"detectors": {"words": choice}, "entities": {"NICK_NAME": "redact"}})
    made, _ = mask_table(pa.table({"note": ["by Bob"]}), its, key=KEY)
    assert made["note"][0].as_py() == "by <NICK_NAME>"
    install()
    assert residual_figures(made, its)["residual_identifiers"] == 0


@pytest.mark.parametrize(
    "detectors",
    [
        [],
        {"words": None},
        {"words": {"entities": ["A_B"]}},
        {"words": {"version": "1.0"}},
        {"words": {"version": 1.0, "entities": ["A_B"]}},
        {"words": {"version": "1.0", "entities": []}},
        {"words": {"version": "1.0", "entities": "A_B"}},
        {"words": {"version": "1.0", "entities": [7]}},
        {"words": {"version": "1.0", "entities": {"PERSON": "person"}}},
        {"words": {"version": "1.0", "entities": {"PERSON": "VALUE"}}},
        {"words": {"version": "1.0", "entities": {"PERSON": 7}}},
        {"words": {"version": "1.0", "entities": ["A_B"], "min_score": math.nan}},
        {"words": {"version": "1.0", "entities": ["A_B"], "min_score": True}},
        {"words": {"version": "1.0", "entities": ["A_B"], "min_score": 1.1}},
        {"words": {"version": "1.0", "entities": ["A_B"], "options": []}},
        {"words": {"version": "1.0", "entities": ["A_B"], "options": {1: 2}}},
        {"words": {"version": "1.0", "entities": ["A_B"], "optoins": {}}},
        {"": {"version": "1.0", "entities": ["A_B"]}},
        {f"d{number}": {"version": "1.0", "entities": ["A_B"]} for number in range(9)},
        {
            f"d{it}": {"version": "1", "entities": [f"E_{x}{y}{'IJKLMNOP'[it]}" for x in EIGHT for y in EIGHT]}
            for it in range(8)
        },
    ],
)
def test_an_unsound_choice_is_refused(detectors: Any) -> None:
    with pytest.raises(ConfigError):
        MaskingPlan.parse({"detectors": detectors})


def test_a_choice_is_spelled_one_way() -> None:
    its = plan(options={"model": "x"}, min_score=0)
    assert its.to_dict()["detectors"] == {
        "words": {"version": "1.0", "entities": {"PERSON": "PERSON_NAME"}, "min_score": 0.0, "options": {"model": "x"}}
    }
    assert its.to_dict()["entities"] == {"EMAIL": "token", "PERSON_NAME": "token"}
    assert MaskingPlan.parse(its.to_dict()) == its


PRESIDIO = """
import json, sys
from importlib.metadata import EntryPoint, EntryPoints
import portcullis.pii.detectors as detectors
from portcullis.errors import PortcullisError

entry = EntryPoint("presidio", "portcullis.pii.presidio:PresidioDetector", detectors.GROUP)
detectors.entry_points = lambda group: EntryPoints([entry])
answers = []
for entities, options, texts in json.load(sys.stdin):
    choice = {"version": "VERSION", "entities": entities, "min_score": 0.4, "options": options}
    try:
        loaded = detectors.load_detector(detectors.DetectorChoice.parse("presidio", choice))
        answers.append([list(it) for it in loaded.detections(texts)])
    except PortcullisError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


def test_presidio_finds_without_a_network_what_its_patterns_know() -> None:
    """The real one, in an environment of its own: its requirements are not those of the pipelines."""
    try:
        python = peer_python("presidio", *PRESIDIO_REQUIREMENTS)
    except subprocess.CalledProcessError:
        pytest.skip("Presidio cannot be installed from the package index")
    asked = [
        (["MEDICAL_LICENSE", "IP_ADDRESS"], {}, ["über 10.0.0.1, DEA BB1388568", "nothing", ""]),
        (["PERSON"], {}, ["Ada"]),
        (["EMAIL_ADDRESS"], {}, ["ada@example.com"]),
        (["PERSON"], {"model": "no_such_model"}, ["Ada"]),
        (["IP_ADDRESS"], {"modle": "x"}, ["10.0.0.1"]),
    ]
    found, *refused = json.loads(
        subprocess.run(
            [python, "-c", PRESIDIO.replace("VERSION", PRESIDIO_VERSION)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "components")},
        ).stdout
    )
    assert sorted(found) == [[0, 5, 13, "IP_ADDRESS", 0.6], [0, 19, 28, "MEDICAL_LICENSE", 1.0]]
    assert [answer.partition(":")[0] for answer in refused] == [
        *("ConfigError", "ConfigError", "MissingDependencyError", "ConfigError")
    ]
