"""KFP component `watermark` and the gate `verify_watermark_gate`."""

from typing import NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import LARGE, TRUST_CONFIG_MAP, harden


@component
def watermark(
    model: Input[Model],
    evidence: Input[Artifact],
    owner: str,
    marked: Output[Model],
    marked_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "watermark",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Mark a model's weights by a key, so that its owner finds the mark again in copies.

    Refuses a model that is too small, or in which the mark does not survive pruning, rounding and noise.

    Args:
        model: The model.
        evidence: Its evidence.
        owner: Whom the mark names.
        step: Name of this step in the policy.
        marked: The marked model.
        marked_evidence: The evidence with this step's statement.
        metrics: How much the weights changed, and how well the mark is read.

    Returns:
        digest: SHA-256 of the marked model.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.watermark.stage import watermark_model

    statement = watermark_model(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        owner=owner,
        marked=Path(marked.path),
        bundle=Path(marked_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["model"])


@component
def watermark_with_triggers(
    model: Input[Model],
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    owner: str,
    triggers: int,
    soft_share: float,
    marked: Output[Model],
    marked_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "watermark",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Teach a model keyed answers, so that its owner finds the mark again through an API, then mark its weights.

    Refuses what `watermark` refuses, and a model that does not learn its answers, loses more than 0.5 % of accuracy
    on its training rows, or whose mark does not survive some more training on them.

    Args:
        model: The model.
        dataset: The rows that it was trained on.
        evidence: Evidence of both.
        owner: Whom the mark names.
        triggers: How many triggers it is to learn, 50 to 10,000; 0 for none.
        soft_share: How much of its probability carries a mark in its soft labels, up to 0.5; 0 for none.
        step: Name of this step in the policy.
        marked: The marked model.
        marked_evidence: The evidence with this step's statement.
        metrics: How much the weights changed, and how well mark and triggers are read.

    Returns:
        digest: SHA-256 of the marked model.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.watermark.stage import watermark_model

    statement = watermark_model(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        owner=owner,
        marked=Path(marked.path),
        bundle=Path(marked_evidence.path),
        dataset=Path(dataset.path),
        triggers=triggers,
        soft_share=soft_share,
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["model"])


@component
def evaluate_watermark(
    model: Input[Model],
    unmarked: Input[Model],
    evidence: Input[Artifact],
    owner: str,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Read a model's mark by the owner's key, blind or else aligned to the unmarked model, and sign the verdict.

    Args:
        model: The model.
        unmarked: The model that was marked.
        evidence: Evidence of both.
        owner: Whom the mark must name.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.watermark.stage import verify_watermark

    statement = verify_watermark(
        step=step,
        model=Path(model.path),
        unmarked=Path(unmarked.path),
        evidence=Path(evidence.path),
        owner=owner,
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("verify-watermark-gate")
def verify_watermark_gate(
    model: Input[Model],
    unmarked: Input[Model],
    evidence: Input[Artifact],
    owner: str,
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model that does not bear its owner's mark.

    Args:
        model: The model.
        unmarked: The model that was marked.
        evidence: Evidence of both.
        owner: Whom the mark must name.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `evaluate`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_watermark(model=model, unmarked=unmarked, evidence=evidence, owner=owner, step=step)
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret, resources=LARGE)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
