"""How one step works: check what came in, do the work, sign what came out.

    step = begin("mask_pii", stage="mask_pii", inputs={"dataset": tree_digest(path)}, parameters=…, evidence=[bundle])
    …work…
    step.finish(outputs={"dataset": tree_digest(out)}, figures={"masked": 17}, bundle=out_bundle)

`begin` refuses before any work is done: unless this trust store's policy names the step with these very parameters and
inputs, the evidence of all its ancestors verifies, and each input's digest is what the step before it made. Keys come
from the place that PORTCULLIS_KEYS names, one per step.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from portcullis import __version__
from portcullis.audit.log import AuditLog, open_log, record_unhandled, refused
from portcullis.digest import canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, PolicyError, PortcullisError, UsageError
from portcullis.evidence.admission import verify_admission
from portcullis.evidence.chain import (
    MAX_BUNDLE_BYTES,
    Chain,
    join_bundle,
    parameter_difference,
    split_bundle,
    verify_chain,
)
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.policy import EXTERNAL, POLICY, StepRule
from portcullis.evidence.shards import Shard, base_step
from portcullis.evidence.statement import INCONCLUSIVE, Figure, Statement, Verdict, judge
from portcullis.evidence.trust import TrustStore, now_ms, observe
from portcullis.files import read_bytes, write_bytes
from portcullis.keys import Signer, role_uri

KEYS_ENV = "PORTCULLIS_KEYS"
KEYS_MOUNT = "/var/run/portcullis/keys"  # where a cluster mounts a step's Secret
IMAGE_ENV = "PORTCULLIS_IMAGE"


@dataclass(frozen=True)
class Step:
    """A step whose inputs were checked and whose work may begin."""

    rule: StepRule
    store: TrustStore
    chain: Chain
    lines: tuple[bytes, ...]
    nonce: str
    started: int
    inputs: Mapping[str, str]
    signer: Signer
    audit: AuditLog | None = None

    def of_shards(self, name: str) -> list[str]:
        """Return the SHA-256 of what each shard gave to an input, in the order of the shards."""
        found = {shard.index: self.inputs[it] for it in self.inputs if (shard := _shard_of(it, name))}
        return [found[index] for index in sorted(found)]

    def finish(
        self,
        *,
        bundle: Path,
        outputs: Mapping[str, str] | None = None,
        figures: Mapping[str, Figure],
        inconclusive: str = "",
    ) -> Statement:
        """Sign this step's statement and write the evidence so far to `bundle`.

        A gate states its verdict, derived from `figures` and the policy's checks; what it judged are its outputs.

        Args:
            bundle: Where the evidence goes.
            outputs: Name to SHA-256 of what was made; left out for a gate.
            figures: What was measured.
            inconclusive: For a gate that could not measure, why; its verdict is FAILED whatever the figures say.

        Raises:
            EvidenceError: The figures cannot be stated (NaN), a transform's are out of bounds, or the outputs are not
                those that the policy names, or no digests.
        """
        verdict: Verdict | None = None
        reason = ""
        if self.rule.kind == "gate":
            outputs = {name: self.inputs[name] for name in self.rule.outputs}
            verdict, reason = judge(figures, self.rule.checks)
            if inconclusive:
                verdict, reason = "FAILED", f"{INCONCLUSIVE}{_one_line(inconclusive)}"
        elif self.rule.checks and (broken := judge(figures, self.rule.checks)[1]):
            raise EvidenceError(f"step {self.rule.name!r}: its figures are not within the policy's bounds: {broken}")
        if set(outputs or {}) != set(self.rule.outputs):
            raise EvidenceError(f"step {self.rule.name!r} made {sorted(outputs or {})}, not {list(self.rule.outputs)}")
        statement = Statement(
            step=self.rule.name,
            stage=self.rule.stage,
            kind="gate" if self.rule.kind == "gate" else "transform",
            nonce=self.nonce,
            started=self.started,
            finished=now_ms(),
            inputs=self.inputs,
            outputs=outputs or {},
            parameters=self.rule.parameters,
            figures=figures,
            environment=environment(),
            verdict=verdict,
            reason=reason,
        )
        try:
            payload = statement.encode()
        except DataError as error:
            raise EvidenceError(f"step {self.rule.name!r} cannot state its outcome: {error}") from error
        Statement.parse(payload)  # what no verifier would read is never signed
        line = seal_payload(payload, self.signer).encode()
        if self.audit is not None:  # first, so that nothing is handed on that the log does not tell of
            self.audit.append("step.finished", verdict=verdict or "", statement=sha256(line))
        write_bytes(bundle, join_bundle([*self.lines, line]))
        if self.audit is not None:
            self.audit.close()
        return statement


def _one_line(text: str) -> str:
    """Return text that fits evidence, whatever a library put into its error message."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def begin(
    step: str,
    *,
    stage: str,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    evidence: Iterable[Path] = (),
    nonce: str | None = None,
    store: TrustStore | None = None,
    started: int | None = None,
    shards: Mapping[str, Sequence[str]] | None = None,
) -> Step:
    """Check everything that can be checked before a step's work.

    Args:
        step: The step's name in the policy.
        stage: The component.
        inputs: Input name to SHA-256, computed from the bytes that lie there now.
        parameters: The parameters that the component was called with.
        evidence: Bundles that came with the inputs; they are united.
        nonce: Only for the first step, which mints it.
        started: When the work began, milliseconds since the epoch; now when None.
        store: The trust store; the one that PORTCULLIS_TRUST names when None.
        shards: For a step that takes what all shards of another made: input name to the SHA-256 of each, in any order;
            the evidence says which shard's it is.

    Raises:
        TrustStoreError: There is no trust store.
        PolicyError: The policy does not name this step, stage, or these parameters, or names another key for it.
        EvidenceError: An ancestor's evidence is missing or does not verify, or an input is not what it speaks of.
        GateFailedError: A gate before this step FAILED.
        KeyMaterialError: There is no key for this step.
    """
    store = store or TrustStore.load()
    with _audited(store, step) as audit:
        rule = _rule(store, step, stage, parameters)
        lines = read_evidence(evidence)
        now = now_ms()
        chain = verify_chain(
            lines,
            store.policy,
            needed=store.policy.ancestors(step),
            judged_at=now,
            revoked_keys=store.revocations.keys,
        )
        inputs = {**inputs, **_of_shards(rule, chain, shards or {})}
        require_inputs(rule, chain, inputs, policy_digest=store.policy.digest)
        if nonce is None and not chain.nonce:
            raise EvidenceError(f"step {step!r} came without evidence")
        if nonce is not None and chain.nonce:
            raise EvidenceError(f"step {step!r} came with evidence of a run and may not begin another")
        signer, nonce = signer_for(store, rule), nonce or chain.nonce
        if audit is not None:
            audit.append("step.began", stage=stage, nonce=nonce)
    return Step(rule, store, chain, tuple(lines), nonce, started or now, dict(inputs), signer, audit)


@contextmanager
def _audited(store: TrustStore, step: str) -> Iterator[AuditLog | None]:
    """Open the step's audit log, and record there what refuses the step: now, or what ends its process later."""
    audit = open_log(step, lambda: signer_for(store, store.policy.step(step)))
    try:
        yield audit
    except PortcullisError as error:
        refused(audit, error)
        raise
    record_unhandled(audit)


def _rule(store: TrustStore, step: str, stage: str, parameters: Mapping[str, Any]) -> StepRule:
    rule = store.policy.step(step)
    if rule.stage != stage:
        raise PolicyError(f"the policy says that step {step!r} is of stage {rule.stage}, not {stage}")
    if canonical_json(dict(parameters)) != canonical_json(dict(rule.parameters)):
        raise PolicyError(f"step {step!r}: {parameter_difference(parameters, rule.parameters)}")
    return rule


def _shard_of(shard_name: str, name: str) -> Shard | None:
    """Return which shard's an input is, None where it is not a shard's of that name."""
    return Shard.of(shard_name) if base_step(shard_name) == name else None


def _of_shards(rule: StepRule, chain: Chain, found: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return which digest is which shard's: each shard's exactly once, and no other.

    Raises:
        EvidenceError: A shard is missing, repeated, or none of this run.
    """
    inputs: dict[str, str] = {}
    for name, digests in found.items():
        left = list(digests)
        for shard_name, source in rule.inputs.items():
            if _shard_of(shard_name, name):
                made = chain.output(source)
                if made not in left:
                    raise EvidenceError(f"step {rule.name!r}: {source} is not among its inputs; a shard is missing")
                left.remove(made)
                inputs[shard_name] = made
        if left:
            raise EvidenceError(f"step {rule.name!r}: {len(left)} of its inputs {name!r} are repeated, or no shard's")
    return inputs


def require_inputs(rule: StepRule, chain: Chain, inputs: Mapping[str, str], *, policy_digest: str) -> None:
    """Refuse unless each input is what the step that its edge comes from made.

    Raises:
        EvidenceError: An input is missing, unknown, or another one.
    """
    if set(inputs) != set(rule.inputs):
        raise EvidenceError(f"step {rule.name!r} takes {sorted(rule.inputs)}, not {sorted(inputs)}")
    for name, source in rule.inputs.items():
        if source == EXTERNAL:
            continue
        expected = policy_digest if source == POLICY else chain.output(source)
        if inputs[name] != expected:
            raise EvidenceError(f"step {rule.name!r}: its input {name!r} is not {source}; it was swapped or altered")


def begin_deployment(
    step: str, *, stage: str, parameters: Mapping[str, Any], sealed: str, admission: bytes, evidence: Iterable[Path]
) -> Step:
    """Check everything that can be checked before an admitted model is deployed.

    Freshness was judged when the model was admitted; here the admission's own expiry, revocation and version count.

    Raises:
        AdmissionError: The admission does not hold, or is for something else.
        EvidenceError: The chain behind it does not hold.
        PolicyError: The policy does not name this step, stage, or these parameters.
        TrustStoreError: There is no trust store.
    """
    store = TrustStore.load()
    with _audited(store, step) as audit:
        rule = _rule(store, step, stage, parameters)
        admit = store.policy.admission_step()
        if rule.inputs != {"sealed": admit.inputs.get("sealed"), "admission": f"{admit.name}.admission"}:
            raise PolicyError(f"the policy says that step {step!r} deploys something else than what is admitted")
        lines = read_evidence(evidence)
        started = now_ms()
        admitted, chain = verify_admission(admission, lines, store, sealed=sealed, seen=observe(store), now=started)
        signer = signer_for(store, rule)
        if audit is not None:
            audit.append("step.began", stage=stage, nonce=admitted.nonce)
    inputs = {"sealed": sealed, "admission": sha256(admission)}
    return Step(rule, store, chain, (), admitted.nonce, started, inputs, signer, audit)


def enforce(gate: str, *, subject: str, evidence: Path, passed: Path) -> Chain:
    """Refuse unless the gate's signed verdict is PASSED, fresh, derived from its figures, and about these very bytes.

    Args:
        gate: The gate's step name.
        subject: SHA-256 of what is to move on, computed from the bytes that lie there now.
        evidence: The bundle that holds the verdict.
        passed: Where the bundle is handed on.

    Raises:
        GateFailedError: The verdict is FAILED.
        EvidenceError: There is no sound verdict, or it is about something else.
        PolicyError: The policy knows no such gate.
    """
    store = TrustStore.load()
    rule = store.policy.step(gate)
    if rule.kind != "gate":
        raise PolicyError(f"the policy says that step {gate!r} is no gate")
    lines = read_evidence([evidence])
    chain = verify_chain(
        lines,
        store.policy,
        needed={gate, *store.policy.ancestors(gate)},
        judged_at=now_ms(),
        revoked_keys=store.revocations.keys,
    )
    if set(chain.statements[gate].outputs.values()) != {subject}:
        raise EvidenceError(f"gate {gate!r} judged something else than what is to move on")
    write_bytes(passed, join_bundle(lines))
    return chain


def signer_for(store: TrustStore, rule: StepRule) -> Signer:
    """Return the private key of a step, which must be the one that the policy names.

    Raises:
        KeyMaterialError: Missing or malformed.
        PolicyError: It is another key, or revoked.
    """
    if rule.key.keyid in store.revocations.keys:
        raise PolicyError(f"the key of step {rule.name!r} is revoked")
    signer = Signer.from_uri(role_uri(keys_base(), f"{rule.base}.pem"))
    if signer.public_key != rule.key:
        raise PolicyError(f"the key of step {rule.name!r} here is not the one that the policy names")
    return signer


def keys_base() -> str:
    """Return the base URI below which the keys lie, from PORTCULLIS_KEYS.

    Raises:
        UsageError: It is not set.
    """
    base = os.environ.get(KEYS_ENV)
    if not base:
        raise UsageError(f"no keys: set {KEYS_ENV} to file:/absolute/directory (a mounted Secret) or env:PREFIX")
    return base


def read_evidence(bundles: Iterable[Path]) -> list[bytes]:
    """Return the union of bundles, each distinct line once.

    Raises:
        EvidenceError: A bundle is missing, too large or malformed.
    """
    lines: dict[bytes, None] = {}
    for path in bundles:
        try:
            data = read_bytes(path, limit=MAX_BUNDLE_BYTES)
        except UsageError as error:
            raise EvidenceError(f"the evidence is missing: {error}") from error
        lines.update(dict.fromkeys(split_bundle(data)))
    return list(lines)


@cache
def environment() -> Mapping[str, str]:
    """Return what runs here: versions, the digest of the installed wheel's RECORD and of the list of distributions.

    The image reference is what the pipeline declared (PORTCULLIS_IMAGE); a container cannot measure its own image.
    """
    try:
        record = importlib.metadata.distribution("kfp-portcullis").read_text("RECORD") or ""
    except importlib.metadata.PackageNotFoundError as error:
        raise UsageError("Portcullis is not installed; run: pip install kfp-portcullis") from error
    found: set[str] = set()
    for entry in dict.fromkeys(sys.path):
        folder = Path(entry)
        if folder.is_dir():
            found.update(path.name.removesuffix(".dist-info") for path in folder.glob("*.dist-info"))
    return {
        "portcullis": __version__,
        "python": platform.python_version(),
        "record": f"sha256:{sha256(record.encode())}",
        "distributions": f"sha256:{sha256(chr(10).join(sorted(found)).encode())}",
        "image": os.environ.get(IMAGE_ENV, "undeclared"),
    }
