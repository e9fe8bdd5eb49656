"""Masking for people: data frames and tables in memory, and `portcullis mask` for files."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portcullis.cli.main import main
from portcullis.errors import DataError, GateFailedError, KeyMaterialError, UsageError
from portcullis.ingest.readers import read_table
from portcullis.pii.entities import IN_TEXT
from portcullis.pii.frames import check_frame, mask_frame
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan

KEY = bytes(range(32))
FRAME = pd.DataFrame(
    {
        "note": ["write to ann@example.com", None, "219-09-9999 called"],
        "kind": pd.Categorical(["bob@example.com", "x", "bob@example.com"]),
        "n": pd.array([1, None, 3], dtype="Int64"),
        "x": [0.5, 1.5, 2.5],
        "when": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
    },
    index=[7, 5, 3],
)
SECRETS = ("ann@example.com", "bob@example.com", "219-09-9999")


def test_a_data_frame_comes_back_masked_with_its_index_and_types() -> None:
    masked, report = mask_frame(FRAME, key=KEY)
    assert not any(secret in masked.to_csv() for secret in SECRETS)
    assert list(masked.index) == [7, 5, 3] and list(masked.columns) == list(FRAME.columns)
    pd.testing.assert_frame_equal(masked[["n", "x", "when"]], FRAME[["n", "x", "when"]])
    assert masked["kind"].dtype == "category" and masked["kind"].iloc[0] == masked["kind"].iloc[2]
    assert pd.isna(masked["note"].iloc[1])
    assert report.passed and report.masked == {"note": {"EMAIL": 1, "US_SSN": 1}, "kind": {"EMAIL": 2}}
    assert not any(secret in report.to_html() + report.to_json().decode() for secret in SECRETS)


def test_a_table_comes_back_as_the_pipeline_masks_it() -> None:
    table = pa.table({"note": ["ann@example.com", "x"]})
    masked, _ = mask_frame(table, key=KEY)
    assert masked.equals(mask_table(table, MaskingPlan(IN_TEXT, {}), key=KEY)[0])


def test_what_is_left_is_told() -> None:
    assert check_frame(pa.table({"note": ["x", "y"]})).passed
    report = check_frame(FRAME)
    assert not report.passed and "residual_identifiers" in report.reason
    assert not any(secret in report.to_html() + report.reason for secret in SECRETS)


BAD_FRAMES = {
    "an index of text": (FRAME.set_index("note"), "reset_index"),
    "an index of card numbers": (FRAME.set_index(pd.Index([4111111111111111, 1, 2])), "reset_index"),
    "an index of nine digits": (FRAME.set_index(pd.Index([219099999, 1, 2])), "reset_index"),
    "an index below zero": (FRAME.set_index(pd.Index([-219099999, 1, 2])), "reset_index"),
    "an index with a name": (FRAME.rename_axis("ann@example.com"), "reset_index"),
    "an index of two levels": (FRAME.set_index(["n", "x"]), "reset_index"),
    "columns without a name": (pd.DataFrame([["a"]]), "rename them"),
    "several types": (pd.DataFrame({"a": [1, "ann@example.com"]}), "several types"),
    "nested": (pd.DataFrame({"a": [["ann@example.com"]]}), "not scanned"),
    "bytes": (pd.DataFrame({"a": [b"ann@example.com"]}), "not scanned"),
    "no row": (FRAME.iloc[:0], "empty"),
    "an identifier for a name": (pd.DataFrame({"ann@example.com": ["x"]}), "name holds an identifier"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_frame_that_cannot_be_searched_is_refused(name: str) -> None:
    frame, message = BAD_FRAMES[name]
    with pytest.raises(DataError, match=message) as caught:
        mask_frame(frame, key=KEY)
    assert "ann@" not in str(caught.value)


def test_a_key_of_another_size_is_refused() -> None:
    with pytest.raises(KeyMaterialError):
        mask_frame(FRAME, key=b"short")


def test_a_refusal_names_the_column_and_no_value() -> None:
    names = ["Ann Smith", "Bob Jones", "Carla Garcia"]
    with pytest.raises(GateFailedError, match=r"suspected_name_columns .*\(column 'customer_name'\)") as caught:
        mask_frame(pa.table({"customer_name": names, "n": [1, 2, 3]}), key=KEY)
    assert not any(name in str(caught.value) for name in names)


def test_nothing_comes_out_of_what_the_gate_refuses() -> None:
    # Too far apart for the scan; the gate is more tolerant of separators.
    with pytest.raises(GateFailedError, match="residual_identifiers"):
        mask_frame(pa.table({"note": ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "219 / 09 / 9999"]}), key=KEY)


def test_what_is_no_frame_or_no_plan_is_a_usage_error() -> None:
    for frame in ([1], None, {"note": ["x"]}, FRAME["note"], TABLE["note"]):
        with pytest.raises(UsageError, match="a frame is"):
            mask_frame(frame, key=KEY)
        with pytest.raises(UsageError, match="a frame is"):
            check_frame(frame)
    for plan in (None, {}, "token"):
        with pytest.raises(UsageError, match="plan is"):
            mask_frame(FRAME, plan, key=KEY)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="plan is"):
            check_frame(FRAME, plan)  # type: ignore[arg-type]
    with pytest.raises(KeyMaterialError):
        mask_frame(FRAME, key=None)  # type: ignore[arg-type]


# The command.

TABLE = pa.table({"note": ["write to ann@example.com", "", None], "n": [1, 2, 3], "zip": ["02139", "x", None]})


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "masking.key"
    path.write_bytes(base64.b64encode(KEY))
    path.chmod(0o600)
    return f"file:{path}"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["portcullis", "mask", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        return int(done.value.code or 0)

    return call


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_file_is_masked_as_a_table_in_memory_is(tmp_path, key, run, kind, capsys) -> None:
    pq.write_table(TABLE, tmp_path / "in.parquet")
    out, report = tmp_path / f"out.{kind}", tmp_path / "report.html"
    arguments = [str(tmp_path / "in.parquet"), "--output", str(out), "--key", key, "--report", str(report)]
    assert run(*arguments) == 0
    assert read_table(str(out)).equals(mask_frame(TABLE, key=KEY)[0])
    assert out.stat().st_mode & 0o777 == 0o600
    everything = report.read_text() + "".join(capsys.readouterr())
    assert "note" in everything and "ann@" not in everything


def test_a_policy_says_what_becomes_of_columns(tmp_path, key, run) -> None:
    pq.write_table(TABLE, tmp_path / "in.parquet")
    policy = tmp_path / "policy.yaml"
    policy.write_text("entities: {EMAIL: redact}\ncolumns: {zip: {generalise: zip3}}\n")
    out = tmp_path / "out.jsonl"
    arguments = [str(tmp_path / "in.parquet"), "--output", str(out), "--key", key, "--policy", str(policy)]
    assert run(*arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["zip"] for row in rows] == ["021", "<VALUE>", None]
    assert rows[0]["note"] == "write to <EMAIL>"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_that_a_text_file_cannot_hold_are_not_spelled_into_one(tmp_path, key, run, kind, capsys) -> None:
    pq.write_table(pa.table({"x": [1.5, float("nan"), float("inf"), None]}), tmp_path / "in.parquet")
    out = tmp_path / f"out.{kind}"
    code = run(tmp_path / "in.parquet", "--output", out, "--key", key)
    assert (code, out.exists()) == ((0, True) if kind == "parquet" else (1, False))
    assert kind == "parquet" or "only .parquet" in capsys.readouterr().err


def test_a_refused_table_leaves_its_report_and_an_earlier_output_as_it_was(tmp_path, key, run) -> None:
    pq.write_table(pa.table({"note": ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"]}), tmp_path / "in.parquet")
    (tmp_path / "out.csv").write_text("before")
    arguments = ("--output", tmp_path / "out.csv", "--key", key, "--report", tmp_path / "r.html")
    assert run(tmp_path / "in.parquet", *arguments) == 1
    assert (tmp_path / "out.csv").read_text() == "before"
    assert "FAILED" in (tmp_path / "r.html").read_text()


BAD_COMMANDS = {
    "another kind of file": (["--output", "out.xlsx"], 2, "not a .csv"),
    "no key": (["--output", "out.csv", "--key", "file:/nowhere/masking.key"], 2, "cannot read the key"),
    "a policy that is unknown": (["--output", "out.csv", "--policy", "bad.yaml"], 2, "knows no"),
    "a policy that is no YAML": (["--output", "out.csv", "--policy", "broken.yaml"], 2, "broken.yaml: not valid YAML"),
    "a policy that is empty": (
        ["--output", "out.csv", "--policy", "empty.yaml"],
        2,
        "empty.yaml: YAML is not a mapping",
    ),
    "a policy that is missing": (["--output", "out.csv", "--policy", "none.yaml"], 2, "none.yaml"),
    "the source": (["--output", "in.parquet"], 2, "which is read"),
    "the source by another path": (["--output", "x/../in.parquet"], 2, "which is read"),
    "the source by a link": (["--output", "link.parquet"], 2, "which is read"),
    "the source by another name": (["--output", "hard.parquet"], 2, "which is read"),
    "the source for the report": (["--output", "out.csv", "--report", "in.parquet"], 2, "which is read"),
    "the policy": (["--output", "out.csv", "--policy", "good.yaml", "--report", "good.yaml"], 2, "which is read"),
    "one file for both": (["--output", "out.csv", "--report", "./out.csv"], 2, "name one file"),
    "a residue": (["--output", "out.csv"], 1, "nothing was written"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_what_is_refused_leaves_no_file(tmp_path, key, run, name, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"note": ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"]}), tmp_path / "in.parquet")
    (tmp_path / "bad.yaml").write_text("entites: [EMAIL]\n")
    (tmp_path / "good.yaml").write_text("entities: [EMAIL]\n")
    (tmp_path / "broken.yaml").write_text("entities: [EMAIL\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "link.parquet").symlink_to("in.parquet")
    (tmp_path / "hard.parquet").hardlink_to("in.parquet")
    (tmp_path / "x").mkdir()
    held = (tmp_path / "in.parquet").read_bytes()
    options, code, message = BAD_COMMANDS[name]
    before = sorted(path.name for path in tmp_path.iterdir())
    given = options if "--key" in options else [*options, "--key", key]
    assert run("in.parquet", *given) == code
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "in.parquet").read_bytes() == held


@pytest.mark.parametrize("source", ["data", "file://{}/data", "./x/../data"])
def test_a_folder_that_is_read_is_not_written_into(tmp_path, key, run, source, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/y", "x"):
        (tmp_path / folder).mkdir(parents=True)
    pq.write_table(TABLE, "data/y/in.parquet")
    (tmp_path / "link").symlink_to("data/y")
    for output in ("data/out.parquet", "data/y/in.parquet", "link/in.parquet"):
        assert run(source.format(tmp_path), "--output", output, "--key", key) == 2
        assert "which is read" in capsys.readouterr().err
    assert pq.read_table("data/y/in.parquet").equals(TABLE)
    assert run(source.format(tmp_path), "--output", "out.parquet", "--key", key) == 0
