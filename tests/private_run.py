"""A small pipeline that spends privacy: source, dp_noise, a model made of the result, and the budget gate."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import resting
from chains import World

from portcullis.budget.stage import evaluate_budget
from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.digest import path_digest, sha256
from portcullis.evidence.chain import join_bundle, split_bundle
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import begin, enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.ledger.entries import Entry, read_entries
from portcullis.ledger.settings import LedgerSettings
from portcullis.preflight.stage import preflight
from portcullis.privacy.settings import NoisePlan
from portcullis.privacy.stage import dp_noise
from portcullis.privacy.trial import BOUNDS

AGE = {"age": {"low": 18, "high": 90, "epsilon": 1, "steps": 73}}
SPEC = DatasetSpec("customers", Label("label", ("0", "1")), Features(("p0", "p1"), (2,), 0, 16), {})
NAMES = ("PORTCULLIS_TRUST", "PORTCULLIS_KEYS", "PORTCULLIS_LEDGERS", "PORTCULLIS_STATE")


def rows(count: int = 60) -> Dataset:
    columns = {
        "age": 18 + np.arange(count) % 73,
        "share": np.arange(count) / count,
        "debt": 1_000_003 * np.arange(count),
        "city": [("Paris", "Rome", "Oslo")[row % 3] for row in range(count)],
        "p0": np.arange(count) % 17,
        "p1": np.arange(count) % 17 / 2,
        "label": ["01"[row % 2] for row in range(count)],
    }
    return Dataset(pa.table(columns), SPEC)


@dataclass
class PrivateRun:
    """Keys, a signed policy and a folder; each `run` is a run of its own under them.

    Attributes:
        root: Where everything lies.
        ledger: The budget.
        charging: The steps that the policy says charge.
        columns: What gets noise.
    """

    root: Path
    ledger: LedgerSettings = field(default_factory=lambda: LedgerSettings("customers", 2.5))
    charging: tuple[str, ...] = ("dp_noise",)
    columns: dict = field(default_factory=lambda: AGE)
    world: World = field(default_factory=World)

    @property
    def plan(self) -> dict:
        """What the step is told, beside its ledger."""
        others = {"features": "keep", "label": "keep"}
        others |= dict.fromkeys(sorted({"age", "share", "debt", "city"} - set(self.columns)), "keep")
        rest = {"others": others, "rows": "keep"} if self.columns else {}
        return NoisePlan.parse({"columns": self.columns, "budget": 2.0, **rest}).to_dict()

    def __post_init__(self) -> None:
        named = self.ledger.to_dict() if self.columns else {}
        noise = {**self.plan, "ledger": named}
        # As `portcullis_pipelines.steps` derives them.
        charges = len(self.charging)
        checks = {"charges": {"min": charges, "max": charges}, "unmatched": {"min": 0, "max": 0}}
        if self.charging:
            checks["epsilon_total"] = {"min": 0, "max": self.ledger.epsilon}
        gate = {"ledger": named if self.charging else {}, "charging": list(self.charging)}
        steps = [
            _step("preflight", {"policy": "policy"}, "nonce"),
            _step("source", {"nonce": "preflight.nonce", "raw": "external"}, "dataset"),
            _step(
                *("dp_noise", {"dataset": "source.dataset"}, "dataset"),
                parameters=noise,
                checks={name: dict(bounds) for name, bounds in BOUNDS.items()} if self.columns else {},
            ),
            _step("train", {"dataset": "dp_noise.dataset"}, "model"),
            _step(
                *("budget", {"model": "train.model"}, "model"),
                stage="budget_gate",
                kind="gate",
                parameters=gate,
                checks=checks,
            ),
        ]
        for step in steps:
            self.world.keys.setdefault(step["name"], Signer.generate())
        keyed = [{**step, "key": self.world.keys[step["name"]].public_key.pem} for step in steps]
        write_trust_store(
            self.root / "trust",
            owner=self.world.owner.public_key,
            name="demo",
            environment="development",
            policy=self.world.policy_bytes(steps=keyed, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(self.world.owner),
        )
        resting.write_keys(self.root / "keys")
        for step, signer in self.world.keys.items():
            write_bytes(self.root / "keys" / f"{step}.pem", signer.private_pem(), mode=0o600)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Set what a step of this run would see."""
        places = {"TRUST": "trust", "KEYS": "keys", "LEDGERS": "ledgers", "STATE": "state"}
        before = {name: os.environ.get(name) for name in NAMES}
        for name, place in places.items():
            os.environ[f"PORTCULLIS_{name}"] = f"{'file:' if name == 'KEYS' else ''}{self.root / place}"
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def start(self) -> None:
        """Begin a run: source."""
        for name in ("data", "noised", "model", "first", "evidence"):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with self.environment():
            nonce = preflight(step="preflight", bundle=self.root / "first")
            begun = begin(
                "source",
                stage="source",
                inputs={"nonce": sha256(nonce.encode()), "raw": sha256(b"")},
                parameters={},
                evidence=[self.root / "first"],
            )
            digest = resting.seal(self.root / "data", rows().table, SPEC)
            begun.finish(bundle=self.root / "source_evidence", outputs={"dataset": digest}, figures={})

    def noise(self) -> Statement:
        with self.environment():
            return dp_noise(
                step="dp_noise",
                dataset=self.root / "data",
                evidence=self.root / "source_evidence",
                plan=self.plan,
                ledger=self.ledger.to_dict() if self.columns else {},
                noised=self.root / "noised",
                report=self.root / "noise.html",
                bundle=self.root / "evidence",
            )

    def train(self) -> None:
        """Make something of the noisy data, as any training step would."""
        with self.environment():
            begun = begin(
                "train",
                stage="train",
                inputs={"dataset": resting.content(self.root / "noised")},
                parameters={},
                evidence=[self.root / "evidence"],
            )
            write_bytes(self.root / "model" / "weights", b"weights")
            begun.finish(bundle=self.root / "evidence", outputs={"model": path_digest(self.root / "model")}, figures={})

    def judge(self) -> Statement:
        with self.environment():
            return evaluate_budget(
                step="budget",
                model=self.root / "model",
                evidence=self.root / "evidence",
                ledger=self.ledger.to_dict() if self.charging else {},
                charging=list(self.charging),
                report=self.root / "report.html",
                bundle=self.root / "verdict",
            )

    def enforce(self) -> None:
        with self.environment():
            enforce(
                "budget",
                subject=path_digest(self.root / "model"),
                evidence=self.root / "verdict",
                passed=self.root / "passed",
            )

    def run(self) -> Statement:
        """Run all of it; returns the gate's statement."""
        self.start()
        self.noise()
        self.train()
        return self.judge()

    def entries(self) -> tuple[Entry, ...]:
        path = self.root / "ledgers" / "customers.jsonl"
        return read_entries(path.read_bytes() if path.exists() else b"", "customers")

    def forge(self, step: str, change: Callable[[Statement], Statement]) -> None:
        """Put a changed statement, signed by the step's own key, in the place of the step's own."""
        path = self.root / "evidence"
        lines = []
        for line in split_bundle(path.read_bytes()):
            statement = Statement.parse(Envelope.parse(line).payload)
            if statement.step == step:
                line = seal_payload(change(statement).encode(), self.world.keys[step]).encode()
            lines.append(line)
        path.write_bytes(join_bundle(lines))


def _step(name: str, inputs: dict, *outputs: str, stage: str = "", **others: object) -> dict:
    blank = {"kind": "transform", "parameters": {}, "requires": [], "checks": {}}
    return {**blank, "name": name, "stage": stage or name, "inputs": inputs, "outputs": list(outputs), **others}
