"""A simulated cluster with a namespace, the deployer's role and a client, and objects to deploy to it."""

import contextlib
import copy
import json

from cluster.api_server import ApiServer
from kubernetes import client

from portcullis.deploy.cluster import Cluster, rolled_out
from portcullis.deploy.manifests import Subject, deployer_role, render
from portcullis.deploy.settings import ServingSettings
from portcullis.errors import GateFailedError

NAMESPACE = "portcullis-serving"
CLUSTER = {
    "namespace": NAMESPACE,
    "image": f"registry.example/server@sha256:{'1' * 64}",
    "gateway": {"namespace": {"kubernetes.io/metadata.name": "gateway"}, "pods": {"app": "gateway"}},
    "store": {"peers": [{"cidr": "10.2.0.0/24", "port": 443}]},
}
BETTER = f"registry.example/server@sha256:{'2' * 64}"
BROKEN = f"registry.example/server@sha256:{'3' * 64}"
URIS = {key: f"s3://bucket/{key}" for key in ("sealed", "admission", "evidence")}
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/digits"
ROLES = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def objects(*, content="a", issued=1_800_000_000_000, policy=3, revocations=1, **changes):
    subject = Subject(content * 64, "b" * 64, "c" * 64, issued, policy, revocations)
    return render(ServingSettings.parse({**CLUSTER, **changes}), name="digits", subject=subject, uris=URIS)


class World:
    """A simulated cluster with its namespace and the deployer's role, and a client of it."""

    def __init__(self, server):
        self.server = server
        self.clients = []
        self.admin(
            "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        )
        _, role, binding = deployer_role("digits", NAMESPACE)
        binding = {**binding, "subjects": [{"kind": "User", "name": "deployer"}]}
        self.admin("POST", f"{ROLES}/roles", role)
        self.admin("POST", f"{ROLES}/rolebindings", binding)
        self.api = self.as_user("deployer")

    def admin(self, method, path, body=None, content_type="application/json"):
        status, answer = self.server.ask("admin", method, path, content_type, body and json.dumps(body))
        assert status < 300, answer
        return answer

    def as_user(self, token, host=None):
        configuration = client.Configuration()
        configuration.host = host or self.server.url
        configuration.api_key = {"authorization": f"Bearer {token}"}
        self.clients.append(client.ApiClient(configuration))
        return Cluster(self.clients[-1], poll_seconds=0)

    def deploy(self, wanted=None, *, may_go_back=False, api=None):
        with rolled_out(api or self.api, wanted or objects(), may_go_back=may_go_back) as applied:
            return applied

    def refuse(self, wanted, meanwhile):
        """Roll out, and refuse it after something has happened meanwhile."""
        with rolled_out(self.api, wanted, may_go_back=False):
            meanwhile()
            raise GateFailedError("no")

    def between(self, kind, act):
        """Act once, between the last look at the cluster and the first write: at the dry run of this kind."""

        def webhook(it, dry_run):
            if dry_run and it["kind"] == kind and self.server.webhook is webhook:
                self.server.webhook = None
                act()
            return it

        self.server.webhook = webhook

    def answers(self, monkeypatch, change):
        """Have `change(method, target, status, answer)` say what is answered in place of it."""
        ask = self.server.ask

        def changed(token, method, target, content_type, body):
            status, answer = ask(token, method, target, content_type, body)
            return change(method, target, status, copy.deepcopy(answer))

        monkeypatch.setattr(self.server, "ask", changed)

    def edit(self, manager="mallory", **spec):
        self.admin("PATCH", f"{DEPLOYMENT}?fieldManager={manager}", {"spec": spec}, MERGE)

    @property
    def issued(self):
        """Version of the admission that each object says it was deployed under."""
        return {it["metadata"]["annotations"]["portcullis.dev/issued"] for it in self.stored.values()}

    @property
    def images(self):
        """The images of the pods that serve."""
        return [pod["spec"]["containers"][0]["image"] for pod in self.server.pods.get((NAMESPACE, "digits"), [])]

    @property
    def stored(self):
        """What the cluster holds beside its namespace and roles, without what changes by itself."""
        kept = {}
        for key, it in self.server.objects.items():
            if it["kind"] not in ("Namespace", "Role", "RoleBinding"):
                it = copy.deepcopy(it)
                it.pop("status", None)
                it["metadata"] = {name: it["metadata"].get(name) for name in ("labels", "annotations")}
                kept[key] = it
        return kept


@contextlib.contextmanager
def simulated_world():
    users = {"admin": ("admin", ["system:masters"]), "deployer": ("deployer", []), "nobody": ("nobody", [])}
    with ApiServer(users=users) as server:
        made = World(server)
        yield made
        for it in made.clients:
            it.rest_client.pool_manager.clear()
            it.close()
