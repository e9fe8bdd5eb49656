import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from portcullis.errors import UsageError
from portcullis.serving.server import listening_socket

PROGRAM = """
import ctypes, hashlib, os, pathlib, resource, signal, sys, time
import numpy as np
from portcullis.serving.app import build_app
from portcullis.serving.protocol import ServedModel
from portcullis.serving.server import serve

def predict(rows):
    if rows[0, 0] == 1:
        pathlib.Path(sys.argv[1] + ".busy").touch()
        time.sleep(0.5)
    return rows

model = ServedModel("m", "1", "x", (2,), 0.0, 1.0, ("a", "b"), predict)
app = build_app(model, token_digest=hashlib.sha256(b"token").hexdigest())
fd = int(sys.argv[2]) if len(sys.argv) > 2 else None
serve(app, fd=fd, ready_file=pathlib.Path(sys.argv[1]))
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
print(dumpable, *resource.getrlimit(resource.RLIMIT_CORE), default)
"""


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def ready_file(tmp_path):
    return tmp_path / "ready"


@pytest.fixture
def start(ready_file):
    """Start a server process; the second argument is a descriptor to inherit."""
    children = []

    def go(*fds):
        arguments = [sys.executable, "-c", PROGRAM, str(ready_file), *map(str, fds)]
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds)
        children.append(child)
        wait_for(ready_file)
        return child

    yield go
    for child in children:
        child.kill()
        child.communicate()


def request(port, path="/v2/health/ready", body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(
        "GET" if body is None else "POST",
        path,
        body,
        {"Authorization": "Bearer token", "Content-Type": "application/json"},
    )
    return connection


def test_sigterm_lets_the_pending_request_finish(start, ready_file):
    child = start()
    port = int(ready_file.read_text())
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 0]}
    pending = request(port, "/v2/models/m/infer", json.dumps({"inputs": [tensor]}))
    wait_for(ready_file.with_name("ready.busy"))
    child.terminate()
    response = pending.getresponse()
    assert response.status == 200
    assert json.loads(response.read())["outputs"][0]["data"] == ["a"]
    pending.close()
    output, errors = child.communicate(timeout=10)
    # Not dumpable, no core, the handlers put back; and an orderly end is no death by signal.
    assert (child.returncode, output, errors) == (0, b"0 0 0 True\n", b"")
    with pytest.raises(ConnectionRefusedError):
        request(port)


def test_serves_on_an_inherited_descriptor_and_ends_on_sigint(start, ready_file):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        child = start(listener.fileno())
    assert int(ready_file.read_text()) == port
    connection = request(port)
    assert connection.getresponse().status == 200
    connection.close()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("host", "port"),
    [
        pytest.param("127.0.0.1", -1, id="negative-port"),
        pytest.param("127.0.0.1", 65536, id="port-too-large"),
        pytest.param("192.0.2.1", 0, id="foreign-address"),
        pytest.param("::2:1", 0, id="foreign-ipv6-address"),
        pytest.param("a" * 70, 0, id="host-label-too-long"),
        pytest.param("127.0.0.1\0", 0, id="nul"),
    ],
)
def test_refuses_an_address(host, port):
    with pytest.raises(UsageError, match="cannot listen on"):
        listening_socket(host, port)


def test_refuses_a_port_in_use():
    with listening_socket("127.0.0.1", 0) as listener, pytest.raises(UsageError, match="in use"):
        listening_socket("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("kind", ["closed", "pipe", "unix", "udp", "negative"])
def test_refuses_a_descriptor(kind):
    reader, writer = os.pipe()
    os.close(writer)
    if kind in {"unix", "udp"}:
        os.close(reader)
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM if kind == "unix" else socket.SOCK_DGRAM)
        reader = made.detach()
    if kind == "closed":
        os.close(reader)
    with pytest.raises(UsageError, match="cannot listen on descriptor"):
        listening_socket("127.0.0.1", 0, -1 if kind == "negative" else reader)
    if kind in {"pipe", "negative"}:
        os.close(reader)
