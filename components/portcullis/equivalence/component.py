"""The KFP gate `equivalence_gate`."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import TRUST_CONFIG_MAP, harden


@component
def evaluate_equivalence(
    model: Input[Model],
    judged: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Compare a model's answers with those of the model that was judged, and sign the verdict.

    Args:
        model: The model that is to ship.
        judged: The model that the other gates judged.
        test: The attested test rows.
        evidence: Evidence of all three.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.equivalence.stage import evaluate_equivalence as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        model=Path(model.path),
        judged=Path(judged.path),
        test=Path(test.path),
        evidence=Path(evidence.path),
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("equivalence-gate")
def equivalence_gate(
    model: Input[Model],
    judged: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model that answers otherwise than the model that was judged, and whatever cannot be compared.

    The bounds that it must keep are the policy's.

    Args:
        model: The model that is to ship.
        judged: The model that the other gates judged.
        test: The attested test rows.
        evidence: Evidence of all three.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `evaluate`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged_by = evaluate_equivalence(model=model, judged=judged, test=test, evidence=evidence, step=step)
    held = enforce(subject=model, evidence=judged_by.outputs["verdict_evidence"], gate=step)
    harden(judged_by, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
