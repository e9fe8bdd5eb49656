"""Run a pipeline with the kfp local runner, in a process of its own: `python -m portcullis_pipelines.local`.

The runner leaks a temporary directory per task, leaves `print` patched, and reports success of what it did not look at.
So it gets a process, a temporary directory and a pipeline root that its parent deletes; its word is never the verdict.
"""

import json
import shlex
import sys
import warnings
from collections.abc import Sequence

from portcullis.errors import MissingDependencyError


def main() -> int:
    """Read `{"arguments": {...}, "root": "/dir"}` from standard input and run the reference pipeline below the root."""
    request = json.load(sys.stdin)
    try:
        from kfp import local
        from kfp.local import subprocess_task_handler
    except ImportError as error:
        raise MissingDependencyError("running needs KFP; run: pip install 'kfp-portcullis[kfp]'") from error

    from portcullis_pipelines.compile import compiled
    from portcullis_pipelines.reference import reference_pipeline

    compiled(reference_pipeline)  # lints it: this runner fails open in ways that only the compiled form shows
    subprocess_task_handler.replace_python_executable = _replace_python
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=request["root"])
    reference_pipeline(**request["arguments"])
    return 0


def _replace_python(command: Sequence[str], interpreter: str) -> list[str]:
    """Put the interpreter into a task's shell program: `sh -ec PROGRAM code arguments…`.

    kfp puts it, unquoted, wherever `python3` stands in any argument: also in the user's paths and column names.
    """
    shell, option, program, *rest = command
    return [shell, option, program.replace("python3", shlex.quote(interpreter)), *rest]


if __name__ == "__main__":
    sys.exit(main())
