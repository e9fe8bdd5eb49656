"""What `torch.export.save` writes (`.pt2`), read as data: its program becomes a graph of ours, and is never run.

PyTorch's own loader runs code of the file: it unpickles sample inputs and constants, evaluates guards and symbolic
expressions, and looks operators up by paths of attributes. Here the archive, its JSON and the raw bytes of its tensors
are read, and whatever in them is not exactly understood is refused. These members and fields are not read at all,
because nothing here has a use for them: the sample inputs, the stack traces and other metadata, how modules called one
another, and what the file claims of the tensors between two steps, with the expressions for their sizes; the steps
themselves say all of it.

The layout is that of PyTorch 2.13: torch/export/pt2_archive and torch/_export/serde/schema.py, schema version 8.
"""

import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from portcullis.errors import ModelError
from portcullis.models.exported_graph import (
    ARCHITECTURE,
    BLOCK_ROWS,
    INPUT,
    MAX_NUMBER,
    OPERATORS,
    Graph,
    Step,
    Value,
    find_operator,
    is_negative_zero,
    makes_fresh,
    shapes_of,
)
from portcullis.models.store import MAX_ELEMENTS, MAX_WEIGHTS_BYTES
from portcullis.safetensors_header import strict_json
from portcullis.supply_chain.foreign import ForeignModel
from portcullis.supply_chain.zips import open_archive, read_member

MAX_JSON_BYTES = 64 << 20
MAX_SMALL_BYTES = 64
MAX_NODES = 20_000
EXPORT = "torch.export.export(model.eval(), (rows,), dynamic_shapes=({0: torch.export.Dim('batch')},))"
DECOMPOSE = "export it in eval() mode, and save what its run_decompositions({}) returns"

_MEMBER = re.compile(
    r"(?P<root>[^/\\\x00]{1,200})/(?P<name>archive_format|archive_version|byteorder|\.data/(?:version|serialization_id)"
    r"|\.format_version|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(?:model_weights_config\.json|weight_\d{1,6})"
    r"|data/constants/(?:model_constants_config\.json|tensor_\d{1,6}))"
)
_MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_SCHEMA = 8
# The schema's numbers: types of tensors with their sizes in bytes, the layout, and kinds of memory format.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
_FLOAT32, _STRIDED, _CONTIGUOUS, _PRESERVE = 7, 7, 1, 4
_BATCH = re.compile(r"Symbol\('(s\d{1,6})', positive=True, integer=True\)|(s\d{1,6})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_STATE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+\.[A-Za-z0-9_]+)")
_TO_THE_END = 2**63 - 1

# What does nothing in a network that only answers: always; to float32, where all is float32; and to weights.
_IDENTITIES = frozenset({"alias.default", "dropout.default", "feature_dropout.default", "alpha_dropout.default"})
_CASTS = frozenset({"to.dtype", "_to_copy.default"})
_OF_STATE = frozenset({"detach.default", "detach_.default", "lift_fresh_copy.default", "clone.default"})
# Operators by another name, and what becomes of their arguments. What is viewed may lie in another order here.
_RENAMED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "view.default": ("reshape.default", {"self": "self", "size": "shape"}),
    "_unsafe_view.default": ("reshape.default", {"self": "self", "size": "shape"}),
    "native_group_norm.default": (
        "group_norm.default",
        {"input": "input", "weight": "weight", "bias": "bias", "group": "num_groups", "eps": "eps"},
    ),
    "_native_batch_norm_legit_no_training.default": ("batch_norm.default", {}),
}
_ADDED: Mapping[str, Mapping[str, Value]] = {
    "_native_batch_norm_legit_no_training.default": {"training": False, "cudnn_enabled": False}
}
_COPIES = ("clone.default", "contiguous.default")
_GIVEN_BY_THE_INPUT = {"native_group_norm.default": ("N", "C", "HxW")}
_ASSERTION = "_assert_tensor_metadata.default"
_BATCH_SIZE = "sym_size.int"


def _in_place(name: str) -> str:
    return name.replace(".", "_.", 1)


# What computes the same as an operator that writes into its first argument.
_WRITING = {_in_place(name): name for name in OPERATORS if find_operator(_in_place(name)) is not None}
# PyTorch's own descriptions of the arguments of all operators that a program may have.
_SCHEMAS = {
    name: found._schema.arguments  # noqa: SLF001 - there is no other way to ask
    for name in {*OPERATORS, *_IDENTITIES, *_CASTS, *_OF_STATE, *_RENAMED, *_WRITING, _ASSERTION, _BATCH_SIZE}
    if (found := find_operator(name)) is not None
}


def read_exported_program(stream: BinaryIO, size: int) -> ForeignModel:
    """Read an exported program of one float32 input, with a batch of any size, and one output of logits.

    Raises:
        ModelError: It holds anything else: pickled tensors, guards, operators that are not allowed, graphs within the
            graph, changes to its own state, sizes other than numbers and multiples of the batch's, other types than
            float32, tensors that do not lie one element after the other, members or fields that are not known.
    """
    with open_archive(stream, size, methods=frozenset({zipfile.ZIP_STORED})) as archive:
        members = _members(archive)
        for name, mark in _MARKS.items():
            if name not in members or read_member(archive, members[name], MAX_SMALL_BYTES) != mark:
                raise ModelError(f"the exported program is not one of PyTorch 2.13's ({name})")
        learnt, constant = (
            _stored(archive, members, *kind) for kind in (("weights", "weight"), ("constants", "tensor"))
        )
        if learnt.keys() & constant.keys():
            raise ModelError("the exported program has two tensors of one name")
        program = strict_json(_read_json(archive, members, "models/model.json"))
        translation = _translate(_module(program), _range_symbol(program), stored := learnt | constant)
        shape, graph = translation.shape, translation.graph()
        weights = {name: _array(archive, stored[name]) for name in (*translation.parameters, *translation.buffers)}
    text = graph.to_text()
    shapes = shapes_of(Graph.from_text(text), shape)
    translation.require_shapes(shapes)
    logits = shapes[graph.output]
    if len(logits) != 2 or logits[0] != BLOCK_ROWS:
        raise ModelError(f"the exported program makes {list(logits)} of {BLOCK_ROWS} rows, and not logits of each")
    return ForeignModel(
        ARCHITECTURE, {"graph": text}, shape, logits[1], save({_own_name(name): it for name, it in weights.items()})
    )


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found, roots = {}, set()
    for member in archive.infolist():
        part = _MEMBER.fullmatch(member.filename)
        if part is None:
            raise ModelError(f"the exported program has a member that is not known: {member.filename[:80]!a}")
        roots.add(part["root"])
        found[part["name"]] = member
    if len(roots) != 1:
        raise ModelError("the archive holds several exported programs")
    return found


def _read_json(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in members:
        raise ModelError(f"the exported program has no {name}")
    return read_member(archive, members[name], MAX_JSON_BYTES)


def _fields(value: object, *names: str) -> list[Any]:
    """Return an object's values in this order; refuse if it has others."""
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ModelError(f"the exported program has something else than {', '.join(names)} where these should be")
    return [value[name] for name in names]


def _only(value: object) -> tuple[str, Any]:
    """Return the one entry of an object, which says of what kind its value is."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ModelError("the exported program has something of no kind, or of several")
    return next(iter(value.items()))


# What lies in the archive beside the program.


@dataclass(frozen=True)
class _Stored:
    """A tensor of the state: where its bytes are, and what they are."""

    member: zipfile.ZipInfo
    learnt: bool
    dtype: int
    shape: tuple[int, ...]


def _stored(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], kind: str, prefix: str
) -> dict[str, _Stored]:
    config = f"data/{kind}/model_{kind}_config.json"
    (entries,) = _fields(strict_json(_read_json(archive, members, config)), "config")
    if not isinstance(entries, dict):
        raise ModelError("the exported program's tensors are not listed")
    found, paths = {}, set()
    for name, entry in entries.items():
        path, learnt, pickled, meta = _fields(entry, "path_name", "is_param", "use_pickle", "tensor_meta")
        if pickled is not False or meta is None:
            raise ModelError("the exported program has a pickled tensor or constant")
        if not isinstance(path, str) or not re.fullmatch(rf"{prefix}_\d{{1,6}}", path) or type(learnt) is not bool:
            raise ModelError("the exported program has a constant that is no tensor")
        member = members.get(f"data/{kind}/{path}")
        dtype, shape = _contiguous(meta)
        if member is None or member.file_size != math.prod(shape) * _SIZES[dtype]:
            raise ModelError("a tensor of the exported program is missing, or has another size than it says")
        if not _STATE.fullmatch(name) or len(name) > 200:
            raise ModelError("a tensor of the exported program has a name that none may have")
        found[name] = _Stored(member, learnt, dtype, shape)
        paths.add(f"data/{kind}/{path}")
    if paths != {name for name in members if name.startswith(f"data/{kind}/{prefix}_")}:
        raise ModelError("the exported program holds tensors that it does not list")
    return found


def _contiguous(meta: object) -> tuple[int, tuple[int, ...]]:
    """Return type and shape of a tensor whose elements lie one after the other; refuse any other."""
    dtype, sizes, _, device, strides, offset, layout = _fields(
        meta, "dtype", "sizes", "requires_grad", "device", "strides", "storage_offset", "layout"
    )
    shape, steps = _numbers(sizes), _numbers(strides)
    kind, _ = _fields(device, "type", "index")
    known = type(dtype) is int and dtype in _SIZES and layout == _STRIDED and kind in ("cpu", "cuda")
    expected = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    lies = len(steps) == len(shape) and all(
        step == wanted for step, wanted, length in zip(steps, expected, shape, strict=True) if length != 1
    )
    if not known or not lies or offset != {"as_int": 0} or min(shape, default=1) < 1:
        raise ModelError(
            "a tensor of the exported program is of a type that is not known, or its elements do not lie one after the "
            "other; make parameters contiguous before the export"
        )
    return dtype, tuple(shape)


def _numbers(value: object) -> list[int]:
    if not isinstance(value, list):
        raise ModelError("the exported program has a shape that is no list")
    numbers = [_only(entry) for entry in value]
    if not all(kind == "as_int" and type(number) is int for kind, number in numbers):
        raise ModelError("the exported program has a size that is not a number where only a number may be")
    return [number for _, number in numbers]


def _array(archive: zipfile.ZipFile, stored: _Stored) -> np.ndarray[Any, Any]:
    return np.frombuffer(read_member(archive, stored.member, MAX_WEIGHTS_BYTES), "<f4").reshape(stored.shape)


def _own_name(name: str) -> str:
    return name.replace(".", "/")


# The program.


def _range_symbol(program: Mapping[str, Any]) -> str:
    """Return how the program calls the size of the batch; refuse if it has other unknowns."""
    ranges = program.get("range_constraints")
    if not isinstance(ranges, dict) or len(ranges) != 1:
        raise ModelError(f"the exported program's batch must be its one size that is not fixed; use {EXPORT}")
    ((symbol, limits),) = ranges.items()
    least, most = _fields(limits, "min_val", "max_val")
    # A range is an assertion: no step depends on it. So a batch of one is taken although the program says two.
    if type(least) is not int or least > 2 or not (most is None or (type(most) is int and most > 2)):
        raise ModelError(f"the exported program does not take a batch of any size; use {EXPORT}")
    return str(symbol)


def _module(program: Mapping[str, Any]) -> Mapping[str, Any]:
    module, opset, _, version, _, _, guards = _fields(
        program,
        *("graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version"),
        "guards_code",
    )
    if guards != []:
        raise ModelError("the exported program has guards, which are code")
    major, minor = _fields(version, "major", "minor")
    if type(major) is not int or major != _SCHEMA or type(minor) is not int:
        raise ModelError(f"the exported program is of schema version {major!a}; {_SCHEMA} is known: use PyTorch 2.13")
    if not isinstance(opset, dict) or opset.keys() != {"aten"}:
        raise ModelError("the exported program has operators that are not PyTorch's own")
    graph, signature, _, _, _ = _fields(
        module, "graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"
    )
    return {"graph": graph, "signature": signature}


@dataclass
class _Translation:
    """A program on its way to a graph.

    Attributes:
        uses: How often each name of the program is used.
        values: The graph's name of each tensor so far, by the program's.
        batch: Of sizes so far that are multiples of the batch's, by which number.
        fresh: Names of tensors that share memory with no other.
        state: The state's own names, by the program's.
        shape: Shape of one row.
        output: The program's name of the logits.
        parameters: Shapes of the parameters that are used, by the state's own names.
        buffers: Likewise.
        steps: So far.
        alike: Pairs of tensors, by the graph's names, that must be of one shape.
        channels: Tensors, by the graph's names, that must have a block's rows, so many channels, and such a rest.
    """

    uses: Counter[str]
    state: Mapping[str, str]
    stored: Mapping[str, _Stored]
    shape: tuple[int, ...]
    output: str
    values: dict[str, str]
    batch: dict[str, int] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    buffers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    alike: list[tuple[str, str]] = field(default_factory=list)
    channels: list[tuple[str, int, int]] = field(default_factory=list)

    def graph(self) -> Graph:
        """Return the graph of all steps so far."""
        return Graph(
            {_own_name(name): shape for name, shape in self.parameters.items()},
            {_own_name(name): shape for name, shape in self.buffers.items()},
            tuple(self.steps),
            self.tensor(self.output),
        )

    def tensor(self, name: object) -> str:
        """Return the graph's name of a tensor that is there, and note that it is used if it is of the state."""
        if not isinstance(name, str) or (name not in self.values and name not in self.state):
            raise ModelError("the exported program uses a tensor that is not there")
        if name in self.values:
            return self.values[name]
        own = self.state[name]
        entry = self.stored[own]
        if entry.dtype != _FLOAT32:
            raise ModelError("the exported program computes with a tensor that is not float32")
        (self.parameters if entry.learnt else self.buffers)[own] = entry.shape
        return _own_name(own)

    def define(self, names: object, reference: str) -> None:
        """Give a new name of the program a tensor."""
        if not isinstance(names, str) or not _NAME.fullmatch(names) or self.is_known(names):
            raise ModelError("the exported program defines a name twice, or one that none may have")
        self.values[names] = reference

    def require_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse unless all tensors are of the shapes that the program says or needs."""
        if any(shapes[one] != shapes[other] for one, other in self.alike):
            raise ModelError("the exported program writes something of another shape into a tensor")
        for name, channels, rest in self.channels:
            shape = shapes[name]
            if shape[:2] != (BLOCK_ROWS, channels) or math.prod(shape[2:]) != rest:
                raise ModelError("the exported program normalises groups of other sizes than the tensor's")

    def is_known(self, name: str) -> bool:
        """Tell whether the program has defined the name."""
        return name in self.values or name in self.state or name in self.batch


def _translate(module: Mapping[str, Any], symbol: str, stored: Mapping[str, _Stored]) -> _Translation:
    inputs, outputs, nodes, tensors, _, bools, single, custom, floats = _fields(
        module["graph"],
        *("inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values"),
        *("is_single_tensor_return", "custom_obj_values", "sym_float_values"),
    )
    if bools != {} or custom != {} or floats != {} or single is not False:
        raise ModelError("the exported program has conditions or objects among its values")
    if not isinstance(nodes, list) or len(nodes) > MAX_NODES or not isinstance(tensors, dict):
        raise ModelError("the exported program has too many steps, or none")
    state, given, output = _signature(module["signature"], inputs, outputs)
    if not set(state.values()) <= stored.keys():
        raise ModelError("the exported program lacks a tensor of its state")
    shape = _row_shape(tensors.get(given), symbol)
    parsed = [_Node.of(node) for node in nodes]
    uses = Counter(name for node in parsed for name in node.names())
    found = _Translation(uses + Counter([output]), state, stored, shape, output, {given: INPUT})
    for node in parsed:
        _add(found, node)
    return found


def _signature(signature: object, inputs: object, outputs: object) -> tuple[dict[str, str], str, str]:
    """Return the state's names by the program's, and the program's names of input and output."""
    taken, given = _fields(signature, "input_specs", "output_specs")
    if not isinstance(taken, list) or not isinstance(given, list) or len(given) != 1:
        raise ModelError("the exported program has several outputs, or changes its state; export it in eval() mode")
    state: dict[str, str] = {}
    names, rows = [], []
    for entry in taken:
        kind, spec = _only(entry)
        if kind == "user_input":
            (argument,) = _fields(spec, "arg")
            names.append(_tensor_name(argument))
            rows.append(names[-1])
            continue
        own = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
        if kind not in own:
            raise ModelError("the exported program takes something else than tensors")
        fields = ("arg", own[kind], *(["persistent"] if kind == "buffer" else []))
        argument, called = _fields(spec, *fields)[:2]
        (name,) = _fields(argument, "name")
        if not isinstance(name, str) or not isinstance(called, str):
            raise ModelError("the exported program has a name that is no text")
        names.append(name)
        state[name] = called
    listed = isinstance(inputs, list) and [_tensor_name(it) for it in inputs] == names
    if len(rows) != 1 or not listed or len(set(names)) != len(names) or len(set(state.values())) != len(state):
        raise ModelError("the exported program must have one input, and name each tensor once")
    kind, spec = _only(given[0])
    if kind != "user_output":
        raise ModelError("the exported program changes its state or its input; export it in eval() mode")
    (argument,) = _fields(spec, "arg")
    if not isinstance(outputs, list) or outputs != [argument]:
        raise ModelError("the exported program has several outputs")
    return state, rows[0], _tensor_name(argument)


def _tensor_name(argument: object) -> str:
    kind, value = _only(argument)
    if kind != "as_tensor":
        raise ModelError("the exported program takes or gives something else than tensors")
    (name,) = _fields(value, "name")
    if not isinstance(name, str):
        raise ModelError("the exported program has a name that is no text")
    return name


def _row_shape(meta: object, symbol: str) -> tuple[int, ...]:
    """Return the shape of an input row; the first axis must be the batch, whatever its size."""
    dtype, sizes, _, device, _, _, layout = _fields(
        meta, "dtype", "sizes", "requires_grad", "device", "strides", "storage_offset", "layout"
    )
    _fields(device, "type", "index")
    if dtype != _FLOAT32 or layout != _STRIDED:
        raise ModelError("the exported program's input is not float32")
    if not isinstance(sizes, list) or len(sizes) < 2:
        raise ModelError(f"the exported program's input must have a batch axis, and rows; use {EXPORT}")
    kind, expression = _only(sizes[0])
    if kind != "as_expr":
        raise ModelError(f"the exported program's batch has a fixed size; use {EXPORT}")
    text, _ = _fields(expression, "expr_str", "hint")
    named = _BATCH.fullmatch(text) if isinstance(text, str) else None
    if named is None or (named[1] or named[2]) != symbol:
        raise ModelError(f"the size of the exported program's batch is an expression; use {EXPORT}")
    shape = tuple(_numbers(sizes[1:]))
    if min(shape) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise ModelError("the exported program's rows have no elements, or too many")
    return shape


# Its steps.


@dataclass(frozen=True)
class _Node:
    target: str
    arguments: Mapping[str, tuple[str, Any]]
    positional: tuple[str, ...]
    outputs: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, node: object) -> "_Node":
        target, inputs, outputs, _, higher_order, _ = _fields(
            node, "target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"
        )
        if not isinstance(target, str) or not isinstance(inputs, list) or not isinstance(outputs, list):
            raise ModelError("the exported program has a step without operator, inputs or outputs")
        if higher_order is not None:
            raise ModelError("the exported program has a graph within its graph")
        arguments, positional = {}, []
        for entry in inputs:
            name, argument, kind = _fields(entry, "name", "arg", "kind")
            if not isinstance(name, str) or name in arguments or type(kind) is not int or kind not in (1, 2):
                raise ModelError("the exported program gives a step an argument twice")
            arguments[name] = _only(argument)
            if kind == 1:
                positional.append(name)
        return cls(target, arguments, tuple(positional), tuple(map(_only, outputs)))

    def require_taken(self, operator: str) -> None:
        """Refuse unless PyTorch would give the operator these arguments, each under its name."""
        schema = _SCHEMAS.get(operator, [])
        first = [it.name for it in schema if not it.kwarg_only][: len(self.positional)]
        needed = {it.name for it in schema if not it.has_default_value()}
        if list(self.positional) != first or not needed <= self.arguments.keys() <= {it.name for it in schema}:
            raise ModelError(f"the exported program does not give aten.{operator} the arguments that it takes")

    def names(self) -> list[str]:
        """Return all names of tensors that it takes, as often as it takes them."""
        found: list[str] = []
        for kind, value in self.arguments.values():
            entries = {"as_tensor": [value], "as_tensors": value}.get(kind, [])
            if not isinstance(entries, list):
                raise ModelError("the exported program has tensors that are no list")
            for entry in entries:
                (name,) = _fields(entry, "name")
                if not isinstance(name, str):
                    raise ModelError("the exported program has a name that is no text")
                found.append(name)
        return found


def _add(found: _Translation, node: _Node) -> None:
    """Translate one step of the program."""
    if node.target == "_operator.mul":
        _add_size(found, node, _product(found, node))
        return
    named = _TARGET.fullmatch(node.target)
    if named is None:
        raise ModelError(f"the exported program has an operator that is not PyTorch's own: {node.target[:80]!a}")
    operator = named[1]
    if operator not in _SCHEMAS:
        raise ModelError(f"the exported program has an operator that is not allowed: aten.{operator}")
    node.require_taken(operator)
    if operator == _BATCH_SIZE:
        _add_size(found, node, _batch_size(found, node))
    elif operator == _ASSERTION and not node.outputs:
        _require_float32(found, node)
    elif (same := _unchanged(found, operator, node)) is not None:
        found.define(_one(node.outputs), found.tensor(same))
    else:
        _add_step(found, operator, node)


def _require_float32(found: _Translation, node: _Node) -> None:
    """Refuse an assertion of a tensor unless it says what is so of all tensors here."""
    for name, (kind, value) in node.arguments.items():
        match name, kind:
            case "a", "as_tensor":
                found.tensor(*_fields(value, "name"))
            case "dtype", "as_scalar_type" if value == _FLOAT32:
                pass
            case "layout", "as_layout" if value == _STRIDED:
                pass
            case ("device", "as_device") | (_, "as_none"):
                pass
            case _:
                raise ModelError("the exported program asserts of a tensor what is not known here")


def _add_size(found: _Translation, node: _Node, times: int) -> None:
    """Note a size that is a multiple of the batch's."""
    match node.outputs:
        case (("as_sym_int", {"as_name": str() as name}),) if _NAME.fullmatch(name) and not found.is_known(name):
            found.batch[name] = times
        case _:
            raise ModelError("the exported program defines a size twice, or one without a name")


def _batch_size(found: _Translation, node: _Node) -> int:
    match node.arguments:
        case {"self": ("as_tensor", {"name": str() as name}), "dim": ("as_int", 0)} if (
            len(node.arguments) == 2 and found.values.get(name) == INPUT
        ):
            return 1
    raise ModelError("the exported program asks for another size than its batch's, which it should know")


def _product(found: _Translation, node: _Node) -> int:
    factors = 1
    sizes = 0
    for kind, value in node.arguments.values():
        match kind, value:
            case "as_int", int() if type(value) is int and value >= 1:
                factors *= value
            case "as_sym_int", {"as_name": str() as name} if name in found.batch:
                factors, sizes = factors * found.batch[name], sizes + 1
            case "as_sym_int", {"as_int": int() as number} if type(number) is int and number >= 1:
                factors *= number
            case _:
                raise ModelError("the exported program computes with something else than its batch's size")
        if factors > MAX_NUMBER:
            raise ModelError("the exported program has a size that is too large")
    if sizes != 1:
        raise ModelError("the exported program multiplies no size, or several")
    return factors


def _unchanged(found: _Translation, operator: str, node: _Node) -> str | None:
    """Return the tensor that a step hands on as it is; None if it does not."""
    first: tuple[str, Any] = next(iter(node.arguments.values()), ("", {}))
    name = first[1]["name"] if first[0] == "as_tensor" else None
    others = dict(list(node.arguments.items())[1:])
    if not isinstance(name, str):
        return None
    if operator in _IDENTITIES:
        if others.get("train", ("as_bool", False)) != ("as_bool", False):
            raise ModelError("the exported program drops out at random; export it in eval() mode")
        return name
    if operator in _CASTS:
        idle = {key: it for key, it in others.items() if it[0] != "as_none" and it != ("as_bool", False)}
        if idle != {"dtype": ("as_scalar_type", _FLOAT32)}:
            raise ModelError("the exported program turns tensors into other types than float32")
        return name
    return name if operator in _OF_STATE and found.tensor(name) in map(_own_name, found.state.values()) else None


def _add_step(found: _Translation, operator: str, node: _Node) -> None:
    """Translate a step that computes something."""
    target = ""
    if operator in _WRITING:
        kind, value = node.arguments.get("self", ("", {}))
        name = value["name"] if kind == "as_tensor" else None
        if name not in found.fresh or found.uses[name] != 1:
            raise ModelError(f"the exported program writes into a tensor that others may see ({operator}); {DECOMPOSE}")
        operator, target = _WRITING[operator], found.tensor(name)
    own, names = _RENAMED.get(operator, (operator, {}))
    if own not in OPERATORS:
        raise ModelError(f"the exported program has an operator that is not allowed: aten.{operator}")
    arguments: dict[str, Value] = {**_ADDED.get(operator, {})}
    for name, (kind, value) in node.arguments.items():
        if name in _GIVEN_BY_THE_INPUT.get(operator, ()) or _says_nothing(name, kind, value):
            continue
        if (name, kind, value) == ("memory_format", "as_memory_format", _CONTIGUOUS) and own in _COPIES:
            own = "contiguous.default"
            continue
        arguments[names.get(name, name)] = _value(found, kind, value)
    index = len(found.steps)
    found.steps.append(Step(own, arguments))
    _define_results(found, own, node, index)
    if operator in _GIVEN_BY_THE_INPUT:
        rows, channels, rest = (_value(found, *node.arguments[name]) for name in _GIVEN_BY_THE_INPUT[operator])
        match arguments["input"], rows, channels, rest:
            case str(name), {"batch": 1}, int(), int():
                found.channels.append((name, channels, rest))
            case _:
                raise ModelError("the exported program normalises groups of other rows than the batch's")
    if target:
        found.alike.append((target, f"%{index}"))


def _says_nothing(name: str, kind: str, value: object) -> bool:
    """Tell whether an argument only says what is so anyway."""
    if name in ("dtype", "memory_format", "device", "layout", "pin_memory") and kind == "as_none":
        return True
    return (name, kind, value) in (
        ("dtype", "as_scalar_type", _FLOAT32),
        ("memory_format", "as_memory_format", _PRESERVE),
        ("end", "as_int", _TO_THE_END),
    )


def _define_results(found: _Translation, operator: str, node: _Node, index: int) -> None:
    returns = OPERATORS[operator]._schema.returns  # noqa: SLF001 - there is no other way to ask
    if len(returns) > 1:
        # Of several results only the first is a tensor of the network; whoever uses another finds it missing.
        found.define(_one(node.outputs[:1]), f"%{index}:0")
        return
    match node.outputs:
        case (("as_tensors", list() as entries),) if str(returns[0].type) == "List[Tensor]":
            for place, entry in enumerate(entries):
                (name,) = _fields(entry, "name")
                found.define(name, f"%{index}:{place}")
        case (("as_tensor", _), *others) if not others or operator in ("group_norm.default", "batch_norm.default"):
            name = _one(node.outputs[:1])
            found.define(name, f"%{index}")
            if makes_fresh(operator):
                found.fresh.add(name)
        case _:
            raise ModelError("a step of the exported program has another number of results than its operator")


def _one(outputs: tuple[tuple[str, Any], ...]) -> str:
    match outputs:
        case (("as_tensor", {"name": str() as name}),):
            return name
    raise ModelError("a step of the exported program has another number of results than its operator")


def _value(found: _Translation, kind: str, value: Any) -> Value:
    """Translate an argument."""
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            (name,) = _fields(value, "name")
            return found.tensor(name)
        case "as_tensors" if isinstance(value, list):
            return [found.tensor(*_fields(entry, "name")) for entry in value]
        case "as_int" | "as_float" | "as_bool":
            return _plain(kind, value)
        case "as_ints" | "as_floats" | "as_bools" if isinstance(value, list):
            return [_plain(kind.removesuffix("s"), entry) for entry in value]
        case "as_string" if isinstance(value, str):
            return {"word": value}
        case "as_sym_int":
            return _size(found, value)
        case "as_sym_ints" if isinstance(value, list):
            return [_size(found, entry) for entry in value]
    raise ModelError(f"the exported program gives a step something that is not allowed ({kind[:40]!a})")


def _plain(kind: str, value: object) -> int | float | bool:
    if type(value) is {"as_int": int, "as_float": float, "as_bool": bool}[kind] and not is_negative_zero(value):
        return value  # type: ignore[return-value]
    raise ModelError("the exported program has a negative zero, or a value that is not of the type that it says")


def _size(found: _Translation, value: object) -> int | dict[str, int]:
    kind, content = _only(value)
    if kind == "as_int" and type(content) is int:
        return content
    if kind == "as_name" and isinstance(content, str) and content in found.batch:
        return {"batch": found.batch[content]}
    raise ModelError("the exported program has a size that is neither a number nor a multiple of its batch's")
