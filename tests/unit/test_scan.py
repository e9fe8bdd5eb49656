"""Where identifiers are found: exact spans, overlaps, Unicode disguises, cues, hostile input, labelled text."""

import dataclasses
import string
from collections import Counter

import pyarrow as pa
import pytest

from portcullis.errors import DataError
from portcullis.pii import scan as scanning
from portcullis.pii.entities import Entity
from portcullis.pii.folding import fold
from portcullis.pii.locales import RECOGNISERS
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.scan import Span, find, named_identifier, scan

ALL = tuple(Entity)


def found(text: str, *, column: str = "") -> list[tuple[str, str]]:
    """Return (entity, text) of every span in `text`."""
    spans = find([text], ALL, column=column).get(0, ())
    return [(span.entity.value, text[span.start : span.end]) for span in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ann@example.com, or call", [("EMAIL", "ann@example.com")]),
        ("{'mail': 'ann@example.com'}", [("EMAIL", "ann@example.com")]),
        ("https://u:pw@example.com/x", [("EMAIL", "pw@example.com")]),
        ("mail ann@example.com7 now", [("EMAIL", "ann@example.com7")]),
        ("ann@example.com2nd floor", [("EMAIL", "ann@example.com2nd")]),
        ("card 4111 1111 1111 1111 123 ok", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        ("order 77 4111 1111 1111 1111", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        ("VISA4111111111111111.", [("CREDIT_CARD", "4111111111111111")]),
        ("my iban is gb82 west 1234 5698 7654 32 thanks", [("IBAN", "gb82 west 1234 5698 7654 32")]),
        ("SSN 123-45-6789.", [("US_SSN", "123-45-6789")]),
        ("x123 – 45 – 6789y", [("US_SSN", "123 – 45 – 6789")]),
        ("from 192.0.2.1:8080 to 2001:db8::1.", [("IP_ADDRESS", "192.0.2.1"), ("IP_ADDRESS", "2001:db8::1")]),
        ("src:2001:db8::1 x", [("IP_ADDRESS", "2001:db8::1")]),
        ("ip_10.0.0.1/24", [("IP_ADDRESS", "10.0.0.1")]),
        ("(212) 555-0100 x12", [("PHONE", "(212) 555-0100 x12")]),
        ("2024 212-555-0100", [("PHONE", "212-555-0100")]),
        ("ring +44 20 7946 0958 now", [("PHONE", "+44 20 7946 0958")]),
        ("call 555-0100", [("PHONE", "555-0100")]),
        ("079 46 09 58 (office)", [("PHONE", "079 46 09 58")]),
        ("ssn123456789", [("US_SSN", "123456789")]),
        ("a@example.com;b@example.com", [("EMAIL", "a@example.com"), ("EMAIL", "b@example.com")]),
    ],
)
def test_spans_are_exact(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "550e8400-e29b-41d4-a716-446655440000",
        "d41d8cd98f00b204e9800998ecf8427e",
        "2024-01-15T10:30:45.123456Z",
        "2024-01-15 10:30",
        "12345-6789",
        "$1,234,567.89",
        "0.4111111111111111",
        "v1.2.3.4",
        "1.2.3.4.5",
        "1700000000",
        "555-0100",
        "123456789",
        "00:1b:44:11:3a:b7:01",
        "00:00:00:00:00:00",
        "std::add(a::b)",
        "@ann said hi",
        "ISBN 978-0-306-40615-7",
        "call me on 2024-01-15",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        pytest.param("１２３-４５-６７８９", "US_SSN", id="full-width digits"),
        pytest.param("١٢٣-٤٥-٦٧٨٩", "US_SSN", id="Arabic-Indic digits"),
        pytest.param("123\u00a045\u00a06789", "US_SSN", id="no-break spaces"),
        pytest.param("123‑45‑6789", "US_SSN", id="no-break hyphens"),
        pytest.param("४१११ ११११ ११११ ११११", "CREDIT_CARD", id="Devanagari digits"),
        pytest.param("josé@exämple.com", "EMAIL", id="international mail"),
    ],
)
def test_typographic_variants_have_exact_spans(text: str, entity: str) -> None:
    assert found(f"so: {text} ok") == [(entity, text)]


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        pytest.param("my 123\u200b-45-67\u200d89 ok", "US_SSN", id="zero width"),
        pytest.param("my 123-\u202e45-6789 ok", "US_SSN", id="bidirectional"),
        pytest.param("my 12\u00ad3-45-6789 ok", "US_SSN", id="soft hyphen"),
        pytest.param("my 1\u03322\u03323\u0332-45-6789 ok", "US_SSN", id="combining marks"),
        pytest.param("my 123-45-67\x0089 ok", "US_SSN", id="NUL"),
        pytest.param("my ①②③-45-6789 ok", "US_SSN", id="circled digits"),
        pytest.param("my 123\u200245\u20026789 ok", "US_SSN", id="en spaces"),
        pytest.param("a ａｎｎ＠example.com b", "EMAIL", id="full-width mail"),
        pytest.param("jo\u200bhn@example.com", "EMAIL", id="half hidden mail"),
        pytest.param("4111\u2060111111111111", "CREDIT_CARD", id="word joiner"),
        pytest.param("ＧＢ82WEST12345698765432", "IBAN", id="full-width IBAN"),
        pytest.param("192。0。2。1", "IP_ADDRESS", id="ideographic stops"),
        pytest.param("call \u200b555\u200b-0100", "PHONE", id="hidden phone"),
    ],
)
def test_disguises_are_found_where_they_stand(text: str, entity: str) -> None:
    [(name, where)] = found(text)
    assert name == entity
    assert not set(fold(text.replace(where, ""))).intersection(string.digits + "@")


def test_overlapping_findings_unite_under_the_first_in_priority() -> None:
    text = "fax 2125550100@example.com"
    assert found(text) == [("EMAIL", "2125550100@example.com")]
    text = "phone 4111 1111 1111 1111"
    assert found(text) == [("CREDIT_CARD", "4111 1111 1111 1111")]


def test_only_the_named_entities_are_looked_for() -> None:
    text = "ann@example.com 123-45-6789"
    assert find([text], [Entity.US_SSN]) == {0: (Span(16, 27, Entity.US_SSN),)}


@pytest.mark.parametrize("column", ["phone", "home_phone", "phoneNumber ", "Mobile", "fax-2"])
def test_a_columns_name_speaks_for_bare_digits(column: str) -> None:
    column = column.replace("phoneNumber ", "homePhone")
    assert found("5550100", column=column) == [("PHONE", "5550100")]
    assert found("5550100", column="microphones") == []
    assert named_identifier(column, ALL)
    assert not named_identifier(column, [Entity.US_SSN])


def test_bare_social_security_numbers_need_a_name() -> None:
    assert found("123456789", column="SSN") == [("US_SSN", "123456789")]
    assert found("123456789", column="order") == []


def test_rows_share_what_was_found_in_their_value() -> None:
    values = pa.chunked_array([["ann@example.com", None], ["none", "ann@example.com"]], pa.string())
    findings = scan(values, ALL)
    assert findings.distinct.to_pylist() == ["ann@example.com", "none"]
    assert [findings[row] for row in range(4)] == [(Span(0, 15, Entity.EMAIL),), (), (), (Span(0, 15, Entity.EMAIL),)]
    assert findings.counts() == {Entity.EMAIL: 2}


@pytest.mark.parametrize(
    "values", [pa.array([], pa.string()), pa.array([None], pa.string()), pa.chunked_array([], pa.large_string())]
)
def test_nothing_is_found_in_nothing(values: pa.Array) -> None:
    assert not scan(values, ALL).spans


def test_neighbouring_values_do_not_touch() -> None:
    assert not scan(pa.array(["123-45-", "6789", "call", "5550100", "ann@", "example.com"]), ALL).spans


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = pa.array([f"{n} ann{n}@example.com" for n in range(50)])
    whole = scan(values, ALL)
    monkeypatch.setattr(scanning, "_CHUNK", 70)
    assert scan(values, ALL).spans == whole.spans


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(pa.array([1]), id="numbers"),
        pytest.param(pa.array([b"x"]), id="binary"),
        pytest.param(pa.array([["x"]]), id="list"),
        pytest.param(pa.array(["x"]).dictionary_encode(), id="dictionary"),
        pytest.param(pa.array(["x"]).cast(pa.string_view()), id="view"),
        pytest.param(
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]),
            id="not UTF-8",
        ),
    ],
)
def test_what_cannot_be_scanned_is_refused(values: pa.Array) -> None:
    with pytest.raises(DataError):
        scan(values, ALL)


LENGTH = 200_000
HOSTILE = [
    *(
        "1",
        "1 ",
        "22 ",
        "123-",
        "a",
        "a.",
        "a@",
        "a@b.",
        "a-",
        "@",
        "(",
        "+",
        "'",
        '"a',
        ":",
        "1:",
        "fe80::",
        "1.",
        "AA11 ",
    ),
    *("call ", "1\u200b", "a\u0300\u0316", "\ufdfa", "<PHONE:", "\0"),
]


@pytest.mark.parametrize("unit", HOSTILE, ids=ascii)
def test_work_on_hostile_text_is_bounded(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each character costs a bounded number of validations, of candidates of bounded length; the search itself ends."""
    text = (unit * LENGTH)[:LENGTH]
    calls: Counter[str] = Counter()

    def counted(recogniser):
        def valid(candidate: str) -> bool:
            calls["validations"] += 1
            calls["characters"] += len(candidate)
            return recogniser.valid(candidate)

        return dataclasses.replace(recogniser, valid=valid)

    monkeypatch.setattr(scanning, "RECOGNISERS", tuple(counted(recogniser) for recogniser in RECOGNISERS))
    find([text], ALL)
    assert calls["validations"] <= 40 * LENGTH
    assert calls["characters"] <= 1_000 * LENGTH


@pytest.mark.parametrize("unit", ["1 ", "a@b.", ":", "1\u200b", '"'], ids=ascii)
def test_the_residual_search_ends_on_hostile_text(unit: str) -> None:
    figures = residual_figures(pa.table({"text": [(unit * LENGTH)[:LENGTH]]}), MaskingPlan(ALL, {}))
    assert figures["cells_scanned"] == 1
