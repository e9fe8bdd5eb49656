"""Programs that torch.export.save wrote, read as data: all that is refused, and the code in them that does not run."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exported
import numpy as np
import pytest
import torch
from exported import CONSTANTS, MODEL, SAMPLES, WEIGHTS, archive, members, saved, with_json
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from portcullis.errors import ModelError, UsageError
from portcullis.models.exported_graph import BLOCK_ROWS
from portcullis.models.store import load_model_files
from portcullis.supply_chain import convert
from portcullis.supply_chain.convert import convert_foreign
from portcullis.supply_chain.exported_program import read_exported_program
from portcullis.supply_chain.foreign import ForeignModel
from portcullis.supply_chain.programs import require_rows_apart
from portcullis.supply_chain.scan import PROGRAMS, scan_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the locked child."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read(data: bytes) -> ForeignModel:
    """Read a program as the locked child does, in this process."""
    found = read_exported_program(io.BytesIO(data), len(data))
    spec = found.spec(0, 1, [str(number) for number in range(found.classes)])
    require_rows_apart(load_model_files({"model.json": spec.to_json(), "weights.safetensors": found.weights}))
    return found


def honest() -> bytes:
    return exported.program("perceptron")[1]


def changed(change: Callable[[Any], object], member: str = MODEL, of: str = "perceptron") -> bytes:
    return with_json(exported.program(of)[1], member, change)


def graph_of(document: Any) -> Any:
    return document["graph_module"]["graph"]


def node_of(document: Any, target: str) -> Any:
    return next(it for it in graph_of(document)["nodes"] if it["target"].endswith(target))


def test_a_program_is_read_without_what_is_beside_it() -> None:
    found = read(honest())
    assert (found.shape, found.classes, found.architecture) == (exported.ROW, 10, "exported-graph")
    state = exported.network("perceptron").state_dict()
    weights = load(found.weights)
    assert {name.replace(".", "/") for name in state} == weights.keys()
    assert all(np.array_equal(weights[name.replace(".", "/")], it.numpy()) for name, it in state.items())
    assert read(archive(members(honest()))) == found  # the archive of the tests below is one


@pytest.mark.parametrize("batch", [torch.export.Dim("n", min=1, max=64), torch.export.Dim.AUTO], ids=["range", "auto"])
def test_a_batch_of_any_size_is_taken_however_it_was_said(batch: Any) -> None:
    data = saved(exported.exported(exported.network("perceptron"), dynamic_shapes=({0: batch},)))
    assert read(data) == read(honest())


# What runs code when PyTorch loads the file or asks what it loaded.


class Touch:
    """What touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def expression(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def sample_inputs(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Touch(marker), stream)
    return archive(members(honest()) | {SAMPLES: stream.getvalue()})


def pickled_weight(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Touch(marker), stream)
    config = json.loads(members(honest())[WEIGHTS])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    parts = {WEIGHTS: json.dumps(config).encode(), f"data/weights/{entry['path_name']}": stream.getvalue()}
    return archive(members(honest()) | parts)


def pickled_constant(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Touch(marker), stream)
    return with_constant("tensor_0", stream.getvalue())


def pickled_object(marker: Path) -> bytes:
    return with_constant("opaque_obj_0", pickle.dumps(Touch(marker)))


def with_constant(path: str, content: bytes) -> bytes:
    entry = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}
    listed = json.dumps({"config": {"scale": entry}}).encode()
    return archive(members(honest()) | {CONSTANTS: listed, f"data/constants/{path}": content})


def guards(marker: Path) -> bytes:
    return changed(lambda it: it.update(guards_code=[f"{expression(marker)} is None"]))


def size_expression(marker: Path) -> bytes:
    def change(document: Any) -> None:
        graph_of(document)["tensor_values"][rows_name(document)]["sizes"][0]["as_expr"]["expr_str"] = expression(marker)

    return changed(change)


def rows_name(document: Any) -> str:
    specs = document["graph_module"]["signature"]["input_specs"]
    return next(it["user_input"]["arg"]["as_tensor"]["name"] for it in specs if "user_input" in it)


VECTORS = {
    "sample inputs that are unpickled": (sample_inputs, None),
    "a weight that is unpickled": (pickled_weight, "pickled"),
    "a constant that is unpickled": (pickled_constant, "pickled"),
    "an object that is unpickled": (pickled_object, "not known"),
    "guards that are executed": (guards, "guards"),
    "a size that is evaluated": (size_expression, "expression"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """A file and a marker of each vector."""
    folder = tmp_path_factory.mktemp("hostile")
    made = {}
    for index, (name, (make, _)) in enumerate(VECTORS.items()):
        path, marker = folder / f"{index}.pt2", folder / f"{index}.marker"
        path.write_bytes(make(marker))
        made[name] = (path, marker)
    return made


@pytest.mark.slow
def test_pytorchs_own_loader_runs_the_code_of_each(hostile, tmp_path) -> None:
    """So the vectors are real ones: each leaves its marker."""
    code = """
import sys, contextlib, shutil, torch
for path in sys.argv[1:]:
    with contextlib.suppress(Exception):
        torch.export.load(path).module()(torch.rand(3, 1, 8, 8))
"""
    arguments = [str(path) for path, _ in hostile.values()]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=True, timeout=300, cwd=tmp_path)
    left = {name: marker.exists() for name, (_, marker) in hostile.items()}
    for _, marker in hostile.values():
        marker.unlink(missing_ok=True)
    assert left == dict.fromkeys(VECTORS, True)


@pytest.mark.parametrize("name", VECTORS)
def test_nothing_of_a_program_runs(hostile, name: str) -> None:
    path, marker = hostile[name]
    message = VECTORS[name][1]
    for attempt in (lambda: read(path.read_bytes()), lambda: convert_foreign(path)):
        if message is None:
            assert attempt() == read(honest())
        else:
            with pytest.raises(ModelError, match=message):
                attempt()
    assert not marker.exists()
    (scanned,) = scan_model(path)
    assert scanned.format in PROGRAMS and "portcullis convert" in scanned.refused and not marker.exists()


def test_expressions_and_types_that_nothing_reads_are_not_evaluated(tmp_path) -> None:
    """Of sizes between the steps, and of how the modules were called: the program is read as if they said nothing."""
    marker = tmp_path / "marker"

    def change(document: Any) -> None:
        graph = graph_of(document)
        for values in (graph["sym_int_values"], graph["tensor_values"]):
            for value in values.values():
                value.update({"as_expr": {"expr_str": expression(marker), "hint": None}})
        for value in graph["tensor_values"].values():
            del value["as_expr"]
        spec = json.dumps([1, {"type": "os.system", "context": expression(marker), "children_spec": []}])
        document["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=spec, out_spec=spec)
        document["graph_module"]["metadata"] = {"custom": expression(marker)}
        document["verifiers"], document["torch_version"] = [expression(marker)], expression(marker)
        for node in graph["nodes"]:
            node["metadata"] = {"stack_trace": expression(marker)}

    data = changed(change, of="attention")
    assert read(data) == read(exported.program("attention")[1]) and not marker.exists()


def target(name: str) -> bytes:
    return changed(lambda it: node_of(it, "tanh.default").update(target=name))


OPERATORS = """
torch.ops.mine.tanh.default torch.ops.aten.tanh.default.__globals__ torch.ops.aten.__class__.__init__
torch.ops.aten.tanh.__class__ torch.ops.aten._dir.append torch.ops.aten.tanh aten.tanh.default torch.ops.aten.tanh.out
torch.load os.system builtins.eval eval __import__('os').system math.tanh math.ceil
_operator.attrgetter _operator.getitem _operator.methodcaller operator.mul
torch.ops.higher_order.cond torch.ops.higher_order.wrap_with_set_grad_enabled torch.ops.prim.tanh
torch.ops.aten.rand_like.default torch.ops.aten.bernoulli.p torch.ops.aten.normal_.default
torch.ops.aten.from_file.default torch.ops.aten.set_.source_Tensor torch.ops.aten.copy_.default
torch.ops.aten.nonzero.default torch.ops.aten.item.default torch.ops.aten._local_scalar_dense.default
torch.ops.aten.detach.default torch.ops.aten.empty_like.default torch.ops.aten.sym_size.int
torch.ops.aten.t\N{CYRILLIC SMALL LETTER A}nh.default
"""


@pytest.mark.parametrize("name", [*OPERATORS.split(), "", "torch.ops.aten.tanh.default\n"])
def test_an_operator_that_is_not_allowed_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        read(target(name))


def argument(kind: str, value: object) -> bytes:
    """Return a program whose first linear step has another bias."""

    def change(document: Any) -> None:
        node_of(document, "linear.default")["inputs"][2]["arg"] = {kind: value}

    return changed(change)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("as_operator", "torch.ops.aten.tanh.default"), ("as_string", "eval"), ("as_strings", ["eval"])),
        *(("as_custom_obj", {"name": "x", "class_fqn": "os.system"}), ("as_graph", {"name": "x", "graph": {}})),
        *(("as_device", {"type": "cpu", "index": None}), ("as_scalar_type", 7), ("as_layout", 7), ("as_complex", {})),
        *(("as_sym_float", {"as_name": "x"}), ("as_sym_bool", {"as_name": "x"}), ("as_sym_int", {"as_name": "x"})),
        *(("as_sym_int", {"as_int": "1"}), ("as_int_lists", [[1]]), ("as_string_to_argument", {}), ("as_none_", True)),
        *(("as_int", True), ("as_int", "1"), ("as_float", "Infinity"), ("as_floats", ["NaN"]), ("as_bool", 1)),
        *(("as_tensor", {"name": "missing"}), ("as_tensor", "x"), ("as_tensor", {"name": ["x"]}), ("as_tensors", 7)),
        *(("as_tensor", {"name": "linear_1"}), ("as_tensors", [{"name": "input"}]), ("as_int", 2**60), ("as_int", 1)),
    ],
)
def test_an_argument_that_is_not_understood_is_refused(kind: str, value: object) -> None:
    with pytest.raises(ModelError):
        read(argument(kind, value))


def in_graph(**fields: object) -> Callable[[Any], object]:
    return lambda document: graph_of(document).update(fields)


def in_signature(change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda document: change(document["graph_module"]["signature"])


def in_rows(**fields: object) -> Callable[[Any], object]:
    return lambda document: graph_of(document)["tensor_values"][rows_name(document)].update(fields)


def in_size(axis: int, **size: object) -> Callable[[Any], object]:
    return lambda it: graph_of(it)["tensor_values"][rows_name(it)]["sizes"].__setitem__(axis, size)


def in_node(name: str, **fields: object) -> Callable[[Any], object]:
    return lambda document: node_of(document, name).update(fields)


SYMBOL = {"expr_str": "Symbol('s0', positive=True, integer=True)", "hint": None}
CUSTOM = {"name": "x", "class_fqn": "os.system"}
MUTATION = {"buffer_mutation": {"arg": {"name": "tanh"}, "buffer_name": "0"}}
DOCUMENTS = {
    "another schema": lambda it: it["schema_version"].update(major=9),
    "a schema that is no number": lambda it: it["schema_version"].update(major=8.0),
    "operators of others": lambda it: it["opset_version"].update(mine=1),
    "an unknown field": lambda it: it.update(more=1),
    "a missing field": lambda it: it.pop("guards_code"),
    "no graph": lambda it: it.update(graph_module=None),
    "no symbol": lambda it: it.update(range_constraints={}),
    "two symbols": lambda it: it["range_constraints"].update(s1={"min_val": 1, "max_val": None}),
    "a batch of many only": lambda it: next(iter(it["range_constraints"].values())).update(min_val=3),
    "a batch of few only": lambda it: next(iter(it["range_constraints"].values())).update(max_val=2),
    "objects among the values": in_graph(custom_obj_values={"x": CUSTOM}),
    "conditions among the values": in_graph(sym_bool_values={"x": {"as_bool": True}}),
    "no steps": in_graph(nodes=[]),
    "steps that are no list": in_graph(nodes={}),
    "a step that is no object": in_graph(nodes=[7]),
    "too many steps": lambda it: in_graph(nodes=graph_of(it)["nodes"] * 6000)(it),
    "a step twice": lambda it: in_graph(nodes=graph_of(it)["nodes"] * 2)(it),
    "steps in another order": lambda it: graph_of(it)["nodes"].reverse(),
    "several outputs": in_signature(lambda it: it["output_specs"].append(it["output_specs"][0])),
    "a changed buffer": in_signature(lambda it: it["output_specs"].insert(0, MUTATION)),
    "a changed buffer only": in_signature(lambda it: it.update(output_specs=[MUTATION])),
    "an output that is not the signature's": in_graph(outputs=[{"as_tensor": {"name": "tanh"}}]),
    "an output that is a number": in_graph(outputs=[{"as_int": 1}]),
    "several inputs": in_signature(lambda it: it["input_specs"].append({"user_input": {"arg": {"as_int": 1}}})),
    "no input": in_signature(lambda it: it["input_specs"].pop()),
    "an input that is a constant": in_signature(
        lambda it: it["input_specs"].append({"constant_input": {"name": "x", "value": {"as_string": "x"}}})
    ),
    "an input that is an object": in_signature(
        lambda it: it["input_specs"].append({"custom_obj": {"arg": CUSTOM, "custom_obj_name": "z"}})
    ),
    "a parameter that is not stored": in_signature(
        lambda it: it["input_specs"][0]["parameter"].update(parameter_name="2.weight")
    ),
    "a parameter under two names": in_signature(
        lambda it: it["input_specs"][1]["parameter"].update(parameter_name="1.weight")
    ),
    "inputs that are not the signature's": in_graph(inputs=[]),
    "rows of another type": in_rows(dtype=8),
    "sparse rows": in_rows(layout=1),
    "rows without a batch axis": in_rows(sizes=[]),
    "a batch of a fixed size": in_rows(sizes=[{"as_int": n} for n in (3, 1, 8, 8)]),
    "a batch of another symbol": in_rows(sizes=[{"as_expr": SYMBOL}, *({"as_int": n} for n in (1, 8, 8))]),
    "a row of a symbol's size": in_size(2, as_expr=SYMBOL),
    "a row of two sizes": in_size(2, as_int=8, as_expr=SYMBOL),
    "rows of no elements": in_size(2, as_int=0),
    "rows of too many elements": in_size(2, as_int=2**40),
    "rows of other sizes than the weights take": lambda it: graph_of(it)["tensor_values"][rows_name(it)]["sizes"].pop(),
    "a graph within the graph": in_node("tanh.default", is_hop_single_tensor_return=True),
    "a step of several results": in_node("tanh.default", outputs=[{"as_tensor": {"name": n}} for n in ("tanh", "b")]),
    "a step of a list of results": in_node("tanh.default", outputs=[{"as_tensors": [{"name": "tanh"}]}]),
    "a step without result": in_node("tanh.default", outputs=[]),
    "a result that is a number": in_node("tanh.default", outputs=[{"as_sym_int": {"as_name": "tanh"}}]),
    "a result called like the input": in_node("tanh.default", outputs=[{"as_tensor": {"name": "input"}}]),
    "an argument twice": lambda it: node_of(it, "tanh.default")["inputs"].extend(node_of(it, "tanh.default")["inputs"]),
    "an argument of no kind": lambda it: node_of(it, "tanh.default")["inputs"][0].update(kind=0),
    "an argument that the operator does not take": lambda it: node_of(it, "tanh.default")["inputs"][0].update(name="x"),
    "rows that become one": lambda it: node_of(it, "flatten.using_ints")["inputs"][1]["arg"].update(as_int=0),
    "a step that writes into the input": lambda it: node_of(it, "tanh.default").update(
        target="torch.ops.aten.tanh_.default",
        inputs=[{"name": "self", "arg": {"as_tensor": {"name": rows_name(it)}}, "kind": 1}],
    ),
}


def write(module: torch.nn.Module, change: Callable[[Any], object]) -> tuple[bytes, bytes]:
    """Return a network's program, and that changed."""
    data = saved(exported.exported(module.eval(), (16,)))
    return data, with_json(data, MODEL, change)


class Asked(torch.nn.Module):
    """A linear layer behind something else."""

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.head = network, torch.nn.Linear(16, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.network(inputs))


def argument_of(document: Any, target: str, name: str) -> Any:
    return next(it for it in node_of(document, target)["inputs"] if it["name"] == name)


def without_argument(target: str, name: str) -> Callable[[Any], object]:
    return lambda document: node_of(document, target)["inputs"].remove(argument_of(document, target, name))


def with_argument(target: str, name: str, kind: int = 2, **argument: object) -> Callable[[Any], object]:
    entry = {"name": name, "arg": argument, "kind": kind}
    return lambda document: node_of(document, target)["inputs"].append(entry)


def called(target: str, operator: str, *more: Callable[[Any], object]) -> Callable[[Any], object]:
    def change(document: Any) -> None:
        for it in more:
            it(document)
        node_of(document, target)["target"] = f"torch.ops.aten.{operator}"

    return change


def asserted(**argument: object) -> Callable[[Any], object]:
    def change(document: Any) -> None:
        tensor = {"name": "a", "arg": {"as_tensor": {"name": rows_name(document)}}, "kind": 1}
        node = {"target": "torch.ops.aten._assert_tensor_metadata.default", "outputs": [], "metadata": {}, "name": None}
        inputs = [tensor, *({"name": name, "arg": it, "kind": 2} for name, it in argument.items())]
        graph_of(document)["nodes"].insert(0, node | {"inputs": inputs, "is_hop_single_tensor_return": None})

    return change


def of_one_row(document: Any) -> None:
    argument_of(document, "native_group_norm.default", "N")["arg"] = {"as_sym_int": {"as_int": 1}}


def broadcast(document: Any) -> None:
    """Add all features to the first in place."""
    argument_of(document, "add_.Tensor", "other")["arg"]["as_tensor"]["name"] = rows_name(document)
    argument_of(document, "repeat.default", "repeats")["arg"] = {"as_ints": [1, 1]}


def pooled(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x.reshape(-1, 1, 4, 4), 3, 2, 1).flatten(1).repeat(1, 4)


# Programs that PyTorch does not carry out, or not as one may read them: (network, how it is changed).
MISLEADING: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], object]]] = {
    "a hole among the positional arguments": (pooled, without_argument("avg_pool2d.default", "stride")),
    "a positional argument that has a name only": (
        lambda x: x + 2 * x,
        with_argument("add.Tensor", "alpha", 1, as_int=2),
    ),
    "an unknown argument": (torch.relu, with_argument("relu.default", "alpha", as_int=1)),
    "dropout that does not say whether": (
        lambda x: torch.dropout(x, 0.5, False),
        without_argument("dropout.default", "train"),
    ),
    "dropout that says it otherwise": (
        lambda x: torch.dropout(x, 0.5, False),
        with_argument("dropout.default", "training", as_bool=True),
    ),
    "a cast with an unknown argument": (
        torch.relu,
        called(
            "relu.default",
            "to.dtype",
            with_argument("relu.default", "dtype", 1, as_scalar_type=7),
            with_argument("relu.default", "bogus", 1, as_bool=False),
        ),
    ),
    "an operator in place that there is not": (
        lambda x: torch.softmax(x * 2, 1),
        called("softmax.int", "softmax_.int"),
    ),
    "what is written has another shape": (lambda x: (x[:, :1] * 2).add_(x[:, :1]).repeat(1, 16), broadcast),
    "an assertion of another type": (torch.relu, asserted(dtype={"as_scalar_type": 8})),
    "an assertion of a shape": (torch.relu, asserted(size={"as_ints": [3, 16]})),
    "groups of one row": (
        lambda x: torch.native_group_norm(x, None, None, x.shape[0], 16, 1, 4, 1e-5)[0],
        of_one_row,
    ),
}


@pytest.mark.parametrize("name", MISLEADING)
def test_a_program_that_pytorch_would_carry_out_otherwise_is_refused(name: str) -> None:
    network, change = MISLEADING[name]
    data, misleading = write(Asked(network), change)
    assert read(data).classes == 3
    with pytest.raises(ModelError):
        read(misleading)


def test_an_assertion_of_what_is_so_is_taken() -> None:
    data, same = write(Asked(torch.relu), asserted(dtype={"as_scalar_type": 7}, size={"as_none": True}))
    assert read(same) == read(data)


def test_normalisation_cannot_be_given_statistics_of_another_size() -> None:
    """PyTorch's own operator reads on behind them."""

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one = torch.nn.BatchNorm1d(16), torch.nn.Parameter(torch.ones(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.norm(inputs) * self.one

    program = exported.decomposed(exported.exported(Normalised().eval(), (16,)), {})
    target = "_native_batch_norm_legit_no_training.default"

    def narrow(document: Any) -> None:
        argument_of(document, target, "bias")["arg"]["as_tensor"]["name"] = "p_one"

    data = saved(program)
    assert any(step[0] == "batch_norm.default" for step in json.loads(str(read(data).options["graph"]))["steps"])
    with pytest.raises(ModelError, match="carried out"):
        read(with_json(data, MODEL, narrow))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_program_that_is_not_exactly_understood_is_refused(name: str) -> None:
    data = changed(DOCUMENTS[name])
    assert data != changed(lambda it: None)
    with pytest.raises(ModelError):
        read(data)


def test_a_fixed_batch_is_refused_with_the_line_that_helps() -> None:
    data = saved(exported.exported(exported.network("perceptron"), dynamic_shapes=None))
    with pytest.raises(ModelError, match=r"torch\.export\.Dim\('batch'\)"):
        read(data)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 3)), "eval"),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 3)), "eval"),
    ],
)
def test_a_network_in_training_mode_is_refused(module: torch.nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(saved(exported.exported(module.train())))


class Odd(torch.nn.Module):
    """A network that does something else with its flattened inputs."""

    def __init__(self, network: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.network = network
        self.counts = torch.nn.Buffer(torch.arange(64))

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.network(inputs.flatten(1))


def shared(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    z = y.exp()
    return y.relu_() + z


def viewed(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, :3].relu_()
    return y


def grouped(rows: int, channels: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.native_group_norm(x, None, None, x.shape[0] * rows, channels, size, 1, 1e-5)[0]

    return network


ODD: dict[str, Callable[[torch.Tensor], Any]] = {
    "rows that see one another": lambda x: x - x.mean(0),
    "rows that see one another in attention": lambda x: torch.softmax(x @ x.t(), 1) @ x,
    "rows that are sorted": lambda x: x.sort(0).values,
    "a size of the batch in a sum": lambda x: x / x.shape[0],
    "groups of more rows than there are": grouped(2, 32, 1),
    "groups of other channels": grouped(1, 32, 2),
    "a division by a negative zero": lambda x: ((x + 1) / -0.0).sigmoid() + x,
    "two outputs": lambda x: (x, x),
    "no logits": lambda x: x.unsqueeze(1),
    "random numbers": lambda x: x + torch.rand_like(x),
    "another type": lambda x: x.double().float(),
    "a choice by values": lambda x: torch.where(x > 0.5, x, 0),
    "a hidden gradient": lambda x: x.detach() + 1,
    "infinite logits": lambda x: x / 0,
    "what was written into is seen elsewhere": shared,
    "what was written into is a view": viewed,
}


@pytest.mark.parametrize("name", ODD)
def test_a_network_that_is_none_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        read(saved(exported.exported(Odd(ODD[name]).eval())))


def test_what_is_refused_for_its_writing_is_taken_in_the_form_that_the_refusal_names() -> None:
    network = Odd(shared).eval()
    with pytest.raises(ModelError, match=r"run_decompositions\(\{\}\)"):
        read(saved(exported.exported(network)))
    found = read(saved(exported.decomposed(exported.exported(network), {})))
    inputs = torch.randn(BLOCK_ROWS, *exported.ROW)
    spec = found.spec(0, 1, [str(number) for number in range(64)])
    model = load_model_files({"model.json": spec.to_json(), "weights.safetensors": found.weights})
    assert torch.equal(model.module(inputs), network(inputs))


def test_several_inputs_or_integers_are_refused() -> None:
    class Two(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return one + other

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Two(), (torch.rand(3, 4), torch.rand(3, 4)), dynamic_shapes=(batch, batch))
    document = json.loads(members(saved(program))[MODEL])
    assert document["guards_code"]  # that both batches are as large; an honest program has guards only for that
    with pytest.raises(ModelError, match="guards"):
        read(saved(program))
    with pytest.raises(ModelError, match="one input"):
        read(with_json(saved(program), MODEL, lambda it: it.update(guards_code=[])))
    whole = torch.export.export(Odd(lambda x: x + 1), (torch.ones(3, 4, dtype=torch.int64),), dynamic_shapes=(batch,))
    with pytest.raises(ModelError, match="float32"):
        read(saved(whole))


# What lies in the archive beside the program.


def weight_of(document: Any) -> Any:
    return document["config"]["1.weight"]


def in_weight(**fields: object) -> bytes:
    return changed(lambda it: weight_of(it).update(fields), WEIGHTS)


def in_meta(**fields: object) -> bytes:
    return changed(lambda it: weight_of(it)["tensor_meta"].update(fields), WEIGHTS)


def sizes(*numbers: object) -> list[dict[str, object]]:
    return [{"as_int": number} for number in numbers]


def beside(name: str, content: bytes) -> bytes:
    return archive(members(honest()) | {name: content})


def without(name: str) -> bytes:
    return archive({key: content for key, content in members(honest()).items() if key != name})


def twice() -> bytes:
    stream = io.BytesIO(honest())
    with zipfile.ZipFile(stream, "a") as target:
        (name,) = (it for it in target.namelist() if it.endswith(MODEL))
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr(name, b"{}")
    return stream.getvalue()


def two_folders() -> bytes:
    stream = io.BytesIO(honest())
    with zipfile.ZipFile(stream, "a") as target:
        target.writestr("other/byteorder", b"little")
    return stream.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no archive": lambda: b"PK\x03\x04" + bytes(100),
    "bytes before it": lambda: b"x" + honest(),
    "bytes behind it": lambda: honest() + b"x",
    "half of it": lambda: honest()[: len(honest()) // 2],
    "compressed members": lambda: archive(members(honest()), method=zipfile.ZIP_DEFLATED),
    "a member twice": twice,
    "two programs": two_folders,
    "two models": lambda: beside("models/other", b"{}"),
    "another file": lambda: beside("extra/note", b""),
    "a compiled library": lambda: beside("data/aotinductor/model/x", b"\x7fELF"),
    "a path out of it": lambda: beside("../x", b""),
    "a custom object": lambda: beside("data/constants/custom_obj_0", b""),
    "a tensor that is not listed": lambda: beside("data/weights/weight_9", bytes(4)),
    "a constant that is not listed": lambda: beside("data/constants/tensor_0", bytes(4)),
    "a tensor that is too short": lambda: beside("data/weights/weight_0", bytes(4)),
    "a tensor that is not finite": lambda: beside("data/weights/weight_1", b"\xff" * 48),
    "no program": lambda: without(MODEL),
    "no list of weights": lambda: without(WEIGHTS),
    "no list of constants": lambda: without(CONSTANTS),
    "no weight": lambda: without("data/weights/weight_0"),
    "no format": lambda: without("archive_format"),
    "another format": lambda: beside("archive_format", b"pt3"),
    "another version": lambda: beside("archive_version", b"1"),
    "another byte order": lambda: beside("byteorder", b"big"),
    "no byte order": lambda: without("byteorder"),
    "a program that is no JSON": lambda: beside(MODEL, b"{"),
    "a program that is a list": lambda: beside(MODEL, b"[]"),
    "a program that names something twice": lambda: beside(
        MODEL, members(honest())[MODEL].replace(b"{", b'{"guards_code":[],', 1)
    ),
    "a deep program": lambda: beside(MODEL, b'{"a":' + b"[" * 100_000),
    "a weight and a constant of one name": lambda: archive(
        members(exported.program("residual")[1])
        | {
            CONSTANTS: members(exported.program("residual")[1])[CONSTANTS].replace(b"lifted_tensor_0", b"head.bias"),
            MODEL: members(exported.program("residual")[1])[MODEL].replace(
                b'"tensor_constant_name": "lifted_tensor_0"', b'"tensor_constant_name": "head.bias"'
            ),
        }
    ),
    "weights that are a list": lambda: changed(lambda it: it.update(config=[]), WEIGHTS),
    "weights that are not tensors": lambda: in_weight(tensor_meta=None),
    "a weight of another name": lambda: in_weight(path_name="tensor_0"),
    "a weight of a path": lambda: in_weight(path_name="../weight_0"),
    "a weight that is neither learnt nor not": lambda: in_weight(is_param=1),
    "a weight with an unknown field": lambda: in_weight(more=1),
    "a weight with an odd name": lambda: changed(lambda it: it["config"].update({"a/b": weight_of(it)}), WEIGHTS),
    "a weight of another type": lambda: in_meta(dtype=4),
    "a weight of no type": lambda: in_meta(dtype=99),
    "a weight of a type that is text": lambda: in_meta(dtype="7"),
    "a weight of other sizes": lambda: in_meta(sizes=sizes(12, 65)),
    "a weight of other axes": lambda: in_meta(sizes=sizes(64, 12), strides=sizes(12, 1)),
    "a weight of negative sizes": lambda: in_meta(sizes=sizes(-12, -64)),
    "a weight of a symbol's size": lambda: in_meta(sizes=[{"as_expr": SYMBOL}, {"as_int": 64}]),
    "a weight of a huge size": lambda: in_meta(sizes=sizes(2**62, 2**62)),
    "a weight with other strides": lambda: in_meta(strides=sizes(1, 12)),
    "a weight that lies on itself": lambda: in_meta(strides=sizes(0, 0)),
    "a weight with too few strides": lambda: in_meta(strides=sizes(64)),
    "a weight with an offset": lambda: in_meta(storage_offset={"as_int": 1}),
    "a sparse weight": lambda: in_meta(layout=1),
    "a weight on an unknown device": lambda: in_meta(device={"type": "meta", "index": None}),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_not_exactly_a_programs_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        read(ARCHIVES[name]())


# Bytes and values at random.


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_altered_byte_is_refused_or_is_one_that_nothing_reads(data: st.DataObject) -> None:
    altered = bytearray(honest())
    position = data.draw(st.integers(0, len(altered) - 1))
    altered[position] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(altered))
    except ModelError:
        return
    assert found == read(honest())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_altered_bytes_of_a_weight_are_those_of_the_model(data: st.DataObject) -> None:
    """When the archive's checksums are made anew, the model is what the bytes say."""
    name = "data/weights/weight_3"  # the last layer's bias
    weights = bytearray(members(honest())[name])
    weights[data.draw(st.integers(0, len(weights) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read(archive(members(honest()) | {name: bytes(weights)}))
    except ModelError:
        assert not (np.abs(np.frombuffer(weights, "<f4")) < 1e30).all()
        return
    assert load(found.weights)["3/bias"].tobytes() == bytes(weights)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, it in inner for place in places(it, (*path, key)))]


odd = st.sampled_from(
    [
        *("null", "true", "-1", "0", "9223372036854775808", "1e308", '""', '"x"', '"s77"', '"input"', '"\\ud800"'),
        *("[]", "{}", "[[]]", '{"as_int":1}', '{"as_none":true}', '{"as_tensor":{"name":"input"}}'),
    ]
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_altered_values_of_a_program_are_refused_or_make_a_sound_model(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["perceptron", "residual", "attention"]))
    parts = members(exported.program(name)[1])
    member = data.draw(st.sampled_from([MODEL, MODEL, MODEL, WEIGHTS, CONSTANTS]))
    document = json.loads(parts[member])
    for node in document.get("graph_module", {}).get("graph", {}).get("nodes", []):
        node["metadata"] = {}  # nothing reads it
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(places(document)[1:]))
        holder = document
        for key in where[:-1]:
            holder = holder[key]
        others = [place for place in places(document)[1:] if place[: len(where)] != where]
        if data.draw(st.booleans()) and others:
            value: Any = document
            for key in data.draw(st.sampled_from(others)):
                value = value[key]
            value = json.loads(json.dumps(value))
        else:
            value = json.loads(data.draw(odd))
        holder[where[-1]] = value
    try:
        read(archive(parts | {member: json.dumps(document).encode()}))
    except ModelError:
        return


# In the locked child, and what the parent believes.


def test_the_child_reads_programs_of_every_operator(tmp_path) -> None:
    """Locked in, it needs nothing that it may not have, on any operator."""
    for name, form in (("everything", ""), ("decomposable", "decomposed")):
        data = exported.program(name, form)[1]
        path = tmp_path / "program.anything"
        path.write_bytes(data)
        assert convert_foreign(path) == read_exported_program(io.BytesIO(data), len(data))


def test_a_program_has_no_key(tmp_path) -> None:
    (tmp_path / "program.pt2").write_bytes(honest())
    with pytest.raises(UsageError, match="key"):
        convert_foreign(tmp_path / "program.pt2", key="model")


@pytest.mark.parametrize(
    "answer", [None, {}, [], {"architecture": "x"}, {"architecture": 1, "options": {}, "shape": [1], "classes": 2}]
)
def test_an_answer_that_is_none_is_not_believed(tmp_path, monkeypatch, answer: object) -> None:
    monkeypatch.setattr(convert, "_locked", lambda *_: (b"", answer))
    (tmp_path / "program.pt2").write_bytes(honest())
    with pytest.raises(ModelError, match="no sound answer"):
        convert_foreign(tmp_path / "program.pt2")
