"""`dp_noise`: noise on declared columns of a data set, with the exact epsilon of what was implemented."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import pipeline_recipient, read_input, seal_dataset, sealed_digest
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.ledger.charge import charge_step
from portcullis.ledger.mechanisms import Pure
from portcullis.ledger.settings import LedgerSettings
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.page import noise_page
from portcullis.privacy.settings import NoisePlan
from portcullis.privacy.trial import require_sound, trial

_log = logging.getLogger(__name__)


def dp_noise(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    plan: Mapping[str, Any],
    ledger: Mapping[str, Any],
    noised: Path,
    report: Path,
    bundle: Path,
) -> Statement:
    """Add noise to the declared columns of a data set, and treat the other columns and the rows as declared.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence.
        plan: What gets noise, and what becomes of the rest, whole: `NoisePlan.to_dict`.
        ledger: The fields of `LedgerSettings`: the budget of the data set over all runs, charged before anything is
            written. Empty where no column gets noise.
        noised: Where the noisy data set goes. The original values of a noised column are not in it.
        report: Where the HTML report goes.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The plan or the ledger is not a sound one, or an epsilon is too small for its mechanism.
        EvidenceError: The evidence does not hold for this very data set; or the ledger was altered or rolled back, or
            counts another unit, or this step of this run was charged before; or the noise, tried on made-up cells, is
            not what its epsilon speaks of.
        InconclusiveError: The ledger cannot be reached.
        PolicyError: The policy does not name this very plan and ledger.
        BudgetError: With this release, all runs together would spend more than the policy allows.
        DataError: As `noise_dataset`, or the data set is malformed.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open it or to seal for.
    """
    wanted = NoisePlan.parse(plan)
    account = LedgerSettings.from_dict(ledger) if wanted.columns or ledger else None
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="dp_noise",
        inputs={"dataset": content_digest(files)},
        parameters={**wanted.to_dict(), "ledger": dict(ledger)},
        evidence=[evidence],
    )
    result = noise_dataset(parse_dataset(files), wanted)
    for figure, said in (("low_epsilon", "have an epsilon below 1"), ("drowned", "are drowned, cell by cell")):
        if result.figures[figure]:
            _log.warning("dp_noise: these columns %s: %s", said, result.figures[figure])
    figures, recipient = dict(result.figures), pipeline_recipient()
    if wanted.columns and account:
        tried = trial(result.mechanisms, result.table)
        require_sound(tried)
        figures |= tried
        unit = "person" if wanted.contribution else "row"
        output = sealed_digest(result.table, result.spec)
        figures |= charge_step(begun, account, Pure(result.epsilon), unit=unit, output=output).figures
    digest = seal_dataset(noised, result.table, result.spec, recipient=recipient)
    statement = begun.finish(bundle=bundle, outputs={"dataset": digest}, figures=figures)
    write_bytes(report, noise_page(statement).encode())
    return statement
