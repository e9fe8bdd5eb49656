"""`dp_train` learns under differential privacy and certifies it; `privacy_audit_gate` audits the trainer."""

import dataclasses
import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.dp_training.accounting import Plan, plan
from portcullis.dp_training.settings import AuditSettings, PrivateSettings
from portcullis.errors import DataError, EvidenceError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.evidence.trust import state_directory
from portcullis.files import write_bytes
from portcullis.keys import role_uri, symmetric_key
from portcullis.ledger.charge import charge_step, open_ledger, require_affordable
from portcullis.ledger.mechanisms import DpSgd
from portcullis.ledger.settings import LedgerSettings
from portcullis.models.store import ModelSpec, load_model_files, model_files, read_model_files, save_model
from portcullis.report import gate_page, paragraph


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


def evaluate_privacy(
    *,
    step: str,
    model: Path,
    evidence: Path,
    ledger: Mapping[str, Any],
    settings: PrivateSettings,
    audited: AuditSettings,
    report: Path,
    bundle: Path,
) -> Statement:
    """Audit the trainer of a private model, with the settings that its certificate names.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory; only what it is, and its certificate, are looked at.
        evidence: The bundle of its evidence.
        ledger: As `train_privately` was given it.
        settings: As `train_privately` was given them.
        audited: How thorough to be.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model, or no `dp_train` with these settings made it.
        PolicyError: The policy names other settings.
        KeyMaterialError: There is no audit key.
        MissingDependencyError: PyTorch, Opacus or dp-accounting is not installed.
    """
    files = read_model_files(model)
    digest = content_digest(files)
    begun = begin(
        step,
        stage="privacy_audit_gate",
        inputs={"model": digest},
        parameters={"ledger": dict(ledger), **dataclasses.asdict(settings), **dataclasses.asdict(audited)},
        evidence=[evidence],
    )
    made = [it for it in begun.chain.statements.values() if it.stage == "dp_train" and digest in it.outputs.values()]
    if len(made) != 1 or any(made[0].parameters.get(name) != it for name, it in dataclasses.asdict(settings).items()):
        raise EvidenceError(f"step {step!r}: no private training with these settings made this model")
    key = symmetric_key(role_uri(keys_base(), "audit.key"))
    from portcullis.dp_training.audit import audit
    from portcullis.dp_training.private import certificate

    figures: dict[str, Figure] = {}
    inconclusive = ""
    try:
        loaded = load_model_files(files)
        stated = made[0].figures
        planned = plan(int(stated.get("samples", 0)), settings)
        expected = certificate(planned, settings, loaded.module)
        figures["certificate_differs"] = sum(stated.get(name) != value for name, value in expected.items())
        figures["epsilon_claimed"] = stated.get("epsilon", 0.0)
        figures["steps_planned"] = planned.steps
        # The same model is audited with the same canaries again, so that nobody tries until an audit passes.
        coins = hmac.digest(key, f"{step}\n{digest}".encode(), "sha256")
        figures |= audit(loaded.spec, planned, settings, audited, coins=coins)
        figures["steps_missing"] = abs(planned.steps - int(figures["steps_seen"]))
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    note = "A low bound proves nothing: it is what this attack found. The audit judges the trainer's code, by a copy."
    write_bytes(report, gate_page(statement, begun.rule, [paragraph(note, kind="dim")]).encode())
    return statement
