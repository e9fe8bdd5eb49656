"""KFP component `admit`."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Model, Output

from portcullis.container import component


@component
def admit(
    sealed: Input[Model], signature: Input[Artifact], evidence: Input[Artifact], admission: Output[Artifact]
) -> NamedTuple("Outputs", [("digest", str)]):
    """Verify the whole chain with this namespace's own trust store and sign the admission (SLSA VSA v1).

    Refuses evidence that does not form one unbroken chain from the raw data to this sealed model, and a signature that
    is not the one in it.

    Args:
        sealed: The sealed model.
        signature: Its OpenSSF model signature.
        evidence: All evidence of the run.
        admission: The signed admission.

    Returns:
        digest: The content digest (SHA-256) of the admitted model.
    """
    from pathlib import Path

    from portcullis.admission.stage import admit as run

    digest = run(
        sealed=Path(sealed.path),
        signature=Path(signature.path),
        evidence=Path(evidence.path),
        admission=Path(admission.path),
    )
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=digest)
