"""The robustness gate's `evaluate`: attack a model on the attested test rows and sign the verdict."""

import dataclasses
from pathlib import Path

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.models.store import load_model_files, read_model_files
from portcullis.report import gate_page
from portcullis.robustness.settings import RobustnessSettings


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

    figures: dict[str, Figure] = {}
    inconclusive = ""
    try:
        loaded, rows = load_model_files(model_files), parse_dataset(test_files)
        loaded.spec.require_fit(rows.spec)
        features, labels = features_and_labels(rows)
        figures = dict(evaluate(loaded, features, labels, settings).figures)
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule).encode())
    return statement
