"""The robustness gate's `evaluate`: attack a model on the attested test rows and sign the verdict."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import Step, begin
from portcullis.files import write_bytes
from portcullis.models.store import load_model_files, read_model_files
from portcullis.report import gate_page
from portcullis.robustness.settings import RobustnessSettings

if TYPE_CHECKING:
    from portcullis.robustness.verdict import Question


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
        MissingDependencyError: PyTorch or torchattacks is not installed.
    """
    model_files, test_files = read_model_files(model), read_input(step, "test", test)
    begun = begin(
        step,
        stage="robustness_gate",
        inputs={"model": content_digest(model_files), "test": content_digest(test_files)},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    from portcullis.robustness.evaluate import evaluate
    from portcullis.robustness.page import robustness_details

    figures: dict[str, Figure] = {}
    details: list[str] = []
    inconclusive = ""
    try:
        loaded, rows = load_model_files(model_files), parse_dataset(test_files)
        loaded.spec.require_fit(rows.spec)
        features, labels = features_and_labels(rows)
        question = _question(begun) if settings.mode == "verdict" else None
        measured = evaluate(loaded, features, labels, settings, question)
        figures = dict(measured.figures)
        details = robustness_details(measured, settings)
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, details).encode())
    return statement


def _question(begun: Step) -> "Question":
    """Return what the policy asks; the key of the order is derived from this gate's own."""
    from portcullis.robustness.verdict import Question

    check = begun.rule.checks.get("robust_accuracy")
    if check is None or check.low is None or (check.high is not None and check.high < 1):
        raise InconclusiveError("mode=verdict needs a policy that bounds robust_accuracy from below, and only there")
    return Question(
        threshold=check.low,
        key=begun.signer.derive(b"robustness-order"),
        subjects=(begun.inputs["model"], begun.inputs["test"], begun.store.policy.digest),
    )
