"""Refuse a compiled pipeline that could run past a gate.

Each rule is a way in which KFP 2.17 fails open without a word:

1. A nested pipeline's input that its caller leaves out is filled, in the local runner, from the caller's input of the
   same name: a gate then judges another artifact, or under another threshold.
2. A nested pipeline that is given artifacts but no parameter takes them from its caller by name, likewise.
3. A cached task replays an old verdict, and its fingerprint does not cover the artifact's bytes.
4. A task that ignores its upstream's failure runs after a gate that refused.
5. A text that a loop's item or a task's output is spliced into reaches a nested pipeline as `null` in the local runner.
6. What a task puts out as a parameter is replaced by the loop's item in a loop beside it, in the local runner.
7. An importer that does not import again takes what once lay at the URI for what lies there now.
"""

from collections.abc import Iterator
from typing import Any

from portcullis.errors import DataError, PipelineError
from portcullis.strict_yaml import load_yaml


def lint(compiled: bytes) -> None:
    """Check a compiled pipeline (its pipeline spec, and the Kubernetes document after it, as KFP writes them).

    Raises:
        PipelineError: It could run past a gate; every problem is named.
    """
    try:
        problems = list(_problems(load_yaml(compiled.split(b"\n---\n")[0])))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"not a compiled pipeline: {error}") from error
    if problems:
        raise PipelineError("; ".join(problems))


def _problems(spec: dict[str, Any]) -> Iterator[str]:
    components = spec.get("components", {})
    dags = {"root": spec["root"]["dag"]} | {
        name: component["dag"] for name, component in components.items() if "dag" in component
    }
    if not dags["root"]["tasks"]:
        yield "the pipeline has no task"
    for name, executor in spec.get("deploymentSpec", {}).get("executors", {}).items():
        if "importer" in executor and not executor["importer"].get("reimport"):
            yield f"importer {name!r} may take an older import for the artifact; call importer(..., reimport=True)"
    for dag_name, dag in dags.items():
        for name, task in dag["tasks"].items():
            component = components[task["componentRef"]["name"]]
            where = f"task {name!r} of {dag_name!r}"
            if "dag" in component:
                yield from _nested_problems(where, task, component)
            elif task.get("cachingOptions", {}).get("enableCache"):
                yield f"{where} may be cached; call set_caching_options(False)"
            ignores = task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
            if ignores and not _is_exit_task(task):
                yield f"{where} runs although what comes before it failed; remove ignore_upstream_failure()"


def _is_exit_task(task: dict[str, Any]) -> bool:
    """Tell whether this is the exit task of a dsl.ExitHandler, which is meant to run last whatever happened.

    A pipeline can be given such a name too; but only what takes no artifact is let through, and so can ship none.
    """
    upstream = task.get("dependentTasks", [])
    named = bool(upstream) and all(name.startswith("exit-handler-") for name in upstream)
    return named and not task.get("inputs", {}).get("artifacts")


def _nested_problems(where: str, task: dict[str, Any], component: dict[str, Any]) -> Iterator[str]:
    declared = component.get("inputDefinitions", {})
    given = task.get("inputs", {})
    # A loop hands its item in by the iterator.
    items = {task.get(iterator, {}).get("itemInput") for iterator in ("parameterIterator", "artifactIterator")}
    for kind in ("parameters", "artifacts"):
        missing = sorted(set(declared.get(kind, {})) - set(given.get(kind, {})) - items)
        for name in missing:
            yield f"{where} leaves out the input {name!r}, which would be filled from its caller by name"
    for name, value in given.get("parameters", {}).items():
        constant = value.get("runtimeValue", {}).get("constant")
        over = task.get("parameterIterator", {}).get("items", {}).get("inputParameter")
        if "parameterIterator" in task and "taskOutputParameter" in value and name != over:
            yield f"{where} is a loop that takes a task's output {name!r}, for which its item may be put in"
        if isinstance(constant, str) and "{{$" in constant:
            yield f"{where} is given a text with something spliced in as {name!r}, which may arrive as null"
    if declared.get("artifacts") and not declared.get("parameters"):
        yield f"{where} is given artifacts but no parameter, and would take them from its caller by name"
