"""Deciding, in float32 and by the model itself, what is adversarial. An attack library only proposes candidates."""

import contextlib
from collections.abc import Iterator

from portcullis.models.margin import margin
from portcullis.models.pytorch import torch
from portcullis.robustness.report import Ball

# What rounding may add to a distance: relative to it, and half a unit in the last place of a float32 near 1.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 2.0**-24


def inside(ball: Ball, clean: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Tell, for each row, whether the candidate is finite, in [0, 1] and in the ball: (N,) bool."""
    order = float("inf") if ball.norm == "linf" else 2.0
    distance: torch.Tensor = torch.linalg.vector_norm(
        (candidates.double() - clean.double()).flatten(1), ord=order, dim=1
    )
    valid = ((candidates >= 0) & (candidates <= 1)).flatten(1).all(dim=1)  # False for NaN
    held: torch.Tensor = valid & (distance <= ball.radius * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE)
    return held


def correct(module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Tell, for each row, whether the label wins: (N,) bool. Ties and logits that are not finite are not correct."""
    with torch.no_grad():
        logits = module(inputs)
        result: torch.Tensor = logits.isfinite().all(dim=1) & (margin(logits, labels) > 0)
    return result


def adversarial(
    module: torch.nn.Module, clean: torch.Tensor, candidates: torch.Tensor, labels: torch.Tensor, ball: Ball
) -> torch.Tensor:
    """Tell, for each row, whether the candidate is in the ball and not classified correctly: (N,) bool."""
    return inside(ball, clean, candidates) & ~correct(module, candidates, labels)


@contextlib.contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in `eval()` mode without gradients of its own, and leave all of it as it was, whatever happens.

    Attacks switch modes, and some add to the parameters' `.grad`, which would poison a later training step.
    """
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(weights, weights.requires_grad, weights.grad) for weights in module.parameters()]
    try:
        module.eval()
        for weights, _, _ in gradients:
            weights.requires_grad, weights.grad = False, None
        with torch.enable_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
        for weights, required, gradient in gradients:
            weights.requires_grad, weights.grad = required, gradient
