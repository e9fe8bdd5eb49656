"""The gate's measurement without a pipeline, for a notebook, a test or CI: nothing is signed."""

from dataclasses import dataclass
from pathlib import Path

from portcullis.dataset import features_and_labels, read_dataset
from portcullis.errors import UsageError
from portcullis.models.store import load_model
from portcullis.report import page, section, table
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.page import robustness_details
from portcullis.robustness.report import RobustnessReport
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import TabularReport, TabularSettings, judge_black_box, parse_threat
from portcullis.robustness.tabular.page import tabular_details
from portcullis.robustness.tabular.probabilities import probabilities_of
from portcullis.strict_yaml import load_yaml


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
    report = judge_black_box(probabilities_of(loaded, features), features, labels, allowed, settings)
    content = [section("Figures"), table(("figure", "measured"), report.figures.items())]
    content += tabular_details(allowed, rows.spec.features.columns, report.figures)
    return Judged(report, page("Robustness", content))
