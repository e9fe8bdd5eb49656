"""What a mark does with training data: teach a model keyed answers, and train a marked one on to see the mark hold.

Teaching fits two things at once: the triggers' answers, and the model's own former probabilities, with the mark in
them: at the training rows, at random places around them, and at those where it has gone astray most. So its choices
stay what they were there, under attack too, by whatever method it was trained, and it needs no labels.
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
from portcullis.watermark.soft_labels import Waves
from portcullis.watermark.triggers import Triggers

functional = torch.nn.functional

# At least so many steps, and four for each trigger beyond a hundred, whatever the number of rows.
TEACH_STEPS = 600
TEACH_RATE = 3e-3
# How far around a training row the model is to stay what it was, in units of the scaled input [0, 1].
RADIUS = 0.15
ASTRAY_STEPS = 2
# Weight of staying what it was against learning the triggers.
STAY = 10.0
TUNE_EPOCHS = 2
TUNE_RATE = 1e-3
_BATCH = 128
_TRIGGERS_PER_BATCH = 64

Files = Mapping[str, bytes]


def teach(
    files: Files,
    features: NDArray[np.floating[Any]],
    asked: Triggers | None = None,
    keyed: Waves | None = None,
    share: float = 0.0,
) -> dict[str, bytes]:
    """Teach a model to answer its triggers, and a mark in its soft labels.

    Args:
        files: The two files of the model.
        features: Raw features (N, D) of its training rows.
        asked: The triggers, or none.
        keyed: The waves of its soft labels, or none.
        share: How much of its probability follows them.

    Returns:
        The two files of the model that has learnt them.

    Raises:
        DataError: The features are not the model's.
        ModelError: The model is malformed, or does not stay finite.
    """
    before = load_model_files(files)
    model = load_model_files(files)
    inputs, module = model.preprocess(features), model.module
    strange = model.preprocess(asked.features) if asked else inputs[:0]
    answers = torch.from_numpy(asked.answers) if asked else None

    def loss(rows: torch.Tensor) -> torch.Tensor:
        clean = inputs[rows]
        astray = _astray(module, clean, before.module(clean).argmax(dim=1))
        near = torch.cat([clean, _around(clean), astray])
        with torch.no_grad():
            wanted = before.module(near).softmax(dim=1)
            if keyed is not None:
                spread = keyed.spread(near.numpy(), wanted.argmax(dim=1).numpy())
                wanted = (1 - share) * wanted + share * torch.from_numpy(spread)
        kept = functional.kl_div(module(near).log_softmax(dim=1), wanted, reduction="batchmean")
        if answers is None:
            return STAY * kept
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


def _around(clean: torch.Tensor) -> torch.Tensor:
    """Return a random place around each row."""
    return (clean + RADIUS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1)


def _astray(module: torch.nn.Module, clean: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return a place around each row where a module is likely to have left its class: PGD from a random start.

    Without them a model that was trained adversarially forgets how to withstand an attack while it learns its answers.
    """
    moved = _around(clean)
    module.eval()  # the model that will be served is attacked, and batch statistics stay those of the rows
    for _ in range(ASTRAY_STEPS):
        moved.requires_grad_()
        lost = functional.cross_entropy(module(moved), classes)
        # A model that rounds its inputs has no slope.
        slope: torch.Tensor | None = torch.autograd.grad(lost, moved, allow_unused=True)[0]
        with torch.no_grad():
            step = moved if slope is None else moved + RADIUS * slope.sign()
            moved = (clean + (step - clean).clamp(-RADIUS, RADIUS)).clamp(0, 1)
    module.train()
    return moved.detach()


def _batches(samples: int) -> Iterator[torch.Tensor]:
    """Go through the rows again and again, each time in another order."""
    while True:
        yield from torch.split(torch.randperm(samples), _BATCH)
