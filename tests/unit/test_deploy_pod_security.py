import copy
import os
from pathlib import Path

import pytest
import yaml

from portcullis.deploy.pod_security import violations

# Kubernetes' own pods that must pass or fail each level; too many to copy here.
FIXTURES = Path(
    os.environ.get("PORTCULLIS_POD_SECURITY", Path(__file__).parents[3] / "shared" / "data" / "pod-security")
)

CONTAINER = {
    "name": "server",
    "image": "registry.example/server",
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


def pod(*, annotations=None, context=None, **spec):
    """A pod that passes; `context` changes its container's security context, None taking a field away."""
    container = copy.deepcopy(CONTAINER)
    container |= spec.pop("container", {})
    container["securityContext"] |= context or {}
    container["securityContext"] = {key: it for key, it in container["securityContext"].items() if it is not None}
    return {"metadata": {"annotations": annotations or {}}, "spec": {"containers": [container], **spec}}


@pytest.mark.external_data
@pytest.mark.parametrize("verdict", ["pass", "fail"])
@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_judges_every_pod_of_kubernetes_own_tests_as_kubernetes_does(level, verdict):
    paths = sorted((FIXTURES / level / verdict).glob("*.yaml"))
    if not paths:
        pytest.skip(f"no pods below {FIXTURES}; name them with PORTCULLIS_POD_SECURITY")
    assert len(paths) > 10
    passed = {path.name for path in paths if not violations(yaml.safe_load(path.read_text()), level)}
    assert passed == ({path.name for path in paths} if verdict == "pass" else set())


def test_a_hardened_pod_passes_both_levels():
    assert violations(pod(), "baseline") == violations(pod(), "restricted") == []


BASELINE = {
    "host-network": pod(hostNetwork=True),
    "host-pid": pod(hostPID=True),
    "host-path": pod(volumes=[{"name": "root", "hostPath": {"path": "/"}}]),
    "host-port": pod(container={"ports": [{"containerPort": 80, "hostPort": 80}]}),
    "privileged": pod(context={"privileged": True}),
    "capability": pod(context={"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}),
    "unconfined": pod(context={"seccompProfile": {"type": "Unconfined"}}),
    "apparmor": pod(annotations={"container.apparmor.security.beta.kubernetes.io/server": "unconfined"}),
    "selinux": pod(context={"seLinuxOptions": {"type": "spc_t"}}),
    "proc": pod(context={"procMount": "Unmasked"}),
    "sysctl": pod(securityContext={"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}),
    "windows-host": pod(securityContext={"windowsOptions": {"hostProcess": True}}),
    "probe-host": pod(container={"livenessProbe": {"httpGet": {"host": "10.0.0.1", "port": 80}}}),
    "ephemeral": pod(ephemeralContainers=[{"name": "debug", "securityContext": {"privileged": True}}]),
    "no-containers": {"spec": {}},
}
RESTRICTED = {
    "root-allowed": pod(context={"runAsNonRoot": None}),
    "root-meant": pod(context={"runAsNonRoot": False}),
    "user-0": pod(context={"runAsUser": 0}),
    "escalation": pod(context={"allowPrivilegeEscalation": None}),
    "capabilities-kept": pod(context={"capabilities": None}),
    "capability-added": pod(context={"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}),
    "no-seccomp": pod(context={"seccompProfile": None}),
    "other-volume": pod(volumes=[{"name": "share", "nfs": {"server": "a", "path": "/"}}]),
    "init-container": pod(initContainers=[{"name": "fetch"}]),
}


@pytest.mark.parametrize("template", BASELINE.values(), ids=BASELINE)
def test_baseline_refuses(template):
    assert violations(template, "baseline")
    assert violations(template, "restricted")


@pytest.mark.parametrize("template", RESTRICTED.values(), ids=RESTRICTED)
def test_restricted_refuses_more(template):
    assert not violations(template, "baseline")
    assert violations(template, "restricted")


def test_a_violation_names_the_container_and_the_rule():
    assert violations(pod(context={"privileged": True})) == ["container 'server' is privileged"]
