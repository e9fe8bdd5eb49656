"""Evidence of tasks that Portcullis did not run: where a chain begins, and what is attested of what."""

import os
from pathlib import Path

import pytest
from foreign import ForeignPipeline, step

from portcullis.attestation.stage import attest, start_chain
from portcullis.digest import file_digest, sha256, tree_digest
from portcullis.errors import DataError, EvidenceError, KeyMaterialError, PolicyError, TrustStoreError
from portcullis.evidence.chain import split_bundle, verify_chain
from portcullis.evidence.policy import verify_policy
from portcullis.evidence.statement import Statement
from portcullis.evidence.trust import now_ms
from portcullis.keys import Signer

TRAINING = step("my_training", "attest", {"material": "start_chain.artifact"}, "product")
EXPORT = step("my_export", "attest", {"material": "my_training.product"}, "product")


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForeignPipeline:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"\x01\x02")
    (tmp_path / "rows.csv").write_bytes(b"1,2\n")
    (tmp_path / "export.bin").write_bytes(b"\x03")
    return ForeignPipeline(tmp_path, monkeypatch, TRAINING, EXPORT)


def started(pipeline: ForeignPipeline, to: str = "start_chain") -> Statement:
    return start_chain(step="start_chain", artifact=pipeline.root / "rows.csv", bundle=pipeline.bundle(to))


def trained(pipeline: ForeignPipeline, **changes: object) -> Statement:
    settings = {
        "step": "my_training",
        "material": pipeline.root / "rows.csv",
        "product": pipeline.root / "model",
        "evidence": pipeline.bundle("start_chain"),
        "bundle": pipeline.bundle("my_training"),
    }
    return attest(**(settings | changes))


def exported(pipeline: ForeignPipeline) -> Statement:
    return attest(
        step="my_export",
        material=pipeline.root / "model",
        product=pipeline.root / "export.bin",
        evidence=pipeline.bundle("my_training"),
        bundle=pipeline.bundle("my_export"),
    )


def test_a_foreign_pipeline_leaves_one_chain(pipeline):
    begun = started(pipeline)
    assert begun.outputs == {"artifact": file_digest(pipeline.root / "rows.csv")}
    assert trained(pipeline).outputs == {"product": tree_digest(pipeline.root / "model")}
    assert exported(pipeline).inputs == {"material": tree_digest(pipeline.root / "model")}
    policy = verify_policy((pipeline.root / "trust" / "policy.yaml").read_bytes(), pipeline.owner.public_key)
    lines = split_bundle(pipeline.bundle("my_export").read_bytes())
    chain = verify_chain(lines, policy, needed=policy.steps, judged_at=now_ms())
    assert list(chain.statements) == ["start_chain", "my_training", "my_export"]
    assert chain.nonce == begun.nonce
    assert chain.output("my_export.product") == sha256(b"\x03")


def test_a_statement_says_that_portcullis_did_not_run_the_task(pipeline):
    started(pipeline)
    statement = trained(pipeline)
    assert statement.figures == {"ran_by": "not Portcullis"}
    assert (statement.kind, statement.verdict) == ("transform", None)


def test_every_run_has_its_own_nonce(pipeline):
    assert started(pipeline).nonce != started(pipeline).nonce


def test_a_material_that_was_swapped_is_refused(pipeline):
    started(pipeline)
    (pipeline.root / "other.csv").write_bytes(b"3,4\n")
    with pytest.raises(EvidenceError, match=r"'material' is not start_chain\.artifact; it was swapped"):
        trained(pipeline, material=pipeline.root / "other.csv")
    (pipeline.root / "rows.csv").write_bytes(b"1,3\n")
    with pytest.raises(EvidenceError, match="swapped or altered"):
        trained(pipeline)
    assert not pipeline.bundle("my_training").exists()


def test_a_product_that_changed_afterwards_goes_no_further(pipeline):
    started(pipeline)
    trained(pipeline)
    (pipeline.root / "model" / "weights").write_bytes(b"\x01\x03")
    with pytest.raises(EvidenceError, match=r"'material' is not my_training\.product; it was swapped"):
        exported(pipeline)
    assert not pipeline.bundle("my_export").exists()


def test_a_step_that_was_left_out_is_missed(pipeline):
    started(pipeline)
    with pytest.raises(EvidenceError, match="no evidence of step 'my_training'"):
        attest(
            step="my_export",
            material=pipeline.root / "model",
            product=pipeline.root / "export.bin",
            evidence=pipeline.bundle("start_chain"),
            bundle=pipeline.bundle("my_export"),
        )


def test_evidence_of_another_run_is_refused(pipeline):
    started(pipeline)
    trained(pipeline)
    own = split_bundle(pipeline.bundle("my_training").read_bytes())[1]
    started(pipeline)
    pipeline.bundle("my_training").write_bytes(pipeline.bundle("start_chain").read_bytes() + own + b"\n")
    with pytest.raises(EvidenceError, match="from another run"):
        exported(pipeline)


def test_a_step_that_the_policy_does_not_name_is_refused(pipeline):
    started(pipeline)
    with pytest.raises(PolicyError, match="knows no step 'their_training'"):
        trained(pipeline, step="their_training")


def test_a_step_of_another_stage_is_refused(pipeline):
    with pytest.raises(PolicyError, match="is of stage attest, not start_chain"):
        start_chain(step="my_training", artifact=pipeline.root / "rows.csv", bundle=pipeline.bundle("start_chain"))
    started(pipeline)
    with pytest.raises(PolicyError, match="is of stage start_chain, not attest"):
        trained(pipeline, step="start_chain")


def test_another_steps_key_is_refused(pipeline):
    started(pipeline)
    pipeline.put_key("my_training", pipeline.keys["my_export"])
    with pytest.raises(PolicyError, match="is not the one that the policy names"):
        trained(pipeline)
    pipeline.put_key("start_chain", Signer.generate())
    with pytest.raises(PolicyError, match="is not the one that the policy names"):
        started(pipeline, to="again")
    assert not pipeline.bundle("my_training").exists() and not pipeline.bundle("again").exists()


def test_a_revoked_key_is_refused(pipeline):
    started(pipeline)
    pipeline.furnish(revoked=frozenset({pipeline.keys["my_training"].public_key.keyid}))
    with pytest.raises(EvidenceError):  # the policy was signed anew, so what came before is another policy's
        trained(pipeline)
    started(pipeline)
    with pytest.raises(PolicyError, match="is revoked"):
        trained(pipeline)


def test_without_a_key_or_a_trust_store_nothing_is_signed(pipeline, monkeypatch):
    (pipeline.root / "keys" / "start_chain.pem").unlink()
    with pytest.raises(KeyMaterialError):
        started(pipeline)
    monkeypatch.setenv("PORTCULLIS_TRUST", str(pipeline.root / "nowhere"))
    with pytest.raises(TrustStoreError):
        started(pipeline)
    assert not pipeline.bundle("start_chain").exists()


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "rows.csv")


BAD_ARTIFACTS = {
    "missing": lambda path: None,
    "empty directory": lambda path: path.mkdir(),
    "link": _link,
    "link in a directory": lambda path: (path.mkdir(), _link(path / "link")),
    "named pipe": os.mkfifo,
}


@pytest.mark.parametrize("make", BAD_ARTIFACTS.values(), ids=BAD_ARTIFACTS.keys())
def test_what_is_no_sound_artifact_is_refused(pipeline, make):
    started(pipeline)
    bad = pipeline.root / "bad"
    make(bad)
    with pytest.raises(DataError):
        trained(pipeline, product=bad)
    with pytest.raises(DataError):
        trained(pipeline, material=bad)
    with pytest.raises(DataError):
        start_chain(step="start_chain", artifact=bad, bundle=pipeline.bundle("again"))
    assert not pipeline.bundle("my_training").exists() and not pipeline.bundle("again").exists()
