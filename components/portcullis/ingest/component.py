"""KFP component `ingest`."""

from typing import NamedTuple

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
) -> NamedTuple("Outputs", [("digest", str)]):
    """Read a CSV, JSON Lines or Parquet file or folder; attest the digest of its bytes, its rows and its schema.

    Refuses malformed rows with their file and position, links, and columns that are not as described. Where the
    description allows it, malformed rows are set aside instead, sealed and counted.

    Args:
        nonce: The run's nonce, from `preflight`.
        evidence: The evidence of `preflight`.
        uri: A path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`.
        spec: The data-set description (YAML): label, features with shape and bounds, sensitive columns.
        step: Name of this step in the policy.
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
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["dataset"])
