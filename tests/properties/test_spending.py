"""The ledger under every tampering and every interleaving that can be made up."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import DATASET, MemoryStore, lines_of, wanted
from ledgers import settings as ledger_settings

from portcullis.errors import BudgetError, EvidenceError
from portcullis.keys import Signer
from portcullis.ledger.charge import Ledger, charge
from portcullis.ledger.entries import head_of, read_entries, require_extends
from portcullis.ledger.mechanisms import Pure, compose

SIGNER = Signer.generate()
LINES = lines_of(*(wanted(number, Pure(number / 4)) for number in (1, 2, 3)), signer=SIGNER)
HEAD = head_of(read_entries(LINES, DATASET))


@pytest.fixture(scope="module", autouse=True)
def no_pause():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portcullis.ledger.charge._pause", lambda: None)
        yield


@settings(max_examples=300)
@given(st.integers(0, len(LINES) - 1), st.integers(1, 255))
def test_no_byte_can_be_altered(place: int, change: int) -> None:
    altered = bytearray(LINES)
    altered[place] ^= change
    with pytest.raises(EvidenceError):
        require_extends(read_entries(bytes(altered), DATASET), HEAD, DATASET)


@given(st.integers(0, len(LINES) - 1))
def test_no_end_can_be_cut_off(length: int) -> None:
    with pytest.raises(EvidenceError):
        require_extends(read_entries(LINES[:length], DATASET), HEAD, DATASET)


@given(st.lists(st.integers(0, 2), max_size=5).filter(lambda order: order[:3] != [0, 1, 2]))
def test_no_lines_can_be_left_out_repeated_or_moved(order: list[int]) -> None:
    lines = LINES.splitlines(keepends=True)
    with pytest.raises(EvidenceError):
        require_extends(read_entries(b"".join(lines[index] for index in order), DATASET), HEAD, DATASET)


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5]), min_size=1, max_size=5), st.data())
def test_no_interleaving_of_two_runs_exceeds_the_budget(costs: list[float], data: st.DataObject) -> None:
    """While one run charges, before each thing that it asks a store, the other may make a whole charge of its own."""
    store, memory = MemoryStore(), MemoryStore()
    ledger = Ledger(ledger_settings(2.0), store, memory)
    others = iter(range(100, 110))

    def meanwhile() -> None:
        number = next(others, None)
        if number is None or not data.draw(st.booleans()):
            return
        hooks = store.before_read, store.before_replace, memory.before_read, memory.before_replace
        store.before_read = store.before_replace = memory.before_read = memory.before_replace = lambda: None
        paid.extend(attempt(number, data.draw(st.sampled_from([0.25, 0.5, 1.0]))))
        store.before_read, store.before_replace, memory.before_read, memory.before_replace = hooks

    def attempt(number: int, cost: float) -> list[str]:
        try:
            receipt = charge(ledger, wanted(number, Pure(cost)), SIGNER)
        except BudgetError:
            return []
        return [receipt.entry]

    paid: list[str] = []
    store.before_read = store.before_replace = memory.before_read = memory.before_replace = meanwhile
    for number, cost in enumerate(costs, start=1):
        paid.extend(attempt(number, cost))
    store.before_read = memory.before_read = lambda: None
    entries = ledger.read()
    assert compose([entry.charge.mechanism for entry in entries], 0) <= 2.0
    assert sorted(paid) == sorted(entry.digest for entry in entries)
