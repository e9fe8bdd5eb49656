"""KFP component `dp_noise`."""

from typing import Any, Dict, NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component


@component
def dp_noise(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    columns: Dict[str, Dict[str, Any]],
    budget: float,
    others: Dict[str, str],
    rows: str,
    contribution: Dict[str, Any],
    ledger: Dict[str, Any],
    noised: Output[Dataset],
    noised_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    step: str = "dp_noise",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Add noise to declared columns, numbers and categories: local differential privacy of those, and of nothing else.

    Refuses noise that costs more than the budget or, tried on made-up cells, is not what its epsilon speaks of, and
    columns that nobody declared. Without a column that gets noise it passes the data on and claims nothing.

    Args:
        dataset: The data set.
        evidence: Its evidence.
        columns: Column to its `epsilon`, and its public `low`, `high` and `steps` or its public `categories`.
        budget: The most that a row may spend, or a person where contributions are bounded.
        others: `keep` or `drop` for each column without noise, by name or as `features`, `label`, `ids`, `text`.
        rows: `keep` their order or `shuffle` them; empty without a column that gets noise.
        contribution: `column`, whose row it is, and `at_most`, how many rows of one person stay; or nothing.
        ledger: The budget over all runs: data set, epsilon, delta, unit, and where ledger and last head are kept; empty
            without a column.
        step: Name of this step in the policy.
        noised: The data set with noise in place of the values of those columns, without the dropped ones.
        noised_evidence: The evidence with this step's statement.
        report: What the noise costs and what it leaves, to look at.
        metrics: The exact epsilon of each column and of a row, and the expected errors.

    Returns:
        digest: SHA-256 of the noisy data set.
    """
    from pathlib import Path

    from portcullis.privacy.stage import dp_noise as run
    from portcullis.report import log_figures

    plan = {"columns": columns, "budget": budget, "others": others, "rows": rows, "contribution": contribution}
    statement = run(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        plan=plan,
        ledger=ledger,
        noised=Path(noised.path),
        report=Path(report.path),
        bundle=Path(noised_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])
