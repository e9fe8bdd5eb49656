"""The measurement without a pipeline: the function, and the verb `attack`."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from digits_models import SPEC, digits, plain_model
from exported import exported, saved

from portcullis.cli.main import cli
from portcullis.dataset import DatasetSpec, Features, Label, write_dataset
from portcullis.errors import ConfigError, DataError, GateFailedError, InconclusiveError, ModelError, UsageError
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, save_model, save_model_files
from portcullis.robustness.judge import judge_model
from portcullis.robustness.page import CHECKS, pixels_of, robustness_details
from portcullis.robustness.report import Example, RobustnessReport
from portcullis.robustness.settings import RobustnessSettings
from portcullis.supply_chain.exported_program import read_exported_program

QUICK = RobustnessSettings(cw_steps=20, cw_learning_rate=0.1, deepfool_steps=5, ddn_steps=10, apgd_targets=1)
DATA = DatasetSpec(
    "digits", Label("digit", SPEC.labels), Features(tuple(f"p{index}" for index in range(64)), (1, 8, 8), 0, 16)
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_rows(directory: Path, count: int) -> Path:
    features, labels = digits()
    columns = {f"p{index}": features[:count, index] for index in range(64)}
    columns["digit"] = [SPEC.labels[label] for label in labels[:count]]
    write_dataset(directory, pa.table(columns), DATA)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("judged") / "model"
    save_model(directory, plain_model().module, SPEC)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("judged") / "data", 120)


def test_judges_what_lies_on_disk(model: Path, data: Path) -> None:
    judged = judge_model(model, data, QUICK)
    assert judged.measured.figures["samples"] == 120
    assert 0.2 < judged.robust_accuracy < judged.measured.figures["clean_accuracy"]
    assert judged.page.startswith("<!doctype html>") and "Accuracy by radius" in judged.page
    assert "<script" not in judged.page and "<img" not in judged.page
    assert judged.measured.report is not None
    assert len(judged.measured.report.examples) == 6
    for example in judged.measured.report.examples:
        assert example.answer != example.label and (example.clean != example.adversarial).any()


def test_judges_a_network_that_came_as_a_program(data: Path, tmp_path: Path) -> None:
    """Its figures are those of the same network under its own architecture, but for a row that rounding decides."""
    program = saved(exported(plain_model().module, SPEC.shape))
    found = read_exported_program(io.BytesIO(program), len(program))
    files = {SPEC_FILE: found.spec(SPEC.low, SPEC.high, SPEC.labels).to_json(), WEIGHTS_FILE: found.weights}
    save_model_files(tmp_path / "model", files)
    judged = judge_model(tmp_path / "model", data, QUICK)
    save_model(tmp_path / "own", plain_model().module, SPEC)
    found, own = judged.measured.figures, judge_model(tmp_path / "own", data, QUICK).measured.figures
    assert found.keys() == own.keys() and 0.2 < judged.robust_accuracy < found["clean_accuracy"]
    for name, figure in found.items():
        wanted = pytest.approx(own[name], rel=0.02, abs=1.5 / 120) if isinstance(figure, float) else own[name]
        assert figure == wanted, name


def test_the_page_shows_images_but_no_rows_of_a_table() -> None:
    wide = np.random.default_rng(0).random((3, 64, 40), dtype=np.float32)
    pixels = pixels_of(wide)
    assert (len(pixels), len(pixels[0])) == (32, 20)
    assert pixels[1][2] == tuple(wide[:, 2, 4].tolist())
    figures = dict.fromkeys((figure for _, figure in CHECKS), 1)
    figures |= {"batch_difference": 0.0, "samples": 4, "robust_accuracy": 0.5, "forward_equivalents": 9}
    for clean, drawn in ((wide, 2), (np.full(6, 0.123, np.float32), 1)):
        example = Example("pgd", clean, clean, "<a>", "<b>")
        report = RobustnessReport(figures, curve={0.0: 1.0, 0.1: 0.5}, examples=(example,))
        html = "".join(robustness_details(report, RobustnessSettings()))
        assert html.count("<svg") == drawn and "<a>" not in html
        minidom.parseString(f"<a>{html}</a>")


def test_refuses_what_cannot_be_judged(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mode=full"):
        judge_model(model, data, RobustnessSettings(mode="verdict"))
    with pytest.raises(InconclusiveError, match="fewer than"):
        judge_model(model, write_rows(tmp_path / "few", 60), QUICK)
    with pytest.raises(DataError):
        judge_model(model, model, QUICK)
    with pytest.raises(ModelError):
        judge_model(data, data, QUICK)


THREAT = "mutable: {p20: {epsilon: 16}, p21: {epsilon: 16}, p28: {epsilon: 16, whole: true, direction: up}}\n"


def test_judges_a_table_by_what_may_change(model: Path, data: Path) -> None:
    judged = judge_model(model, data, RobustnessSettings(threat=THREAT, queries=400))
    figures = judged.measured.figures
    assert figures["features"] == 3 and figures["samples"] == 120
    assert 0.2 < judged.robust_accuracy < figures["clean_accuracy"]
    assert judged.page.startswith("<!doctype html>") and "robust_accuracy" in judged.page
    for threat in ("mutable: {}", "mutable: {nose: {epsilon: 1}}", "a: ["):
        with pytest.raises(ConfigError, match="threat: "):
            judge_model(model, data, RobustnessSettings(threat=threat))


class TestVerb:
    def run(self, *arguments: object):
        return CliRunner().invoke(cli, ["attack", *map(str, arguments)])

    @pytest.mark.slow
    def test_writes_figures_and_report_and_refuses_a_weak_model(self, model, data, tmp_path: Path) -> None:
        report = tmp_path / "report.html"
        result = self.run(
            "--model", model, "--data", data, "--epsilon", 0.15, "--least", 0.9, "--report", report, "--json"
        )
        assert isinstance(result.exception, GateFailedError), result.output
        assert json.loads(result.stdout)["robust_accuracy"] < 0.9
        assert "within" in report.read_text()

    def test_attacks_a_table(self, model, data, tmp_path: Path) -> None:
        threat = tmp_path / "threat.yaml"
        threat.write_text(THREAT)
        result = self.run("--model", model, "--data", data, "--threat", threat, "--json", "--least", 0.99)
        assert isinstance(result.exception, GateFailedError), result.output
        assert json.loads(result.stdout)["features"] == 3
        result = self.run("--model", model, "--data", data, "--threat", threat, "--epsilon", 0.2)
        assert isinstance(result.exception, UsageError)
        for written in (b"", b" \n", b"\xff", b"a: ["):
            threat.write_bytes(written)
            result = self.run("--model", model, "--data", data, "--threat", threat)
            assert isinstance(result.exception, ConfigError), written

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--least", 0),
            ("--least", 1.5),
            ("--least", "nan"),
            ("--epsilon", 0),
            ("--epsilon", -1),
            ("--epsilon", "nan"),
        ],
    )
    def test_refuses_options(self, model, data, option: str, value: object) -> None:
        result = self.run("--model", model, "--data", data, option, value)
        assert isinstance(result.exception, UsageError)
