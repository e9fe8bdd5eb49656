"""One step of the gradient's sign, and many."""

from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import Goal, Objective, look, uniform, within


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
