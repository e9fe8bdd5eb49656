"""The validators and canonical spellings of every identifier, and folding."""

import re

import pytest

from portcullis.pii.entities import (
    BY_COLUMN,
    IBAN_LENGTHS,
    IN_TEXT,
    Entity,
    canonical,
    digits,
    valid_card,
    valid_cued_phone,
    valid_email,
    valid_iban,
    valid_ip,
    valid_phone,
    valid_ssn,
)
from portcullis.pii.folding import fold
from portcullis.pii.locales import RECOGNISERS


@pytest.mark.parametrize(
    "number",
    [
        "4111111111111111",
        "4222222222222",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "3782 822463 10005",
        "30569309025904",
        "6011111111111117",
        "3530111333300000",
        "6200000000000005",
        "6304000000000000",
        "4111-1111-1111-1111",
        "4111.1111.1111.1111",
    ],
)
def test_card_numbers_are_valid(number: str) -> None:
    assert valid_card(number)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param("4111111111111112", id="wrong check digit"),
        pytest.param("0000000000000000", id="no issuer"),
        pytest.param("41111111111111", id="visa of fourteen"),
        pytest.param("378282246310005000", id="amex of eighteen"),
        pytest.param("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", id="a list of digits"),
        pytest.param("411111.1111111111", id="a decimal"),
        pytest.param("", id="empty"),
    ],
)
def test_other_numbers_are_no_cards(number: str) -> None:
    assert not valid_card(number)


@pytest.mark.parametrize("digit", range(16))
def test_luhn_notices_every_single_digit_error(digit: int) -> None:
    number = "4111111111111111"
    altered = number[:digit] + str((int(number[digit]) + 1) % 10) + number[digit + 1 :]
    assert not valid_card(altered)


# The examples of the SWIFT registry and of national banks.
IBANS = (
    "GB82WEST12345698765432",
    "DE89370400440532013000",
    "FR1420041010050500013M02606",
    "NO9386011117947",
    "MT84MALT011000012345MTLCAST001S",
    "BR1800360305000010009795493C1",
    "SC18SSCB11010000000000001497USD",
)


@pytest.mark.parametrize("iban", IBANS)
def test_ibans_are_valid_in_any_case_and_grouping(iban: str) -> None:
    grouped = " ".join(re.findall(".{1,4}", iban))
    assert valid_iban(iban)
    assert valid_iban(iban.lower())
    assert valid_iban(grouped)
    assert len(iban) == IBAN_LENGTHS[iban[:2]]


@pytest.mark.parametrize(
    "iban",
    [
        pytest.param("GB82WEST12345698765431", id="wrong digit"),
        pytest.param("GB82WEST1234569876543", id="too short"),
        pytest.param("XX82WEST12345698765432", id="no such country"),
        pytest.param("GB82WEST1234569876543٢²", id="other letters"),
        pytest.param("", id="empty"),
    ],
)
def test_other_strings_are_no_ibans(iban: str) -> None:
    assert not valid_iban(iban)


@pytest.mark.parametrize("number", ["123-45-6789", "123 45 6789", "123456789", "899-99-9999", "665-01-0001"])
def test_social_security_numbers_are_valid(number: str) -> None:
    assert valid_ssn(number)


@pytest.mark.parametrize(
    "number",
    ["000-12-3456", "666-12-3456", "900-12-3456", "999-12-3456", "123-00-4567", "123-45-0000", "123-45-678", ""],
)
def test_numbers_never_issued_are_no_social_security_numbers(number: str) -> None:
    assert not valid_ssn(number)


@pytest.mark.parametrize(
    "address",
    [
        "192.0.2.1",
        "010.001.002.003",
        "255.255.255.255",
        "2001:db8::1",
        "2001:0DB8:0:0:0:0:0:1",
        "fe80::1%eth0",
        "::ffff:192.0.2.1",
        "2001:db8::",
    ],
)
def test_addresses_are_valid(address: str) -> None:
    assert valid_ip(address)


@pytest.mark.parametrize(
    "address", ["256.0.0.1", "1.2.3", "10:30:45", "::", "::1", "5::3", "a::b", "1::2::3", "", "12345"]
)
def test_other_strings_are_no_addresses(address: str) -> None:
    assert not valid_ip(address)


@pytest.mark.parametrize(
    "number",
    [
        "212-555-0100",
        "(212) 555-0100",
        "(212)555-0100x1234",
        "212.555.0100 ext. 12",
        "+1-212-555-0100",
        "001-212-555-0100",
        "1 212 555 0100",
        "2125550100",
        "+442079460958",
        "+44 (0)20 7946 0958",
        "+49 30/1234-567",
        "(020) 7946 0958",
    ],
)
def test_telephone_numbers_are_valid(number: str) -> None:
    assert valid_phone(number)


@pytest.mark.parametrize(
    "number",
    [
        "1234567890",
        "012 345 6789",
        "12345678",
        "+1234567",
        "+0123456789",
        "+1234567890123456",
        "2024-01-15",
        "(1999) 123-456",
        "",
    ],
)
def test_other_numbers_are_no_telephone_numbers(number: str) -> None:
    assert not valid_phone(number)


@pytest.mark.parametrize(
    ("number", "valid"),
    [
        ("555-0100", True),
        ("33 93 31", True),
        ("339331", False),
        ("02.27.96.63.08", True),
        ("2024-01-15", False),
        ("15/01/2024", False),
        ("12345", False),
    ],
)
def test_a_cue_makes_grouped_digits_a_telephone_number_but_not_a_date(number: str, valid: bool) -> None:
    assert valid_cued_phone(number) is valid


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com",
        "a.b+c@mail.example.co.uk",
        '"ann lee"@example.com',
        "josé@exämple.com",
        "ann@[192.0.2.1]",
        "ann@xn--e1afmkfd.xn--p1ai",
        "x" * 80 + "@example.com",
    ],
)
def test_mailboxes_are_valid(address: str) -> None:
    assert valid_email(address)


@pytest.mark.parametrize("address", ["ann@localhost", "@example.com", "ann@example.c0m1", "ann@-example", "ann", ""])
def test_other_strings_are_no_mailboxes(address: str) -> None:
    assert not valid_email(address)


@pytest.mark.parametrize(
    ("entity", "spellings"),
    [
        (Entity.EMAIL, ("Ann@Example.com", "ann@example.com", "ａｎｎ＠example.com", "a\u200bnn@example.com")),
        (Entity.IBAN, ("GB82 WEST 1234 5698 7654 32", "gb82west12345698765432")),
        (Entity.CREDIT_CARD, ("4111 1111-1111.1111", "４１１１１１１１１１１１１１１１")),
        (Entity.US_SSN, ("123-45-6789", "123456789", "١٢٣-٤٥-٦٧٨٩")),
        (Entity.IP_ADDRESS, ("2001:DB8:0:0::1", "2001:db8::1")),
        (Entity.IP_ADDRESS, ("192.000.002.001", "192.0.2.1")),
        (Entity.PHONE, ("+1 (212) 555-0100", "001.212.555.0100", "2125550100", "1-212-555-0100")),
        (Entity.PERSON_NAME, ("Ann-Marie O'Neil", "ANN MARIE O\u2019NEIL", " ann  marie o neil")),
        (Entity.STREET_ADDRESS, ("12 Main St., Apt. 4", "12 MAIN ST APT 4")),
        (Entity.DATE, ("31 March 1982", " 31  march 1982")),
        (Entity.AGE, ("42", "42.0", "42 years")),
        (Entity.POSTCODE, ("SW1A 1AA", "sw1a1aa")),
    ],
)
def test_one_identifier_has_one_canonical_spelling(entity: Entity, spellings: tuple[str, ...]) -> None:
    assert len({canonical(entity, spelling) for spelling in spellings}) == 1


def test_every_entity_is_recognised_in_text_or_by_column() -> None:
    assert {recogniser.entity for recogniser in RECOGNISERS} == set(IN_TEXT) == set(Entity) - BY_COLUMN


def test_no_pattern_accepts_the_character_that_joins_values() -> None:
    samples = ["ann@example.com", "4111 1111 1111 1111", "123-45-6789", "192.0.2.1", "212-555-0100", IBANS[0]]
    for sample in samples:
        for cut in range(1, len(sample)):
            text = sample[:cut] + "\0" + sample[cut:]
            assert not any("\0" in match[0] for r in RECOGNISERS for match in r.pattern.finditer(text))


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        pytest.param("１２３", "123", id="full-width"),
        pytest.param("١٢٣", "123", id="Arabic-Indic"),
        pytest.param("१२३", "123", id="Devanagari"),
        pytest.param("𝟙𝟚𝟛", "123", id="mathematical"),
        pytest.param("①②③", "123", id="circled"),
        pytest.param("1\u200b2\u202e3\ufeff\u00ad\u2060", "123", id="format characters"),
        pytest.param("1\u03322\u20e33\ufe0f", "123", id="combining marks"),
        pytest.param("1\u115f\u31642", "12", id="invisible letters"),
        pytest.param("1\x002\x7f\x1b3", "123", id="control characters"),
        pytest.param("1\u00a02\u20033\u2028\u2800", "1 2 3  ", id="blanks"),
        pytest.param("1–2−3‑4", "1-2-3-4", id="dashes"),
        pytest.param("ａ＠ｂ。com", "a@b.com", id="full-width mail"),
        pytest.param("é\t\r\n", "é\t\r\n", id="kept"),
    ],
)
def test_fold(text: str, folded: str) -> None:
    assert fold(text) == folded
    assert fold(folded) == folded


def test_digits_of_every_script_count() -> None:
    assert digits("a1-٢.３ ४x²") == "1234"
