"""KFP component `encrypt`."""

from typing import List, NamedTuple

from kfp.dsl import Artifact, Input, Model, Output

from portcullis.container import component


@component
def encrypt(
    model: Input[Model],
    evidence: Input[Artifact],
    recipients: List[str],
    sealed: Output[Model],
    sealed_evidence: Output[Artifact],
    step: str = "encrypt",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Seal a model for the serving recipient (AES-256-GCM STREAM, hybrid ML-KEM-768 + X25519 key wrapping).

    Refuses a model whose required gates have not passed, and a recipient that the policy does not name.

    Args:
        model: The model's directory, as the gates judged it.
        evidence: Its evidence.
        recipients: Key ids of those who can open it.
        step: Name of this step in the policy.
        sealed: The sealed model.
        sealed_evidence: The evidence with this step's statement.

    Returns:
        digest: The sealed digest (SHA-256).
    """
    from pathlib import Path

    from portcullis.encryption.stage import encrypt as run

    digest = run(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        recipients=recipients,
        sealed=Path(sealed.path),
        bundle=Path(sealed_evidence.path),
    )
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=digest)
