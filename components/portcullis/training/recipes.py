"""The recipes of adversarial training: which inputs a batch's attack makes, and what loss they give.

| method | attack inside training | loss |
|---|---|---|
| `trades2` | 2 steps of 0.75 epsilon on the divergence | TRADES |
| `trades` | `steps` steps on the divergence | TRADES |
| `pgd` | `steps` steps on the cross-entropy | cross-entropy of the adversarial inputs |
| `mix` | the same | mean of the cross-entropies of clean and adversarial inputs |
| `nfgsm` | 1 step from noise of twice the radius, not projected | cross-entropy of the adversarial inputs |
| `plain` | none | cross-entropy of the clean inputs |

TRADES is the cross-entropy of the clean inputs plus `TRADES_BETA` times the divergence of the adversarial predictions
from the clean ones (Zhang et al. 2019, arXiv:1901.08573). PGD: Madry et al. 2018, arXiv:1706.06083. N-FGSM: de Jorge et
al. 2022, arXiv:2202.01181. Two large steps from a random start cost a third of ten and, for the same cost, leave
time for more epochs; `benchmarks/training.py` measures what that gains.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from portcullis.models.pytorch import torch
from portcullis.training.settings import TrainingSettings

functional = torch.nn.functional

TRADES_BETA = 6.0
TWO_STEPS = 0.75  # of each of trades2's steps, in radii
NOISE = 2.0  # of N-FGSM, in radii


def batch_loss(
    module: torch.nn.Module, clean: torch.Tensor, targets: torch.Tensor, settings: TrainingSettings
) -> torch.Tensor:
    """Return the loss of a batch, a scalar to be minimised.

    Args:
        module: The network, in `train()` mode.
        clean: Inputs (N, *shape), float32 in [0, 1].
        targets: Their classes (N,), int64.
        settings: The recipe.
    """
    if settings.method == "plain":
        return functional.cross_entropy(module(clean), targets)
    if settings.method in ("trades", "trades2"):
        return _trades(module, clean, targets, settings)
    climb = partial(functional.cross_entropy, target=targets, reduction="sum")
    if settings.method == "nfgsm":
        return functional.cross_entropy(module(_noisy_step(module, clean, climb, settings.epsilon)), targets)
    adversarial = ascend(module, clean, climb, epsilon=settings.epsilon, steps=settings.steps)
    hard = functional.cross_entropy(module(adversarial), targets)
    return hard if settings.method == "pgd" else (functional.cross_entropy(module(clean), targets) + hard) / 2


def _trades(
    module: torch.nn.Module, clean: torch.Tensor, targets: torch.Tensor, settings: TrainingSettings
) -> torch.Tensor:
    with _evaluating(module), torch.no_grad():
        reference = module(clean).softmax(dim=1)

    def divergence(logits: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(logits.log_softmax(dim=1), reference, reduction="sum")

    if settings.method == "trades2":
        adversarial = ascend(module, clean, divergence, epsilon=settings.epsilon, steps=2, step_share=TWO_STEPS)
    else:
        adversarial = ascend(module, clean, divergence, epsilon=settings.epsilon, steps=settings.steps)
    natural = module(clean)
    moved = functional.kl_div(module(adversarial).log_softmax(dim=1), natural.softmax(dim=1), reduction="batchmean")
    return functional.cross_entropy(natural, targets) + TRADES_BETA * moved


def _noisy_step(
    module: torch.nn.Module, clean: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], epsilon: float
) -> torch.Tensor:
    # What keeps one step from overfitting is the noise, and that nothing is projected back onto the ball.
    noisy = (clean + NOISE * epsilon * (2 * torch.rand_like(clean) - 1)).clamp(0, 1).requires_grad_()
    with _evaluating(module):
        (gradient,) = torch.autograd.grad(loss(module(noisy)), noisy)
    return (noisy.detach() + epsilon * gradient.sign()).clamp(0, 1)


def ascend(
    module: torch.nn.Module,
    clean: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    epsilon: float,
    steps: int,
    step_share: float | None = None,
) -> torch.Tensor:
    """Maximise a loss by projected gradient ascent in the Linf ball, from a random start; touches no `.grad`.

    Args:
        module: The network; it is attacked in `eval()` mode and put back into its own.
        clean: The inputs (N, *shape), float32 in [0, 1].
        loss: From logits to a sum over the rows, so that no row's attack depends on another row.
        epsilon: Radius of the ball.
        steps: Gradient steps.
        step_share: Length of a step, in radii; 2.5 / steps when None.

    Returns:
        The inputs, each moved by at most `epsilon` and still in [0, 1].
    """
    step = epsilon * (2.5 / steps if step_share is None else step_share)
    low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
    moved = low + (high - low) * torch.rand_like(clean)
    with _evaluating(module):
        for _ in range(steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(module(moved)), moved)
            moved = (moved.detach() + step * gradient.sign()).clamp(low, high)
    return moved


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Attack the network that will be served: dropout off, batch statistics neither used nor updated."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
