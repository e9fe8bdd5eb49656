"""What a compiled pipeline asks of a cluster, read from its two YAML documents before anything is sent.

The first document is KFP's pipeline specification, the second its Kubernetes settings. Both are parsed strictly, with
KFP's own protos too: a field that KFP does not know, and would drop without a word, is refused. What a task gets is
followed through the nested pipelines down from the root's defaults; what only a run can tell stays unknown (None).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import DataError, MissingDependencyError, PipelineError, UsageError
from portcullis.kubernetes_names import IMAGE, require_gpu_resource
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.lint import lint

try:
    from google.protobuf import json_format
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec
except ImportError as error:
    raise MissingDependencyError("pipelines need KFP; run: pip install 'kfp-portcullis[kfp]'") from error

MAX_TASKS = 10_000

_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
_ALTERED = (
    *(DataError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError),
    json_format.Error,
)


@dataclass(frozen=True)
class Parameter:
    """An argument that a run can be given.

    Attributes:
        kind: KFP's parameter type, such as `STRING` or `NUMBER_INTEGER`.
        required: Whether a run must be given it.
    """

    kind: str
    required: bool


@dataclass(frozen=True)
class Task:
    """One container task. A name that only the run can tell is None.

    Attributes:
        path: Names of the nested pipelines around it and its own, joined by slashes.
        secrets: The Secrets without which its pod does not start: name to the keys that it must have for that.
        config_maps: Names of the ConfigMaps that it mounts, likewise.
        claims: Names of the PersistentVolumeClaims that it mounts.
        gpus: How many GPUs it asks for, as the package spells it; `0` for none.
        gpu_resource: What Kubernetes calls them; empty when it asks for none.
    """

    path: str
    secrets: Mapping[str | None, frozenset[str]]
    config_maps: tuple[str | None, ...]
    claims: tuple[str | None, ...]
    gpus: str | None
    gpu_resource: str | None


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        data: Its bytes.
        digest: Their SHA-256.
        name: The pipeline's name.
        parameters: What a run can be given, by name.
        images: The image of each container executor, by the executor's name.
        tasks: Its container tasks, with the defaults of its parameters.
    """

    data: bytes
    digest: str
    name: str
    parameters: Mapping[str, Parameter]
    images: Mapping[str, str]
    tasks: tuple[Task, ...]

    def require_pinned(self) -> None:
        """Check that every image is named by digest.

        Raises:
            UsageError: One is not, so that what runs could be another image than was meant.
        """
        loose = {name: image for name, image in self.images.items() if not IMAGE.fullmatch(image)}
        if loose:
            name, image = next(iter(loose.items()))
            more = f", as are those of {len(loose) - 1} more" if len(loose) > 1 else ""
            raise UsageError(
                f"the image of executor {name!r}, {image[:200]!r}, is named without a digest{more}; --image "
                "REFERENCE@sha256:… names the release's own, any other is to be named where it is compiled"
            )

    def gpu_line(self) -> str:
        """Say in one line which GPUs the package asks for."""
        asking: dict[str, list[str]] = {}
        for task in self.tasks:
            if task.gpus != "0":
                asked = f"{task.gpus or 'a number that the run tells'} x {task.gpu_resource or 'a kind that it tells'}"
                asking.setdefault(asked, []).append(task.path)
        if not asking:
            return "asks for no GPU"
        return "asks for " + "; ".join(f"{asked} for {', '.join(paths)}" for asked, paths in asking.items())


def inspect(data: bytes) -> Package:
    """Read a compiled pipeline and refuse one that could run past a gate or outside its Kubernetes settings.

    Args:
        data: The YAML that KFP's compiler wrote: at most two documents.

    Raises:
        PipelineError: It is no such YAML, holds a field that KFP does not know, could run past a gate, or has a
            container that may run as root.
    """
    lint(data)
    try:
        spec, settings = _as_kfp_reads_it(data)
        lint(json.dumps(spec).encode())
        executors = spec["deploymentSpec"].get("executors", {})
        images = {
            name: _image(name, executor) for name, executor in sorted(executors.items()) if "importer" not in executor
        }
        _check_hardened(images, settings)
        inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        defaults = {name: declared.get("defaultValue") for name, declared in inputs.items()}
        tasks = tuple(sorted(_tasks(spec, settings, defaults), key=lambda task: task.path))
        name = spec["pipelineInfo"]["name"]
        for shown in (name, *inputs, *(task.path for task in tasks)):
            if not isinstance(shown, str) or not shown.isprintable():
                raise PipelineError(f"not a compiled pipeline: it holds the name {shown!a:.80}")
        parameters = {
            key: Parameter(it["parameterType"], "defaultValue" not in it and not it.get("isOptional", False))
            for key, it in inputs.items()
        }
    except _ALTERED as error:
        raise PipelineError(f"not a compiled pipeline: {type(error).__name__}: {error}") from error
    return Package(data, sha256(data), name, parameters, images, tasks)


def arguments(package: Package, given: Iterable[str]) -> dict[str, Any]:
    """Read a run's arguments as a person writes them.

    Args:
        package: The pipeline, whose parameters say how to read each.
        given: `KEY=VALUE`. Text is taken as it is, everything else as JSON.

    Raises:
        UsageError: An argument is unknown, given twice, or not of its type, or a required one is missing; or
            `gpu_resource`, which every pipeline of Portcullis names so, is one that pods share.
    """
    result: dict[str, Any] = {}
    for pair in given:
        name, separator, text = pair.partition("=")
        if not separator or name not in package.parameters:
            known = ", ".join(sorted(package.parameters)) or "none"
            raise UsageError(f"{pair[:80]!r} is no KEY=VALUE of this pipeline; it knows {known}")
        if name in result:
            raise UsageError(f"argument {name} is given twice")
        result[name] = _value(name, package.parameters[name].kind, text)
    missing = sorted(name for name, it in package.parameters.items() if it.required and name not in result)
    if "gpu_resource" in result:
        require_gpu_resource(result["gpu_resource"])
    if missing:
        raise UsageError("the pipeline needs " + ", ".join(f"--argument {name}=…" for name in missing))
    return result


_KINDS: Mapping[str, tuple[type, ...]] = {
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def _value(name: str, kind: str, text: str) -> Any:
    if kind == "STRING":
        return text

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"argument {name} is not JSON, as a {kind} must be: {error}") from error
    if type(value) not in _KINDS.get(kind, ()):
        raise UsageError(f"argument {name} is not a {kind}")
    return value


def _as_kfp_reads_it(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the specification and each executor's Kubernetes settings, through KFP's protos and back.

    A proto takes a field under two spellings, `cachingOptions` and `caching_options`; after this there is one.
    """
    # A line of three hyphens ends a document wherever it stands, so this is where KFP's client splits them too; what
    # it would split elsewhere, the strict reader refuses as a second document.
    documents = [load_yaml(part) for part in data.split(b"\n---\n")]
    if len(documents) > 2:
        raise DataError(f"{len(documents)} YAML documents; KFP writes one or two")
    spec = _through(documents[0], PipelineSpec())
    spec["deploymentSpec"] = _through(spec["deploymentSpec"], PipelineDeploymentConfig())
    platform = _through(documents[1], PlatformSpec()) if len(documents) == 2 else {"platforms": {"kubernetes": {}}}
    if set(platform["platforms"]) != {"kubernetes"}:
        raise DataError("the second document is for other platforms than kubernetes")
    configs = platform["platforms"]["kubernetes"].get("deploymentSpec", {}).get("executors", {})
    return spec, {name: _through(config, KubernetesExecutorConfig()) for name, config in configs.items()}


def _through(value: Any, message: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json_format.MessageToDict(json_format.ParseDict(value, message))
    return parsed


def _image(name: str, executor: Mapping[str, Any]) -> str:
    if set(executor) != {"container"}:
        raise DataError(f"executor {name!r} is neither a container nor an importer")
    image: str = executor["container"]["image"]
    return image


def _check_hardened(images: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    for name in images:
        context = settings.get(name, {}).get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") == "0":  # 64-bit numbers are text
            raise PipelineError(
                f"executor {name!r} has no Kubernetes settings that keep it from running as root; "
                "harden its task (portcullis.harden) and compile again"
            )


def _tasks(spec: Mapping[str, Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Task]:
    """Yield the container tasks at every level; the root's inputs are `defaults`."""
    waiting: list[tuple[Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]] = [(spec["root"]["dag"], defaults, ())]
    count = 0
    while waiting:
        dag, known, around = waiting.pop()
        for name, task in dag["tasks"].items():
            count += 1
            if count > MAX_TASKS:  # a component that holds itself would never end
                raise DataError(f"more than {MAX_TASKS} tasks")
            component = spec["components"][task["componentRef"]["name"]]
            inputs, path = _inputs(component, task, known), (*around, name)
            if "dag" in component:
                waiting.append((component["dag"], inputs, path))
                continue
            label = component["executorLabel"]
            container = spec["deploymentSpec"]["executors"][label].get("container")
            if container:
                yield _task("/".join(path), container, settings[label], known, inputs)


def _inputs(component: Mapping[str, Any], task: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    result = {name: it.get("defaultValue") for name, it in declared.items()}
    given = task.get("inputs", {}).get("parameters", {})
    return result | {name: _source(it, known) for name, it in given.items()}


def _source(source: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    if "componentInputParameter" in source:
        return known.get(source["componentInputParameter"])
    return source.get("runtimeValue", {}).get("constant")


def _task(
    path: str,
    container: Mapping[str, Any],
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> Task:
    def required(setting: str) -> list[Mapping[str, Any]]:
        return [it for it in config.get(setting, []) if not it.get("optional")]

    def names(setting: str, parameter: str) -> tuple[str | None, ...]:
        return tuple(_text(_source(it[parameter], known)) for it in required(setting))

    secrets: dict[str | None, frozenset[str]] = {}
    for it in (*required("secretAsVolume"), *required("secretAsEnv")):
        name = _text(_source(it["secretNameParameter"], known))
        keys = frozenset(pair["secretKey"] for pair in it.get("keyToEnv", []))
        secrets[name] = secrets.get(name, frozenset()) | keys
    accelerator = container.get("resources", {}).get("accelerator")
    return Task(
        path=path,
        secrets=secrets,
        config_maps=names("configMapAsVolume", "configMapNameParameter"),
        claims=names("pvcMount", "pvcNameParameter"),
        gpus=_filled(accelerator["resourceCount"], inputs) if accelerator else "0",
        gpu_resource=_filled(accelerator["resourceType"], inputs) if accelerator else "",
    )


def _filled(text: str, inputs: Mapping[str, Any]) -> str | None:
    placeholder = _PLACEHOLDER.fullmatch(text)
    return _text(inputs.get(placeholder[1])) if placeholder else text


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
