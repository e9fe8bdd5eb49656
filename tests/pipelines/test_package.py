"""The reference pipeline as it goes to a cluster: one image by digest, its configuration's values, all hardened."""

import subprocess
import sys

import pytest
from google.protobuf import json_format
from kfp import dsl
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from portcullis.container import IMAGE as PORTCULLIS
from portcullis.errors import PipelineError, UsageError
from portcullis.harden import harden, secure_pipeline
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.compile import compiled
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.packaging import DataAccess, is_package, package, with_image
from portcullis_pipelines.steps import STEPS

CONFIG = ReferenceConfig.load(None)
URI = "s3://bucket/cheques.csv"
DATA = DataAccess(URI)
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
    compiled = package(CONFIG, DATA, image=IMAGE, gpus=1, split=split)
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
    training, release = package(CONFIG, DATA, split=True).values()
    for step in STEPS:
        task = f"exec-{step.stage.replace('_', '-')}".encode()
        if step.kind != "gate" or step.name == "deploy":
            assert (task in training, task in release) == (step.part == "secure_training", step.part == "release")
    for key in (b"portcullis-admit", b"portcullis-deploy"):
        assert key not in training and key in release


def test_what_the_release_takes_from_a_store_is_imported_anew():
    (_, release) = package(CONFIG, DATA, split=True).values()
    spec, _ = parsed(release)
    importers = [it["importer"] for it in spec["deploymentSpec"]["executors"].values() if "importer" in it]
    assert len(importers) == 3 and all(importer["reimport"] for importer in importers)


def test_the_configuration_fills_the_arguments():
    (text,) = package(CONFIG, DATA, gpus=2, gpu_resource="nvidia.com/mig-1g.10gb").values()
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


def test_a_store_for_the_data_reaches_ingest_alone():
    access = DataAccess(URI, secret="cheques-s3", endpoint="http://minio-service.kubeflow:9000")
    (text,) = package(CONFIG, access, image=IMAGE).values()
    spec, configs = parsed(text)
    (secret,) = configs["exec-ingest"].secret_as_env
    assert (secret.secret_name, secret.HasField("optional"), secret.optional) == ("cheques-s3", True, False)
    assert [it.env_var for it in secret.key_to_env] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    env = {it["name"]: it["value"] for it in spec["deploymentSpec"]["executors"]["exec-ingest"]["container"]["env"]}
    assert env == {"AWS_ENDPOINT_URL_S3": "http://minio-service.kubeflow:9000", "PORTCULLIS_IMAGE": IMAGE}
    assert not [name for name, config in configs.items() if name != "exec-ingest" and config.secret_as_env]
    assert text.count(b"AWS_ENDPOINT_URL_S3") == 1


def test_a_volume_for_the_data_reaches_ingest_alone():
    (text,) = package(CONFIG, DataAccess("/data/cheques.csv", claim="cheques")).values()
    _, configs = parsed(text)
    (volume,) = configs["exec-ingest"].pvc_mount
    assert (volume.constant, volume.mount_path) == ("cheques", "/data")
    assert not [name for name, config in configs.items() if name != "exec-ingest" and config.pvc_mount]


def test_every_step_that_signs_writes_its_audit_log_to_the_claim():
    (text,) = package(CONFIG, DataAccess("/data/cheques.csv", claim="cheques"), audit_claim="audit").values()
    spec, configs = parsed(text)
    signing = {name for name, config in configs.items() if config.secret_as_volume and "enforce" not in name}
    assert len(signing) == len(STEPS)
    for name, config in configs.items():
        env = {it["name"]: it["value"] for it in spec["deploymentSpec"]["executors"][name]["container"].get("env", [])}
        volumes = {it.constant: it.mount_path for it in config.pvc_mount}
        wanted = {"cheques": "/data"} if name == "exec-ingest" else {}
        log = {"audit": "/var/run/portcullis/audit"} if name in signing else {}
        assert volumes == wanted | log, name
        assert env.get("PORTCULLIS_AUDIT") == log.get("audit"), name


@pytest.mark.parametrize("claim", ["Audit", "../x", "a b"])
def test_a_claim_for_the_audit_log_that_is_no_name(claim):
    with pytest.raises(UsageError, match="PersistentVolumeClaim"):
        package(CONFIG, DATA, audit_claim=claim)


def test_the_same_as_what_kfps_own_functions_set():
    from kfp import dsl, kubernetes

    from portcullis.preflight.component import preflight
    from portcullis_pipelines.packaging import _data_secret, _volume

    @dsl.pipeline(name="theirs")
    def theirs():
        task = preflight()
        task.set_caching_options(False)
        kubernetes.mount_pvc(task, "cheques", "/data")
        kubernetes.use_secret_as_env(
            task, "cheques-s3", {key: key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        )

    _, configs = parsed(compiled(theirs))
    ours = KubernetesExecutorConfig()
    json_format.ParseDict({"pvcMount": [_volume("cheques", "/data")], **_data_secret("cheques-s3")}, ours)
    assert configs["exec-preflight"] == ours


def test_compiling_leaves_the_pipeline_itself_alone():
    (before,) = package(CONFIG, DATA).values()
    package(CONFIG, DataAccess(URI, secret="x"), image=IMAGE, gpus=3)
    (after,) = package(CONFIG, DATA).values()
    assert before == after and IMAGE.encode() not in after


def test_two_processes_compile_to_the_same_bytes():
    code = (
        "import sys\n"
        "from portcullis_pipelines.config import ReferenceConfig\n"
        "from portcullis_pipelines.packaging import DataAccess, package\n"
        f"made = package(ReferenceConfig.load(None), DataAccess({URI!r}), image={IMAGE!r}, gpus=1, split=True)\n"
        "for text in made.values():\n"
        "    sys.stdout.buffer.write(text)\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, timeout=120, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] == b"".join(package(CONFIG, DATA, image=IMAGE, gpus=1, split=True).values())


@pytest.mark.parametrize(
    "image",
    ["portcullis-python:0.1.0", "portcullis-python@sha256:12", f"a b@sha256:{'0' * 64}", f"@sha256:{'0' * 64}", ""],
)
def test_an_image_without_a_digest_is_refused(image):
    with pytest.raises(UsageError, match="no image by digest"):
        package(CONFIG, DATA, image=image)


@pytest.mark.parametrize("gpus", [-1, 1000])
def test_a_number_of_gpus_that_cannot_be(gpus):
    with pytest.raises(UsageError, match="no number of GPUs"):
        package(CONFIG, DATA, gpus=gpus)


@pytest.mark.parametrize("resource", ["nvidia.com/gpu.shared", "a b", "gpu", "nvidia.com/", "nvidia.com/gpu\n", ""])
def test_gpus_that_one_pod_has_not_for_itself(resource):
    with pytest.raises(UsageError, match="has for itself"):
        package(CONFIG, DATA, gpu_resource=resource)


BUCKET = {"uri": URI}
VOLUME = {"uri": "/data/cheques.csv"}
ACCESS = {
    "a path on this machine": {"uri": "rows.csv"},
    "an absolute one": {"uri": "/home/me/rows.csv"},
    "one that begins like the volume": {"uri": "/database/rows.csv", "claim": "x"},
    "one that leads out of the volume": {"uri": "/data/../etc/rows.csv", "claim": "x"},
    "a line in a path": {"uri": "/data/a\nb", "claim": "x"},
    "a file URI": {"uri": "file:///data/rows.csv", "claim": "x"},
    "the web": {"uri": "https://example.com/rows.csv"},
    "another built-in": {"uri": "builtin:iris"},
    "no key in the bucket": {"uri": "s3://bucket"},
    "a query": {"uri": "s3://bucket?endpoint=x/rows.csv"},
    "credentials": {"uri": "s3://me:pw@bucket/rows.csv"},
    "nothing": {"uri": ""},
    "a volume without a claim": VOLUME,
    "a claim without a volume": {**BUCKET, "claim": "x"},
    "a claim that is no name": {**VOLUME, "claim": "Cheques"},
    "a claim that leads elsewhere": {**VOLUME, "claim": "../x"},
    "a claim with an empty part": {**VOLUME, "claim": "a..b"},
    "a secret for a volume": {**VOLUME, "claim": "x", "secret": "y"},
    "a secret for the built-in data": {"uri": "builtin:cheque-digits", "secret": "y"},
    "a secret for Google's store": {"uri": "gs://bucket/rows.csv", "secret": "y"},
    "a server for Google's store": {"uri": "gs://bucket/rows.csv", "endpoint": "http://m:9"},
    "a secret that is no name": {**BUCKET, "secret": "a b"},
    "a server without a scheme": {**BUCKET, "endpoint": "minio:9000"},
    "a server with a path": {**BUCKET, "endpoint": "http://a/b"},
    "a server that is none": {**BUCKET, "endpoint": "http://:9000"},
    "minio without a server": {"uri": "minio://bucket/rows.csv"},
}


@pytest.mark.parametrize("access", ACCESS.values(), ids=ACCESS)
def test_data_that_no_pod_would_reach_are_refused(access):
    with pytest.raises(UsageError) as caught:
        DataAccess(**access)
    assert "\n" not in str(caught.value) and "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "access",
    [
        {"uri": "builtin:cheque-digits"},
        {"uri": "gs://bucket/folder/"},
        {"uri": "/data/rows/", "claim": "rows.v1"},
        {"uri": "minio://bucket/rows.csv", "endpoint": "http://minio-service.kubeflow:9000", "secret": "s"},
        {"uri": URI, "endpoint": "https://[fd00::1]:9000"},
    ],
)
def test_data_that_a_pod_reaches(access):
    assert DataAccess(**access).uri == access["uri"]


# An image in a pipeline of one's own.


@dsl.component(base_image=PORTCULLIS, packages_to_install=[], install_kfp_package=False)
def ours():
    pass


@dsl.component(base_image=f"example.com/theirs@sha256:{'1' * 64}", packages_to_install=[], install_kfp_package=False)
def theirs():
    pass


def mixed(image=PORTCULLIS):
    @secure_pipeline(name="mixed")
    def mixed():
        harden(ours(), secret="portcullis-x").set_env_variable("PORTCULLIS_IMAGE", "stale").set_env_variable("A", "b")
        theirs()

    assert PORTCULLIS.encode() in compiled(mixed)
    return compiled(mixed).replace(PORTCULLIS.encode(), image.encode())


REPOSITORY = PORTCULLIS.rpartition(":")[0]


@pytest.mark.parametrize("image", [PORTCULLIS, f"{REPOSITORY}:0.0.1", REPOSITORY])
def test_an_image_is_put_where_the_releases_own_runs_by_a_tag(image):
    before, configs = parsed(mixed(image))
    after, configs_after = parsed(with_image(mixed(image), IMAGE))
    containers = {name: it["container"] for name, it in after["deploymentSpec"]["executors"].items()}
    assert containers["exec-ours"]["image"] == IMAGE
    env = {it["name"]: it["value"] for it in containers["exec-ours"]["env"]}
    assert env == {"A": "b", "PORTCULLIS_IMAGE": IMAGE} and len(containers["exec-ours"]["env"]) == 2
    # Nothing else has changed.
    assert containers["exec-theirs"] == before["deploymentSpec"]["executors"]["exec-theirs"]["container"]
    container = before["deploymentSpec"]["executors"]["exec-ours"]["container"]
    containers["exec-ours"].update(image=image, env=container["env"])
    assert after == before and configs_after == configs


@pytest.mark.parametrize(
    "image",
    [f"{REPOSITORY}@sha256:{'2' * 64}", f"{REPOSITORY}-fork:1", f"evil.example/{REPOSITORY}:1", "localhost:5000/x"],
)
def test_without_the_releases_own_by_a_tag_there_is_nothing_to_put_an_image_in(image):
    with pytest.raises(UsageError, match="leave out --image"):
        with_image(mixed(image), IMAGE)


def test_one_function_places_the_image_in_a_package_and_in_a_pipeline_of_ones_own():
    (by_tag,) = package(CONFIG, DATA).values()
    (by_digest,) = package(CONFIG, DATA, image=IMAGE).values()
    assert parsed(with_image(by_tag, IMAGE)) == parsed(by_digest)


@pytest.mark.parametrize(
    "data", [b"", b"a: 1\n", b"\xff", b"deploymentSpec: 1\n", b"deploymentSpec: {executors: {a: {container: {}}}}\n"]
)
def test_what_is_no_compiled_pipeline_takes_no_image(data):
    with pytest.raises(PipelineError, match="not a compiled pipeline"):
        with_image(data, IMAGE)
    assert not is_package(data)
