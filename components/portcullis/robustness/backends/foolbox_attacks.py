"""foolbox 3.3.4, and what has to be done about that release's known faults.

- It cannot be imported where there is no git, for a zoo of models that is not used here: git's absence is kept quiet.
- It imports a name that SciPy is about to drop, for an attack that is not used here: the warning is not passed on.
- PGD and FGSM climb the cross-entropy, whose gradient vanishes where margins are large: all see scaled logits.
- Minimum-norm attacks hand back what they found however far it is, and inputs that they could not break: which of them
  count is decided by the verifier alone, never by foolbox's own account of success.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

from portcullis.errors import MissingDependencyError
from portcullis.models.pytorch import torch
from portcullis.robustness.proposal import Attack, Proposal, Target, draw_back
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
except ModuleNotFoundError as error:
    raise MissingDependencyError("foolbox is missing; run: pip install 'kfp-portcullis[foolbox]'") from error

CW_SEARCHES = 3


def attacks(target: Target, settings: RobustnessSettings) -> Mapping[str, Attack]:
    """Return FGSM and PGD within `epsilon`; DeepFool, CW and DDN within `l2_budget`."""
    linf, l2 = Ball("linf", settings.epsilon), Ball("l2", settings.l2_budget)
    library = foolbox.attacks
    pgd = library.LinfPGD(steps=settings.pgd_steps, abs_stepsize=settings.pgd_step_size)
    deepfool = library.L2DeepFoolAttack(steps=settings.deepfool_steps, candidates=None)
    cw = library.L2CarliniWagnerAttack(
        binary_search_steps=CW_SEARCHES, steps=settings.cw_steps, stepsize=settings.cw_learning_rate
    )
    return {
        "fgsm": Attack(_within(target, library.LinfFastGradientAttack(), settings.epsilon), linf),
        "pgd": Attack(_within(target, pgd, settings.epsilon), linf),
        "deepfool": Attack(_nearest(target, deepfool), l2),
        "ddn": Attack(_nearest(target, library.DDNAttack(steps=settings.ddn_steps)), l2),
        "cw": Attack(_nearest(target, cw), l2),
    }


def _within(target: Target, attack: Any, epsilon: float) -> Proposal:
    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        _, clipped, _ = attack(_model(target, clean), clean, labels, epsilons=epsilon)
        found: torch.Tensor = clipped.detach()
        return found

    return propose


def _nearest(target: Target, attack: Any) -> Proposal:
    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raw, _, _ = attack(_model(target, clean), clean, labels, epsilons=None)
        return draw_back(target.module, clean, raw.detach().clamp(0, 1), labels)

    return propose


def _model(target: Target, clean: torch.Tensor) -> Any:
    return foolbox.PyTorchModel(target.scaled(), bounds=(0, 1), device=clean.device)
