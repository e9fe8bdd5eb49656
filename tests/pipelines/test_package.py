"""The reference pipeline as it goes to a cluster: one image by digest, its configuration's values, all hardened."""

import subprocess
import sys

import pytest
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from portcullis.errors import UsageError
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.compile import DataAccess, package
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.steps import STEPS

CONFIG = ReferenceConfig.load(None)
URI = "s3://bucket/cheques.csv"
IMAGE = f"registry.example.com/team/portcullis-python@sha256:{'0' * 64}"


def parsed(compiled: bytes):
    """Read both documents, and every executor's settings, with KFP's own protos, which refuse an unknown field."""
    first, _, second = compiled.partition(b"\n---\n")
    spec, platform = load_yaml(first), load_yaml(second)
    json_format.ParseDict(spec, PipelineSpec())
    json_format.ParseDict(platform, PlatformSpec())
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    configs = {name: json_format.ParseDict(config, KubernetesExecutorConfig()) for name, config in settings.items()}
    return spec, configs


@pytest.mark.parametrize(
    ("split", "names"), [(False, ["reference.yaml"]), (True, ["secure_training.yaml", "release.yaml"])]
)
def test_both_forms_parse_with_kfps_protos_and_every_container_is_hardened(split, names):
    compiled = package(CONFIG, URI, image=IMAGE, gpus=1, split=split)
    assert list(compiled) == names
    for text in compiled.values():
        spec, configs = parsed(text)
        containers = {
            name: executor["container"]
            for name, executor in spec["deploymentSpec"]["executors"].items()
            if "container" in executor
        }
        assert containers.keys() == configs.keys()
        for name, container in containers.items():
            assert container["image"] == IMAGE
            assert {"name": "PORTCULLIS_IMAGE", "value": IMAGE} in container["env"]
            assert configs[name].security_context.run_as_non_root


def test_the_parts_hold_each_others_steps_not():
    training, release = package(CONFIG, URI, split=True).values()
    for step in STEPS:
        task = f"exec-{step.stage.replace('_', '-')}".encode()
        if step.kind != "gate" or step.name == "deploy":
            assert (task in training, task in release) == (step.part == "secure_training", step.part == "release")
    for key in (b"portcullis-admit", b"portcullis-deploy"):
        assert key not in training and key in release


def test_what_the_release_takes_from_a_store_is_imported_anew():
    (_, release) = package(CONFIG, URI, split=True).values()
    spec, _ = parsed(release)
    importers = [it["importer"] for it in spec["deploymentSpec"]["executors"].values() if "importer" in it]
    assert len(importers) == 3 and all(importer["reimport"] for importer in importers)


def test_the_configuration_fills_the_arguments():
    (text,) = package(CONFIG, URI, gpus=2, gpu_resource="nvidia.com/mig-1g.10gb").values()
    spec, _ = parsed(text)
    given = {name: it["defaultValue"] for name, it in spec["root"]["inputDefinitions"]["parameters"].items()}
    arguments = CONFIG.arguments(URI, gpus=2, gpu_resource="nvidia.com/mig-1g.10gb")
    assert given == arguments  # none is left to be guessed at
    assert (given["gpus"], given["gpu_resource"]) == ("2", "nvidia.com/mig-1g.10gb")
    asking = [
        name
        for name, executor in spec["deploymentSpec"]["executors"].items()
        if "accelerator" in executor.get("container", {}).get("resources", {})
    ]
    assert sorted(asking) == ["exec-evaluate-robustness", "exec-evaluate-robustness-2", "exec-train"]


def test_a_volume_or_a_store_for_the_data_reaches_ingest_alone():
    access = DataAccess(claim="cheques", secret="cheques-s3", endpoint="http://minio-service.kubeflow:9000")
    (text,) = package(CONFIG, "/data/cheques.csv", image=IMAGE, data=access).values()
    spec, configs = parsed(text)
    (volume,) = configs["exec-ingest"].pvc_mount
    assert (volume.constant, volume.mount_path) == ("cheques", "/data")
    (secret,) = configs["exec-ingest"].secret_as_env
    assert (secret.secret_name, secret.HasField("optional"), secret.optional) == ("cheques-s3", True, False)
    assert [it.env_var for it in secret.key_to_env] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    env = {it["name"]: it["value"] for it in spec["deploymentSpec"]["executors"]["exec-ingest"]["container"]["env"]}
    assert env == {"AWS_ENDPOINT_URL_S3": "http://minio-service.kubeflow:9000", "PORTCULLIS_IMAGE": IMAGE}
    others = [config for name, config in configs.items() if name != "exec-ingest"]
    assert not any(config.pvc_mount or config.secret_as_env for config in others)


def test_the_same_as_what_kfps_own_functions_set():
    from kfp import dsl, kubernetes

    from portcullis.preflight.component import preflight
    from portcullis_pipelines.compile import _data_volumes, compiled

    @dsl.pipeline(name="theirs")
    def theirs():
        task = preflight()
        task.set_caching_options(False)
        kubernetes.mount_pvc(task, "cheques", "/data")
        kubernetes.use_secret_as_env(
            task, "cheques-s3", {key: key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        )

    _, configs = parsed(compiled(theirs))
    ours = json_format.ParseDict(
        _data_volumes(DataAccess(claim="cheques", secret="cheques-s3")), KubernetesExecutorConfig()
    )
    assert configs["exec-preflight"] == ours


def test_compiling_leaves_the_pipeline_itself_alone():
    (before,) = package(CONFIG, URI).values()
    package(CONFIG, URI, image=IMAGE, gpus=3, data=DataAccess(claim="x"))
    (after,) = package(CONFIG, URI).values()
    assert before == after and IMAGE.encode() not in after


def test_two_processes_compile_to_the_same_bytes():
    code = (
        "import sys\n"
        "from portcullis_pipelines.compile import package\n"
        "from portcullis_pipelines.config import ReferenceConfig\n"
        f"for text in package(ReferenceConfig.load(None), {URI!r}, image={IMAGE!r}, gpus=1, split=True).values():\n"
        "    sys.stdout.buffer.write(text)\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, timeout=120, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == b"".join(package(CONFIG, URI, image=IMAGE, gpus=1, split=True).values())


@pytest.mark.parametrize(
    "image",
    ["portcullis-python:0.1.0", "portcullis-python@sha256:12", f"a b@sha256:{'0' * 64}", f"@sha256:{'0' * 64}", ""],
)
def test_an_image_without_a_digest_is_refused(image):
    with pytest.raises(UsageError, match="no image by digest"):
        package(CONFIG, URI, image=image)


@pytest.mark.parametrize("gpus", [-1, 1000])
def test_a_number_of_gpus_that_cannot_be(gpus):
    with pytest.raises(UsageError, match="no number of GPUs"):
        package(CONFIG, URI, gpus=gpus)


@pytest.mark.parametrize(
    "access",
    [
        {"claim": "Cheques"},
        {"claim": "../x"},
        {"secret": "a b"},
        {"endpoint": "minio:9000"},
        {"endpoint": "http://a/b"},
    ],
)
def test_what_is_no_name_or_server_is_refused(access):
    with pytest.raises(UsageError):
        DataAccess(**access)
