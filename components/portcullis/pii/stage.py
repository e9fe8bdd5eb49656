"""`mask_pii` and its gate: identifiers out, then measured again by another path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import open_input, pipeline_recipient, read_input, seal_dataset
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.files import write_bytes
from portcullis.keys import role_uri, symmetric_key
from portcullis.pii.mask import mask_stream
from portcullis.pii.plan import masking_plan
from portcullis.pii.residual import residual_figures
from portcullis.report import gate_page


def mask_pii(
    *, step: str, dataset: Path, evidence: Path, masking: Mapping[str, Any], masked: Path, bundle: Path
) -> Statement:
    """Mask a data set with the masking key, consistently across columns, files and runs, a piece at a time.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence.
        masking: The masking policy, whole: `MaskingPlan.to_dict`.
        masked: Where the masked data set goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        ConfigError: As `masking_plan`.
        DataError: The data set is malformed or holds something that cannot be masked.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no masking key, or no key to open or to seal for.
    """
    with open_input(step, "dataset", dataset) as source:
        begun = begin(
            step,
            stage="mask_pii",
            inputs={"dataset": source.digest},
            parameters={"masking": dict(masking)},
            evidence=[evidence],
        )
        spec = source.spec
        plan = masking_plan(spec, masking)
        key = symmetric_key(role_uri(keys_base(), "masking.key"))
        stream = mask_stream(source.table, plan, key=key)
        digest = seal_dataset(masked, stream.table, spec, recipient=pipeline_recipient())
    report = stream.report()
    figures = {f"masked_{column}": sum(counts.values()) for column, counts in report.counts.items()}
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures={"rows": report.rows, **figures})


def residual_pii(
    *, step: str, dataset: Path, evidence: Path, masking: Mapping[str, Any], report: Path, bundle: Path
) -> Statement:
    """Judge a masked data set: search it again, by other rules than those that masked it.

    Args:
        step: This gate's name in the policy.
        dataset: The masked data set's directory.
        evidence: Its bundle of evidence.
        masking: The policy that it was masked by, whole.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open it.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="residual_pii_gate",
        inputs={"dataset": content_digest(files)},
        parameters={"masking": dict(masking)},
        evidence=[evidence],
    )
    figures: dict[str, int] = {}
    inconclusive = ""
    try:
        masked = parse_dataset(files)
        figures = residual_figures(masked.table, masking_plan(masked.spec, masking))
    except DataError as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule).encode())
    return statement
