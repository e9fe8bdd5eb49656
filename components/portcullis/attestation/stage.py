"""`start_chain` and `attest`: evidence for pipelines whose tasks are not all Portcullis's own."""

import secrets
from pathlib import Path

from portcullis.at_rest import input_digest, product_digest
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin
from portcullis.evidence.trust import TrustStore

NONCE_BYTES = 16
RAN_BY = "not Portcullis"


def start_chain(*, step: str, artifact: Path, bundle: Path) -> Statement:
    """Mint a run's nonce and write its first evidence: which artifact the run begins with.

    Args:
        step: This step's name in the policy.
        artifact: A file or directory from outside the chain.
        bundle: Where the evidence goes.

    Returns:
        The statement; its nonce is 128 bits from the system's CSPRNG, as 32 hexadecimal characters.

    Raises:
        TrustStoreError: There is no trust store.
        PolicyError: The policy is unsigned, expired, not the pinned one, or knows no such step.
        DataError: The artifact is missing or empty, or holds a link or a special file.
        SealError: The artifact is a sealed data set that was altered.
        KeyMaterialError: There is no key for this step, or to open a sealed data set.
    """
    store = TrustStore.load()
    digest = input_digest(step, "artifact", artifact)
    begun = begin(
        step,
        stage="start_chain",
        inputs={"policy": store.policy.digest, "artifact": digest},
        parameters={},
        nonce=secrets.token_hex(NONCE_BYTES),
        store=store,
    )
    figures = {"policy_version": store.policy.version}
    return begun.finish(bundle=bundle, outputs={"artifact": digest}, figures=figures)


def attest(*, step: str, material: Path, product: Path, evidence: Path, bundle: Path) -> Statement:
    """Sign that a task that Portcullis did not run made `product` of `material`.

    Nobody watched that task: the statement is worth what the step's key is worth, and the policy says where that is
    enough.

    Args:
        step: This step's name in the policy.
        material: What the task took, a file or directory.
        product: What it made, a file or directory.
        evidence: The material's bundle of evidence.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very material.
        GateFailedError: A gate before this step FAILED.
        PolicyError: The policy knows no such step.
        DataError: Material or product is missing or empty, or holds a link or a special file.
        SealError: Either is a data set that was altered at rest, or lies in plain text where it must not.
        KeyMaterialError: There is no key for this step, or to open a sealed data set.
    """
    inputs = {"material": input_digest(step, "material", material)}
    begun = begin(step, stage="attest", inputs=inputs, parameters={}, evidence=[evidence])
    return begun.finish(bundle=bundle, outputs={"product": product_digest(product)}, figures={"ran_by": RAN_BY})
