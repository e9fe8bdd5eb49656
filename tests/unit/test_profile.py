"""What a column holds, by its name and its values: entities by form, and those that only a whole column shows."""

import datetime as dt
import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portcullis.errors import DataError
from portcullis.pii.entities import Entity
from portcullis.pii.person_names import gazetteer, known_as, possible_names, shaped_as_name
from portcullis.pii.profile import HEAD_ROWS, ColumnProfile, Evidence, profile

GIVEN = ["Anna", "Bob", "Carla", "Dmitri", "Elena", "François", "Greta", "Hans", "Ingrid", "José", "Kenji", "Łukasz"]
SURNAMES = [
    "Smith",
    "Garcia",
    "Novak",
    "Müller",
    "Jensen",
    "Rossi",
    "Dubois",
    "Kowalski",
    "Nguyen",
    "Silva",
    "Kim",
    "Øst",
]
FULL = [f"{one} {two}" for one, two in zip(GIVEN, SURNAMES, strict=True)]
CITIES = [
    "Paris",
    "London",
    "Houston",
    "Boston",
    "Warsaw",
    "Oslo",
    "Lyon",
    "Austin",
    "Berlin",
    "Rome",
    "Denver",
    "Graz",
]
PRODUCTS = ["Ford Focus", "Honda Civic", "Calvin Klein", "Olive Oil", "Earl Grey", "Kit Kat", "Nike Air", "Blue Cheese"]
LABELS = ["active", "closed", "pending", "open", "shipped", "returned", "gold", "silver", "basic", "premium"]
MONTHS = [dt.date(2000, month, 1).strftime("%B") for month in range(1, 13)]
STREETS = [
    *("12 Main Street", "4 Elm St., Apt. 5", "Hauptstraße 7", "22 rue Victor Hugo", "Calle Mayor 3", "Via Roma 11"),
    *("ul. Marszałkowska 10", "Lozerlaan 172", "PO Box 255", "Floridusgasse 89", "88 Oak Avenue", "26 Kossuth u."),
]
FORMS = {
    Entity.EMAIL: ["ann@example.com", "bob@example.org", "c.d@example.net"],
    Entity.PHONE: ["(212) 555-0100", "+44 20 7946 0018", "212-555-0177"],
    Entity.US_SSN: ["123-45-6789", "321-54-9876"],
    Entity.CREDIT_CARD: ["4111 1111 1111 1111", "5555555555554444"],
    Entity.DATE: [
        "2024-02-29",
        "3/31/1982",
        "31.03.1982",
        "31 March 1982",
        "Mar 3, 1990",
        "2014-02-13 09:33:20",
        "5 mai 99",
    ],
}


def one(name: str, values: list[object], **others: list[object]) -> ColumnProfile:
    return profile(pa.table({name: values, **others}))[name]


@pytest.mark.parametrize("entity", FORMS)
def test_values_of_one_form_need_no_name(entity: Entity) -> None:
    found = one("c1", FORMS[entity])
    assert (found.entity, found.share, found.named, found.evidence) == (entity, 1.0, False, Evidence.FORM)


@pytest.mark.parametrize(
    "values", [GIVEN, FULL, [f"{b}, {a}" for a, b in zip(GIVEN, SURNAMES, strict=True)], [n.upper() for n in FULL]]
)
def test_known_names_need_no_column_name(values: list[object]) -> None:
    found = one("c1", values)
    assert (found.entity, found.evidence) == (Entity.PERSON_NAME, Evidence.GAZETTEER)


@pytest.mark.parametrize(
    "values", [CITIES, PRODUCTS, LABELS, MONTHS, SURNAMES, ["The parcel came late. Call back."] * 9]
)
def test_other_words_are_no_names(values: list[object]) -> None:
    assert one("c1", values).entity is None


@pytest.mark.parametrize(
    "name", ["last_name", "LastName", "surname", "Nachname", "apellidos", "Prénom", "customer name"]
)
def test_a_column_called_so_holds_names_that_no_gazetteer_knows(name: str) -> None:
    found = one(name, ["Qyxtzl", "Wrbblk", "張偉", "Zzyx Vq"])
    assert (found.entity, found.named, found.evidence, found.share) == (Entity.PERSON_NAME, True, Evidence.NAME, 0.0)


@pytest.mark.parametrize(
    ("name", "values"), [("first_name", ["x1", "y2", "17"]), ("city_name", CITIES), ("product name", PRODUCTS)]
)
def test_a_name_alone_does_not_make_names_of_what_looks_otherwise(name: str, values: list[object]) -> None:
    assert one(name, values).entity is None


def test_a_column_called_name_needs_some_known_names() -> None:
    assert one("name", SURNAMES).evidence is Evidence.GAZETTEER
    assert one("name", LABELS).entity is None


def test_surnames_are_known_by_the_given_names_beside_them() -> None:
    assert one("c2", SURNAMES, c1=GIVEN).evidence is Evidence.NEIGHBOUR
    assert one("c2", SURNAMES, c1=CITIES).entity is None
    assert one("city", CITIES, first_name=GIVEN).entity is None


def test_street_addresses() -> None:
    assert one("c1", STREETS).entity is Entity.STREET_ADDRESS
    odd = ["Kaive 4", "12 Brynmawr", "Nowhere 7b"]
    assert one("home_address", odd).entity is Entity.STREET_ADDRESS
    assert one("c1", odd).entity is None
    assert one("email address", ["ann@example.com", "n/a", "bob@example.org"]).entity is Entity.EMAIL
    assert one("notes", ["The delivery in week 12 was late and the driver rude", "Order 7 came"] * 9).entity is None


def test_ages_need_their_name() -> None:
    assert one("patient_age", [17, 42, 101]).entity is Entity.AGE
    assert one("Alter", ["17", "42 Jahre", None]).entity is Entity.AGE
    assert one("page", [17, 42, 101]).entity is None
    assert one("age", [17, 420, 1010]).entity is None


def test_post_codes_need_their_form_their_name_or_a_state_beside_them() -> None:
    zips = [f"{number:05}" for number in range(2101, 2113)]
    assert one("c1", [f"SW1A {digit}AA" for digit in range(10)]).evidence is Evidence.FORM
    assert one("zip_code", zips).entity is Entity.POSTCODE
    assert one("PLZ", [80331, 10115, 1067]).entity is Entity.POSTCODE
    assert one("c1", zips).entity is None
    assert one("c1", zips, state=["MA", "NY", "CA"] * 4).evidence is Evidence.NEIGHBOUR
    assert one("c1", zips, size=["S", "M", "L"] * 4).entity is None


def test_dates_by_type_and_by_name() -> None:
    assert one("c1", [dt.date(1982, 3, 31)]).evidence is Evidence.TYPE
    assert one("dob", [19820331, 20010101]).entity is Entity.DATE
    assert one("order", [19820331, 20010101]).entity is None
    assert one("version", ["1.2.3", "1.10.4", "2.0.0"]).entity is None


def test_a_misspelt_few_do_not_hide_what_a_column_holds() -> None:
    values = [f"user{number}@example.com" for number in range(18)] + ["ann at example", "-", ""]
    found = one("c1", values)
    assert (found.entity, found.values) == (Entity.EMAIL, 19)
    mixed = [*values[:6], *(f"word{number}" for number in range(5))]
    assert one("c1", mixed).entity is None
    assert one("email", mixed).evidence is Evidence.NAME


def test_only_the_entities_asked_for_are_judged() -> None:
    table = pa.table({"first_name": GIVEN, "mail": ["ann@example.com"] * 12})
    assert {it.entity for it in profile(table, [Entity.EMAIL]).values()} == {None, Entity.EMAIL}


def test_only_the_head_is_looked_at() -> None:
    head = [f"user{number}@example.com" for number in range(HEAD_ROWS)]
    assert profile(pa.table({"c": head})) == profile(pa.table({"c": [*head, *["free text"] * HEAD_ROWS]}))


def test_names_in_free_text_are_only_possible() -> None:
    texts = ["We told Anna Smith that it is late", "Nothing to see", "Refund to José García, please"]
    found = one("note", texts)
    assert (found.entity, found.possible_names, found.values) == (None, 2, 3)
    assert [texts[0][start:end] for start, end in possible_names(texts[0])] == ["Anna Smith"]


def test_a_type_that_cannot_be_looked_at_is_refused() -> None:
    with pytest.raises(DataError):
        profile(pa.table({"c": [["nested"]]}))


def test_the_gazetteer_is_case_folded_and_without_accents() -> None:
    assert {"anna", "jose", "lukasz", "muller", "strauss"} <= gazetteer().keys()
    assert all(word == word.casefold() for word in gazetteer())
    assert known_as("JOSÉ") & 1 and known_as("Müller") & 2 and known_as("Qyxtzl") == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Dr. Anna van der Berg", True),
        ("anna", True),
        ("O'Neil, Seán", True),
        ("A", False),
        ("Anna2", False),
        ("aNNa", False),
        ("Anna paid the bill", False),
        ("x" * 99, False),
    ],
)
def test_the_shape_of_names(text: str, named: bool) -> None:
    assert shaped_as_name(text) is named


cells = st.one_of(st.none(), st.text(max_size=20), st.sampled_from([*FULL, *STREETS, *FORMS[Entity.DATE]]))


@given(st.lists(cells, min_size=1, max_size=30), st.text(max_size=12))
def test_a_profile_is_sound_and_shows_no_value(values: list[str | None], name: str) -> None:
    """Whatever a column holds: shares are shares, nothing looked at means nothing found, and it tells but numbers."""
    found = profile(pa.table({name: pa.array(values, pa.string())}))[name]
    assert 0 <= found.share <= 1 and found.possible_names <= found.values <= len(values)
    assert (found.entity is None) == (found.evidence is Evidence.NONE)
    assert found.values or found.entity is None
    shown = {type(value) for value in vars(found).values()}
    assert shown <= {Entity, type(None), float, bool, Evidence, int}


@given(st.permutations(FULL), st.permutations(STREETS))
def test_the_order_of_rows_does_not_matter(names: list[str], streets: list[str]) -> None:
    assert profile(pa.table({"a": names, "b": streets})) == profile(pa.table({"a": FULL, "b": STREETS}))


DATA = Path(os.environ.get("PORTCULLIS_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.external_data
def test_columns_of_labelled_spans_are_told_apart() -> None:
    """Of presidio-research's spans: columns of names and addresses are found, of towns, firms and titles are not."""
    path = DATA / "pii" / "development.json"
    if not path.exists():
        pytest.skip(f"the labelled texts of presidio-research are not at {path}; set PORTCULLIS_TEST_DATA")
    columns: dict[str, dict[str, None]] = {}
    for document in json.loads(path.read_text()):
        for span in document["spans"]:
            columns.setdefault(span["entity_type"], {})[" ".join(span["entity_value"].split())] = None
    people = [name for name in columns["PERSON"] if " " in name]
    first = list(dict.fromkeys(name.split()[0] for name in people))

    def shares_found(values: list[str], entity: Entity) -> float:
        parts = [values[start : start + 12] for start in range(0, len(values) - 11, 12)]
        return sum(one("c1", [*part]).entity is entity for part in parts) / len(parts)

    assert shares_found(people, Entity.PERSON_NAME) >= 0.98
    assert shares_found(first, Entity.PERSON_NAME) >= 0.98
    for kind in ("LOCATION", "ORGANIZATION", "TITLE", "DOMAIN_NAME", "EMAIL_ADDRESS", "PHONE_NUMBER"):
        assert shares_found(list(columns[kind]), Entity.PERSON_NAME) == 0
        assert shares_found(list(columns[kind]), Entity.STREET_ADDRESS) == 0
    streets = [text for text in columns["ADDRESS"] if " " in text]
    assert shares_found(streets, Entity.STREET_ADDRESS) >= 0.9
