"""scikit-learn's trees by way of ONNX: the same answers as theirs, and nothing else is read."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx_files import (
    HELD,
    HIGH,
    LABELS,
    NAMES,
    STUMPS,
    TREES,
    WRITTEN,
    answers,
    attribute,
    classifier,
    field,
    model,
    node,
    onnx_bytes,
    tensor,
    varint,
)

from portcullis.cli.main import cli
from portcullis.errors import ModelError, PortcullisError
from portcullis.models.store import LoadedModel, ModelSpec, load_model, load_model_files, model_files
from portcullis.supply_chain import onnx_file, onnx_trees
from portcullis.supply_chain.onnx_trees import convert_trees, read_trees

ALIKE = 1e-6


def converted(name: str, low: float = 0, high: float = HIGH) -> LoadedModel:
    width = answers(name)["rows"].shape[1]
    module, spec = convert_trees(
        read_trees(onnx_bytes(name)), shape=(width,), low=low, high=high, labels=LABELS[name.partition("-")[0]]
    )
    return LoadedModel(spec, module)


class TestWritten:
    """By skl2onnx of models of scikit-learn, see tests/data/onnx/write.py."""

    def test_there_are_all_kinds(self) -> None:
        assert len(NAMES) == 8 and {name.partition("-")[2] for name in NAMES} == {
            *("forest", "extra", "tree", "boosted", "hist")
        }

    @pytest.mark.parametrize("name", NAMES)
    def test_answers_as_scikit_learn_and_onnx_runtime(self, name: str) -> None:
        told, held = answers(name), HELD[name.partition("-")[0]]
        found = converted(name).predict_probabilities(told["rows"])
        assert np.abs(found - told["onnx"]).max() < ALIKE, "also on thresholds and beside them"
        assert np.abs(found[:held] - told["proba"][:held]).max() < ALIKE
        assert len(np.unique(found[:held].round(6), axis=0)) > 4, "it tells rows apart"

    @pytest.mark.parametrize("name", ["cancer-forest", "wine-hist"])
    def test_is_a_model_like_any_other_on_disk(self, name: str) -> None:
        model = converted(name)
        loaded = load_model_files(model_files(model.module, model.spec))
        rows = answers(name)["rows"]
        assert loaded.spec == model.spec and loaded.spec.architecture == "tree-ensemble"
        assert loaded.predict_logits(rows).tobytes() == model.predict_logits(rows).tobytes()

    def test_labels_are_found_by_name_or_by_place(self) -> None:
        rows = answers("wine-forest")["rows"]
        told = answers("wine-forest")["onnx"]

        def ordered(*labels: str) -> np.ndarray:
            module, spec = convert_trees(
                read_trees(onnx_bytes("wine-forest")), shape=(13,), low=0, high=HIGH, labels=labels
            )
            return LoadedModel(spec, module).predict_probabilities(rows)

        assert np.allclose(ordered("red", "rose", "white"), told, atol=ALIKE)
        assert np.allclose(ordered("2", "0", "1"), told[:, [2, 0, 1]], atol=ALIKE)
        for labels in (("0", "1"), ("0", "1", "2", "3"), ("0", "0", "1")):
            with pytest.raises(ModelError):
                ordered(*labels)

    @pytest.mark.parametrize("shape", [(12,), (14,), (13, 2)])
    def test_refuses_rows_of_another_width(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ModelError, match="13 features"):
            convert_trees(read_trees(onnx_bytes("wine-forest")), shape=shape, low=0, high=1, labels=LABELS["wine"])


FLOATS = st.floats(-1e6, 1e6, width=32)


class TestThresholds:
    @given(FLOATS, FLOATS, FLOATS, st.integers(-3, 3))
    def test_a_value_goes_where_it_went_unless_it_becomes_the_threshold(
        self, low: float, high: float, threshold: float, steps: int
    ) -> None:
        if not low < high:
            low, high = -1.0, 1.0
        spec = ModelSpec("tree-ensemble", {}, (1,), low, high, ("a", "b"))
        at = np.float32(threshold)
        (scaled,) = onnx_trees._scaled(np.array([at]), spec)
        value = at
        for _ in range(abs(steps)):
            value = np.nextafter(value, np.float32(math.copysign(np.inf, steps)))
        value = np.clip(value, np.float32(low), np.float32(high))
        (moved,) = spec.scale(np.array([[value]])).ravel()
        if value <= at:
            assert moved <= scaled
        elif low <= at <= high:
            assert moved > scaled or moved == spec.scale(np.array([[at]])).item()
        else:
            assert moved > scaled

    @given(st.floats(0, HIGH, width=32), st.booleans())
    def test_from_zero_to_a_power_of_two_nothing_is_rounded(self, threshold: float, above: bool) -> None:
        spec = ModelSpec("tree-ensemble", {}, (1,), 0, HIGH, ("a", "b"))
        at = np.float32(threshold) if threshold > 1e-30 else np.float32(1e-30)
        value = np.nextafter(at, np.float32(np.inf)) if above else at
        if value > HIGH:
            return
        (scaled,) = onnx_trees._scaled(np.array([at]), spec)
        assert (spec.scale(np.array([[value]])).item() <= scaled) is not above

    @pytest.mark.parametrize(("threshold", "left"), [(-math.inf, False), (-1, False), (2, True), (math.inf, True)])
    def test_beyond_the_bounds_all_go_one_way(self, threshold: float, left: bool) -> None:
        spec = ModelSpec("tree-ensemble", {}, (1,), 0, 1, ("a", "b"))
        (scaled,) = onnx_trees._scaled(np.array([threshold], np.float32), spec)
        assert np.isfinite(scaled) and (scaled >= 1) is np.bool_(left) and (scaled < 0) is np.bool_(not left)


class TestSmall:
    rows = np.array([[0.5, 0.25], [0.5, 0.5], [0.75, 0.75], [1, 1]], np.float32)

    def share(self, data: bytes, labels: tuple[str, ...] = ("0", "1")) -> list[float]:
        module, spec = convert_trees(read_trees(data), shape=(2,), low=0, high=1, labels=labels)
        return LoadedModel(spec, module).predict_probabilities(self.rows)[:, -1].round(6).tolist()

    def test_the_walk_is_as_written(self) -> None:
        assert self.share(model([classifier()])) == [0.125, 0.25, 0.5, 0.875]

    @pytest.mark.parametrize(
        ("mode", "shares"),
        [
            ("BRANCH_LT", [0.5, 0.5, 0.875, 0.875]),
            ("BRANCH_GT", [0.875, 0.875, 0.5, 0.125]),
            ("BRANCH_GTE", [0.5, 0.5, 0.125, 0.125]),
        ],
    )
    def test_other_comparisons(self, mode: str, shares: list[float]) -> None:
        modes = [it if it == "LEAF" else mode for it in STUMPS["nodes_modes"]]
        assert self.share(model([classifier(nodes_modes=modes)])) == pytest.approx(shares, abs=1e-6)

    def test_what_hands_answers_on_is_known(self) -> None:
        around = [
            classifier(),
            node(":Cast", ["label"], ["number"], {"to": 7}),
            node(":Identity", ["scores"], ["same"], {}),
            node("ai.onnx.ml:ZipMap", ["same"], ["mapped"], {"classlabels_int64s": [0, 1]}),
        ]
        opsets = {"ai.onnx.ml": 1, "": 9}
        assert self.share(model(around, outputs=("number", "mapped"), opsets=opsets))[0] == 0.125

    def test_packed_numbers_are_the_same_numbers(self) -> None:
        numbers = b"".join(map(varint, STUMPS["nodes_featureids"]))
        packed = field(1, "nodes_featureids") + field(8, numbers) + field(20, 7)
        weights = struct.pack("<5f", *STUMPS["class_weights"])
        more = field(1, "class_weights") + field(7, weights) + field(20, 6)
        data = classifier(nodes_featureids=None, class_weights=None) + field(5, packed) + field(5, more)
        assert self.share(model([data])) == [0.125, 0.25, 0.5, 0.875]

    def test_boosted_trees_start_at_a_base(self) -> None:
        weights = [-1.0, 0.5, 2.0, 0.0, 1.0]
        data = model([classifier(post_transform="LOGISTIC", base_values=[0.25], class_weights=weights)])
        logits = np.array([-0.75, 0.75, 2.25, 3.25])
        assert self.share(data) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


def changed(name: str, place: int, value: object) -> bytes:
    values = list(STUMPS[name])
    values[place] = value
    return model([classifier(**{name: values})])


def reordered(order: list[int]) -> bytes:
    """Return the small classifier with its nodes in another order, which ONNX Runtime answers otherwise."""
    return model(
        [classifier(**{name: [it[i] for i in order] for name, it in STUMPS.items() if name.startswith("nodes_")})]
    )


GOOD = classifier()
OPERATORS = {"": 9, "ai.onnx.ml": 1}
HOSTILE = {
    "nothing": b"",
    "no model": b"\x80\x04K\x01.",
    "a model of an operator that computes": model([node(":MatMul", ["X", "X"], ["label"], {})]),
    "an operator before": model([node(":Identity", ["X"], ["Y"], {}), classifier(inputs=["Y"])], opsets=OPERATORS),
    "an operator that is not known after": model(
        [GOOD, node(":Softmax", ["scores"], ["out"], {})], outputs=("label", "out"), opsets=OPERATORS
    ),
    "a cast of probabilities": model(
        [GOOD, node(":Cast", ["scores"], ["out"], {"to": 7})], outputs=("label", "out"), opsets=OPERATORS
    ),
    "a cast to another type": model(
        [GOOD, node(":Cast", ["label"], ["out"], {"to": 9})], outputs=("out", "scores"), opsets=OPERATORS
    ),
    "an identity with an attribute": model(
        [GOOD, node(":Identity", ["label"], ["out"], {"to": 7})], outputs=("out", "scores"), opsets=OPERATORS
    ),
    "a map to other labels": model(
        [GOOD, node("ai.onnx.ml:ZipMap", ["scores"], ["out"], {"classlabels_int64s": [1, 0]})], outputs=("label", "out")
    ),
    "an operator of another domain": model([classifier(operator="com.microsoft:TreeEnsembleClassifier")]),
    "the regressor": model([classifier(operator="ai.onnx.ml:TreeEnsembleRegressor")]),
    "two classifiers": model([GOOD, classifier()]),
    "trees that are interleaved": reordered([0, 5, 1, 6, 2, 7, 3, 4]),
    "the second tree first": reordered([5, 6, 7, 0, 1, 2, 3, 4]),
    "a tree of a negative number": model(
        [classifier(nodes_treeids=[-1] * 5 + [1] * 3, class_treeids=[-1, -1, -1, 1, 1])]
    ),
    "a softmax of two classes": model(
        [
            classifier(
                post_transform="SOFTMAX",
                **{name: STUMPS[name] * 2 for name in ("class_treeids", "class_nodeids", "class_weights")},
                class_ids=[0] * 5 + [1] * 5,
            )
        ]
    ),
    "seventeen operators": model([GOOD, *([node(":Identity", ["label"], ["x"], {})] * 16)], opsets=OPERATORS),
    "an output given twice": model([GOOD, node(":Identity", ["label"], ["scores"], {})], opsets=OPERATORS),
    "an operator of nothing": model([GOOD, node(":Identity", [], ["x"], {})], opsets=OPERATORS),
    "an operator on what is not there": model([GOOD, node(":Identity", ["y"], ["x"], {})], opsets=OPERATORS),
    "an identity of the input as the output": model(
        [GOOD, node(":Identity", ["X"], ["out"], {})], outputs=("label", "out"), opsets=OPERATORS
    ),
    "only a label": model([GOOD], outputs=("label",)),
    "two labels": model([GOOD], outputs=("label", "label")),
    "an output that is not there": model([GOOD], outputs=("label", "other")),
    "two inputs": model([GOOD], inputs=(tensor("X"), tensor("Y"))),
    "no input": model([GOOD], inputs=()),
    "an input of float64": model([GOOD], inputs=(tensor("X", element=11),)),
    "an input of text": model([GOOD], inputs=(tensor("X", element=8),)),
    "an input of free width": model([GOOD], inputs=(tensor("X", width=None),)),
    "an input of no width": model([GOOD], inputs=(tensor("X", width=0),)),
    "an opset of another domain": model([GOOD], opsets={"ai.onnx.ml": 1, "com.evil": 1}),
    "the trees of a later opset": model([GOOD], opsets={"ai.onnx.ml": 5}),
    "two versions of an opset": model([GOOD], more=field(8, field(1, "ai.onnx.ml") + field(2, 2))),
    "an initializer": model([GOOD], graph=field(5, field(8, "w"))),
    "an initializer that lies elsewhere": model([GOOD], graph=field(5, field(13, field(1, "location")))),
    "a quantization": model([GOOD], graph=field(14, b"")),
    "a value that is described": model([GOOD], graph=field(13, tensor("scores"))),
    "a training step": model([GOOD], more=field(20, b"")),
    "a function": model([GOOD], more=field(25, field(1, "f"))),
    "metadata": model([GOOD], more=field(14, field(1, "a") + field(2, "b"))),
    "two graphs": model([GOOD], more=field(7, b"")),
    "a sub-graph": model([GOOD + field(5, field(1, "body") + field(6, b"") + field(20, 5))]),
    "a tensor": model([GOOD + field(5, attribute("nodes_values_as_tensor", b"x"))]),
    "an attribute by reference": model([GOOD + field(5, field(1, "x") + field(21, "y") + field(20, 2))]),
    "an attribute twice": model([GOOD + field(5, attribute("post_transform", "NONE"))]),
    "an unknown attribute": model([classifier(aggregate_function="SUM")]),
    "an attribute of two kinds": model([GOOD + field(5, attribute("base_values", [1.0]) + field(3, 1))]),
    "an overload": model([GOOD + field(8, "x")]),
    "an end within a field": model([GOOD])[:-1],
    "a group, which protobuf gave up": model([GOOD], more=varint(3 << 3 | 3)),
    "a number without an end": model([GOOD], more=varint(1 << 3) + b"\xff" * 11),
    "a length beyond the file": model([GOOD], more=varint(6 << 3 | 2) + varint(2**63)),
    "half a packed number": model([GOOD + field(5, field(1, "base_values") + field(7, b"abc") + field(20, 6))]),
    "a name that is no text": model([GOOD + field(5, field(1, b"\xff") + field(3, 1) + field(20, 2))]),
    "a name that is too long": model([classifier(**{"x" * 5000: 1})]),
    **{f"without {name}": model([classifier(**{name: None})]) for name in STUMPS if name != "post_transform"},
    **{f"{name} too short": model([classifier(**{name: STUMPS[name][:-1]})]) for name in STUMPS if name[0] in "n"},
    "weights too few": model([classifier(class_weights=[0.1])]),
    "features that are floats": model([classifier(nodes_featureids=[0.0] * 8)]),
    "thresholds that are numbers": model([classifier(nodes_values=[1] * 8)]),
    "modes that are numbers": model([classifier(nodes_modes=[1] * 8)]),
    "weights that are one number": model([classifier(class_weights=1.0)]),
    "a mode of another release": changed("nodes_modes", 0, "BRANCH_MEMBER"),
    "a comparison that trees do not have": changed("nodes_modes", 0, "BRANCH_EQ"),
    "a mode with a zero behind": changed("nodes_modes", 0, "BRANCH_LEQ\0"),
    "no split at all": model([classifier(nodes_modes=["LEAF"] * 8)]),
    "a feature beyond the input": changed("nodes_featureids", 0, 2),
    "a negative feature": changed("nodes_featureids", 0, -1),
    "a threshold of NaN": changed("nodes_values", 0, math.nan),
    "a child that is not there": changed("nodes_truenodeids", 0, 9),
    "a child of two": changed("nodes_truenodeids", 0, 2),
    "a split whose children are one": changed("nodes_falsenodeids", 1, 2),
    "a split that is its own child": changed("nodes_truenodeids", 1, 1),
    "a cycle": changed("nodes_truenodeids", 1, 0),
    "a cycle apart from its tree": model(
        [
            classifier(
                nodes_treeids=[0] * 5 + [1] * 3,
                nodes_modes=["LEAF", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
                nodes_truenodeids=[0, 2, 1, 0, 0, 1, 0, 0],
                nodes_falsenodeids=[0, 3, 4, 0, 0, 2, 0, 0],
                class_treeids=[0, 0, 0, 1, 1],
                class_nodeids=[0, 3, 4, 1, 2],
            )
        ]
    ),
    "a node twice": changed("nodes_nodeids", 4, 3),
    "a tree that does not begin with its root": model(
        [classifier(nodes_nodeids=[1, 0, 2, 3, 4, 0, 1, 2], nodes_truenodeids=[0, 1, 0, 0, 0, 1, 0, 0])]
    ),
    "a weight of a split": changed("class_nodeids", 0, 0),
    "a weight of no node": changed("class_nodeids", 0, 77),
    "a leaf without a weight": changed("class_nodeids", 0, 3),
    "a weight of no class": changed("class_ids", 0, 2),
    "a weight of a negative class": changed("class_ids", 0, -1),
    "a weight of NaN": changed("class_weights", 0, math.nan),
    "an infinite weight": changed("class_weights", 0, math.inf),
    "a probability above one": changed("class_weights", 0, 0.6),
    "a negative probability": changed("class_weights", 0, -0.1),
    "a forest with a base": model([classifier(base_values=[0.5])]),
    "a base of NaN": model([classifier(post_transform="LOGISTIC", base_values=[math.nan])]),
    "two bases for one sum": model([classifier(post_transform="LOGISTIC", base_values=[0.1, 0.2])]),
    "a base of numbers": model([classifier(post_transform="LOGISTIC", base_values=[1])]),
    "weights of the second class only": model([classifier(class_ids=[1] * 5)]),
    "a softmax of one class": model([classifier(post_transform="SOFTMAX")]),
    "a probit": model([classifier(post_transform="PROBIT")]),
    "what becomes of it is a number": model([classifier(post_transform=1)]),
    "labels of both kinds": model([classifier(classlabels_strings=["a", "b"])]),
    "one label": model([classifier(classlabels_int64s=[0])]),
    "a label twice": model([classifier(classlabels_int64s=[1, 1])]),
    "more labels than a model has": model([classifier(classlabels_int64s=list(range(1001)))]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        read_trees(HOSTILE[name])


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_ONNX_BYTES", 100)
    with pytest.raises(ModelError, match="bytes"):
        read_trees(onnx_bytes("cancer-tree"))


SMALL = onnx_bytes("cancer-tree")


@given(place=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255))
def test_any_other_byte_is_refused_or_leaves_sound_trees(place: int, byte: int) -> None:
    require_sound(SMALL[:place] + bytes([byte]) + SMALL[place + 1 :])


@given(place=st.integers(0, len(SMALL) - 1), length=st.integers(1, 40), more=st.binary(max_size=20))
def test_bytes_cut_out_or_put_in_are_refused_or_leave_sound_trees(place: int, length: int, more: bytes) -> None:
    require_sound(SMALL[:place] + more + SMALL[place + length :])


def require_sound(data: bytes) -> None:
    try:
        module, spec = convert_trees(read_trees(data), shape=(30,), low=0, high=HIGH, labels=("0", "1"))
    except ModelError:
        return
    model = LoadedModel(spec, module)
    assert np.isfinite(model.predict_logits(answers("cancer-tree")["rows"])).all()
    assert load_model_files(model_files(module, spec)).spec == spec


def test_the_small_classifier_is_what_the_hostile_ones_differ_from() -> None:
    assert read_trees(model([GOOD])).depth == 2 and TREES.startswith("ai.onnx.ml")


class TestCommand:
    """`portcullis convert FOREST.onnx`, which reads the file in a locked process."""

    def run(self, *arguments: object):
        return CliRunner().invoke(cli, [*map(str, arguments)])

    def test_makes_a_model_that_answers_alike(self, tmp_path: Path) -> None:
        out = tmp_path / "model"
        given = ("--labels", "red,rose,white", "--high", HIGH)
        result = self.run("convert", WRITTEN / "wine-forest.onnx", "--output", out, *given)
        assert result.exit_code == 0, result.output
        told = answers("wine-forest")
        assert np.abs(load_model(out).predict_probabilities(told["rows"]) - told["onnx"]).max() < ALIKE
        assert load_model(out).spec.labels == ("red", "rose", "white")

    def test_a_scan_refuses_it_and_says_what_to_do(self) -> None:
        result = self.run("scan", WRITTEN / "wine-forest.onnx")
        assert isinstance(result.exception, ModelError) and "portcullis convert" in result.output

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            pytest.param(("--high", HIGH), "--labels", id="without labels"),
            pytest.param(("--labels", "a,b"), "tell apart 0, 1, 2", id="too few labels"),
            pytest.param(("--labels", "a,a,b"), "labels", id="a label twice"),
            pytest.param(("--labels", "a,b,c", "--key", "model"), "key", id="a key"),
            pytest.param(("--labels", "a,b,c", "--low", 1, "--high", 0), "bounds", id="bounds the wrong way round"),
            pytest.param(("--labels", "a,b,c", "--high", "nan"), "", id="a bound of NaN"),
        ],
    )
    def test_refuses_options(self, tmp_path: Path, options: tuple[object, ...], reason: str) -> None:
        result = self.run("convert", WRITTEN / "wine-forest.onnx", "--output", tmp_path / "model", *options)
        assert isinstance(result.exception, PortcullisError) and reason in str(result.exception)
        assert not (tmp_path / "model").exists()

    def test_refuses_what_is_no_trees(self, tmp_path: Path) -> None:
        (tmp_path / "net.onnx").write_bytes(HOSTILE["an operator that is not known after"])
        result = self.run("convert", tmp_path / "net.onnx", "--output", tmp_path / "model", "--labels", "a,b")
        assert isinstance(result.exception, ModelError) and "Softmax" in str(result.exception)
        assert not (tmp_path / "model").exists()
