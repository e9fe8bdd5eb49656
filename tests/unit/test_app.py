import contextlib
import hashlib
import http.client
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portcullis.errors import ConfigError, ModelError
from portcullis.serving.app import build_app
from portcullis.serving.protocol import ServedModel
from portcullis.serving.server import listening_socket, uvicorn_server

TOKEN = "not-a-secret"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/digits/infer"


def served(predict=lambda rows: rows[:, :2]):
    return ServedModel("digits", "v1", "x", (2, 2), 0.0, 1.0, ("no", "yes"), predict)


@contextlib.contextmanager
def running(model=None, *, idle_seconds=5, **limits):
    """A real server on a free loopback port; yields the port."""
    with listening_socket("127.0.0.1", 0) as listener:
        server = uvicorn_server(build_app(model or served(), token_digest=DIGEST, **limits))
        server.config.timeout_keep_alive = idle_seconds
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port():
    with running() as bound:
        yield bound


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        answer = response.read()
        return response.status, json.loads(answer) if answer else None, response.headers
    finally:
        connection.close()


def infer(port, row=(0.0, 0.25, 0.5, 1.0), path=INFER, headers=AUTHORIZED, **fields):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": list(row)}
    return ask(port, "POST", path, json.dumps({"inputs": [tensor], **fields}), {**JSON, **headers})


def raw(port, head, body=b"", *, whole=False):
    """Send bytes as they are and return the status line, or all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        with connection.makefile("rb") as stream:
            return stream.read() if whole else stream.readline()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("HEAD", "/v2", 200),
        ("GET", "/v2/models/digits", 200),
        ("GET", "/v2/models/digits/ready", 200),
        ("GET", "/v2/models/digits/versions/v1", 200),
        ("GET", "/v2/models/digits/versions/v1/ready", 200),
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/digits/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/Digits", 404),
        ("GET", "/v2/models/digits%00", 404),
        ("GET", "/v2/models/digits/versions/v2", 404),
        ("GET", "/v2/models/..", 404),
        ("GET", "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v2/models/../../etc/passwd/ready", 404),
        ("GET", "/v2/models/..\\..\\digits/ready", 404),
        ("GET", "/v2/models/%ff%fe/ready", 404),
        ("POST", "/v2/models/%2e%2e/infer", 404),
        ("POST", "/v2/models/digits/versions/v2/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/digits", 405),
        ("OPTIONS", INFER, 405),
        ("POST", "/v2/health/live", 405),
    ],
)
def test_routes(port, method, path, status):
    found, answer, headers = ask(port, method, path, headers=AUTHORIZED)
    assert found == status
    if status >= 400:
        assert list(answer) == ["error"]
    assert ("Allow" in headers) == (status == 405)
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Location" not in headers


@pytest.mark.parametrize(("path", "key"), [("/v2/health/live", "live"), ("/v2/health/ready", "ready")])
def test_health_needs_no_token(port, path, key):
    assert ask(port, "GET", path)[:2] == (200, {key: True})


@pytest.mark.parametrize(
    "path", ["/", "/v2", "/v2/models/digits", "/v2/models/digits/ready", INFER, "/v2/health/live/", "/v2//health/live"]
)
def test_everything_else_needs_the_token(port, path):
    status, answer, headers = ask(port, "GET", path)
    assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="portcullis"')
    assert answer == {"error": "a valid bearer token is needed"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(b"Authorization: Bearer not-a-secret", 200, id="right"),
        pytest.param(b"authorization: bearer not-a-secret", 200, id="scheme-in-lower-case"),
        pytest.param(b"Authorization: Bearer not-a-secret2", 401, id="longer"),
        pytest.param(b"Authorization: Bearer not-a-secre", 401, id="shorter"),
        pytest.param(b"Authorization: Bearer NOT-A-SECRET", 401, id="other-case"),
        pytest.param(b"Authorization: Bearer  not-a-secret", 401, id="two-blanks"),
        pytest.param(b"Authorization: Bearer\tnot-a-secret", 401, id="tab"),
        pytest.param(b"Authorization: Bearer " + DIGEST.encode(), 401, id="the-digest"),
        pytest.param(b"Authorization: Bearer", 401, id="no-token"),
        pytest.param(b"Authorization:", 401, id="empty"),
        pytest.param(b"Authorization: not-a-secret", 401, id="no-scheme"),
        pytest.param(b"Authorization: Basic not-a-secret", 401, id="basic"),
        pytest.param(b"Authorization: Bearer \xff\xfe\x80", 401, id="not-ascii"),
        pytest.param(b"Authorization: Bearer not-a-secret\nAuthorization: Bearer not-a-secret", 401, id="twice"),
        pytest.param(b"Authorization: Bearer x\nAuthorization: Bearer not-a-secret", 401, id="second-right"),
        pytest.param(b"X-Authorization: Bearer not-a-secret", 401, id="other-header"),
        pytest.param(b"Authorization: Bearer not-a-secret\x00", 400, id="nul"),
        pytest.param(b"Authorization : Bearer not-a-secret", 400, id="blank-before-colon"),
        pytest.param(b"Auth\xf6rization: Bearer not-a-secret", 400, id="header-name-not-ascii"),
        pytest.param(b"Transfer-Encoding: gzip", 400, id="unknown-transfer-encoding"),
        pytest.param(b"Content-Length: -1", 400, id="negative-length"),
        pytest.param(b"Content-Length: " + b"9" * 5000, 400, id="absurd-length"),
    ],
)
def test_credentials_and_headers(port, headers, status):
    answer = raw(port, b"GET /v2 HTTP/1.1\nHost: x\nConnection: close\n" + headers)
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("path", [INFER, "/v2/models/digits/versions/v1/infer"])
def test_infers(port, path):
    status, answer, _ = infer(port, (1, 0, 0, 0), path=path, id="α")
    label, probabilities = answer.pop("outputs")
    assert (status, answer) == (200, {"model_name": "digits", "model_version": "v1", "id": "α"})
    assert label["data"] == ["no"]
    assert probabilities["data"] == pytest.approx([0.731059, 0.268941], abs=1e-6)


def test_metadata(port):
    assert ask(port, "GET", "/v2/models/digits", headers=AUTHORIZED)[1]["inputs"][0]["shape"] == [-1, 2, 2]
    assert ask(port, "GET", "/v2", headers=AUTHORIZED)[1]["name"] == "portcullis"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 415, id="none"),
        pytest.param({"Content-Type": "text/plain"}, 415, id="text"),
        pytest.param({"Content-Type": "application/json; charset=latin-1"}, 415, id="latin-1"),
        pytest.param({"Content-Type": "application/jsonp"}, 415, id="prefix"),
        pytest.param({"Content-Type": "application/octet-stream"}, 415, id="binary"),
        pytest.param({"Content-Type": b"application/json\xe9"}, 415, id="not-ascii"),
        pytest.param({**JSON, "Content-Encoding": "gzip"}, 415, id="gzip"),
        pytest.param({"Content-Type": "Application/JSON; charset=UTF-8"}, 400, id="with-charset"),
        pytest.param(JSON, 400, id="plain"),
    ],
)
def test_content_types(port, headers, status):
    assert ask(port, "POST", INFER, b"{}", {**AUTHORIZED, **headers})[0] == status


def test_malformed_bodies_are_answered_with_a_reason(port):
    for body in (b"", b"{", b"[" * 10_000, b'{"a":1,"a":1}', b"\xff"):
        status, answer, _ = ask(port, "POST", INFER, body, {**AUTHORIZED, **JSON})
        assert status == 400
        assert "JSON" in answer["error"]
    assert infer(port, (0, 0, 0, 2))[1] == {"error": "the data must be finite and within [0.0, 1.0]"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=64) | st.text(alphabet='{}[]":,0123456789eENaninputs', max_size=64).map(str.encode))
def test_any_body_is_refused(port, body):
    assert ask(port, "POST", INFER, body, {**AUTHORIZED, **JSON})[0] == 400


def test_concurrent_requests_get_their_own_answers(port):
    def one(number):
        row = (number / 64, 1 - number / 64, 0, 0)
        return infer(port, row, id=str(number))[1]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(64)))
    assert [answer["id"] for answer in answers] == [str(number) for number in range(64)]
    assert [answer["outputs"][0]["data"][0] for answer in answers] == ["yes"] * 32 + ["no"] * 32


def send_until_cut(connection, data, pause=0.0):
    """Send `data` again and again until the server closes the connection; one that merely stalls times out."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            connection.sendall(data)
            time.sleep(pause)


@pytest.fixture(scope="module")
def strict_port():
    with running(idle_seconds=1.0, max_bytes=1000, body_seconds=0.5) as bound:
        yield bound


POST_HEAD = f"POST {INFER} HTTP/1.1\nHost: x\nAuthorization: Bearer {TOKEN}\nContent-Type: application/json\n".encode()


def test_a_body_announced_too_large_is_not_awaited(strict_port):
    assert raw(strict_port, POST_HEAD + b"Content-Length: 1001").startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_cut_at_the_limit(strict_port):
    chunks = b"190\r\n" + b" " * 400 + b"\r\n"
    for number, status in ((2, b"400"), (3, b"413"), (2000, b"413")):
        answer = raw(strict_port, POST_HEAD + b"Transfer-Encoding: chunked", chunks * number + b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 " + status)


def test_a_connection_survives_a_body_that_was_too_large(strict_port):
    connection = http.client.HTTPConnection("127.0.0.1", strict_port, timeout=10)
    for path, body, status in ((INFER, b" " * 300_000, 413), (INFER, b"{}", 400)):
        connection.request("POST", path, body, {**AUTHORIZED, **JSON})
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (status, True)
    connection.close()


def test_a_body_without_end_is_dropped(strict_port):
    with socket.create_connection(("127.0.0.1", strict_port), timeout=10) as connection:
        connection.sendall(POST_HEAD.replace(b"\n", b"\r\n") + b"Transfer-Encoding: chunked\r\n\r\n")
        send_until_cut(connection, b"190\r\n" + b" " * 400 + b"\r\n")


def test_a_slow_body_is_given_up(strict_port):
    answer = raw(strict_port, POST_HEAD + b"Content-Length: 50", b'{"inputs"', whole=True)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


def test_an_answer_may_take_longer_than_a_head():
    def predict(rows):
        time.sleep(0.6 * float(rows[0, 0]))
        return rows[:, :2]

    with running(served(predict), idle_seconds=0.2) as port:
        assert infer(port, (1, 0, 0, 0))[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v2/health/live HT"], ids=["silent", "half-a-line"])
def test_a_head_that_does_not_come_is_not_awaited(strict_port, sent):
    with socket.create_connection(("127.0.0.1", strict_port), timeout=10) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_head_without_end_is_cut(strict_port):
    with socket.create_connection(("127.0.0.1", strict_port), timeout=10) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nX: ")
        send_until_cut(connection, b"a" * 65536)


def test_a_head_in_drips_is_not_awaited(strict_port):
    with socket.create_connection(("127.0.0.1", strict_port), timeout=10) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n")
        send_until_cut(connection, b"X: y\r\n", pause=0.05)


def test_a_client_that_leaves_is_no_failure(strict_port, caplog):
    with socket.create_connection(("127.0.0.1", strict_port), timeout=10) as connection:
        connection.sendall(POST_HEAD.replace(b"\n", b"\r\n") + b"Content-Length: 50\r\n\r\n{")
    assert infer(strict_port)[0] == 200
    assert not caplog.records


def test_overload_is_answered_and_health_stays_responsive():
    entered, release = threading.Semaphore(0), threading.Event()

    def predict(rows):
        if rows[0, 0] == 1:
            entered.release()
            assert release.wait(10)
        return rows[:, :2]

    with running(served(predict), max_pending=2, threads=2) as port, ThreadPoolExecutor(2) as pool:
        try:
            waiting = [pool.submit(infer, port, (1, 0, 0, 0)) for _ in range(2)]
            for _ in range(2):
                assert entered.acquire(timeout=10)
            refused = infer(port)
            assert ask(port, "GET", "/v2/health/live")[0] == 200
            assert ask(port, "GET", "/v2/health/ready")[0] == 200
        finally:
            release.set()
        assert refused[0] == 503
        assert refused[1] == {"error": "too many requests at once"}
        assert refused[2]["Retry-After"] == "1"
        assert [request.result()[0] for request in waiting] == [200] * 2
        assert infer(port)[0] == 200


def failing_after_the_first(outcome):
    calls = []

    def predict(rows):
        calls.append(1)
        return rows[:, :2] if len(calls) == 1 else outcome(rows)

    return served(predict)


def test_an_exception_of_the_model_reveals_nothing(caplog):
    def predict(rows):
        raise ValueError(f"cannot handle {rows.tolist()}")

    with running(failing_after_the_first(predict)) as port:
        status, answer, headers = infer(port, (0.123, 0, 0, 0))
        assert (status, answer) == (500, {"error": "internal error"})
        assert headers["Cache-Control"] == "no-store"
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "ValueError" in caplog.text
    assert "in predict" in caplog.text
    assert "0.123" not in caplog.text


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(lambda rows: np.full((1, 2), np.nan), id="nan"),
        pytest.param(lambda rows: np.full((1, 2), np.inf), id="infinity"),
        pytest.param(lambda rows: np.zeros((1, 3)), id="shape"),
    ],
)
def test_a_model_that_fails_once_stays_unready(outcome, caplog):
    with running(failing_after_the_first(outcome)) as port:
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        assert infer(port)[:2] == (500, {"error": "internal error"})
        assert ask(port, "GET", "/v2/health/ready")[:2] == (503, {"ready": False})
        assert ask(port, "GET", "/v2/models/digits/ready", headers=AUTHORIZED)[0] == 503
        assert infer(port)[:2] == (503, {"error": "the model is not ready"})
        assert ask(port, "GET", "/v2/health/live")[0] == 200
    assert "ModelError" in caplog.text


def test_logs_hold_no_request_data(port, caplog, capfd):
    marker = "4711471147114711"
    infer(port, path=f"/v2/models/{marker}/infer")
    infer(port, headers={"Authorization": f"Bearer {marker}"})
    infer(port, id=marker)
    ask(port, "POST", INFER, marker, {**AUTHORIZED, **JSON})
    raw(port, f"GET /{marker} HTTP/1.1\nHost : {marker}".encode())
    assert marker not in caplog.text
    assert marker not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"token_digest": ""}, id="no-digest"),
        pytest.param({"token_digest": TOKEN}, id="token-instead-of-digest"),
        pytest.param({"token_digest": DIGEST.upper()}, id="upper-case"),
        pytest.param({"max_bytes": 0}, id="max-bytes"),
        pytest.param({"max_rows": -1}, id="max-rows"),
        pytest.param({"max_pending": 0}, id="max-pending"),
        pytest.param({"threads": 0}, id="threads"),
        pytest.param({"body_seconds": 0.0}, id="body-seconds"),
    ],
)
def test_a_server_without_digest_or_limits_is_refused(changes):
    with pytest.raises(ConfigError):
        build_app(served(), **{"token_digest": DIGEST, **changes})


def test_a_model_that_does_not_work_is_never_served():
    with pytest.raises(ModelError, match="non-finite"):
        build_app(served(lambda rows: np.full((len(rows), 2), np.nan)), token_digest=DIGEST)


# What is told of refused requests.


def test_refused_requests_are_told_by_their_status():
    told = []
    with running(refused=told.append) as port:
        assert ask(port, "GET", "/v2")[0] == 401
        assert ask(port, "GET", "/v2/health/ready")[0] == 200
        assert ask(port, "GET", "/v2/nothing", headers=AUTHORIZED)[0] == 404
        assert ask(port, "POST", INFER, "{", {**AUTHORIZED, **JSON})[0] == 400
        assert infer(port)[0] == 200
    assert told == [401, 404, 400] and all(type(it) is int for it in told)


def test_a_request_whose_refusal_cannot_be_told_is_refused_all_the_same():
    def full(_):
        raise OSError("no space left")

    with running(refused=full) as port:
        assert ask(port, "GET", "/v2")[0] == 500
        assert infer(port, headers={})[0] == 500
        assert infer(port)[0] == 200
