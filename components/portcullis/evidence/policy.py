"""The policy: what a pipeline must have done, signed by its owner.

A policy is a YAML text whose last line is its owner's signature, so that it can be read, diffed and reviewed as it is:

    …
    # portcullis-signature: <base64 of the signature over DSSE's PAE(POLICY_TYPE, everything above)>

It names every step in order, the public key that may sign it, each edge (`step.output`, or the two sources outside the
chain: `external`, and `policy` for this policy itself), each gate that must have passed before, each gate's checks and
every step's parameters. Versions only grow; verifiers pin name and environment themselves (TUF specification 1.0, 5.3).

A step with `shards: 4` stands for four, `mask_pii#0/4` to `mask_pii#3/4`, with one key and the same parameters. It is
unfolded here, so that the chain's rules hold for each of them as for any step (see `portcullis.evidence.shards`).
"""

import base64
import binascii
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import yaml

from portcullis.digest import MAX_EXACT_INTEGER, canonical_json, sha256
from portcullis.errors import DataError, KeyMaterialError, PolicyError
from portcullis.evidence.dsse import pre_authentication_encoding
from portcullis.evidence.shards import MAX_SHARDS, Shard, base_step
from portcullis.evidence.statement import Check, format_time, parse_time
from portcullis.keys import PublicKey, Signer
from portcullis.strict_yaml import load_yaml

POLICY_TYPE = "application/vnd.portcullis.policy+yaml"
POLICY_FORMAT = "portcullis-policy/v1"
MAX_POLICY_BYTES = 1 << 20
EXTERNAL = "external"
POLICY = "policy"
_SIGNATURE = b"# portcullis-signature: "
_STEP = re.compile(r"[a-z][a-z0-9_]{0,62}(:[a-z][a-z0-9_]{0,62})?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

StepKind = Literal["transform", "gate", "admission"]


@dataclass(frozen=True)
class StepRule:
    """What the policy demands of one step.

    Attributes:
        name: The step's unique name; of a shard, such as `mask_pii#3/64`.
        stage: The component it is a use of.
        kind: `transform`, `gate`, or `admission` for the one step that issues the admission.
        key: The only key whose signature counts for this step.
        inputs: Input name to `step.output`, or to `external` or `policy`.
        outputs: Output names; for a gate, the inputs that it judges.
        parameters: The exact parameters.
        requires: Gates that must have PASSED before this step.
        checks: For a gate, the bounds its verdict follows from; a transform whose figures break one counts for nothing.
    """

    name: str
    stage: str
    kind: StepKind
    key: PublicKey
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    parameters: Mapping[str, Any]
    requires: tuple[str, ...]
    checks: Mapping[str, Check]

    @property
    def base(self) -> str:
        """The step's name as the policy writes it: of a shard without its index. It names the key."""
        return base_step(self.name)

    @cached_property
    def parents(self) -> frozenset[str]:
        """Steps whose statements this one builds on."""
        sources = (source.partition(".")[0] for source in self.inputs.values() if source not in (EXTERNAL, POLICY))
        return frozenset(sources) | frozenset(self.requires)


@dataclass(frozen=True)
class Policy:
    """A policy that parsed; it is trusted only when it came out of `verify_policy`."""

    name: str
    environment: str
    version: int
    expires: int
    max_age: int
    admission_lifetime: int
    development: bool
    steps: Mapping[str, StepRule]
    digest: str

    def step(self, name: str) -> StepRule:
        """Return the rule of one step.

        Raises:
            PolicyError: The policy does not know the step.
        """
        rule = self.steps.get(name)
        if rule is None:
            raise PolicyError(f"policy {self.name} version {self.version} knows no step {name!r}")
        return rule

    def ancestors(self, name: str) -> frozenset[str]:
        """Return every step that must have happened before `name`, through edges and required gates."""
        return _ancestors(self.steps, self.step(name))

    def admission_step(self) -> StepRule:
        """Return the rule of the step that issues the admission.

        Raises:
            PolicyError: The policy admits nothing.
        """
        rule = next((rule for rule in self.steps.values() if rule.kind == "admission"), None)
        if rule is None:
            raise PolicyError(f"policy {self.name} has no admission step; nothing is admitted or deployed under it")
        return rule


def _ancestors(steps: Mapping[str, StepRule], rule: StepRule) -> frozenset[str]:
    found: set[str] = set()
    waiting = list(rule.parents)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found.add(step)
            waiting.extend(steps[step].parents)
    return frozenset(found)


def policy_body(
    *,
    name: str,
    environment: str,
    version: int,
    expires: int,
    max_age: int,
    admission_lifetime: int,
    development: bool,
    steps: list[Mapping[str, Any]],
) -> str:
    """Write the unsigned YAML text of a policy.

    Args:
        name: Lower-case letters, digits and hyphens, at most 63.
        environment: Likewise; `development`, `production`, …
        version: From 1, growing.
        expires: Milliseconds since the epoch.
        max_age: Seconds for which a statement is fresh.
        admission_lifetime: Seconds for which an admission under this policy is valid.
        development: True marks keys that a machine made for itself; these deploy to the local target only.
        steps: In order, as the mappings that `parse_policy` reads, `key` being PEM text.
    """
    document = {
        "format": POLICY_FORMAT,
        "name": name,
        "environment": environment,
        "version": version,
        "expires": format_time(expires),
        "max_age_seconds": max_age,
        "admission_lifetime_seconds": admission_lifetime,
        "development": development,
        "steps": [dict(step) for step in steps],
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def sign_policy(body: str, owner: Signer) -> bytes:
    """Append the owner's signature to a policy's text, after checking that it is a policy.

    Raises:
        PolicyError: The text is not a sound policy.
    """
    text = body.encode()
    parse_policy(text, digest=sha256(text))
    signature = owner.sign(pre_authentication_encoding(POLICY_TYPE, text))
    return text + _SIGNATURE + base64.b64encode(signature) + b"\n"


def verify_policy(signed: bytes, owner: PublicKey, *, now: int | None = None) -> Policy:
    """Check the owner's signature, then read the policy.

    Args:
        signed: The file's bytes.
        owner: The pinned key of the policy's owner.
        now: Milliseconds since the epoch; the clock when None.

    Raises:
        PolicyError: Unsigned, altered, signed by another key, malformed, expired, or the owner's key is a step's too.
    """
    if len(signed) > MAX_POLICY_BYTES:
        raise PolicyError(f"the policy is larger than {MAX_POLICY_BYTES} bytes")
    body, marker, tail = signed.rpartition(_SIGNATURE)
    if not marker:
        raise PolicyError("the policy is not signed")
    try:
        signature = base64.b64decode(tail.removesuffix(b"\n"), validate=True)
    except binascii.Error as error:
        raise PolicyError("the policy's signature line is malformed") from error
    if tail != base64.b64encode(signature) + b"\n":
        raise PolicyError("the policy's signature line is malformed")
    if not owner.verifies(signature, pre_authentication_encoding(POLICY_TYPE, body)):
        raise PolicyError("the policy was not signed by the owner that this trust store pins, or it was altered")
    policy = parse_policy(body, digest=sha256(signed))
    if any(rule.key == owner for rule in policy.steps.values()):
        raise PolicyError("a step has the owner's key; whoever runs it could sign a policy")
    if not (now if now is not None else time.time_ns() // 1_000_000) < policy.expires:
        raise PolicyError(f"policy {policy.name} version {policy.version} expired at {format_time(policy.expires)}")
    return policy


def parse_policy(body: bytes, *, digest: str) -> Policy:
    """Read a policy's text; says nothing about who wrote it.

    Raises:
        PolicyError: Malformed, contradictory, or with an edge from a step that does not come before.
    """
    try:
        document = load_yaml(body)
        if document["format"] != POLICY_FORMAT:
            raise PolicyError(f"not a {POLICY_FORMAT}")
        declared = [_parse_step(entry) for entry in document["steps"]]
        rules = _unfolded(
            declared, {rule.name: _shards(entry) for rule, entry in zip(declared, document["steps"], strict=True)}
        )
        policy = Policy(
            name=_matching(_NAME, document["name"]),
            environment=_matching(_NAME, document["environment"]),
            version=_positive(document["version"]),
            expires=parse_time(document["expires"]),
            max_age=_positive(document["max_age_seconds"]),
            admission_lifetime=_positive(document["admission_lifetime_seconds"]),
            development=_boolean(document["development"]),
            steps={rule.name: rule for rule in rules},
            digest=digest,
        )
        extra = set(document) - _POLICY_FIELDS
    except (DataError, KeyMaterialError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise PolicyError(f"not a sound policy: {error}") from error
    if extra or len({rule.name for rule in declared}) != len(declared):
        raise PolicyError(f"the policy repeats a step or holds unknown fields {sorted(extra)}")
    if len({rule.key for rule in declared}) != len(declared):
        raise PolicyError("two steps share a key; every step has its own")
    _require_order(rules)
    return policy


_POLICY_FIELDS = {
    "format",
    "name",
    "environment",
    "version",
    "expires",
    "max_age_seconds",
    "admission_lifetime_seconds",
    "development",
    "steps",
}
_STEP_FIELDS = {"name", "stage", "kind", "key", "inputs", "outputs", "parameters", "requires", "checks", "shards"}


def _parse_step(entry: Mapping[str, Any]) -> StepRule:
    if set(entry) - _STEP_FIELDS:
        raise DataError(f"unknown fields {sorted(set(entry) - _STEP_FIELDS)} in a step")
    name = _matching(_STEP, entry["name"])
    kind: StepKind = entry["kind"]
    if kind not in ("transform", "gate", "admission"):
        raise DataError(f"step {name} is of no known kind")
    checks = {figure: Check(bounds.get("min"), bounds.get("max")) for figure, bounds in entry["checks"].items()}
    unknown = {field for bounds in entry["checks"].values() for field in bounds} - {"min", "max"}
    outputs = tuple(_matching(_STEP, output) for output in entry["outputs"])
    if not all(isinstance(figure, str) for figure in checks):
        raise DataError(f"step {name} checks a figure whose name is not text")
    if unknown or (kind == "gate" and not checks) or (kind == "admission" and checks) or not outputs:
        raise DataError(
            f"step {name} needs outputs, and a gate needs checks (min, max), which an admission cannot have"
        )
    return StepRule(
        name=name,
        stage=_matching(_STEP, entry["stage"]),
        kind=kind,
        key=PublicKey.from_pem(entry["key"]),
        inputs={_matching(_STEP, key): str(source) for key, source in entry["inputs"].items()},
        outputs=outputs,
        parameters=_json_object(entry["parameters"]),
        requires=tuple(_matching(_STEP, gate) for gate in entry["requires"]),
        checks=checks,
    )


def _shards(entry: Mapping[str, Any]) -> int:
    """Return over how many shards a step runs, 0 where it does not."""
    count = entry.get("shards")
    if count is None:
        return 0
    if type(count) is not int or not 2 <= count <= MAX_SHARDS or entry["kind"] == "admission":
        raise DataError(f"step {entry['name']}: shards is a whole number from 2 to {MAX_SHARDS}; admission has none")
    return count


def _unfolded(declared: list[StepRule], shards: Mapping[str, int]) -> list[StepRule]:
    """Return the rules with each sharded step as its shards, in their order.

    A shard takes what the shard of the same index made, and the whole of what is not sharded; a step that is not
    sharded takes what every shard made, `dataset` as `dataset#0/4` to `dataset#3/4`.
    """

    def taken(rule: StepRule, shard: Shard | None) -> StepRule:
        inputs: dict[str, str] = {}
        for name, source in rule.inputs.items():
            step, dot, output = source.partition(".")
            for maker in makers(rule, step, shard):
                joined = Shard.of(maker) if shard is None else None
                inputs[joined.named(name) if joined else name] = f"{maker}{dot}{output}"
        requires = tuple(gate for step in rule.requires for gate in makers(rule, step, shard))
        return replace(rule, name=shard.named(rule.name) if shard else rule.name, inputs=inputs, requires=requires)

    def makers(rule: StepRule, step: str, shard: Shard | None) -> list[str]:
        count = shards.get(step, 0)
        if not count:
            return [step]
        if shard is None:
            return [Shard(index, count).named(step) for index in range(count)]
        if shard.count != count:
            raise DataError(f"step {rule.name} has {shard.count} shards, {step}, which comes before it, has {count}")
        return [shard.named(step)]

    rules: list[StepRule] = []
    for rule in declared:
        count = shards[rule.name]
        rules += [taken(rule, Shard(index, count)) for index in range(count)] if count else [taken(rule, None)]
    return rules


def _require_order(rules: list[StepRule]) -> None:
    earlier: dict[str, StepRule] = {}
    for rule in rules:
        for source in rule.inputs.values():
            step, _, output = source.partition(".")
            known = source in (EXTERNAL, POLICY) or (step in earlier and output in earlier[step].outputs)
            if not known:
                raise PolicyError(f"step {rule.name}: no earlier step makes {source!r}")
        for gate in rule.requires:
            if gate not in earlier or earlier[gate].kind != "gate":
                raise PolicyError(f"step {rule.name} requires {gate!r}, which is no earlier gate")
            # Two inputs from outside the chain may be two different things, so they never show that it is the same.
            judged = {earlier[gate].inputs[name] for name in earlier[gate].outputs} - {EXTERNAL, POLICY}
            if not judged & set(rule.inputs.values()):
                raise PolicyError(f"step {rule.name} requires {gate!r}, which judges nothing that this step takes")
        if rule.kind == "gate" and not set(rule.outputs) <= set(rule.inputs):
            raise PolicyError(f"gate {rule.name} judges something that is not its input")
        earlier[rule.name] = rule
    admissions = [rule for rule in rules if rule.kind == "admission"]
    if len(admissions) > 1:
        raise PolicyError("a policy has at most one admission step")
    for rule in rules:
        # A step's evidence counts as soon as it is signed, so each must be bound to this policy, not only the admitted.
        needed = {rule.name} | _ancestors(earlier, rule)
        if not any(POLICY in earlier[name].inputs.values() for name in needed):
            raise PolicyError(
                f"neither step {rule.name} nor one before it takes the policy as its input; "
                "evidence would fit another one"
            )
    if admissions and not any(earlier[name].kind == "gate" for name in _ancestors(earlier, admissions[0])):
        raise PolicyError("no gate stands before the admission step; all of nothing must never pass")


def _json_object(value: Mapping[str, Any]) -> dict[str, Any]:
    canonical_json(value)  # refuses dates and other YAML values that a statement could never equal
    return dict(value)


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise DataError(f"{value!r} is not a valid name")
    return value


def _positive(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MAX_EXACT_INTEGER:
        raise DataError("a version or a number of seconds is not a positive integer below 2**53")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise DataError(f"{value!r} is neither true nor false")
    return value


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text (PEM) as a block and never an alias, so that a policy reads as it means."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
