"""What the gate's page shows besides figures: each attack, accuracy by radius, and what some samples became."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from portcullis.report import Pixels, line_chart, paragraph, pictures, section, table
from portcullis.robustness.settings import RobustnessSettings

if TYPE_CHECKING:
    from portcullis.robustness.evaluate import RobustnessReport
    from portcullis.robustness.findings import Findings

LARGEST_SIDE = 32


def robustness_details(report: "RobustnessReport | Findings", settings: RobustnessSettings) -> list[str]:
    """Return the HTML of a measurement, for `portcullis.report.gate_page`."""
    figures = report.figures
    samples = int(figures["samples"])
    whole = round(float(figures["robust_accuracy"]) * samples)
    rows = [
        (name, f"{tried.ball.norm} {tried.ball.radius:g}", tried.tried, tried.broken, f"{tried.cost:,}")
        for name, tried in report.attacks.items()
    ]
    worst = f"{whole} of {samples} samples withstood every attack."
    if settings.mode == "verdict":
        high = round(float(figures["robust_accuracy_high"]) * samples)
        certainty = "with certainty" if figures["stop"] != "sequential" else "with an error of at most 1 %"
        worst = (
            f"From {whole} to {high} of {samples} samples withstand every attack, {certainty}: an interval, not a "
            f"number. Of {figures['pool']} that withstood the first two attacks, {figures['judged']} met the others, "
            "in an order derived from this gate's key."
        )
    checks = [
        ("unbounded attack succeeds", figures["unbounded_success"]),
        ("planted adversarial examples found", figures["planted_found"]),
        ("gradient tells the margin's change", figures["gradient_agreement"]),
        ("smallest gradient of the margin", figures["smallest_gradient"]),
        ("broken without gradients after all attacks failed", figures["gradient_free"]),
        ("logits change when a sample is alone", figures["batch_difference"]),
    ]
    return [
        section("Attacks"),
        table(("attack", "within", "tried on", "broke", "forward-equivalents"), rows),
        paragraph(worst),
        paragraph(
            "Samples that the model misclassifies are not attacked and not robust. PASSED means that this plan found "
            "no more; the error covers the choice of samples, never the strength of the attacks. Random starts follow "
            f"seed {settings.seed}. Everything together cost {int(figures['forward_equivalents']):,} "
            "forward-equivalents.",
            kind="dim",
        ),
        section("Accuracy by radius"),
        line_chart(
            report.curve, across="Linf radius: share of correct samples that withstand PGD", marked=settings.epsilon
        ),
        section("Soundness of the measurement"),
        table(("check", "figure"), checks),
        *_samples(report),
    ]


def _samples(report: "RobustnessReport | Findings") -> list[str]:
    # Rows that are no images may be of persons, and nobody could see in a picture what changed.
    shown = [example for example in report.examples if example.clean.ndim == 3]
    drawn = (
        (
            f"{example.label} becomes {example.answer}",
            [("clean", pixels_of(example.clean)), (example.attack, pixels_of(example.adversarial))],
        )
        for example in shown
    )
    return [section("Samples"), pictures(drawn)] if shown else []


def pixels_of(image: NDArray[Any]) -> Pixels:
    """Return an image (channels, height, width) as a picture of at most 32 by 32 pixels."""
    colours = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    step = math.ceil(max(image.shape[1:]) / LARGEST_SIDE)
    return [
        [(float(red), float(green), float(blue)) for red, green, blue in line]
        for line in colours[:, ::step, ::step].transpose(1, 2, 0)
    ]
