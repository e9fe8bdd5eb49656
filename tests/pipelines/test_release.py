"""The release by itself: what a run of secure_training left in a store is judged by the release's own trust store."""

import json
import os
import subprocess
import sys

import pytest

from portcullis.digest import sha256
from portcullis.evidence.admission import verify_admission, verify_deployment
from portcullis.evidence.step import read_evidence
from portcullis.evidence.trust import Seen, now_ms
from portcullis.sealing.sealed import sealed_digest
from portcullis_pipelines import home as homes
from portcullis_pipelines.home import Home
from portcullis_pipelines.steps import STEPS

pytestmark = pytest.mark.slow

CODE = """
import json, sys
from pathlib import Path
from portcullis_pipelines.local import run_pipeline
from portcullis_pipelines.reference import release_from_storage
request = json.load(sys.stdin)
run_pipeline(release_from_storage, request["arguments"], Path(request["root"]))
"""


def release(run, folder, home: Home, **changed):
    arguments = {
        "sealed_uri": str(run.task("encrypt/sealed")),
        "signature_uri": str(run.task("sign/signature")),
        "evidence_uri": str(run.task("sign/signature_evidence")),
        "target": "local",
        "cluster": {},
        **changed,
    }
    return subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps({"arguments": arguments, "root": str(folder / "root")}),
        env={**os.environ, **home.environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
    )


def only_release_keys(home: Home) -> None:
    """Take every key away that the release's namespace does not hold."""
    kept = {name for step in STEPS if step.part == "release" for name in (step.key_file, *step.keys)}
    for path in home.keys.iterdir():
        if path.name not in kept:
            path.unlink()
    assert (
        {path.name for path in home.keys.iterdir()}
        == kept
        == {"admit.pem", "deploy.pem", "serving.pem", "serving.token"}
    )


def test_the_release_needs_no_key_of_the_training(attacked, tmp_path):
    only_release_keys(attacked.home)
    done = release(attacked, tmp_path, attacked.home)
    assert done.returncode == 0, done.stdout + done.stderr
    (admission,) = (tmp_path / "root").glob("**/admission")
    (deployment,) = (tmp_path / "root").glob("**/deployment")
    sealed = sealed_digest(attacked.task("encrypt/sealed"))
    admitted, _ = verify_admission(
        admission.read_bytes(),
        read_evidence([attacked.task("sign/signature_evidence")]),
        attacked.store,
        sealed=sealed,
        seen=Seen(),
        now=now_ms(),
    )
    statement = verify_deployment(
        deployment.read_bytes().strip(),
        attacked.store,
        admitted,
        admission_digest=sha256(admission.read_bytes()),
        now=now_ms(),
    )
    assert (statement.verdict, statement.figures["good"]) == ("PASSED", 200)


def test_another_owners_release_admits_nothing_of_this_run(attacked, tmp_path):
    theirs = Home(tmp_path / "theirs")
    homes.generate_keys(theirs)
    homes.ensure_trust(theirs, attacked.config)
    done = release(attacked, tmp_path, theirs)
    assert done.returncode != 0
    assert "signature is not by key" in done.stderr
    assert not list((tmp_path / "root").glob("**/admission"))


@pytest.mark.parametrize("name", ["sealed_uri", "signature_uri", "evidence_uri"])
def test_what_is_not_in_the_store_is_not_released(attacked, tmp_path, name):
    done = release(attacked, tmp_path, attacked.home, **{name: str(tmp_path / "nothing")})
    assert done.returncode != 0
    assert not list((tmp_path / "root").glob("**/admission"))
    assert not list((tmp_path / "root").glob("**/deployment"))
