"""The membership gate's `evaluate`: attack a model by membership inference and inversion, and sign the verdict.

The model is opened and attacked in a locked child process, without keys, environment, network or files. This process
has the keys, never opens the model, and measures by the losses and reconstructions that the child leaves behind.
"""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import memory_file, write_bytes
from portcullis.isolation import run_isolated
from portcullis.membership.findings import Asked, believe
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_model_files
from portcullis.report import gate_page, paragraph, pictures, pixels_of, section

if TYPE_CHECKING:
    from portcullis.membership.resemblance import Rows

SECONDS = 3000.0  # of the hour that its pod may live
MEMORY = 4 << 30
MAX_BYTES = 1 << 28  # of losses or of reconstructions, which lie in memory twice
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
        UsageError: This system cannot lock a process in.
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
    figures: dict[str, Figure] = {}
    shown: Mapping[str, NDArray[np.float64]] = {}
    inconclusive = ""
    try:
        spec = ModelSpec.from_json(model_files[SPEC_FILE])
        parsed = [parse_dataset(rows[name]) for name in ("train", "test")]
        for it in parsed:
            spec.require_fit(it.spec)
        members, others = map(features_and_labels, parsed)
        figures, shown = _attacked(model_files, spec, members, others, settings)
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
    write_bytes(report, gate_page(statement, begun.rule, [*notes, *_drawn(shown)]).encode())
    return statement


def _attacked(
    model_files: Mapping[str, bytes], spec: ModelSpec, members: "Rows", others: "Rows", settings: MembershipSettings
) -> tuple[dict[str, Figure], dict[str, NDArray[np.float64]]]:
    """Have a locked process attack a model; return what its losses and reconstructions tell, and some of the latter."""
    from portcullis.membership.attack import attack
    from portcullis.membership.resemblance import judged_classes, resemblance

    classes = judged_classes(spec, members, others, settings.n_min)
    counts = [len(labels) for _, labels in (members, others)]
    asked = Asked(sum(counts), len(classes), settings.inversion_starts, math.prod(spec.shape), len(spec.labels))
    if max(asked.sizes) > MAX_BYTES:
        raise InconclusiveError(
            f"{max(asked.sizes)} bytes of losses or reconstructions, of {MAX_BYTES} that are taken; fewer rows or "
            "inversion_starts make fewer"
        )
    handed = (
        model_files[SPEC_FILE],
        model_files[WEIGHTS_FILE],
        np.concatenate([members[0], others[0]]).astype("<f4").tobytes(),
        np.concatenate([members[1], others[1]]).astype("<i8").tobytes(),
    )
    with ExitStack() as stack:
        given = [stack.enter_context(memory_file(data)) for data in handed]
        left = [stack.enter_context(memory_file(b"")) for _ in asked.sizes]
        run_isolated(
            "portcullis.membership.locked:attack",
            [*given, *left],
            {"rows": counts, "classes": classes.tolist(), "settings": dataclasses.asdict(settings)},
            seconds=SECONDS,
            memory=MEMORY,
            writes=max(asked.sizes),
            prepare="portcullis.membership.locked:prepare",
        )
        lost, images, predicted = believe(asked, *(_content(file) for file in left))
    figures = attack(lost[: counts[0]], lost[counts[0] :], settings)
    inverted, shown = resemblance(spec, members, others, classes, zip(images, predicted, strict=True), settings)
    return figures | inverted, shown


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _drawn(shown: Mapping[str, NDArray[np.float64]]) -> list[str]:
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
