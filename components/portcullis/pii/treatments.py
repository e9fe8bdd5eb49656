"""What becomes of each column, from the plan, the column's type and what its head holds."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.pii.columns import Kind, kind, long_numbers, text_of
from portcullis.pii.entities import BY_COLUMN, Entity, valid_card
from portcullis.pii.operators import Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.profile import profile
from portcullis.pii.rules import named_by
from portcullis.pii.scan import named_identifier

_KEEP, _SCAN = "keep", Operator("scan")


@dataclass(frozen=True)
class Treatment:
    """What becomes of a column.

    Attributes:
        operator: None: it stays, but for numbers that are looked at for identifiers.
        entity: What its cells hold by its profile.
    """

    operator: Operator | None
    entity: Entity | None = None

    @property
    def action(self) -> Any:
        """What the report says of it."""
        return self.operator.spelled() if self.operator else _KEEP


def held_by_column(head: Any, plan: MaskingPlan) -> dict[str, Entity]:
    """Return what entity each column that the plan does not name holds as a whole, of those that no text shows."""
    if not BY_COLUMN.intersection(plan.entities):
        return {}
    dropped = [name for name, operator in plan.columns.items() if operator.name == "drop"]
    profiles = profile(head.drop_columns(dropped), [Entity(it) for it in plan.entities if it not in plan.own])
    held = {name: it.entity for name, it in profiles.items() if name not in plan.columns}
    return {name: entity for name, entity in held.items() if entity in BY_COLUMN}


def treatment_of(name: str, type_: Any, plan: MaskingPlan, held: Entity | None) -> Treatment:
    """Return what becomes of a column of this name and type, which holds this entity by its profile.

    Raises:
        DataError: Its type cannot be scanned, or the plan's operator cannot work on it.
    """
    operator = plan.columns.get(name)
    if operator is not None and operator.name == "drop":
        return Treatment(operator)
    kind_ = kind(name, type_)
    if operator is None and held is not None:
        operator = plan.entities[held]
    if operator is None:
        return Treatment(_SCAN if kind_ is Kind.TEXT else None)
    if operator.name == "scan" and kind_ is not Kind.TEXT:
        raise DataError(f"column {name!r} has type {type_}; only text can be scanned: token or drop it")
    if operator.form in ("zip3", "network") and kind_ is not Kind.TEXT:
        raise DataError(
            f"column {name!r} has type {type_}, in which leading zeros are lost; list it in dataset.sensitive, so that "
            "it is read as text"
        )
    return Treatment(operator, held)


def masked_type(name: str, treatment: Treatment, type_: Any) -> Any:
    """Return the type of a masked column: its own where it stays text or numbers, else string; None if it is gone."""
    operator = treatment.operator
    if operator is None or operator.name in ("keep", "scan"):
        return type_
    if operator.name == "drop":
        return None
    kind_ = kind(name, type_)
    stays = kind_ is Kind.TEXT or (operator.name == "generalise" and kind_ is Kind.NUMBER)
    return type_ if stays else pa.string()


def check_numbers(name: str, values: Any, plan: MaskingPlan) -> None:
    """Check a column of numbers that the plan does not name.

    Raises:
        DataError: It holds identifiers, or its name says so.
    """
    numbers = long_numbers(values)
    if Entity.CREDIT_CARD in plan.entities and any(map(valid_card, numbers)):
        raise DataError(f"column {name!r} holds numbers that are valid card numbers; declare it token or drop")
    if named := [rule for rule in plan.rules.values() if named_by(rule, name)]:
        texts = pc.unique(text_of(values)).drop_null()
        if any(pc.any(pc.match_substring_regex(texts, rule.pattern)).as_py() for rule in named):
            raise DataError(f"column {name!r} holds numbers that a rule of the plan finds; declare it token or drop")
    if numbers and named_identifier(name, plan.entities):
        raise DataError(f"column {name!r} holds numbers that its name calls identifiers; declare it token or drop")
