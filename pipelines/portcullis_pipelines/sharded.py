"""The steps on raw data over shards, in the place of `ingest`, `mask_pii` and `residual_pii` on a whole table.

Two loops: the first surveys each shard's part of the source, the second reads, masks and judges it. Between them one
plan decides what depends on the whole; after them one task joins the shards.

KFP's local runner has two ways of its own with loops (2.17), which `portcullis_pipelines.lint` refuses. A text that a
loop's item is spliced into reaches a nested pipeline, so a gate, as `null`; therefore an item names each sharded step's
shard whole, `{"ingest": "ingest#0/4", …}`. And what a task beside the loop puts out as a parameter is replaced by the
item; therefore the loops are in a pipeline of their own, which takes the nonce as its parameter.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from portcullis.harden import LONG, harden, secret_name, secure_pipeline
from portcullis.ingest.component import ingest, plan_shards, survey_shard
from portcullis.pii.component import mask_pii, residual_pii_gate
from portcullis.sharding.component import merge_shards


class Outputs(NamedTuple):
    """What the pipeline puts out."""

    dataset: Dataset
    evidence: Artifact


@secure_pipeline(name="portcullis-masking-over-shards")  # type: ignore[untyped-decorator]
def masking_over_shards(
    evidence: Input[Artifact],
    nonce: str,
    data_uri: str,
    dataset_spec: str,
    masking: dict[str, Any],
    shards: list[dict[str, str]],
) -> Outputs:
    """Read and mask raw data over shards, judge each, and join them to the data set that a single task would make.

    Args:
        evidence: The evidence of `preflight`.
        nonce: The run's nonce, from `preflight`.
        data_uri: The raw data.
        dataset_spec: Their description (YAML).
        masking: The masking policy: entities, columns, detection.
        shards: For each shard, its name in each sharded step.

    Returns:
        dataset: The masked data set.
        evidence: All evidence so far, in which every shard PASSED.
    """
    with dsl.ParallelFor(shards, name="survey") as shard:
        surveyed = survey_shard(
            nonce=nonce, evidence=evidence, uri=data_uri, spec=dataset_spec, step=shard.survey_shard
        )
    planned = plan_shards(
        surveys=dsl.Collected(surveyed.outputs["survey"]),
        heads=dsl.Collected(surveyed.outputs["head"]),
        evidence=dsl.Collected(surveyed.outputs["survey_evidence"]),
        spec=dataset_spec,
    )
    with dsl.ParallelFor(shards, name="mask") as shard:
        raw = ingest(
            nonce=nonce,
            evidence=planned.outputs["plan_evidence"],
            uri=data_uri,
            spec=dataset_spec,
            plan=planned.outputs["plan"],
            step=shard.ingest,
        )
        masked = mask_pii(
            dataset=raw.outputs["dataset"],
            evidence=raw.outputs["dataset_evidence"],
            masking=masking,
            head=planned.outputs["head"],
            step=shard.mask_pii,
        )
        clean = residual_pii_gate(
            dataset=masked.outputs["masked"],
            evidence=masked.outputs["masked_evidence"],
            masking=masking,
            step=shard.residual_pii,
            secret=secret_name("residual_pii"),
        )
    merged = merge_shards(
        datasets=dsl.Collected(masked.outputs["masked"]), evidence=dsl.Collected(clean.outputs["evidence"])
    )
    tasks = {
        "survey_shard": surveyed,
        "plan_shards": planned,
        "ingest": raw,
        "mask_pii": masked,
        "merge_shards": merged,
    }
    for step, task in tasks.items():
        harden(task, secret=secret_name(step), resources=LONG)
    return Outputs(dataset=merged.outputs["merged"], evidence=merged.outputs["merged_evidence"])
