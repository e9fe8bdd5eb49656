"""Compile every component and the reference pipeline to YAML: `python -m portcullis_pipelines.compile`.

The files are committed, so that they can be loaded without Python code of ours; a test compiles again and compares.
`package` compiles the reference pipeline for a cluster.
"""

import copy
import inspect
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from portcullis.errors import UsageError
from portcullis.harden import GPU_RESOURCE, LARGE, SMALL, Resources, harden, secure_pipeline
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.lint import lint

ROOT = Path(__file__).parents[2]
# Folder below components/portcullis, and the component or gate in its component.py that is the stage.
STAGES = {
    "preflight": "preflight",
    "ingest": "ingest",
    "pii": "mask_pii",
    "quality": "data_quality_gate",
    "split": "split",
    "privacy": "dp_noise",
    "training": "train",
    "robustness": "robustness_gate",
    "watermark": "watermark",
    "equivalence": "equivalence_gate",
    "encryption": "encrypt",
    "signing": "sign",
    "admission": "admit",
    "deploy": "deploy",
    "attestation": "attest",
}
# What shares a folder with another stage: gates with what they judge, and `start_chain`.
BESIDE = {
    "pii/gate.yaml": ("pii", "residual_pii_gate"),
    "watermark/gate.yaml": ("watermark", "verify_watermark_gate"),
    "attestation/start.yaml": ("attestation", "start_chain"),
}
# Stages that need more than a little memory and time.
HEAVY = {"train": LARGE, "watermark": LARGE}
# What a pipeline of one task takes besides.
_SETTINGS = {
    "secret": "Name of the Kubernetes Secret with this step's keys.",
    "gpus": "How many GPUs the task asks for, spelt as text; `0` for none.",
    "gpu_resource": "What Kubernetes calls them, such as `nvidia.com/gpu`.",
}

_DIGEST = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_DATA_MOUNT = "/data"
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?")


def compiled(component: Any, arguments: Mapping[str, Any] | None = None) -> bytes:
    """Return a component or pipeline as KFP compiles it.

    Args:
        component: The component or pipeline.
        arguments: Defaults of its parameters.

    Raises:
        PipelineError: It could run past a gate.
    """
    from kfp import compiler
    from kfp.dsl.graph_component import GraphComponent

    taken = {name: value for name, value in (arguments or {}).items() if name in component.component_spec.inputs}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(path), pipeline_parameters=taken)
        text = path.read_bytes()
    if arguments:
        # KFP repeats the defaults in a comment, a mapping in the order of this process's hash seed.
        text = re.sub(rb"\A(?:#.*\n)+", b"", text)
    if isinstance(component, GraphComponent):
        lint(text)
    return text


def outputs() -> Iterator[tuple[Path, Any]]:
    """Yield every committed file and what it is compiled from.

    A transform is a `component.yaml`, and with its Kubernetes settings inside a `pipeline.yaml` of one task. A gate is
    a pipeline of two tasks that hardens itself.
    """
    from kfp.dsl.graph_component import GraphComponent

    folder = ROOT / "components" / "portcullis"
    for name, stage in STAGES.items():
        component = getattr(import_module(f"portcullis.{name}.component"), stage)
        if isinstance(component, GraphComponent):
            yield folder / name / "pipeline.yaml", component
        else:
            yield folder / name / "component.yaml", component
            yield folder / name / "pipeline.yaml", one_task_pipeline(component, HEAVY.get(stage, SMALL))
    for path, (name, stage) in BESIDE.items():
        yield folder / path, getattr(import_module(f"portcullis.{name}.component"), stage)
    from portcullis_pipelines.reference import reference_pipeline

    yield Path(__file__).parent / "reference.yaml", reference_pipeline


def one_task_pipeline(component: Any, resources: Resources = SMALL) -> Any:
    """Return a component as a pipeline of one hardened task, for use as a step of another pipeline.

    Its inputs are the component's, all of them required, and those of `_SETTINGS`.
    """
    signature = inspect.signature(component.python_func)
    taken = [it for it in signature.parameters.values() if it.name in component.component_spec.inputs]
    # No defaults: the local runner fills what a caller leaves out from the caller's own inputs, by name.
    parameters = [
        *(it.replace(default=inspect.Parameter.empty, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for it in taken),
        *(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str) for name in _SETTINGS),
    ]
    returned = getattr(signature.return_annotation, "__annotations__", {})
    put_out = [
        # An artifact is a parameter annotated Output[Dataset], which is Annotated[Dataset, …].
        (name, returned[name] if name in returned else signature.parameters[name].annotation.__origin__)
        for name in component.component_spec.outputs
    ]

    outputs: Any = NamedTuple("Outputs", put_out)  # type: ignore[misc]

    def body(*values: Any) -> Any:
        arguments = dict(zip((it.name for it in parameters), values, strict=True))
        chosen = {name: arguments.pop(name) for name in _SETTINGS}
        task = harden(component(**arguments), resources=resources, **chosen)
        return outputs(**task.outputs)

    body.__signature__ = inspect.Signature(parameters, return_annotation=outputs)  # type: ignore[attr-defined]
    described = {name: spec.description for name, spec in component.component_spec.inputs.items()} | _SETTINGS
    arguments = "".join(f"    {it.name}: {described[it.name]}\n" for it in parameters)
    body.__doc__ = f"{component.description}\n\nArgs:\n{arguments}"
    # Under the component's own name, KFP would load the component out of it and leave the rest.
    return secure_pipeline(body, name=f"hardened-{component.name}")


@dataclass(frozen=True)
class DataAccess:
    """What `ingest` needs to reach the data on a cluster.

    Attributes:
        claim: Name of a PersistentVolumeClaim; mounted at `/data`.
        secret: Name of a Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for `s3://` and `minio://`.
        endpoint: The server of `s3://` and `minio://`, such as `http://minio-service.kubeflow:9000`; AWS when empty.
    """

    claim: str = ""
    secret: str = ""
    endpoint: str = ""

    def __post_init__(self) -> None:
        for name in (self.claim, self.secret):
            if name and not _OBJECT_NAME.fullmatch(name):
                raise UsageError(f"{name[:80]!r} is not the name of a Kubernetes object")
        if self.endpoint and not _ENDPOINT.fullmatch(self.endpoint):
            raise UsageError(f"{self.endpoint[:80]!r} is not a server; write http://host:port or https://host")


def package(
    config: ReferenceConfig,
    uri: str,
    *,
    image: str | None = None,
    gpus: int = 0,
    gpu_resource: str = GPU_RESOURCE,
    split: bool = False,
    data: DataAccess | None = None,
) -> dict[str, bytes]:
    """Compile the reference pipeline for a cluster, the configuration's values as its arguments' defaults.

    Args:
        config: What the policy demands and the pipeline is called with.
        uri: The data, as its tasks will see them.
        image: The image of every task, by digest; the release's tag when None.
        gpus: How many GPUs training and the robustness gates ask for each.
        gpu_resource: What Kubernetes calls them.
        split: Compile the two parts apart.
        data: What `ingest` needs to reach the data.

    Returns:
        File name to compiled YAML: `reference.yaml`, or `secure_training.yaml` and `release.yaml`.

    Raises:
        UsageError: The image has no digest, or the number of GPUs cannot be.
    """
    from portcullis_pipelines.reference import reference_pipeline, release_from_storage, secure_training

    if image is not None and not _DIGEST.fullmatch(image):
        raise UsageError(f"{image} is no image by digest; write REFERENCE@sha256:… as its registry shows it")
    if not 0 <= gpus <= 999:
        raise UsageError(f"{gpus} is no number of GPUs")
    arguments = config.arguments(uri, gpus=gpus, gpu_resource=gpu_resource)
    parts = (
        {"secure_training.yaml": secure_training, "release.yaml": release_from_storage}
        if split
        else {"reference.yaml": reference_pipeline}
    )
    return {name: compiled(_placed(part, image, data or DataAccess()), arguments) for name, part in parts.items()}


def _placed(pipeline: Any, image: str | None, data: DataAccess) -> Any:
    """Return a copy of a pipeline whose containers run `image` and whose ingest reaches the data."""
    pipeline = copy.copy(pipeline)
    pipeline.component_spec = copy.deepcopy(pipeline.component_spec)
    executors = pipeline.pipeline_spec.deployment_spec["executors"]
    for name, executor in executors.items():
        variables = {"AWS_ENDPOINT_URL_S3": data.endpoint} if data.endpoint and name == "exec-ingest" else {}
        if image is not None and "container" in executor:
            executor["container"]["image"] = image
            variables["PORTCULLIS_IMAGE"] = image  # what each statement declares as its image
        if variables:
            env = [{"name": key, "value": value} for key, value in sorted(variables.items())]
            executor["container"].update({"env": env})
    if "exec-ingest" in executors:
        settings = pipeline.platform_spec.platforms["kubernetes"].deployment_spec.executors["exec-ingest"]
        settings.update(_data_volumes(data))
    return pipeline


def _data_volumes(data: DataAccess) -> dict[str, Any]:
    """Return what KFP's functions `mount_pvc` and `use_secret_as_env` would set on the task."""

    def named(name: str) -> dict[str, Any]:
        return {"runtimeValue": {"constant": name}}

    settings: dict[str, Any] = {}
    if data.claim:
        claim = {"constant": data.claim, "pvcNameParameter": named(data.claim), "mountPath": _DATA_MOUNT}
        settings["pvcMount"] = [claim]
    if data.secret:
        keys = [{"secretKey": key, "envVar": key} for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        secret = {"secretName": data.secret, "secretNameParameter": named(data.secret), "keyToEnv": keys}
        settings["secretAsEnv"] = [{**secret, "optional": False}]
    return settings


def main() -> int:
    """Write every file."""
    for path, component in outputs():
        path.write_bytes(compiled(component))
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
