"""What a namespace needs before a pipeline can run in it, as plain Kubernetes objects.

The policy in the trust store says which steps there are, of the reference pipeline or of one's own. Each step gets one
Secret with its own signing key and the further keys that it reads, and nothing else; the trust store is a ConfigMap.
The part `secure_training` holds no key of the release, and nothing ever holds the owner's: whoever may mount every
Secret of the training namespace can neither admit a model nor open it, nor change what is demanded.

A privacy ledger that the policy keeps in the cluster is a ConfigMap, and so is its last head. They come empty, and only
the run's account may read and patch them.

Secrets are immutable: a changed key is a new identity that a new policy must name, so putting other keys in place is
an error of the API server's until the old Secret has been deleted on purpose. The ConfigMap is not: revocations change.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import yaml

from portcullis.deploy.manifests import deployer_role
from portcullis.errors import UsageError
from portcullis.evidence.policy import Policy, StepRule
from portcullis.evidence.trust import TrustStore
from portcullis.files import read_bytes
from portcullis.harden import TRUST_CONFIG_MAP, secret_name
from portcullis.keys import resolve
from portcullis.kubernetes_names import require_namespace, require_object_name
from portcullis.ledger.settings import LOCAL
from portcullis.ledger.stores import CONFIG_MAP_URI, config_maps
from portcullis_pipelines.home import Home
from portcullis_pipelines.steps import PRIVATE_STEPS, READS, SHARD_STEPS, STEPS

Object = dict[str, Any]
Part = Literal["secure_training", "release", "all"]
PARTS: tuple[Part, ...] = get_args(Part)

SERVING_SECRET = "portcullis-serving"  # noqa: S105 - a name
SERVING_KEYS = ("serving.pem", "serving.token")
TRUST_FILES = ("trust.yaml", "owner.pem", "policy.yaml", "revocations.json")
TRAINING_ACCOUNT = "portcullis-training"
MAX_OBJECT_BYTES = 1 << 20  # of a Secret's or ConfigMap's data, by the API server

PART_OF = {"app.kubernetes.io/part-of": "portcullis"}

# Every use of a stage reads the same further keys and belongs to the same part.
_STAGES = {step.stage: step for step in (*PRIVATE_STEPS, *SHARD_STEPS, *STEPS)}


def secrets_of(policy: Policy, part: Part) -> dict[str, tuple[str, ...]]:
    """Return the Secrets of a policy's steps: name to the key files that each holds, and no others.

    Args:
        policy: Its steps; one of a stage that the reference pipeline lacks is of the part `secure_training`, and reads
            its signing key alone unless it is `attest`, which opens what its inputs rest in.
        part: Which of them.

    Raises:
        UsageError: Two steps would share a Secret, or Kubernetes allows no such name, or one is called as the owner is.
    """
    found: dict[str, tuple[str, ...]] = {}
    owners: dict[str, str] = {}
    for rule in policy.steps.values():
        name, stage = secret_name(rule.base), _STAGES.get(rule.stage)
        require_object_name(name, "Secret")
        if rule.base == "owner":
            raise UsageError("a step called owner would sign with the policy owner's key, which is put nowhere")
        if (other := owners.setdefault(name, rule.base)) != rule.base:
            raise UsageError(f"the steps {other} and {rule.base} would share the Secret {name}; rename one of them")
        if part in (stage.part if stage else "secure_training", "all"):
            further = stage.keys if stage else (READS,) if rule.stage == "attest" else ()
            found[name] = (f"{rule.base.replace(':', '.')}.pem", *further)
    return found


def objects(
    home: Home,
    *,
    part: Part,
    namespace: str,
    service_account: str | None = None,
    deploy_namespace: str | None = None,
) -> list[Object]:
    """Return the objects to apply; namespaces are not among them.

    Args:
        home: Holds the keys, and the trust store whose policy names the steps. Its step of the stage `deploy`, if there
            is one, names the server's namespace, Secret and ConfigMap.
        part: Which steps run in `namespace`.
        namespace: Where they run.
        service_account: What the runs' pods run as; by default `portcullis-training`, or with a step that deploys
            `portcullis-deploy-<model>`. It is made here; that KFP can run pods under it takes KFP's own role too.
        deploy_namespace: Where the server runs: by default where the policy says, else `namespace`.

    Returns:
        First what is public, then the Secrets.

    Raises:
        UsageError: A name is none that Kubernetes allows, or two objects would share one, or one would be too large, or
            the policy has no step of that part.
        KeyMaterialError: A key is missing, empty, or open to other users.
        TrustStoreError: There is no trust store.
        PolicyError: Its policy does not verify.
    """
    policy = TrustStore.load(home.trust).policy
    secrets = secrets_of(policy, part)
    if not secrets:
        raise UsageError(f"no step of policy {policy.name} belongs to the part {part}")
    deploy = next(
        (it for it in policy.steps.values() if it.stage == "deploy" and secret_name(it.base) in secrets), None
    )
    cluster: Mapping[str, Any] = deploy.parameters.get("cluster", {}) if deploy else {}
    server = deploy_namespace or str(cluster.get("namespace", namespace))
    for name in (namespace, server):
        require_namespace(name)
    if service_account is not None:
        require_object_name(service_account, "service account")
    trust = {name: read_bytes(home.trust / name, limit=MAX_OBJECT_BYTES).decode() for name in TRUST_FILES}
    public = [_object("v1", "ConfigMap", TRUST_CONFIG_MAP, namespace, data=trust)]
    hidden = [_secret(name, namespace, home, files) for name, files in secrets.items()]
    if deploy is None:
        public.append(_object("v1", "ServiceAccount", service_account or TRAINING_ACCOUNT, namespace))
    else:
        at_server = (str(cluster.get("trust", TRUST_CONFIG_MAP)), server)
        if at_server != (TRUST_CONFIG_MAP, namespace):
            public.append(_object("v1", "ConfigMap", *at_server, data=trust))
        public += _deployer(policy.name, service_account, namespace, server)
        hidden.append(_secret(str(cluster.get("secret", SERVING_SECRET)), server, home, SERVING_KEYS))
    (account,) = (it["metadata"]["name"] for it in public if it["kind"] == "ServiceAccount")
    public += _ledgers([policy.step(name) for name in policy.steps if secret_name(name) in secrets], account, namespace)
    rendered = [*public, *hidden]
    names = [(it["kind"], it["metadata"]["namespace"], it["metadata"]["name"]) for it in rendered]
    for kind, place, name in names:
        if names.count((kind, place, name)) > 1:
            raise UsageError(f"two objects would be the {kind} {place}/{name}; name it otherwise in deployment.cluster")
    return rendered


def is_rendered(data: bytes) -> bool:
    """Tell whether some bytes are a YAML stream of objects as they are rendered here, and of no others."""
    try:
        documents = list(yaml.safe_load_all(data))
        return bool(documents) and all(it["metadata"]["labels"].items() >= PART_OF.items() for it in documents)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def without_secrets(rendered: Iterable[Object]) -> list[Object]:
    """Return the objects that anyone may read."""
    return [it for it in rendered if it["kind"] != "Secret"]


def _deployer(model: str, service_account: str | None, namespace: str, server: str) -> list[Object]:
    account, role, binding = deployer_role(model, server)
    name = service_account or account["metadata"]["name"]
    account["metadata"] |= {"name": name, "namespace": namespace}
    binding["subjects"] = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
    return [account, role, binding]


def _ledgers(steps: Iterable[StepRule], account: str, namespace: str) -> list[Object]:
    """Return the ConfigMaps of the steps' privacy ledgers and of their heads, and the roles to read and patch them.

    They have no data here, so that applying them again leaves what they hold; and no role may create or delete them.
    """
    maps: dict[tuple[str, str], str] = {}
    for settings in (step.parameters.get("ledger") for step in steps):
        if settings:
            dataset = str(settings["dataset"])
            uris = (settings["store"], settings["memory"])
            for uri, name in zip(uris, config_maps(dataset), strict=True):
                found = CONFIG_MAP_URI.fullmatch(f"kubernetes://{namespace}/{name}" if uri == LOCAL else uri)
                if found:
                    maps[found[1], found[2]] = dataset
    made: list[Object] = []
    roles: dict[tuple[str, str], list[str]] = {}
    for (place, name), dataset in maps.items():
        require_namespace(place)
        require_object_name(name, "ConfigMap")
        made.append(_object("v1", "ConfigMap", name, place))
        roles.setdefault((place, f"portcullis-ledger-{dataset}"), []).append(name)
    group = "rbac.authorization.k8s.io"
    for (place, name), names in roles.items():
        rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": names, "verbs": ["get", "patch"]}
        made.append(_object(f"{group}/v1", "Role", name, place, rules=[rule]))
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        role = {"apiGroup": group, "kind": "Role", "name": name}
        made.append(_object(f"{group}/v1", "RoleBinding", name, place, roleRef=role, subjects=[subject]))
    return made


def _secret(name: str, namespace: str, home: Home, files: Iterable[str]) -> Object:
    keys = {file: resolve(f"file:{home.keys / file}") for file in files}
    data = {file: base64.b64encode(key).decode() for file, key in keys.items()}
    return _object("v1", "Secret", name, namespace, type="Opaque", immutable=True, data=data)


def _object(api_version: str, kind: str, name: str, namespace: str, **content: Any) -> Object:
    data: Mapping[str, str] = content.get("data", {})
    if sum(map(len, data.values())) > MAX_OBJECT_BYTES:
        raise UsageError(f"{kind} {name} would be larger than the {MAX_OBJECT_BYTES} bytes that Kubernetes allows")
    metadata = {"name": name, "namespace": namespace, "labels": dict(PART_OF)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
