"""Run a pipeline with the kfp local runner, in a process of its own: `python -m portcullis_pipelines.local`.

The runner leaks a temporary directory per task, leaves `print` patched, and reports success of what it did not look at.
So it gets a process, a temporary directory and a pipeline root that its parent deletes; its word is never the verdict.
"""

import contextlib
import io
import json
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from portcullis import errors
from portcullis.errors import MissingDependencyError, PipelineError, PortcullisError

_CRASHED = "Traceback (most recent call last)"
_ERROR = re.compile(r"^\s*portcullis\.errors\.(\w+): (.*)$", re.MULTILINE)


def main() -> int:
    """Run the reference pipeline as standard input says: `{"arguments": {...}, "root": "/dir", "private": false}`."""
    request = json.load(sys.stdin)
    try:
        from portcullis_pipelines.reference import variant
    except ImportError as error:
        raise MissingDependencyError("running needs KFP; run: pip install 'kfp-portcullis[kfp]'") from error

    # The parent process reads the runner's log.
    _, pipeline = variant(private=request["private"], sharded="shards" in request["arguments"])
    run_pipeline(pipeline, request["arguments"], Path(request["root"]), log=sys.stdout)
    return 0


def guarded(program: Callable[[], object]) -> int:
    """Call a program of one's own as the command `portcullis` calls its verbs, and return the exit code.

    An error is one line on standard error: 0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error.
    """
    from portcullis.cli.main import _guarded

    return _guarded(lambda standalone_mode: program())  # noqa: ARG005 - click's argument


def run_pipeline(pipeline: Any, arguments: Mapping[str, Any], root: Path, *, log: TextIO | None = None) -> None:
    """Run a pipeline's tasks as subprocesses, one after the other, with this process's environment.

    It leaves `print` patched and a temporary directory per task behind, so call it in a process that ends.

    Args:
        pipeline: A pipeline of KFP, defined here or loaded from YAML.
        arguments: Its arguments.
        root: Where the tasks' artifacts go.
        log: Where the runner's and the tasks' output goes as it comes; nowhere when None.

    Raises:
        PipelineError: The pipeline could run past a gate, or a task failed without giving a reason.
        PortcullisError: A task failed; it is what that task said in the end.
    """
    from kfp import local
    from kfp.local import subprocess_task_handler

    from portcullis_pipelines.compile import compiled

    compiled(pipeline)  # lints it: this runner fails open in ways that only the compiled form shows
    subprocess_task_handler.replace_python_executable = _replace_python
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    warnings.filterwarnings("ignore", category=UserWarning, module="kfp")  # that resources are a cluster's, once a task
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    said = _Copy(log)
    try:
        with contextlib.redirect_stdout(said):
            pipeline(**arguments)
    except RuntimeError as error:  # the runner's; its own message names a task and no reason
        raise _reason(said.getvalue()) from error


class _Copy(io.StringIO):
    """Keeps what is written, and passes it on."""

    def __init__(self, through: TextIO | None) -> None:
        super().__init__()
        self._through = through

    def write(self, text: str) -> int:
        if self._through is not None:
            self._through.write(text)
            self._through.flush()
        return super().write(text)


def last_error(said: str, before: str = "") -> PortcullisError | None:
    """Return the last of our errors in a log: a traceback begins with the causes of what was raised in the end.

    Args:
        said: What was logged since the last task was started.
        before: What was logged before. A loop's tasks run side by side, so where nothing crashed in `said`, one that
            was started earlier did, and its error may stand here.
    """
    errors_said = _ERROR.findall(said) or ([] if _CRASHED in said else _ERROR.findall(before))
    for name, message in reversed(errors_said):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, PortcullisError):
            return kind(message)
    return None


def _reason(log: str) -> PortcullisError:
    before, _, log = log.rpartition("Executing task")  # the runner stops at the first task that fails
    if error := last_error(log, before):
        return error
    said = [line for line in log.splitlines() if line.startswith("    ") and line.strip()]  # what the tasks print
    last = " ".join(said[-1].split()) if said else "nothing"
    return PipelineError(f"the pipeline ended without giving a reason; it last said: {last[:300]}")


def _replace_python(command: Sequence[str], interpreter: str) -> list[str]:
    """Put the interpreter into a task's shell program: `sh -ec PROGRAM code arguments…`.

    kfp puts it, unquoted, wherever `python3` stands in any argument: also in the user's paths and column names.
    """
    shell, option, program, *rest = command
    return [shell, option, program.replace("python3", shlex.quote(interpreter)), *rest]


if __name__ == "__main__":
    sys.exit(main())
