"""What a cluster must have before a run is submitted to it, looked at one by one.

A check passes, fails, or could not be made: no permission to look is no pass. Nothing is written anywhere. Of a Secret
only the names of its keys are kept; Kubernetes has no way to ask for these alone, so whoever runs this must be one who
may read them, and without that permission the check is not made.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml

from portcullis.errors import (
    InconclusiveError,
    MissingDependencyError,
    RefusedError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence.trust import TrustStore
from portcullis.files import write_bytes
from portcullis.harden import TRUST_CONFIG_MAP
from portcullis_pipelines.bootstrap import TRUST_FILES, Part, secrets_of
from portcullis_pipelines.inspection import Package
from portcullis_pipelines.submission import Server, is_loopback

OLDEST = (2, 16)  # the first back end that knows a task's security context
SECONDS = (10, 30)  # to connect, to answer

T = TypeVar("T")

_UNSEEN = "look by other means, or look to --host, --kubeconfig and your permissions"
_UNTOLD = "that the run names"
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(\..*)?")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: Whether it is as it must be; None when that could not be seen.
        found: What was found.
        remedy: What to do; empty when it passed.
    """

    name: str
    passed: bool | None
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a run will need.

    Attributes:
        namespace: Where its pods run.
        part: Which steps it holds; what a package mounts counts instead, where there is one.
        package: The compiled pipeline, if there is one yet.
        service_account: What its pods run as, if that is said.
        trust: This machine's trust store, which the cluster's must equal.
    """

    namespace: str
    part: Part
    package: Package | None
    service_account: str | None
    trust: Path


class Cluster:
    """The few questions that are put to a Kubernetes API server.

    Raises, from every method:
        UsageError: What was asked for is not there.
        InconclusiveError: It does not answer, or may not be asked.
    """

    def __init__(self, kubeconfig: Path | None) -> None:
        """Read how to reach the cluster.

        Args:
            kubeconfig: The file; by default KUBECONFIG's, else ~/.kube/config.
        """
        self._api: Any = None
        self._kubeconfig = kubeconfig

    def _ask(self, kind: str, name: str, take: Callable[[Any], T], method: str, *arguments: str) -> T:
        try:
            import urllib3
            from kubernetes import client, config
        except ImportError as error:
            raise MissingDependencyError("looking needs kubernetes; run: pip install 'kfp-portcullis[kfp]'") from error
        what = f"{kind} {name}".strip()
        try:
            if self._api is None:
                path = str(self._kubeconfig) if self._kubeconfig else None
                self._api = client.CoreV1Api(_identified(config.new_client_from_config(config_file=path)))
            answer = getattr(self._api, method)(*arguments, _request_timeout=SECONDS)
            # The client makes an empty object of whatever it is answered.
            sound = answer.kind == kind and (not name or answer.metadata.name == name)
            taken = take(answer) if sound else None
        except (config.ConfigException, yaml.YAMLError) as error:
            raise InconclusiveError(f"no way to reach the cluster: {error}") from error
        except client.ApiException as error:
            if error.status == 404:
                raise UsageError(f"there is no {what}") from error
            why = {401: "who asks is not known", 403: "who asks may not see it"}.get(error.status, error.reason)
            raise InconclusiveError(f"{what}: the cluster answers {error.status}, {why}") from error
        except urllib3.exceptions.HTTPError as error:
            raise InconclusiveError(f"{what}: the cluster does not answer ({type(error).__name__})") from error
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise InconclusiveError(f"{what}: the cluster does not answer as Kubernetes does") from error
        if taken is None:
            raise InconclusiveError(f"{what}: the cluster answers with something else")
        return taken

    def secret_keys(self, namespace: str, name: str) -> frozenset[str]:
        """Return the names of a Secret's keys; their values go no further than this."""

        def take(it: Any) -> frozenset[str]:
            return frozenset(it.data or ())

        return self._ask("Secret", name, take, "read_namespaced_secret", name, namespace)

    def config_map(self, namespace: str, name: str) -> Mapping[str, str]:
        """Return the text data of a ConfigMap."""

        def take(it: Any) -> Mapping[str, str]:
            return dict(it.data or {})

        return self._ask("ConfigMap", name, take, "read_namespaced_config_map", name, namespace)

    def service_account(self, namespace: str, name: str) -> str:
        """Return the name of a service account that is there."""

        def take(it: Any) -> str:
            return str(it.metadata.name)

        return self._ask("ServiceAccount", name, take, "read_namespaced_service_account", name, namespace)

    def allocatable(self, resource: str) -> list[str]:
        """Return how much of a resource each node that takes pods offers, as Kubernetes spells it."""

        def take(nodes: Any) -> list[str]:
            return [(it.status.allocatable or {}).get(resource, "0") for it in nodes.items if not it.spec.unschedulable]

        return self._ask("NodeList", "", take, "list_node")


def _identified(api: Any) -> Any:
    """Refuse to send a token to a server whose identity is not checked, unless it is on this machine.

    Raises:
        InconclusiveError: It would go there.
    """
    url = urlsplit(api.configuration.host)
    near = url.scheme == "http" and is_loopback(url.hostname or "")
    if not near and not (url.scheme == "https" and api.configuration.verify_ssl):
        raise InconclusiveError(f"the identity of {url.hostname} would not be checked; use https with its certificate")
    return api


def examine(server: Server, cluster: Cluster, wanted: Wanted) -> list[Check]:
    """Make every check.

    Args:
        server: Kubeflow Pipelines.
        cluster: The Kubernetes cluster.
        wanted: What the run will need.

    Returns:
        The checks in order.

    Raises:
        TrustStoreError: The trust store of this machine is missing.
        PolicyError: It does not verify.
    """
    local, package = TrustStore.load(wanted.trust), wanted.package
    login = "look at --host, and at the token in KF_PIPELINES_TOKEN"
    upgrade = f"have Kubeflow Pipelines {OLDEST[0]}.{OLDEST[1]} or newer; its administrator knows which it is"
    apply = f"portcullis bootstrap --namespace {wanted.namespace} --part {wanted.part}, and apply what it writes"
    checks = [
        _check("pipelines API", login, _reachable, server, wanted.namespace),
        _check("pipelines version", upgrade, _recent, server),
    ]
    checks += [
        _check(f"Secret {name or _UNTOLD}", apply, _holds, cluster, wanted.namespace, name, keys)
        for name, keys in _secrets(wanted)
    ]
    checks += [
        _check(f"ConfigMap {name or _UNTOLD}", apply, _same_trust, cluster, wanted.namespace, name, local)
        for name in _trust_stores(wanted)
    ]
    if account := wanted.service_account:
        checks.append(_check(f"ServiceAccount {account}", apply, _there, cluster, wanted.namespace, account))
    if package:
        checks.append(_check("images", "compile with --image REFERENCE@sha256:…", _pinned, package))
        checks.append(_check("GPUs", "add such a node, or compile with --gpu 0", _enough_gpus, cluster, package))
    return checks


def _check(name: str, remedy: str, look: Callable[..., str], *arguments: Any) -> Check:
    try:
        return Check(name, passed=True, found=look(*arguments))
    except InconclusiveError as error:
        return Check(name, passed=None, found=str(error), remedy=_UNSEEN)
    except (RefusedError, UsageError) as error:
        return Check(name, passed=False, found=str(error), remedy=remedy)


def _reachable(server: Server, namespace: str) -> str:
    shared = server.multi_user()
    server.require_access(namespace if shared else "")
    return f"answers and knows you, {'for namespace ' + namespace if shared else 'with one namespace for all'}"


def _recent(server: Server) -> str:
    version = server.version()
    match = _VERSION.fullmatch(version)
    if match is None:
        raise InconclusiveError(f"the server calls its version {version[:80]!r}")
    release = int(match[1]), int(match[2])
    if release[0] < OLDEST[0]:
        raise UsageError(f"version {version} does not run KFP v2 pipelines")
    if release < OLDEST:
        raise InconclusiveError(f"version {version} may not know all settings of the package")
    return version


def _secrets(wanted: Wanted) -> list[tuple[str | None, tuple[str, ...]]]:
    if wanted.package is None:
        return [*secrets_of(wanted.part).items()]
    named = {name for task in wanted.package.tasks for name in task.secrets}
    known = secrets_of("all")
    return [(name, known.get(name or "", ())) for name in sorted(named, key=str)]


def _trust_stores(wanted: Wanted) -> list[str | None]:
    if wanted.package is None:
        return [TRUST_CONFIG_MAP]
    return sorted({name for task in wanted.package.tasks for name in task.config_maps}, key=str)


def _holds(cluster: Cluster, namespace: str, name: str | None, keys: tuple[str, ...]) -> str:
    found = cluster.secret_keys(namespace, _told(name))
    if missing := [key for key in keys if key not in found]:
        raise UsageError(f"it lacks {', '.join(missing)}")
    if more := sorted(found - set(keys)) if keys else []:
        raise UsageError(f"it holds {', '.join(more)}, which is not this step's to have")
    return f"holds {', '.join(sorted(found)) or 'nothing'}"


def _same_trust(cluster: Cluster, namespace: str, name: str | None, local: TrustStore) -> str:
    data = cluster.config_map(namespace, _told(name))
    with tempfile.TemporaryDirectory(prefix="portcullis-") as folder:
        for file in TRUST_FILES:
            if file in data:
                write_bytes(Path(folder) / file, data[file].encode())
        try:
            theirs = TrustStore.load(Path(folder))
        except TrustStoreError as error:
            raise UsageError(str(error).replace(folder, "it")) from error
    if theirs.owner.keyid != local.owner.keyid:
        raise UsageError("its policy is signed by another owner than that of this machine's trust store")
    if theirs.policy_bytes != local.policy_bytes:
        raise UsageError(
            f"it holds policy {theirs.policy.name} version {theirs.policy.version}, and this machine's trust store "
            f"{local.policy.name} version {local.policy.version}, or another of that version"
        )
    if theirs.revocations != local.revocations:
        raise UsageError(
            f"its revocation list is version {theirs.revocations.version}, not {local.revocations.version}"
        )
    return f"policy {theirs.policy.name} version {theirs.policy.version} for {theirs.policy.environment}"


def _there(cluster: Cluster, namespace: str, account: str) -> str:
    cluster.service_account(namespace, account)
    return "exists; whether Kubeflow Pipelines may run pods as it is not looked at"


def _pinned(package: Package) -> str:
    package.require_pinned()
    return f"{len(set(package.images.values()))} by digest"


def _enough_gpus(cluster: Cluster, package: Package) -> str:
    asked: dict[str, int] = {}
    for task in package.tasks:
        if task.gpus != "0":
            if task.gpus is None or not task.gpu_resource or not re.fullmatch("[0-9]{1,3}", task.gpus):
                raise InconclusiveError(f"how many GPUs {task.path} asks for is told by the run")
            asked[task.gpu_resource] = max(asked.get(task.gpu_resource, 0), int(task.gpus))
    for resource, count in asked.items():
        offered = cluster.allocatable(resource)
        if not all(re.fullmatch("[0-9]{1,9}", it) for it in offered):
            raise InconclusiveError(f"a node offers {resource} in a quantity that is no whole number")
        if not any(int(it) >= count for it in offered):
            raise UsageError(f"no node offers {count} x {resource} for one task")
    return package.gpu_line()


def _told(name: str | None) -> str:
    if name is None:
        raise InconclusiveError("its name is told by the run")
    return name
