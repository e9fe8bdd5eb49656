"""What each column of a table holds, judged by its name and the first of its values together.

One cell is weak evidence: `Jordan` is a person, a river and a country; `94105` a ZIP code and an order. A column is
strong: hundreds of cells of one form, under a name that says what they are, beside a column that fits. So the kinds in
`BY_COLUMN` are judged here, and the others too: in a column that holds e-mail addresses, a cell that is none is one
misspelt, and may be handled as a whole.

Only the head of a table is looked at, so that a profile does not depend on how a stream is cut. A profile has shares
and counts; it never has a value.
"""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii import forms
from portcullis.pii.columns import Kind, kind, text_of
from portcullis.pii.entities import IN_TEXT, PRIORITY, Entity
from portcullis.pii.person_names import GIVEN, known_as, possible_names, shaped_as_name, single
from portcullis.pii.scan import ENTITIES, named_identifier, scan_values
from portcullis.table import HEAD_ROWS

MOST_VALUES = 1_000
# Of a longer text, what is searched for possible names.
_LONGEST_TEXT = 4_096

# What share of a column's distinct values must be of a form: by itself, and where the column's name says the same.
_BY_FORM, _NAMED = 0.9, 0.5
# Names and addresses have no exact form, and a gazetteer knows but some. Of labelled text, columns of first names and
# of full names have 0.98 and more known given names; months, colours and towns named after people 0.6 at most.
_ADDRESS_BY_FORM = 0.5
_SHAPED, _GIVEN, _HINTED, _SURNAMES = 0.8, 0.7, 0.4, 0.5
# Without a name that says so, fewer distinct values may be anything.
_FEW = 8
_NOTHING = pa.array(["", "-", "--", "?", "n/a", "na", "nan", "none", "null", "nil", "unknown", "not available", "tbd"])


class Evidence(StrEnum):
    """What speaks for a column's entity.

    `FORM`: its values have the entity's form. `NAME`: its name says so, and enough values agree. `GAZETTEER`: enough
    values are known names. `NEIGHBOUR`: another column makes them plain (a state beside five digits, given names beside
    surnames). `TYPE`: the column's type (dates).
    """

    FORM = "form"
    NAME = "name"
    GAZETTEER = "gazetteer"
    NEIGHBOUR = "neighbour"
    TYPE = "type"
    NONE = "none"


@dataclass(frozen=True)
class ColumnProfile:
    """What a column holds.

    Attributes:
        entity: What it holds, None where nothing speaks clearly for one.
        share: The share of the distinct values looked at that are `entity` by their own form or by the gazetteer, 0-1.
        named: Whether the column's name says `entity`.
        evidence: What decided.
        values: How many distinct values were looked at.
        possible_names: In how many of them, if `entity` is None, a person may be named in passing. An indication only.
    """

    entity: Entity | None
    share: float
    named: bool
    evidence: Evidence
    values: int
    possible_names: int = 0


@dataclass(frozen=True)
class _Column:
    """A column as it is looked at: the words of its name, and its distinct trimmed values, a large_string array."""

    name: str
    words: str
    kind: Kind
    type: Any
    values: Any

    def share(self, pattern: str) -> float:
        hits = pc.match_substring_regex(self.values, pattern)
        return float(np.mean(hits.to_numpy(zero_copy_only=False))) if len(self.values) else 0.0


def profile(head: Any, entities: Collection[Entity] = ENTITIES) -> dict[str, ColumnProfile]:
    """Tell what each column holds.

    Args:
        head: The first rows of a pyarrow Table of at least one row; rows after the first 8,192 are not looked at, nor
            distinct values after the first 1,000 of a column.
        entities: What to look for.

    Returns:
        A profile for each column, in order.

    Raises:
        DataError: A column has a type that cannot be looked at.
    """
    head = head.slice(0, HEAD_ROWS)
    columns = [_column(name, head.column(name)) for name in head.column_names]
    profiles = {column.name: _judged(column, columns, entities) for column in columns}
    if Entity.PERSON_NAME in entities:
        profiles |= dict(_surnames_beside_given_names(columns, profiles))
    return profiles


def _column(name: str, values: Any) -> _Column:
    kind_ = kind(name, values.type)
    distinct = pa.array([], pa.large_string())
    if kind_ is not Kind.OTHER:
        distinct = pc.unique(text_of(values).drop_null()).slice(0, MOST_VALUES)
        distinct = pc.utf8_trim_whitespace(distinct)
        distinct = distinct.filter(pc.invert(pc.is_in(pc.utf8_lower(distinct), _NOTHING.cast(distinct.type))))
    return _Column(name, _words(name), kind_, values.type, distinct)


def _words(name: str) -> str:
    """Return the words of a column's name, small, without accents, a blank apart: of `patientDOB2`, `patient dob 2`."""
    plain = unicodedata.normalize("NFKD", _CAMEL_CASE.sub(" ", name[:256]))
    plain = "".join(mark for mark in plain if not unicodedata.combining(mark)).casefold()
    return " ".join(_NAME_WORD.findall(plain))


_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NAME_WORD = re.compile(r"[^\W\d_]+|\d+")


def _judged(column: _Column, columns: Collection[_Column], entities: Collection[Entity]) -> ColumnProfile:
    found = [it for it in _candidates(column, columns) if it.entity in entities]
    if found:
        return min(found, key=lambda it: (it.evidence is Evidence.NAME, -it.share, PRIORITY[str(it.entity)]))
    texts = column.values.to_pylist() if column.kind is Kind.TEXT else []
    possible = sum(any(possible_names(text[:_LONGEST_TEXT])) for text in texts)
    return ColumnProfile(
        None, 0.0, named=False, evidence=Evidence.NONE, values=len(column.values), possible_names=possible
    )


def _candidates(column: _Column, columns: Collection[_Column]) -> Iterator[ColumnProfile]:
    """Yield a profile for each entity that enough speaks for."""
    if column.kind is Kind.OTHER:
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            named = _names(Entity.DATE, column)
            yield ColumnProfile(Entity.DATE, 1.0, named=named, evidence=Evidence.TYPE, values=0)
        return
    if not len(column.values):
        return
    yield from _scanned(column)
    yield from _date(column)
    yield from _age(column)
    yield from _postcode(column, columns)
    if column.kind is Kind.TEXT:
        yield from _street_address(column)
        yield from _person_name(column)


def _profile(column: _Column, entity: Entity, share: float, evidence: Evidence, *, named: bool) -> ColumnProfile:
    return ColumnProfile(entity, share, named=named, evidence=evidence, values=len(column.values))


def _by_form(
    column: _Column, entity: Entity, share: float, *, named: bool, least: float = _BY_FORM
) -> Iterator[ColumnProfile]:
    if share >= least:
        yield _profile(column, entity, share, Evidence.FORM, named=named)
    elif named and share >= _NAMED:
        yield _profile(column, entity, share, Evidence.NAME, named=named)


def _scanned(column: _Column) -> Iterator[ColumnProfile]:
    """Judge by the identifiers that a scan finds: those that are all of a cell."""
    findings = scan_values(column.values, IN_TEXT, column=column.name)
    lengths = pc.binary_length(column.values).to_numpy()
    whole = (findings.starts == 0) & (findings.ends == lengths[findings.values])
    counts = np.bincount(findings.ranks[whole], minlength=len(ENTITIES))
    for rank in np.flatnonzero(counts).tolist():
        entity = ENTITIES[rank]
        named = named_identifier(column.name, [entity]) or _names(entity, column)
        yield from _by_form(column, entity, float(counts[rank]) / len(column.values), named=named)


def _date(column: _Column) -> Iterator[ColumnProfile]:
    named = _names(Entity.DATE, column)
    if column.kind is Kind.TEXT:
        share = column.share(forms.DATE)
    elif named:
        share = column.share(forms.COMPACT_DATE)
    else:
        return
    yield from _by_form(column, Entity.DATE, share, named=named)


def _age(column: _Column) -> Iterator[ColumnProfile]:
    share = column.share(forms.AGE)
    if _names(Entity.AGE, column) and share >= _BY_FORM:
        yield _profile(column, Entity.AGE, share, Evidence.NAME, named=True)


def _postcode(column: _Column, columns: Collection[_Column]) -> Iterator[ColumnProfile]:
    named = _names(Entity.POSTCODE, column)
    share = column.share(forms.POSTCODE)
    if share >= _BY_FORM and len(column.values) >= _FEW:
        yield _profile(column, Entity.POSTCODE, share, Evidence.FORM, named=named)
    elif named and (named_share := column.share(forms.ANY_POSTCODE)) >= _NAMED:
        yield _profile(column, Entity.POSTCODE, named_share, Evidence.NAME, named=True)
    elif column.kind is Kind.TEXT and len(column.values) >= _FEW and any(map(_holds_states, columns)):
        share = column.share(forms.ZIP)
        if share >= _BY_FORM:
            yield _profile(column, Entity.POSTCODE, share, Evidence.NEIGHBOUR, named=False)


def _holds_states(column: _Column) -> bool:
    return column.kind is Kind.TEXT and column.share(forms.STATE) >= _BY_FORM


def _street_address(column: _Column) -> Iterator[ColumnProfile]:
    short = pc.less_equal(pc.utf8_length(column.values), forms.LONGEST_ADDRESS)
    cells = replace(column, values=column.values.filter(short))
    part = len(cells.values) / len(column.values)
    named = _names(Entity.STREET_ADDRESS, column)
    share = part * cells.share(forms.STREET_ADDRESS)
    if share >= _ADDRESS_BY_FORM and len(column.values) >= _FEW:
        yield _profile(column, Entity.STREET_ADDRESS, share, Evidence.FORM, named=named)
    elif named and part * cells.share(forms.ANY_STREET_ADDRESS) >= _NAMED:
        yield _profile(column, Entity.STREET_ADDRESS, share, Evidence.NAME, named=True)


def _person_name(column: _Column) -> Iterator[ColumnProfile]:
    hint = _person_hint(column.words)
    names = _names_in(column)
    if hint is _Hint.SURE and names.shaped >= _NAMED:
        yield _profile(column, Entity.PERSON_NAME, names.known, Evidence.NAME, named=True)
    elif names.shaped < _SHAPED or len(column.values) < _FEW:
        return
    elif names.given >= _GIVEN or (hint is _Hint.LIKELY and names.known >= _HINTED):
        named = hint is _Hint.LIKELY
        yield _profile(column, Entity.PERSON_NAME, names.known, Evidence.GAZETTEER, named=named)


@dataclass(frozen=True)
class _Names:
    """Shares of a column's distinct values: shaped as names, with a known given name, with any known name, one word."""

    shaped: float
    given: float
    known: float
    single: float


def _names_in(column: _Column) -> _Names:
    shaped = [text for text in column.values.to_pylist() if shaped_as_name(text)]
    kinds = [known_as(text) for text in shaped]
    counts = (
        len(shaped),
        sum(kind & GIVEN for kind in kinds),
        sum(kind > 0 for kind in kinds),
        sum(map(single, shaped)),
    )
    return _Names(*(count / max(len(column.values), 1) for count in counts))


def _surnames_beside_given_names(
    columns: Sequence[_Column], profiles: Mapping[str, ColumnProfile]
) -> Iterator[tuple[str, ColumnProfile]]:
    """Yield columns of surnames, which are words like others, next to a column of given names."""
    for one, other in [*itertools.pairwise(columns), *itertools.pairwise(columns[::-1])]:
        if profiles[one.name].entity is not Entity.PERSON_NAME or profiles[other.name].entity is not None:
            continue
        if other.kind is not Kind.TEXT or len(other.values) < _FEW or _person_hint(other.words) is _Hint.AGAINST:
            continue
        names = _names_in(other)
        if _names_in(one).single >= _SHAPED <= names.single and names.known >= _SURNAMES:
            yield other.name, _profile(other, Entity.PERSON_NAME, names.known, Evidence.NEIGHBOUR, named=False)


# --- what a column's name says --------------------------------------------------------------------------------------


class _Hint(Enum):
    SURE = "names of persons"
    LIKELY = "perhaps names of persons"
    NONE = "nothing"
    AGAINST = "names of something else"


_PERSON = (
    "person|persons|people|customer|client|patient|employee|worker|staff|member|student|pupil|teacher|guest|visitor"
    "|applicant|candidate|subscriber|account holder|cardholder|card holder|holder|owner|contact|recipient|sender"
    "|beneficiary|claimant|insured|policyholder|tenant|resident|donor|buyer|seller|author|reviewer|doctor|physician"
    "|nurse|provider|surgeon|manager|supervisor|agent|officer|driver|passenger|parent|mother|father|spouse|husband|wife"
    "|child|guardian|relative|emergency contact|next of kin|kunde|kundin|patientin|mitarbeiter|mitarbeiterin|inhaber"
    "|paciente|cliente|empleado|titular|paziente|dipendente|intestatario|salarie|titulaire|medewerker|klant|pacjent"
)
_PERSON_SURE = re.compile(
    r"\b(?:(?:first|last|full|given|family|middle|maiden|fore|christian|legal|preferred|second|sur|birth)"
    r" ?names?|surnames?|forenames?|nicknames?|[fl]names?|(?:vor|nach|familien|geburts)namen?|prenoms?|nom de famille"
    r"|nom complet|nombres|nombre completo|(?:primer |segundo )?apellidos?|nome completo|cognome|sobrenome|apelido"
    r"|voornaam|achternaam|imie|nazwisko|(?:for|etter|efter)navn|(?:for|efter)namn|etunimi|sukunimi|keresztnev"
    r"|vezeteknev|prenume|prezime|имя|фамилия|отчество|ονομα|επωνυμο"
    rf"|(?:{_PERSON}) (?:full )?names?)\b"
)
_PERSON_LIKELY = re.compile(rf"\b(?:names?|nom|nombre|nome|naam|navn|namn|nimi|nev|imie|nume|{_PERSON})\b")
_OTHER_NAMES = re.compile(
    r"\b(?:product|company|business|organi[sz]ation|org|firm|employer|brand|item|article|file|path|folder|host|server"
    r"|domain|site|website|event|city|town|village|county|state|province|region|country|place|location|street|road"
    r"|school|university|hospital|clinic|bank|store|shop|hotel|restaurant|department|dept|team|group|project|task|job"
    r"|role|title|class|category|type|kind|status|model|species|breed|drug|medication|disease|gene|course|subject|book"
    r"|movie|song|album|genre|language|currency|color|colour|month|day|table|column|field|variable|feature|label|tag"
    r"|id|code|number|count|amount|email|mail|phone|url|ciudad|ville|stadt|ort|citta|cidade|firma|empresa|societe|azienda"
    r"|azienda|produit|produkt|producto|prodotto|pais|pays|land|paese)\b"
)


def _person_hint(words: str) -> _Hint:
    if _PERSON_SURE.search(words):
        return _Hint.SURE
    if _OTHER_NAMES.search(words):
        return _Hint.AGAINST
    return _Hint.LIKELY if _PERSON_LIKELY.search(words) else _Hint.NONE


_SAYS = {
    Entity.EMAIL: r"e ?mails?|mail|correo|courriel",
    Entity.IBAN: "iban",
    Entity.CREDIT_CARD: r"(?:credit|debit|payment)? ?card(?: (?:no|nr|num|number))?|cc|pan",
    Entity.IP_ADDRESS: r"ips?|ip ?addr(?:ess)?|(?:remote|client|source|src|dst|destination) ?(?:ip|addr(?:ess)?)",
    Entity.MAC_ADDRESS: r"mac|mac ?addr(?:ess)?",
    Entity.STREET_ADDRESS: (
        r"(?:street|home|mailing|postal|billing|shipping|residential|delivery)? ?addr(?:ess)?(?: line)?(?: \d)?|street"
        r"|stra(?:ss|ß)e|adresse?|anschrift|wohnort|direccion|domicilio|calle|indirizzo|endereco|morada|adres|rue|ulica"
        r"|utca|cim|адрес|улица"
    ),
    Entity.DATE: (
        r"date|dates|dob|birth(?:day|date)?|born|died|death|datum|geburtsdatum|geburtstag|geboren|fecha|nacimiento"
        r"|naissance|nascita|nascimento|geboortedatum|data|admi(?:tted|ssion)|discharged?|timestamp"
        r"|(?:created|updated|modified|visited|signed) (?:at|on)"
    ),
    Entity.AGE: r"ages?|alter|edad|eta|leeftijd|idade|wiek|alder|kor",
    Entity.POSTCODE: (
        r"zip(?: ?code)?|zip ?[45]|post ?(?:al)? ?codes?|postcode|plz|postleitzahl|cp|code postal|codigo postal|cap|cep"
        r"|psc|pin ?code|postnummer|irsz|iranyitoszam|kod pocztowy"
    ),
}
_SAYS_PATTERNS = {entity: re.compile(rf"\b(?:{words})\b") for entity, words in _SAYS.items()}
# An address that is none of a street.
_OTHER_ADDRESS = re.compile(r"\b(?:e ?mail|mail|ip|mac|web|url|wallet|memory|bitcoin|hex|id|type)\b")


def _names(entity: Entity, column: _Column) -> bool:
    """Tell whether the column's name says that it holds the entity."""
    if entity is Entity.STREET_ADDRESS and _OTHER_ADDRESS.search(column.words):
        return False
    pattern = _SAYS_PATTERNS.get(entity)
    return pattern is not None and pattern.search(column.words) is not None
