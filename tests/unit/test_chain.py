"""Every rule of the chain, broken once."""

import json
import math

import pytest
from chains import CHAIN_STEPS, NOW, STEPS, World, digest_of

from portcullis.errors import EvidenceError, GateFailedError, GateInconclusiveError, PolicyError
from portcullis.evidence.chain import MAX_BUNDLE_BYTES, ChainVerifier, join_bundle, split_bundle, verify_chain
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.policy import Policy
from portcullis.keys import Signer

WORLD = World()
POLICY: Policy = WORLD.policy()
NEEDED = POLICY.ancestors("admit")


def verify(lines, *, policy=POLICY, now=NOW, revoked=frozenset(), needed=NEEDED):
    return verify_chain(lines, policy, needed=needed, judged_at=now, revoked_keys=revoked)


def test_an_honest_chain_holds_and_keeps_the_policys_order():
    chain = verify(reversed(WORLD.lines(POLICY)))
    assert tuple(chain.statements) == CHAIN_STEPS
    assert chain.output("encrypt.sealed") == digest_of("encrypt.sealed")


def test_identical_lines_count_once():
    lines = WORLD.lines(POLICY)
    assert verify([*lines, *lines]).statements == verify(lines).statements


@pytest.mark.parametrize("step", CHAIN_STEPS)
def test_a_missing_statement_is_refused(step):
    lines = [line for line, name in zip(WORLD.lines(POLICY), CHAIN_STEPS, strict=True) if name != step]
    with pytest.raises(EvidenceError, match=step):
        verify(lines)


def test_an_ancestor_is_missed_even_when_nobody_needs_it():
    lines = [line for line, name in zip(WORLD.lines(POLICY), CHAIN_STEPS, strict=True) if name != "train"]
    with pytest.raises(EvidenceError, match=r"'train', which must come before"):
        verify(lines, needed=())


def test_a_parameter_that_python_takes_for_equal_is_not():
    blank = {"parameters": {}, "requires": [], "checks": {}}
    steps = [{**blank, **step, "key": WORLD.keys[step["name"]].public_key.pem} for step in STEPS]
    steps[1] = {**steps[1], "parameters": {"epochs": 1, "rate": 0.5}}
    policy = WORLD.policy(steps=steps)
    assert verify(WORLD.lines(policy), policy=policy).statements
    forged = WORLD.lines(policy, train=lambda it: it.replace(parameters={"epochs": True, "rate": 0.5}))
    with pytest.raises(EvidenceError, match="parameters differ"):
        verify(forged, policy=policy)


@pytest.mark.parametrize("figures", [{"rows": 6}, {"rows": -1}, {"rows": "5"}, {}], ids=str)
def test_a_transforms_figures_hold_to_the_policys_bounds(figures):
    blank = {"parameters": {}, "requires": [], "checks": {}}
    steps = [{**blank, **step, "key": WORLD.keys[step["name"]].public_key.pem} for step in STEPS]
    steps[1] = {**steps[1], "checks": {"rows": {"min": 0, "max": 5}}}
    policy = WORLD.policy(steps=steps)
    assert verify(WORLD.lines(policy), policy=policy).statements
    with pytest.raises(EvidenceError, match="'train': its figures are not within the policy's bounds: rows"):
        verify(WORLD.lines(policy, train=lambda it: it.replace(figures=figures)), policy=policy)


def test_a_transform_poses_as_the_gate_of_its_own_stage():
    def posing(statement):
        return statement.replace(kind="transform", verdict=None)

    with pytest.raises(EvidenceError, match="stated by a robustness_gate transform"):
        verify(WORLD.lines(POLICY, robustness__trained=posing))


def test_a_bundle_is_no_larger_than_allowed():
    with pytest.raises(EvidenceError, match="larger"):
        split_bundle(bytes(MAX_BUNDLE_BYTES + 1))


def test_an_inconclusive_gate_has_an_exit_code_of_its_own():
    def inconclusive(statement):
        return statement.replace(verdict="FAILED", reason="inconclusive: out of memory", figures={})

    with pytest.raises(GateInconclusiveError) as raised:
        verify(WORLD.lines(POLICY, robustness__trained=inconclusive))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("step", CHAIN_STEPS)
def test_another_steps_key_is_refused(step):
    statement = WORLD.statements(POLICY)[step]
    other = WORLD.keys["deploy"]
    lines = [WORLD.line(s, other if s is statement else None) for s in [statement]]
    with pytest.raises(EvidenceError, match="signature is not by key"):
        ChainVerifier(POLICY, NOW).add(lines[0])


@pytest.mark.parametrize("step", CHAIN_STEPS)
def test_a_rogue_key_is_refused_whatever_its_keyid_claims(step):
    envelope = Envelope.parse(WORLD.line(WORLD.statements(POLICY)[step], Signer.generate()))
    claimed = Envelope(envelope.payload_type, envelope.payload, WORLD.keys[step].public_key.keyid, envelope.signature)
    with pytest.raises(EvidenceError, match="signature is not by key"):
        ChainVerifier(POLICY, NOW).add(claimed.encode())


@pytest.mark.parametrize("step", CHAIN_STEPS)
def test_a_revoked_key_is_refused(step):
    with pytest.raises(EvidenceError, match="revoked"):
        verify(WORLD.lines(POLICY), revoked={WORLD.keys[step].public_key.keyid})


def test_two_statements_for_one_step_are_refused():
    lines = WORLD.lines(POLICY)
    second = WORLD.line(WORLD.statements(POLICY)["train"].replace(figures={"rows": 6}))
    with pytest.raises(EvidenceError, match="two different statements"):
        verify([*lines, second])


def test_an_error_leaves_the_verifier_unusable():
    verifier = ChainVerifier(POLICY, NOW)
    with pytest.raises(EvidenceError):
        verifier.add(b"{}")
    with pytest.raises(EvidenceError, match="already"):
        verifier.conclude(())


def swap(field, name, value="0" * 64):
    return lambda statement: statement.replace(**{field: {**getattr(statement, field), name: value}})


def drop(field, name):
    return lambda statement: statement.replace(
        **{field: {key: value for key, value in getattr(statement, field).items() if key != name}}
    )


def figures(**values):
    return lambda statement: statement.replace(figures=values)


BROKEN = {
    "from another run": {"encrypt": lambda s: s.replace(nonce="f" * 32)},
    "stale": {"train": lambda s: s.replace(started=NOW - 3_700_000, finished=NOW - 3_601_000)},
    "future": {"train": lambda s: s.replace(finished=NOW + 301_000)},
    "weaker parameter": {"train": lambda s: s.replace(parameters={"epochs": 1, "rate": 0.5})},
    "extra parameter": {"train": lambda s: s.replace(parameters={"epochs": 3, "rate": 0.5, "x": 1})},
    "boolean for a number": {"train": lambda s: s.replace(parameters={"epochs": True, "rate": 0.5})},
    "missing parameter": {"train": lambda s: s.replace(parameters={"rate": 0.5})},
    "weaker epsilon": {"robustness__trained": lambda s: s.replace(parameters={"epsilon": 0.01})},
    "input swapped": {"encrypt": swap("inputs", "model")},
    "output swapped": {"train": swap("outputs", "model")},
    "nonce of another run": {"preflight": swap("outputs", "nonce")},
    "other policy": {"preflight": swap("inputs", "policy")},
    "judged another model": {"robustness__trained": swap("outputs", "model")},
    "judged on another test set": {"robustness__trained": swap("inputs", "test")},
    "input dropped": {"robustness__trained": drop("inputs", "test")},
    "output added": {"train": swap("outputs", "extra")},
    "passed below the threshold": {"robustness__trained": figures(robust_accuracy=0.74, samples=359)},
    "passed with too few samples": {"robustness__trained": figures(robust_accuracy=0.9, samples=99)},
    "passed without the figure": {"robustness__trained": figures(samples=359)},
    "passed with no figures": {"robustness__trained": figures()},
    "passed with text for a figure": {"robustness__trained": figures(robust_accuracy="0.9", samples=359)},
    "failed although it passed": {"robustness__trained": lambda s: s.replace(verdict="FAILED")},
    "relabelled stage": {"train": lambda s: s.replace(stage="split")},
    "gate posing as transform": {"robustness__trained": lambda s: s.replace(kind="transform", verdict=None)},
}


@pytest.mark.parametrize("edit", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_rule_is_refused_though_signed_by_the_right_key(edit):
    with pytest.raises(EvidenceError):
        verify(WORLD.lines(POLICY, **edit))


def test_an_honest_failure_is_a_gate_failed_error():
    edit = {
        "robustness__trained": lambda s: s.replace(
            verdict="FAILED", reason="too weak", figures={"robust_accuracy": 0.5, "samples": 359}
        )
    }
    with pytest.raises(GateFailedError, match="too weak"):
        verify(WORLD.lines(POLICY, **edit))


def test_nan_cannot_even_be_stated():
    from portcullis.errors import DataError

    with pytest.raises(DataError):
        WORLD.lines(POLICY, robustness__trained=figures(robust_accuracy=math.nan, samples=359))


def test_a_step_that_the_policy_does_not_know_is_refused():
    statement = WORLD.statements(POLICY)["train"].replace(step="smuggled")
    with pytest.raises(PolicyError, match="smuggled"):
        verify([*WORLD.lines(POLICY), WORLD.line(statement, WORLD.keys["train"])])


def test_the_payload_type_is_part_of_the_signature():
    line = json.loads(WORLD.lines(POLICY)[0])
    line["payloadType"] = "application/json"
    with pytest.raises(EvidenceError):
        ChainVerifier(POLICY, NOW).add(json.dumps(line, separators=(",", ":"), sort_keys=True).encode())


def test_another_keyid_is_refused():
    envelope = Envelope.parse(WORLD.lines(POLICY)[0])
    relabelled = Envelope(envelope.payload_type, envelope.payload, "f" * 64, envelope.signature)
    with pytest.raises(EvidenceError, match="keyid"):
        ChainVerifier(POLICY, NOW).add(relabelled.encode())


@pytest.mark.parametrize(
    "data", [b"x", b"\n", b"{}\n\n{}\n", b"{}\n{}", b"\n{}\n"], ids=["no newline", "empty", "gap", "open end", "lead"]
)
def test_a_bundle_is_whole_lines(data):
    with pytest.raises(EvidenceError):
        split_bundle(data)


def test_bundles_unite():
    lines = WORLD.lines(POLICY)
    assert split_bundle(join_bundle([*lines[:2], *lines])) == lines


def test_an_empty_bundle_concludes_nothing():
    with pytest.raises(EvidenceError, match="no evidence"):
        verify([])
