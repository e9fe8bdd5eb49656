"""Have a model opened and attacked in a locked child process, and believe of its answer what can be so.

The child, `portcullis.robustness.locked`, has no keys, environment, network or files; here the model is never opened.
"""

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import Dataset, DatasetSpec, features_and_labels
from portcullis.evidence.statement import Figure
from portcullis.files import memory_file
from portcullis.isolation import run_isolated
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec
from portcullis.robustness.findings import believe, believe_table
from portcullis.robustness.page import robustness_details
from portcullis.robustness.report import RobustnessReport
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import TabularThreat, read_threat
from portcullis.robustness.tabular.page import tabular_details
from portcullis.robustness.verdict import Question

SECONDS = 5 * 3600.0  # of the six hours that its pod may live
MEMORY = 8 << 30


@dataclass(frozen=True)
class Measured:
    """What a model withstands.

    Attributes:
        figures: The measurement's numbers; `robust_accuracy` is among them.
        details: HTML about them, but for the figures themselves.
        report: Beside the figures, curve and examples; None where the settings have a threat.
    """

    figures: Mapping[str, Figure]
    details: list[str]
    report: RobustnessReport | None = None


def measured(
    model_files: Mapping[str, bytes], rows: Dataset, settings: RobustnessSettings, question: Question | None = None
) -> Measured:
    """Attack a model on rows, by what the settings say of them.

    Args:
        model_files: The two files of the model.
        rows: The test rows.
        settings: The plan.
        question: What `verdict` mode must decide.

    Raises:
        InconclusiveError: Nothing could be judged.
        ConfigError: The settings' threat is malformed, or names what these rows have not.
        DataError: The rows hold what is no feature or label of theirs.
        ModelError: The model cannot be loaded, does not fit the rows, or its process ended otherwise than by an answer
            that can be so.
        MissingDependencyError: PyTorch or torchattacks is not installed.
        UsageError: This system cannot lock a process in.
    """
    spec = ModelSpec.from_json(model_files[SPEC_FILE])
    spec.require_fit(rows.spec)
    features, labels = features_and_labels(rows)
    if settings.threat:
        threat = read_threat(settings.threat, rows.spec)
        figures = _searched(model_files, spec, features, labels, settings, threat, rows.spec)
        return Measured(figures, tabular_details(threat, rows.spec.features.columns, figures))
    report = attacked(model_files, spec, features, labels, settings, question)
    return Measured(report.figures, robustness_details(report, settings), report)


def attacked(
    model_files: Mapping[str, bytes],
    spec: ModelSpec,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
    question: Question | None,
) -> RobustnessReport:
    """Have the locked process attack a model.

    Args:
        model_files: The two files of the model.
        spec: What the first of them says.
        features: Raw features (N, D) of the test rows.
        labels: Their class indices (N,).
        settings: The plan.
        question: What `verdict` mode must decide.

    Raises:
        InconclusiveError: Nothing could be judged.
        ModelError: The model cannot be loaded, or its process ended otherwise than by an answer that can be so.
        MissingDependencyError: PyTorch or torchattacks is not installed.
        UsageError: This system cannot lock a process in.
    """
    asked = question and {
        "threshold": question.threshold,
        "key": question.key.hex(),
        "subjects": list(question.subjects),
    }
    answer = _locked("measure", "prepare", model_files, features, labels, settings, question=asked)
    return believe(answer, samples=len(features), labels=spec.labels, settings=settings)


def _searched(
    model_files: Mapping[str, bytes],
    spec: ModelSpec,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
    threat: TabularThreat,
    rows: DatasetSpec,
) -> Mapping[str, Figure]:
    """Have the locked process attack a model of a table through its probabilities."""
    answer = _locked("measure_table", "prepare_table", model_files, features, labels, settings, rows=rows.to_dict())
    classes = len(spec.labels)
    return believe_table(answer, samples=len(features), classes=classes, threat=threat, settings=settings.tabular)


def _locked(
    function: str,
    prepare: str,
    model_files: Mapping[str, bytes],
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
    **arguments: object,
) -> Any:
    """Return what a function of `portcullis.robustness.locked` answers from its locked process."""
    handed = (
        model_files[SPEC_FILE],
        model_files[WEIGHTS_FILE],
        np.ascontiguousarray(features, dtype="<f4").tobytes(),
        np.ascontiguousarray(labels, dtype="<i8").tobytes(),
    )
    with ExitStack() as stack:
        return run_isolated(
            f"portcullis.robustness.locked:{function}",
            [stack.enter_context(memory_file(data)) for data in handed],
            {"shape": list(features.shape), "settings": dataclasses.asdict(settings), **arguments},
            seconds=SECONDS,
            memory=MEMORY,
            prepare=f"portcullis.robustness.locked:{prepare}",
        )
