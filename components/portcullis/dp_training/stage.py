"""`dp_train`: learn from the attested training rows under differential privacy, and certify what that guarantees."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.dp_training.settings import PrivateSettings
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.models.store import ModelSpec, save_model


def train_privately(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    architecture: str,
    options: Mapping[str, Any],
    settings: PrivateSettings,
    model: Path,
    bundle: Path,
) -> Statement:
    """Train a model under differential privacy.

    Args:
        step: This step's name in the policy.
        dataset: The training rows.
        evidence: Their bundle of evidence.
        architecture: Name of an installed architecture, without batch normalisation.
        options: Its options.
        settings: How to train, and how private.
        model: Where the model's directory goes.
        bundle: Where the evidence goes, with the certificate as the figures of this step.

    Raises:
        EvidenceError: The evidence does not hold for these very rows.
        DataError: The rows are malformed, or too few for these settings.
        InconclusiveError: Two accountants contradict each other.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        ModelError: The architecture is unknown or cannot be trained privately, or the model is not finite.
        MissingDependencyError: PyTorch, Opacus or dp-accounting is not installed.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="dp_train",
        inputs={"dataset": content_digest(files)},
        parameters={"architecture": architecture, "options": dict(options), **dataclasses.asdict(settings)},
        evidence=[evidence],
    )
    from portcullis.dp_training.private import train

    rows = parse_dataset(files)
    spec = ModelSpec.of_rows(rows.spec, architecture, options)
    module, figures = train(*features_and_labels(rows), spec, settings)
    digest = save_model(model, module, spec)
    return begun.finish(bundle=bundle, outputs={"model": digest}, figures=figures)
