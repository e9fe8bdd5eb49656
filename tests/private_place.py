"""A small world in which a model is trained privately and its gates judge it, without the rest of the pipeline."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import resting
from chains import World

from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.digest import sha256
from portcullis.dp_training.settings import PrivateSettings
from portcullis.dp_training.stage import train_privately
from portcullis.evidence.step import begin
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.ledger.entries import read_entries
from portcullis.ledger.settings import LedgerSettings
from portcullis.preflight.stage import preflight

COLUMNS = tuple(f"p{index}" for index in range(16))
SPEC = DatasetSpec(
    name="customers", label=Label("label", ("dark", "bright")), features=Features(COLUMNS, (1, 4, 4), 0, 16)
)
OPTIONS = {"width": 4, "hidden": 32, "tanh": 1}
SETTINGS = PrivateSettings(
    target_epsilon=1.0, delta=1e-4, epochs=4, batch_size=100, max_grad_norm=0.1, device="cpu", attack_epsilon=0.0
)
LEDGER = LedgerSettings("customers", epsilon=1.2, delta=1e-4).to_dict()
MODEL = {"architecture": "digits-cnn", "options": OPTIONS, **dataclasses.asdict(SETTINGS)}


def images(count: int = 300, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return images that are dark or bright in their upper half, and which."""
    generator = np.random.default_rng(seed)
    features = generator.uniform(0, 16, (count, 16)).astype(np.float32)
    labels = generator.integers(0, 2, count)
    features[:, :8] = np.where(labels[:, None] == 1, generator.uniform(11, 16, (count, 8)), features[:, :8] * 5 / 16)
    return features, labels


def dataset(count: int = 300, seed: int = 7) -> Dataset:
    features, labels = images(count, seed)
    columns: dict[str, Any] = {name: features[:, index].astype(np.float64) for index, name in enumerate(COLUMNS)}
    columns["label"] = ["bright" if label else "dark" for label in labels]
    return Dataset(table=pa.table(columns), spec=SPEC)


@dataclasses.dataclass
class Place:
    """Keys, a policy, and rows that the evidence is about."""

    root: Path
    gates: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        steps: list[dict[str, Any]] = [
            {"name": "preflight", "stage": "preflight", "inputs": {"policy": "policy"}, "outputs": ["nonce"]},
            {
                "name": "source",
                "stage": "source",
                "inputs": {"nonce": "preflight.nonce", "raw": "external"},
                "outputs": ["train", "test"],
            },
            {
                "name": "train",
                "stage": "dp_train",
                "inputs": {"dataset": "source.train"},
                "outputs": ["model"],
                "parameters": {**MODEL, "ledger": LEDGER},
            },
            *self.gates,
        ]
        world = World()
        world.keys |= {step["name"]: Signer.generate() for step in steps}
        blank = {"kind": "transform", "parameters": {}, "requires": [], "checks": {}}
        keyed = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in steps]
        write_trust_store(
            self.root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=keyed, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        resting.write_keys(self.root / "keys")
        for step, signer in world.keys.items():
            write_bytes(self.root / "keys" / f"{step}.pem", signer.private_pem(), mode=0o600)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PORTCULLIS_TRUST": str(self.root / "trust"),
            "PORTCULLIS_KEYS": f"file:{self.root / 'keys'}",
            "PORTCULLIS_LEDGERS": str(self.root / "ledgers"),
        }

    @property
    def out(self) -> Path:
        return self.root / "out"

    def furnish(self, train: Dataset | None = None, test: Dataset | None = None) -> None:
        """Begin a run on these rows."""
        shutil.rmtree(self.out, ignore_errors=True)
        nonce = preflight(step="preflight", bundle=self.root / "first")
        begun = begin(
            "source",
            stage="source",
            inputs={"nonce": sha256(nonce.encode()), "raw": sha256(b"")},
            parameters={},
            evidence=[self.root / "first"],
        )
        outputs = {}
        for name, data in (("train", train or dataset()), ("test", test or dataset(seed=8))):
            shutil.rmtree(self.root / name, ignore_errors=True)
            outputs[name] = resting.seal(self.root / name, data.table, data.spec)
        begun.finish(bundle=self.root / "evidence", outputs=outputs, figures={})

    def train(self, **changes: Any):
        given = {
            "step": "train",
            "dataset": self.root / "train",
            "evidence": self.root / "evidence",
            "architecture": "digits-cnn",
            "options": OPTIONS,
            "ledger": LEDGER,
            "settings": SETTINGS,
            "model": self.out / "model",
            "bundle": self.out / "evidence",
        }
        return train_privately(**given | changes)

    def charged(self):
        """The entries of the ledger."""
        path = self.root / "ledgers" / "customers.jsonl"
        return read_entries(path.read_bytes() if path.exists() else b"", "customers")

    def written(self) -> list[str]:
        return sorted(path.name for path in self.out.glob("*"))
