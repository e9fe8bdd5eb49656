"""`ingest`: read the raw data once, refuse what is malformed, and attest exactly what was read."""

from pathlib import Path

from portcullis.at_rest import pipeline_recipient, seal_dataset
from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, path_digest, sha256
from portcullis.errors import DataError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.evidence.trust import now_ms
from portcullis.files import atomic_path
from portcullis.ingest.quarantine import seal_quarantine
from portcullis.ingest.readers import open_source
from portcullis.table import RowDigester, digested, table_schema

MAX_SCHEMA_BYTES = 1 << 20  # far below what one line of evidence may hold


def ingest(
    *, step: str, nonce: str, evidence: Path, uri: str, spec: str, dataset: Path, quarantine: Path, bundle: Path
) -> Statement:
    """Read a source, of any size, and write it as a sealed data set.

    Args:
        step: This step's name in the policy.
        nonce: The run's nonce, as `preflight` returned it.
        evidence: The bundle that `preflight` wrote.
        uri: The source: a local path, a `file:`, `s3://`, `gs://` or `minio://` URI, or `builtin:cheque-digits`.
        spec: The data-set description, YAML.
        dataset: Where the data set goes.
        quarantine: Where the malformed records go that the description allows to be set aside; with none it is empty.
        bundle: Where the evidence goes.

    Raises:
        ConfigError: The description is malformed.
        DataError: The source is malformed; the message gives file and position. Or its schema is larger than evidence.
        EvidenceError: The evidence does not hold, or is of another run.
        KeyMaterialError: There is no key to seal for.
    """
    started = now_ms()
    described = DatasetSpec.from_yaml(spec)
    source = open_source(uri, described)
    begun = begin(
        step,
        stage="ingest",
        inputs={"nonce": sha256(nonce.encode()), "raw": source.raw_digest},
        parameters={"spec": described.to_dict()},
        evidence=[evidence],
        started=started,
    )
    table = source.table
    schema = canonical_json([list(column) for column in table_schema(table)])
    if len(schema) > MAX_SCHEMA_BYTES:
        raise DataError(f"the names of the columns take more than {MAX_SCHEMA_BYTES} bytes; shorten them")
    digester = RowDigester(table.schema, table.rows)
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
            "quarantined": quarantined,
            **{f"quarantined_{reason}": count for reason, count in sorted(source.malformed.items())},
            "quarantine_sha256": content,
            "columns": len(table.schema),
            "logical_root": digester.digests().root,
            "schema": schema.decode(),
        },
    )
