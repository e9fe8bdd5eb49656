"""`train`: learn from the attested training rows only, and attest the model."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import UsageError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import Step, begin
from portcullis.files import write_bytes
from portcullis.models.store import ModelSpec, save_model
from portcullis.training.page import training_page
from portcullis.training.settings import TrainingSettings

if TYPE_CHECKING:
    from portcullis.training.checkpoint import Checkpoints

CHECKPOINTS_ENV = "PORTCULLIS_CHECKPOINTS"


def train_model(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    architecture: str,
    options: Mapping[str, Any],
    settings: TrainingSettings,
    model: Path,
    report: Path,
    bundle: Path,
) -> Statement:
    """Train a model.

    Where PORTCULLIS_CHECKPOINTS names a folder, a training that is interrupted leaves its last checkpoint there, and
    the same training goes on from it.

    Args:
        step: This step's name in the policy.
        dataset: The training rows.
        evidence: Their bundle of evidence.
        architecture: Name of an installed architecture.
        options: Its options.
        settings: How to train.
        model: Where the model's directory goes.
        report: Where the HTML report goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for these very rows.
        DataError: The rows are malformed, or too few.
        SealError: The rows were altered at rest, or lie in plain text; or a checkpoint was altered.
        KeyMaterialError: There is no key to open them.
        ModelError: The architecture is unknown, or the model is not finite.
        UsageError: CUDA was asked for and is not there; or PORTCULLIS_CHECKPOINTS is no folder to write to.
        MissingDependencyError: PyTorch is not installed.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="train",
        inputs={"dataset": content_digest(files)},
        parameters={"architecture": architecture, "options": dict(options), **dataclasses.asdict(settings)},
        evidence=[evidence],
    )
    from portcullis.training.adversarial import train

    rows = parse_dataset(files)
    spec = ModelSpec.of_rows(rows.spec, architecture, options)
    features, labels = features_and_labels(rows)
    module, figures = train(features, labels, spec, settings, _checkpoints(begun))
    digest = save_model(model, module, spec)
    statement = begun.finish(bundle=bundle, outputs={"model": digest}, figures=figures)
    write_bytes(report, training_page(statement).encode())
    return statement


def _checkpoints(begun: Step) -> "Checkpoints | None":
    from portcullis.training.checkpoint import Checkpoints

    folder = os.environ.get(CHECKPOINTS_ENV)
    if folder is None:
        return None
    if not Path(folder).is_absolute():
        raise UsageError(f"{CHECKPOINTS_ENV} must be the absolute path of a folder")
    return Checkpoints(Path(folder), begun.signer.derive(b"training-checkpoints"))
