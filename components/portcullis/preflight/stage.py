"""The first step: nothing starts without a trust store, a policy in force, and a nonce that binds the run together."""

import secrets
from pathlib import Path

from portcullis.digest import sha256
from portcullis.evidence.step import begin
from portcullis.evidence.trust import TrustStore

NONCE_BYTES = 16


def preflight(*, step: str, bundle: Path) -> str:
    """Check the policy, mint the run's nonce and write the first evidence.

    Args:
        step: This step's name in the policy.
        bundle: Where the evidence goes.

    Returns:
        The nonce: 128 bits from the system's CSPRNG, as 32 hexadecimal characters.

    Raises:
        TrustStoreError: There is no trust store.
        PolicyError: The policy is unsigned, expired, not the pinned one, or knows no such step.
        KeyMaterialError: There is no key for this step.
    """
    store = TrustStore.load()
    nonce = secrets.token_hex(NONCE_BYTES)
    begun = begin(
        step, stage="preflight", inputs={"policy": store.policy.digest}, parameters={}, nonce=nonce, store=store
    )
    figures = {"policy_version": store.policy.version}
    begun.finish(bundle=bundle, outputs={"nonce": sha256(nonce.encode())}, figures=figures)
    return nonce
