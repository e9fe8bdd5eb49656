"""The manifests lock what they say they lock: two namespaces, nothing in or out but DNS."""

import pytest
import yaml

from portcullis_pipelines.compile import ROOT

BASE = ROOT / "manifests" / "base"
FILES = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
OBJECTS = [(path, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]
NAMESPACES = {"portcullis-training": "baseline", "portcullis-serving": "restricted"}
KINDS = {("v1", "Namespace"), ("networking.k8s.io/v1", "NetworkPolicy")}


def of_kind(kind):
    return [document for _, document in OBJECTS if document["kind"] == kind]


def policies(namespace):
    return {it["metadata"]["name"]: it["spec"] for it in of_kind("NetworkPolicy") if in_namespace(it) == namespace}


def in_namespace(document):
    return document["metadata"].get("namespace")


def test_the_kustomization_lists_every_file():
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert kustomization == {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": kustomization["resources"],
    }
    assert sorted(kustomization["resources"]) == [path.name for path in FILES]


@pytest.mark.parametrize(("path", "document"), OBJECTS, ids=lambda it: it.name if hasattr(it, "name") else it["kind"])
def test_an_object_is_of_a_known_kind_and_in_one_of_the_namespaces(path, document):
    assert (document["apiVersion"], document["kind"]) in KINDS
    place = document["metadata"]["name"] if document["kind"] == "Namespace" else in_namespace(document)
    assert place in NAMESPACES
    assert "namespace" not in document["metadata"] or document["kind"] != "Namespace"


def test_no_two_objects_share_a_name():
    names = [(it["kind"], in_namespace(it), it["metadata"]["name"]) for _, it in OBJECTS]
    assert len(set(names)) == len(names)


def test_each_namespace_enforces_its_level_and_tells_of_what_restricted_would_refuse():
    labels = {it["metadata"]["name"]: it["metadata"]["labels"] for it in of_kind("Namespace")}
    assert set(labels) == set(NAMESPACES)
    for name, level in NAMESPACES.items():
        prefix = "pod-security.kubernetes.io"
        assert labels[name][f"{prefix}/enforce"] == level
        assert labels[name][f"{prefix}/audit"] == labels[name][f"{prefix}/warn"] == "restricted"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_nothing_goes_in_or_out_but_dns(namespace):
    found = policies(namespace)
    assert found.pop("default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    dns = found.pop("allow-dns")
    assert not found, "a further policy only ever allows more; check it here"
    assert dns["policyTypes"] == ["Egress"] and "ingress" not in dns
    (rule,) = dns["egress"]
    (peer,) = rule["to"]
    assert {peer[part]["matchLabels"].popitem() for part in ("namespaceSelector", "podSelector")} == {
        ("kubernetes.io/metadata.name", "kube-system"),
        ("k8s-app", "kube-dns"),
    }
    assert {(port["protocol"], port["port"]) for port in rule["ports"]} == {("UDP", 53), ("TCP", 53)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_address_range_is_the_whole_internet(path):
    text = path.read_text()
    assert "0.0.0.0/0" not in text and "::/0" not in text
