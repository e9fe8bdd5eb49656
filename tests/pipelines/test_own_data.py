"""A user's own data through the real command: CSV and Parquet, a file and a folder, whole and malformed."""

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from portcullis.ingest.readers import read_source
from portcullis.table import logical_root
from portcullis_pipelines.config import ReferenceConfig

pytestmark = pytest.mark.slow

ROWS = 800  # the split is by a secret key; of fewer, the test rows are too few now and then
PASSED = {
    "audit",
    "report.html",
    "run.json",
    "mlbom.cdx.json",
    "evidence.intoto.jsonl",
    "policy.yaml",
    "model",
    "model.sig",
    "quarantine",
    "admission.json",
    "deployment.json",
}
REFUSED = {"audit", "report.html", "run.json", "evidence.intoto.jsonl"}

# The kfp local runner would replace `python3` in any argument of a task: it stands in a column and in the paths.
SQUARES = """\
dataset:
  name: own-squares
  label: {column: python3 kind, classes: [a, b, c]}
  features: {columns: ["v*"], shape: [1, 4, 4], low: 0, high: 1}
  sensitive: {mail: token, who: drop, note: scan}
model: {options: {width: 24, hidden: 48}}
training: {epochs: 4}
robustness: {n_min: 50, cw_steps: 30}
thresholds: {robust_accuracy: 0.5, clean_accuracy: 0.8, samples: 50}
"""
QUARANTINE = "  quarantine_at_most: 1\n"
MALFORMED = b'"caf\xe9@mail.example","Person x","","a"' + b",0.5" * 16
LOANS = """\
dataset:
  name: loans
  label: {column: risk, classes: [low, high]}
  features: {columns: [income, debt, age], shape: [3], low: 0, high: 100}
  sensitive: {mail: drop}
"""


def squares() -> pa.Table:
    """Rows of 4 x 4 pixels: class 0, 1 or 2 has that row of pixels bright; and people whom nobody must recognise."""
    random = np.random.default_rng(1)
    kinds = random.integers(3, size=ROWS)
    pixels = np.full((ROWS, 4, 4), 0.1)
    pixels[np.arange(ROWS), kinds] = 0.9
    pixels = np.round(pixels + random.uniform(-0.1, 0.1, pixels.shape), 4).reshape(ROWS, 16)
    columns = {
        "mail": [f"user{row}@mail.example" for row in range(ROWS)],
        "who": [f"Person {row}" for row in range(ROWS)],
        "note": [f"write to other{row}@mail.example soon" for row in range(ROWS)],
        "python3 kind": np.array(["a", "b", "c"])[kinds],
    }
    return pa.table(columns | {f"v{index:02}": pixels[:, index] for index in range(16)})


def loans() -> pa.Table:
    """Rows of three numbers, no image."""
    random = np.random.default_rng(2)
    income, debt, age = np.round(random.uniform(0, 100, (3, ROWS)), 1)
    risk = np.where(debt > income, "high", "low")
    mail = [f"user{row}@mail.example" for row in range(ROWS)]
    return pa.table({"mail": mail, "income": income, "debt": debt, "age": age, "risk": risk})


def write(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pc.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def write_parts(folder: Path, table: pa.Table, suffix: str) -> Path:
    write(folder / f"part-1{suffix}", table.slice(0, 250))
    write(folder / "later" / f"part-2{suffix}", table.slice(250))
    return folder


@dataclass(frozen=True)
class User:
    """A folder with a configuration, its own home, and the command."""

    folder: Path

    def configure(self, text: str) -> Path:
        path = self.folder / "own.yaml"
        path.write_text(text)
        return path

    def run(self, data: object, config: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "portcullis.cli", "run", "--data", str(data), "--config", config.name],
            cwd=self.folder,
            env={**os.environ, "PORTCULLIS_HOME": "a home"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    @property
    def output(self) -> Path:
        return self.folder / "portcullis-run"

    def refusal(self, data: object, config: Path, *, code: int = 1) -> str:
        """Run, expect a refusal of which nothing deployable is left, and return what it said in its last line."""
        done = self.run(data, config)
        assert done.returncode == code
        assert {path.name for path in self.output.iterdir()} == REFUSED
        facts = json.loads((self.output / "run.json").read_text())
        *progress, last = done.stderr.splitlines()
        assert not [line for line in progress if not line.endswith((": success", ": failure"))]
        assert last == f"{facts['error']['type']}: {facts['error']['message']}"
        assert done.stdout.count("\n") <= 1
        return last


@pytest.fixture
def user(tmp_path):
    return User(tmp_path)


@pytest.mark.parametrize(("table", "text"), [(squares(), SQUARES), (loans(), LOANS)], ids=["squares", "loans"])
def test_one_table_is_one_data_set_in_every_form(tmp_path, table, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    spec = ReferenceConfig.load(path).dataset
    sources = [
        write(tmp_path / "rows.csv", table),
        write(tmp_path / "rows.parquet", table),
        write_parts(tmp_path / "csv", table, ".csv"),
        write_parts(tmp_path / "parquet", table, ".parquet"),
    ]
    read = [read_source(str(source), spec) for source in sources]
    # A folder's rows follow the order of its paths.
    turned = pa.concat_tables([table.slice(250), table.slice(0, 250)])
    files = read_source(str(write(tmp_path / "turned.parquet", turned)), spec)
    assert len({logical_root(it.table) for it in read[:2]}) == 1
    assert {logical_root(it.table) for it in read[2:]} == {logical_root(files.table)}
    assert [it.reader for it in read] == ["csv", "parquet", "csv", "parquet"]


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """One real run on a folder of CSV files, one row malformed, with spaces and `python3` in every path."""
    user = User(tmp_path_factory.mktemp("a python3 folder"))
    write_parts(user.folder / "python3 rows", squares(), ".csv")
    with (user.folder / "python3 rows" / "part-1.csv").open("ab") as part:
        part.write(MALFORMED + b"\n")
    done = user.run("python3 rows", user.configure(SQUARES.replace("  sensitive:", QUARANTINE + "  sensitive:")))
    assert done.returncode == 0, done.stderr
    return user, done


def test_a_run_on_own_data_passes(passed):
    user, done = passed
    assert {path.name for path in user.output.iterdir()} == PASSED
    facts = {it["step"]: it for it in json.loads((user.output / "run.json").read_text())["steps"]}
    figures = facts["ingest"]["figures"]
    assert (figures["rows"], figures["columns"], figures["files"], figures["reader"]) == (ROWS, 20, 2, "csv")
    assert (figures["records"], figures["quarantined"], figures["quarantined_not_utf8"]) == (ROWS + 1, 1, 1)
    assert facts["robustness:trained"]["figures"]["robust_accuracy"] >= 0.5
    assert facts["train"]["figures"]["parameters"] < 25_000
    assert "PASSED: model " in done.stdout
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == [" success"] * 27


def test_the_row_that_was_set_aside_is_opened_with_the_key_only(passed, tmp_path):
    user, _ = passed
    home = user.folder / "a home" / "own-squares"

    def opened(keys: Path) -> subprocess.CompletedProcess[str]:
        verb = ["quarantine", str(user.output), "--trust", str(home / "trust"), "--output", "records.jsonl"]
        environment = {**os.environ, "PORTCULLIS_KEYS": f"file:{keys}"}
        command = [sys.executable, "-m", "portcullis.cli", *verb]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    (tmp_path / "none").mkdir()
    refused = opened(tmp_path / "none")
    assert refused.returncode == 2 and "KeyMaterialError" in refused.stderr
    assert not (tmp_path / "records.jsonl").exists()
    done = opened(home / "keys")
    assert (done.returncode, done.stdout) == (0, "1 records in records.jsonl\n"), done.stderr
    assert (tmp_path / "records.jsonl").stat().st_mode & 0o777 == 0o600
    record = json.loads((tmp_path / "records.jsonl").read_text())
    assert base64.b64decode(record.pop("bytes")) == MALFORMED
    rest = (user.folder / "python3 rows" / "part-1.csv").read_bytes()
    assert record == {
        "path": "part-1.csv",
        "line": 252,
        "offset": rest.index(MALFORMED),
        "reason": "not_utf8",
        "column": "",
    }


def test_the_sensitive_columns_are_masked(passed):
    user, _ = passed
    facts = {it["step"]: it for it in json.loads((user.output / "run.json").read_text())["steps"]}
    assert {name: facts["mask_pii"]["figures"][f"masked_{name}"] for name in ("mail", "note")} == {
        "mail": ROWS,
        "note": ROWS,
    }
    assert facts["residual_pii"]["status"] == "PASSED"
    figures = facts["residual_pii"]["figures"]
    assert (figures["residual_identifiers"], figures["undropped_columns"]) == (0, 0)
    assert figures["columns_scanned"] == 19  # `who` is gone
    left = b"".join(path.read_bytes() for path in user.folder.glob("portcullis-run/**/*") if path.is_file())
    assert b"@mail.example" not in left and b"Person " not in left


def test_the_commands_that_a_run_prints_can_be_pasted(passed):
    user, done = passed
    serve, curl = [shlex.split(line) for line in done.stdout.splitlines()[-2:]]
    home = user.folder / "a home" / "own-squares"
    assert Path(serve[0]).name == "portcullis"
    assert serve[1:] == ["serve", str(user.output), "--trust", str(home / "trust"), "--port", "8080"]
    body = json.loads(curl[curl.index("-d") + 1])
    assert body["inputs"][0]["shape"] == [1, 16] and len(body["inputs"][0]["data"]) == 16
    shown = done.stdout.splitlines()[-1].split("$(")[1].split(")")[0]
    token = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True).stdout
    assert token == (home / "keys" / "serving.token").read_text()


def test_a_refused_run_takes_the_place_of_an_admitted_one(passed, tmp_path):
    admitted, _ = passed
    user = User(tmp_path)
    shutil.copytree(admitted.output, user.output)
    (user.folder / "elsewhere").mkdir()
    user.output.rename(user.folder / "elsewhere" / "run")
    user.output.symlink_to(user.folder / "elsewhere" / "run")
    assert "cannot read nothing.csv" in user.refusal("nothing.csv", user.configure(SQUARES))
    assert user.output.is_symlink()  # what it names was replaced


def test_a_malformed_row_of_a_csv_file_is_named(user):
    table = squares()
    write_parts(user.folder / "rows", table, ".csv")
    path = user.folder / "rows" / "part-1.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = lines[7].rsplit(",", 1)[0] + ",secret7\n"
    path.write_text("".join(lines))
    said = user.refusal("rows", user.configure(SQUARES))
    assert said == "DataError: step 'ingest': part-1.csv, line 8 (row 7): column 'v15' is not a number"


def test_a_malformed_row_of_a_parquet_file_is_named(user):
    table = squares()
    values = table["v03"].to_numpy().copy()
    values[41] = 1.5
    write(user.folder / "rows.parquet", table.set_column(table.column_names.index("v03"), "v03", pa.array(values)))
    said = user.refusal("rows.parquet", user.configure(SQUARES))
    assert said == "DataError: step 'ingest': rows.parquet, row 42: column 'v03' is not in [0, 1]"


def test_a_wrong_column_name_is_named_beside_the_nearest(user):
    write(user.folder / "rows.csv", squares())
    said = user.refusal("rows.csv", user.configure(SQUARES.replace("mail: token", "email: token")))
    assert said == "DataError: step 'ingest': the data has no column 'email'; the nearest is 'mail'"


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("no python3.csv", 1, "DataError: step 'ingest': cannot read no python3.csv: No such file or directory"),
        ("http://host/rows.csv", 2, "UsageError: step 'ingest': 'http' URIs are not read here"),
    ],
    ids=["not there", "not local"],
)
def test_data_that_is_not_there(user, uri, code, message):
    assert user.refusal(uri, user.configure(SQUARES), code=code).startswith(message)


def test_rows_that_are_no_images_need_an_architecture_of_their_own(user):
    write(user.folder / "rows.csv", loans())
    said = user.refusal("rows.csv", user.configure(LOANS))
    assert said == "ModelError: step 'train': digits-cnn needs an input shape (channels, height, width)"
