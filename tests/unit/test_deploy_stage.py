"""`deploy` on a cluster: what it refuses before it asks the cluster, what it signs, and when it rolls back."""

import hashlib
import threading

import pytest
import yaml
from chains import NOW, STEPS, digest_of
from chains import World as Chain
from cluster.world import CLUSTER, MERGE, URIS, simulated_world

from portcullis.deploy import stage
from portcullis.deploy.manifests import MANIFESTS, manifests_digest
from portcullis.digest import sha256
from portcullis.errors import (
    AdmissionError,
    ConfigError,
    DeploymentError,
    GateFailedError,
    PolicyError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence import step as steps
from portcullis.evidence.admission import admission_identity
from portcullis.evidence.chain import join_bundle
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.trust import Revocations, TrustStore, write_trust_store
from portcullis.files import write_bytes
from portcullis.serving.app import build_app
from portcullis.serving.protocol import ServedModel
from portcullis.serving.server import listening_socket, uvicorn_server

TOKEN = "dG9rZW4="
LABELS = ("no", "yes")
MODEL = ServedModel("digits", "v1", "input", (2, 2), 0.0, 1.0, LABELS, lambda rows: rows[:, :2])
SPEC = {"features": {"low": 0, "high": 1, "shape": [2, 2]}, "label": {"classes": list(LABELS)}}
CHECKS = {
    "good": {"min": 200, "max": 200},
    "unauthenticated": {"min": 401, "max": 401},
    "failed_checks": {"min": 0, "max": 0},
}


class Application:
    """The server's own application; `open_to_all` makes it forget to ask for the token."""

    def __init__(self):
        self.app = build_app(MODEL, token_digest=hashlib.sha256(TOKEN.encode()).hexdigest())
        self.open_to_all = False

    async def __call__(self, scope, receive, send):
        if self.open_to_all:
            scope["headers"] = [it for it in scope["headers"] if it[0] != b"authorization"]
            scope["headers"].append((b"authorization", f"Bearer {TOKEN}".encode()))
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def running():
    app = Application()
    with listening_socket("127.0.0.1", 0) as listener:
        server = uvicorn_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield app, listener.getsockname()
        server.should_exit = True
        thread.join()


class Release:
    """A release: a chain with its keys and trust store, a simulated cluster, and a server that answers."""

    def __init__(self, root, cluster, running, *, development=False):
        self.root, self.cluster, self.development = root, cluster, development
        self.app, self.address = running
        self.app.open_to_all = False
        self.chain = Chain()
        self.policy = self.signed_policy()
        self.trust()
        self.lines = self.chain.lines(self.store.policy)
        keys = root / "keys"
        write_bytes(keys / "deploy.pem", self.chain.keys["deploy"].private_pem(), mode=0o600)
        write_bytes(keys / "serving.token", TOKEN.encode(), mode=0o600)
        self.admit(now=NOW)

    def signed_policy(self):
        parameters = {"target": "kubernetes", "cluster": CLUSTER}
        made = {
            "train": {"stage": "ingest", "parameters": {"spec": SPEC}},
            "deploy": {"parameters": parameters, "checks": CHECKS},
        }
        blank = {"parameters": {}, "requires": [], "checks": {}}
        rules = [
            {**blank, **step, **made.get(step["name"], {}), "key": self.chain.keys[step["name"]].public_key.pem}
            for step in STEPS
        ]
        return self.chain.policy_bytes(name="digits", development=self.development, steps=rules)

    def trust(self, revocations=None):
        write_trust_store(
            self.root / "trust",
            owner=self.chain.owner.public_key,
            name="digits",
            environment="development",
            policy=self.policy,
            revocations=(revocations or Revocations(1)).sign(self.chain.owner),
        )
        self.store = TrustStore.load(self.root / "trust", now=NOW)

    def admit(self, *, now):
        write_bytes(self.root / "evidence", join_bundle(self.lines))
        write_bytes(self.root / "admission", self.chain.admission(self.store, self.lines, now=now))

    @property
    def admission(self):
        return (self.root / "admission").read_bytes()

    def deploy(self, **changes):
        arguments = {
            "step": "deploy",
            "sealed": self.root / "sealed",
            "admission": self.root / "admission",
            "evidence": self.root / "evidence",
            "target": "kubernetes",
            "cluster": CLUSTER,
            "uris": URIS,
            "deployment": self.root / "deployment",
            "manifests": self.root / "manifests",
            "api": self.cluster.api,
            "address": self.address,
        }
        return stage.deploy(**{**arguments, **changes})

    @property
    def untouched(self):
        return self.cluster.stored == {} and not (self.root / "deployment").exists()


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    monkeypatch.setattr(steps, "now_ms", lambda: NOW + 5000)  # the chain's own time
    monkeypatch.setattr(stage, "sealed_digest", lambda path: digest_of("encrypt.sealed"))
    return tmp_path


@pytest.fixture
def world():
    with simulated_world() as made:
        yield made


@pytest.fixture
def release(surroundings, world, running):
    return Release(surroundings, world, running)


def test_deploys_and_signs_the_answers_and_what_was_applied(release):
    statement = release.deploy()
    assert statement.verdict == "PASSED"
    signed = Statement.parse(Envelope.parse((release.root / "deployment").read_bytes().strip()).payload)
    assert signed == statement
    objects = list(yaml.safe_load_all((release.root / "manifests").read_text()))
    expected = {"good": 200, "unauthenticated": 401, "failed_checks": 0, "changes": 5, "replicas": 2}
    assert expected.items() <= statement.figures.items()
    assert statement.figures["manifests"] == manifests_digest(objects)
    for it in objects:
        annotations = release.cluster.api.read(it)["metadata"]["annotations"]
        assert annotations[MANIFESTS] == statement.figures["manifests"]
        assert annotations["portcullis.dev/admission"] == sha256(release.admission)
        assert annotations["portcullis.dev/issued"] == str(NOW)


def test_a_second_deployment_changes_nothing(release):
    release.deploy()
    assert release.deploy().figures["changes"] == 0


def test_a_server_that_answers_anyone_is_rolled_back_and_the_verdict_is_signed(release):
    release.app.open_to_all = True
    with pytest.raises(
        GateFailedError, match=r"did not answer as the policy demands.*; what it had created was deleted"
    ):
        release.deploy()
    assert release.cluster.stored == {}
    signed = Statement.parse(Envelope.parse((release.root / "deployment").read_bytes().strip()).payload)
    assert (signed.verdict, signed.figures["unauthenticated"]) == ("FAILED", 200)


def test_a_server_that_answers_anyone_gives_way_to_the_one_before(release):
    release.deploy()
    before = release.cluster.stored
    release.admit(now=NOW + 1)
    release.app.open_to_all = True
    with pytest.raises(GateFailedError, match="; rolled back to what was there before"):
        release.deploy()
    assert release.cluster.stored == before


@pytest.mark.parametrize("error", [TrustStoreError("the state is gone"), OSError("no space"), KeyboardInterrupt()])
def test_no_passed_statement_stays_behind_a_rollback(release, monkeypatch, error):
    def observe(store, *, deployed):
        raise error

    monkeypatch.setattr(stage, "observe", observe)
    with pytest.raises(type(error)):
        release.deploy()
    assert release.untouched
    assert not (release.root / "manifests").exists()


def test_no_passed_statement_stays_when_another_deployment_came_between(release, monkeypatch):
    observe = stage.observe

    def overtaken(store, *, deployed):
        service = next(it for it in release.cluster.stored.values() if it["kind"] == "Service")
        patch = {"metadata": {"annotations": {MANIFESTS: "d" * 64}}}
        path = f"/api/v1/namespaces/{CLUSTER['namespace']}/services/digits?fieldManager=another"
        release.cluster.admin("PATCH", path, patch, MERGE)
        assert service["metadata"]["annotations"][MANIFESTS] != "d" * 64
        return observe(store, deployed=deployed)

    monkeypatch.setattr(stage, "observe", overtaken)
    with pytest.raises(DeploymentError, match="the rollback did not hold: someone else deployed meanwhile"):
        release.deploy()
    assert not (release.root / "deployment").exists() and not (release.root / "manifests").exists()


def test_a_statement_that_cannot_be_written_is_rolled_back(release, monkeypatch):
    def full(path, data):
        raise OSError("no space")

    monkeypatch.setattr(steps, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        release.deploy()
    assert release.untouched


def test_a_server_that_cannot_be_reached_is_rolled_back(release, monkeypatch):
    monkeypatch.setattr(stage, "START_SECONDS", 0.2)
    with listening_socket("127.0.0.1", 0) as listener:
        address = listener.getsockname()
    with pytest.raises(DeploymentError, match=r"not ready within 0.2 s: .*; what it had created was deleted"):
        release.deploy(address=address)
    assert release.untouched


def test_a_development_admission_never_reaches_a_cluster(surroundings, world, running):
    release = Release(surroundings, world, running, development=True)
    with pytest.raises(AdmissionError, match="development keys: deploys to the local target only"):
        release.deploy()
    assert release.untouched
    assert not [method for method, _ in world.server.requests if method == "PATCH"]


def test_an_older_admission_than_the_clusters_is_refused_though_this_step_remembers_nothing(release):
    release.admit(now=NOW + 1000)
    release.deploy()
    (release.root / "state" / "seen.json").unlink()
    release.admit(now=NOW)
    with pytest.raises(AdmissionError, match="deployed under a newer admission"):
        release.deploy()


def test_an_older_admission_comes_back_when_the_owner_signed_it(release):
    older = release.admission
    release.admit(now=NOW + 1000)
    release.deploy()
    write_bytes(release.root / "admission", older)
    with pytest.raises(AdmissionError, match="a newer admission than this one was already deployed"):
        release.deploy()
    release.trust(Revocations(2, rollbacks=frozenset({admission_identity(older)})))
    assert release.deploy().figures["changes"] == 5


def test_a_passing_deployment_is_remembered(release):
    release.admit(now=NOW + 1000)
    release.deploy()
    release.admit(now=NOW)
    with pytest.raises(AdmissionError, match="a newer admission than this one was already deployed"):
        release.deploy()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"cluster": {**CLUSTER, "replicas": 9}}, PolicyError),
        ({"cluster": {**CLUSTER, "image": "server:latest"}}, ConfigError),
        ({"cluster": None}, ConfigError),
        ({"target": "local"}, UsageError),
        ({"target": "local", "cluster": {}}, PolicyError),
        ({"target": "mars"}, UsageError),
        ({"uris": None}, UsageError),
        ({"uris": {**URIS, "sealed": "/tmp/sealed"}}, UsageError),
    ],
)
def test_what_the_policy_does_not_say_is_refused_before_the_cluster_is_asked(release, changes, error):
    asked = len(release.cluster.server.requests)
    with pytest.raises(error):
        release.deploy(**changes)
    assert release.untouched and len(release.cluster.server.requests) == asked


def test_a_missing_token_is_said_before_the_cluster_is_asked(release):
    (release.root / "keys" / "serving.token").unlink()
    asked = len(release.cluster.server.requests)
    with pytest.raises(UsageError, match=r"serving\.token"):
        release.deploy()
    assert len(release.cluster.server.requests) == asked


def test_the_server_is_asked_through_its_service(release, monkeypatch):
    asked = []

    def probe(host, port, **question):
        asked.append((host, port))
        raise DeploymentError("seen")

    monkeypatch.setattr(stage, "probe", probe)
    with pytest.raises(DeploymentError, match="seen"):
        release.deploy(address=None)
    assert asked == [("digits.portcullis-serving.svc", 8080)]
