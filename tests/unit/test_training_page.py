"""What is shown of a training: its figures, its curves, and that it collapsed."""

from types import SimpleNamespace

import pytest

from portcullis.digest import canonical_json
from portcullis.errors import DataError
from portcullis.training.page import training_section

CHECKS = [{"epoch": 2 * it, "loss": 1.5, "accuracy": 0.9, "robust_accuracy": it / 10} for it in (1, 2, 3)]
FIGURES = {"loss": 1.5, "stop": "finished", "best_epoch": 6, "history": canonical_json(CHECKS).decode()}


def shown(**figures: object) -> str:
    return "".join(training_section(SimpleNamespace(step="train", figures={**FIGURES, **figures})))


def test_shows_the_curves_and_every_check():
    found = shown()
    assert found.count("<path") == 3 + 2 + 1
    assert "robust accuracy" in found and "<td>0.3</td>" in found
    assert "collapsed" not in found and "history" not in found


def test_says_that_training_collapsed():
    assert "Training collapsed" in shown(stop="collapsed")


def test_a_training_that_held_nothing_out_has_no_curves():
    found = "".join(training_section(SimpleNamespace(step="train", figures={"loss": 1.5, "stop": "finished"})))
    assert "<svg" not in found and "finished" in found


@pytest.mark.parametrize(
    "figures",
    [
        {"history": "[1]"},
        {"history": "{}"},
        {"history": "not JSON"},
        {"history": canonical_json([{**CHECKS[0], "loss": "<b>"}]).decode()},
        {"history": canonical_json([{"epoch": 1}]).decode()},
        {"history": canonical_json([{**CHECKS[0], "more": 1}]).decode()},
        {"best_epoch": "six"},
    ],
)
def test_refuses_a_history_that_is_none(figures):
    with pytest.raises(DataError):
        shown(**figures)
