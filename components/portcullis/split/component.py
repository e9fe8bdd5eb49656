"""KFP component `split`."""

from typing import NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from portcullis.container import component


@component
def split(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    test_fraction: float,
    train: Output[Dataset],
    test: Output[Dataset],
    split_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "split",
) -> NamedTuple("Outputs", [("train_digest", str), ("test_digest", str)]):
    """Split by a keyed function of each row's features, after de-duplication; attest both sides.

    Refuses rows on both sides, contradicting labels, a class missing on a side, and fewer than 100 test rows.

    Args:
        dataset: The data set.
        evidence: Its evidence.
        test_fraction: Expected share of test rows.
        step: Name of this step in the policy.
        train: The training rows.
        test: The test rows; gates accept no others.
        split_evidence: The evidence with this step's statement.
        metrics: Row counts.

    Returns:
        train_digest: SHA-256 of the training rows.
        test_digest: SHA-256 of the test rows.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.split.stage import split_dataset

    statement = split_dataset(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        test_fraction=test_fraction,
        train=Path(train.path),
        test=Path(test.path),
        bundle=Path(split_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("train_digest", str), ("test_digest", str)])
    return outputs(train_digest=statement.outputs["train"], test_digest=statement.outputs["test"])
