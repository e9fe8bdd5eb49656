"""Three small networks on real digits, and how to hide their neurons without changing what they compute.

Each network says which axes of which tensors belong to the same neurons, so that one function permutes, rescales,
splits and pads them all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from portcullis.models.digits_cnn import DigitsCNN

Tensors = dict[str, NDArray[np.float32]]
SIDE, CLASSES, LEVELS = 8, 10, 5


@dataclass(frozen=True)
class Use:
    """One axis of a tensor that runs over a group's neurons, `block` lines for each.

    Role: `in` for what makes a neuron (weights, bias), `norm` for what normalises it, `out` for what takes it.
    """

    tensor: str
    axis: int
    role: str
    block: int = 1


@dataclass(frozen=True)
class Network:
    """An architecture: how it is built for given widths of its groups, and what belongs to each group.

    `free` are the groups that may be rescaled, split and padded; the others are tied by residual connections.
    """

    name: str
    widths: Mapping[str, int]
    build: Callable[[Mapping[str, int]], nn.Module]
    groups: Mapping[str, Sequence[Use]]
    free: Sequence[str]
    rate: float
    epochs: int


class Residual(nn.Module):
    """Two residual blocks with batch normalisation on a stem, global average pooling, one linear layer."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        stream = widths["stream"]
        self.stem, self.stem_norm = nn.Conv2d(1, stream, 3, padding=1, bias=False), nn.BatchNorm2d(stream)
        for block in ("a", "b"):
            inner = widths[block]
            setattr(self, f"{block}1", nn.Conv2d(stream, inner, 3, padding=1, bias=False))
            setattr(self, f"{block}1_norm", nn.BatchNorm2d(inner))
            setattr(self, f"{block}2", nn.Conv2d(inner, stream, 3, padding=1, bias=False))
            setattr(self, f"{block}2_norm", nn.BatchNorm2d(stream))
        self.head = nn.Linear(stream, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) in [0, 1] to logits (N, 10)."""
        values = torch.relu(self.stem_norm(self.stem(images)))
        for block in ("a", "b"):
            inner = torch.relu(self.get_submodule(f"{block}1_norm")(self.get_submodule(f"{block}1")(values)))
            values = torch.relu(values + self.get_submodule(f"{block}2_norm")(self.get_submodule(f"{block}2")(inner)))
            values = functional.max_pool2d(values, 2) if block == "a" else values
        return self.head(values.mean(dim=(2, 3)))


class Transformer(nn.Module):
    """Two transformer layers over sixteen patches of 2 x 2 pixels, whose values are words of a vocabulary."""

    HEADS = 4

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        stream = widths["stream"]
        self.words = nn.Embedding(4 * LEVELS, stream)
        self.places = nn.Embedding(16, stream)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.1)
        for layer in ("a", "b"):
            for name, module in (
                ("norm1", nn.LayerNorm(stream)),
                ("query", nn.Linear(stream, stream)),
                ("key", nn.Linear(stream, stream)),
                ("value", nn.Linear(stream, stream)),
                ("out", nn.Linear(stream, stream)),
                ("norm2", nn.LayerNorm(stream)),
                ("wide", nn.Linear(stream, widths[layer])),
                ("narrow", nn.Linear(widths[layer], stream)),
            ):
                setattr(self, f"{layer}_{name}", module)
        self.norm = nn.LayerNorm(stream)
        self.head = nn.Linear(stream, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, 1, 8, 8) in [0, 1] to logits (N, 10)."""
        pixels = (images[:, 0] * (LEVELS - 1)).round().long()
        patches = pixels.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(pixels), 16, 4)
        values = self.words(patches + LEVELS * torch.arange(4)).sum(dim=2) + self.places.weight
        for layer in ("a", "b"):
            part = {name: self.get_submodule(f"{layer}_{name}") for name in ("norm1", "norm2", "out", "wide", "narrow")}
            normal = part["norm1"](values)
            query, key, value = (
                self.get_submodule(f"{layer}_{name}")(normal).unflatten(2, (self.HEADS, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            seen = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            values = values + part["out"](seen)
            values = values + part["narrow"](torch.relu(part["wide"](part["norm2"](values))))
        return self.head(self.norm(values).mean(dim=1))


def _cnn(widths: Mapping[str, int]) -> nn.Module:
    """Build the package's own network, of any widths."""
    module = DigitsCNN((1, SIDE, SIDE), CLASSES)
    one, two, three = widths["one"], widths["two"], widths["three"]
    module.features[0] = nn.Conv2d(1, one, 3, padding=1)
    module.features[2] = nn.Conv2d(one, two, 3, padding=1)
    module.classifier[0] = nn.Linear(two * (SIDE // 2) ** 2, three)
    module.classifier[2] = nn.Linear(three, CLASSES)
    return module


def _layer(name: str, after: str, block: int = 1) -> Sequence[Use]:
    return (Use(f"{name}.weight", 0, "in"), Use(f"{name}.bias", 0, "in"), Use(f"{after}.weight", 1, "out", block))


def _norm(name: str) -> Sequence[Use]:
    return tuple(Use(f"{name}.{part}", 0, "norm") for part in ("weight", "bias", "running_mean", "running_var"))


_RESIDUAL_GROUPS = {
    "stream": (
        *(Use(f"{name}.weight", 0, "in") for name in ("stem", "a2", "b2")),
        *_norm("stem_norm"),
        *_norm("a2_norm"),
        *_norm("b2_norm"),
        *(Use(f"{name}.weight", 1, "out") for name in ("a1", "b1", "head")),
    ),
    **{
        block: (Use(f"{block}1.weight", 0, "in"), *_norm(f"{block}1_norm"), Use(f"{block}2.weight", 1, "out"))
        for block in ("a", "b")
    },
}
_TRANSFORMER_GROUPS = {
    "stream": (
        Use("words.weight", 1, "out"),
        Use("places.weight", 1, "out"),
        *(
            Use(f"{layer}_{name}.{part}", 0, "in")
            for layer in ("a", "b")
            for name in ("norm1", "norm2", "out", "narrow")
            for part in ("weight", "bias")
        ),
        *(
            Use(f"{layer}_{name}.weight", 1, "out")
            for layer in ("a", "b")
            for name in ("query", "key", "value", "wide")
        ),
        Use("norm.weight", 0, "in"),
        Use("norm.bias", 0, "in"),
        Use("head.weight", 1, "out"),
    ),
    "a": _layer("a_wide", "a_narrow"),
    "b": _layer("b_wide", "b_narrow"),
}

NETWORKS = (
    Network(
        "CNN",
        {"one": 24, "two": 48, "three": 64},
        _cnn,
        {
            "one": _layer("features.0", "features.2"),
            "two": _layer("features.2", "classifier.0", (SIDE // 2) ** 2),
            "three": _layer("classifier.0", "classifier.2"),
        },
        ("one", "two", "three"),
        rate=6e-3,
        epochs=15,
    ),
    Network("ResNet", {"stream": 48, "a": 48, "b": 48}, Residual, _RESIDUAL_GROUPS, ("a", "b"), rate=6e-3, epochs=10),
    Network(
        "transformer",
        {"stream": 64, "a": 160, "b": 160},
        Transformer,
        _TRANSFORMER_GROUPS,
        ("a", "b"),
        rate=3e-3,
        epochs=20,
    ),
)


def hide(
    network: Network, tensors: Tensors, seed: int, *, order: bool = True, scale: float = 0.0, more: float = 0.0
) -> tuple[Tensors, Mapping[str, int]]:
    """Hide a network's neurons; it computes the same.

    Args:
        network: What the tensors are of.
        tensors: Its tensors.
        seed: Of every choice.
        order: Permute all groups.
        scale: Standard deviation of the logarithm of each free neuron's factor, undone by what takes it.
        more: Share of free neurons that are split in two, and share of dummies that cancel each other.

    Returns:
        The tensors, and the widths of the groups.
    """
    generator = np.random.default_rng(seed)
    changed, widths = dict(tensors), dict(network.widths)
    for group, uses in network.groups.items():
        width = widths[group]
        twice = generator.choice(width, int(more * width), replace=False) if group in network.free else np.arange(0)
        pairs = int(more * width / 2) if group in network.free else 0
        widths[group] = total = width + len(twice) + 2 * pairs
        new_order = generator.permutation(total) if order else np.arange(total)
        factors = np.exp(generator.normal(0, scale if group in network.free else 0, total)).astype(np.float32)
        normed = any(use.role == "norm" for use in uses)
        for use in uses:
            lines = np.moveaxis(changed[use.tensor], use.axis, 0)
            lines = lines.reshape(width, use.block, *lines.shape[1:])
            lines = _grown(use, lines, twice, pairs, generator)[new_order]
            factor = factors[new_order].reshape(-1, *[1] * (lines.ndim - 1))
            # Of a normalised neuron the scale lies in what normalises it.
            moved = use.tensor.endswith(("weight", "bias")) and (use.role == "norm" or not normed)
            lines = lines / factor if use.role == "out" else lines * factor if moved else lines
            lines = lines.reshape(total * use.block, *lines.shape[2:])
            changed[use.tensor] = np.ascontiguousarray(np.moveaxis(lines, 0, use.axis))
    return changed, widths


def _grown(
    use: Use, lines: NDArray[np.float32], twice: NDArray[np.intp], pairs: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    if use.role == "out":
        lines = lines.copy()
        split = lines[twice] * np.float32(0.3)
        lines[twice] *= np.float32(0.7)
        new = (generator.standard_normal((pairs, *lines.shape[1:])) * lines.std()).astype(np.float32)
        return np.concatenate([lines, split, new, -new])
    spread = lines.std() if use.role == "in" else 0.0
    new = (generator.standard_normal((pairs, *lines.shape[1:])) * spread).astype(np.float32)
    if use.role == "norm":
        new += float(use.tensor.endswith(("weight", "var")))
    return np.concatenate([lines, lines[twice], new, new])


def tensors_of(module: nn.Module) -> Tensors:
    """Return a network's floating-point state as numpy arrays."""
    state = module.state_dict()
    return {name: it.numpy().astype(np.float32) for name, it in state.items() if it.is_floating_point()}


def module_of(network: Network, tensors: Tensors, widths: Mapping[str, int] | None = None) -> nn.Module:
    """Return a network of these tensors, in `eval()` mode."""
    module = network.build(widths or network.widths)
    state = {name: torch.from_numpy(np.array(it)) for name, it in tensors.items()}
    module.load_state_dict({**{name: it for name, it in module.state_dict().items() if name not in state}, **state})
    return module.eval()


def fit(
    module: nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    epochs: int,
    rate: float,
    one_cycle: bool = False,
    extra: Callable[[nn.Module], torch.Tensor] | None = None,
) -> nn.Module:
    """Train a network in place by Adam, on classes (N,) or on probabilities (N, k)."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    steps = epochs * math.ceil(len(inputs) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps) if one_cycle else None
    module.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs)), 64):
            loss = functional.cross_entropy(module(inputs[rows]), targets[rows])
            loss = loss + extra(module) if extra else loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule:
                schedule.step()
    return module.eval()


def accuracy(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the share of rows that a network classifies correctly."""
    with torch.inference_mode():
        return float((module(inputs).argmax(dim=1) == targets).float().mean())
