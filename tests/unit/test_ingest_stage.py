"""The stage `ingest`: what its evidence says of the data, and that a refusal leaves nothing."""

import json
from pathlib import Path

import pytest

from portcullis.at_rest import open_dataset, pipeline_key
from portcullis.dataset import PROVENANCE, DatasetSpec, parse_dataset
from portcullis.digest import content_digest, file_digest, parse_json
from portcullis.errors import DataError, PolicyError
from portcullis.evidence.statement import Statement
from portcullis.ingest import stage
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
    """Run `preflight`, then `ingest` on the source beside it, under a policy for DATASET."""
    home = Home(tmp_path / "home")
    generate_keys(home)
    ensure_trust(home, ReferenceConfig.from_dict({"dataset": DATASET}))
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    nonce = preflight(step="preflight", bundle=tmp_path / "begun")

    def call(source: Path, spec: dict[str, object] = DATASET) -> Statement:
        return ingest(
            step="ingest",
            nonce=nonce,
            evidence=tmp_path / "begun",
            uri=str(source),
            spec=json.dumps(spec),
            dataset=tmp_path / "set",
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
    assert statement.outputs == {"dataset": content_digest(files)}
    figures = dict(statement.figures)
    assert parse_json(str(figures.pop("schema")).encode()) == [
        *(["f0", "int64"], ["f1", "float64"], ["zip", "string"], ["other", "bool"], ["label", "string"]),
    ]
    assert figures == {
        "source": str(source),
        "reader": "jsonl",
        "bytes": len(ROWS),
        "files": 1,
        "rows": 2,
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
