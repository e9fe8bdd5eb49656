"""Statements: what a step says, in the forms of in-toto, and nothing else."""

import base64
import copy
import json
import math

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult as PeerTestResult
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as PeerStatement

from portcullis.digest import canonical_json
from portcullis.errors import DataError, EvidenceError
from portcullis.evidence.statement import Check, Statement, format_time, judge, parse_time

NONCE = "0123456789abcdef" * 2
A, B, C = "a" * 64, "b" * 64, "c" * 64

TRANSFORM = Statement(
    step="train:again",
    stage="train",
    kind="transform",
    nonce=NONCE,
    started=1_767_225_599_001,
    finished=1_767_225_600_000,
    inputs={"raw": B, "nonce": A},
    outputs={"model": C},
    parameters={"epochs": 3, "rates": [0.5, None, True], "spec": {"é": "ü"}},
    figures={"loss": 0.25, "flops": 1e20, "optimiser": "Adam"},
    environment={"python": "3.11"},
)
GATE = TRANSFORM.replace(
    step="robustness:trained",
    stage="robustness_gate",
    kind="gate",
    outputs={"raw": B},
    verdict="FAILED",
    reason="too weak",
)
BOTH = pytest.mark.parametrize("statement", [TRANSFORM, GATE], ids=["transform", "gate"])


@BOTH
def test_parse_inverts_encode(statement):
    assert Statement.parse(statement.encode()) == statement


def test_a_transform_is_slsa_provenance():
    document = json.loads(TRANSFORM.encode())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    assert document["subject"] == [{"name": "model", "digest": {"sha256": C}}]
    definition, details = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
    assert [entry["name"] for entry in definition["resolvedDependencies"]] == ["nonce", "raw"]
    assert definition["externalParameters"]["parameters"] == TRANSFORM.parameters
    assert details["metadata"] == {
        "invocationId": f"{NONCE}/train:again",
        "startedOn": "2025-12-31T23:59:59.001Z",
        "finishedOn": "2026-01-01T00:00:00.000Z",
    }
    assert json.loads(base64.b64decode(details["byproducts"][0]["content"])) == TRANSFORM.figures


def test_a_gate_is_a_test_result_about_what_it_judged():
    document = json.loads(GATE.encode())
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert document["subject"] == [{"name": "raw", "digest": {"sha256": B}}]
    assert document["predicate"]["result"] == "FAILED"
    parameters, *materials = document["predicate"]["configuration"]
    assert json.loads(base64.b64decode(parameters["content"])) == GATE.parameters
    assert materials == [{"name": "nonce", "digest": {"sha256": A}}, {"name": "raw", "digest": {"sha256": B}}]


@BOTH
def test_in_toto_validates_our_statements(statement):
    proto = json_format.Parse(statement.encode(), statement_pb2.Statement())
    PeerStatement.copy_from_pb(proto).validate()
    assert {subject.name: subject.digest["sha256"] for subject in proto.subject} == dict(statement.outputs)


def test_in_toto_reads_our_provenance_without_an_unknown_field():
    provenance = json_format.ParseDict(TRANSFORM.to_in_toto()["predicate"], Provenance())
    assert provenance.build_definition.resolved_dependencies[0].digest["sha256"] == A
    assert json.loads(provenance.run_details.byproducts[0].content) == TRANSFORM.figures
    assert provenance.run_details.metadata.finished_on.ToMilliseconds() == TRANSFORM.finished


def test_in_toto_reads_our_test_result():
    predicate = GATE.to_in_toto()["predicate"]
    own = predicate.pop("portcullis")
    assert own["figures"] == GATE.figures
    result = json_format.ParseDict(predicate, PeerTestResult())
    assert result.result == "FAILED"
    assert [entry.name for entry in result.configuration] == ["parameters", "nonce", "raw"]


def embedded(text):
    return {"name": "figures", "mediaType": "application/json", "content": base64.b64encode(text).decode()}


def put(*path, value):
    def edit(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


DEFINITION = ("predicate", "buildDefinition")
METADATA = ("predicate", "runDetails", "metadata")
BYPRODUCTS = ("predicate", "runDetails", "byproducts")
OWN = ("predicate", "portcullis")

BAD_TRANSFORMS = {
    "unknown type": put("_type", value="https://in-toto.io/Statement/v0.1"),
    "unknown predicate": put("predicateType", value="https://in-toto.io/attestation/svr/v0.1"),
    "gate's predicate type": put("predicateType", value="https://in-toto.io/attestation/test-result/v0.1"),
    "predicate type is no text": put("predicateType", value=[]),
    "unknown field": put("more", value=1),
    "unknown field deep inside": put(*DEFINITION, "more", value=1),
    "verdict on a transform": put("predicate", "result", value="PASSED"),
    "no subject": put("subject", value=[]),
    "subject twice": put("subject", value=[{"name": "model", "digest": {"sha256": C}}] * 2),
    "second digest": put("subject", value=[{"name": "model", "digest": {"sha256": C, "sha512": C}}]),
    "upper-case digest": put("subject", 0, "digest", "sha256", value="C" * 64),
    "short digest": put("subject", 0, "digest", "sha256", value="c" * 63),
    "digest is no text": put("subject", 0, "digest", "sha256", value=1),
    "digest missing": put("subject", value=[{"name": "model"}]),
    "subjects out of order": put(
        "subject", value=[{"name": "z", "digest": {"sha256": C}}, {"name": "a", "digest": {"sha256": C}}]
    ),
    "name is a list": put("subject", 0, "name", value=[]),
    "short nonce": put(*DEFINITION, "internalParameters", "nonce", value="0" * 31),
    "upper-case nonce": put(*DEFINITION, "internalParameters", "nonce", value="A" * 32),
    "nonce of the invocation differs": put(*METADATA, "invocationId", value="0" * 32 + "/train:again"),
    "finished before it started": put(*METADATA, "finishedOn", value="2025-12-31T23:59:59.000Z"),
    "time without milliseconds": put(*METADATA, "startedOn", value="2025-12-31T23:59:59Z"),
    "time in another zone": put(*METADATA, "startedOn", value="2025-12-31T23:59:59.001+01:00"),
    "time is no text": put(*METADATA, "startedOn", value=0),
    "step is no text": put(*DEFINITION, "externalParameters", "step", value=1),
    "parameters in a list": put(*DEFINITION, "externalParameters", "parameters", value=[]),
    "environment in a list": put(*DEFINITION, "internalParameters", "environment", value=["x"]),
    "environment is no text": put(*DEFINITION, "internalParameters", "environment", value={"a": 1}),
    "unknown builder": put("predicate", "runDetails", "builder", "id", value="urn:other"),
    "unknown build type": put(*DEFINITION, "buildType", value="urn:other"),
    "no byproducts": put(*BYPRODUCTS, value=[]),
    "second byproduct": put(*BYPRODUCTS, value=[embedded(b"{}")] * 2),
    "figures with blanks": put(*BYPRODUCTS, value=[embedded(b'{"a": 1}')]),
    "figures twice": put(*BYPRODUCTS, value=[embedded(b'{"a":1,"a":1}')]),
    "figures in a list": put(*BYPRODUCTS, value=[embedded(b"[]")]),
    "figure is true": put(*BYPRODUCTS, value=[embedded(b'{"a":true}')]),
    "figure is null": put(*BYPRODUCTS, value=[embedded(b'{"a":null}')]),
    "figure is a list": put(*BYPRODUCTS, value=[embedded(b'{"a":[1]}')]),
    "figure is nan": put(*BYPRODUCTS, value=[embedded(b'{"a":NaN}')]),
    "figure beyond a double": put(*BYPRODUCTS, value=[embedded(b'{"a":1e999}')]),
    "figures not base64": put(*BYPRODUCTS, 0, "content", value="***"),
    "figures with spare base64 bits": put(*BYPRODUCTS, 0, "content", value="e31="),
    "predicate is text": put("predicate", value="x"),
}
BAD_GATES = {
    "no verdict": put("predicate", "result", value=None),
    "warned": put("predicate", "result", value="WARNED"),
    "verdict in lower case": put("predicate", "result", value="passed"),
    "transform's predicate type": put("predicateType", value="https://slsa.dev/provenance/v1"),
    "no configuration": put("predicate", "configuration", value=[]),
    "configuration out of order": lambda d: d["predicate"]["configuration"].reverse(),
    "parameters with spare base64 bits": put("predicate", "configuration", 0, "content", value="e31="),
    "figures in a list": put(*OWN, "figures", value=[1]),
    "figure is false": put(*OWN, "figures", value={"a": False}),
    "reason is no text": put(*OWN, "reason", value=None),
    "no nonce": lambda d: d["predicate"]["portcullis"].pop("nonce"),
    "unknown field": put(*OWN, "more", value=""),
    "warned tests beside": put("predicate", "warnedTests", value=[]),
}
BAD = [
    *(pytest.param(TRANSFORM, edit, id=f"transform: {name}") for name, edit in BAD_TRANSFORMS.items()),
    *(pytest.param(GATE, edit, id=f"gate: {name}") for name, edit in BAD_GATES.items()),
]


@pytest.mark.parametrize(("statement", "edit"), BAD)
def test_what_no_step_writes_is_refused(statement, edit):
    document = copy.deepcopy(statement.to_in_toto())
    edit(document)
    with pytest.raises(EvidenceError):
        Statement.parse(canonical_json(document))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"1", b'"x"', b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_statement_at_all_is_refused(payload):
    with pytest.raises(EvidenceError):
        Statement.parse(payload)


@BOTH
def test_another_spelling_of_a_statement_is_refused(statement):
    with pytest.raises(EvidenceError):
        Statement.parse(json.dumps(json.loads(statement.encode())).encode())


@pytest.mark.parametrize("figure", [math.nan, math.inf, 2**53], ids=str)
def test_a_figure_that_is_no_number_cannot_be_stated(figure):
    with pytest.raises(DataError):
        GATE.replace(figures={"a": figure}).encode()


HOLDS = {
    "within": (Check(0, 1), 0.5, True),
    "lower bound": (Check(0, 1), 0, True),
    "upper bound": (Check(0, 1), 1, True),
    "below": (Check(0, 1), -1e-300, False),
    "above": (Check(0, 1), math.nextafter(1, 2), False),
    "open above": (Check(low=3), 1e300, True),
    "open below": (Check(high=3), -1e300, True),
    "nan": (Check(0, 1), math.nan, False),
    "nan, open above": (Check(low=0), math.nan, False),
    "infinity, open above": (Check(low=0), math.inf, False),
    "negative infinity, open below": (Check(high=0), -math.inf, False),
    "text": (Check(0, 1), "0.5", False),
    "true": (Check(0, 1), True, False),
    "nothing": (Check(0, 1), None, False),
    "list": (Check(0, 1), [0.5], False),
}


@pytest.mark.parametrize(("check", "figure", "expected"), HOLDS.values(), ids=HOLDS.keys())
def test_a_check_holds_only_for_finite_numbers_within_its_bounds(check, figure, expected):
    assert check.holds(figure) is expected


@pytest.mark.parametrize(
    "bounds", [(None, None), (math.nan, None), (0, math.inf), ("0", None), (True, None), (0, [])], ids=str
)
def test_a_check_without_a_finite_bound_is_refused(bounds):
    with pytest.raises(DataError, match="finite bound"):
        Check(*bounds)


def test_a_verdict_names_every_figure_that_fails():
    checks = {"b": Check(1, 2), "a": Check(low=3), "c": Check(high=0), "d": Check(0)}
    assert judge({"a": 3, "b": 1, "c": 0, "d": 0}, checks) == ("PASSED", "")
    verdict, reason = judge({"a": 2, "b": math.nan, "c": 1}, checks)
    assert verdict == "FAILED"
    assert reason == "a = 2, required >= 3; b = nan, required 1 .. 2; c = 1, required <= 0; d = missing, required >= 0"


def test_all_of_nothing_never_passes():
    with pytest.raises(EvidenceError, match="without a check"):
        judge({"a": 1}, {})


@pytest.mark.parametrize("milliseconds", [0, 1, 999, 1_800_000_000_123, 253_402_300_799_999])
def test_a_time_has_one_spelling(milliseconds):
    assert parse_time(format_time(milliseconds)) == milliseconds


BAD_TIMES = {
    "no text": 0,
    "nothing": "",
    "no milliseconds": "2026-01-31T23:59:59Z",
    "microseconds": "2026-01-31T23:59:59.000000Z",
    "no zone": "2026-01-31T23:59:59.000",
    "other zone": "2026-01-31T23:59:59.000+00:00",
    "lower case": "2026-01-31t23:59:59.000z",
    "blank": "2026-01-31 23:59:59.000Z",
    "no such day": "2026-02-30T00:00:00.000Z",
    "leap second": "2016-12-31T23:59:60.000Z",
    "year of three digits": "0999-01-01T00:00:00.000Z",
    "year of five digits": "12026-01-01T00:00:00.000Z",
    "other digits": "\u0662026-01-31T23:59:59.000Z",
    "newline at the end": "2026-01-31T23:59:59.000Z\n",
}


@pytest.mark.parametrize("text", BAD_TIMES.values(), ids=BAD_TIMES.keys())
def test_another_spelling_of_a_time_is_refused(text):
    with pytest.raises(DataError):
        parse_time(text)
