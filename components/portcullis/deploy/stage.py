"""`deploy`: bring an admitted model up, ask it what it must answer and what it must refuse, and sign the answers.

The local target starts the serving runtime on a free loopback port, with its own trust store and the serving keys, and
stops it when it has answered; `portcullis serve` starts the same runtime to stay. The kubernetes target applies the
server's manifests to a cluster, asks the server through its Service, and rolls back unless it answers as it must.
"""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portcullis.audit.log import AUDIT_ENV, CHECKPOINTS_ENV
from portcullis.deploy.cluster import Cluster, connect, rolled_out
from portcullis.deploy.local import run_local
from portcullis.deploy.manifests import MANIFESTS, Object, Subject, render, to_yaml
from portcullis.deploy.probe import ProbeReport, figures, probe
from portcullis.deploy.settings import PORT, ServingSettings
from portcullis.digest import sha256
from portcullis.errors import AdmissionError, EvidenceError, GateFailedError, UsageError
from portcullis.evidence.admission import Admission, admission_identity
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import KEYS_ENV, Step, begin_deployment, keys_base
from portcullis.evidence.trust import STATE_ENV, TRUST_ENV, observe, state_directory
from portcullis.files import atomic_path, write_bytes
from portcullis.keys import role_uri, variables_for
from portcullis.sealing.sealed import sealed_digest
from portcullis.serving.admitted import read_admission
from portcullis.serving.stage import INPUT_NAME, bearer_token

LOCAL = "local"
KUBERNETES = "kubernetes"
START_SECONDS = 60.0
DEADLINE_SECONDS = 120.0


def deploy(
    *,
    step: str,
    sealed: Path,
    admission: Path,
    evidence: Path,
    target: str,
    deployment: Path,
    cluster: Mapping[str, Any] | None = None,
    uris: Mapping[str, str] | None = None,
    manifests: Path | None = None,
    api: Cluster | None = None,
    address: tuple[str, int] | None = None,
) -> Statement:
    """Deploy an admitted model and sign how it answered; refuses unless it answered as the policy demands.

    Args:
        step: This step's name in the policy.
        sealed: The sealed model's directory.
        admission: The admission.
        evidence: The bundle that the admission was issued for.
        target: `local` or `kubernetes`.
        deployment: Where the signed statement goes.
        cluster: For `kubernetes`, what `settings.ServingSettings.parse` reads.
        uris: For `kubernetes`, where a pod finds `sealed`, `admission` and `evidence`.
        manifests: Where the applied objects go as YAML, none for `local`; nowhere when None.
        api: The cluster; the one that `connect` finds when None.
        address: Host and port of the server on a cluster; its Service's when None.

    Raises:
        UsageError: The target is unknown, or there is no cluster.
        ConfigError: The cluster's settings are not sound.
        AdmissionError: The admission does not hold, a newer one is deployed, or it is for development only.
        EvidenceError: The chain behind it does not hold.
        DeploymentError: The server did not come up; on a cluster, what was there before is there again.
        GateFailedError: It answered wrongly; likewise.
    """
    if target not in (LOCAL, KUBERNETES):
        raise UsageError(f"target {target!r} is unknown; known targets: {LOCAL}, {KUBERNETES}")
    if target == LOCAL and cluster:
        raise UsageError("the local target has no cluster; leave cluster empty")
    settings = ServingSettings.parse(cluster or {}) if target == KUBERNETES else None
    data = read_admission(admission)
    begun = begin_deployment(
        step,
        stage="deploy",
        parameters={"target": target, "cluster": dict(cluster or {})},
        sealed=sealed_digest(sealed),
        admission=data,
        evidence=[evidence],
    )
    if settings is None:
        report = _probe_local(begun, sealed=sealed, admission=admission, evidence=evidence)
        return _passed(begun, _signed(begun, report, [], deployment=deployment, manifests=manifests))
    admitted = Admission.parse(Envelope.parse(data).payload)  # verified above
    if admitted.development:
        raise AdmissionError("admitted under development keys: deploys to the local target only, not to a cluster")
    name = begun.store.policy.name
    objects = render(settings, name=name, subject=_subject(begun, admitted, data), uris=uris or {})
    may_go_back = admission_identity(data) in begun.store.revocations.rollbacks
    question = _question(begun)
    with contextlib.ExitStack() as published:
        # They take their names on the way out, when nothing fails any more: what was rolled back must not say PASSED.
        bundle = published.enter_context(atomic_path(deployment))
        listing = None if manifests is None else published.enter_context(atomic_path(manifests))
        with rolled_out(api or connect(), objects, may_go_back=may_go_back) as applied:
            host, port = address or (f"{name}.{settings.namespace}.svc", PORT)
            report = probe(host, port, **question)
            statement = _signed(begun, report, objects, deployment=bundle, manifests=listing, applied=vars(applied))
            if statement.verdict != "PASSED":
                bundle.rename(deployment)
            _passed(begun, statement)
            observe(begun.store, deployed=admitted.issued)
    return statement


def _subject(begun: Step, admitted: Admission, data: bytes) -> Subject:
    return Subject(
        content=admitted.content,
        sealed=admitted.sealed,
        admission=sha256(data),
        issued=admitted.issued,
        policy_version=begun.store.policy.version,
        revocations_version=begun.store.revocations.version,
    )


def _signed(
    begun: Step,
    report: ProbeReport,
    objects: list[Object],
    *,
    deployment: Path,
    manifests: Path | None,
    applied: Mapping[str, int] | None = None,
) -> Statement:
    answers: dict[str, Figure] = {**figures(report), "label": report.label or "", **(applied or {})}
    if objects:
        answers["manifests"] = objects[0]["metadata"]["annotations"][MANIFESTS]
    if manifests is not None:
        write_bytes(manifests, to_yaml(objects).encode())
    return begun.finish(bundle=deployment, figures=answers)


def _passed(begun: Step, statement: Statement) -> Statement:
    if statement.verdict != "PASSED":
        raise GateFailedError(
            f"step {begun.rule.name!r}: the server did not answer as the policy demands: {statement.reason}"
        )
    return statement


def _question(begun: Step) -> dict[str, Any]:
    """Return the arguments of `probe`, but for where the server is."""
    spec = next((it.parameters["spec"] for it in begun.chain.statements.values() if it.stage == "ingest"), None)
    if spec is None:
        raise EvidenceError("the chain does not say what the model's input is; no step of it is an ingest")
    features = spec["features"]
    return {
        "token": bearer_token(),
        "model": begun.store.policy.name,
        "input_name": INPUT_NAME,
        "labels": spec["label"]["classes"],
        "good_row": [float(features["low"])] * math.prod(features["shape"]),
        "timeout": START_SECONDS,
    }


def _probe_local(begun: Step, *, sealed: Path, admission: Path, evidence: Path) -> ProbeReport:
    question = _question(begun)
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
            probe=lambda host, port: probe(host, port, **question),
            deadline=DEADLINE_SECONDS,
        )


def _server_environment(begun: Step) -> dict[str, str]:
    """Return what the server needs and nothing else of what this process was given.

    Keys in the environment are handed on one by one, and what authorises the use of keys that a service holds. A
    `file:` base is handed on as it is: on one machine, one user.
    """
    base = keys_base()
    roles = ["serving.pem", "serving.token"]
    if AUDIT_ENV in os.environ:  # the server signs its part by this step's key
        roles.append(f"{begun.rule.name}.pem")
    variables = [name for role in roles for name in variables_for(role_uri(base, role))]
    return {
        **{name: os.environ[name] for name in (*variables, AUDIT_ENV, CHECKPOINTS_ENV) if name in os.environ},
        "PATH": os.environ.get("PATH", os.defpath),
        TRUST_ENV: str(begun.store.path),
        STATE_ENV: str(state_directory(begun.store.path)),
        KEYS_ENV: base,
    }
