"""`dp_noise`: noise on declared columns of a data set, with the exact epsilon of what was implemented."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from portcullis.at_rest import pipeline_recipient, read_input, seal_dataset
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.settings import noised_columns


def dp_noise(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    columns: Mapping[str, Mapping[str, float]],
    budget: float,
    noised: Path,
    bundle: Path,
) -> Statement:
    """Add noise to the declared columns of a data set; rows keep their number and order.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence.
        columns: Column to exactly `low`, `high`, `epsilon` and `steps` (see `NoisedColumn`); none passes the data on.
        budget: Most that the epsilons of one row may add up to.
        noised: Where the noisy data set goes. The original values of a noised column are not in it.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The columns are not described so, or an epsilon is too small for its grid.
        EvidenceError: The evidence does not hold for this very data set.
        PolicyError: The policy does not name these columns, bounds, epsilons or this budget.
        DataError: As `noise_dataset`, or the data set is malformed.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open it or to seal for.
    """
    wanted = noised_columns(columns)
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="dp_noise",
        inputs={"dataset": content_digest(files)},
        parameters={
            "columns": {name: dataclasses.asdict(column) for name, column in wanted.items()},
            "budget": budget,
        },
        evidence=[evidence],
    )
    source = parse_dataset(files)
    result = noise_dataset(source, wanted, budget=budget)
    digest = seal_dataset(noised, result.table, source.spec, recipient=pipeline_recipient())
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures=result.figures)
