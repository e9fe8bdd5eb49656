"""A pipeline of two tasks and one gate, compiled: small enough to submit in every test."""

import functools

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from portcullis.harden import harden, secure_pipeline
from portcullis_pipelines.compile import compiled

IMAGE = "registry.example/portcullis@sha256:" + "0" * 64

_component = functools.partial(
    dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False, kfp_package_path="kfp"
)


@_component()
def make(rows: int, made: Output[Dataset]):
    pass


@_component()
def judge(data: Input[Dataset], threshold: float, verdict: Output[Artifact]):
    pass


@secure_pipeline(name="gate")
def gate(data: Input[Dataset], threshold: float, secret: str, gpus: str, gpu_resource: str):
    harden(judge(data=data, threshold=threshold), secret=secret, gpus=gpus, gpu_resource=gpu_resource)


@secure_pipeline(name="small")
def small(
    rows: int,
    threshold: float = 0.5,
    names: list[str] = ["a"],  # noqa: B006 - KFP reads it, nothing changes it
    options: dict[str, float] = {},  # noqa: B006
    title: str = "none",
    quick: bool = False,
    gpus: str = "0",
    gpu_resource: str = "nvidia.com/gpu",
):
    made = harden(make(rows=rows), secret="portcullis-ingest")
    gate(
        data=made.outputs["made"],
        threshold=threshold,
        secret="portcullis-robustness-trained",
        gpus=gpus,
        gpu_resource=gpu_resource,
    )


@functools.cache
def small_package(gpus: str = "0") -> bytes:
    """Return the pipeline as KFP compiles it; `rows` is the only argument that a run must be given."""
    return compiled(small, {"gpus": gpus})
