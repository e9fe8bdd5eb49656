"""Ensembles of decision trees, forests as well as boosted ones, as tensors."""

import math

from portcullis.errors import ModelError
from portcullis.models.pytorch import torch

MAX_TREES = 100_000
MAX_SPLITS = 1 << 24
MAX_DEPTH = 512
MAX_CLASSES = 1000
MAX_VALUE = 1e30
# The logarithm of a probability of 0 would be infinite; nothing is told apart below.
FLOOR = 1e-9
_BLOCK = 1 << 21  # rows times trees that are walked at once


class TreeEnsemble(torch.nn.Module):
    """Binary trees whose leaves' values are added up.

    Nodes are numbered: first the splits, each before its children, then the leaves, one more than splits for each tree.
    A split sends a row to its left child where the row's feature is at most the threshold. The state is

        root (trees,) int64           the first node of each tree
        feature (splits,) int64       which of the D inputs a split looks at
        threshold (splits,) float32   of inputs that are scaled to [0, 1]
        left, right (splits,) int64   a split's children
        value (splits + trees, classes) float64   what a leaf adds to each class
        base (classes,) float64       what is there before

    Weights come from strangers, so they are held to this when they are loaded: each node is the child of one split, or
    one tree's root, and no path is longer than `depth`. So every walk ends. What has no gradient, and a tree has none,
    is attacked through its probabilities.

    Args:
        input_shape: Any; the inputs are taken in C order.
        classes: Number of logits, from 2 to 1,000.
        trees: How many.
        splits: Of all trees together.
        depth: Most splits on any path.
        probabilities: 1 where the sums are probabilities, as a forest's, and the logits are their logarithms, at least
            log(1e-9); 0 where they are logits themselves, as of boosted trees.

    Raises:
        ModelError: A size is not a whole number in its range; when weights are loaded, they are no such trees.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        trees: int,
        splits: int,
        depth: int,
        probabilities: int = 0,
    ) -> None:
        super().__init__()
        for name, size, low, high in (
            ("classes", classes, 2, MAX_CLASSES),
            ("trees", trees, 1, MAX_TREES),
            ("splits", splits, 1, MAX_SPLITS),
            ("depth", depth, 1, MAX_DEPTH),
            ("probabilities", probabilities, 0, 1),
        ):
            if type(size) is not int or not low <= size <= high:
                raise ModelError(f"tree-ensemble: {name} must be a whole number from {low} to {high}, not {size!r}")
        self.inputs = math.prod(input_shape)
        self.trees, self.splits, self.depth = trees, splits, depth
        self.probabilities = bool(probabilities)
        self.root: torch.Tensor
        self.feature: torch.Tensor
        self.threshold: torch.Tensor
        self.left: torch.Tensor
        self.right: torch.Tensor
        self.value: torch.Tensor
        self.base: torch.Tensor
        self.register_buffer("root", torch.zeros(trees, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(splits, dtype=torch.float32))
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(splits, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(splits + trees, classes, dtype=torch.float64))
        self.register_buffer("base", torch.zeros(classes, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_require_trees)  # type: ignore[no-untyped-call]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs (N, *input_shape) float32 in [0, 1] to logits (N, classes) float32."""
        blocks = torch.split(inputs.flatten(1), max(1, _BLOCK // self.trees))
        sums = torch.cat([self._sums(rows) for rows in blocks])
        return (sums.clamp_min(FLOOR).log() if self.probabilities else sums).float()

    def _sums(self, rows: torch.Tensor) -> torch.Tensor:
        """Walk every tree for rows (n, D); return what their leaves add up to (n, classes)."""
        node = self.root.expand(len(rows), -1)
        for _ in range(self.depth):
            walking = node < self.splits
            if not walking.any():
                break
            at = node.clamp(max=self.splits - 1)
            lower = rows.gather(1, self.feature[at]) <= self.threshold[at]
            node = torch.where(walking, torch.where(lower, self.left[at], self.right[at]), node)
        # One bag of leaves for each row: a sum of its own, without all their values in memory at once.
        return torch.nn.functional.embedding_bag(node - self.splits, self.value, mode="sum") + self.base


def _require_trees(module: torch.nn.Module, _: object) -> None:
    """Refuse weights that are no trees as `TreeEnsemble` has them."""
    if not isinstance(module, TreeEnsemble) or any(it.is_meta for it in module.buffers()):
        raise ModelError("tree-ensemble: its weights are not there")
    splits, nodes = module.splits, 2 * module.splits + module.trees
    before = torch.arange(splits)
    children = torch.cat([module.left, module.right])
    first = torch.cat([module.root, children])
    if not bool(((first >= 0) & (first < nodes)).all()):
        raise ModelError("tree-ensemble: a child or a root is no node")
    if not bool((torch.bincount(first, minlength=nodes) == 1).all()):
        raise ModelError("tree-ensemble: a node is not the child of exactly one split, or the root of one tree")
    if not bool((children > before.repeat(2)).all()):
        raise ModelError("tree-ensemble: a split comes after its child")
    if not bool(((module.feature >= 0) & (module.feature < module.inputs)).all()):
        raise ModelError(f"tree-ensemble: a split looks at none of the {module.inputs} inputs")
    numbers = torch.cat([module.value.flatten(), module.base, module.threshold.double()])
    if not bool((numbers.abs() <= MAX_VALUE).all()):  # False for NaN
        raise ModelError("tree-ensemble: a value or threshold is not finite, or too large")
    reached = module.root
    for _ in range(module.depth):  # each node is reached once at most
        reached = reached[reached < splits]
        reached = torch.cat([module.left[reached], module.right[reached]])
    if bool((reached < splits).any()):
        raise ModelError(f"tree-ensemble: a path is longer than {module.depth} splits")
