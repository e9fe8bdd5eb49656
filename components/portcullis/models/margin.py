"""By how much a network prefers the right class."""

from portcullis.models.pytorch import torch


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's logit of its label less the largest other logit: (N, k) and (N,) to (N,)."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    result: torch.Tensor = own[:, 0] - others.amax(dim=1)
    return result
