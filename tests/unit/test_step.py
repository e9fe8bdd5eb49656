"""How one step works, with real files, keys and a trust store: every refusal before, after and between steps."""

import dataclasses
import math
import os
import shutil

import pytest
import yaml
from chains import NONCE, World

from portcullis.digest import file_digest, sha256, tree_digest
from portcullis.errors import (
    AdmissionError,
    EvidenceError,
    GateFailedError,
    KeyMaterialError,
    PolicyError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence.admission import admission_identity, issue_admission, verify_admission, verify_deployment
from portcullis.evidence.chain import split_bundle
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import (
    begin,
    begin_deployment,
    enforce,
    environment,
    keys_base,
    read_evidence,
    signer_for,
)
from portcullis.evidence.trust import Revocations, Seen, TrustStore, now_ms, observe, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer

WORLD = World()
POLICY = WORLD.policy()
EXPIRES = now_ms() + 10**8
GOOD = {"robust_accuracy": 0.8125, "samples": 359}
WEAK = {"robust_accuracy": 0.5, "samples": 359}


FILES = {
    "raw.csv": b"1,2\n3,4\n",
    "model/weights": b"\x01\x02",
    "model/config.json": b"{}",
    "test/rows": b"3,4\n",
    "sealed/weights.sealed": b"\x03\x04",
}


class Workshop:
    """A pipeline's files, keys and trust store in a folder, and its steps as functions of them."""

    def __init__(self, root):
        self.root = root

    def furnish(self):
        self.trust_store()
        for step, signer in WORLD.keys.items():
            self.key(step, signer)
        for path, data in FILES.items():
            (self.root / path).parent.mkdir(exist_ok=True)
            (self.root / path).write_bytes(data)

    def trust_store(self, revocations=None, *, environment="development", **changes):
        write_trust_store(
            self.root / "trust",
            owner=WORLD.owner.public_key,
            name="demo",
            environment="development",
            policy=self.policy_bytes(environment=environment, **changes),
            revocations=(revocations or Revocations(1)).sign(WORLD.owner),
        )

    def policy_bytes(self, **changes):
        return WORLD.policy_bytes(**{"expires": EXPIRES, **changes})

    def revoke(self, version=2, **lists):
        (self.root / "trust" / "revocations.json").write_bytes(
            Revocations(version, **{name: frozenset(entries) for name, entries in lists.items()}).sign(WORLD.owner)
        )

    def key(self, step, signer, *, mode=0o600):
        write_bytes(self.key_path(step), signer.private_pem(), mode=mode)

    def key_path(self, step):
        return self.root / "keys" / f"{step.replace(':', '.')}.pem"

    def bundle(self, name):
        return self.root / f"{name}.intoto.jsonl"

    def begin(self, step, **changes):
        nonce = {"nonce": sha256(NONCE.encode())}
        settings = {
            "preflight": {"inputs": {"policy": file_digest(self.root / "trust" / "policy.yaml")}, "nonce": NONCE},
            "train": {
                "inputs": {**nonce, "raw": file_digest(self.root / "raw.csv")},
                "evidence": [self.bundle("preflight")],
            },
            "robustness:trained": {
                "inputs": {"model": tree_digest(self.root / "model"), "test": tree_digest(self.root / "test")},
                "evidence": [self.bundle("train")],
            },
            "encrypt": {"inputs": {"model": tree_digest(self.root / "model")}, "evidence": [self.bundle("passed")]},
        }[step]
        rule = POLICY.step(step)
        return begin(step, **{"stage": rule.stage, "parameters": dict(rule.parameters), **settings, **changes})

    def preflight(self, nonce=NONCE, to="preflight"):
        begun = self.begin("preflight", nonce=nonce)
        return begun.finish(bundle=self.bundle(to), outputs={"nonce": sha256(NONCE.encode())}, figures={})

    def train(self):
        outputs = {"model": tree_digest(self.root / "model"), "test": tree_digest(self.root / "test")}
        return self.begin("train").finish(bundle=self.bundle("train"), outputs=outputs, figures={"loss": 0.25})

    def judge(self, figures=GOOD, **options):
        begun = self.begin("robustness:trained")
        return begun.finish(bundle=self.bundle("judged"), figures=figures, **options)

    def enforce(self, gate="robustness:trained", *, subject=None, evidence="judged"):
        subject = subject or tree_digest(self.root / "model")
        return enforce(gate, subject=subject, evidence=self.bundle(evidence), passed=self.bundle("passed"))

    def encrypt(self):
        outputs = {"sealed": tree_digest(self.root / "sealed")}
        return self.begin("encrypt").finish(bundle=self.bundle("encrypt"), outputs=outputs, figures={"bytes": 2})

    def run(self):
        self.preflight()
        self.train()
        self.judge()
        self.enforce()
        self.encrypt()

    def admit(self, *, later=0):
        store = TrustStore.load()
        envelope, _ = issue_admission(
            read_evidence([self.bundle("encrypt")]),
            store,
            sealed=tree_digest(self.root / "sealed"),
            signer=signer_for(store, store.policy.admission_step()),
            now=now_ms() + later,
        )
        return envelope.encode()

    def deploy(self, admission, step="deploy", **changes):
        settings = {
            "stage": "deploy",
            "parameters": {},
            "sealed": tree_digest(self.root / "sealed"),
            "evidence": [self.bundle("encrypt")],
            **changes,
        }
        return begin_deployment(step, admission=admission, **settings)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a workshop before its run, and one whose model was trained, judged and sealed; tests work on copies."""
    fresh, finished = (tmp_path_factory.mktemp("workshop") for _ in range(2))
    Workshop(fresh).furnish()
    shutil.copytree(fresh, finished, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        inhabit(finished, monkeypatch).run()
    return fresh, finished


def inhabit(root, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_TRUST", str(root / "trust"))
    monkeypatch.setenv("PORTCULLIS_STATE", str(root / "state"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{root / 'keys'}")
    return Workshop(root)


@pytest.fixture
def workshop(places, tmp_path, monkeypatch):
    shutil.copytree(places[0], tmp_path, dirs_exist_ok=True)
    return inhabit(tmp_path, monkeypatch)


@pytest.fixture
def finished(places, tmp_path, monkeypatch):
    shutil.copytree(places[1], tmp_path, dirs_exist_ok=True)
    return inhabit(tmp_path, monkeypatch)


@pytest.fixture
def deployable(finished):
    """A finished workshop and its admission."""
    return finished, finished.admit()


@pytest.fixture
def clock(monkeypatch):
    """Set the clock of the step forward by some milliseconds."""

    def advance(milliseconds):
        monkeypatch.setattr("portcullis.evidence.step.now_ms", lambda: now_ms() + milliseconds)

    return advance


def test_a_whole_run_from_raw_data_to_a_deployed_model(workshop):
    workshop.preflight()
    workshop.train()
    assert workshop.judge().verdict == "PASSED"
    assert tuple(workshop.enforce().statements) == ("preflight", "train", "robustness:trained")
    assert workshop.bundle("passed").read_bytes() == workshop.bundle("judged").read_bytes()
    workshop.encrypt()
    admission = workshop.admit()
    begun = workshop.deploy(admission)
    deployed = begun.finish(bundle=workshop.bundle("deployment"), figures={"good": 200})
    assert deployed.verdict == "PASSED"

    store, sealed = TrustStore.load(), tree_digest(workshop.root / "sealed")
    lines = read_evidence([workshop.bundle("encrypt")])
    admitted, _ = verify_admission(admission, lines, store, sealed=sealed, seen=observe(store), now=now_ms())
    assert admitted.content == tree_digest(workshop.root / "model")
    (line,) = split_bundle(workshop.bundle("deployment").read_bytes())
    assert verify_deployment(line, store, admitted, admission_digest=sha256(admission), now=now_ms()) == deployed


def test_a_statement_says_what_ran(workshop, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_IMAGE", "registry/image@sha256:0")
    environment.cache_clear()
    try:
        ran = workshop.preflight().environment
    finally:
        environment.cache_clear()
    assert ran["image"] == "registry/image@sha256:0"
    assert set(ran) == {"portcullis", "python", "record", "distributions", "image"}
    assert all(ran[name].startswith("sha256:") for name in ("record", "distributions"))


# Before a step: each refusal comes before any work.

OTHER_PARAMETERS = {
    "weaker": {"epochs": 1, "rate": 0.5},
    "extra": {"epochs": 3, "rate": 0.5, "more": 1},
    "missing": {"rate": 0.5},
    "none": {},
    "true for one": {"epochs": 3, "rate": True},
    "text for a number": {"epochs": "3", "rate": 0.5},
}


@pytest.mark.parametrize("parameters", OTHER_PARAMETERS.values(), ids=OTHER_PARAMETERS.keys())
def test_other_parameters_than_the_policys_are_refused(workshop, parameters):
    workshop.preflight()
    with pytest.raises(PolicyError, match=r"parameters differ from the policy's: (epochs|rate|more) is "):
        workshop.begin("train", parameters=parameters)


def test_a_number_in_another_spelling_is_the_same_parameter(workshop):
    workshop.preflight()
    assert workshop.begin("train", parameters={"epochs": 3.0, "rate": 0.5})


def test_one_for_true_is_named_in_the_refusal(workshop):
    steps = yaml.safe_load(workshop.policy_bytes())["steps"]
    steps[1]["parameters"] = {"shuffle": True}
    workshop.trust_store(steps=steps)
    workshop.preflight()
    with pytest.raises(PolicyError, match="shuffle is 1, the policy says True"):
        workshop.begin("train", parameters={"shuffle": 1})


def test_a_step_that_the_policy_does_not_know_is_refused(workshop):
    with pytest.raises(PolicyError, match="knows no step 'smuggle'"):
        begin("smuggle", stage="train", inputs={}, parameters={}, nonce=NONCE)


def test_another_stage_is_refused(workshop):
    workshop.preflight()
    with pytest.raises(PolicyError, match="is of stage train, not mask_pii"):
        workshop.begin("train", stage="mask_pii")


def test_another_policy_is_no_input(workshop):
    with pytest.raises(EvidenceError, match="input 'policy' is not policy"):
        workshop.begin("preflight", inputs={"policy": "0" * 64})


@pytest.mark.parametrize("change", ["missing", "extra", "none"])
def test_inputs_are_those_that_the_policy_names(workshop, change):
    workshop.preflight()
    nonce, raw = {"nonce": sha256(NONCE.encode())}, {"raw": "0" * 64}
    inputs = {"missing": nonce, "extra": {**nonce, **raw, "more": "0" * 64}, "none": {}}[change]
    with pytest.raises(EvidenceError, match="takes"):
        workshop.begin("train", inputs=inputs)


ALTERED = {
    "byte": lambda model: (model / "weights").write_bytes(b"\x01\x03"),
    "added": lambda model: (model / "more").write_bytes(b""),
    "removed": lambda model: (model / "config.json").unlink(),
    "renamed": lambda model: (model / "weights").rename(model / "weights.bin"),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
def test_an_artifact_altered_between_steps_is_refused(finished, alter):
    alter(finished.root / "model")
    with pytest.raises(EvidenceError, match="swapped or altered"):
        finished.begin("encrypt")
    with pytest.raises(EvidenceError, match="judged something else"):
        finished.enforce()


def test_inputs_swapped_among_themselves_are_refused(workshop):
    workshop.preflight()
    workshop.train()
    model, test = (tree_digest(workshop.root / name) for name in ("model", "test"))
    with pytest.raises(EvidenceError, match="swapped or altered"):
        workshop.begin("robustness:trained", inputs={"model": test, "test": model})


BAD_EVIDENCE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "a directory": lambda path: [path.unlink(), path.mkdir()],
    "a named pipe": lambda path: [path.unlink(), os.mkfifo(path)],
    "dangling link": lambda path: [path.unlink(), path.symlink_to("nowhere")],
    "text": lambda path: path.write_bytes(b"PASSED\n"),
    "last line removed": lambda path: path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:-2]) + b"\n"),
    "first line removed": lambda path: path.write_bytes(path.read_bytes().split(b"\n", 1)[1]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a letter changed": lambda path: path.write_bytes(path.read_bytes().replace(b"payload", b"pAyload", 1)),
}


@pytest.mark.parametrize("spoil", BAD_EVIDENCE.values(), ids=BAD_EVIDENCE.keys())
def test_spoilt_evidence_is_refused_before_a_step_and_at_its_gate(finished, spoil):
    handed_on = finished.bundle("passed")
    spoil(handed_on)
    with pytest.raises(EvidenceError):
        finished.begin("encrypt")
    if handed_on.is_dir():
        handed_on.rmdir()
    else:
        handed_on.unlink(missing_ok=True)
    spoil(finished.bundle("judged"))
    with pytest.raises(EvidenceError):
        finished.enforce()
    assert not handed_on.exists()


def test_no_evidence_at_all_is_refused(workshop):
    with pytest.raises(EvidenceError, match="no evidence of step 'preflight'"):
        workshop.begin("train", evidence=[])


def test_a_first_step_needs_a_nonce(workshop):
    with pytest.raises(EvidenceError, match="came without evidence"):
        workshop.begin("preflight", nonce=None)


def test_bundles_of_one_run_unite(workshop):
    workshop.preflight()
    workshop.train()
    begun = workshop.begin("robustness:trained", evidence=[workshop.bundle("preflight"), workshop.bundle("train")])
    assert len(begun.lines) == 2


def test_bundles_of_two_runs_do_not_unite(workshop):
    workshop.preflight()
    workshop.train()
    workshop.preflight(nonce="f" * 32, to="other")
    with pytest.raises(EvidenceError, match="two different statements for one step"):
        workshop.begin("robustness:trained", evidence=[workshop.bundle("train"), workshop.bundle("other")])


def test_parts_of_two_runs_do_not_unite(workshop):
    workshop.preflight(nonce="f" * 32)
    workshop.train()
    other = split_bundle(workshop.bundle("train").read_bytes())[1]
    workshop.preflight()
    workshop.bundle("mixed").write_bytes(workshop.bundle("preflight").read_bytes() + other + b"\n")
    with pytest.raises(EvidenceError, match="from another run"):
        workshop.begin("robustness:trained", evidence=[workshop.bundle("mixed")])


def test_a_run_cannot_be_begun_again_half_way(workshop):
    workshop.preflight()
    with pytest.raises(EvidenceError, match="may not begin another"):
        workshop.begin("train", nonce="f" * 32)


def test_stale_evidence_is_refused(finished, clock):
    clock(3_601_000)
    with pytest.raises(EvidenceError, match="stale"):
        finished.begin("encrypt")
    with pytest.raises(EvidenceError, match="stale"):
        finished.enforce()


def test_a_failed_gate_stops_the_next_step(workshop):
    workshop.preflight()
    workshop.train()
    workshop.judge(WEAK)
    with pytest.raises(GateFailedError, match=r"robust_accuracy = 0\.5"):
        workshop.begin("encrypt", evidence=[workshop.bundle("judged")])


def test_a_gate_left_out_stops_the_next_step(workshop):
    workshop.preflight()
    workshop.train()
    with pytest.raises(EvidenceError, match="no evidence of step 'robustness:trained'"):
        workshop.begin("encrypt", evidence=[workshop.bundle("train")])


def test_without_a_trust_store_nothing_begins(finished, monkeypatch):
    admission = finished.admit()
    monkeypatch.delenv("PORTCULLIS_TRUST")
    for attempt in (
        lambda: begin("train", stage="train", inputs={}, parameters={}),
        lambda: finished.enforce(),
        lambda: finished.deploy(admission),
    ):
        with pytest.raises(TrustStoreError, match="no trust store"):
            attempt()


BAD_STORES = {
    "expired policy": (lambda w: w.trust_store(expires=now_ms() - 1), PolicyError),
    "another environment": (lambda w: w.trust_store(environment="production"), PolicyError),
    "unsigned policy": (
        lambda w: (w.root / "trust" / "policy.yaml").write_bytes(w.policy_bytes().rpartition(b"# portc")[0]),
        PolicyError,
    ),
    "another owner": (
        lambda w: (w.root / "trust" / "owner.pem").write_text(Signer.generate().public_key.pem),
        PolicyError,
    ),
    "no revocation list": (lambda w: (w.root / "trust" / "revocations.json").unlink(), TrustStoreError),
    "no pins": (lambda w: (w.root / "trust" / "trust.yaml").unlink(), TrustStoreError),
    "no policy": (lambda w: (w.root / "trust" / "policy.yaml").unlink(), TrustStoreError),
}


@pytest.mark.parametrize(("spoil", "error"), BAD_STORES.values(), ids=BAD_STORES.keys())
def test_a_spoilt_trust_store_stops_everything(deployable, spoil, error):
    workshop, admission = deployable
    spoil(workshop)
    for attempt in (
        lambda: begin("train", stage="train", inputs={}, parameters={}),
        lambda: workshop.enforce(),
        lambda: workshop.deploy(admission),
    ):
        with pytest.raises(error):
            attempt()


def test_keys_that_are_nowhere_are_refused(workshop, monkeypatch):
    monkeypatch.delenv("PORTCULLIS_KEYS")
    with pytest.raises(UsageError, match="set PORTCULLIS_KEYS"):
        keys_base()
    with pytest.raises(UsageError, match="set PORTCULLIS_KEYS"):
        workshop.begin("preflight")


BAD_KEYS = {
    "missing": (lambda w: w.key_path("preflight").unlink(), KeyMaterialError, "portcullis keys generate"),
    "empty": (lambda w: w.key_path("preflight").write_bytes(b""), KeyMaterialError, "no key"),
    "open to others": (lambda w: w.key_path("preflight").chmod(0o644), KeyMaterialError, "chmod 600"),
    "not pem": (lambda w: w.key_path("preflight").write_bytes(b"x"), KeyMaterialError, "PEM"),
    "a rogue key": (lambda w: w.key("preflight", Signer.generate()), PolicyError, "not the one"),
    "another step's key": (lambda w: w.key("preflight", WORLD.keys["train"]), PolicyError, "not the one"),
    "revoked": (lambda w: w.revoke(keys={WORLD.keys["preflight"].public_key.keyid}), PolicyError, "revoked"),
}


@pytest.mark.parametrize(("spoil", "error", "match"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_only_the_steps_own_key_begins_it(workshop, spoil, error, match):
    spoil(workshop)
    with pytest.raises(error, match=match):
        workshop.preflight()


def test_a_key_revoked_since_closes_the_chain(finished):
    finished.revoke(keys={WORLD.keys["train"].public_key.keyid})
    with pytest.raises(EvidenceError, match=r"step 'train': its key .* is revoked"):
        finished.enforce()


def test_keys_from_the_environment_work(workshop, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_KEYS", "env:DEMO")
    monkeypatch.setenv("DEMO_PREFLIGHT_PEM", WORLD.keys["preflight"].private_pem().decode())
    assert workshop.preflight().step == "preflight"


# After a step: nothing unsound is signed, and no evidence is left behind.

DIGEST = "0" * 64
UNSTATABLE = {
    "nan": {"figures": {"loss": math.nan}},
    "infinity": {"figures": {"loss": math.inf}},
    "true": {"figures": {"converged": True}},
    "integer beyond a double": {"figures": {"rows": 2**53}},
    "list": {"figures": {"losses": [1]}},
    "surrogate": {"figures": {"note": "\ud800"}},
    "no output": {"outputs": {}},
    "outputs left out": {"outputs": None},
    "output missing": {"outputs": {"model": DIGEST}},
    "output extra": {"outputs": {"model": DIGEST, "test": DIGEST, "more": DIGEST}},
    "output that is no digest": {"outputs": {"model": "weights", "test": DIGEST}},
    "output in upper case": {"outputs": {"model": "A" * 64, "test": DIGEST}},
}


@pytest.mark.parametrize("changes", UNSTATABLE.values(), ids=UNSTATABLE.keys())
def test_what_no_verifier_would_read_is_never_signed(workshop, changes):
    workshop.preflight()
    begun = workshop.begin("train")
    with pytest.raises(EvidenceError):
        begun.finish(
            **{"bundle": workshop.bundle("x"), "outputs": {"model": DIGEST, "test": DIGEST}, "figures": {}, **changes}
        )
    assert not workshop.bundle("x").exists()


@pytest.mark.parametrize("nonce", ["", "x", "A" * 32, "0" * 31, "0" * 33], ids=str)
def test_a_malformed_nonce_is_never_signed(workshop, nonce):
    with pytest.raises(EvidenceError):
        workshop.preflight(nonce=nonce)
    assert not workshop.bundle("preflight").exists()


def test_a_clock_set_back_during_the_work_is_noticed(workshop, clock):
    begun = workshop.begin("preflight")
    clock(-60_000)
    with pytest.raises(EvidenceError):
        begun.finish(bundle=workshop.bundle("x"), outputs={"nonce": DIGEST}, figures={})


def test_figures_of_any_size_that_json_can_state_are_read_again(workshop):
    workshop.preflight()
    outputs = {"model": tree_digest(workshop.root / "model"), "test": tree_digest(workshop.root / "test")}
    figures = {"flops": 1e20, "tiny": 5e-324, "rows": -(2**53) + 1, "note": "é"}
    workshop.begin("train").finish(bundle=workshop.bundle("train"), outputs=outputs, figures=figures)
    assert workshop.judge().verdict == "PASSED"


def test_a_failing_gate_still_leaves_its_signed_verdict(workshop):
    workshop.preflight()
    workshop.train()
    statement = workshop.judge(WEAK)
    assert (statement.verdict, statement.reason) == ("FAILED", "robust_accuracy = 0.5, required 0.75 .. 1")
    line = split_bundle(workshop.bundle("judged").read_bytes())[-1]
    assert Statement.parse(Envelope.parse(line).verify(WORLD.keys["robustness:trained"].public_key)) == statement
    with pytest.raises(GateFailedError, match=r"robust_accuracy = 0\.5, required 0\.75"):
        workshop.enforce()
    assert not workshop.bundle("passed").exists()


@pytest.mark.parametrize("figures", [GOOD, WEAK, {}], ids=["passing figures", "failing figures", "no figures"])
def test_what_could_not_be_judged_is_failed_whatever_its_figures(workshop, figures):
    workshop.preflight()
    workshop.train()
    statement = workshop.judge(figures, inconclusive="gradients vanish")
    assert (statement.verdict, statement.reason) == ("FAILED", "inconclusive: gradients vanish")
    with pytest.raises(GateFailedError, match="inconclusive: gradients vanish"):
        workshop.enforce()
    with pytest.raises(GateFailedError, match="inconclusive"):
        workshop.begin("encrypt", evidence=[workshop.bundle("judged")])
    assert not workshop.bundle("passed").exists()


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf], ids=str)
def test_a_gate_cannot_state_what_is_no_number(workshop, figure):
    workshop.preflight()
    workshop.train()
    for options in ({}, {"inconclusive": "diverged"}):
        with pytest.raises(EvidenceError, match="cannot state its outcome"):
            workshop.judge({"robust_accuracy": figure, "samples": 359}, **options)
    assert not workshop.bundle("judged").exists()


def test_a_gate_answers_for_what_it_was_given_and_nothing_else(workshop):
    workshop.preflight()
    workshop.train()
    statement = workshop.judge(outputs={"model": DIGEST})
    assert statement.outputs == {"model": tree_digest(workshop.root / "model")}


# Between the two halves of a gate.


def test_enforce_knows_gates_only(finished):
    with pytest.raises(PolicyError, match="is no gate"):
        finished.enforce("train")
    with pytest.raises(PolicyError, match="knows no step"):
        finished.enforce("fairness")


def test_enforce_refuses_evidence_without_the_verdict(finished):
    with pytest.raises(EvidenceError, match="no evidence of step 'robustness:trained'"):
        finished.enforce(evidence="train")


@pytest.mark.parametrize("subject", ["test", "raw.csv"])
def test_enforce_refuses_another_subject(finished, subject):
    path = finished.root / subject
    with pytest.raises(EvidenceError, match="judged something else"):
        finished.enforce(subject=tree_digest(path) if path.is_dir() else file_digest(path))


def test_enforce_refuses_a_verdict_under_another_policy(finished):
    finished.trust_store(version=4)
    with pytest.raises(EvidenceError, match="input 'policy' is not policy"):
        finished.enforce()


# Deployment.


def test_a_deployment_needs_what_the_policy_says_of_it(deployable):
    workshop, admission = deployable
    with pytest.raises(PolicyError, match="not serve"):
        workshop.deploy(admission, stage="serve")
    with pytest.raises(PolicyError, match="parameters differ"):
        workshop.deploy(admission, parameters={"target": "elsewhere"})
    with pytest.raises(PolicyError, match="knows no step"):
        workshop.deploy(admission, step="deploy:twice")


@pytest.mark.parametrize("step", ["encrypt", "robustness:trained", "admit"])
def test_another_step_cannot_deploy(deployable, step):
    workshop, admission = deployable
    rule = TrustStore.load().policy.step(step)
    with pytest.raises(PolicyError, match="something else than what is admitted"):
        workshop.deploy(admission, step=step, stage=rule.stage, parameters=rule.parameters)


BAD_ADMISSIONS = {
    "nothing": lambda data: b"",
    "text": lambda data: b"PASSED",
    "cut": lambda data: data[:-1],
    "newline at the end": lambda data: data + b"\n",
    "a letter changed": lambda data: data.replace(b"payload", b"pAyload", 1),
    "a step's line": lambda data: WORLD.line(WORLD.statements(WORLD.policy())["encrypt"]),
}


@pytest.mark.parametrize("spoil", BAD_ADMISSIONS.values(), ids=BAD_ADMISSIONS.keys())
def test_a_spoilt_admission_deploys_nothing(deployable, spoil):
    workshop, admission = deployable
    with pytest.raises(AdmissionError):
        workshop.deploy(spoil(admission))


def test_an_altered_sealed_model_is_not_deployed(deployable):
    workshop, admission = deployable
    (workshop.root / "sealed" / "weights.sealed").write_bytes(b"\x03\x05")
    with pytest.raises(AdmissionError, match="another sealed model"):
        workshop.deploy(admission)


def test_an_admission_without_its_evidence_deploys_nothing(deployable):
    workshop, admission = deployable
    with pytest.raises(AdmissionError, match="to the byte"):
        workshop.deploy(admission, evidence=[])
    with pytest.raises(AdmissionError, match="to the byte"):
        workshop.deploy(admission, evidence=[workshop.bundle("passed")])
    with pytest.raises(EvidenceError, match="missing"):
        workshop.deploy(admission, evidence=[workshop.bundle("nowhere")])


def test_an_admission_deploys_until_it_expires_though_its_evidence_is_stale(deployable, clock):
    workshop, admission = deployable
    clock(86_000_000)
    assert workshop.deploy(admission).nonce == NONCE
    clock(86_401_000)
    with pytest.raises(AdmissionError, match="expired"):
        workshop.deploy(admission)


def test_a_revoked_admission_is_not_deployed(deployable):
    workshop, admission = deployable
    workshop.revoke(admissions={admission_identity(admission)})
    without_keyid = dataclasses.replace(Envelope.parse(admission), keyid="").encode()
    for spelling in (admission, without_keyid):
        with pytest.raises(AdmissionError, match="revoked"):
            workshop.deploy(spelling)


@pytest.mark.parametrize("step", ["admit", "train", "deploy"])
def test_a_revoked_key_stops_the_deployment(deployable, step):
    workshop, admission = deployable
    workshop.revoke(keys={WORLD.keys[step].public_key.keyid})
    with pytest.raises((AdmissionError, EvidenceError, PolicyError), match="revoked"):
        workshop.deploy(admission)


def test_an_older_admission_needs_a_signed_rollback_once_a_newer_was_deployed(deployable):
    workshop, older = deployable
    newer = workshop.admit(later=1000)
    assert workshop.deploy(newer).nonce == workshop.deploy(older).nonce == NONCE  # neither is deployed yet
    issued = verify_admission(
        newer,
        read_evidence([workshop.bundle("encrypt")]),
        TrustStore.load(),
        sealed=tree_digest(workshop.root / "sealed"),
        seen=Seen(),
        now=now_ms(),
    )[0].issued
    observe(TrustStore.load(), deployed=issued)
    with pytest.raises(AdmissionError, match="newer admission"):
        workshop.deploy(older)
    assert workshop.deploy(newer)
    workshop.revoke(rollbacks={admission_identity(older)})
    assert workshop.deploy(older) and workshop.deploy(newer)


def test_an_older_policy_cannot_be_put_back(deployable):
    workshop, admission = deployable
    workshop.deploy(admission)
    workshop.trust_store(version=4)
    with pytest.raises(AdmissionError, match="version 4"):
        workshop.deploy(admission)
    workshop.trust_store(version=3)
    with pytest.raises(PolicyError, match="version 3 is older than 4, seen before"):
        workshop.deploy(admission)


def test_an_older_revocation_list_cannot_be_put_back(deployable):
    workshop, admission = deployable
    workshop.revoke(version=2, admissions={admission_identity(admission)})
    with pytest.raises(AdmissionError, match="revoked"):
        workshop.deploy(admission)
    workshop.revoke(version=1)
    with pytest.raises(PolicyError, match="revocation list 1 is older than 2"):
        workshop.deploy(admission)


def test_a_deployment_without_memory_is_refused(deployable, monkeypatch):
    workshop, admission = deployable
    state = workshop.root / "state"
    state.write_bytes(b"")
    with pytest.raises(TrustStoreError, match="state directory"):
        workshop.deploy(admission)
    state.unlink()
    state.mkdir()
    (state / "seen.json").write_bytes(b"{")
    with pytest.raises(TrustStoreError, match="damaged"):
        workshop.deploy(admission)


def test_a_server_that_answers_wrongly_is_stated_as_failed(deployable):
    workshop, admission = deployable
    statement = workshop.deploy(admission).finish(bundle=workshop.bundle("deployment"), figures={"good": 503})
    assert (statement.verdict, statement.reason) == ("FAILED", "good = 503, required 200 .. 200")
    assert len(split_bundle(workshop.bundle("deployment").read_bytes())) == 1
