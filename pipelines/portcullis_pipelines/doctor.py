"""What a cluster must have before a run is submitted to it, looked at one by one.

A check passes, fails, or could not be made: no permission to look is no pass. Nothing is written anywhere. Of a Secret
only the names of its keys are kept; Kubernetes has no way to ask for these alone, so whoever runs this must be one who
may read them, and without that permission the check is not made.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from portcullis.evidence.policy import Policy
from portcullis.evidence.trust import TrustStore
from portcullis.files import write_bytes
from portcullis.harden import TRUST_CONFIG_MAP
from portcullis_pipelines.bootstrap import TRUST_FILES, Part, secrets_of
from portcullis_pipelines.inspection import Package
from portcullis_pipelines.submission import Server, is_loopback

OLDEST = (2, 16)  # the first back end that knows a task's security context
SECONDS = (10, 30)  # to connect, to answer

T = TypeVar("T")

_HALVES: tuple[Part, ...] = ("secure_training", "release")
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
        part: Which steps it holds; None for all of them, or for those of the package.
        package: The compiled pipeline, if there is one yet; what it mounts counts.
        service_account: What its pods run as, if that is said.
        trust: This machine's trust store, which the cluster's must equal and whose policy names the steps.
        policy_option: How `bootstrap` is told of that policy, such as `--config FILE`; empty for the reference data's.
    """

    namespace: str
    part: Part | None
    package: Package | None
    service_account: str | None
    trust: Path
    policy_option: str = ""


class _ForbiddenError(InconclusiveError):
    """The cluster knows who asks, and does not say."""


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

    def _ask(
        self, kind: str, name: str, take: Callable[[Any], T], method: str, *arguments: str, api: str = "CoreV1Api"
    ) -> T:
        try:
            import urllib3
            from kubernetes import client, config
        except ImportError as error:
            raise MissingDependencyError("looking needs kubernetes; run: pip install 'kfp-portcullis[kfp]'") from error
        what = f"{kind} {name}".strip() or "its version"
        try:
            if self._api is None:
                path = str(self._kubeconfig) if self._kubeconfig else None
                self._api = _identified(config.new_client_from_config(config_file=path))
            answer = getattr(getattr(client, api)(self._api), method)(*arguments, _request_timeout=SECONDS)
            # The client makes an empty object of whatever it is answered.
            sound = not kind or (answer.kind == kind and (not name or answer.metadata.name == name))
            taken = take(answer) if sound else None
        except (config.ConfigException, yaml.YAMLError) as error:
            raise InconclusiveError(f"no way to reach the cluster: {error}") from error
        except client.ApiException as error:
            if error.status == 404:
                raise UsageError(f"there is no {what}") from error
            if error.status == 403:
                raise _ForbiddenError(f"{what}: the cluster answers 403, who asks may not see it") from error
            why = "who asks is not known" if error.status == 401 else error.reason
            raise InconclusiveError(f"{what}: the cluster answers {error.status}, {why}") from error
        except urllib3.exceptions.HTTPError as error:
            raise InconclusiveError(f"{what}: the cluster does not answer ({type(error).__name__})") from error
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise InconclusiveError(f"{what}: the cluster does not answer as Kubernetes does") from error
        if taken is None:
            raise InconclusiveError(f"{what}: the cluster answers with something else")
        return taken

    def version(self) -> str:
        """Return the version of Kubernetes; that it may not be seen is an answer too."""

        def take(it: Any) -> str:
            if not isinstance(it.git_version, str):
                raise TypeError("no version")
            return it.git_version

        try:
            return self._ask("", "", take, "get_code", api="VersionApi")
        except _ForbiddenError:
            return "of a version that you may not see"

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

    def claim(self, namespace: str, name: str) -> str:
        """Return the phase of a PersistentVolumeClaim that is there."""

        def take(it: Any) -> str:
            return str(it.status.phase)

        return self._ask(
            "PersistentVolumeClaim", name, take, "read_namespaced_persistent_volume_claim", name, namespace
        )

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
        UsageError: The package holds other steps than those of the part that was named.
    """
    local, package = TrustStore.load(wanted.trust), wanted.package
    part = _part(wanted, local.policy)
    login = "look at --host, and at the token in KF_PIPELINES_TOKEN"
    upgrade = f"have Kubeflow Pipelines {OLDEST[0]}.{OLDEST[1]} or newer; its administrator knows which it is"
    command = f"portcullis bootstrap --namespace {wanted.namespace} --part {part} {wanted.policy_option}".strip()
    apply = f"{command}, and apply what it writes"
    by_hand = f"make it in the namespace {wanted.namespace}, which portcullis bootstrap does not"
    renew = f"{apply}, after deleting a Secret that holds other keys: it is immutable"
    checks = [
        _check("pipelines API", login, _reachable, server, wanted.namespace),
        _check("pipelines version", upgrade, _recent, server),
    ]
    if package:
        checks.append(_check("images", "name the release's by --image REFERENCE@sha256:…", _pinned, package))
    ours = secrets_of(local.policy, "all")
    asked: list[_Question] = [
        (
            f"Secret {name or _UNTOLD}",
            renew if alone else f"{by_hand}{', with the keys ' if keys else ''}{', '.join(keys)}",
            *(_holds, wanted.namespace, name, keys, alone),
        )
        for name, keys, alone in _secrets(package, ours, secrets_of(local.policy, part))
    ]
    asked += [
        (f"ConfigMap {name or _UNTOLD}", apply, _same_trust, wanted.namespace, name, local)
        for name in (_named(it.config_maps for it in package.tasks) if package else [TRUST_CONFIG_MAP])
    ]
    if package:
        asked += [
            (f"PersistentVolumeClaim {name or _UNTOLD}", by_hand, _claimed, wanted.namespace, name)
            for name in _named(it.claims for it in package.tasks)
        ]
        asked.append(("GPUs", "add such a node, or compile with --gpu 0", _enough_gpus, package))
    if account := wanted.service_account:
        asked.append((f"ServiceAccount {account}", apply, _there, wanted.namespace, account))
    return checks + _of_cluster(cluster, asked)


# Name, remedy, what looks at the cluster, and what for.
_Question = tuple[Any, ...]


def _of_cluster(cluster: Cluster, asked: Sequence[_Question]) -> list[Check]:
    """Look at a cluster, if it answers at all: one check then stands for all that would say the same."""
    reached = _check("cluster reachable", "", _answers, cluster)
    if reached.passed:
        return [reached, *(_check(name, remedy, look, cluster, *rest) for name, remedy, look, *rest in asked)]
    hidden = ", ".join(name for name, *_ in asked)
    return [replace(reached, found=f"{reached.found}; so none of these could be looked at: {hidden}")]


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


def _answers(cluster: Cluster) -> str:
    return f"Kubernetes {cluster.version()[:80]}"


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


def _part(wanted: Wanted, policy: Policy) -> Part:
    """Return the part that was named, or the one whose Secrets the package reads."""
    if wanted.package is None:
        return wanted.part or "all"
    read = {name for task in wanted.package.tasks for name in task.secrets}
    parts: list[Part] = [it for it in _HALVES if read & secrets_of(policy, it).keys()]
    part = parts[0] if len(parts) == 1 else "all"
    if wanted.part not in (None, part):
        raise UsageError(f"the package holds steps of {part}, not of {wanted.part}; leave out --part")
    return part


def _secrets(
    package: Package | None, ours: Mapping[str, tuple[str, ...]], of_part: Mapping[str, tuple[str, ...]]
) -> list[tuple[str | None, tuple[str, ...], bool]]:
    """Return name and keys of each Secret that is needed, and whether it must hold nothing else."""
    if package is None:
        return [(name, keys, True) for name, keys in of_part.items()]
    read: dict[str | None, set[str]] = {}
    for task in package.tasks:
        for name, keys in task.secrets.items():
            read.setdefault(name, set(ours.get(name or "", ()))).update(keys)
    return [(name, tuple(sorted(read[name])), name in ours) for name in sorted(read, key=str)]


def _named(names: Iterable[tuple[str | None, ...]]) -> list[str | None]:
    return sorted({name for it in names for name in it}, key=str)


def _holds(cluster: Cluster, namespace: str, name: str | None, keys: tuple[str, ...], alone: bool) -> str:  # noqa: FBT001
    found = cluster.secret_keys(namespace, _told(name))
    if missing := [key for key in keys if key not in found]:
        raise UsageError(f"it lacks {', '.join(missing)}")
    if more := sorted(found - set(keys)) if alone else []:
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


def _claimed(cluster: Cluster, namespace: str, name: str | None) -> str:
    phase = cluster.claim(namespace, _told(name))
    if phase == "Lost":
        raise UsageError("its volume is lost")
    return f"exists, {phase[:80]}"  # one that waits for its first pod is Pending


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
