"""The examples do what they say, each as a user would call it, with the local runner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import resting

from portcullis.dataset import read_dataset, write_dataset
from portcullis.digest import tree_digest
from portcullis.evidence.admission import verify_admission
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import read_evidence
from portcullis.evidence.trust import Seen, TrustStore, now_ms
from portcullis.ingest.cheque_digits import csv_bytes
from portcullis.models.store import load_model
from portcullis.sealing.sealed import sealed_digest
from portcullis_pipelines.compile import ROOT, compiled

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"


def call(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--output", str(folder / "out"), *arguments],
        env={**os.environ, "PORTCULLIS_HOME": str(folder / "home"), "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def only(folder: Path, pattern: str) -> Path:
    (found,) = (folder / "out").glob(f"**/{pattern}")
    return found


def plain(run, output: str, folder: Path) -> Path:
    """Write the rows of a run as a user's own, which come from outside and in plain text."""
    rows = resting.opened(run.task(output), run.pipeline_key)
    write_dataset(folder / output.replace("/", "-"), rows.table, rows.spec)
    return folder / output.replace("/", "-")


def test_mask_and_hash(tmp_path):
    done = call("mask_and_hash.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    masked = read_dataset(tmp_path / "out" / "masked")
    assert masked.table.num_rows == 1797
    assert not any("@example." in note for note in masked.table.column("note").to_pylist())
    store = TrustStore.load(tmp_path / "home" / "mask-and-hash" / "trust")
    assert [*store.policy.steps] == ["preflight", "ingest", "mask_pii", "residual_pii"]
    assert len(read_evidence([tmp_path / "out" / "evidence.intoto.jsonl"])) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"masked", "evidence.intoto.jsonl"}
    emails = {line.split(",")[1] for line in csv_bytes().decode().splitlines()[1:] if line.count("@") == 1}
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert len(emails) > 100 and not [email for email in emails if email.encode() in left]


def test_judge_my_model(tmp_path, real_run):
    model, test = real_run.task("train/model"), plain(real_run, "split/test", tmp_path)
    done = call("judge_my_model.py", tmp_path, "--model", str(model), "--test", str(test))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_evidence([only(tmp_path, "enforce/passed")])) == 2
    assert "PASSED" in only(tmp_path, "evaluate-robustness/report").read_text()


def test_judge_my_model_over_shards(tmp_path, real_run):
    model, test = real_run.task("train/model"), plain(real_run, "split/test", tmp_path)
    done = call("judge_my_model.py", tmp_path, "--model", str(model), "--test", str(test), "--shards", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [Statement.parse(Envelope.parse(it).payload) for it in read_evidence([only(tmp_path, "enforce/passed")])]
    assert {it.step for it in steps} == {"start_chain", "attack_shard#0/2", "attack_shard#1/2", "robustness"}
    (verdict,) = (it for it in steps if it.step == "robustness")
    assert (verdict.verdict, verdict.figures["shards"]) == ("PASSED", 2)
    assert verdict.figures["samples"] == read_dataset(test).table.num_rows


def test_a_model_of_ones_own_that_is_not_robust_enough_is_refused(tmp_path, real_run):
    model, test = real_run.task("train/model"), plain(real_run, "split/test", tmp_path)
    done = call("judge_my_model.py", tmp_path, "--model", str(model), "--test", str(test), "--least", "0.999")
    assert done.returncode != 0
    assert "GateFailedError" in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("**/enforce/passed"))
    assert only(tmp_path, "evaluate-robustness/report").exists()  # why it was refused stays to be read


def test_admit_elsewhere(tmp_path, real_run):
    model, test = real_run.task("train/model"), plain(real_run, "split/test", tmp_path)
    data = plain(real_run, "dp-noise/noised", tmp_path)
    done = call("admit_elsewhere.py", tmp_path, "--model", str(model), "--data", str(data), "--test", str(test))
    assert done.returncode == 0, done.stdout + done.stderr
    store = TrustStore.load(tmp_path / "home" / "admit-elsewhere" / "trust")
    admitted, chain = verify_admission(
        only(tmp_path, "admit/admission").read_bytes(),
        read_evidence([only(tmp_path, "sign/signature_evidence")]),
        store,
        sealed=sealed_digest(only(tmp_path, "encrypt/sealed")),
        seen=Seen(),
        now=now_ms(),
    )
    assert admitted.content == tree_digest(model) == chain.output("training.product")


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("mask_and_hash", "mask_and_hash"),
        ("judge_my_model", "judge_my_model"),
        ("judge_my_model", "judge_over_shards"),
        ("admit_elsewhere", "admit_elsewhere"),
    ],
)
def test_it_compiles_for_a_cluster(name, pipeline, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    pipeline = getattr(__import__(name), pipeline)
    assert compiled(pipeline) == compiled(pipeline)


def test_the_readmes_lines_make_a_model_and_rows(tmp_path):
    text = (EXAMPLES / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert load_model(tmp_path / "my-model").spec.labels == read_dataset(tmp_path / "my-rows").spec.label.classes
