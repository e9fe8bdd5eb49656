"""What is deployed to Kubernetes, as plain objects: one server, locked down, and what may reach it.

Everything is spelled out, defaults too, and in the spelling in which an API server stores it. So what a cluster holds
can be compared with what was rendered, field by field, and whatever was added or changed on the way shows
(`portcullis.deploy.cluster`). Nothing here is a secret: keys and trust store are named, never held.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from portcullis.deploy.settings import ANNOTATION, PORT, ServingSettings, namespace_name, require_server_name
from portcullis.digest import canonical_json, is_digest, sha256
from portcullis.errors import UsageError
from portcullis.evidence.step import KEYS_MOUNT
from portcullis.evidence.trust import TRUST_MOUNT

Object = dict[str, Any]

USER = 10001
MANAGER = "portcullis"
DEPLOYER = "portcullis-deploy"
MANAGED_BY = {"app.kubernetes.io/managed-by": MANAGER}
MANIFESTS = f"{ANNOTATION}manifests"

STORE_MOUNT = "/var/run/portcullis/store"
BUNDLE_MOUNT = "/bundle"
SCRATCH_MOUNT = "/tmp"  # noqa: S108 - a volume of the pod's own, in memory

# The kubelet expands $(NAME) in arguments, so a dollar sign has no place in one.
_URI = re.compile(r"(s3|gs|minio)://[A-Za-z0-9][A-Za-z0-9._~%/:@+=,-]{1,2000}")


@dataclass(frozen=True)
class Subject:
    """What is deployed, for the objects' annotations: the model, its admission, and the versions it was judged by.

    Attributes:
        content: SHA-256 of the model's content.
        sealed: SHA-256 of the sealed model.
        admission: SHA-256 of the admission's envelope.
        issued: When it was admitted, milliseconds since the epoch; only grows.
        policy_version: Version of the policy.
        revocations_version: Version of the revocation list.
    """

    content: str
    sealed: str
    admission: str
    issued: int
    policy_version: int
    revocations_version: int


def render(settings: ServingSettings, *, name: str, subject: Subject, uris: Mapping[str, str]) -> list[Object]:
    """Return the objects that serve one admitted model, in the order in which they are applied.

    Args:
        settings: How it is served.
        name: The objects' name: lower-case letters, digits and hyphens, beginning with a letter, at most 48.
        subject: What is deployed.
        uris: Where the init container finds `sealed`, `admission` and `evidence`: s3://, gs:// or minio://.

    Raises:
        ConfigError: The name is none that a Service can have.
        UsageError: A URI is not one that a pod could read.
    """
    require_server_name(name)
    if set(uris) != {"sealed", "admission", "evidence"} or not all(_URI.fullmatch(uri) for uri in uris.values()):
        raise UsageError(f"a cluster's pods read s3://, gs:// or minio:// addresses, not {sorted(uris.values())}")
    digests = {"model": subject.content, "sealed": subject.sealed, "admission": subject.admission}
    if not all(map(is_digest, digests.values())):
        raise UsageError("model, sealed model and admission are named by their SHA-256")
    shipped = {f"{ANNOTATION}{key}": value for key, value in digests.items()}
    annotations = {
        **shipped,
        f"{ANNOTATION}issued": str(subject.issued),
        f"{ANNOTATION}policy-version": str(subject.policy_version),
        f"{ANNOTATION}revocations-version": str(subject.revocations_version),
    }
    selector = {"app.kubernetes.io/name": "portcullis-server", "app.kubernetes.io/instance": name}
    labels = {
        **selector,
        **MANAGED_BY,
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/part-of": "portcullis",
    }

    def made(api_version: str, kind: str, extra: Mapping[str, str] | None = None, **content: Any) -> Object:
        metadata = {
            "name": name,
            "namespace": settings.namespace,
            "labels": dict(labels),
            "annotations": {**annotations, **(extra or {})},
        }
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}

    pod = {
        "metadata": {"labels": dict(labels), "annotations": shipped},
        "spec": _pod(settings, name=name, selector=selector, uris=uris),
    }
    objects = [
        made("v1", "ServiceAccount", settings.service_account_annotations, automountServiceAccountToken=False),
        made("networking.k8s.io/v1", "NetworkPolicy", spec=_network(settings, selector)),
        made("v1", "Service", spec=_service(selector)),
        made(
            "policy/v1",
            "PodDisruptionBudget",
            spec={"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}},
        ),
        made("apps/v1", "Deployment", spec=_deployment(settings, selector, pod)),
    ]
    digest = manifests_digest(objects)
    for it in objects:
        it["metadata"]["annotations"][MANIFESTS] = digest
    return objects


def _deployment(settings: ServingSettings, selector: Mapping[str, str], pod: Object) -> Object:
    return {
        "replicas": settings.replicas,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": settings.progress_seconds,
        "selector": {"matchLabels": dict(selector)},
        # A pod that is up is taken away only after its successor is ready.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": pod,
    }


def _pod(settings: ServingSettings, *, name: str, selector: Mapping[str, str], uris: Mapping[str, str]) -> Object:
    volumes = [
        {"name": "bundle", "emptyDir": {"sizeLimit": "4Gi"}},  # holds what is sealed or signed, never a plaintext
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        {"name": "keys", "secret": {"secretName": settings.secret, "optional": False, "defaultMode": 0o440}},
        {"name": "trust", "configMap": {"name": settings.trust, "optional": False, "defaultMode": 0o444}},
    ]
    if settings.store.secret:
        secret = {"secretName": settings.store.secret, "optional": False, "defaultMode": 0o440}
        volumes.append({"name": "store", "secret": secret})
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"runtimeClassName": settings.runtime_class} if settings.runtime_class else {}),
        "initContainers": [_fetch(settings, uris)],
        "containers": [_server(settings)],
        "volumes": volumes,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(selector)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
    }


def _fetch(settings: ServingSettings, uris: Mapping[str, str]) -> Object:
    store = settings.store
    environment = {"AWS_ENDPOINT_URL": store.endpoint, "AWS_REGION": store.region}
    mounts = [_mount("bundle", BUNDLE_MOUNT), _mount("scratch", SCRATCH_MOUNT)]
    if store.secret:
        environment["AWS_SHARED_CREDENTIALS_FILE"] = f"{STORE_MOUNT}/credentials"
        mounts.append(_mount("store", STORE_MOUNT, read_only=True))
    arguments = [part for key in ("sealed", "admission", "evidence") for part in (f"--{key}", uris[key])]
    return _container(
        settings,
        "fetch",
        command=["python", "-m", "portcullis.serving.fetch"],
        args=[*arguments, "--output", BUNDLE_MOUNT],
        environment={key: value for key, value in environment.items() if value},
        mounts=mounts,
        resources={"cpu": settings.cpu, "memory": settings.memory},
    )


def _server(settings: ServingSettings) -> Object:
    files = {"sealed": "model", "admission": "admission.json", "evidence": "evidence.intoto.jsonl"}
    arguments = [part for key, file in files.items() for part in (f"--{key}", f"{BUNDLE_MOUNT}/{file}")]
    resources = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus:
        resources[settings.gpu_resource] = str(settings.gpus)
    server = _container(
        settings,
        "server",
        command=["python", "-m", "portcullis.serving"],
        args=[*arguments, "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104 - the pod's own network
        environment={
            "PORTCULLIS_KEYS": f"file:{KEYS_MOUNT}",
            "PORTCULLIS_TRUST": TRUST_MOUNT,
            "PORTCULLIS_STATE": f"{SCRATCH_MOUNT}/state",
        },
        mounts=[
            _mount("bundle", BUNDLE_MOUNT, read_only=True),
            _mount("scratch", SCRATCH_MOUNT),
            _mount("keys", KEYS_MOUNT, read_only=True),
            _mount("trust", TRUST_MOUNT, read_only=True),
        ],
        resources=resources,
    )
    return {
        **server,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # It listens only once the model is open, so until then nothing answers; loading PyTorch takes seconds.
        "startupProbe": _probe("ready", period=2, failures=60),
        "readinessProbe": _probe("ready", period=5, failures=2),
        "livenessProbe": _probe("live", period=10, failures=3),
    }


def _container(
    settings: ServingSettings,
    name: str,
    *,
    command: Sequence[str],
    args: Sequence[str],
    environment: Mapping[str, str],
    mounts: list[Object],
    resources: Mapping[str, str],
) -> Object:
    made = {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": "Always",
        "command": list(command),
        "args": list(args),
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts,
    }
    if environment:
        made["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    return made


def _mount(name: str, path: str, *, read_only: bool = False) -> Object:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _probe(which: str, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": f"/v2/health/{which}", "port": "http", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "successThreshold": 1,
        "failureThreshold": failures,
    }


def _service(selector: Mapping[str, str]) -> Object:
    return {
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "selector": dict(selector),
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}],
    }


def _network(settings: ServingSettings, selector: Mapping[str, str]) -> Object:
    """Beside a namespace that denies everything: who may ask the server, and where it may go itself."""
    dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {
        "podSelector": {"matchLabels": dict(selector)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [settings.gateway.selector, settings.deployer.selector],
                "ports": [{"port": PORT, "protocol": "TCP"}],
            }
        ],
        "egress": [
            {"to": [dns], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
            *(
                {"to": [peer.selector], "ports": [{"port": peer.port, "protocol": "TCP"}]}
                for peer in settings.store.peers
            ),
        ],
    }


def manifests_digest(objects: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of the objects as canonical JSON, without the annotation that holds this very digest."""
    return sha256(canonical_json([_without_digest(it) for it in objects]))


def _without_digest(it: Mapping[str, Any]) -> Object:
    metadata = it["metadata"]
    annotations = {key: value for key, value in metadata["annotations"].items() if key != MANIFESTS}
    return {**it, "metadata": {**metadata, "annotations": annotations}}


def to_yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    """Write the objects as one YAML stream; the same objects are the same text."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, explicit_start=True, sort_keys=True, width=110))


class _Dumper(yaml.SafeDumper):
    """Never writes an alias, so that each object reads as it means."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


# What the deploying service account may do, one line per resource: API group, resource.
DEPLOYED = (
    ("", "serviceaccounts"),
    ("networking.k8s.io", "networkpolicies"),
    ("", "services"),
    ("policy", "poddisruptionbudgets"),
    ("apps", "deployments"),
)


def deployer_role(name: str, namespace: str) -> list[Object]:
    """Return the service account that runs `deploy` in the server's namespace, its Role and their binding.

    It may create objects of the five kinds (Kubernetes cannot restrict creation to a name), and read, change and delete
    those called `name` alone. It may read no secret and no pod, run nothing in one, and grant nothing.

    Args:
        name: The model's name.
        namespace: The server's namespace.

    Raises:
        ConfigError: A name is none that Kubernetes allows.
    """
    require_server_name(name)
    namespace_name(namespace)

    def made(api_version: str, kind: str, **content: Any) -> Object:
        labels = {**MANAGED_BY, "app.kubernetes.io/part-of": "portcullis"}
        metadata = {"name": f"{DEPLOYER}-{name}", "namespace": namespace, "labels": labels}
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}

    rules = []
    for group in dict.fromkeys(group for group, _ in DEPLOYED):
        resources = [resource for owner, resource in DEPLOYED if owner == group]
        rules += [
            {"apiGroups": [group], "resources": resources, "verbs": ["create"]},
            {
                "apiGroups": [group],
                "resources": resources,
                "resourceNames": [name],
                "verbs": ["get", "patch", "delete"],
            },
        ]
    account = {"kind": "ServiceAccount", "name": f"{DEPLOYER}-{name}", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": f"{DEPLOYER}-{name}"}
    return [
        made("v1", "ServiceAccount"),
        made("rbac.authorization.k8s.io/v1", "Role", rules=rules),
        made("rbac.authorization.k8s.io/v1", "RoleBinding", roleRef=role, subjects=[account]),
    ]
