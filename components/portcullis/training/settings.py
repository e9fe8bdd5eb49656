"""How a model is trained: plain values, so that a policy can demand them and a pipeline can pass them on."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from portcullis.errors import ConfigError

Method = Literal["trades2", "mix", "pgd", "trades", "nfgsm", "plain"]
DeviceChoice = Literal["auto", "cpu", "cuda"]

MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of `portcullis.training.adversarial.train`; the defaults suit 8x8 images of digits.

    Attributes:
        method: The recipe; `portcullis.training.recipes` describes each. "plain" is training without an attack.
        epsilon: Linf radius of the attack inside training, in units of the scaled input [0, 1]; ignored by "plain".
        steps: Gradient steps of that attack in "mix", "pgd" and "trades"; "trades2" takes two and "nfgsm" one.
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        learning_rate: Peak of the one-cycle schedule.
        ema: Decay per step of the exponential mean of the weights, which is what is kept; 0 keeps the weights as they
            are.
        held_out: Share of the rows that is not learnt from but attacked, to choose among checkpoints and to notice
            that one-step training has collapsed; ignored by "plain".
        seed: Of initial weights, rows held out, order of rows and random starts.
        device: "auto" takes the first CUDA device when there is one, else the CPU.

    Raises:
        ConfigError: A value is out of its range.
    """

    method: str = "trades2"
    epsilon: float = 0.1
    steps: int = 10
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 0.006
    ema: float = 0.99
    held_out: float = 0.1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("method", get_args(Method)), ("device", get_args(DeviceChoice))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"training: {name} must be one of {', '.join(choices)}")
        if not 0 < self.epsilon < 0.5:
            raise ConfigError("training: epsilon must be above 0 and below 0.5, in units of the scaled input [0, 1]")
        if not (math.isfinite(self.learning_rate) and 0 < self.learning_rate <= 1):
            raise ConfigError("training: learning_rate must be above 0 and at most 1")
        if not 0 <= self.ema < 1:
            raise ConfigError("training: ema must be from 0 to below 1")
        if not 0 < self.held_out <= 0.5:
            raise ConfigError("training: held_out must be above 0 and at most 0.5")
        for name, low, high in (
            ("steps", 1, 1_000),
            ("epochs", 1, 100_000),
            ("batch_size", 1, 1 << 20),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"training: {name} must be a whole number from {low} to {high}")
