"""`encrypt`: seal a model that its gates passed for the serving recipient, binding content to sealed digest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from portcullis.digest import tree_digest
from portcullis.errors import DataError, KeyMaterialError
from portcullis.evidence.step import begin, keys_base
from portcullis.keys import role_uri
from portcullis.sealing.recipients import recipient_at
from portcullis.sealing.sealed import seal_directory, sealed_digest


def sealing_context(model: str, content: str) -> Mapping[str, str]:
    """Return what a sealed model is bound to: whoever opens it must name it and the content that the gates judged.

    A key service is told both, logs them, and may allow a workload the model of one name only.

    Args:
        model: The name that the policy gives it.
        content: Its content digest.
    """
    return {"digest": content, "model": model}


def encrypt(*, step: str, model: Path, evidence: Path, recipients: Sequence[str], sealed: Path, bundle: Path) -> str:
    """Seal a model directory; needs the recipient's public key only, so this step cannot open what it made.

    Args:
        step: This step's name in the policy.
        model: The model's directory.
        evidence: Its bundle of evidence, the gate's verdict included.
        recipients: Key ids, or a key service's URIs, of those who can open it, as the policy names them.
        sealed: Where the sealed directory goes.
        bundle: Where the evidence goes.

    Returns:
        The sealed digest.

    Raises:
        EvidenceError: The evidence does not hold for this very model.
        GateFailedError: A gate before this step FAILED.
        KeyMaterialError: The public key here is not the recipient that the policy names, or the service did not wrap.
        DataError: The model changed while it was sealed.
    """
    content = tree_digest(model)
    begun = begin(
        step,
        stage="encrypt",
        inputs={"model": content},
        parameters={"recipients": list(recipients)},
        evidence=[evidence],
    )
    public = recipient_at(role_uri(keys_base(), "serving.pub.pem"))
    if [public.key_id] != list(recipients):
        raise KeyMaterialError("the serving key here is not the recipient that the policy names")
    seal_directory(model, sealed, recipients=[public], context=sealing_context(begun.store.policy.name, content))
    if tree_digest(model) != content:
        raise DataError(f"{model} changed while it was sealed")
    digest = sealed_digest(sealed)
    size = sum(path.stat().st_size for path in sealed.rglob("*") if path.is_file())
    begun.finish(bundle=bundle, outputs={"sealed": digest}, figures={"sealed_bytes": size})
    return digest
