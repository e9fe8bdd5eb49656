"""What a measurement of robustness found, as plain values: whoever reads it needs no PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from portcullis.evidence.statement import Figure

# What a measurement must keep to, or it proves little and is inconclusive; see `portcullis.robustness.soundness`.
MIN_UNBOUNDED_SUCCESS = 0.99
MIN_PLANTED_FOUND = 0.9
MIN_AGREEMENT = 0.75
MIN_REACH = 0.25
MAX_BATCH_DIFFERENCE = 1e-3
TOLERATED_SHARE = 0.01


@dataclass(frozen=True)
class Ball:
    """The inputs within `radius` of a clean one, in Linf or L2, in units of the scaled input [0, 1]."""

    norm: Literal["linf", "l2"]
    radius: float


@dataclass(frozen=True)
class Tried:
    """What one attack did: on how many correctly classified samples it ran, how many it broke, and its cost.

    `cost` is in forward-equivalents: 1 for a row's forward pass, 2 for its backward pass.
    """

    ball: Ball
    tried: int
    broken: int
    cost: int


@dataclass(frozen=True)
class Example:
    """A sample and what an attack made of it, both of the model's input shape in [0, 1], and the two classes."""

    attack: str
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    label: str
    answer: str


@dataclass(frozen=True)
class RobustnessReport:
    """What was measured.

    Attributes:
        figures: `samples`; `classes`; `clean_accuracy`; `robust_accuracy` (share of samples that are classified
            correctly and withstand every attack); `robust_accuracy_fgsm`, `_pgd`, `_deepfool`, `_ddn`, `_apgd`, `_cw`,
            and `_LIBRARY_ATTACK` of each library of the plan (share that are classified correctly and withstand that
            one); `unbounded_success` (share of samples that an
            unbounded attack breaks, at least 0.99); `smallest_gradient` (least L2 norm of the margin's input gradient,
            above 0); `gradient_agreement` (share of points where the gradient tells the margin's change);
            `planted_found` (share of planted adversarial examples that the attack finds); `gradient_free` (of samples
            that all attacks left, how many noise or Square breaks); `gradient_reach` (on those, the lower quartile of
            the margin's fall over a step to the edge of the ball, as a share of what the gradient says, at least 0.25,
            and 1 where none is left); `gradient_averaged` (of those, how many more are broken along gradients that are
            averaged over the ball); `batch_difference` (largest change of a logit when its sample is alone, in median
            margins, at most 0.001); `forward_equivalents`; `device`, `cpu` or `cuda`.
            Accuracies and shares are in 0..1. In `verdict` mode `robust_accuracy` is the low end of an interval and
            `robust_accuracy_high` its other end; `judged` of `pool` samples, which withstand FGSM and PGD, met all
            attacks; `stop` is `certain`, `sequential` or `exhausted`; and only attacks that ran on every sample have
            figures of their own. Where so many samples are broken that the model has failed, whatever else could be
            found out, there are no figures of soundness and no curve.
        attacks: By name, what each attack did.
        curve: By Linf radius, the share of some correctly classified samples that withstand PGD.
        examples: A few samples that were broken.
    """

    figures: Mapping[str, Figure]
    attacks: Mapping[str, Tried] = field(default_factory=dict)
    curve: Mapping[float, float] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
