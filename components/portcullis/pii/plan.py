"""What to mask, as it is declared, compared with the policy, and judged by the residual gate.

A masking policy, in a configuration or a file of its own, is a mapping. All of it may be left out:

    detection: strict
    entities: {EMAIL: token, CREDIT_CARD: {star: {keep_last: 4}}, IP_ADDRESS: generalise}
    columns: {zip: {generalise: zip3}, birth_date: {generalise: year}, note: scan, internal_id: drop}

`entities` may be a list: each becomes what `portcullis.pii.operators.default_operator` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from portcullis.dataset import DatasetSpec
from portcullis.errors import ConfigError
from portcullis.pii.entities import IN_TEXT, Entity
from portcullis.pii.operators import Operator, default_operator, nearest, shown

Detection = Literal["strict", "recall"]


@dataclass(frozen=True)
class MaskingPlan:
    """What to mask: the identifiers looked for, and what becomes of them and of the columns that it names.

    `MaskingPlan.parse(plan.to_dict()) == plan` for every plan.

    Attributes:
        entities: Each identifier that is looked for, at least one, and what becomes of it; built from a collection of
            names too, each then becoming its default. Those that no form tells apart in a text (names, dates, ages, …)
            are looked for in whole columns only.
        columns: What becomes of each cell of these columns. A string column that is not named is scanned.
        detection: `strict`: a check digit must hold; `recall`: or a word names the number, close by or in the column's
            name.

    Raises:
        ConfigError: No entity, one twice, an unknown one, an operator that cannot stand for it, or an unknown
            detection.
    """

    entities: Mapping[Entity, Operator]
    columns: Mapping[str, Operator]
    detection: Detection = "strict"

    def __post_init__(self) -> None:
        if self.detection not in get_args(Detection):
            raise ConfigError(f"masking.detection is {' or '.join(get_args(Detection))}")
        object.__setattr__(self, "entities", MappingProxyType(_entities(self.entities)))
        columns = {name: _column(name, operator) for name, operator in self.columns.items()}
        object.__setattr__(self, "columns", MappingProxyType(columns))

    @classmethod
    def parse(cls, document: Any) -> "MaskingPlan":
        """Read a masking policy.

        Raises:
            ConfigError: A key or an entity is unknown, or as the plan itself.
        """
        if not isinstance(document, dict):
            raise ConfigError("masking is not a mapping")
        known = ("detection", "entities", "columns")
        for key in document:
            if key not in known:
                raise ConfigError(f"masking knows no {shown(key)}{nearest(key, known)}")
        entities, columns = document.get("entities", list(IN_TEXT)), document.get("columns", {})
        if not isinstance(entities, dict | list):
            raise ConfigError("masking.entities is a list of entities, or maps each to an operator")
        if not isinstance(columns, dict):
            raise ConfigError("masking.columns maps columns to operators")
        detection = document.get("detection", "strict")
        if not isinstance(detection, str):
            raise ConfigError(f"masking.detection is {' or '.join(get_args(Detection))}")
        return cls(entities, columns, detection)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return the one spelling of this policy, plain JSON with every default written out."""
        return {
            "detection": self.detection,
            "entities": {entity.value: operator.spelled() for entity, operator in self.entities.items()},
            "columns": {name: operator.spelled() for name, operator in sorted(self.columns.items())},
        }

    def covering(self, sensitive: Mapping[str, str]) -> "MaskingPlan":
        """Return the plan with the treatments that a data set declares of its sensitive columns.

        The plan may say more exactly what becomes of a column that is declared `token`; it takes nothing back.

        Args:
            sensitive: Column to treatment: `token`, `drop` or `scan`.

        Raises:
            ConfigError: The plan contradicts one.
        """
        for name, treatment in sensitive.items():
            operator = self.columns.get(name)
            whole = operator is None or operator.name not in ("drop", "scan", "keep")
            if operator is not None and operator.name != treatment and not (treatment == "token" and whole):
                raise ConfigError(
                    f"masking.columns.{name} is {operator.name}, but dataset.sensitive.{name} says {treatment}"
                )
        return replace(self, columns={**sensitive, **self.columns})  # type: ignore[dict-item]


def masking_plan(spec: DatasetSpec, masking: Mapping[str, Any]) -> MaskingPlan:
    """Return the plan that a masking policy is for a data set.

    Raises:
        ConfigError: The policy is malformed; it leaves out what the data set declares of a sensitive column, or
            contradicts it; or it alters the label or a feature otherwise than by `keep`, `scan` or `generalise`.
    """
    plan = MaskingPlan.parse(dict(masking))
    if missing := sorted(set(spec.sensitive) - set(plan.columns)):
        raise ConfigError(f"masking.columns leaves out sensitive columns: {', '.join(map(repr, missing))}")
    plan.covering(spec.sensitive)
    for name in (spec.label.column, *spec.features.columns):
        operator = plan.columns.get(name)
        if operator is not None and operator.name not in ("keep", "scan", "generalise"):
            raise ConfigError(f"masking.columns.{name}: {operator.name} of a column that the model learns from")
    return plan


def _entities(given: Any) -> dict[Entity, Operator]:
    names = list(given)
    for name in names:
        if name not in list(Entity):
            raise ConfigError(f"no entity is called {shown(name)}{nearest(name, list(Entity))}")
    if not names or len(set(names)) != len(names):
        raise ConfigError("masking.entities names at least one entity, and none twice")
    if not isinstance(given, Mapping):
        given = {name: default_operator(Entity(name)) for name in names}
    where = {Entity(name): Operator.parse(given[name], f"masking.entities.{name}") for name in names}
    return {entity: where[entity].of_entity(entity) for entity in Entity if entity in where}


def _column(name: Any, operator: Any) -> Operator:
    if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
        raise ConfigError("masking.columns: the name of a column is 1 to 256 printable characters")
    return Operator.parse(operator, f"masking.columns.{name}").of_column(name)
