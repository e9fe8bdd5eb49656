"""Record what a real kube-apiserver answers, so that the simulator can be held to it.

    python tests/cluster/record.py --apiserver PATH/kube-apiserver --etcd PATH/etcd

Both run on the loopback interface, with a certificate and tokens of their own in a temporary directory, for as long as
the conversation takes. Requests and answers are written, without what differs from run to run (`exchange.py`).

On Debian 12, etcd is the package etcd-server; kube-apiserver is built from the source package kubernetes, with
golang-1.19, by `make WHAT=cmd/kube-apiserver`.
"""

import argparse
import contextlib
import http.client
import json
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.exchange import USERS, play

from portcullis.deploy.manifests import Subject, deployer_role, render
from portcullis.deploy.settings import ServingSettings

TARGET = Path(__file__).parents[1] / "data" / "kubernetes"
START_SECONDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--apiserver", type=Path, required=True)
    parser.add_argument("--etcd", type=Path, required=True)
    arguments = parser.parse_args()
    version = subprocess.run([arguments.apiserver, "--version"], capture_output=True, text=True, check=True).stdout
    number = version.removeprefix("Kubernetes v").strip()
    with (
        tempfile.TemporaryDirectory() as scratch,
        real_server(arguments.apiserver, arguments.etcd, Path(scratch)) as it,
    ):
        exchanges = play(it.ask, conversation())
    source = (
        "kube-apiserver with etcd, RBAC and default admission but for ServiceAccount; run by tests/cluster/record.py"
    )
    lines = ",\n".join(json.dumps(exchange, sort_keys=True, separators=(",", ":")) for exchange in exchanges)
    target = TARGET / f"kube-apiserver-{number}.json"
    target.write_text(f'{{"source":{json.dumps(source)},"version":"{number}","exchanges":[\n{lines}\n]}}\n')
    sys.stdout.write(f"{len(exchanges)} exchanges of kube-apiserver {number}: {target}\n")


NAMESPACE = "portcullis-serving"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Service": "/api/v1/namespaces/{}/services",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
}
SETTINGS = {
    "namespace": NAMESPACE,
    "image": f"registry.example/server@sha256:{'1' * 64}",
    "gateway": {"namespace": {"kubernetes.io/metadata.name": "gateway"}, "pods": {"app": "gateway"}},
    "store": {"peers": [{"cidr": "10.2.0.0/24", "port": 443}], "secret": "store"},
}


def conversation():
    """The requests, in order; what each shows is its name."""
    subject = Subject("a" * 64, "b" * 64, "c" * 64, 1_800_000_000_000, 3, 1)
    uris = {key: f"s3://bucket/{key}" for key in ("sealed", "admission", "evidence")}
    objects = render(ServingSettings.parse(SETTINGS), name="digits", subject=subject, uris=uris)
    # A budget is policy/v1 from Kubernetes 1.21 on.
    objects = [it for it in objects if it["kind"] != "PodDisruptionBudget"]
    deployment = objects[-1]
    role, binding = deployer_role("digits", NAMESPACE)[1:]
    binding = {**binding, "subjects": [{"kind": "User", "name": "deployer", "apiGroup": "rbac.authorization.k8s.io"}]}
    one = "/apis/apps/v1/namespaces/portcullis-serving/deployments/digits"

    def ask(name, user, method, path, body=None, content_type=None):
        return {"name": name, "user": user, "method": method, "path": path, "type": content_type, "body": body}

    def post(name, body, path):
        return ask(name, "admin", "POST", path, body, "application/json")

    def apply(name, body, user="deployer", manager="portcullis", query="", path=None):
        path = path or f"{PATHS[body['kind']].format(NAMESPACE)}/{body['metadata']['name']}"
        return ask(name, user, "PATCH", f"{path}?fieldManager={manager}{query}", body, APPLY)

    def edited(**spec):
        """A part of the Deployment, as someone else would apply it."""
        identity = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "digits"}}
        return {**identity, "spec": spec}

    def container(**fields):
        return edited(template={"spec": {"containers": [fields]}})

    evil = container(name="server", image="evil:latest")
    sidecar = container(name="sidecar", image="evil:latest")
    leaner = json.loads(json.dumps(deployment))
    del leaner["spec"]["template"]["spec"]["containers"][0]["env"][2]
    leaner["spec"]["template"]["spec"]["volumes"].pop()
    leaner["spec"]["template"]["spec"]["initContainers"][0]["volumeMounts"].pop()
    del leaner["metadata"]["annotations"]["portcullis.dev/manifests"]

    def over(name, changes=deployment):
        """The Deployment, to go over the one that an earlier request was answered with."""
        read = {key: f"{key} of {name}" for key in ("uid", "resourceVersion")}
        return {**changes, "metadata": {**changes["metadata"], **read}}

    new = {**deployment, "metadata": {**deployment["metadata"], "resourceVersion": "1"}}
    unknown = {**deployment, "spec": {**deployment["spec"], "bogus": 1}}
    negative = {**deployment, "spec": {**deployment["spec"], "replicas": -1}}
    return [
        post(
            "create-namespace",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            "/api/v1/namespaces",
        ),
        post("create-role", role, PATHS["Role"].format(NAMESPACE)),
        post("create-binding", binding, PATHS["RoleBinding"].format(NAMESPACE)),
        ask("wrong-token", "stranger", "GET", one),
        ask("get-missing", "deployer", "GET", one),
        ask("get-without-rights", "nobody", "GET", one),
        ask("get-another-name", "deployer", "GET", one.replace("digits", "other")),
        apply("apply-without-rights", deployment, user="nobody"),
        apply("apply-another-name", {**deployment, "metadata": {**deployment["metadata"], "name": "other"}}),
        apply(
            "apply-in-a-missing-namespace",
            {**deployment, "metadata": {**deployment["metadata"], "namespace": "no"}},
            user="admin",
            path=one.replace(NAMESPACE, "no"),
        ),
        apply("apply-without-a-manager", deployment, manager=""),
        apply("apply-another-name-in-the-body", deployment, user="admin", path=one.replace("digits", "other")),
        apply("apply-an-unknown-field", unknown),
        apply("apply-an-invalid-value", negative),
        apply("dry-run", deployment, query="&dryRun=All"),
        ask("get-after-dry-run", "deployer", "GET", one),
        *(apply(f"apply-{it['kind']}", it) for it in objects),
        apply("apply-again", deployment),
        ask("get", "deployer", "GET", one),
        apply("another-manager-conflicts", evil, user="admin", manager="mallory"),
        apply("dry-run-of-a-conflict", evil, user="admin", manager="mallory", query="&dryRun=All"),
        apply("another-manager-forces", evil, user="admin", manager="mallory", query="&force=true"),
        apply("the-first-manager-conflicts", deployment),
        apply("the-first-manager-forces", deployment, query="&force=true"),
        ask("an-edit", "admin", "PATCH", f"{one}?fieldManager=kubectl-edit", edited(replicas=5), MERGE),
        apply("conflict-with-an-edit", deployment),
        apply("two-conflicts", edited(replicas=7, progressDeadlineSeconds=77), user="admin", manager="mallory"),
        apply("win-back", deployment, query="&force=true"),
        apply("another-manager-adds-a-container", sidecar, user="admin", manager="mallory"),
        apply("the-first-manager-leaves-it", deployment),
        apply("another-manager-withdraws-it", edited(), user="admin", manager="mallory"),
        apply("fields-left-out-are-removed", leaner),
        apply("and-come-back", deployment),
        ask("wrong-type", "deployer", "PATCH", f"{one}?fieldManager=portcullis", {}, "text/plain"),
        ask("delete-another-uid", "deployer", "DELETE", one, {"preconditions": {"uid": "another"}}, "application/json"),
        apply("over-what-was-read", over("and-come-back", leaner)),
        apply("over-what-was-read-and-changed-since", over("and-come-back")),
        apply("dry-run-over-what-was-read-and-changed-since", over("and-come-back"), query="&dryRun=All"),
        apply("over-what-was-read-last", over("over-what-was-read")),
        apply("over-another-uid", {**deployment, "metadata": {**deployment["metadata"], "uid": "another"}}),
        apply("create-what-exists", new),
        ask(
            "delete-what-changed-since",
            "deployer",
            "DELETE",
            one,
            {"preconditions": {key: f"{key} of and-come-back" for key in ("uid", "resourceVersion")}},
            "application/json",
        ),
        ask("delete-without-rights", "nobody", "DELETE", one),
        ask("delete", "deployer", "DELETE", one, {"preconditions": {"uid": "uid of apply-again"}}, "application/json"),
        ask("delete-missing", "deployer", "DELETE", one),
        ask("get-after-delete", "deployer", "GET", one),
        apply("over-what-was-deleted", over("over-what-was-read-last")),
        apply("create", new),
        ask(
            "delete-what-was-read",
            "deployer",
            "DELETE",
            one,
            {"preconditions": {key: f"{key} of create" for key in ("uid", "resourceVersion")}},
            "application/json",
        ),
    ]


class RealServer:
    """A running kube-apiserver, asked over TLS with the certificate that it made."""

    def __init__(self, port: int, tokens: dict[str, str], certificate: Path):
        self.port, self.tokens, self.certificate = port, tokens, certificate

    def ask(self, user, method, path, content_type=None, body=None):
        context = ssl.create_default_context(cafile=self.certificate)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        headers = {"Authorization": f"Bearer {self.tokens.get(user, 'wrong')}", "Accept": "application/json"}
        if content_type:
            headers["Content-Type"] = content_type
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())


@contextlib.contextmanager
def real_server(apiserver: Path, etcd: Path, scratch: Path):
    tokens = {user: secrets.token_hex(16) for user in USERS}
    lines = [f'{tokens[user]},{name},{user},"{",".join(groups)}"\n' for user, (name, groups) in USERS.items()]
    (scratch / "tokens.csv").write_text("".join(lines))
    key = scratch / "sa.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    client, peer, port = (_free_port() for _ in range(3))
    store = [
        *(etcd, "--data-dir", scratch / "etcd", "--unsafe-no-fsync"),
        *(
            "--listen-client-urls",
            f"http://127.0.0.1:{client}",
            "--advertise-client-urls",
            f"http://127.0.0.1:{client}",
        ),
        *("--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
    ]
    server = [
        *(apiserver, "--etcd-servers", f"http://127.0.0.1:{client}", "--cert-dir", scratch / "certificates"),
        *("--bind-address", "127.0.0.1", "--secure-port", str(port), "--authorization-mode", "RBAC"),
        *("--token-auth-file", scratch / "tokens.csv", "--service-cluster-ip-range", "10.0.0.0/24"),
        *("--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key),
        *("--service-account-signing-key-file", key, "--disable-admission-plugins", "ServiceAccount"),
    ]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((scratch / "log").open("w"))
        for command in (store, server):
            process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=scratch)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        running = RealServer(port, tokens, scratch / "certificates" / "apiserver.crt")
        _await_ready(running, scratch / "log")
        yield running


def _await_ready(server: RealServer, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            # The bootstrap roles come last; before them a namespaced Role would be refused as an escalation.
            if server.ask("admin", "GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/admin")[0] == 200:
                return
        time.sleep(0.5)
    raise SystemExit(log.read_text()[-4000:])


def _free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


if __name__ == "__main__":
    main()
