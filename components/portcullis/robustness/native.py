"""Attacks of our own where torchattacks is wrong, weak or made for images only: batched, for inputs of any shape.

- torchattacks' AutoAttack runs APGD for 10 steps, not 100, and fails with fewer than four classes.
- Its APGD and Square need (N, C, H, W), and reseed PyTorch's global generator.
- Its PGD climbs the cross-entropy only, and works on a row long after it is broken.

All draw from a generator of their own, stop a row as soon as it is broken, take gradients by `torch.autograd.grad` and
so touch no `.grad`. What they return are candidates: `portcullis.robustness.verify` decides.
"""

import math
from collections.abc import Callable

from portcullis.models.pytorch import torch
from portcullis.robustness.verify import margin

# Maps logits (n, k) and their rows' places in the batch (n,) to what is climbed (n,).
Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Maps the same to whether a row is broken: (n,) bool.
Goal = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Of APGD (Croce and Hein 2020, section 3): first checkpoint, how much shorter each next one is, and the shortest, as
# shares of the steps; the share of steps that must have climbed; and the weight of the new direction.
FIRST_CHECKPOINT, SHORTER, SHORTEST = 0.22, 0.03, 0.06
CLIMBING, MOMENTUM = 0.75, 0.75
# Of Square (Andriushchenko et al. 2020): share of the input that changes at first, and the queries of 10,000 after
# which it is halved.
SQUARE_SHARE = 0.8
SQUARE_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


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


def pgd(
    module: torch.nn.Module,
    clean: torch.Tensor,
    objective: Objective,
    goal: Goal,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of PGD with a random start and steps of 2.5 epsilon / steps.

    Source: Madry et al. 2018, arXiv:1706.06083.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1], as are the candidates.
        objective: What is climbed.
        goal: What ends a row's climb.
        epsilon: Linf radius.
        steps: Steps, at least 1.
        generator: Of the random start, on the device of `clean`.
    """
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    found = _within(low, high, clean + epsilon * _uniform(clean, generator))
    rows = torch.arange(len(clean), device=clean.device)
    for _ in range(steps):
        _, gradient, reached = _look(module, found[rows], rows, objective, goal)
        rows, gradient = rows[~reached], gradient[~reached]
        if not len(rows):
            break
        found[rows] = _within(low[rows], high[rows], found[rows] + 2.5 * epsilon / steps * gradient.sign())
    return found


def apgd(
    module: torch.nn.Module,
    clean: torch.Tensor,
    objective: Objective,
    goal: Goal,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of Auto-PGD: momentum, and a step size halved wherever the climb stalls.

    Arguments as of `pgd`. Source: Croce and Hein 2020, arXiv:2003.01690, algorithm 1, with the checkpoints of the
    authors' implementation.
    """
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    noise = _uniform(clean, generator)
    noise /= noise.flatten(1).abs().amax(dim=1).clamp(min=1e-12).view(-1, *[1] * (clean.dim() - 1))
    result = _within(low, high, clean + epsilon * noise)
    rows = torch.arange(len(clean), device=clean.device)
    # All that follows is of the rows that are not broken yet.
    here = result.clone()
    loss, gradient, reached = _look(module, here, rows, objective, goal)
    before, best, best_loss, best_gradient = here.clone(), here.clone(), loss.clone(), gradient.clone()
    size = torch.full_like(loss, 2 * epsilon)
    climbed = torch.zeros_like(loss)
    checked_loss, halved = loss.clone(), torch.ones_like(reached)
    window = max(int(FIRST_CHECKPOINT * steps), 1)
    since = 0
    for step in range(steps):
        if reached.any():
            result[rows[reached]] = here[reached]
            keep = ~reached
            rows, here, before, best, gradient, best_gradient, loss, best_loss, size, climbed, checked_loss, halved = (
                tensor[keep]
                for tensor in (
                    *(rows, here, before, best, gradient, best_gradient),
                    *(loss, best_loss, size, climbed, checked_loss, halved),
                )
            )
        if not len(rows):
            return result
        least, most = low[rows], high[rows]
        weight = MOMENTUM if step else 1.0
        wide = size.view(-1, *[1] * (clean.dim() - 1))
        ahead = _within(least, most, here + wide * gradient.sign())
        moved = _within(least, most, here + weight * (ahead - here) + (1 - weight) * (here - before))
        before, here = here, moved
        earlier = loss
        loss, gradient, reached = _look(module, here, rows, objective, goal)
        climbed += loss > earlier
        better = loss > best_loss
        best[better], best_loss[better], best_gradient[better] = here[better], loss[better], gradient[better]
        since += 1
        if since == window:
            stalled = (climbed <= CLIMBING * window) | (~halved & (best_loss <= checked_loss))
            size = torch.where(stalled, size / 2, size)
            # A row that is broken ends where it is, not where its loss was best.
            back = stalled & ~reached
            here[back], gradient[back] = best[back], best_gradient[back]
            halved, checked_loss, climbed = stalled, best_loss.clone(), torch.zeros_like(climbed)
            window, since = max(window - max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1)), 0
    result[rows] = torch.where(reached.view(-1, *[1] * (clean.dim() - 1)), here, best)
    return result


def apgd_ensemble(
    module: torch.nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    steps: int,
    targets: int,
    scale: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of APGD-CE, then of APGD-T towards each row's likeliest other classes.

    These are the gradient attacks of AutoAttack's standard plan, which has 100 steps and 9 targets.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1].
        labels: Their labels (N,).
        epsilon: Linf radius.
        steps: Steps of each APGD.
        targets: Most classes that are targeted; 0 leaves APGD-T out.
        scale: What the cross-entropy's logits are multiplied by.
        generator: Of random starts.
    """
    with torch.no_grad():
        logits = module(clean)
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
    result = apgd(
        module,
        clean,
        cross_entropy(labels, scale),
        misclassified(labels),
        epsilon=epsilon,
        steps=steps,
        generator=generator,
    )
    for place in range(min(targets, logits.shape[1] - 1)):
        left = _survivors(module, result, labels)
        if not len(left):
            break
        own = labels[left]
        result[left] = apgd(
            module,
            clean[left],
            targeted_dlr(own, order[left, place]),
            misclassified(own),
            epsilon=epsilon,
            steps=steps,
            generator=generator,
        )
    return result


def square(
    module: torch.nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    queries: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of Square, a random search that needs no gradients.

    On inputs (C, H, W) it moves squares of pixels; on others, random subsets of the features.

    Source: Andriushchenko et al. 2020, arXiv:1912.00049.

    Args:
        module: The network, in `eval()` mode.
        clean: Inputs (N, ...) in [0, 1].
        labels: Their labels (N,).
        epsilon: Linf radius.
        queries: Forward passes for each row.
        generator: Of the search.
    """
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    goal = misclassified(labels)
    image = clean.dim() == 4
    stripes = (len(clean), clean.shape[1], 1, clean.shape[3]) if image else tuple(clean.shape)
    found = _within(low, high, clean + epsilon * _signs(stripes, clean, generator))
    rows = torch.arange(len(clean), device=clean.device)
    worst = torch.full((len(clean),), torch.inf, device=clean.device)
    for query in range(queries):
        tried = found[rows]
        if query:
            halvings = sum(query > limit * queries / 10_000 for limit in SQUARE_HALVINGS)
            mask = _patch(clean[rows], SQUARE_SHARE / 2**halvings, generator)
            signs = (len(rows), clean.shape[1], 1, 1) if image else (len(rows), *clean.shape[1:])
            moved = _within(low[rows], high[rows], clean[rows] + epsilon * _signs(signs, clean, generator))
            tried = torch.where(mask, moved, tried)
        with torch.no_grad():
            logits = module(tried)
        reached, left = goal(logits, rows), margin(logits, labels[rows])
        taken = reached | (left < worst[rows])
        found[rows[taken]], worst[rows[taken]] = tried[taken], left[taken]
        rows = rows[~reached]
        if not len(rows):
            break
    return found


def noise(
    module: torch.nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    draws: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return candidates (N, ...) of blind noise: corners of the Linf ball and points in it, by turns."""
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    found = clean.clone()
    for draw in range(draws):
        left = _survivors(module, found, labels)
        if not len(left):
            break
        shift = _uniform(clean[left], generator)
        shift = shift.sign() if draw % 2 else shift
        found[left] = _within(low[left], high[left], clean[left] + epsilon * shift)
    return found


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator of random numbers that nothing else draws from."""
    return torch.Generator(device=device).manual_seed(seed)


def _look(
    module: torch.nn.Module, here: torch.Tensor, rows: torch.Tensor, objective: Objective, goal: Goal
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is climbed, its input gradient, and which rows have reached the goal."""
    moved = here.detach().clone().requires_grad_()
    logits = module(moved)
    loss = objective(logits, rows)
    (gradient,) = torch.autograd.grad(loss.sum(), moved)
    return loss.detach(), gradient, goal(logits.detach(), rows)


def _survivors(module: torch.nn.Module, candidates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    every = torch.arange(len(labels), device=labels.device)
    with torch.no_grad():
        return every[~misclassified(labels)(module(candidates), every)]


def _within(low: torch.Tensor, high: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(points, low), high)


def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) * 2 - 1


def _signs(shape: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return drawn.to(like.dtype) * 2 - 1


def _patch(clean: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return for each row a random part of its input, as a mask that broadcasts to `clean`."""
    count, device = len(clean), clean.device
    if clean.dim() != 4:
        drawn = torch.rand(clean.shape, generator=generator, device=device).flatten(1)
        most = max(round(share * drawn.shape[1]), 1)
        limit = drawn.kthvalue(most, dim=1, keepdim=True).values
        return (drawn <= limit).view(clean.shape)
    height, width = clean.shape[2:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = (
        torch.randint(0, size - side + 1, (count, 1), generator=generator, device=device) for size in (height, width)
    )
    lines, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    down = (lines >= top) & (lines < top + side)
    across = (columns >= left) & (columns < left + side)
    return (down[:, :, None] & across[:, None, :])[:, None]
