"""What is done to a freshly marked model before it is believed to be marked: the cheap ways to lose a mark."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.watermark.mark import Tensors, is_carrier

Attack = Callable[[NDArray[Any]], NDArray[Any]]


def attack(tensors: Tensors, change: Attack) -> dict[str, NDArray[Any]]:
    """Return a model's tensors with every carrier changed; `change` gets finite float32 or float64 and returns such."""
    return {
        name: change(weights.astype(np.promote_types(weights.dtype, np.float32))) if is_carrier(weights) else weights
        for name, weights in tensors.items()
    }


def prune(weights: NDArray[Any], share: float) -> NDArray[Any]:
    """Set a share of a tensor's weights, 0 to 1, to zero: those that are smallest in size."""
    size = np.abs(weights)
    rank = min(int(share * size.size), size.size - 1)
    kept: NDArray[Any] = weights * (size >= np.partition(size.reshape(-1), rank)[rank])
    return kept


def round_to_int8(weights: NDArray[Any]) -> NDArray[Any]:
    """Round to 255 levels that reach evenly up to the largest of each output's weights."""
    matrix = weights.reshape(len(weights), -1)
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    level = np.where(largest > 0, largest, 1) / matrix.dtype.type(127)
    rounded: NDArray[Any] = np.rint(matrix / level) * level
    return rounded.reshape(weights.shape)


def add_noise(weights: NDArray[Any], share: float) -> NDArray[Any]:
    """Add normal noise of a share of a tensor's standard deviation, the same noise every time."""
    noise = np.random.default_rng(0).standard_normal(weights.shape, dtype=np.float32)
    noisy: NDArray[Any] = weights + noise * weights.dtype.type(share * weights.std(dtype=np.float64))
    return noisy


BATTERY: Mapping[str, Attack] = {
    "prune_50": lambda weights: prune(weights, 0.5),
    "prune_70": lambda weights: prune(weights, 0.7),
    "int8": round_to_int8,
    "noise_10": lambda weights: add_noise(weights, 0.1),
}
