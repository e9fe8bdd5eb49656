"""Serve an admitted model: what `deploy` starts and `portcullis serve` runs."""

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from portcullis.audit.log import SERVER, Refusals, open_log, recording
from portcullis.digest import sha256
from portcullis.errors import AdmissionError, KeyMaterialError, PolicyError
from portcullis.evidence.step import keys_base, signer_for
from portcullis.evidence.trust import TrustStore
from portcullis.keys import Signer, resolve, role_uri
from portcullis.sealing.recipients import opener_at
from portcullis.serving.admitted import AdmittedModel, open_admitted

if TYPE_CHECKING:
    from portcullis.serving.protocol import ServedModel

INPUT_NAME = "input"


def bearer_token() -> str:
    """Return the token that clients of the server must send.

    Raises:
        KeyMaterialError: There is none, or it is not ASCII text.
    """
    try:
        return resolve(role_uri(keys_base(), "serving.token")).strip().decode("ascii")
    except UnicodeDecodeError as error:
        raise KeyMaterialError("the serving token is not ASCII text") from error


def model_version(content: str) -> str:
    """Return a model's version in URLs: the first 12 characters of its content digest."""
    return content[:12]


def serve_admitted(
    *,
    sealed: Path,
    admission: Path,
    evidence: Path,
    trust: Path | None,
    host: str,
    port: int,
    ready_file: Path | None = None,
) -> None:
    """Verify, decrypt in memory, and serve until SIGTERM.

    The process forbids core dumps and tracing before the model's plaintext exists in it.

    Raises:
        TrustStoreError: There is no trust store.
        RefusedError: Admission, evidence, seal or model do not hold, or a development admission is to be served to
            other machines; nothing is served.
        KeyMaterialError: The serving key or token is missing.
        UsageError: The address cannot be listened on.
    """
    from portcullis.serving.app import build_app
    from portcullis.serving.server import harden_process, serve

    harden_process()
    audit = open_log(SERVER, lambda: _audit_signer(trust))
    with recording(audit):
        admitted = open_admitted(
            sealed=sealed,
            admission=admission,
            evidence=evidence,
            trust=trust,
            key=opener_at(role_uri(keys_base(), "serving.pem")),
        )
        content = admitted.admission.content
        if audit is not None:
            audit.append("model.opened", model=content)
        if admitted.admission.development and not _is_loopback(host):
            raise AdmissionError(f"admitted under development keys: serves the local target only, not {host}")
        refusals = Refusals(audit)
        token_digest = sha256(bearer_token().encode())
        app = build_app(served_model(admitted), token_digest=token_digest, refused=refusals.count)
        if audit is not None:
            audit.append("server.started", model=content)
        serve(app, host=host, port=port, ready_file=ready_file)
        refusals.flush()


def _audit_signer(trust: Path | None) -> Signer:
    """Return the key of the step that deploys, by which a server signs its audit log."""
    store = TrustStore.load(trust)
    rule = next((it for it in store.policy.steps.values() if it.stage == "deploy"), None)
    if rule is None:
        raise PolicyError("the policy has no step that deploys, whose key the server could sign its audit log by")
    return signer_for(store, rule)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def served_model(admitted: AdmittedModel) -> "ServedModel":
    """Return the admitted model as the server sees it."""
    from portcullis.serving.protocol import ServedModel

    loaded = admitted.model
    return ServedModel(
        name=admitted.admission.policy_name,
        version=model_version(admitted.admission.content),
        input_name=INPUT_NAME,
        shape=loaded.spec.shape,
        low=loaded.spec.low,
        high=loaded.spec.high,
        labels=loaded.spec.labels,
        predict=loaded.predict_logits,
    )
