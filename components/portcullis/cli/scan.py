"""The verbs for models that come from outside: judge their files, and turn a checkpoint into safetensors."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from portcullis.cli.show import say
from portcullis.errors import ModelError, UsageError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def scan(model: Path, as_json: bool) -> None:  # noqa: FBT001
    """Judge the files of MODEL, a file or a folder, without loading them.

    Allowed is what is plainly a file of tensors: safetensors, what torch.save writes of state dictionaries and
    checkpoints, NumPy arrays of numbers, GGUF, and JSON beside them that names no code. All else is refused, known to
    be harmful or not.
    """
    from portcullis.supply_chain.scan import scan_model

    scanned = scan_model(model)
    refused = [entry for entry in scanned if entry.refused]
    if as_json:
        say(json.dumps({"passed": not refused, "files": [asdict(entry) for entry in scanned]}, indent=2))
    else:
        for entry in scanned:
            found = f"{entry.format}, {entry.tensors:,} tensors" if not entry.refused else f"refused: {entry.refused}"
            say(f"{entry.path or model}: {found}")
    if refused:
        raise ModelError(f"{len(refused)} of {len(scanned)} files refused")


@click.command()
@click.argument("checkpoint", type=_PATH)
@click.option("--output", type=_PATH, required=True, help="The .safetensors file; of a program the model's directory.")
@click.option("--key", default="", help="Name under which the checkpoint holds the state dictionary, such as model.")
@click.option("--labels", default="", help="Of a program: the class names in the order of its outputs, such as 0,1,2.")
@click.option("--low", type=float, default=None, help="Of a program: least raw feature value, its 0. Default: 0.")
@click.option("--high", type=float, default=None, help="Of a program: greatest raw feature value, its 1. Default: 1.")
def convert(checkpoint: Path, output: Path, key: str, labels: str, low: float | None, high: float | None) -> None:
    """Turn CHECKPOINT, which torch.save wrote, into a safetensors file, or a program into a model.

    A checkpoint is scanned first, then loaded by PyTorch's restricted loader in a process without keys, environment,
    network, files or further processes. A program, which torch.export.save wrote (.pt2), is translated in such a
    process, and never loaded; so are scikit-learn's trees, which skl2onnx wrote (.onnx).
    """
    from portcullis.files import write_bytes
    from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, load_model_files, save_model_files
    from portcullis.supply_chain.convert import convert_foreign
    from portcullis.supply_chain.foreign import ForeignModel, Rows

    rows = Rows(0 if low is None else low, 1 if high is None else high, tuple(filter(None, labels.split(","))))
    found = convert_foreign(checkpoint, key=key, rows=rows)
    if isinstance(found, ForeignModel):
        if not labels:
            raise UsageError(f"{checkpoint} is a program: name its {found.classes} classes with --labels")
        if output.exists() and not _is_model(output):
            raise UsageError(f"{output} is there and is no model; name another --output")
        spec = found.spec(rows.low, rows.high, labels.split(","))
        files = {SPEC_FILE: spec.to_json(), WEIGHTS_FILE: found.weights}
        load_model_files(files)
        digest = save_model_files(output, files)
        say(f"model {digest[:16]} in {output}: {spec.architecture}, inputs {list(spec.shape)}, {found.classes} classes")
        return
    if labels or low is not None or high is not None:
        raise UsageError(f"{checkpoint} is a checkpoint, which knows no classes; leave out --labels, --low and --high")
    if output.is_dir():
        raise UsageError(f"{output} is a directory; name the safetensors file")
    write_bytes(output, found)
    say(f"{len(found):,} bytes in {output}")


def _is_model(path: Path) -> bool:
    """Tell whether a directory holds a model's files, or nothing: what may be replaced by another model."""
    from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE

    return path.is_dir() and {it.name for it in path.iterdir()} in ({SPEC_FILE, WEIGHTS_FILE}, set())
