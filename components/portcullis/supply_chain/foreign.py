"""A model that was brought in: what a reader of a foreign format makes of a file, and the parent gets to see of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from portcullis.errors import ModelError
from portcullis.models.store import ModelSpec, Option


@dataclass(frozen=True)
class Rows:
    """What whoever brings a model in says of its rows, for readers of formats that do not scale them or name classes.

    Attributes:
        low: Least raw feature value; becomes 0.
        high: Greatest raw feature value; becomes 1.
        labels: The class names, in the order that the logits are to have; empty where nobody named them.
    """

    low: float = 0
    high: float = 1
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignModel:
    """A model of an installed architecture, without what a file of another format does not say.

    Attributes:
        architecture: Name of the architecture.
        options: Its options.
        shape: Shape of one input row.
        classes: Number of logits.
        weights: The content of `weights.safetensors`.
    """

    architecture: str
    options: Mapping[str, Option]
    shape: tuple[int, ...]
    classes: int
    weights: bytes

    def spec(self, low: float, high: float, labels: Sequence[str]) -> ModelSpec:
        """Return what `model.json` says.

        Args:
            low: Least raw feature value; becomes 0.
            high: Greatest raw feature value; becomes 1.
            labels: The class names, in the order of the logits.

        Raises:
            ModelError: There are more or fewer labels than logits, or a field is not one that a model may have.
        """
        if len(labels) != self.classes:
            raise ModelError(f"the model has {self.classes} logits; {len(labels)} labels were given")
        return ModelSpec(self.architecture, self.options, self.shape, low, high, tuple(labels))
