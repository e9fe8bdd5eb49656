"""`split`: attest the rows that a model may learn from, and those that alone may judge it."""

from pathlib import Path

from portcullis.at_rest import pipeline_recipient, read_input, seal_dataset
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
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
        evidence: Its bundle of evidence, the verdicts of the gates on it included.
        test_fraction: Expected share of test rows, above 0 and below 1.
        train: Where the training rows go.
        test: Where the test rows go.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        GateFailedError: A gate before this step FAILED.
        DataError: The data set is malformed, or cannot be split soundly.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no split key, or no key to open or to seal for.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="split",
        inputs={"dataset": content_digest(files)},
        parameters={"test_fraction": test_fraction},
        evidence=[evidence],
    )
    source = parse_dataset(files)
    sides = split(source, key=symmetric_key(role_uri(keys_base(), "split.key")), test_fraction=test_fraction)
    recipient = pipeline_recipient()
    outputs = {
        "train": seal_dataset(train, sides.train, source.spec, recipient=recipient),
        "test": seal_dataset(test, sides.test, source.spec, recipient=recipient),
    }
    return begun.finish(bundle=bundle, outputs=outputs, figures=sides.figures)
