"""`deploy`: bring an admitted model up, ask it what it must answer and what it must refuse, and sign the answers.

The local target starts the serving runtime on a free loopback port, with its own trust store and the serving keys, and
stops it when it has answered; `portcullis serve` starts the same runtime to stay.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

from portcullis.deploy.local import run_local
from portcullis.deploy.probe import ProbeReport, figures, probe
from portcullis.encryption.sealed import sealed_digest
from portcullis.errors import EvidenceError, GateFailedError, UsageError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import KEYS_ENV, Step, begin_deployment, keys_base
from portcullis.evidence.trust import STATE_ENV, TRUST_ENV, state_directory
from portcullis.keys import role_uri
from portcullis.serving.admitted import read_admission
from portcullis.serving.stage import INPUT_NAME, bearer_token

LOCAL = "local"
START_SECONDS = 60.0
DEADLINE_SECONDS = 120.0


def deploy(*, step: str, sealed: Path, admission: Path, evidence: Path, target: str, deployment: Path) -> Statement:
    """Deploy an admitted model and sign how it answered; refuses unless it answered as the policy demands.

    Args:
        step: This step's name in the policy.
        sealed: The sealed model's directory.
        admission: The admission.
        evidence: The bundle that the admission was issued for.
        target: `local`.
        deployment: Where the signed statement goes.

    Raises:
        UsageError: The target is unknown.
        AdmissionError: The admission does not hold.
        EvidenceError: The chain behind it does not hold.
        DeploymentError: The server did not come up.
        GateFailedError: It answered wrongly.
    """
    if target != LOCAL:
        raise UsageError(f"target {target!r} is unknown; known targets: {LOCAL}")
    begun = begin_deployment(
        step,
        stage="deploy",
        parameters={"target": target},
        sealed=sealed_digest(sealed),
        admission=read_admission(admission),
        evidence=[evidence],
    )
    report = _probe_local(begun, sealed=sealed, admission=admission, evidence=evidence)
    answers: dict[str, Figure] = {**figures(report), "label": report.label or ""}
    statement = begun.finish(bundle=deployment, figures=answers)
    if statement.verdict != "PASSED":
        raise GateFailedError(f"step {step!r}: the server did not answer as the policy demands: {statement.reason}")
    return statement


def _probe_local(begun: Step, *, sealed: Path, admission: Path, evidence: Path) -> ProbeReport:
    spec = next((it.parameters["spec"] for it in begun.chain.statements.values() if it.stage == "ingest"), None)
    if spec is None:
        raise EvidenceError("the chain does not say what the model's input is; no step of it is an ingest")
    features = spec["features"]
    with tempfile.TemporaryDirectory(prefix="portcullis-deploy-") as scratch:
        ready_file = Path(scratch) / "port"
        command = [
            sys.executable,
            "-m",
            "portcullis.serving",
            *("--sealed", str(sealed)),
            *("--admission", str(admission)),
            *("--evidence", str(evidence)),
            *("--ready-file", str(ready_file)),
        ]
        return run_local(
            command,
            environment=_server_environment(begun),
            ready_file=ready_file,
            probe=lambda host, port: probe(
                host,
                port,
                token=bearer_token(),
                model=begun.store.policy.name,
                input_name=INPUT_NAME,
                labels=spec["label"]["classes"],
                good_row=[float(features["low"])] * math.prod(features["shape"]),
                timeout=START_SECONDS,
            ),
            deadline=DEADLINE_SECONDS,
        )


def _server_environment(begun: Step) -> dict[str, str]:
    """Return what the server needs and nothing else of what this process was given.

    Keys in the environment are handed on one by one. A `file:` base is handed on as it is: on one machine, one user.
    """
    base = keys_base()
    uris = [role_uri(base, role) for role in ("serving.pem", "serving.token")]
    variables = [uri.removeprefix("env:") for uri in uris if uri.startswith("env:")]
    return {
        **{name: os.environ[name] for name in variables if name in os.environ},
        "PATH": os.environ.get("PATH", os.defpath),
        TRUST_ENV: str(begun.store.path),
        STATE_ENV: str(state_directory(begun.store.path)),
        KEYS_ENV: base,
    }
