"""What one step says of itself, and its in-toto form.

A transform says what it made of what: SLSA provenance v1. A gate says what it measured and decided: in-toto test-result
v0.1. Both are in-toto Statements v1 whose subjects are named artifacts with their SHA-256. `Statement.parse` accepts
only what `Statement.encode` writes, so nothing can hide in a field that is not looked at.

Sources: in-toto/attestation spec v1 (statement, predicates/provenance, predicates/test-result), slsa.dev/provenance/v1.
"""

import base64
import binascii
import dataclasses
import datetime as dt
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from portcullis.digest import canonical_json, is_digest, parse_canonical_json
from portcullis.errors import DataError, EvidenceError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "urn:portcullis:build:kfp-task:v1"
BUILDER_ID = "urn:portcullis:builder:kfp-component:v1"
NONCE = re.compile(r"[0-9a-f]{32}")

INCONCLUSIVE = "inconclusive: "

Kind = Literal["transform", "gate"]
Verdict = Literal["PASSED", "FAILED"]
Figure = int | float | str


@dataclass(frozen=True)
class Check:
    """A bound on one figure: it holds only when the figure is a finite number with `low <= figure <= high`.

    A bound of None is open. At least one bound is set.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not bounds or not all(_is_number(bound) for bound in bounds):
            raise DataError("a check needs at least one finite bound")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise DataError("a check whose least is above its most can never hold")

    def holds(self, figure: object) -> bool:
        """Tell whether `figure` is a finite number within the bounds; anything else does not hold."""
        return (
            _is_number(figure)
            and (self.low is None or self.low <= figure)
            and (self.high is None or figure <= self.high)
        )


@dataclass(frozen=True)
class Statement:
    """One step's statement.

    Attributes:
        step: Unique name of the step in its pipeline, such as `robustness:trained`.
        stage: The component it is a use of, such as `robustness_gate`.
        kind: `transform` or `gate`.
        nonce: The run's nonce, 32 hexadecimal characters.
        started: Milliseconds since the Unix epoch.
        finished: Milliseconds since the Unix epoch, not before `started`.
        inputs: Name to SHA-256 of everything that went in.
        outputs: Name to SHA-256 of everything that came out; for a gate, of what it judged.
        parameters: Every parameter that the outcome depends on (JSON values).
        figures: Measured numbers and short strings; for a gate, what its verdict follows from.
        environment: What ran: versions and digests, name to text.
        verdict: A gate's verdict, None for a transform.
        reason: Why a verdict is FAILED, in one line, beginning with `INCONCLUSIVE` when nothing could be judged; empty
            otherwise.
    """

    step: str
    stage: str
    kind: Kind
    nonce: str
    started: int
    finished: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    parameters: Mapping[str, Any]
    figures: Mapping[str, Figure]
    environment: Mapping[str, str]
    verdict: Verdict | None = None
    reason: str = ""

    def encode(self) -> bytes:
        """Return the in-toto Statement as canonical JSON."""
        return canonical_json(self.to_in_toto())

    def to_in_toto(self) -> dict[str, Any]:
        """Return the in-toto Statement v1 as a JSON object."""
        return {
            "_type": STATEMENT_TYPE,
            "subject": _descriptors(self.outputs),
            "predicateType": PROVENANCE if self.kind == "transform" else TEST_RESULT,
            "predicate": self._provenance() if self.kind == "transform" else self._test_result(),
        }

    def _provenance(self) -> dict[str, Any]:
        return {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"stage": self.stage, "step": self.step, "parameters": dict(self.parameters)},
                "internalParameters": {"nonce": self.nonce, "environment": dict(self.environment)},
                "resolvedDependencies": _descriptors(self.inputs),
            },
            "runDetails": {
                "builder": {"id": BUILDER_ID},
                "metadata": {
                    "invocationId": f"{self.nonce}/{self.step}",
                    "startedOn": format_time(self.started),
                    "finishedOn": format_time(self.finished),
                },
                "byproducts": [_embedded("figures", self.figures)],
            },
        }

    def _test_result(self) -> dict[str, Any]:
        return {
            "result": self.verdict,
            "configuration": [_embedded("parameters", self.parameters), *_descriptors(self.inputs)],
            "portcullis": {
                "stage": self.stage,
                "step": self.step,
                "nonce": self.nonce,
                "startedOn": format_time(self.started),
                "finishedOn": format_time(self.finished),
                "figures": dict(self.figures),
                "environment": dict(self.environment),
                "reason": self.reason,
            },
        }

    @classmethod
    def parse(cls, payload: bytes) -> "Statement":
        """Read a statement; the inverse of `encode`.

        Raises:
            EvidenceError: Anything that `encode` would not have written, to the byte.
        """
        try:
            document = parse_canonical_json(payload)
            if document["predicateType"] == PROVENANCE:
                statement = cls._from_provenance(document)
            elif document["predicateType"] == TEST_RESULT:
                statement = cls._from_test_result(document)
            else:
                raise EvidenceError(f"a step does not state {document['predicateType']!r}")
            _require_sound(statement)
            whole = statement.encode() == payload
        except (DataError, KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
            raise EvidenceError(f"not a statement of a step: {error!r}") from error
        if not whole:
            raise EvidenceError("the statement holds fields or forms that no step writes")
        return statement

    @classmethod
    def _from_provenance(cls, document: Mapping[str, Any]) -> "Statement":
        definition = document["predicate"]["buildDefinition"]
        details = document["predicate"]["runDetails"]
        return cls(
            step=definition["externalParameters"]["step"],
            stage=definition["externalParameters"]["stage"],
            kind="transform",
            nonce=definition["internalParameters"]["nonce"],
            started=parse_time(details["metadata"]["startedOn"]),
            finished=parse_time(details["metadata"]["finishedOn"]),
            inputs=_digests(definition["resolvedDependencies"]),
            outputs=_digests(document["subject"]),
            parameters=definition["externalParameters"]["parameters"],
            figures=_extract(details["byproducts"][0]),
            environment=definition["internalParameters"]["environment"],
        )

    @classmethod
    def _from_test_result(cls, document: Mapping[str, Any]) -> "Statement":
        predicate = document["predicate"]
        own = predicate["portcullis"]
        return cls(
            step=own["step"],
            stage=own["stage"],
            kind="gate",
            nonce=own["nonce"],
            started=parse_time(own["startedOn"]),
            finished=parse_time(own["finishedOn"]),
            inputs=_digests(predicate["configuration"][1:]),
            outputs=_digests(document["subject"]),
            parameters=_extract(predicate["configuration"][0]),
            figures=own["figures"],
            environment=own["environment"],
            verdict=predicate["result"],
            reason=own["reason"],
        )

    def replace(self, **changes: Any) -> "Statement":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def _require_sound(statement: Statement) -> None:
    texts = [statement.step, statement.stage, statement.nonce, statement.reason, *statement.environment.values()]
    shown = [figure for figure in statement.figures.values() if isinstance(figure, str)]
    digests = [*statement.inputs.values(), *statement.outputs.values()]
    sound = (
        all(isinstance(text, str) for text in texts)
        and NONCE.fullmatch(statement.nonce) is not None
        # Text that a terminal would obey or a log would break on has no place in evidence.
        and all(text.isprintable() for text in [*texts, *shown])
        and all(is_digest(digest) for digest in digests)
        and bool(statement.outputs)
        and isinstance(statement.parameters, dict)
        and all(isinstance(figure, str) or _is_number(figure) for figure in statement.figures.values())
        and statement.started <= statement.finished
        and (statement.verdict in ("PASSED", "FAILED") if statement.kind == "gate" else statement.verdict is None)
    )
    if not sound:
        raise EvidenceError("the statement is incomplete or holds values of the wrong kind")


def judge(figures: Mapping[str, Figure], checks: Mapping[str, Check]) -> tuple[Verdict, str]:
    """Derive a verdict from figures alone: PASSED when every check holds, else FAILED with the first reasons.

    Raises:
        EvidenceError: There is no check. "All of nothing" must never pass.
    """
    if not checks:
        raise EvidenceError("a gate without a check judges nothing")
    failed = [
        f"{name} = {figures.get(name, 'missing')}, required {_bounds(check)}"
        for name, check in sorted(checks.items())
        if not check.holds(figures.get(name))
    ]
    return ("FAILED", "; ".join(failed)) if failed else ("PASSED", "")


def format_time(milliseconds: int) -> str:
    """Return an instant as RFC 3339 in UTC with milliseconds, `2026-01-31T23:59:59.000Z`."""
    moment = dt.datetime.fromtimestamp(milliseconds // 1000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def parse_time(text: str) -> int:
    """Return milliseconds since the epoch; the inverse of `format_time`.

    Raises:
        DataError: Not exactly what `format_time` writes.
    """
    try:
        moment = dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)
        milliseconds = round(moment.timestamp() * 1000)
        exact = format_time(milliseconds) == text
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"not a UTC time: {text!r}") from error
    if not exact:
        raise DataError(f"not a UTC time with milliseconds: {text!r}")
    return milliseconds


def _is_number(value: object) -> TypeGuard[float]:
    # The comparison is false for NaN, for both infinities, and for an integer that no double holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _bounds(check: Check) -> str:
    if check.low is None:
        return f"<= {check.high}"
    return f">= {check.low}" if check.high is None else f"{check.low} .. {check.high}"


def _descriptors(digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())]


def _digests(descriptors: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["digest"]["sha256"] for entry in descriptors}


def _embedded(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    content = base64.b64encode(canonical_json(dict(value))).decode()
    return {"name": name, "mediaType": "application/json", "content": content}


def _extract(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content = base64.b64decode(descriptor["content"], validate=True)
    except binascii.Error as error:
        raise DataError("embedded content is not base64") from error
    value = parse_canonical_json(content)
    if not isinstance(value, dict):
        raise DataError("embedded content is not a JSON object")
    return value
