"""A Kubeflow Pipelines server on loopback: the v2beta1 calls that KFP's own client makes to submit and watch a run.

The shapes are those of KFP's generated client, kfp_server_api: every answer is read back by its model classes before it
is sent, and a field that they do not know is an error here. `/apis/v1beta1/healthz`, which that client no longer has,
answers as KFP's API server does (kubeflow/pipelines, backend/src/apiserver/main.go). A test scripts what a run goes
through. Not simulated: compiling for Argo, pods, authorization by namespace.
"""

import contextlib
import email
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml

TOKEN = "simulated-token-3f9a"


@dataclass
class Request:
    """What was asked: method, path, query (first value of each), JSON body or uploaded file, and headers."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class KfpServer:
    """What the server holds, what it was sent, and how it is to behave.

    Attributes:
        states: What a run goes through, one state for each time it is asked about; the last one stays.
        tasks: The `task_details` of every run.
        multi_user: Whether it keeps users apart by namespace.
        release: The version it gives itself.
        disturb: Called before each answer; what it returns is sent instead: a status and a body, or None to hang up.
    """

    states: list[str] = field(default_factory=lambda: ["PENDING", "RUNNING", "SUCCEEDED"])
    tasks: list[dict[str, Any]] = field(default_factory=list)
    multi_user: bool = False
    release: str = "2.17.0"
    token: str = TOKEN
    url: str = ""
    disturb: Callable[[Request], Any] = lambda request: ...
    requests: list[Request] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def sent(self, method: str, path: str) -> list[Request]:
        """Return the requests to a path, a regular expression."""
        return [it for it in self.requests if it.method == method and re.fullmatch(path, it.path)]

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/apis/v1beta1/healthz":
            return 200, {"commit_sha": "unknown", "tag_name": self.release, "multi_user": self.multi_user}
        for (method, path), (model, handle) in ROUTES.items():
            match = re.fullmatch(path, request.path)
            if match and method == request.method:
                try:
                    return 200, as_model(model, handle(self, request, *match.groups()))
                except Refusal as refusal:
                    return refusal.status, {"error": str(refusal), "code": 3, "message": str(refusal), "details": []}
        return 404, {"error": "Not Found", "code": 5, "message": "Not Found", "details": []}

    def identifier(self, kind: str) -> str:
        return f"{kind}-{sum(map(len, (self.experiments, self.pipelines, self.versions, self.runs)))}"

    def namespace(self, given: str | None) -> str:
        if self.multi_user != bool(given):
            raise Refusal(400, "a namespace is needed in multi-user mode, and only there")
        return given or ""


class Refusal(Exception):
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def as_model(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Check an answer by KFP's model class: it has no other field, and comes back as it went in."""
    client = kfp_server_api.ApiClient(kfp_server_api.Configuration())

    class Response:
        data = json.dumps(document)

    read = client.deserialize(Response, name)
    assert client.sanitize_for_serialization(read) == document, f"not a {name}: {document}"
    return document


def _health(server: KfpServer, request: Request) -> dict[str, Any]:
    return {"multi_user": server.multi_user, "pipeline_store": "database"}


def _wanted(request: Request) -> str | None:
    if not request.query.get("filter"):
        return None
    (predicate,) = json.loads(request.query["filter"])["predicates"]
    assert predicate["operation"] in (1, "EQUALS") and predicate["key"] == "display_name"
    return str(predicate["stringValue"])


def _list_experiments(server: KfpServer, request: Request) -> dict[str, Any]:
    namespace, name = server.namespace(request.query.get("namespace")), _wanted(request)
    found = [
        it
        for it in server.experiments.values()
        if it.get("namespace", "") == namespace and name in (None, it["display_name"])
    ]
    return {"experiments": found, "total_size": len(found)} if found else {}


def _create_experiment(server: KfpServer, request: Request) -> dict[str, Any]:
    namespace = server.namespace(request.body.get("namespace"))
    made = {"experiment_id": server.identifier("experiment"), "display_name": request.body["display_name"]}
    if namespace:
        made["namespace"] = namespace
    return server.experiments.setdefault(made["experiment_id"], made)


def _list_pipelines(server: KfpServer, request: Request) -> dict[str, Any]:
    name = _wanted(request)
    found = [
        it
        for it in server.pipelines.values()
        if name in (None, it["display_name"]) and it.get("namespace", "") == request.query.get("namespace", "")
    ]
    return {"pipelines": found, "total_size": len(found)} if found else {}


def _upload(server: KfpServer, request: Request) -> dict[str, Any]:
    made = {
        "pipeline_id": server.identifier("pipeline"),
        "display_name": request.query["name"],
        "description": request.query["description"],
    }
    if request.query.get("namespace"):
        made["namespace"] = request.query["namespace"]
    return server.pipelines.setdefault(made["pipeline_id"], made)


def _upload_version(server: KfpServer, request: Request) -> dict[str, Any]:
    pipeline, name = request.query["pipelineid"], request.query["name"]
    if pipeline not in server.pipelines:
        raise Refusal(404, f"pipeline {pipeline} not found")
    if any(it["display_name"] == name for it in server.versions.values()):
        raise Refusal(409, f"version {name} exists")
    spec, *platforms = yaml.safe_load_all(request.body)
    made = {
        "pipeline_id": pipeline,
        "pipeline_version_id": server.identifier("version"),
        "display_name": name,
        "description": request.query["description"],
        "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platforms[0]} if platforms else spec,
    }
    server.uploads[made["pipeline_version_id"]] = request.body
    return server.versions.setdefault(made["pipeline_version_id"], made)


def _create_run(server: KfpServer, request: Request) -> dict[str, Any]:
    if request.body["experiment_id"] not in server.experiments:
        raise Refusal(404, "experiment not found")
    if request.body["pipeline_version_reference"]["pipeline_version_id"] not in server.versions:
        raise Refusal(404, "version not found")
    made = {**request.body, "run_id": server.identifier("run"), "state": "PENDING"}
    return server.runs.setdefault(made["run_id"], made)


def _get_run(server: KfpServer, request: Request, run: str) -> dict[str, Any]:
    if run not in server.runs:
        raise Refusal(404, f"run {run} not found")
    state = server.states.pop(0) if len(server.states) > 1 else server.states[0]
    answer = {**server.runs[run], "state": state}
    return {**answer, "run_details": {"task_details": server.tasks}} if server.tasks else answer


_V2 = "/apis/v2beta1/"
ROUTES: dict[tuple[str, str], tuple[str, Callable[..., dict[str, Any]]]] = {
    ("GET", f"{_V2}healthz"): ("V2beta1GetHealthzResponse", _health),
    ("GET", f"{_V2}experiments"): ("V2beta1ListExperimentsResponse", _list_experiments),
    ("POST", f"{_V2}experiments"): ("V2beta1Experiment", _create_experiment),
    ("GET", f"{_V2}pipelines"): ("V2beta1ListPipelinesResponse", _list_pipelines),
    ("POST", f"{_V2}pipelines/upload"): ("V2beta1Pipeline", _upload),
    ("POST", f"{_V2}pipelines/upload_version"): ("V2beta1PipelineVersion", _upload_version),
    ("POST", f"{_V2}runs"): ("V2beta1Run", _create_run),
    ("GET", f"{_V2}runs/([^/]+)"): ("V2beta1Run", _get_run),
}


class _Handler(BaseHTTPRequestHandler):
    server_state: KfpServer

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state, url = self.server_state, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, url.path, query, self._content(data), dict(self.headers.items()))
        state.requests.append(request)
        instead = state.disturb(request)
        if instead is None:
            self.close_connection = True
            return
        if instead is ...:
            allowed = self.headers.get("Authorization", "") == (f"Bearer {state.token}" if state.token else "")
            refused = {"error": "Unauthenticated", "code": 16, "message": "no valid token", "details": []}
            instead = state.answer(request) if allowed else (401, refused)
        status, body, *headers = instead
        self._send(status, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def _content(self, data: bytes) -> Any:
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            (part,) = email.message_from_bytes(f"Content-Type: {kind}\n\n".encode() + data).get_payload()
            assert part.get_param("name", header="content-disposition") == "uploadfile"
            return part.get_payload(decode=True)
        return json.loads(data) if data else None

    def _send(self, status: int, data: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(server: KfpServer, tls: ssl.SSLContext | None = None) -> Iterator[KfpServer]:
    """Serve until the block ends, at `server.url`; with `tls`, by HTTPS."""
    handler = type("Handler", (_Handler,), {"server_state": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        if tls:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
