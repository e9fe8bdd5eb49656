"""KFP component `ingest`, and over shards `survey_shard` and `plan_shards` before it."""

from typing import List, NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component


@component
def ingest(
    nonce: str,
    evidence: Input[Artifact],
    uri: str,
    spec: str,
    dataset: Output[Dataset],
    quarantine: Output[Artifact],
    dataset_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "ingest",
    plan: Input[Artifact] = None,
) -> NamedTuple("Outputs", [("digest", str)]):
    """Read a CSV, JSON Lines or Parquet file or folder; attest the digest of its bytes, its rows and its schema.

    Refuses malformed rows with their file and position, links, and columns that are not as described. Where the
    description allows it, malformed rows are set aside instead, sealed and counted.

    Args:
        nonce: The run's nonce, from `preflight`.
        evidence: The evidence of `preflight`; of a shard, of `plan_shards`.
        uri: A path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`.
        spec: The data-set description (YAML): label, features with shape and bounds, sensitive columns.
        step: Name of this step in the policy; of a shard `ingest#0/4`, and it reads that part of the source.
        plan: For a shard, what `plan_shards` wrote.
        dataset: The data set.
        quarantine: The malformed rows that were set aside, sealed; without any it is empty.
        dataset_evidence: The evidence with this step's statement.
        metrics: Rows, columns, bytes, and the rows set aside by reason.

    Returns:
        digest: SHA-256 of the data set.
    """
    from pathlib import Path

    from portcullis.ingest.stage import ingest as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        nonce=nonce,
        evidence=Path(evidence.path),
        uri=uri,
        spec=spec,
        dataset=Path(dataset.path),
        quarantine=Path(quarantine.path),
        bundle=Path(dataset_evidence.path),
        plan=Path(plan.path) if plan else None,
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])


@component
def survey_shard(
    nonce: str,
    evidence: Input[Artifact],
    uri: str,
    spec: str,
    step: str,
    survey: Output[Artifact],
    head: Output[Dataset],
    survey_evidence: Output[Artifact],
    metrics: Output[Metrics],
):
    """Check every cell of a shard's part of a source, and tell what its columns hold, for `plan_shards`.

    Args:
        nonce: The run's nonce, from `preflight`.
        evidence: The evidence of `preflight`.
        uri: The source, as for `ingest`.
        spec: The data-set description (YAML).
        step: Name of this shard of the step in the policy, such as `survey_shard#0/4`.
        survey: What its columns hold, and how many rows; no value.
        head: Its first rows, sealed.
        survey_evidence: The evidence with this step's statement.
        metrics: Rows, columns, files.
    """
    from pathlib import Path

    from portcullis.ingest.stage import survey_shard as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        nonce=nonce,
        evidence=Path(evidence.path),
        uri=uri,
        spec=spec,
        survey=Path(survey.path),
        head=Path(head.path),
        bundle=Path(survey_evidence.path),
    )
    log_figures(metrics, statement)


@component
def plan_shards(
    surveys: Input[List[Artifact]],
    heads: Input[List[Dataset]],
    evidence: Input[List[Artifact]],
    spec: str,
    plan: Output[Artifact],
    head: Output[Dataset],
    plan_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "plan_shards",
):
    """Decide what depends on the whole source: each column's type, and the head by which masking judges columns.

    Refuses shards that saw different files, or cut them otherwise than they should.

    Args:
        surveys: What each shard surveyed, in any order.
        heads: The first rows of each, in any order.
        evidence: Their evidence.
        spec: The data-set description (YAML).
        step: Name of this step in the policy.
        plan: Types of the columns, rows of the shards, names and digests of the files; no value.
        head: The first rows of the whole, sealed.
        plan_evidence: The evidence with this step's statement.
        metrics: Rows, columns, files, bytes, shards.
    """
    from pathlib import Path

    from portcullis.ingest.stage import plan_shards as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        surveys=[Path(it.path) for it in surveys],
        heads=[Path(it.path) for it in heads],
        evidence=[Path(it.path) for it in evidence],
        spec=spec,
        plan=Path(plan.path),
        head=Path(head.path),
        bundle=Path(plan_evidence.path),
    )
    log_figures(metrics, statement)
