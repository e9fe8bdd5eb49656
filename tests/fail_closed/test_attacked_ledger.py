"""Attacks on the privacy ledger: on its lines, its place, its past, and on the evidence of those that charge it."""

import dataclasses
import shutil

import private_run
import pytest
from ledgers import lines_of, wanted
from private_run import PrivateRun

from portcullis.errors import (
    BudgetError,
    ConfigError,
    EvidenceError,
    GateFailedError,
    GateInconclusiveError,
    PolicyError,
    UsageError,
)
from portcullis.evidence.chain import split_bundle
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import Statement
from portcullis.ledger.entries import ENTRY_TYPE, append, head_of
from portcullis.ledger.mechanisms import Pure
from portcullis.ledger.settings import LedgerSettings
from portcullis.privacy.stage import dp_noise


@pytest.fixture
def honest(tmp_path) -> PrivateRun:
    """One run that passed, and whose ledger can pay for another one."""
    run = PrivateRun(tmp_path)
    assert run.run().verdict == "PASSED"
    run.enforce()
    return run


def ledger_file(run: PrivateRun):
    return run.root / "ledgers" / "customers.jsonl"


def refuse_a_run(run: PrivateRun, kind: type[Exception], match: str) -> None:
    """A further run is refused before it releases anything."""
    run.start()
    with pytest.raises(kind, match=match):
        run.noise()
    assert not (run.root / "noised").exists() and not (run.root / "evidence").exists()


def test_a_third_run_would_exceed_the_budget(honest) -> None:
    assert honest.run().verdict == "PASSED"
    refuse_a_run(honest, BudgetError, "allows 2.5 over all runs")
    assert len(honest.entries()) == 2


def test_a_row_is_appended_to_get_a_fresh_budget(honest, monkeypatch) -> None:
    """The ledger goes by the id in the policy, whatever the content."""
    first, more = private_run.rows(), private_run.rows(61)
    assert honest.run().verdict == "PASSED"
    monkeypatch.setattr(private_run, "rows", lambda: more)
    assert more.table.num_rows > first.table.num_rows
    refuse_a_run(honest, BudgetError, "allows 2.5")


def test_a_run_names_another_data_set_or_ledger(honest) -> None:
    honest.start()
    named = honest.ledger
    for other in (
        dataclasses.replace(named, dataset="others"),
        dataclasses.replace(named, epsilon=100.0),
        dataclasses.replace(named, delta=1e-5),
        dataclasses.replace(named, store=f"file:{honest.root}/fresh.jsonl"),
        dataclasses.replace(named, memory=f"file:{honest.root}/fresh.json"),
    ):
        honest.ledger = other
        with pytest.raises(PolicyError, match="parameters differ from the policy's: ledger"):
            honest.noise()
    assert len(honest.entries()) == 1


def test_the_ledger_is_deleted(honest) -> None:
    ledger_file(honest).unlink()
    refuse_a_run(honest, EvidenceError, "rolled back: it holds 0 entries, and 1 were seen before")
    assert not ledger_file(honest).exists()


def test_a_backup_of_the_ledger_is_put_back(honest) -> None:
    backup = ledger_file(honest).read_bytes()
    honest.run()
    ledger_file(honest).write_bytes(backup)
    verdict = honest.judge()
    assert verdict.verdict == "FAILED" and "rolled back" in verdict.reason
    with pytest.raises(GateInconclusiveError):
        honest.enforce()
    refuse_a_run(honest, EvidenceError, "rolled back: it holds 1 entries, and 2 were seen before")


def test_the_ledger_is_written_anew_with_cheaper_entries(honest) -> None:
    entry = honest.entries()[0]
    cheaper = dataclasses.replace(entry.charge, mechanism=Pure(0.001))
    ledger_file(honest).write_bytes(lines_of(cheaper, signer=honest.world.keys["dp_noise"]))
    assert honest.judge().verdict == "FAILED"
    refuse_a_run(honest, EvidenceError, "another one than was seen before: its entry 1 differs")


@pytest.mark.parametrize(
    "attack",
    [
        lambda lines: lines[1],
        lambda lines: lines[1] + lines[0],
        lambda lines: lines[0] + lines[0],
        lambda lines: (lines[0] + lines[1])[:-2],
        lambda lines: lines[0].replace(b"sig", b"gis") + lines[1],
    ],
    ids=["removed", "moved", "repeated", "cut", "altered"],
)
def test_an_entry_is_removed_altered_or_moved(honest, attack) -> None:
    honest.run()
    attacked = attack(ledger_file(honest).read_bytes().splitlines(keepends=True))
    ledger_file(honest).write_bytes(attacked)
    assert honest.judge().verdict == "FAILED"
    with pytest.raises(GateInconclusiveError, match="inconclusive"):
        honest.enforce()
    refuse_a_run(honest, EvidenceError, "altered or cut at line|another one than was seen")
    assert ledger_file(honest).read_bytes() == attacked


def test_the_kept_head_is_damaged(honest) -> None:
    (honest.root / "state" / "ledger-customers.json").write_bytes(b"{}")
    refuse_a_run(honest, EvidenceError, "kept head of the ledger of customers is damaged")


def test_another_data_sets_ledger_is_put_in_its_place(honest) -> None:
    ledger_file(honest).write_bytes(lines_of(wanted(1, Pure(0.001), dataset="others")))
    refuse_a_run(honest, EvidenceError, "another data set")


def test_the_ledger_becomes_a_link_to_one_elsewhere(honest) -> None:
    moved = honest.root / "moved"
    ledger_file(honest).rename(moved)
    ledger_file(honest).symlink_to(moved)
    refuse_a_run(honest, UsageError, "is a link")


def test_a_step_is_repeated_to_average_the_noise_away(honest) -> None:
    """Each repetition draws anew; the first charge pays for the first draw only."""
    charged = ledger_file(honest).read_bytes()
    for _ in range(3):
        shutil.rmtree(honest.root / "noised", ignore_errors=True)
        with pytest.raises(EvidenceError, match="was charged before, for another output"):
            honest.noise()
        assert not (honest.root / "noised").exists()
    assert ledger_file(honest).read_bytes() == charged


def test_a_task_of_a_real_run_is_repeated(attacked) -> None:
    """The same with what KFP's local runner left of the reference pipeline."""
    config = attacked.config
    with attacked.environment(), pytest.raises(EvidenceError, match="was charged before, for another output"):
        dp_noise(
            step="dp_noise",
            dataset=attacked.task("split*/train"),
            evidence=attacked.task("split*/split_evidence"),
            plan=config.privacy.to_dict(),
            ledger=config.ledger_parameters(),
            noised=attacked.output / "noised",
            report=attacked.output / "noise.html",
            bundle=attacked.output / "bundle",
        )
    assert not (attacked.output / "noised").exists()


def test_an_entry_is_put_in_ahead_of_a_step_to_have_it_released_for_nothing(tmp_path) -> None:
    run = PrivateRun(tmp_path)
    run.start()
    nonce = run_nonce(run)
    free = wanted(1, Pure(1e-9), run=nonce)
    (tmp_path / "ledgers").mkdir()
    ledger_file(run).write_bytes(lines_of(free))
    with pytest.raises(EvidenceError, match="was charged before"):
        run.noise()


def run_nonce(run: PrivateRun) -> str:
    (line,) = split_bundle((run.root / "first").read_bytes())
    return Statement.parse(Envelope.parse(line).payload).nonce


def other_entry(world: PrivateRun, /, **changes: object) -> str:
    """Append a charge to the ledger and return its digest."""
    entry = world.entries()[0]
    signer = changes.pop("signer", world.world.keys["dp_noise"])
    charge = dataclasses.replace(entry.charge, **changes)
    lines = append(ledger_file(world).read_bytes(), head_of(world.entries()), charge, signer, time=entry.time)
    ledger_file(world).write_bytes(lines)
    return world.entries()[-1].digest


@pytest.mark.parametrize(
    "changes", [{"output": "a" * 64}, {"run": "b" * 32}, {"step": "train"}], ids=["output", "run", "step"]
)
def test_a_step_names_a_charge_that_paid_for_something_else(honest, changes: dict) -> None:
    digest = other_entry(honest, mechanism=Pure(0.1), **changes)
    honest.forge("dp_noise", lambda it: it.replace(figures={**it.figures, "ledger_entry": digest}))
    refuse_at_the_gate(honest)


def test_a_step_names_a_charge_that_somebody_else_signed(honest) -> None:
    digest = other_entry(honest, mechanism=Pure(0.1), signer=honest.world.owner)
    honest.forge("dp_noise", lambda it: it.replace(figures={**it.figures, "ledger_entry": digest}))
    refuse_at_the_gate(honest)


@pytest.mark.parametrize("named", [None, "c" * 64, 3], ids=["none", "one that is not there", "a number"])
def test_a_step_names_no_charge_of_the_ledger(honest, named: object) -> None:
    def change(statement):
        figures = {name: value for name, value in statement.figures.items() if name != "ledger_entry"}
        return statement.replace(figures=figures if named is None else {**figures, "ledger_entry": named})

    honest.forge("dp_noise", change)
    refuse_at_the_gate(honest)


def refuse_at_the_gate(run: PrivateRun) -> None:
    verdict = run.judge()
    assert verdict.verdict == "FAILED" and verdict.figures["unmatched"] == 1 and "unmatched = 1" in verdict.reason
    with pytest.raises(GateFailedError, match="unmatched"):
        run.enforce()


def test_a_step_that_the_policy_does_not_list_charges(tmp_path) -> None:
    run = PrivateRun(tmp_path, charging=())
    run.start()
    run.noise()
    run.train()
    with pytest.raises(ConfigError, match="charges a privacy budget, and the policy names no ledger"):
        run.judge()
    assert not (tmp_path / "verdict").exists()


def test_more_is_spent_between_the_charge_and_the_gate(honest) -> None:
    """Whoever can sign an entry under a larger budget, in a policy of their own, makes this one's gate refuse."""
    other_entry(honest, run="d" * 32, mechanism=Pure(2.0))
    verdict = honest.judge()
    assert verdict.verdict == "FAILED" and "epsilon_total" in verdict.reason


def test_the_gate_is_told_of_another_ledger_or_of_no_charge(honest) -> None:
    for name, value in (
        ("ledger", LedgerSettings("customers", 100.0)),
        ("ledger", LedgerSettings("customers", 2.5, store=f"file:{honest.root}/fresh")),
        ("charging", ()),
        ("charging", ("dp_noise", "train")),
    ):
        before = getattr(honest, name)
        setattr(honest, name, value)
        with pytest.raises(PolicyError, match="parameters differ"):
            honest.judge()
        setattr(honest, name, before)


def test_an_envelope_of_another_type_is_put_in_as_an_entry(honest) -> None:
    """What a step signed as evidence is no charge, and the other way round."""
    signed = seal_payload(b"{}", honest.world.keys["dp_noise"]).encode()
    with ledger_file(honest).open("ab") as file:
        file.write(signed + b"\n")
    refuse_a_run(honest, EvidenceError, "altered or cut at line 2")
    assert ENTRY_TYPE not in signed.decode()
