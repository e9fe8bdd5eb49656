"""The membership gate's `evaluate`: attack a model by membership inference and inversion, and sign the verdict."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import load_model_files, read_model_files
from portcullis.report import gate_page, paragraph, pictures, pixels_of, section

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
    """Attack a model by membership inference and by inversion, and state how well that went.

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
    from portcullis.membership.inversion import invert
    from portcullis.membership.losses import losses

    figures: dict[str, Figure] = {}
    shown: Mapping[str, NDArray[np.float64]] = {}
    inconclusive = ""
    try:
        loaded = load_model_files(model_files)
        parsed = {name: parse_dataset(files) for name, files in rows.items()}
        for it in parsed.values():
            loaded.spec.require_fit(it.spec)
        lost = {name: losses(loaded, *features_and_labels(it)) for name, it in parsed.items()}
        inverted, shown = invert(loaded, parsed["train"], parsed["test"], settings)
        figures = attack(lost["train"], lost["test"], settings) | inverted
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
    write_bytes(report, gate_page(statement, begun.rule, [*notes, *_reconstructions(shown)]).encode())
    return statement


def _reconstructions(shown: Mapping[str, NDArray[np.float64]]) -> list[str]:
    images = {label: image for label, image in shown.items() if image.ndim == 3}
    if not shown:
        return []
    return [
        section("Inversion"),
        paragraph(
            "What gradients find in the model for each class; anyone who has the model can find it. inversion_auc says "
            "how often a training row resembles it more than another row of the class does: 0.5 shows the class, and "
            "nothing of its rows. Where a class is one person, the class is what must not be shown."
        ),
        *([pictures([("", [(label, pixels_of(image))]) for label, image in images.items()])] if images else []),
    ]
