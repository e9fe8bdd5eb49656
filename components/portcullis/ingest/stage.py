"""`ingest`: read the raw data once, refuse what is malformed, and attest exactly what was read.

Over shards, `survey_shard` looks at each part and `plan_shards` decides what depends on all of them; then `ingest`
reads each part once more, as the plan says.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from portcullis.at_rest import pipeline_key, pipeline_recipient, product_digest, seal_dataset, stream_sealed
from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, path_digest, sha256
from portcullis.errors import DataError, UsageError
from portcullis.evidence.shards import Shard
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.evidence.trust import now_ms
from portcullis.files import atomic_path, read_bytes, write_bytes
from portcullis.ingest.column_types import typed
from portcullis.ingest.parts import SourcePart, source_part
from portcullis.ingest.plan import Plan, ShardSurvey, plan_of
from portcullis.ingest.quarantine import quarantine_figures, seal_quarantine
from portcullis.ingest.readers import SourceStream, open_source, read_pieces, set_aside, setting_aside, typed_pieces
from portcullis.ingest.readers import survey as survey_part
from portcullis.table import RowDigester, TableStream, digested, head_of, table_schema

MAX_SCHEMA_BYTES = 1 << 20  # far below what one line of evidence may hold
MAX_PLAN_BYTES = 16 << 20  # a survey or a plan names every file and column


def ingest(
    *,
    step: str,
    nonce: str,
    evidence: Path,
    uri: str,
    spec: str,
    dataset: Path,
    quarantine: Path,
    bundle: Path,
    plan: Path | None = None,
) -> Statement:
    """Read a source, of any size, or a shard's part of it, and write it as a sealed data set.

    Args:
        step: This step's name in the policy, which also says which shard it is.
        nonce: The run's nonce, as `preflight` returned it.
        evidence: The bundle that `preflight` wrote; of a shard, the one that `plan_shards` wrote.
        uri: The source: a local path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`.
        spec: The data-set description, YAML.
        dataset: Where the data set goes.
        quarantine: Where the malformed records go that the description allows to be set aside; with none it is empty.
        bundle: Where the evidence goes.
        plan: For a shard, what `plan_shards` wrote.

    Raises:
        ConfigError: The description is malformed.
        DataError: The source is malformed; the message gives file and position. Or its schema is larger than evidence.
        EvidenceError: The evidence does not hold, or is of another run; or the source is not the one of the plan.
        KeyMaterialError: There is no key to seal for.
        UsageError: There is a plan, and the step is no shard.
    """
    started = now_ms()
    described = DatasetSpec.from_yaml(spec)
    inputs = {"nonce": sha256(nonce.encode())}
    source: SourceStream | None = None
    if plan is None:
        source = open_source(uri, described)
        inputs |= {"raw": source.raw_digest}
    else:
        shard, planned = _shard(step), _read(plan)
        part = source_part(uri, shard, described)
        inputs |= {"raw": part.sources.digest, "plan": sha256(planned)}
    begun = begin(
        step,
        stage="ingest",
        inputs=inputs,
        parameters={"spec": described.to_dict()},
        evidence=[evidence],
        started=started,
    )
    if source is None:
        source = planned_source(part, Plan.parse(planned), shard, described)
    table = source.table
    digester = RowDigester(table.schema, table.rows)
    schema = _schema_figure(table.schema)
    recipient = pipeline_recipient()
    with atomic_path(quarantine) as temporary:  # it appears with the data set, or not at all
        quarantined, content = seal_quarantine(temporary, source.set_aside(), recipient=recipient)
        if quarantined != sum(source.malformed.values()):
            raise DataError("the source changed while it was read; leave it alone and run again")
        digest = seal_dataset(dataset, digested(table, digester), source.spec, recipient=recipient)
    return begun.finish(
        bundle=bundle,
        outputs={"dataset": digest, "quarantine": path_digest(quarantine)},
        figures={
            "source": uri,
            "reader": source.reader,
            "bytes": sum(entry.size for entry in source.files),
            "files": len(source.files),
            "records": source.records,
            "rows": table.rows,
            **quarantine_figures(source.malformed),
            "quarantine_sha256": content,
            "columns": len(table.schema),
            "logical_root": digester.digests().root,
            "schema": schema,
        },
    )


def survey_shard(
    *, step: str, nonce: str, evidence: Path, uri: str, spec: str, survey: Path, head: Path, bundle: Path
) -> Statement:
    """Check every cell of a shard's part of a source, and tell what its columns hold, for the plan.

    Args:
        step: This step's name in the policy, which also says which shard it is.
        nonce: As for `ingest`; so are the next three.
        evidence: The bundle that `preflight` wrote.
        uri: The source.
        spec: The data-set description, YAML.
        survey: Where the survey goes (`portcullis.ingest.plan`).
        head: Where the part's first rows go, as they are written, sealed.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The description is malformed.
        DataError: The part is malformed, or more of its records than the description allows to be set aside, or all.
        EvidenceError: The evidence does not hold.
        KeyMaterialError: There is no key to seal for.
        UsageError: The step is no shard.
    """
    started = now_ms()
    described = DatasetSpec.from_yaml(spec)
    shard = _shard(step)
    part = source_part(uri, shard, described)
    begun = begin(
        step,
        stage="survey_shard",
        inputs={"nonce": sha256(nonce.encode()), "raw": part.sources.digest},
        parameters={"spec": described.to_dict()},
        evidence=[evidence],
        started=started,
    )
    found = survey_part(part.sources, described, at_most=described.quarantine_at_most)
    check = setting_aside(described, found.malformed)
    rows = TableStream(found.columns, found.rows, lambda: read_pieces(part.sources, check))
    resolved = described.resolve(found.columns.names)
    head_digest = seal_dataset(head, head_of(rows), resolved, recipient=pipeline_recipient())
    document = ShardSurvey.of(shard, part, found).encode()
    write_bytes(survey, document)
    return begun.finish(
        bundle=bundle,
        outputs={"raw": part.sources.digest, "survey": sha256(document), "head": head_digest},
        figures={
            "files": len(part.sources.files),
            "rows": found.rows,
            **quarantine_figures(found.malformed),
            "columns": len(found.columns),
        },
    )


def plan_shards(
    *,
    step: str,
    surveys: Sequence[Path],
    heads: Sequence[Path],
    evidence: Sequence[Path],
    spec: str,
    plan: Path,
    head: Path,
    bundle: Path,
) -> Statement:
    """Decide what depends on the whole source: each column's type, and the head by which columns are judged.

    Args:
        step: This step's name in the policy.
        surveys: What each shard surveyed, in any order.
        heads: The first rows of each, in any order.
        evidence: Their bundles of evidence.
        spec: The data-set description, YAML.
        plan: Where the plan goes (`portcullis.ingest.plan`).
        head: Where the first rows of the whole go, 8,192 at most, under their types and sealed.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The description is malformed, or contradicts the header.
        DataError: The shards saw different sources, or cut them otherwise; or they found more malformed records
            together than the description allows to be set aside.
        EvidenceError: The evidence does not hold; or a shard is missing, repeated, or of another run.
        SealError: A head was altered at rest, or lies in plain text.
        KeyMaterialError: There is no key to open or to seal for.
    """
    described = DatasetSpec.from_yaml(spec)
    key = pipeline_key()
    written = [(sha256(data), data) for data in map(_read, surveys)]
    first_rows = [(product_digest(path), path) for path in heads]
    begun = begin(
        step,
        stage="plan_shards",
        inputs={},
        parameters={"spec": described.to_dict()},
        evidence=evidence,
        shards={name: [digest for digest, _ in given] for name, given in (("survey", written), ("head", first_rows))},
    )
    documents, paths = dict(written), dict(first_rows)
    planned = plan_of([ShardSurvey.parse(documents[it]) for it in begun.of_shards("survey")], described)

    def rows() -> Iterator[pa.Table]:
        for digest in begun.of_shards("head"):
            with stream_sealed(paths[digest], key=key) as source:
                if source.digest != digest:
                    raise DataError("a shard's head changed while it was read; leave it alone and run again")
                for piece in source.table.pieces():
                    yield typed(piece, planned.schema)

    whole = head_of(TableStream(planned.schema, sum(planned.rows), rows))
    resolved = described.resolve(planned.schema.names)
    head_digest = seal_dataset(head, whole, resolved, recipient=pipeline_recipient())
    document = planned.encode()
    write_bytes(plan, document)
    return begun.finish(
        bundle=bundle,
        outputs={"plan": sha256(document), "head": head_digest},
        figures={
            "shards": len(planned.rows),
            "files": len(planned.files),
            "bytes": sum(entry.size for entry in planned.files),
            "rows": sum(planned.rows),
            **quarantine_figures(*planned.malformed),
            "columns": len(planned.schema),
            "raw": planned.raw,
            "schema": _schema_figure(planned.schema),
        },
    )


def planned_source(part: SourcePart, plan: Plan, shard: Shard, spec: DatasetSpec) -> SourceStream:
    """Return a shard's part of a source under the types of the plan.

    Raises:
        DataError: The plan is of another number of shards.
    """
    if len(plan.rows) != shard.count:
        raise DataError(f"the plan is for {len(plan.rows)} shards, not {shard.count}")
    sources, malformed = part.sources, plan.malformed[shard.index]
    check = setting_aside(spec, malformed)
    table = TableStream(plan.schema, plan.rows[shard.index], lambda: typed_pieces(sources, plan.schema, check))
    return SourceStream(
        table,
        spec.resolve(plan.schema.names),
        tuple(file.entry for file in sources.files),
        sources.reader,
        sources.digest,
        table.rows + sum(malformed.values()),
        malformed,
        lambda: set_aside(sources, check),
    )


def _schema_figure(schema: pa.Schema) -> str:
    figure = canonical_json([list(column) for column in table_schema(schema)])
    if len(figure) > MAX_SCHEMA_BYTES:
        raise DataError(f"the names of the columns take more than {MAX_SCHEMA_BYTES} bytes; shorten them")
    return figure.decode()


def _shard(step: str) -> Shard:
    shard = Shard.of(step)
    if shard is None:
        raise UsageError(f"step {step!r} names no shard; write it as {step}#0/4")
    return shard


def _read(path: Path) -> bytes:
    return read_bytes(path, limit=MAX_PLAN_BYTES)
