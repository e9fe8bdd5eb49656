"""The admission: the signed summary that one model was verified under one policy. It alone opens nothing.

Form: SLSA Verification Summary Attestation v1 (slsa.dev/verification_summary/v1). Subjects are the model's content
digest and the sealed digest that ships it; `inputAttestations` pin every line of evidence, so that what was judged is
what is kept. Whoever deploys verifies the chain again with its own trust store (`verify_admission`), as of the instant
that the admission was issued, and judges today only what changes with time: expiry, revocation and rollback.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from portcullis import __version__
from portcullis.digest import canonical_json, is_digest, parse_canonical_json, sha256
from portcullis.errors import AdmissionError, DataError, EvidenceError
from portcullis.evidence.chain import MAX_SKEW_MS, Chain, accept_statement, verify_chain
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.policy import Policy
from portcullis.evidence.statement import STATEMENT_TYPE, Statement, format_time, parse_time
from portcullis.evidence.trust import Seen, TrustStore
from portcullis.keys import Signer

VSA = "https://slsa.dev/verification_summary/v1"
VERIFIER_ID = "urn:portcullis:verifier:admit:v1"
LEVEL = "PORTCULLIS_UNBROKEN_CHAIN"


@dataclass(frozen=True)
class Admission:
    """What the admission says.

    Attributes:
        content: SHA-256 of the model's content (its directory's manifest).
        sealed: SHA-256 of the sealed model, without the recipients' sidecar.
        policy: SHA-256 of the signed policy.
        policy_name: Its name.
        policy_version: Its version.
        environment: Its environment.
        development: Self-made keys; deploys to the local target only.
        nonce: The run's nonce.
        issued: Milliseconds since the epoch; also the admission's version, which only grows.
        expires: Milliseconds since the epoch.
        evidence: SHA-256 of every line of evidence, sorted.
    """

    content: str
    sealed: str
    policy: str
    policy_name: str
    policy_version: int
    environment: str
    development: bool
    nonce: str
    issued: int
    expires: int
    evidence: tuple[str, ...]

    def encode(self) -> bytes:
        """Return the in-toto Statement as canonical JSON."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [
                    {"name": "model", "digest": {"sha256": self.content}},
                    {"name": "sealed", "digest": {"sha256": self.sealed}},
                ],
                "predicateType": VSA,
                "predicate": {
                    "verifier": {"id": VERIFIER_ID, "version": {"portcullis": __version__}},
                    "timeVerified": format_time(self.issued),
                    "resourceUri": f"urn:portcullis:model:{self.policy_name}",
                    "policy": {
                        "uri": f"urn:portcullis:policy:{self.policy_name}:{self.environment}:{self.policy_version}",
                        "digest": {"sha256": self.policy},
                    },
                    "inputAttestations": [{"digest": {"sha256": line}} for line in self.evidence],
                    "verificationResult": "PASSED",
                    "verifiedLevels": [LEVEL],
                    "portcullis": {
                        "policyName": self.policy_name,
                        "policyVersion": self.policy_version,
                        "environment": self.environment,
                        "development": self.development,
                        "nonce": self.nonce,
                        "expiresOn": format_time(self.expires),
                    },
                },
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> "Admission":
        """Read an admission; the inverse of `encode`, but for the version of the verifier that wrote it.

        Raises:
            AdmissionError: Anything that `encode` would not have written.
        """
        try:
            document: dict[str, Any] = parse_canonical_json(payload)
            predicate = document["predicate"]
            own = predicate["portcullis"]
            admission = cls(
                content=document["subject"][0]["digest"]["sha256"],
                sealed=document["subject"][1]["digest"]["sha256"],
                policy=predicate["policy"]["digest"]["sha256"],
                policy_name=own["policyName"],
                policy_version=own["policyVersion"],
                environment=own["environment"],
                development=own["development"],
                nonce=own["nonce"],
                issued=parse_time(predicate["timeVerified"]),
                expires=parse_time(own["expiresOn"]),
                evidence=tuple(entry["digest"]["sha256"] for entry in predicate["inputAttestations"]),
            )
            predicate["verifier"]["version"] = {"portcullis": __version__}
            whole = admission.encode() == canonical_json(document)
            digests = [admission.content, admission.sealed, admission.policy, *admission.evidence]
        except (DataError, KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise AdmissionError(f"not an admission: {error!r}") from error
        if not whole or not all(is_digest(digest) for digest in digests) or not isinstance(admission.development, bool):
            raise AdmissionError("not an admission: it holds fields or forms that admit does not write")
        return admission


def content_source(policy: Policy) -> str:
    """Return `step.output` of the model whose content is admitted: what the sealing step encrypted.

    The admission step's input `sealed` comes from the sealing step, whose input `model` is the content.

    Raises:
        AdmissionError: The policy has no such edges.
    """
    sealed = policy.admission_step().inputs.get("sealed", "")
    sealing = policy.steps.get(sealed.partition(".")[0])
    source = sealing.inputs.get("model") if sealing else None
    if source is None:
        raise AdmissionError("the policy does not say which model is sealed and admitted")
    return source


def admission_identity(data: bytes) -> str:
    """Return what revocations and rollbacks call an admission: the SHA-256 of its signed payload.

    The envelope's own digest would not do. An ECDSA signature (r, s) has a twin (r, -s mod n) that anyone can compute,
    and a keyid may be left out, so a revoked admission could be respelled past the list.

    Raises:
        AdmissionError: Not an envelope.
    """
    try:
        return sha256(Envelope.parse(data).payload)
    except EvidenceError as error:
        raise AdmissionError(f"the admission: {error}") from error


def issue_admission(
    lines: Sequence[bytes], store: TrustStore, *, sealed: str, signer: Signer, now: int
) -> tuple[Envelope, Chain]:
    """Judge a run's evidence and sign its admission.

    Args:
        lines: The bundle.
        store: The verifier's own trust store.
        sealed: SHA-256 of the sealed model as it lies there.
        signer: The key of the policy's admission step.
        now: Milliseconds since the epoch.

    Raises:
        EvidenceError: The chain does not hold.
        GateFailedError: A gate FAILED.
        AdmissionError: The chain is not about this sealed model, or the key is not the admission step's.
    """
    policy = store.policy
    rule = policy.admission_step()
    if signer.public_key != rule.key:
        raise AdmissionError(f"the signing key is not the one that the policy gives to step {rule.name!r}")
    chain = _chain_for(lines, store, judged_at=now, sealed=sealed)
    admission = _admission_of(chain, policy, sealed=sealed, issued=now, evidence=_pins(lines))
    return seal_payload(admission.encode(), signer), chain


def verify_admission(
    data: bytes, lines: Sequence[bytes], store: TrustStore, *, sealed: str, seen: Seen, now: int
) -> tuple[Admission, Chain]:
    """Verify an admission and, again, the whole chain behind it.

    Args:
        data: The admission's envelope.
        lines: The bundle of evidence that it was issued for.
        store: The verifier's own trust store.
        sealed: SHA-256 of the sealed model as it lies there.
        seen: The versions that this verifier has seen.
        now: Milliseconds since the epoch.

    Raises:
        AdmissionError: Not signed by the admission step's key, expired, revoked, rolled back, or for something else.
        EvidenceError: The chain does not hold.
        GateFailedError: A gate FAILED.
    """
    policy, revocations = store.policy, store.revocations
    key = policy.admission_step().key
    identity = admission_identity(data)
    try:
        payload = Envelope.parse(data).verify(key)
    except EvidenceError as error:
        raise AdmissionError(f"the admission: {error}") from error
    admission = Admission.parse(payload)
    if key.keyid in revocations.keys:
        raise AdmissionError("the key that signed the admission is revoked")
    if identity in revocations.admissions:
        raise AdmissionError("this admission is revoked")
    if admission.policy != policy.digest:
        raise AdmissionError(
            f"admitted under {admission.policy_name} ({admission.environment}) version {admission.policy_version}, "
            f"not under this trust store's policy {policy.name} ({policy.environment}) version {policy.version}"
        )
    if not admission.issued <= now + MAX_SKEW_MS:
        raise AdmissionError(f"the admission is dated in the future, {format_time(admission.issued)}")
    if not now < admission.expires:
        raise AdmissionError(f"the admission expired at {format_time(admission.expires)}; admit the model again")
    if admission.issued < seen.admission and identity not in revocations.rollbacks:
        raise AdmissionError(
            "a newer admission than this one was already deployed; to go back on purpose, the policy's owner signs a "
            "rollback with: portcullis keys rollback DIR"
        )
    if admission.sealed != sealed:
        raise AdmissionError("the admission is for another sealed model than the one here")
    if admission.evidence != _pins(lines):
        raise AdmissionError("the evidence is not, to the byte, what the admission was issued for")
    chain = _chain_for(lines, store, judged_at=admission.issued, sealed=sealed)
    # The admission's key decides nothing that the policy decides: neither the model nor how long it is admitted.
    if admission != _admission_of(chain, policy, sealed=sealed, issued=admission.issued, evidence=_pins(lines)):
        raise AdmissionError("the admission does not say what follows from its evidence and the policy")
    return admission, chain


def verify_deployment(
    data: bytes, store: TrustStore, admission: Admission, *, admission_digest: str, now: int
) -> Statement:
    """Verify the deployment step's statement: which admission was deployed, and how the server answered.

    Args:
        data: The statement's envelope.
        store: The verifier's own trust store.
        admission: The verified admission.
        admission_digest: SHA-256 of its envelope.
        now: Milliseconds since the epoch.

    Raises:
        EvidenceError: The statement does not hold or is about something else.
        GateFailedError: The server did not answer as the policy demands.
    """
    statement = accept_statement(data, store.policy, store.revocations.keys)
    rule = store.policy.step(statement.step)
    admitted = f"{store.policy.admission_step().name}.admission"
    if rule.inputs.get("admission") != admitted or statement.inputs != {
        "admission": admission_digest,
        "sealed": admission.sealed,
    }:
        raise EvidenceError(
            f"step {rule.name!r} did not deploy this admission and this model; run: portcullis deploy DIR"
        )
    if statement.nonce != admission.nonce:
        raise EvidenceError(f"step {rule.name!r}: from another run than the admission")
    if not admission.issued - MAX_SKEW_MS <= statement.finished <= now + MAX_SKEW_MS:
        raise EvidenceError(f"step {rule.name!r}: dated {format_time(statement.finished)}, outside what can be")
    return statement


def _chain_for(lines: Sequence[bytes], store: TrustStore, *, judged_at: int, sealed: str) -> Chain:
    rule = store.policy.admission_step()
    chain = verify_chain(
        lines,
        store.policy,
        needed=store.policy.ancestors(rule.name),
        judged_at=judged_at,
        revoked_keys=store.revocations.keys,
    )
    if chain.output(rule.inputs.get("sealed", "")) != sealed:
        raise AdmissionError("the sealed model is not the one that the evidence is about")
    return chain


def _admission_of(chain: Chain, policy: Policy, *, sealed: str, issued: int, evidence: tuple[str, ...]) -> Admission:
    return Admission(
        content=chain.output(content_source(policy)),
        sealed=sealed,
        policy=policy.digest,
        policy_name=policy.name,
        policy_version=policy.version,
        environment=policy.environment,
        development=policy.development,
        nonce=chain.nonce,
        issued=issued,
        expires=min(issued + policy.admission_lifetime * 1000, policy.expires),
        evidence=evidence,
    )


def _pins(lines: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(sorted(sha256(line) for line in lines))
