"""What to mask, as it is declared, compared with the policy, and judged by the residual gate."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from portcullis.errors import ConfigError
from portcullis.pii.entities import Entity

Action = Literal["token", "drop", "scan"]
Detection = Literal["strict", "recall"]


@dataclass(frozen=True)
class MaskingPlan:
    """What to mask: the identifiers looked for, and what happens to the columns that it names.

    Attributes:
        entities: The identifiers that are looked for, at least one, each once.
        columns: By column: `token` (the whole cell becomes a keyed token), `drop` (the column is removed) or `scan`
            (identifiers inside its text become tokens). A string column that is not named is scanned.
        detection: `strict`: a check digit must hold; `recall`: or a word names the number, close by or in the column's
            name.

    Raises:
        ConfigError: No entity, one twice, an unknown one, an unknown action, or an unknown detection.
    """

    entities: tuple[Entity, ...]
    columns: Mapping[str, Action]
    detection: Detection = "strict"

    def __post_init__(self) -> None:
        try:
            entities = tuple(Entity(entity) for entity in self.entities)
        except ValueError as error:
            raise ConfigError(f"{error}; known are {', '.join(Entity)}") from error
        if not entities or len(set(entities)) != len(entities):
            raise ConfigError("a masking plan must name at least one entity, and each once")
        if self.detection not in get_args(Detection):
            raise ConfigError(f"detection is {self.detection!r}; known are {', '.join(get_args(Detection))}")
        for name, action in self.columns.items():
            if action not in get_args(Action):
                raise ConfigError(f"column {name!r} has action {action!r}; known are {', '.join(get_args(Action))}")
        object.__setattr__(self, "entities", entities)
        object.__setattr__(self, "columns", MappingProxyType(dict(self.columns)))
