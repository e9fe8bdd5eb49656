"""What the native attacks share: what they climb, what ends a climb, and one look at a network."""

from collections.abc import Callable

from portcullis.models.margin import margin
from portcullis.models.pytorch import torch

# Maps logits (n, k) and their rows' places in the batch (n,) to what is climbed (n,).
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Maps the same to whether a row is broken: (n,) bool.
Goal = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def misclassified(labels: torch.Tensor) -> Goal:
    """Return the goal that a row's label (N,) no longer wins: ties and values that are not finite reach it."""

    def goal(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return ~(logits.isfinite().all(dim=1) & (margin(logits, labels[rows]) > 0))

    return goal


def margin_loss(labels: torch.Tensor) -> Objective:
    """Return the largest other logit less the label's. Its gradient never saturates."""
    return lambda logits, rows: -margin(logits, labels[rows])


def cross_entropy(labels: torch.Tensor, scale: float) -> Objective:
    """Return an increasing function of the cross-entropy of `scale` times the logits.

    The cross-entropy is softplus(u), where u is the log-sum-exp of the other logits less the label's. APGD uses no more
    than the order of losses and the sign of the gradient, which u shares, but u does not vanish in float32.
    """

    def objective(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scaled, own = logits * scale, labels[rows][:, None]
        others = scaled.scatter(1, own, -torch.inf).logsumexp(dim=1)
        result: torch.Tensor = others - scaled.gather(1, own)[:, 0]
        return result

    return objective


def targeted_dlr(labels: torch.Tensor, targets: torch.Tensor) -> Objective:
    """Return the targeted difference of logits ratio; with fewer than four classes, which it needs, the difference.

    Source: Croce and Hein 2020, arXiv:2003.01690, equation 7.
    """

    def objective(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, labels[rows][:, None])[:, 0]
        difference = logits.gather(1, targets[rows][:, None])[:, 0] - own
        if logits.shape[1] < 4:
            return difference
        largest = logits.topk(4, dim=1).values
        spread = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
        return difference / spread.clamp(min=torch.finfo(logits.dtype).tiny)

    return objective


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator of random numbers that nothing else draws from."""
    return torch.Generator(device=device).manual_seed(seed)


def look(
    module: torch.nn.Module, here: torch.Tensor, rows: torch.Tensor, objective: Objective, goal: Goal
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is climbed, its input gradient, and which rows have reached the goal."""
    moved = here.detach().clone().requires_grad_()
    logits = module(moved)
    loss = objective(logits, rows)
    (gradient,) = torch.autograd.grad(loss.sum(), moved)
    return loss.detach(), gradient, goal(logits.detach(), rows)


def survivors(module: torch.nn.Module, candidates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the places of the candidates that are still classified correctly."""
    every = torch.arange(len(labels), device=labels.device)
    with torch.no_grad():
        return every[~misclassified(labels)(module(candidates), every)]


def within(low: torch.Tensor, high: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Clip points to a box, bound by bound."""
    return torch.minimum(torch.maximum(points, low), high)


def uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random numbers in [-1, 1), shaped like a tensor."""
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) * 2 - 1


def signs(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random signs as numbers."""
    drawn = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return drawn.to(like.dtype) * 2 - 1
