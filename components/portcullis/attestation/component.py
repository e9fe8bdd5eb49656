"""KFP components `start_chain` and `attest`."""

from typing import NamedTuple

from kfp.dsl import Artifact, Input, Output

from portcullis.container import component


@component
def start_chain(artifact: Input[Artifact], evidence: Output[Artifact], step: str = "start_chain") -> NamedTuple(
    "Outputs", [("nonce", str), ("digest", str)]
):
    """Begin a chain of evidence in a pipeline of one's own: mint the run's nonce and attest what the run begins with.

    Refuses without a trust store or a policy in force.

    Args:
        artifact: What the run begins with, from outside the chain.
        step: Name of this step in the policy.
        evidence: The first signed statement of the run.

    Returns:
        nonce: 128 random bits, 32 hexadecimal characters.
        digest: SHA-256 of the artifact.
    """
    from pathlib import Path

    from portcullis.attestation.stage import start_chain as run

    statement = run(step=step, artifact=Path(artifact.path), bundle=Path(evidence.path))
    outputs = NamedTuple("Outputs", [("nonce", str), ("digest", str)])
    return outputs(nonce=statement.nonce, digest=statement.outputs["artifact"])


@component
def attest(
    material: Input[Artifact],
    product: Input[Artifact],
    evidence: Input[Artifact],
    step: str,
    attested_evidence: Output[Artifact],
) -> NamedTuple("Outputs", [("digest", str)]):
    """Sign that a task that Portcullis did not run made one artifact of another.

    Refuses a material that is not the one its evidence speaks of. Nobody watched the task itself.

    Args:
        material: What the task took.
        product: What the task made of it.
        evidence: The material's evidence.
        step: Name of this step in the policy.
        attested_evidence: The evidence with this step's statement.

    Returns:
        digest: SHA-256 of the product.
    """
    from pathlib import Path

    from portcullis.attestation.stage import attest as run

    statement = run(
        step=step,
        material=Path(material.path),
        product=Path(product.path),
        evidence=Path(evidence.path),
        bundle=Path(attested_evidence.path),
    )
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["product"])
