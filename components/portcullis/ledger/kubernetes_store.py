"""A ledger in a ConfigMap: a write goes over the resourceVersion that was read, or not at all.

The ConfigMap must be there (`portcullis bootstrap` makes it, empty): a run may read and patch it and can neither create
nor delete one. Kubernetes keeps at most 1 MiB in it, some 900 entries; a ledger that may grow larger lies in an object
store.
"""

from dataclasses import dataclass
from typing import Any

from portcullis.errors import DeploymentError, InconclusiveError, UsageError
from portcullis.kubernetes_api import MANAGER, UnavailableError, api_client, ask, one_line
from portcullis.kubernetes_names import require_namespace, require_object_name
from portcullis.ledger.stores import ChangedError, Held

KEY = "ledger"
MAX_BYTES = 1_000_000  # Kubernetes: 1 MiB of data, the key included


@dataclass(frozen=True)
class ConfigMapStore:
    """One ConfigMap.

    Attributes:
        client: A configured `kubernetes.client.ApiClient`.
        namespace: Where it lies.
        name: What it is called.
    """

    client: Any
    namespace: str
    name: str

    @classmethod
    def connect(cls, namespace: str, name: str) -> "ConfigMapStore":
        """Name a ConfigMap of the cluster that this process runs in, or of the kubeconfig's.

        Raises:
            UsageError: No such names are allowed, or there is no cluster.
            MissingDependencyError: The Kubernetes client is not installed.
        """
        require_namespace(namespace)
        require_object_name(name, "ConfigMap")
        return cls(api_client(), namespace, name)

    def read(self) -> Held:
        """Return what the ConfigMap holds; nothing, where it was made and never written."""
        status, answer = self._ask("GET")
        if status != 200:
            raise UsageError(f"cannot read {self._named}: {self._reason(status, answer)}")
        try:
            metadata, data = answer["metadata"], answer.get("data") or {}
            version, text = f"{metadata['uid']}/{metadata['resourceVersion']}", data.get(KEY, "")
            sound = answer["kind"] == "ConfigMap" and metadata["name"] == self.name and set(data) <= {KEY}
            held = text.encode("ascii")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"{self._named} holds no ledger; keep it for that alone") from error
        if not sound:
            raise UsageError(f"{self._named} holds something else than a ledger; keep it for that alone")
        return Held(held, version)

    def replace(self, data: bytes, *, over: Held) -> None:
        """Patch the ConfigMap, if it still is the very version that was read."""
        if len(data) > MAX_BYTES:
            raise UsageError(f"{self._named} is full; move the ledger to an object store, and nothing is released")
        uid, _, version = over.version.partition("/")
        metadata = {"uid": uid, "resourceVersion": version}
        status, answer = self._ask("PATCH", {"metadata": metadata, "data": {KEY: data.decode("ascii")}})
        if status == 409:
            raise ChangedError(f"{self._named} was changed meanwhile")
        if status != 200:
            raise UsageError(f"cannot write {self._named}: {self._reason(status, answer)}; nothing is released")

    @property
    def _named(self) -> str:
        return f"ConfigMap {self.namespace}/{self.name}"

    def _ask(self, method: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        path = f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}"
        if body is None:
            query, kind = "", ""
        else:
            query, kind = f"?fieldManager={MANAGER}", "application/merge-patch+json"
        try:
            return ask(self.client, method, path + query, body=body, content_type=kind)
        except UnavailableError as error:
            raise InconclusiveError(f"{self._named} cannot be reached: {error}; run again") from error
        except DeploymentError as error:
            raise UsageError(f"{self._named}: {error}") from error

    def _reason(self, status: int, answer: Any) -> str:
        if status == 404:
            return "there is none; `portcullis bootstrap` makes it. If it was there before, restore it"
        if status in (401, 403):
            return "this service account may not; bind the role that `portcullis bootstrap` writes"
        return f"the API server answered {status}: {one_line(answer.get('message', ''))}"
