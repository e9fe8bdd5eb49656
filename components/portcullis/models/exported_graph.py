"""Networks that came as programs: a list of PyTorch's operators, which this architecture carries out one by one.

The list is data. Each of its steps names an operator of `OPERATORS` and gives it tensors that are known by then, and
plain values. No operator among them writes into what it is given, draws at random, opens anything or decides by a
tensor's values what to do next; and nothing in the list is ever evaluated. It is carried out on blocks of one fixed
number of rows, so it cannot see how many somebody asks about, and how much a step makes is known before it is called.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from portcullis.digest import canonical_json, parse_canonical_json
from portcullis.errors import DataError, ModelError
from portcullis.models.pytorch import FOREIGN_ERRORS, torch

ARCHITECTURE = "exported-graph"
INPUT = "%input"
MAX_TEXT = 1 << 20
MAX_STEPS = 5_000
MAX_STATE = 5_000
MAX_ITEMS = 256  # of one list
MAX_AXES = 8
MAX_NUMBER = 1 << 24  # whole ones: paddings, sizes, positions
MAX_ELEMENTS = 1 << 28  # of a tensor, and of all that one step makes
BLOCK_ROWS = 32  # that every graph is given at a time, however many are asked about

_NAMES = """
abs.default add.Tensor div.Tensor erf.default exp.default log.default maximum.default
minimum.default mul.Tensor neg.default pow.Tensor_Scalar reciprocal.default rsqrt.default rsub.Scalar
rsub.Tensor sqrt.default sub.Tensor
addmm.default baddbmm.default bmm.default linear.default matmul.default mm.default
conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose2d.input
convolution.default
celu.default clamp.default clamp_max.default clamp_min.default elu.default gelu.default glu.default hardsigmoid.default
hardswish.default hardtanh.default leaky_relu.default log_sigmoid.default mish.default prelu.default relu.default
relu6.default selu.default sigmoid.default silu.default softplus.default tanh.default
_log_softmax.default _softmax.default log_softmax.int softmax.int scaled_dot_product_attention.default
batch_norm.default group_norm.default layer_norm.default
native_layer_norm.default rms_norm.default
_adaptive_avg_pool2d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
adaptive_max_pool1d.default adaptive_max_pool2d.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
max_pool1d.default max_pool2d.default max_pool2d_with_indices.default max_pool3d.default
upsample_bilinear2d.vec upsample_nearest2d.vec
amax.default amin.default linalg_vector_norm.default max.dim mean.dim sum.dim_IntList var.correction var.dim
cat.default chunk.default clone.default constant_pad_nd.default contiguous.default expand.default expand_as.default
flatten.using_ints pad.default permute.default repeat.default reshape.default select.int slice.Tensor split.Tensor
split_with_sizes.default squeeze.dim squeeze.dims stack.default t.default transpose.int unbind.int unflatten.int
unsqueeze.default
"""


def find_operator(name: str) -> Any:
    """Return PyTorch's operator of a name like `add.Tensor`, which must not come from a file; None if it has none."""
    overloads, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, overloads, None), overload, None)


OPERATORS: Mapping[str, Any] = {
    name: found
    for name in _NAMES.split()
    if (found := find_operator(name)) is not None  # not every PyTorch has them all
}
# What text an argument may be.
_WORDS = frozenset({"none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular"})
# Arguments that have one value here, and those that no step may give.
_FIXED = {"training": False, "half_to_float": False, "dropout_p": 0, "implicit": False, "enable_gqa": False}
_NEVER = frozenset({"dtype", "layout", "device", "memory_format", "pin_memory"})
# What is multiplied as matrices.
_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "matmul": ("self", "other"),
}
# Where a size may be a multiple of the number of rows.
_SIZES = frozenset({"shape", "size", "sizes", "repeats"})
_STATE = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_]+(?:/[A-Za-z0-9_]+)*")
_RESULT = re.compile(r"%(0|[1-9][0-9]{0,3})(?::(0|[1-9][0-9]{0,2}))?")

Value = bool | int | float | str | dict[str, Any] | list[Any] | None


@dataclass(frozen=True)
class Step:
    """One operator and what it is given.

    Attributes:
        operator: A key of `OPERATORS`.
        arguments: By the operator's own names: None, booleans, numbers, lists of them; `{"word": text}`; as text a
            tensor: `%input`, a name of the state, `%7` for what step 7 made and `%7:1` for the second of several; and
            among sizes `{"batch": k}` for k times the number of rows, `BLOCK_ROWS`.
    """

    operator: str
    arguments: Mapping[str, Value]


@dataclass(frozen=True)
class Graph:
    """A network as a list of steps. `Graph.from_text(graph.to_text()) == graph` for a sound one.

    Attributes:
        parameters: Shapes of the float32 tensors that were learnt, by name.
        buffers: Likewise of those that were not.
        steps: In the order in which they are carried out.
        output: The tensor of logits, as in a step's arguments.
    """

    parameters: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    output: str

    def to_text(self) -> str:
        """Return the option `graph`, in canonical JSON.

        Raises:
            ModelError: It holds what JSON cannot.
        """
        try:
            return canonical_json(
                {
                    "parameters": {name: list(shape) for name, shape in self.parameters.items()},
                    "buffers": {name: list(shape) for name, shape in self.buffers.items()},
                    "steps": [[step.operator, dict(step.arguments)] for step in self.steps],
                    "output": self.output,
                }
            ).decode()
        except DataError as error:
            raise ModelError(f"a graph: {error}") from error

    @classmethod
    def from_text(cls, text: str) -> "Graph":
        """Parse the option `graph`, and refuse whatever is not exactly understood.

        Raises:
            ModelError: It is no canonical JSON of a graph; it has too many steps or tensors; an operator is not allowed
                or is given what it does not take; a tensor is used before it is made, or never.
        """
        try:
            document = parse_canonical_json(text.encode(), limit=MAX_TEXT)
        except (DataError, UnicodeEncodeError) as error:
            raise ModelError(f"a graph: {error}") from error
        match document:
            case {
                "parameters": dict() as parameters,
                "buffers": dict() as buffers,
                "steps": list() as steps,
                "output": str() as output,
            } if len(document) == 4:
                pass
            case _:
                raise ModelError("a graph must have exactly parameters, buffers, steps and output")
        if len(steps) > MAX_STEPS or len(parameters) + len(buffers) > MAX_STATE or parameters.keys() & buffers.keys():
            raise ModelError("a graph has too many steps or tensors, or two of one name")
        if not all(map(_is_state, (*parameters.items(), *buffers.items()))):
            raise ModelError("a graph's tensor has a name or a shape that none may have")
        known, used = {INPUT, *parameters, *buffers}, {output}
        listed: list[Step] = []
        for index, entry in enumerate(steps):
            match entry:
                case [str() as operator, dict() as arguments] if operator in OPERATORS:
                    step = Step(operator, arguments)
                case _:
                    raise ModelError(f"step {index} of a graph has an operator that is not allowed")
            _require_taken(step, index)
            references = _references(step.arguments)
            if not all(name in known or _is_element(name, listed, index) for name in references):
                raise ModelError(f"step {index} of a graph takes a tensor that is not there")
            used |= references
            listed.append(step)
            if _returns(operator) == "Tensor":
                known.add(f"%{index}")
        if not (output in known or _is_element(output, listed, len(listed))) or not {*parameters, *buffers} <= used:
            raise ModelError("a graph's output is not there, or it has tensors that no step takes")
        learnt, other = ({name: tuple(shape) for name, shape in given.items()} for given in (parameters, buffers))
        return cls(learnt, other, tuple(listed), output)


class ExportedGraph(torch.nn.Module):
    """A network that carries out a graph. Its weights are called as in the graph, `layer1/0/conv/weight`.

    Args:
        input_shape: Shape of one input row.
        classes: Number of logits.
        graph: What `Graph.to_text` wrote.

    Raises:
        ModelError: The graph is refused (`Graph.from_text`), or rows are too large. When it is carried out: PyTorch
            refuses a step, a step makes too many elements or none, or rows do not become float32 logits.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int, *, graph: str) -> None:
        super().__init__()
        if not isinstance(graph, str):
            raise ModelError(f"{ARCHITECTURE}: the option graph must be text")
        parsed = Graph.from_text(graph)
        _require_small(input_shape)
        for name, shape in parsed.parameters.items():
            weights = torch.empty(shape)
            torch.nn.init.uniform_(weights, -1 / math.sqrt(math.prod(shape[1:])), 1 / math.sqrt(math.prod(shape[1:])))
            self.register_parameter(name, torch.nn.Parameter(weights))
        for name, shape in parsed.buffers.items():
            self.register_buffer(name, torch.ones(shape))
        self._plan, self._shape, self._classes = _Plan.of(parsed), tuple(input_shape), classes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs (N, *input_shape) float32 in [0, 1] to logits (N, classes) float32."""
        if inputs.shape[1:] != self._shape:
            raise ModelError(f"{ARCHITECTURE}: rows have the shape {list(inputs.shape[1:])}, not {list(self._shape)}")
        if not len(inputs):  # there is no row to fill a block with
            return inputs.flatten(1).sum(1, keepdim=True).expand(0, self._classes)
        return torch.cat([self._answer(rows) for rows in torch.split(inputs, BLOCK_ROWS)])

    def _answer(self, rows: torch.Tensor) -> torch.Tensor:
        """Return logits of at most BLOCK_ROWS rows, filled up with copies of the first, which get no gradient."""
        count = len(rows)
        if count < BLOCK_ROWS:
            rows = torch.cat([rows, rows[:1].detach().expand(BLOCK_ROWS - count, *self._shape)])
        state = {**self._parameters, **self._buffers}
        try:
            logits = self._plan.carry_out({**state, INPUT: rows})
        except FOREIGN_ERRORS as error:
            raise _failure(error) from error
        if logits.shape != (BLOCK_ROWS, self._classes) or logits.dtype != torch.float32:
            raise ModelError(f"{ARCHITECTURE}: {BLOCK_ROWS} rows became {list(logits.shape)} {logits.dtype}")
        return logits[:count]


@dataclass(frozen=True)
class _Plan:
    """Steps, and which tensors may be forgotten after each."""

    steps: tuple[Step, ...]
    output: str
    wanted: frozenset[str]
    last: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, graph: Graph) -> "_Plan":
        last = {name: index for index, step in enumerate(graph.steps) for name in _references(step.arguments)}
        last.pop(graph.output, None)
        dropped: list[list[str]] = [[] for _ in graph.steps]
        for name, index in last.items():
            dropped[index].append(name)
        return cls(graph.steps, graph.output, frozenset(last) | {graph.output}, tuple(map(tuple, dropped)))

    def carry_out(self, values: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> torch.Tensor:
        """Carry out all steps.

        Args:
            values: The state by name, and BLOCK_ROWS rows as INPUT. Afterwards it holds little else.
            shapes: Where to note the shape of whatever is made, by name.
        """
        for index, (step, last) in enumerate(zip(self.steps, self.last, strict=True)):
            made = _call(step.operator, {name: _resolved(value, values) for name, value in step.arguments.items()})
            results = {f"%{index}": made} if isinstance(made, torch.Tensor) else _numbered(index, made)
            if shapes is not None:
                shapes.update({name: tuple(tensor.shape) for name, tensor in results.items()})
            values.update({name: tensor for name, tensor in results.items() if name in self.wanted})
            for name in last:
                del values[name]
        logits: torch.Tensor = values[self.output]
        return logits


def shapes_of(graph: Graph, row: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a graph by name, by carrying it out on a block of zeros.

    Raises:
        ModelError: It cannot be carried out.
    """
    _require_small(row)
    state = {name: torch.zeros(size) for name, size in (*graph.parameters.items(), *graph.buffers.items())}
    values = {**state, INPUT: torch.zeros(BLOCK_ROWS, *row)}
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    try:
        with torch.no_grad():
            _Plan.of(graph).carry_out(values, shapes)
    except FOREIGN_ERRORS as error:
        raise _failure(error) from error
    return shapes


def _require_small(row: tuple[int, ...]) -> None:
    if BLOCK_ROWS * math.prod(row) > MAX_ELEMENTS:
        raise ModelError(f"{ARCHITECTURE}: rows have more elements than are allowed")


def _failure(error: BaseException) -> ModelError:
    return ModelError(f"a graph cannot be carried out: {type(error).__name__}: {str(error)[:200]}")


# How much a step makes.


def _call(operator: str, given: Mapping[str, Any]) -> Any:
    """Call an operator, unless it would make too much; refuse if it makes an empty tensor.

    Operators have been seen to fail hard on empty tensors, and rows and weights are none.
    """
    if not (_most_elements(operator, given) <= MAX_ELEMENTS and _most_tensors(operator, given) <= MAX_ITEMS):
        raise ModelError(f"a graph cannot be carried out: {operator} would make more elements than are allowed")
    made = OPERATORS[operator](**given)
    counts = [made.numel()] if isinstance(made, torch.Tensor) else [tensor.numel() for tensor in made]
    if min(counts, default=0) < 1 or sum(counts) > MAX_ELEMENTS or len(counts) > MAX_ITEMS:
        raise ModelError(f"a graph cannot be carried out: {operator} makes no elements, or more than are allowed")
    return made


def _most_tensors(operator: str, given: Mapping[str, Any]) -> int:
    """Return a bound on how many tensors an operator makes; those that it can only list in its arguments are few."""
    if operator not in ("unbind.int", "split.Tensor", "chunk.default"):
        return 1
    size = given["self"].shape[given.get("dim", 0)]
    return int(min(size, given.get("chunks", size)) if operator != "split.Tensor" else -(-size // given["split_size"]))


def _most_elements(operator: str, given: Mapping[str, Any]) -> float:
    """Return a bound on the elements of an operator's first or only result, or of all in a list, before it is called.

    Where PyTorch may make something larger on the way, the bound is of that.
    """
    name = operator.partition(".")[0]
    shapes = {key: list(value.shape) for key, value in given.items() if isinstance(value, torch.Tensor)}
    shape = shapes.get("self", shapes.get("input", []))
    match name:
        case "cat" | "stack":
            return float(sum(tensor.numel() for tensor in given["tensors"]))
        case "repeat":
            return math.prod(shape) * _product(given["repeats"])
        case "expand":
            return _product(_broadcast(given["size"], shape))
        case "pad" | "constant_pad_nd":
            pads = given["pad"]
            ends = zip_longest(reversed(shape), pads[::2], pads[1::2], fillvalue=0)
            return _product(sum(sizes) for sizes in ends)
        case "linear":
            return math.prod(shape[:-1]) * math.prod(shapes["weight"][:-1])
        case "mm" | "bmm" | "addmm" | "baddbmm" | "matmul":
            one, other = (shapes[key] for key in _FACTORS[name])
            return _product(_broadcast(one[:-2], other[:-2])) * math.prod(one[-2:-1]) * math.prod(other[1:][-1:])
        case "scaled_dot_product_attention":
            query, key, value = (shapes[it] for it in ("query", "key", "value"))
            # Whatever PyTorch chooses, as if it made the scores of all pairs.
            scores = [*_broadcast(query[:-2], key[:-2], value[:-2]), query[-2], max(key[-2], query[-1], value[-1])]
            return _product(_broadcast(scores, shapes.get("attn_mask", [])))
    if "conv" in name:
        return _most_convolved(name, given, shape, shapes["weight"])
    if "upsample" in name:
        factors = zip(shape[-2:], given.get("scale_factors") or [], strict=False)
        return math.prod(shape[:-2]) * _product(given.get("output_size") or [size * by for size, by in factors])
    if "pool" in name:
        axes = int(name.partition("pool")[2][0])
        if "adaptive" in name:
            return math.prod(shape[:-axes]) * _product(given["output_size"])
        windows = _along(given, "kernel_size", 1, axes)
        return math.prod(shape[:-axes]) * _product(_extents(given, shape[-axes:], windows))
    return _product(_broadcast(shape, shapes.get("other", [])))


def _most_convolved(name: str, given: Mapping[str, Any], shape: list[int], weight: list[int]) -> float:
    """Return a bound on what a convolution makes, and on the windows of a row laid side by side."""
    axes = len(weight) - 2
    sizes, windows = shape[len(shape) - axes :], weight[2:]
    extents = _extents(given, sizes, windows)
    rows = math.prod(shape[: len(shape) - axes - 1])
    strides, dilations, more = (_along(given, key, 1, axes) for key in ("stride", "dilation", "output_padding"))
    if "transpose" in name or given.get("transposed", False):
        each = zip(sizes, strides, dilations, windows, more, strict=True)
        # Without what the padding takes away: PyTorch has been seen to write behind its memory where that is huge.
        made = [(size - 1) * step + by * (window - 1) + end + 1 for size, step, by, window, end in each]
        channels = weight[1] * int(given.get("groups", 1))
    else:
        made = [extent // step + 1 for extent, step in zip(extents, strides, strict=True)]
        channels = weight[0]
    side_by_side = math.prod(weight[1:]) * max(_product(made), _product(sizes))
    return max(rows * channels * _product(made), rows * _product(extents), side_by_side)


def _extents(given: Mapping[str, Any], sizes: Sequence[int], windows: Sequence[int]) -> list[int]:
    """Return the padded sizes of axes along which windows slide, or the windows' own where these are larger.

    A pool makes at most one place more than it has padded ones, which are therefore counted with one more. PyTorch
    computes with these numbers, in places in 32 bits; what is allowed fits into them.
    """
    paddings = [0] * len(sizes) if isinstance(given.get("padding"), str) else _along(given, "padding", 0, len(sizes))
    others = (_along(given, key, 1, len(sizes)) for key in ("stride", "dilation"))
    each = zip(sizes, windows, paddings, *others, strict=True)
    return [max(size + 2 * pad + 1, by * (window - 1) + 1, step) for size, window, pad, step, by in each]


def _along(given: Mapping[str, Any], name: str, default: int, axes: int) -> list[int]:
    """Return an argument that has one number for each axis, or one for all."""
    listed: list[int] = given.get(name) or [default]
    return listed * axes if len(listed) == 1 else listed


def _product(sizes: Iterable[float]) -> float:
    return math.prod(max(0, size) for size in sizes)


def _broadcast(*shapes: Sequence[int]) -> list[int]:
    return [max(sizes) for sizes in zip_longest(*map(reversed, shapes), fillvalue=1)][::-1]


def _resolved(value: Value, values: Mapping[str, Any]) -> Any:
    match value:
        case str():
            return values[value]
        case list():
            return [_resolved(item, values) for item in value]
        case {"batch": int() as times}:
            return times * BLOCK_ROWS
        case {"word": word}:
            return word
    return value


def _numbered(index: int, results: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"%{index}:{place}": tensor for place, tensor in enumerate(results)}


def _references(arguments: Mapping[str, Value]) -> set[str]:
    flat = (item for value in arguments.values() for item in (value if isinstance(value, list) else [value]))
    return {item for item in flat if isinstance(item, str)}


def _returns(operator: str) -> str:
    """Return what it makes: "Tensor", "List[Tensor]", or "several" tensors, of which only the first may be used."""
    returns = OPERATORS[operator]._schema.returns  # noqa: SLF001 - there is no other way to ask
    return str(returns[0].type) if len(returns) == 1 else "several"


def makes_fresh(operator: str) -> bool:
    """Tell whether what an operator makes never shares memory with what it was given."""
    return all(it.alias_info is None for it in OPERATORS[operator]._schema.returns)  # noqa: SLF001


def _is_element(name: str, steps: Sequence[Step], before: int) -> bool:
    """Tell whether the name is one of several tensors that an earlier step makes."""
    match = _RESULT.fullmatch(name)
    if not match or match[2] is None or int(match[1]) >= before:
        return False
    kind = _returns(steps[int(match[1])].operator)
    return kind == "List[Tensor]" or (kind == "several" and match[2] == "0")


def _require_taken(step: Step, index: int) -> None:
    """Refuse unless the operator takes these arguments, as its own schema describes them."""
    kinds = {it.name: str(it.type) for it in OPERATORS[step.operator]._schema.arguments}  # noqa: SLF001
    for name, value in step.arguments.items():
        fixed = name in _FIXED and not (type(value) in (bool, int) and value == _FIXED[name])
        # Of two operands PyTorch takes a number for one.
        fits = _fits(kinds.get(name, ""), name, value) or ("other" in kinds and _is_operand(kinds.get(name), value))
        if name in _NEVER or fixed or not fits:
            raise ModelError(f"step {index} of a graph gives {step.operator} what it does not take ({name[:40]!a})")


def _fits(kind: str, name: str, value: object) -> bool:
    """Tell whether a value is of a kind, as schemas call it, and of no other that PyTorch would turn into it."""
    if inner := _within("Optional", kind):
        return value is None or _fits(inner, name, value)
    if inner := _within("List", kind):
        return (
            isinstance(value, list)
            and len(value) <= MAX_ITEMS
            and all(_fits(inner, name, it) or (name in _SIZES and _is_multiple(it)) for it in value)
        )
    match kind:
        case "Tensor":
            return isinstance(value, str)
        case "int":
            return type(value) is int and abs(value) <= MAX_NUMBER
        case "float" | "number":
            return _is_number(value)
        case "bool":
            return type(value) is bool
        case "str":
            return isinstance(value, dict) and value in [{"word": word} for word in _WORDS]
    return False


def _within(outer: str, kind: str) -> str:
    return kind[len(outer) + 1 : -1] if kind.startswith(f"{outer}[") and kind.endswith("]") else ""


def _is_operand(kind: str | None, value: object) -> bool:
    return kind == "Tensor" and _is_number(value)


def _is_number(value: Any) -> bool:
    """Tell whether a number is finite, and not the negative zero, which canonical JSON does not write."""
    return type(value) in (int, float) and math.isfinite(value) and not is_negative_zero(value)


def is_negative_zero(value: object) -> bool:
    """Tell whether a number is the zero by which a division is minus infinity."""
    return isinstance(value, float) and value == 0 and math.copysign(1, value) < 0


def _is_multiple(value: object) -> bool:
    match value:
        case {"batch": int() as times, **others}:
            return not others and type(times) is int and 1 <= times <= MAX_NUMBER
    return False


def _is_state(item: tuple[str, Any]) -> bool:
    name, shape = item
    sized = isinstance(shape, list) and len(shape) <= MAX_AXES and all(type(it) is int and it >= 1 for it in shape)
    return bool(_STATE.fullmatch(name)) and sized and math.prod(shape) <= MAX_ELEMENTS
