"""Run a pipeline with the kfp local runner, in a process of its own: `python -m portcullis_pipelines.local`.

The runner leaks a temporary directory per task, leaves `print` patched, and reports success of what it did not look at.
So it gets a process, a temporary directory and a pipeline root that its parent deletes; its word is never the verdict.
"""

import json
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from portcullis.errors import MissingDependencyError


def main() -> int:
    """Read `{"arguments": {...}, "root": "/dir"}` from standard input and run the reference pipeline below the root."""
    request = json.load(sys.stdin)
    try:
        from portcullis_pipelines.reference import reference_pipeline
    except ImportError as error:
        raise MissingDependencyError("running needs KFP; run: pip install 'kfp-portcullis[kfp]'") from error

    run_pipeline(reference_pipeline, request["arguments"], Path(request["root"]))
    return 0


def run_pipeline(pipeline: Any, arguments: Mapping[str, Any], root: Path) -> None:
    """Run a pipeline's tasks as subprocesses, one after the other, with this process's environment.

    It leaves `print` patched and a temporary directory per task behind, so call it in a process that ends.

    Args:
        pipeline: A pipeline of KFP, defined here or loaded from YAML.
        arguments: Its arguments.
        root: Where the tasks' artifacts go.

    Raises:
        PipelineError: The pipeline could run past a gate.
        RuntimeError: A task failed; the runner printed why.
    """
    from kfp import local
    from kfp.local import subprocess_task_handler

    from portcullis_pipelines.compile import compiled

    compiled(pipeline)  # lints it: this runner fails open in ways that only the compiled form shows
    subprocess_task_handler.replace_python_executable = _replace_python
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    warnings.filterwarnings("ignore", category=UserWarning, module="kfp")  # that resources are a cluster's, once a task
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    pipeline(**arguments)


def _replace_python(command: Sequence[str], interpreter: str) -> list[str]:
    """Put the interpreter into a task's shell program: `sh -ec PROGRAM code arguments…`.

    kfp puts it, unquoted, wherever `python3` stands in any argument: also in the user's paths and column names.
    """
    shell, option, program, *rest = command
    return [shell, option, program.replace("python3", shlex.quote(interpreter)), *rest]


if __name__ == "__main__":
    sys.exit(main())
