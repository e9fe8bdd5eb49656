"""KFP component `dp_noise`."""

from typing import Any, Dict, NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component


@component
def dp_noise(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    columns: Dict[str, Dict[str, float]],
    budget: float,
    ledger: Dict[str, Any],
    noised: Output[Dataset],
    noised_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "dp_noise",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Add noise to declared numeric columns: local differential privacy of those columns, and of nothing else.

    Refuses noise that costs a row more than the budget. Without a column it passes the data on and claims nothing.

    Args:
        dataset: The data set.
        evidence: Its evidence.
        columns: Column to its public bounds `low` and `high`, its `epsilon`, and the `steps` of its grid.
        budget: Most that the epsilons of one row may add up to.
        ledger: The budget over all runs: data set, epsilon, delta, unit, and where ledger and last head are kept; empty
            without a column.
        step: Name of this step in the policy.
        noised: The data set with noise in place of the values of those columns.
        noised_evidence: The evidence with this step's statement.
        metrics: The exact epsilon of each column and of a row, and the expected errors.

    Returns:
        digest: SHA-256 of the noisy data set.
    """
    from pathlib import Path

    from portcullis.privacy.stage import dp_noise as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        columns=columns,
        budget=budget,
        ledger=ledger,
        noised=Path(noised.path),
        bundle=Path(noised_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])
