"""A pipeline of one's own in a folder: a trust store and keys of a few steps that need no model and no table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from portcullis.evidence.policy import policy_body, sign_policy
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer

START = {"name": "start_chain", "stage": "start_chain", "inputs": {"policy": "policy", "artifact": "external"}}


def step(name: str, stage: str, inputs: Mapping[str, str], *outputs: str) -> dict[str, Any]:
    return {"name": name, "stage": stage, "inputs": dict(inputs), "outputs": list(outputs)}


class ForeignPipeline:
    """Keys and a signed policy of `start_chain` and other transforms; the environment points to them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *steps: Mapping[str, Any]) -> None:
        self.root = root
        self.steps = [{**START, "outputs": ["artifact"]}, *steps]
        self.owner = Signer.generate()
        self.keys = {each["name"]: Signer.generate() for each in self.steps}
        self.furnish()
        monkeypatch.setenv("PORTCULLIS_TRUST", str(root / "trust"))
        monkeypatch.setenv("PORTCULLIS_STATE", str(root / "state"))
        monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{root / 'keys'}")

    def furnish(self, revoked: frozenset[str] = frozenset()) -> None:
        """Write trust store and keys as they are now."""
        blank: dict[str, Any] = {"kind": "transform", "parameters": {}, "requires": [], "checks": {}}
        body = policy_body(
            name="foreign",
            environment="test",
            version=1,
            expires=now_ms() + 10**7,
            max_age=3600,
            admission_lifetime=3600,
            development=True,
            steps=[{**blank, **each, "key": self.keys[each["name"]].public_key.pem} for each in self.steps],
        )
        write_trust_store(
            self.root / "trust",
            owner=self.owner.public_key,
            name="foreign",
            environment="test",
            policy=sign_policy(body, self.owner),
            revocations=Revocations(1, keys=revoked).sign(self.owner),
        )
        for name, signer in self.keys.items():
            self.put_key(name, signer)

    def put_key(self, name: str, signer: Signer) -> None:
        write_bytes(self.root / "keys" / f"{name}.pem", signer.private_pem(), mode=0o600)

    def bundle(self, name: str) -> Path:
        return self.root / f"{name}.intoto.jsonl"
