"""The robustness gate under a tabular threat: a real forest of scikit-learn, judged behind the lock and signed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from foreign import START, ForeignPipeline
from onnx_files import HELD, HIGH, answers, onnx_bytes
from sklearn.datasets import load_breast_cancer

from portcullis.attestation.stage import start_chain
from portcullis.cli.main import cli
from portcullis.dataset import DatasetSpec, Features, Label, write_dataset
from portcullis.digest import canonical_json, tree_digest
from portcullis.errors import ConfigError, GateFailedError, GateInconclusiveError, InconclusiveError, PolicyError
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import enforce
from portcullis.models.store import LoadedModel, save_model
from portcullis.robustness import isolated, stage
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.settings import RobustnessSettings
from portcullis.supply_chain.onnx_trees import convert_trees, read_trees
from portcullis.supply_chain.stage import convert_model

NAMES = tuple(name.replace(" ", "_") for name in load_breast_cancer().feature_names)
SPEC = DatasetSpec("cells", Label("kind", ("malignant", "benign")), Features(NAMES, (30,), 0, HIGH))
CHECKS = {"robust_accuracy": {"min": 0.8, "max": 1}, "clean_accuracy": {"min": 0.9, "max": 1}}


def held_out() -> tuple[np.ndarray, np.ndarray]:
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[: HELD["cancer"]]
    return features[order].astype(np.float32), labels[order]


def plan(deviations: float, count: int, **changes: object) -> RobustnessSettings:
    """Return a plan in which the first features may move by so many standard deviations."""
    spread = held_out()[0].std(axis=0).astype(float)
    mutable = {name: {"epsilon": deviations * spread[place]} for place, name in enumerate(NAMES[:count])}
    given = {"threat": canonical_json({"mutable": mutable}).decode(), "queries": 150, **changes}
    return RobustnessSettings(**given)


PLANS = {
    "small": plan(0.05, 10),
    "large": plan(1.0, 30),
    "few": plan(0.05, 10, n_min=151),
    "impossible": RobustnessSettings(
        threat=json.dumps({"mutable": {"mean_radius": {"epsilon": 1, "low": 0, "high": 5}}}), queries=150
    ),
    "elsewhere": RobustnessSettings(threat='{"mutable": {"nose": {"epsilon": 1}}}'),
}


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `model`, the forest, and `test`, rows that it has not seen."""
    root = tmp_path_factory.mktemp("forest")
    module, spec = convert_trees(
        read_trees(onnx_bytes("cancer-forest")), shape=(30,), low=0, high=HIGH, labels=SPEC.label.classes
    )
    save_model(root / "model", module, spec)
    features, labels = held_out()
    assert np.array_equal(features, answers("cancer-forest")["rows"][: HELD["cancer"]])
    columns = {name: features[:, place] for place, name in enumerate(NAMES)}
    write_dataset(root / "test", pa.table(columns | {"kind": np.take(SPEC.label.classes, labels)}), SPEC)
    return root


class Gate:
    """A pipeline of one gate for each plan."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, forest: Path) -> None:
        self.forest, self.root = forest, root
        gates = [
            {
                "name": name,
                "stage": "robustness_gate",
                "kind": "gate",
                "inputs": {"model": f"{START['name']}.artifact", "test": "external"},
                "outputs": ["model"],
                "parameters": dataclasses.asdict(it),
                "checks": CHECKS,
            }
            for name, it in PLANS.items()
        ]
        self.spec = {**json.loads((forest / "model" / "model.json").read_bytes()), "options": {}}
        convert = {
            "name": "convert",
            "stage": "convert_model",
            "inputs": {"checkpoint": f"{START['name']}.artifact"},
            "outputs": ["model"],
            "parameters": {"key": "", "spec": self.spec},
        }
        chained = {**gates[0], "name": "chained", "inputs": {"model": "convert.model", "test": "external"}}
        ForeignPipeline(root, monkeypatch, *gates, convert, chained)
        start_chain(step=START["name"], artifact=forest / "model", bundle=root / "first")

    def judge(self, name: str, settings: RobustnessSettings | None = None) -> Statement:
        return stage.evaluate_robustness(
            step=name,
            model=self.forest / "model",
            test=self.forest / "test",
            evidence=self.root / "first",
            settings=settings or PLANS[name],
            report=self.root / "report.html",
            bundle=self.root / "judged",
        )

    def enforce(self, name: str) -> None:
        subject = tree_digest(self.forest / "model")
        enforce(name, subject=subject, evidence=self.root / "judged", passed=self.root / "passed")


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forest: Path) -> Gate:
    return Gate(tmp_path, monkeypatch, forest)


def test_a_forest_passes_under_a_small_threat(gate: Gate) -> None:
    statement = gate.judge("small")
    figures = statement.figures
    assert (statement.verdict, figures["features"], figures["samples"]) == ("PASSED", 10, 150), statement.reason
    assert 0.8 < figures["robust_accuracy"] <= figures["clean_accuracy"] and figures["planted_found"] >= 0.9
    assert statement.parameters["threat"] == PLANS["small"].threat
    shown = (gate.root / "report.html").read_text()
    assert (
        "mean_radius" in shown and "What may change in a row" in shown and "worst_area" not in shown.split("threat")[0]
    )
    gate.enforce("small")


def test_from_the_onnx_file_to_the_verdict_in_one_chain(gate: Gate) -> None:
    """Evidence begins with the file that skl2onnx wrote."""
    root, source = gate.root, gate.root / "forest.onnx"
    source.write_bytes(onnx_bytes("cancer-forest"))
    start_chain(step=START["name"], artifact=source, bundle=root / "first")
    convert_model(
        step="convert",
        checkpoint=source,
        evidence=root / "first",
        key="",
        spec=gate.spec,
        model=root / "model",
        bundle=root / "converted",
    )
    assert tree_digest(root / "model") == tree_digest(gate.forest / "model"), "as it was converted without a pipeline"
    statement = stage.evaluate_robustness(
        step="chained",
        model=root / "model",
        test=gate.forest / "test",
        evidence=root / "converted",
        settings=PLANS["small"],
        report=root / "report.html",
        bundle=root / "judged",
    )
    assert statement.verdict == "PASSED", statement.reason
    enforce("chained", subject=tree_digest(root / "model"), evidence=root / "judged", passed=root / "passed")


def test_a_forest_fails_under_a_large_one(gate: Gate) -> None:
    statement = gate.judge("large")
    assert statement.verdict == "FAILED" and "robust_accuracy" in statement.reason
    assert statement.figures["robust_accuracy"] < 0.5 < 0.9 < statement.figures["clean_accuracy"]
    with pytest.raises(GateFailedError):
        gate.enforce("large")


@pytest.mark.parametrize(
    ("name", "reason"), [("few", "fewer than the 151"), ("impossible", "impossible by the threat's own bounds")]
)
def test_what_cannot_be_judged_is_inconclusive(gate: Gate, name: str, reason: str) -> None:
    statement = gate.judge(name)
    assert (
        statement.verdict == "FAILED" and statement.reason.startswith("inconclusive: ") and reason in statement.reason
    )
    assert not statement.figures
    with pytest.raises(GateInconclusiveError):
        gate.enforce(name)


def test_a_threat_to_columns_that_are_not_there_is_no_judgement(gate: Gate) -> None:
    with pytest.raises(ConfigError, match="no feature 'nose'"):
        gate.judge("elsewhere")
    assert not (gate.root / "judged").exists()


def test_another_threat_than_the_policys_is_refused(gate: Gate) -> None:
    for other in (plan(0.01, 1), RobustnessSettings(), dataclasses.replace(PLANS["small"], queries=100)):
        with pytest.raises(PolicyError, match="differ from the policy"):
            gate.judge("small", other)
    assert not (gate.root / "judged").exists()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="nothing"),
        pytest.param({"figures": {}}, id="another form"),
        pytest.param({"robust_accuracy": 1.0}, id="too little"),
        pytest.param(
            {"samples": 150, "classes": 2, "features": 30, "groups": 0, "clean_accuracy": 1.0, "robust_accuracy": 1.0,
             "planted_found": 1.0, "noise_found": 0, "queries": 30_000}, id="of another threat",
        ),
    ],
)  # fmt: skip
def test_a_hostile_answer_of_the_locked_process_is_inconclusive(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(isolated, "run_isolated", lambda *_, **__: answer)
    statement = gate.judge("small")
    assert (statement.verdict, dict(statement.figures)) == ("FAILED", {})
    assert statement.reason.startswith("inconclusive: the attacked model's process gave no sound answer")


def test_a_forest_has_no_gradients_to_be_judged_by(forest: Path) -> None:
    module, spec = convert_trees(
        read_trees(onnx_bytes("cancer-forest")), shape=(30,), low=0, high=HIGH, labels=SPEC.label.classes
    )
    few = RobustnessSettings(cw_steps=10, deepfool_steps=5, ddn_steps=10, apgd_steps=10, apgd_targets=0)
    with pytest.raises(InconclusiveError):
        evaluate(LoadedModel(spec, module), *held_out(), few)


def test_the_verb_attacks_a_forest(forest: Path, tmp_path: Path) -> None:
    threat = tmp_path / "threat.yaml"
    threat.write_text(
        "mutable: {mean_radius: {epsilon: 3, low: 0, high: 40}, worst_area: {epsilon: 400, direction: up}}"
    )
    common = ["attack", "--model", str(forest / "model"), "--data", str(forest / "test"), "--threat", str(threat)]
    result = CliRunner().invoke(cli, [*common, "--json", "--report", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["features"] == 2 and 0.5 < figures["robust_accuracy"] <= figures["clean_accuracy"]
    assert "worst_area" in (tmp_path / "report.html").read_text()
