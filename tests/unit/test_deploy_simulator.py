"""The simulated API server answers as a real one did."""

import json
from pathlib import Path

import pytest
from cluster.api_server import ApiServer
from cluster.exchange import USERS, play

from portcullis.deploy.cluster import differences

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "kubernetes" / "kube-apiserver-1.20.2.json").read_text())
EXCHANGES = {exchange["name"]: exchange for exchange in RECORDED["exchanges"]}


@pytest.fixture(scope="module")
def played():
    server = ApiServer(users={user: USERS[user] for user in USERS})
    return {exchange["name"]: exchange for exchange in play(server.ask, RECORDED["exchanges"])}


# What the administrator posts sets the scene; what is stored of it shows in who may do what from there on.
@pytest.mark.parametrize("name", [name for name, exchange in EXCHANGES.items() if exchange["method"] != "POST"])
def test_answers_as_the_real_server_did(played, name):
    assert played[name]["status"] == EXCHANGES[name]["status"]
    assert played[name]["answer"] == EXCHANGES[name]["answer"]


def test_the_recording_covers_what_deploying_relies_on():
    statuses = {exchange["status"] for exchange in EXCHANGES.values()}
    assert statuses == {200, 201, 400, 401, 403, 404, 409, 415, 422, 500}
    assert EXCHANGES["get-after-dry-run"]["status"] == 404
    for name in ("over-what-was-read-and-changed-since", "over-what-was-deleted", "create-what-exists"):
        assert EXCHANGES[name]["status"] == 409
    assert EXCHANGES["create"]["status"] == 201
    assert EXCHANGES["delete-what-changed-since"]["status"] == 409


@pytest.mark.parametrize("kind", ["ServiceAccount", "NetworkPolicy", "Service", "Deployment"])
def test_a_real_server_stores_what_was_rendered(kind):
    exchange = EXCHANGES[f"apply-{kind}"]
    assert list(differences(exchange["body"], exchange["answer"])) == []


def test_a_real_server_keeps_a_foreign_container_which_shows():
    exchange = EXCHANGES["the-first-manager-leaves-it"]
    (found,) = differences(exchange["body"], exchange["answer"])
    assert found.startswith('spec.template.spec.containers[1] was added: {"image": "evil:latest"')
