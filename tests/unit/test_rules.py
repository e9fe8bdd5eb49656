"""Rules of the user's own: what they find, which are refused, and that no text makes them slow."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.errors import ConfigError, DataError, GateFailedError
from portcullis.pii.entities import Entity
from portcullis.pii.folding import fold
from portcullis.pii.frames import check_frame, mask_frame
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.reveal import reveal_table
from portcullis.pii.rule_scan import matches
from portcullis.pii.rules import MAX_PROGRAM, Rule
from portcullis.pii.spelling import masked_spelling
from portcullis.pii.tokens import token

KEY = bytes(range(32))
EMPLOYEE = {"pattern": r"\bE\d{6}\b"}


def plan(rules: dict[str, Any], columns: dict[str, Any] | None = None, **entities: Any) -> MaskingPlan:
    return MaskingPlan.parse({"entities": {"EMAIL": "token", **entities}, "rules": rules, "columns": columns or {}})


def masked(text: str, rules: dict[str, Any], **entities: Any) -> str:
    cell: str = mask_table(pa.table({"a": [text]}), plan(rules, **entities), key=KEY)[0]["a"][0].as_py()
    return cell


def tokened(value: str) -> str:
    return token(KEY, "EMPLOYEE_ID", value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("E123456", "{}"),
        ("badge E123456, (E123456)", "badge {}, ({})"),
        ("xE123456 E1234567", "xE123456 E1234567"),
        ("é E123456 é", "é {} é"),
        ("Ｅ１２３４５６!", "{}!"),
        ("E12\u200b34\u00ad56", "{}"),
        ("\u202eE١٢٣٤٥٦", "\u202e{}"),
    ],
)
def test_spans_are_exact_in_text_of_any_script(text: str, left: str) -> None:
    made = masked(text, {"EMPLOYEE_ID": EMPLOYEE})
    assert made == left.replace("{}", tokened("E123456"))


@pytest.mark.parametrize(
    ("operator", "left"),
    [
        ("redact", "no. <EMPLOYEE_ID>"),
        ("star", "no. *******"),
        ({"star": {"keep_last": 3}}, "no. ****456"),
        ("token", "no. " + tokened("E123456")),
    ],
)
def test_an_entity_of_the_users_own_takes_an_operator(operator: Any, left: str) -> None:
    assert masked("no. E123456", {"EMPLOYEE_ID": EMPLOYEE}, EMPLOYEE_ID=operator) == left


def test_one_identifier_has_one_token_in_text_and_in_columns_and_is_revealed() -> None:
    table = pa.table({"note": ["by E123456"], "staff": ["Ｅ123456 "], "id": ["E123456"], "gone": ["E123456"]})
    columns = {"staff": {"token": "EMPLOYEE_ID"}, "id": {"reversible": "EMPLOYEE_ID"}, "gone": "drop"}
    its = plan({"EMPLOYEE_ID": EMPLOYEE}, columns)
    made, report = mask_table(table, its, key=KEY)
    assert made["note"][0].as_py() == "by " + tokened("E123456")
    assert made["staff"][0].as_py() == tokened("E123456")
    assert report.counts == {name: {"EMPLOYEE_ID": 1} for name in ("note", "staff", "id")}
    assert residual_figures(made, its)["residual_identifiers"] == 0
    told, counts = reveal_table(made, KEY)
    assert (told["id"][0].as_py(), counts) == ("E123456", {"id": {"EMPLOYEE_ID": 1}})


@pytest.mark.parametrize(
    ("column", "text", "found"),
    [
        ("a", "123456", False),
        ("a", "employees 123456", False),
        ("a", "Staff-no: 123456", True),
        ("a", "123456 is our EMPLOYEE", True),
        ("a", "emplo\u00adyee 123456", True),
        ("employeeId", "123456", True),
        ("staff_no", "123456", True),
        ("staffing", "123456", False),
    ],
)
def test_a_context_word_must_stand_in_the_cell_or_name_the_column(column: str, text: str, found: bool) -> None:
    its = plan({"EMPLOYEE_ID": {"pattern": r"\b\d{6}\b", "context": ["employee", "staff"]}})
    table = pa.table({column: [text]})
    assert (residual_figures(table, its)["residual_identifiers"] == 1) is found
    made, _ = mask_table(table, its, key=KEY)
    assert (made[column][0].as_py() != text) is found
    assert residual_figures(made, its)["residual_identifiers"] == 0


@pytest.mark.parametrize(
    ("validator", "good", "bad"),
    [
        ("luhn", "79927398713", "79927398710"),
        ("mod97", "5493000IBP32UQZ0KL24", "5493000IBP32UQZ0KL25"),  # a legal entity identifier, ISO 17442
    ],
)
def test_a_validator_decides(validator: str, good: str, bad: str) -> None:
    rules = {"MEMBER_NO": {"pattern": r"\b[0-9A-Z]{11,20}\b", "validator": validator}}
    assert masked(f"{bad} {good}", rules) == f"{bad} {token(KEY, 'MEMBER_NO', good)}"
    assert residual_figures(pa.table({"a": [f"{bad} {good}"]}), plan(rules))["residual:MEMBER_NO:a"] == 1


def test_what_a_match_that_is_not_valid_covers_is_tried_again() -> None:
    rules = {"MEMBER_NO": {"pattern": r"\d{11}", "validator": "luhn"}}
    assert masked("1" + "79927398713", rules) == "1" + token(KEY, "MEMBER_NO", "79927398713")


def test_an_identifier_of_ours_names_what_a_rule_overlaps() -> None:
    made = masked("E123456@example.com", {"EMPLOYEE_ID": EMPLOYEE})
    assert made == token(KEY, "EMAIL", "e123456@example.com")


def test_numbers_of_a_column_that_the_context_names_are_refused_until_declared() -> None:
    rules = {"EMPLOYEE_ID": {"pattern": r"\d{6}", "context": ["employee"]}}
    table = pa.table({"employee": [123456, None], "price": [123456, 1]})
    with pytest.raises(DataError, match="declare it token or drop"):
        mask_table(table, plan(rules), key=KEY)
    made, _ = mask_table(table, plan(rules, {"employee": "token"}), key=KEY)
    assert made["price"].to_pylist() == [123456, 1]


def test_a_columns_name_that_a_rule_finds_is_refused() -> None:
    with pytest.raises(DataError, match="column's name"):
        mask_table(pa.table({"E123456": ["x"]}), plan({"EMPLOYEE_ID": EMPLOYEE}), key=KEY)


def test_the_gate_refuses_what_masking_did_not_see() -> None:
    its = plan({"EMPLOYEE_ID": EMPLOYEE})
    report = check_frame(pa.table({"a": ["E123456", "see E 12", None]}), its)
    assert not report.passed
    # What `keep_last` leaves of a column is a rule's match itself.
    short = plan({"CODE": {"pattern": r"\d{4}"}}, {"a": {"star": {"keep_last": 4}}})
    with pytest.raises(GateFailedError):
        mask_frame(pa.table({"a": ["12345678"]}), short, key=KEY)


def test_a_text_in_which_masking_leaves_a_match_is_redacted_as_a_whole() -> None:
    rules = {"CODE": {"pattern": r"\d{4,8}"}}
    assert masked("ref 12345678", rules, CODE={"star": {"keep_last": 4}}) == "<CODE>"
    assert masked("12 a@b.example 34", {"CODE": {"pattern": r"12 \W 34"}}) == token(KEY, "CODE", "12 a@b.example 34")


def test_a_name_of_an_entity_that_no_plan_knows_is_no_masked_spelling() -> None:
    made = mask_table(pa.table({"a": ["E123456"]}), plan({"EMPLOYEE_ID": EMPLOYEE}, {"a": "token"}), key=KEY)[0]
    assert residual_figures(made, plan({}, {"a": "token"}))["untokenised_cells"] == 1


UNSOUND = {
    "no pattern": ({}, "text of 1 to"),
    "not text": ({"pattern": 7}, "text of 1 to"),
    "empty": ({"pattern": ""}, "text of 1 to"),
    "too long": ({"pattern": "a" * 1001}, "text of 1 to"),
    "a line break": ({"pattern": "abc\n"}, "text of 1 to"),
    "does not compile": ({"pattern": "(abc"}, "none of RE2's"),
    "lookaround": ({"pattern": "(?=abc)abc"}, "none of RE2's"),
    "back reference": ({"pattern": r"(?:abc)\1"}, "none of RE2's"),
    "too much memory": ({"pattern": r"(?:\pL{1,100}){1,10}"}, "none of RE2's"),
    "large": ({"pattern": r"\pL{1,50}"}, "too much memory"),
    "star": ({"pattern": "abc.*"}, "upper bound"),
    "plus": ({"pattern": r"E\d+"}, "upper bound"),
    "lazy": ({"pattern": "ab+?c"}, "upper bound"),
    "open": ({"pattern": r"E\d{6,}"}, "upper bound"),
    "behind a class": ({"pattern": r"[]x]abc[^]]+"}, "upper bound"),
    "catastrophic": ({"pattern": "(?:a+)+b"}, "upper bound"),
    "matches nothing": ({"pattern": "a?"}, "nothing at all"),
    "boundary": ({"pattern": r"\b"}, "nothing at all"),
    "or nothing": ({"pattern": "abc|$"}, "nothing at all"),
    "one letter": ({"pattern": "."}, "fewer than 3"),
    "two": ({"pattern": r"[A-Z]\d{1,9}"}, "fewer than 3"),
    "two of another script": ({"pattern": r"[é]{2}"}, "fewer than 3"),
    "anything": ({"pattern": ".{3}"}, "blanks"),
    "stars": ({"pattern": r"\W{5}"}, "blanks"),
    "captures": ({"pattern": r"(E|F)\d{6}"}, "captures"),
    "named group": ({"pattern": r"(?P<id>E\d{6})"}, "captures"),
    "quoted": ({"pattern": r"\Qabc"}, "each character itself"),
    "bytes": ({"pattern": r"\C{4}"}, "each character itself"),
    "context of one word": ({**EMPLOYEE, "context": "staff"}, "list of words"),
    "context of marks": ({**EMPLOYEE, "context": ["--"]}, "a letter or digit"),
    "context twice": ({**EMPLOYEE, "context": ["a", "a"]}, "none twice"),
    "context of numbers": ({**EMPLOYEE, "context": [7]}, "a letter or digit"),
    "validator": ({**EMPLOYEE, "validator": "iban"}, "none, luhn, mod97"),
    "validator of another type": ({**EMPLOYEE, "validator": True}, "none, luhn, mod97"),
    "unknown key": ({**EMPLOYEE, "patern": "x"}, "nearest is 'pattern'"),
    "no mapping": (r"E\d{6}", "maps pattern"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_rule_is_refused(case: str) -> None:
    given_, message = UNSOUND[case]
    with pytest.raises(ConfigError, match=message):
        plan({"EMPLOYEE_ID": given_})


@pytest.mark.parametrize(
    "name", ["EMAIL", "VALUE", "employee", "A", "A1", "_A", "A__B", "A_", "A" * 41, "Ä_B", 7, None]
)
def test_a_rule_of_another_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError):
        plan({name: EMPLOYEE})


@pytest.mark.parametrize(
    "document",
    [
        {"rules": []},
        {"rules": {"CODE": EMPLOYEE}, "entities": ["EMPLOYEE_ID"]},
        {"rules": {"CODE": EMPLOYEE}, "entities": {"CODE": "synthetic"}},
        {"rules": {"CODE": EMPLOYEE}, "entities": {"CODE": "generalise"}},
        {"rules": {"CODE": EMPLOYEE}, "entities": {"CODE": "drop"}},
        {"rules": {"CODE": EMPLOYEE}, "columns": {"a": {"token": "OTHER"}}},
        {"rules": {"CODE": EMPLOYEE}, "columns": {"a": {"synthetic": "CODE"}}},
        {"rules": {"CODE": EMPLOYEE}, "columns": {"a": {"token": "VALUE"}}},
        {"rules": {f"CODE_{chr(65 + it // 26)}{chr(65 + it % 26)}": EMPLOYEE for it in range(65)}},
    ],
)
def test_a_policy_that_means_nothing_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MaskingPlan.parse(document)


def test_a_plan_is_spelled_one_way() -> None:
    its = plan({"B_CODE": {"pattern": "abc", "context": ["x"], "validator": "luhn"}, "A_CODE": {"pattern": "abc"}})
    assert list(its.to_dict()["rules"]) == ["A_CODE", "B_CODE"]
    assert MaskingPlan.parse(its.to_dict()) == its
    assert its.to_dict()["entities"] == {"EMAIL": "token", "A_CODE": "token", "B_CODE": "token"}
    assert "rules" not in plan({}).to_dict()


class Counted:
    """A program that counts its searches and how far they must read: to the end of their match, or of the text."""

    def __init__(self, program: Any) -> None:
        self.program, self.searches, self.read = program, 0, 0

    def search(self, text: bytes, position: int) -> Any:
        found = self.program.search(text, position)
        self.searches += 1
        self.read += (found.end() if found else len(text)) - position
        return found


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(?:a{1,30}){3,30}b", "a"),
        (r"xx.{0,900}y|xxx", "x"),
        (r"(?:x|xx|xxx){3,300}y", "x"),
        (r"(?:[a-z]{1,20}@){3}", "ab@"),
        (r"\d{3,300}", "7"),
        (r"(?i)(?:é|e){3,30}!", "é"),
    ],
)
@pytest.mark.parametrize("validator", ["none", "luhn"])
def test_the_work_grows_as_the_text_does(pattern: str, text: str, validator: str) -> None:
    """Bytes read, not seconds: twice the text is at most about twice the work, however the pattern nests."""
    work = []
    for times in (400, 800):
        rule = Rule("CODE", pattern, validator=validator)  # type: ignore[arg-type]
        counted = Counted(rule.program)
        rule.__dict__["program"] = counted
        written = (text * times).encode()
        list(matches(rule, written))
        assert counted.searches <= len(written) + 1
        work.append(counted.read)
    assert work[1] <= 2.1 * work[0] + 1_000
    assert rule.program.program.programsize <= MAX_PROGRAM


PATTERNS = (r"\bE\d{6}\b", r"[A-Z]{2}-\d{3,5}", r"(?i)ref[ .:]?\d{4}", r"\d{4}\D\d{3}", r"[^ ]{3}#", r"^\d{5}$")
pieces = st.sampled_from(
    [
        *("E123456", "AB-1234", "ref 7788", "REF:4711", "1234-567", "abc#", "12345", "a@b.example", "<", "*", "|", " "),
        *("é", "\u200b", "Ｅ", "ref", "1234", "<EMAIL>", "4111111111111111", "ﬁ", "\n", "e\u0301", "İ"),
    ]
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(pieces, max_size=8).map("".join), min_size=1, max_size=4),
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True),
    st.sampled_from(["token", "redact", "star", {"star": {"keep_last": 4}}, "reversible", "hash"]),
)
def test_nothing_that_a_rule_matches_remains_and_the_gate_agrees(
    texts: list[str], patterns: list[str], operator: Any
) -> None:
    names = ["A_CODE", "B_CODE", "C_CODE"][: len(patterns)]
    rules = {name: {"pattern": pattern} for name, pattern in zip(names, patterns, strict=True)}
    entities = dict.fromkeys((*names, Entity.CREDIT_CARD), operator)
    its = plan(rules, **entities)
    made, _ = mask_table(pa.table({"a": texts}), its, key=KEY)
    left = residual_figures(made, its)
    assert {name: count for name, count in left.items() if name.split(":")[1:2] and name.split(":")[1] in names} == {}
    for cell in made["a"].to_pylist():
        rest = masked_spelling(its).sub("|", cell)
        for rule in its.rules.values():
            assert not [*matches(rule, rest.encode()), *matches(rule, fold(rest).encode())]
