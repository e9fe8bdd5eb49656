"""Encoded identifiers: masked to the byte or by the run, seen by the gate's own decoder, and no work without end."""

import base64
import html
import json
import re
import string
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from identifiers import identifiers

from portcullis.pii.decoding import decoded_texts
from portcullis.pii.encoded import _BLOCK as BLOCK
from portcullis.pii.encoded import _SUSPECT, EncodedFinder, may_be_encoded
from portcullis.pii.entities import IN_TEXT, Entity
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.scan import Found, find, found_of

KEY = bytes(range(32))
REDACTED = MaskingPlan.parse({"entities": dict.fromkeys(IN_TEXT, "redact")})

SUSPECT = _SUSPECT.pattern
RUNS = {"base64", "base64 for URLs", "hexadecimal", "hexadecimal, capitals"}
Encoding = Callable[[str], str]
ENCODINGS: dict[str, Encoding] = {
    "percent": lambda text: quote(text, safe=""),
    "percent throughout": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "form": quote_plus,
    "decimal references": lambda text: "".join(f"&#{ord(it)};" for it in text),
    "hexadecimal references": lambda text: "".join(f"&#x{ord(it):X};" for it in text),
    "references without end": lambda text: "".join(f"&#{ord(it):07}" for it in text),
    "named references": lambda text: text.replace("@", "&commat;").replace(".", "&period;").replace(" ", "&nbsp;"),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "JSON": lambda text: "".join(
        f"\\u{text[place : place + 4]}" for text in [text.encode("utf-16-be").hex()] for place in range(0, len(text), 4)
    ),
    "repr": lambda text: "".join(f"\\x{ord(it):02X}" if ord(it) < 256 else it for it in text),
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, capitals": lambda text: "0x" + text.encode().hex().upper(),
}


def masked(*texts: str, plan: MaskingPlan = REDACTED) -> list[str]:
    cells: list[str] = mask_table(pa.table({"a": texts}), plan, key=KEY)[0]["a"].to_pylist()
    return cells


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("entity", "identifier"),
    [
        ("EMAIL", "jane.doe@example.com"),
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("US_SSN", "123-45-6789"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
        ("PHONE", "+1 202 555 0143"),
    ],
)
def test_an_encoded_identifier_is_masked_and_seen_by_the_gate(encoding: str, entity: str, identifier: str) -> None:
    text = f"id={ENCODINGS[encoding](identifier)}, é"
    assert residual_figures(pa.table({"a": [text]}), REDACTED)["residual_identifiers"] >= 1
    assert masked(text) == [f"id=<{entity}>, é"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://a.example/?m=jane%40b.example&x=1", "https://a.example/?m=<EMAIL>&x=1"),
        ("100%25 of jane%40b.example%20or so", "100%25 of <EMAIL>%20or so"),
        ("<a>jane&#64;b.example</a> &amp; co", "<a><EMAIL></a> &amp; co"),
        ("ünï%C3%BC jane%40b.example", "ünï%C3%BC <EMAIL>"),
        ("%FF%FE jane%40b.example", "%FF%FE <EMAIL>"),
        ("jane%2540b.example", "<EMAIL>"),
        ("id_amFuZUBiLmV4YW1wbGU=.sig", "id_<EMAIL>.sig"),
        ("eyJhIjoiamFuZUBiLmV4YW1wbGUifQ", "<EMAIL>"),
        ("x/amFuZUBiLmV4YW1wbGU/y", "x/<EMAIL>/y"),
    ],
)
def test_the_rest_of_a_text_stays(text: str, left: str) -> None:
    assert masked(text) == [left]


IDENTIFIERS = (
    "DE89370400440532013000",
    "12345678Z",
    "00:1A:2B:3C:4D:5E",
    "JG103759A",
    "4111111111111111",
    "203.0.113.7",
    "2125550123",
    "jane.doe@example.com",
)


@pytest.mark.parametrize("identifier", IDENTIFIERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("call\\n", "\\nor"),
        ("\\t", ""),
        ("\\r\\n", "\\r\\n"),
        ("\\u00a0", "\\u00a0"),
        ("\\u003e", "\\u003C"),
        ("\\x20", "\\xA0"),
        ('\\"', '\\"'),
        ("a\\/", "\\/b"),
        ("\\\\n", "\\\\n"),
        ("\x1b[31m", "\x1b[0m"),
        ("\x1b[1;31m", "\x1b[0m\x1b[K"),
        ("\\x1b[31m", "\\x1b[0m"),
        ("\\u001b[38;5;1m", "\\u001b[0m"),
    ],
)
def test_what_is_glued_to_an_escape_is_masked_and_the_escape_stays(before: str, after: str, identifier: str) -> None:
    text = f"{before}{identifier}{after} and more"
    assert residual_figures(pa.table({"a": [text]}), REDACTED)["residual_identifiers"] >= 1
    (cell,) = masked(text)
    assert re.fullmatch(re.escape(before) + "<[A-Z_]+>" + re.escape(f"{after} and more"), cell), cell
    assert residual_figures(pa.table({"a": [cell]}), REDACTED)["residual_identifiers"] == 0


def test_masked_json_is_json_and_its_tokens_are_the_plain_ones() -> None:
    plan = MaskingPlan.parse({"entities": dict.fromkeys(IN_TEXT, "token")})
    note = "\n".join(("call", *IDENTIFIERS, "é", "or"))
    plain = ["call", *masked(*IDENTIFIERS, plan=plan), "é", "or"]
    for text in (json.dumps({"note": note}), json.dumps({"note": json.dumps(note)})):
        (cell,) = masked(text, plan=plan)
        left = json.loads(cell)["note"]
        assert (json.loads(left) if left.startswith('"') else left).split("\n") == plain


def test_an_identifier_that_colours_cut_is_one() -> None:
    assert masked("see 4111\x1b[1m11111111\x1b[0m1111") == ["see <CREDIT_CARD>"]


def test_an_identifier_between_words_of_other_colours_is_masked() -> None:
    text = "at\x1b[1m12345678Z\x1b[0mor"
    assert residual_figures(pa.table({"a": [text]}), REDACTED)["residual_identifiers"] == 1
    assert masked(text) == ["at\x1b[1m<ES_DNI>\x1b[0mor"]


@pytest.mark.parametrize(
    "text", ["\\n@example.com", "\\u0041@example.com", "\\x41.b\\u0040example.com", "\\ud83d@a.example"]
)
def test_an_address_of_which_escapes_are_a_part_is_masked(text: str) -> None:
    (cell,) = masked(text)
    assert "example.com" not in cell
    assert "<EMAIL>" in cell


@pytest.mark.parametrize(
    "text",
    [
        "C:\\users\\new\\table, \\u12, \\xg0, \\ud83d, \\ud83d\\ude00, \x1b[ \x1b[31mred\x1b[0m \\",
        "7d1e3b5c9f2a4468b0c1d2e3f4a5968778695a4b3c2d1e0f",
        "0b7c9f2e-1a5d-4f0e-9c3b-7a8d6e5f4c3b",
        "internationalisation of baseball, 100%, R&D, a+b, 2+3, Tom & Jerry; C&A",
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=",
        "SGVsbG8sIHdvcmxkISBOb3RoaW5nIHRvIHNlZSBoZXJlLg==",
        "caf%C3%A9 &eacute;t&eacute; %zz &#xffffffff; &nosuch; &",
        "",
        "%",
    ],
)
def test_what_holds_no_identifier_stays_and_passes(text: str) -> None:
    table = pa.table({"a": [text, "x"]})
    assert masked(text) == [text]
    assert residual_figures(table, REDACTED)["residual_identifiers"] == 0


def test_what_stands_apart_only_once_another_is_out_is_masked_too() -> None:
    card = ENCODINGS["decimal references"]("4111 1111 1111 1111")
    text = "30303a31423a34343a31313a33413a4237" + card + "-" + card + "="
    (cell,) = masked(text)
    assert residual_figures(pa.table({"a": [cell]}), REDACTED)["residual_identifiers"] == 0


def test_a_users_rule_is_found_encoded_too() -> None:
    plan = MaskingPlan.parse(
        {"rules": {"EMPLOYEE_ID": {"pattern": r"\bE\d{6}\b"}}, "entities": {"EMPLOYEE_ID": "redact"}}
    )
    texts = [ENCODINGS[it]("see E123456") for it in ("percent throughout", "base64", "hexadecimal")]
    assert residual_figures(pa.table({"a": texts}), plan)["residual:EMPLOYEE_ID:a"] == 3
    assert [cell.replace("see%20", "").replace("%73%65%65%20", "") for cell in masked(*texts, plan=plan)] == [
        "<EMPLOYEE_ID>"
    ] * 3


@pytest.mark.parametrize("operator", ["token", "hash", "synthetic"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_stands_for_an_identifier_does_not_depend_on_how_it_is_encoded(encoding: str, operator: str) -> None:
    plan = MaskingPlan.parse({"entities": {"EMAIL": operator, "CREDIT_CARD": operator}})
    identifiers = ("Jane.Doe@example.com", "4111-1111-1111-1111")
    plain = masked("jane.doe@example.com", "4111111111111111", plan=plan)
    encode = ENCODINGS[encoding]
    assert masked(*map(encode, identifiers), plan=plan) == plain
    twice = [ENCODINGS["base64"](encode(it)) for it in identifiers]
    assert masked(*twice, plan=plan) == plain
    in_text = masked(*(f"see {encode(it)} there" for it in identifiers), plan=plan)
    assert in_text == [f"see {it} there" for it in plain]


def test_what_is_encoded_with_another_has_a_token_of_its_own() -> None:
    plan = MaskingPlan.parse({"entities": {"EMAIL": "token"}})
    both = ENCODINGS["base64"]("ann@example.com and bob@example.com")
    tokens = masked("ann@example.com", "bob@example.com", both, plan=plan)
    assert len(set(tokens)) == 3


@pytest.mark.parametrize("operator", ["token", "hash", "reversible", "star", {"star": {"keep_last": 4}}, "synthetic"])
def test_every_operator_leaves_nothing_that_decodes(operator: object) -> None:
    plan = MaskingPlan.parse({"entities": {"EMAIL": operator, "US_SSN": operator}})
    texts = [f"a {encode(it)} b" for encode in ENCODINGS.values() for it in ("jane.doe@example.com", "123-45-6789")]
    made, _ = mask_table(pa.table({"a": texts}), plan, key=KEY)
    assert residual_figures(made, plan)["residual_identifiers"] == 0


prose = st.text(string.ascii_letters + ' ,;!?\n"()[]&%+=\\\x1b', max_size=20)
chains = st.lists(st.sampled_from(sorted(ENCODINGS)), min_size=1, max_size=2)


@settings(max_examples=150)
@given(prose, identifiers, chains, prose)
@example("", (Entity.EMAIL, "0@0.com"), ["base64", "percent"], "")
def test_nothing_that_decodes_to_an_identifier_remains(
    before: str, identifier: tuple[Entity, str], chain: list[str], after: str
) -> None:
    """Base64 and hexadecimal only of ASCII: see what the module says of them."""
    text = identifier[1]
    assume(text.isascii() or not set(chain) & RUNS)
    for encoding in chain:
        text = ENCODINGS[encoding](text)
    (cell,) = masked(f"{before} q={text} {after}")
    shown = [cell, html.unescape(cell), *decoded_texts(cell)]
    assert not find(shown, IN_TEXT)
    assert text not in cell


ESCAPES = ["\\\\", "\\n", "\\u0040", "\\x5c", "\x1b[m", "\x1b[", "\x1b[1"]


escapes = st.sampled_from(
    ["\\n", "\\t", "\\/", '\\"', "\\\\n", "\\u00a0", "\\u003E", "\\x20", "\\\\x0A", "\x1b[31m", "\\u001b[m"]
)


@settings(max_examples=150)
@given(prose, escapes, identifiers, escapes, prose)
@example("", "\\n", (Entity.UK_NINO, "JG 10 37 59 A"), "\\n", "")
@example("", "\\n", (Entity.EU_VAT, "DE 136695976"), "\\n", "")
@example("", "\\n", (Entity.CREDIT_CARD, "４１１１ １１１１ １１１１ １１１１"), "\\n", "")
@example("", "\\n", (Entity.EMAIL, "jane.doe@example.com"), "\\n", "")
def test_no_identifier_hides_behind_an_escape(
    before: str, first: str, identifier: tuple[Entity, str], last: str, after: str
) -> None:
    (cell,) = masked(f"{before}{first}{identifier[1]}{last}{after}")
    assert not find([cell, *decoded_texts(cell)], IN_TEXT)
    assert residual_figures(pa.table({"a": [cell]}), REDACTED)["residual_identifiers"] == 0


class Counted:
    """Finds nothing, and counts the bytes that it is given."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, values: pa.LargeStringArray, _: str) -> Found:
        self.bytes += sum(len(text.encode()) for text in values.to_pylist())
        return found_of([])


@pytest.mark.parametrize(
    "piece", ["%25", "&amp;", "YUBi", "6140", "%2525", "&#38;", "&nGt;", "a+=1+1", "&&", "%%", *ESCAPES]
)
def test_the_work_grows_as_the_text_does(piece: str) -> None:
    work = []
    for times in (500, 1_000):
        counted = Counted()
        EncodedFinder(counted)(pa.array([piece * times], pa.large_string()), "")
        assert counted.bytes <= 40 * len(piece) * times
        work.append(counted.bytes)
    assert work[1] <= 2.1 * work[0] + 1_000


@pytest.mark.parametrize("piece", ["%25", "+=", *ESCAPES])
def test_the_time_grows_as_the_text_does(piece: str) -> None:
    def seconds(times: int) -> float:
        taken = []
        for _ in range(3):
            begin = time.process_time()
            EncodedFinder(Counted())(pa.array(["%25" + piece * times], pa.large_string()), "")
            taken.append(time.process_time() - begin)
        return min(taken)

    # Of eight times the text, linear work takes eight times as long, squared work 64 times.
    assert seconds(40_000) < 32 * max(seconds(5_000), 0.001)


def test_levels_are_two() -> None:
    deep = "jane@b.example"
    for _ in range(3):
        deep = base64.b64encode(deep.encode()).decode()
    assert masked(deep) == [deep]
    assert residual_figures(pa.table({"a": [deep]}), REDACTED)["residual_identifiers"] == 0


runs = st.text("%&+#()=;0123456789abcdefABCDEFGXmxuntYZz-_/ é\\\x1b[", max_size=40)
encoded = st.builds(lambda it, text: ENCODINGS[it](text), st.sampled_from(sorted(ENCODINGS)), runs)


@settings(max_examples=300)
@given(st.lists(st.one_of(runs, encoded, st.builds("{}{}".format, runs, encoded)), max_size=8), st.integers(0, 3))
@example(["61", "6a6a6a6a6a"], 0)
@example(["2", "+1", "%", "41", "&"], 0)
@example(["333333333333", "353333333535", "373733333737", "4111111111111111", "7a3333333333", "33333333337a"], 0)
def test_the_glance_leaves_out_nothing_that_the_pattern_finds(texts: list[str], skipped: int) -> None:
    values = pa.array(texts, pa.large_string()).slice(skipped)
    assert may_be_encoded(values).tolist() == pc.match_substring_regex(values, SUSPECT).to_pylist()


@pytest.mark.parametrize(
    "text", ["YUBiLmV4", "6a6261636465", "333333333333", "%41", "&a", "1+1", "\\n1", "\\u0040", "\x1b["]
)
def test_the_glance_sees_what_lies_across_two_blocks(text: str) -> None:
    for place in range(BLOCK - 14, BLOCK + 2):
        before = ["x" * (BLOCK // 2), " " * (place - BLOCK // 2)]
        assert may_be_encoded(pa.array([*before, text, "x"], pa.large_string())).tolist() == [False, False, True, False]
        assert may_be_encoded(pa.array([" ".join(before)[1:] + text], pa.large_string())).tolist() == [True]
