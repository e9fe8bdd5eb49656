"""`mask_pii` and its gate: identifiers out, then measured again by another path."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.at_rest import open_input, pipeline_recipient, seal_dataset
from portcullis.errors import DataError
from portcullis.evidence.chain import Chain
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.files import write_bytes
from portcullis.keys import role_uri, symmetric_key
from portcullis.pii.figures import pair_figures, pairs_in
from portcullis.pii.mask import mask_stream
from portcullis.pii.page import PiiReport
from portcullis.pii.plan import masking_plan
from portcullis.pii.residual import Residual, search_residual
from portcullis.report import gate_page


def mask_pii(
    *,
    step: str,
    dataset: Path,
    evidence: Path,
    masking: Mapping[str, Any],
    masked: Path,
    bundle: Path,
    head: Path | None = None,
) -> Statement:
    """Mask a data set with the masking key, consistently across columns, files and runs, a piece at a time.

    Args:
        step: This step's name in the policy.
        dataset: The data set's directory.
        evidence: Its bundle of evidence.
        masking: The masking policy, whole: `MaskingPlan.to_dict`.
        masked: Where the masked data set goes.
        bundle: Where the evidence goes.
        head: For a shard, the first rows of the whole table, as `plan_shards` wrote them: what a column holds is judged
            by them, and so is the same in every shard. The data set's own where None.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        ConfigError: As `masking_plan`.
        DataError: The data set is malformed or holds something that cannot be masked.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no masking key, or no key to open or to seal for.
    """
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_input(step, "dataset", dataset))
        first = opened.enter_context(open_input(step, "head", head)) if head else None
        begun = begin(
            step,
            stage="mask_pii",
            inputs={"dataset": source.digest} | ({"head": first.digest} if first else {}),
            parameters={"masking": dict(masking)},
            evidence=[evidence],
        )
        spec = source.spec
        plan = masking_plan(spec, masking)
        key = symmetric_key(role_uri(keys_base(), "masking.key"))
        stream = mask_stream(source.table, plan, key=key, head=first.table if first else None)
        digest = seal_dataset(masked, stream.table, spec, recipient=pipeline_recipient())
    report = stream.report()
    figures = {f"masked_{column}": sum(counts.values()) for column, counts in report.counts.items()}
    figures |= pair_figures("masked", report.counts)
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures={"rows": report.rows, **figures})


def residual_pii(
    *, step: str, dataset: Path, evidence: Path, masking: Mapping[str, Any], report: Path, details: Path, bundle: Path
) -> Statement:
    """Judge a masked data set: search it again, by other rules than those that masked it, a piece at a time.

    Args:
        step: This gate's name in the policy.
        dataset: The masked data set's directory.
        evidence: Its bundle of evidence.
        masking: The policy that it was masked by, whole.
        report: Where the HTML report goes.
        details: Where the same goes as JSON; see `portcullis.pii.page`.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        SealError: The data set was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open it.
    """
    with open_input(step, "dataset", dataset) as masked:
        begun = begin(
            step,
            stage="residual_pii_gate",
            inputs={"dataset": masked.digest},
            parameters={"masking": dict(masking)},
            evidence=[evidence],
        )
        residual: Residual | None = None
        inconclusive = ""
        try:
            table = masked.table
            residual = search_residual(table.schema, table.pieces(), masking_plan(masked.spec, masking))
        except DataError as error:
            inconclusive = str(error)
    figures = residual.figures() if residual else {}
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    found = PiiReport(residual, _masked(begun.chain), reason=statement.reason)
    write_bytes(report, gate_page(statement, begun.rule, found.sections()).encode())
    write_bytes(details, found.to_json())
    return statement


def _masked(chain: Chain) -> dict[str, dict[str, int]]:
    """Return how many the evidence says were masked, by column and entity: of all steps that masked a part of it."""
    counts: dict[str, Counter[str]] = {}
    for statement in chain.statements.values():
        if statement.stage == "mask_pii":
            for column, entities in pairs_in("masked", statement.figures).items():
                counts.setdefault(column, Counter()).update(entities)
    return {column: dict(entities) for column, entities in counts.items()}
