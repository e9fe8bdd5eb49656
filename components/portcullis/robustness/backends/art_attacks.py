"""Adversarial Robustness Toolbox (ART) 1.20.1, and what has to be done about that release's known faults.

- `art.attacks.evasion` cannot be imported without `packaging`, which it does not declare: the extra `art` does.
- PGD and FGSM climb the cross-entropy, whose gradient vanishes where margins are large: all see scaled logits.
- Random starts come from NumPy's global generator: it is seeded for each batch, and put back.
- Progress bars flood the error output: they are switched off.
- Its models switch between `train()` and `eval()`: the scaled network refuses to be anything but evaluated.
- Its AutoAttack is another ensemble than the published one, without APGD-T and FAB-T: it is left out.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from portcullis.errors import MissingDependencyError
from portcullis.models.pytorch import torch
from portcullis.robustness.proposal import Attack, Proposal, Target, draw_back
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings

try:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier
except ModuleNotFoundError as error:
    raise MissingDependencyError("ART is missing; run: pip install 'kfp-portcullis[art]'") from error

BATCH = 128


def attacks(target: Target, settings: RobustnessSettings) -> Mapping[str, Attack]:
    """Return FGSM and PGD within `epsilon`; DeepFool within `l2_budget`."""
    epsilon, seed = settings.epsilon, settings.seed
    linf, l2 = Ball("linf", epsilon), Ball("l2", settings.l2_budget)

    def fgsm(model: Any) -> Any:
        return evasion.FastGradientMethod(model, norm=np.inf, eps=epsilon, batch_size=BATCH)

    def pgd(model: Any) -> Any:
        step, steps = settings.pgd_step_size, settings.pgd_steps
        return evasion.ProjectedGradientDescent(
            model, norm=np.inf, eps=epsilon, eps_step=step, max_iter=steps, num_random_init=1, batch_size=BATCH,
            verbose=False,
        )  # fmt: skip

    def deepfool(model: Any) -> Any:
        return evasion.DeepFool(
            model, max_iter=settings.deepfool_steps, nb_grads=target.classes, batch_size=BATCH, verbose=False
        )

    return {
        "fgsm": Attack(_propose(target, fgsm, seed), linf),
        "pgd": Attack(_propose(target, pgd, seed), linf),
        "deepfool": Attack(_nearest(target, _propose(target, deepfool, seed)), l2),
    }


def _propose(target: Target, build: Any, seed: int) -> Proposal:
    def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        classifier = PyTorchClassifier(
            _Evaluated(target.scaled()),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(clean.shape[1:]),
            nb_classes=target.classes,
            clip_values=(0.0, 1.0),
            device_type="cpu" if clean.device.type == "cpu" else "gpu",
        )
        with numpy_generator(seed):
            found = build(classifier).generate(clean.cpu().numpy(), y=labels.cpu().numpy())
        return torch.from_numpy(found.astype(np.float32)).to(clean.device)

    return propose


def _nearest(target: Target, proposal: Proposal) -> Proposal:
    return lambda clean, labels: draw_back(target.module, clean, proposal(clean, labels), labels)


class _Evaluated(torch.nn.Module):
    """A network that stays in `eval()` mode whatever is asked of it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> "_Evaluated":  # noqa: FBT001, FBT002
        del mode
        return super().train(mode=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(inputs)
        return logits


@contextlib.contextmanager
def numpy_generator(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, and put it back after the block."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
