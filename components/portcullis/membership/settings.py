"""How a model is attacked by membership inference: plain values, which a policy can demand."""

from dataclasses import dataclass

from portcullis.errors import ConfigError


@dataclass(frozen=True)
class MembershipSettings:
    """The plan of `portcullis.membership.attack.attack`.

    Attributes:
        false_positives: The false-positive rate at which the true-positive rate is reported.
        confidence: Of each interval.
        n_min: Fewest rows on either side that are judged.

    Raises:
        ConfigError: A value is out of its range.
    """

    false_positives: float = 0.001
    confidence: float = 0.95
    n_min: int = 100

    def __post_init__(self) -> None:
        if not (type(self.false_positives) is float and 0 < self.false_positives < 0.5):
            raise ConfigError("membership: false_positives must be above 0 and below 0.5")
        if not (type(self.confidence) is float and 0.5 <= self.confidence < 1):
            raise ConfigError("membership: confidence must be at least 0.5 and below 1")
        if type(self.n_min) is not int or not 2 <= self.n_min <= 1 << 30:
            raise ConfigError(f"membership: n_min must be a whole number from 2 to {1 << 30}")
