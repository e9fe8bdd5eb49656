"""Hardening: every container executor gets its settings, and what cannot be hardened from outside says what to do."""

import doctest
from typing import NamedTuple

import pytest
from compiled_documents import documents
from kfp import components, dsl
from kfp.dsl import Artifact, Dataset, Input

import portcullis.harden
from portcullis.admission.component import admit
from portcullis.container import IMAGE, component
from portcullis.errors import PipelineError, UsageError
from portcullis.harden import (
    COMPONENT_LABEL,
    KEYS_MOUNT,
    LARGE,
    TRUST_MOUNT,
    harden,
    is_hardened,
    secret_name,
    secure_pipeline,
)
from portcullis.pii.component import residual_pii_gate
from portcullis.split.component import split
from portcullis_pipelines.compile import ROOT, compiled, one_task_pipeline, outputs
from portcullis_pipelines.steps import PRIVATE_STEPS, STEPS


def sealing(**settings):
    @dsl.pipeline(name="one")
    def one(sealed: Input[Artifact], signature: Input[Artifact], evidence: Input[Artifact], keys: str, count: str):
        task = admit(sealed=sealed, signature=signature, evidence=evidence)
        parameters = {"keys": keys, "count": count}
        harden(task, **{name: parameters.get(value, value) for name, value in settings.items()})

    return documents(compiled(one))


def test_a_hardened_task_has_every_setting_that_kfp_can_express():
    executors, settings = sealing(secret="keys", gpus="count", resources=LARGE)
    ((name, executor),) = executors.items()
    resources = executor["container"]["resources"]
    assert resources["resourceCpuRequest"] == resources["resourceCpuLimit"] == LARGE.cpu
    assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == LARGE.memory
    assert "gpus" not in resources and "resourceCount" in resources["accelerator"]
    config = settings[name]
    assert config.security_context.run_as_non_root and config.security_context.run_as_user == 10001
    assert config.active_deadline_seconds == LARGE.timeout
    (scratch,) = config.empty_dir_mounts
    assert (scratch.medium, scratch.mount_path, scratch.size_limit) == ("Memory", "/tmp", LARGE.scratch)
    (keys,) = config.secret_as_volume
    assert keys.mount_path == KEYS_MOUNT and keys.HasField("optional") and not keys.optional
    assert keys.secret_name_parameter.component_input_parameter == "keys"
    (trust,) = config.config_map_as_volume
    assert trust.mount_path == TRUST_MOUNT and trust.HasField("optional") and not trust.optional
    assert config.pod_metadata.labels[COMPONENT_LABEL] == "admit"


def test_without_a_secret_nothing_of_a_step_is_mounted_and_no_gpu_is_asked_for():
    executors, settings = sealing()
    ((name, executor),) = executors.items()
    assert not settings[name].secret_as_volume and not settings[name].config_map_as_volume
    assert "accelerator" not in executor["container"]["resources"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"user": 0}, "does not run as root"),
        ({"user": True}, "does not run as root"),
        ({"gpus": -1}, "no number of GPUs"),
        ({"gpus": "1; rm"}, "no number of GPUs"),
        ({"gpus": 1.5}, "no number of GPUs"),
        ({"gpus": 1, "gpu_resource": "nvidia.com/gpu.shared"}, "has for itself"),
        ({"gpus": 1, "gpu_resource": "NVIDIA_TESLA_T4"}, "has for itself"),
    ],
)
def test_what_cannot_be_is_refused(settings, match):
    with pytest.raises(UsageError, match=match):
        sealing(**settings)


def test_a_number_of_gpus_must_be_given_as_text():
    with pytest.raises(UsageError, match="must be a str"):

        @dsl.pipeline
        def wrong(sealed: Input[Artifact], count: int):
            harden(admit(sealed=sealed, signature=sealed, evidence=sealed), gpus=count)


def test_a_gate_says_what_to_do_instead():
    with pytest.raises(UsageError, match="a gate hardens itself, so pass it secret="):

        @dsl.pipeline
        def wrong(dataset: Input[Dataset], evidence: Input[Artifact], keys: str):
            gate = residual_pii_gate(dataset=dataset, evidence=evidence, masking={}, step="residual_pii", secret=keys)
            harden(gate, secret=keys)


def test_a_task_is_hardened_once():
    with pytest.raises(UsageError, match="hardened already"):

        @dsl.pipeline
        def wrong(sealed: Input[Artifact], keys: str):
            harden(harden(admit(sealed=sealed, signature=sealed, evidence=sealed), secret=keys))


@component
def numbers() -> list:
    return [1, 2]


@component
def say(number: int) -> int:
    return number


@component
def last():
    pass


@dsl.pipeline(name="foreign")
def unhardened(number: int):
    say(number=number)


@secure_pipeline(name="inner")
def inner(number: int) -> int:
    return say(number=number).output


@secure_pipeline(name="everything", description="Loops, conditions, handlers, nested pipelines.")
def everything(dataset: Input[Dataset], evidence: Input[Artifact], flag: bool, keys: str):
    with dsl.ExitHandler(last(), name="guarded"):
        with dsl.ParallelFor(numbers().output) as number:
            say(number=number)
            inner(number=number)
        with dsl.If(flag == True):  # noqa: E712 - KFP reads the comparison
            own = say(number=1)
            harden(own, secret=keys)
            assert is_hardened(own)
        residual_pii_gate(
            dataset=dataset, evidence=evidence, masking={"entities": ["EMAIL"]}, step="residual_pii", secret=keys
        )


def test_every_container_of_a_secure_pipeline_is_hardened():
    executors, settings = documents(compiled(everything))
    assert len(executors) == 7
    assert set(settings) == set(executors)
    assert all(config.security_context.run_as_non_root for config in settings.values())
    assert sum(bool(config.secret_as_volume) for config in settings.values()) == 3  # `own`, and both tasks of the gate


def test_a_nested_pipeline_that_nobody_hardened_is_refused():
    @secure_pipeline(name="outer")
    def outer(number: int):
        unhardened(number=number)

    with pytest.raises(PipelineError, match="'say' of 'comp-foreign' may be cached"):
        compiled(outer)


def test_every_executor_of_what_is_shipped_as_a_pipeline_is_hardened():
    checked = 0
    for path, _ in outputs():
        executors, settings = documents(path.read_bytes())
        bare = ("component", "start", "convert", "with_", "survey", "plan", "dependencies")
        if not path.name.startswith(bare):
            containers = {name for name, executor in executors.items() if "container" in executor}
            assert containers and containers == set(settings), path
            assert all(config.config_map_as_volume for config in settings.values()), path
            checked += 1
    assert checked > 15


@pytest.mark.parametrize(("name", "steps"), [("reference.yaml", STEPS), ("private.yaml", PRIVATE_STEPS)])
def test_a_step_mounts_its_own_keys_and_no_other_steps(name, steps):
    _, settings = documents((ROOT / "pipelines" / "portcullis_pipelines" / name).read_bytes())
    text = (ROOT / "pipelines" / "portcullis_pipelines" / name).read_text()
    for step in steps:
        assert secret_name(step.name) in text, step.name
    assert all(len(config.secret_as_volume) <= 1 for config in settings.values())
    # What enforces a verdict needs the trust store only, but for a sealed data set, which it must open.
    enforcing = [config for name, config in settings.items() if name.startswith("exec-enforce")]
    gates_on_data = [it for it in steps if it.kind == "gate" and it.outputs == ("dataset",)]
    assert sum(bool(config.secret_as_volume) for config in enforcing) == len(gates_on_data) < len(enforcing)


def test_a_stage_as_a_pipeline_keeps_its_interface_and_its_settings_when_loaded():
    loaded = components.load_component_from_file(str(ROOT / "components" / "portcullis" / "split" / "pipeline.yaml"))
    own = one_task_pipeline(split)
    assert set(loaded.component_spec.inputs) == set(split.component_spec.inputs) | {"secret", "gpus", "gpu_resource"}
    assert set(loaded.component_spec.outputs) == set(split.component_spec.outputs) == set(own.component_spec.outputs)

    @dsl.pipeline(name="theirs")
    def theirs(dataset: Input[Dataset], evidence: Input[Artifact]) -> NamedTuple("Outputs", [("train", Dataset)]):
        sides = loaded(
            dataset=dataset,
            evidence=evidence,
            test_fraction=0.2,
            step="split",
            secret="portcullis-split",
            gpus="0",
            gpu_resource="nvidia.com/gpu",
        )
        return NamedTuple("Outputs", [("train", Dataset)])(sides.outputs["train"])

    executors, settings = documents(compiled(theirs))
    assert set(settings) == set(executors) == {"exec-split"}
    assert settings["exec-split"].secret_as_volume


def test_the_image_names_the_places_where_keys_and_trust_are_mounted():
    text = (ROOT / "images" / "Containerfile").read_text()
    assert f"PORTCULLIS_KEYS=file:{KEYS_MOUNT}" in text and f"PORTCULLIS_TRUST={TRUST_MOUNT}" in text
    assert "python" in IMAGE


def test_examples_in_docstrings():
    assert doctest.testmod(portcullis.harden).failed == 0
