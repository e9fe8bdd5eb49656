"""What a locked process says of a model that it attacked is believed only where it can be so."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from portcullis.errors import ModelError
from portcullis.robustness.findings import believe, believe_table, to_plain
from portcullis.robustness.page import robustness_details
from portcullis.robustness.settings import ATTACKS, RobustnessSettings
from portcullis.robustness.tabular import TabularSettings, TabularThreat
from portcullis.robustness.tabular.page import tabular_details

LABELS = ("dark", "bright")
IMAGE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(1, 64, 64)
FIGURES = {
    "samples": 100,
    "classes": 2,
    "clean_accuracy": 0.9,
    "robust_accuracy": 0.5,
    "robust_accuracy_pgd": 0.6,
    "robust_accuracy_high": 0.7,
    "unbounded_success": 1.0,
    "smallest_gradient": 3.5,
    "gradient_agreement": 1.0,
    "planted_found": 1.0,
    "gradient_free": 0,
    "gradient_reach": 0.9,
    "gradient_averaged": 0,
    "batch_difference": 1e-7,
    "forward_equivalents": 12345,
    "pool": 60,
    "judged": 50,
    "stop": "certain",
    "device": "cpu",
}
PLAN = RobustnessSettings(mode="verdict")
BALL = SimpleNamespace(norm="linf", radius=0.1)
REPORT = SimpleNamespace(
    figures=FIGURES,
    attacks={"pgd": SimpleNamespace(ball=BALL, tried=90, broken=30, cost=4000)},
    curve={0.0: 1.0, 0.1: 0.6},
    examples=(
        SimpleNamespace(attack="pgd", clean=IMAGE, adversarial=IMAGE[:, ::-1], label="dark", answer="bright"),
        SimpleNamespace(attack="pgd", clean=IMAGE[0, 0], adversarial=IMAGE[0, 1], label="dark", answer="bright"),
    ),
)


def answer() -> dict:
    """Return what the process would answer, once it went through JSON."""
    return json.loads(json.dumps(to_plain(REPORT)))


def test_what_was_found_comes_out_as_it_was_but_for_pictures() -> None:
    found = believe(answer(), samples=100, labels=LABELS, settings=PLAN)
    assert (found.figures, found.curve) == (FIGURES, REPORT.curve)
    assert (found.attacks["pgd"].broken, found.attacks["pgd"].ball.norm) == (30, "linf")
    (picture,) = found.examples  # a row that is no image is of no picture
    assert picture.clean.shape == (1, 32, 32)
    assert np.allclose(picture.clean, IMAGE[:, ::2, ::2], atol=1e-4)


@pytest.mark.parametrize("mode", ["full", "verdict"])
def test_the_gates_page_shows_it(mode: str) -> None:
    found = believe(answer(), samples=100, labels=LABELS, settings=PLAN)
    shown = "".join(robustness_details(found, RobustnessSettings(mode=mode)))
    assert "linf 0.1" in shown and "12,345" in shown and "dark becomes bright" in shown


FORGED = {
    "no object": lambda it: [it],
    "a part missing": lambda it: {name: it[name] for name in ("figures", "attacks", "curve")},
    "a part more": lambda it: it | {"verdict": "PASSED"},
    "no figures": lambda it: it | {"figures": {}},
    "figures that are a list": lambda it: it | {"figures": list(FIGURES)},
    **{
        f"{name} is {value!r}": lambda it, name=name, value=value: it | {"figures": it["figures"] | {name: value}}
        for name, value in [
            ("samples", 101),
            ("samples", 100.0),
            ("classes", 3),
            ("clean_accuracy", math.nan),
            ("clean_accuracy", math.inf),
            ("clean_accuracy", 1.01),
            ("clean_accuracy", 0.4),
            ("clean_accuracy", "0.9"),
            ("clean_accuracy", True),
            ("robust_accuracy", -0.1),
            ("robust_accuracy", None),
            ("robust_accuracy", 0.65),
            ("robust_accuracy", [0.5]),
            ("robust_accuracy_pgd", 0.95),
            ("robust_accuracy_high", 0.45),
            ("pool", 101),
            ("judged", 61),
            ("judged", 10**400),
            ("gradient_free", -1),
            ("gradient_free", 2),
            ("gradient_averaged", -1),
            ("gradient_averaged", 2),
            ("gradient_reach", 0.24),
            ("gradient_reach", -1),
            ("gradient_reach", math.inf),
            ("gradient_reach", math.nan),
            ("forward_equivalents", 0.5),
            ("smallest_gradient", math.nan),
            ("batch_difference", -1e-9),
            ("clean_accuracy", 0.905),
            ("robust_accuracy", 0.505),
            ("robust_accuracy_high", 0.705),
            ("robust_accuracy_pgd", 0.59),
            ("robust_accuracy_cw", 0.6),
            ("unbounded_success", 0.9),
            ("planted_found", 0.8),
            ("gradient_agreement", 0.7),
            ("batch_difference", 0.01),
            ("smallest_gradient", 0),
            ("rows", 100),
            ("stop", "whenever"),
            ("device", "cpu\x1b[31m"),
            ("Robust", 1),
            ("<b>", 1),
        ]
    },
    "too many figures": lambda it: it | {"figures": it["figures"] | {f"f{place}": 1 for place in range(64)}},
    "attacks that are no list": lambda it: it | {"attacks": {}},
    "an attack that is too short": lambda it: it | {"attacks": [["pgd", "linf", 0.1, 90, 30]]},
    "no attack": lambda it: it | {"attacks": []},
    "an attack that is not of the plan": lambda it: (
        it | {"attacks": [*it["attacks"], ["art_pgd", "linf", 0.1, 9, 3, 1]]}
    ),
    "an attack within another radius": lambda it: it | {"attacks": [["pgd", "linf", 0.01, 90, 30, 1]]},
    "an attack within another ball": lambda it: it | {"attacks": [["pgd", "l2", 0.4, 90, 30, 1]]},
    "an attack that broke fewer than its figure says": lambda it: it | {"attacks": [["pgd", "linf", 0.1, 90, 29, 1]]},
    "an attack on what was wrong already": lambda it: it | {"attacks": [["pgd", "linf", 0.1, 91, 30, 1]]},
    "an attack of another norm": lambda it: it | {"attacks": [["pgd", "l0", 0.1, 90, 30, 1]]},
    "an attack that broke more than it tried": lambda it: it | {"attacks": [["pgd", "linf", 0.1, 90, 91, 1]]},
    "an attack on more than all": lambda it: it | {"attacks": [["pgd", "linf", 0.1, 101, 1, 1]]},
    "a name of markup": lambda it: it | {"attacks": [["<script>", "linf", 0.1, 90, 30, 1]]},
    "a curve above one": lambda it: it | {"curve": [[0.1, 1.5]]},
    "a radius of text": lambda it: it | {"curve": [["0.1", 0.5]]},
    "a picture of another class": lambda it: it | {"examples": [["pgd", *_pixels(), "dark", "<b>"]]},
    "a picture too large": lambda it: it | {"examples": [["pgd", [[[0.0] * 33]], [[[0.0] * 33]], "dark", "dark"]]},
    "a picture of NaN": lambda it: it | {"examples": [["pgd", [[[math.nan]]], [[[0.0]]], "dark", "dark"]]},
    "a ragged picture": lambda it: it | {"examples": [["pgd", [[[0.0], [0.0, 0.0]]], [[[0.0]]], "dark", "dark"]]},
    "too many pictures": lambda it: it | {"examples": [["pgd", *_pixels(), "dark", "dark"]] * 65},
}


def _pixels() -> list:
    return [[[[0.0]]], [[[1.0]]]]


@pytest.mark.parametrize("name", FORGED)
def test_what_cannot_be_so_is_not_believed(name: str) -> None:
    forged = FORGED[name](copy.deepcopy(answer()))
    with pytest.raises(ModelError, match="gave no sound answer"):
        believe(forged, samples=100, labels=LABELS, settings=PLAN)


def full_answer() -> dict:
    """Return what a measurement of every attack, and of foolbox's, would answer."""
    found = answer()
    for name in ("pool", "judged", "stop", "robust_accuracy_high"):
        del found["figures"][name]
    norms = {**ATTACKS, "foolbox_pgd": "linf"}
    found["attacks"] = [[name, norm, 0.1 if norm == "linf" else 0.4, 90, 30, 1] for name, norm in norms.items()]
    found["figures"] |= {f"robust_accuracy_{name}": 0.6 for name in norms}
    return found


def test_a_number_is_no_answer_to_a_verdict_nor_an_interval_to_a_full_measurement() -> None:
    for found, mode in ((answer(), "full"), (full_answer(), "verdict")):
        with pytest.raises(ModelError, match="another question than was asked"):
            believe(found, samples=100, labels=LABELS, settings=RobustnessSettings(mode=mode, libraries="foolbox"))


@pytest.mark.parametrize("left_out", ["", *ATTACKS, "foolbox_pgd"])
def test_in_full_no_attack_may_be_left_out(left_out: str) -> None:
    plan, found = RobustnessSettings(libraries="foolbox"), full_answer()
    found["attacks"] = [entry for entry in found["attacks"] if entry[0] != left_out]
    found["figures"].pop(f"robust_accuracy_{left_out}", None)
    if not left_out:
        assert len(believe(found, samples=100, labels=LABELS, settings=plan).attacks) == 7
        return
    with pytest.raises(ModelError, match="attacks that were left out"):
        believe(found, samples=100, labels=LABELS, settings=plan)


THREAT = TabularThreat(
    epsilon=np.array([0.5, 2.0, 0.0, 0.0]),
    low=np.zeros(4),
    high=np.array([1.0, 9.0, 1.0, 1.0]),
    whole=np.array([False, True, False, False]),
    direction=np.array([0, 1, 0, 0]),
    groups=((2, 3),),
    swaps=1,
)
TABLE = {
    "samples": 100,
    "classes": 2,
    "features": 2,
    "groups": 1,
    "clean_accuracy": 0.9,
    "robust_accuracy": 0.57,
    "planted_found": 1.0,
    "noise_found": 1,
    "queries": 40_000,
}


def believed(document: object) -> object:
    return believe_table(document, samples=100, classes=2, threat=THREAT, settings=TabularSettings(queries=500))


def test_what_a_search_found_comes_out_as_it_was() -> None:
    assert believed(json.loads(json.dumps(TABLE))) == TABLE
    shown = "".join(tabular_details(THREAT, ("age", "<pay>", "red", "blue"), TABLE))
    assert "57 of 100 rows" in shown and "red, blue" in shown and "&lt;pay&gt;" in shown and "<td>up</td>" in shown


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param([TABLE], id="no object"),
        pytest.param({}, id="nothing"),
        pytest.param({"figures": TABLE}, id="another form"),
        pytest.param(TABLE | {"verdict": "PASSED"}, id="a figure more"),
        pytest.param({name: TABLE[name] for name in TABLE if name != "planted_found"}, id="a check fewer"),
        *(
            pytest.param(TABLE | {name: value}, id=f"{name} is {value!r}")
            for name, value in [
                ("samples", 101),
                ("samples", 100.0),
                ("samples", None),
                ("classes", 3),
                ("classes", True),
                ("features", 1),
                ("groups", 0),
                ("clean_accuracy", math.nan),
                ("clean_accuracy", math.inf),
                ("clean_accuracy", 1.01),
                ("clean_accuracy", 0.571),
                ("clean_accuracy", 0.5),
                ("clean_accuracy", "0.9"),
                ("robust_accuracy", 0.9),
                ("robust_accuracy", 0.5701),
                ("robust_accuracy", -0.01),
                ("robust_accuracy", True),
                ("robust_accuracy", [0.5]),
                ("planted_found", 0.89),
                ("planted_found", math.nan),
                ("noise_found", 34),
                ("noise_found", -1),
                ("noise_found", 0.5),
                ("queries", 199),
                ("queries", 10**6),
                ("queries", 10**400),
            ]
        ),
    ],
)
def test_what_no_search_can_have_found_is_not_believed(forged: object) -> None:
    with pytest.raises(ModelError, match="gave no sound answer"):
        believed(forged)
