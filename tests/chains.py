"""A small world for tests of evidence: a policy, its keys, and a chain that verifies until a test breaks it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portcullis.digest import sha256
from portcullis.evidence.admission import issue_admission
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.policy import Policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.statement import Statement, Verdict
from portcullis.evidence.trust import Revocations, TrustStore, write_trust_store
from portcullis.keys import Signer

NOW = 1_800_000_000_000
NONCE = "0123456789abcdef" * 2
ENVIRONMENT = {"portcullis": "0", "python": "3", "record": "r", "distributions": "d", "image": "undeclared"}

STEPS: list[dict[str, Any]] = [
    {
        "name": "preflight",
        "stage": "preflight",
        "kind": "transform",
        "inputs": {"policy": "policy"},
        "outputs": ["nonce"],
    },
    {
        "name": "train",
        "stage": "train",
        "kind": "transform",
        "inputs": {"nonce": "preflight.nonce", "raw": "external"},
        "outputs": ["model", "test"],
        "parameters": {"epochs": 3, "rate": 0.5},
    },
    {
        "name": "robustness:trained",
        "stage": "robustness_gate",
        "kind": "gate",
        "inputs": {"model": "train.model", "test": "train.test"},
        "outputs": ["model"],
        "parameters": {"epsilon": 0.1},
        "checks": {"robust_accuracy": {"min": 0.75, "max": 1}, "samples": {"min": 100}},
    },
    {
        "name": "encrypt",
        "stage": "encrypt",
        "kind": "transform",
        "inputs": {"model": "train.model"},
        "outputs": ["sealed"],
        "requires": ["robustness:trained"],
    },
    {
        "name": "admit",
        "stage": "admit",
        "kind": "admission",
        "inputs": {"sealed": "encrypt.sealed"},
        "outputs": ["admission"],
    },
    {
        "name": "deploy",
        "stage": "deploy",
        "kind": "gate",
        "inputs": {"sealed": "encrypt.sealed", "admission": "admit.admission"},
        "outputs": ["sealed"],
        "checks": {"good": {"min": 200, "max": 200}},
    },
]
CHAIN_STEPS = ("preflight", "train", "robustness:trained", "encrypt")


def digest_of(name: str) -> str:
    return sha256(name.encode())


@dataclass
class World:
    """Keys, a signed policy and the statements of one honest run."""

    owner: Signer = field(default_factory=Signer.generate)
    keys: dict[str, Signer] = field(default_factory=lambda: {step["name"]: Signer.generate() for step in STEPS})

    def policy_bytes(self, **changes: Any) -> bytes:
        blank = {"parameters": {}, "requires": [], "checks": {}}
        steps = [{**blank, **step, "key": self.keys[step["name"]].public_key.pem} for step in STEPS]
        settings: dict[str, Any] = {
            "name": "demo",
            "environment": "development",
            "version": 3,
            "expires": NOW + 10**9,
            "max_age": 3600,
            "admission_lifetime": 86400,
            "development": True,
            "steps": steps,
        }
        return sign_policy(policy_body(**{**settings, **changes}), self.owner)

    def policy(self, **changes: Any) -> Policy:
        return verify_policy(self.policy_bytes(**changes), self.owner.public_key, now=NOW)

    def store(self, path: Path, *, revocations: Revocations | None = None, **changes: Any) -> TrustStore:
        write_trust_store(
            path,
            owner=self.owner.public_key,
            name="demo",
            environment="development",
            policy=self.policy_bytes(**changes),
            revocations=(revocations or Revocations(1)).sign(self.owner),
        )
        return TrustStore.load(path, now=NOW)

    def statements(self, policy: Policy) -> dict[str, Statement]:
        def made(source: str) -> str:
            if source == "policy":
                return policy.digest
            return sha256(NONCE.encode()) if source == "preflight.nonce" else digest_of(source)

        result = {}
        for name in CHAIN_STEPS:
            rule = policy.step(name)
            inputs = {key: made(source) for key, source in rule.inputs.items()}
            gate = rule.kind == "gate"
            outputs = {key: inputs[key] if gate else made(f"{name}.{key}") for key in rule.outputs}
            verdict: Verdict | None = "PASSED" if gate else None
            result[name] = Statement(
                step=name,
                stage=rule.stage,
                kind="gate" if gate else "transform",
                nonce=NONCE,
                started=NOW - 2000,
                finished=NOW - 1000,
                inputs=inputs,
                outputs=outputs,
                parameters=rule.parameters,
                figures={"robust_accuracy": 0.8125, "samples": 359} if gate else {"rows": 5},
                environment=ENVIRONMENT,
                verdict=verdict,
            )
        return result

    def line(self, statement: Statement, signer: Signer | None = None) -> bytes:
        return seal_payload(statement.encode(), signer or self.keys[statement.step]).encode()

    def lines(self, policy: Policy, **edits: Callable[[Statement], Statement]) -> list[bytes]:
        """Return the honest lines; `edits` maps a step (colon as two underscores) to a change, signed by its key."""
        by_step = {name.replace("__", ":"): edit for name, edit in edits.items()}
        return [
            self.line(by_step[name](statement) if name in by_step else statement)
            for name, statement in self.statements(policy).items()
        ]

    def admission(self, store: TrustStore, lines: list[bytes], *, now: int = NOW) -> bytes:
        sealed = digest_of("encrypt.sealed")
        envelope, _ = issue_admission(lines, store, sealed=sealed, signer=self.keys["admit"], now=now)
        return envelope.encode()
