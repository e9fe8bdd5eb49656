"""One step of the gradient's sign, many, and many of a gradient that is averaged over the ball."""

from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import (
    Goal,
    Objective,
    look,
    margin_loss,
    misclassified,
    survivors,
    uniform,
    within,
)


def fgsm(module: torch.nn.Module, clean: torch.Tensor, objective: Objective, *, epsilon: float) -> torch.Tensor:
    """Return candidates (N, ...) of one step of the gradient's sign.

    Source: Goodfellow et al. 2015, arXiv:1412.6572.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        objective: What is climbed.
        epsilon: Linf radius.
    """
    watched = clean.clone().requires_grad_()
    loss = objective(module(watched), torch.arange(len(clean), device=clean.device))
    (gradient,) = torch.autograd.grad(loss.sum(), watched)
    return (clean + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    module: torch.nn.Module,
    clean: torch.Tensor,
    objective: Objective,
    goal: Goal,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> torch.Tensor:
    """Return candidates (N, ...) of PGD with a random start.

    Source: Madry et al. 2018, arXiv:1706.06083.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        objective: What is climbed.
        goal: What ends a row's climb.
        epsilon: Linf radius.
        steps: Steps, at least 1.
        generator: Of the random start, on the device of `clean`.
        step_size: Of each step; 2.5 epsilon / steps when None.
    """
    size = 2.5 * epsilon / steps if step_size is None else step_size
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    found = within(low, high, clean + epsilon * uniform(clean, generator))
    rows = torch.arange(len(clean), device=clean.device)
    for _ in range(steps):
        _, gradient, reached = look(module, found[rows], rows, objective, goal)
        rows, gradient = rows[~reached], gradient[~reached]
        if not len(rows):
            break
        found[rows] = within(low[rows], high[rows], found[rows] + size * gradient.sign())
    return found


def averaged(
    module: torch.nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    draws: int,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of steps along the margin's gradient, averaged over random points around them.

    Ripples that are small beside the ball have steep gradients, which say nothing of what lies at its edge and cancel
    out in the mean. All draws so far count, so each step knows the direction better than the one before.

    Sources: expectation over transformation, Athalye et al. 2018, arXiv:1802.00420; attacks on what smooths the loss,
    Uesato et al. 2018, arXiv:1802.05666, and Tramer et al. 2020, arXiv:2002.08347.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        labels: Their labels (N,).
        epsilon: Linf radius, below 1.
        draws: Points to a step.
        steps: Steps, at least 1.
        generator: Of the points, on the device of `clean`.
    """
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    found, total = clean.clone(), torch.zeros_like(clean)
    rows = torch.arange(len(clean), device=clean.device)
    for _ in range(steps):
        for _ in range(draws):
            # Folded back into [0, 1], not clipped: at an end of the range, half of all draws would be that end.
            point = found[rows] + epsilon * uniform(clean[rows], generator)
            point = 1 - (1 - point.abs()).abs()
            total[rows] += look(module, point, rows, margin_loss(labels), misclassified(labels))[1].nan_to_num()
        found[rows] = within(low[rows], high[rows], clean[rows] + epsilon * total[rows].sign())
        rows = rows[survivors(module, found[rows], labels[rows])]
        if not len(rows):
            break
    return found
