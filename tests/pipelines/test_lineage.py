"""A run's evidence as OpenLineage events: every step, edge and column, nothing else, and always the same bytes."""

import json
import uuid
from dataclasses import replace
from functools import partial

import jsonschema
import pytest

from portcullis.cli.main import _guarded, cli
from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, sha256
from portcullis.errors import EvidenceError
from portcullis.evidence.admission import Admission
from portcullis.evidence.chain import Chain
from portcullis.evidence.policy import EXTERNAL, POLICY
from portcullis.evidence.statement import Statement
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_trust, generate_keys
from portcullis_pipelines.lineage import lineage
from portcullis_pipelines.outcome import EVIDENCE, Verified

NONCE = "0123456789abcdef" * 2
NOW = 1_800_000_000_000
CONFIG = {
    "dataset": {
        "name": "customers",
        "label": {"column": "left", "classes": ["no", "yes"]},
        "features": {"columns": ["f0", "f1"], "shape": [2], "low": 0, "high": 1},
        "sensitive": {"email": "token", "note": "scan", "ssn": "drop", "remark": "scan"},
        "description": "Customers\nof 2025.",
        "licence": "internal",
        "consent": "asked when they signed",
    },
    "privacy": {
        "columns": {
            "age": {"low": 18, "high": 90, "epsilon": 1, "steps": 73},
            "income": {"low": 0, "high": 1, "epsilon": 0.5, "steps": 4},
            "left": {"categories": ["no", "yes"], "epsilon": 0.5},
        },
        "budget": 2,
        "others": {"features": "keep", "label": "keep", "ids": "keep", "text": "drop"},
        "rows": "keep",
    },
}
SCHEMA = [
    *(["email", "string"], ["note", "string"], ["ssn", "string"], ["remark", "string"], ["age", "int64"]),
    *(["income", "int64"], ["f0", "float64"], ["f1", "float64"], ["left", "string"]),
]
FIGURES = {
    "ingest": {
        "source": "s3://bucket/2025/custo mers.csv",
        "reader": "csv",
        "rows": 100,
        "schema": canonical_json(SCHEMA).decode(),
    },
    "mask_pii": {"rows": 100, "masked_email": 100, "masked_note": 7, "masked_remark": 0, "masked_left": 0},
    "split": {"rows": 100, "train": 80, "test": 20},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("home") / "customers")
    generate_keys(home)
    return ensure_trust(home, ReferenceConfig.from_dict(CONFIG))[0].policy


def run_of(policy, figures=FIGURES, nonce=NONCE):
    """Return what verifying a run of this policy gives, its digests made up but fitting."""
    statements, digests = {}, {POLICY: policy.digest, EXTERNAL: sha256(b"raw")}
    for index, rule in enumerate(policy.steps.values()):
        inputs = {name: digests[source] for name, source in rule.inputs.items()}
        if rule.kind == "gate":
            outputs = {name: inputs[name] for name in rule.outputs}
        else:
            outputs = {name: sha256(f"{rule.name}.{name}".encode()) for name in rule.outputs}
            digests |= {f"{rule.name}.{name}": digest for name, digest in outputs.items()}
        statements[rule.name] = Statement(
            step=rule.name,
            stage=rule.stage,
            kind="gate" if rule.kind == "gate" else "transform",
            nonce=nonce,
            started=NOW + 1000 * index,
            finished=NOW + 1000 * index + 500,
            inputs=inputs,
            outputs=outputs,
            parameters=rule.parameters,
            figures=figures.get(rule.name, {}),
            environment={"portcullis": "0.1.0"},
            verdict="PASSED" if rule.kind == "gate" else None,
        )
    admit, deployment = statements.pop("admit"), statements.pop("deploy")
    admission = Admission(
        content=sha256(b"c"),
        sealed=digests["encrypt.sealed"],
        policy=policy.digest,
        policy_name=policy.name,
        policy_version=1,
        environment="development",
        development=True,
        nonce=nonce,
        issued=admit.started,
        expires=NOW * 2,
        evidence=(),
    )
    return Verified(policy, Chain(statements, {}, nonce), admission, digests["admit.admission"], deployment)


@pytest.fixture
def events(policy):
    return [json.loads(line) for line in lineage(run_of(policy)).splitlines()]


def completed(events, step):
    (found,) = (it for it in events if it["job"]["name"] == f"customers.{step}" and it["eventType"] == "COMPLETE")
    return found


def dataset(events, name):
    step, _, _ = name.partition(".")
    (found,) = (it for it in completed(events, step)["outputs"] if it["name"] == name)
    return found


# The fields that are written, as OpenLineage 2-0-2 and its facets define them (https://openlineage.io/spec/2-0-2/
# OpenLineage.json, https://openlineage.io/spec/facets/). Stricter than the original: no field beside these.


def shape(required, optional=None):
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(items):
    return {"type": "array", "items": items}


def facet(name, version, required, optional=None):
    url = f"https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"
    return shape({"_producer": URI, "_schemaURL": {"const": url}, **required}, optional)


TEXT = {"type": "string", "minLength": 1}
URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:[!-~]+$"}
JOB = shape({"namespace": TEXT, "name": TEXT})
UUID = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"}
TRANSFORMATION = shape(
    {"type": {"enum": ["DIRECT", "INDIRECT"]}},
    {"subtype": {"enum": ["IDENTITY", "TRANSFORMATION"]}, "description": TEXT, "masking": {"type": "boolean"}},
)
FIELD = shape({"namespace": TEXT, "name": TEXT, "field": TEXT}, {"transformations": listed(TRANSFORMATION)})
LINEAGE = shape(
    {"inputFields": listed(FIELD)},
    {"transformationType": {"enum": ["IDENTITY", "MASKED"]}, "transformationDescription": TEXT},
)
DATASET_FACETS = {
    "schema": facet(
        "SchemaDatasetFacet",
        "1-2-0",
        {"fields": listed(shape({"name": TEXT}, {"type": {"enum": ["int64", "float64", "bool", "string"]}}))},
    ),
    "columnLineage": facet(
        "ColumnLineageDatasetFacet", "1-2-0", {"fields": {"type": "object", "additionalProperties": LINEAGE}}
    ),
    "dataSource": facet("DatasourceDatasetFacet", "1-0-1", {"name": TEXT, "uri": URI}),
    "version": facet(
        "DatasetVersionDatasetFacet",
        "1-0-1",
        {"datasetVersion": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}},
    ),
    "documentation": facet("DocumentationDatasetFacet", "1-1-0", {"description": TEXT}),
    "tags": facet(
        "TagsDatasetFacet",
        "1-0-0",
        {"tags": listed(shape({"key": TEXT, "value": TEXT}, {"source": TEXT, "field": TEXT}))},
    ),
}
DATASET = {"namespace": TEXT, "name": TEXT, "facets": shape({"version": DATASET_FACETS["version"]}, DATASET_FACETS)}
STATISTICS = facet("OutputStatisticsOutputDatasetFacet", "1-0-2", {"rowCount": {"type": "integer"}})
EVENT = shape(
    {
        "eventType": {"enum": ["START", "COMPLETE"]},
        "eventTime": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
        "producer": URI,
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "run": shape(
            {"runId": UUID},
            {
                "facets": shape(
                    {"parent": facet("ParentRunFacet", "1-2-0", {"run": shape({"runId": UUID}), "job": JOB})}
                )
            },
        ),
        "job": JOB,
        "inputs": listed(shape(DATASET)),
        "outputs": listed(shape(DATASET, {"outputFacets": shape({"outputStatistics": STATISTICS})})),
    }
)


VALIDATOR = jsonschema.Draft202012Validator(EVENT)


def check(events):
    """Hold the events against the schema, and against what no schema says."""
    for event in events:
        VALIDATOR.validate(event)
    runs = {}
    for event in events:
        runs.setdefault(event["run"]["runId"], []).append(event)
    for pair in runs.values():
        assert [it["eventType"] for it in pair] == ["START", "COMPLETE"]
        assert pair[0]["job"] == pair[1]["job"] and pair[0]["eventTime"] <= pair[1]["eventTime"]
    whole = events[0]["run"]["runId"]
    assert [it["run"]["runId"] for it in events].count(whole) == 2 and events[-1]["run"]["runId"] == whole
    for event in events[1:-1]:
        parent = event["run"]["facets"]["parent"]
        assert (parent["run"]["runId"], parent["job"]) == (whole, events[0]["job"])
    # What a step takes was made before, as it is, or came from outside.
    made = {}
    for event in events:
        for it in event["inputs"]:
            if it["namespace"] == event["job"]["namespace"]:
                assert made[it["name"]] == it["facets"]["version"]
        made |= {it["name"]: it["facets"]["version"] for it in event["outputs"]}
        for it in event["outputs"]:
            taken = {(one["namespace"], one["name"]): one for one in event["inputs"]}
            lineage = it["facets"].get("columnLineage", {"fields": {}})["fields"]
            assert set(lineage) == {one["name"] for one in it["facets"].get("schema", {"fields": []})["fields"]}
            for field in (one for column in lineage.values() for one in column["inputFields"]):
                source = taken[field["namespace"], field["name"]]["facets"]["schema"]["fields"]
                assert field["field"] in [one["name"] for one in source]


def test_the_events_are_openlineages(events):
    check(events)


def test_a_wrong_field_would_be_noticed(events):
    for wrong in ({"eventType": "DONE"}, {"more": 1}, {"eventTime": "yesterday"}, {"producer": "no uri"}):
        with pytest.raises(jsonschema.ValidationError):
            check([events[0] | wrong, *events[1:]])


def test_every_step_is_a_job_of_the_run(events, policy):
    names = [event["job"]["name"] for event in events if event["eventType"] == "START"]
    assert names == ["customers", *(f"customers.{name}" for name in policy.steps)]
    assert {event["job"]["namespace"] for event in events} == {"portcullis/development/customers"}


def test_the_edges_are_the_policys(events, policy):
    for rule in policy.steps.values():
        event = completed(events, rule.name)
        expected = {source for source in rule.inputs.values() if source not in (POLICY, EXTERNAL, "preflight.nonce")}
        own = {it["name"] for it in event["inputs"] if it["namespace"] == event["job"]["namespace"]}
        assert own == expected
        assert {it["name"] for it in event["outputs"]} == (
            set() if rule.kind == "gate" else {f"{rule.name}.{name}" for name in rule.outputs if name != "nonce"}
        )


def test_the_source_is_named_and_described(events):
    (raw,) = completed(events, "ingest")["inputs"]
    assert (raw["namespace"], raw["name"]) == ("s3://bucket", "2025/custo mers.csv")
    facets = raw["facets"]
    assert (facets["dataSource"]["name"], facets["dataSource"]["uri"]) == ("csv", "s3://bucket/2025/custo%20mers.csv")
    assert facets["version"]["datasetVersion"] == f"sha256:{sha256(b'raw')}"
    assert [[it["name"], it["type"]] for it in facets["schema"]["fields"]] == SCHEMA
    assert facets["documentation"]["description"] == "Customers\nof 2025."
    tags = [(it["key"], it["value"], it.get("field")) for it in facets["tags"]["tags"]]
    assert tags == [
        ("licence", "internal", None),
        ("consent", "asked when they signed", None),
        ("sensitive", "token", "email"),
        ("sensitive", "scan", "note"),
        ("sensitive", "drop", "ssn"),
        ("sensitive", "scan", "remark"),
    ]


SOURCES = {
    "/data/a b.csv": ("file", "/data/a b.csv", "file:///data/a%20b.csv"),
    "rows": ("file", "rows", "file:rows"),
    "file:///data/a%20b.csv": ("file", "/data/a b.csv", "file:///data/a%20b.csv"),
    "file:/data": ("file", "/data", "file:///data"),
    "builtin:cheque-digits": ("builtin", "cheque-digits", "builtin:cheque-digits"),
    "gs://bucket/a/b": ("gs://bucket", "a/b", "gs://bucket/a/b"),
    "minio://bucket/é": ("minio://bucket", "é", "minio://bucket/%C3%A9"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source_has_a_name_and_a_uri(policy, source):
    figures = FIGURES | {"ingest": FIGURES["ingest"] | {"source": source}}
    found = [json.loads(line) for line in lineage(run_of(policy, figures)).splitlines()]
    check(found)
    (raw,) = completed(found, "ingest")["inputs"]
    assert (raw["namespace"], raw["name"], raw["facets"]["dataSource"]["uri"]) == SOURCES[source]


def became(events, name):
    fields = dataset(events, name)["facets"]["columnLineage"]["fields"]
    return {
        column: (it.get("transformationType"), it["inputFields"][0]["transformations"][0]["masking"])
        for column, it in fields.items()
    }


def test_columns_say_what_became_of_them(events):
    same = ("IDENTITY", False)
    assert became(events, "ingest.dataset") == {name: same for name, _ in SCHEMA}
    assert became(events, "mask_pii.dataset") == {
        "email": ("MASKED", True),
        "note": (None, True),
        "remark": same,
        **dict.fromkeys(("age", "income", "f0", "f1", "left"), same),
    }
    left = [name for name, _ in SCHEMA if name != "ssn"]
    assert became(events, "split.train") == became(events, "split.test") == dict.fromkeys(left, same)
    noised = became(events, "dp_noise.dataset")
    kept = [name for name in left if name not in ("note", "remark")]
    assert noised == dict.fromkeys(kept, same) | dict.fromkeys(("age", "income", "left"), (None, False))
    fields = dataset(events, "dp_noise.dataset")["facets"]["columnLineage"]["fields"]
    (said,) = fields["income"]["inputFields"][0]["transformations"]
    assert (said["subtype"], said["description"]) == ("TRANSFORMATION", "noise with epsilon 0.5")


def test_tables_have_schema_and_rows_and_models_neither(events):
    kinds = {it["name"]: it["type"] for it in dataset(events, "dp_noise.dataset")["facets"]["schema"]["fields"]}
    assert (kinds["age"], kinds["income"], kinds["left"]) == ("int64", "float64", "string")
    rows = {
        name: dataset(events, name)["outputFacets"]["outputStatistics"]["rowCount"]
        for name in ("ingest.dataset", "mask_pii.dataset", "split.train", "split.test")
    }
    assert list(rows.values()) == [100, 100, 80, 20]
    assert set(dataset(events, "train.model")["facets"]) == {"version"}
    assert set(dataset(events, "admit.admission")["facets"]) == {"version"}


def test_a_dropped_column_is_tagged_no_more(events):
    tags = dataset(events, "mask_pii.dataset")["facets"]["tags"]["tags"]
    assert "ssn" not in [it.get("field") for it in tags]


def test_the_same_run_gives_the_same_bytes_and_another_run_other_ids(policy):
    once = lineage(run_of(policy))
    assert lineage(run_of(policy)) == once
    ids = [
        {json.loads(line)["run"]["runId"] for line in it.splitlines()}
        for it in (once, lineage(run_of(policy, nonce="f" * 32)))
    ]
    assert not ids[0] & ids[1]
    assert all(uuid.UUID(it).version == 5 for it in ids[0])


BAD_SCHEMAS = ["", "null", "[1]", '[["a"]]', "{", '{"a":"b"}']


@pytest.mark.parametrize("schema", [None, *BAD_SCHEMAS])
def test_evidence_without_a_schema_is_refused(policy, schema):
    read = {name: value for name, value in FIGURES["ingest"].items() if name != "schema"}
    if schema is not None:
        read["schema"] = schema
    with pytest.raises(EvidenceError, match="step 'ingest' does not state what it read"):
        lineage(run_of(policy, FIGURES | {"ingest": read}))


@pytest.mark.parametrize("name", ["source", "reader"])
def test_evidence_without_a_source_or_reader_is_refused(policy, name):
    read = {key: value for key, value in FIGURES["ingest"].items() if key != name}
    with pytest.raises(EvidenceError, match="step 'ingest' does not state what it read"):
        lineage(run_of(policy, FIGURES | {"ingest": read}))


def test_what_a_later_step_took_from_outside_is_named_after_it(policy):
    rule = replace(policy.steps["watermark"], inputs={"model": EXTERNAL})
    changed = replace(policy, steps={**policy.steps, "watermark": rule})
    found = [json.loads(line) for line in lineage(run_of(changed)).splitlines()]
    check(found)
    (outside,) = completed(found, "watermark")["inputs"]
    assert (outside["namespace"], outside["name"]) == (
        "portcullis/development/customers/external",
        "watermark.model",
    )
    assert outside["facets"]["version"]["datasetVersion"] == f"sha256:{sha256(b'raw')}"


def test_a_real_run_is_exported_once_it_verifies(attacked, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def export(output):
        arguments = ["lineage", str(attacked.output), "--trust", str(attacked.home.trust), "--output", output]
        code = _guarded(partial(cli, arguments, prog_name="portcullis"))
        return code, *capsys.readouterr()

    capsys.readouterr()
    code, out, err = export("lineage.jsonl")
    events = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert (code, out, err) == (0, f"{len(events)} events in lineage.jsonl\n", "")
    check(events)
    (raw,) = next(it for it in events if it["job"]["name"] == "cheque-digits.ingest" and it["inputs"])["inputs"]
    assert (raw["namespace"], raw["name"]) == ("builtin", "cheque-digits")
    assert raw["facets"]["tags"]["tags"][0]["key"] == "licence"
    figures = attacked.statement("ingest").figures
    assert len(json.loads(figures["schema"])) == figures["columns"] == 76
    assert [[it["name"], it["type"]] for it in raw["facets"]["schema"]["fields"]] == json.loads(figures["schema"])
    spec = DatasetSpec.from_dict(attacked.statement("ingest").parameters["spec"])
    assert (spec.licence, spec.consent) == (attacked.config.dataset.licence, attacked.config.dataset.consent)
    assert spec.licence

    assert export("again.jsonl")[0] == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "lineage.jsonl").read_bytes()

    (attacked.output / EVIDENCE).write_bytes(b"\n".join((attacked.output / EVIDENCE).read_bytes().split(b"\n")[1:]))
    code, out, err = export("refused.jsonl")
    assert code == 1 and out == "" and "Error: " in err
    assert not (tmp_path / "refused.jsonl").exists()
