"""The architecture `exported-graph`: what a program's graph computes, and the graphs that are refused."""

import copy
import io
import json
from collections.abc import Callable, Iterator
from functools import cache

import exported
import pytest
import torch
from safetensors.numpy import save

from portcullis.digest import canonical_json
from portcullis.errors import ModelError
from portcullis.models import exported_graph
from portcullis.models.exported_graph import ARCHITECTURE, BLOCK_ROWS, INPUT, OPERATORS, Graph, Step
from portcullis.models.store import LoadedModel, ModelSpec, build_module, load_model_files, model_files
from portcullis.supply_chain.exported_program import read_exported_program
from portcullis.supply_chain.programs import require_rows_apart
from portcullis.watermark.mark import Claim, embed, read
from portcullis.watermark.weights import decode_weights


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def converted(data: bytes) -> LoadedModel:
    found = read_exported_program(io.BytesIO(data), len(data))
    spec = found.spec(0, 1, [str(number) for number in range(found.classes)])
    model = load_model_files({"model.json": spec.to_json(), "weights.safetensors": found.weights})
    require_rows_apart(model)
    return model


@cache
def model_of(name: str, form: str = "") -> LoadedModel:
    return converted(exported.program(name, form)[1])


def answers(module: Callable[[torch.Tensor], torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, and the gradient of a weighing of them on the inputs."""
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.rand((rows, *exported.ROW), generator=generator).requires_grad_()
    logits = module(inputs)
    (gradient,) = torch.autograd.grad((logits * torch.rand(logits.shape, generator=generator)).sum(), inputs)
    return logits.detach(), gradient


def on_blocks(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what asks about blocks of BLOCK_ROWS rows, the last filled up with copies of its first."""

    def ask(inputs: torch.Tensor) -> torch.Tensor:
        blocks = inputs.split(BLOCK_ROWS)
        filled = [torch.cat([it, it[:1].detach().repeat(BLOCK_ROWS - len(it), 1, 1, 1)]) for it in blocks]
        return torch.cat([module(block)[: len(rows)] for block, rows in zip(filled, blocks, strict=True)])

    return ask


@pytest.mark.parametrize("rows", [1, 2, 17, 40])
@pytest.mark.parametrize("name", [name for name, form in exported.PROGRAMS if not form])
def test_logits_and_gradients_are_those_of_the_eager_network(name: str, rows: int) -> None:
    """Bit by bit when that is asked about the same blocks; but for rounding when it is asked about the rows alone."""
    found, eager = answers(model_of(name).module, rows), exported.network(name)
    for one, same, bare in zip(found, answers(on_blocks(eager), rows), answers(eager, rows), strict=True):
        assert one.abs().max() > 0 and torch.equal(one, same)
        assert torch.allclose(one, bare, rtol=1e-5, atol=1e-5 * float(bare.abs().max()))


@pytest.mark.parametrize(("name", "form"), [it for it in exported.PROGRAMS if it[1]])
def test_a_program_in_another_form_computes_what_pytorch_computes_of_it(name: str, form: str) -> None:
    program, _ = exported.program(name, form)
    for rows in (2, 40):
        found = answers(model_of(name, form).module, rows)
        assert all(map(torch.equal, found, answers(on_blocks(program.module()), rows)))
        wanted = answers(exported.network(name), rows)
        assert all(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in zip(found, wanted, strict=True))


def test_every_operator_that_is_allowed_has_been_carried_out() -> None:
    """By the tests above; so none is allowed that nobody has tried."""
    graphs = [json.loads(str(model_of(*it).spec.options["graph"])) for it in exported.PROGRAMS]
    carried_out = {operator for graph in graphs for operator, _ in graph["steps"]}
    assert carried_out == set(OPERATORS) == set(exported_graph._NAMES.split())


def test_no_operator_that_is_allowed_writes_draws_or_decides_by_values() -> None:
    forbidden = {
        *(torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape),
        *(torch.Tag.inplace_view, torch.Tag.generated, torch.Tag.nondeterministic_bitwise),
    }
    for name, operator in OPERATORS.items():
        schema = operator._schema
        assert schema.name.startswith("aten::") and not schema.is_mutable, name
        # Attention may drop out at random; here no step can make it.
        assert not set(operator.tags) & forbidden or name == "scaled_dot_product_attention.default", name
        given = [it for it in schema.arguments if it.name not in exported_graph._NEVER]
        for kind in {str(it.type) for it in given}:
            inner = kind.removeprefix("Optional[").removeprefix("List[").rstrip("]")
            assert inner in ("Tensor", "int", "float", "number", "bool", "str"), (name, kind)


class TestModule:
    @pytest.fixture
    def model(self) -> LoadedModel:
        return model_of("residual")

    def test_round_trips_through_its_files(self, model: LoadedModel) -> None:
        files = model_files(model.module, model.spec)
        again = load_model_files(files)
        assert model_files(again.module, again.spec) == files and again.spec == model.spec
        assert torch.equal(answers(again.module, 3)[0], answers(model.module, 3)[0])

    def test_keeps_the_names_and_kinds_of_its_state(self, model: LoadedModel) -> None:
        eager = exported.network("residual")
        parameters = {name.replace(".", "/") for name, _ in eager.named_parameters()}
        assert {name for name, _ in model.module.named_parameters()} == parameters
        buffers = {name.replace(".", "/") for name, _ in eager.named_buffers() if "num_batches" not in name}
        assert {name for name, _ in model.module.named_buffers()} == buffers | {"lifted_tensor_0"}

    def test_is_built_on_meta_without_memory_and_on_the_cpu_with_initial_weights(self, model: LoadedModel) -> None:
        assert all(tensor.is_meta for tensor in build_module(model.spec, device="meta").state_dict().values())
        fresh = build_module(model.spec)
        assert torch.isfinite(fresh(torch.rand(2, *exported.ROW))).all()

    def test_does_the_same_as_a_copy_in_training_mode_and_in_another_layout(self, model: LoadedModel) -> None:
        wanted = answers(model.module, 4)
        copied = copy.deepcopy(model.module)
        for parameter in copied.parameters():
            parameter.data.add_(0)
        for module in (copied, copied.train(), copied.eval()):
            assert all(map(torch.equal, answers(module, 4), wanted))
        laid_out = copied.to(memory_format=torch.channels_last)
        assert laid_out.state_dict()["stem/weight"].is_contiguous(memory_format=torch.channels_last)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(answers(laid_out, 4), wanted, strict=True))

    def test_takes_no_rows_as_well(self, model: LoadedModel) -> None:
        inputs = torch.rand(0, *exported.ROW).requires_grad_()
        logits = model.module(inputs)
        assert logits.shape == (0, exported.CLASSES) and logits.dtype == torch.float32
        assert torch.autograd.grad(logits.sum(), inputs)[0].shape == inputs.shape

    def test_refuses_rows_of_another_shape(self, model: LoadedModel) -> None:
        with pytest.raises(ModelError, match="shape"):
            model.module(torch.rand(2, 64))


def test_a_mark_is_put_into_a_network_that_came_as_a_program_and_read_from_it() -> None:
    spec = ModelSpec("digits-cnn", {}, exported.ROW, 0, 1, tuple("0123456789"))
    model = converted(exported.saved(exported.exported(build_module(spec).eval())))
    files = model_files(model.module, model.spec)
    weights = decode_weights(files["weights.safetensors"])
    marked = embed(weights, bytes(range(32)), Claim("Example Ltd", "a" * 64))
    again = load_model_files(files | {"weights.safetensors": save(marked.tensors)})
    read_from = {name: tensor.numpy() for name, tensor in again.module.state_dict().items()}
    assert read(read_from, bytes(range(32)), Claim("Example Ltd", "a" * 64)).verdict == "PRESENT"
    assert read(weights, bytes(range(32)), Claim("Example Ltd", "a" * 64)).verdict != "PRESENT"
    found, wanted = answers(again.module, 3)[0], answers(model.module, 3)[0]
    assert torch.allclose(found, wanted, atol=0.05) and not torch.equal(found, wanted)


SOUND = {
    "parameters": {"weight": [3, 4]},
    "buffers": {"scale": []},
    "steps": [
        ["mul.Tensor", {"self": "%input", "other": "scale"}],
        ["split.Tensor", {"self": "%0", "split_size": 1, "dim": 1}],
        ["cat.default", {"tensors": ["%1:0", "%0"], "dim": 1}],
        ["slice.Tensor", {"self": "%2", "dim": 1, "start": 1}],
        ["gelu.default", {"self": "%3", "approximate": {"word": "tanh"}}],
        ["reshape.default", {"self": "%4", "shape": [{"batch": 1}, -1]}],
        ["linear.default", {"input": "%5", "weight": "weight"}],
    ],
    "output": "%6",
}


def test_a_graph_round_trips() -> None:
    text = canonical_json(SOUND).decode()
    graph = Graph.from_text(text)
    assert graph.to_text() == text and graph.steps[1] == Step("split.Tensor", SOUND["steps"][1][1])
    model = LoadedModel(spec := ModelSpec(ARCHITECTURE, {"graph": text}, (4,), 0, 1, tuple("abc")), build_module(spec))
    assert model.module(torch.rand(5, 4)).shape == (5, 3)


def step(index: int, operator: object, **arguments: object) -> dict:
    steps = copy.deepcopy(SOUND["steps"])
    steps[index] = [operator, arguments]
    return {"steps": steps}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"more": 1}, id="an unknown field"),
        pytest.param({"steps": {}}, id="steps are no list"),
        pytest.param({"output": 6}, id="output is no name"),
        pytest.param({"output": "%7"}, id="output is not there"),
        pytest.param({"output": "%1"}, id="output is a list"),
        pytest.param({"parameters": []}, id="parameters are no object"),
        pytest.param({"parameters": {"weight": [3, 4], "idle": [1]}}, id="a weight that no step takes"),
        pytest.param({"parameters": {"scale": [3, 4]}}, id="a name of two tensors"),
        pytest.param({"parameters": {"weight": [3, 4], "%0": []}}, id="a name of a result"),
        pytest.param({"parameters": {"weight": [3, 4], "a.b": []}}, id="a name with a dot"),
        pytest.param({"parameters": {"weight": [3, -4]}}, id="a negative size"),
        pytest.param({"parameters": {"weight": [3, True]}}, id="a boolean size"),
        pytest.param({"parameters": {"weight": [1 << 20, 1 << 20]}}, id="a weight that is too large"),
        pytest.param({"parameters": {"weight": [1] * 9}}, id="too many axes"),
        pytest.param({"steps": SOUND["steps"] * 1000}, id="too many steps"),
        pytest.param(step(0, "relu_.default", self="%input"), id="an operator that writes"),
        pytest.param(step(0, "rand_like.default", self="%input"), id="an operator that draws"),
        pytest.param(step(0, "__class__.__init__"), id="an attribute"),
        pytest.param(step(0, "aten.relu.default", self="%input"), id="an operator with a path"),
        pytest.param(step(0, ["relu.default"], self="%input"), id="an operator that is a list"),
        pytest.param(step(0, "relu.default", self="%0"), id="a step that takes itself"),
        pytest.param(step(0, "relu.default", self="%3"), id="a step that takes a later one"),
        pytest.param(step(2, "relu.default", self="%1"), id="a list where a tensor belongs"),
        pytest.param(step(2, "relu.default", self="%0:0"), id="an element of no list"),
        pytest.param(step(2, "relu.default", self="%01"), id="a step with a leading zero"),
        pytest.param(step(0, "relu.default", self="%input", inplace=True), id="an argument that is not the operator's"),
        pytest.param(step(0, "relu.default", self=1), id="a number for a tensor"),
        pytest.param(step(0, "clamp.default", self="%input", min="scale"), id="a tensor for a number"),
        pytest.param(step(0, "clamp.default", self="%input", min={"batch": 1}), id="the batch for a number"),
        pytest.param(step(0, "softmax.int", self="%input", dim=1, dtype=6), id="a type"),
        pytest.param(step(0, "softmax.int", self="%input", dim=True), id="a boolean for a number"),
        pytest.param(step(0, "_native_batch_norm_legit_no_training.default"), id="an operator that reads too far"),
        pytest.param(step(0, "softmax.int", self="%input", dim=1 << 30), id="a number that is too large"),
        pytest.param(step(0, "reshape.default", self="%input", shape=["scale"]), id="a tensor for a size"),
        pytest.param(step(0, "reshape.default", self="%input", shape=[{"batch": 0}]), id="no batch"),
        pytest.param(step(0, "reshape.default", self="%input", shape=[{"batch": 1, "x": 1}]), id="more than the batch"),
        pytest.param(step(0, "reshape.default", self="%input", shape=[[1]]), id="a list of lists"),
        pytest.param(step(0, "reshape.default", self="%input", shape=[1] * 300), id="a list that is too long"),
        pytest.param(step(0, "permute.default", self="%input", dims=[{"batch": 1}]), id="the batch as an axis"),
        pytest.param(
            step(0, "gelu.default", self="%input", approximate={"word": "exec"}), id="a word that is not known"
        ),
        pytest.param(step(0, "gelu.default", self="%input", approximate={"word": []}), id="a word that is a list"),
        pytest.param(step(0, "gelu.default", self="%input", approximate="scale"), id="a tensor for a word"),
        pytest.param(
            step(
                *(0, "batch_norm.default"),
                input="%input",
                weight=None,
                bias=None,
                running_mean=None,
                running_var=None,
                training=True,
                momentum=0.1,
                eps=0.1,
                cudnn_enabled=False,
            ),
            id="statistics of the batch",
        ),
        pytest.param(
            step(
                0, "scaled_dot_product_attention.default", query="%input", key="%input", value="%input", dropout_p=0.5
            ),
            id="attention that drops out",
        ),
        pytest.param(
            step(
                *(0, "scaled_dot_product_attention.default"),
                query="%input",
                key="%input",
                value="%input",
                enable_gqa=True,
            ),
            id="attention of grouped heads",
        ),
    ],
)
def test_graphs_that_are_not_understood_are_refused(change: dict) -> None:
    with pytest.raises(ModelError):
        Graph.from_text(canonical_json(SOUND | change).decode())


def test_a_negative_zero_is_refused_where_canonical_json_would_turn_it_into_another_number() -> None:
    given = {"self": INPUT, "other": -0.0}
    with pytest.raises(ModelError, match="does not take"):
        exported_graph._require_taken(Step("div.Tensor", given), 0)
    exported_graph._require_taken(Step("div.Tensor", given | {"other": 0.0}), 0)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{" * 10_000, json.dumps(SOUND), "\ud800", " " * (1 << 21)])
def test_text_that_is_no_graph_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        Graph.from_text(text)


def test_options_that_are_no_graph_are_refused() -> None:
    for options in ({}, {"graph": 1}, {"graph": "{}"}, {"graph": canonical_json(SOUND).decode(), "more": 1}):
        with pytest.raises(ModelError):
            build_module(ModelSpec(ARCHITECTURE, options, (4,), 0, 1, tuple("abc")))


def asked(steps: list, shape: tuple[int, ...] = (4,), **weights: torch.Tensor) -> LoadedModel:
    """Return a model of two classes that carries out these steps, of which each is called by its place."""
    parameters = {name: list(it.shape) for name, it in weights.items()}
    output = f"%{len(steps) - 1}" + (":0" if exported_graph._returns(steps[-1][0]) == "List[Tensor]" else "")
    document = {"parameters": parameters, "buffers": {}, "steps": steps, "output": output}
    spec = ModelSpec(ARCHITECTURE, {"graph": canonical_json(document).decode()}, shape, 0, 1, ("a", "b"))
    return load_model_files(
        {"model.json": spec.to_json(), "weights.safetensors": save({key: it.numpy() for key, it in weights.items()})}
    )


ONE = ["select.int", {"self": "%input", "dim": 1, "index": 0}]
COLUMN = [
    ["repeat.default", {"self": "%input", "repeats": [1 << 9, 1]}],
    ["reshape.default", {"self": "%0", "shape": [-1, 1]}],
]
MANY = [["repeat.default", {"self": "%input", "repeats": [16, 1]}]]
PLANE = ["reshape.default", {"self": "%input", "shape": [-1, 1, 2, 2]}]
GIANT = 1 << 24
PADDED = {"stride": [1, 1], "padding": [GIANT, GIANT], "dilation": [1, 1]}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        pytest.param([["relu.default", {"self": "%input"}]], r"\[32, 4\]", id="more logits than classes"),
        pytest.param([["flatten.using_ints", {"self": "%input"}]], r"\[128\]", id="no logits of each row"),
        pytest.param([["select.int", {"self": "%input", "dim": 3, "index": 0}]], "out of range", id="no such axis"),
        pytest.param(
            [["chunk.default", {"self": "%input", "chunks": 2, "dim": 1}], ["relu.default", {"self": "%0:7"}]],
            "%0:7",
            id="no such element",
        ),
        pytest.param([["relu.default", {}]], "RuntimeError", id="an argument that is missing"),
        pytest.param(
            [
                ["slice.Tensor", {"self": "%input", "dim": 0, "end": 3}],
                ["add.Tensor", {"self": "%input", "other": "%0"}],
            ],
            "size",
            id="shapes that do not match",
        ),
        pytest.param([["slice.Tensor", {"self": "%input", "dim": 1, "start": 4}]], "no elements", id="an empty tensor"),
        pytest.param(
            [["slice.Tensor", {"self": "%input", "dim": 1, "start": 4}], ["unbind.int", {"self": "%0", "dim": 1}]],
            "no elements",
            id="no tensors at all",
        ),
        pytest.param([["unbind.int", {"self": "%input", "dim": 7}]], "range", id="tensors along no axis"),
        pytest.param([["split.Tensor", {"self": "%input", "split_size": 0}]], "Zero", id="parts of no size"),
        *(
            pytest.param([*before, [name, given]], "would make more elements", id=label)
            for label, before, name, given in [
                ("repeated", [], "repeat.default", {"self": "%input", "repeats": [GIANT, GIANT]}),
                ("padded", [], "pad.default", {"self": "%input", "pad": [GIANT, GIANT]}),
                ("padded by a constant", [], "constant_pad_nd.default", {"self": "%input", "pad": [0, GIANT]}),
                ("expanded", [ONE], "expand.default", {"self": "%0", "size": [GIANT, 32]}),
                (
                    "nearest",
                    [PLANE],
                    "upsample_nearest2d.vec",
                    {"input": "%0", "output_size": [GIANT, GIANT], "scale_factors": None},
                ),
                (
                    "scaled",
                    [PLANE],
                    "upsample_bilinear2d.vec",
                    {"input": "%0", "output_size": None, "align_corners": False, "scale_factors": [1e200, 1e200]},
                ),
                ("pooled", [PLANE], "adaptive_avg_pool2d.default", {"self": "%0", "output_size": [GIANT, GIANT]}),
                ("convolved", [PLANE], "conv2d.default", {"input": "%0", "weight": "%0", **PADDED}),
                (
                    "transposed",
                    [PLANE],
                    "conv_transpose2d.input",
                    {"input": "%0", "weight": "%0", "stride": [GIANT, GIANT]},
                ),
                (
                    "transposed, and cropped",
                    [PLANE],
                    "conv_transpose2d.input",
                    {"input": "%0", "weight": "%0", "stride": [1 << 16, 1 << 16], "padding": [1 << 15, 1 << 15]},
                ),
                (
                    "convolved in great strides",
                    [PLANE],
                    "conv2d.default",
                    {"input": "%0", "weight": "%0", **PADDED, "stride": [GIANT, GIANT]},
                ),
                ("pooled in great windows", [PLANE], "avg_pool2d.default", {"self": "%0", "kernel_size": [GIANT] * 2}),
                (
                    "an outer product",
                    [*COLUMN, ["t.default", {"self": "%1"}]],
                    "mul.Tensor",
                    {"self": "%1", "other": "%2"},
                ),
                (
                    "a product of matrices",
                    [*COLUMN, ["t.default", {"self": "%1"}]],
                    "mm.default",
                    {"self": "%1", "mat2": "%2"},
                ),
                ("a linear layer", COLUMN, "linear.default", {"input": "%1", "weight": "%1"}),
                (
                    "attention",
                    [COLUMN[0], ["reshape.default", {"self": "%0", "shape": [1, 1, -1, 1]}]],
                    "scaled_dot_product_attention.default",
                    {"query": "%1", "key": "%1", "value": "%1"},
                ),
                ("many tensors", MANY, "unbind.int", {"self": "%0"}),
                ("many parts", MANY, "split.Tensor", {"self": "%0", "split_size": 1}),
                ("many chunks", MANY, "chunk.default", {"self": "%0", "chunks": 300}),
            ]
        ),
    ],
)
def test_a_graph_that_cannot_be_carried_out_or_makes_no_logits_is_refused(steps: list, message: str) -> None:
    """Whatever would be too large, before anything is made of it: none of these sizes fits into memory."""
    model = asked(steps)
    with pytest.raises(ModelError, match=message):
        model.module(torch.rand(2, 4))
    with pytest.raises(ModelError):
        require_rows_apart(model)


def test_what_is_known_of_an_operator_before_it_is_called_is_enough(monkeypatch) -> None:
    """All make at most the bound, on the networks that have them all."""
    real, made = exported_graph._call, set()

    def call(operator: str, given: dict) -> object:
        results = real(operator, given)
        first = results[0] if exported_graph._returns(operator) == "several" else results
        count = first.numel() if isinstance(first, torch.Tensor) else sum(it.numel() for it in first)
        assert count <= exported_graph._most_elements(operator, given), operator
        made.add(operator)
        return results

    monkeypatch.setattr(exported_graph, "_call", call)
    for name, form in exported.PROGRAMS:
        model_of(name, form).module(torch.rand(1, *exported.ROW))
    assert made == set(OPERATORS)


@pytest.mark.parametrize(
    ("size", "channels", "window", "more"),
    [
        pytest.param(224, (3, 64), 7, {"stride": [2, 2], "padding": [3, 3]}, id="ResNet"),
        pytest.param(224, (64, 64), 3, {"padding": [1, 1]}, id="VGG"),
        pytest.param(224, (3, 768), 16, {"stride": [16, 16]}, id="a vision transformer"),
        pytest.param(7, (2048, 512), 1, {}, id="the last block of ResNet-50"),
    ],
)
def test_a_block_of_a_usual_network_is_not_too_large(
    size: int, channels: tuple[int, int], window: int, more: dict
) -> None:
    inputs = torch.empty(BLOCK_ROWS, channels[0], size, size, device="meta")
    weight = torch.empty(channels[1], channels[0], window, window, device="meta")
    most = exported_graph._most_elements("conv2d.default", {"input": inputs, "weight": weight, **more})
    assert most <= exported_graph.MAX_ELEMENTS


def test_rows_that_are_too_large_for_a_block_are_refused() -> None:
    with pytest.raises(ModelError, match="rows have more elements"):
        asked([["flatten.using_ints", {"self": "%input", "start_dim": 1}]], shape=(1 << 12, 1 << 12))


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_normalisation_reads_no_further_than_its_statistics(name: str) -> None:
    """One operator of PyTorch does not compare their sizes, and reads on; it is not among ours."""
    given = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), "wide") | {name: "narrow"}
    fixed = {"training": False, "momentum": 0.1, "eps": 0.1, "cudnn_enabled": False}
    weights = {"wide": torch.ones(2), "narrow": torch.ones(1)}
    model = asked([["batch_norm.default", {"input": "%input", **given, **fixed}]], (2,), **weights)
    with pytest.raises(ModelError, match="RuntimeError"):
        model.module(torch.rand(1, 2))
    assert not [name for name in OPERATORS if "native_batch_norm" in name]


def test_a_graph_cannot_see_how_many_rows_there_are() -> None:
    """A count of the rows, added to each, is that of a block; so the answers of a row are the same in any batch."""
    steps = [
        ["mul.Tensor", {"self": "%input", "other": 0}],
        ["add.Tensor", {"self": "%0", "other": 1}],
        ["sum.dim_IntList", {"self": "%1", "dim": [0], "keepdim": True}],
        ["add.Tensor", {"self": "%input", "other": "%2"}],
    ]
    model, rows = asked(steps, (2,)), torch.rand(70, 2)
    for count in (1, 31, 32, 33, 70):
        assert torch.equal(model.module(rows[:count]), rows[:count] + BLOCK_ROWS)


LINEAR = {"weight": torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])}
LOGITS = ["linear.default", {"input": "%input", "weight": "weight"}]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(
            [
                ["mean.dim", {"self": "%input", "dim": [0], "keepdim": True}],
                ["add.Tensor", {"self": "%input", "other": "%0"}],
                ["linear.default", {"input": "%1", "weight": "weight"}],
            ],
            id="their mean",
        ),
        pytest.param([LOGITS, ["softmax.int", {"self": "%0", "dim": 0}]], id="their softmax"),
        pytest.param(
            [
                LOGITS,
                ["slice.Tensor", {"self": "%0", "end": 20}],
                ["slice.Tensor", {"self": "%0", "start": 20}],
                ["neg.default", {"self": "%2"}],
                ["cat.default", {"tensors": ["%1", "%3"]}],
            ],
            id="the place in the block",
        ),
        pytest.param(
            [
                LOGITS,
                ["slice.Tensor", {"self": "%0", "start": 1}],
                ["slice.Tensor", {"self": "%0", "end": 1}],
                ["cat.default", {"tensors": ["%1", "%2"]}],
            ],
            id="the next row",
        ),
        pytest.param(
            [
                LOGITS,
                ["slice.Tensor", {"self": "%0", "start": 9, "end": 10}],
                ["mul.Tensor", {"self": "%1", "other": 1e-7}],
                ["add.Tensor", {"self": "%0", "other": "%2"}],
            ],
            id="one row, and hardly",
        ),
        pytest.param(
            [
                ["slice.Tensor", {"self": "%input", "end": 31}],
                ["slice.Tensor", {"self": "%input", "start": 31}],
                ["mul.Tensor", {"self": "%1", "other": 1.01}],
                ["cat.default", {"tensors": ["%0", "%2"]}],
                ["linear.default", {"input": "%3", "weight": "weight"}],
            ],
            id="the last place",
        ),
    ],
)
def test_logits_that_depend_on_other_rows_are_found_out(steps: list) -> None:
    with pytest.raises(ModelError, match="other rows"):
        require_rows_apart(asked(steps, **LINEAR))
    require_rows_apart(asked([LOGITS], **LINEAR))
