"""`model_scan_gate` and `convert_model` as steps: what they sign, and what they refuse."""

import io
import json
import stat
from functools import partial
from pathlib import Path

import hostile_models as hostile
import numpy as np
import pytest
from chains import World
from kfp import dsl

from portcullis.attestation.stage import start_chain
from portcullis.cli.main import _guarded, cli
from portcullis.digest import path_digest, tree_digest
from portcullis.errors import (
    DataError,
    EvidenceError,
    GateFailedError,
    GateInconclusiveError,
    MissingDependencyError,
    ModelError,
    PolicyError,
    UsageError,
)
from portcullis.evidence.step import enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.models.store import ModelSpec, build_module, load_model
from portcullis.supply_chain import stage
from portcullis.supply_chain.component import convert_model as convert_component
from portcullis.supply_chain.component import scan_model as scan_component

SPEC = ModelSpec("digits-cnn", {"width": 4}, (1, 8, 8), 0, 16, ("0", "1"))
DOCUMENT = json.loads(SPEC.to_json())
STEPS = [
    {
        "name": "start",
        "stage": "start_chain",
        "kind": "transform",
        "inputs": {"policy": "policy", "artifact": "external"},
        "outputs": ["artifact"],
    },
    {
        "name": "model_scan",
        "stage": "model_scan_gate",
        "kind": "gate",
        "inputs": {"model": "start.artifact"},
        "outputs": ["model"],
        "parameters": {"voices": []},
        "checks": {"refused_files": {"min": 0, "max": 0}, "objections": {"min": 0, "max": 0}, "files": {"min": 1}},
    },
    {
        "name": "convert",
        "stage": "convert_model",
        "kind": "transform",
        "inputs": {"checkpoint": "start.artifact"},
        "outputs": ["model"],
        "parameters": {"key": "model", "spec": DOCUMENT},
        "requires": ["model_scan"],
    },
]


class Place:
    """A model from outside, evidence that a chain began with it, and the two steps under a policy of their own."""

    def __init__(self, root: Path, voices: list[str]) -> None:
        self.root = root
        world = World()
        world.keys |= {step["name"]: Signer.generate() for step in STEPS}
        blank = {"parameters": {}, "requires": [], "checks": {}}
        keyed = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in STEPS]
        keyed[1]["parameters"] = {"voices": voices}
        write_trust_store(
            root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=keyed, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        for step in STEPS:
            write_bytes(root / "keys" / f"{step['name']}.pem", world.keys[step["name"]].private_pem(), mode=0o600)
        (root / "out").mkdir()

    @property
    def model(self) -> Path:
        return self.root / "model"

    def furnish(self, data: bytes) -> None:
        self.model.write_bytes(data)
        start_chain(step="start", artifact=self.model, bundle=self.root / "evidence")

    def scan(self, **changes):
        given = {"voices": [], "model": self.model, "evidence": self.root / "evidence"} | changes
        out = self.root / "out"
        return stage.scan_model_files(step="model_scan", report=out / "report", bundle=out / "bundle", **given)

    def enforce(self) -> None:
        out = self.root / "out"
        enforce("model_scan", subject=path_digest(self.model), evidence=out / "bundle", passed=out / "passed")

    def convert(self, **changes):
        out = self.root / "out"
        given = {"checkpoint": self.model, "evidence": out / "passed", "key": "model", "spec": DOCUMENT} | changes
        return stage.convert_model(step="convert", model=out / "model", bundle=out / "converted", **given)

    def written(self) -> list[str]:
        return sorted(path.name for path in (self.root / "out").iterdir())


@pytest.fixture
def place(tmp_path, monkeypatch, request) -> Place:
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    return Place(tmp_path, getattr(request, "param", []))


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    stream = io.BytesIO()
    torch.save({"model": build_module(SPEC).state_dict(), "epoch": 3}, stream)
    return stream.getvalue()


def test_a_file_of_tensors_passes_and_is_handed_on(place):
    place.furnish(hostile.SAFETENSORS)
    statement = place.scan()
    assert (statement.verdict, statement.reason) == ("PASSED", "")
    assert statement.figures == {"files": 1, "refused_files": 0, "tensors": 1, "elements": 6, "objections": 0}
    place.enforce()
    assert place.written() == ["bundle", "passed", "report"]
    assert "safetensors" in (place.root / "out" / "report").read_text()


def test_a_hostile_file_is_failed_and_named(place):
    place.furnish(hostile.archive(hostile.call("os system")))
    statement = place.scan()
    assert statement.verdict == "FAILED" and "refused_files = 1" in statement.reason
    assert "os.system" in (place.root / "out" / "report").read_text()
    with pytest.raises(GateFailedError):
        place.enforce()
    assert place.written() == ["bundle", "report"]


def test_a_parser_that_is_brought_down_is_inconclusive(place, monkeypatch):
    def brought_down(path):
        raise ModelError("an untrusted file brought its parser down (SIGSEGV)")

    monkeypatch.setattr(stage, "scan_model", brought_down)
    place.furnish(hostile.SAFETENSORS)
    assert place.scan().reason.startswith("inconclusive: ")
    with pytest.raises(GateInconclusiveError):
        place.enforce()


def test_a_model_that_was_swapped_is_refused(place):
    place.furnish(hostile.SAFETENSORS)
    place.model.write_bytes(hostile.GGUF)
    with pytest.raises(EvidenceError):
        place.scan()
    assert place.written() == []


def test_a_model_that_changes_while_it_is_judged_is_refused(place, monkeypatch):
    place.furnish(hostile.SAFETENSORS)
    judge = stage.scan_model

    def and_swap(path):
        scanned = judge(path)
        path.write_bytes(hostile.GGUF)
        return scanned

    monkeypatch.setattr(stage, "scan_model", and_swap)
    with pytest.raises(DataError, match="changed"):
        place.scan()
    assert place.written() == []


def test_a_scanner_that_the_policy_does_not_ask_is_not_left_out(place):
    place.furnish(hostile.SAFETENSORS)
    with pytest.raises(PolicyError):
        place.scan(voices=["picklescan"])


def install(folder: Path, name: str, code: int, monkeypatch) -> None:
    """Put a scanner on the path that only has an opinion."""
    command = folder / name
    command.write_text(f'#!/bin/sh\n[ -z "$PORTCULLIS_KEYS" ] && [ -e "$2" ] && exit {code}\nexit 99\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("place", [["picklescan"]], indirect=True)
@pytest.mark.parametrize(("code", "verdict"), [(0, "PASSED"), (1, "FAILED"), (2, "FAILED"), (77, "FAILED")])
def test_another_scanner_can_only_refuse(place, tmp_path, monkeypatch, code, verdict):
    (tmp_path / "bin").mkdir()
    install(tmp_path / "bin", "picklescan", code, monkeypatch)
    place.furnish(hostile.SAFETENSORS)
    statement = place.scan(voices=["picklescan"])
    assert (statement.verdict, statement.figures["objections"]) == (verdict, int(code != 0))
    place.model.write_bytes(hostile.archive(hostile.call("os system")))
    start_chain(step="start", artifact=place.model, bundle=place.root / "evidence")
    assert place.scan(voices=["picklescan"]).verdict == "FAILED"


@pytest.mark.parametrize("place", [["modelscan"]], indirect=True)
def test_a_scanner_that_is_missing_refuses(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    place.furnish(hostile.SAFETENSORS)
    with pytest.raises(MissingDependencyError, match="pipx install modelscan"):
        place.scan(voices=["modelscan"])
    assert place.written() == []


@pytest.mark.parametrize("place", [["clamscan"]], indirect=True)
def test_a_scanner_that_nobody_knows_refuses(place):
    place.furnish(hostile.SAFETENSORS)
    with pytest.raises(UsageError, match="clamscan"):
        place.scan(voices=["clamscan"])
    assert place.written() == []


def test_a_checkpoint_becomes_a_model(place, checkpoint):
    place.furnish(checkpoint)
    place.scan()
    place.enforce()
    statement = place.convert()
    assert statement.outputs == {"model": tree_digest(place.root / "out" / "model")}
    assert load_model(place.root / "out" / "model").spec == SPEC


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda torch, state: state, "key"),  # no state dictionary at `model`
        (lambda torch, state: {"model": {**state, "more": torch.ones(1)}}, "exactly the architecture's tensors"),
        (lambda torch, state: {"model": {name: it * float("nan") for name, it in state.items()}}, "NaN"),
        (lambda torch, state: {"model": {**state, "note": "x"}}, "key"),
        (lambda torch, state: {"model": {name: it.double() for name, it in state.items()}}, "F64"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(place, edit, message):
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save(edit(torch, dict(build_module(SPEC).state_dict())), stream)
    place.furnish(stream.getvalue())
    place.scan()
    place.enforce()
    with pytest.raises(ModelError, match="name|" + message):
        place.convert()
    assert place.written() == ["bundle", "passed", "report"]


def test_a_hostile_checkpoint_is_not_converted_though_its_gate_were_bypassed(place):
    place.furnish(hostile.archive(hostile.call("os system")))
    place.scan()
    with pytest.raises(GateFailedError):
        place.convert(evidence=place.root / "out" / "bundle")
    with pytest.raises(ModelError, match=r"os\.system"):
        stage.convert_foreign(place.model)


PROGRAM = {
    "format": "portcullis-model/v1",
    "architecture": "exported-graph",
    "options": {},
    "input": {"shape": [1, 8, 8], "low": 0, "high": 16},
    "labels": list("0123456789"),
}


@pytest.fixture(scope="module")
def conversions():
    """What was converted, in a locked process, by what it was made of; other tests have a process of their own."""
    return {}


@pytest.fixture
def once(monkeypatch, conversions):
    """Let the steps and the command convert each file once; neither description nor labels change what comes of it."""
    real = stage.convert_foreign

    def convert(path, *, key="", rows=None):
        made = (path.read_bytes(), key)
        if made not in conversions:
            conversions[made] = real(path, key=key, rows=rows)
        return conversions[made]

    monkeypatch.setattr(stage, "convert_foreign", convert)
    monkeypatch.setattr("portcullis.supply_chain.convert.convert_foreign", convert)


def described_as(monkeypatch, place: Place, spec: dict) -> None:
    """Let the policy say that the step converts a program of this description."""
    steps = [*STEPS[:2], {**STEPS[2], "parameters": {"key": "", "spec": spec}, "requires": []}]
    monkeypatch.setitem(globals(), "STEPS", steps)
    (place.root / "program").mkdir()
    monkeypatch.setenv("PORTCULLIS_TRUST", str(place.root / "program" / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{place.root / 'program' / 'keys'}")
    place.root /= "program"
    place.__init__(place.root, [])


def test_a_program_becomes_a_model(place, monkeypatch):
    exported = pytest.importorskip("exported")
    described_as(monkeypatch, place, PROGRAM)
    place.furnish(exported.program("perceptron")[1])
    statement = place.convert(evidence=place.root / "evidence", key="", spec=PROGRAM)
    assert statement.outputs == {"model": tree_digest(place.root / "out" / "model")}
    assert statement.figures["tensors"] == 4
    model = load_model(place.root / "out" / "model")
    assert (model.spec.shape, model.spec.high, model.spec.labels) == ((1, 8, 8), 16, tuple("0123456789"))
    assert set(model.spec.options) == {"graph"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "digits-cnn"}, "exported-graph"),
        ({"options": {"graph": "{}"}}, "no options"),
        ({"input": {"shape": [64], "low": 0, "high": 16}}, r"\[1, 8, 8\]"),
        ({"labels": ["0", "1"]}, "10 logits; 2 labels"),
    ],
)
@pytest.mark.usefixtures("once")
def test_a_program_that_is_not_what_the_policy_says_is_refused(place, monkeypatch, change, message):
    exported = pytest.importorskip("exported")
    described_as(monkeypatch, place, PROGRAM | change)
    place.furnish(exported.program("perceptron")[1])
    with pytest.raises(ModelError, match=message):
        place.convert(evidence=place.root / "evidence", key="", spec=PROGRAM | change)
    assert place.written() == []


def test_the_components_call_the_stages(place, checkpoint):
    place.furnish(checkpoint)
    root = place.root / "kfp"
    root.mkdir()
    artifact = lambda kind, name, path: kind(name=name, uri=str(path))  # noqa: E731
    scan_component.python_func(
        model=artifact(dsl.Model, "model", place.model),
        evidence=artifact(dsl.Artifact, "evidence", place.root / "evidence"),
        voices=[],
        step="model_scan",
        verdict_evidence=artifact(dsl.Artifact, "verdict", place.root / "out" / "bundle"),
        report=artifact(dsl.HTML, "report", place.root / "out" / "report"),
        metrics=dsl.Metrics(name="metrics", uri=str(root / "metrics")),
    )
    place.enforce()
    metrics = dsl.Metrics(name="metrics", uri=str(root / "metrics"))
    returned = convert_component.python_func(
        checkpoint=artifact(dsl.Model, "checkpoint", place.model),
        evidence=artifact(dsl.Artifact, "evidence", place.root / "out" / "passed"),
        key="model",
        spec=DOCUMENT,
        model=artifact(dsl.Model, "model", place.root / "out" / "model"),
        model_evidence=artifact(dsl.Artifact, "evidence", place.root / "out" / "converted"),
        metrics=metrics,
        step="convert",
    )
    assert returned.digest == tree_digest(place.root / "out" / "model")
    assert metrics.metadata["tensors"] == len(build_module(SPEC).state_dict())


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = _guarded(partial(cli, list(arguments), prog_name="portcullis"))
        return code, *capsys.readouterr()

    return run


def test_the_command_scans(call, tmp_path):
    (tmp_path / "sound").write_bytes(hostile.SAFETENSORS)
    assert call("scan", "sound") == (0, "sound: safetensors, 1 tensors\n", "")
    (tmp_path / "hostile").write_bytes(hostile.archive(hostile.call("os system")))
    code, out, err = call("scan", "hostile")
    assert (code, err) == (1, "ModelError: 1 of 1 files refused\n") and "os.system" in out
    code, out, _ = call("scan", "hostile", "--json")
    assert code == 1 and json.loads(out)["files"][0]["refused"]
    assert call("scan", "missing")[0] == 1


def test_the_command_converts(call, tmp_path, checkpoint):
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    assert call("convert", "checkpoint.pt", "--output", "w.safetensors", "--key", "model")[0] == 0
    assert call("scan", "w.safetensors")[0] == 0
    code, _, err = call("convert", "checkpoint.pt", "--output", "x.safetensors")
    assert code == 1 and "name its key" in err and not (tmp_path / "x.safetensors").exists()


@pytest.mark.usefixtures("once")
def test_the_command_makes_a_model_of_a_program(call, tmp_path):
    exported = pytest.importorskip("exported")
    (tmp_path / "net.pt").write_bytes(exported.program("perceptron")[1])  # its content decides, not its name
    labels = ",".join("0123456789")
    code, out, err = call("convert", "net.pt", "--output", "model", "--labels", labels, "--high", "16")
    assert (code, err) == (0, "") and "exported-graph, inputs [1, 8, 8], 10 classes" in out
    model = load_model(tmp_path / "model")
    assert (model.spec.low, model.spec.high, model.spec.labels) == (0, 16, tuple("0123456789"))
    wanted = exported.network("perceptron")(model.preprocess(rows := np.full((3, 64), 8.0)))
    assert np.allclose(model.predict_logits(rows), wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert call("convert", "net.pt", "--output", "other")[0] == 2
    assert call("convert", "net.pt", "--output", "other", "--labels", labels, "--key", "model")[0] == 2
    code, _, err = call("convert", "net.pt", "--output", "other", "--labels", "0,1")
    assert code == 1 and "10 logits; 2 labels" in err and not (tmp_path / "other").exists()
    code, out, _ = call("scan", "net.pt")
    assert code == 1 and "portcullis convert" in out
    assert call("convert", "net.pt", "--output", "model", "--labels", labels, "--high", "16")[0] == 0  # once more
    (tmp_path / "mine").mkdir()
    for mine in (tmp_path / "mine" / "notes.txt", tmp_path / "model" / "notes.txt", tmp_path / "a-file"):
        mine.write_text("mine")
        taken = mine.parent.name if mine.name == "notes.txt" else mine.name
        code, _, err = call("convert", "net.pt", "--output", taken, "--labels", labels)
        assert (code, "is no model" in err, mine.read_text()) == (2, True, "mine")


@pytest.mark.usefixtures("once")
def test_the_command_takes_for_a_checkpoint_what_belongs_to_one(call, tmp_path, checkpoint):
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint)
    for more in (("--labels", "0,1"), ("--low", "0"), ("--high", "1")):
        assert call("convert", "checkpoint.pt", "--output", "w.safetensors", "--key", "model", *more)[0] == 2
    (tmp_path / "folder").mkdir()
    assert call("convert", "checkpoint.pt", "--output", "folder", "--key", "model")[0] == 2
    assert not (tmp_path / "w.safetensors").exists() and not list((tmp_path / "folder").iterdir())
