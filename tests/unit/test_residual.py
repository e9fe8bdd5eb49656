"""The second measurement: it sees what the scan sees and more, never a token, and little that is no identifier."""

import hashlib
import random
import uuid

import pyarrow as pa
import pytest

from portcullis.errors import DataError
from portcullis.pii.entities import IN_TEXT, Entity
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.scan import find
from portcullis.pii.tokens import VALUE, token

KEY = bytes(32)
ALL = IN_TEXT
PLAN = MaskingPlan(ALL, {})
MADE_UP = {Entity.EMAIL: "ann@example.org", Entity.PHONE: "212-555-0123", Entity.IP_ADDRESS: "198.51.100.7"}


def residual(text: str, *, column: str = "text") -> int:
    return residual_figures(pa.table({column: [text]}), PLAN)["residual_identifiers"]


@pytest.mark.parametrize(
    "text",
    [
        "mail ann@example.com now",
        "ann＠example．com",
        "4111 1111 1111 1111 123",
        "41111111\u200b11111111",
        "gb82 west 1234 5698 7654 32",
        "123-45-6789",
        "１２３-४५-6789",
        "192.0.2.1",
        "2001:db8::1",
        "src:2001:db8::1:",
        "(212) 555-0100",
        "2125550100",
        "+44 20 7946 0958",
    ],
)
def test_what_the_scan_finds_is_seen(text: str) -> None:
    assert find([text], ALL)
    assert residual(text) == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("ann @ example.com", id="mail with blanks"),
        pytest.param("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", id="card spelled out"),
        pytest.param("4111__1111__1111__1111", id="card with underscores"),
        pytest.param("4111 / 1111 / 1111 / 1111", id="card with slashes"),
        pytest.param("GB82_WEST_1234_5698_7654_32", id="IBAN with underscores"),
        pytest.param("123--45--6789", id="SSN with long separators"),
        pytest.param("123*45*6789", id="SSN with stars"),
        pytest.param("ssn: 12-345-6789", id="SSN in odd groups"),
        pytest.param("192[.]0[.]2[.]1", id="defanged address"),
        pytest.param("212_555_0100", id="phone with underscores"),
    ],
)
def test_what_fools_the_scan_does_not_fool_the_gate(text: str) -> None:
    assert not find([text], ALL)
    assert residual(text) == 1


def test_the_columns_name_is_read_too() -> None:
    assert residual("123456789", column="ssn") == 1
    assert residual("123456789", column="order") == 0
    assert residual_figures(pa.table({"ann@example.com": [True]}), PLAN)["residual_identifiers"] == 1


def test_numbers_are_searched_for_cards() -> None:
    table = pa.table({"a": [4111111111111111, None, 5], "b": [1.0, 4111111111111111.0, 2.0]})
    figures = residual_figures(table, PLAN)
    assert figures["residual_identifiers"] == 2
    assert (figures["cells_scanned"], figures["columns_scanned"]) == (5, 2)
    assert residual_figures(table, MaskingPlan((Entity.EMAIL,), {}))["residual_identifiers"] == 0


def test_tokens_are_never_identifiers() -> None:
    rng = random.Random(0)
    tokens = [token(KEY, kind, str(rng.random())) for kind in (*ALL, VALUE) for _ in range(300)]
    glued = "".join(tokens)
    assert not find([*tokens, glued, " ".join(tokens)], ALL)
    assert residual(glued) == residual(" ".join(tokens)) == 0
    figures = residual_figures(pa.table({"phone": tokens}), MaskingPlan(ALL, {"phone": "token"}))
    assert figures["residual_identifiers"] == figures["untokenised_cells"] == 0


@pytest.mark.parametrize(
    "cell",
    [
        "Ann",
        "",
        token(KEY, VALUE, "x") + " ",
        " " + token(KEY, VALUE, "x"),
        token(KEY, VALUE, "x").lower(),
        token(KEY, VALUE, "x")[:-2] + ">",
        "<NAME:" + "b" * 32 + ">",
        token(KEY, VALUE, "x") * 2,
        token(KEY, VALUE, "x") + "\n",
    ],
)
def test_cells_that_are_no_token_are_counted(cell: str) -> None:
    table = pa.table({"a": [cell, None, cell, token(KEY, VALUE, "x")]})
    assert residual_figures(table, MaskingPlan(ALL, {"a": "token"}))["untokenised_cells"] == 2


@pytest.mark.parametrize(
    ("operator", "cells"),
    [
        ({"generalise": "network"}, ["203.0.113.7", "2001:db8::7:1", "::1", "10.1.2.3/8", "unknown", None]),
        *(({"synthetic": str(entity)}, [example]) for entity, example in MADE_UP.items()),
    ],
)
def test_what_a_columns_operator_makes_is_known_in_that_column_alone(operator: object, cells: list[str]) -> None:
    plan = MaskingPlan(ALL, {"a": operator})
    made = mask_table(pa.table({"a": cells}), plan, key=KEY)[0]["a"]
    there = residual_figures(pa.table({"a": made}), plan)
    assert there["residual_identifiers"] == there["malformed_cells"] == 0
    beside = residual_figures(pa.table({"a": made, "b": made}), plan)
    assert beside["residual_identifiers"] == residual_figures(pa.table({"b": made}), PLAN)["residual_identifiers"] > 0
    left = residual_figures(pa.table({"a": pa.concat_arrays([pa.array(["192.0.3.1"]), *made.chunks])}), plan)
    assert left["residual_identifiers"] == left["malformed_cells"] == 1


@pytest.mark.parametrize("values", [[1, 2, None], [True, False, None]], ids=["numbers", "booleans"])
def test_other_types_in_a_token_column_are_untokenised(values: list[object]) -> None:
    assert residual_figures(pa.table({"a": values}), MaskingPlan(ALL, {"a": "token"}))["untokenised_cells"] == 2


def test_columns_that_should_be_gone_are_counted() -> None:
    plan = MaskingPlan(ALL, {"a": "drop", "b": "drop", "c": "drop"})
    figures = residual_figures(pa.table({"a": ["x"], "b": [1], "d": ["ann@example.com"] * 1}), plan)
    assert figures["undropped_columns"] == 2
    assert figures["residual_identifiers"] == 1


def test_every_row_counts() -> None:
    table = pa.table({"a": ["ann@example.com", "ann@example.com", None, "bob@example.com ann@example.com"]})
    assert residual_figures(table, PLAN) == {
        "residual_identifiers": 4,
        "untokenised_cells": 0,
        "undropped_columns": 0,
        "malformed_cells": 0,
        "suspected_name_columns": 0,
        "residual:EMAIL:a": 4,
        "cells_scanned": 3,
        "columns_scanned": 1,
    }


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        pytest.param(pa.table({"a": pa.array([], pa.string())}), {}, id="no rows"),
        pytest.param(pa.table({}), {}, id="no columns"),
        pytest.param(pa.table({"a": ["x"]}), {"b": "token"}, id="token column missing"),
        pytest.param(pa.table({"a": ["x"]}), {"b": "scan"}, id="scan column missing"),
        pytest.param(pa.table([pa.array(["x"])] * 2, names=["a", "a"]), {}, id="one name twice"),
        pytest.param(pa.table({"a": [["x"]]}), {}, id="list"),
        pytest.param(pa.table({"a": [b"x"]}), {"a": "drop"}, id="binary that should be gone"),
        pytest.param(pa.table({"a": pa.array(["x"]).dictionary_encode()}), {}, id="dictionary"),
    ],
)
def test_what_cannot_be_judged_is_refused(table: pa.Table, columns: dict[str, str]) -> None:
    with pytest.raises(DataError):
        residual_figures(table, MaskingPlan(ALL, columns))


def _ordinary_columns() -> dict[str, list[str]]:
    rng = random.Random(1)
    n = 1500

    def number(digits: int) -> int:
        return rng.randint(10 ** (digits - 1), 10**digits - 1)

    return {
        "uuid": [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(n)],
        "sha256": [hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)],
        "float": [repr(rng.random() * 10 ** rng.randint(-5, 9)) for _ in range(n)],
        "vector": [str([round(rng.gauss(0, 50), rng.randint(0, 4)) for _ in range(20)]) for _ in range(n)],
        "numbers": [" ".join(str(rng.randint(0, 10 ** rng.randint(1, 4))) for _ in range(12)) for _ in range(n)],
        "instant": [f"{rng.randint(1950, 2030)}-{rng.randint(1, 12):02}-15T10:30:45.{number(6)}Z" for _ in range(n)],
        "date": [f"{rng.randint(1, 12):02}/{rng.randint(1, 28):02}/{rng.randint(1950, 2030)} 10:30" for _ in range(n)],
        "zip": [f"{number(5)}-{number(4)}" for _ in range(n)],
        "price": [f"${number(3)},{number(3)}.{number(2)}" for _ in range(n)],
        "epoch": [str(rng.randint(1_500_000_000, 1_800_000_000)) for _ in range(n)],
        "account": [str(number(9)) for _ in range(n)],
        "isbn": [f"978-{number(1)}-{number(3)}-{number(5)}-{number(1)}" for _ in range(n)],
        "mac": [":".join(f"{rng.randint(0, 255):02x}" for _ in range(6)) for _ in range(n)],
        "version": [f"v{number(1)}.{number(2)}.{number(1)}" for _ in range(n)],
    }


def test_ordinary_columns_are_not_refused_once_masked_and_hardly_altered() -> None:
    table = pa.table(_ordinary_columns())
    result, report = mask_table(table, PLAN, key=KEY)
    assert residual_figures(result, PLAN)["residual_identifiers"] == 0
    for column, counts in report.counts.items():
        # A list of blank-separated numbers may hold 3-2-4 or 3-3-4 digits in a row; nothing else looks alike.
        expected = {"numbers": table.num_rows, "mac": table.num_rows}.get(column, 2)
        assert sum(counts.values()) <= expected


@pytest.mark.parametrize("text", ["4111 1111\n1111 1111", "219-09-\n9999", "+1 212\n555 0123"])
def test_a_number_that_is_broken_over_two_lines_is_counted(text):
    plan = MaskingPlan(entities=tuple(Entity), columns={})
    assert residual_figures(pa.table({"note": [text]}), plan)["residual_identifiers"] >= 1


@pytest.mark.parametrize("values", [["see ann@example.com", "x"], [4111111111111111, 1]], ids=["text", "numbers"])
def test_a_column_that_is_kept_for_a_reason_is_searched_all_the_same(values: list[object]) -> None:
    plan = MaskingPlan(tuple(Entity), {"a": {"keep": "published"}})
    masked, _ = mask_table(pa.table({"a": values}), plan, key=bytes(32))
    assert masked["a"].to_pylist() == values
    assert residual_figures(masked, plan)["residual_identifiers"] == 1
