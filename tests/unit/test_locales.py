"""The packs of identifiers by region: numbering rules, where they are found, and that the gate sees them too."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from portcullis import pii
from portcullis.errors import ConfigError
from portcullis.pii.entities import Entity, canonical, valid_mac
from portcullis.pii.locales import RECOGNISERS
from portcullis.pii.locales.eu import (
    VAT_CHECKS,
    luhn,
    mod_11_10,
    valid_dni,
    valid_nie,
    valid_nino,
    valid_nir,
    valid_steuer_id,
    valid_vat,
)
from portcullis.pii.locales.us import valid_aba, valid_ein, valid_itin
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.scan import find, named_identifier
from portcullis.pii.tokens import token

ALL = tuple(Entity)
VALID = {
    valid_itin: ("900-70-0000", "912501234", "999-99-9999"),
    valid_ein: ("12-3456789", "010000001", "98-7654321"),
    valid_aba: ("021000021", "011401533", "122105155"),
    valid_nino: ("AB123456C", "ab 12 34 56 c", "JG-103759-A"),
    valid_steuer_id: ("86095742719", "47 036 892 816", "65929970489"),
    valid_nir: ("255081416802538", "1 84 12 76 451 089 46", "184122A45108933"),
    valid_dni: ("12345678Z", "12.345.678-Z", "00000000T"),
    valid_nie: ("X1234567L", "y-1234567-x", "Z 1234567 R"),
    valid_mac: ("00:1b:44:11:3a:b7", "00-1B-44-11-3A-B7"),
    valid_vat: (
        *("ATU13585627", "BE0428759497", "DE136695976", "DK13585628", "EL023456780", "FI20774740", "FR83404833048"),
        *("GB980780684", "IT00743110157", "LU15027442", "NL004495445B01", "NL123456789B13", "PL8567346215"),
        *("PT501964843", "SE123456789701"),
    ),
}
INVALID = {
    valid_itin: ("800-70-0000", "900-69-0000", "900-89-0000", "900-93-0000", "90070000", ""),
    valid_ein: ("07-1234567", "00-1234567", "79-1234567", "1-23456789"[:9], ""),
    valid_aba: ("021000022", "131000025", "000000000", "0210000210", ""),
    valid_nino: ("BG123456C", "DB123456C", "AO123456C", "AB123456E", "AB12345C", ""),
    valid_steuer_id: ("86095742718", "06095742719", "12345678903", "11112345678", ""),
    valid_nir: ("255081416802539", "955081416802538", "255131416802538", "25508141680253", ""),
    valid_dni: ("12345678A", "1234567Z", "12345678", ""),
    valid_nie: ("X1234567A", "A1234567L", "X123456L", ""),
    valid_mac: ("00:00:00:00:00:00", "ff-ff-ff-ff-ff-ff"),
    valid_vat: (
        *("ATU13585626", "BE0428759498", "DE136695978", "DK13585627", "EL123456780", "FI20774741", "FR84404833048"),
        *("GB802311781", "IT00743110158", "LU15027443", "NL123456789B12", "PL8567346216", "PT501964842"),
        *("SE123456789101", "ESA13585625", "DE", "XX136695976", ""),
    ),
}


@pytest.mark.parametrize(("valid", "text"), [(valid, text) for valid, texts in VALID.items() for text in texts])
def test_numbers_that_follow_the_rule_are_valid(valid, text: str) -> None:
    assert valid(text)


@pytest.mark.parametrize(("valid", "text"), [(valid, text) for valid, texts in INVALID.items() for text in texts])
def test_numbers_that_break_it_are_not(valid, text: str) -> None:
    assert not valid(text)


def test_every_vat_rule_has_an_example() -> None:
    assert {text[: 3 if text.startswith("AT") else 2] for text in VALID[valid_vat]} == set(VAT_CHECKS)


@pytest.mark.parametrize("check", [luhn, mod_11_10])
def test_one_check_digit_in_ten_is_right(check) -> None:
    for body in ("7992739871", "0794", "86095742"):
        assert sum(check(body + str(digit)) for digit in range(10)) == 1


FOUND = [
    ("my itin is 912-50-1234.", "US_ITIN", "912-50-1234"),
    ("912-50-1234", "US_ITIN", "912-50-1234"),
    ("ITIN: 912501234", "US_ITIN", "912501234"),
    ("EIN 12-3456789, thanks", "US_EIN", "12-3456789"),
    ("employer identification number: 123456789", "US_EIN", "123456789"),
    ("routing number 021000021", "US_ABA", "021000021"),
    ("passport no. 123456789", "US_PASSPORT", "123456789"),
    ("(passport A12345678)", "US_PASSPORT", "A12345678"),
    ("My driver's license number is LH329609T", "US_DRIVER_LICENSE", "LH329609T"),
    ("driving licence A123-4567-8901 ok", "US_DRIVER_LICENSE", "A123-4567-8901"),
    ("NI AB123456C ok", "UK_NINO", "AB123456C"),
    ("ni number ab 12 34 56 c.", "UK_NINO", "ab 12 34 56 c"),
    ("IdNr 86 095 742 719", "DE_STEUER_ID", "86 095 742 719"),
    ("86095742719", "DE_STEUER_ID", "86095742719"),
    ("n° 2 55 08 14 168 025 38", "FR_NIR", "2 55 08 14 168 025 38"),
    ("184122A45108933", "FR_NIR", "184122A45108933"),
    ("1 84 12 2A 451 089 33;", "FR_NIR", "1 84 12 2A 451 089 33"),
    ("dni 12345678Z,", "ES_DNI", "12345678Z"),
    ("5 12.345.678-Z", "ES_DNI", "12.345.678-Z"),
    ("NIE X-1234567-L", "ES_NIE", "X-1234567-L"),
    ("ust-id DE136695976", "EU_VAT", "DE136695976"),
    ("BE 0428.759.497", "EU_VAT", "BE 0428.759.497"),
    ("NL004495445B01 x", "EU_VAT", "NL004495445B01"),
    ("ATU13585627", "EU_VAT", "ATU13585627"),
    ("at 00-1b-44-11-3a-b7.", "MAC_ADDRESS", "00-1b-44-11-3a-b7"),
    ("mac=00:1B:44:11:3A:B7", "MAC_ADDRESS", "00:1B:44:11:3A:B7"),
]


@pytest.mark.parametrize(("text", "entity", "where"), FOUND)
def test_it_is_found_where_it_stands_and_the_gate_sees_it(text: str, entity: str, where: str) -> None:
    spans = find([text], ALL)[0]
    assert [(span.entity, text[span.start : span.end]) for span in spans] == [(entity, where)]
    assert residual_figures(pa.table({"text": [text]}), MaskingPlan((entity,), {}))["residual_identifiers"] == 1
    assert not find([text], [other for other in ALL if other != entity]).get(0, ()) or entity in {"FR_NIR", "US_EIN"}


@pytest.mark.parametrize(
    "text",
    [
        "12-3456789",
        "021000021",
        "A12345678",
        "LH329609T",
        "license to 1234567",
        "AB123456E",
        "23456789012",
        "X1234567A",
        "order DE123456789",
        "00:00:00:00:00:00",
        "550e8400-e29b-41d4-a716-446655440000",
        "00:1b:44:11:3a",
    ],
)
def test_without_a_word_or_check_digit_it_is_left_alone(text: str) -> None:
    assert find([text], ALL) == {}


@pytest.mark.parametrize(
    ("column", "text", "entity"),
    [
        ("routing_number", "021000021", "US_ABA"),
        ("passport", "A12345678", "US_PASSPORT"),
        ("driver_license", "A56319335", "US_DRIVER_LICENSE"),
        ("employer_id", "12-3456789", "US_EIN"),
    ],
)
def test_a_columns_name_speaks_for_it(column: str, text: str, entity: str) -> None:
    assert [span.entity for span in find([text], ALL, column=column)[0]] == [entity]
    assert named_identifier(column, (Entity(entity),))
    assert residual_figures(pa.table({column: [text]}), MaskingPlan((entity,), {}))["residual_identifiers"] == 1


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("card 4111 1111 1111 1112", "CREDIT_CARD"),
        ("visa: 4111111111111112", "CREDIT_CARD"),
        ("iban GB82 WEST 1234 5698 7654 31", "IBAN"),
        ("routing 021000022", "US_ABA"),
        ("IdNr. 86095742718", "DE_STEUER_ID"),
        ("nir 255081416802539", "FR_NIR"),
        ("dni 12345678A", "ES_DNI"),
        ("nie X1234567A", "ES_NIE"),
        ("vat DE136695978", "EU_VAT"),
    ],
)
def test_where_a_check_digit_fails_a_word_is_enough_for_recall_alone(text: str, entity: str) -> None:
    assert not [it for it in find([text], ALL).get(0, ()) if it.entity == entity]
    assert [it.entity for it in find([text], ALL, recall=True)[0]] == [entity]
    number = text[text.index(" ") + 1 :]
    assert not [it for it in find([number], ALL, recall=True).get(0, ()) if it.entity == entity]
    assert [it.entity for it in find([number], ALL, recall=True, column=text.split()[0].strip(":.").lower())[0]] == [
        entity
    ]


def test_recall_is_a_choice_of_the_plan() -> None:
    table = pa.table({"text": ["card 4111 1111 1111 1112"]})
    strict, recall = (
        mask_table(table, MaskingPlan(ALL, {}, detection), key=bytes(32))[0]["text"][0].as_py()
        for detection in ("strict", "recall")
    )
    assert strict == "card 4111 1111 1111 1112"
    assert recall == f"card {token(bytes(32), Entity.CREDIT_CARD, '4111111111111112')}"
    with pytest.raises(ConfigError, match="strict or recall"):
        MaskingPlan(ALL, {}, "loose")


def test_spellings_have_one_canonical_form() -> None:
    for entity, one, two in [
        (Entity.UK_NINO, "AB123456C", "ab 12 34 56 c"),
        (Entity.EU_VAT, "BE0428759497", "be 0428.759.497"),
        (Entity.MAC_ADDRESS, "00:1b:44:11:3a:b7", "00-1B-44-11-3A-B7"),
        (Entity.DE_STEUER_ID, "86095742719", "86 095 742 719"),
    ]:
        assert canonical(entity, one) == canonical(entity, two)


def test_every_hint_holds_for_what_its_pattern_matches() -> None:
    """A recogniser with a hint is only asked where the hint holds; so each must be reached by its own examples."""
    asked = {recogniser.entity for recogniser in RECOGNISERS if recogniser.hint is not None and not recogniser.recall}
    assert asked == {Entity(entity) for _, entity, _ in FOUND} - {Entity.MAC_ADDRESS}


def test_the_readme_lists_every_entity() -> None:
    readme = Path(pii.__file__).with_name("README.md").read_text()
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `") and line[3:5].isupper()]
    assert [name for row in rows for name in re.findall("`(.+?)`", row)] == list(Entity)
