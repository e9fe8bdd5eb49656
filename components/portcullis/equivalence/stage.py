"""The equivalence gate's `evaluate`: compare what ships with what was judged, and sign the verdict."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import DatasetSpec, features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.equivalence.compare import compare
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.models.store import LoadedModel, ModelSpec, load_model_files, read_model_files
from portcullis.report import gate_page

CHUNK = 1024


def evaluate_equivalence(
    *, step: str, model: Path, judged: Path, test: Path, evidence: Path, report: Path, bundle: Path
) -> Statement:
    """Compare two models' answers to the attested test rows.

    Whatever cannot be compared soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The directory of the model that is to ship.
        judged: The directory of the model that the other gates judged.
        test: The attested test rows.
        evidence: The bundle of evidence of all three.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for these very models and rows.
        ModelError: A model's directory is not one.
        DataError: The test rows' directory is not one.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        MissingDependencyError: PyTorch is not installed.
    """
    model_files, judged_files = read_model_files(model), read_model_files(judged)
    test_files = read_input(step, "test", test)
    begun = begin(
        step,
        stage="equivalence_gate",
        inputs={
            "model": content_digest(model_files),
            "judged": content_digest(judged_files),
            "test": content_digest(test_files),
        },
        parameters={},
        evidence=[evidence],
    )
    figures: dict[str, Figure] = {}
    inconclusive = ""
    try:
        shipped, before, rows = load_model_files(model_files), load_model_files(judged_files), parse_dataset(test_files)
        _require_same_task(shipped.spec, before.spec, rows.spec)
        features, labels = features_and_labels(rows)
        figures = dict(compare(_logits(before, features), _logits(shipped, features), labels))
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule).encode())
    return statement


def _require_same_task(shipped: ModelSpec, judged: ModelSpec, rows: DatasetSpec) -> None:
    if shipped != judged:
        raise ModelError("the two models differ in more than weights: architecture, options, shape, bounds or labels")
    shipped.require_fit(rows)


def _logits(model: LoadedModel, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits (N, k) of all rows, a chunk at a time."""
    from portcullis.models.pytorch import FOREIGN_ERRORS

    try:
        return np.concatenate(
            [model.predict_logits(features[start : start + CHUNK]) for start in range(0, len(features), CHUNK)]
        )
    except FOREIGN_ERRORS as error:
        raise InconclusiveError(f"a model could not be asked: {type(error).__name__}: {error}") from error
