"""How a model is trained privately: plain values, so that a policy can demand them and a pipeline can pass them on."""

import math
from dataclasses import dataclass
from typing import get_args

from portcullis.errors import ConfigError
from portcullis.training.settings import MAX_SEED, DeviceChoice

MAX_EPSILON = 64.0


@dataclass(frozen=True)
class PrivateSettings:
    """Settings of `portcullis.dp_training.private.train`; the defaults were tried on 8x8 images of digits.

    Attributes:
        target_epsilon: Most that the training may spend, above 0 and at most 64.
        delta: The probability with which epsilon may not hold; above 0 and below 0.001, and at most 1/(10 n) of n rows.
        epochs: How often a row is used, on average.
        batch_size: Rows per step, on average; fewer than there are rows.
        learning_rate: Of stochastic gradient descent, without momentum.
        max_grad_norm: The L2 norm to which each row's gradient is clipped.
        attack_epsilon: Linf radius of the attack inside training, in units of the scaled input [0, 1]; 0 for none. Each
            row's attack depends on that row and the current weights alone, so it costs no privacy.
        attack_steps: Gradient steps of that attack.
        settings_tried: How many settings were tried on these rows before these were chosen, these included. The choice
            is not accounted for; the certificate repeats the number.
        seed: Of the initial weights, which are public. Noise and sampling have no seed.
        device: "auto" takes the first CUDA device when there is one, else the CPU.

    Raises:
        ConfigError: A value is out of its range.
    """

    target_epsilon: float = 3.0
    delta: float = 1e-5
    epochs: int = 60
    batch_size: int = 512
    learning_rate: float = 1.0
    max_grad_norm: float = 1.0
    attack_epsilon: float = 0.1
    attack_steps: int = 3
    settings_tried: int = 1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, high in (("target_epsilon", MAX_EPSILON), ("learning_rate", 1e3), ("max_grad_norm", 1e6)):
            value = getattr(self, name)
            if not (type(value) in (int, float) and math.isfinite(value) and 0 < value <= high):
                raise ConfigError(f"dp_training: {name} must be above 0 and at most {high:g}")
        if not (type(self.delta) is float and 0 < self.delta < 1e-3):
            raise ConfigError("dp_training: delta must be above 0 and below 0.001; 1/(10 n) of n rows, or less")
        if not (type(self.attack_epsilon) in (int, float) and 0 <= self.attack_epsilon < 0.5):
            raise ConfigError("dp_training: attack_epsilon must be at least 0 and below 0.5")
        for name, low, most in (
            ("attack_steps", 1, 1_000),
            ("epochs", 1, 100_000),
            ("batch_size", 1, 1 << 20),
            ("settings_tried", 1, 1 << 20),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= most:
                raise ConfigError(f"dp_training: {name} must be a whole number from {low} to {most}")
        if self.device not in get_args(DeviceChoice):
            raise ConfigError(f"dp_training: device must be one of {', '.join(get_args(DeviceChoice))}")


@dataclass(frozen=True)
class AuditSettings:
    """How thorough `portcullis.dp_training.audit.audit` is.

    Attributes:
        canaries: Made-up rows whose training is guessed; more of them can rule out more.
        confidence: With which the lower bound holds.

    Raises:
        ConfigError: A value is out of its range.
    """

    canaries: int = 300
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if type(self.canaries) is not int or not 20 <= self.canaries <= 10_000:
            raise ConfigError("audit: canaries must be a whole number from 20 to 10000")
        if not (type(self.confidence) is float and 0.5 <= self.confidence < 1):
            raise ConfigError("audit: confidence must be at least 0.5 and below 1")
