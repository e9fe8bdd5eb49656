"""The KFP gate `membership_gate`."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import TRUST_CONFIG_MAP, harden


@component
def evaluate_membership(
    model: Input[Model],
    train: Input[Dataset],
    test: Input[Dataset],
    evidence: Input[Artifact],
    false_positives: float,
    confidence: float,
    n_min: int,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Attack a model by membership inference, and sign the verdict.

    Args:
        model: The model.
        train: The rows that it learnt from.
        test: The attested test rows.
        evidence: Evidence of all three.
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.membership.settings import MembershipSettings
    from portcullis.membership.stage import evaluate_membership as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        model=Path(model.path),
        train=Path(train.path),
        test=Path(test.path),
        evidence=Path(evidence.path),
        settings=MembershipSettings(false_positives=false_positives, confidence=confidence, n_min=n_min),
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("membership-gate")
def membership_gate(
    model: Input[Model],
    train: Input[Dataset],
    test: Input[Dataset],
    evidence: Input[Artifact],
    false_positives: float,
    confidence: float,
    n_min: int,
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model whose losses tell its training rows from others too well.

    The bound is the policy's, on the upper end of the interval of the attack's AUC.

    Args:
        model: The model.
        train: The rows that it learnt from.
        test: The attested test rows.
        evidence: Evidence of all three.
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `evaluate`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_membership(
        model=model,
        train=train,
        test=test,
        evidence=evidence,
        false_positives=false_positives,
        confidence=confidence,
        n_min=n_min,
        step=step,
    )
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
