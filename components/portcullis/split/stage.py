"""`split`: attest the rows that a model may learn from, and those that alone may judge it."""

from pathlib import Path

from portcullis.dataset import read_dataset, write_dataset
from portcullis.digest import tree_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.keys import role_uri, symmetric_key
from portcullis.split.split import split


def split_dataset(
    *, step: str, dataset: Path, evidence: Path, test_fraction: float, train: Path, test: Path, bundle: Path
) -> Statement:
    """Split a data set by the split key, after de-duplication.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence, the residual PII gate's verdict included.
        test_fraction: Expected share of test rows, above 0 and below 1.
        train: Where the training rows go.
        test: Where the test rows go.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        GateFailedError: A gate before this step FAILED.
        DataError: The data set is malformed, or cannot be split soundly.
        KeyMaterialError: There is no split key.
    """
    begun = begin(
        step,
        stage="split",
        inputs={"dataset": tree_digest(dataset)},
        parameters={"test_fraction": test_fraction},
        evidence=[evidence],
    )
    source = read_dataset(dataset)
    sides = split(source, key=symmetric_key(role_uri(keys_base(), "split.key")), test_fraction=test_fraction)
    write_dataset(train, sides.train, source.spec)
    write_dataset(test, sides.test, source.spec)
    return begun.finish(
        bundle=bundle, outputs={"train": tree_digest(train), "test": tree_digest(test)}, figures=sides.figures
    )
