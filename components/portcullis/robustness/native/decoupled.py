"""DDN: the direction and the norm of a perturbation are looked for apart, and so quickly."""

import math

from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import Objective, look, misclassified

FIRST_NORM = 1.0
GAMMA = 0.05
LAST_STEP = 0.01


def ddn(
    module: torch.nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    objective: Objective,
    *,
    steps: int,
    enough: float = 0.0,
    first_norm: float = FIRST_NORM,
) -> torch.Tensor:
    """Return, for each input, the nearest misclassified one in L2 that DDN finds, or the clean one.

    Source: Rony et al. 2019, arXiv:1811.09600, algorithm 1, with steps of cosine-annealed length from 1 to 0.01.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        labels: Their labels (N,).
        objective: What is climbed; only its gradient's direction is used.
        steps: Steps, at least 1.
        enough: L2 norm at or below which a row's search ends.
        first_norm: L2 norm that is tried first.
    """
    shape = (-1, *[1] * (clean.dim() - 1))
    goal = misclassified(labels)
    best, best_norm = clean.clone(), torch.full((len(clean),), torch.inf, device=clean.device)
    rows = torch.arange(len(clean), device=clean.device)
    moved, norm = torch.zeros_like(clean), torch.full((len(clean),), first_norm, device=clean.device)
    for step in range(steps):
        here = clean[rows] + moved
        _, gradient, reached = look(module, here, rows, objective, goal)
        length = moved.flatten(1).norm(dim=1)
        better = reached & (length < best_norm[rows])
        best[rows[better]], best_norm[rows[better]] = here[better], length[better]
        keep = best_norm[rows] > enough
        rows, here, moved, norm, gradient, reached = (it[keep] for it in (rows, here, moved, norm, gradient, reached))
        if not len(rows):
            break
        size = LAST_STEP + (1 - LAST_STEP) * (1 + math.cos(math.pi * step / steps)) / 2
        tiny = torch.finfo(clean.dtype).tiny
        moved = moved + size * gradient / gradient.flatten(1).norm(dim=1).clamp(min=tiny).view(shape)
        norm = norm * torch.where(reached, 1 - GAMMA, 1 + GAMMA)
        moved = moved * (norm / moved.flatten(1).norm(dim=1).clamp(min=tiny)).view(shape)
        moved = (clean[rows] + moved).clamp(0, 1) - clean[rows]
    return best
