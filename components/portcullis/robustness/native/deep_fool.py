"""DeepFool: step by step to the nearest boundary of the network as a linear one."""

from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import misclassified

# Small enough to keep the norm, large enough to cross a boundary that is met exactly.
PUSH = 1e-4


def deepfool(
    module: torch.nn.Module, clean: torch.Tensor, labels: torch.Tensor, *, steps: int, overshoot: float, classes: int
) -> torch.Tensor:
    """Return candidates (N, ...) of DeepFool in L2, all rows at once; a row stops where it is misclassified.

    Beside the published one, an input on an end of [0, 1] does not push outwards: the step is taken along the others,
    as long as is needed, and so never dies at the edge of the range.

    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        labels: Their labels (N,).
        steps: Steps, at least 1.
        overshoot: Share by which a row oversteps all it has moved.
        classes: Most other classes whose boundaries are looked at, likeliest first.
    """
    result, shape = clean.clone(), (-1, *[1] * (clean.dim() - 1))
    goal = misclassified(labels)
    rows = torch.arange(len(clean), device=clean.device)
    here = clean.clone()
    others = None
    for _ in range(steps + 1):
        watched = here.detach().requires_grad_()
        logits = module(watched)
        reached = goal(logits.detach(), rows)
        result[rows] = here
        if reached.all():
            break
        if others is None:
            ranked = logits.detach().scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
            others = ranked[:, : min(classes, logits.shape[1] - 1)]
        margins = logits.gather(1, others) - logits.gather(1, labels[rows][:, None])
        nearest = torch.full((len(rows),), torch.inf, device=clean.device)
        step = torch.zeros_like(here)
        for place in range(others.shape[1]):
            last = place == others.shape[1] - 1
            (normal,) = torch.autograd.grad(margins[:, place].sum(), watched, retain_graph=not last)
            outward = ((here >= 1) & (normal > 0)) | ((here <= 0) & (normal < 0))
            normal = torch.where(outward, 0, normal)
            length = normal.flatten(1).norm(dim=1)
            distance = (margins[:, place].detach().abs() + PUSH) / length
            nearer = (distance < nearest) & (length > 0)
            nearest = torch.where(nearer, distance, nearest)
            along = (distance / length).view(shape) * normal
            step = torch.where(nearer.view(shape), along, step)
        keep = ~reached
        rows, others = rows[keep], others[keep]
        moved = here[keep] + (1 + overshoot) * step[keep]
        here = moved.clamp(0, 1)
    return result
