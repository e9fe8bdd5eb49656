"""`merge_shards`: one data set of what all shards of a step made, and one report of theirs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from portcullis.at_rest import pipeline_key, pipeline_recipient, product_digest, seal_dataset, stream_sealed
from portcullis.dataset import DatasetSpec, DatasetStream
from portcullis.digest import canonical_json
from portcullis.errors import DataError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.pii.figures import pair_figures, pairs_in
from portcullis.sealing.recipients import Opener
from portcullis.table import RowDigester, TableStream, digested, table_schema


@dataclass(frozen=True)
class _Shard:
    """What one shard made: where it lies, and its digest as the evidence has it."""

    path: Path
    digest: str

    @contextlib.contextmanager
    def open(self, key: Opener) -> Iterator[DatasetStream]:
        """Open it anew, and so digest it anew: the handles of all shards would be too many to keep."""
        with stream_sealed(self.path, key=key) as source:
            if source.digest != self.digest:
                raise DataError(f"{self.path} changed while it was read; leave it alone and run again")
            yield source


def merge_shards(
    *, step: str, datasets: Sequence[Path], evidence: Sequence[Path], merged: Path, bundle: Path
) -> Statement:
    """Join what the shards of a step made, in the order of their indices, whatever order they come in.

    One shard is open at a time. The data set, its digest and its logical root are those that the step would have made
    of the whole table; the counts that the shards state are added up.

    Args:
        step: This step's name in the policy.
        datasets: The shards' sealed data sets, in any order.
        evidence: Their bundles of evidence.
        merged: Where the joined data set goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold; or a shard is missing, repeated, or of another run; or all together
            set more records aside than the policy allows.
        DataError: A data set is malformed, or the shards have different columns or descriptions.
        SealError: One was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open or to seal for.
    """
    key = pipeline_key()
    found = [_Shard(path, product_digest(path)) for path in datasets]
    begun = begin(
        step,
        stage="merge_shards",
        inputs={},
        parameters={},
        evidence=evidence,
        shards={"dataset": [shard.digest for shard in found]},
    )
    by_digest = {shard.digest: shard for shard in found}
    shards = [by_digest[digest] for digest in begun.of_shards("dataset")]
    table, spec = _joined(shards, key)
    digester = RowDigester(table.schema, table.rows)
    digest = seal_dataset(merged, digested(table, digester), spec, recipient=pipeline_recipient())
    figures: dict[str, Figure] = {
        "rows": table.rows,
        "columns": len(table.schema),
        "shards": len(shards),
        "logical_root": digester.digests().root,
        "schema": canonical_json([list(column) for column in table_schema(table)]).decode(),
    }
    makers = {source.partition(".")[0] for source in begun.rule.inputs.values()}
    masked = merged_counts([begun.chain.statements[maker].figures for maker in makers])
    read = quarantined_counts([it.figures for it in begun.chain.statements.values() if it.stage == "ingest"])
    return begun.finish(bundle=bundle, outputs={"dataset": digest}, figures={**masked, **read, **figures})


def quarantined_counts(shards: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Add up how many records the shards of `ingest` say that they set aside, in all and by reason.

    Args:
        shards: Each shard's figures.
    """
    sums: dict[str, int] = {}
    for figures in shards:
        for name, figure in figures.items():
            if name.partition("_")[0] == "quarantined" and isinstance(figure, int):
                sums[name] = sums.get(name, 0) + figure
    return dict(sums)


def merged_counts(shards: Sequence[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Add up what the shards of `mask_pii` say that they masked: exactly what it would say of the whole table.

    Args:
        shards: Each shard's figures.
    """
    sums: dict[str, int] = {}
    pairs: dict[str, dict[str, int]] = {}
    for figures in shards:
        for name, figure in figures.items():
            if name.startswith("masked_") and isinstance(figure, int):
                sums[name] = sums.get(name, 0) + figure
        for column, entities in pairs_in("masked", figures).items():
            for entity, count in entities.items():
                known = pairs.setdefault(column, {})
                known[entity] = known.get(entity, 0) + count
    # A shard with too many pairs states none; what the others state is then not all of it, and is left out.
    whole = sum(sum(entities.values()) for entities in pairs.values()) == sum(sums.values())
    return {**sums, **(pair_figures("masked", pairs) if whole else {})}


def _joined(shards: Sequence[_Shard], key: Opener) -> tuple[TableStream, DatasetSpec]:
    rows = 0
    alike: list[tuple[pa.Schema, DatasetSpec]] = []
    for index, shard in enumerate(shards):
        with shard.open(key) as source:
            alike.append((source.table.schema, source.spec))
            rows += source.table.rows
        if alike[index] != alike[0]:
            raise DataError(f"shard {index} has other columns, or another description, than shard 0")

    def pieces() -> Iterator[pa.Table]:
        for shard in shards:
            with shard.open(key) as source:
                yield from source.table.pieces()

    schema, spec = alike[0]
    return TableStream(schema, rows, pieces), spec
