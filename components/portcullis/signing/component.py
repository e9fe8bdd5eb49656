"""KFP component `sign`."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Metrics, Model, Output

from portcullis.container import component


@component
def sign(
    sealed: Input[Model],
    evidence: Input[Artifact],
    signature: Output[Artifact],
    signature_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "sign",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Sign a sealed model in the OpenSSF model signing format (OMS v1.0), which `model_signing` verifies too.

    Refuses a signing key that is not ECDSA P-256, and a sealed model that is not the one its evidence speaks of.

    Args:
        sealed: The sealed model.
        evidence: Its evidence.
        step: Name of this step in the policy.
        signature: The signature, a Sigstore bundle; others call the file `model.sig`.
        signature_evidence: The evidence with this step's statement.
        metrics: Files and bytes signed.

    Returns:
        digest: SHA-256 of the signature.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.signing.stage import sign as run

    statement = run(
        step=step,
        sealed=Path(sealed.path),
        evidence=Path(evidence.path),
        signature=Path(signature.path),
        bundle=Path(signature_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["signature"])
