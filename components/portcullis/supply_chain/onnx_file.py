"""The part of ONNX that a classifier of trees is written in, read strictly: what is not known is refused.

An ONNX file is a protobuf message (onnx/onnx.proto, Apache-2.0; the wire format: protobuf.dev/programming-guides/
encoding). This reads bytes and numbers, and runs nothing: no sub-graphs, functions, tensors or external data.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from portcullis.errors import ModelError

MAX_ONNX_BYTES = 64 << 20
MAX_NODES = 16
MAX_TEXT = 1 << 12

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Value = int | bytes


def _known(
    *, texts: Mapping[int, str] | None = None, numbers: Mapping[int, str] | None = None
) -> dict[int, tuple[str, int]]:
    """Return a message's fields: number to name and wire type. One with * may come again, one with ! is not used."""
    return {number: (name, _BYTES) for number, name in (texts or {}).items()} | {
        number: (name, _VARINT) for number, name in (numbers or {}).items()
    }


_MODEL = _known(
    texts={2: "producer!", 3: "version!", 4: "domain!", 6: "doc!", 7: "graph", 8: "opset_import*"},
    numbers={1: "ir_version!", 5: "model_version!"},
)
_OPSET = _known(texts={1: "domain"}, numbers={2: "version"})
_GRAPH = _known(texts={1: "node*", 2: "name!", 10: "doc!", 11: "input*", 12: "output*"})
_NODE = _known(
    texts={1: "input*", 2: "output*", 3: "name!", 4: "op_type", 5: "attribute*", 6: "doc!", 7: "domain"},
)
_ATTRIBUTE = {
    **_known(texts={1: "name", 4: "s", 9: "strings*", 13: "doc!"}, numbers={3: "i", 8: "ints*", 20: "type"}),
    2: ("f", _FIXED32),
    7: ("floats*", _FIXED32),
}
_VALUE_INFO = _known(texts={1: "name", 2: "type", 3: "doc!"})
_TYPE = _known(texts={1: "tensor"})
_TENSOR = _known(texts={2: "shape"}, numbers={1: "element"})
_SHAPE = _known(texts={1: "dim*"})
_DIM = _known(texts={2: "parameter!"}, numbers={1: "value"})
# AttributeProto.type: which field holds the value.
_KINDS = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}


@dataclass(frozen=True)
class Node:
    """One operator: `domain:type`, names of what it takes and gives, and attributes (int, float, text or lists)."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """The whole of a model: the opsets that it asks for, its inputs' names, types and sizes, its outputs' names."""

    opsets: Mapping[str, int]
    nodes: tuple[Node, ...]
    inputs: tuple["Input", ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Input:
    """A tensor that the graph takes: its type as `TensorProto.DataType` numbers it, and its sizes, None where free."""

    name: str
    element: int
    shape: tuple[int | None, ...] = field(default=())


def parse_onnx(data: bytes) -> Graph:
    """Read an ONNX model.

    Raises:
        ModelError: It is too large, malformed, or has anything that is not listed in this module.
    """
    if len(data) > MAX_ONNX_BYTES:
        raise ModelError(f"an ONNX file of {len(data)} bytes; {MAX_ONNX_BYTES} are allowed")
    try:
        return _graph(data)
    except KeyError as error:
        raise ModelError(
            f"not an ONNX file of the kind that is read here: it lacks or does not know {error}"
        ) from error
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(f"not an ONNX file of the kind that is read here: {error}") from error


def _graph(data: bytes) -> Graph:
    model = _message(data, _MODEL, "the model")
    opsets: dict[str, int] = {}
    for part in model["opset_import"]:
        opset = _message(part, _OPSET, "an opset")
        name, version = _text(opset.get("domain", b"")), opset.get("version", 0)
        if opsets.setdefault(name, version) != version:
            raise ValueError(f"two versions of the operators {name!a}")
    graph = _message(model["graph"], _GRAPH, "the graph")
    if len(graph["node"]) > MAX_NODES:
        raise ValueError(f"{len(graph['node'])} operators")
    return Graph(
        opsets,
        tuple(map(_node, graph["node"])),
        tuple(map(_input, graph["input"])),
        # What type an output is said to be decides nothing; whoever gives it has a type.
        tuple(_text(_message(part, _VALUE_INFO, "an output")["name"]) for part in graph["output"]),
    )


def _node(data: bytes) -> Node:
    found = _message(data, _NODE, "an operator")
    attributes: dict[str, Any] = {}
    for part in found["attribute"]:
        name, value = _attribute(part)
        if name in attributes:
            raise ValueError(f"the attribute {name!a} twice")
        attributes[name] = value
    operator = f"{_text(found.get('domain', b'')) or 'ai.onnx'}:{_text(found['op_type'])}"
    return Node(operator, tuple(map(_text, found["input"])), tuple(map(_text, found["output"])), attributes)


def _attribute(data: bytes) -> tuple[str, Any]:
    found = _message(data, _ATTRIBUTE, "an attribute")
    name, kind = _text(found["name"]), _KINDS.get(found.get("type", 0), "")
    held = [field for field in _KINDS.values() if found.get(field) not in (None, [])]
    if not kind or not set(held) <= {kind}:
        raise ValueError(f"the attribute {name!a} is of another type")
    # A scalar that is 0 or empty may be left out.
    value = found.get(kind, b"" if kind == "s" else 0)
    match kind:
        case "s":
            return name, _text(value)
        case "strings":
            return name, [_text(part) for part in value]
        case "i":
            return name, _signed(value)
        case "ints":
            return name, [_signed(part) for part in value]
        case "f":
            return name, struct.unpack("<f", value or bytes(4))[0]
    return name, list(struct.unpack(f"<{len(value)}f", b"".join(value)))


def _input(data: bytes) -> Input:
    found = _message(data, _VALUE_INFO, "an input")
    tensor = _message(_message(found["type"], _TYPE, "an input's type")["tensor"], _TENSOR, "an input's tensor")
    dims = [_message(part, _DIM, "a dimension") for part in _message(tensor["shape"], _SHAPE, "a shape")["dim"]]
    return Input(_text(found["name"]), tensor["element"], tuple(dim.get("value") for dim in dims))


def _message(data: bytes, known: Mapping[int, tuple[str, int]], where: str) -> dict[str, Any]:
    """Return a message's fields by name: lists of those that may come again, and only once the others."""
    found: dict[str, Any] = {name[:-1]: [] for name, _ in known.values() if name.endswith("*")}
    for number, wire, value in _fields(data):
        name, expected = known.get(number, ("", -1))
        if name.endswith("*") and wire == _BYTES and expected in (_VARINT, _FIXED32):
            found[name[:-1]] += _unpacked(value, expected)
        elif wire != expected:
            raise ValueError(f"{where} has a field {number} of wire type {wire}")
        elif name.endswith("*"):
            found[name[:-1]].append(value)
        elif name.rstrip("!") in found:
            raise ValueError(f"{where} has its field {number} twice")
        else:
            found[name.rstrip("!")] = value
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[wire]
        if at + size > len(data):
            raise ValueError("it ends within a field")
        yield number, wire, data[at : at + size]
        at += size


def _unpacked(data: bytes, wire: int) -> Iterator[Value]:
    if wire == _FIXED32:
        if len(data) % 4:
            raise ValueError("a packed field of half a number")
        yield from (data[at : at + 4] for at in range(0, len(data), 4))
        return
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if value >> 64:
                break
            return value, at
        shift += 7
    raise ValueError("a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(data: bytes) -> str:
    if len(data) > MAX_TEXT:
        raise ValueError("a name that is too long")
    return data.decode("utf-8")
