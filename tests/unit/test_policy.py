"""The policy: what is written is what is read, and nothing unsound or unsigned is a policy."""

import base64
import copy
import datetime as dt
import math

import pytest
import yaml
from chains import CHAIN_STEPS, NOW, STEPS, World

from portcullis.digest import sha256
from portcullis.errors import PolicyError
from portcullis.evidence.policy import MAX_POLICY_BYTES, parse_policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.statement import Check
from portcullis.keys import Signer

WORLD = World()
OWNER = WORLD.owner.public_key
SIGNED = WORLD.policy_bytes()
BODY, _, SIGNATURE = SIGNED.rpartition(b"# portcullis-signature: ")
EXPIRES = NOW + 10**9


def test_what_is_signed_is_what_is_read():
    policy = verify_policy(SIGNED, OWNER, now=NOW)
    assert (policy.name, policy.environment, policy.version, policy.expires) == ("demo", "development", 3, EXPIRES)
    assert (policy.max_age, policy.admission_lifetime, policy.development) == (3600, 86400, True)
    assert policy.digest == sha256(SIGNED)
    gate = policy.step("robustness:trained")
    assert gate.checks == {"robust_accuracy": Check(0.75, 1), "samples": Check(low=100)}
    assert gate.key == WORLD.keys["robustness:trained"].public_key
    assert policy.step("train").parameters == {"epochs": 3, "rate": 0.5}


def test_a_policy_can_be_read_by_people():
    text = BODY.decode()
    assert "\n  name: train\n" in text and "  key: |\n    -----BEGIN PUBLIC KEY-----\n" in text
    assert "&" not in text and "!!" not in text


def test_ancestors_follow_edges_and_required_gates():
    policy = WORLD.policy()
    assert policy.ancestors("preflight") == frozenset()
    assert policy.ancestors("train") == {"preflight"}
    assert policy.ancestors("encrypt") == {"preflight", "train", "robustness:trained"}
    assert policy.ancestors("admit") == set(CHAIN_STEPS)
    assert policy.admission_step().name == "admit"
    with pytest.raises(PolicyError, match="knows no step 'smuggled'"):
        policy.ancestors("smuggled")


def test_a_policy_is_in_force_until_it_expires():
    assert verify_policy(SIGNED, OWNER, now=EXPIRES - 1).version == 3
    for now in (EXPIRES, EXPIRES + 1):
        with pytest.raises(PolicyError, match="expired"):
            verify_policy(SIGNED, OWNER, now=now)


def test_without_an_instant_the_clock_decides():
    old = WORLD.policy_bytes(expires=1_000_000_000_000)
    with pytest.raises(PolicyError, match="expired at 2001-09-09"):
        verify_policy(old, OWNER)


def malleated():
    text = SIGNATURE.removesuffix(b"\n")
    padding = text.count(b"=")
    if not padding:  # no spare bits to set; a blank does as well
        return text + b" \n"
    last = len(text) - padding - 1
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:last] + alphabet[alphabet.index(text[last : last + 1]) | 1 :][:1] + text[last + 1 :] + b"\n"


MARK = b"# portcullis-signature: "
UNSIGNED = {
    "nothing": b"",
    "no signature": BODY,
    "empty signature": BODY + MARK + b"\n",
    "signature that is no base64": BODY + MARK + b"***\n",
    "signature in another spelling": BODY + MARK + malleated(),
    "no newline at the end": SIGNED[:-1],
    "line after the signature": SIGNED + b"version: 4\n",
    "comment after the signature": SIGNED + b"#\n",
    "windows newline": SIGNED[:-1] + b"\r\n",
    "signature of nothing": MARK + SIGNATURE,
    "a letter changed": SIGNED.replace(b"min: 0.75", b"min: 0.05"),
    "a comment added": b"# harmless\n" + SIGNED,
    "signed by another": sign_policy(BODY.decode(), Signer.generate()),
    "signed as a plain message": BODY + MARK + base64.b64encode(WORLD.owner.sign(BODY)) + b"\n",
    "another policy's signature": BODY + MARK + WORLD.policy_bytes(version=4).rpartition(MARK)[2],
    "too large": b"#" * MAX_POLICY_BYTES + SIGNED,
}


@pytest.mark.parametrize("signed", UNSIGNED.values(), ids=UNSIGNED.keys())
def test_what_the_owner_did_not_sign_is_refused(signed):
    with pytest.raises(PolicyError, match=r"sign|larger"):
        verify_policy(signed, OWNER, now=NOW)


def step(which, /, **changes):
    def edit(document):
        (entry,) = (entry for entry in document["steps"] if entry["name"] == which)
        entry.update(changes)

    return edit


def without(field):
    return lambda document: document.pop(field)


def step_without(field):
    return lambda document: document["steps"][1].pop(field)


def add(**changes):
    """Add a copy of the last step, so that only what `changes` says can be wrong with it."""

    def edit(document):
        key = Signer.generate().public_key.pem
        document["steps"].append({**copy.deepcopy(document["steps"][-1]), "name": "more", "key": key, **changes})

    return edit


def no_gate_before_admission(document):
    document["steps"] = [entry for entry in document["steps"] if entry["kind"] != "gate"]
    for entry in document["steps"]:
        entry["requires"] = []


GATE = "robustness:trained"
UNSOUND = {
    "other format": lambda d: d.update(format="portcullis-policy/v2"),
    "unknown field": lambda d: d.update(more=1),
    "upper-case name": lambda d: d.update(name="Demo"),
    "name with a newline": lambda d: d.update(name="demo\n"),
    "long name": lambda d: d.update(name="a" * 64),
    "name is a number": lambda d: d.update(name=1),
    "environment with a slash": lambda d: d.update(environment="a/b"),
    "version zero": lambda d: d.update(version=0),
    "version is true": lambda d: d.update(version=True),
    "version is text": lambda d: d.update(version="3"),
    "version is a fraction": lambda d: d.update(version=3.0),
    "version beyond a double": lambda d: d.update(version=2**53),
    "expiry as a yaml time": lambda d: d.update(expires=dt.datetime(2030, 1, 1, tzinfo=dt.UTC)),
    "expiry in another zone": lambda d: d.update(expires="2030-01-01T00:00:00.000+00:00"),
    "age zero": lambda d: d.update(max_age_seconds=0),
    "age infinite": lambda d: d.update(max_age_seconds=math.inf),
    "lifetime negative": lambda d: d.update(admission_lifetime_seconds=-1),
    "development is text": lambda d: d.update(development="true"),
    "steps in a mapping": lambda d: d.update(steps={"a": 1}),
    "steps is null": lambda d: d.update(steps=None),
    "no steps": lambda d: d.update(steps=[]),
    "a step is text": lambda d: d["steps"].append("x"),
    "a step is null": lambda d: d["steps"].append(None),
    "unknown field of a step": step("train", more=1),
    "upper-case step": step("train", name="Train"),
    "step of three parts": step("deploy", name="a:b:c"),
    "step climbing out": step("deploy", name="../owner"),
    "unknown kind": step("train", kind="waiver"),
    "kind is a list": step("train", kind=[]),
    "stage is a number": step("train", stage=1),
    "key is no pem": step("train", key="x"),
    "key is a number": step("train", key=1),
    "key is private": step("train", key=Signer.generate().private_pem().decode()),
    "two steps share a key": lambda d: d["steps"][1].update(key=d["steps"][0]["key"]),
    "step repeated": add(name="deploy"),
    "inputs in a list": step("train", inputs=["raw"]),
    "input with a dot": step("train", inputs={"a.b": "external"}),
    "input from nowhere": step("train", inputs={"raw": "nowhere.raw"}),
    "input from no output": step("train", inputs={"raw": "preflight.raw"}),
    "input from a step, not an output": step("train", inputs={"raw": "preflight"}),
    "input from itself": step("train", inputs={"raw": "train.model"}),
    "input from a later step": step("train", inputs={"raw": "encrypt.sealed"}),
    "input is null": step("train", inputs={"raw": None}),
    "no outputs": step("train", outputs=[]),
    "outputs is a number": step("train", outputs=1),
    "output is a number": step("train", outputs=["model", 1]),
    "parameters is null": step("train", parameters=None),
    "parameters in a list": step("train", parameters=[1]),
    "parameter is a date": step("train", parameters={"a": dt.date(2026, 1, 1)}),
    "parameter is nan": step("train", parameters={"a": math.nan}),
    "parameter name is a number": step("train", parameters={1: 2}),
    "requires a transform": step("encrypt", requires=[GATE, "train"]),
    "requires a later gate": step("encrypt", requires=[GATE, "deploy"]),
    "requires itself": step(GATE, requires=[GATE]),
    "requires nothing known": step("encrypt", requires=[GATE, "nothing"]),
    "requires a list": step("encrypt", requires=[GATE, [GATE]]),
    "requires a number": step("encrypt", requires=1),
    "requires text": step("encrypt", requires=GATE),
    "admission with checks": step("admit", checks={"a": {"min": 1}}),
    "gate without checks": step(GATE, checks={}),
    "check without bounds": step(GATE, checks={"a": {}}),
    "check with an unknown bound": step(GATE, checks={"a": {"min": 1, "equals": 1}}),
    "check with a bound of text": step(GATE, checks={"a": {"min": "1"}}),
    "check with a bound of nan": step(GATE, checks={"a": {"min": math.nan}}),
    "check with an infinite bound": step(GATE, checks={"a": {"max": math.inf}}),
    "check with a true bound": step(GATE, checks={"a": {"min": True}}),
    "check is null": step(GATE, checks={"a": None}),
    "check is a list": step(GATE, checks={"a": [1, 2]}),
    "check of a figure named by a number": step(GATE, checks={1: {"min": 1}, "a": {"min": 1}}),
    "checks in a list": step(GATE, checks=["a"]),
    "gate judges what is no input": step(GATE, outputs=["sealed"]),
    "two admissions": add(kind="admission", checks={}),
    "no gate before the admission": no_gate_before_admission,
    **{f"no {field}": without(field) for field in yaml.safe_load(BODY)},
    **{f"step without {field}": step_without(field) for field in yaml.safe_load(BODY)["steps"][1]},
}


@pytest.mark.parametrize("edit", UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_policy_is_refused_though_its_owner_would_sign_it(edit):
    document = yaml.safe_load(BODY)
    edit(document)
    with pytest.raises(PolicyError):
        sign_policy(yaml.safe_dump(document, sort_keys=False), WORLD.owner)


@pytest.mark.parametrize("setting", [b"version: 3", b"epochs: 3", b"min: 100", b"max_age_seconds: 3600"])
def test_a_number_too_long_to_print_is_refused(setting):
    assert BODY.count(setting) == 1
    with pytest.raises(PolicyError):
        parse_policy(BODY.replace(setting, setting.split()[0] + b" 0x" + b"f" * 10_000), digest="x")


def test_a_further_step_is_sound_when_nothing_is_wrong_with_it():
    document = yaml.safe_load(BODY)
    add()(document)
    assert "more" in parse_policy(yaml.safe_dump(document).encode(), digest="x").steps


def test_the_honest_policy_survives_the_same_treatment():
    assert parse_policy(yaml.safe_dump(yaml.safe_load(BODY)).encode(), digest="x").steps == WORLD.policy().steps


@pytest.mark.parametrize("body", ["", "x", "- a", "a: *b", "[", "\x01"])
def test_what_is_no_yaml_mapping_is_refused(body):
    with pytest.raises(PolicyError):
        parse_policy(body.encode(), digest="x")


def test_text_that_yaml_would_misread_survives():
    awkward = {"a": "yes", "b": "1e3", "c": "2026-01-01", "d": "null", "e": "two\nlines", "f": "é", "g": "<<", "h": "="}
    steps = yaml.safe_load(BODY)["steps"]
    steps[1]["parameters"] = awkward
    body = policy_body(
        name="on",
        environment="2024",
        version=1,
        expires=EXPIRES,
        max_age=1,
        admission_lifetime=1,
        development=False,
        steps=steps,
    )
    policy = parse_policy(body.encode(), digest="x")
    assert (policy.name, policy.environment) == ("on", "2024")
    assert policy.step("train").parameters == awkward


def rewritten(world, edit):
    """Sign a policy whose list of steps was edited."""
    from chains import STEPS

    blank = {"parameters": {}, "requires": [], "checks": {}}
    steps = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in STEPS]
    return world.policy_bytes(steps=[edit(step) for step in steps])


def test_a_required_gate_must_judge_what_the_step_takes():
    world = World()

    def other(step):
        if step["name"] == "encrypt":
            return {**step, "inputs": {"model": "train.test"}}
        return step

    with pytest.raises(PolicyError, match="judges nothing that this step takes"):
        rewritten(world, other)


def test_some_step_must_take_the_policy_as_its_input():
    world = World()

    def other(step):
        return {**step, "inputs": {"policy": "external"}} if step["name"] == "preflight" else step

    with pytest.raises(PolicyError, match="takes the policy as its input"):
        rewritten(world, other)


def test_a_policy_without_an_admission_admits_nothing():
    world = World()
    blank = {"parameters": {}, "requires": [], "checks": {}}
    steps = [{**blank, **it, "key": world.keys[it["name"]].public_key.pem} for it in STEPS[:3]]
    policy = world.policy(steps=steps)
    assert [*policy.steps] == ["preflight", "train", "robustness:trained"]
    with pytest.raises(PolicyError, match="nothing is admitted or deployed"):
        policy.admission_step()


def test_every_step_is_bound_to_the_policy():
    world = World()
    blank = {"parameters": {}, "requires": [], "checks": {}, "key": Signer.generate().public_key.pem}
    loose = {**blank, "name": "loose", "stage": "attest", "kind": "transform", "inputs": {"material": "external"}}
    steps = [{**blank, **it, "key": world.keys[it["name"]].public_key.pem} for it in STEPS]
    with pytest.raises(PolicyError, match="neither step loose"):
        world.policy(steps=[*steps, {**loose, "outputs": ["product"]}])


def test_the_owners_key_is_no_steps_key():
    world = World()
    world.keys["train"] = world.owner
    with pytest.raises(PolicyError, match="owner's key"):
        world.policy()


def test_two_external_inputs_do_not_bind_a_gate_to_a_step():
    world = World()

    def other(step):
        match step["name"]:
            case "robustness:trained":
                return {**step, "inputs": {"model": "external", "test": "train.test"}}
            case "encrypt":
                return {**step, "inputs": {"model": "external"}}
        return step

    with pytest.raises(PolicyError, match="judges nothing that this step takes"):
        rewritten(world, other)


def test_a_check_that_can_never_hold_is_refused():
    from portcullis.errors import DataError

    with pytest.raises(DataError, match="never hold"):
        Check(1, 0)
