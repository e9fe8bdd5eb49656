"""The robustness gate's `evaluate`: attack a model on the attested test rows and sign the verdict.

The model is opened and attacked in a locked child process, without keys, environment, network or files. This process
has the keys and never opens the model; it signs what it believes of the child's answer, after the child is gone.
"""

import dataclasses
import hmac
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import DatasetSpec, features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import Step, begin
from portcullis.files import memory_file, write_bytes
from portcullis.isolation import run_isolated
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_model_files
from portcullis.report import gate_page
from portcullis.robustness.findings import believe, believe_table
from portcullis.robustness.page import robustness_details
from portcullis.robustness.report import RobustnessReport
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import TabularThreat, read_threat
from portcullis.robustness.tabular.page import tabular_details
from portcullis.robustness.verdict import Question

SECONDS = 5 * 3600.0  # of the six hours that its pod may live
MEMORY = 8 << 30


def evaluate_robustness(
    *, step: str, model: Path, test: Path, evidence: Path, settings: RobustnessSettings, report: Path, bundle: Path
) -> Statement:
    """Attack a model and state what it withstood.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory.
        test: The attested test rows.
        evidence: The bundle of evidence of both.
        settings: The plan of attack.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model and these very rows.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        ConfigError: The settings' threat is malformed, or names what these rows have not.
        MissingDependencyError: PyTorch or torchattacks is not installed.
        UsageError: This system cannot lock a process in.
    """
    model_files, test_files = read_model_files(model), read_input(step, "test", test)
    begun = begin(
        step,
        stage="robustness_gate",
        inputs={"model": content_digest(model_files), "test": content_digest(test_files)},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    figures: dict[str, Figure] = {}
    details: list[str] = []
    inconclusive = ""
    try:
        spec, rows = ModelSpec.from_json(model_files[SPEC_FILE]), parse_dataset(test_files)
        spec.require_fit(rows.spec)
        features, labels = features_and_labels(rows)
        if settings.threat:
            threat = read_threat(settings.threat, rows.spec)
            figures = dict(_searched(model_files, spec, features, labels, settings, threat, rows.spec))
            details = tabular_details(threat, rows.spec.features.columns, figures)
        else:
            question = _question(begun) if settings.mode == "verdict" else None
            measured = attacked(model_files, spec, features, labels, settings, question)
            figures = dict(measured.figures)
            details = robustness_details(measured, settings)
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, details).encode())
    return statement


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


def _question(begun: Step) -> Question:
    """Return what the policy asks; the key of the order is derived from this gate's own, and orders these rows only."""
    check = begun.rule.checks.get("robust_accuracy")
    if check is None or check.low is None or (check.high is not None and check.high < 1):
        raise InconclusiveError("mode=verdict needs a policy that bounds robust_accuracy from below, and only there")
    subjects = (begun.inputs["model"], begun.inputs["test"], begun.store.policy.digest)
    key = hmac.digest(begun.signer.derive(b"robustness-order"), "|".join(subjects).encode(), "sha256")
    return Question(check.low, key, subjects)
