"""What a measurement found, as it leaves the locked process in which the model was attacked, and why to believe it.

The process answers with JSON, and a hostile model may have written any of it. So it is believed only where every value
is of its type, finite and possible: counts that fit one another and the rows that were handed over, shares in 0..1.
What a hostile architecture could still say is a possible lie; it could say that to anyone who runs it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ModelError
from portcullis.evidence.statement import Figure
from portcullis.robustness.report import (
    MAX_BATCH_DIFFERENCE,
    MIN_AGREEMENT,
    MIN_PLANTED_FOUND,
    MIN_REACH,
    MIN_UNBOUNDED_SUCCESS,
    TOLERATED_SHARE,
    Ball,
    Example,
    RobustnessReport,
    Tried,
)
from portcullis.robustness.settings import ATTACKS, RobustnessSettings
from portcullis.robustness.tabular.judge import MIN_PLANTED_FOUND as MIN_PLANTED_FOUND_IN_TABLES
from portcullis.robustness.tabular.judge import TabularSettings
from portcullis.robustness.tabular.threat import TabularThreat

LARGEST_SIDE = 32
MAX_ENTRIES = 64
ROUNDING = 1e-6
EXTRA_QUERIES = 200  # about each row, besides the two searches
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_SHARES = re.compile(r"(clean|robust)_accuracy(_[a-z0-9_]+)?|unbounded_success|gradient_agreement|planted_found")
_COUNTS = ("samples", "classes", "pool", "judged", "gradient_free", "gradient_averaged", "forward_equivalents")
_WORDS = {"device": ("cpu", "cuda"), "stop": ("certain", "sequential", "exhausted")}
_ROBUST = "robust_accuracy_"
_INTERVAL = {"robust_accuracy_high", "pool", "judged", "stop"}
_SOUNDNESS = {
    *("batch_difference", "smallest_gradient", "gradient_agreement", "unbounded_success", "planted_found"),
    *("gradient_free", "gradient_reach", "gradient_averaged"),
}


def to_plain(report: RobustnessReport) -> dict[str, Any]:
    """Return a report as JSON has it, with images of at most 32 by 32 pixels.

    Rows that are no images may be of persons, and are left out.
    """
    return {
        "figures": dict(report.figures),
        "attacks": [
            [name, it.ball.norm, it.ball.radius, it.tried, it.broken, it.cost] for name, it in report.attacks.items()
        ],
        "curve": [[radius, share] for radius, share in report.curve.items()],
        "examples": [
            [it.attack, _small(it.clean), _small(it.adversarial), it.label, it.answer]
            for it in report.examples
            if it.clean.ndim == 3
        ],
    }


def _small(image: NDArray[np.float32]) -> list[Any]:
    step = math.ceil(max(image.shape[1:]) / LARGEST_SIDE)
    found: list[Any] = np.round(image[:3, ::step, ::step].astype(np.float64), 4).tolist()
    return found


def believe(
    document: object, *, samples: int, labels: tuple[str, ...], settings: RobustnessSettings
) -> RobustnessReport:
    """Return what a locked process answered, if it can be so.

    Args:
        document: The answer.
        samples: How many rows were handed over.
        labels: The model's.
        settings: The plan of attack.

    Raises:
        ModelError: It cannot.
    """
    try:
        report = _parsed(document, samples, labels)
        _require_planned(report, settings)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"the attacked model's process gave no sound answer: {error}") from error
    return report


def believe_table(
    document: object, *, samples: int, classes: int, threat: TabularThreat, settings: TabularSettings
) -> Mapping[str, Figure]:
    """Return the figures of a table's judgement that a locked process answered, if they can be so.

    Args:
        document: The answer: the figures of `portcullis.robustness.tabular.TabularReport`.
        samples: How many rows were handed over.
        classes: The model's.
        threat: What may change.
        settings: The plan.

    Raises:
        ModelError: They cannot.
    """
    try:
        return _parsed_table(document, samples, classes, threat, settings)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"the attacked model's process gave no sound answer: {error}") from error


def _parsed_table(
    document: Any, samples: int, classes: int, threat: TabularThreat, settings: TabularSettings
) -> Mapping[str, Figure]:
    shares, counts = ("clean_accuracy", "robust_accuracy", "planted_found"), ("noise_found", "queries")
    known = {"samples": samples, "classes": classes, **threat.counts}
    names = {*shares, *counts, *known}
    _require(isinstance(document, dict) and document.keys() == names, "its figures")
    for name, value in known.items():
        _require(type(document[name]) is int and document[name] == value, f"how many {name}")
    clean, robust, planted = (float(_share(document[name])) for name in shares)
    noise, queries = (_count(document[name]) for name in counts)
    hits, left = clean * samples, robust * samples
    _require(_is_whole(hits) and _is_whole(left), "a share that is of no number of rows")
    _require(round(left) + noise <= round(hits), "a worst case above another case")
    _require(planted >= MIN_PLANTED_FOUND_IN_TABLES, "a search that misses what was planted")
    # Each row is asked about twice before the search, and while it searches, and for what was planted and noise.
    _require(2 * samples <= queries <= (2 * settings.queries + EXTRA_QUERIES) * samples, "how often it was asked")
    return {name: document[name] for name in sorted(names)}


def _parsed(document: Any, samples: int, labels: tuple[str, ...]) -> RobustnessReport:
    _require(isinstance(document, dict) and set(document) == {"figures", "attacks", "curve", "examples"}, "its parts")
    found = document["figures"]
    _require(isinstance(found, dict) and len(found) <= MAX_ENTRIES, "its figures")
    figures = {_name(name): _figure(name, value) for name, value in found.items()}
    _require(figures["samples"] == samples and figures["classes"] == len(labels), "how many samples and classes")
    attacks = {
        _name(name): Tried(_ball(norm, radius), _count(tried), _count(broken), _count(cost))
        for name, norm, radius, tried, broken, cost in _entries(document["attacks"])
    }
    curve = {_number(radius): _share(share) for radius, share in _entries(document["curve"])}
    # Where enough is broken to fail, however soundly, an interval is all that there is.
    rushed = not curve and figures.get("stop") == "certain" and figures["robust_accuracy"] == 0
    _require({"device", "forward_equivalents"} <= figures.keys() and (rushed or figures.keys() >= _SOUNDNESS), "checks")
    _require(figures.keys() >= _INTERVAL or not _INTERVAL & figures.keys(), "an interval")
    examples = tuple(
        Example(_name(attack), _image(clean), _image(moved), _one_of(label, labels), _one_of(answer, labels))
        for attack, clean, moved, label, answer in _entries(document["examples"])
    )
    _require(all(it.broken <= it.tried <= samples for it in attacks.values()), "how many samples were broken")
    worst, clean = float(figures["robust_accuracy"]), float(figures["clean_accuracy"])
    others = [float(value) for name, value in figures.items() if name.startswith("robust_accuracy_")]
    _require(all(worst <= it <= clean for it in others) and worst <= clean, "a worst case above another case")
    known = {*_COUNTS, *_WORDS, *_SOUNDNESS, *_INTERVAL, "clean_accuracy", "robust_accuracy"}
    _require(all(name in known or name.startswith(_ROBUST) for name in figures), "a figure that is not known")
    _require(clean > 0, "a model that is right nowhere")
    shares = [float(value) for name, value in figures.items() if name.startswith(("clean_accuracy", "robust_accuracy"))]
    _require(all(_is_whole(it * samples) for it in shares), "a share that is of no number of rows")
    if not rushed:
        _require(_is_sound(figures), "a measurement that is not sound")
        hits, found = round(clean * samples), [int(figures[it]) for it in ("gradient_free", "gradient_averaged")]
        _require(max(found) <= max(1, TOLERATED_SHARE * hits), "too many that are broken after all attacks")
        _require(round(worst * samples) + sum(found) <= hits, "a row that is robust and broken")
    _require(_int(figures, "judged", 0) <= _int(figures, "pool", samples) <= samples, "how many samples were judged")
    return RobustnessReport(figures, attacks, curve, examples)


def _is_sound(figures: Mapping[str, Figure]) -> bool:
    found = {name: float(figures[name]) for name in _SOUNDNESS}
    return (
        found["unbounded_success"] >= MIN_UNBOUNDED_SUCCESS
        and found["planted_found"] >= MIN_PLANTED_FOUND
        and found["gradient_agreement"] >= MIN_AGREEMENT
        and found["gradient_reach"] >= MIN_REACH
        and found["batch_difference"] <= MAX_BATCH_DIFFERENCE
        and found["smallest_gradient"] > 0
    )


def _require_planned(report: RobustnessReport, settings: RobustnessSettings) -> None:
    """Refuse attacks that are not of the plan, or lack; and what they broke, where a figure says otherwise."""
    _require(("stop" in report.figures) is (settings.mode == "verdict"), "another question than was asked")
    balls = {"linf": settings.epsilon, "l2": settings.l2_budget}
    foreign = tuple(f"{library}_" for library in settings.named_libraries)
    hits = round(float(report.figures["clean_accuracy"]) * int(report.figures["samples"]))
    for name, it in report.attacks.items():
        _require(name in ATTACKS or name.startswith(foreign), "an attack that is not of the plan")
        _require(name not in ATTACKS or it.ball.norm == ATTACKS[name], "an attack of another norm")
        _require(it.ball.radius == balls[it.ball.norm] and it.tried <= hits, "an attack within another radius")
    stated = {name.removeprefix(_ROBUST) for name in report.figures if name.startswith(_ROBUST)} - {"high"}
    whole = {name for name, it in report.attacks.items() if it.tried == hits}
    _require(stated == whole, "figures of other attacks than ran")
    for name in stated:
        left = round(float(report.figures[_ROBUST + name]) * int(report.figures["samples"]))
        _require(left == hits - report.attacks[name].broken, "another number of rows than an attack left")
    if settings.mode == "full":
        libraries = {
            library for library in settings.named_libraries for name in whole if name.startswith(f"{library}_")
        }
        _require(whole >= ATTACKS.keys() and libraries == set(settings.named_libraries), "attacks that were left out")


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < ROUNDING


def _figure(name: str, value: Any) -> Figure:
    if name in _WORDS:
        return _one_of(value, _WORDS[name])
    if name in _COUNTS:
        return _count(value)
    return _share(value) if _SHARES.fullmatch(name) else _number(value)


def _int(figures: Mapping[str, Figure], name: str, default: int) -> int:
    return int(figures.get(name, default))


def _require(held: bool, what: str) -> None:  # noqa: FBT001 - a condition
    if not held:
        raise ValueError(what)


def _entries(value: Any) -> list[Any]:
    _require(isinstance(value, list) and len(value) <= MAX_ENTRIES, "a list")
    found: list[Any] = value
    return found


def _name(value: Any) -> str:
    _require(isinstance(value, str) and _NAME.fullmatch(value) is not None, "a name")
    return str(value)


def _one_of(value: Any, choices: tuple[str, ...]) -> str:
    _require(isinstance(value, str) and value in choices, "a word")
    return str(value)


def _ball(norm: Any, radius: Any) -> Ball:
    _require(norm in ("linf", "l2"), "a norm")
    return Ball(norm, _number(radius))


def _number(value: Any) -> int | float:
    _require(type(value) in (int, float) and 0 <= value <= 1e300, "a number")
    found: int | float = value
    return found


def _count(value: Any) -> int:
    _require(type(value) is int and 0 <= value < 1 << 53, "a count")
    return int(value)


def _share(value: Any) -> int | float:
    _require(_number(value) <= 1, "a share")
    found: int | float = value
    return found


def _image(value: Any) -> NDArray[np.float32]:
    image = np.array(value, dtype=np.float32)
    sized = image.ndim == 3 and 1 <= len(image) <= 3 and all(1 <= side <= LARGEST_SIDE for side in image.shape[1:])
    _require(sized and bool(((image >= 0) & (image <= 1)).all()), "an image")
    return image
