"""The attacks of the plan: our own, torchattacks' CW, and those of every library that the plan names."""

from collections.abc import Mapping

from portcullis.models.pytorch import torch
from portcullis.robustness import native
from portcullis.robustness.backends import find_backend
from portcullis.robustness.backends.torchattacks_attacks import cw
from portcullis.robustness.proposal import Attack, Target, draw_back
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings

# Those that run on every sample whatever the mode, the cheapest first.
CHEAP = ("fgsm", "pgd")
DEEPFOOL_CLASSES = 9


def planned_attacks(target: Target, settings: RobustnessSettings) -> Mapping[str, Attack]:
    """Return the attacks of the plan by name; `CHEAP` ones first, then from cheap to dear.

    FGSM: Goodfellow et al. 2015, arXiv:1412.6572. PGD, on the margin: Madry et al. 2018, arXiv:1706.06083. DeepFool:
    Moosavi-Dezfooli et al. 2016, arXiv:1511.04599. DDN: Rony et al. 2019, arXiv:1811.09600. APGD: Croce and Hein 2020,
    arXiv:2003.01690. CW: Carlini and Wagner 2017, arXiv:1608.04644.

    Args:
        target: The network under attack.
        settings: The plan.

    Raises:
        MissingDependencyError: A library that the plan names is not installed.
    """
    module, epsilon, budget = target.module, settings.epsilon, settings.l2_budget
    generators: dict[torch.device, torch.Generator] = {}

    def generator(device: torch.device) -> torch.Generator:
        return generators.setdefault(device, native.generator_of(settings.seed, device))

    def fgsm(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return native.fgsm(module, clean, native.cross_entropy(labels, target.scale), epsilon=epsilon)

    def pgd(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return native.pgd(
            module,
            clean,
            native.margin_loss(labels),
            native.misclassified(labels),
            epsilon=epsilon,
            steps=settings.pgd_steps,
            step_size=settings.pgd_step_size,
            generator=generator(clean.device),
        )

    def deepfool(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found = native.deepfool(
            module,
            clean,
            labels,
            steps=settings.deepfool_steps,
            overshoot=settings.deepfool_overshoot,
            classes=DEEPFOOL_CLASSES,
        )
        return draw_back(module, clean, found, labels)

    def ddn(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        objective = native.cross_entropy(labels, target.scale)
        # Found in the budget is found: how much nearer there is another changes nothing.
        return native.ddn(module, clean, labels, objective, steps=settings.ddn_steps, enough=budget, first_norm=budget)

    def apgd(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return native.apgd_ensemble(
            module,
            clean,
            labels,
            epsilon=epsilon,
            steps=settings.apgd_steps,
            targets=settings.apgd_targets,
            scale=target.scale,
            generator=generator(clean.device),
        )

    linf, l2 = Ball("linf", epsilon), Ball("l2", budget)
    own = {
        "fgsm": Attack(fgsm, linf),
        "pgd": Attack(pgd, linf),
        "deepfool": Attack(deepfool, l2),
        "ddn": Attack(ddn, l2),
        "apgd": Attack(apgd, linf),
        "cw": Attack(cw(target, settings), l2),
    }
    foreign = {
        f"{library}_{name}": attack
        for library in settings.named_libraries
        for name, attack in find_backend(library)(target, settings).items()
    }
    return {**own, **foreign}


def unbounded_attack(target: Target) -> Attack:
    """Return PGD that may make any input of any other, which breaks every model whose gradients can be followed."""

    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return native.pgd(
            target.module,
            clean,
            native.cross_entropy(labels, target.scale),
            native.misclassified(labels),
            epsilon=1.0,
            steps=40,
            step_size=0.1,
            generator=native.generator_of(0, clean.device),
        )

    return Attack(propose, Ball("linf", 1.0))
