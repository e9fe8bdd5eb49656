"""What an identifier, or the cell of a column, becomes: the operators of a masking policy and where each may stand.

| operator | what is left | may stand for |
|---|---|---|
| `token` | `<EMAIL:` 32 letters `>`, the same for the same identifier under one key | both |
| `hash` | `<EMAIL:` 64 letters `>`, likewise, under a key of its own | both |
| `reversible` | `<EMAIL~` letters `>`, which the key turns back into what was written | both |
| `redact` | `<EMAIL>` | both |
| `star` | as many stars as there were characters; `{star: {keep_last: 4}}` leaves the last ones | both |
| `generalise` | a year, an age, a region, a network or the lower end of a bin | both, but not every entity |
| `synthetic` | a made-up one from a reserved range, the same for the same one | both, but not every entity |
| `drop` | nothing: the column is removed | column |
| `scan` | the text, each identifier in it replaced as its entity says | column |
| `keep` | everything, for the reason given: `{keep: reason}` | column |
"""

import difflib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from portcullis.errors import ConfigError
from portcullis.pii.entities import Entity

Name = Literal["token", "hash", "reversible", "redact", "star", "generalise", "synthetic", "drop", "scan", "keep"]
Form = Literal["year", "age", "zip3", "network", "bin"]

MAX_KEPT = 4
# Whole cells that hold no identifier of a known kind.
VALUE = "VALUE"
# What `generalise` makes of an entity.
FORMS: dict[Entity, Form] = {
    Entity.IP_ADDRESS: "network",
    Entity.DATE: "year",
    Entity.AGE: "age",
    Entity.POSTCODE: "zip3",
}
# The entities for which a standard reserves spellings that nobody has, or for which some are plainly made up.
SYNTHETIC = frozenset(
    {
        *(Entity.EMAIL, Entity.PHONE, Entity.US_SSN, Entity.US_ITIN, Entity.CREDIT_CARD, Entity.IBAN),
        *(Entity.IP_ADDRESS, Entity.MAC_ADDRESS, Entity.PERSON_NAME, Entity.STREET_ADDRESS),
    }
)
_COLUMN_ONLY = ("drop", "scan", "keep")
_OF_A_KIND = ("token", "hash", "reversible", "redact", "synthetic")
_MAX_REASON = 256


@dataclass(frozen=True)
class Operator:
    """One operator with its options; `Operator.parse(operator.spelled()) == operator`.

    Attributes:
        name: Which one.
        keep_last: Of `star`: how many characters at the end stay, 0 to 4; none where they were half of it or more.
        form: Of `generalise`: what it makes; empty where the entity says so.
        width: Of the form `bin`: the width of a bin, above 0.
        entity: Of `synthetic` in a column: what is made up. Of `token`, `hash`, `reversible` and `redact` in a column:
            what its cells are, so that a name has one token in every column; else they are VALUE, as they are written.
        reason: Of `keep`: why the column stays.

    Raises:
        ConfigError: An option of another operator, or one that is out of range.
    """

    name: Name
    keep_last: int = 0
    form: Form | Literal[""] = ""
    width: float = 0.0
    entity: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        given = {
            "star": self.keep_last != 0,
            "generalise": bool(self.form) or self.width != 0,
            "keep": bool(self.reason),
        }
        if self.name not in get_args(Name):
            raise ConfigError(f"no operator is called {shown(self.name)}{nearest(self.name, get_args(Name))}")
        if wrong := [name for name, is_given in given.items() if is_given and name != self.name]:
            raise ConfigError(f"operator {self.name} takes no option of {wrong[0]}")
        if self.entity is not None and self.name not in _OF_A_KIND:
            raise ConfigError(f"operator {self.name} takes no entity")
        if type(self.keep_last) is not int or not 0 <= self.keep_last <= MAX_KEPT:
            raise ConfigError(f"star.keep_last is a whole number from 0 to {MAX_KEPT}")
        if self.form and self.form not in get_args(Form):
            raise ConfigError(f"generalise knows no {shown(self.form)}{nearest(self.form, get_args(Form))}")
        if (self.form == "bin") != (self.width != 0) or not 0 <= self.width < 2**53:
            raise ConfigError("generalise.bin is the width of a bin, a number above 0: {generalise: {bin: 10}}")
        if self.name == "synthetic" and self.entity not in (None, *SYNTHETIC):
            raise ConfigError(f"nothing synthetic stands for {self.entity}; known are {_listed(SYNTHETIC)}")
        if (self.name == "keep") != bool(self.reason) or len(self.reason) > _MAX_REASON or not _is_line(self.reason):
            raise ConfigError(f"keep needs its reason, one line of at most {_MAX_REASON} characters: {{keep: reason}}")

    @classmethod
    def parse(cls, value: Any, where: str, entities: Collection[str] = tuple(Entity)) -> "Operator":
        """Read an operator as a masking policy spells it: a name, or a mapping of one name to its option.

        Args:
            value: What the policy says.
            where: What of it, for the message.
            entities: The entities that it may name.

        Raises:
            ConfigError: It is neither, or the operator has no such option.
        """
        try:
            if isinstance(value, str):
                return cls(value)  # type: ignore[arg-type]
            operator = value if isinstance(value, Operator) else cls(**_parsed(value))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if operator.entity not in (None, *entities):
            known = nearest(operator.entity, entities)
            raise ConfigError(f"{where}: no entity is called {shown(operator.entity)}{known}")
        return operator

    def spelled(self) -> Any:
        """Return the one spelling of this operator in a masking policy, plain JSON."""
        match self.name:
            case "star" if self.keep_last:
                return {"star": {"keep_last": self.keep_last}}
            case "generalise" if self.form:
                return {"generalise": {"bin": self.width} if self.form == "bin" else self.form}
            case name if self.entity:
                return {name: str(self.entity)}
            case "keep":
                return {"keep": self.reason}
        return self.name

    def of_entity(self, entity: str) -> "Operator":
        """Return this operator as it stands for an entity.

        Raises:
            ConfigError: It cannot stand for this one.
        """
        if self.name in _COLUMN_ONLY:
            raise ConfigError(f"masking.entities.{entity}: {self.name} is for columns")
        if self.name == "generalise":
            form = FORMS.get(entity)  # type: ignore[call-overload]  # of the user's own there is none
            if form is None or self.form not in ("", form):
                raise ConfigError(
                    f"masking.entities.{entity}: generalise has "
                    + (f"only the form {form} here" if form else f"no form here, but for {_listed(FORMS)}")
                )
            return Operator("generalise", form=form)
        if self.entity not in (None, entity):
            raise ConfigError(f"masking.entities.{entity}: {self.name} of {self.entity} says nothing here")
        if self.name == "synthetic" and entity not in SYNTHETIC:
            raise ConfigError(f"masking.entities.{entity}: nothing synthetic stands for it")
        return replace(self, entity=entity if self.name == "synthetic" else None)

    def of_column(self, column: str) -> "Operator":
        """Return this operator as it stands for a column.

        Raises:
            ConfigError: It lacks an option without which it says nothing of a column.
        """
        if self.name == "generalise" and not self.form:
            raise ConfigError(
                f"masking.columns.{column}: say how to generalise, such as {{generalise: year}}; known are "
                f"{_listed(_FORMS)}"
            )
        if self.name == "synthetic" and self.entity is None:
            raise ConfigError(
                f"masking.columns.{column}: say what to make up, such as {{synthetic: PERSON_NAME}}; known are "
                f"{_listed(SYNTHETIC)}"
            )
        return self


_NAMES: tuple[str, ...] = get_args(Name)
_FORMS: tuple[str, ...] = get_args(Form)


def default_operator(entity: str) -> Operator:
    """Return what an entity becomes where only its name is given: dates, ages and post codes are generalised."""
    if entity in (Entity.DATE, Entity.AGE, Entity.POSTCODE):
        return Operator("generalise", form=FORMS[Entity(entity)])
    return Operator("token")


def nearest(name: object, known: Collection[str]) -> str:
    """Return a hint at the known name that is spelled most like `name`, to put behind a message."""
    matches = difflib.get_close_matches(shown(name), known, n=1, cutoff=0.0)
    return f"; the nearest is {str(matches[0])!r}" if matches else ""


def shown(value: object) -> str:
    """Return a value in one short line, whatever a file holds."""
    try:
        return repr(str(value)[:80])
    except ValueError:  # Python refuses to spell integers of more than 4,300 digits, which YAML's 0x… can hold
        return "a very large number"


def _parsed(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(f"an operator is a name or one name with its option; known are {_listed(_NAMES)}")
    ((name, option),) = value.items()
    return {"name": name, **_options(name, option)}


def _options(name: Any, option: Any) -> dict[str, Any]:
    match name, option:
        case "star", dict():
            if unknown := [key for key in option if key != "keep_last"]:
                raise ConfigError(f"star knows no {shown(unknown[0])}; it knows keep_last")
            return {"keep_last": _whole(option.get("keep_last", 0))}
        case "generalise", {"bin": width, **others} if not others and type(width) in (int, float):
            return {"form": "bin", "width": float(width) if 0 < width < 2**53 else 0.0}
        case "generalise", str():
            return {"form": option}
        case (("synthetic" | "token" | "hash" | "reversible" | "redact"), str()):
            return {"entity": Entity(option) if option in list(Entity) else option}
        case "keep", str():
            return {"reason": option}
    if not isinstance(name, str) or name not in _NAMES:
        raise ConfigError(f"no operator is called {shown(name)}{nearest(name, _NAMES)}")
    raise ConfigError(f"operator {name} has no such option")


def _whole(value: Any) -> Any:
    # KFP hands every number on as a double.
    return int(value) if type(value) is float and value.is_integer() else value


def _is_line(text: str) -> bool:
    return not text or (text.isprintable() and bool(text.strip()))


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(map(str, names)))
