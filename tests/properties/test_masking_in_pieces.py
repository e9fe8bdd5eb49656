"""Laws of masking by operators: macs are the standard's, cuts mean nothing, joins survive, texts come back."""

import string
from itertools import pairwise

import pyarrow as pa
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st
from identifiers import identifiers

from portcullis.pii.canonical import canonical_values
from portcullis.pii.cmac import cmac
from portcullis.pii.entities import IN_TEXT, Entity, canonical
from portcullis.pii.mask import mask_stream, mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.reveal import reveal_text
from portcullis.pii.spelling import masked_spelling
from portcullis.pii.tokens import label
from portcullis.table import TableStream

KEY = bytes(range(32))
KEYED = st.sampled_from(["token", "hash", "reversible", "redact"])
PLANS = st.builds(
    lambda operators: MaskingPlan(operators, {}),
    st.fixed_dictionaries({entity: KEYED | st.just("star") for entity in IN_TEXT}),
)
WORDS = st.text(string.ascii_letters + " ,;!?\n()é", max_size=12)
CELLS = st.none() | st.lists(st.one_of(WORDS, identifiers.map(lambda pair: f" {pair[1]} ")), max_size=4).map("".join)


@given(
    st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    st.sampled_from([*Entity, "VALUE"]),
    st.lists(st.text(max_size=70) | st.integers(0, 300).map("x".__mul__), max_size=12),
)
def test_many_macs_at_once_are_each_ones_own(key: bytes, entity: str, values: list[str]) -> None:
    codes = cmac(key, label(entity), pa.array(values, pa.large_string()))
    for code, value in zip(codes, values, strict=True):
        mac = CMAC(AES(key))
        mac.update(label(entity) + value.encode())
        assert code.tobytes() == mac.finalize()


def test_no_label_begins_with_anothers() -> None:
    labels = sorted(label(entity) for entity in (*Entity, "VALUE"))
    assert not any(after.startswith(before) for before, after in pairwise(labels))


@given(
    st.sampled_from(list(Entity)),
    st.lists(
        st.one_of(
            identifiers.map(lambda pair: pair[1]),
            st.text(string.digits + " .:-+()aAfF@x٣\t", max_size=20),
            st.ip_addresses().map(str),
            st.from_regex(r"\A(?:00)?1[0-9]{9,17}\Z"),
        ),
        max_size=8,
    ),
)
def test_many_canonical_spellings_at_once_are_each_ones_own(entity: Entity, values: list[str]) -> None:
    spelled = canonical_values(entity, pa.array(values, pa.large_string())).to_pylist()
    assert spelled == [canonical(entity, value) for value in values]


@given(PLANS, st.lists(CELLS, min_size=1, max_size=12), st.lists(st.integers(1, 12)))
def test_it_makes_no_difference_how_a_table_is_cut(plan: MaskingPlan, cells: list[str | None], cuts: list[int]) -> None:
    table = pa.table({"a": pa.array(cells, pa.string()), "b": range(len(cells))})
    bounds = sorted({0, len(cells), *(cut for cut in cuts if cut < len(cells))})
    parts = [table.slice(start, end - start) for start, end in pairwise(bounds)]
    stream = mask_stream(TableStream(table.schema, len(cells), lambda: iter(parts)), plan, key=KEY)
    masked, report = mask_table(table, plan, key=KEY)
    for _ in range(2):
        pieces = list(stream.table.pieces())
        assert [piece.schema for piece in pieces] == [stream.table.schema] * len(parts)
        assert pa.concat_tables(pieces).equals(masked)
        assert stream.report() == report


@given(st.fixed_dictionaries(dict.fromkeys(IN_TEXT, KEYED)), st.lists(CELLS, min_size=1, max_size=6))
def test_masked_text_scans_clean_for_the_gate_and_holds_still(operators: dict[Entity, str], cells: list[str]) -> None:
    plan = MaskingPlan(operators, {})
    masked, _ = mask_table(pa.table({"a": pa.array(cells, pa.string())}), plan, key=KEY)
    assert residual_figures(masked, plan)["residual_identifiers"] == 0
    assert mask_table(masked, plan, key=KEY)[0].equals(masked)


@given(st.sampled_from(["token", "hash", "reversible", "redact", "star"]), WORDS, identifiers, WORDS)
def test_what_is_left_of_an_identifier_is_recognised(
    operator: str, before: str, identifier: tuple[Entity, str], after: str
) -> None:
    plan = MaskingPlan(dict.fromkeys(IN_TEXT, operator), {})
    text = f"{before} , {identifier[1]} , {after}"
    (cell,) = mask_table(pa.table({"a": [text]}), plan, key=KEY)[0]["a"].to_pylist()
    assert masked_spelling(plan).sub("|", cell) == f"{before} , | , {after}"


@given(st.text(min_size=1, max_size=40) | identifiers.map(lambda pair: pair[1]))
def test_what_was_written_comes_back(text: str) -> None:
    table = mask_table(pa.table({"a": [text]}), MaskingPlan(IN_TEXT, {"a": "reversible"}), key=KEY)[0]
    assert reveal_text(table["a"][0].as_py(), KEY)[0] == text


@given(
    st.lists(identifiers, min_size=1, max_size=6, unique_by=lambda pair: (pair[0], canonical(*pair))),
    st.sampled_from(["token", "hash"]),
    st.data(),
)
def test_two_tables_join_after_masking_as_before(
    people: list[tuple[Entity, str]], operator: str, data: st.DataObject
) -> None:
    """One table has the identifiers in columns of their own, the other in a column that is scanned."""
    texts = [text for _, text in people]
    left = data.draw(st.lists(st.sampled_from(texts), min_size=1))
    right = data.draw(st.lists(st.sampled_from(texts), min_size=1))
    whole = MaskingPlan(dict.fromkeys(IN_TEXT, operator), {"who": operator})
    scanned = MaskingPlan(dict.fromkeys(IN_TEXT, operator), {})
    a = mask_table(pa.table({"who": left}), whole, key=KEY)[0]["who"].to_pylist()
    b = mask_table(pa.table({"x": range(len(right)), "text": right}), scanned, key=KEY)[0]["text"].to_pylist()

    def joined(one: list[str], other: list[str]) -> list[tuple[int, int]]:
        return [(i, j) for i, x in enumerate(one) for j, y in enumerate(other) if x == y]

    assert joined(a, b) == joined(left, right)
