"""Masking policies and operators: what each leaves, which policies are refused, and what a gate recognises."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

import portcullis.pii
from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.errors import ConfigError, DataError
from portcullis.pii.entities import BY_COLUMN, Entity
from portcullis.pii.generalise import RESTRICTED_ZIP3
from portcullis.pii.mask import mask_table
from portcullis.pii.operators import SYNTHETIC, Operator
from portcullis.pii.plan import MaskingPlan, masking_plan
from portcullis.pii.residual import residual_figures
from portcullis.pii.spelling import cell_spelling, masked_spelling
from portcullis.pii.tokens import HASH, REVERSIBLE, TOKEN, token

KEY = bytes(range(32))


def cell(text: str, operator: object, *, entities: object = ("EMAIL",)) -> str | None:
    table, _ = mask_table(pa.table({"a": [text]}), MaskingPlan(entities, {"a": operator}), key=KEY)
    masked: str | None = table["a"][0].as_py()
    return masked


def text(value: str, **operators: object) -> str:
    masked: str = mask_table(pa.table({"a": [value]}), MaskingPlan(operators, {}), key=KEY)[0]["a"][0].as_py()
    return masked


GENERALISED = {
    "year": {
        "1990-05-12": "1990",
        "12.05.1990": "1990",
        "May 12, 1990": "1990",
        "19900512": "1990",
        "1990-05-12T10:30:00Z": "1990",
        "5/12/90": "<VALUE>",
        "1990 or 1991": "<VALUE>",
        "unknown": "<VALUE>",
    },
    "age": {
        "0": "0",
        "89": "89",
        "90": "90+",
        "104": "90+",
        "34 years": "34",
        "34.0": "34",
        "89.9": "89",
        "34.5.1": "<VALUE>",
        "-1": "<VALUE>",
        "": "<VALUE>",
    },
    "zip3": {
        "02139": "021",
        "02139-4307": "021",
        "03601": "000",
        "59013": "590",
        "2139": "<VALUE>",
        "SW1A 1AA": "<VALUE>",
    },
    "network": {
        "192.168.17.5": "192.168.17.0/24",
        "2001:db8:1:2::7": "2001:db8:1::/48",
        "fe80::1%eth0": "fe80::/48",
        "10.0.0": "<VALUE>",
    },
}


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [(form, value, made) for form, cases in GENERALISED.items() for value, made in cases.items()],
)
def test_cells_are_generalised_and_never_left_where_they_are_not_understood(form, value, expected) -> None:
    assert cell(value, {"generalise": form}) == expected
    assert cell_spelling(Operator("generalise", form=form)).fullmatch(expected)


def test_bins_have_their_lower_end() -> None:
    bins = {"generalise": {"bin": 2.5}}
    assert [cell(value, bins) for value in ("7", "-1", "1e400", "x", "nan")] == [
        "5",
        "-2.5",
        "<VALUE>",
        "<VALUE>",
        "<VALUE>",
    ]
    table = pa.table({"a": [37, None, -1, 2**60], "b": [37.5, None, float("nan"), 2.0]})
    plan = MaskingPlan(["EMAIL"], {name: {"generalise": {"bin": 10}} for name in "ab"})
    masked, _ = mask_table(table, plan, key=KEY)
    assert masked.schema == table.schema
    assert masked.to_pydict() == {"a": [30, None, -10, None], "b": [30.0, None, None, 0.0]}


def test_numbers_stay_numbers() -> None:
    table = pa.table({"age": [34, 90, 104, -1], "born": [1990, 2024, 7, 1931]})
    plan = MaskingPlan(["EMAIL"], {"age": {"generalise": "age"}, "born": {"generalise": "year"}})
    assert mask_table(table, plan, key=KEY)[0].to_pydict() == {
        "age": [34, 90, 90, None],
        "born": [1990, 2024, None, 1931],
    }


def test_fractions_of_an_age_are_left_out_and_no_number_is_null() -> None:
    plan = MaskingPlan(["EMAIL"], {"age": {"generalise": "age"}})
    ages = [30.5, 89.9, 90.0, 1e300, 0.0, -0.5, float("nan"), float("inf"), -float("inf"), None]
    made = mask_table(pa.table({"age": ages}), plan, key=KEY)[0]
    assert made["age"].to_pylist() == [30.0, 89.0, 90.0, 90.0, 0.0, None, None, None, None, None]
    assert residual_figures(made, plan)["malformed_cells"] == 0


@pytest.mark.parametrize("form", ["zip3", "network"])
def test_numbers_that_lost_their_zeros_are_refused(form) -> None:
    with pytest.raises(DataError, match=r"dataset\.sensitive"):
        mask_table(pa.table({"a": [2139]}), MaskingPlan(["EMAIL"], {"a": {"generalise": form}}), key=KEY)


def test_the_restricted_areas_are_those_of_the_guidance() -> None:
    assert len(RESTRICTED_ZIP3) == 17


@pytest.mark.parametrize(
    ("value", "kept", "expected"),
    [
        ("4111 1111 1111 1111", 4, "***************1111"),
        ("4111 1111 1111 1111", 0, "*******************"),
        ("１２３-45-6789", 4, "*******6789"),
        ("1234567", 4, "*******"),
        ("12345678", 4, "****5678"),
        ("", 4, ""),
    ],
)
def test_stars_are_as_long_as_what_they_cover(value, kept, expected) -> None:
    assert cell(value, {"star": {"keep_last": kept}}) == expected
    assert cell_spelling(Operator("star", keep_last=kept)).fullmatch(expected)


def test_stars_in_text_leave_the_rest() -> None:
    star = {"star": {"keep_last": 4}}
    assert (
        text("é 4111 1111 1111 1111, 4111111111111111", CREDIT_CARD=star) == "é ***************1111, ************1111"
    )
    assert text("４111 1111 1111 1111 é", CREDIT_CARD=star) == "***************1111 é"
    assert text("a ann@example.com b", EMAIL="star", CREDIT_CARD=star) == "a *************** b"


def test_keyed_spellings_differ_by_operator_and_by_key() -> None:
    value = "ann@example.com"
    made = {name: cell(value, name) for name in ("token", "hash", "reversible", "redact")}
    assert made["token"] == token(KEY, "EMAIL", value) and TOKEN.fullmatch(made["token"])
    assert HASH.fullmatch(made["hash"]) and made["token"][7:-1] not in made["hash"]
    assert REVERSIBLE.fullmatch(made["reversible"])
    assert made["redact"] == "<EMAIL>"
    assert {name: text(value, EMAIL=name) for name in made} == made


@pytest.mark.parametrize("entity", sorted(SYNTHETIC))
def test_what_is_made_up_is_consistent_and_recognised(entity) -> None:
    plan = MaskingPlan({entity: "synthetic"}, {"a": {"synthetic": entity.value}})
    values = [f"{n} Main St {n}" for n in range(300)] + ["2001:db8::7", "10.0.0.1"]
    made = mask_table(pa.table({"a": [*values, *values]}), plan, key=KEY)[0]["a"].to_pylist()
    assert made[: len(values)] == made[len(values) :]
    assert len(set(made)) > 5
    assert all(cell_spelling(plan.columns["a"]).fullmatch(it) for it in made)
    assert all(masked_spelling(plan).fullmatch(it) for it in made)
    figures = residual_figures(pa.table({"a": made}), plan)
    assert (figures["residual_identifiers"], figures["untokenised_cells"]) == (0, 0)


def test_a_real_one_is_not_taken_for_made_up() -> None:
    plan = MaskingPlan(dict.fromkeys(SYNTHETIC, "synthetic"), {})
    for real in (
        "ann@example.com",
        "212-555-0200",
        "123-45-6789",
        "4111 1111 1111 1111",
        "192.0.3.1",
        "00:00:5e:00:54:01",
    ):
        assert not masked_spelling(plan).search(real)


def test_columns_that_the_plan_does_not_name_are_treated_as_what_they_hold() -> None:
    table = pa.table({"patient_name": ["Mary Smith", "James Brown", "Linda Jones"] * 4, "age": [34, 95, 41] * 4})
    plan = MaskingPlan(["EMAIL", "PERSON_NAME", "AGE"], {})
    masked, report = mask_table(table, plan, key=KEY)
    assert masked["patient_name"][0].as_py() == token(KEY, "PERSON_NAME", "mary smith")
    assert masked["age"].to_pylist() == [34, 90, 41] * 4
    assert report.profiled == {"patient_name": "PERSON_NAME", "age": "AGE"}
    assert report.actions == {"patient_name": "token", "age": {"generalise": "age"}}
    kept = MaskingPlan(["EMAIL", "PERSON_NAME", "AGE"], {"age": {"keep": "published ages of officials"}})
    assert mask_table(table, kept, key=KEY)[0]["age"].equals(table["age"])


def test_positions_are_rows_and_five_at_most() -> None:
    mails = ["ann@example.com", None, "x", *["bob@example.com"] * 9]
    _, report = mask_table(pa.table({"a": mails}), MaskingPlan(["EMAIL"], {}), key=KEY)
    assert report.positions == {"a": {"EMAIL": (1, 4, 5, 6, 7)}}
    assert report.operators == {"EMAIL": "token"}


BAD_POLICIES = {
    "no mapping": (["EMAIL"], "not a mapping"),
    "unknown key": ({"entites": {}}, "the nearest is 'entities'"),
    "unknown entity": ({"entities": {"EMIAL": "token"}}, "the nearest is 'EMAIL'"),
    "no entity": ({"entities": {}}, "at least one"),
    "entity twice": ({"entities": ["EMAIL", "EMAIL"]}, "twice"),
    "unknown operator": ({"entities": {"EMAIL": "tokn"}}, r"masking\.entities\.EMAIL: no operator .* 'token'"),
    "operator no name": ({"columns": {"a": ["drop"]}}, "an operator is a name"),
    "two operators": ({"columns": {"a": {"star": {}, "token": "EMAIL"}}}, "an operator is a name"),
    "drop of an entity": ({"entities": {"EMAIL": "drop"}}, "is for columns"),
    "scan of an entity": ({"entities": {"EMAIL": "scan"}}, "is for columns"),
    "keep of an entity": ({"entities": {"EMAIL": {"keep": "why"}}}, "is for columns"),
    "keep without a reason": ({"columns": {"a": "keep"}}, "needs its reason"),
    "a blank reason": ({"columns": {"a": {"keep": " "}}}, "needs its reason"),
    "generalise of a mail": ({"entities": {"EMAIL": "generalise"}}, "no form"),
    "another form": ({"entities": {"IP_ADDRESS": {"generalise": "year"}}}, "only the form network"),
    "generalise how": ({"columns": {"a": "generalise"}}, "say how"),
    "unknown form": ({"columns": {"a": {"generalise": "yeer"}}}, "nearest is 'year'"),
    "a bin of nothing": ({"columns": {"a": {"generalise": {"bin": 0}}}}, "the width of a bin"),
    "a bin of yes": ({"columns": {"a": {"generalise": {"bin": True}}}}, "no such option"),
    "synthetic passport": ({"entities": {"US_PASSPORT": "synthetic"}}, "nothing synthetic"),
    "synthetic what": ({"columns": {"a": "synthetic"}}, "say what to make up"),
    "synthetic of another": ({"entities": {"EMAIL": {"synthetic": "PHONE"}}}, "says nothing here"),
    "too many kept": ({"columns": {"a": {"star": {"keep_last": 5}}}}, "from 0 to 4"),
    "half a character kept": ({"columns": {"a": {"star": {"keep_last": 0.5}}}}, "from 0 to 4"),
    "unknown option": ({"columns": {"a": {"star": {"keep": 1}}}}, "knows no 'keep'"),
    "option of none": ({"columns": {"a": {"drop": "x"}}}, "no such option"),
    "unknown detection": ({"detection": "loose"}, "strict or recall"),
    "column that is a number": ({"columns": {1: "drop"}}, "printable"),
    "columns a list": ({"columns": ["a"]}, "maps columns"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_bad_policies_are_refused(case) -> None:
    document, message = BAD_POLICIES[case]
    with pytest.raises(ConfigError, match=message) as refusal:
        MaskingPlan.parse(document)
    assert "\n" not in str(refusal.value)


def test_a_policy_has_one_spelling() -> None:
    plan = MaskingPlan.parse(
        {
            "entities": {
                "IP_ADDRESS": "generalise",
                "EMAIL": {"token": "EMAIL"},
                "CREDIT_CARD": {"star": {"keep_last": 4.0}},
            },
            "columns": {"b": "star", "a": {"keep": "why"}, "c": {"hash": "PERSON_NAME"}},
        }
    )
    assert plan.to_dict() == {
        "detection": "strict",
        "entities": {
            "EMAIL": "token",
            "CREDIT_CARD": {"star": {"keep_last": 4}},
            "IP_ADDRESS": {"generalise": "network"},
        },
        "columns": {"a": {"keep": "why"}, "b": "star", "c": {"hash": "PERSON_NAME"}},
    }
    assert MaskingPlan.parse(plan.to_dict()) == plan
    assert not BY_COLUMN.intersection(MaskingPlan.parse({}).entities)
    assert MaskingPlan(list(Entity), {}).entities[Entity.AGE] == Operator("generalise", form="age")


SPEC = DatasetSpec(
    "mine",
    Label("y", ("0", "1")),
    Features(("f",), (1,), 0, 1),
    sensitive={"zip": "token", "note": "scan", "id": "drop"},
)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"zip": "token", "note": "scan"}, "leaves out sensitive columns: 'id'"),
        ({"zip": {"keep": "why"}, "note": "scan", "id": "drop"}, "zip is keep"),
        ({"zip": "drop", "note": "scan", "id": "drop"}, "zip is drop"),
        ({"zip": "token", "note": "token", "id": "drop"}, "note is token"),
        ({"zip": "token", "note": "scan", "id": "drop", "f": "token"}, "learns from"),
        ({"zip": "token", "note": "scan", "id": "drop", "y": "hash"}, "learns from"),
    ],
)
def test_a_policy_takes_nothing_back_of_what_a_data_set_declares(columns, message) -> None:
    with pytest.raises(ConfigError, match=message):
        masking_plan(SPEC, {"columns": columns})


def test_a_policy_says_more_exactly_what_becomes_of_a_sensitive_column() -> None:
    plan = MaskingPlan.parse({"columns": {"zip": {"generalise": "zip3"}}}).covering(SPEC.sensitive)
    assert plan.to_dict()["columns"] == {"zip": {"generalise": "zip3"}, "note": "scan", "id": "drop"}
    assert masking_plan(SPEC, plan.to_dict()) == plan


def test_the_policy_on_the_stages_page_is_one() -> None:
    page = (Path(portcullis.pii.__file__).parent / "README.md").read_text()
    document = yaml.safe_load(page.split("```\n")[1])
    plan = MaskingPlan.parse(document["masking"])
    assert plan.columns["name"] == Operator("token", entity=Entity.PERSON_NAME)
