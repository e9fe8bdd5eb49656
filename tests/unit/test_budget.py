"""The budget gate: what it measures, what it shows, and what it cannot judge."""

import dataclasses

import pytest
from kfp import dsl
from ledgers import NOW, settings, wanted
from private_run import PrivateRun

from portcullis.budget.component import evaluate_budget as component
from portcullis.budget.spending import Spender, by_run, spending
from portcullis.budget.stage import SHOWN_ENTRIES, ledger_details
from portcullis.errors import ConfigError, EvidenceError, GateInconclusiveError
from portcullis.evidence.statement import Statement
from portcullis.keys import Signer
from portcullis.ledger.entries import Entry
from portcullis.ledger.mechanisms import DpSgd, Gaussian, Pure, compose
from portcullis.ledger.settings import LedgerSettings
from portcullis.report import budget_bar

SIGNER = Signer.generate()


def entry(number: int = 1, mechanism=None, key: Signer = SIGNER, **changes) -> Entry:
    return Entry(number, f"{number:064x}", NOW, key.public_key, wanted(number, mechanism, **changes))


def spender(it: Entry, **figures) -> Spender:
    statement = Statement(
        step=it.charge.step,
        stage="dp_noise",
        kind="transform",
        nonce=it.charge.run,
        started=NOW,
        finished=NOW,
        inputs={},
        outputs={"dataset": it.charge.output},
        parameters={},
        figures={"ledger_entry": it.digest, **figures},
        environment={},
    )
    return Spender(it.charge.step, it.key, statement)


def test_what_was_spent_by_all_runs_and_by_this_one() -> None:
    entries = [entry(1, Pure(0.5)), entry(2, Pure(1.0)), entry(3, Pure(0.25), run=wanted(2).run, step="train")]
    figures = spending(entries, settings(2.0), [spender(entries[1]), spender(entries[2])])
    assert figures == {
        "epsilon_total": 1.75,
        "epsilon_left": 0.25,
        "epsilon_run": 1.25,
        "delta": 0.0,
        "entries": 3,
        "runs": 2,
        "charges": 2,
        "unmatched": 0,
        "head": entries[2].digest,
    }
    assert by_run(entries, 0) == {wanted(1).run: 0.5, wanted(2).run: 1.25}


def test_at_a_delta_all_runs_together_cost_less_than_their_sum() -> None:
    entries = [entry(1, Gaussian(3.0)), entry(2, DpSgd(1.1, 0.02, 100)), entry(3, Pure(0.5))]
    figures = spending(entries, settings(5.0, delta=1e-5), [])
    assert figures["epsilon_total"] == compose([it.charge.mechanism for it in entries], 1e-5)
    assert figures["epsilon_total"] < sum(by_run(entries, 1e-5).values())


@pytest.mark.parametrize(
    "change",
    [
        lambda it: dataclasses.replace(it, key=Signer.generate().public_key),
        lambda it: dataclasses.replace(it, step="train"),
        lambda it: dataclasses.replace(it, statement=it.statement.replace(nonce="f" * 32)),
        lambda it: dataclasses.replace(it, statement=it.statement.replace(outputs={"dataset": "f" * 64})),
        lambda it: dataclasses.replace(it, statement=it.statement.replace(figures={})),
        lambda it: dataclasses.replace(it, statement=it.statement.replace(figures={"ledger_entry": "f" * 64})),
    ],
    ids=["another's key", "another step", "another run", "another output", "names none", "names another"],
)
def test_a_charge_that_is_not_the_steps_own_is_unmatched(change) -> None:
    own = entry()
    assert spending([own], settings(), [spender(own)])["unmatched"] == 0
    figures = spending([own], settings(), [change(spender(own))])
    assert (figures["charges"], figures["unmatched"]) == (0, 1)


def test_the_gate_states_what_was_spent_and_shows_it(tmp_path) -> None:
    run = PrivateRun(tmp_path)
    assert run.run().figures["epsilon_total"] == pytest.approx(1.0)
    second = run.run()
    run.enforce()
    assert second.verdict == "PASSED" and second.outputs == {"model": second.inputs["model"]}
    assert (second.figures["entries"], second.figures["runs"], second.figures["charges"]) == (2, 2, 1)
    assert second.figures["epsilon_total"] == pytest.approx(2.0) and second.figures["epsilon_run"] == pytest.approx(1.0)
    assert second.figures["head"] == run.entries()[-1].digest
    page = (tmp_path / "report.html").read_text()
    assert all(it.charge.run[:8] in page and it.digest in page for it in run.entries())
    assert "2 runs, 2 of 2.5" in page and "<svg" in page and "What was spent of customers" in page


def test_where_nothing_claims_privacy_nothing_is_charged_and_the_gate_says_so(tmp_path) -> None:
    run = PrivateRun(tmp_path, charging=(), columns={})
    statement = run.run()
    assert statement.verdict == "PASSED" and dict(statement.figures) == {"charges": 0, "unmatched": 0}
    run.enforce()
    assert run.entries() == () and not (tmp_path / "ledgers").exists()
    assert "nothing was charged" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("broken", ["a folder", "nonsense", "empty"])
def test_a_ledger_that_cannot_be_judged_is_inconclusive(tmp_path, broken: str) -> None:
    run = PrivateRun(tmp_path)
    run.run()
    path = tmp_path / "ledgers" / "customers.jsonl"
    path.unlink()
    path.mkdir() if broken == "a folder" else path.write_bytes(b"nonsense\n" if broken == "nonsense" else b"")
    statement = run.judge()
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    assert "epsilon_total" not in statement.figures and (tmp_path / "report.html").exists()
    with pytest.raises(GateInconclusiveError):
        run.enforce()


def test_a_step_that_must_have_charged_and_has_no_evidence_is_refused(tmp_path) -> None:
    run = PrivateRun(tmp_path, charging=("dp_noise", "elsewhere"))
    run.start()
    run.noise()
    run.train()
    with pytest.raises(EvidenceError, match="no evidence of 'elsewhere', which must have charged"):
        run.judge()


@pytest.mark.parametrize("ledger", [{"dataset": "customers"}, "x"], ids=["fields missing", "no mapping"])
def test_a_ledger_that_is_not_described_is_refused(tmp_path, ledger) -> None:
    from portcullis.budget.stage import evaluate_budget

    with pytest.raises(ConfigError, match="ledger: needs exactly"):
        evaluate_budget(
            step="budget",
            model=tmp_path,
            evidence=tmp_path,
            ledger=ledger,
            charging=[],
            report=tmp_path / "r",
            bundle=tmp_path / "b",
        )


def test_the_component_does_what_the_stage_does(tmp_path) -> None:
    run = PrivateRun(tmp_path)
    run.run()
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    # As KFP hands a mapping on: every number is a float.
    ledger = {name: float(it) if isinstance(it, int) else it for name, it in run.ledger.to_dict().items()}
    with run.environment():
        component.python_func(
            model=dsl.Model(uri=str(tmp_path / "model")),
            evidence=dsl.Artifact(uri=str(tmp_path / "evidence")),
            ledger=ledger,
            charging=["dp_noise"],
            step="budget",
            verdict_evidence=dsl.Artifact(uri=str(tmp_path / "verdict")),
            report=dsl.HTML(uri=str(tmp_path / "report.html")),
            metrics=metrics,
        )
    run.enforce()
    assert metrics.metadata["charges"] == 1 and "head" not in metrics.metadata


def test_a_long_ledger_is_shown_in_part() -> None:
    entries = [entry(number, Pure(0.01)) for number in range(1, SHOWN_ENTRIES + 3)]
    page = "".join(ledger_details(entries, settings()))
    assert f"The newest {SHOWN_ENTRIES} of {SHOWN_ENTRIES + 2}." in page
    assert f"{SHOWN_ENTRIES + 2:064x}" in page and f"{1:064x}" not in page
    assert "Nothing yet" in "".join(ledger_details([], settings()))


def test_what_goes_beyond_the_budget_is_red_and_names_are_escaped() -> None:
    drawn = budget_bar({"<b>": 2.0, "second": 2.0}, 3.0)
    assert drawn.count("var(--bad)") == 1 and "&lt;b&gt;" in drawn and "<b>" not in drawn
    assert "var(--bad)" not in budget_bar({"one": 0.1, "two": 0.2}, 0.3)


def test_settings_are_read_as_they_were_written() -> None:
    assert LedgerSettings.from_dict(settings(2.5, delta=1e-6).to_dict()) == settings(2.5, delta=1e-6)
