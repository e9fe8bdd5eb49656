"""Turn scikit-learn's trees, as skl2onnx writes them, into a model that can be judged: translated, never run.

scikit-learn has no format of its own but pickle. ONNX has: one operator, TreeEnsembleClassifier, is a forest or a
boosted ensemble, and this reads it into the tensors of `portcullis.models.tree_ensemble`. Around it only what renames
or reshapes its answers is known: Identity, Cast of the label, ZipMap. Everything else is refused.

Source: the operator's definition, github.com/onnx/onnx/blob/main/docs/Operators-ml.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.ma  # np.unique imports it on first use, and a locked process imports nothing
from numpy.typing import NDArray

from portcullis.errors import ModelError
from portcullis.files import read_full
from portcullis.models.store import MAX_LABELS, MAX_WEIGHTS_BYTES, ModelSpec, build_module
from portcullis.supply_chain.foreign import ForeignModel, Rows
from portcullis.supply_chain.onnx_file import MAX_ONNX_BYTES, Graph, Node, parse_onnx

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "tree-ensemble"
TREES = "ai.onnx.ml:TreeEnsembleClassifier"
VERSIONS = {"": range(1, 1 << 16), "ai.onnx.ml": range(1, 4)}
# How far a forest's leaf may be from a whole of 1 over its trees; it is written in float32.
ROUNDING = 1e-3
_FLOAT, _INT64, _STRING = 1, 7, 8
_LEAF = 0
_MODES = {"LEAF": _LEAF, "BRANCH_LEQ": 1, "BRANCH_LT": 2, "BRANCH_GTE": 3, "BRANCH_GT": 4}
_NODES: dict[str, type] = dict.fromkeys(("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids"), int)
_NODES |= {"modes": str, "values": float, "hitrates": float, "missing_value_tracks_true": int}
_NODES = {f"nodes_{name}": kind for name, kind in _NODES.items()}
_LEAVES = {"class_treeids": int, "class_nodeids": int, "class_ids": int, "class_weights": float}
_OTHERS = {"post_transform", "base_values", "classlabels_int64s", "classlabels_strings"}

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trees:
    """An ensemble in raw units, its nodes numbered as `portcullis.models.tree_ensemble.TreeEnsemble` has them.

    Attributes:
        labels: The k classes by name, in the order of `value`.
        numbered: Whether the labels are the numbers from 0 to k - 1.
        width: D, how many features a row has.
        probabilities: Whether the sums are probabilities; else they are logits.
        depth: Most splits on any path.
        root: First node of each tree (T,).
        feature: Which feature each split looks at (S,).
        threshold: The most that goes left (S,), float32 values; infinite where all do.
        left: Left child of each split (S,).
        right: Right child (S,).
        value: What each leaf adds (S + T, k).
        base: What is there before (k,).
    """

    labels: tuple[str, ...]
    numbered: bool
    width: int
    probabilities: bool
    depth: int
    root: Integers
    feature: Integers
    threshold: NDArray[np.float32]
    left: Integers
    right: Integers
    value: Floats
    base: Floats


def convert_trees(
    trees: Trees, *, shape: tuple[int, ...], low: float, high: float, labels: Sequence[str]
) -> "tuple[torch.nn.Module, ModelSpec]":
    """Return trees as a model, for `portcullis.models.store.save_model`.

    It decides as the ONNX model does on every row of float32 numbers in [low, high], with one exception: where scaling
    to [0, 1] rounds a value just above a threshold onto it, the row goes where the threshold itself would. That cannot
    be where `low` is 0 and `high` a power of two.

    Args:
        trees: What `read_trees` read.
        shape: Shape of an input; its product is the number of features.
        low: Least raw feature value.
        high: Greatest raw feature value.
        labels: The class names in the order that the model is to have. The file's labels must be the same names, or
            the numbers from 0, which are taken as places in this order.

    Raises:
        ModelError: They are not for such rows and labels.
        MissingDependencyError: PyTorch is missing.
    """
    options = {
        "trees": len(trees.root),
        "splits": len(trees.feature),
        "depth": trees.depth,
        "probabilities": int(trees.probabilities),
    }
    spec = ModelSpec(ARCHITECTURE, options, shape, low, high, tuple(labels))
    if int(np.prod(shape)) != trees.width:
        raise ModelError(f"the trees take {trees.width} features, not a shape of {list(shape)}")
    if set(labels) == set(trees.labels):
        order = [trees.labels.index(label) for label in labels]
    elif trees.numbered and len(labels) == len(trees.labels):
        order = list(range(len(labels)))
    else:
        raise ModelError(f"the trees tell apart {', '.join(trees.labels)[:200]}, not {', '.join(labels)[:200]}")
    from portcullis.models.pytorch import torch

    weights = {name: getattr(trees, name) for name in ("root", "feature", "left", "right")}
    weights |= {"threshold": _scaled(trees.threshold, spec), "value": trees.value[:, order], "base": trees.base[order]}
    module = build_module(spec)
    module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(it)) for name, it in weights.items()})
    return module.eval(), spec


def read_onnx_trees(source: BinaryIO, size: int, rows: Rows) -> ForeignModel:
    """Read an ONNX file of trees as a model for rows within these bounds.

    Args:
        source: The file.
        size: Its bytes.
        rows: Their bounds, and the class names; where there are none, the order is the file's own.

    Raises:
        ModelError: As `read_trees` and `convert_trees`.
        MissingDependencyError: PyTorch is missing.
    """
    from safetensors.torch import save

    if size > MAX_ONNX_BYTES:
        raise ModelError(f"an ONNX file of {size} bytes; {MAX_ONNX_BYTES} are allowed")
    trees = read_trees(read_full(source, size))
    module, spec = convert_trees(
        trees, shape=(trees.width,), low=rows.low, high=rows.high, labels=rows.labels or trees.labels
    )
    return ForeignModel(spec.architecture, spec.options, spec.shape, len(spec.labels), save(module.state_dict()))


def _scaled(threshold: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """Scale thresholds as `ModelSpec.scale` does values, so that what it keeps in order stays so."""
    low, high = float(np.float32(spec.low)), float(np.float32(spec.high))
    raw = threshold.astype(np.float64)
    inside = (np.clip(raw, low, high) - low) / (high - low)
    # Beyond the bounds no value is: all go right, or all left.
    return np.select([raw < low, raw >= high], [-1.0, 2.0], inside).astype(np.float32)


def read_trees(data: bytes) -> Trees:
    """Read the trees of an ONNX file.

    Raises:
        ModelError: The file is no ONNX, holds anything but one classifier of trees, or the trees are none.
    """
    try:
        graph = parse_onnx(data)
        return _trees(_classifier(graph), graph)
    except KeyError as error:
        raise ModelError(f"the ONNX file holds no trees that can be read: it lacks or does not know {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"the ONNX file holds no trees that can be read: {error}") from error


def _classifier(graph: Graph) -> Node:
    """Return the one operator that decides, when the others only hand on what it answers."""
    for domain, version in graph.opsets.items():
        if version not in VERSIONS.get(domain, ()):
            raise ValueError(f"operators {domain or 'ai.onnx'!a} of version {version}")
    if len(graph.inputs) != 1 or not graph.nodes or graph.nodes[0].operator != TREES:
        operators = ", ".join(sorted({node.operator for node in graph.nodes}))
        raise ValueError(f"not one input that one {TREES} takes first, but {len(graph.inputs)} and {operators[:200]!a}")
    first = graph.nodes[0]
    if first.inputs != (graph.inputs[0].name,) or len(first.outputs) != 2:
        raise ValueError("the trees do not take the input, or do not give a label and probabilities")
    known = {graph.inputs[0].name: "input"}
    for name, what in zip(first.outputs, ("label", "probabilities"), strict=True):
        _give(known, name, what)
    for node in graph.nodes[1:]:
        (taken,), (given,) = node.inputs, node.outputs
        _give(known, given, _handed_on(node, known[taken], first))
    if sorted(known[name] for name in graph.outputs) != ["label", "probabilities"]:
        raise ValueError("the outputs are not a label and probabilities")
    return first


def _give(known: dict[str, str], name: str, what: str) -> None:
    if not name or name in known:
        raise ValueError("a name is given twice")
    known[name] = what


def _handed_on(node: Node, what: str, trees: Node) -> str:
    """Return what an operator hands on: a label or probabilities, by other means the same."""
    labels = {name: it for name, it in trees.attributes.items() if name.startswith("classlabels_")}
    match node.operator, what:
        case ("ai.onnx:Identity", "label" | "probabilities") if not node.attributes:
            return what
        case ("ai.onnx:Cast", "label") if node.attributes in ({"to": _INT64}, {"to": _STRING}):
            return what
        case ("ai.onnx.ml:ZipMap", "probabilities") if node.attributes == labels:
            return what
    raise ValueError(f"the operator {node.operator[:200]!a} on {what}, with {sorted(node.attributes)!a}"[:400])


def _trees(node: Node, graph: Graph) -> Trees:
    given = node.attributes
    if unknown := set(given) - {*_NODES, *_LEAVES, *_OTHERS}:
        raise ValueError(f"an attribute {min(unknown)!a}")
    (taken,) = graph.inputs
    if taken.element != _FLOAT or len(taken.shape) != 2 or not taken.shape[1]:
        raise ValueError("the input is not float32 rows of so many features")
    labels, numbered = _labels(given)
    post = given.get("post_transform", "NONE")
    if not isinstance(post, str):
        raise TypeError("post_transform is no text")
    nodes = {name: _column(given, name, kind, "nodes_treeids") for name, kind in _NODES.items() if name in given}
    leaves = {name: _column(given, name, kind, "class_treeids") for name, kind in _LEAVES.items()}
    shape = _Shape.of(nodes, int(taken.shape[1]))
    values, base, probabilities = _values(leaves, shape, post, _base(given), len(labels))
    return Trees(
        labels=labels,
        numbered=numbered,
        width=int(taken.shape[1]),
        probabilities=probabilities,
        depth=shape.depth,
        root=shape.root,
        feature=shape.feature,
        threshold=shape.threshold,
        left=shape.left,
        right=shape.right,
        value=values,
        base=base,
    )


def _labels(given: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    numbers, names = given.get("classlabels_int64s", []), given.get("classlabels_strings", [])
    if not isinstance(numbers, list) or not isinstance(names, list) or bool(numbers) == bool(names):
        raise ValueError("its labels are neither numbers nor names")
    labels = tuple(map(str, numbers or names))
    if len(set(labels)) != len(labels) or not 2 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"its labels are not 2 to {MAX_LABELS}, all different")
    return labels, numbers == list(range(len(labels)))


def _base(given: Mapping[str, Any]) -> Floats:
    values = given.get("base_values", [])
    base = np.array(values, dtype=np.float64)
    if not isinstance(values, list) or not all(type(it) is float for it in values) or not np.isfinite(base).all():
        raise ValueError("base_values are not finite numbers")
    return base


def _column(given: Mapping[str, Any], name: str, kind: type, like: str) -> NDArray[Any]:
    values, expected = given[name], given[like]
    if not isinstance(values, list) or not isinstance(expected, list) or len(values) != len(expected) or not values:
        raise ValueError(f"{name} has not one entry for each in {like}")
    if not all(type(value) is kind for value in values):
        raise ValueError(f"{name} is of another type")
    if kind is str:
        return np.array([_MODES[value] for value in values])
    return np.array(values, dtype=np.int64 if kind is int else np.float32)


@dataclass(frozen=True)
class _Shape:
    """The trees without their values; `place` has the number of each node of the file."""

    depth: int
    root: Integers
    feature: Integers
    threshold: NDArray[np.float32]
    left: Integers
    right: Integers
    place: Integers
    named: Mapping[tuple[int, int], int]

    @classmethod
    def of(cls, nodes: Mapping[str, NDArray[Any]], width: int) -> "_Shape":
        tree, modes = nodes["nodes_treeids"], nodes["nodes_modes"]
        pairs = list(zip(tree.tolist(), nodes["nodes_nodeids"].tolist(), strict=True))
        # Others are read otherwise by ONNX Runtime than by ONNX's own reference.
        if tree[0] < 0 or (np.diff(tree) < 0).any():
            raise ValueError("its trees do not follow one another in the order of their numbers, from 0 up")
        named = {pair: index for index, pair in enumerate(pairs)}
        split = modes != _LEAF
        if len(named) != len(pairs) or not split.any():
            raise ValueError("a node is there twice, or none splits")
        inner = np.flatnonzero(split)
        feature, threshold = nodes["nodes_featureids"], nodes["nodes_values"]
        if not ((feature[inner] >= 0) & (feature[inner] < width)).all() or np.isnan(threshold[inner]).any():
            raise ValueError("a split looks at no feature, or has no threshold")
        true, false = (
            np.array([named[tree[it], child] for it, child in zip(inner.tolist(), chosen, strict=True)], np.int64)
            for chosen in (nodes["nodes_truenodeids"][inner].tolist(), nodes["nodes_falsenodeids"][inner].tolist())
        )
        parents = np.bincount(np.concatenate([true, false]), minlength=len(pairs))
        root = np.flatnonzero(parents == 0)
        # Each tree's root is what no split leads to, and stands first of it.
        _, first = np.unique(tree, return_index=True)
        if parents.max() > 1 or not np.array_equal(root, np.sort(first)):
            raise ValueError("a node is the child of two, or a tree has not one root, in front")
        # "at least t" and "above t" are what "below t" and "at most t" are not; below t is at most the number before.
        swapped = np.isin(modes[inner], (_MODES["BRANCH_GTE"], _MODES["BRANCH_GT"]))
        before = np.isin(modes[inner], (_MODES["BRANCH_LT"], _MODES["BRANCH_GTE"]))
        left, right = np.where(swapped, false, true), np.where(swapped, true, false)
        most = threshold[inner]
        most = np.where(before, np.nextafter(most, np.float32(-np.inf)), most)
        level, order, depth = root, [], 0
        row = np.full(len(pairs), -1, dtype=np.int64)
        row[inner] = np.arange(len(inner))
        while len(level := row[level][split[level]]):  # each node once: it has one parent
            order.append(level)
            level, depth = np.concatenate([left[level], right[level]]), depth + 1
        by_level = np.concatenate(order)
        if len(by_level) != len(inner):
            raise ValueError("a node leads back to itself")
        place = np.empty(len(pairs), dtype=np.int64)
        place[inner[by_level]] = np.arange(len(inner))
        place[~split] = len(inner) + np.arange(int((~split).sum()))
        return cls(
            depth=depth,
            root=place[root],
            feature=feature[inner][by_level],
            threshold=most[by_level].astype(np.float32),
            left=place[left[by_level]],
            right=place[right[by_level]],
            place=place,
            named=named,
        )


def _values(
    leaves: Mapping[str, NDArray[Any]], shape: _Shape, post: str, base: Floats, classes: int
) -> tuple[Floats, Floats, bool]:
    """Return what leaves add to each class (S + T, k), the base (k,), and whether the sums are probabilities."""
    splits, trees = len(shape.feature), len(shape.root)
    which = leaves["class_ids"]
    pairs = zip(leaves["class_treeids"].tolist(), leaves["class_nodeids"].tolist(), strict=True)
    at = shape.place[[shape.named[pair] for pair in pairs]] - splits
    weights = leaves["class_weights"].astype(np.float64)
    if (at < 0).any() or not ((which >= 0) & (which < classes)).all() or not np.isfinite(weights).all():
        raise ValueError("a weight is of no leaf or class, or not finite")
    if len(np.unique(at * classes + which)) != len(at) or len(np.unique(at)) != splits + trees:
        raise ValueError("a leaf has two weights for a class, or none at all")
    if (splits + trees) * classes * 8 > MAX_WEIGHTS_BYTES:
        raise ValueError("its leaves take more than is allowed")
    value = np.zeros((splits + trees, classes))
    value[at, which] = weights
    # Where two classes have the weights of one, these are the second's, whatever they are called.
    single = classes == 2 and not which.any()
    match post:
        case "NONE" if not base.any():
            whole = value[:, 0] if single else value.sum(axis=1)
            least = 0.0 if single else (1 - ROUNDING) / trees
            if not ((value >= 0).all() and (whole >= least).all() and (whole <= (1 + ROUNDING) / trees).all()):
                raise ValueError("its leaves hold no probabilities")
            if single:
                return np.column_stack([-value[:, 0], value[:, 0]]), np.array([1.0, 0.0]), True
            return value, np.zeros(classes), True
        case "LOGISTIC" if single and base.size <= 1:
            return np.column_stack([np.zeros(len(value)), value[:, 0]]), np.array([0.0, base.sum()]), False
        # Of two classes, ONNX Runtime makes something else than ONNX's own reference.
        case "SOFTMAX" if classes > 2 and base.size in (0, classes) and len(np.unique(which)) == classes:
            return value, base if base.size else np.zeros(classes), False
    raise ValueError(f"what becomes of its sums, {post[:80]!a}, is not known here")
