"""Run a pipeline with the kfp local runner, in a process of its own: `python -m portcullis_pipelines.local`.

The runner leaks a temporary directory per task, leaves `print` patched, and reports success of what it did not look at.
So it gets a process, a temporary directory and a pipeline root that its parent deletes; its word is never the verdict.
"""

import json
import sys
import warnings

from portcullis.errors import MissingDependencyError


def main() -> int:
    """Read `{"arguments": {...}, "root": "/dir"}` from standard input and run the reference pipeline below the root."""
    request = json.load(sys.stdin)
    try:
        from kfp import local
    except ImportError as error:
        raise MissingDependencyError("running needs KFP; run: pip install 'kfp-portcullis[kfp]'") from error

    from portcullis_pipelines.compile import compiled
    from portcullis_pipelines.reference import reference_pipeline

    compiled(reference_pipeline)  # lints it: this runner fails open in ways that only the compiled form shows
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=request["root"])
    reference_pipeline(**request["arguments"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
