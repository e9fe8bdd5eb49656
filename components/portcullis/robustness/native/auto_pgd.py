"""Auto-PGD, alone and as the gradient part of AutoAttack (Croce and Hein 2020, arXiv:2003.01690)."""

from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import (
    Goal,
    Objective,
    cross_entropy,
    look,
    misclassified,
    survivors,
    targeted_dlr,
    uniform,
    within,
)

# Of APGD (Croce and Hein 2020, section 3): first checkpoint, how much shorter each next one is, and the shortest, as
# shares of the steps; the share of steps that must have climbed; and the weight of the new direction.
FIRST_CHECKPOINT, SHORTER, SHORTEST = 0.22, 0.03, 0.06
CLIMBING, MOMENTUM = 0.75, 0.75


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
    noise = uniform(clean, generator)
    noise /= noise.flatten(1).abs().amax(dim=1).clamp(min=1e-12).view(-1, *[1] * (clean.dim() - 1))
    result = within(low, high, clean + epsilon * noise)
    rows = torch.arange(len(clean), device=clean.device)
    # All that follows is of the rows that are not broken yet.
    here = result.clone()
    loss, gradient, reached = look(module, here, rows, objective, goal)
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
        ahead = within(least, most, here + wide * gradient.sign())
        moved = within(least, most, here + weight * (ahead - here) + (1 - weight) * (here - before))
        before, here = here, moved
        earlier = loss
        loss, gradient, reached = look(module, here, rows, objective, goal)
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
        left = survivors(module, result, labels)
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
