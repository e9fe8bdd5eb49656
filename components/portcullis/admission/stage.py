"""`admit`: verify the whole chain with the verifier's own trust store and sign the admission."""

from pathlib import Path

from portcullis.encryption.sealed import sealed_digest
from portcullis.evidence.admission import content_source, issue_admission
from portcullis.evidence.step import read_evidence, signer_for
from portcullis.evidence.trust import TrustStore, now_ms, observe
from portcullis.files import write_bytes


def admit(*, sealed: Path, evidence: Path, admission: Path, trust: Path | None = None) -> str:
    """Judge a sealed model's evidence; write the signed admission.

    Args:
        sealed: The sealed model's directory.
        evidence: Its bundle of evidence.
        admission: Where the admission goes.
        trust: The verifier's own trust store; the one that PORTCULLIS_TRUST names when None.

    Returns:
        The SHA-256 of the admitted model's content.

    Raises:
        TrustStoreError: There is no trust store.
        EvidenceError: The chain does not hold.
        GateFailedError: A gate FAILED.
        AdmissionError: The chain is not about this sealed model.
        PolicyError: The policy is not in force, or older than one seen before.
    """
    store = TrustStore.load(trust)
    observe(store)
    envelope, chain = issue_admission(
        read_evidence([evidence]),
        store,
        sealed=sealed_digest(sealed),
        signer=signer_for(store, store.policy.admission_step()),
        now=now_ms(),
    )
    write_bytes(admission, envelope.encode())
    return chain.output(content_source(store.policy))
