"""Looking before a submit, against simulated servers: what passes, what fails, and what could not be seen."""

import copy
import dataclasses
import json
import os
import shutil
from functools import partial

import pytest
import yaml
from cluster import core_api, kfp_api
from cluster.core_api import CoreApi, values_of
from cluster.kfp_api import KfpServer
from cluster.small_package import IMAGE, small_package

from portcullis.cli.cluster import doctor
from portcullis.cli.main import _guarded
from portcullis.container import IMAGE as PORTCULLIS
from portcullis.deploy.manifests import to_yaml
from portcullis.evidence.trust import Revocations, TrustStore
from portcullis_pipelines import home as homes
from portcullis_pipelines.bootstrap import objects, secrets_of
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.packaging import DataAccess
from portcullis_pipelines.packaging import package as compile_package

NAMESPACE = "portcullis-training"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A home with keys and policy, and the objects that its owner would apply."""
    root = tmp_path_factory.mktemp("home")
    config = ReferenceConfig.load(None)
    home = homes.Home(root / "cheque-digits")
    homes.generate_keys(home)
    homes.ensure_trust(home, config)
    return root, home, to_yaml(objects(home, part="all", namespace=NAMESPACE))


@pytest.fixture(autouse=True)
def _environment(ready, tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES", "SSL_CERT", "KUBECONFIG", "KUBERNETES_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PORTCULLIS_HOME", str(ready[0]))
    monkeypatch.setenv("KF_PIPELINES_TOKEN", kfp_api.TOKEN)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kfp():
    with kfp_api.serving(KfpServer()) as server:
        yield server


@pytest.fixture
def cluster(ready):
    with core_api.serving(CoreApi()) as api:
        api.apply(ready[2].encode())
        api.node(cpu="8", nvidia_com__gpu="2")
        yield api


@pytest.fixture
def call(capfd, kfp, cluster, tmp_path):
    """Call `portcullis doctor`; no secret value ever shows, and nothing is written to a server."""

    def run(*options):
        capfd.readouterr()
        config = cluster.kubeconfig(tmp_path / "kubeconfig")
        command = ["--host", kfp.url, "--namespace", NAMESPACE, "--kubeconfig", config, *options]
        code = _guarded(partial(doctor, [*map(str, command)], prog_name="portcullis doctor"))
        out, err = capfd.readouterr()
        assert not [value for value in values_of(cluster) | {kfp_api.TOKEN, core_api.TOKEN} if value in out + err]
        assert {it.method for it in kfp.requests} <= {"GET"}
        return code, out, err

    return run


@pytest.fixture
def checks(call):
    """Call it with `--json`: the exit code, and each check's result by name."""

    def run(*options):
        code, out, _ = call("--json", *options)
        found = {it["name"]: it for it in json.loads(out)}
        assert code == (1 if False in results(found) else 3 if None in results(found) else 0)
        assert all(bool(it["remedy"]) == (it["passed"] is not True) and it["found"] for it in found.values())
        return found

    return run


def results(found):
    return [it["passed"] for it in found.values()]


@pytest.fixture
def package(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(small_package("2"))
    return path


def wrong(found):
    return {name: it["passed"] for name, it in found.items() if it["passed"] is not True}


def path_of(kind, name):
    return f"namespaces/{NAMESPACE}/{kind}/{name}"


def secrets(ready, part):
    return {f"Secret {name}" for name in secrets_of(TrustStore.load(ready[1].trust).policy, part)}


def test_a_cluster_that_is_ready_passes(call, ready):
    code, out, err = call()
    assert (code, err) == (0, "") and "FAILED" not in out and out.count("passed") == len(secrets(ready, "all")) + 4


@pytest.mark.parametrize("part", ["secure_training", "release", "all"])
def test_the_secrets_of_the_part_are_looked_for(checks, cluster, ready, part):
    found, wanted = checks("--part", part), secrets(ready, part)
    assert set(found) - wanted == {
        *("pipelines API", "pipelines version", "cluster reachable", "ConfigMap portcullis-trust"),
    }
    assert results(found) == [True] * (len(wanted) + 4)
    assert {it for it in cluster.asked if "/secrets/" in it} == {
        f"/api/v1/{path_of('secrets', name.split()[1])}" for name in wanted
    }


def test_a_package_says_itself_what_it_reads(checks, package):
    found = checks("--package", package, "--service-account", "portcullis-deploy-cheque-digits")
    assert set(found) == {
        *("pipelines API", "pipelines version", "Secret portcullis-ingest", "Secret portcullis-robustness-trained"),
        *("ConfigMap portcullis-trust", "ServiceAccount portcullis-deploy-cheque-digits", "images", "GPUs"),
        "cluster reachable",
    }
    assert wrong(found) == {}
    assert found["GPUs"]["found"] == "asks for 2 x nvidia.com/gpu for gate/judge"


def test_the_whole_reference_package_passes(checks, tmp_path, ready):
    path = tmp_path / "reference.yaml"
    path.write_bytes(
        compile_package(ReferenceConfig.load(None), DataAccess("builtin:cheque-digits"), image=IMAGE, gpus=1)[
            "reference.yaml"
        ]
    )
    found = checks("--package", path)
    assert {name for name in found if name.startswith("Secret")} == secrets(ready, "all")
    assert wrong(found) == {}


# What the steps' Secrets are not.


@pytest.fixture
def training(tmp_path):
    """The part that trains, with its data in a bucket; compiled once."""
    return part_of(tmp_path, DataAccess("s3://bucket/rows.csv", secret="my-s3"))


def part_of(tmp_path, data):
    path = tmp_path / "secure_training.yaml"
    path.write_bytes(compile_package(ReferenceConfig.load(None), data, image=IMAGE, split=True)[path.name])
    return path


def test_a_secret_of_ones_own_must_hold_the_keys_that_the_package_reads(checks, cluster, training, ready):
    cluster.secret(NAMESPACE, "my-s3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "another")
    found = checks("--package", training)
    assert wrong(found) == {}
    assert {name for name in found if name.startswith("Secret")} == secrets(ready, "secure_training") | {"Secret my-s3"}
    cluster.secret(NAMESPACE, "my-s3", "accesskey", "AWS_SECRET_ACCESS_KEY")
    found = checks("--package", training)
    assert wrong(found) == {"Secret my-s3": False}
    assert found["Secret my-s3"]["found"] == "it lacks AWS_ACCESS_KEY_ID"
    del cluster.objects[path_of("secrets", "my-s3")]
    del cluster.objects[path_of("secrets", "portcullis-train")]
    found = checks("--package", training)
    assert wrong(found) == {"Secret my-s3": False, "Secret portcullis-train": False}
    # Each is told what makes it.
    bootstrap = f"portcullis bootstrap --namespace {NAMESPACE} --part secure_training, "
    assert found["Secret portcullis-train"]["remedy"].startswith(bootstrap)
    assert "bootstrap does not" in found["Secret my-s3"]["remedy"]
    assert found["Secret my-s3"]["remedy"].endswith("with the keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")


def test_a_volume_must_be_there(checks, cluster, tmp_path):
    path = part_of(tmp_path, DataAccess("/data/rows.csv", claim="rows"))
    name = "PersistentVolumeClaim rows"
    found = checks("--package", path)
    assert wrong(found) == {name: False} and found[name]["found"] == f"there is no {name}"
    for phase, passed in (("Bound", True), ("Pending", True), ("Lost", False)):
        cluster.claim(NAMESPACE, "rows", phase)
        assert checks("--package", path)[name]["passed"] is passed
    cluster.forbidden = {"persistentvolumeclaims"}
    assert checks("--package", path)[name]["passed"] is None


def test_a_part_that_is_named_is_the_packages(call, training):
    for part in ("release", "all"):
        code, out, err = call("--package", training, "--part", part)
        assert (code, out) == (2, "")
        assert err == f"UsageError: the package holds steps of secure_training, not of {part}; leave out --part\n"
    assert "not ready: Secret my-s3" in call("--package", training, "--part", "secure_training")[2]


def test_an_image_is_put_into_the_package_before_it_is_judged(call, checks, package):
    package.write_bytes(package.read_bytes().replace(IMAGE.encode(), PORTCULLIS.encode()))
    assert wrong(checks("--package", package)) == {"images": False}
    assert wrong(checks("--package", package, "--image", IMAGE)) == {}
    code, out, err = call("--image", IMAGE)
    assert (code, out) == (2, "") and err.startswith("UsageError: --image is put into a package")


def test_a_pipeline_of_ones_own_is_looked_at_by_its_own_policy(checks, call, cluster, tmp_path):
    home = homes.Home(tmp_path / "my own")
    homes.generate_keys(home, ("start",))
    step = {"name": "start", "stage": "start_chain", "kind": "transform", "outputs": ["artifact"], "requires": []}
    step |= {"inputs": {"policy": "policy", "artifact": "external"}, "parameters": {}, "checks": {}}
    homes.ensure_policy(home, "own", [step])
    found = checks("--home", home.root)
    assert wrong(found) == {"Secret portcullis-start": False, "ConfigMap portcullis-trust": False}
    assert f"--part all --home '{home.root}', and apply" in found["Secret portcullis-start"]["remedy"]
    cluster.apply(to_yaml(objects(home, part="all", namespace=NAMESPACE)).encode())
    assert wrong(checks("--home", home.root)) == {}


# Secrets.


def test_secrets_that_are_missing_or_hold_other_keys_fail(checks, cluster):
    del cluster.objects[path_of("secrets", "portcullis-train")]
    lacking = cluster.objects[path_of("secrets", "portcullis-split")]["data"]
    lacking.pop("split.key")
    cluster.objects[path_of("secrets", "portcullis-sign")]["data"]["owner.pem"] = "AAAA"
    cluster.objects[path_of("secrets", "portcullis-ingest")]["data"] = None
    found = checks()
    assert wrong(found) == dict.fromkeys(
        [f"Secret portcullis-{name}" for name in ("train", "split", "sign", "ingest")], False
    )
    assert found["Secret portcullis-split"]["found"] == "it lacks split.key"
    assert "owner.pem" in found["Secret portcullis-sign"]["found"]


@pytest.mark.parametrize(
    ("kind", "name"), [("secrets", "Secret portcullis-train"), ("configmaps", "ConfigMap portcullis-trust")]
)
def test_what_may_not_be_seen_does_not_pass(call, checks, cluster, kind, name):
    cluster.forbidden = {kind}
    found = checks("--part", "secure_training")
    assert wrong(found)[name] is None and set(wrong(found).values()) == {None}
    code, out, err = call()
    assert code == 3 and err.startswith("InconclusiveError: could not look at ") and "not seen" in out


def test_a_failure_counts_before_what_could_not_be_seen(call, cluster):
    cluster.forbidden = {"secrets"}
    del cluster.objects[path_of("configmaps", "portcullis-trust")]
    code, _, err = call()
    assert code == 1 and err == "PipelineError: not ready: ConfigMap portcullis-trust\n"


# The trust store.


def other_home(tmp_path):
    home = homes.Home(tmp_path / "other" / "cheque-digits")
    homes.generate_keys(home)
    homes.ensure_trust(home, ReferenceConfig.load(None))
    return home


def another_owner(data, home, tmp_path):
    theirs = other_home(tmp_path).trust
    return {name: (theirs / name).read_text() for name in data}


def another_policy(data, home, tmp_path):
    later = homes.Home(tmp_path / "later")
    shutil.copytree(home.root, later.root)
    config = ReferenceConfig.load(None)
    homes.ensure_trust(later, dataclasses.replace(config, test_fraction=0.3))
    return {name: (later.trust / name).read_text() for name in data}


def later_revocations(data, home, tmp_path):
    return {**data, "revocations.json": Revocations(7).sign(home.signer("owner")).decode()}


FAULTS = {
    "empty": lambda data, home, tmp_path: {},
    "a file missing": lambda data, home, tmp_path: {k: v for k, v in data.items() if k != "policy.yaml"},
    "an altered policy": lambda data, home, tmp_path: {**data, "policy.yaml": data["policy.yaml"].replace("0.75", "0")},
    "another name pinned": lambda data, home, tmp_path: {
        **data,
        "trust.yaml": data["trust.yaml"].replace("cheque-digits", "other"),
    },
    "another owner": another_owner,
    "another owner's key": lambda data, home, tmp_path: {
        **data,
        "owner.pem": another_owner(data, home, tmp_path)["owner.pem"],
    },
    "another policy of this owner's": another_policy,
    "other revocations of this owner's": later_revocations,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_trust_store_other_than_this_machines_fails(checks, cluster, ready, tmp_path, fault):
    config_map = cluster.objects[path_of("configmaps", "portcullis-trust")]
    changed = fault(config_map["data"], ready[1], tmp_path)
    assert changed != config_map["data"]
    config_map["data"] = changed
    assert wrong(checks("--part", "release")) == {"ConfigMap portcullis-trust": False}


def test_it_says_when_the_policy_is_another_owners(checks, cluster, ready, tmp_path):
    config_map = cluster.objects[path_of("configmaps", "portcullis-trust")]
    config_map["data"] = another_owner(config_map["data"], ready[1], tmp_path)
    assert "signed by another owner" in checks("--part", "release")["ConfigMap portcullis-trust"]["found"]


def test_without_a_trust_store_there_is_nothing_to_compare(call, monkeypatch, tmp_path):
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path / "none"))
    code, out, err = call()
    assert (code, out) == (2, "") and err.startswith("TrustStoreError: ")
    assert not (tmp_path / "none").exists()


# Pipelines.


VERSIONS = {
    "2.17.0": True,
    "2.16.1": True,
    "v3.0": True,
    "2.15.2": None,
    "unknown": None,
    "master": None,
    "": None,
    "1.8.5": False,
    "0.5.1": False,
}


@pytest.mark.parametrize(("version", "passed"), VERSIONS.items())
def test_the_servers_version(checks, kfp, version, passed):
    kfp.release = version
    assert checks("--part", "release")["pipelines version"]["passed"] is passed


def test_a_server_that_does_not_know_the_caller_fails(checks, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong")
    assert wrong(checks("--part", "release"))["pipelines API"] is False


@pytest.mark.parametrize("answer", [None, (500, b""), (200, b"<html>")])
def test_a_server_that_does_not_answer_could_not_be_seen(checks, kfp, answer):
    kfp.disturb = lambda request: answer
    assert wrong(checks("--part", "release")) == {"pipelines API": None, "pipelines version": None}


def test_a_server_that_keeps_users_apart_is_asked_for_the_namespace(checks, kfp):
    kfp.multi_user = True
    assert checks("--part", "release")["pipelines API"]["found"] == f"answers and knows you, for namespace {NAMESPACE}"
    assert kfp.sent("GET", "/apis/v2beta1/experiments")[-1].query["namespace"] == NAMESPACE


# What a package asks for.


def gpu_check(checks, package):
    return checks("--package", package)["GPUs"]


def test_gpus_that_no_node_offers_fail(checks, cluster, package):
    cluster.nodes.clear()
    assert gpu_check(checks, package)["passed"] is False
    cluster.node(cpu="8", nvidia_com__gpu="1")
    cluster.node(cpu="8", nvidia_com__gpu="1")
    found = gpu_check(checks, package)
    assert found["passed"] is False and found["found"] == "no node offers 2 x nvidia.com/gpu for one task"
    cluster.node(unschedulable=True, nvidia_com__gpu="8")
    assert gpu_check(checks, package)["passed"] is False
    cluster.node(nvidia_com__gpu="8")
    assert gpu_check(checks, package)["passed"] is True


@pytest.mark.parametrize("offered", ["2k", "", "-3", "many"])
def test_a_quantity_that_is_no_number_could_not_be_seen(checks, cluster, package, offered):
    cluster.node(nvidia_com__gpu=offered)
    assert gpu_check(checks, package)["passed"] is None


def test_nodes_that_may_not_be_seen(checks, cluster, package, tmp_path):
    cluster.forbidden = {"nodes"}
    assert gpu_check(checks, package)["passed"] is None
    package.write_bytes(small_package())
    found = gpu_check(checks, package)
    assert found["passed"] is True and found["found"] == "asks for no GPU"


def test_names_that_only_the_run_tells_could_not_be_seen(checks, package):
    document, rest = package.read_bytes().split(b"\n---\n")
    spec = yaml.safe_load(document)
    spec["root"]["inputDefinitions"]["parameters"]["secret"] = {"parameterType": "STRING"}
    given = spec["root"]["dag"]["tasks"]["gate"]["inputs"]["parameters"]
    given["secret"] = {"componentInputParameter": "secret"}
    for name in ("gpus", "gpu_resource"):
        del spec["root"]["inputDefinitions"]["parameters"][name]["defaultValue"]
    package.write_bytes(yaml.safe_dump(spec).encode() + b"\n---\n" + rest)
    assert wrong(checks("--package", package)) == {"Secret that the run names": None, "GPUs": None}


def test_an_image_by_tag_and_a_missing_account_fail(checks, package):
    package.write_bytes(package.read_bytes().replace(b"@sha256:" + b"0" * 64, b":latest"))
    found = checks("--package", package, "--service-account", "nobody")
    assert wrong(found) == {"images": False, "ServiceAccount nobody": False}


def test_an_altered_package_is_refused(call, package):
    package.write_bytes(package.read_bytes().replace(b"cachingOptions: {}", b"cachingOptions: {enableCache: true}"))
    code, out, err = call("--package", package)
    assert (code, out) == (1, "") and err.startswith("PipelineError: ")


# The cluster.


FOLDED = {"cluster reachable": None}


@pytest.mark.parametrize(
    "answer", [(500, b""), (401, b"{}"), (200, b"<html>"), (200, b"null"), (200, b"\xff"), (200, b"[1]"), (200, b"{}")]
)
def test_a_cluster_without_a_sound_answer_could_not_be_seen(checks, cluster, package, answer):
    cluster.disturb = answer
    found = checks("--package", package, "--service-account", "x")
    assert wrong(found) == FOLDED and [*found][-1] == "cluster reachable"
    # One check says it for all that it stands for.
    told = found["cluster reachable"]["found"]
    for name in ("GPUs", "Secret portcullis-ingest", "ConfigMap portcullis-trust", "ServiceAccount x"):
        assert name in told and name not in found
    assert cluster.asked == ["/version/"]


def test_a_cluster_that_hides_its_version_is_reachable(checks, cluster):
    cluster.forbidden = {"version"}
    assert wrong(checks("--part", "release")) == {}


@pytest.mark.parametrize("answer", [(500, b""), (200, b"<html>"), (200, b"null")])
def test_a_cluster_that_stops_answering_could_not_be_seen(checks, cluster, monkeypatch, answer):
    sound = cluster.answer
    monkeypatch.setattr(cluster, "answer", lambda path: sound(path) if path == "/version/" else answer)
    found = wrong(checks("--part", "release"))
    assert set(found) == {"ConfigMap portcullis-trust", "Secret portcullis-admit", "Secret portcullis-deploy"}
    assert set(found.values()) == {None}


def test_without_a_way_to_the_cluster_nothing_of_it_could_be_seen(checks, tmp_path):
    broken = tmp_path / "broken"
    for kubeconfig in ("apiVersion: v1\nkind: Config\n", "not: [a kubeconfig", ""):
        broken.write_text(kubeconfig)
        assert wrong(checks("--part", "release", "--kubeconfig", broken)) == FOLDED


@pytest.mark.parametrize(
    "server",
    [{"server": "http://10.0.0.1:8080"}, {"server": "https://10.0.0.1", "insecure-skip-tls-verify": True}],
    ids=["in the clear", "unverified"],
)
def test_no_token_goes_to_a_cluster_whose_identity_is_not_checked(checks, cluster, tmp_path, server):
    config = yaml.safe_load(cluster.kubeconfig(tmp_path / "unchecked").read_text())
    config["clusters"][0]["cluster"] = server
    (tmp_path / "unchecked").write_text(yaml.safe_dump(config))
    found = checks("--part", "release", "--kubeconfig", tmp_path / "unchecked")
    assert set(wrong(found).values()) == {None}
    assert "would not be checked" in json.dumps(found)


def test_a_cluster_that_is_not_there_could_not_be_seen(checks, cluster, tmp_path):
    url, cluster.url = cluster.url, "http://127.0.0.1:9"
    assert set(wrong(checks("--part", "release")).values()) == {None}
    cluster.url = url


def test_what_a_server_says_cannot_colour_the_table(call, kfp):
    kfp.release = "2.17\x1b[31m"
    code, out, err = call("--part", "release")
    assert code == 3 and "\x1b" not in out + err


def test_the_trust_store_of_the_cluster_is_never_kept(call, ready):
    before = copy.copy(TrustStore.load(ready[1].trust))
    call()
    assert TrustStore.load(ready[1].trust) == before


def test_the_help_teaches(capsys):
    assert _guarded(partial(doctor, ["--help"], prog_name="portcullis doctor")) == 0
    assert "portcullis doctor --host http://localhost:8080" in capsys.readouterr().out
