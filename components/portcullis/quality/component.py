"""The KFP gate `data_quality_gate`."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import LARGE, harden


@component
def evaluate_quality(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    n_min: int,
    outlier_distance: float,
    neighbours: int,
    crowding: float,
    suspected: float,
    epochs: int,
    seed: int,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Screen a data set for copies, outliers, flipped labels and backdoors, and sign the verdict.

    Args:
        dataset: The data set, before it is split.
        evidence: Its evidence.
        n_min: Fewest rows of each class that are judged.
        outlier_distance: How far from its class's median a row is an outlier, in standard deviations.
        neighbours: How many nearest rows vote on a row's label.
        crowding: Within what share of the usual distance that many others crowd around a row.
        suspected: Share of each class, by spectral score, that is put to the vote of the others.
        epochs: Passes of the reference network over the rows.
        seed: Of the reference network.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict, its figures and the numbers of suspected rows.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.quality.settings import QualitySettings
    from portcullis.quality.stage import evaluate_quality as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        settings=QualitySettings(
            n_min=n_min,
            outlier_distance=outlier_distance,
            neighbours=neighbours,
            crowding=crowding,
            suspected=suspected,
            epochs=epochs,
            seed=seed,
        ),
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("data-quality-gate")
def data_quality_gate(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    n_min: int,
    outlier_distance: float,
    neighbours: int,
    crowding: float,
    suspected: float,
    epochs: int,
    seed: int,
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse data with copies, outliers, flipped labels or backdoors, and whatever cannot be judged soundly.

    The bounds that the data must keep are the policy's. PASSED means that these methods found no more poison than that.

    Args:
        dataset: The data set, before it is split.
        evidence: Its evidence.
        n_min: Fewest rows of each class that are judged.
        outlier_distance: How far from its class's median a row is an outlier, in standard deviations.
        neighbours: How many nearest rows vote on a row's label.
        crowding: Within what share of the usual distance that many others crowd around a row.
        suspected: Share of each class, by spectral score, that is put to the vote of the others.
        epochs: Passes of the reference network over the rows.
        seed: Of the reference network.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with its keys.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_quality(
        dataset=dataset,
        evidence=evidence,
        n_min=n_min,
        outlier_distance=outlier_distance,
        neighbours=neighbours,
        crowding=crowding,
        suspected=suspected,
        epochs=epochs,
        seed=seed,
        step=step,
    )
    held = enforce(subject=dataset, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret, resources=LARGE)
    harden(held, secret=secret)  # it opens the data set, to see that it is the one that was judged
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
