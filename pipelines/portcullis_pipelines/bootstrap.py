"""What a namespace needs before the pipeline can run in it, as plain Kubernetes objects.

Each step gets one Secret with its own signing key and the further keys that it reads, and nothing else; the trust store
is a ConfigMap. The part `secure_training` holds no key of the release, and nothing ever holds the owner's: whoever may
mount every Secret of the training namespace can neither admit a model nor open it, nor change what is demanded.

Secrets are immutable: a changed key is a new identity that a new policy must name, so putting other keys in place is
an error of the API server's until the old Secret has been deleted on purpose. The ConfigMap is not: revocations change.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from portcullis.deploy.manifests import deployer_role
from portcullis.errors import UsageError
from portcullis.files import read_bytes
from portcullis.harden import TRUST_CONFIG_MAP, secret_name
from portcullis.keys import resolve
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home
from portcullis_pipelines.steps import STEPS

Object = dict[str, Any]
Part = Literal["secure_training", "release", "all"]
PARTS: tuple[Part, ...] = get_args(Part)

SERVING_SECRET = "portcullis-serving"  # noqa: S105 - a name
SERVING_KEYS = ("serving.pem", "serving.token")
TRUST_FILES = ("trust.yaml", "owner.pem", "policy.yaml", "revocations.json")
TRAINING_ACCOUNT = "portcullis-training"
MAX_OBJECT_BYTES = 1 << 20  # of a Secret's or ConfigMap's data, by the API server

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ACCOUNT = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def secrets_of(part: Part) -> dict[str, tuple[str, ...]]:
    """Return the Secrets of the steps of a part: name to the key files that each holds, and no others."""
    return {secret_name(step.name): (step.key_file, *step.keys) for step in STEPS if part in (step.part, "all")}


def objects(
    config: ReferenceConfig,
    home: Home,
    *,
    part: Part,
    namespace: str,
    service_account: str | None = None,
    deploy_namespace: str | None = None,
) -> list[Object]:
    """Return the objects to apply; namespaces are not among them.

    Args:
        config: Names the model and, for the target `kubernetes`, the server's namespace, Secret and ConfigMap.
        home: Holds the keys and the trust store.
        part: Which steps run in `namespace`.
        namespace: Where they run.
        service_account: What the runs' pods run as; by default `portcullis-training`, or with the release
            `portcullis-deploy-<model>`. It is made here; that KFP can run pods under it takes KFP's own role too.
        deploy_namespace: Where the server runs: by default where the configuration says, else `namespace`.

    Returns:
        First what is public, then the Secrets.

    Raises:
        UsageError: A name is none that Kubernetes allows, or two objects would share one, or one would be too large.
        KeyMaterialError: A key is missing, empty, or open to other users.
    """
    cluster = config.deployment.cluster
    server = deploy_namespace or str(cluster.get("namespace", namespace))
    for name in (namespace, server):
        if not _NAMESPACE.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a Kubernetes namespace")
    if service_account is not None and not _ACCOUNT.fullmatch(service_account):
        raise UsageError(f"{service_account!r} is no name of a service account")
    trust = {name: read_bytes(home.trust / name, limit=MAX_OBJECT_BYTES).decode() for name in TRUST_FILES}
    public = [_object("v1", "ConfigMap", TRUST_CONFIG_MAP, namespace, data=trust)]
    hidden = [_secret(name, namespace, home, files) for name, files in secrets_of(part).items()]
    if part == "secure_training":
        public.append(_object("v1", "ServiceAccount", service_account or TRAINING_ACCOUNT, namespace))
    else:
        at_server = (str(cluster.get("trust", TRUST_CONFIG_MAP)), server)
        if at_server != (TRUST_CONFIG_MAP, namespace):
            public.append(_object("v1", "ConfigMap", *at_server, data=trust))
        public += _deployer(config.dataset.name, service_account, namespace, server)
        hidden.append(_secret(str(cluster.get("secret", SERVING_SECRET)), server, home, SERVING_KEYS))
    rendered = [*public, *hidden]
    names = [(it["kind"], it["metadata"]["namespace"], it["metadata"]["name"]) for it in rendered]
    for kind, place, name in names:
        if names.count((kind, place, name)) > 1:
            raise UsageError(f"two objects would be the {kind} {place}/{name}; name it otherwise in deployment.cluster")
    return rendered


def without_secrets(rendered: Iterable[Object]) -> list[Object]:
    """Return the objects that anyone may read."""
    return [it for it in rendered if it["kind"] != "Secret"]


def _deployer(model: str, service_account: str | None, namespace: str, server: str) -> list[Object]:
    account, role, binding = deployer_role(model, server)
    name = service_account or account["metadata"]["name"]
    account["metadata"] |= {"name": name, "namespace": namespace}
    binding["subjects"] = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
    return [account, role, binding]


def _secret(name: str, namespace: str, home: Home, files: Iterable[str]) -> Object:
    keys = {file: resolve(f"file:{home.keys / file}") for file in files}
    data = {file: base64.b64encode(key).decode() for file, key in keys.items()}
    return _object("v1", "Secret", name, namespace, type="Opaque", immutable=True, data=data)


def _object(api_version: str, kind: str, name: str, namespace: str, **content: Any) -> Object:
    data: Mapping[str, str] = content.get("data", {})
    if sum(map(len, data.values())) > MAX_OBJECT_BYTES:
        raise UsageError(f"{kind} {name} would be larger than the {MAX_OBJECT_BYTES} bytes that Kubernetes allows")
    labels = {"app.kubernetes.io/part-of": "portcullis"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
