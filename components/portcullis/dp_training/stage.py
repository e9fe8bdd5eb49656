"""`dp_train`: learn from the attested training rows under differential privacy, and certify what that guarantees."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.dp_training.accounting import Plan
from portcullis.dp_training.settings import PrivateSettings
from portcullis.errors import ModelError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.evidence.trust import state_directory
from portcullis.ledger.charge import charge_step, open_ledger, require_affordable
from portcullis.ledger.mechanisms import DpSgd
from portcullis.ledger.settings import LedgerSettings
from portcullis.models.store import ModelSpec, model_files, save_model


def train_privately(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    architecture: str,
    options: Mapping[str, Any],
    ledger: Mapping[str, Any],
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
        ledger: The fields of `LedgerSettings`: the budget of the data set over all runs, to which this training is
            charged before the model is written.
        settings: How to train, and how private.
        model: Where the model's directory goes.
        bundle: Where the evidence goes, with the certificate as the figures of this step.

    Raises:
        ConfigError: The ledger is not described so, or no sensible noise is enough for these settings.
        EvidenceError: The evidence does not hold for these very rows; or the ledger was altered or rolled back, or this
            step of this run was charged before.
        BudgetError: With this training, all runs together would spend more than the policy allows.
        DataError: The rows are malformed, or too few for these settings.
        InconclusiveError: Two accountants contradict each other, or the ledger cannot be reached.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        ModelError: The architecture is unknown or cannot be trained privately, or the model is not finite.
        MissingDependencyError: PyTorch, Opacus or dp-accounting is not installed.
    """
    account = LedgerSettings.from_dict(ledger)
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="dp_train",
        inputs={"dataset": content_digest(files)},
        parameters={
            "architecture": architecture,
            "options": dict(options),
            "ledger": dict(ledger),
            **dataclasses.asdict(settings),
        },
        evidence=[evidence],
    )
    from portcullis.dp_training.private import certificate, train

    rows = parse_dataset(files)
    spec = ModelSpec.of_rows(rows.spec, architecture, options)
    kept = open_ledger(account, state_directory(begun.store.path))
    module, planned = train(
        *features_and_labels(rows), spec, settings, before=lambda plan: require_affordable(kept, _cost(plan))
    )
    # Charged before anything of it is written; a crash after this leaves a charge without a model.
    digest = content_digest(model_files(module, spec))
    receipt = charge_step(begun, account, _cost(planned), unit="row", output=digest)
    if save_model(model, module, spec) != digest:
        raise ModelError("the model that was written is not the one that was charged")
    figures = {**certificate(planned, settings, module), **receipt.figures}
    return begun.finish(bundle=bundle, outputs={"model": digest}, figures=figures)


def _cost(plan: Plan) -> DpSgd:
    return DpSgd(plan.noise_multiplier, plan.sampling_rate, plan.steps)
