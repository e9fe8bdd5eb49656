"""`admit`: verify the whole chain with the verifier's own trust store and sign the admission."""

from pathlib import Path

from portcullis.audit.log import open_log, recording
from portcullis.digest import sha256
from portcullis.errors import AdmissionError, EvidenceError, SealError, UsageError
from portcullis.evidence.admission import content_source, issue_admission
from portcullis.evidence.chain import Chain
from portcullis.evidence.step import read_evidence, signer_for
from portcullis.evidence.trust import TrustStore, now_ms, observe
from portcullis.files import read_bytes, write_bytes
from portcullis.sealing.sealed import sealed_digest
from portcullis.signing.oms import MAX_SIGNATURE_BYTES
from portcullis.signing.stage import verify_signature


def admit(*, sealed: Path, signature: Path, evidence: Path, admission: Path, trust: Path | None = None) -> str:
    """Judge a sealed model's evidence; write the signed admission.

    Args:
        sealed: The sealed model's directory.
        signature: Its OpenSSF model signature.
        evidence: Its bundle of evidence.
        admission: Where the admission goes.
        trust: The verifier's own trust store; the one that PORTCULLIS_TRUST names when None.

    Returns:
        The SHA-256 of the admitted model's content.

    Raises:
        TrustStoreError: There is no trust store.
        EvidenceError: The chain does not hold.
        GateFailedError: A gate FAILED.
        AdmissionError: The chain is not about this sealed model or signature, or the signature does not hold.
        PolicyError: The policy is not in force, or older than one seen before.
    """
    store = TrustStore.load(trust)
    rule = store.policy.admission_step()
    audit = open_log(rule.name, lambda: signer_for(store, rule))
    with recording(audit):
        observe(store)
        envelope, chain = issue_admission(
            read_evidence([evidence]),
            store,
            sealed=sealed_digest(sealed),
            signer=signer_for(store, rule),
            now=now_ms(),
        )
        require_signature(signature, chain, store, sealed=sealed)
        if audit is not None:  # first, so that there is no admission that the log does not tell of
            audit.append("step.finished", verdict="PASSED", statement=sha256(envelope.encode()))
        write_bytes(admission, envelope.encode())
    return chain.output(content_source(store.policy))


def require_signature(signature: Path, chain: Chain, store: TrustStore, *, sealed: Path) -> None:
    """Refuse unless this is the signature that the chain speaks of, and it holds for the sealed model.

    Args:
        signature: The OpenSSF model signature.
        chain: The verified chain.
        store: The verifier's own trust store; its policy names the signing step and its key.
        sealed: The sealed model's directory.

    Raises:
        AdmissionError: There is none, it is another one, or it does not hold.
    """
    source = store.policy.admission_step().inputs.get("signature")
    if source is None:
        raise AdmissionError("the policy's admission step takes no signature; name the step that signs what is sealed")
    try:
        data = read_bytes(signature, limit=MAX_SIGNATURE_BYTES)
        if sha256(data) != chain.output(source):
            raise AdmissionError(f"{signature} is not the signature that the evidence speaks of")
        verify_signature(sealed, data, store.policy.step(source.partition(".")[0]).key)
    except (UsageError, EvidenceError, SealError) as error:
        raise AdmissionError(f"the sealed model is not signed: {error}") from error
