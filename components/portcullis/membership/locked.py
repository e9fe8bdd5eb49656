"""What the locked child process does, which alone opens the model: each row's loss, and each class's reconstructions.

The model's bytes, and the code of an architecture that is not ours, are touched only after the lock.
"""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError
from portcullis.files import write_all
from portcullis.membership.inversion import reconstructions
from portcullis.membership.losses import losses
from portcullis.membership.settings import MembershipSettings
from portcullis.models import locked
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch
from portcullis.models.store import LoadedModel, load_model_files

_FEW = MembershipSettings(inversion_starts=2, inversion_steps=2)


def prepare(**_: object) -> bool:
    """Attack models of our own: what is imported or read on first use is imported and read now.

    Returns:
        False: no device is opened.
    """
    locked.prepare()
    for model in locked.rehearsals():
        _losses(model, np.zeros((2, 4), np.float32), np.arange(2))
        list(reconstructions(model, np.arange(2), _FEW))
    return False


def attack(
    description: BinaryIO,
    weights: BinaryIO,
    features: BinaryIO,
    labels: BinaryIO,
    lost: BinaryIO,
    images: BinaryIO,
    predicted: BinaryIO,
    *,
    rows: Sequence[int],
    classes: Sequence[int],
    settings: Mapping[str, Any],
) -> None:
    """Write each row's loss (N,), float64, and of each class in turn what `reconstructions` gives.

    Args:
        description: The model's `model.json`.
        weights: Its `weights.safetensors`.
        features: Raw features (N, D), float32 in C order, little-endian: of the training rows, then of the others.
        labels: Their class indices (N,), int64, likewise.
        lost: Where the losses go.
        images: Where the reconstructions go, float32.
        predicted: Where the classes go that the network takes them for, int64.
        rows: How many training rows, and how many others; N together.
        classes: Class indices to reconstruct.
        settings: The fields of `MembershipSettings`.

    Raises:
        ModelError: The model cannot be loaded, returns no finite logits, or cannot be inverted.
        DataError: The rows are out of the model's bounds.
        InconclusiveError: The model could not be asked.
    """
    model = load_model_files({"model.json": description.read(), "weights.safetensors": weights.read()})
    values = np.frombuffer(features.read(), np.float32).reshape(sum(rows), -1)
    targets = np.frombuffer(labels.read(), np.int64)
    with reproducible(0, torch.device("cpu")):
        for side in (slice(0, rows[0]), slice(rows[0], None)):
            write_all(lost, _losses(model, values[side], targets[side]).tobytes())
        for found, taken_for in reconstructions(model, np.array(classes), MembershipSettings(**settings)):
            write_all(images, found.tobytes())
            write_all(predicted, taken_for.tobytes())


def _losses(model: LoadedModel, rows: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    try:
        return losses(model, rows, labels)
    except FOREIGN_ERRORS as error:
        raise InconclusiveError(f"the model could not be asked: {type(error).__name__}: {error}") from error
