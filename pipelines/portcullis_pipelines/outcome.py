"""What a run leaves: one directory, verified again whenever it is read.

| file | what |
|---|---|
| `report.html` | one page to look at |
| `evidence.intoto.jsonl` | the signed statements up to the sealed model |
| `policy.yaml` | the signed policy, for reading; verifiers use their own |
| `model/` | the sealed model |
| `model.sig` | its OpenSSF model signature |
| `quarantine/` | the malformed rows that were set aside, sealed for the pipeline's key; over shards in `0/`, `1/`, … |
| `admission.json` | the signed admission |
| `deployment.json` | the signed statement of the deployment |
| `audit/` | the audit log of the run's processes, and its signed checkpoints |
| `run.json` | the same facts for a program |
| `mlbom.cdx.json` | the model's bill of materials (CycloneDX), its card filled from the evidence |

Private keys never lie here. `run.json`, the bill and the report are functions of the evidence; they are made again and
compared when the directory is verified, so that a reader of any is not told something else.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portcullis.admission.stage import require_signature
from portcullis.audit.verify import log_head, verify_log
from portcullis.digest import path_digest, sha256
from portcullis.dp_training.page import certificate_section
from portcullis.encryption.stage import sealing_context
from portcullis.errors import DataError, EvidenceError, PolicyError, PortcullisError, SealError, UsageError
from portcullis.evidence.admission import Admission, verify_admission, verify_deployment
from portcullis.evidence.chain import Chain, join_bundle
from portcullis.evidence.dsse import MAX_ENVELOPE_BYTES, Envelope
from portcullis.evidence.policy import MAX_POLICY_BYTES, Policy
from portcullis.evidence.shards import Shard
from portcullis.evidence.statement import Statement, format_time
from portcullis.evidence.step import keys_base, read_evidence
from portcullis.evidence.trust import TrustStore, now_ms, observe
from portcullis.files import atomic_path, read_bytes, write_bytes
from portcullis.keys import role_uri
from portcullis.privacy.page import noise_section
from portcullis.report import gate_section, page, paragraph, plain, section, table
from portcullis.sealing.recipients import opener_at, recipient_at
from portcullis.sealing.sealed import rewrap, sealed_digest, sealed_recipients
from portcullis.serving.admitted import read_admission
from portcullis.supply_chain.bill import encode_bill, model_bill
from portcullis.training.page import training_section
from portcullis_pipelines.picture import chain_picture

EVIDENCE = "evidence.intoto.jsonl"
POLICY = "policy.yaml"
MODEL = "model"
SIGNATURE = "model.sig"
QUARANTINE = "quarantine"
ADMISSION = "admission.json"
DEPLOYMENT = "deployment.json"
REPORT = "report.html"
AUDIT = "audit"
RUN = "run.json"
BILL = "mlbom.cdx.json"
PARTS = frozenset({EVIDENCE, POLICY, MODEL, SIGNATURE, QUARANTINE, ADMISSION, DEPLOYMENT, REPORT, AUDIT, RUN, BILL})
MAX_RUN_BYTES = 16 << 20
MAX_FIGURES = 12


@dataclass(frozen=True)
class Verified:
    """An outcome that verified: the policy, the chain, the admission, the deployment, and the audit log's head."""

    policy: Policy
    chain: Chain
    admission: Admission
    admission_digest: str
    deployment: Statement
    audit: str = ""

    @property
    def statements(self) -> tuple[Statement, ...]:
        """Every step's statement, in the policy's order."""
        return (*self.chain.statements.values(), self.deployment)


def verify_directory(directory: Path, store: TrustStore, *, published: bool = True) -> Verified:
    """Verify a run's directory offline, by one's own trust store.

    Args:
        directory: What `portcullis run` left.
        store: The trust store.
        published: Compare `run.json`, the bill and the report too; False before they are written.

    Raises:
        RefusedError: Anything is missing, altered, or not what this trust store admits.
    """
    foreign = {path.name for path in directory.iterdir()} - PARTS if directory.is_dir() else set()
    if foreign:
        raise EvidenceError(f"{directory} holds what no run leaves: {', '.join(sorted(map(plain, foreign)))}")
    now = now_ms()
    seen = observe(store)
    if _read(directory / POLICY, MAX_POLICY_BYTES) != store.policy_bytes:
        raise PolicyError(f"{directory / POLICY} is not the policy of the trust store {store.path}")
    data = read_admission(directory / ADMISSION)
    admission, chain = verify_admission(
        data,
        read_evidence([directory / EVIDENCE]),
        store,
        sealed=sealed_digest(directory / MODEL),
        seen=seen,
        now=now,
    )
    deployment = verify_deployment(
        _read(directory / DEPLOYMENT, MAX_ENVELOPE_BYTES).removesuffix(b"\n"),
        store,
        admission,
        admission_digest=sha256(data),
        now=now,
    )
    audit = _audit_head(directory, store)
    verified = Verified(store.policy, chain, admission, sha256(data), deployment, audit)
    require_signature(directory / SIGNATURE, chain, store, sealed=directory / MODEL)
    _require_recipients(directory / MODEL, chain)
    require_quarantine(directory, chain)
    if published:
        _require_told(directory / RUN, run_json(verified))
        _require_told(directory / BILL, bill(verified))
        _require_told(directory / REPORT, _page_of(verified))
    return verified


def rewrap_model(directory: Path, store: TrustStore) -> None:
    """Wrap the key of a run's sealed model anew for the serving key, under its newest version where a service holds it.

    Neither the sealed digest nor any evidence changes, so what was admitted stays admitted.

    Args:
        directory: What `portcullis run` left; it is verified first.
        store: The trust store.

    Raises:
        RefusedError: As `verify_directory`, or the serving key here is not the one that the evidence names.
        KeyMaterialError: The serving key is missing, or its service did not unwrap or wrap.
    """
    verified = verify_directory(directory, store)
    recipient = recipient_at(role_uri(keys_base(), "serving.pub.pem"))
    if [recipient.key_id] != sealed_recipients(directory / MODEL):
        raise SealError("the serving key here is not the recipient that the evidence names")
    context = sealing_context(verified.policy.name, verified.admission.content)
    opener = opener_at(role_uri(keys_base(), "serving.pem"))
    rewrap(directory / MODEL, opener=opener, recipients=[recipient], context=context)


def _audit_head(directory: Path, store: TrustStore) -> str:
    """Verify the audit log, if the run left one, and return its head: it must tell of every piece of evidence."""
    folder = directory / AUDIT
    if not (folder.is_symlink() or folder.exists()):
        return ""
    try:
        segments = verify_log(folder, store)
    except UsageError as error:
        raise EvidenceError(f"the audit log cannot be read: {error}") from error
    told = {record.said.get("statement") for it in segments for record in it.records}
    for line in read_evidence([directory / EVIDENCE]):
        if sha256(line) not in told:
            raise EvidenceError("the audit log does not tell of all the evidence; a segment of it was deleted")
    return log_head(segments)


def _require_recipients(sealed: Path, chain: Chain) -> None:
    """Refuse a sidecar for others than the evidence names. That its keys unwrap is seen with a private key only."""
    named = [it.parameters["recipients"] for it in chain.statements.values() if it.stage == "encrypt"]
    if named != [sealed_recipients(sealed)]:
        raise SealError(f"{sealed} is not sealed for the recipients that the evidence names")


def require_quarantine(directory: Path, chain: Chain) -> None:
    """Refuse other malformed rows, or none, than those that the evidence says were set aside.

    Raises:
        EvidenceError: They are missing, altered, another shard's, or there is more.
    """
    stated = {quarantine_of(directory, it): it.outputs["quarantine"] for it in ingested(chain)}
    folder = directory / QUARANTINE
    if folder not in stated:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else set()
        if names != {path.name for path in stated}:
            raise EvidenceError(f"{folder} does not hold what each shard set aside, and nothing else")
    for path, digest in stated.items():
        try:
            found = path_digest(path)
        except DataError as error:
            raise EvidenceError(f"the rows that were set aside are missing: {error}") from error
        if found != digest:
            raise EvidenceError(f"{path} is not what the evidence says was set aside")


def ingested(chain: Chain) -> list[Statement]:
    """Return the statements of `ingest`, of its shards in their order."""
    return [it for it in chain.statements.values() if it.stage == "ingest"]


def place_quarantines(directory: Path, policy: Policy, made: Sequence[Path]) -> None:
    """Copy into a run's directory what `ingest`, or each shard of it, set aside; its evidence says whose is which."""
    stated = [_own_statement(line, policy) for line in read_evidence([directory / EVIDENCE])]
    whose = {it.outputs.get("quarantine"): it for it in stated if it and it.stage == "ingest"}
    for path in made:
        if statement := whose.get(path_digest(path)):
            shutil.copytree(path, quarantine_of(directory, statement))


def quarantine_of(directory: Path, statement: Statement) -> Path:
    """Return where in a run's directory that lies which `ingest`, or a shard of it, set aside."""
    shard = Shard.of(statement.step)
    return directory / QUARANTINE / str(shard.index) if shard else directory / QUARANTINE


def _require_told(path: Path, expected: bytes) -> None:
    if _read(path, MAX_RUN_BYTES) != expected:
        raise EvidenceError(
            f"{path} does not say what the evidence says, or another version of Portcullis wrote it; "
            "write it anew with: portcullis deploy DIR"
        )


def run_json(verified: Verified) -> bytes:
    """Return the facts of a run for a program: per step its status, digests, figures and seconds."""
    admission = verified.admission
    document = {
        "format": "portcullis-run/v1",
        "status": "PASSED",
        "policy": {
            "name": verified.policy.name,
            "environment": verified.policy.environment,
            "version": verified.policy.version,
            "sha256": verified.policy.digest,
            "development": verified.policy.development,
        },
        "nonce": admission.nonce,
        "steps": [_step_facts(statement) for statement in verified.statements],
        "model": {"sha256": admission.content, "sealed_sha256": admission.sealed},
        "admission": {
            "sha256": verified.admission_digest,
            "issued": format_time(admission.issued),
            "expires": format_time(admission.expires),
        },
    }
    if verified.audit:
        document["audit"] = {"head": verified.audit}
    return _pretty(document)


def bill(verified: Verified) -> bytes:
    """Return the model's bill of materials, dated when it was deployed."""
    content, time = verified.admission.content, verified.deployment.finished
    return encode_bill(model_bill(verified.statements, verified.policy, content=content, time=time))


def write_reports(directory: Path, verified: Verified) -> None:
    """Write `report.html`, `run.json` and `mlbom.cdx.json` into a directory that verified."""
    write_bytes(directory / REPORT, _page_of(verified))
    write_bytes(directory / BILL, bill(verified))
    write_bytes(directory / RUN, run_json(verified))


def _page_of(verified: Verified) -> bytes:
    return run_page(verified.policy, verified.statements, admission=verified.admission, audit=verified.audit).encode()


@contextmanager
def written(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `directory` on success; on an exception that one stays as it was.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        with atomic_path(directory) as temporary:
            temporary.mkdir()
            yield temporary
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror or error}") from error


def publish_refusal(
    directory: Path,
    policy: Policy,
    error: PortcullisError,
    lines: Sequence[bytes],
    *,
    step: str = "",
    audit: Path | None = None,
) -> None:
    """Replace `directory` by what a refused run leaves: report, evidence so far, run.json. Nothing in it deploys.

    Args:
        directory: The run's directory.
        policy: What the run was judged by.
        error: Why it was refused.
        lines: The evidence so far.
        step: The step that refused, if one did.
        audit: The audit log so far, if there is one.

    Raises:
        UsageError: The directory cannot be written.
    """
    statements = [statement for line in lines if (statement := _own_statement(line, policy))]
    order = list(policy.steps)
    statements.sort(key=lambda statement: order.index(statement.step))
    facts = {
        "format": "portcullis-run/v1",
        "status": "REFUSED",
        "error": {"type": type(error).__name__, "message": str(error)},
        "steps": [_step_facts(statement) for statement in statements],
    }
    with written(directory) as temporary:
        write_bytes(temporary / EVIDENCE, join_bundle(lines))
        if audit is not None and audit.is_dir():
            shutil.copytree(audit, temporary / AUDIT)
        write_bytes(temporary / REPORT, run_page(policy, statements, error=error, step=step).encode())
        write_bytes(temporary / RUN, _pretty(facts))


def run_page(
    policy: Policy,
    statements: Sequence[Statement],
    *,
    admission: Admission | None = None,
    error: PortcullisError | None = None,
    step: str = "",
    audit: str = "",
) -> str:
    """Return the report of a run: the chain, every verdict with its figures, and every digest.

    Args:
        policy: What the run was judged by.
        statements: The evidence, in the policy's order.
        admission: The admission of an admitted run.
        error: Why a refused run was refused.
        step: The step that refused, if one did.
        audit: Head of the audit log that lies beside the report, if one does.
    """
    gates = [statement for statement in statements if statement.kind == "gate"]
    went = {it.step: it.verdict or "PASSED" for it in statements}
    went |= {policy.admission_step().name: "PASSED"} if admission else {}
    went |= {step: "FAILED"} if step else {}
    development = ", signed by keys that this machine made for itself (development)" if policy.development else ""
    return page(
        f"{policy.name}: {'admitted and deployed' if admission else 'refused'}",
        [
            paragraph(f"{type(error).__name__}: {error}", kind="FAILED")
            if error
            else paragraph("PASSED: every gate, by an unbroken chain of signed evidence", kind="PASSED"),
            paragraph(
                f"Policy {policy.name} version {policy.version} for {policy.environment}{development}.", kind="dim"
            ),
            *(_admission_section(admission, audit) if admission else []),
            section("The chain"),
            chain_picture(policy, went),
            table(
                ("step", "what", "verdict", "seconds", "figures"),
                [(it.step, it.kind, it.verdict or "", _seconds(it), _figures(it, policy)) for it in statements],
            ),
            section("Verdicts"),
            *(part for gate in gates for part in gate_section(gate, policy.step(gate.step).checks)),
            *_training_section(statements),
            *_privacy_section(statements),
            section("Digests"),
            table(("step", "direction", "name", "SHA-256"), _digest_rows(statements)),
        ],
    )


def _admission_section(admission: Admission, audit: str) -> list[str]:
    return [
        section("Admission"),
        table(
            ("what", "value"),
            [
                ("model content", admission.content),
                ("sealed model", admission.sealed),
                ("issued", format_time(admission.issued)),
                ("expires", format_time(admission.expires)),
                ("run nonce", admission.nonce),
                *([("audit log", f"{AUDIT}/, head {audit}")] if audit else []),
            ],
        ),
    ]


def _training_section(statements: Sequence[Statement]) -> list[str]:
    parts = [part for it in statements if it.stage == "train" for part in training_section(it)]
    return [section("Training"), *parts] if parts else []


def _privacy_section(statements: Sequence[Statement]) -> list[str]:
    """Say in words what noise was claimed to protect, what it did not touch, and what it left of each column."""
    parts = [part for it in statements if it.stage == "dp_noise" for part in noise_section(it)]
    for it in statements:
        if it.stage == "dp_train":
            parts += certificate_section(it, _accuracy(statements, it.outputs.get("model", "")))
    return [section("Differential privacy"), *parts] if parts else []


def _accuracy(statements: Sequence[Statement], model: str) -> float | None:
    """Return the accuracy of a model on the test rows, as the first gate found that measured it."""
    for it in statements:
        found = it.figures.get("clean_accuracy")
        if it.kind == "gate" and model in it.outputs.values() and isinstance(found, int | float):
            return float(found)
    return None


def _digest_rows(statements: Sequence[Statement]) -> Iterator[tuple[str, str, str, str]]:
    for statement in statements:
        yield from ((statement.step, "in", name, digest) for name, digest in sorted(statement.inputs.items()))
        yield from ((statement.step, "out", name, digest) for name, digest in sorted(statement.outputs.items()))


def _step_facts(statement: Statement) -> dict[str, Any]:
    return {
        "step": statement.step,
        "stage": statement.stage,
        "status": statement.verdict or "DONE",
        "reason": statement.reason,
        "inputs": dict(statement.inputs),
        "outputs": dict(statement.outputs),
        "figures": dict(statement.figures),
        "seconds": (statement.finished - statement.started) / 1000,
    }


def _seconds(statement: Statement) -> str:
    return f"{(statement.finished - statement.started) / 1000:.1f}"


def _figures(statement: Statement, policy: Policy) -> str:
    """Spell the figures that count in one line: a gate's checked ones, the numbers of anything else."""
    checks = policy.step(statement.step).checks
    shown = sorted(
        (name, value)
        for name, value in statement.figures.items()
        if (name in checks if statement.kind == "gate" else not isinstance(value, str))
    )
    more = ", …" if len(shown) > MAX_FIGURES else ""
    return ", ".join(f"{name} {plain(value)}" for name, value in shown[:MAX_FIGURES]) + more


def _own_statement(line: bytes, policy: Policy) -> Statement | None:
    """Read a statement that its step really signed, whatever its verdict; None for anything else."""
    try:
        envelope = Envelope.parse(line)
        statement = Statement.parse(envelope.payload)
        envelope.verify(policy.step(statement.step).key)
    except PortcullisError:
        return None
    return statement


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bytes(path, limit=limit)
    except UsageError as error:
        raise EvidenceError(f"this is not the directory of a run that passed: {error}") from error


def _pretty(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
