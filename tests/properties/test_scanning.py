"""The scan never finds less than its recognisers, however a text is spelled; a longer run of it is a fuzz test.

`PORTCULLIS_FUZZ_SECONDS=3600 pytest tests/properties/test_scanning.py -k fuzz` looks for longer.
"""

import itertools
import os
import secrets
import string
import time

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from identifiers import identifiers

from portcullis.pii import scan as scanning
from portcullis.pii.entities import Entity
from portcullis.pii.folding import fold
from portcullis.pii.locales import RECOGNISERS
from portcullis.pii.scan import find, scan

ALL = tuple(Entity)
STRICT = [recogniser for recogniser in RECOGNISERS if not recogniser.recall]
SECONDS = float(os.environ.get("PORTCULLIS_FUZZ_SECONDS", "30"))
FRAGMENTS = [
    *("call ", "phone: ", "fax", "ssn ", " x12", " ext. 5", "#4", "VISA", "office", "v", "a", "é", "_", "%eth0"),
    *("+", "(", ")", " ", "  ", ", ", ".", "-", "/", "@", "'", '"', "<", "::", "\n", "\t", "–", "\u00a0", "…"),
    *("1", "12", "123", "1 (", "001-", "007", "0.", "1.5", "555-0100", "2024-01-15", "10:30", "1::2", "１", "٣"),
    *("AB123456C", "ab 12 34 56 c", "86095742719", "86 095 742 719", "12345678Z", "12.345.678-Z", "X-1234567-L"),
    *("DE136695976", "BE 0428.759.497", "NL004495445B01", "255081416802538", "2 55 08 14 168 025 38", "912-50-1234"),
    *("021000021", "12-3456789", "A12345678", "00:1b:44:11:3a:b7", "1 84 12 2A 451 089 33", "A123-4567-8901"),
    *("routing ", "ein ", "passport ", "driver's license ", "tax id: ", "<ssn>", "</ssn>", "</phone>", "</td><td>"),
    *("0,", "1,", ",", "N", "ref", "abc", "BIC", "\\n", "mac:", "ssn_", "Reisepass ", "DL: ", "ph ", "ss# ", "IBAN"),
    *("C01X00T47", "B072RRE2I55", "001a.2b3c.4d5e", "DE 89 3704 0044 0532 0130 00", "DE89.3704.0044.0532.0130.00"),
    *("\u200b", "\x00", "[192.0.2.1]"),
]
pieces = st.one_of(identifiers.map(lambda pair: pair[1]), st.sampled_from(FRAGMENTS))
numbers = st.text(string.digits * 2 + " -.()+/:@xa,\u200b", max_size=45)
texts = st.one_of(
    st.lists(pieces, max_size=8).map("".join), numbers, st.text(string.printable + "é１\u200b٣", max_size=60)
)
columns = st.sampled_from(["", "phone", "ssn", "note", "routing_number", "passport", "phone2", "dl"])


def check(values: list[str], column: str) -> None:
    """What the recognisers find in plain texts is found; a `+` or bracket alone may stay outside."""
    found = find(values, ALL, column=column)
    plain = [index for index, text in enumerate(values) if fold(text) == text and text.isascii()]
    wanted = scanning._find([values[index] for index in plain], STRICT, column)
    for position, spans in wanted.items():
        index = plain[position]
        covered = {place for span in found.get(index, ()) for place in range(span.start, span.end)}
        missed = {place for span in spans for place in range(span.start, span.end)} - covered
        assert {values[index][place] for place in missed} <= set("+("), (values[index], spans, found.get(index))
    for index, spans in found.items():
        assert all(0 <= span.start < span.end <= len(values[index]) for span in spans)
        assert all(one.end <= two.start for one, two in itertools.pairwise(spans))


@given(st.lists(texts, max_size=12), columns)
@settings(deadline=None)
def test_what_the_recognisers_find_is_found(values: list[str], column: str) -> None:
    check(values, column)


@given(st.lists(texts, max_size=6), columns)
@settings(deadline=None)
def test_what_stands_in_other_cells_changes_nothing(values: list[str], column: str) -> None:
    together = find(values, ALL, column=column)
    for index, text in enumerate(values):
        assert find([text], ALL, column=column).get(0, ()) == together.get(index, ())


@given(st.lists(st.one_of(st.none(), texts), max_size=12))
@settings(deadline=None)
def test_a_column_that_repeats_its_values_is_scanned_alike(cells: list[str | None]) -> None:
    once = scan(pa.array(cells, pa.string()), ALL)
    often = scan(pa.array([*cells] * 5, pa.string()), ALL)
    assert {entity: 5 * count for entity, count in once.counts().items()} == dict(often.counts())
    assert [often[row] for row in range(len(cells))] == [once[row] for row in range(len(cells))]


@pytest.mark.slow
def test_fuzz() -> None:
    """Run the first law above on ever new texts for a while."""

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(texts, min_size=20, max_size=60), columns)
    def run(values: list[str], column: str) -> None:
        if time.monotonic() < end:
            check(values, column)

    end = time.monotonic() + SECONDS
    # Under PORTCULLIS_CI the same texts each time, as far as the time goes.
    for turn in itertools.count(0 if os.environ.get("PORTCULLIS_CI") == "1" else secrets.randbits(32)):
        if time.monotonic() >= end:
            break
        seed(turn)(run)()
