"""Asking both models in the locked child process, which alone opens them."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from portcullis.errors import InconclusiveError
from portcullis.files import write_all
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch
from portcullis.models.store import LoadedModel, load_model_files

CHUNK = 1024


def ask(
    judged_description: BinaryIO,
    judged_weights: BinaryIO,
    shipped_description: BinaryIO,
    shipped_weights: BinaryIO,
    features: BinaryIO,
    judged_logits: BinaryIO,
    shipped_logits: BinaryIO,
    *,
    shape: Sequence[int],
) -> None:
    """Write each model's logits (N, k), float32 in C order, for the same rows.

    Args:
        judged_description: `model.json` of the judged model.
        judged_weights: Its `weights.safetensors`.
        shipped_description: `model.json` of the shipped model.
        shipped_weights: Its `weights.safetensors`.
        features: Raw features (N, D), float32 in C order.
        judged_logits: Where the judged model's logits go.
        shipped_logits: Where the shipped model's go.
        shape: (N, D).

    Raises:
        ModelError: A model cannot be loaded, or returns no finite logits.
        DataError: The rows are out of the models' bounds.
        InconclusiveError: A model could not be asked.
    """
    rows = np.frombuffer(features.read(), np.float32).reshape(shape)
    with reproducible(0, torch.device("cpu")):
        for description, weights, target in (
            (judged_description, judged_weights, judged_logits),
            (shipped_description, shipped_weights, shipped_logits),
        ):
            model = load_model_files({"model.json": description.read(), "weights.safetensors": weights.read()})
            for start in range(0, len(rows), CHUNK):
                write_all(target, _logits(model, rows[start : start + CHUNK]).tobytes())


def _logits(model: LoadedModel, rows: np.ndarray) -> np.ndarray:
    try:
        return model.predict_logits(rows)
    except FOREIGN_ERRORS as error:
        raise InconclusiveError(f"a model could not be asked: {type(error).__name__}: {error}") from error
