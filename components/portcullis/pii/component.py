"""KFP component `mask_pii` and its gate `residual_pii_gate`."""

from typing import Any, Dict, NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import LONG, harden


@component
def mask_pii(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    masking: Dict[str, Any],
    masked: Output[Dataset],
    masked_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "mask_pii",
    head: Input[Dataset] = None,
) -> NamedTuple("Outputs", [("digest", str)]):
    """Mask identifiers in every text column, and whole columns, as the masking policy says.

    Refuses columns of a type that it cannot scan and undeclared columns of card numbers.

    Args:
        dataset: The data set.
        evidence: Its evidence.
        masking: The masking policy, every default written out: entities, columns, detection.
        step: Name of this step in the policy; of a shard `mask_pii#0/4`.
        head: For a shard, the first rows of the whole, from `plan_shards`; what a column holds is judged by them.
        masked: The masked data set.
        masked_evidence: The evidence with this step's statement.
        metrics: How many were masked in each column.

    Returns:
        digest: SHA-256 of the masked data set.
    """
    from pathlib import Path

    from portcullis.pii.stage import mask_pii as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        masking=masking,
        masked=Path(masked.path),
        bundle=Path(masked_evidence.path),
        head=Path(head.path) if head else None,
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])


@component
def evaluate_residual_pii(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    masking: Dict[str, Any],
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    details: Output[Artifact],
    metrics: Output[Metrics],
):
    """Search a masked data set again, by other rules than those that masked it, and sign the verdict.

    Args:
        dataset: The masked data set.
        evidence: Its evidence.
        masking: The masking policy that it was masked by.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict, what was masked and what is left, to look at.
        details: The same as JSON.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.pii.stage import residual_pii as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        masking=masking,
        report=Path(report.path),
        details=Path(details.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("residual-pii-gate")
def residual_pii_gate(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    masking: Dict[str, Any],
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a masked data set that still holds an identifier.

    Args:
        dataset: The masked data set.
        evidence: Its evidence.
        masking: The masking policy that it was masked by.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with its keys.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_residual_pii(dataset=dataset, evidence=evidence, masking=masking, step=step)
    held = enforce(subject=dataset, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret, resources=LONG)
    # As every gate's: KFP makes one executor of those that are alike, and keeps the settings of one of them.
    harden(held, secret=secret)  # it opens the data set, to see that it is the one that was judged
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
