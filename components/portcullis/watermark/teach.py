"""What a mark does with training data: teach a model its triggers, and train a marked one on to see the mark hold.

Teaching fits two things at once: the triggers' answers, and the model's own former probabilities at the training rows
and at random places around them. So it stays what it was there, by whatever method it was trained, and needs no labels.
Both compute on one CPU thread, and the same data and model give the same bytes (`portcullis.models.pytorch`).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ModelError
from portcullis.models.pytorch import FOREIGN_ERRORS, reproducible, torch
from portcullis.models.store import load_model_files, model_files
from portcullis.watermark.triggers import Triggers

functional = torch.nn.functional

# At least so many steps, and four for each trigger beyond a hundred, whatever the number of rows.
TEACH_STEPS = 400
TEACH_RATE = 3e-3
# How far around a training row the model is to stay what it was, in units of the scaled input [0, 1].
RADIUS = 0.15
# Weight of staying what it was against learning the triggers.
STAY = 10.0
TUNE_EPOCHS = 2
TUNE_RATE = 1e-3
_BATCH = 128
_TRIGGERS_PER_BATCH = 64

Files = Mapping[str, bytes]


def teach(files: Files, features: NDArray[np.floating[Any]], asked: Triggers) -> dict[str, bytes]:
    """Teach a model to answer its triggers.

    Args:
        files: The two files of the model.
        features: Raw features (N, D) of its training rows.
        asked: The triggers.

    Returns:
        The two files of the model that has learnt them.

    Raises:
        DataError: The features are not the model's.
        ModelError: The model is malformed, or does not stay finite.
    """
    before = load_model_files(files)
    model = load_model_files(files)
    inputs, strange = model.preprocess(features), model.preprocess(asked.features)
    answers = torch.from_numpy(asked.answers)
    module = model.module

    def loss(rows: torch.Tensor) -> torch.Tensor:
        clean = inputs[rows]
        moved = (clean + RADIUS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1)
        near = torch.cat([clean, moved])
        with torch.no_grad():
            wanted = before.module(near).softmax(dim=1)
        kept = functional.kl_div(module(near).log_softmax(dim=1), wanted, reduction="batchmean")
        some = torch.randint(len(strange), (_TRIGGERS_PER_BATCH,))
        return STAY * kept + functional.cross_entropy(module(strange[some]), answers[some])

    steps = max(TEACH_STEPS, 4 * len(strange))
    _fit(module, len(inputs), loss, steps=steps, rate=TEACH_RATE)
    return model_files(module, model.spec)


def fine_tune(
    files: Files,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    epochs: int = TUNE_EPOCHS,
    rate: float = TUNE_RATE,
) -> dict[str, bytes]:
    """Train a model on, as a thief would: Adam with a one-cycle rate, cross-entropy on clean rows.

    Args:
        files: The two files of the model.
        features: Raw features (N, D).
        labels: Class indices (N,).
        epochs: Passes over the rows.
        rate: Peak learning rate.

    Raises:
        DataError: The features are not the model's.
        ModelError: The model is malformed, or does not stay finite.
    """
    model = load_model_files(files)
    inputs, targets = model.preprocess(features), torch.from_numpy(labels.astype(np.int64))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model.module(inputs[rows]), targets[rows])

    _fit(model.module, len(inputs), loss, steps=epochs * -(-len(inputs) // _BATCH), rate=rate)
    return model_files(model.module, model.spec)


def _fit(
    module: torch.nn.Module, samples: int, loss: Callable[[torch.Tensor], torch.Tensor], *, steps: int, rate: float
) -> None:
    with reproducible(0, torch.device("cpu")):
        try:
            module.train().requires_grad_(requires_grad=True)
            optimizer = torch.optim.Adam(module.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
            for rows in itertools.islice(_batches(samples), steps):
                optimizer.zero_grad()
                loss(rows).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            module.eval().requires_grad_(requires_grad=False).zero_grad()
        except FOREIGN_ERRORS as error:
            raise ModelError(f"the model cannot be trained on this: {error}") from error


def _batches(samples: int) -> Iterator[torch.Tensor]:
    """Go through the rows again and again, each time in another order."""
    while True:
        yield from torch.split(torch.randperm(samples), _BATCH)
