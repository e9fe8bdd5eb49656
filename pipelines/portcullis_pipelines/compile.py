"""Compile every component and the reference pipeline to YAML: `python -m portcullis_pipelines.compile`.

The files are committed, so that they can be loaded without Python code of ours; a test compiles again and compares.
"""

import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from portcullis_pipelines.lint import lint

ROOT = Path(__file__).parents[2]
# Folder below components/portcullis, and the component or gate in its component.py that is the stage.
STAGES = {
    "preflight": "preflight",
    "ingest": "ingest",
    "pii": "mask_pii",
    "split": "split",
    "training": "train",
    "robustness": "robustness_gate",
    "encryption": "encrypt",
    "admission": "admit",
    "deploy": "deploy",
}
# Gates that share a folder with the stage that they judge.
GATES = {"pii/gate.yaml": ("pii", "residual_pii_gate")}


def compiled(component: Any) -> bytes:
    """Return a component or pipeline as KFP compiles it.

    Raises:
        PipelineError: It could run past a gate.
    """
    from kfp import compiler
    from kfp.dsl.graph_component import GraphComponent

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(path))
        text = path.read_bytes()
    if isinstance(component, GraphComponent):
        lint(text)
    return text


def outputs() -> Iterator[tuple[Path, Any]]:
    """Yield every committed file and what it is compiled from."""
    folder = ROOT / "components" / "portcullis"
    for name, stage in STAGES.items():
        yield folder / name / "component.yaml", getattr(import_module(f"portcullis.{name}.component"), stage)
    for path, (name, gate) in GATES.items():
        yield folder / path, getattr(import_module(f"portcullis.{name}.component"), gate)
    from portcullis_pipelines.reference import reference_pipeline

    yield Path(__file__).parent / "reference.yaml", reference_pipeline


def main() -> int:
    """Write every file."""
    for path, component in outputs():
        path.write_bytes(compiled(component))
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
