"""A compiled pipeline as a cluster takes it: the user's arguments, one image by its digest, and a way to the data.

`package` compiles the reference pipeline, `with_image` takes any pipeline that runs stages of Portcullis.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from portcullis.audit.log import AUDIT_ENV
from portcullis.container import IMAGE
from portcullis.errors import DataError, PipelineError, UsageError
from portcullis.harden import GPU_RESOURCE
from portcullis.ingest.cheque_digits import URI as BUILTIN
from portcullis.kubernetes_names import require_gpu_resource, require_image, require_object_name
from portcullis.remote import ENDPOINT, is_remote, parse_uri
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.compile import compiled
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.inspection import inspect

WHOLE = ("reference.yaml",)
SPLIT = ("secure_training.yaml", "release.yaml")
DATA_MOUNT = "/data"
AUDIT_MOUNT = "/var/run/portcullis/audit"
IMAGE_ENV = "PORTCULLIS_IMAGE"  # what each statement declares as its image
_READERS = ("exec-ingest", "exec-survey-shard")  # whose containers read the raw data
DATA_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class DataAccess:
    """The data, and what `ingest` needs to reach them on a cluster.

    Attributes:
        uri: `s3://…`, `gs://…`, `minio://…`, the built-in data, or a path below `/data` with a claim.
        claim: Name of a PersistentVolumeClaim; mounted at `/data`.
        secret: Name of a Secret with the keys `DATA_KEYS`, for `s3://` and `minio://`.
        endpoint: The server of `s3://` and `minio://`, such as `http://minio-service.kubeflow:9000`; AWS when empty.
    """

    uri: str
    claim: str = ""
    secret: str = ""
    endpoint: str = ""

    def __post_init__(self) -> None:
        scheme = parse_uri(self.uri)[0] if is_remote(self.uri) else ""
        parts = PurePosixPath(self.uri).parts
        on_volume = parts[:2] == ("/", DATA_MOUNT[1:]) and ".." not in parts and self.uri.isprintable()
        if not (scheme or on_volume or self.uri == BUILTIN):
            raise UsageError(
                f"no pod would find the data at {self.uri[:80]!a}; write s3://…, gs://…, minio://…, {BUILTIN}, or "
                f"{DATA_MOUNT}/… with --data-claim"
            )
        if on_volume != bool(self.claim):
            raise UsageError(f"a path below {DATA_MOUNT} and --data-claim go together: the claim is mounted there")
        if (self.secret or self.endpoint) and scheme not in ("s3", "minio"):
            raise UsageError("--data-secret and --data-endpoint are for s3:// and minio:// alone")
        if scheme == "minio" and not self.endpoint:
            raise UsageError("minio:// needs a server; name it by --data-endpoint http://host:port")
        if self.endpoint and not ENDPOINT.fullmatch(self.endpoint):
            raise UsageError(f"{self.endpoint[:80]!r} is not a server; write http://host:port or https://host")
        for name, what in ((self.claim, "PersistentVolumeClaim"), (self.secret, "Secret")):
            if name:
                require_object_name(name, what)


def package(
    config: ReferenceConfig,
    data: DataAccess,
    *,
    image: str | None = None,
    gpus: int = 0,
    gpu_resource: str = GPU_RESOURCE,
    split: bool = False,
    audit_claim: str = "",
) -> dict[str, bytes]:
    """Compile the reference pipeline for a cluster, the configuration's values as its arguments' defaults.

    Args:
        config: What the policy demands and the pipeline is called with.
        data: The data, as its tasks will see them, and what `ingest` needs to reach them.
        image: The image of every task, by digest; the release's tag when None.
        gpus: How many GPUs training and the robustness gates ask for each.
        gpu_resource: What Kubernetes calls them.
        split: Compile the two parts apart.
        audit_claim: Name of a PersistentVolumeClaim that several pods may write to; each step that signs mounts it at
            `/var/run/portcullis/audit` and writes its audit log there.

    Returns:
        File name, of `WHOLE` or of `SPLIT`, to compiled YAML.

    Raises:
        UsageError: The image has no digest, the number or kind of GPUs cannot be, or the claim's name is none.
    """
    from portcullis_pipelines.reference import release_from_storage, variant

    if image is not None:
        require_image(image)
    if not 0 <= gpus <= 999:
        raise UsageError(f"{gpus} is no number of GPUs")
    require_gpu_resource(gpu_resource)
    if audit_claim:
        require_object_name(audit_claim, "PersistentVolumeClaim")
    arguments = config.arguments(data.uri, gpus=gpus, gpu_resource=gpu_resource)
    training, whole = variant(private=config.dp_training is not None, sharded=config.shards > 1)
    parts = (training, release_from_storage) if split else (whole,)
    return {
        name: compiled(_placed(part, image, data, audit_claim), arguments)
        for name, part in zip(SPLIT if split else WHOLE, parts, strict=True)
    }


def is_package(data: bytes) -> bool:
    """Tell whether some bytes are what `package` compiled once."""
    try:
        return inspect(data).name.startswith("portcullis-")
    except PipelineError:
        return False


def with_image(data: bytes, image: str) -> bytes:
    """Put an image by its digest into every container of a compiled pipeline that runs the release's own by a tag.

    Args:
        data: The YAML that KFP's compiler wrote; what it asks for is not judged here.
        image: The image; other containers keep theirs.

    Returns:
        The YAML with that image; the same input gives the same bytes.

    Raises:
        UsageError: The image has no digest, or nothing runs the release's own by a tag.
        PipelineError: This is no compiled pipeline.
    """
    require_image(image)
    try:
        documents = [load_yaml(part) for part in data.split(b"\n---\n")]
        changed = _run_image(documents[0]["deploymentSpec"]["executors"], image)
    except (DataError, LookupError, TypeError, AttributeError) as error:
        raise PipelineError(f"not a compiled pipeline: {type(error).__name__}: {error}") from error
    if not changed:
        raise UsageError(f"nothing in this package runs {_repository(IMAGE)} by a tag; leave out --image")
    return "---\n".join(yaml.safe_dump(it) for it in documents).encode()


def _placed(pipeline: Any, image: str | None, data: DataAccess, audit_claim: str) -> Any:
    """Return a copy of a pipeline whose containers run `image`, reach the data where they read them, and keep a log."""
    pipeline = copy.copy(pipeline)
    pipeline.component_spec = copy.deepcopy(pipeline.component_spec)
    executors = pipeline.pipeline_spec.deployment_spec["executors"]
    configured = pipeline.platform_spec.platforms["kubernetes"].deployment_spec.executors
    if image is not None:
        _run_image(executors, image)
    for name, settings in configured.items():
        container, volumes = executors[name]["container"], []
        if name in _READERS:
            if data.endpoint:
                _set_environment(container, "AWS_ENDPOINT_URL_S3", data.endpoint)
            if data.secret:
                settings.update(_data_secret(data.secret))
            volumes += [_volume(data.claim, DATA_MOUNT)] if data.claim else []
        # Who has a key of its own signs, and so can sign a log; what opens data sets for `enforce` signs nothing.
        if audit_claim and "secretAsVolume" in settings and not name.startswith("exec-enforce"):
            _set_environment(container, AUDIT_ENV, AUDIT_MOUNT)
            volumes.append(_volume(audit_claim, AUDIT_MOUNT))
        if volumes:
            settings.update({"pvcMount": volumes})
    return pipeline


def _run_image(executors: Mapping[str, Any], image: str) -> int:
    """Put an image where the release's own runs, and return in how many containers; a proto's Struct will do too."""
    containers = [it["container"] for it in executors.values() if "container" in it]
    own = [it for it in containers if _is_own(it["image"])]
    for container in own:
        container["image"] = image
        _set_environment(container, IMAGE_ENV, image)
    return len(own)


def _is_own(image: str) -> bool:
    return image == IMAGE or ("@" not in image and _repository(image) == _repository(IMAGE))


def _repository(image: str) -> str:
    name = image.partition("@")[0]
    before, _, tag = name.rpartition(":")
    return before if before and "/" not in tag else name  # a registry's port is no tag


def _set_environment(container: Any, name: str, value: str) -> None:
    others = [dict(it) for it in container["env"] if it["name"] != name] if "env" in container else []
    container.update({"env": [*others, {"name": name, "value": value}]})


def _volume(claim: str, path: str) -> dict[str, Any]:
    """Return what KFP's function `mount_pvc` adds to a task."""
    return {"constant": claim, "pvcNameParameter": _named(claim), "mountPath": path}


def _data_secret(name: str) -> dict[str, Any]:
    """Return what KFP's function `use_secret_as_env` sets on a task."""
    keys = [{"secretKey": key, "envVar": key} for key in DATA_KEYS]
    return {
        "secretAsEnv": [{"secretName": name, "secretNameParameter": _named(name), "keyToEnv": keys, "optional": False}]
    }


def _named(name: str) -> dict[str, Any]:
    return {"runtimeValue": {"constant": name}}
