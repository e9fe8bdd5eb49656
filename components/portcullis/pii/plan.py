r"""What to mask, as it is declared, compared with the policy, and judged by the residual gate.

A masking policy, in a configuration or a file of its own, is a mapping. All of it may be left out:

    detection: strict
    entities: {EMAIL: token, CREDIT_CARD: {star: {keep_last: 4}}, IP_ADDRESS: generalise}
    columns: {zip: {generalise: zip3}, birth_date: {generalise: year}, note: scan, internal_id: drop}
    rules: {EMPLOYEE_ID: {pattern: 'E\d{6}', context: [employee, staff]}}
    detectors: {presidio: {version: 2.2.366, entities: {PERSON: PERSON_NAME}}}

`entities` may be a list: each becomes what `portcullis.pii.operators.default_operator` says. So does each entity of
the user's own, or that a detector is asked for, that it does not name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, get_args

from portcullis.dataset import DatasetSpec
from portcullis.errors import ConfigError
from portcullis.pii.detectors import DetectorChoice, parsed_detectors
from portcullis.pii.entities import IN_TEXT, Entity
from portcullis.pii.operators import VALUE, Operator, default_operator, nearest, shown
from portcullis.pii.rules import Rule, checked_name, parsed_rules
from portcullis.pii.tokens import KINDS

Detection = Literal["strict", "recall"]

# A rank is one byte.
MOST_KINDS = 256


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
        rules: Entities of the user's own and what finds them; each becomes a token where `entities` does not say.
        detectors: Detectors that others wrote, by the names of their entry points; their entities likewise.

    Raises:
        ConfigError: No entity, one twice, an unknown one, an operator that cannot stand for it, or an unknown
            detection.
    """

    entities: Mapping[str, Operator]
    columns: Mapping[str, Operator]
    detection: Detection = "strict"
    rules: Mapping[str, Rule] = field(default_factory=dict)
    detectors: Mapping[str, DetectorChoice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.detection not in get_args(Detection):
            raise ConfigError(f"masking.detection is {' or '.join(get_args(Detection))}")
        object.__setattr__(self, "rules", MappingProxyType(parsed_rules(self.rules)))
        object.__setattr__(self, "detectors", MappingProxyType(parsed_detectors(self.detectors)))
        object.__setattr__(self, "entities", MappingProxyType(_entities(self.entities, self.own, self._detected)))
        if len(self.kinds) > MOST_KINDS:
            raise ConfigError(
                f"masking has at most {MOST_KINDS - len(KINDS)} entities of your own, by rules and detectors"
            )
        known = tuple(kind for kind in self.kinds if kind != VALUE)
        columns = {name: _column(name, operator, known) for name, operator in self.columns.items()}
        object.__setattr__(self, "columns", MappingProxyType(columns))

    @property
    def own(self) -> tuple[str, ...]:
        """The entities of the user's own, by a rule or a detector."""
        detected = [checked_name(entity) for entity in self._detected if entity not in (*Entity, *self.rules)]
        return (*self.rules, *detected)

    @property
    def _detected(self) -> tuple[str, ...]:
        """The entities that detectors are asked for."""
        return tuple(sorted({entity for it in self.detectors.values() for entity in it.entities.values()}))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """All entities that the plan knows, and VALUE; the place of one is its rank in findings."""
        return (*KINDS, *self.own)

    @classmethod
    def parse(cls, document: Any) -> "MaskingPlan":
        """Read a masking policy.

        Raises:
            ConfigError: A key or an entity is unknown, or as the plan itself.
        """
        if not isinstance(document, dict):
            raise ConfigError("masking is not a mapping")
        known = ("detection", "entities", "columns", "rules", "detectors")
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
        rules, detectors = document.get("rules", {}), document.get("detectors", {})
        return cls(entities, columns, detection, rules, detectors)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Return the one spelling of this policy, plain JSON with every default written out.

        Rules and detectors are there where there are any.
        """
        own: dict[str, Mapping[str, Any]] = {"rules": self.rules, "detectors": self.detectors}
        return {
            "detection": self.detection,
            "entities": {str(entity): operator.spelled() for entity, operator in self.entities.items()},
            "columns": {name: operator.spelled() for name, operator in sorted(self.columns.items())},
            **{kind: {name: it.spelled() for name, it in given.items()} for kind, given in own.items() if given},
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


def _entities(given: Any, own: tuple[str, ...], detected: tuple[str, ...]) -> dict[str, Operator]:
    names, known = list(given), (*Entity, *own)
    for name in names:
        if name not in known:
            raise ConfigError(f"no entity is called {shown(name)}{nearest(name, known)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError("masking.entities names at least one entity, and none twice")
    if not isinstance(given, Mapping):
        given = {name: default_operator(name) for name in names}
    given = {name: default_operator(name) for name in (*own, *detected)} | dict(given)
    where = {name: Operator.parse(given[name], f"masking.entities.{name}", known) for name in given}
    return {entity: where[entity].of_entity(entity) for entity in known if entity in where}


def _column(name: Any, operator: Any, known: tuple[str, ...]) -> Operator:
    if not isinstance(name, str) or not 1 <= len(name) <= 256 or not name.isprintable():
        raise ConfigError("masking.columns: the name of a column is 1 to 256 printable characters")
    return Operator.parse(operator, f"masking.columns.{name}", known).of_column(name)
