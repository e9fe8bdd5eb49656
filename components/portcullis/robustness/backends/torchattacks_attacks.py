"""torchattacks 3.3.0, and what has to be done about that release's known faults.

- PGD and FGSM climb the cross-entropy, whose gradient vanishes where margins are large: they see scaled logits.
- CW optimises in tanh space, where an input of exactly 0 or 1 can never move: it starts from inputs nudged off both.
- CW takes the largest other logit to be at least 0: it gets the margin itself.
- DeepFool clips each step to [0, 1] and so often stops short of the boundary: it is given a large overshoot, and what
  it finds is drawn back towards the clean input by bisection. CW's finds are, too.
- AutoAttack runs APGD and FAB for 10 steps, not 100, and takes ten classes for granted: its parts are put together
  anew, with the reference's steps and the model's classes.
- APGD and Square take images only: other inputs are shown to APGD as images of one line, and Square is left out.
- APGD-T crashes with fewer than four classes: there it is left out.
"""

from collections.abc import Mapping

from portcullis.errors import MissingDependencyError
from portcullis.models.margin import margin
from portcullis.models.pytorch import torch
from portcullis.robustness.proposal import Attack, Proposal, Target, draw_back
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verify import adversarial

try:
    import torchattacks
except ModuleNotFoundError as error:
    raise MissingDependencyError("torchattacks is missing; run: pip install 'kfp-portcullis[torch]'") from error

NUDGE = 0.01
OVERSHOOT = 0.5
# Of the reference's standard plan (Croce and Hein 2020, arXiv:2003.01690).
STEPS, QUERIES = 100, 5000


def attacks(target: Target, settings: RobustnessSettings) -> Mapping[str, Attack]:
    """Return FGSM, PGD and AutoAttack within `epsilon`, and DeepFool within `l2_budget`; every plan has CW besides."""
    scaled = target.scaled()
    linf, l2 = Ball("linf", settings.epsilon), Ball("l2", settings.l2_budget)
    steps, size = settings.pgd_steps, settings.pgd_step_size
    deepfool = torchattacks.DeepFool(scaled, steps=settings.deepfool_steps, overshoot=OVERSHOOT)

    def propose_deepfool(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return draw_back(target.module, clean, deepfool(clean, labels), labels)

    return {
        "fgsm": Attack(torchattacks.FGSM(scaled, eps=settings.epsilon), linf),
        "pgd": Attack(torchattacks.PGD(scaled, eps=settings.epsilon, alpha=size, steps=steps), linf),
        "deepfool": Attack(propose_deepfool, l2),
        "autoattack": Attack(auto_attack(target, settings), linf),
    }


def cw(target: Target, settings: RobustnessSettings) -> Proposal:
    """Return CW (Carlini and Wagner 2017, arXiv:1608.04644), without a search for its constant."""
    attack = torchattacks.CW(target.scaled(), c=settings.cw_c, steps=settings.cw_steps, lr=settings.cw_learning_rate)
    attack.f = _margin_above_zero

    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return draw_back(target.module, clean, attack(clean.clamp(NUDGE, 1 - NUDGE), labels), labels)

    return propose


def auto_attack(target: Target, settings: RobustnessSettings) -> Proposal:
    """Return AutoAttack's standard plan: APGD-CE, APGD-T, FAB-T and Square, each on what the ones before left."""
    ball = Ball("linf", settings.epsilon)
    shared = {"eps": settings.epsilon, "seed": settings.seed}

    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        image = clean.dim() == 4
        network = target.scaled() if image else _Lines(target.scaled(), clean.shape[1:])
        seen = clean if image else clean.reshape(len(clean), 1, 1, -1)
        of_classes = {"n_classes": target.classes, **shared}
        parts = [torchattacks.APGD(network, steps=STEPS, loss="ce", **shared)]
        if target.classes >= 4:
            parts.append(torchattacks.APGDT(network, steps=STEPS, **of_classes))
        parts.append(torchattacks.FAB(network, steps=STEPS, multi_targeted=True, **of_classes))
        if image:
            parts.append(torchattacks.Square(network, n_queries=QUERIES, **shared))
        found, left = seen.clone(), torch.arange(len(clean), device=clean.device)
        for part in parts:
            found[left] = part(seen[left], labels[left]).detach()
            broken = adversarial(network, seen[left], found[left], labels[left], ball)
            left = left[~broken]
            if not len(left):
                break
        return found.reshape(clean.shape)

    return propose


class _Lines(torch.nn.Module):
    """A network of inputs of any shape, shown as one of images with one line and one channel."""

    def __init__(self, module: torch.nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.module, self.shape = module, shape
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(inputs.reshape(-1, *self.shape))
        return logits


def _margin_above_zero(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return margin(logits, labels).clamp(min=0)
