"""KFP component `enforce`: the second half of every gate."""

from kfp.dsl import Artifact, Input, Output

from portcullis.container import component


@component
def enforce(subject: Input[Artifact], evidence: Input[Artifact], gate: str, passed: Output[Artifact]):
    """Raise unless the gate's signed verdict is PASSED, fresh, and about this very subject; then hand the evidence on.

    A data set is judged by its content, so a sealed one is opened, in memory.

    Args:
        subject: What the gate judged and what is to move on.
        evidence: The evidence that the gate's `evaluate` wrote.
        gate: Name of the gate's step in the policy.
        passed: The evidence, handed on.
    """
    from pathlib import Path

    from portcullis.at_rest import subject_digest
    from portcullis.evidence.step import enforce as run

    run(
        gate,
        subject=subject_digest(gate, Path(subject.path)),
        evidence=Path(evidence.path),
        passed=Path(passed.path),
    )
