"""`train`: learn from the attested training rows only, and attest the model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.models.store import ModelSpec, save_model
from portcullis.training.settings import TrainingSettings


def train_model(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    architecture: str,
    options: Mapping[str, Any],
    settings: TrainingSettings,
    model: Path,
    bundle: Path,
) -> Statement:
    """Train a model.

    Args:
        step: This step's name in the policy.
        dataset: The training rows.
        evidence: Their bundle of evidence.
        architecture: Name of an installed architecture.
        options: Its options.
        settings: How to train.
        model: Where the model's directory goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for these very rows.
        DataError: The rows are malformed.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        ModelError: The architecture is unknown, or the model is not finite.
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
    module, figures = train(features, labels, spec, settings)
    digest = save_model(model, module, spec)
    return begun.finish(bundle=bundle, outputs={"model": digest}, figures=figures)
