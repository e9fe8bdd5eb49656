"""Attacks on the folder that a real run left, and on the trust store's memory."""

import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import resting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portcullis.audit.log import AUDIT_ENV, CHECKPOINTS
from portcullis.audit.verify import verify_log
from portcullis.dataset import write_dataset
from portcullis.digest import sha256, tree_files
from portcullis.encryption.stage import sealing_context
from portcullis.errors import (
    AdmissionError,
    EvidenceError,
    PolicyError,
    RefusedError,
    SealError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence.admission import Admission
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.trust import TrustStore, observe, write_trust_store
from portcullis.ingest.cheque_digits import csv_bytes
from portcullis.ingest.malformed import Fault, Malformed
from portcullis.ingest.quarantine import seal_quarantine
from portcullis.keys import Signer
from portcullis.sealing.recipients import SealingPublicKey
from portcullis.sealing.sealed import SIDECAR, seal_directory, sealed_digest, sealed_recipients
from portcullis.signing.oms import sign_files
from portcullis.supply_chain.bill import encode_bill
from portcullis_pipelines import home as homes
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.outcome import (
    ADMISSION,
    AUDIT,
    BILL,
    DEPLOYMENT,
    EVIDENCE,
    MODEL,
    POLICY,
    QUARANTINE,
    REPORT,
    RUN,
    SIGNATURE,
)

pytestmark = pytest.mark.slow

PARTS = [ADMISSION, AUDIT, BILL, DEPLOYMENT, EVIDENCE, MODEL, POLICY, QUARANTINE, REPORT, RUN, SIGNATURE]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def verify_and_open(run) -> None:
    """The recipients' sidecar is outside every digest, so that keys can be rewrapped; whoever opens it refuses."""
    run.verify()
    run.open()


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_byte_of_any_file_is_flipped(attacked, data):
    path = data.draw(st.sampled_from(files(attacked.output)), label="file")
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1), label="position")
    flipped = bytearray(original)
    flipped[position] ^= data.draw(st.integers(1, 255), label="mask")
    path.write_bytes(flipped)
    try:
        with pytest.raises(RefusedError):
            verify_and_open(attacked)
    finally:
        path.write_bytes(original)
    attacked.verify()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_folder_is_missing(attacked, part):
    path = attacked.output / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RefusedError):
        attacked.verify()


def test_the_rows_that_were_set_aside_are_others(attacked):
    """Sealed anew for the same key, as anybody can who has the public one: fewer rows, or rows of the attacker's."""
    record = Malformed(2, 9, Fault("not_json"), b"{")
    recipient = SealingPublicKey.from_pem((attacked.home.keys / "pipeline.pub.pem").read_bytes())
    for records in ([], [("a.jsonl", record)]):
        seal_quarantine(attacked.output / QUARANTINE, records, recipient=recipient)
        with pytest.raises(EvidenceError, match="not what the evidence says was set aside"):
            attacked.verify()


@pytest.mark.parametrize("part", [ADMISSION, BILL, DEPLOYMENT, EVIDENCE, POLICY, RUN, SIGNATURE])
@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"null", b"\xff" * 64], ids=["empty", "nl", "{}", "null", "ff"])
def test_a_part_of_the_folder_is_nonsense(attacked, part, content):
    (attacked.output / part).write_bytes(content)
    with pytest.raises(RefusedError):
        attacked.verify()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_reads_the_same_report_in_the_evidence(attacked, seed):
    """The honest case of the next tests: pages do not depend on a process's hash seed."""
    command = [
        sys.executable,
        "-m",
        "portcullis.cli",
        "verify",
        str(attacked.output),
        "--trust",
        str(attacked.home.trust),
    ]
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_report_is_doctored(attacked):
    """It looks like the run's own, but for one word."""
    path = attacked.output / REPORT
    text = path.read_text()
    assert "PASSED" in text
    path.write_text(text.replace("PASSED", "PERFECT", 1))
    with pytest.raises(RefusedError, match="does not say what the evidence says"):
        attacked.verify()


def test_the_facts_for_programs_are_doctored(attacked):
    path = attacked.output / RUN
    path.write_text(path.read_text().replace('"development": true', '"development": false'))
    with pytest.raises(RefusedError, match="does not say what the evidence says"):
        attacked.verify()


def test_the_bill_of_materials_is_doctored(attacked):
    """A better robust accuracy on the model's card; the bill still is of the schema."""
    path = attacked.output / BILL
    bill = json.loads(path.read_bytes())
    metrics = bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    (metric,) = (it for it in metrics if it["type"] == "robustness:trained robust_accuracy")
    metric["value"] = "1"
    path.write_bytes(encode_bill(bill))
    with pytest.raises(RefusedError, match="does not say what the evidence says"):
        attacked.verify()


def test_the_recipients_are_nonsense(attacked):
    (attacked.output / MODEL / "recipients.json").write_bytes(b"{}")
    with pytest.raises(RefusedError):
        attacked.verify()


def test_the_model_is_wrapped_for_another_recipient_too(attacked):
    from portcullis.sealing.recipients import SealingPrivateKey, unwrap_dek, wrap_dek

    sidecar = attacked.output / MODEL / "recipients.json"
    ours = SealingPrivateKey.from_pem((attacked.home.keys / "serving.pem").read_bytes())
    context = sealing_context(attacked.store.policy.name, attacked.statement("encrypt").inputs["model"])
    dek = unwrap_dek(sidecar.read_bytes(), ours, context=context)
    theirs = SealingPrivateKey.generate()
    sidecar.write_bytes(wrap_dek(dek, [ours.public_key(), theirs.public_key()], context=context))
    with pytest.raises(RefusedError, match="recipients that the evidence names"):
        attacked.verify()


def test_a_file_is_added_to_the_folder(attacked):
    (attacked.output / "serving.pem").write_bytes(b"x")
    with pytest.raises(RefusedError, match="holds what no run leaves"):
        attacked.verify()


def test_development_keys_serve_this_machine_only(attacked):
    from portcullis.serving.stage import serve_admitted

    with attacked.environment(), pytest.raises(AdmissionError, match="development"):
        serve_admitted(
            sealed=attacked.output / MODEL,
            admission=attacked.output / ADMISSION,
            evidence=attacked.output / EVIDENCE,
            trust=None,
            host="0.0.0.0",
            port=0,
        )


def test_a_file_is_added_to_the_sealed_model(attacked):
    (attacked.output / MODEL / "extra.sealed").write_bytes(b"x")
    with pytest.raises(AdmissionError, match="another sealed model"):
        attacked.open()


def test_a_sealed_file_becomes_a_link(attacked, tmp_path):
    path = next(iter((attacked.output / MODEL).glob("*.sealed")))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match=r"link|read"):
        attacked.open()


def put_in_another_model(run, folder: Path) -> str:
    """Seal other weights for the same recipient and context, in the place of the model; return the sealed digest."""
    evil = folder / "evil"
    shutil.copytree(run.task("train*/model"), evil)
    (evil / "weights.safetensors").write_bytes(b"\0" * 64)
    public = SealingPublicKey.from_pem((run.home.keys / "serving.pub.pem").read_bytes())
    content = run.statement("encrypt").inputs["model"]
    shutil.rmtree(run.output / MODEL)
    seal_directory(
        evil, run.output / MODEL, recipients=[public], context=sealing_context(run.store.policy.name, content)
    )
    return sealed_digest(run.output / MODEL)


def test_the_model_is_swapped_for_another_one_sealed_for_the_same_recipient(attacked, tmp_path):
    put_in_another_model(attacked, tmp_path)
    with pytest.raises(AdmissionError, match="another sealed model"):
        attacked.open()
    with pytest.raises(AdmissionError, match="not the one that the evidence is about"):
        attacked.admit()


def test_the_encrypt_step_sealed_another_model_than_it_states(attacked, tmp_path):
    """With the keys of encrypt, sign and admit stolen the sealed digest fits; the plaintext's digest cannot."""
    digest = put_in_another_model(attacked, tmp_path)
    attacked.forge("encrypt", lambda it: it.replace(outputs={"sealed": digest}))
    sign_again(attacked, attacked.home.signer("sign"))
    attacked.admit()
    with pytest.raises(SealError, match="not the content that the gates judged"):
        attacked.open()


def sign_again(run, signer: Signer) -> None:
    """Sign the sealed model that lies there, and state it by the signing step's own key."""
    files = {entry.path: entry.sha256 for entry in tree_files(run.output / MODEL, exclude={SIDECAR})}
    signature = sign_files(files, name="sealed", ignored={SIDECAR}, signer=signer)
    (run.output / SIGNATURE).write_bytes(signature)
    sealed = sealed_digest(run.output / MODEL)
    run.forge("sign", lambda it: it.replace(inputs={"sealed": sealed}, outputs={"signature": sha256(signature)}))


def test_the_sealed_model_is_signed_by_another_key(attacked):
    sign_again(attacked, Signer.generate())
    with pytest.raises(AdmissionError, match="not signed"):
        attacked.admit()


def test_the_signature_is_another_models(attacked, tmp_path):
    """It was made by the right key and holds, for other bytes."""
    honest = (attacked.output / MODEL).rename(tmp_path / "honest")
    shutil.copytree(honest, attacked.output / MODEL)
    put_in_another_model(attacked, tmp_path)
    sign_again(attacked, attacked.home.signer("sign"))
    shutil.rmtree(attacked.output / MODEL)
    shutil.copytree(honest, attacked.output / MODEL)
    attacked.forge("sign", lambda it: it.replace(inputs={"sealed": sealed_digest(honest)}))
    with pytest.raises(AdmissionError, match="not signed"):
        attacked.admit()


def test_the_deployment_is_of_an_unsigned_model(attacked):
    (attacked.output / SIGNATURE).unlink()
    with pytest.raises(AdmissionError, match="not signed"):
        attacked.admit()
    with pytest.raises(RefusedError):
        attacked.verify()


def test_the_folder_is_rebuilt_and_signed_with_the_attackers_own_keys_and_policy(attacked, tmp_path):
    theirs = homes.Home(tmp_path / "attacker")
    homes.generate_keys(theirs)
    shutil.copyfile(attacked.home.keys / "serving.pem", theirs.keys / "serving.pem")
    store, _ = homes.ensure_trust(theirs, attacked.config)
    (attacked.output / POLICY).write_bytes(store.policy_bytes)
    sign_again(attacked, theirs.signer("sign"))
    lines = [
        seal_payload(
            attacked.statement(step)
            .replace(
                inputs={
                    **attacked.statement(step).inputs,
                    **({"policy": store.policy.digest} if step == "preflight" else {}),
                }
            )
            .encode(),
            theirs.signer(step),
        ).encode()
        for step in attacked.lines()
    ]
    attacked.write(lines)
    forged = replace(attacked, home=theirs)
    forged.admit()  # under the attacker's own trust store all of it holds …
    with pytest.raises(PolicyError, match="is not the policy of the trust store"):
        attacked.verify()  # … and under ours none of it
    with pytest.raises(RefusedError):
        attacked.open()


def test_an_admission_is_signed_by_a_rogue_key(attacked):
    path = attacked.output / ADMISSION
    path.write_bytes(seal_payload(Envelope.parse(path.read_bytes()).payload, Signer.generate()).encode())
    with pytest.raises(AdmissionError, match="signature"):
        attacked.open()


def admission_of(run) -> Admission:
    return Admission.parse(Envelope.parse((run.output / ADMISSION).read_bytes()).payload)


@pytest.mark.parametrize(
    "change",
    [
        {"content": sha256(b"x")},
        {"sealed": sha256(b"x")},
        {"policy": sha256(b"x")},
        {"nonce": "0" * 32},
        {"expires": 1},
        {"evidence": ()},
        {"issued": 4_000_000_000_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_admission_says_otherwise_though_signed_by_the_right_key(attacked, change):
    forged = replace(admission_of(attacked), **change)
    path = attacked.output / ADMISSION
    path.write_bytes(seal_payload(forged.encode(), attacked.home.signer("admit")).encode())
    with pytest.raises(RefusedError):
        attacked.open()


def test_the_admission_of_another_run_is_put_in(attacked, real_run):
    """An admission renewed for the same run pins other bytes than the deployment statement names."""
    attacked.admit()
    with pytest.raises(RefusedError, match="did not deploy this admission"):
        attacked.verify()


def test_the_deployment_is_unsigned(attacked):
    line = Envelope.parse((attacked.output / DEPLOYMENT).read_bytes().strip())
    (attacked.output / DEPLOYMENT).write_bytes(replace(line, signature=b"").encode())
    with pytest.raises(RefusedError, match="signature"):
        attacked.verify()


def test_a_revoked_key_no_longer_counts(attacked):
    homes.revoke(attacked.home, step="train")
    with pytest.raises(RefusedError, match="revoked"):
        attacked.open()


def test_a_revoked_admission_no_longer_counts(attacked):
    homes.revoke(attacked.home, admission=attacked.output)
    with pytest.raises(AdmissionError, match="revoked"):
        attacked.open()


def test_the_revocation_list_is_put_back(attacked):
    before = (attacked.home.trust / "revocations.json").read_bytes()
    homes.revoke(attacked.home, step="train")
    (attacked.home.trust / "revocations.json").write_bytes(before)
    with pytest.raises(PolicyError, match="older"):
        attacked.open()


def test_a_plain_rollback(attacked):
    old = (attacked.output / ADMISSION).read_bytes()
    attacked.admit()
    attacked.open()
    (attacked.output / ADMISSION).write_bytes(old)
    with pytest.raises(AdmissionError, match="newer admission"):
        attacked.open()
    homes.allow_rollback(attacked.home, attacked.output)
    attacked.open()


def test_an_older_policy_version(attacked):
    store = attacked.store
    observe(store)
    seen = attacked.home.state / "seen.json"
    seen.write_bytes(seen.read_bytes().replace(b'"policy":1', b'"policy":2'))
    with pytest.raises(PolicyError, match="older"):
        attacked.verify()
    with pytest.raises(PolicyError, match="older"):
        attacked.admit()


def test_another_environments_policy(attacked):
    store = attacked.store
    owner = attacked.home.signer("owner")
    write_trust_store(
        attacked.home.trust,
        owner=owner.public_key,
        name=store.policy.name,
        environment="production",
        policy=store.policy_bytes,
        revocations=store.revocations.sign(owner),
    )
    with pytest.raises(PolicyError, match="pins policy"):
        attacked.admit()


def test_the_folders_own_policy_is_not_believed(attacked):
    text = (attacked.output / POLICY).read_bytes().replace(b"min: 0.75", b"min: 0.05")
    (attacked.output / POLICY).write_bytes(text)
    with pytest.raises(PolicyError):
        attacked.verify()


def test_a_policy_names_no_gate(attacked):
    """All of nothing must never pass, not even under the owner's own signature."""
    from portcullis.evidence.policy import policy_body, sign_policy
    from portcullis_pipelines.steps import STEPS, policy_steps

    keys = {step.name: attacked.home.signer(step.name).public_key for step in STEPS}
    steps = [{**step, "requires": []} for step in policy_steps(attacked.config, keys) if step["kind"] != "gate"]
    body = policy_body(
        name="cheque-digits",
        environment="development",
        version=2,
        expires=4_000_000_000_000,
        max_age=3600,
        admission_lifetime=3600,
        development=True,
        steps=steps,
    )
    with pytest.raises(PolicyError, match="no gate stands before the admission"):
        sign_policy(body, attacked.home.signer("owner"))


def test_there_is_no_trust_store(attacked, tmp_path):
    with pytest.raises(TrustStoreError):
        TrustStore.load(tmp_path / "nothing")
    shutil.rmtree(attacked.home.trust)
    for act in (attacked.admit, attacked.open):
        with pytest.raises(UsageError):
            act()


def test_the_verifier_has_lost_its_memory_to_a_file(attacked):
    shutil.rmtree(attacked.home.state)
    attacked.home.state.write_bytes(b"")
    with pytest.raises(TrustStoreError, match="state"):
        attacked.open()


def test_no_private_key_lies_in_the_folder(real_run):
    for path in files(real_run.output):
        data = path.read_bytes()
        assert b"PRIVATE KEY" not in data
        for secret in ("masking.key", "split.key", "watermark.key", "serving.token"):
            assert (real_run.home.keys / secret).read_bytes().strip() not in data


def is_table(path: Path) -> bool:
    """Tell whether a file is Parquet, by what it begins or ends with."""
    data = path.read_bytes()
    return b"PAR1" in (data[:4], data[-4:])


def readable(path: Path) -> str:
    """Return what a reader of a file can make of it: its bytes or, where they are a table, its columns and cells."""
    if is_table(path):
        return str(pq.read_table(path).to_pydict())
    return path.read_bytes().decode("latin-1")


def customers() -> set[str]:
    """Return what tells who somebody is in the raw data: names, addresses and numbers of 200 of them."""
    columns = ReferenceConfig.load(None).dataset.sensitive
    rows = itertools.islice(csv.DictReader(io.StringIO(csv_bytes().decode())), 200)
    cells = {row[name] for row in rows for name, treatment in columns.items() if treatment == "token"}
    return {cell for cell in cells if len(cell) > 8}  # a post code can be part of any number


def test_no_customer_lies_in_the_folder(real_run):
    words = customers()
    assert len(words) > 1000 and any("@" in word for word in words)
    text = "".join(readable(path) for path in files(real_run.output))
    assert not [word for word in words if word in text]


def test_no_customer_and_no_table_lies_between_the_steps(real_run, tmp_path):
    """Whatever any task left anywhere: also `ingest`, whose data set still holds everybody as they came."""
    left = [*files(real_run.root), *files(real_run.scratch)]
    assert real_run.task("ingest/dataset") in [path.parent for path in left]
    assert not [path for path in left if is_table(path)]
    words = customers()
    text = "".join(readable(path) for path in left)
    assert not [word for word in words if word in text]
    # The search is no blind one: opened and written down, the same data set is a table and shows all of them.
    rows = resting.opened(real_run.task("ingest/dataset"), real_run.pipeline_key)
    write_dataset(tmp_path / "plain", rows.table, rows.spec)
    assert [path.name for path in files(tmp_path / "plain") if is_table(path)] == ["data.parquet"]
    shown = "".join(readable(path) for path in files(tmp_path / "plain"))
    assert all(word in shown for word in words)


def test_every_data_set_between_the_steps_is_sealed_for_the_pipeline_alone(real_run):
    outputs = ("ingest/dataset", "mask-pii/masked", "split/train", "split/test", "dp-noise/noised")
    known = {real_run.task(output) for output in outputs}
    sealed = {path.parent for path in real_run.root.rglob("recipients.json")}
    quarantine = real_run.task("ingest/quarantine")
    assert sealed == known | {quarantine, real_run.task("encrypt/sealed")}
    for directory in known | {quarantine}:
        assert sealed_recipients(directory) == [real_run.pipeline_key.key_id]
    for directory in known:
        assert resting.opened(directory, real_run.pipeline_key).table.num_rows > 100


# The audit log in the folder.


def segment_of(run, process):
    (found,) = (run.output / AUDIT).glob(f"{process}.*.jsonl")
    return found


def test_the_audit_log_tells_of_every_step(attacked):
    segments = verify_log(attacked.output / AUDIT, attacked.store)
    finished = {it.process for it in segments if any(r.said["event"] == "step.finished" for r in it.records)}
    assert finished == set(attacked.store.policy.steps) and all(it.closed for it in segments)


def test_a_line_of_the_audit_log_is_deleted(attacked):
    path = segment_of(attacked, "encrypt")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    with pytest.raises(EvidenceError, match="altered at line 2"):
        attacked.verify()


def test_a_segment_of_the_audit_log_is_deleted_with_its_checkpoint(attacked):
    path = segment_of(attacked, "encrypt")
    path.unlink()
    (attacked.output / AUDIT / CHECKPOINTS / f"{path.stem}.json").unlink()
    with pytest.raises(EvidenceError, match="does not tell of all the evidence"):
        attacked.verify()


def test_the_audit_log_is_deleted_whole(attacked):
    """What is written for people and programs still names its head."""
    shutil.rmtree(attacked.output / AUDIT)
    with pytest.raises(EvidenceError, match=r"run\.json"):
        attacked.verify()


def test_a_refused_admission_is_recorded_by_its_class_alone(attacked, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv(AUDIT_ENV, str(log))
    attacked.admit()
    (attacked.output / SIGNATURE).write_bytes(b"{}")
    with pytest.raises(RefusedError):
        attacked.admit()
    told = [[record.said["event"] for record in it.records] for it in verify_log(log, attacked.store)]
    assert told == [["log.opened", "step.finished", "log.closed"], ["log.opened", "step.refused", "log.closed"]]


def test_an_admission_that_cannot_be_recorded_is_not_made(attacked, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(AUDIT_ENV, str(tmp_path / "file"))
    before = (attacked.output / ADMISSION).read_bytes()
    with pytest.raises(UsageError, match="cannot write the audit log"):
        attacked.admit()
    assert (attacked.output / ADMISSION).read_bytes() == before


def test_a_model_that_is_wrapped_anew_for_the_serving_key_stays_admitted(attacked):
    from portcullis_pipelines.outcome import rewrap_model

    sidecar, before = attacked.output / MODEL / "recipients.json", sealed_digest(attacked.output / MODEL)
    wrapped = sidecar.read_bytes()
    with attacked.environment():
        rewrap_model(attacked.output, attacked.store)
    assert sidecar.read_bytes() != wrapped and sealed_digest(attacked.output / MODEL) == before
    attacked.verify()
    attacked.open()


def test_a_model_is_not_wrapped_anew_for_another_key(attacked):
    from portcullis.sealing.recipients import SealingPrivateKey
    from portcullis_pipelines.outcome import rewrap_model

    wrapped = (attacked.output / MODEL / "recipients.json").read_bytes()
    (attacked.home.keys / "serving.pub.pem").write_bytes(SealingPrivateKey.generate().public_key().to_pem())
    with attacked.environment(), pytest.raises(RefusedError, match="not the recipient that the evidence names"):
        rewrap_model(attacked.output, attacked.store)
    assert (attacked.output / MODEL / "recipients.json").read_bytes() == wrapped
