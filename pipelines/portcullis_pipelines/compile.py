"""Compile every component and the reference pipeline to YAML: `python -m portcullis_pipelines.compile`.

The files are committed, so that they can be loaded without Python code of ours; a test compiles again and compares.
"""

import inspect
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from portcullis.harden import LARGE, SMALL, Resources, harden, secure_pipeline
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
    "dp_training": "dp_train",
    "membership": "membership_gate",
    "budget": "budget_gate",
    "robustness": "robustness_gate",
    "watermark": "watermark",
    "equivalence": "equivalence_gate",
    "encryption": "encrypt",
    "signing": "sign",
    "admission": "admit",
    "deploy": "deploy",
    "attestation": "attest",
    "supply_chain": "model_scan_gate",
    "sharding": "merge_shards",
}
# What shares a folder with another stage: gates with what they judge, what plans shards, `start_chain`, marking with
# data, `convert_model`, `verify_dependencies`.
BESIDE = {
    "ingest/survey.yaml": ("ingest", "survey_shard"),
    "ingest/plan.yaml": ("ingest", "plan_shards"),
    "pii/gate.yaml": ("pii", "residual_pii_gate"),
    "dp_training/gate.yaml": ("dp_training", "privacy_audit_gate"),
    "robustness/over_shards.yaml": ("robustness", "robustness_gate_over_shards"),
    "watermark/gate.yaml": ("watermark", "verify_watermark_gate"),
    "watermark/with_triggers.yaml": ("watermark", "watermark_with_triggers"),
    "attestation/start.yaml": ("attestation", "start_chain"),
    "supply_chain/convert.yaml": ("supply_chain", "convert_model"),
    "supply_chain/dependencies.yaml": ("supply_chain", "verify_dependencies"),
}
# Stages that need more than a little memory and time.
HEAVY = {"train": LARGE, "dp_train": LARGE, "watermark": LARGE}
# What a pipeline of one task takes besides.
_SETTINGS = {
    "secret": "Name of the Kubernetes Secret with this step's keys.",
    "gpus": "How many GPUs the task asks for, spelt as text; `0` for none.",
    "gpu_resource": "What Kubernetes calls them, such as `nvidia.com/gpu`.",
}


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
    from portcullis_pipelines.reference import private_pipeline, reference_pipeline, sharded_pipeline

    yield Path(__file__).parent / "reference.yaml", reference_pipeline
    yield Path(__file__).parent / "private.yaml", private_pipeline
    yield Path(__file__).parent / "sharded.yaml", sharded_pipeline


def one_task_pipeline(component: Any, resources: Resources = SMALL) -> Any:
    """Return a component as a pipeline of one hardened task, for use as a step of another pipeline.

    Its inputs are the component's, all of them required, and those of `_SETTINGS`.
    """
    signature = inspect.signature(component.python_func)
    inputs = component.component_spec.inputs
    # What a component can do without is left out: a nested pipeline would take it from its caller, by name.
    taken = [it for name, it in signature.parameters.items() if name in inputs and not _may_lack(inputs[name])]
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
    described = {name: spec.description for name, spec in inputs.items()} | _SETTINGS
    arguments = "".join(f"    {it.name}: {described[it.name]}\n" for it in parameters)
    body.__doc__ = f"{component.description}\n\nArgs:\n{arguments}"
    # Under the component's own name, KFP would load the component out of it and leave the rest.
    return secure_pipeline(body, name=f"hardened-{component.name}")


def _may_lack(spec: Any) -> bool:
    return bool(spec.optional) and "@" in spec.type  # an artifact's type has a version


def main() -> int:
    """Write every file."""
    for path, component in outputs():
        path.write_bytes(compiled(component))
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
