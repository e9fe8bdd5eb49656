"""Architectures whose code is the attacker's: the gates run them without keys, environment, files or network."""

import dataclasses
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import resting
import torch
from chains import World
from safetensors.torch import save

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.digest import sha256, tree_digest
from portcullis.equivalence.stage import evaluate_equivalence
from portcullis.errors import GateInconclusiveError
from portcullis.evidence.step import begin, enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.membership import stage as membership
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import ModelSpec
from portcullis.preflight.stage import preflight
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.stage import evaluate_robustness

COLUMNS = ("a", "b", "c", "d")
ROWS = DatasetSpec("squares", Label("label", ("dark", "bright")), Features(COLUMNS, (1, 2, 2), 0, 1))
PLAN = RobustnessSettings(pgd_steps=20, cw_steps=10, deepfool_steps=5, apgd_steps=10, apgd_targets=0)
TABLE = RobustnessSettings(threat="mutable: {a: {epsilon: 0.1}, b: {epsilon: 0.1}}", queries=100)
MEMBERSHIP = MembershipSettings(inversion_starts=2, inversion_steps=20)

# What a package of somebody else's offers as an architecture. Its options say what it does and when.
PACKAGE = """
import os, socket, struct, subprocess, sys
from pathlib import Path

import torch

KEYS = {keys!r}
GIVEN = ("LC_ALL", "PATH", "TORCHINDUCTOR_CACHE_DIR")  # the last by PyTorch itself


def outcome(attempt):
    try:
        return f"got {{attempt()}}"
    except OSError as error:
        return f"refused {{error.errno}}"


def attempts():
    return "; ".join(
        (
            "key " + outcome(lambda: Path(KEYS, "robustness.pem").read_text()[:40]),
            "folder " + outcome(lambda: os.listdir(KEYS)),
            "environment " + str(sorted(name for name in os.environ if name not in GIVEN)),
            "network " + outcome(lambda: socket.create_connection(("127.0.0.1", {port}))),
            "program " + outcome(lambda: subprocess.run(["/bin/true"])),
        )
    )


AT_IMPORT = attempts()


def answer(losses, text):
    # In the place of whoever asks: losses, and images of zeros.
    frame = sys._getframe()
    while "predicted" not in frame.f_locals:
        frame = frame.f_back
    asker = frame.f_locals
    count = len(asker["classes"]) * asker["settings"]["inversion_starts"]
    asker["lost"].write(struct.pack("<d", losses) * sum(asker["rows"]))
    asker["images"].write(bytes(4 * 4 * count))
    asker["predicted"].write(bytes(8 * count))
    os.write(1, text)
    os._exit(0)


class Net(torch.nn.Module):
    def __init__(self, input_shape, classes, *, when="never"):
        super().__init__()
        self.linear = torch.nn.Linear(4, classes)
        self.when = when
        if when == "import":
            raise RuntimeError(AT_IMPORT)
        if when == "construction":
            raise RuntimeError(attempts())

    def forward(self, inputs):
        if self.when == "use":
            raise RuntimeError(attempts())
        if self.when == "short" and len(inputs) > 20:
            raise MemoryError
        while self.when == "loop":
            pass
        if self.when == "hoard":
            bytearray(1 << 30)
        if self.when == "figures":
            os.write(1, b'{{"result": {{"auc_high": 0.5, "inversion_auc_high": 0.5, "inversion_reached": 1}}}}')
            os._exit(0)
        if self.when == "prose":
            answer(1.0, b"PASSED")
        if self.when == "nan":
            answer(float("nan"), b'{{"result": null}}')
        if self.when == "below":
            answer(-1.0, b'{{"result": null}}')
        return self.linear(inputs.flatten(1))
"""


def step(name: str, stage: str, kind: str, inputs: dict, outputs: list[str], **more: object) -> dict:
    known = {"parameters": {}, "requires": [], "checks": {}}
    return {**known, "name": name, "stage": stage, "kind": kind, "inputs": inputs, "outputs": outputs, **more}


STEPS = [
    step("preflight", "preflight", "transform", {"policy": "policy"}, ["nonce"]),
    step("source", "source", "transform", {"nonce": "preflight.nonce"}, ["model", "judged", "train", "test"]),
    step(
        "robustness",
        "robustness_gate",
        "gate",
        {"model": "source.model", "test": "source.test"},
        ["model"],
        parameters=dataclasses.asdict(PLAN),
        checks={"robust_accuracy": {"min": 0.1, "max": 1}},
    ),
    step(
        "table",
        "robustness_gate",
        "gate",
        {"model": "source.model", "test": "source.test"},
        ["model"],
        parameters=dataclasses.asdict(TABLE),
        checks={"robust_accuracy": {"min": 0.1, "max": 1}},
    ),
    step(
        "equivalence",
        "equivalence_gate",
        "gate",
        {"model": "source.model", "judged": "source.judged", "test": "source.test"},
        ["model"],
        checks={"agreement": {"min": 0.9, "max": 1}},
    ),
    step(
        "membership",
        "membership_gate",
        "gate",
        {"model": "source.model", "train": "source.train", "test": "source.test"},
        ["model"],
        parameters=dataclasses.asdict(MEMBERSHIP),
        checks={"auc_high": {"min": 0, "max": 0.65}, "inversion_reached": {"min": 0.9, "max": 1}},
    ),
]


class Place:
    """A model of a hostile architecture, attested rows, and gates whose keys lie within reach of a reader."""

    def __init__(self, root: Path) -> None:
        self.root = root
        world = World()
        world.keys |= {it["name"]: Signer.generate() for it in STEPS}
        steps = [{**it, "key": world.keys[it["name"]].public_key.pem} for it in STEPS]
        write_trust_store(
            root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=steps, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        resting.write_keys(root / "keys")
        for it in STEPS:
            write_bytes(root / "keys" / f"{it['name']}.pem", world.keys[it["name"]].private_pem(), mode=0o600)

    def offer(self, port: int) -> Path:
        """Install the package; return the folder to be on the path."""
        site = self.root / "site"
        write_bytes(site / "hostile_net" / "__init__.py", b"")
        write_bytes(
            site / "hostile_net" / "network.py",
            PACKAGE.format(keys=str(self.root / "keys"), port=port).encode(),
        )
        about = site / "hostile_net-1.0.dist-info"
        write_bytes(about / "METADATA", b"Metadata-Version: 2.1\nName: hostile-net\nVersion: 1.0\n")
        write_bytes(about / "entry_points.txt", b"[portcullis.architectures]\nhostile = hostile_net.network:Net\n")
        return site

    def furnish(self, when: str) -> None:
        spec = ModelSpec("hostile", {"when": when}, (1, 2, 2), 0, 1, ROWS.label.classes)
        weights = {"linear.weight": torch.tensor([[-1.0] * 4, [1.0] * 4]), "linear.bias": torch.tensor([2.0, -2.0])}
        for name in ("model", "judged"):
            write_bytes(self.root / name / "model.json", spec.to_json())
            write_bytes(self.root / name / "weights.safetensors", save(weights))
        for seed, name in enumerate(("test", "train")):
            features = np.random.default_rng(seed).uniform(0, 1, (120, 4)).astype(np.float32)
            columns = {column: features[:, index] for index, column in enumerate(COLUMNS)}
            labels = np.where(features.sum(axis=1) > 2, "bright", "dark")
            resting.seal(self.root / name, pa.table(columns | {"label": labels}), ROWS)
        nonce = preflight(step="preflight", bundle=self.root / "first")
        begun = begin(
            "source",
            stage="source",
            inputs={"nonce": sha256(nonce.encode())},
            parameters={},
            evidence=[self.root / "first"],
        )
        outputs = {name: tree_digest(self.root / name) for name in ("model", "judged")}
        outputs |= {name: resting.content(self.root / name) for name in ("train", "test")}
        begun.finish(bundle=self.root / "evidence", outputs=outputs, figures={})

    def judge(self, gate: str):
        out = self.root / "out"
        given = {name: self.root / name for name in ("model", "test", "evidence")}
        given |= {"step": gate, "report": out / "report.html", "bundle": out / "bundle"}
        if gate in ("robustness", "table"):
            return evaluate_robustness(settings=TABLE if gate == "table" else PLAN, **given)
        if gate == "membership":
            return membership.evaluate_membership(settings=MEMBERSHIP, train=self.root / "train", **given)
        return evaluate_equivalence(judged=self.root / "judged", **given)

    def require_refused(self, gate: str) -> None:
        with pytest.raises(GateInconclusiveError):
            enforce(
                gate,
                subject=tree_digest(self.root / "model"),
                evidence=self.root / "out" / "bundle",
                passed=self.root / "out" / "passed",
            )
        assert not (self.root / "out" / "passed").exists()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> Place:
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    here = Place(tmp_path)
    monkeypatch.syspath_prepend(here.offer(listener.getsockname()[1]))
    return here


@pytest.mark.parametrize(
    ("gate", "when"),
    [
        ("robustness", "import"),
        ("robustness", "use"),
        ("table", "use"),
        ("equivalence", "construction"),
        ("membership", "import"),
        ("membership", "construction"),
        ("membership", "use"),
    ],
)
def test_a_hostile_architecture_reaches_no_key_file_environment_network_or_program(place, listener, gate, when):
    place.furnish(when)
    statement = place.judge(gate)
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    refused = "key refused 1; folder refused 1; environment []; network refused 1; program refused 1"
    assert refused in statement.reason
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert not statement.figures
    place.require_refused(gate)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("loop", "within 6 seconds"),
        ("hoard", "could not be asked: MemoryError"),
        ("figures", "left 0 bytes of an answer of 1920"),
        ("prose", "no answer"),
        ("nan", "losses that cannot be"),
        ("below", "losses that cannot be"),
    ],
)
def test_a_hostile_architecture_answers_in_the_place_of_the_attack_or_never(place, monkeypatch, when, reason):
    place.furnish(when)
    if when == "loop":
        monkeypatch.setattr(membership, "SECONDS", 6.0)
    if when == "hoard":
        monkeypatch.setattr(membership, "MEMORY", 1 << 29)
    statement = place.judge("membership")
    assert statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ")
    assert reason in statement.reason and not statement.figures
    place.require_refused("membership")


def test_somebody_elses_honest_architecture_is_judged_from_memory(place):
    place.furnish("never")
    statement = place.judge("table")
    assert (statement.verdict, statement.figures["features"], statement.figures["groups"]) == ("PASSED", 2, 0)
    assert 0.5 < statement.figures["robust_accuracy"] < statement.figures["clean_accuracy"] == 1
    statement = place.judge("equivalence")
    assert (statement.verdict, statement.figures["accuracy"], statement.figures["samples"]) == ("PASSED", 1, 120)
    statement = place.judge("membership")
    assert (statement.verdict, statement.figures["members"], statement.figures["others"]) == ("PASSED", 120, 120)
    assert (statement.figures["inversion_classes"], statement.figures["inversion_reached"]) == (2, 1)


def test_where_memory_is_short_the_gate_holds_fewer_rows_at_a_time(place):
    """And all that this takes was imported before the lock."""
    place.furnish("short")
    statement = place.judge("robustness")
    assert (statement.verdict, statement.figures["clean_accuracy"]) == ("PASSED", 1), statement.reason
