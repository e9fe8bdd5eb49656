"""What an attack is here: something that proposes candidates, and the ball in which they count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from portcullis.models.pytorch import torch
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verify import correct

# Median margin of what attacks see. Of a positive factor, which changes no decision, many of their parameters depend.
MARGIN = 10.0
BISECTIONS = 10

# Maps clean inputs (n, ...) in [0, 1] and labels (n,) to candidates (n, ...).
Proposal = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack on one model, and the ball within which what it proposes counts."""

    propose: Proposal
    ball: Ball


@dataclass(frozen=True)
class Target:
    """A network under attack.

    Attributes:
        module: The network, in `eval()` mode.
        classes: How many classes it tells apart.
        median_margin: Median of its margins on the clean inputs that it classifies correctly.
    """

    module: torch.nn.Module
    classes: int
    median_margin: float

    @property
    def scale(self) -> float:
        """What its logits are multiplied by to have a median margin of `MARGIN`."""
        return MARGIN / self.median_margin

    def scaled(self) -> torch.nn.Module:
        """Return the network with logits whose largest two are never further apart than `MARGIN`.

        Libraries climb the cross-entropy, whose float32 gradient vanishes where margins are large.
        """
        return _Scaled(self.module, self.median_margin)


class Backend(Protocol):
    """A library of attacks. All that it does is propose: `portcullis.robustness.verify` decides what is adversarial."""

    def __call__(self, target: Target, settings: RobustnessSettings) -> Mapping[str, Attack]:
        """Return its attacks by name. They may draw from PyTorch's global generator, and from no other."""


class _Scaled(torch.nn.Module):
    """A network with logits scaled so that the gap of a row's largest two, or the median gap if larger, is `MARGIN`."""

    def __init__(self, module: torch.nn.Module, median_margin: float) -> None:
        super().__init__()
        self.module = module
        self.median_margin = median_margin
        # torchattacks puts back the mode that it finds here, in all of the network.
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(inputs)
        largest = logits.detach().topk(2, dim=1).values
        gap = (largest[:, :1] - largest[:, 1:]).clamp(min=self.median_margin)
        return logits * (MARGIN / gap)


def draw_back(module: torch.nn.Module, clean: torch.Tensor, found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Bisect the line from each clean input to what was found, for the misclassified point nearest to the clean one."""
    share = torch.ones(len(clean), *[1] * (clean.dim() - 1), device=clean.device)
    safe = torch.zeros_like(share)
    for _ in range(BISECTIONS):
        middle = (safe + share) / 2
        broken = ~correct(module, torch.lerp(clean, found, middle), labels).view_as(share)
        share, safe = torch.where(broken, middle, share), torch.where(broken, safe, middle)
    return torch.lerp(clean, found, share).clamp(0, 1)
