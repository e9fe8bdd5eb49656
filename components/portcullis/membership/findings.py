"""What the process in which the model was attacked leaves behind, and why to believe it.

A hostile model may have written any of it. So it is believed only where there is exactly as much as was asked for, and
every value is finite and possible. What a hostile architecture could still write is possible losses and images that are
not its model's; it could give those to anyone who asks it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ModelError
from portcullis.models.store import MAX_LABELS

# Of float32 logits: the label's is the least that there is, and all others are the greatest.
MAX_LOSS = 2 * float(np.finfo(np.float32).max) + math.log(MAX_LABELS)


@dataclass(frozen=True)
class Asked:
    """How much the process was asked for.

    Attributes:
        rows: Rows whose losses it was asked for.
        classes: Classes that it was to reconstruct.
        starts: How often each.
        inputs: Elements of one reconstruction.
        labels: Number of classes that the model tells apart.
    """

    rows: int
    classes: int
    starts: int
    inputs: int
    labels: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of losses, of reconstructions, and of the classes that the network takes those for."""
        images = self.classes * self.starts
        return 8 * self.rows, 4 * images * self.inputs, 8 * images


def believe(
    asked: Asked, losses: bytes, images: bytes, predicted: bytes
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64]]:
    """Return what the process left behind, if it can be so.

    Args:
        asked: How much it was asked for.
        losses: float64, little-endian.
        images: float32, likewise.
        predicted: int64, likewise.

    Returns:
        Losses (rows,) from 0 to what float32 logits can make; reconstructions (classes, starts, inputs) in [0, 1]; and
        class indices (classes, starts) in [0, labels).

    Raises:
        ModelError: The bytes are more, fewer, or no such values.
    """
    for data, size in zip((losses, images, predicted), asked.sizes, strict=True):
        if len(data) != size:
            raise ModelError(f"the attacked model's process left {len(data)} bytes of an answer of {size}")
    lost, pixels, taken_for = (
        np.frombuffer(losses, "<f8"),
        np.frombuffer(images, "<f4"),
        np.frombuffer(predicted, "<i8"),
    )
    # Of NaN all of these are False.
    if not ((lost >= 0) & (lost <= MAX_LOSS)).all():
        raise ModelError("the attacked model's process left losses that cannot be")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise ModelError("the attacked model's process left reconstructions that are not in [0, 1]")
    if not ((taken_for >= 0) & (taken_for < asked.labels)).all():
        raise ModelError("the attacked model's process left classes that there are not")
    shape = (asked.classes, asked.starts)
    return lost, pixels.reshape(*shape, asked.inputs), taken_for.reshape(shape)
