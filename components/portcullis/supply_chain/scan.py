"""Judge model files without loading them: only what is plainly a file of tensors is allowed.

A file is known by its first bytes, never by its name, and is refused if a reader of another format would take it for
one of its own: what is sound as the one can run code as the other. Every file of a model is judged, and one that is
refused refuses the model; there is no verdict between the two, and nothing is skipped. The files are parsed in a locked
child process.
"""

import contextlib
import os
import stat
import tarfile
import zipfile
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
from portcullis.supply_chain.pickled import PickledTensors, may_import
from portcullis.supply_chain.torch_files import read_legacy_torch, read_torch_archive
from portcullis.supply_chain.zips import has_member, read_npz

MAX_FILES = 500
MAX_JSON_BYTES = 16 << 20
SECONDS = 600.0
MEMORY = 4 << 30
# Formats that say what a network does: refused here, where nothing is translated; and of what architecture the models
# are that `convert` makes of them.
PROGRAMS = {"exported program": "exported-graph", "onnx": "tree-ensemble"}
_ZIP_MAGIC = b"PK\x03\x04"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# How much of a file Python's pickle machine is followed through, if it got so far.
_PICKLE_BYTES = 1 << 20
# What makes a library that reads a model's JSON import code, or render a program; Keras names layers by the last three.
_PROGRAMS = {
    *("auto_map", "auto_mapping", "chat_template", "custom_pipeline", "custom_pipelines", "parent_library"),
    *("trust_remote_code", "class_name", "function_type", "registered_name"),
}


@dataclass(frozen=True)
class ScannedFile:
    """What became of one file.

    Attributes:
        path: Relative to the model; of a model that is one file, its name.
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
    folder = path.is_dir()
    names = [entry.path for entry in tree_files(path)] if folder else [path.name]
    if not names or len(names) > MAX_FILES:
        raise DataError(f"{path} holds no files, or more than {MAX_FILES}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(path / name if folder else path)) for name in names]
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
        _require_one_format(stream, size, kind)
    except ModelError as error:
        return {"path": name, "format": kind, "tensors": 0, "elements": 0, "refused": str(error)}
    return {"path": name, "format": kind, "tensors": found.tensors, "elements": found.elements, "refused": ""}


def _require_one_format(stream: BinaryIO, size: int, kind: str) -> None:
    """Refuse a file that a reader of another format would take for one of its own."""
    stream.seek(0)
    head = read_full(stream, min(size, _PICKLE_BYTES if kind in ("safetensors", "gguf") else tarfile.BLOCKSIZE))
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        raise ModelError("it is a tar archive as well")
    if not head.startswith(_ZIP_MAGIC) and zipfile.is_zipfile(stream):
        raise ModelError("it is a zip archive as well")
    if kind in ("safetensors", "gguf") and may_import(head, size):
        raise ModelError("it is a pickle as well")
    place = 0  # HDF5 may lie behind anything, of a length that is a power of two
    while place < size:
        stream.seek(place)
        if read_full(stream, len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            raise ModelError("it is an HDF5 file as well")
        place = max(512, 2 * place)


_Judge = Callable[[BinaryIO, int], Tensors | PickledTensors]


def _format(stream: BinaryIO, name: str) -> tuple[str, _Judge]:
    stream.seek(0)
    start = read_full(stream, 10)
    if start.startswith(_ZIP_MAGIC):
        # By the first member's name: whichever reader is chosen refuses what it does not know.
        stream.seek(26)
        name_length = int.from_bytes(read_full(stream, 2), "little")
        stream.seek(30)
        first = read_full(stream, name_length)
        if first.endswith(b".npy"):
            return "numpy archive", read_npz
        if not first.endswith(b"/data.pkl") and has_member(stream, "archive_format"):
            return "exported program", _refuse_program
        return "torch", read_torch_archive
    if start.startswith(b"\x93NUMPY"):
        return "numpy", read_npy
    if start.startswith(b"GGUF"):
        return "gguf", read_gguf
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors", read_safetensors
    if start.startswith(b"\x80"):
        return "torch (legacy)", read_legacy_torch
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
    values: list[Any] = [document]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if named := sorted(_PROGRAMS & value.keys()):
                raise ModelError(f"its JSON has {named[0]}, which makes libraries run code")
            values += value.values()
        elif isinstance(value, list):
            values += value
    return Tensors(0, 0)
