"""Attacks that need no gradients: Square's random search, and blind noise."""

import math

from portcullis.models.margin import margin
from portcullis.models.pytorch import torch
from portcullis.robustness.native.climb import misclassified, signs, survivors, uniform, within

# Of Square (Andriushchenko et al. 2020): share of the input that changes at first, and the queries of 10,000 after
# which it is halved.
SQUARE_SHARE = 0.8
SQUARE_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


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
    found = within(low, high, clean + epsilon * signs(stripes, clean, generator))
    rows = torch.arange(len(clean), device=clean.device)
    worst = torch.full((len(clean),), torch.inf, device=clean.device)
    for query in range(queries):
        tried = found[rows]
        if query:
            halvings = sum(query > limit * queries / 10_000 for limit in SQUARE_HALVINGS)
            mask = _patch(clean[rows], SQUARE_SHARE / 2**halvings, generator)
            patches = (len(rows), clean.shape[1], 1, 1) if image else (len(rows), *clean.shape[1:])
            moved = within(low[rows], high[rows], clean[rows] + epsilon * signs(patches, clean, generator))
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
        left = survivors(module, found, labels)
        if not len(left):
            break
        shift = uniform(clean[left], generator)
        shift = shift.sign() if draw % 2 else shift
        found[left] = within(low[left], high[left], clean[left] + epsilon * shift)
    return found


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
