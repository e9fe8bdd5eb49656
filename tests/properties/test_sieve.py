"""The sieve decides how long the residual gate takes, never what it finds: every text alone gives the same counts."""

import string
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from identifiers import identifiers

from portcullis.pii.entities import IN_TEXT
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import ResidualSearch, search_residual
from portcullis.pii.residual_searches import SEARCHES
from portcullis.pii.sieve import _PATTERNS

PLANS = [
    MaskingPlan(IN_TEXT, {}),
    MaskingPlan(dict.fromkeys(IN_TEXT, "star"), {}),
    MaskingPlan(
        {"EMAIL": "synthetic", "IP_ADDRESS": "generalise", "US_SSN": "redact", "US_DRIVER_LICENSE": "hash"}, {}
    ),
]
FRAGMENTS = [
    *(
        "ssn ",
        "SSN|",
        "social security ",
        "soc\u0131al security",
        "passport ",
        "driving licence ",
        "driver lıcense no ",
        "Reısepass ",
        "call ",
        "mobıle_",
        "</td><td>",
        "DL: ",
        "C01X00T47",
        "020 7946 0958",
        "DE 89 3704 0044 0532 0130 00",
        "001a.2b3c.4d5e",
        "0210-0002-1",
    ),
    *(
        "itin ",
        "employer id ",
        "routing ",
        "phone ",
        "****",
        "<EMAIL>",
        "<PHONE:",
        "<IBAN~",
        f"<EMAIL:{'b' * 32}>",
        "|",
    ),
    *("1-2-3-4-5-6-7-8-9", "1 2 3 4 5 6 7", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4111\n1111\n1111\n1111", "12 3456789"),
    *("192[.]0[.]2[.]1", "::1", "a:b:c:d:1:2:3:4", "aa-bb-cc-dd-ee-ff", "ab 12 34 56 c", "X1234567L", "12345678Z"),
    *("1 84 12 2A 451 089 33", "86 095 742 719", "f\u0131 12345671", "DE 136695976", "203.0.113.0/24", "912-50-1234"),
    *(
        "a @ b.example",
        "ann＠example．com",
        "１２３",
        "⑫",
        "\u200b",
        "\x00",
        "\t",
        "+",
        "é",
        "GB82_WEST_1234_5698_7654_32",
    ),
]
marks = st.text(string.digits * 2 + " -._/()[]*~+:@xaZ\n,\u200b", max_size=30)
pieces = st.one_of(identifiers.map(lambda pair: pair[1]), st.sampled_from(FRAGMENTS), marks)
texts = st.lists(pieces, max_size=6).map("".join)
columns = st.sampled_from(
    [
        "note",
        "ssn",
        "drivers_license",
        "license",
        "fe80:",
        "social security",
        "ann@example.com",
        "phone1",
        "dl",
        "Reisepass",
    ]
)


@given(st.lists(texts, min_size=1, max_size=10), columns, st.sampled_from(PLANS))
@example(["ssn |1-2-3-4-5-6-7-8-9", "0-0-1 2-3 4-5-6 7"], "ssn", PLANS[0])
@settings(deadline=None)
def test_a_whole_column_counts_what_its_texts_count(values: list[str], column: str, plan: MaskingPlan) -> None:
    table = pa.table({column: values})
    search = ResidualSearch(table.schema, plan)
    wanted = search._found_in(column)
    for text in values:
        if search._spelling.fullmatch(text) is None:
            wanted += search._found_in(text, called=f"{column}: ")
    residual = search_residual(table.schema, [table], plan)
    counted: Counter[str] = Counter()
    for counts in residual.identifiers.values():
        counted.update(counts)
    assert counted == wanted


SPELLINGS = {
    "EMAIL": ["ann @ b.example", "ann@b.example"],
    "IBAN": ["GB82_WEST_1234_5698_7654_32", "gb82 west 1234 5698 7654 32", "DE 89 3704 0044 0532 0130 00"],
    "CREDIT_CARD": [
        *("4111111111111111", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4111\n1111\n1111\n1111", "3782-822463-10005"),
        *("41 11 11 11 11 11 11 11", "411111 1111111111"),
    ],
    "US_SSN": [
        "123 / 45 / 6789",
        "536228471 (ssn)",
        "<ssn>536228471</ssn>",
        "SS# 536228471",
        "ssn 1-2-3-4-5-6-7-8-9",
        "soc\u0131al security 12-345-6789",
    ],
    "US_ITIN": ["912 50 1234", "itin 912501234"],
    "US_EIN": ["employer id 12-3456789", "ein 123456789"],
    "US_ABA": ["routing 021000021", "ABA# 0210-0002-1"],
    "US_PASSPORT": ["passport A12345678", "passport 123456789", "re\u0131sepass C01X00T47"],
    "US_DRIVER_LICENSE": [
        "driver lıcense 1 2 3 4 5 6",
        "license no D123456",
        "DL: D123456",
        "f\u00fchrersche\u0131n B072RRE2I55",
    ],
    "UK_NINO": ["AB 12 34 56 C", "ab123456c"],
    "DE_STEUER_ID": ["86 095 742 719", "86095742719"],
    "FR_NIR": ["255081416802538", "1 84 12 2A 451 089 33"],
    "ES_DNI": ["12.345.678-Z", "12345678z"],
    "ES_NIE": ["X-1234567-L", "x 1 234 567 l"],
    "EU_VAT": ["DE 136 695 976", "f\u0131 20774740", "NL 004495445 B01"],
    "IP_ADDRESS": ["192[.]0[.]2[.]1", "1.1.1.1", "2001::1", "2001:db8:1:2:3:4:5:6"],
    "MAC_ADDRESS": ["aa-bb-cc-dd-ee-ff", "00:1b:44:11:3a:b7", "001a.2b3c.4d5e", "aaaa.bbbb.ccc1"],
    "PHONE": ["(212) 555-0100", "+ 44 20 7946 0958", "call 020 7946 0958", "07700900123 (mob\u0131le)", "ph 5550100"],
}


@pytest.mark.parametrize(("entity", "text"), [(entity, text) for entity, all_ in SPELLINGS.items() for text in all_])
def test_the_sieve_lets_through_what_a_search_finds(entity: str, text: str) -> None:
    table = pa.table({"note": ["nothing", text]})
    assert search_residual(table.schema, [table], MaskingPlan((entity,), {})).identifiers == {"note": {entity: 1}}


def test_every_search_has_its_pattern_and_its_spellings() -> None:
    assert _PATTERNS.keys() == SEARCHES.keys() == SPELLINGS.keys()
