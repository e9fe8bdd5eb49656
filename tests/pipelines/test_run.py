"""Around a local run: what its log says of a refusal, and what may be replaced by it."""

import dataclasses

import pytest
from chains import World

from portcullis.errors import (
    DataError,
    EvidenceError,
    GateFailedError,
    MissingDependencyError,
    PipelineError,
    UsageError,
)
from portcullis.evidence.chain import join_bundle
from portcullis_pipelines.config import Deployment, ReferenceConfig
from portcullis_pipelines.outcome import PARTS, RUN
from portcullis_pipelines.run import _all_evidence, _reason, _require_replaceable, run_reference

WORLD = World()
POLICY = WORLD.policy()
WHOLE = "12:00:00 - INFO - Pipeline \x1b[95m'portcullis-reference'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"


def task(name: str, said: str = "", status: str = "SUCCESS") -> str:
    """Spell one task as the kfp local runner does."""
    return (
        f"12:00:00 - INFO - Executing task \x1b[96m'{name}'\x1b[0m\n{said}\n"
        f"12:00:01 - INFO - Task \x1b[96m'{name}'\x1b[0m finished with status \x1b[92m{status}\x1b[0m\n"
    )


CHAINED = """\
    Traceback (most recent call last):
    portcullis.errors.UsageError: cannot read x

    The above exception was the direct cause of the following exception:

    Traceback (most recent call last):
    portcullis.errors.EvidenceError: the evidence is missing: cannot read x
"""


@pytest.mark.parametrize(
    ("log", "step", "kind", "message"),
    [
        (
            task("preflight") + task("train", "    portcullis.errors.DataError: row 7: not a number", "FAILURE"),
            "train",
            DataError,
            "step 'train': row 7: not a number",
        ),
        (
            task("enforce-2", "  portcullis.errors.GateFailedError: step 'robustness:trained': FAILED", "FAILURE"),
            "",
            GateFailedError,
            "step 'robustness:trained': FAILED",
        ),
        (
            task("train", CHAINED, "FAILURE"),
            "train",
            EvidenceError,
            "step 'train': the evidence is missing: cannot read x",
        ),
        (
            task("preflight", "portcullis.errors.DataError: of a task that passed")
            + task("evaluate-x", "portcullis.errors.EvidenceError: its own", "FAILURE")
            + "portcullis.errors.PolicyError: follows from it\n",
            "",
            EvidenceError,
            "task 'evaluate-x': its own",
        ),
        (
            "Traceback (most recent call last):\nportcullis.errors.MissingDependencyError: pip install kfp\n",
            "",
            MissingDependencyError,
            "pip install kfp",
        ),
        (
            task("train", "    MemoryError: \x1b[91mno\n   memory  left\n\n", "FAILURE"),
            "train",
            PipelineError,
            "step 'train': ended without giving a reason; it last said: memory left",
        ),
        (
            task("train", "portcullis.errors.NoSuchError: x\nportcullis.errors.Path: y", "FAILURE"),
            "train",
            PipelineError,
            "step 'train': ended without giving a reason; it last said: portcullis.errors.Path: y",
        ),
        (
            task("preflight") + "Killed",
            "",
            PipelineError,
            "the runner ended without giving a reason; it last said: Killed",
        ),
        ("", "", PipelineError, "the runner ended without giving a reason; it last said: nothing"),
    ],
    ids=[
        "a step's refusal",
        "a gate's refusal names its step",
        "what was raised in the end, not its cause",
        "of the task that failed, not of others",
        "the runner's own",
        "another exception",
        "what is no error of ours",
        "the runner was killed",
        "nothing at all",
    ],
)
def test_why_a_run_ended(log, step, kind, message):
    found, reason = _reason(log, POLICY)
    assert (found, type(reason), str(reason)) == (step, kind, message)


def test_a_run_that_ended_well_gives_no_reason():
    assert _reason(task("preflight") + task("train", "portcullis warns") + WHOLE, POLICY) == ("", None)


def test_what_a_refused_run_left_is_collected_whatever_else_lies_there(tmp_path):
    first, second, third, fourth = WORLD.lines(POLICY)
    for name, data in {
        "preflight/evidence": join_bundle([first]),
        "train/model_evidence": join_bundle([first, second]),
        "gate/evidence": b"no bundle",
        "deploy/deployment": join_bundle([third]),
        "train/model": join_bundle([fourth]),
    }.items():
        path = tmp_path / "pipeline" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "pipeline" / "sealed_evidence").mkdir()
    assert sorted(_all_evidence(tmp_path)) == sorted([first, second, third])


@pytest.mark.parametrize("names", [[], [RUN], [RUN, "report.html", "evidence.intoto.jsonl"], sorted(PARTS)], ids=len)
def test_an_earlier_run_or_an_empty_directory_may_be_replaced(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    _require_replaceable(tmp_path)
    _require_replaceable(tmp_path / "new" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "new"])
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("names", [["notes.txt"], [RUN, "notes.txt"], ["report.html"], [RUN, ".git"]], ids=str)
def test_anything_else_may_not(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="not an earlier run; name another --output"):
        _require_replaceable(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys(names, b"mine")


def test_keys_that_one_machine_made_for_itself_serve_development_only(tmp_path):
    """Else one line of a configuration would lift what holds development models back from other machines."""
    config = ReferenceConfig.load(None)
    production = dataclasses.replace(config, deployment=Deployment(environment="production"))
    with pytest.raises(UsageError, match="is for development, not for production"):
        run_reference(production, "builtin:cheque-digits", None, None, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()
