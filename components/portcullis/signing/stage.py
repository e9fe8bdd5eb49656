"""`sign`: sign a sealed model in the format that model registries and cluster admission tools verify."""

from pathlib import Path

from portcullis.digest import manifest_digest, sha256, tree_files
from portcullis.errors import DataError, EvidenceError, KeyMaterialError, SealError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.keys import PublicKey
from portcullis.sealing.sealed import SIDECAR
from portcullis.signing.oms import sign_files, verify_files

MODEL_NAME = "sealed"


def sign(*, step: str, sealed: Path, evidence: Path, signature: Path, bundle: Path) -> Statement:
    """Sign every file of a sealed model with the step's own key; the list of recipients, which rotates, is left out.

    Args:
        step: This step's name in the policy.
        sealed: The sealed model's directory.
        evidence: Its bundle of evidence.
        signature: Where the signature (`model.sig`) goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very sealed model.
        GateFailedError: A gate before this step FAILED.
        KeyMaterialError: The step's key is missing, or not ECDSA P-256.
        SealError: The sealed model changed while it was signed.
    """
    entries = tree_files(sealed, exclude={SIDECAR})
    begun = begin(step, stage="sign", inputs={"sealed": manifest_digest(entries)}, parameters={}, evidence=[evidence])
    signed = sign_files(
        {entry.path: entry.sha256 for entry in entries}, name=MODEL_NAME, ignored={SIDECAR}, signer=begun.signer
    )
    verify_signature(sealed, signed, begun.signer.public_key)
    write_bytes(signature, signed)
    return begun.finish(
        bundle=bundle,
        outputs={"signature": sha256(signed)},
        figures={"files": len(entries), "bytes": sum(entry.size for entry in entries)},
    )


def verify_signature(sealed: Path, signature: bytes, key: PublicKey) -> None:
    """Check that this key signed exactly the files of a sealed model, whatever the signature says is to be ignored.

    The list of recipients is not signed; it authenticates itself when the model is opened.

    Raises:
        EvidenceError: Not a signature by this key.
        SealError: The sealed model cannot be read, or its files are not those that were signed.
    """
    try:
        signed = verify_files(signature, key)
    except KeyMaterialError as error:
        raise EvidenceError(str(error)) from error
    try:
        found = {entry.path: entry.sha256 for entry in tree_files(sealed, exclude={SIDECAR})}
    except DataError as error:
        raise SealError(str(error)) from error
    if differing := sorted(name for name in {*signed, *found} if signed.get(name) != found.get(name)):
        raise SealError(f"the sealed model is not what was signed: it differs in {differing[0][:80]!r}")
