"""The KFP gate `budget_gate`."""

from typing import Any, Dict, List, NamedTuple

from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import TRUST_CONFIG_MAP, harden


@component
def evaluate_budget(
    model: Input[Model],
    evidence: Input[Artifact],
    ledger: Dict[str, Any],
    charging: List[str],
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Add up what a data set's ledger holds, look this run's charges up in it, and sign the verdict.

    Args:
        model: The model that was made with what was released.
        evidence: Its evidence.
        ledger: The budget: data set, epsilon, delta, unit, and where ledger and last head are kept.
        charging: The steps before that had to charge.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: What was spent, by which run, and what is left.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.budget.stage import evaluate_budget as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        ledger=ledger,
        charging=charging,
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("budget-gate")
def budget_gate(
    model: Input[Model],
    evidence: Input[Artifact],
    ledger: Dict[str, Any],
    charging: List[str],
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse what was made by spending more of a data set's privacy than the policy allows, or without charging it.

    Args:
        model: The model that was made with what was released.
        evidence: Its evidence.
        ledger: The budget: data set, epsilon, delta, unit, and where ledger and last head are kept.
        charging: The steps before that had to charge.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with its keys.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_budget(model=model, evidence=evidence, ledger=ledger, charging=charging, step=step)
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
