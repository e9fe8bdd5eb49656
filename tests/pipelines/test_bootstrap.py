"""What is applied to a namespace: each step's keys and no others, and nothing of the release for training."""

import base64
import dataclasses
import os
import shutil
import stat
import subprocess
import sys
import warnings
from functools import partial

import pytest
import yaml
from cluster.small_package import small_package
from cluster.world import CLUSTER

from portcullis.cli.cluster import bootstrap
from portcullis.cli.main import _guarded
from portcullis.deploy.manifests import to_yaml
from portcullis.errors import KeyMaterialError, UsageError
from portcullis.evidence.trust import TrustStore
from portcullis.harden import secret_name
from portcullis_pipelines import home as homes
from portcullis_pipelines.bootstrap import TRUST_FILES, is_rendered, objects, secrets_of, without_secrets
from portcullis_pipelines.config import Deployment, ReferenceConfig
from portcullis_pipelines.steps import STEPS

PRODUCTION = """\
dataset: {name: fraud, label: {column: y, classes: [a, b]}, features: {columns: ["v*"], shape: [2], low: 0, high: 1}}
deployment: {environment: production}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    config = ReferenceConfig.load(None)
    home = homes.Home(tmp_path_factory.mktemp("home") / "cheque-digits")
    homes.generate_keys(home)
    _, config = homes.ensure_trust(home, config)
    return config, home


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*options):
        capfd.readouterr()
        code = _guarded(partial(bootstrap, [*map(str, options)], prog_name="portcullis bootstrap"))
        return code, *capfd.readouterr()

    return run


def rendered(prepared, part="all", namespace="ns", **settings):
    return objects(prepared[1], part=part, namespace=namespace, **settings)


def of_kind(stream, kind):
    return {it["metadata"]["name"]: it for it in stream if it["kind"] == kind}


def decoded(secret):
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


def test_every_step_has_a_secret_of_its_own_with_its_keys_alone(prepared):
    secrets = of_kind(rendered(prepared), "Secret")
    assert set(secrets) == {secret_name(step.name) for step in STEPS} | {"portcullis-serving"}
    for step in STEPS:
        keys = decoded(secrets[secret_name(step.name)])
        assert set(keys) == {f"{step.name.replace(':', '.')}.pem", *step.keys}
        assert all(value == (prepared[1].keys / name).read_bytes() for name, value in keys.items())
    assert set(decoded(secrets["portcullis-serving"])) == {"serving.pem", "serving.token"}
    assert all(it["immutable"] is True and it["type"] == "Opaque" for it in secrets.values())


def test_two_steps_share_a_signing_key_nowhere(prepared):
    signing = [decoded(it)[name] for it in of_kind(rendered(prepared), "Secret").values() for name in it["data"]]
    pems = [value for value in signing if value.startswith(b"-----BEGIN PRIVATE KEY-----")]
    assert len(set(pems)) == len(STEPS) + 2  # and the keys of serving and pipeline, which those have who open


@pytest.mark.parametrize("part", ["secure_training", "release", "all"])
def test_nothing_ever_holds_the_owners_key(prepared, part):
    assert occurrences(prepared, part, "owner.pem") == 0


@pytest.mark.parametrize("key", ["admit.pem", "deploy.pem", "serving.pem", "serving.token"])
def test_the_training_part_holds_no_key_of_the_release(prepared, key):
    assert occurrences(prepared, "secure_training", key) == 0
    assert occurrences(prepared, "release", key) > 0


@pytest.mark.parametrize("key", ["train.pem", "masking.key", "split.key", "watermark.key", "sign.pem", "pipeline.pem"])
def test_the_release_part_holds_no_key_of_training(prepared, key):
    assert occurrences(prepared, "release", key) == 0
    assert occurrences(prepared, "secure_training", key) > 0


def test_who_takes_data_sets_has_the_key_that_opens_and_who_makes_them_the_one_that_seals(prepared):
    held = {name: set(it["data"]) for name, it in of_kind(rendered(prepared), "Secret").items()}
    takes = {it.name for it in STEPS if set(it.inputs) & {"dataset", "test"}}
    makes = {it.name for it in STEPS if it.kind == "transform" and set(it.outputs) & {"dataset", "train", "test"}}
    assert {name for name, keys in held.items() if "pipeline.pem" in keys} == {secret_name(it) for it in takes}
    assert {name for name, keys in held.items() if "pipeline.pub.pem" in keys} == {secret_name(it) for it in makes}


def occurrences(prepared, part, key):
    """Count a private key's bytes in what is applied: as they are, their lines, and base64-encoded, also twice."""
    stream = to_yaml(rendered(prepared, part)).encode()
    whole = (prepared[1].keys / key).read_bytes()
    assert whole
    lines = [line for line in whole.splitlines() if line and not line.startswith(b"-----")]
    once = base64.b64encode(whole)
    inside = [base64.b64decode(line) for line in lines if len(line) % 4 == 0]
    return sum(stream.count(it) for it in (whole, *lines, *inside, once, base64.b64encode(once)))


def test_two_objects_of_one_name_are_refused(tmp_path):
    config = ReferenceConfig.from_dict(yaml.safe_load(PRODUCTION))
    home = homes.Home(tmp_path / "home")
    homes.generate_keys(home)
    cluster = {**CLUSTER, "namespace": "ns", "secret": "portcullis-admit"}
    homes.ensure_trust(home, dataclasses.replace(config, deployment=Deployment("kubernetes", cluster, "production")))
    with pytest.raises(UsageError, match="two objects would be the Secret ns/portcullis-admit"):
        objects(home, part="release", namespace="ns")


def test_the_policy_says_where_the_server_runs(tmp_path):
    config = ReferenceConfig.from_dict(yaml.safe_load(PRODUCTION))
    home = homes.Home(tmp_path / "home")
    homes.generate_keys(home)
    cluster = {**CLUSTER, "secret": "theirs", "trust": "known"}
    homes.ensure_trust(home, dataclasses.replace(config, deployment=Deployment("kubernetes", cluster, "production")))
    made = objects(home, part="all", namespace="ns")
    assert of_kind(made, "Secret")["theirs"]["metadata"]["namespace"] == CLUSTER["namespace"]
    assert of_kind(made, "ConfigMap")["known"]["metadata"]["namespace"] == CLUSTER["namespace"]
    assert [*of_kind(made, "ServiceAccount")] == ["portcullis-deploy-fraud"]


def test_the_parts_are_the_whole(prepared):
    policy = TrustStore.load(prepared[1].trust).policy
    whole, training, release = (secrets_of(policy, it) for it in ("all", "secure_training", "release"))
    assert whole == {secret_name(step.name): (step.key_file, *step.keys) for step in STEPS}
    assert set(training) | set(release) == set(whole) and not set(training) & set(release)
    assert set(release) == {secret_name(step.name) for step in STEPS if step.part == "release"}


def test_every_use_of_a_stage_reads_the_same_keys_in_the_same_part():
    uses = {(step.stage, step.keys, step.part) for step in STEPS}
    assert len(uses) == len({step.stage for step in STEPS})


def test_a_step_called_owner_does_not_get_the_owners_key(prepared):
    policy = TrustStore.load(prepared[1].trust).policy
    rule = dataclasses.replace(policy.step("train"), name="owner")
    with pytest.raises(UsageError, match="a step called owner would sign with the policy owner's key"):
        secrets_of(dataclasses.replace(policy, steps={"owner": rule}), "all")


# A pipeline of one's own.


def own(folder, *steps):
    """A home with a policy of these steps, each a name and a stage."""
    home = homes.Home(folder)
    homes.generate_keys(home, [name for name, _ in steps])
    blank = {"kind": "transform", "inputs": {"artifact": "external", "policy": "policy"}, "outputs": ["artifact"]}
    more = {"requires": [], "parameters": {}, "checks": {}}
    homes.ensure_policy(home, "own", [{"name": name, "stage": stage, **blank, **more} for name, stage in steps])
    return home


def test_the_steps_are_those_of_the_trust_stores_policy(tmp_path):
    stages = ("start", "start_chain"), ("mine:first", "mask_pii"), ("theirs", "their_stage"), ("joined", "attest")
    home = own(tmp_path / "own", *stages)
    made = objects(home, part="all", namespace="ns")
    keys = {name: set(decoded(it)) for name, it in of_kind(made, "Secret").items()}
    assert keys == {
        "portcullis-start": {"start.pem"},
        "portcullis-mine-first": {"mine.first.pem", "masking.key", "pipeline.pem", "pipeline.pub.pem"},
        "portcullis-theirs": {"theirs.pem"},
        "portcullis-joined": {"joined.pem", "pipeline.pem"},
    }
    assert [(it["kind"], it["metadata"]["name"]) for it in without_secrets(made)] == [
        ("ConfigMap", "portcullis-trust"),
        ("ServiceAccount", "portcullis-training"),
    ]
    assert objects(home, part="secure_training", namespace="ns") == made
    with pytest.raises(UsageError, match="no step of policy own belongs to the part release"):
        objects(home, part="release", namespace="ns")


def test_the_keys_of_the_release_come_with_its_steps(tmp_path):
    made = objects(own(tmp_path / "own", ("seal", "encrypt"), ("let_in", "admit")), part="all", namespace="ns")
    keys = {name: set(decoded(it)) for name, it in of_kind(made, "Secret").items()}
    assert keys == {"portcullis-seal": {"seal.pem", "serving.pub.pem"}, "portcullis-let-in": {"let_in.pem"}}
    deploying = objects(own(tmp_path / "more", ("put", "deploy")), part="release", namespace="ns")
    keys = {name: set(decoded(it)) for name, it in of_kind(deploying, "Secret").items()}
    serving = {"serving.pem", "serving.token"}
    assert keys == {"portcullis-put": {"put.pem", *serving}, "portcullis-serving": serving}
    assert of_kind(deploying, "Role") and not of_kind(made, "Role")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a_b", "a:b"), "the steps a_b and a:b would share the Secret portcullis-a-b"),
        (("a_",), "'portcullis-a-' is no name of a Secret"),
    ],
)
def test_steps_whose_secrets_cannot_be_told_apart_or_named_are_refused(tmp_path, names, message):
    home = own(tmp_path / "own", *((name, "attest") for name in names))
    for part in ("all", "release"):
        with pytest.raises(UsageError, match=message):
            objects(home, part=part, namespace="ns")


@pytest.mark.parametrize("part", ["secure_training", "release", "all"])
def test_the_config_map_is_the_trust_store(prepared, tmp_path, part):
    config_map = of_kind(rendered(prepared, part), "ConfigMap")["portcullis-trust"]
    assert set(config_map["data"]) == set(TRUST_FILES) and "immutable" not in config_map
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    assert TrustStore.load(tmp_path).policy_bytes == TrustStore.load(prepared[1].trust).policy_bytes


@pytest.mark.parametrize("part", ["secure_training", "release", "all"])
def test_what_is_written_is_what_kubernetes_takes(prepared, part):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for it in yaml.safe_load_all(to_yaml(rendered(prepared, part, deploy_namespace="serving"))):
        kubernetes_validate.validate(it, "1.31", strict=True)
        assert it["metadata"]["labels"]["app.kubernetes.io/part-of"] == "portcullis"


def test_the_stream_reads_back_as_it_was_and_comes_out_the_same(prepared):
    made = rendered(prepared)
    assert list(yaml.safe_load_all(to_yaml(made))) == made
    assert to_yaml(rendered(prepared)) == to_yaml(made)
    assert "*id" not in to_yaml(made)


def test_training_gets_an_account_without_any_right_but_to_the_ledger(prepared):
    made = rendered(prepared, "secure_training")
    assert set(of_kind(made, "ServiceAccount")) == {"portcullis-training"}
    ledger = {"portcullis-ledger-cheque-digits"}
    assert set(of_kind(made, "Role")) == ledger and set(of_kind(made, "RoleBinding")) == ledger
    assert set(of_kind(rendered(prepared, "secure_training", service_account="mine"), "ServiceAccount")) == {"mine"}


def test_the_deployers_role_is_where_the_server_runs_and_its_account_where_the_run_does(prepared):
    made = rendered(prepared, "release", namespace="portcullis-release", deploy_namespace="portcullis-serving")
    (account,) = of_kind(made, "ServiceAccount").values()
    (role,) = of_kind(made, "Role").values()
    (binding,) = of_kind(made, "RoleBinding").values()
    assert account["metadata"]["namespace"] == "portcullis-release"
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "portcullis-serving"
    subject = {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "portcullis-release"}
    assert binding["subjects"] == [subject] and binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not [rule for rule in role["rules"] if "secrets" in rule["resources"] or "*" in rule["verbs"]]
    places = {(it["metadata"]["namespace"]) for it in made if it["kind"] == "ConfigMap"}
    assert places == {"portcullis-release", "portcullis-serving"}
    serving = of_kind(made, "Secret")["portcullis-serving"]
    assert serving["metadata"]["namespace"] == "portcullis-serving"


LEDGERS = {
    "where the run is": ({}, {("ns", f"portcullis-ledger-cheque-digits{end}") for end in ("", "-head")}),
    "named": (
        {"store": "kubernetes://budgets/spent", "memory": "kubernetes://heads/last"},
        {("budgets", "spent"), ("heads", "last")},
    ),
    "elsewhere": ({"store": "s3://bucket/ledger", "memory": "s3://other/head"}, set()),
}


@pytest.mark.parametrize("name", LEDGERS)
def test_ledgers_come_empty_and_the_runs_account_may_read_and_patch_them_alone(tmp_path, name):
    changes, expected = LEDGERS[name]
    config = ReferenceConfig.load(None)
    config = dataclasses.replace(config, ledger=dataclasses.replace(config.ledger, **changes))
    home = homes.Home(tmp_path / "cheque-digits")
    homes.generate_keys(home)
    homes.ensure_trust(home, config)
    for part, account in (("secure_training", "portcullis-training"), ("all", "portcullis-deploy-cheque-digits")):
        made = objects(home, part=part, namespace="ns")
        maps = {(it["metadata"]["namespace"], it["metadata"]["name"]): it for it in made if it["kind"] == "ConfigMap"}
        assert {place for place in maps if place[1] != "portcullis-trust"} == expected
        assert all("data" not in maps[place] for place in expected)
        ours = [it for it in made if it["metadata"]["name"] == "portcullis-ledger-cheque-digits"]
        roles, bindings = ([it for it in ours if it["kind"] == kind] for kind in ("Role", "RoleBinding"))
        rules = [(it["metadata"]["namespace"], rule) for it in roles for rule in it["rules"]]
        assert {(place, one) for place, rule in rules for one in rule["resourceNames"]} == expected
        assert all(rule["verbs"] == ["get", "patch"] and rule["resources"] == ["configmaps"] for _, rule in rules)
        assert len(bindings) == len(roles)
        subject = {"kind": "ServiceAccount", "name": account, "namespace": "ns"}
        assert all(it["subjects"] == [subject] for it in bindings)
    assert not [it for it in objects(home, part="release", namespace="ns") if "ledger" in it["metadata"]["name"]]


def test_no_namespace_is_made(prepared):
    assert not of_kind(rendered(prepared), "Namespace")
    assert {it["metadata"]["namespace"] for it in rendered(prepared)} == {"ns"}


NAMES = ["", "Ns", "ns\nkind: Secret", "-ns", "n" * 64, "a/b", "kube_system"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_kubernetes_does_not_allow_are_refused(prepared, name):
    with pytest.raises(UsageError):
        rendered(prepared, namespace=name)
    if name:
        with pytest.raises(UsageError):
            rendered(prepared, "release", deploy_namespace=name)
    if name != "n" * 64:
        with pytest.raises(UsageError):
            rendered(prepared, service_account=name)


@pytest.mark.parametrize("fault", ["missing", "empty", "open to others"])
def test_a_key_that_is_not_sound_is_refused(prepared, tmp_path, fault):
    home = homes.Home(tmp_path / "copy")
    shutil.copytree(prepared[1].root, home.root)
    key = home.keys / "train.pem"
    if fault == "open to others":
        key.chmod(0o644)
    else:
        key.unlink()
        if fault == "empty":
            key.touch(0o600)
    with pytest.raises(KeyMaterialError, match=r"train\.pem"):
        objects(home, part="all", namespace="ns")


def test_public_is_without_secrets(prepared):
    made = rendered(prepared)
    assert [it for it in made if it["kind"] != "Secret"] == without_secrets(made) != made


# The command.


def test_the_stream_goes_to_standard_output_and_the_rest_to_standard_error(call):
    code, out, err = call("--namespace", "ns", "--part", "secure_training")
    assert code == 0 and of_kind(yaml.safe_load_all(out), "Secret")
    assert "labelled development" in err and "made " in err


def test_another_environment_is_not_called_development(call, tmp_path):
    (tmp_path / "mine.yaml").write_text(PRODUCTION)
    code, out, err = call("--namespace", "ns", "--config", "mine.yaml")
    assert code == 0 and "development" not in err
    assert (
        'environment: "production"'
        in of_kind(yaml.safe_load_all(out), "ConfigMap")["portcullis-trust"]["data"]["trust.yaml"]
    )


def test_a_file_is_for_its_owner_alone(call, tmp_path):
    code, out, err = call("--namespace", "ns", "--output", "keys.yaml")
    assert code == 0 and "kubectl apply --server-side -f keys.yaml" in out and "delete it" in err
    assert stat.S_IMODE((tmp_path / "keys.yaml").stat().st_mode) == 0o600
    assert "PRIVATE" not in out and not [it for it in out.split() if len(it) > 60]


def test_a_folder_of_ones_own_says_which_steps_there_are(call, tmp_path):
    own(tmp_path / "own", ("start", "start_chain"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = call("--namespace", "ns", "--home", "own")
    assert code == 0, err
    assert set(of_kind(yaml.safe_load_all(out), "Secret")) == {"portcullis-start"}
    # Nothing is made that is missing.
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "own" / "keys" / "start.pem").unlink()
    code, out, err = call("--namespace", "ns", "--home", "own")
    assert (code, out) == (2, "") and err.startswith("KeyMaterialError: ")
    shutil.rmtree(tmp_path / "own" / "trust")
    code, out, err = call("--namespace", "ns", "--home", "own")
    assert (code, out) == (2, "") and err.startswith("TrustStoreError: ")


def test_a_folder_and_a_configuration_are_one_too_many(call, tmp_path):
    (tmp_path / "mine.yaml").write_text(PRODUCTION)
    (tmp_path / "own").mkdir()
    code, out, err = call("--namespace", "ns", "--home", "own", "--config", "mine.yaml")
    assert (code, out, err) == (2, "", "UsageError: name either --config or --home\n")


def test_an_earlier_output_is_overwritten_and_nothing_else(call, tmp_path):
    path = tmp_path / "keys.yaml"
    assert call("--namespace", "one", "--output", "keys.yaml")[0] == 0
    assert call("--namespace", "two", "--output", "keys.yaml", "--public")[0] == 0
    assert {it["metadata"]["namespace"] for it in yaml.safe_load_all(path.read_text())} == {"two"}
    shutil.rmtree(tmp_path / "home")
    ours = path.read_bytes()
    foreign = b"---\napiVersion: v1\nkind: Secret\nmetadata: {name: mine, labels: {app: mine}}\n"
    for data in (b"", b"mine", b"\xff", b"[1]", b"a: {", foreign, ours + foreign, small_package(), PRODUCTION.encode()):
        assert not is_rendered(data)
        path.write_bytes(data)
        code, out, err = call("--namespace", "two", "--output", "keys.yaml")
        assert (code, out) == (2, "") and "is not what this command writes" in err
        assert path.read_bytes() == data and not (tmp_path / "home").exists()


def test_secrets_are_not_shown_on_a_terminal(call, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, err = call("--namespace", "ns")
    assert code == 2 and err.startswith("UsageError: private keys are not shown") and out == ""
    assert not (tmp_path / "home").exists()
    code, out, _ = call("--namespace", "ns", "--public")
    assert (
        code == 0 and not of_kind(yaml.safe_load_all(out), "Secret") and of_kind(yaml.safe_load_all(out), "ConfigMap")
    )


def test_secrets_do_not_go_to_a_file_that_others_may_read(tmp_path):
    command = [sys.executable, "-m", "portcullis.cli", "bootstrap", "--namespace", "ns"]
    environment = {**os.environ, "PORTCULLIS_HOME": str(tmp_path / "home")}
    with (tmp_path / "open.yaml").open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=environment, timeout=60)
    assert done.returncode == 2 and b"other users may read the file" in done.stderr
    assert (tmp_path / "open.yaml").read_bytes() == b""
    (tmp_path / "own.yaml").touch(0o600)
    with (tmp_path / "own.yaml").open("wb") as file:
        assert subprocess.run(command, stdout=file, stderr=subprocess.PIPE, env=environment, timeout=60).returncode == 0
    assert of_kind(yaml.safe_load_all((tmp_path / "own.yaml").read_text()), "Secret")


def test_usage(call):
    assert call("--namespace", "a b")[0] == 2
    assert call()[0] == 2
    assert call("--namespace", "ns", "--part", "training")[0] == 2
    code, out, _ = call("--help")
    assert code == 0 and "portcullis bootstrap --namespace portcullis-training" in out
