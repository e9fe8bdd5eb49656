"""The few GETs of a Kubernetes API server that looking before a submit takes, on loopback, with a kubeconfig for them.

The objects are held as the API server stores them. Anything that is not a GET is an error of the test: nothing that
only looks may write.
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

TOKEN = "simulated-kubernetes-token"
KINDS = {
    "Secret": "secrets",
    "ConfigMap": "configmaps",
    "ServiceAccount": "serviceaccounts",
    "PersistentVolumeClaim": "persistentvolumeclaims",
}
VERSION = {
    **dict.fromkeys(("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"), "x"),
    "major": "1",
    "minor": "31",
    "gitVersion": "v1.31.0",
}


@dataclass
class CoreApi:
    """Objects by path, what may not be seen, and what was asked.

    Attributes:
        objects: Path below `/api/v1/` to the object.
        forbidden: Plural names of kinds, and `version`, that the caller may not read.
        disturb: What is answered to everything instead, a status and a body; None to answer as it should.
    """

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)
    disturb: tuple[int, bytes] | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def apply(self, stream: bytes) -> None:
        """Hold the objects of a YAML stream that an API server of this group holds."""
        for it in yaml.safe_load_all(stream):
            if it["kind"] in KINDS:
                path = f"namespaces/{it['metadata']['namespace']}/{KINDS[it['kind']]}/{it['metadata']['name']}"
                self.objects[path] = it

    def claim(self, namespace: str, name: str, phase: str = "Bound") -> None:
        path = f"namespaces/{namespace}/persistentvolumeclaims/{name}"
        it = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace}}
        self.objects[path] = {**it, "status": {"phase": phase}}

    def secret(self, namespace: str, name: str, *keys: str) -> None:
        it = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}
        self.objects[f"namespaces/{namespace}/secrets/{name}"] = {**it, "data": dict.fromkeys(keys, "AAAA")}

    def node(self, *, unschedulable: bool = False, **allocatable: str) -> None:
        spec = {"unschedulable": True} if unschedulable else {}
        resources = {name.replace("__", "/").replace("_", "."): value for name, value in allocatable.items()}
        self.nodes.append({"metadata": {"name": "n"}, "spec": spec, "status": {"allocatable": resources}})

    def kubeconfig(self, path: Path) -> Path:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.disturb:
            return self.disturb
        path = path.removeprefix("/api/v1/").removeprefix("/").removesuffix("/")
        kind = path if path in ("nodes", "version") else path.split("/")[2]
        if kind in self.forbidden:
            return 403, self._status(403, "Forbidden", f"cannot get {kind}")
        if path == "version":
            return 200, json.dumps(VERSION).encode()
        if path == "nodes":
            return 200, json.dumps({"kind": "NodeList", "apiVersion": "v1", "items": self.nodes}).encode()
        if path not in self.objects:
            return 404, self._status(404, "NotFound", f"{path} not found")
        return 200, json.dumps(self.objects[path]).encode()

    def _status(self, code: int, reason: str, message: str) -> bytes:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message}
        return json.dumps({**status, "reason": reason, "code": code}).encode()


def values_of(api: CoreApi) -> set[str]:
    """Return every secret value that the server holds, as stored and decoded."""
    stored = {
        value for path, it in api.objects.items() if "/secrets/" in path for value in (it.get("data") or {}).values()
    }
    return stored | {line for it in stored for line in base64.b64decode(it).decode().splitlines() if len(line) > 8}


class _Handler(BaseHTTPRequestHandler):
    api: CoreApi

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.api.asked.append(self.path)
        status, body = self.api.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(api: CoreApi) -> Iterator[CoreApi]:
    """Serve until the block ends, at `api.url`."""
    handler = type("Handler", (_Handler,), {"api": api})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        api.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield api
        finally:
            http.shutdown()
            thread.join()
