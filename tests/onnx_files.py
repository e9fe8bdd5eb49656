"""ONNX files for tests: those that skl2onnx wrote, and a writer of small ones that nothing else would write."""

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WRITTEN = Path(__file__).parent / "data" / "onnx"
HELD = {"cancer": 150, "wine": 60}
LABELS = {"cancer": ("0", "1"), "wine": ("0", "1", "2")}
NAMES = tuple(sorted(path.stem for path in WRITTEN.glob("*.onnx")))
HIGH = 8192  # above every value, and a power of two: scaling rounds nothing


def onnx_bytes(name: str) -> bytes:
    return (WRITTEN / f"{name}.onnx").read_bytes()


@cache
def answers(name: str) -> Mapping[str, np.ndarray]:
    """Return `rows` (N, D) float32, what scikit-learn (`proba`) and ONNX Runtime (`onnx`) said of them (N, k)."""
    with np.load(WRITTEN / f"{name}.npz", allow_pickle=False) as found:
        return dict(found)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: float | str | bytes) -> bytes:
    """Encode one field, by the type of its value."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def attribute(name: str, value: Any) -> bytes:
    """Encode one attribute: float, int, text, or a list of one of them."""
    many = isinstance(value, list)
    kind = type(value[0] if many else value)
    number, code = {float: (2, 1), int: (3, 2), str: (4, 3), bytes: (5, 4)}[kind]
    if many:
        number, code = {float: (7, 6), int: (8, 7), str: (9, 8)}[kind]
    values = value if many else [value]
    return field(1, name) + b"".join(field(number, it) for it in values) + field(20, code)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Any]) -> bytes:
    domain, _, kind = operator.partition(":")
    parts = [field(1, it) for it in inputs] + [field(2, it) for it in outputs]
    parts += [field(4, kind), *(field(5, attribute(name, it)) for name, it in attributes.items())]
    return b"".join([*parts, field(7, domain)])


def tensor(name: str, element: int = 1, width: int | None = 2) -> bytes:
    shape = field(1, b"") + field(1, b"" if width is None else field(1, width))
    return field(1, name) + field(2, field(1, field(1, element) + field(2, shape)))


def model(
    nodes: Sequence[bytes],
    *,
    inputs: Sequence[bytes] = (tensor("X"),),
    outputs: Sequence[str] = ("label", "scores"),
    opsets: Mapping[str, int] = {"ai.onnx.ml": 1},
    graph: bytes = b"",
    more: bytes = b"",
) -> bytes:
    parts = (
        [field(1, it) for it in nodes] + [field(11, it) for it in inputs] + [field(12, tensor(it)) for it in outputs]
    )
    used = b"".join(field(8, (field(1, name) if name else b"") + field(2, it)) for name, it in opsets.items())
    return field(1, 8) + field(2, "tests") + field(7, b"".join(parts) + graph) + used + more


# Two trees of two features: one of two splits, one of one. Left below or at the threshold.
STUMPS: Mapping[str, Any] = {
    "nodes_treeids": [0, 0, 0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
    "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_featureids": [0, 1, 0, 0, 0, 1, 0, 0],
    "nodes_values": [0.5, 0.25, 0.0, 0.0, 0.0, 0.75, 0.0, 0.0],
    "nodes_truenodeids": [1, 2, 0, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [4, 3, 0, 0, 0, 2, 0, 0],
    "class_treeids": [0, 0, 0, 1, 1],
    "class_nodeids": [2, 3, 4, 1, 2],
    "class_ids": [0, 0, 0, 0, 0],
    "class_weights": [0.125, 0.25, 0.5, 0.0, 0.375],
    "classlabels_int64s": [0, 1],
    "post_transform": "NONE",
}
TREES = "ai.onnx.ml:TreeEnsembleClassifier"


def classifier(operator: str = TREES, inputs: Sequence[str] = ("X",), **changes: Any) -> bytes:
    """Encode the operator of `STUMPS`, with other attributes; None leaves one out."""
    attributes = {name: it for name, it in {**STUMPS, **changes}.items() if it is not None}
    return node(operator, inputs, ("label", "scores"), attributes)
