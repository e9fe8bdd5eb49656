"""Applying manifests to a Kubernetes cluster: nothing is forced, nothing is overlooked, a failure is rolled back.

1. The pods are judged by Pod Security `restricted`, before the cluster is asked anything.
2. What lies there is read. It must be Portcullis's own, and not newer than what is to be applied.
3. Every object is applied as a dry run: what the cluster would refuse, or store otherwise than rendered, ends it here.
4. What would change is applied, server-side and never by force: a field that another manager owns is a conflict. So is
   an object that is no longer the one that was read: of two deployments at once, the older does not win by being late.
5. The rollout is awaited, every object is read back and compared, and once more when the caller is done.
6. When anything fails from 4 on, what was there before is applied again, and what was not there is deleted; but not
   what someone else deployed meanwhile.

Objects are addressed by fixed paths, so nothing is discovered and no list of a cluster's resources is cached on disk.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from portcullis.deploy.manifests import MANAGED_BY, MANAGER, MANIFESTS, Object, manifests_digest
from portcullis.deploy.pod_security import violations
from portcullis.errors import AdmissionError, DeploymentError, PolicyError, PortcullisError
from portcullis.kubernetes_api import UNREADABLE, UnavailableError, api_client, ask, one_line

GRACE_SECONDS = 30.0  # beyond the rollout's own deadline, for the cluster to say that it has passed
WRITE_ATTEMPTS = 5  # when only the status of what is written over has moved on

_Written = TypeVar("_Written")

_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_PATHS = {
    ("v1", "ServiceAccount"): "/api/v1/namespaces/{}/serviceaccounts/{}",
    ("networking.k8s.io/v1", "NetworkPolicy"): "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/{}",
    ("v1", "Service"): "/api/v1/namespaces/{}/services/{}",
    ("policy/v1", "PodDisruptionBudget"): "/apis/policy/v1/namespaces/{}/poddisruptionbudgets/{}",
    ("apps/v1", "Deployment"): "/apis/apps/v1/namespaces/{}/deployments/{}",
}
# What an API server or its controllers add to an object beside what was applied. An administrator gives a service
# account the credentials to pull images with. Labels and annotations of the object itself, not of its pods, are free.
_ASSIGNED = {
    *("metadata.uid", "metadata.resourceVersion", "metadata.generation", "metadata.creationTimestamp"),
    *("metadata.managedFields", "metadata.selfLink", "status"),
    *("ServiceAccount.secrets", "ServiceAccount.imagePullSecrets"),
    *("Service.spec.clusterIP", "Service.spec.clusterIPs", "Service.spec.ipFamilies", "Service.spec.ipFamilyPolicy"),
}
_ASSIGNED_VALUES = {
    "Service.spec.internalTrafficPolicy": "Cluster",
    "Deployment.spec.template.metadata.creationTimestamp": None,
}
_SERVICE_ACCOUNT = "Deployment.spec.template.spec.serviceAccount"  # the old name of serviceAccountName
_FREE = ("metadata.labels", "metadata.annotations")
_NOT_FREE = "ServiceAccount.metadata.annotations"  # they can lend the pods an identity at a cloud
_VERSIONS = {
    "portcullis.dev/policy-version": (PolicyError, "policy"),
    "portcullis.dev/revocations-version": (PolicyError, "revocation list"),
    "portcullis.dev/issued": (AdmissionError, "admission"),
}
_VERSION = re.compile("[0-9]{1,18}")
# An object that is to be created is applied with a version that none has: etcd is at 1 before anything is stored. Over
# one that exists after all it is a conflict (for a Service from Kubernetes 1.23 on, see kubernetes#106745).
_NO_VERSION = "1"
_COUNTS = ("replicas", "updatedReplicas", "availableReplicas")
_FAILURES = {("ReplicaFailure", "True"), ("Progressing", "False")}


class _ChangedError(DeploymentError):
    """Nothing was written: the object is not the one that was read."""


@dataclass(frozen=True)
class Cluster:
    """An API server, asked for single objects.

    Attributes:
        client: A configured `kubernetes.client.ApiClient`.
        poll_seconds: Pause between two looks at a rollout.
    """

    client: Any
    poll_seconds: float = 1.0

    def read(self, it: Object) -> Object | None:
        """Return the live object of this kind and name; None when there is none.

        Raises:
            DeploymentError: The API server refused or did not answer.
        """
        status, answer = self._ask("GET", _path(it))
        if status == 404 and answer.get("reason") == "NotFound":
            return None
        live = _object(it, _accepted("reading", it, status, answer))
        if _identity(live) != _identity(it):
            raise DeploymentError(f"reading {_named(it)}: the API server answered with something else")
        if not all(isinstance(live["metadata"].get(key), str) for key in ("uid", "resourceVersion")):
            raise DeploymentError(f"reading {_named(it)}: the API server does not say which version it is")
        return live

    def apply(self, it: Object, over: Object | None = None, *, dry_run: bool = False) -> Object:
        """Apply one object server-side, without force, and return what the server stores (would store).

        Args:
            it: The object.
            over: The very version that it goes over, as read; None when there is none. A dry run goes over any.
            dry_run: Store nothing.

        Raises:
            DeploymentError: Refused, in conflict with another manager or a change since, or not answered.
        """
        query = f"fieldManager={MANAGER}&force=false" + ("&dryRun=All" if dry_run else "")
        read = {"resourceVersion": _NO_VERSION} if over is None else _version(over)
        body = it if dry_run else {**it, "metadata": {**it["metadata"], **read}}
        status, answer = self._ask("PATCH", f"{_path(it)}?{query}", body=body, content_type=_APPLY)
        return _object(it, _accepted("applying", it, status, answer))

    def delete(self, it: Object, live: Object) -> None:
        """Delete this very version of an object, as read: one that came after it stays.

        Raises:
            DeploymentError: Refused, changed since, or not answered.
        """
        body = {"preconditions": _version(live), "propagationPolicy": "Background"}
        status, answer = self._ask("DELETE", _path(it), body=body, content_type="application/json")
        if status != 404:
            _accepted("deleting", it, status, answer)

    def _ask(
        self, method: str, path: str, *, body: Object | None = None, content_type: str = ""
    ) -> tuple[int, Mapping[str, Any]]:
        return ask(self.client, method, path, body=body, content_type=content_type)


def connect() -> Cluster:
    """Connect to the cluster that this process runs in, else to the one that the kubeconfig (KUBECONFIG) names.

    Raises:
        MissingDependencyError: The Kubernetes client is not installed.
        UsageError: There is no cluster, or its identity would not be checked.
    """
    return Cluster(api_client())


@dataclass(frozen=True)
class Applied:
    """What a rollout that stands came to.

    Attributes:
        changes: How many objects were created or changed; 0 when everything was there already.
        replicas: How many pods serve.
    """

    changes: int
    replicas: int


@contextlib.contextmanager
def rolled_out(cluster: Cluster, objects: Sequence[Object], *, may_go_back: bool) -> Iterator[Applied]:
    """Apply objects and await their rollout; whatever fails then, in here or in the caller's block, is rolled back.

    Args:
        cluster: Where.
        objects: As `manifests.render` made them, one Deployment among them.
        may_go_back: Whether the policy's owner signed that an older admission may replace a newer one.

    Yields:
        What was done, once every object lies there as rendered and every pod is available.

    Raises:
        DeploymentError: Refused, in conflict, altered on the way, or late; it says whether the rollback held.
        AdmissionError: A newer admission is deployed.
        PolicyError: A newer policy or revocation list is deployed.
    """
    (deployment,) = (it for it in objects if it["kind"] == "Deployment")
    found = violations(deployment["spec"]["template"])
    if found:
        raise DeploymentError(f"the pods would break Pod Security `restricted`: {'; '.join(found)}")
    before = [cluster.read(it) for it in objects]
    for it, live in zip(objects, before, strict=True):
        if live is not None:
            _require_no_step_back(it, live, may_go_back=may_go_back)
    changed = []
    for it, live in zip(objects, before, strict=True):
        stored = cluster.apply(it, dry_run=True)
        _require_same(it, stored)
        if live is None or _without_server_fields(live) != _without_server_fields(stored):
            changed.append((it, live))
    attempted: list[tuple[Object, Object | None]] = []
    try:
        stale = [condition for it, live in changed if it is deployment for condition in _conditions(live)]
        for it, live in changed:
            attempted.append((it, live))
            try:
                _require_same(it, _written(cluster, it, live, partial(cluster.apply, it)))
            except _ChangedError:
                attempted.pop()
                raise
        _await_rollout(cluster, deployment, stale=stale)
        _require_all(cluster, objects)
        yield Applied(len(changed), deployment["spec"]["replicas"])
        _require_all(cluster, objects)
    except PortcullisError as error:
        known = DeploymentError if isinstance(error, DeploymentError) else type(error)
        raise known(f"{error}; {_rolled_back(cluster, before, attempted)}") from error
    except BaseException:
        _rolled_back(cluster, before, attempted)
        raise


def _written(cluster: Cluster, it: Object, live: Object | None, write: Callable[[Any], _Written]) -> _Written:
    """Write over what was read, or over what differs from it in its status alone: a Deployment's moves by itself."""
    for _ in range(WRITE_ATTEMPTS - 1):
        try:
            return write(live)
        except _ChangedError:
            now = cluster.read(it)
            if live is None or now is None or now["metadata"]["uid"] != live["metadata"]["uid"]:
                raise
            if _without_server_fields(now) != _without_server_fields(live):
                raise
            live = now
    return write(live)


def _rolled_back(
    cluster: Cluster, before: Sequence[Object | None], attempted: Sequence[tuple[Object, Object | None]]
) -> str:
    """Undo what was attempted, but for what someone else deployed meanwhile, and say how that went."""
    if not attempted:
        return "nothing had been changed"
    overtaken = False
    restored = []
    try:
        for it, old in reversed(attempted):
            live = cluster.read(it)
            digest = None if live is None else _annotations(live).get(MANIFESTS)
            if live is not None and digest == _annotations(it)[MANIFESTS]:
                if old is None:
                    _written(cluster, it, live, partial(cluster.delete, it))
                else:
                    previous = _previous(before)[before.index(old)]
                    _require_same(previous, _written(cluster, it, live, partial(cluster.apply, previous)))
                    restored.append(previous)
            elif (live is None) != (old is None) or (old is not None and digest != _annotations(old).get(MANIFESTS)):
                overtaken = True
        for it in restored:
            if it["kind"] == "Deployment":
                _await_rollout(cluster, it, stale=_conditions(_live(cluster, it)))
        _require_all(cluster, restored)
    except PortcullisError as error:
        return f"the rollback did not hold: {error}"
    if overtaken:
        return "the rollback did not hold: someone else deployed meanwhile"
    if any(old is not None for _, old in attempted):
        return "rolled back to what was there before"
    return "what it had created was deleted"


def _require_all(cluster: Cluster, objects: Sequence[Object]) -> None:
    for it in objects:
        _require_same(it, _live(cluster, it))


def _previous(before: Sequence[Object | None]) -> list[Object]:
    """Return the objects as an earlier deployment rendered them, proven by the digest that each of them carries."""
    previous = [{} if live is None else _as_rendered(live) for live in before]
    known = [it for it in previous if it]
    digest = manifests_digest(known)
    if any(_annotations(it).get(MANIFESTS) != digest for it in known):
        raise DeploymentError("what was there before is not, to the field, what an earlier deployment had applied")
    return previous


def _as_rendered(live: Object) -> Object:
    bare = _without_server_fields(live)
    metadata = dict(bare["metadata"])
    for part in ("labels", "annotations"):
        metadata[part] = {key: metadata.get(part, {})[key] for key in _owned_keys(live, part)}
    return {**bare, "metadata": metadata}


def _owned_keys(live: Object, part: str) -> list[str]:
    """Return the labels or annotations that this field manager applied, of those that still are there."""
    for entry in live["metadata"].get("managedFields", []):
        if (entry.get("manager"), entry.get("operation")) == (MANAGER, "Apply"):
            fields = entry.get("fieldsV1", {}).get("f:metadata", {}).get(f"f:{part}", {})
            there = live["metadata"].get(part, {})
            return [key for key in there if f"f:{key}" in fields]
    return []


def _require_no_step_back(it: Object, live: Object, *, may_go_back: bool) -> None:
    ours, theirs = _annotations(it), _annotations(live)
    if not MANAGED_BY.items() <= live["metadata"].get("labels", {}).items():
        raise DeploymentError(f"{_named(it)} exists and was not made by Portcullis; choose another namespace")
    for annotation, (error, what) in _VERSIONS.items():
        version = theirs.get(annotation, "")
        if not _VERSION.fullmatch(version):
            raise DeploymentError(f"{_named(it)} does not say which {what} it was deployed under; delete it to go on")
        if int(version) > int(ours[annotation]) and not (error is AdmissionError and may_go_back):
            hint = "; to go back on purpose, the policy's owner signs a rollback" if error is AdmissionError else ""
            raise error(f"{_named(it)} was deployed under a newer {what} than this one{hint}")


def _require_same(it: Object, stored: Object) -> None:
    found = list(differences(it, stored))
    if found:
        raise DeploymentError(
            f"the cluster stores another {_named(it)} than was rendered, so something changes it on the way: "
            + "; ".join(found[:3])
        )


def differences(rendered: Object, stored: Object) -> Iterator[str]:
    """Yield where a stored object is not what was rendered, one line each, named by its path.

    Every field must come back equal, and none may be added but what an API server itself assigns.
    """
    yield from _differences(rendered, stored, "", rendered["kind"])


def _differences(rendered: Any, stored: Any, path: str, kind: str) -> Iterator[str]:
    if isinstance(rendered, dict) and isinstance(stored, dict):
        for key in sorted({*rendered, *stored}):
            where = f"{path}.{key}" if path else key
            if key not in stored:
                yield f"{where} is missing"
            elif key in rendered:
                yield from _differences(rendered[key], stored[key], where, kind)
            elif not _is_free(path, kind) and not _is_assigned(where, stored, key, kind):
                yield f"{where} was added: {_shown(stored[key])}"
    elif isinstance(rendered, list) and isinstance(stored, list):
        for index, (ours, theirs) in enumerate(zip(rendered, stored, strict=False)):
            yield from _differences(ours, theirs, f"{path}[{index}]", kind)
        for index in range(len(rendered), len(stored)):
            yield f"{path}[{index}] was added: {_shown(stored[index])}"
        if len(stored) < len(rendered):
            yield f"{path}[{len(stored)}] is missing"
    elif type(rendered) is not type(stored) or rendered != stored:
        yield f"{path} is {_shown(stored)}, not {_shown(rendered)}"


def _is_free(path: str, kind: str) -> bool:
    return path in _FREE and f"{kind}.{path}" != _NOT_FREE


def _is_assigned(where: str, parent: Mapping[str, Any], key: str, kind: str) -> bool:
    full = f"{kind}.{where}"
    if full == _SERVICE_ACCOUNT:
        return bool(parent[key] == parent.get("serviceAccountName"))
    if full in _ASSIGNED_VALUES:
        return bool(parent[key] == _ASSIGNED_VALUES[full])
    return where in _ASSIGNED or full in _ASSIGNED


def _without_server_fields(live: Object) -> Object:
    """Return an object without what API servers assign, so that two of them compare by what was asked for."""

    def stripped(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        parts = {key: (f"{path}.{key}" if path else key, part) for key, part in value.items()}
        kept = {key: it for key, it in parts.items() if not _is_assigned(it[0], value, key, live["kind"])}
        return {key: stripped(part, where) for key, (where, part) in kept.items()}

    bare: Object = stripped(live, "")
    return bare


def _await_rollout(cluster: Cluster, deployment: Object, *, stale: Sequence[Any]) -> None:
    """Return once every replica is of this generation and available.

    Args:
        cluster: Where.
        deployment: As applied.
        stale: Conditions that the Deployment had before: they speak of what it was.

    Raises:
        DeploymentError: The cluster says that it fails, or it took too long.
    """
    seconds = deployment["spec"]["progressDeadlineSeconds"] + GRACE_SECONDS
    end = time.monotonic() + seconds
    last = "the cluster has not looked at it"
    while time.monotonic() < end:
        try:
            live = _live(cluster, deployment)
        except UnavailableError as error:
            last = str(error)
        else:
            status = live.get("status", {})
            if status.get("observedGeneration", 0) >= live["metadata"]["generation"]:
                failing = [it for it in _conditions(live) if (it.get("type"), it.get("status")) in _FAILURES]
                reasons = "; ".join(f"{it.get('reason')}: {one_line(it.get('message', ''))}" for it in failing)
                if any(condition not in stale for condition in failing):
                    raise DeploymentError(f"{_named(deployment)} does not roll out: {reasons}")
                wanted = deployment["spec"]["replicas"]
                counts = [status.get(name, 0) for name in _COUNTS]
                if counts == [wanted] * 3 and not status.get("unavailableReplicas"):
                    return
                last = f"{counts[1]} of {wanted} pods updated, {counts[2]} available" + (reasons and f"; {reasons}")
        time.sleep(cluster.poll_seconds)
    raise DeploymentError(f"{_named(deployment)} did not roll out within {seconds:g} s: {last}")


def _live(cluster: Cluster, it: Object) -> Object:
    live = cluster.read(it)
    if live is None:
        raise DeploymentError(f"{_named(it)} was deleted while it was being deployed")
    return live


def _conditions(live: Object | None) -> list[Any]:
    return [] if live is None else list(live.get("status", {}).get("conditions", []))


def _annotations(it: Object) -> Mapping[str, str]:
    annotations: Mapping[str, str] = it["metadata"].get("annotations", {})
    return annotations


def _path(it: Object) -> str:
    metadata = it["metadata"]
    return _PATHS[it["apiVersion"], it["kind"]].format(metadata["namespace"], metadata["name"])


def _named(it: Object) -> str:
    return f"{it['kind']} {it['metadata']['namespace']}/{it['metadata']['name']}"


def _identity(it: Object) -> tuple[Any, ...]:
    return it.get("apiVersion"), it.get("kind"), it["metadata"].get("namespace"), it["metadata"].get("name")


def _version(live: Object) -> Object:
    return {key: live["metadata"][key] for key in ("uid", "resourceVersion")}


def _accepted(doing: str, it: Object, status: int, answer: Mapping[str, Any]) -> Object:
    if 200 <= status < 300:
        return dict(answer)
    what = f"{doing} {_named(it)}"
    message = one_line(answer.get("message", ""))
    details = answer.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    reasons = [cause.get("reason") for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
    if status == 401:
        raise DeploymentError("the API server does not know who asks: the token is missing, expired, or another's")
    if status == 403:
        raise DeploymentError(f"{what} is not allowed: {message}; bind the deployer's Role to this service account")
    if "FieldManagerConflict" in reasons:
        raise DeploymentError(f"{what}: {message}; nothing is forced, so that manager must give the field up first")
    if status == 409:
        raise _ChangedError(f"someone else changed {_named(it)} meanwhile; deploy again")
    raise DeploymentError(f"{what}: the API server answered {status}: {message}")


def _object(it: Object, answer: Object) -> Object:
    """Return an object that the API server answered with, each part of it that is relied on being of its type."""
    try:
        metadata, status = answer["metadata"], answer.get("status", {})
        texts = [text for part in ("labels", "annotations") for text in metadata.get(part, {}).values()]
        texts.extend(condition[key] for condition in status.get("conditions", []) for key in ("type", "status"))
        numbers = [status.get(name, 0) for name in (*_COUNTS, "observedGeneration")]
        if it["kind"] == "Deployment":
            numbers.append(metadata["generation"])
        _as_rendered(answer)
        sound = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    except (*UNREADABLE, RecursionError):
        sound = False
    if not sound:
        raise DeploymentError(f"the API server answered with a malformed {_named(it)}")
    return answer


def _shown(value: Any) -> str:
    return one_line(json.dumps(value, sort_keys=True))[:200]
