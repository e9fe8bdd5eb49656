"""Targets that judge model files: pickles, archives, and the headers of tensor files."""

import collections
import io
import json
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch

from fuzz import Target
from portcullis.errors import ModelError
from portcullis.supply_chain.headers import Tensors, read_gguf, read_npy, read_safetensors
from portcullis.supply_chain.onnx_trees import read_trees
from portcullis.supply_chain.pickled import PickledTensors, read_pickle
from portcullis.supply_chain.torch_files import read_torch_archive
from portcullis.supply_chain.zips import read_npz

_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\0\x30X\x03\0\0\0cpuK\x0ctQK\0K\x03K\x04\x86K\x04K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtR"
)
_STATE = b"\x80\x02}q\0X\x06\0\0\0weight" + _TENSOR + b"s."
_ORDERED = b"\x80\x02ccollections\nOrderedDict\n)Rq\0(X\x01\0\0\0a" + _TENSOR + b"u}X\x01\0\0\0_h\0sb."
_CHECKPOINT = (
    b"\x80\x02}(X\x05\0\0\0epochK\x03X\x04\0\0\0loss]G?\xe0\0\0\0\0\0\0aX\x04\0\0\0sizectorch\nSize\nK\x02\x85\x85Ru."
)


class _Stand(collections.OrderedDict[Any, Any]):
    """Whatever a pickle makes, as far as Python's own machine is concerned."""

    def __init__(self, *_: object) -> None:
        super().__init__()


class _Watched(pickle.Unpickler):
    """Python's own machine, which tells which names it is asked to import, and imports none of them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}")
        return _Stand

    def persistent_load(self, pid: Any) -> Any:
        assert pid[0] == "storage"
        return _Stand()


def fuzz_pickle(data: bytes) -> None:
    """What is accepted, Python's own machine reads too, and it imports nothing but what describes tensors."""
    try:
        found = read_pickle(data)
    except ModelError:
        return
    read = data[: found.end]
    assert [position for *_, position in pickletools.genops(read)][-1] == found.end - 1
    watched = _Watched(read)
    watched.load()
    described = {"collections.OrderedDict", "torch.Size", "torch.storage.UntypedStorage"}
    for name in watched.names - described:
        module, _, attribute = name.rpartition(".")
        assert module in ("torch", "torch._utils"), name
        assert (
            attribute.startswith("_rebuild_")
            if module == "torch._utils"
            else attribute.islower() or (attribute.endswith("Storage"))
        ), name
    assert all(storage.elements >= 0 for storage in found.storages.values())


def _judge(judge: Callable[[BinaryIO, int], Tensors | PickledTensors], data: bytes) -> Tensors | PickledTensors | None:
    try:
        return judge(io.BytesIO(data), len(data))
    except ModelError:
        return None


def fuzz_archive(data: bytes) -> None:
    """What is accepted has one reading: each member lies where its header is, and PyTorch finds the same ones."""
    checkpoint = _judge(read_torch_archive, data)
    if not (checkpoint or _judge(read_npz, data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = sorted(archive.infolist(), key=lambda it: it.header_offset)
    heads = [match.start() for match in re.finditer(b"PK\x03\x04", data)]
    for member in members:
        assert member.header_offset in heads
        assert data.startswith(member.orig_filename.encode("cp437"), member.header_offset + 30)
    if checkpoint:
        try:
            reader = torch._C.PyTorchFileReader(io.BytesIO(data))  # noqa: SLF001 - what torch.load reads by
        except (RuntimeError, UnicodeDecodeError):  # it lacks what PyTorch wants besides, and is told so by its names
            return
        roots = {member.filename.partition("/")[2]: member.header_offset for member in members}
        assert sorted(reader.get_all_records()) == sorted(roots)
        for name, offset in roots.items():
            assert offset < reader.get_record_offset(name) < offset + 30 + 2 * 65536


def fuzz_safetensors(data: bytes) -> None:
    """What is accepted, the safetensors library reads, and finds the same tensors."""
    if found := _judge(read_safetensors, data):
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        assert len(tensors) == found.tensors
        assert sum(math.prod(tensor["shape"]) for tensor in tensors.values()) == found.elements


def fuzz_array(data: bytes) -> None:
    """What is accepted, NumPy reads without pickles, and finds as many numbers."""
    if found := _judge(read_npy, data):
        assert np.load(io.BytesIO(data), allow_pickle=False).size == found.elements


def fuzz_gguf(data: bytes) -> None:
    """A header is judged or refused, whatever it claims."""
    if found := _judge(read_gguf, data):
        assert found.tensors >= 1


def fuzz_onnx(data: bytes) -> None:
    """What is accepted are trees: each node is one split's child or one tree's root, and no child is before it."""
    try:
        trees = read_trees(data)
    except ModelError:
        return
    splits, nodes = len(trees.feature), 2 * len(trees.feature) + len(trees.root)
    assert (np.bincount(np.concatenate([trees.root, trees.left, trees.right]), minlength=nodes) == 1).all()
    assert (trees.left > np.arange(splits)).all() and (trees.right > np.arange(splits)).all()
    assert ((trees.feature >= 0) & (trees.feature < trees.width)).all() and not np.isnan(trees.threshold).any()
    assert trees.value.shape == (nodes - splits, len(trees.labels)) and np.isfinite(trees.value).all()
    assert np.isfinite(trees.base).all() and 1 <= trees.depth <= splits


def _onnx() -> list[bytes]:
    return [(Path(__file__).parents[1] / "tests" / "data" / "onnx" / "cancer-tree.onnx").read_bytes()]


def _archives() -> list[bytes]:
    made = []
    for members in (
        {"m/data.pkl": _STATE, "m/data/0": bytes(48), "m/byteorder": b"little", "m/version": b"3\n"},
        {"m/data.pkl": b"\x80\x02}."},
    ):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        made.append(stream.getvalue())
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros(3))
    return [*made, stream.getvalue()]


def _safetensors() -> list[bytes]:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    made = []
    for header in ({"a": entry}, {"__metadata__": {"x": "y"}, "a": entry, "b": {**entry, "data_offsets": [24, 48]}}):
        data = json.dumps(header).encode()
        made.append(
            struct.pack("<Q", len(data)) + data + bytes(24 * sum("data_offsets" in it for it in header.values()))
        )
    return made


def _arrays() -> list[bytes]:
    made = []
    for array in (np.zeros((2, 3)), np.zeros(0, dtype="<i2"), np.zeros((), dtype=bool)):
        stream = io.BytesIO()
        np.save(stream, array)
        made.append(stream.getvalue())
    return made


def _gguf() -> list[bytes]:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, 1) + b"v"
    head += struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 8, 0, 0)
    return [head + bytes(-len(head) % 32) + bytes(32)]


TARGETS = (
    Target(
        "pickle",
        fuzz_pickle,
        lambda: [_STATE, _ORDERED, _CHECKPOINT],
        (b"cos\nsystem\n", b"\x93", b"R", b"b", b"(", b"t", b"h\0", b"q\0", b")", b"Q", b"ctorch\n", b"\x85"),
        2048,
    ),
    Target(
        "archive",
        fuzz_archive,
        _archives,
        (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\xff\xff\xff\xff"),
        4096,
    ),
    Target(
        "safetensors", fuzz_safetensors, _safetensors, (b'"F16"', b'"shape":[', b'"data_offsets":[0,', b"NaN"), 2048
    ),
    Target("array", fuzz_array, _arrays, (b"'descr': '<f8'", b"(3,)", b"'|O'", b"True"), 1024),
    Target(
        "onnx",
        fuzz_onnx,
        _onnx,
        (b"BRANCH_LEQ", b"LEAF", b"LOGISTIC", b"SOFTMAX", b"class_ids", b"base_values", b"\xa0\x01\x07", b"Identity"),
        2048,
        allocations_mb=512,
    ),
    Target("gguf", fuzz_gguf, _gguf, (b"general.alignment", b"\0" * 8, b"\xff" * 8), 1024),
)
