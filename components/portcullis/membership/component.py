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
    inversion_starts: int,
    inversion_steps: int,
    seed: int,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Attack a model by membership inference and inversion, and sign the verdict.

    Args:
        model: The model.
        train: The rows that it learnt from.
        test: The attested test rows.
        evidence: Evidence of all three.
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.
        inversion_starts: How often each class is reconstructed from the model.
        inversion_steps: Gradient steps of each reconstruction.
        seed: Of the random starts of reconstructions.
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
        settings=MembershipSettings(
            false_positives=false_positives,
            confidence=confidence,
            n_min=n_min,
            inversion_starts=inversion_starts,
            inversion_steps=inversion_steps,
            seed=seed,
        ),
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
    inversion_starts: int,
    inversion_steps: int,
    seed: int,
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model that tells its training rows from others too well: by its losses, or by what can be made of it.

    The bounds are the policy's, on the upper ends of the intervals of both attacks' AUC.

    Args:
        model: The model.
        train: The rows that it learnt from.
        test: The attested test rows.
        evidence: Evidence of all three.
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.
        inversion_starts: How often each class is reconstructed from the model.
        inversion_steps: Gradient steps of each reconstruction.
        seed: Of the random starts of reconstructions.
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
        inversion_starts=inversion_starts,
        inversion_steps=inversion_steps,
        seed=seed,
        step=step,
    )
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
