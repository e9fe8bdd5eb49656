"""KFP component `merge_shards`."""

from typing import List, NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component


@component
def merge_shards(
    datasets: Input[List[Dataset]],
    evidence: Input[List[Artifact]],
    merged: Output[Dataset],
    merged_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "merge_shards",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Join what the shards of a step made into one data set, the very same that it would have made of the whole.

    Refuses unless every shard is there once, under the policy's number of shards and parameters.

    Args:
        datasets: The shards' data sets, in any order.
        evidence: Their evidence.
        step: Name of this step in the policy.
        merged: The joined data set.
        merged_evidence: The evidence with this step's statement.
        metrics: Rows, and how many were masked in each column of the whole.

    Returns:
        digest: SHA-256 of the joined data set.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.sharding.stage import merge_shards as run

    statement = run(
        step=step,
        datasets=[Path(it.path) for it in datasets],
        evidence=[Path(it.path) for it in evidence],
        merged=Path(merged.path),
        bundle=Path(merged_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])
