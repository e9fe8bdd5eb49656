"""Detectors that others wrote: entry points of the group `portcullis.detectors`, named in a masking policy.

    detectors: {presidio: {version: 2.2.366, entities: {PERSON: PERSON_NAME}, options: {model: en_core_web_sm}}}

An entry point is called with the entities that the policy asks for, in the detector's own words, and with its options,
and returns a `Detector`. Every text is to be judged alone and always alike, since a table may be cut anywhere.

A detector runs in the step's own process. It is not believed: what it returns is checked, and while it works neither
it nor anything else in the process may reach a network or start a program (Python's audit events, PEP 578, so code that
is not Python's can evade that). Whatever goes wrong refuses the table.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from portcullis.errors import ConfigError, DataError, PortcullisError

GROUP = "portcullis.detectors"
MOST_DETECTORS, MOST_ENTITIES = 8, 64
MAX_NAME = 64


class Detection(NamedTuple):
    """What a detector found.

    Attributes:
        text: The index of the text.
        start: Its first character, in code points.
        end: The one after its last, above `start`.
        entity: In the detector's own words; one of those that it was asked for.
        score: How sure it is, from 0 to 1.
    """

    text: int
    start: int
    end: int
    entity: str
    score: float


class Detector(Protocol):
    """Finds entities in texts.

    Attributes:
        version: Of what finds them, models included; the policy names it, so that it is in the evidence.
    """

    version: str

    def detect(self, texts: Sequence[str]) -> Iterable[Detection]:
        """Return what is found in each text, in any order; overlaps are united."""
        ...


@dataclass(frozen=True)
class DetectorChoice:
    """A detector as a masking policy names it.

    Attributes:
        name: Of its entry point.
        version: The one that must be installed.
        entities: Each entity that it is asked for, in its own words, and what that is here: an entity of ours or of the
            user's own.
        min_score: What it finds with a lower score is left alone; 0 to 1.
        options: Its own, plain JSON.

    Raises:
        ConfigError: Any of this does not hold.
    """

    name: str
    version: str
    entities: Mapping[str, str]
    min_score: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entities", MappingProxyType(dict(sorted(self.entities.items()))))
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @classmethod
    def parse(cls, name: Any, given: Any) -> "DetectorChoice":
        """Read a detector as a masking policy spells it.

        Raises:
            ConfigError: A key is unknown or missing, or has another type.
        """
        if not _is_name(name):
            raise ConfigError(f"masking.detectors: a name is text of 1 to {MAX_NAME} characters")
        where = f"masking.detectors.{name}"
        known = {"version", "entities", "min_score", "options"}
        if not isinstance(given, dict) or not {"version", "entities"} <= set(given) <= known:
            raise ConfigError(f"{where} has version and entities, and optionally min_score and options")
        version, entities = given["version"], given["entities"]
        min_score, options = given.get("min_score", 0.0), given.get("options", {})
        if not _is_name(version):
            raise ConfigError(f"{where}.version is text, in quotes: the installed one, such as '2.2.366'")
        if isinstance(entities, list):
            entities = dict(zip(entities, entities, strict=True)) if all(map(_is_name, entities)) else None
        if not isinstance(entities, dict) or not all(_is_name(it) for pair in entities.items() for it in pair):
            raise ConfigError(f"{where}.entities lists entities, or maps the detector's to ours or your own")
        if not 1 <= len(entities) <= MOST_ENTITIES:
            raise ConfigError(f"{where}.entities has 1 to {MOST_ENTITIES}")
        if type(min_score) not in (int, float) or not 0 <= min_score <= 1:
            raise ConfigError(f"{where}.min_score is a number from 0 to 1")
        if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
            raise ConfigError(f"{where}.options is a mapping with text keys")
        return cls(name, version, entities, float(min_score), options)

    def spelled(self) -> dict[str, Any]:
        """Return the one spelling of this choice in a masking policy, plain JSON."""
        return {
            "version": self.version,
            "entities": dict(self.entities),
            "min_score": self.min_score,
            "options": dict(self.options),
        }


def parsed_detectors(given: Any) -> dict[str, DetectorChoice]:
    """Read the detectors of a masking policy, in the order of their names.

    Raises:
        ConfigError: As `DetectorChoice.parse`; or there are more than 8.
    """
    if not isinstance(given, Mapping) or len(given) > MOST_DETECTORS:
        raise ConfigError(f"masking.detectors maps at most {MOST_DETECTORS} detectors to what they are asked for")
    chosen = {
        name: it if isinstance(it, DetectorChoice) else DetectorChoice.parse(name, it) for name, it in given.items()
    }
    return dict(sorted(chosen.items()))


@dataclass(frozen=True)
class LoadedDetector:
    """A detector that is installed, and what of it the policy asked for."""

    choice: DetectorChoice
    detector: Detector = field(repr=False)

    def detections(self, texts: Sequence[str]) -> list[Detection]:
        """Return what it finds with the score that the policy asks for.

        Raises:
            DataError: It failed, reached for a network, or returned what is no detection in these texts.
        """
        # Each character is found at most once for each entity by what is sound; anything more may have no end.
        most = len(self.choice.entities) * (1 + sum(map(len, texts)))
        with _guarded(self.choice.name):
            found = list(itertools.islice(self.detector.detect(texts), most + 1))
        if len(found) > most or not all(self._is_sound(it, texts) for it in found):
            raise DataError(
                f"detector {self.choice.name!r} returned what is no finding in its texts: a span outside of them, "
                "another type, a score that is none, or an entity that it was not asked for; nothing is masked"
            )
        return [it for it in found if it.score >= self.choice.min_score]

    def _is_sound(self, it: Any, texts: Sequence[str]) -> bool:
        return (
            isinstance(it, Detection)
            and all(type(place) is int for place in it[:3])
            and 0 <= it.text < len(texts)
            and 0 <= it.start < it.end <= len(texts[it.text])
            and type(it.entity) is str
            and it.entity in self.choice.entities
            and type(it.score) in (int, float)
            and math.isfinite(it.score)
            and 0 <= it.score <= 1
        )


def load_detector(choice: DetectorChoice) -> LoadedDetector:
    """Return an installed detector. The name is looked up; it is never imported as a path.

    Raises:
        ConfigError: No installed package, or more than one, offers the name; it cannot be imported; it refuses its
            options; or another version is installed than the policy says.
        DataError: It failed, or reached for a network, while it was made.
        MissingDependencyError: What it needs is not installed.
    """
    installed = entry_points(group=GROUP)
    found = installed.select(name=choice.name)
    if len(found) != 1:
        names = ", ".join(sorted(installed.names)) or "none"
        raise ConfigError(
            f"{len(found)} detectors are called {choice.name!r}; exactly one must be (installed: {names})"
        )
    (entry,) = found
    with _guarded(choice.name):
        try:
            make = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"detector {choice.name!r} is declared as {entry.value}, which cannot be imported"
            ) from error
        detector = make(tuple(choice.entities), dict(choice.options))
        version = detector.version
    if version != choice.version:
        raise ConfigError(
            f"masking.detectors.{choice.name}.version is {choice.version!r}, but {str(version)[:MAX_NAME]!r} is "
            "installed"
        )
    return LoadedDetector(choice, detector)


_FORBIDDEN = frozenset(
    {
        *("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
        *("socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"),
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    }
)
_LOOPBACK = ("127.0.0.1", "::1")
# Of each detector that works now, what it reached for; an audit hook stays for good, so there is one for all.
_reached: list[list[str]] = []
_hooked: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _reached and event in _FORBIDDEN:
        # How urllib3 asks, when it is imported, whether there is IPv6; nothing is sent.
        if event == "socket.bind" and isinstance(arguments[1], tuple) and arguments[1][0] in _LOOPBACK:
            return
        _reached[-1].append(event)
        raise PermissionError(f"a detector may not do {event}")


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Refuse what reaches for a network or a program meanwhile, even where that is caught, and whatever is raised.

    The cause is left out: its message may quote the texts.
    """
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    reached: list[str] = []
    _reached.append(reached)
    failure = ""
    try:
        yield
    except PortcullisError:
        if not reached:
            raise
    except Exception as error:  # noqa: BLE001 - whatever a detector raises refuses
        failure = type(error).__name__
    finally:
        _reached.remove(reached)
    if reached:
        raise DataError(f"detector {name!r} reached for a network or a program ({reached[0]}); nothing is masked")
    if failure:
        raise DataError(f"detector {name!r} failed with {failure}; nothing is masked")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_NAME and value.isprintable() and bool(value.strip())
