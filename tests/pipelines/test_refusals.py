"""Refusals through the real command: `portcullis run` in a process of its own."""

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pyarrow.csv as pa_csv
import pytest

from benchmarks.poisons import poisoned
from portcullis.dataset import Dataset
from portcullis.ingest.readers import read_source
from portcullis_pipelines.config import ReferenceConfig

pytestmark = pytest.mark.slow


def portcullis(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "portcullis.cli", *map(str, arguments)],
        env={**os.environ, "PORTCULLIS_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def configuration(path: Path, **sections: object) -> Path:
    """Write the reference data's configuration with some sections of one's own (JSON is YAML)."""
    spec = resources.files("portcullis.ingest").joinpath("cheque-digits.yaml").read_text("utf-8")
    indented = "".join(f"  {line}\n" for line in spec.splitlines())
    path.write_text(f"dataset:\n{indented}" + "".join(f"{name}: {json.dumps(it)}\n" for name, it in sections.items()))
    return path


def nothing_deployable(output: Path) -> dict:
    assert {path.name for path in output.iterdir()} == {"audit", "report.html", "run.json", "evidence.intoto.jsonl"}
    facts = json.loads((output / "run.json").read_text())
    assert facts["status"] == "REFUSED"
    return facts


def test_plain_training_is_refused_by_the_robustness_gate(tmp_path):
    config = configuration(tmp_path / "plain.yaml", training={"method": "plain", "epochs": 20})
    done = portcullis(tmp_path / "home", "run", "--config", config, "--output", tmp_path / "out")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "robustness:trained" in last
    assert "robust_accuracy" in last
    facts = nothing_deployable(tmp_path / "out")
    gate = next(step for step in facts["steps"] if step["step"] == "robustness:trained")
    assert gate["status"] == "FAILED"
    assert gate["figures"]["robust_accuracy"] < 0.75 < gate["figures"]["clean_accuracy"]
    assert "FAILED" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("kind", "figure"),
    [("labels flipped at random", "label_issues"), ("trigger, a pattern blended in at 20 %", "cluster_suspects")],
)
def test_poisoned_data_are_refused_before_they_are_split(tmp_path, kind, figure):
    config = configuration(tmp_path / "own.yaml")
    source = read_source("builtin:cheque-digits", ReferenceConfig.load(None).dataset)
    table = poisoned(Dataset(source.table, source.spec), kind, 0.05, seed=1).table
    pa_csv.write_csv(table, tmp_path / "rows.csv")
    command = ("run", "--data", tmp_path / "rows.csv", "--config", config, "--output", tmp_path / "out")
    done = portcullis(tmp_path / "home", *command)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("GateFailedError: step 'data_quality'") and figure in last
    facts = nothing_deployable(tmp_path / "out")
    assert [step["step"] for step in facts["steps"]][-1] == "data_quality"
    assert facts["steps"][-1]["status"] == "FAILED"


def test_too_few_rows_to_tell_poison_are_refused(tmp_path):
    config = configuration(tmp_path / "own.yaml")
    source = read_source("builtin:cheque-digits", ReferenceConfig.load(None).dataset)
    pa_csv.write_csv(source.table.slice(0, 250), tmp_path / "rows.csv")
    command = ("run", "--data", tmp_path / "rows.csv", "--config", config, "--output", tmp_path / "out")
    done = portcullis(tmp_path / "home", *command)
    assert done.returncode == 3
    assert "step 'data_quality'" in done.stderr and "it is judged with 30 or more" in done.stderr
    facts = nothing_deployable(tmp_path / "out")
    assert facts["steps"][-1]["figures"]["rows"] == 250


def test_a_gate_that_cannot_judge_exits_with_3(tmp_path):
    config = configuration(
        tmp_path / "few.yaml", training={"epochs": 1}, robustness={"n_min": 100000}, thresholds={"samples": 100}
    )
    done = portcullis(tmp_path / "home", "run", "--config", config, "--output", tmp_path / "out")
    assert done.returncode == 3
    assert "inconclusive" in done.stderr.strip().splitlines()[-1]
    nothing_deployable(tmp_path / "out")
