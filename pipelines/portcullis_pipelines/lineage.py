"""A run's evidence as OpenLineage events, for catalogues that show where data and models came from.

Two events, START and COMPLETE, for the run and for each of its steps, one JSON object per line. They are a function of
the verified evidence alone, so a run always exports the same bytes, and they hold no value of the data. What a
catalogue shows is for looking; it is never evidence.

- A step is a job; the id of its run follows from the run's nonce and the step's name (a UUID of version 5).
- What a step made is a dataset named `step.output`, whose version is its SHA-256; a model is a dataset too. What was
  read from outside is named as OpenLineage names such places. Nonces and policies are no datasets.
- A table has a schema and says of each column what became of it: IDENTITY, MASKED (no original value is left), or
  neither, with a description. Text in which identifiers were found and replaced is masking, but not MASKED.

Sources: OpenLineage specification 2-0-2 (https://openlineage.io/spec/2-0-2/OpenLineage.json), the facets named below
(https://openlineage.io/spec/facets/), and its naming of datasets (https://openlineage.io/docs/spec/naming).
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from portcullis.dataset import PROVENANCE, DatasetSpec
from portcullis.digest import parse_json
from portcullis.errors import ConfigError, DataError, EvidenceError
from portcullis.evidence.policy import EXTERNAL
from portcullis.evidence.statement import Statement, format_time
from portcullis.pii.plan import MaskingPlan
from portcullis.privacy.handling import treatments
from portcullis.privacy.settings import KEEP, NoisePlan
from portcullis_pipelines.outcome import Verified

_FACETS = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "columnLineage": "1-2-0/ColumnLineageDatasetFacet",
    "dataSource": "1-0-1/DatasourceDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "documentation": "1-1-0/DocumentationDatasetFacet",
    "tags": "1-0-0/TagsDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "parent": "1-2-0/ParentRunFacet",
}
_EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_REMOTE = re.compile(r"((?:s3|gs|minio)://[^/]+)/(.+)", re.DOTALL)
_NONCE = "nonce"


Name = tuple[str, str]  # of a dataset: namespace and name


@dataclass(frozen=True)
class _Column:
    """A column of a table, and what the step that wrote it did to the input's column of that name."""

    name: str
    kind: str
    became: str = "unchanged"
    label: str = "IDENTITY"  # or MASKED, or empty
    masking: bool = False


@dataclass(frozen=True)
class _Table:
    """What is known of a table: its columns, how many rows it has, and what its user said of it."""

    columns: tuple[_Column, ...]
    rows: int | None
    spec: Mapping[str, Any]


def lineage(verified: Verified) -> bytes:
    """Return the events of a run that verified, one per line.

    Raises:
        EvidenceError: The evidence of `ingest` does not state the schema of what it read.
    """
    events = _Events(verified)
    return b"".join(json.dumps(event, sort_keys=True, allow_nan=False).encode() + b"\n" for event in events.all())


class _Events:
    """Makes the events of one run, step after step in the policy's order."""

    def __init__(self, verified: Verified) -> None:
        self._verified = verified
        self._namespace = f"portcullis/{verified.policy.environment}/{verified.policy.name}"
        self._producer = f"urn:portcullis:{quote(verified.deployment.environment['portcullis'])}"
        self._digests = {f"{verified.policy.admission_step().name}.admission": verified.admission_digest}
        self._tables: dict[str, _Table] = {}

    def all(self) -> Iterator[dict[str, Any]]:
        statements, admission = self._verified.statements, self._verified.admission
        yield self._event("START", min(it.started for it in statements), "")
        for statement in self._verified.chain.statements.values():
            yield from self._step(statement)
        rule = self._verified.policy.admission_step()
        inputs = [self._dataset(source) for source in rule.inputs.values()]
        outputs = [self._dataset(f"{rule.name}.admission")]
        yield self._event("START", admission.issued, rule.name)
        yield self._event("COMPLETE", admission.issued, rule.name, inputs, outputs)
        yield from self._step(self._verified.deployment)
        yield self._event("COMPLETE", max(it.finished for it in statements), "")

    def _step(self, statement: Statement) -> Iterator[dict[str, Any]]:
        rule = self._verified.policy.step(statement.step)
        table, read = None, None  # the table that the step worked on, and its dataset
        inputs = []
        for name, source in rule.inputs.items():
            if name == "raw" and statement.stage == "ingest":  # of a shard, what `survey_shard` looked at
                table, read = _read(statement), _place(str(statement.figures["source"]))
                inputs.append(self._raw(statement, table, read, self._version(statement.inputs[name])))
            elif source in self._digests:
                inputs.append(self._dataset(source))
                if source in self._tables:
                    joined = table if statement.stage == "merge_shards" else None
                    table, read = _joined(joined, self._tables[source]), (self._namespace, source)
            elif source == EXTERNAL:
                outside = f"{self._namespace}/external", f"{statement.step}.{name}"
                inputs.append(self._named(outside, self._version(statement.inputs[name])))
        outputs = []
        if statement.kind != "gate":  # its outputs are what it judged
            for name, digest in statement.outputs.items():
                made = f"{statement.step}.{name}"
                if name == _NONCE:
                    continue
                self._digests[made] = digest
                if table and read and statement.stage in _WORK:
                    self._tables[made] = _WORK[statement.stage](statement, name, table)
                outputs.append(self._dataset(made, read))
        yield self._event("START", statement.started, statement.step)
        yield self._event("COMPLETE", statement.finished, statement.step, inputs, outputs)

    def _event(
        self,
        kind: str,
        time: int,
        step: str,
        inputs: Sequence[Mapping[str, Any]] = (),
        outputs: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Return one event; the run as a whole is the step without a name."""
        run: dict[str, Any] = {"runId": self._run_id(step)}
        if step:
            whole = {"run": {"runId": self._run_id("")}, "job": self._job("")}
            run["facets"] = {"parent": self._facet("parent", **whole)}
        return {
            "eventType": kind,
            "eventTime": format_time(time),
            "producer": self._producer,
            "schemaURL": _EVENT,
            "run": run,
            "job": self._job(step),
            "inputs": list(inputs),
            "outputs": list(outputs),
        }

    def _run_id(self, step: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:portcullis:run:{self._verified.admission.nonce}:{step}"))

    def _job(self, step: str) -> dict[str, str]:
        name = self._verified.policy.name
        return {"namespace": self._namespace, "name": f"{name}.{step}" if step else name}

    def _facet(self, facet: str, **fields: Any) -> dict[str, Any]:
        file = _FACETS[facet]
        url = f"https://openlineage.io/spec/facets/{file}.json#/$defs/{file.partition('/')[2]}"
        return {"_producer": self._producer, "_schemaURL": url, **fields}

    def _version(self, digest: str) -> dict[str, Any]:
        return {"version": self._facet("version", datasetVersion=f"sha256:{digest}")}

    def _named(self, name: Name, facets: Mapping[str, Any]) -> dict[str, Any]:
        return {"namespace": name[0], "name": name[1], "facets": dict(facets)}

    def _dataset(self, source: str, read: Name | None = None) -> dict[str, Any]:
        """Return what a step made; `read` is given by the step that made it, and is the dataset that it worked on."""
        facets = self._version(self._digests[source])
        table = self._tables.get(source)
        if table is None:
            return self._named((self._namespace, source), facets)
        facets |= self._described(table)
        if read is None:
            return self._named((self._namespace, source), facets)
        facets["columnLineage"] = self._facet(
            "columnLineage", fields={column.name: _became(column, read) for column in table.columns}
        )
        made = self._named((self._namespace, source), facets)
        if table.rows is not None:
            made["outputFacets"] = {"outputStatistics": self._facet("outputStatistics", rowCount=table.rows)}
        return made

    def _raw(self, statement: Statement, table: _Table, read: Name, version: dict[str, Any]) -> dict[str, Any]:
        """Return what was read from outside."""
        reader, uri = str(statement.figures["reader"]), _uri(str(statement.figures["source"]))
        source = {"dataSource": self._facet("dataSource", name=reader, uri=uri)}
        return self._named(read, version | self._described(table) | source)

    def _described(self, table: _Table) -> dict[str, Any]:
        fields = [{"name": column.name, "type": column.kind} for column in table.columns]
        facets = {"schema": self._facet("schema", fields=fields)}
        if table.spec["description"]:
            facets["documentation"] = self._facet("documentation", description=table.spec["description"])
        tags = [{"key": key, "value": table.spec[key], "source": "USER"} for key in PROVENANCE if table.spec[key]]
        left = {column.name for column in table.columns}
        tags += [
            {"key": "sensitive", "value": treatment, "source": "USER", "field": name}
            for name, treatment in table.spec["sensitive"].items()
            if name in left
        ]
        return facets | ({"tags": self._facet("tags", tags=tags)} if tags else {})


def _became(column: _Column, read: Name) -> dict[str, Any]:
    transformation = {
        "type": "DIRECT",
        "subtype": "IDENTITY" if column.label == "IDENTITY" else "TRANSFORMATION",
        "description": column.became,
        "masking": column.masking,
    }
    source = {"namespace": read[0], "name": read[1], "field": column.name, "transformations": [transformation]}
    labels = {"transformationType": column.label, "transformationDescription": column.became} if column.label else {}
    return {"inputFields": [source], **labels}


def _read(statement: Statement) -> _Table:
    """Return the table that `ingest` read."""
    try:
        columns = tuple(_Column(name, kind) for name, kind in parse_json(str(statement.figures["schema"]).encode()))
        spec = DatasetSpec.from_dict(statement.parameters["spec"]).to_dict()
        _ = statement.figures["source"], statement.figures["reader"]
    except (KeyError, TypeError, ValueError, DataError, ConfigError) as error:
        raise EvidenceError(f"step {statement.step!r} does not state what it read; run it again") from error
    return _Table(columns, _count(statement, "rows"), spec)


def _joined(table: _Table | None, other: _Table) -> _Table:
    """Return the table of two shards of one: of a column in which either was masked, that is said."""
    if table is None:
        return other
    pairs = zip(table.columns, other.columns, strict=True)
    return replace(table, columns=tuple(two if two.masking else one for one, two in pairs))


# By operator, what became of a cell as a whole.
_BECAME = {
    "token": "became a keyed token",
    "hash": "became a keyed hash",
    "reversible": "became a reversible token",
    "redact": "was redacted",
    "star": "was overwritten with stars",
    "generalise": "was generalised",
    "synthetic": "was replaced by a made-up one",
}


def _masked(statement: Statement, _: str, table: _Table) -> _Table:
    try:
        plan = MaskingPlan.parse(statement.parameters["masking"])
    except (KeyError, ConfigError) as error:
        raise EvidenceError(f"step {statement.step!r} does not state how it masked; run it again") from error
    columns = []
    for column in table.columns:
        operator = plan.columns.get(column.name)
        name = operator.name if operator else "scan"
        if name == "drop":
            continue
        if name in _BECAME:
            became = f"each cell {_BECAME[name]}"
            kind = column.kind if name == "generalise" else "string"
            columns.append(replace(column, kind=kind, became=became, label="MASKED", masking=True))
        elif statement.figures.get(f"masked_{column.name}"):
            columns.append(replace(column, became="identifiers in it were masked", label="", masking=True))
        else:
            columns.append(replace(column, became="unchanged", label="IDENTITY", masking=False))
    return replace(table, columns=tuple(columns), rows=_count(statement, "rows"))


def _split(statement: Statement, output: str, table: _Table) -> _Table:
    columns = tuple(_Column(column.name, column.kind) for column in table.columns)
    return replace(table, columns=columns, rows=_count(statement, output))


def _noised(statement: Statement, _: str, table: _Table) -> _Table:
    try:
        plan = NoisePlan.of_statement(statement.parameters)
        spec = DatasetSpec.from_dict(table.spec).resolve([column.name for column in table.columns], masked=True)
        handled = treatments(spec, [column.name for column in table.columns], plan)
    except (ConfigError, DataError) as error:
        raise EvidenceError(f"step {statement.step!r} does not state what it made noisy; run it again") from error
    columns = []
    for column in table.columns:
        added = plan.columns.get(column.name)
        if added:
            # A noisy value still tells of the true one, so it does not count as masked.
            columns.append(_Column(column.name, added.kind, f"noise with epsilon {added.epsilon:g}", ""))
        elif handled[column.name] == KEEP:
            columns.append(_Column(column.name, column.kind))
    return replace(table, columns=tuple(columns), rows=_count(statement, "rows"))


_WORK: Mapping[str, Callable[[Statement, str, _Table], _Table]] = {
    "ingest": lambda _statement, _output, table: table,
    "mask_pii": _masked,
    "merge_shards": lambda statement, _output, table: replace(table, rows=_count(statement, "rows")),
    "split": _split,
    "dp_noise": _noised,
}


def _count(statement: Statement, figure: str) -> int | None:
    value = statement.figures.get(figure)
    return value if isinstance(value, int) else None


def _place(source: str) -> Name:
    """Return the namespace and name of a place outside, as OpenLineage names them."""
    if remote := _REMOTE.fullmatch(source):
        return remote[1], remote[2]
    if source.startswith("builtin:"):
        return "builtin", source.removeprefix("builtin:")
    return "file", _path(source)


def _uri(source: str) -> str:
    if remote := _REMOTE.fullmatch(source):
        return f"{remote[1]}/{quote(remote[2])}"
    if source.startswith("builtin:"):
        return source
    path = quote(_path(source))
    return f"file://{path}" if path.startswith("/") else f"file:{path}"


def _path(source: str) -> str:
    return unquote(re.sub(r"file:(//(localhost)?)?", "", source, count=1)) if source.startswith("file:") else source
