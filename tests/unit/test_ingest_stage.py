"""The stage `ingest`: what its evidence says of the data, and that a refusal leaves nothing."""

import base64
import json
from pathlib import Path

import pytest

from portcullis.at_rest import open_dataset, pipeline_key
from portcullis.dataset import PROVENANCE, DatasetSpec, parse_dataset
from portcullis.digest import content_digest, file_digest, is_digest, parse_json, path_digest
from portcullis.errors import DataError, EvidenceError, PolicyError
from portcullis.evidence.statement import Statement
from portcullis.ingest import stage
from portcullis.ingest.quarantine import open_quarantine
from portcullis.ingest.readers import open_source
from portcullis.ingest.stage import ingest
from portcullis.preflight.stage import preflight
from portcullis.table import logical_root
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_trust, generate_keys

DATASET = {
    "name": "small",
    "label": {"column": "label", "classes": ["no", "yes"]},
    "features": {"columns": ["f*"], "shape": [2], "low": 0, "high": 9},
    "sensitive": {"zip": "token"},
    "licence": "CC-BY-4.0",
    "consent": "asked",
    "contact": "data@example.com",
}
ROWS = """\
{"f0":1,"f1":0.5,"zip":"02139","other":true,"label":"yes"}
{"f0":2,"f1":1,"zip":null,"other":null,"label":"no"}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `preflight`, then `ingest` on a source, under a policy for DATASET or another description."""
    home = Home(tmp_path / "home")
    generate_keys(home)
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)

    def call(source: Path, spec: dict[str, object] = DATASET, demanded: dict[str, object] = DATASET) -> Statement:
        ensure_trust(home, ReferenceConfig.from_dict({"dataset": demanded}))
        nonce = preflight(step="preflight", bundle=tmp_path / "begun")
        return ingest(
            step="ingest",
            nonce=nonce,
            evidence=tmp_path / "begun",
            uri=str(source),
            spec=json.dumps(spec),
            dataset=tmp_path / "set",
            quarantine=tmp_path / "quarantine",
            bundle=tmp_path / "evidence",
        )

    return call


def test_the_evidence_says_what_was_read_and_what_its_user_says_of_it(run, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(ROWS)
    statement = run(source)
    files = open_dataset(tmp_path / "set", key=pipeline_key())
    table = parse_dataset(files).table
    assert statement.inputs["raw"] == file_digest(source)
    assert statement.outputs == {"dataset": content_digest(files), "quarantine": path_digest(tmp_path / "quarantine")}
    figures = dict(statement.figures)
    assert is_digest(figures.pop("quarantine_sha256"))
    assert parse_json(str(figures.pop("schema")).encode()) == [
        *(["f0", "int64"], ["f1", "float64"], ["zip", "string"], ["other", "bool"], ["label", "string"]),
    ]
    assert figures == {
        "source": str(source),
        "reader": "jsonl",
        "bytes": len(ROWS),
        "files": 1,
        "records": 2,
        "rows": 2,
        "quarantined": 0,
        "columns": 5,
        "logical_root": logical_root(table),
    }
    spec = DatasetSpec.from_dict(statement.parameters["spec"])
    assert [getattr(spec, name) for name in PROVENANCE] == ["CC-BY-4.0", "asked", "data@example.com", ""]
    assert Statement.parse(statement.encode()) == statement


def test_the_policy_demands_what_the_user_says_of_the_data(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    for name in ("licence", "consent", "contact", "retention"):
        with pytest.raises(PolicyError, match="spec"):
            run(tmp_path / "rows.jsonl", DATASET | {name: "another"})


def test_a_refusal_leaves_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    monkeypatch.setattr(stage, "MAX_SCHEMA_BYTES", 80)
    with pytest.raises(DataError, match="names of the columns take more than 80 bytes"):
        run(tmp_path / "rows.jsonl")
    (tmp_path / "bad.jsonl").write_text(ROWS + "{}\n")
    with pytest.raises(DataError, match=r"bad\.jsonl: line 3: the key 'f0' of line 1 is missing"):
        run(tmp_path / "bad.jsonl")
    assert not (tmp_path / "set").exists() and not (tmp_path / "evidence").exists()


MALFORMED = '{"f0":3,"f1":1,"zip":"078-05-1120","other":true,"label":"perhaps"}'
ALLOWING = DATASET | {"quarantine_at_most": 2}


def test_malformed_records_are_sealed_and_counted(run, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(f"{ROWS}{MALFORMED}\n{{}}\n")
    statement = run(source, ALLOWING, ALLOWING)
    figures = statement.figures
    assert (figures["records"], figures["rows"], figures["quarantined"]) == (4, 2, 2)
    assert (figures["quarantined_other_keys"], figures["quarantined_unknown_class"]) == (1, 1)
    assert statement.outputs["quarantine"] == path_digest(tmp_path / "quarantine")
    assert b"078-05-1120" not in statement.encode()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "quarantine").iterdir())
    assert b"078-05-1120" not in stored and base64.b64encode(MALFORMED.encode()) not in stored
    with open_quarantine(tmp_path / "quarantine", statement, key=pipeline_key()) as found:
        records = list(found)
    assert [(it["path"], it["line"], it["reason"]) for it in records] == [
        ("rows.jsonl", 3, "unknown_class"),
        ("rows.jsonl", 4, "other_keys"),
    ]
    assert [base64.b64decode(it["bytes"]).decode() for it in records] == [MALFORMED, "{}"]
    assert parse_dataset(open_dataset(tmp_path / "set", key=pipeline_key())).table.num_rows == 2


def test_the_policy_says_whether_records_are_set_aside(run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{ROWS}{MALFORMED}\n")
    with pytest.raises(PolicyError, match="spec"):
        run(tmp_path / "rows.jsonl", ALLOWING, DATASET)
    with pytest.raises(PolicyError, match="spec"):
        run(tmp_path / "rows.jsonl", ALLOWING, DATASET | {"quarantine_at_most": 1})
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3"):
        run(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text(f"{ROWS}{MALFORMED}\n{MALFORMED}\n{MALFORMED}\n")
    with pytest.raises(DataError, match="line 5: unknown class; more than the 2 malformed records"):
        run(tmp_path / "rows.jsonl", ALLOWING, ALLOWING)
    assert not any((tmp_path / name).exists() for name in ("set", "quarantine", "evidence"))


def test_a_data_set_that_cannot_be_written_leaves_no_quarantine(run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{ROWS}{MALFORMED}\n")

    def refuse(*_: object, **__: object) -> str:
        raise DataError("no")

    monkeypatch.setattr(stage, "seal_dataset", refuse)
    with pytest.raises(DataError, match="no"):
        run(tmp_path / "rows.jsonl", ALLOWING, ALLOWING)
    assert not any((tmp_path / name).exists() for name in ("set", "quarantine", "evidence"))
    assert not list(tmp_path.glob(".quarantine*"))


def test_a_step_that_sets_aside_more_than_the_policy_allows_signs_nothing(run, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{ROWS}{MALFORMED}\n")
    lenient = DatasetSpec.from_dict(ALLOWING)
    monkeypatch.setattr(stage, "open_source", lambda uri, _: open_source(uri, lenient))
    with pytest.raises(EvidenceError, match="not within the policy's bounds: quarantined = 1"):
        run(tmp_path / "rows.jsonl")
    assert not (tmp_path / "evidence").exists()
