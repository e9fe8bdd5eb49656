"""Bring in a model of another format, in a process that can do no harm: PyTorch's checkpoints, and programs.

A checkpoint becomes safetensors. This is the one place where a pickle is loaded: first the scan must allow the file,
which it does without loading it; then PyTorch's restricted loader (`weights_only=True`) opens it in a locked child
process, which hands back tensors and nothing else. Two nets, and no keys behind them: CVE-2025-32434 ran code through
that loader before PyTorch 2.6.

A program, an exported one or trees in ONNX, becomes a model of an installed architecture. It is translated
(`programs.READERS`), never loaded or run.
"""

import dataclasses
from pathlib import Path
from typing import Any

from portcullis.errors import ModelError, UsageError
from portcullis.files import memory_file, read_bytes
from portcullis.isolation import run_isolated
from portcullis.models.store import MAX_WEIGHTS_BYTES
from portcullis.supply_chain.foreign import ForeignModel, Rows
from portcullis.supply_chain.scan import PROGRAMS, scan_model

MAX_CHECKPOINT_BYTES = 4 * MAX_WEIGHTS_BYTES  # an optimizer's state may be three times the weights
SECONDS = 600.0
MEMORY = 16 << 30


def convert_foreign(path: Path, *, key: str = "", rows: Rows | None = None) -> bytes | ForeignModel:
    """Return the weights of a checkpoint as a safetensors file, or the model that a program is.

    Args:
        path: What `torch.save` wrote of a state dictionary, or of a dictionary that holds one; or what
            `torch.export.save` wrote, or skl2onnx of trees. Its content decides, not its name.
        key: Under which name a checkpoint holds the state dictionary; empty if it is one itself.
        rows: What is said of a program's rows; trees are scaled by it.

    Raises:
        DataError: The file is missing, or is no regular file.
        ModelError: The file is refused, by the scan or as a program; a checkpoint holds no state dictionary there; or
            it is too large.
        MissingDependencyError: PyTorch is missing.
        UsageError: A program was given with a key, or this system cannot lock a process in.
    """
    (scanned,) = scan_model(path)
    if scanned.format in PROGRAMS and key:
        raise UsageError(f"{path} is a program and holds no state dictionary; leave out the key")
    if scanned.refused and scanned.format not in PROGRAMS:
        raise ModelError(f"the checkpoint is refused: {scanned.refused}")
    if not scanned.format.startswith("torch") and scanned.format not in PROGRAMS:
        raise ModelError(
            f"the checkpoint is {scanned.format}, not what torch.save, torch.export.save or skl2onnx writes"
        )
    data = read_bytes(path, limit=MAX_CHECKPOINT_BYTES)
    return _program(data, scanned.format, rows or Rows()) if scanned.format in PROGRAMS else _checkpoint(data, key)


def _checkpoint(data: bytes, key: str) -> bytes:
    weights, _ = _locked("portcullis.supply_chain.restricted:to_safetensors", data, {"key": key})
    return weights


def _program(data: bytes, kind: str, rows: Rows) -> ForeignModel:
    arguments = {"kind": kind, "size": len(data), **dataclasses.asdict(rows)}
    prepare = "portcullis.supply_chain.programs:prepare"
    weights, answer = _locked("portcullis.supply_chain.programs:to_model", data, arguments, prepare)
    match answer:
        case {
            "architecture": str() as name,
            "options": dict() as options,
            "shape": list() as shape,
            "classes": classes,
        }:
            if len(answer) == 4 and name == PROGRAMS[kind] and type(classes) is int:
                return ForeignModel(name, options, tuple(shape), classes, weights)
    raise ModelError("the reader of a program gave no sound answer")


def _locked(function: str, data: bytes, arguments: dict[str, Any], prepare: str = "") -> tuple[bytes, Any]:
    """Run a function on the bytes in a locked child; return what it wrote and what it answered."""
    with memory_file(data) as source, memory_file(b"") as target:
        answer = run_isolated(
            function,
            [source, target],
            arguments,
            seconds=SECONDS,
            memory=MEMORY,
            writes=MAX_WEIGHTS_BYTES,
            prepare=prepare,
        )
        target.seek(0)
        return target.read(), answer
