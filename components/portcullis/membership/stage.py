"""The membership gate's `evaluate`: attack a model with its training rows and its test rows, and sign the verdict."""

import dataclasses
from pathlib import Path

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import load_model_files, read_model_files
from portcullis.report import gate_page, paragraph

CAVEAT = (
    "An attacker with more means finds more. These figures come from the training rows themselves: no certificate of "
    "differential privacy covers them."
)


def evaluate_membership(
    *,
    step: str,
    model: Path,
    train: Path,
    test: Path,
    evidence: Path,
    settings: MembershipSettings,
    report: Path,
    bundle: Path,
) -> Statement:
    """Attack a model by membership inference and state how well that went.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory.
        train: The rows that it learnt from.
        test: The test rows, of the same distribution.
        evidence: The bundle of evidence of all three.
        settings: The plan of attack.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model and these very rows.
        SealError: Rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        MissingDependencyError: PyTorch is not installed.
    """
    model_files = read_model_files(model)
    rows = {"train": read_input(step, "train", train), "test": read_input(step, "test", test)}
    begun = begin(
        step,
        stage="membership_gate",
        inputs={"model": content_digest(model_files)} | {name: content_digest(files) for name, files in rows.items()},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    from portcullis.membership.attack import attack
    from portcullis.membership.losses import losses

    figures: dict[str, Figure] = {}
    inconclusive = ""
    try:
        loaded = load_model_files(model_files)
        parsed = {name: parse_dataset(files) for name, files in rows.items()}
        for it in parsed.values():
            loaded.spec.require_fit(it.spec)
        lost = {name: losses(loaded, *features_and_labels(it)) for name, it in parsed.items()}
        figures = attack(lost["train"], lost["test"], settings)
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    notes = [paragraph(CAVEAT, kind="dim")]
    if figures and not figures["fpr_measurable"]:
        notes.append(
            paragraph(
                f"With {figures['others']} test rows a false-positive rate of {settings.false_positives:g} cannot be "
                f"measured: at this threshold it may be as high as {figures['fpr_high']:.3g}.",
                kind="dim",
            )
        )
    write_bytes(report, gate_page(statement, begun.rule, notes).encode())
    return statement
