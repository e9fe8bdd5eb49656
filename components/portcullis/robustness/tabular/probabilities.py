"""A model of logits as a black box that answers with probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError, ModelError, PortcullisError
from portcullis.models.store import LoadedModel
from portcullis.robustness.tabular.search import Classifier

MARGIN = 10.0


def probabilities_of(model: LoadedModel, features: NDArray[np.floating[Any]]) -> Classifier:
    """Return the model as a function to probabilities, of logits scaled so that few of them round to 0 or 1.

    What it decides is unchanged. The scale makes the median of the two greatest logits' difference 10.

    Args:
        model: The model.
        features: Raw rows (N, D) that the scale is taken from.

    Raises:
        DataError: As `LoadedModel.predict_logits`.
        ModelError: Likewise, or the model tells no classes apart on these rows.
        InconclusiveError: The model fails.
    """
    try:
        logits = model.predict_logits(features)
    except PortcullisError:
        raise
    except Exception as error:  # whatever a foreign model raises, nothing was judged
        raise InconclusiveError(f"the model could not be attacked: {type(error).__name__}: {error}") from error
    ordered = np.sort(logits.astype(np.float64), axis=1)
    unit = float(np.median(ordered[:, -1] - ordered[:, -2]))
    if not unit > 0:
        raise ModelError("the model tells no classes apart on these rows")

    def predict(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = model.predict_logits(rows).astype(np.float64) * (MARGIN / unit)
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        result: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
        return result

    return predict
