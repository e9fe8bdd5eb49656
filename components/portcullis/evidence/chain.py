"""The chain: a pure state machine that takes evidence line by line and concludes, or refuses.

It reads no clock, no file and no key store; everything it judges by is handed in. Its rules, each with the attack that
it stops:

 1. A line is one DSSE envelope in canonical form, holding one in-toto Statement as a step writes it. (Altered bytes.)
 2. The statement's step is one the policy names, with that stage and kind. (An unknown or relabelled step.)
 3. The signature is by the one key that the policy gives to that step; keyid chooses nothing. (Another step's key, a
    rogue key.)
 4. That key is not revoked. (A stolen key.)
 5. Identical lines are one; two different lines for one step refuse. (A second, better-looking verdict beside the
    first. Judging twice and showing one is not seen; plan and seed are parameters, so both verdicts are the same.)
 6. All statements carry the nonce of the first. (Evidence from another run.)
 7. A statement is at most `max_age` old when judged and at most five minutes in the future. (Replay, forward dating.)
 8. Parameters equal the policy's exactly. (A pass under weaker parameters.)
 9. A gate's verdict is derived again from its signed figures and the policy's checks; stated and derived verdict must
    agree and be PASSED; what states that it could not be judged is FAILED. (A verdict that contradicts its figures,
    NaN, a missing figure.) A transform's figures hold to its checks, if it has any. (Malformed rows set aside under a
    policy that refuses them.)
10. Inputs and outputs are exactly those that the policy names. (A smuggled or dropped artifact.)
11. Each input's digest equals the output's digest of the step that its edge comes from, or is the policy's own digest,
    or is external. For a gate, outputs equal the inputs that it judges. (A swapped artifact or edge.)
12. A step counts only when all its ancestors are there, required gates included. (A gate left out, evidence removed.)
13. The steps that the caller needs are there. (An empty or truncated bundle.)
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from portcullis.digest import canonical_json
from portcullis.errors import EvidenceError, GateFailedError, GateInconclusiveError
from portcullis.evidence.dsse import MAX_ENVELOPE_BYTES, Envelope
from portcullis.evidence.policy import EXTERNAL, POLICY, Policy, StepRule
from portcullis.evidence.statement import INCONCLUSIVE, Statement, format_time, judge

MAX_SKEW_MS = 5 * 60 * 1000
MAX_BUNDLE_BYTES = 64 << 20


@dataclass(frozen=True)
class Chain:
    """Evidence that passed every rule: one statement per step, in the policy's order, and the lines they came from."""

    statements: Mapping[str, Statement]
    lines: Mapping[str, bytes]
    nonce: str

    def output(self, source: str) -> str:
        """Return the SHA-256 of `step.output`.

        Raises:
            EvidenceError: The chain does not hold it.
        """
        step, _, name = source.partition(".")
        statement = self.statements.get(step)
        if statement is None or name not in statement.outputs:
            raise EvidenceError(f"the chain holds no {source}")
        return statement.outputs[name]


@dataclass
class ChainVerifier:
    """Takes lines with `add`, then `conclude`s once. Any error leaves it unusable.

    Args:
        policy: A verified policy.
        judged_at: The instant of judgement, milliseconds since the epoch.
        revoked_keys: Key ids (SHA-256 of SubjectPublicKeyInfo) that no longer count.
    """

    policy: Policy
    judged_at: int
    revoked_keys: Collection[str] = frozenset()
    _found: dict[str, tuple[bytes, Statement]] = field(default_factory=dict, init=False)
    _open: bool = field(default=True, init=False)

    def add(self, line: bytes) -> Statement:
        """Take one line of a bundle (rules 1 to 10).

        Raises:
            EvidenceError: The line breaks a rule.
            GateFailedError: The line is sound evidence of a gate that FAILED.
            PolicyError: The policy does not know the step.
        """
        self._require_open()
        self._open = False
        statement = self._accept(line)
        self._open = True
        return statement

    def conclude(self, needed: Collection[str]) -> Chain:
        """Close the chain (rules 11 to 13) and return it.

        Raises:
            EvidenceError: A needed step or an ancestor is missing, or an edge does not hold.
        """
        self._require_open()
        self._open = False
        for name in sorted(needed):
            if name not in self._found:
                raise EvidenceError(f"no evidence of step {name!r}")
        for name, (_, statement) in self._found.items():
            rule = self.policy.step(name)
            for parent in sorted(rule.parents):
                if parent not in self._found:
                    raise EvidenceError(f"step {name!r} has evidence, but {parent!r}, which must come before, has none")
            self._require_edges(rule, statement)
        ordered = [name for name in self.policy.steps if name in self._found]
        return Chain(
            statements={name: self._found[name][1] for name in ordered},
            lines={name: self._found[name][0] for name in ordered},
            nonce=next((self._found[name][1].nonce for name in ordered), ""),
        )

    def _require_open(self) -> None:
        if not self._open:
            raise EvidenceError("this chain was already concluded or refused")

    def _accept(self, line: bytes) -> Statement:
        statement = accept_statement(line, self.policy, self.revoked_keys)
        where = f"step {statement.step!r}"
        known = self._found.get(statement.step)
        if known is not None:
            if known[0] == line:
                return statement
            raise EvidenceError(f"{where}: two different statements for one step")
        first = next((other for _, other in self._found.values()), statement)
        if statement.nonce != first.nonce:
            raise EvidenceError(f"{where}: from another run than step {first.step!r}")
        self._require_fresh(where, statement)
        self._found[statement.step] = (line, statement)
        return statement

    def _require_fresh(self, where: str, statement: Statement) -> None:
        age = self.judged_at - statement.finished
        if age < -MAX_SKEW_MS:
            raise EvidenceError(f"{where}: dated in the future, {format_time(statement.finished)}")
        if age > self.policy.max_age * 1000:
            raise EvidenceError(f"{where}: stale, from {format_time(statement.finished)}")

    def _require_edges(self, rule: StepRule, statement: Statement) -> None:
        for name, source in rule.inputs.items():
            if source == EXTERNAL:
                continue
            if source == POLICY:
                expected = self.policy.digest
            else:
                step, _, output = source.partition(".")
                expected = self._found[step][1].outputs[output]
            if statement.inputs[name] != expected:
                raise EvidenceError(f"step {rule.name!r}: its input {name!r} is not {source}")
        if rule.kind == "gate":
            for name in rule.outputs:
                if statement.outputs[name] != statement.inputs[name]:
                    raise EvidenceError(f"step {rule.name!r} judged another {name!r} than it was given")


def accept_statement(line: bytes, policy: Policy, revoked_keys: Collection[str]) -> Statement:
    """Judge one statement by itself: rules 1 to 4 and 8 to 10.

    Raises:
        EvidenceError: The line breaks a rule.
        GateFailedError: The line is sound evidence of a gate that FAILED.
        PolicyError: The policy does not know the step.
    """
    envelope = Envelope.parse(line)
    statement = Statement.parse(envelope.payload)
    rule = policy.step(statement.step)
    where = f"step {rule.name!r}"
    try:
        envelope.verify(rule.key)
    except EvidenceError as error:
        raise EvidenceError(f"{where}: {error}") from error
    if rule.key.keyid in revoked_keys:
        raise EvidenceError(f"{where}: its key {rule.key.keyid[:16]}… is revoked")
    if (statement.stage, statement.kind) != (rule.stage, rule.kind):
        raise EvidenceError(f"{where}: stated by a {statement.stage} {statement.kind}, not a {rule.stage}")
    if canonical_json(statement.parameters) != canonical_json(rule.parameters):
        raise EvidenceError(f"{where}: {parameter_difference(statement.parameters, rule.parameters)}")
    if set(statement.inputs) != set(rule.inputs) or set(statement.outputs) != set(rule.outputs):
        raise EvidenceError(f"{where}: its inputs or outputs are not those that the policy names")
    if rule.kind == "gate":
        _require_passed(where, statement, rule)
    elif rule.checks and (broken := judge(statement.figures, rule.checks)[1]):
        raise EvidenceError(f"{where}: its figures are not within the policy's bounds: {broken}")
    return statement


def verify_chain(
    lines: Iterable[bytes],
    policy: Policy,
    *,
    needed: Collection[str],
    judged_at: int,
    revoked_keys: Collection[str] = frozenset(),
) -> Chain:
    """Run the state machine over `lines` (see the module's docstring).

    Raises:
        EvidenceError: A rule is broken; the message names the step.
        GateFailedError: A gate FAILED.
        PolicyError: The policy does not know a step.
    """
    verifier = ChainVerifier(policy, judged_at, revoked_keys)
    for line in lines:
        verifier.add(line)
    return verifier.conclude(needed)


def split_bundle(data: bytes) -> list[bytes]:
    """Return the lines of a bundle (`evidence.intoto.jsonl`): each ends in one newline, none is empty.

    Raises:
        EvidenceError: Too large, or not lines.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise EvidenceError(f"the evidence is larger than {MAX_BUNDLE_BYTES} bytes")
    if not data:
        return []
    lines = data.split(b"\n")
    if lines.pop() or not all(0 < len(line) <= MAX_ENVELOPE_BYTES for line in lines):
        raise EvidenceError("the evidence is not lines of envelopes")
    return lines


def join_bundle(lines: Iterable[bytes]) -> bytes:
    """Return the bundle of distinct lines, in the order given: the union of bundles joined one after the other."""
    return b"".join(line + b"\n" for line in dict.fromkeys(lines))


def parameter_difference(stated: Mapping[str, object], demanded: Mapping[str, object]) -> str:
    """Say in one line which parameters differ from the policy's."""

    def spelt(parameters: Mapping[str, object], name: str) -> bytes:
        return canonical_json([parameters[name]] if name in parameters else [])  # as they were compared: True is not 1

    names = sorted(name for name in {*stated, *demanded} if spelt(stated, name) != spelt(demanded, name))
    shown = ", ".join(
        f"{name} is {_show(stated.get(name, ...))}, the policy says {_show(demanded.get(name, ...))}" for name in names
    )
    return f"parameters differ from the policy's: {shown}"


def _show(value: object) -> str:
    return "absent" if value is ... else repr(value)[:60]


def _require_passed(where: str, statement: Statement, rule: StepRule) -> None:
    derived, reason = judge(statement.figures, rule.checks)
    if statement.verdict == "FAILED" and statement.reason.startswith(INCONCLUSIVE):
        raise GateInconclusiveError(f"{where}: the gate FAILED: {statement.reason}")
    if statement.verdict != derived:
        raise EvidenceError(f"{where}: states {statement.verdict}, but its figures mean {derived} {reason}".rstrip())
    if derived != "PASSED":
        raise GateFailedError(f"{where}: the gate FAILED: {statement.reason or reason}")
