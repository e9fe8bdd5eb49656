"""Attacks on the evidence of a real run. Each must be refused by verify, by admit and by the server."""

import pytest

from portcullis.digest import sha256
from portcullis.errors import EvidenceError, GateFailedError, PolicyError, RefusedError
from portcullis.evidence.statement import Statement
from portcullis.keys import Signer
from portcullis_pipelines.steps import STEPS

pytestmark = pytest.mark.slow

JUDGED = [step.name for step in STEPS if step.name not in ("admit", "deploy")]
GATES = [step.name for step in STEPS if step.kind == "gate" and step.name != "deploy"]
DAY_MS = 24 * 3600 * 1000


def refused_everywhere(run, error: type[RefusedError] = RefusedError, match: str | None = None) -> None:
    """Neither is the folder believed, nor does a server open it, nor does admit sign it anew.

    The first two refuse because the admission pins the evidence; which rule is broken is what `admit` says.
    """
    with pytest.raises(RefusedError):
        run.verify()
    with pytest.raises(RefusedError):
        run.open()
    with pytest.raises(error, match=match):
        run.admit()


def test_the_untouched_copy_verifies_opens_and_is_admitted_again(attacked):
    attacked.verify()
    attacked.open()
    attacked.admit()


@pytest.mark.parametrize("step", JUDGED)
def test_a_steps_statement_is_removed(attacked, step):
    attacked.write(line for name, line in attacked.lines().items() if name != step)
    refused_everywhere(attacked, EvidenceError, step)


@pytest.mark.parametrize("step", JUDGED)
def test_a_step_states_twice(attacked, step):
    second = attacked.sign(attacked.statement(step).replace(environment={"image": "another"}))
    attacked.write([*attacked.lines().values(), second])
    refused_everywhere(attacked, EvidenceError, "two different statements")


@pytest.mark.parametrize("step", JUDGED)
def test_a_statement_is_signed_by_another_steps_key(attacked, step):
    other = "ingest" if step != "ingest" else "train"
    attacked.forge(step, lambda it: it, attacked.home.signer(other))
    refused_everywhere(attacked, EvidenceError, "signature is not by key")


@pytest.mark.parametrize("step", JUDGED)
def test_a_statement_is_signed_by_a_rogue_key(attacked, step):
    attacked.forge(step, lambda it: it, Signer.generate())
    refused_everywhere(attacked, EvidenceError, "signature is not by key")


@pytest.mark.parametrize("step", JUDGED)
def test_a_statement_is_stale(attacked, step):
    attacked.forge(step, lambda it: it.replace(started=it.started - 2 * DAY_MS, finished=it.finished - 2 * DAY_MS))
    refused_everywhere(attacked, EvidenceError, "stale")


@pytest.mark.parametrize("step", JUDGED)
def test_a_statement_is_from_the_future(attacked, step):
    attacked.forge(step, lambda it: it.replace(finished=it.finished + DAY_MS))
    refused_everywhere(attacked, EvidenceError, "future")


@pytest.mark.parametrize("step", JUDGED)
def test_a_statement_is_from_another_run(attacked, step):
    attacked.forge(step, lambda it: it.replace(nonce="0" * 32))
    refused_everywhere(attacked, EvidenceError, "another run")


def with_digest(field: str, name: str):
    return lambda it: it.replace(**{field: {**getattr(it, field), name: sha256(b"something else")}})


EDGES = [(step.name, name) for step in STEPS for name, source in step.inputs.items() if source != "external"]


@pytest.mark.parametrize(("step", "name"), [edge for edge in EDGES if edge[0] in JUDGED])
def test_a_steps_input_is_swapped(attacked, step, name):
    attacked.forge(step, with_digest("inputs", name))
    refused_everywhere(attacked, EvidenceError)


TAKEN = {source for step in STEPS for source in step.inputs.values()}
OUTPUTS = [(step.name, name) for step in STEPS for name in step.outputs if f"{step.name}.{name}" in TAKEN]
OUTPUTS = [(step, name) for step, name in OUTPUTS if step in JUDGED]


@pytest.mark.parametrize(("step", "name"), OUTPUTS)
def test_a_steps_output_is_swapped(attacked, step, name):
    attacked.forge(step, with_digest("outputs", name))
    refused_everywhere(attacked, RefusedError)


def test_an_edge_is_swapped_so_that_the_gate_judges_the_training_rows(attacked):
    train = attacked.statement("split").outputs["train"]
    attacked.forge("robustness:trained", lambda it: it.replace(inputs={**it.inputs, "test": train}))
    refused_everywhere(attacked, EvidenceError, "'test' is not split.test")


def weaker(value):
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value / 2 or 1
        case str():
            return value + "x"
        case list():
            return value[:-1]
        case dict():
            return {key: value[key] for key in list(value)[:-1]} or {"width": 1}
    raise TypeError(value)


def parameters_of_every_step():
    from portcullis_pipelines.config import ReferenceConfig

    config = ReferenceConfig.load(None)
    return [(step.name, name) for step in STEPS if step.name in JUDGED for name in step.parameters(config)]


@pytest.mark.parametrize(("step", "name"), parameters_of_every_step())
def test_a_step_ran_under_a_weaker_parameter(attacked, step, name):
    attacked.forge(step, lambda it: it.replace(parameters={**it.parameters, name: weaker(it.parameters[name])}))
    refused_everywhere(attacked, EvidenceError, "parameters differ")


def test_the_data_were_described_with_fewer_sensitive_columns(attacked):
    def change(it: Statement) -> Statement:
        spec = dict(it.parameters["spec"])
        spec["sensitive"] = {key: value for key, value in spec["sensitive"].items() if key != "ssn"}
        return it.replace(parameters={"spec": spec})

    attacked.forge("ingest", change)
    refused_everywhere(attacked, EvidenceError, "parameters differ")


def test_malformed_rows_were_set_aside_under_a_policy_that_refuses_them(attacked):
    attacked.forge("ingest", lambda it: it.replace(figures={**it.figures, "quarantined": 1}))
    refused_everywhere(attacked, EvidenceError, "'ingest': its figures are not within the policy's bounds: quarantined")


def test_it_is_not_said_how_many_malformed_rows_were_set_aside(attacked):
    def hide(it: Statement) -> Statement:
        return it.replace(figures={name: value for name, value in it.figures.items() if name != "quarantined"})

    attacked.forge("ingest", hide)
    refused_everywhere(attacked, EvidenceError, "quarantined = missing")


def checks_of_every_gate():
    from portcullis_pipelines.config import ReferenceConfig

    config = ReferenceConfig.load(None)
    return [
        (step.name, figure, bound, value)
        for step in STEPS
        if step.name in GATES
        for figure, bounds in step.checks(config).items()
        for bound, value in bounds.items()
    ]


@pytest.mark.parametrize(("gate", "figure", "bound", "value"), checks_of_every_gate())
def test_a_passed_verdict_is_contradicted_by_its_figures(attacked, gate, figure, bound, value):
    beyond = value - 0.001 if bound == "min" else value + 0.001
    attacked.forge(gate, lambda it: it.replace(figures={**it.figures, figure: beyond}))
    refused_everywhere(attacked, EvidenceError, "its figures mean FAILED")


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_failed(attacked, gate):
    attacked.forge(gate, lambda it: it.replace(verdict="FAILED", reason="inconclusive: out of memory", figures={}))
    refused_everywhere(attacked, GateFailedError, "inconclusive")


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_states_no_figures_and_passes(attacked, gate):
    attacked.forge(gate, lambda it: it.replace(figures={}))
    refused_everywhere(attacked, EvidenceError, "missing")


@pytest.mark.parametrize("gate", GATES)
def test_a_gates_figure_is_nan(attacked, gate):
    """NaN cannot be written by our encoder, so the attacker writes it by hand, with the right key."""
    from portcullis.evidence.dsse import seal_payload

    figure = next(iter(next(step for step in STEPS if step.name == gate).checks(attacked.config)))
    statement = attacked.statement(gate)
    marked = statement.replace(figures={**statement.figures, figure: "HERE"}).encode()
    lines = attacked.lines()
    lines[gate] = seal_payload(marked.replace(b'"HERE"', b"NaN"), attacked.home.signer(gate)).encode()
    attacked.write(lines.values())
    refused_everywhere(attacked, EvidenceError, "NaN")


def test_the_test_rows_were_not_attested(attacked):
    """The gate judges rows of the attacker's own choice and says so honestly."""
    attacked.forge("robustness:trained", with_digest("inputs", "test"))
    refused_everywhere(attacked, EvidenceError, "split.test")


def test_a_statement_of_a_step_that_the_policy_does_not_know_is_slipped_in(attacked):
    smuggled = attacked.sign(attacked.statement("train").replace(step="fine_tune"), attacked.home.signer("train"))
    attacked.write([*attacked.lines().values(), smuggled])
    refused_everywhere(attacked, PolicyError, "fine_tune")


def test_the_evidence_is_empty(attacked):
    attacked.write([])
    refused_everywhere(attacked, EvidenceError, "no evidence")
