"""Applying to a simulated cluster, and what goes wrong there; attacks on it are in tests/fail_closed."""

import contextlib
import copy

import pytest
from cluster.api_server import Refusal
from cluster.world import APPLY, BETTER, BROKEN, CLUSTER, DEPLOYMENT, MERGE, NAMESPACE, objects, simulated_world
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client, config

from portcullis.deploy import cluster as clusters
from portcullis.deploy.cluster import Cluster, connect, differences, rolled_out
from portcullis.errors import AdmissionError, DeploymentError, GateFailedError, PolicyError, UsageError


@pytest.fixture
def world():
    with simulated_world() as made:
        yield made


def test_a_first_deployment_stands_as_rendered(world):
    applied = world.deploy()
    assert (applied.changes, applied.replicas) == (5, 2)
    assert world.images == [CLUSTER["image"]] * 2
    assert len(world.stored) == 5
    for it in objects():
        assert list(differences(it, world.api.read(it))) == []


def test_a_second_deployment_of_the_same_changes_nothing(world):
    world.deploy()
    versions = world.server.versions
    assert world.deploy().changes == 0
    assert world.server.versions == versions
    patches = [target for method, target in world.server.requests if method == "PATCH"]
    assert all("dryRun=All" in target for target in patches[10:])


def test_an_update_changes_what_differs_and_takes_no_pod_away_before(world):
    world.deploy()
    applied = world.deploy(objects(image=BETTER))
    assert applied.changes == 5  # every object carries the digest of all
    assert world.images == [BETTER] * 2


def test_the_deployers_role_is_enough_and_none_of_it_too_much(world):
    world.deploy()
    verbs = {(method, target.split("?")[0].split("/")[-2]) for method, target in world.server.requests}
    assert {resource for method, resource in verbs if method == "PATCH"} == {
        *("serviceaccounts", "networkpolicies", "services", "poddisruptionbudgets", "deployments")
    }


def test_nothing_is_applied_before_everything_passed_a_dry_run(world):
    world.deploy()
    patches = [target for method, target in world.server.requests if method == "PATCH"]
    assert ["dryRun=All" in target for target in patches] == [True] * 5 + [False] * 5
    assert all("force=false" in target and "fieldManager=portcullis" in target for target in patches)


# What goes wrong.


def test_a_failed_rollout_is_rolled_back_and_the_old_pods_stay(world):
    world.deploy()
    before = world.stored
    world.server.bad_images.add(BROKEN)
    with pytest.raises(DeploymentError, match=r"ProgressDeadlineExceeded.*; rolled back to what was there before$"):
        world.deploy(objects(image=BROKEN))
    assert world.images == [CLUSTER["image"]] * 2
    assert world.stored == before
    assert world.deploy().changes == 0


def test_a_failed_first_rollout_leaves_nothing(world):
    world.server.bad_images.add(CLUSTER["image"])
    with pytest.raises(DeploymentError, match=r"ProgressDeadlineExceeded.*; what it had created was deleted$"):
        world.deploy()
    assert world.stored == {}


def test_an_old_condition_is_not_taken_for_this_rollouts(world):
    world.server.bad_images.add(CLUSTER["image"])
    for it in objects():  # as a deployment that was killed half way leaves it
        world.api.apply(it)
    for _ in range(3):
        status = world.api.read(objects()[-1])["status"]
    assert status["conditions"][0]["reason"] == "ProgressDeadlineExceeded"
    assert world.deploy(objects(image=BETTER)).replicas == 2


def test_a_refusal_of_the_pods_shows_at_once(world):
    reason = 'pods "digits-5c4f" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
    world.server.refused_pods = reason
    with pytest.raises(DeploymentError, match=r"FailedCreate: pods .* violates PodSecurity"):
        world.deploy()
    assert world.stored == {}
    assert len([1 for method, target in world.server.requests if (method, target) == ("GET", DEPLOYMENT)]) < 8


def test_pods_that_would_break_pod_security_are_refused_before_the_cluster_is_asked(world):
    altered = objects()
    altered[-1]["spec"]["template"]["spec"]["hostPID"] = True
    asked = len(world.server.requests)
    with pytest.raises(DeploymentError, match="Pod Security `restricted`: hostPID is set"):
        world.deploy(altered)
    assert len(world.server.requests) == asked


def test_a_rollout_that_never_ends_is_given_up(world, monkeypatch):
    ticks = iter(range(0, 100_000, 50))
    monkeypatch.setattr(clusters.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(world.server, "_reconcile", lambda where, live: None)
    with pytest.raises(DeploymentError, match=r"did not roll out within 330 s: the cluster has not looked at it; what"):
        world.deploy()


@pytest.mark.parametrize(
    ("live", "ours", "error", "what"),
    [
        ({"issued": 2}, {"issued": 1}, AdmissionError, "newer admission"),
        ({"policy": 4}, {"policy": 3}, PolicyError, "newer policy"),
        ({"revocations": 2}, {"revocations": 1}, PolicyError, "newer revocation list"),
    ],
)
def test_what_is_older_than_what_is_deployed_is_refused(world, live, ours, error, what):
    world.deploy(objects(**live))
    before = world.stored
    with pytest.raises(error, match=what):
        world.deploy(objects(**ours))
    assert world.stored == before


def test_an_older_admission_may_come_back_when_the_owner_signed_it_and_an_older_policy_never(world):
    world.deploy(objects(issued=2, policy=3))
    assert world.deploy(objects(issued=1, policy=3), may_go_back=True).changes == 5
    with pytest.raises(PolicyError, match="newer policy"):
        world.deploy(objects(issued=3, policy=2), may_go_back=True)


def test_an_object_that_does_not_say_its_versions_is_refused(world):
    world.deploy()
    patch = {"metadata": {"annotations": {"portcullis.dev/issued": "soon"}}}
    world.admin("PATCH", f"{DEPLOYMENT}?fieldManager=mallory", patch, MERGE)
    with pytest.raises(DeploymentError, match="does not say which admission"):
        world.deploy()


def test_what_fails_in_the_callers_block_is_rolled_back_too(world):
    world.deploy()
    before = world.stored
    with (
        pytest.raises(GateFailedError, match=r"^it runs True; rolled back to what was there before$"),
        rolled_out(world.api, objects(image=BETTER), may_go_back=False),
    ):
        raise GateFailedError(f"it runs {world.images == [BETTER] * 2}")
    assert world.images == [CLUSTER["image"]] * 2
    assert world.stored == before


def test_an_interruption_is_rolled_back_too(world):
    with pytest.raises(KeyboardInterrupt), rolled_out(world.api, objects(), may_go_back=False):
        raise KeyboardInterrupt
    assert world.stored == {}


def test_nothing_is_rolled_back_where_nothing_was_changed(world):
    world.deploy()
    before = world.stored
    with (
        pytest.raises(GateFailedError, match=r"; nothing had been changed$"),
        rolled_out(world.api, objects(), may_go_back=False),
    ):
        raise GateFailedError("no")
    assert world.stored == before


def test_what_an_earlier_deployment_did_not_render_is_not_restored(world):
    world.deploy()
    patch = {"metadata": {"annotations": {"portcullis.dev/model": "d" * 64}}}
    world.admin("PATCH", f"{DEPLOYMENT}?fieldManager=portcullis-x", patch, MERGE)
    live = world.server.objects[NAMESPACE, "deployments", "digits"]
    for entry in live["metadata"]["managedFields"]:  # the traces are covered up
        entry["manager"] = "portcullis"
    live["metadata"]["managedFields"] = live["metadata"]["managedFields"][:1]
    world.server.bad_images.add(BROKEN)
    with pytest.raises(DeploymentError, match="the rollback did not hold: what was there before is not, to the field"):
        world.deploy(objects(image=BROKEN))
    assert world.images == [CLUSTER["image"]] * 2


def test_another_deployments_objects_are_not_deleted(world):
    def overtaken(it, dry_run):
        if it["kind"] == "Deployment" and not dry_run:
            world.server.webhook = None
            other = copy.deepcopy(objects(content="d")[2])
            world.admin(
                "PATCH",
                f"/api/v1/namespaces/{NAMESPACE}/services/digits?fieldManager=portcullis&force=true",
                other,
                APPLY,
            )
            raise Refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        return it

    world.server.webhook = overtaken
    with pytest.raises(DeploymentError, match="503"):
        world.deploy()
    assert [key[1] for key in world.stored] == ["services"]


def test_an_object_that_took_the_place_of_the_one_meant_is_not_deleted(world):
    world.deploy()
    live = world.api.read(objects()[-1])
    live["metadata"]["uid"] = "another"
    with pytest.raises(DeploymentError, match=r"someone else changed Deployment .* meanwhile"):
        world.api.delete(objects()[-1], live)
    assert world.api.read(live) is not None


def restless(world, monkeypatch, methods, times):
    """The Deployment's status moves on just before each write, so often."""
    ask, left = world.server.ask, [times]

    def moved(token, method, target, content_type, body):
        live = world.server.objects.get((NAMESPACE, "deployments", "digits"))
        if live and left[0] and method in methods and target.startswith(DEPLOYMENT) and "dryRun" not in target:
            left[0] -= 1
            world.server.versions += 1
            live["metadata"]["resourceVersion"] = str(world.server.versions)
            live["status"]["readyReplicas"] = left[0]
        return ask(token, method, target, content_type, body)

    monkeypatch.setattr(world.server, "ask", moved)
    return left


def test_a_status_that_moves_on_is_no_change_by_someone_else(world, monkeypatch):
    world.deploy()
    left = restless(world, monkeypatch, ["PATCH"], clusters.WRITE_ATTEMPTS - 1)
    assert world.deploy(objects(image=BETTER)).changes == 5
    assert (left, world.images) == ([0], [BETTER] * 2)


@pytest.mark.parametrize("first", [True, False])
def test_a_status_that_moves_on_is_in_no_rollbacks_way(world, monkeypatch, first):
    if not first:
        world.deploy()
    before = world.stored
    left = []
    with pytest.raises(GateFailedError, match="was deleted" if first else "rolled back to what was there before"):
        world.refuse(
            objects(image=BETTER),
            lambda: left.append(restless(world, monkeypatch, ["PATCH", "DELETE"], clusters.WRITE_ATTEMPTS - 1)),
        )
    assert left == [[0]]
    assert world.stored == before


def test_a_status_that_never_rests_is_given_up(world, monkeypatch):
    world.deploy()
    before = world.stored
    restless(world, monkeypatch, ["PATCH"], clusters.WRITE_ATTEMPTS)
    with pytest.raises(
        DeploymentError, match=r"^someone else changed Deployment .*; rolled back to what was there bef"
    ):
        world.deploy(objects(image=BETTER))
    assert world.stored == before


def test_a_short_outage_while_it_rolls_out_is_waited_for(world):
    def outage(it, dry_run):
        if it["kind"] == "Deployment" and not dry_run:
            world.server.outages = 3
        return it

    world.server.webhook = outage
    assert world.deploy().replicas == 2


# Who asks, and what answers.


def test_no_rights_is_one_clear_line(world):
    with pytest.raises(DeploymentError) as refusal:
        world.deploy(api=world.as_user("nobody"))
    assert str(refusal.value) == (
        f'reading ServiceAccount {NAMESPACE}/digits is not allowed: serviceaccounts "digits" is forbidden: '
        f'User "nobody" cannot get resource "serviceaccounts" in API group "" in the namespace "{NAMESPACE}"; '
        "bind the deployer's Role to this service account"
    )


def test_a_wrong_token_is_one_clear_line(world):
    with pytest.raises(DeploymentError, match=r"^the API server does not know who asks"):
        world.deploy(api=world.as_user("stranger"))


def test_a_missing_namespace_is_one_clear_line(world):
    del world.server.objects[None, "namespaces", NAMESPACE]
    with pytest.raises(DeploymentError, match=f'answered 404: namespaces "{NAMESPACE}" not found$'):
        world.deploy()


def test_a_server_that_does_not_exist():
    configuration = client.Configuration()
    configuration.host = "http://127.0.0.1:1"
    with client.ApiClient(configuration) as api, pytest.raises(DeploymentError, match="did not answer"):
        Cluster(api).read(objects()[0])


def test_an_answer_about_something_else(world, monkeypatch):
    world.deploy()
    other = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other"}}
    monkeypatch.setattr(world.server, "ask", lambda *arguments: (200, other))
    with pytest.raises(DeploymentError, match="answered with something else"):
        world.api.read(objects()[2])


@pytest.mark.parametrize("body", [b"", b"404 page not found", b"[]", b"{" * 10_000, b'{"a": NaN}'])
def test_an_answer_that_is_none(world, monkeypatch, body):
    class Response:
        status = 200

        def read(self, amount, decode_content):
            return body

        def close(self):
            pass

    pool = world.api.client.rest_client.pool_manager
    monkeypatch.setattr(pool, "request", lambda *a, **k: Response())
    with pytest.raises(DeploymentError, match="with no JSON object"):
        world.api.read(objects()[0])
    monkeypatch.undo()


def part(*path, value=None, kind="Deployment", method="GET"):
    """Set a part of what is answered about a kind; without a value, to null."""

    def change(asked, target, status, answer):
        if asked == method and status < 300 and answer["kind"] == kind:
            inner = answer
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = value
        return status, answer

    return change


def without(*path):
    def change(method, target, status, answer):
        if method == "GET" and status < 300 and answer["kind"] == "Deployment":
            inner = answer
            for step in path[:-1]:
                inner = inner[step]
            del inner[path[-1]]
        return status, answer

    return change


ISSUED = ("metadata", "annotations", "portcullis.dev/issued")
MALFORMED = {
    "null metadata": part("metadata"),
    "text as metadata": part("metadata", value="x"),
    "null labels": part("metadata", "labels"),
    "null annotations": part("metadata", "annotations"),
    "a number as annotation": part(*ISSUED, value=5),
    "null managed fields": part("metadata", "managedFields"),
    "managed fields of text": part("metadata", "managedFields", value=["x"]),
    "null owned fields": part("metadata", "managedFields", 0, "fieldsV1"),
    "a list as owned labels": part("metadata", "managedFields", 0, "fieldsV1", "f:metadata", "f:labels", value=1),
    "no uid": without("metadata", "uid"),
    "a number as version": part("metadata", "resourceVersion", value=7),
    "no generation": without("metadata", "generation"),
    "text as generation": part("metadata", "generation", value="1"),
    "null status": part("status"),
    "text as status": part("status", value="x"),
    "text as observed generation": part("status", "observedGeneration", value="x"),
    "a truth as count": part("status", "replicas", value=True),
    "null conditions": part("status", "conditions"),
    "conditions of text": part("status", "conditions", value=["x"]),
    "a condition of lists": part("status", "conditions", value=[{"type": [], "status": []}]),
    "a condition of nothing": part("status", "conditions", value=[{}]),
    "another namespace": part("metadata", "namespace", value="other"),
    "no kind": without("kind"),
    "a number as kind": part("kind", value=1),
    "null annotations in a dry run": part("metadata", "annotations", method="PATCH"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_object_is_refused_and_nothing_is_changed(world, monkeypatch, change):
    world.deploy()
    before = world.stored
    world.answers(monkeypatch, change)
    with pytest.raises(DeploymentError, match=r"malformed Deployment|something else|which version"):
        world.deploy(objects(image=BETTER))
    assert world.stored == before


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_rollback_that_reads_a_malformed_object_did_not_hold(world, monkeypatch, change):
    world.deploy()
    with pytest.raises(
        GateFailedError, match=r"^no; the rollback did not hold: .*(malformed|something else|version it)"
    ):
        world.refuse(objects(image=BETTER), lambda: world.answers(monkeypatch, change))


@pytest.mark.parametrize(
    "details", [None, "x", [], {"causes": None}, {"causes": "x"}, {"causes": ["x"]}, {"causes": [{"reason": []}]}]
)
@pytest.mark.parametrize("status", [409, 422])
def test_a_malformed_refusal_is_a_refusal(world, monkeypatch, details, status):
    world.answers(
        monkeypatch,
        lambda method, target, code, answer: (
            (status, {"message": None, "details": details}) if method == "PATCH" else (code, answer)
        ),
    )
    with pytest.raises(DeploymentError, match=r"meanwhile; deploy again$|answered 422: None$"):
        world.deploy()
    assert world.stored == {}


@pytest.mark.parametrize("version", ["", "-1", "+1", "1.0", " 1", "1\n", "\u0661", "9" * 19, "9" * 5000])
def test_a_version_that_is_no_number_is_refused(world, monkeypatch, version):
    world.deploy()
    before = world.stored
    world.answers(monkeypatch, part(*ISSUED, value=version))
    with pytest.raises(DeploymentError, match="does not say which admission it was deployed under"):
        world.deploy(objects(image=BETTER))
    assert world.stored == before


# The comparison on which all of it rests.


def leaves(value, path=()):
    if isinstance(value, dict | list) and value:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


ALL = objects()
LEAVES = [(index, path) for index, it in enumerate(ALL) for path in leaves(it)]


@given(st.sampled_from(LEAVES), st.sampled_from(["change", "remove", "add"]))
def test_any_altered_removed_or_added_field_is_found(leaf, how):
    index, path = leaf
    stored = copy.deepcopy(ALL[index])
    parent = stored
    for step in path[:-1]:
        parent = parent[step]
    if how == "change":
        parent[path[-1]] = "altered"
    elif how == "remove":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent["hostNetwork"] = True
    else:
        parent.append("more")
    free = how == "add" and path[:2] in (("metadata", "labels"), ("metadata", "annotations"))
    free = free and (ALL[index]["kind"], path[1]) != ("ServiceAccount", "annotations")
    assert bool(list(differences(ALL[index], stored))) != free


@pytest.mark.parametrize(("one", "other"), [(1, True), (0, False), (1, 1.0), ("1", 1), ([], {}), (None, "")])
def test_values_of_another_type_are_another_value(one, other):
    assert list(differences({"kind": "X", "a": one}, {"kind": "X", "a": other}))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "serviceAccount"), "admin"),
        ("Deployment", ("spec", "template", "metadata", "creationTimestamp"), "now"),
        ("Service", ("spec", "externalIPs"), ["1.2.3.4"]),
        ("Service", ("spec", "internalTrafficPolicy"), "Local"),
        ("Deployment", ("metadata", "ownerReferences"), [{}]),
        ("NetworkPolicy", ("secrets",), []),
        ("ServiceAccount", ("metadata", "annotations", "eks.amazonaws.com/role-arn"), "arn:aws:iam::1:role/admin"),
    ],
)
def test_what_a_server_assigns_is_no_excuse(kind, path, value):
    it = next(it for it in ALL if it["kind"] == kind)
    stored = copy.deepcopy(it)
    parent = stored
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    assert list(differences(it, stored))


# Finding the cluster.

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: it
contexts: [{{name: it, context: {{cluster: it, user: it}}}}]
clusters: [{{name: it, cluster: {cluster}}}]
users: [{{name: it, user: {{token: secret}}}}]
"""


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "config"
    monkeypatch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


def test_connects_to_the_cluster_of_the_kubeconfig(kubeconfig):
    kubeconfig.write_text(KUBECONFIG.format(cluster="{server: 'https://127.0.0.1:6443'}"))
    with contextlib.closing(connect().client) as api:
        assert api.configuration.host == "https://127.0.0.1:6443"


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("{server: 'http://127.0.0.1:6443'}", "would not be checked"),
        ("{server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true}", "would not be checked"),
        ("null", "there is no cluster"),
        ("{server: 1}", "there is no cluster"),
    ],
)
def test_a_cluster_whose_identity_would_not_be_checked_is_refused(kubeconfig, cluster, message):
    kubeconfig.write_text(KUBECONFIG.format(cluster=cluster))
    with pytest.raises(UsageError, match=message):
        connect()


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "clusters: 1", "current-context: it", "a: !!python/object:os.system {}"]
)
def test_a_kubeconfig_that_is_none_is_said(kubeconfig, text):
    kubeconfig.write_text(text)
    with pytest.raises(UsageError, match="there is no cluster"):
        connect()


def test_no_cluster_is_said(kubeconfig):
    with pytest.raises(UsageError, match=r"there is no cluster.*KUBECONFIG"):
        connect()


def test_in_a_pod_without_its_token_nothing_else_is_tried(kubeconfig, monkeypatch):
    kubeconfig.write_text(KUBECONFIG.format(cluster="{server: 'https://127.0.0.1:6443'}"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    with pytest.raises(UsageError, match="token file does not exist"):
        connect()
