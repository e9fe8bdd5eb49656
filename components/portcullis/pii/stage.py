"""`mask_pii` and its gate: identifiers out, then measured again by another path."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from portcullis.at_rest import pipeline_recipient, read_input, seal_dataset
from portcullis.dataset import DatasetSpec, parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import ConfigError, DataError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.files import write_bytes
from portcullis.keys import role_uri, symmetric_key
from portcullis.pii.entities import Entity
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import Detection, MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.report import gate_page


def masking_plan(spec: DatasetSpec, entities: Sequence[str], detection: str = "strict") -> MaskingPlan:
    """Return the plan for a data set: its declared columns, and the entities to look for in every text column.

    Raises:
        ConfigError: An entity or the detection is unknown.
    """
    try:
        kinds = tuple(Entity(name) for name in entities)
    except ValueError as error:
        raise ConfigError(f"{error}; known entities: {', '.join(Entity)}") from error
    return MaskingPlan(kinds, dict(spec.sensitive), cast("Detection", detection))


def mask_pii(
    *, step: str, dataset: Path, evidence: Path, entities: Sequence[str], detection: str, masked: Path, bundle: Path
) -> Statement:
    """Mask a data set with the masking key, consistently across columns, files and runs.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence.
        entities: Names of `Entity` to look for in every text column.
        detection: `strict` or `recall`; see `MaskingPlan`.
        masked: Where the masked data set goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        DataError: The data set is malformed or holds something that cannot be masked.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no masking key, or no key to open or to seal for.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="mask_pii",
        inputs={"dataset": content_digest(files)},
        parameters={"entities": list(entities), "detection": detection},
        evidence=[evidence],
    )
    source = parse_dataset(files)
    key = symmetric_key(role_uri(keys_base(), "masking.key"))
    table, report = mask_table(source.table, masking_plan(source.spec, entities, detection), key=key)
    digest = seal_dataset(masked, table, source.spec, recipient=pipeline_recipient())
    figures = {f"masked_{column}": sum(counts.values()) for column, counts in report.counts.items()}
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures={"rows": report.rows, **figures})


def residual_pii(
    *, step: str, dataset: Path, evidence: Path, entities: Sequence[str], report: Path, bundle: Path
) -> Statement:
    """Judge a masked data set: search it again, by other rules than those that masked it.

    Args:
        step: This gate's name in the policy.
        dataset: The masked data set's directory.
        evidence: Its bundle of evidence.
        entities: Names of `Entity` to look for.
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
        parameters={"entities": list(entities)},
        evidence=[evidence],
    )
    figures: dict[str, int] = {}
    inconclusive = ""
    try:
        masked = parse_dataset(files)
        figures = residual_figures(masked.table, masking_plan(masked.spec, entities))
    except DataError as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule).encode())
    return statement
