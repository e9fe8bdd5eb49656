"""The privacy ledger: what entries cost together, what is charged once, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from ledgers import DATASET, NOW, file_ledger, lines_of, memory_ledger, settings, wanted

from portcullis.digest import sha256
from portcullis.errors import BudgetError, ConfigError, DataError, EvidenceError, InconclusiveError, UsageError
from portcullis.hash_chain import FIRST
from portcullis.keys import Signer
from portcullis.ledger.charge import charge, open_ledger, require_affordable
from portcullis.ledger.entries import Head, append, head_of, read_entries
from portcullis.ledger.mechanisms import (
    Approximate,
    DpSgd,
    Gaussian,
    Pure,
    compose,
    describe,
    mechanism_from_dict,
    mechanism_to_dict,
)
from portcullis.ledger.settings import LedgerSettings

SIGNER = Signer.generate()
MECHANISMS = [Pure(0.5), Approximate(1.0, 1e-6), Gaussian(2.0), DpSgd(1.1, 0.01, 100)]

# Composition.


def test_pure_mechanisms_add_up_and_the_sum_is_rounded_up() -> None:
    assert compose([], 0) == 0 and compose([], 1e-5) == 0
    assert compose([Pure(0.1)] * 10, 0) == 1.0000000000000002  # math.fsum says 1.0, which is below the exact sum
    assert compose([Pure(1), Pure(2)], 0) == 3


@pytest.mark.parametrize("other", MECHANISMS[1:], ids=describe)
def test_what_needs_a_delta_has_no_epsilon_without_one(other) -> None:
    assert compose([Pure(0.5), other], 0) == math.inf


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """Balle, Wang 2018, arXiv:1805.06530, theorem 8, of sensitivity 1."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize(("sigma", "count", "delta"), [(1.0, 1, 1e-5), (2.0, 4, 1e-5), (5.0, 10, 1e-6), (0.5, 1, 1e-3)])
def test_gaussian_noise_costs_what_the_analytic_formula_says(sigma: float, count: int, delta: float) -> None:
    """Several releases are one with the noise divided by the root of their number."""
    epsilon = compose([Gaussian(sigma)] * count, delta)
    alone = sigma / math.sqrt(count)
    assert gaussian_delta(epsilon, alone) <= delta * (1 + 1e-6)
    assert gaussian_delta(epsilon - 0.002, alone) > delta


def test_dp_sgd_over_all_rows_is_gaussian_noise_in_every_step() -> None:
    assert compose([DpSgd(4.0, 1.0, 16)], 1e-5) == pytest.approx(compose([Gaussian(1.0)], 1e-5), abs=0.002)
    assert compose([DpSgd(4.0, 0.1, 16)], 1e-5) < compose([DpSgd(4.0, 1.0, 16)], 1e-5)


def test_dp_sgd_costs_what_another_accountant_says() -> None:
    """Against Opacus's PRV accountant, whose result may be off by 0.01 either way."""
    prv = pytest.importorskip("opacus.accountants").create_accountant("prv")
    prv.history = [(1.1, 0.05, 300)]
    assert compose([DpSgd(1.1, 0.05, 300)], 1e-5) == pytest.approx(prv.get_epsilon(delta=1e-5), abs=0.03)


def test_known_epsilons_and_deltas_add_up_at_most() -> None:
    epsilon = compose([Approximate(0.5, 1e-6)] * 3, 1e-5)
    assert 1.4 < epsilon <= 1.5 + 3e-4
    assert compose([Approximate(0.5, 5e-6)] * 3, 1e-5) == math.inf


def test_many_small_pure_mechanisms_cost_less_than_their_sum_where_there_is_a_delta() -> None:
    """Kairouz, Oh, Viswanath 2015: about epsilon * sqrt(2 n log(1/delta))."""
    assert compose([Pure(0.01)] * 2000, 1e-5) < 2.5


def test_what_costs_more_than_any_budget_is_not_computed() -> None:
    assert compose([DpSgd(0.1, 1.0, 10_000_000)], 1e-5) == math.inf
    assert compose([Pure(512.0), Gaussian(1.0)], 1e-5) > 512


@settings_of_hypothesis(max_examples=6)
@given(st.lists(st.sampled_from(MECHANISMS), max_size=3), st.sampled_from(MECHANISMS))
def test_a_further_release_costs_no_less_and_at_most_its_own(found: list, more) -> None:
    """The bounds of basic composition: half of delta for either part."""
    before, after = compose(found, 1e-5), compose([*found, more], 1e-5)
    assert before <= after + 1e-3
    assert after <= compose(found, 5e-6) + compose([more], 5e-6) + 1e-3


@given(st.lists(st.floats(0.001, 4), min_size=1, max_size=6))
def test_pure_mechanisms_at_a_delta_cost_at_most_their_sum(epsilons: list[float]) -> None:
    mechanisms = [Pure(epsilon) for epsilon in epsilons]
    assert compose(mechanisms, 1e-5) <= compose(mechanisms, 0)


@pytest.mark.parametrize("delta", [-1e-5, 1e-11, 1.0, 2.0, math.nan, math.inf])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        compose([Pure(1.0)], delta)


BAD_MECHANISMS = {
    "none": None,
    "text": "pure",
    "no kind": {"epsilon": 1.0},
    "unknown kind": {"kind": "laplace", "epsilon": 1.0},
    "kind no text": {"kind": 3, "epsilon": 1.0},
    "field missing": {"kind": "pure"},
    "field unknown": {"kind": "pure", "epsilon": 1.0, "delta": 0},
    "epsilon 0": {"kind": "pure", "epsilon": 0},
    "epsilon below 0": {"kind": "pure", "epsilon": -1.0},
    "epsilon NaN": {"kind": "pure", "epsilon": math.nan},
    "epsilon infinite": {"kind": "pure", "epsilon": math.inf},
    "epsilon too large": {"kind": "pure", "epsilon": 512.5},
    "epsilon true": {"kind": "pure", "epsilon": True},
    "epsilon text": {"kind": "pure", "epsilon": "1"},
    "delta 0": {"kind": "approximate", "epsilon": 1.0, "delta": 0},
    "delta 1": {"kind": "approximate", "epsilon": 1.0, "delta": 1.0},
    "no noise": {"kind": "gaussian", "noise_multiplier": 0.0},
    "too little noise": {"kind": "gaussian", "noise_multiplier": 0.09},
    "noise NaN": {"kind": "gaussian", "noise_multiplier": math.nan},
    "noise too large": {"kind": "gaussian", "noise_multiplier": 2e6},
    "rate 0": {"kind": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 0, "steps": 1},
    "rate above 1": {"kind": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 1.1, "steps": 1},
    "no step": {"kind": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 0},
    "half a step": {"kind": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1.5},
    "too many steps": {"kind": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10_000_001},
}


@pytest.mark.parametrize("value", BAD_MECHANISMS.values(), ids=BAD_MECHANISMS)
def test_a_mechanism_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="ledger: "):
        mechanism_from_dict(value)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=describe)
def test_a_mechanism_is_written_and_read(mechanism) -> None:
    assert mechanism_from_dict(mechanism_to_dict(mechanism)) == mechanism


GOOD = settings().to_dict()
BAD_SETTINGS = {
    "none": None,
    "empty": {},
    "field missing": {name: GOOD[name] for name in GOOD if name != "memory"},
    "field unknown": GOOD | {"reset": True},
    "dataset empty": GOOD | {"dataset": ""},
    "dataset a path": GOOD | {"dataset": "../customers"},
    "dataset capital": GOOD | {"dataset": "Customers"},
    "dataset too long": GOOD | {"dataset": "a" * 64},
    "dataset no text": GOOD | {"dataset": 3},
    "epsilon 0": GOOD | {"epsilon": 0},
    "epsilon NaN": GOOD | {"epsilon": math.nan},
    "epsilon infinite": GOOD | {"epsilon": math.inf},
    "epsilon true": GOOD | {"epsilon": True},
    "epsilon text": GOOD | {"epsilon": "3"},
    "epsilon too large": GOOD | {"epsilon": 513},
    "delta below 0": GOOD | {"delta": -1e-6},
    "delta too small": GOOD | {"delta": 1e-12},
    "delta 1": GOOD | {"delta": 1},
    "delta NaN": GOOD | {"delta": math.nan},
    "unit unknown": GOOD | {"unit": "household"},
    "store empty": GOOD | {"store": ""},
    "store no text": GOOD | {"store": None},
    "store unprintable": GOOD | {"store": "file:/a\nb"},
    "store too long": GOOD | {"store": "file:/" + "a" * 600},
    "memory is the store": GOOD | {"store": "file:/a", "memory": "file:/a"},
}


@pytest.mark.parametrize("value", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="ledger"):
        LedgerSettings.from_dict(value)


# Charging.


def test_charges_add_up_until_the_budget_is_spent(tmp_path) -> None:
    ledger = file_ledger(tmp_path, 3.0)
    receipts = [charge(ledger, wanted(number), SIGNER) for number in (1, 2, 3)]
    assert [receipt.number for receipt in receipts] == [1, 2, 3]
    assert [receipt.spent for receipt in receipts] == [1, 2, 3]
    before = ledger.store.read().data
    with pytest.raises(BudgetError, match=r"3 releases have spent an epsilon of 3, with this one 4 .* allows 3 over"):
        charge(ledger, wanted(4), SIGNER)
    with pytest.raises(BudgetError):
        require_affordable(ledger, Pure(0.001))
    assert ledger.store.read().data == before
    entries = ledger.read()
    assert [entry.digest for entry in entries] == [receipt.entry for receipt in receipts]
    assert entries[1].charge == wanted(2) and entries[1].key == SIGNER.public_key
    assert receipts[2].figures == {"ledger_entry": entries[2].digest, "ledger_number": 3, "ledger_epsilon": 3.0}
    assert ledger.memory.read().data == Head(3, entries[2].digest).encode(DATASET)
    assert (ledger.store.path.stat().st_mode & 0o777, ledger.store.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_budget_is_the_data_sets_and_not_the_policys(tmp_path) -> None:
    charge(file_ledger(tmp_path, 2.0), wanted(1, policy="one"), SIGNER)
    with pytest.raises(BudgetError):
        charge(file_ledger(tmp_path, 1.5), wanted(2, policy="another"), Signer.generate())


def test_the_same_charge_again_is_the_same_entry(tmp_path) -> None:
    ledger = file_ledger(tmp_path, 1.0)
    assert charge(ledger, wanted(), SIGNER) == charge(ledger, wanted(), SIGNER)
    assert len(ledger.read()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"output": sha256(b"another draw of the noise")},
        {"mechanism": Pure(0.5)},
        {"mechanism": Gaussian(9.0)},
        {"policy": "another"},
    ],
    ids=["output", "epsilon", "mechanism", "policy"],
)
def test_a_step_of_a_run_is_charged_for_one_thing_only(tmp_path, changes: dict) -> None:
    ledger = file_ledger(tmp_path, 9.0)
    charge(ledger, wanted(), SIGNER)
    with pytest.raises(EvidenceError, match="was charged before, for another output or mechanism"):
        charge(ledger, wanted(**changes), SIGNER)
    with pytest.raises(EvidenceError, match="was charged before"):
        charge(ledger, wanted(), Signer.generate())  # the same, in another's name
    assert len(ledger.read()) == 1


def test_two_steps_of_a_run_are_charged_each(tmp_path) -> None:
    ledger = file_ledger(tmp_path)
    charge(ledger, wanted(), SIGNER)
    charge(ledger, wanted(step="train", mechanism=Pure(2.0)), SIGNER)
    assert compose([entry.charge.mechanism for entry in ledger.read()], 0) == 3


@pytest.mark.parametrize("changes", [{"dataset": "others"}, {"unit": "person"}])
def test_a_charge_of_another_data_set_or_unit_is_refused(tmp_path, changes: dict) -> None:
    with pytest.raises(EvidenceError, match="cannot be charged to the ledger of customers"):
        charge(file_ledger(tmp_path), wanted(**changes), SIGNER)
    assert not (tmp_path / "ledgers").exists()


def test_a_budget_per_person_does_not_count_what_was_charged_per_row(tmp_path) -> None:
    charge(file_ledger(tmp_path), wanted(1), SIGNER)
    with pytest.raises(EvidenceError, match=r"entry 1 .* is counted per row, and the policy's budget per person"):
        charge(file_ledger(tmp_path, unit="person"), wanted(2, unit="person"), SIGNER)


@pytest.mark.parametrize("mechanism", MECHANISMS[1:], ids=describe)
def test_without_a_delta_only_pure_mechanisms_are_charged(tmp_path, mechanism) -> None:
    with pytest.raises(BudgetError, match="with this one inf at delta 0"):
        charge(file_ledger(tmp_path, 500.0), wanted(mechanism=mechanism), SIGNER)


def test_a_mixture_is_charged_by_privacy_losses(tmp_path) -> None:
    ledger = file_ledger(tmp_path, 6.0, delta=1e-5)
    charge(ledger, wanted(1, Pure(1.0)), SIGNER)
    receipt = charge(ledger, wanted(2, DpSgd(1.1, 0.05, 300)), SIGNER)
    assert 1 < receipt.spent < 6
    with pytest.raises(BudgetError):
        charge(ledger, wanted(3, Gaussian(0.8)), SIGNER)


def test_an_answer_that_was_lost_is_no_second_charge() -> None:
    ledger = memory_ledger(1.0)
    ledger.store.lost_answers = 1
    assert charge(ledger, wanted(), SIGNER).number == 1
    assert len(ledger.read()) == 1


def test_a_crash_between_charge_and_release_is_not_refunded() -> None:
    ledger = memory_ledger(1.0)
    ledger.memory.before_replace = crash = _crash
    with pytest.raises(KeyboardInterrupt):
        charge(ledger, wanted(1), SIGNER)
    assert len(ledger.read()) == 1 and ledger.memory.data == b"" and crash
    ledger.memory.before_replace = lambda: None
    with pytest.raises(BudgetError):
        charge(ledger, wanted(2), SIGNER)
    assert charge(ledger, wanted(1), SIGNER).number == 1  # the very same output, still in hand
    assert ledger.memory.data == head_of(ledger.read()).encode(DATASET)


def _crash() -> None:
    raise KeyboardInterrupt


def test_another_runs_charge_meanwhile_is_counted() -> None:
    ledger = memory_ledger(1.5)

    def other() -> None:
        ledger.store.before_replace = lambda: None
        charge(ledger, wanted(2), SIGNER)

    ledger.store.before_replace = other
    with pytest.raises(BudgetError):
        charge(ledger, wanted(1), SIGNER)
    assert [entry.charge.run for entry in ledger.read()] == [wanted(2).run]


def test_a_ledger_that_always_changes_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr("portcullis.ledger.charge._pause", lambda: None)
    ledger = memory_ledger()
    ledger.store.before_replace = lambda: setattr(ledger.store, "version", ledger.store.version + 1)
    with pytest.raises(InconclusiveError, match="kept changing"):
        charge(ledger, wanted(), SIGNER)
    assert ledger.store.data == b""


def test_the_head_is_read_before_the_ledger_so_that_a_charge_meanwhile_is_no_rollback() -> None:
    ledger = memory_ledger(9.0)
    charge(ledger, wanted(1), SIGNER)

    def other() -> None:
        ledger.store.before_read = lambda: None
        charge(ledger, wanted(2), SIGNER)

    ledger.store.before_read = other
    assert len(ledger.read()) == 2


# Reading.


def test_an_empty_ledger_has_no_entry() -> None:
    assert read_entries(b"", DATASET) == () and head_of(()) == Head(0, FIRST)


def broken(name: str) -> bytes:
    lines = lines_of(*(wanted(number) for number in (1, 2, 3))).splitlines(keepends=True)
    other = lines_of(wanted(9)).splitlines(keepends=True)
    return {
        "cut inside a line": b"".join(lines)[:-7],
        "no newline at the end": b"".join(lines)[:-1],
        "first removed": b"".join(lines[1:]),
        "one removed from the middle": lines[0] + lines[2],
        "two swapped": lines[1] + lines[0] + lines[2],
        "one repeated": lines[0] + b"".join(lines),
        "another's put in": lines[0] + other[0] + lines[2],
        "an empty line": lines[0] + b"\n" + lines[1],
        "nonsense": b"nonsense\n",
        "not text": b"\xff\xfe\n",
        "of another data set": lines_of(wanted(1, dataset="others")),
        "run is no nonce": lines_of(wanted(1, run="x")),
        "step is no name": lines_of(wanted(1, step="a b")),
        "output is no digest": lines_of(wanted(1, output="x")),
        "policy is unprintable": lines_of(wanted(1, policy="a\nb")),
    }[name]


NAMES = [
    *("cut inside a line", "no newline at the end", "first removed", "one removed from the middle", "two swapped"),
    *("one repeated", "another's put in", "an empty line", "nonsense", "not text", "of another data set"),
    *("run is no nonce", "step is no name", "output is no digest", "policy is unprintable"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_ledger_that_is_none_is_refused(name: str) -> None:
    ledger = memory_ledger()
    ledger.store.data = broken(name)
    with pytest.raises(EvidenceError, match="ledger of customers"):
        ledger.read()
    with pytest.raises(EvidenceError, match="ledger of customers"):
        charge(ledger, wanted(7), SIGNER)


def test_a_ledger_beyond_the_limit_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("portcullis.ledger.entries.MAX_LEDGER_BYTES", 100)
    with pytest.raises(EvidenceError, match="larger than the 100 bytes"):
        read_entries(lines_of(wanted()), DATASET)


@pytest.mark.parametrize("kept", [b"{}", b"nonsense", Head().encode("others"), Head().encode(DATASET) + b" "])
def test_a_head_that_is_none_is_refused(kept: bytes) -> None:
    ledger = memory_ledger()
    ledger.memory.data = kept
    with pytest.raises(EvidenceError, match="head of the ledger of customers"):
        ledger.read()


@pytest.mark.parametrize(("number", "digest"), [(-1, FIRST), (0, "a" * 64), (1, FIRST), (1, "x"), (1.0, "a" * 64)])
def test_a_head_of_no_ledger_is_refused(number, digest: str) -> None:
    with pytest.raises(DataError):
        Head(number, digest)


def test_an_entry_counts_by_whatever_key_it_is_signed() -> None:
    """It can only have spent: to refuse it would let whoever writes the store stop every run or free a budget."""
    ledger = memory_ledger(1.5)
    ledger.store.data = append(b"", Head(), wanted(1), Signer.generate("ed25519"), time=NOW)
    with pytest.raises(BudgetError):
        charge(ledger, wanted(2), SIGNER)


def test_a_local_ledger_needs_a_place(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PORTCULLIS_LEDGERS", raising=False)
    with pytest.raises(UsageError, match="PORTCULLIS_LEDGERS names no absolute directory here"):
        open_ledger(settings(), tmp_path)
    monkeypatch.setenv("PORTCULLIS_LEDGERS", "relative")
    with pytest.raises(UsageError, match="PORTCULLIS_LEDGERS"):
        open_ledger(settings(), tmp_path)
    monkeypatch.setenv("PORTCULLIS_LEDGERS", str(tmp_path / "ledgers"))
    ledger = open_ledger(settings(), tmp_path / "state")
    charge(ledger, wanted(), SIGNER)
    assert sorted(path.name for path in tmp_path.rglob("[!.]*.json*")) == ["customers.jsonl", "ledger-customers.json"]
