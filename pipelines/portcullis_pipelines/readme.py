"""Write what the READMEs say of interfaces and steps: `python -m portcullis_pipelines.readme`.

Each stands between two markers, `<!-- name -->` and `<!-- /name -->`: a stage's inputs and outputs, where the name is a
compiled file beside its README, and in the README of the repository `steps` and `picture`. A test writes them again and
compares.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docstring_parser

from portcullis.errors import UsageError
from portcullis.files import write_bytes
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.compile import BESIDE, ROOT, STAGES
from portcullis_pipelines.picture import mermaid
from portcullis_pipelines.steps import STEPS

_TYPES = {
    "STRING": "str",
    "NUMBER_INTEGER": "int",
    "NUMBER_DOUBLE": "float",
    "BOOLEAN": "bool",
    "LIST": "list",
    "STRUCT": "dict",
}


def interface(compiled: bytes) -> str:
    """Return the inputs and the outputs of a compiled component or gate as two Markdown tables."""
    spec = load_yaml(compiled.split(b"\n---\n")[0])
    words = _docstring(spec)
    return "\n\n".join(
        _table(
            (f"{side.capitalize()}", "Type", "What"),
            (
                (f"`{name}`", _type(entry), _what(entry, words.get(name, "")))
                for kind in ("artifacts", "parameters")
                for name, entry in spec["root"][f"{side}Definitions"].get(kind, {}).items()
            ),
        )
        for side in ("input", "output")
        if f"{side}Definitions" in spec["root"]
    )


def steps() -> str:
    """Return the steps of the reference pipeline as a Markdown table, each linked to its stage's README."""
    folders = {stage: folder for folder, stage in STAGES.items()} | {stage: folder for folder, stage in BESIDE.values()}
    return _table(
        ("Step", "Kind", "Refuses", "Stands against", "Does not defend against"),
        (
            (
                f"[{step.name}](components/portcullis/{folders[step.stage]}/README.md)",
                step.kind,
                step.refuses,
                step.threat,
                step.limits,
            )
            for step in STEPS
        ),
    )


def outputs() -> Iterator[tuple[Path, str]]:
    """Yield every README with a generated part, and what it should say.

    Raises:
        UsageError: A README is missing, or lacks a pair of markers.
    """
    for folder in STAGES:
        here = ROOT / "components" / "portcullis" / folder
        own = here / "component.yaml"
        files = [
            own if own.exists() else here / "pipeline.yaml",
            *(here.parent / path for path, (owner, _) in BESIDE.items() if owner == folder),
        ]
        yield (
            here / "README.md",
            _filled(here / "README.md", {path.name: interface(path.read_bytes()) for path in files}),
        )
    readme = ROOT / "README.md"
    yield readme, _filled(readme, {"steps": steps(), "picture": f"```mermaid\n{mermaid()}```"})


def main() -> int:
    """Write every README."""
    for path, text in outputs():
        write_bytes(path, text.encode())
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


def _docstring(spec: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what a component's docstring says of each argument: of artifacts put out, KFP tells it nowhere else."""
    executors = list(spec["deploymentSpec"]["executors"].values())
    if len(executors) != 1:
        return {}
    module = ast.parse(executors[0]["container"]["command"][-1])
    (function,) = (node for node in module.body if isinstance(node, ast.FunctionDef))
    parsed = docstring_parser.parse(ast.get_docstring(function) or "")
    return {argument.arg_name: argument.description or "" for argument in parsed.params}


def _type(entry: Mapping[str, Any]) -> str:
    if "artifactType" in entry:
        return str(entry["artifactType"]["schemaTitle"]).removeprefix("system.")
    return f"`{_TYPES[entry['parameterType']]}`"


def _what(entry: Mapping[str, Any], otherwise: str) -> str:
    text = entry.get("description", otherwise)
    return f"{text} Default: `{entry['defaultValue']}`." if "defaultValue" in entry else text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _filled(path: Path, parts: Mapping[str, str]) -> str:
    text = path.read_text("utf-8") if path.is_file() else ""
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
            raise UsageError(f"{path} needs the markers {start} and {end}, once each")
        text = f"{text[: text.index(start)]}{start}\n\n{part}\n\n{text[text.index(end) :]}"
    return text


if __name__ == "__main__":
    sys.exit(main())
