"""The attacks of the plan: torchattacks 3.3.0 proposes, and this module works around that release's known faults.

- PGD and FGSM climb the cross-entropy, whose float32 gradient vanishes where margins are large and points nowhere in
  particular where they are small. A positive factor changes no decision, so all attacks see logits scaled to a median
  margin of 10, and none above it. Their parameters then mean the same for every model.
- CW optimises in tanh space, where an input of exactly 0 or 1 can never move. It starts from inputs nudged off both.
- CW takes the largest other logit to be at least 0. Here it gets the margin itself.
- DeepFool clips each step to [0, 1], so it often stops short of the boundary. It is given a large overshoot, and what
  it finds is drawn back towards the clean input by bisection. CW's finds are, too.
- APGD is our own; `portcullis.robustness.native` says why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from portcullis.errors import MissingDependencyError
from portcullis.models.pytorch import torch
from portcullis.robustness import native
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verify import Ball, correct, margin

try:
    import torchattacks
except ModuleNotFoundError as error:
    raise MissingDependencyError("torchattacks is missing; run: pip install 'kfp-portcullis[torch]'") from error

MARGIN = 10.0
NUDGE = 0.01
BISECTIONS = 10
# Those that run on every sample whatever the mode.
CHEAP = ("fgsm", "pgd")

# Maps clean inputs (n, ...) in [0, 1] and labels (n,) to candidates (n, ...).
Proposal = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack on one model, and the ball within which what it proposes counts."""

    propose: Proposal
    ball: Ball


def planned_attacks(
    module: torch.nn.Module, median_margin: float, settings: RobustnessSettings
) -> Mapping[str, Attack]:
    """Return the attacks of the plan by name; `CHEAP` ones first.

    FGSM: Goodfellow et al. 2015, arXiv:1412.6572. PGD: Madry et al. 2018, arXiv:1706.06083. CW: Carlini and Wagner
    2017, arXiv:1608.04644. DeepFool: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599. APGD: Croce and Hein 2020,
    arXiv:2003.01690.

    Args:
        module: The network under attack, in `eval()` mode.
        median_margin: Median of its margins on the clean inputs that it classifies correctly.
        settings: The plan.
    """
    scaled = _Scaled(module, median_margin)
    linf, l2 = Ball("linf", settings.epsilon), Ball("l2", settings.l2_budget)
    cw = torchattacks.CW(scaled, c=settings.cw_c, steps=settings.cw_steps, lr=settings.cw_learning_rate)
    cw.f = _cw_objective
    deepfool = torchattacks.DeepFool(scaled, steps=settings.deepfool_steps, overshoot=settings.deepfool_overshoot)

    def propose_cw(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _draw_back(module, clean, cw(clean.clamp(NUDGE, 1 - NUDGE), labels), labels)

    def propose_deepfool(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _draw_back(module, clean, deepfool(clean, labels), labels)

    generators: dict[torch.device, torch.Generator] = {}

    def propose_apgd(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        generator = generators.setdefault(clean.device, native.generator_of(settings.seed, clean.device))
        return native.apgd_ensemble(
            module,
            clean,
            labels,
            epsilon=settings.epsilon,
            steps=settings.apgd_steps,
            targets=settings.apgd_targets,
            scale=MARGIN / median_margin,
            generator=generator,
        )

    return {
        "fgsm": Attack(torchattacks.FGSM(scaled, eps=settings.epsilon), linf),
        "pgd": Attack(
            torchattacks.PGD(scaled, eps=settings.epsilon, alpha=settings.pgd_step_size, steps=settings.pgd_steps), linf
        ),
        "apgd": Attack(propose_apgd, linf),
        "cw": Attack(propose_cw, l2),
        "deepfool": Attack(propose_deepfool, l2),
    }


def unbounded_attack(module: torch.nn.Module, median_margin: float) -> Attack:
    """Return PGD that may make any image of any other, which breaks every model whose gradients can be followed."""
    return Attack(torchattacks.PGD(_Scaled(module, median_margin), eps=1.0, alpha=0.1, steps=40), Ball("linf", 1.0))


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


def _cw_objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return margin(logits, labels).clamp(min=0)


def _draw_back(module: torch.nn.Module, clean: torch.Tensor, found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Bisect the line from each clean input to what was found, for the misclassified point nearest to the clean one."""
    share = torch.ones(len(clean), *[1] * (clean.dim() - 1), device=clean.device)
    safe = torch.zeros_like(share)
    for _ in range(BISECTIONS):
        middle = (safe + share) / 2
        broken = ~correct(module, torch.lerp(clean, found, middle), labels).view_as(share)
        share, safe = torch.where(broken, middle, share), torch.where(broken, safe, middle)
    return torch.lerp(clean, found, share).clamp(0, 1)
