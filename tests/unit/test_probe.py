import hashlib
import json
import socket
import threading

import pytest

from portcullis.deploy.probe import Check, ProbeReport, figures, probe
from portcullis.errors import DeploymentError, UsageError
from portcullis.serving.app import build_app
from portcullis.serving.protocol import ServedModel
from portcullis.serving.server import listening_socket, uvicorn_server

TOKEN = "dG9rZW4="
LABELS = ("no", "yes", "perhaps")
MODEL = ServedModel("digits", "v1", "x", (2, 2), 0.0, 1.0, LABELS, lambda rows: rows[:, :3])
EXPECTED = {
    "good": 200,
    "unauthenticated": 401,
    "wrong_token": 401,
    "malformed": 400,
    "wrong_shape": 400,
    "out_of_range": 400,
    "nan": 400,
    "too_large": 413,
    "wrong_model": 404,
    "ready_after": 200,
}


class Misbehaving:
    """The real application, with its requests' headers and its answers changed on the way."""

    def __init__(self):
        self.app = build_app(MODEL, token_digest=hashlib.sha256(TOKEN.encode()).hexdigest())
        self.behave()

    def behave(self):
        self.headers = lambda headers: headers
        self.answer = lambda path, status, body: (status, body)

    async def __call__(self, scope, receive, send):
        scope["headers"] = self.headers(scope["headers"])
        messages = []

        async def hold(message):
            messages.append(message)

        await self.app(scope, receive, hold)
        start, content = messages
        status, body = self.answer(scope["path"], start["status"], content["body"])
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def running():
    app = Misbehaving()
    with listening_socket("127.0.0.1", 0) as listener:
        server = uvicorn_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield app, listener.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def server(running):
    app, _ = running
    app.behave()
    return app


@pytest.fixture
def port(running):
    return running[1]


def ask(port, **changes):
    arguments = {
        "token": TOKEN,
        "model": "digits",
        "input_name": "x",
        "labels": LABELS,
        "good_row": (0.0, 1.0, 0.5, 0.25),
        "timeout": 5.0,
    }
    return probe("127.0.0.1", port, **{**arguments, **changes})


def failed(report):
    return {name for name, check in report.checks.items() if not check.passed}


def test_a_server_that_behaves_passes(server, port):
    report = ask(port)
    assert report.passed
    assert {name: check.expected for name, check in report.checks.items()} == EXPECTED
    assert figures(report) == {**EXPECTED, "failed_checks": 0}
    assert report.label == "yes"
    assert report.probabilities == pytest.approx([0.186324, 0.506480, 0.307196], abs=1e-6)


@pytest.mark.parametrize(
    ("statuses", "names"),
    [
        pytest.param({400: 200}, {"malformed", "wrong_shape", "out_of_range", "nan"}, id="accepts-malformed"),
        pytest.param({413: 200}, {"too_large"}, id="accepts-too-large"),
        pytest.param({404: 200}, {"wrong_model"}, id="accepts-any-model"),
        pytest.param({401: 403}, {"unauthenticated", "wrong_token"}, id="forbids-instead"),
        pytest.param({400: 500}, {"malformed", "wrong_shape", "out_of_range", "nan"}, id="breaks-on-malformed"),
    ],
)
def test_records_unexpected_statuses(server, port, statuses, names):
    server.answer = lambda path, status, body: (statuses.get(status, status), body)
    report = ask(port)
    assert failed(report) == names
    assert {report.checks[name].status for name in names} == set(statuses.values())
    assert figures(report)["failed_checks"] == len(names)


def test_records_a_server_that_accepts_anyone(server, port):
    server.headers = lambda headers: [
        *((name, value) for name, value in headers if name != b"authorization"),
        (b"authorization", f"Bearer {TOKEN}".encode()),
    ]
    assert failed(ask(port)) == {"unauthenticated", "wrong_token"}


def test_records_a_server_that_accepts_any_token(server, port):
    server.headers = lambda headers: [
        (name, f"Bearer {TOKEN}".encode() if name == b"authorization" else value) for name, value in headers
    ]
    assert failed(ask(port)) == {"wrong_token"}


def altered(**fields):
    """Change fields of the answer's tensors, named as `label_data` or `probabilities_shape`."""

    def alter(body):
        document = json.loads(body)
        for output in document["outputs"]:
            for key in ("data", "shape", "datatype", "name"):
                output[key] = fields.get(f"{output['name']}_{key}", output[key])
        return json.dumps(document).encode()

    return alter


GOOD = [0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(altered(probabilities_data=[float("nan")] * 3), id="nan"),
        pytest.param(altered(probabilities_data=[0.5, float("inf"), 0.5]), id="infinity"),
        pytest.param(altered(probabilities_data=[-0.5, 1.0, 0.5]), id="negative"),
        pytest.param(altered(probabilities_data=[0.25, 0.5, 0.252]), id="sum-above-one"),
        pytest.param(altered(probabilities_data=[0.0, 0.0, 0.0]), id="zeros"),
        pytest.param(altered(probabilities_data=[0.5, 0.25, 0.25]), id="another-labels-probability"),
        pytest.param(altered(probabilities_data=[0.5, 0.5]), id="too-few"),
        pytest.param(altered(probabilities_data=[*GOOD, 0.0]), id="too-many"),
        pytest.param(altered(probabilities_data=["0.25", "0.5", "0.25"]), id="strings"),
        pytest.param(altered(probabilities_data=[False, True, False]), id="booleans"),
        pytest.param(altered(probabilities_data=None), id="null"),
        pytest.param(altered(probabilities_shape=[3]), id="other-shape"),
        pytest.param(altered(probabilities_datatype="FP64"), id="other-datatype"),
        pytest.param(altered(probabilities_name="scores"), id="no-probabilities"),
        pytest.param(altered(label_name="probabilities"), id="no-label"),
        pytest.param(altered(label_data=["maybe"]), id="foreign-label"),
        pytest.param(altered(label_data=["yes", "yes"]), id="two-labels"),
        pytest.param(altered(label_data=[]), id="empty-label"),
        pytest.param(altered(label_data=[["yes"]]), id="nested-label"),
        pytest.param(altered(label_data="yes"), id="label-no-list"),
        pytest.param(lambda body: body.replace(b'"digits"', b'"other"'), id="other-model"),
        pytest.param(lambda body: b"", id="empty"),
        pytest.param(lambda body: b"[]", id="list"),
        pytest.param(lambda body: b'{"model_name":"digits","outputs":[]}', id="no-outputs"),
        pytest.param(lambda body: b'{"model_name":"digits","outputs":[1,2]}', id="outputs-no-objects"),
        pytest.param(lambda body: b"[" * 5000, id="deep"),
        pytest.param(lambda body: body.ljust(2 << 20), id="too-long"),
    ],
)
def test_records_a_good_request_answered_wrongly(server, port, alter):
    server.answer = lambda path, status, body: (status, alter(body) if b'"outputs"' in body else body)
    report = ask(port)
    assert failed(report) == {"good"}
    assert report.checks["good"] == Check(200, 200, passed=False)
    assert (report.label, report.probabilities) == (None, ())


def test_an_empty_report_has_not_passed():
    assert not ProbeReport({}, "yes", (1.0,)).passed


def test_a_server_that_never_gets_ready(server, port):
    server.answer = lambda path, status, body: (503, body)
    with pytest.raises(DeploymentError, match=r"not ready within 0.2 s: it last answered 503"):
        ask(port, timeout=0.2)


def test_a_server_that_does_not_exist():
    with listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DeploymentError, match="did not answer"):
        ask(port, timeout=0.2)


def test_a_server_that_becomes_unready(server, port):
    asked = []

    def answer(path, status, body):
        asked.append(path)
        return (503 if asked.count("/v2/health/ready") > 1 else status), body

    server.answer = answer
    assert failed(ask(port)) == {"ready_after"}


@pytest.mark.parametrize(
    ("lives", "line"),
    [
        pytest.param(11, b"", id="hangs-up"),
        pytest.param(11, b"SSH-2.0-x\r\n", id="no-http"),
        pytest.param(11, b"HTTP/1.1 nought OK\r\n\r\n", id="no-status"),
        pytest.param(11, b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000, id="endless-header"),
        pytest.param(3, b"", id="dies"),
    ],
)
def test_a_server_that_is_ready_and_no_more(lives, line):
    ready = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    def serve(listener):
        with listener:
            for _ in range(lives):
                connection = listener.accept()[0]
                with connection:
                    request = connection.recv(1 << 16)
                    connection.sendall(ready if b"/ready" in request else line)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass

    listener = listening_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, args=(listener,))
    thread.start()
    if lives < 11:
        with pytest.raises(DeploymentError, match="was gone"):
            ask(port)
        thread.join()
        return
    report = ask(port)
    thread.join()
    assert failed(report) == set(EXPECTED) - {"ready_after"}
    assert figures(report)["good"] == 0


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "ü", "=", "a\n"])
def test_refuses_a_token_that_is_none(token):
    with pytest.raises(UsageError, match="RFC 6750") as refusal:
        ask(1, token=token)
    assert token == "" or repr(token) not in str(refusal.value)


@pytest.mark.parametrize("row", [(), (0.0, float("nan"))])
def test_refuses_a_sample_that_is_none(row):
    with pytest.raises(UsageError, match="finite"):
        ask(1, good_row=row)
