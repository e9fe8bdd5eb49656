"""The reference network: small, trained on the very rows that are judged, so that it learns what poison teaches."""

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import InconclusiveError
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch

HIDDEN = 64
BATCH = 64
LEARNING_RATE = 0.01
WEIGHT_DECAY = 1e-4


def activations(
    points: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int, epochs: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Train one hidden layer of 64 ReLU units (Adam, batches of 64) and return what it makes of the rows.

    Args:
        points: Features (N, D) in 0..1.
        labels: Class indices (N,), integers in [0, k).
        classes: k.
        epochs: Passes over the rows.
        seed: Of weights and order.

    Returns:
        The hidden layer's activations (N, 64), and the accuracy on these rows, 0..1.

    Raises:
        InconclusiveError: The network cannot be trained on this.
    """
    device = torch.device("cpu")
    try:
        with reproducible(seed, device):
            hidden = torch.nn.Sequential(torch.nn.Linear(points.shape[1], HIDDEN), torch.nn.ReLU())
            last = torch.nn.Linear(HIDDEN, classes)
            weights = [*hidden.parameters(), *last.parameters()]
            optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
            inputs, targets = torch.from_numpy(points), torch.from_numpy(labels)
            for _ in range(epochs):
                for batch in torch.split(torch.randperm(len(inputs)), BATCH):
                    optimiser.zero_grad()
                    loss = torch.nn.functional.cross_entropy(last(hidden(inputs[batch])), targets[batch])
                    torch.autograd.backward(loss)
                    optimiser.step()
            with torch.no_grad():
                values = hidden(inputs)
                accuracy = float((last(values).argmax(dim=1) == targets).double().mean())
                found: NDArray[np.float64] = values.double().numpy()
    except FOREIGN_ERRORS as error:
        raise InconclusiveError(f"the reference network cannot be trained on this: {error}") from error
    if not np.isfinite(found).all():
        raise InconclusiveError("the reference network did not stay finite")
    return found, accuracy
