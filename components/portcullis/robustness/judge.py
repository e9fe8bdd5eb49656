"""The gate's measurement without a pipeline, for a notebook, a test or CI: nothing is signed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import features_and_labels, read_dataset
from portcullis.errors import ModelError, UsageError
from portcullis.models.store import LoadedModel, load_model
from portcullis.report import page, paragraph, section, table
from portcullis.robustness.evaluate import RobustnessReport, evaluate
from portcullis.robustness.page import robustness_details
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import TabularReport, TabularSettings, judge_black_box, parse_threat
from portcullis.robustness.tabular.search import Classifier
from portcullis.strict_yaml import load_yaml

MARGIN = 10.0


@dataclass(frozen=True)
class Judged:
    """A measurement, and its page as HTML."""

    report: RobustnessReport | TabularReport
    page: str

    @property
    def robust_accuracy(self) -> float:
        """Share of rows, in 0..1, that are classified correctly and withstand every attack."""
        return float(self.report.figures["robust_accuracy"])


def judge_model(model: Path, data: Path, settings: RobustnessSettings | None = None) -> Judged:
    """Attack a model on a data set, both from disk.

    Args:
        model: Directory that `portcullis.models.store.save_model` wrote.
        data: Directory that `portcullis.dataset.write_dataset` wrote, of rows that the model was not trained on.
        settings: The plan, in mode `full`; the defaults, which suit digits, when None.

    Raises:
        UsageError: `settings` are of another mode, which needs a policy and a gate's key.
        ModelError: The model cannot be loaded, or does not fit the data set.
        DataError: The data set cannot be read.
        InconclusiveError: Nothing can be judged, as `portcullis.robustness.evaluate.evaluate` says.
    """
    settings = settings or RobustnessSettings()
    if settings.mode != "full":
        raise UsageError("without a policy there is no bound to decide by; use mode=full")
    loaded, rows = load_model(model), read_dataset(data)
    loaded.spec.require_fit(rows.spec)
    report = evaluate(loaded, *features_and_labels(rows), settings)
    shown = page(
        "Robustness",
        [
            section("Figures"),
            table(("figure", "measured"), report.figures.items()),
            *robustness_details(report, settings),
        ],
    )
    return Judged(report, shown)


def judge_table(model: Path, data: Path, threat: bytes, settings: TabularSettings | None = None) -> Judged:
    """Attack a model on a table, both from disk, as a black box that answers with probabilities.

    Args:
        model: As of `judge_model`.
        data: As of `judge_model`.
        threat: YAML that says which features may change, and how far, as `portcullis.robustness.tabular.parse_threat`
            reads it. Features are in the data set's own units.
        settings: The plan; the defaults when None.

    Raises:
        ConfigError: The threat is malformed, or names what is not in the data set.
        ModelError: As `judge_model`.
        DataError: As `judge_model`, or the threat is no YAML.
        InconclusiveError: As `portcullis.robustness.tabular.judge_black_box`.
    """
    loaded, rows = load_model(model), read_dataset(data)
    loaded.spec.require_fit(rows.spec)
    allowed = parse_threat(load_yaml(threat), rows.spec)
    features, labels = features_and_labels(rows)
    report = judge_black_box(_probabilities(loaded, features), features, labels, allowed, settings)
    note = "PASSED means that this search found no more; it sees the model's probabilities only."
    content = [section("Figures"), table(("figure", "measured"), report.figures.items()), paragraph(note, kind="dim")]
    return Judged(report, page("Robustness", content))


def _probabilities(model: LoadedModel, features: NDArray[np.float32]) -> Classifier:
    """Return the model as a function to probabilities, of logits scaled so that few of them round to 0 or 1."""
    ordered = np.sort(model.predict_logits(features).astype(np.float64), axis=1)
    unit = float(np.median(ordered[:, -1] - ordered[:, -2]))
    if not unit > 0:
        raise ModelError("the model tells no classes apart on these rows")

    def predict(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = model.predict_logits(rows).astype(np.float64) * (MARGIN / unit)
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        result: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
        return result

    return predict
