"""How a data set is screened: plain values, so that a policy can demand them and a pipeline can pass them on."""

from dataclasses import dataclass

from portcullis.errors import ConfigError

MAX_SEED = 2**53 - 1


@dataclass(frozen=True)
class QualitySettings:
    """The plan of `portcullis.quality.screen.screen`; the defaults suit 8x8 images of digits.

    Attributes:
        n_min: Fewest rows of each class that are judged; with fewer the gate is inconclusive.
        outlier_distance: How far from its class's median a row is an outlier, in standard deviations as the median
            absolute deviation estimates them.
        neighbours: How many nearest rows vote on a row's label; fewer than n_min.
        crowding: Within what share of the usual distance that many others crowd around a row, above 0 and below 1.
        suspected: Share of each class, those rows with the largest spectral scores, that is put to the vote of the
            others, above 0 and at most 0.5; Tran et al. take 1.5 times the most poison that they expect.
        epochs: Passes of the reference network over the rows.
        seed: Of the reference network's weights and order of rows.

    Raises:
        ConfigError: A value is out of its range, or as many neighbours vote as a class may have rows.
    """

    n_min: int = 30
    outlier_distance: float = 6.0
    neighbours: int = 10
    crowding: float = 0.5
    suspected: float = 0.2
    epochs: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_min", 4, 1 << 30),
            ("neighbours", 1, 1_000),
            ("epochs", 1, 10_000),
            ("seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"screening: {name} must be a whole number from {low} to {high}")
        if not 0 < self.outlier_distance < 1e6:
            raise ConfigError("screening: outlier_distance must be above 0 and below 1e6")
        if not 0 < self.crowding < 1:
            raise ConfigError("screening: crowding must be above 0 and below 1")
        if not 0 < self.suspected <= 0.5:
            raise ConfigError("screening: suspected must be above 0 and at most 0.5")
        if not self.neighbours < self.n_min:
            raise ConfigError("screening: neighbours must be fewer than n_min")
