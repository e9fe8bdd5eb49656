"""How a model is served on a cluster: what a policy may say of it, read strictly.

Nothing is optional that decides who reaches the server or where it goes, and nothing means "everything" by being empty.
"""

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from portcullis.errors import ConfigError
from portcullis.kubernetes_names import IMAGE, LABEL, SUBDOMAIN
from portcullis.remote import ENDPOINT

PORT = 8080
ANNOTATION = "portcullis.dev/"

# A Service's name begins with a letter; longer ones leave no room for what controllers append to a pod's name.
_OBJECT_NAME = re.compile(r"[a-z]([a-z0-9-]{0,46}[a-z0-9])?")
_QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_CPU = re.compile(r"([1-9][0-9]{0,5})(m?)")
_MEMORY = re.compile(r"([1-9][0-9]{0,5})(Mi|Gi)")
_GPU = re.compile(r"(nvidia\.com/(gpu|mig-[1-9]g\.[1-9][0-9]{0,3}gb)|amd\.com/gpu)")
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_ANNOTATION_VALUE = re.compile(r"[\x21-\x7e]{1,1024}")


@dataclass(frozen=True)
class Peer:
    """The other end of an allowed connection: pods by their labels and their namespace's, or an address range.

    Attributes:
        namespace: Labels of the namespace; not empty unless `cidr` is given.
        pods: Labels of the pods; not empty unless `cidr` is given.
        cidr: An address range no wider than /8 (IPv6: /32).
        port: TCP port.
    """

    namespace: Mapping[str, str] = field(default_factory=dict)
    pods: Mapping[str, str] = field(default_factory=dict)
    cidr: str = ""
    port: int = PORT

    @property
    def selector(self) -> dict[str, Any]:
        """The peer as a NetworkPolicy names it."""
        if self.cidr:
            return {"ipBlock": {"cidr": self.cidr}}
        return {
            "namespaceSelector": {"matchLabels": dict(self.namespace)},
            "podSelector": {"matchLabels": dict(self.pods)},
        }


@dataclass(frozen=True)
class ObjectStore:
    """Where the sealed model, its admission and its evidence lie.

    Attributes:
        peers: Where the store is reached; at least one.
        endpoint: AWS_ENDPOINT_URL of a store that is not AWS's own, or empty.
        region: AWS_REGION, or empty.
        secret: Secret whose key `credentials` is an AWS credentials file; empty for the cloud's workload identity.
    """

    peers: tuple[Peer, ...]
    endpoint: str = ""
    region: str = ""
    secret: str = ""


@dataclass(frozen=True)
class ServingSettings:
    """How a model is served on a cluster.

    Attributes:
        namespace: An existing namespace, best one of its own.
        image: The server's image, `NAME@sha256:DIGEST`; a tag alone is refused, since it can be moved.
        gateway: The pods that clients come through; nothing else in the cluster reaches the server, but for `deployer`.
        store: The object store.
        deployer: The pods of the `deploy` step, which probe the server.
        replicas: Number of pods, 1 to 100.
        cpu: Request and limit of each, such as `500m` or `2`.
        memory: Likewise, such as `512Mi` or `2Gi`.
        secret: Secret with `serving.pem` and `serving.token`.
        trust: ConfigMap with the trust store.
        runtime_class: RuntimeClass such as `gvisor`, or empty for the cluster's own.
        gpus: GPUs per pod, 0 to 16.
        gpu_resource: What they are: whole GPUs or MIG slices. Shared ones are refused, for time-slicing does not keep
            one tenant's memory from another.
        service_account_annotations: What ties the service account to a cloud's workload identity.
        progress_seconds: How long a rollout may take, 10 to 3600.
    """

    namespace: str
    image: str
    gateway: Peer
    store: ObjectStore
    deployer: Peer
    replicas: int = 2
    cpu: str = "1"
    memory: str = "2Gi"
    secret: str = "portcullis-serving"  # noqa: S105 - a name
    trust: str = "portcullis-trust"
    runtime_class: str = ""
    gpus: int = 0
    gpu_resource: str = "nvidia.com/gpu"
    service_account_annotations: Mapping[str, str] = field(default_factory=dict)
    progress_seconds: int = 300

    @classmethod
    def parse(cls, cluster: Mapping[str, Any]) -> "ServingSettings":
        """Read the settings that a policy holds.

        Args:
            cluster: Plain JSON with the attributes' names. `gateway`, `store` and each of `store.peers` are mappings;
                `deployer` may be left out, for pods labelled `portcullis.dev/component: deploy` in `namespace`.

        Raises:
            ConfigError: A field is missing, unknown, or not what it must be.
        """
        known = _known(cluster, "cluster", required=("namespace", "image", "gateway", "store"), optional=_OPTIONAL)
        namespace = namespace_name(known["namespace"])
        default_deployer = {
            "namespace": {"kubernetes.io/metadata.name": namespace},
            "pods": {f"{ANNOTATION}component": "deploy"},
        }
        gpu_resource = known.get("gpu_resource", cls.gpu_resource)
        if str(gpu_resource).endswith(".shared"):
            raise ConfigError(
                f"cluster.gpu_resource {gpu_resource!r} is shared between tenants; name whole GPUs or MIG"
            )
        return cls(
            namespace=namespace,
            image=_image(known["image"]),
            gateway=_server_peer(known["gateway"], "cluster.gateway"),
            store=_store(known["store"]),
            deployer=_server_peer(known.get("deployer", default_deployer), "cluster.deployer"),
            replicas=_whole(known.get("replicas", cls.replicas), "cluster.replicas", 1, 100),
            cpu=_quantity(known.get("cpu", cls.cpu), "cluster.cpu", _CPU, {"m": 1000}),
            memory=_quantity(known.get("memory", cls.memory), "cluster.memory", _MEMORY, {"Mi": 1024, "Gi": 1024}),
            secret=_text(known.get("secret", cls.secret), "cluster.secret", SUBDOMAIN),
            trust=_text(known.get("trust", cls.trust), "cluster.trust", SUBDOMAIN),
            runtime_class=_optional_text(known, "runtime_class", "cluster", SUBDOMAIN),
            gpus=_whole(known.get("gpus", cls.gpus), "cluster.gpus", 0, 16),
            gpu_resource=_text(gpu_resource, "cluster.gpu_resource", _GPU),
            service_account_annotations=_pairs(
                known.get("service_account_annotations", {}),
                "cluster.service_account_annotations",
                _ANNOTATION_VALUE,
                own=False,
            ),
            progress_seconds=_whole(
                known.get("progress_seconds", cls.progress_seconds), "cluster.progress_seconds", 10, 3600
            ),
        )


_OPTIONAL = (
    *("deployer", "replicas", "cpu", "memory", "secret", "trust", "runtime_class", "gpus", "gpu_resource"),
    *("service_account_annotations", "progress_seconds"),
)


def require_server_name(name: str) -> None:
    """Refuse a policy's name that a server on a cluster cannot have.

    Raises:
        ConfigError: It is not 1 to 48 of a-z, 0-9 and hyphen that begin with a letter, or is `default`.
    """
    # Every namespace has a service account `default` already.
    if not _OBJECT_NAME.fullmatch(name) or name == "default":
        raise ConfigError(f"a server cannot be called {name!r}: 1 to 48 of a-z, 0-9 and '-', beginning with a letter")


def namespace_name(value: Any) -> str:
    """Return the name of a namespace.

    Raises:
        ConfigError: Kubernetes allows no such name.
    """
    return _text(value, "cluster.namespace", LABEL)


def _known(value: Any, what: str, *, required: Iterable[str] = (), optional: Iterable[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} must be a mapping")
    missing, unknown = sorted(set(required) - set(value)), sorted(map(str, set(value) - {*required, *optional}))
    if missing or unknown:
        raise ConfigError(f"{what} lacks {missing} or holds unknown fields {unknown}")
    return value


def _text(value: Any, what: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigError(f"{what} cannot be {value!r}")
    return value


def _optional_text(known: Mapping[str, Any], key: str, what: str, pattern: re.Pattern[str]) -> str:
    value = known.get(key, "")
    return "" if value == "" else _text(value, f"{what}.{key}", pattern)


def _image(value: Any) -> str:
    if not isinstance(value, str) or not IMAGE.fullmatch(value):
        raise ConfigError(f"cluster.image {value!r} is not NAME@sha256:DIGEST; a tag can be moved to another image")
    return value


def _whole(value: Any, what: str, low: int, high: int) -> int:
    # KFP hands numbers inside a mapping on as doubles.
    number = int(value) if type(value) is float and math.isfinite(value) and value.is_integer() else value
    if type(number) is not int or not low <= number <= high:
        raise ConfigError(f"{what} must be a whole number from {low} to {high}, not {value!r}")
    return number


def _quantity(value: Any, what: str, pattern: re.Pattern[str], carries: Mapping[str, int]) -> str:
    """Return a quantity in the one spelling that an API server stores."""
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(f"{what} cannot be {value!r}")
    number, unit = found.groups()
    if unit in carries and int(number) % carries[unit] == 0:
        raise ConfigError(f"{what} {value!r}: use the next larger unit, as the API server stores it")
    return found[0]


def _pairs(value: Any, what: str, pattern: re.Pattern[str], *, own: bool = True) -> Mapping[str, str]:
    for key, text in _known(value, what, optional=value if isinstance(value, Mapping) else ()).items():
        if not isinstance(key, str) or not _QUALIFIED.fullmatch(key) or (not own and key.startswith(ANNOTATION)):
            raise ConfigError(f"{what} cannot hold {key!r}")
        _text(text, f"{what}.{key}", pattern)
    return dict(value)


def _server_peer(value: Any, what: str) -> Peer:
    """Pods that may reach the server: both selectors must say something, for an empty one means everything."""
    known = _known(value, what, required=("namespace", "pods"))
    return _labelled(known, what, port=PORT)


def _labelled(known: Mapping[str, Any], what: str, *, port: int) -> Peer:
    namespace = _pairs(known["namespace"], f"{what}.namespace", _LABEL_VALUE)
    pods = _pairs(known["pods"], f"{what}.pods", _LABEL_VALUE)
    if not namespace or not pods:
        raise ConfigError(f"{what} names no labels of a namespace or of pods, which would mean all of them")
    return Peer(namespace=namespace, pods=pods, port=port)


def _store(value: Any) -> ObjectStore:
    known = _known(value, "cluster.store", required=("peers",), optional=("endpoint", "region", "secret"))
    peers = known["peers"]
    if not isinstance(peers, list) or not peers:
        raise ConfigError("cluster.store.peers must be a list of at least one")
    return ObjectStore(
        peers=tuple(_store_peer(peer, f"cluster.store.peers[{index}]") for index, peer in enumerate(peers)),
        endpoint=_optional_text(known, "endpoint", "cluster.store", ENDPOINT),
        region=_optional_text(known, "region", "cluster.store", _REGION),
        secret=_optional_text(known, "secret", "cluster.store", SUBDOMAIN),
    )


def _store_peer(value: Any, what: str) -> Peer:
    by_address = isinstance(value, Mapping) and "cidr" in value
    known = _known(value, what, required=("cidr", "port") if by_address else ("namespace", "pods", "port"))
    port = _whole(known["port"], f"{what}.port", 1, 65535)
    return Peer(cidr=_cidr(known["cidr"], what), port=port) if by_address else _labelled(known, what, port=port)


def _cidr(value: Any, what: str) -> str:
    try:
        network = ipaddress.ip_network(value) if isinstance(value, str) else None
    except ValueError:
        network = None
    if network is None or str(network) != value or network.prefixlen < (8 if network.version == 4 else 32):
        raise ConfigError(f"{what}.cidr {value!r} must be a network no wider than /8 (IPv6: /32), such as 10.2.0.0/24")
    return str(network)
