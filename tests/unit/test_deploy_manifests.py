import contextlib
import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from portcullis.deploy.manifests import (
    MANIFESTS,
    Subject,
    deployer_role,
    manifests_digest,
    render,
    to_yaml,
)
from portcullis.deploy.pod_security import violations
from portcullis.deploy.settings import ServingSettings
from portcullis.errors import ConfigError, UsageError

CLUSTER = {
    "namespace": "portcullis-serving",
    "image": f"ghcr.io/kfp-portcullis/portcullis-python@sha256:{'1' * 64}",
    "gateway": {"namespace": {"kubernetes.io/metadata.name": "gateway"}, "pods": {"app": "gateway"}},
    "store": {"peers": [{"cidr": "10.2.0.0/24", "port": 443}]},
}
EVERYTHING = {
    **CLUSTER,
    "deployer": {"namespace": {"kubernetes.io/metadata.name": "pipelines"}, "pods": {"app": "deploy"}},
    "store": {
        "peers": [{"namespace": {"name": "store"}, "pods": {"app": "minio"}, "port": 9000}],
        "endpoint": "http://minio.store:9000",
        "region": "eu-central-1",
        "secret": "store",
    },
    "replicas": 3,
    "cpu": "500m",
    "memory": "1536Mi",
    "secret": "keys",
    "trust": "trust",
    "runtime_class": "gvisor",
    "gpus": 1,
    "gpu_resource": "nvidia.com/mig-1g.10gb",
    "service_account_annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/server"},
    "progress_seconds": 600,
}
SUBJECT = Subject("a" * 64, "b" * 64, "c" * 64, 1_800_000_000_000, 3, 1)
URIS = {key: f"minio://mlpipeline/v2/{key}" for key in ("sealed", "admission", "evidence")}


def rendered(cluster=None, *, name="digits", subject=SUBJECT, uris=None):
    return render(ServingSettings.parse(cluster or CLUSTER), name=name, subject=subject, uris=uris or URIS)


def by_kind(objects):
    return {it["kind"]: it for it in objects}


def pod_of(objects):
    return by_kind(objects)["Deployment"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("cluster", [CLUSTER, EVERYTHING], ids=["least", "everything"])
def test_the_pods_pass_pod_security_restricted(cluster):
    assert violations(by_kind(rendered(cluster))["Deployment"]["spec"]["template"], "restricted") == []


def test_a_pod_has_no_token_writes_nowhere_but_memory_and_sealed_files_and_runs_as_no_one():
    objects = rendered(EVERYTHING)
    pod = pod_of(objects)
    assert (
        pod["automountServiceAccountToken"]
        is by_kind(objects)["ServiceAccount"]["automountServiceAccountToken"]
        is False
    )
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    for container in (*pod["initContainers"], *pod["containers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is context["runAsNonRoot"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    writable = {mount["name"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"scratch"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["scratch"]["emptyDir"]["medium"] == "Memory"
    assert volumes["keys"]["secret"] == {"secretName": "keys", "optional": False, "defaultMode": 0o440}
    assert volumes["trust"]["configMap"]["optional"] is False


def test_only_the_server_gets_the_keys_and_only_the_init_container_the_stores():
    (fetch,), (server,) = pod_of(rendered(EVERYTHING))["initContainers"], pod_of(rendered(EVERYTHING))["containers"]
    assert {mount["name"] for mount in fetch["volumeMounts"]} == {"bundle", "scratch", "store"}
    assert {mount["name"] for mount in server["volumeMounts"]} == {"bundle", "scratch", "keys", "trust"}
    assert server["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "1"
    assert "nvidia.com/mig-1g.10gb" not in fetch["resources"]["limits"]


def test_the_server_takes_its_own_flags():
    (server,) = pod_of(rendered())["containers"]
    assert server["command"] == ["python", "-m", "portcullis.serving"]
    flags = {server["args"][index]: server["args"][index + 1] for index in range(0, len(server["args"]), 2)}
    assert flags == {
        "--sealed": "/bundle/model",
        "--admission": "/bundle/admission.json",
        "--evidence": "/bundle/evidence.intoto.jsonl",
        "--host": "0.0.0.0",
        "--port": "8080",
    }


def test_the_network_lets_in_gateway_and_deployer_and_out_to_dns_and_store():
    spec = by_kind(rendered(EVERYTHING))["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (ingress,) = spec["ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in ingress["from"]] == [{"app": "gateway"}, {"app": "deploy"}]
    assert all(peer["namespaceSelector"]["matchLabels"] for peer in ingress["from"])
    dns, store = spec["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert store == {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"name": "store"}},
                "podSelector": {"matchLabels": {"app": "minio"}},
            }
        ],
        "ports": [{"port": 9000, "protocol": "TCP"}],
    }


def test_the_deployer_is_by_default_the_pods_of_the_deploy_step():
    ingress = by_kind(rendered())["NetworkPolicy"]["spec"]["ingress"][0]["from"][1]
    assert ingress["podSelector"]["matchLabels"] == {"portcullis.dev/component": "deploy"}


def test_every_object_says_what_it_serves_and_carries_the_digest_of_all():
    objects = rendered()
    digest = manifests_digest(objects)
    for it in objects:
        annotations = it["metadata"]["annotations"]
        assert annotations[MANIFESTS] == digest
        assert annotations["portcullis.dev/model"] == "a" * 64
        assert annotations["portcullis.dev/issued"] == "1800000000000"
        assert it["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "portcullis"


@pytest.mark.parametrize("index", range(5))
def test_the_digest_changes_with_every_object(index):
    objects = rendered()
    altered = copy.deepcopy(objects)
    altered[index]["metadata"]["labels"]["more"] = "x"
    assert manifests_digest(altered) != manifests_digest(objects)


def test_another_admission_rolls_the_pods_and_another_revocation_list_does_not():
    def template(**changes):
        return by_kind(rendered(subject=Subject(**{**vars(SUBJECT), **changes})))["Deployment"]["spec"]["template"]

    assert template(admission="d" * 64) != template()
    assert template(revocations_version=2) == template()


def test_yaml_reads_back_and_is_the_same_each_time():
    text = to_yaml(rendered(EVERYTHING))
    assert list(yaml.safe_load_all(text)) == rendered(EVERYTHING)
    assert text == to_yaml(rendered(EVERYTHING))
    assert "&id" not in text and to_yaml([]) == ""


def test_numbers_may_come_as_doubles_as_kfp_hands_them_on():
    assert ServingSettings.parse({**CLUSTER, "replicas": 3.0}).replicas == 3


PEER = {"namespace": {"a": "b"}, "pods": {"c": "d"}}
BAD = {
    "no-mapping": [],
    "unknown-field": {**CLUSTER, "hostNetwork": True},
    "missing-image": {key: it for key, it in CLUSTER.items() if key != "image"},
    "namespace": {**CLUSTER, "namespace": "../kube-system"},
    "replicas-0": {**CLUSTER, "replicas": 0},
    "replicas-true": {**CLUSTER, "replicas": True},
    "replicas-half": {**CLUSTER, "replicas": 1.5},
    "replicas-nan": {**CLUSTER, "replicas": float("nan")},
    "replicas-text": {**CLUSTER, "replicas": "2"},
    "cpu-number": {**CLUSTER, "cpu": 1},
    "cpu-spelling": {**CLUSTER, "cpu": "2000m"},
    "cpu-none": {**CLUSTER, "cpu": "0"},
    "memory-spelling": {**CLUSTER, "memory": "2048Mi"},
    "memory-spelling-gi": {**CLUSTER, "memory": "1024Gi"},
    "memory-unit": {**CLUSTER, "memory": "2G"},
    "secret": {**CLUSTER, "secret": "a b"},
    "trust": {**CLUSTER, "trust": ""},
    "runtime-class": {**CLUSTER, "runtime_class": "GVISOR"},
    "gpu-shared": {**CLUSTER, "gpus": 1, "gpu_resource": "nvidia.com/gpu.shared"},
    "gpu-mig-shared": {**CLUSTER, "gpu_resource": "nvidia.com/mig-1g.10gb.shared"},
    "gpu-unknown": {**CLUSTER, "gpu_resource": "example.com/gpu"},
    "gateway-everyone": {**CLUSTER, "gateway": {"namespace": {}, "pods": {}}},
    "gateway-any-pod": {**CLUSTER, "gateway": {**PEER, "pods": {}}},
    "gateway-any-namespace": {**CLUSTER, "gateway": {**PEER, "namespace": {}}},
    "gateway-cidr": {**CLUSTER, "gateway": {"cidr": "10.0.0.0/24", "port": 1}},
    "gateway-label": {**CLUSTER, "gateway": {**PEER, "pods": {"a b": "c"}}},
    "gateway-label-value": {**CLUSTER, "gateway": {**PEER, "pods": {"a": 1}}},
    "no-store": {**CLUSTER, "store": {"peers": []}},
    "store-internet": {**CLUSTER, "store": {"peers": [{"cidr": "0.0.0.0/0", "port": 443}]}},
    "store-internet-6": {**CLUSTER, "store": {"peers": [{"cidr": "::/0", "port": 443}]}},
    "store-host-bits": {**CLUSTER, "store": {"peers": [{"cidr": "10.0.0.1/24", "port": 443}]}},
    "store-number": {**CLUSTER, "store": {"peers": [{"cidr": 167772160, "port": 443}]}},
    "store-port": {**CLUSTER, "store": {"peers": [{"cidr": "10.0.0.0/24", "port": 0}]}},
    "store-both": {**CLUSTER, "store": {"peers": [{"cidr": "10.0.0.0/24", "port": 1, **PEER}]}},
    "store-endpoint": {**CLUSTER, "store": {**CLUSTER["store"], "endpoint": "http://a/$(PORTCULLIS_KEYS)"}},
    "own-annotation": {**CLUSTER, "service_account_annotations": {"portcullis.dev/issued": "0"}},
    "annotation-line": {**CLUSTER, "service_account_annotations": {"a/b": "c\nd"}},
    "progress": {**CLUSTER, "progress_seconds": 5},
}


@pytest.mark.parametrize("cluster", BAD.values(), ids=BAD)
def test_refuses_settings_that_are_none(cluster):
    with pytest.raises(ConfigError):
        ServingSettings.parse(cluster)


@pytest.mark.parametrize(
    "image",
    ["server", "server:1.0", "server@sha256:1", f"server:1@sha512:{'1' * 64}", f"a b@sha256:{'1' * 64}", None, ""],
)
def test_refuses_an_image_without_a_digest(image):
    with pytest.raises(ConfigError, match="a tag can be moved"):
        ServingSettings.parse({**CLUSTER, "image": image})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda it: st.lists(it) | st.dictionaries(st.text(), it),
        max_leaves=8,
    ),
    st.sampled_from(sorted(EVERYTHING)),
)
def test_whatever_a_field_holds_is_read_or_refused(value, name):
    with contextlib.suppress(ConfigError):
        assert ServingSettings.parse({**EVERYTHING, name: value}).namespace


@pytest.mark.parametrize("name", ["", "Digits", "1digits", "a" * 49, "a.b", "default", "a-"])
def test_refuses_a_name_that_no_service_can_have(name):
    with pytest.raises(ConfigError, match="cannot be called"):
        rendered(name=name)
    with pytest.raises(ConfigError, match="cannot be called"):
        deployer_role(name, "serving")


@pytest.mark.parametrize(
    "uri",
    ["/tmp/sealed", "file:///tmp/sealed", "http://a/b", "s3://", "s3://a/$(HOME)", "s3://a b", "s3://a\n", "--output"],
)
def test_refuses_an_address_that_no_pod_could_read(uri):
    with pytest.raises(UsageError, match="a cluster's pods read"):
        rendered(uris={**URIS, "sealed": uri})


@pytest.mark.parametrize("digest", ["", "A" * 64, "a" * 63, "sha256:" + "a" * 64])
def test_refuses_a_subject_that_is_no_digest(digest):
    with pytest.raises(UsageError, match="SHA-256"):
        rendered(subject=Subject(**{**vars(SUBJECT), "sealed": digest}))


def test_the_deployer_may_touch_objects_of_its_own_name_only_and_read_no_secret():
    account, role, binding = deployer_role("digits", "serving")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "serving"}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    for rule in role["rules"]:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] == ["digits"]
        assert set(rule["verbs"]) <= {"create", "get", "patch", "delete"}
        assert "*" not in rule["apiGroups"] and "*" not in rule["resources"]
        forbidden = {"secrets", "pods", "pods/exec", "configmaps", "roles", "rolebindings", "events"}
        assert not forbidden & set(rule["resources"])
