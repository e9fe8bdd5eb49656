"""How a model is attacked by membership inference and inversion: plain values, which a policy can demand."""

from dataclasses import dataclass

from portcullis.errors import ConfigError

MAX_STARTS = 64
MAX_STEPS = 10_000
MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class MembershipSettings:
    """The plan of `portcullis.membership.attack.attack` and of `portcullis.membership.inversion.invert`.

    Attributes:
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.
        inversion_starts: How often each class is reconstructed, 1 to 64: the first time from the middle of all inputs,
            then from random ones.
        inversion_steps: Gradient steps of each reconstruction, 1 to 10,000.
        seed: Of the random starts.

    Raises:
        ConfigError: A value is out of its range.
    """

    false_positives: float = 0.001
    confidence: float = 0.95
    n_min: int = 100
    inversion_starts: int = 8
    inversion_steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not (type(self.false_positives) is float and 0 < self.false_positives < 0.5):
            raise ConfigError("membership: false_positives must be above 0 and below 0.5")
        if not (type(self.confidence) is float and 0.5 <= self.confidence < 1):
            raise ConfigError("membership: confidence must be at least 0.5 and below 1")
        for name, least, most in (
            ("n_min", 2, 1 << 30),
            ("inversion_starts", 1, MAX_STARTS),
            ("inversion_steps", 1, MAX_STEPS),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"membership: {name} must be a whole number from {least} to {most}")
