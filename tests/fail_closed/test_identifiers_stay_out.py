"""No identifier of the raw data occurs in anything written after masking, nor in any evidence, log or refusal."""

import base64
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from identifiers import identifiers

from portcullis.at_rest import open_dataset, pipeline_key
from portcullis.dataset import parse_dataset
from portcullis.errors import PortcullisError
from portcullis.ingest.stage import ingest
from portcullis.pii.entities import IN_TEXT
from portcullis.pii.stage import mask_pii, residual_pii
from portcullis.preflight.stage import preflight
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_trust, generate_keys

DATASET = {
    "name": "persons",
    "label": {"column": "label", "classes": ["no", "yes"]},
    "features": {"columns": ["f"], "shape": [1], "low": 0, "high": 9},
    "sensitive": {"contact": "token", "note": "scan"},
}
# Text that is no identifier and may stand around one.
BEFORE = st.sampled_from(["", "call ", "see: ", "(", "über ", "\u202e", "<b>", " | ", "\n", "id="])
AFTER = st.sampled_from(["", " and", ".", ")", " 7", "\u200b", "</b>", "\t|"])


def spellings(identifier: str) -> set[bytes]:
    """Return how an identifier could be found again: as written, its digits, base64, hexadecimal, JSON's escapes."""
    written = identifier.encode()
    found = {written, written.hex().encode(), base64.b64encode(written).rstrip(b"="), json.dumps(identifier).encode()}
    digits = re.sub(r"\D", "", identifier)
    return found | ({digits.encode()} if len(digits) >= 9 else set())


@pytest.fixture(scope="module", params=["token", "hash", "reversible", "redact", "star"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    home = Home(folder / "home")
    generate_keys(home)
    document = {"dataset": DATASET, "masking": {"entities": {entity.value: request.param for entity in IN_TEXT}}}
    config = ReferenceConfig.from_dict(document)
    ensure_trust(home, config)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment.items():
            patch.setenv(name, value)
        yield folder, config


def run(folder: Path, config: ReferenceConfig, rows: list[dict[str, object]]) -> bytes:
    """Run the data's first steps; return everything that they left behind, sealed data opened but for the raw ones."""
    source = folder / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = folder / "out"
    out.mkdir(exist_ok=True)
    nonce = preflight(step="preflight", bundle=out / "begun")
    masking = config.masking.to_dict()
    said, passed = "", False
    try:
        ingest(
            step="ingest",
            nonce=nonce,
            evidence=out / "begun",
            uri=str(source),
            spec=json.dumps(DATASET),
            dataset=out / "raw",
            quarantine=out / "quarantine",
            bundle=out / "raw.jsonl",
        )
        mask_pii(
            step="mask_pii",
            dataset=out / "raw",
            evidence=out / "raw.jsonl",
            masking=masking,
            masked=out / "masked",
            bundle=out / "masked.jsonl",
        )
        judged = residual_pii(
            step="residual_pii",
            dataset=out / "masked",
            evidence=out / "masked.jsonl",
            masking=masking,
            report=out / "report.html",
            details=out / "report.json",
            bundle=out / "judged.jsonl",
        )
        passed = judged.verdict == "PASSED"
    except PortcullisError as error:
        said = str(error)
    left = [path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()]
    # Statements lie in the evidence as base64.
    payloads = [
        base64.b64decode(json.loads(line)["payload"])
        for path in out.glob("*.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    if passed:  # what the gate refuses goes no further, and stays sealed
        table = parse_dataset(open_dataset(out / "masked", key=pipeline_key())).table
        left += [repr(table.to_pydict()).encode(), json.dumps(table.to_pydict()).encode()]
    return b"\n".join([*left, *payloads, said.encode()])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(BEFORE, identifiers.filter(lambda it: len(it[1]) >= 9), AFTER, identifiers), min_size=1, max_size=20
    )
)
def test_nothing_tells_an_identifier(world, capfd, found) -> None:
    folder, config = world
    rows = [
        {"f": 1, "note": f"{before}{one}{after}", "contact": other, "label": "yes"}
        for before, (_, one), after, (_, other) in found
    ]
    everything = run(folder, config, rows) + "".join(capfd.readouterr()).encode()
    originals = {text for _, (_, one), _, (_, other) in found for text in (one, other) if len(text) >= 9}
    told = {spelling for text in originals for spelling in spellings(text) if spelling in everything}
    assert not told


BAD_ROWS = {
    "a feature that is none": {"f": "ann@example.com", "note": "x", "contact": "y", "label": "yes"},
    "a label that is none": {"f": 1, "note": "x", "contact": "y", "label": "ann@example.com"},
    "a nested value": {"f": 1, "note": ["ann@example.com"], "contact": "y", "label": "yes"},
    "a key": {"f": 1, "note": "x", "contact": "y", "label": "yes", "ann@example.com": 1},
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_refusal_does_not_either(world, capfd, name: str) -> None:
    folder, config = world
    everything = run(folder, config, [BAD_ROWS[name]]) + "".join(capfd.readouterr()).encode()
    assert b"ann@" not in everything.replace(b"rows.jsonl", b"")
