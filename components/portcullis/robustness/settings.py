"""What a model must withstand: plain values, so that a policy can demand them and a pipeline can pass them on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from portcullis.errors import ConfigError
from portcullis.robustness.tabular.judge import TabularSettings

MAX_SEED = 2**53 - 1
# Libraries whose attacks a plan may add.
LIBRARIES = ("torchattacks", "foolbox", "art")
# Every plan's own attacks, and the norm in which each is bounded.
ATTACKS = {"fgsm": "linf", "pgd": "linf", "deepfool": "l2", "ddn": "l2", "apgd": "linf", "cw": "l2"}
MAX_THREAT = 1 << 16  # characters


@dataclass(frozen=True)
class RobustnessSettings:
    """The plan of `portcullis.robustness.evaluate.evaluate`; the defaults suit 8x8 images of digits.

    Lengths are in units of the scaled input [0, 1]. FGSM, PGD and APGD are bounded by `epsilon`. DeepFool, DDN and CW
    look for the nearest misclassified input in L2, however far it is: a success counts only within `l2_budget`. Its
    default is the radius at which the L2 ball has the volume of the Linf ball: 2 epsilon Gamma(D/2 + 1)^(1/D) /
    sqrt(pi), which is 0.404 for epsilon = 0.1 and D = 64 inputs, so that neither threat is the smaller set.

    Attributes:
        epsilon: Linf radius of FGSM, PGD and APGD, above 0 and below 0.5, where every input could become grey.
        l2_budget: L2 radius within which DeepFool, DDN and CW count.
        pgd_steps: Steps of PGD.
        pgd_step_size: Step size of PGD; the steps together must cross the ball.
        cw_steps: Steps of CW's optimiser.
        cw_c: CW's weight of misclassification against distance, for logits scaled to a median margin of 10.
        cw_learning_rate: Learning rate of CW's optimiser, in tanh space.
        deepfool_steps: Steps of DeepFool.
        deepfool_overshoot: Share by which DeepFool oversteps the boundary; the excess is taken back afterwards.
        ddn_steps: Steps of DDN.
        apgd_steps: Steps of each APGD; AutoAttack's standard plan has 100.
        apgd_targets: Other classes that APGD aims at, likeliest first; AutoAttack's standard plan has 9.
        libraries: Libraries whose own attacks are added, separated by commas, or `none`: `torchattacks` (FGSM, PGD,
            DeepFool, and AutoAttack with the reference's 100 steps; its CW always runs), `foolbox` (FGSM, PGD,
            DeepFool, DDN, CW), `art` (FGSM, PGD, DeepFool). Each only proposes; what counts is decided here.
        n_min: Fewest samples that are judged.
        seed: Of random starts.
        mode: `full` runs every attack on every sample and reports a number. `verdict` stops as soon as it is known,
            with certainty or at an error of at most 1 %, on which side of the policy's bound the number lies, and
            reports an interval.
        threat: For a model of a table, what may change in a row, as JSON or YAML that
            `portcullis.robustness.tabular.read_threat` reads; empty for none. With one, rows are attacked by a random
            search through the model's probabilities, in place of the attacks and radii above, and `mode` is `full`.
        queries: With a threat, how often the model is asked about each row that it classifies correctly.

    Raises:
        ConfigError: A value is out of its range, PGD could not reach the ends of its ball, or a threat comes with mode
            `verdict`.
    """

    epsilon: float = 0.1
    l2_budget: float = 0.4
    pgd_steps: int = 10
    pgd_step_size: float = 0.025
    cw_steps: int = 100
    cw_c: float = 0.3
    cw_learning_rate: float = 0.05
    deepfool_steps: int = 20
    deepfool_overshoot: float = 0.02
    ddn_steps: int = 40
    apgd_steps: int = 20
    apgd_targets: int = 3
    libraries: str = "none"
    n_min: int = 100
    seed: int = 0
    mode: str = "full"
    threat: str = ""
    queries: int = 500

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not _is_of(getattr(self, field.name), type(field.default)):
                raise ConfigError(f"robustness: {field.name} must be of type {type(field.default).__name__}")
        for name, high in (
            ("epsilon", 0.5),
            ("l2_budget", 1e6),
            ("pgd_step_size", 1.0),
            ("cw_c", 1e6),
            ("cw_learning_rate", 1e3),
            ("deepfool_overshoot", 1e3),
        ):
            if not 0 < getattr(self, name) < high:
                raise ConfigError(f"robustness: {name} must be above 0 and below {high:g}")
        for name, low, most in (
            ("pgd_steps", 1, 100_000),
            ("cw_steps", 1, 100_000),
            ("deepfool_steps", 1, 100_000),
            ("ddn_steps", 10, 100_000),
            ("apgd_steps", 10, 100_000),
            ("apgd_targets", 0, 1_000),
            ("n_min", 1, 1 << 30),
            ("seed", 0, MAX_SEED),
            ("queries", 100, 1_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= most:
                raise ConfigError(f"robustness: {name} must be a whole number from {low} to {most}")
        if self.mode not in ("full", "verdict"):
            raise ConfigError("robustness: mode must be full or verdict")
        if len(self.threat) > MAX_THREAT:
            raise ConfigError(f"robustness: threat must be text of at most {MAX_THREAT} characters")
        if self.threat and self.mode != "full":
            raise ConfigError("robustness: a threat is judged with mode full; verdict is for attacks on gradients")
        named = self.named_libraries
        if len(set(named)) != len(named) or not set(named) <= set(LIBRARIES):
            raise ConfigError(
                f"robustness: libraries must be none, or some of {', '.join(LIBRARIES)} with commas between"
            )
        if self.pgd_steps * self.pgd_step_size < 2 * self.epsilon:
            raise ConfigError("robustness: pgd_steps times pgd_step_size must be at least twice epsilon")

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """Return the plan that a mapping says, as YAML or KFP hand it over: KFP knows no whole numbers in a mapping.

        Args:
            given: Settings by name; the defaults where left out.

        Raises:
            ConfigError: A name is unknown, or a value is of another type or out of its range.
        """
        known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"robustness: there is no setting {unknown[0]!r}")
        whole = {name: int(value) for name, value in given.items() if type(value) is float and value.is_integer()}
        plan = {name: whole.get(name, value) if known[name] is int else value for name, value in given.items()}
        return cls(**plan)

    @property
    def named_libraries(self) -> tuple[str, ...]:
        """The libraries by name, in the order in which they run."""
        return () if self.libraries == "none" else tuple(self.libraries.split(","))

    @property
    def tabular(self) -> TabularSettings:
        """The plan by which a table is searched."""
        return TabularSettings(self.queries, self.n_min, self.seed)


def _is_of(value: object, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
