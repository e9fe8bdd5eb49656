"""The loss of each row, as an attacker who is given the model computes it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.models.store import LoadedModel

ROWS = 4096


def losses(
    model: LoadedModel, features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Return the cross-entropy of each row (N,), float64: the logarithm of the sum of exponentials, less its own logit.

    Raises:
        DataError: As `LoadedModel.predict_logits`; so is the other.
        ModelError: As `LoadedModel.predict_logits`.
    """
    found = []
    for start in range(0, len(features), ROWS):
        logits = model.predict_logits(features[start : start + ROWS]).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        own = np.take_along_axis(logits, labels[start : start + ROWS, None], axis=1)
        found.append((np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top - own)[:, 0])
    return np.concatenate(found)
