"""Where ledgers are kept: what each kind of store answers, and two runs at once on each of them."""

import datetime as dt
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import object_store
import pytest
from cluster.api_server import ApiServer
from kubernetes import client
from ledgers import file_ledger, settings, wanted

from portcullis.errors import BudgetError, InconclusiveError, KeyMaterialError, UsageError
from portcullis.keys import Signer
from portcullis.ledger.charge import Ledger, charge, open_ledger
from portcullis.ledger.kubernetes_store import ConfigMapStore
from portcullis.ledger.s3_store import PROBE, Credentials, S3Store, sign_request
from portcullis.ledger.stores import ChangedError, FileStore, Held, open_store

SIGNER = Signer.generate()
NAMESPACE = "team-a"
NONE = Held(b"", "")
ACCOUNT = "runner"


def charge_all(ledger: Ledger, numbers: list[int]) -> list[int]:
    """Charge runs until the budget refuses; returns those that were charged."""
    done = []
    for number in numbers:
        try:
            charge(ledger, wanted(number), SIGNER)
        except BudgetError:
            continue
        done.append(number)
    return done


def two_at_once(one: Ledger, other: Ledger) -> None:
    """Two clients charge six releases each to a budget for seven: seven are charged, each once, none is lost."""
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(charge_all, ledger, list(range(start, start + 6))) for ledger, start in ((one, 1), (other, 11))
        ]
        done = [number for run in runs for number in run.result()]
    entries = one.read()
    assert len(done) == 7 and sorted(wanted(number).run for number in done) == sorted(it.charge.run for it in entries)
    assert one.read() == other.read()


class Overtaken:
    """A store before whose first write another run makes a whole charge of its own."""

    def __init__(self, store, other: Ledger) -> None:
        self.store, self.other = store, other
        self.read = store.read

    def replace(self, data: bytes, *, over: Held) -> None:
        if self.other:
            other, self.other = self.other, None
            charge(other, wanted(1), SIGNER)
        self.store.replace(data, over=over)


def one_overtakes_the_other(one: Ledger, other: Ledger) -> None:
    """Between the other's read and write: neither charge is lost, and the one that no longer fits is refused."""
    late = Ledger(other.settings, Overtaken(other.store, one), other.memory)
    assert charge(late, wanted(2), SIGNER).number == 2
    assert [entry.charge.run for entry in one.read()] == [wanted(1).run, wanted(2).run]


# A file.


def test_a_file_holds_what_was_written_over_what_was_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "deep" / "ledger")
    assert store.read() == NONE
    store.replace(b"one", over=NONE)
    first = store.read()
    store.replace(b"two", over=first)
    for stale in (NONE, first):
        with pytest.raises(ChangedError):
            store.replace(b"three", over=stale)
    assert store.read().data == b"two"
    store.path.unlink()
    with pytest.raises(ChangedError):
        store.replace(b"three", over=first)


def test_a_link_or_a_folder_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(UsageError):
            FileStore(tmp_path / name).read()
    with pytest.raises(UsageError, match="cannot write the ledger"):
        FileStore(tmp_path / "real" / "below").replace(b"x", over=NONE)


def test_a_run_overtakes_another_on_a_file(tmp_path: Path) -> None:
    one_overtakes_the_other(file_ledger(tmp_path), file_ledger(tmp_path))


CHARGER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ledgers import file_ledger
from test_ledger_stores import charge_all
ledger = file_ledger(Path(sys.argv[2]), 7.0)
print("ready", flush=True)
sys.stdin.readline()
print(*charge_all(ledger, list(range(int(sys.argv[3]), int(sys.argv[3]) + 6))))
"""


def test_two_processes_charge_one_file_at_once(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CHARGER, str(tests), str(tmp_path), start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tests / "unit",
        )
        for start in ("1", "11")
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("\n")
        run.stdin.flush()
    done = [int(word) for run in runs for word in run.communicate(timeout=60)[0].split()]
    entries = file_ledger(tmp_path, 7.0).read()
    assert len(done) == 7 and sorted(wanted(number).run for number in done) == sorted(it.charge.run for it in entries)


# A ConfigMap.


class Cluster:
    """A simulated API server with two ConfigMaps, as `bootstrap` makes them, and the role that it binds."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        server.users[ACCOUNT] = (ACCOUNT, [])
        self.admin("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for name in ("ledger", "head"):
            self.make(name)
        rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}
        rule["resourceNames"] = ["ledger", "head", "gone"]
        group = "rbac.authorization.k8s.io/v1"
        roles = f"/apis/{group}/namespaces/{NAMESPACE}"
        role = {"apiVersion": group, "kind": "Role", "metadata": {"name": "ledger"}, "rules": [rule]}
        binding = {"apiVersion": group, "kind": "RoleBinding", "metadata": {"name": "ledger"}}
        subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
        self.admin(f"{roles}/roles", role)
        self.admin(
            f"{roles}/rolebindings", {**binding, "roleRef": {"kind": "Role", "name": "ledger"}, "subjects": [subject]}
        )

    def admin(self, path: str, body: dict) -> None:
        status, answer = self.server.ask("admin", "POST", path, "application/json", json.dumps(body))
        assert status == 201, answer

    def make(self, name: str, **content: object) -> None:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **content}
        self.admin(f"/api/v1/namespaces/{NAMESPACE}/configmaps", body)

    def store(self, name: str, token: str = ACCOUNT) -> ConfigMapStore:
        configuration = client.Configuration()
        configuration.host = self.server.url
        configuration.api_key = {"authorization": f"Bearer {token}"}
        return ConfigMapStore(client.ApiClient(configuration), NAMESPACE, name)

    def ledger(self, epsilon: float = 7.0) -> Ledger:
        return Ledger(settings(epsilon), self.store("ledger"), self.store("head"))


@pytest.fixture
def cluster():
    with ApiServer() as server:
        yield Cluster(server)


def test_a_config_map_is_written_over_the_version_that_was_read(cluster: Cluster) -> None:
    store = cluster.store("ledger")
    empty = store.read()
    assert empty.data == b""
    store.replace(b"one\n", over=empty)
    with pytest.raises(ChangedError):
        store.replace(b"two\n", over=empty)
    assert store.read().data == b"one\n"
    # Deleted and made anew, as a restored backup is: the same name, another object.
    read = store.read()
    cluster.server.objects.pop((NAMESPACE, "configmaps", "ledger"))
    cluster.make("ledger", data={"ledger": "one\n"})
    with pytest.raises((ChangedError, UsageError)):
        store.replace(b"two\n", over=read)


def test_two_runs_charge_one_config_map_at_once(cluster: Cluster) -> None:
    two_at_once(cluster.ledger(), cluster.ledger())


def test_a_run_overtakes_another_on_a_config_map(cluster: Cluster) -> None:
    one_overtakes_the_other(cluster.ledger(), cluster.ledger())


def test_a_config_map_that_is_missing_or_forbidden_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match=r"cannot read ConfigMap team-a/gone: there is none.*bootstrap"):
        cluster.store("gone").read()
    with pytest.raises(UsageError, match="this service account may not"):
        cluster.store("other").read()
    with pytest.raises(UsageError, match="this service account may not"):
        cluster.store("ledger", token="nobody").read()


@pytest.mark.parametrize("data", [{"other": "x"}, {"ledger": "x", "other": "y"}, {"ledger": "ü"}], ids=str)
def test_a_config_map_of_something_else_is_refused(cluster: Cluster, data: dict) -> None:
    cluster.make("gone", data=data)
    with pytest.raises(UsageError, match="keep it for that alone"):
        cluster.store("gone").read()


def test_a_full_config_map_is_refused(cluster: Cluster) -> None:
    store = cluster.store("ledger")
    with pytest.raises(UsageError, match="is full"):
        store.replace(b"x" * 1_000_001, over=store.read())


def test_an_api_server_that_is_away_is_inconclusive(cluster: Cluster) -> None:
    cluster.server.outages = 1
    with pytest.raises(InconclusiveError, match="cannot be reached"):
        cluster.ledger().read()


# An object store.

BUCKET = "ledgers"


@pytest.fixture
def s3():
    with object_store.serve() as store:
        store.buckets[BUCKET] = {}
        yield store


def s3_store(store: object_store.ObjectStore, key: str = "a/customers.jsonl", access: str = "AKIATEST") -> S3Store:
    host = store.endpoint.removeprefix("http://")
    return S3Store("http", host, "us-east-1", BUCKET, key, Credentials(access, "secret"))


def s3_ledger(store: object_store.ObjectStore, epsilon: float = 7.0) -> Ledger:
    return Ledger(settings(epsilon), s3_store(store), s3_store(store, "b/customers.head"))


def test_requests_are_signed_as_amazons_documentation_shows() -> None:
    """The example "GET Object" of "Signature Calculations for the Authorization Header"."""
    signed = sign_request(
        "GET",
        "/test.txt",
        host="examplebucket.s3.amazonaws.com",
        region="us-east-1",
        body=b"",
        credentials=Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        now=dt.datetime(2013, 5, 24, tzinfo=dt.UTC),
        headers={"Range": "bytes=0-9"},
    )
    expected = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    assert signed["Authorization"].endswith(
        f"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature={expected}"
    )


def test_an_object_is_written_over_the_tag_that_was_read(s3) -> None:
    store = s3_store(s3)
    assert store.read() == NONE
    store.replace(b"one\n", over=NONE)
    first = store.read()
    store.replace(b"two\n", over=first)
    for stale in (NONE, first):
        with pytest.raises(ChangedError):
            store.replace(b"three\n", over=stale)
    del s3.buckets[BUCKET]["a/customers.jsonl"]
    with pytest.raises(ChangedError):
        store.replace(b"three\n", over=first)
    assert s3.buckets[BUCKET] == {"a/customers.jsonl" + PROBE: b""}


def test_two_runs_charge_one_object_at_once(s3) -> None:
    two_at_once(s3_ledger(s3), s3_ledger(s3))


def test_a_run_overtakes_another_on_an_object(s3) -> None:
    one_overtakes_the_other(s3_ledger(s3), s3_ledger(s3))


def test_a_store_that_ignores_conditions_is_refused_and_nothing_is_written(s3) -> None:
    s3.honours_conditions = False
    with pytest.raises(UsageError, match=r"answered \[200, 200\] to writes whose condition does not hold"):
        charge(s3_ledger(s3), wanted(), SIGNER)
    assert "a/customers.jsonl" not in s3.buckets[BUCKET]


def test_a_bucket_or_credentials_that_are_none_are_refused(s3) -> None:
    with pytest.raises(UsageError, match="answered 403"):
        s3_store(s3, access="OTHER").read()
    s3.buckets.clear()
    with pytest.raises(UsageError, match="answered 404; check bucket"):
        s3_store(s3).read()
    with pytest.raises(UsageError, match="nothing is released"):
        s3_store(s3).replace(b"x", over=NONE)


def test_an_object_store_that_is_away_is_inconclusive(s3) -> None:
    s3.outages = 1
    with pytest.raises(InconclusiveError, match="answered 503"):
        charge(s3_ledger(s3), wanted(), SIGNER)
    gone = S3Store("http", "127.0.0.1:9", "us-east-1", BUCKET, "k", Credentials("a", "b"))
    with pytest.raises(InconclusiveError, match="cannot be reached"):
        gone.read()


def test_an_object_beyond_the_limit_is_refused(s3, monkeypatch) -> None:
    monkeypatch.setattr("portcullis.ledger.s3_store.MAX_LEDGER_BYTES", 3)
    s3.buckets[BUCKET]["a/customers.jsonl"] = b"four"
    with pytest.raises(UsageError, match="larger than"):
        s3_store(s3).read()


def test_credentials_are_not_shown() -> None:
    assert "hidden" not in repr(S3Store("https", "h", "r", "b", "k", Credentials("id", "hidden", "hidden")))


def test_an_object_is_named_by_its_uri_and_the_environment(monkeypatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(UsageError, match="AWS_REGION"):
        open_store("s3://bucket/key")
    with pytest.raises(UsageError, match="minio:// needs a server"):
        open_store("minio://bucket/key")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    known = Credentials("id", "secret")
    assert open_store("s3://bucket/a/key") == S3Store(
        "https", "s3.eu-central-1.amazonaws.com", "eu-central-1", "bucket", "a/key", known
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    monkeypatch.delenv("AWS_REGION")
    assert open_store("minio://bucket/key") == S3Store("http", "minio:9000", "us-east-1", "bucket", "key", known)
    with pytest.raises(UsageError, match="one object"):
        open_store("minio://bucket/folder/")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(KeyMaterialError, match="AWS_SECRET_ACCESS_KEY"):
        open_store("minio://bucket/key")


@pytest.mark.parametrize(
    "uri",
    [
        *("", "local", "gs://bucket/key", "http://host/key", "file:relative", "file:/", "file:/a/../b"),
        *("kubernetes://team", "kubernetes://team/a/b", "kubernetes://Team/name", "kubernetes://team/Name"),
        *("s3://bucket", "s3://bucket/../key", "s3://user:hunter2@host/key", "postgres://user:hunter2@host/db"),
    ],
)
def test_what_cannot_compare_and_swap_is_refused(uri: str, monkeypatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    with pytest.raises(UsageError) as refused:
        open_store(uri)
    assert "hunter2" not in str(refused.value)


def test_two_threads_charge_one_file_at_once(tmp_path: Path) -> None:
    two_at_once(file_ledger(tmp_path, 7.0), file_ledger(tmp_path, 7.0))


def test_a_pods_local_ledger_is_in_its_namespace(cluster: Cluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PORTCULLIS_LEDGERS", raising=False)
    monkeypatch.setattr("portcullis.ledger.stores.OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr("portcullis.ledger.kubernetes_store.api_client", lambda: "a client")
    with pytest.raises(UsageError, match="PORTCULLIS_LEDGERS"):
        open_ledger(settings(), tmp_path)
    (tmp_path / "namespace").write_text(NAMESPACE)
    ledger = open_ledger(settings(), tmp_path)
    assert ledger.store == ConfigMapStore("a client", NAMESPACE, "portcullis-ledger-customers")
    assert ledger.memory == ConfigMapStore("a client", NAMESPACE, "portcullis-ledger-customers-head")
    apart = open_ledger(settings(memory=f"file:{tmp_path / 'head'}"), tmp_path)
    assert (apart.store, apart.memory) == (ledger.store, FileStore(tmp_path / "head"))
    (tmp_path / "namespace").write_text("No/Name")
    with pytest.raises(UsageError, match="no name of a Kubernetes namespace"):
        open_ledger(settings(), tmp_path)
