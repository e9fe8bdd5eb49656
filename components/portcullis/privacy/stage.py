"""`dp_noise`: noise on declared columns of a data set, with the exact epsilon of what was implemented."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import pipeline_recipient, read_input, seal_dataset, sealed_digest
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.ledger.charge import charge_step
from portcullis.ledger.mechanisms import Pure
from portcullis.ledger.settings import LedgerSettings
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.settings import noised_columns


def dp_noise(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    columns: Mapping[str, Mapping[str, float]],
    budget: float,
    ledger: Mapping[str, Any],
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
        ledger: The fields of `LedgerSettings`: the budget of the data set over all runs, to which this release is charged
            before it is written. Empty where no column gets noise.
        noised: Where the noisy data set goes. The original values of a noised column are not in it.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The columns or the ledger are not described so, or an epsilon is too small for its grid.
        EvidenceError: The evidence does not hold for this very data set; or the ledger was altered or rolled back, or
            this step of this run was charged before.
        InconclusiveError: The ledger cannot be reached.
        PolicyError: The policy does not name these columns, bounds, epsilons or this budget.
        BudgetError: With this release, all runs together would spend more than the policy allows.
        DataError: As `noise_dataset`, or the data set is malformed.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open it or to seal for.
    """
    wanted = noised_columns(columns)
    account = LedgerSettings.from_dict(ledger) if wanted or ledger else None
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="dp_noise",
        inputs={"dataset": content_digest(files)},
        parameters={
            "columns": {name: dataclasses.asdict(column) for name, column in wanted.items()},
            "budget": budget,
            "ledger": dict(ledger),
        },
        evidence=[evidence],
    )
    source = parse_dataset(files)
    result = noise_dataset(source, wanted, budget=budget)
    figures = dict(result.figures)
    recipient = pipeline_recipient()
    if wanted and account:
        cost = Pure(float(figures["epsilon_record"]))
        figures |= charge_step(
            begun, account, cost, unit="row", output=sealed_digest(result.table, source.spec)
        ).figures
    digest = seal_dataset(noised, result.table, source.spec, recipient=recipient)
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures=figures)
