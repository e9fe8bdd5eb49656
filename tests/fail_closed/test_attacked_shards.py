"""Attacks on a run over shards: whatever is left out, put in, repeated or altered, the shards are not joined."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sharded_run as small

from portcullis.at_rest import pipeline_key
from portcullis.errors import DataError, EvidenceError, GateFailedError, PolicyError, PortcullisError, UsageError
from portcullis.evidence.chain import join_bundle, split_bundle, verify_chain
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import enforce
from portcullis.evidence.trust import TrustStore, now_ms
from portcullis.ingest.quarantine import open_quarantine
from portcullis.ingest.stage import ingest, plan_shards, survey_shard
from portcullis.pii.stage import mask_pii
from portcullis.preflight.stage import preflight
from portcullis.sharding.stage import merge_shards
from portcullis_pipelines import outcome


@pytest.fixture
def run(sharded_run):
    with sharded_run.environment():
        yield sharded_run


def merge(run, folder: Path, *, datasets=None, evidence=None) -> Statement:
    return merge_shards(
        step="merge_shards",
        datasets=run.shards("mask-pii/masked") if datasets is None else datasets,
        evidence=run.shards("enforce/passed") if evidence is None else evidence,
        merged=folder / "merged",
        bundle=folder / "bundle",
    )


def refused(run, folder: Path, error: type[PortcullisError], match: str, **given) -> None:
    with pytest.raises(error, match=match):
        merge(run, folder, **given)
    assert not (folder / "merged").exists() and not (folder / "bundle").exists()


def forged(run, folder: Path, step: str, change: Callable[[Statement], Statement]) -> list[Path]:
    """Return the shards' evidence with one statement changed, signed by its step's own key."""
    bundles = []
    for place, path in enumerate(run.shards("enforce/passed")):
        lines = []
        for line in split_bundle(path.read_bytes()):
            statement = Statement.parse(Envelope.parse(line).payload)
            if statement.step == step:
                signer = run.home.signer(step.partition("#")[0])
                line = seal_payload(change(statement).encode(), signer).encode()
            lines.append(line)
        bundles.append(folder / f"forged-{place}")
        bundles[-1].write_bytes(join_bundle(lines))
    return bundles


def test_an_honest_run_is_joined_whatever_order_it_comes_in(run, tmp_path: Path) -> None:
    masked, evidence = run.shards("mask-pii/masked"), run.shards("enforce/passed")
    first = merge(run, tmp_path)
    (tmp_path / "again").mkdir()
    again = merge(run, tmp_path / "again", datasets=masked[::-1], evidence=[evidence[1], evidence[2], evidence[0]])
    assert first.outputs == again.outputs and first.figures == again.figures


def test_a_shard_is_left_out(run, tmp_path: Path) -> None:
    masked, evidence = run.shards("mask-pii/masked"), run.shards("enforce/passed")
    refused(run, tmp_path, EvidenceError, "#1/3", datasets=[masked[0], masked[2]], evidence=[evidence[0], evidence[2]])
    refused(run, tmp_path, EvidenceError, "a shard is missing", datasets=[masked[0], masked[2]])
    refused(run, tmp_path, EvidenceError, "no evidence of step", datasets=[], evidence=[])


def test_a_shard_is_put_in_twice(run, tmp_path: Path) -> None:
    masked = run.shards("mask-pii/masked")
    refused(run, tmp_path, EvidenceError, "repeated", datasets=[*masked, masked[0]])
    refused(run, tmp_path, EvidenceError, "a shard is missing", datasets=[masked[0], masked[0], masked[2]])


def test_an_unmasked_shard_is_put_in_place_of_the_masked_one(run, tmp_path: Path) -> None:
    raw, masked = run.shards("ingest/dataset"), run.shards("mask-pii/masked")
    refused(run, tmp_path, EvidenceError, "a shard is missing", datasets=[masked[0], raw[1], masked[2]])


def test_a_shard_of_another_run(run, tmp_path: Path) -> None:
    bundles = forged(run, tmp_path, "mask_pii#1/3", lambda it: it.replace(nonce="0" * 32))
    refused(run, tmp_path, EvidenceError, "from another run", evidence=bundles)


def test_a_shard_that_was_masked_under_other_parameters(run, tmp_path: Path) -> None:
    weak = {"masking": {"columns": {"zip": "keep"}, "detection": "strict", "entities": {"EMAIL": "redact"}}}
    bundles = forged(run, tmp_path, "mask_pii#1/3", lambda it: it.replace(parameters=weak))
    refused(run, tmp_path, EvidenceError, "parameters differ", evidence=bundles)


def test_one_shard_s_evidence_is_renamed_to_another_s(run, tmp_path: Path) -> None:
    bundles = forged(run, tmp_path, "mask_pii#1/3", lambda it: it.replace(step="mask_pii#2/3"))
    refused(run, tmp_path, EvidenceError, "two different statements", evidence=bundles)


@pytest.mark.parametrize("name", ["mask_pii#3/3", "mask_pii#1/2", "mask_pii#01/3", "mask_pii"])
def test_a_shard_that_the_policy_does_not_know(run, tmp_path: Path, name: str) -> None:
    bundles = forged(run, tmp_path, "mask_pii#1/3", lambda it: it.replace(step=name))
    refused(run, tmp_path, PolicyError, "knows no step", evidence=bundles)


def test_the_gate_of_one_shard_is_left_out(run, tmp_path: Path) -> None:
    passed = run.shards("enforce/passed")
    evidence = [passed[0], run.shards("mask-pii/masked_evidence")[1], passed[2]]
    refused(run, tmp_path, EvidenceError, "residual_pii#1/3", evidence=evidence)


def test_the_gate_of_one_shard_failed(run, tmp_path: Path) -> None:
    def fail(statement: Statement) -> Statement:
        figures = {**statement.figures, "residual_identifiers": 1}
        return statement.replace(figures=figures, verdict="FAILED", reason="one is left")

    bundles = forged(run, tmp_path, "residual_pii#1/3", fail)
    refused(run, tmp_path, GateFailedError, "residual_pii#1/3", evidence=bundles)
    masked = run.shards("mask-pii/masked")[1]
    with pytest.raises(GateFailedError):
        enforce("residual_pii#1/3", subject="0" * 64, evidence=bundles[1], passed=tmp_path / "passed")
    assert masked.exists() and not (tmp_path / "passed").exists()


def test_the_gate_of_one_shard_judged_another_shard(run, tmp_path: Path) -> None:
    other = next(
        Statement.parse(Envelope.parse(line).payload).outputs["dataset"]
        for line in split_bundle(run.shards("mask-pii/masked_evidence")[2].read_bytes())
        if Statement.parse(Envelope.parse(line).payload).step == "mask_pii#2/3"
    )
    swap = {"dataset": other}
    bundles = forged(run, tmp_path, "residual_pii#1/3", lambda it: it.replace(inputs=swap, outputs=swap))
    refused(run, tmp_path, EvidenceError, "its input 'dataset' is not mask_pii#1/3.dataset", evidence=bundles)


def test_one_shard_says_that_it_set_more_aside_than_all_may(run, tmp_path: Path) -> None:
    bundles = forged(run, tmp_path, "ingest#1/3", lambda it: it.replace(figures={**it.figures, "quarantined": 5}))
    refused(run, tmp_path, EvidenceError, r"'ingest#1/3': its figures are not within.*quarantined", evidence=bundles)


def test_the_shards_say_that_they_set_more_aside_than_all_may(run, tmp_path: Path) -> None:
    """Each says as many as the policy allows to all together."""
    bundles = forged(run, tmp_path, "ingest#1/3", lambda it: it.replace(figures={**it.figures, "quarantined": 4}))
    with pytest.raises(EvidenceError, match=r"'merge_shards': its figures are not within.*quarantined"):
        merge(run, tmp_path, evidence=bundles)
    assert not (tmp_path / "bundle").exists()


# --- what was set aside -----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(run, tmp_path: Path):
    """What a run keeps of what its shards set aside, and the chain that says so."""
    (tmp_path / outcome.EVIDENCE).write_bytes(run.task("merge-shards/merged_evidence").read_bytes())
    policy = TrustStore.load(run.home.trust).policy
    outcome.place_quarantines(tmp_path, policy, list(run.root.glob("**/ingest/quarantine")))
    lines = split_bundle((tmp_path / outcome.EVIDENCE).read_bytes())
    chain = verify_chain(lines, policy, needed=["merge_shards"], judged_at=now_ms())
    outcome.require_quarantine(tmp_path, chain)
    return tmp_path, chain


def test_the_quarantine_of_another_shard_is_put_in(kept) -> None:
    folder, chain = kept
    one, other = folder / outcome.QUARANTINE / "1", folder / outcome.QUARANTINE / "2"
    one.rename(folder / "one")
    other.rename(one)
    (folder / "one").rename(other)
    with pytest.raises(EvidenceError, match="1 is not what the evidence says was set aside"):
        outcome.require_quarantine(folder, chain)
    for path, stated in zip((one, other), outcome.ingested(chain)[1:], strict=True):
        with (
            pytest.raises(DataError, match="not the quarantine that"),
            open_quarantine(path, stated, key=pipeline_key()),
        ):
            pass


@pytest.mark.parametrize("attack", ["left out", "all left out", "one more", "a link", "one of them is the whole"])
def test_the_quarantine_of_a_shard_is_left_out_or_one_is_put_in(kept, attack) -> None:
    folder, chain = kept
    quarantine = folder / outcome.QUARANTINE
    match attack:
        case "left out":
            shutil.rmtree(quarantine / "2")
        case "all left out":
            shutil.rmtree(quarantine)
        case "one more":
            shutil.copytree(quarantine / "2", quarantine / "3")
        case "a link":
            quarantine.rename(folder / "moved")
            quarantine.symlink_to(folder / "moved")
        case _:
            (quarantine / "1").rename(folder / "one")
            shutil.rmtree(quarantine)
            (folder / "one").rename(quarantine)
    with pytest.raises(EvidenceError, match="does not hold what each shard set aside, and nothing else"):
        outcome.require_quarantine(folder, chain)


# --- before the join --------------------------------------------------------------------------------------------------


def spec() -> str:
    return json.dumps(small.CONFIG.dataset.to_dict())


def read(run, folder: Path, **changes) -> Statement:
    nonce = next(
        Statement.parse(Envelope.parse(line).payload).nonce
        for line in split_bundle(run.task("preflight/evidence").read_bytes())
    )
    given = {
        "step": "ingest#1/3",
        "nonce": nonce,
        "evidence": run.task("plan-shards/plan_evidence"),
        "uri": str(run.source),
        "spec": spec(),
        "dataset": folder / "set",
        "quarantine": folder / "quarantine",
        "bundle": folder / "evidence",
        "plan": run.task("plan-shards/plan"),
    }
    return ingest(**{**given, **changes})


def test_the_source_is_changed_after_it_was_surveyed(run, tmp_path: Path) -> None:
    read(run, tmp_path)
    shutil.copytree(run.source, tmp_path / "source")
    part = tmp_path / "source" / "part-1.csv"
    part.write_text(part.read_text().replace("item 5", "item 6"))
    with pytest.raises(EvidenceError, match=r"its input 'raw' is not survey_shard#1/3\.raw"):
        read(run, tmp_path, uri=str(tmp_path / "source"), dataset=tmp_path / "other")
    part.unlink()  # then the others make other parts
    with pytest.raises(EvidenceError, match="its input 'raw' is not"):
        read(run, tmp_path, uri=str(tmp_path / "source"), dataset=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_plan_is_another_one(run, tmp_path: Path) -> None:
    other = tmp_path / "plan"
    other.write_bytes(run.task("plan-shards/plan").read_bytes().replace(b'"int64"', b'"string"', 1))
    with pytest.raises(EvidenceError, match=r"its input 'plan' is not plan_shards\.plan"):
        read(run, tmp_path, plan=other)
    with pytest.raises(EvidenceError, match="takes"):
        read(run, tmp_path, plan=None)
    with pytest.raises(UsageError, match="names no shard"):
        read(run, tmp_path, step="ingest")
    assert not (tmp_path / "set").exists()


def test_a_shard_is_masked_by_another_head(run, tmp_path: Path) -> None:
    def mask(head: Path | None) -> Statement:
        return mask_pii(
            step="mask_pii#1/3",
            dataset=run.shards("ingest/dataset")[1],
            evidence=run.shards("ingest/dataset_evidence")[1],
            masking=small.CONFIG.masking.to_dict(),
            masked=tmp_path / "masked",
            bundle=tmp_path / "evidence",
            head=head,
        )

    with pytest.raises(EvidenceError, match=r"its input 'head' is not plan_shards\.head"):
        mask(run.shards("ingest/dataset")[1])
    with pytest.raises(EvidenceError, match="takes"):
        mask(None)
    assert not (tmp_path / "masked").exists()
    mask(run.task("plan-shards/head"))


def survey(folder: Path, source: Path, nonce: str, index: int) -> None:
    survey_shard(
        step=f"survey_shard#{index}/3",
        nonce=nonce,
        evidence=folder / "begun",
        uri=str(source),
        spec=spec(),
        survey=folder / f"survey-{index}",
        head=folder / f"head-{index}",
        bundle=folder / f"evidence-{index}",
    )


def plan(folder: Path, shards) -> Statement:
    return plan_shards(
        step="plan_shards",
        surveys=[folder / f"survey-{index}" for index in shards],
        heads=[folder / f"head-{index}" for index in shards],
        evidence=[folder / f"evidence-{index}" for index in range(3)],
        spec=spec(),
        plan=folder / "plan",
        head=folder / "head",
        bundle=folder / "bundle",
    )


@pytest.fixture
def begun(run, tmp_path: Path):
    """A second run's beginning: its source, and its nonce."""
    source = tmp_path / "source"
    small.write_source(source)
    return source, preflight(step="preflight", bundle=tmp_path / "begun")


def test_a_file_is_put_into_the_source_between_two_surveys(begun, tmp_path: Path) -> None:
    source, nonce = begun
    survey(tmp_path, source, nonce, 0)
    # The first shard's part stays as it is, so that only what it says of the others can show it.
    (source / "part-9.csv").write_bytes((source / "part-1.csv").read_bytes())
    for index in (1, 2):
        survey(tmp_path, source, nonce, index)
    with pytest.raises(DataError, match="the shards saw different files"):
        plan(tmp_path, range(3))
    assert not (tmp_path / "plan").exists() and not (tmp_path / "head").exists()


def test_a_survey_is_left_out_or_repeated(begun, tmp_path: Path) -> None:
    source, nonce = begun
    for index in range(3):
        survey(tmp_path, source, nonce, index)
    for shards in ([0, 2], [0, 1, 1], [0, 1, 2, 1]):
        with pytest.raises(EvidenceError, match="shard"):
            plan(tmp_path, shards)
    assert not (tmp_path / "plan").exists()
    plan(tmp_path, [2, 0, 1])


def test_the_shards_find_more_malformed_records_together_than_may_be_set_aside(begun, tmp_path: Path) -> None:
    """None of them alone has more than four."""
    source, nonce = begun
    for part in (1, 3):
        path = source / f"part-{part}.csv"
        path.write_bytes(path.read_bytes() + b"1,2\n")
    for index in range(3):
        survey(tmp_path, source, nonce, index)
    with pytest.raises(DataError, match="found 5 malformed records; more than the 4 malformed records"):
        plan(tmp_path, range(3))
    assert not (tmp_path / "plan").exists() and not (tmp_path / "head").exists()


def test_a_shard_finds_more_malformed_records_than_may_be_set_aside(begun, tmp_path: Path) -> None:
    source, nonce = begun
    last = source / "part-3.csv"
    last.write_bytes(last.read_bytes() + b"1,2\n" * 4)
    with pytest.raises(DataError, match=r"part-3\.csv, line .*more than the 4 malformed records"):
        survey(tmp_path, source, nonce, 2)


def test_a_shard_s_part_has_other_columns(begun, tmp_path: Path) -> None:
    source, nonce = begun
    last = source / "part-3.csv"
    last.write_text(last.read_text().replace("code", "cade", 1))
    with pytest.raises(DataError, match=r"part-3\.csv has other columns"):
        survey(tmp_path, source, nonce, 2)
    third = source / "part-2.csv"
    third.write_bytes(third.read_bytes().replace(b"code", b"cade", 1))
    for index in range(3):
        survey(tmp_path, source, nonce, index)
    with pytest.raises(DataError, match="the part of shard 2/3 has other columns"):
        plan(tmp_path, range(3))
