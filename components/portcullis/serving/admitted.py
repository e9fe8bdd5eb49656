"""Open an admitted model: verify everything again, decrypt in memory, and digest the plaintext once more."""

from dataclasses import dataclass
from pathlib import Path

from portcullis.digest import content_digest
from portcullis.encryption.stage import sealing_context
from portcullis.errors import AdmissionError, SealError, UsageError
from portcullis.evidence.admission import Admission, verify_admission
from portcullis.evidence.chain import Chain
from portcullis.evidence.step import read_evidence
from portcullis.evidence.trust import TrustStore, now_ms, observe
from portcullis.files import read_bytes
from portcullis.models.store import LoadedModel, load_model_files
from portcullis.sealing.recipients import Opener
from portcullis.sealing.sealed import open_directory, sealed_digest

MAX_ADMISSION_BYTES = 4 << 20


@dataclass(frozen=True)
class AdmittedModel:
    """A model that this process verified and opened; its plaintext lives in this process's memory only."""

    admission: Admission
    chain: Chain
    model: LoadedModel


def read_admission(path: Path) -> bytes:
    """Read an admission's file; says nothing about what it is worth.

    Raises:
        AdmissionError: Missing, too large or unreadable.
    """
    try:
        return read_bytes(path, limit=MAX_ADMISSION_BYTES)
    except UsageError as error:
        raise AdmissionError(f"there is no admission: {error}") from error


def open_admitted(*, sealed: Path, admission: Path, evidence: Path, trust: Path | None, key: Opener) -> AdmittedModel:
    """Verify admission and chain with one's own trust store, then decrypt and load the model in memory.

    Args:
        sealed: The sealed model's directory.
        admission: The admission's file.
        evidence: The bundle of evidence.
        trust: The trust store; the one that PORTCULLIS_TRUST names when None.
        key: The serving recipient's.

    Raises:
        TrustStoreError: There is no trust store.
        AdmissionError: The admission does not hold.
        EvidenceError: The chain behind it does not hold.
        SealError: The sealed model was altered, this key does not open it, or its content is not what was judged.
        ModelError: The model is malformed.
    """
    store = TrustStore.load(trust)
    admitted, chain = verify_admission(
        read_admission(admission),
        read_evidence([evidence]),
        store,
        sealed=sealed_digest(sealed),
        seen=observe(store),
        now=now_ms(),
    )
    files = open_directory(sealed, private_key=key, context=sealing_context(admitted.policy_name, admitted.content))
    if content_digest(files) != admitted.content:
        raise SealError("the opened model is not the content that the gates judged")
    loaded = load_model_files(files)
    # Only an admission whose model really opened counts as deployed, so a failed attempt rolls nothing forward.
    observe(store, deployed=admitted.issued)
    return AdmittedModel(admitted, chain, loaded)
