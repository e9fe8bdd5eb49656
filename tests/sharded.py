"""A small sharded world for tests: real keys, a real policy, and the statements of an honest sharded run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import resting
from chains import ENVIRONMENT, NONCE, World

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.digest import sha256
from portcullis.evidence.chain import join_bundle
from portcullis.evidence.policy import Policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import now_ms
from portcullis.keys import Signer

SPEC = DatasetSpec("small", Label("label", ("a", "b")), Features(("x",), (1,), 0, 10_000), {})


def steps_over(count: int) -> list[dict[str, Any]]:
    """Return the steps of a policy: `mask_pii` over shards of data from outside, and what joins them."""
    return [
        {
            "name": "preflight",
            "stage": "preflight",
            "kind": "transform",
            "inputs": {"policy": "policy"},
            "outputs": ["nonce"],
        },
        {
            "name": "mask_pii",
            "stage": "mask_pii",
            "kind": "transform",
            "inputs": {"nonce": "preflight.nonce", "raw": "external"},
            "outputs": ["dataset"],
            "parameters": {"masking": {"columns": {}}},
            "shards": count,
        },
        {
            "name": "merge_shards",
            "stage": "merge_shards",
            "kind": "transform",
            "inputs": {"dataset": "mask_pii.dataset"},
            "outputs": ["dataset"],
        },
    ]


@dataclass
class ShardedWorld(World):
    """Keys and policy of `steps_over(count)`."""

    count: int = 3
    keys: dict[str, Signer] = field(default_factory=lambda: {step["name"]: Signer.generate() for step in steps_over(2)})

    @cached_property
    def signed(self) -> bytes:
        blank = {"parameters": {}, "requires": [], "checks": {}}
        body = policy_body(
            name="demo",
            environment="development",
            version=1,
            expires=now_ms() + 10**9,
            max_age=3600,
            admission_lifetime=86400,
            development=True,
            steps=[{**blank, **it, "key": self.keys[it["name"]].public_key.pem} for it in steps_over(self.count)],
        )
        return sign_policy(body, self.owner)

    @cached_property
    def rules(self) -> Policy:
        return verify_policy(self.signed, self.owner.public_key)

    def statement(self, step: str, outputs: Mapping[str, str], **changes: Any) -> Statement:
        rule = self.rules.step(step)
        sources = {"policy": self.rules.digest, "preflight.nonce": sha256(NONCE.encode()), "external": sha256(b"raw")}
        now = now_ms()
        made = Statement(
            step=step,
            stage=rule.stage,
            kind="transform",
            nonce=NONCE,
            started=now - 2000,
            finished=now - 1000,
            inputs={name: sources[source] for name, source in rule.inputs.items()},
            outputs=outputs,
            parameters=rule.parameters,
            figures={"rows": 1},
            environment=ENVIRONMENT,
        )
        return made.replace(**changes)

    def sign(self, statement: Statement) -> bytes:
        return self.line(statement, self.keys[statement.step.partition("#")[0]])

    @cached_property
    def preflight(self) -> bytes:
        return self.sign(self.statement("preflight", {"nonce": sha256(NONCE.encode())}))

    def shards(self, folder: Path, tables: Sequence[pa.Table], **changes: Any) -> list[Path]:
        """Seal a data set for each table, as shards of `mask_pii` would, each with its bundle of evidence beside it."""
        made = []
        for index, table in enumerate(tables):
            path = folder / f"shard-{index}"
            digest = resting.seal(path, table, SPEC)
            statement = self.statement(f"mask_pii#{index}/{self.count}", {"dataset": digest}, **changes)
            evidence_of(path).write_bytes(join_bundle([self.preflight, self.sign(statement)]))
            made.append(path)
        return made


def evidence_of(path: Path) -> Path:
    return path.with_suffix(".evidence")
