"""KFP component `preflight`."""

from typing import NamedTuple

from kfp.dsl import Artifact, Output

from portcullis.container import component


@component
def preflight(evidence: Output[Artifact], step: str = "preflight") -> NamedTuple("Outputs", [("nonce", str)]):
    """Mint the run's nonce under a policy that verifies; refuses without a trust store or a policy in force.

    Args:
        step: Name of this step in the policy.
        evidence: The first signed statement of the run.

    Returns:
        nonce: 128 random bits, 32 hexadecimal characters.
    """
    from pathlib import Path

    from portcullis.preflight.stage import preflight as run

    outputs = NamedTuple("Outputs", [("nonce", str)])
    return outputs(nonce=run(step=step, bundle=Path(evidence.path)))
