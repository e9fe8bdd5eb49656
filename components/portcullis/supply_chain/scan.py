"""Judge model files without loading them: only what is plainly a file of tensors is allowed.

A file is known by its first bytes, never by its name. Every file of a model is judged, and one that is refused refuses
the model; there is no verdict between the two, and nothing is skipped. The files are parsed in a locked child process.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from portcullis.digest import tree_files
from portcullis.errors import DataError, ModelError
from portcullis.files import read_full
from portcullis.isolation import run_isolated
from portcullis.safetensors_header import strict_json
from portcullis.supply_chain.headers import Tensors, read_gguf, read_npy, read_safetensors
from portcullis.supply_chain.pickled import PickledTensors
from portcullis.supply_chain.torch_files import read_legacy_torch, read_torch_archive
from portcullis.supply_chain.zips import has_member, read_npz

MAX_FILES = 500
MAX_JSON_BYTES = 16 << 20
SECONDS = 600.0
MEMORY = 4 << 30
# Formats that say what a network does: refused here, where nothing is translated; and of what architecture the models
# are that `convert` makes of them.
PROGRAMS = {"exported program": "exported-graph", "onnx": "tree-ensemble"}
# What makes a library that reads a model's JSON import code, or render a program.
_PROGRAMS = ("auto_map", "custom_pipelines", "chat_template", "trust_remote_code")


@dataclass(frozen=True)
class ScannedFile:
    """What became of one file.

    Attributes:
        path: Relative to the model; empty for a model that is one file.
        format: What its first bytes say it is; empty if it is no file of tensors.
        tensors: How many it holds.
        elements: Of all of them.
        refused: Why it was refused; empty if it was not.
    """

    path: str
    format: str
    tensors: int
    elements: int
    refused: str


def scan_model(path: Path) -> tuple[ScannedFile, ...]:
    """Judge every file of a model, a file or a directory.

    Returns:
        One entry per file, in the order of their paths.

    Raises:
        DataError: It is missing, empty, holds a link or a special file, or more than MAX_FILES files.
        ModelError: A file brought its parser down, or took too long.
        UsageError: This system cannot lock the parser in.
    """
    names = [entry.path for entry in tree_files(path)] if path.is_dir() else [""]
    if not names or len(names) > MAX_FILES:
        raise DataError(f"{path} holds no files, or more than {MAX_FILES}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path / name if name else path)) for name in names]
        found = run_isolated(
            "portcullis.supply_chain.scan:scan_files", files, {"names": names}, seconds=SECONDS, memory=MEMORY
        )
    try:
        scanned = tuple(ScannedFile(**entry) for entry in found)
    except TypeError as error:
        raise ModelError("the scan of a model gave no sound answer") from error
    if [entry.path for entry in scanned] != names:
        raise ModelError("the scan of a model gave no sound answer")
    return scanned


def _open(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DataError(f"{path} is not a regular file")
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def scan_files(*files: BinaryIO, names: Sequence[str]) -> list[dict[str, Any]]:
    """Judge open files; this is what the child process does.

    Returns:
        The fields of one ScannedFile for each.
    """
    return [_scan(file, name) for file, name in zip(files, names, strict=True)]


def _scan(stream: BinaryIO, name: str) -> dict[str, Any]:
    size = os.fstat(stream.fileno()).st_size
    kind = ""
    try:
        kind, judge = _format(stream, name)
        stream.seek(0)
        found = judge(stream, size)
    except ModelError as error:
        return {"path": name, "format": kind, "tensors": 0, "elements": 0, "refused": str(error)}
    return {"path": name, "format": kind, "tensors": found.tensors, "elements": found.elements, "refused": ""}


_Judge = Callable[[BinaryIO, int], Tensors | PickledTensors]


def _format(stream: BinaryIO, name: str) -> tuple[str, _Judge]:
    stream.seek(0)
    start = read_full(stream, 10)
    if start.startswith(b"PK\x03\x04"):
        # The first member's name: whichever reader is chosen refuses what it does not know.
        if has_member(stream, "archive_format"):
            return "exported program", _refuse_program
        stream.seek(26)
        name_length = int.from_bytes(read_full(stream, 2), "little")
        stream.seek(30)
        is_numpy = read_full(stream, name_length).endswith(b".npy")
        return ("numpy archive", read_npz) if is_numpy else ("torch", read_torch_archive)
    if start.startswith(b"\x93NUMPY"):
        return "numpy", read_npy
    if start.startswith(b"GGUF"):
        return "gguf", read_gguf
    if start.startswith(b"\x80"):
        return "torch (legacy)", read_legacy_torch
    if start[8:9] == b"{":
        return "safetensors", read_safetensors
    if start.startswith(b"{") and name.endswith(".json"):
        return "json", _read_json
    # ONNX has no magic number: its version, 1 to 31, then another of its first fields.
    if (
        start[:1] == b"\x08"
        and b"\x01" <= start[1:2] <= b"\x1f"
        and start[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x3a", b"\x42")
    ):
        return "onnx", _refuse_onnx
    raise ModelError("it is no file of tensors")


def _refuse_program(stream: BinaryIO, size: int) -> Tensors:  # noqa: ARG001 - a judge's signature
    raise ModelError(
        "it is a program, whose own loader runs code of the file; `portcullis convert` makes a model of it"
    )


def _refuse_onnx(stream: BinaryIO, size: int) -> Tensors:  # noqa: ARG001
    raise ModelError("it is a program; `portcullis convert` makes a model of it where it is an ensemble of trees")


def _read_json(stream: BinaryIO, size: int) -> Tensors:
    """Judge a description that lies beside tensors: data, and nothing that names a program."""
    if size > MAX_JSON_BYTES:
        raise ModelError(f"its JSON is larger than {MAX_JSON_BYTES} bytes")
    document = strict_json(read_full(stream, size))
    if named := [name for name in _PROGRAMS if name in document]:
        raise ModelError(f"its JSON has {named[0]}, which makes libraries run code")
    return Tensors(0, 0)
