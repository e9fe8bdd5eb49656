"""Ask a running server what it must answer and what it must refuse, and record every answer.

An unexpected answer is a finding and is recorded; only a server that cannot be asked is an error.
"""

import http.client
import json
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from portcullis.digest import parse_json
from portcullis.errors import DataError, DeploymentError, UsageError

MAX_ANSWER_BYTES = 1 << 20
PROBABILITY_TOLERANCE = 1e-3
NO_ANSWER = 0

_READY = "/v2/health/ready"
_POLL_SECONDS = 0.05
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


@dataclass(frozen=True)
class Check:
    """One question: the HTTP status it must get, the one it got (0: no HTTP answer), and whether all was as it must."""

    expected: int
    status: int
    passed: bool


@dataclass(frozen=True)
class ProbeReport:
    """Every check by name, and what the good request was answered; None and empty unless that answer is valid."""

    checks: Mapping[str, Check]
    label: str | None
    probabilities: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """Whether there were checks and each passed."""
        return bool(self.checks) and all(check.passed for check in self.checks.values())


def probe(
    host: str,
    port: int,
    *,
    token: str,
    model: str,
    input_name: str,
    labels: Sequence[str],
    good_row: Sequence[float],
    timeout: float,
) -> ProbeReport:
    """Wait until a server is ready, then send it good, unauthenticated and malformed requests.

    The server speaks the Open Inference Protocol v2 (https://github.com/kserve/open-inference-protocol), HTTP/REST.
    The good request must be answered with one label of the model's and a probability for each label, finite, in [0, 1]
    and summing to 1 ± 0.001, the label's being the greatest. A request is too large by the Content-Length that it
    announces, so that the refusal costs nothing to obtain.

    Args:
        host: Where the server listens.
        port: Its TCP port.
        token: The bearer token that it accepts.
        model: The served model's name.
        input_name: The name of its input tensor.
        labels: Its labels.
        good_row: One valid raw sample, of D values.
        timeout: Seconds until the server must be ready; also for each single wait for it afterwards.

    Raises:
        UsageError: The token is not one that RFC 6750 allows, or the sample is empty or not finite.
        DeploymentError: The server did not get ready in time, or was gone afterwards.
    """
    if not _BEARER_TOKEN.fullmatch(token):
        raise UsageError("the token must be letters, digits and -._~+/ only, as RFC 6750 demands")
    row = [float(value) for value in good_row]
    if not row or not all(map(math.isfinite, row)):
        raise UsageError("the good sample must hold finite values")
    server = _Server(host, port, timeout)
    _await_ready(server, timeout)

    path = f"/v2/models/{quote(model, safe='')}/infer"
    authorized = {"Authorization": f"Bearer {token}"}
    good_body = _infer_body(input_name, row)
    good = server.ask(path, authorized, good_body)
    label, probabilities = _prediction(good, model, labels)
    refusals: dict[str, tuple[int, _Answer]] = {
        "unauthenticated": (401, server.ask(path, {}, good_body)),
        "wrong_token": (401, server.ask(path, {"Authorization": f"Bearer {secrets.token_urlsafe(32)}"}, good_body)),
        "malformed": (400, server.ask(path, authorized, good_body[:-1])),
        "wrong_shape": (400, server.ask(path, authorized, _infer_body(input_name, [*row, row[0]]))),
        "out_of_range": (400, server.ask(path, authorized, _infer_body(input_name, [1e30, *row[1:]]))),
        "nan": (400, server.ask(path, authorized, _infer_body(input_name, [math.nan, *row[1:]]))),
        "too_large": (413, server.ask(path, {**authorized, "Content-Length": str(1 << 40)}, b"")),
        "wrong_model": (404, server.ask(f"/v2/models/{secrets.token_hex(8)}/infer", authorized, good_body)),
    }
    after = server.ask(_READY)
    if after.status == NO_ANSWER:
        raise DeploymentError("the server was gone after it had been probed")
    checks = {
        "good": Check(200, good.status, label is not None),
        **{name: Check(expected, it.status, it.status == expected) for name, (expected, it) in refusals.items()},
        "ready_after": Check(200, after.status, after.status == 200),
    }
    return ProbeReport(checks, label, probabilities)


def figures(report: ProbeReport) -> dict[str, int]:
    """Return the status of each check by its name, and `failed_checks`, how many did not pass."""
    statuses = {name: check.status for name, check in report.checks.items()}
    return {**statuses, "failed_checks": sum(not check.passed for check in report.checks.values())}


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes


@dataclass(frozen=True)
class _Server:
    host: str
    port: int
    timeout: float

    def ask(self, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> _Answer:
        """GET, or POST `body` as JSON, on a connection of its own; status 0 unless an HTTP answer came."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return _Answer(response.status, response.read(MAX_ANSWER_BYTES + 1))
        except (OSError, http.client.HTTPException):
            return _Answer(NO_ANSWER, b"")
        finally:
            connection.close()


def _await_ready(server: _Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    status = NO_ANSWER
    while (left := deadline - time.monotonic()) > 0:
        status = _Server(server.host, server.port, left).ask(_READY).status
        if status == 200:
            return
        time.sleep(_POLL_SECONDS)
    last = "did not answer" if status == NO_ANSWER else f"answered {status}"
    raise DeploymentError(f"the server was not ready within {timeout} s: it last {last}")


def _infer_body(input_name: str, row: Sequence[float]) -> bytes:
    tensor = {"name": input_name, "datatype": "FP32", "shape": [1, len(row)], "data": row}
    return json.dumps({"inputs": [tensor]}).encode()  # spells NaN as NaN, which is what that check needs


def _prediction(answer: _Answer, model: str, labels: Sequence[str]) -> tuple[str | None, tuple[float, ...]]:
    """Return the label and the probabilities of a valid answer to a single row, else None and nothing."""
    nothing = (None, ())
    if answer.status != 200:
        return nothing
    try:
        document = parse_json(answer.body, limit=MAX_ANSWER_BYTES)
    except DataError:
        return nothing
    match document:
        case {"model_name": str(name), "outputs": [{"name": str()}, {"name": str()}] as outputs}:
            tensors = {output["name"]: output for output in outputs}
        case _:
            return nothing
    label = _one_row(tensors.get("label"), "BYTES", [1])
    probabilities = _one_row(tensors.get("probabilities"), "FP32", [1, len(labels)])
    if name != model or len(label) != 1 or label[0] not in labels or len(probabilities) != len(labels):
        return nothing
    if not all(type(value) in {int, float} and 0 <= value <= 1 for value in probabilities):
        return nothing
    total = math.fsum(probabilities)
    if not abs(total - 1) <= PROBABILITY_TOLERANCE or probabilities[labels.index(label[0])] != max(probabilities):
        return nothing
    return label[0], tuple(float(value) for value in probabilities)


def _one_row(tensor: Any, datatype: str, shape: list[int]) -> list[Any]:
    match tensor:
        case {"datatype": str(found), "shape": list(size), "data": list(data)} if (found, size) == (datatype, shape):
            return data
        case _:
            return []
