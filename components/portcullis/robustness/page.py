"""What the gate's page shows besides figures: each attack, accuracy by radius, and what some samples became."""

from portcullis.report import line_chart, paragraph, pictures, pixels_of, section, table
from portcullis.robustness.report import RobustnessReport
from portcullis.robustness.settings import RobustnessSettings

CHECKS = (
    ("unbounded attack succeeds", "unbounded_success"),
    ("planted adversarial examples found", "planted_found"),
    ("gradient tells the margin's change", "gradient_agreement"),
    ("smallest gradient of the margin", "smallest_gradient"),
    ("broken without gradients after all attacks failed", "gradient_free"),
    ("margin's fall over the ball, as a share of what the gradient says, where all attacks failed", "gradient_reach"),
    ("broken by averaged gradients after all attacks failed", "gradient_averaged"),
    ("logits change when a sample is alone", "batch_difference"),
)


def robustness_details(report: RobustnessReport, settings: RobustnessSettings) -> list[str]:
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
        *_soundness(report, settings),
        *_samples(report),
    ]


def _soundness(report: RobustnessReport, settings: RobustnessSettings) -> list[str]:
    if not report.curve:
        return [paragraph("So many samples are broken that the model failed; the rest was not measured.")]
    across = "Linf radius: share of correct samples that withstand PGD"
    return [
        section("Accuracy by radius"),
        line_chart(report.curve, across=across, marked=settings.epsilon),
        section("Soundness of the measurement"),
        table(("check", "figure"), [(name, report.figures[figure]) for name, figure in CHECKS]),
    ]


def _samples(report: RobustnessReport) -> list[str]:
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
