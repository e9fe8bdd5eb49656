"""The verbs for models that come from outside: judge their files, and turn a checkpoint into safetensors."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from portcullis.cli.show import say
from portcullis.errors import ModelError

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
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .safetensors file.")
@click.option("--key", default="", help="Name under which the checkpoint holds the state dictionary, such as model.")
def convert(checkpoint: Path, output: Path, key: str) -> None:
    """Turn CHECKPOINT, which torch.save wrote, into a safetensors file.

    It is scanned first, then loaded by PyTorch's restricted loader in a process without keys, environment, network,
    files or further processes.
    """
    from portcullis.files import write_bytes
    from portcullis.supply_chain.convert import convert_checkpoint

    data = convert_checkpoint(checkpoint, key=key)
    write_bytes(output, data)
    say(f"{len(data):,} bytes in {output}")
