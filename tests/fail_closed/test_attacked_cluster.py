"""Attacks on a deployment to a cluster: manifests altered on the way or in place are refused, never overwritten.

The cluster is a simulator; tests/unit/test_deploy_simulator.py compares its answers with those of a real API server.
"""

import pytest
from cluster.world import APPLY, BETTER, DEPLOYMENT, MERGE, NAMESPACE, objects, simulated_world

from portcullis.deploy.cluster import rolled_out
from portcullis.errors import DeploymentError, GateFailedError


@pytest.fixture
def world():
    with simulated_world() as made:
        yield made


def test_a_webhook_that_changes_the_image_is_noticed_before_anything_is_applied(world):
    def evil(it, dry_run):
        if it["kind"] == "Deployment":
            it["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:latest"
        return it

    world.server.webhook = evil
    with pytest.raises(DeploymentError, match=r'containers\[0\]\.image is "evil:latest", not "registry'):
        world.deploy()
    assert world.stored == {}


def test_a_webhook_that_hides_from_dry_runs_is_rolled_back(world):
    def sly(it, dry_run):
        if it["kind"] == "Deployment" and not dry_run:
            it["spec"]["template"]["spec"]["hostNetwork"] = True
        return it

    world.server.webhook = sly
    with pytest.raises(DeploymentError, match=r"hostNetwork was added: true; what it had created was deleted"):
        world.deploy()
    assert world.stored == {}


def test_a_webhook_that_comes_between_is_rolled_back_and_said_not_to_hold(world):
    world.deploy()

    def sly(it, dry_run):
        if it["kind"] == "Deployment" and not dry_run:
            it["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:latest"
        return it

    world.server.webhook = sly
    with pytest.raises(DeploymentError, match="the rollback did not hold: the cluster stores another Deployment"):
        world.deploy(objects(image=BETTER))


def test_a_network_that_a_webhook_opens_is_noticed_before_a_pod_runs(world):
    def sly(it, dry_run):
        if it["kind"] == "NetworkPolicy" and not dry_run:
            it["spec"]["ingress"].append({})
        return it

    world.server.webhook = sly
    with pytest.raises(DeploymentError, match=r"spec\.ingress\[1\] was added: \{\}; what it had created was deleted"):
        world.deploy()
    assert ("PATCH", f"{DEPLOYMENT}?fieldManager=portcullis&force=false") not in world.server.requests


def test_an_edit_while_it_rolls_out_is_noticed(world, monkeypatch):
    reconcile = world.server._reconcile

    def edited(where, live):
        patch = {"spec": {"type": "NodePort"}}
        if not world.server.pods.get((NAMESPACE, "digits")):
            world.admin("PATCH", f"/api/v1/namespaces/{NAMESPACE}/services/digits?fieldManager=mallory", patch, MERGE)
        reconcile(where, live)

    monkeypatch.setattr(world.server, "_reconcile", edited)
    with pytest.raises(DeploymentError, match=r'stores another Service .*spec\.type is "NodePort"'):
        world.deploy()
    assert world.images == []


def test_a_container_that_someone_added_is_not_overlooked(world):
    world.deploy()
    sidecar = {"containers": [{"name": "sidecar", "image": "evil:latest"}]}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "digits"},
        "spec": {"template": {"spec": sidecar}},
    }
    world.admin("PATCH", f"{DEPLOYMENT}?fieldManager=mallory", body, APPLY)
    before = world.stored
    with pytest.raises(DeploymentError, match=r"containers\[1\] was added: .*evil:latest"):
        world.deploy(objects(image=BETTER))
    assert world.stored == before


def test_a_field_that_another_manager_took_is_a_conflict_and_not_forced(world):
    world.deploy()
    world.edit(replicas=9)
    before = world.stored
    with pytest.raises(
        DeploymentError, match=r'conflict with "mallory" using apps/v1: \.spec\.replicas; nothing is forced'
    ):
        world.deploy()
    assert world.stored == before


def test_an_object_of_someone_else_is_not_taken_over(world):
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "digits"}, "spec": {"ports": []}}
    world.admin("POST", f"/api/v1/namespaces/{NAMESPACE}/services", service)
    with pytest.raises(DeploymentError, match="exists and was not made by Portcullis"):
        world.deploy()
    assert len(world.stored) == 1


# Two deployments at once.


@pytest.mark.parametrize("kind", ["ServiceAccount", "Deployment"])
def test_an_older_deployment_does_not_win_over_a_newer_one_that_came_between(world, kind):
    world.deploy(objects(issued=1))
    world.between(kind, lambda: world.deploy(objects(issued=5)))
    with pytest.raises(DeploymentError) as refusal:
        world.deploy(objects(issued=2))
    assert refusal.type is DeploymentError
    assert str(refusal.value) == (
        f"someone else changed ServiceAccount {NAMESPACE}/digits meanwhile; deploy again; nothing had been changed"
    )
    assert world.issued == {"5"}


def test_of_two_first_deployments_the_later_does_not_overwrite_the_earlier(world):
    world.between("Deployment", lambda: world.deploy(objects(issued=5)))
    with pytest.raises(
        DeploymentError, match=r"^someone else changed .* meanwhile; deploy again; nothing had been cha"
    ):
        world.deploy(objects(issued=2))
    assert world.issued == {"5"}
    assert len(world.stored) == 5


def test_what_someone_deleted_meanwhile_is_not_brought_back(world):
    world.deploy(objects(issued=1))
    world.between("Deployment", lambda: world.admin("DELETE", DEPLOYMENT))
    with pytest.raises(
        DeploymentError, match=r"^someone else changed Deployment .*; rolled back to what was there befo"
    ):
        world.deploy(objects(issued=2))
    assert (NAMESPACE, "deployments", "digits") not in world.stored
    assert world.issued == {"1"}


@pytest.mark.parametrize("first", [True, False])
def test_a_rollback_leaves_what_someone_deployed_meanwhile(world, first):
    if not first:
        world.deploy(objects(issued=1))
    with pytest.raises(GateFailedError, match=r"^no; the rollback did not hold: someone else deployed meanwhile$"):
        world.refuse(objects(issued=2), lambda: world.deploy(objects(issued=5)))
    assert world.issued == {"5"}
    assert len(world.stored) == 5


def test_a_rollback_takes_back_what_is_its_own_beside_what_someone_deployed_meanwhile(world):
    world.deploy(objects(issued=1))
    service = objects(issued=5)[2]
    with pytest.raises(GateFailedError, match=r"^no; the rollback did not hold: someone else deployed meanwhile$"):
        world.refuse(objects(issued=2, image=BETTER), lambda: world.api.apply(service, world.api.read(service)))
    issued = {key[1]: it["metadata"]["annotations"]["portcullis.dev/issued"] for key, it in world.stored.items()}
    assert issued.pop("services") == "5"
    assert set(issued.values()) == {"1"}
    assert BETTER not in world.images


def test_a_rollback_does_not_go_over_what_comes_in_between(world, monkeypatch):
    world.deploy(objects(issued=1))
    read = world.api.read

    def overtaken(self, it):
        live = read(it)
        if live["metadata"]["annotations"]["portcullis.dev/issued"] == "2":
            monkeypatch.undo()
            world.deploy(objects(issued=5))
        return live

    with pytest.raises(GateFailedError, match=r"^no; the rollback did not hold: someone else changed Deployment "):
        world.refuse(objects(issued=2), lambda: monkeypatch.setattr(type(world.api), "read", overtaken))
    assert world.issued == {"5"}


def test_a_deployment_that_is_overtaken_while_it_is_asked_fails(world):
    with (
        pytest.raises(
            DeploymentError, match=r"stores another .*; the rollback did not hold: someone else deployed mean"
        ),
        rolled_out(world.api, objects(issued=2), may_go_back=False),
    ):
        world.deploy(objects(issued=5))
    assert world.issued == {"5"}
