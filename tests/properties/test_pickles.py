"""Instructions of pickles are parsed here as Python's own libraries parse them."""

import pickle
import pickletools
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.supply_chain.pickled import _INSTRUCTIONS, _OPCODES, may_import

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats() | st.text(max_size=300),
    lambda parts: (
        st.lists(parts, max_size=5)
        | st.tuples(parts, parts)
        | st.dictionaries(st.text(max_size=5), parts, max_size=4)
        | st.dictionaries(st.text(max_size=3), parts, max_size=3).map(OrderedDict)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=80)
@given(plain, st.binary(max_size=5))
def test_instructions_are_parsed_as_the_standard_library_parses_them(value, behind):
    data = pickle.dumps(value, protocol=2)
    found = list(pickletools.genops(data))
    for (instruction, expected, position), following in zip(
        found, [position for *_, position in found[1:]], strict=False
    ):
        known = _INSTRUCTIONS.get(data[position])
        if known is None:
            continue  # such as an integer of more than 255 bytes; refused
        argument, end = known[1](data + behind, position + 1) if known[1] else (None, position + 1)
        argument = " ".join(argument) if instruction.name == "GLOBAL" else argument
        assert argument == expected or (argument != argument and expected != expected)
        assert end == following
        assert _OPCODES[data[position]].name == instruction.name


@settings(deadline=None, max_examples=200)
@given(plain, st.integers(0, 5), st.integers(0, 9))
def test_it_is_told_of_every_pickle_whether_it_imports_something(value, protocol, beyond):
    data = pickle.dumps(value, protocol=protocol)
    imports = {"GLOBAL", "INST", "STACK_GLOBAL"} & {instruction.name for instruction, *_ in pickletools.genops(data)}
    assert may_import(data, len(data)) == bool(imports)
    assert may_import(data[: len(data) - beyond], len(data)) or not imports  # what was not seen may hold one


@pytest.mark.parametrize(
    "before",
    [
        *(b"I0x10\n", b"I 1\n", b"L0b1L\n", b"F    1.5\n", b"F" + b" " * 3000 + b"1\n", b"I1_0\n", b"p0\n", b"V\n"),
        *(b"X\x01\0\0\0a", b"U\x00", b"(", b"]", b"S''\n", b"Va" + b"b" * 3000 + b"\n"),
    ],
)
@pytest.mark.parametrize("name", [b"os\nsystem\n", b"os\n" + b"path.os." * 200 + b"system\n"])
def test_no_spelling_hides_an_import_nor_does_the_end_of_what_is_seen(before, name):
    data = before + b"c" + name + b"."
    for seen in range(1, len(data) + 1):
        assert may_import(data[:seen], len(data))
