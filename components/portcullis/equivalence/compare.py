"""How far two models' answers to the same rows lie apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError


def compare(
    judged: NDArray[np.floating[Any]], shipped: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> dict[str, int | float]:
    """Compare the answers of the model that was judged and of the one that ships.

    Args:
        judged: Logits (N, k) of the judged model, finite, k >= 2.
        shipped: Logits (N, k) of the shipped model for the same rows.
        labels: Class indices (N,), integers in [0, k).

    Returns:
        `samples`; `agreement`, the share of rows that get the same label from both, in 0..1; `accuracy_judged` and
        `accuracy`, each model's, in 0..1; `accuracy_drop`, the judged one's minus the shipped one's, in -1..1;
        `max_probability_change` and `mean_probability_change`, over rows and classes, of the softmax, in 0..1.

    Raises:
        InconclusiveError: No row, other shapes, logits that are not finite, or a label that is no class.
    """
    if judged.ndim != 2 or judged.shape != shipped.shape or labels.shape != judged.shape[:1]:
        raise InconclusiveError(f"logits of shapes {judged.shape} and {shipped.shape} cannot be compared")
    if judged.shape[0] < 1 or judged.shape[1] < 2:
        raise InconclusiveError("there is no row, or only one class, to compare on")
    if not (np.isfinite(judged).all() and np.isfinite(shipped).all()):
        raise InconclusiveError("a model's logits are not finite")
    if not (labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < judged.shape[1]):
        raise InconclusiveError("a label is none of the classes")
    before, after = judged.argmax(axis=1), shipped.argmax(axis=1)
    change = np.abs(_softmax(judged) - _softmax(shipped))
    right_before, right_after = int((before == labels).sum()), int((after == labels).sum())
    rows = len(labels)
    return {
        "samples": rows,
        "agreement": int((before == after).sum()) / rows,
        "accuracy_judged": right_before / rows,
        "accuracy": right_after / rows,
        "accuracy_drop": (right_before - right_after) / rows,
        "max_probability_change": float(change.max()),
        "mean_probability_change": float(change.mean()),
    }


def _softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
