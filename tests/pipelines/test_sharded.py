"""The pipeline over shards, run for real by the local runner, leaves what a run of the whole table leaves."""

import base64
from pathlib import Path

import pytest
import sharded_run as small
from click.testing import CliRunner

from portcullis.at_rest import open_dataset, pipeline_key
from portcullis.cli.main import cli
from portcullis.dataset import DatasetSpec, parse_dataset
from portcullis.digest import path_digest
from portcullis.errors import ConfigError, EvidenceError, UsageError
from portcullis.evidence.chain import split_bundle, verify_chain
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import now_ms
from portcullis.evidence.trust import TrustStore
from portcullis.files import read_bytes
from portcullis.harden import secret_name
from portcullis.ingest.quarantine import open_quarantine
from portcullis.ingest.readers import open_source
from portcullis.ingest.stage import ingest
from portcullis.keys import symmetric_key
from portcullis.pii.mask import mask_stream
from portcullis.pii.plan import masking_plan
from portcullis.pii.stage import mask_pii, residual_pii
from portcullis.preflight.stage import preflight
from portcullis_pipelines.bootstrap import secrets_of
from portcullis_pipelines.config import SHARDED, ReferenceConfig
from portcullis_pipelines.home import revoke
from portcullis_pipelines.packaging import DataAccess, package
from portcullis_pipelines.steps import SHARD_STEPS, STEPS, steps_of


def statements(path: Path) -> dict[str, Statement]:
    lines = split_bundle(read_bytes(path, limit=1 << 26))
    return {it.step: it for it in (Statement.parse(Envelope.parse(line).payload) for line in lines)}


@pytest.fixture(scope="module")
def whole(sharded_run, tmp_path_factory):
    """The same data read, masked and judged as a whole, under the same keys."""
    folder = tmp_path_factory.mktemp("whole")
    config = small.over(sharded_run.config, 1)
    home = small.prepare(folder, config, ("preflight", "ingest", "mask_pii", "residual_pii"))
    for name in ("masking.key", "pipeline.pem", "pipeline.pub.pem"):
        (home.keys / name).write_bytes((sharded_run.home.keys / name).read_bytes())
    given = config.arguments(str(sharded_run.source))
    masking = given["masking"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment.items():
            patch.setenv(name, value)
        nonce = preflight(step="preflight", bundle=folder / "begun")
        ingest(
            step="ingest",
            nonce=nonce,
            evidence=folder / "begun",
            uri=str(sharded_run.source),
            spec=given["dataset_spec"],
            dataset=folder / "raw",
            quarantine=folder / "quarantine",
            bundle=folder / "raw.evidence",
        )
        mask_pii(
            step="mask_pii",
            dataset=folder / "raw",
            evidence=folder / "raw.evidence",
            masking=masking,
            masked=folder / "masked",
            bundle=folder / "masked.evidence",
        )
        residual_pii(
            step="residual_pii",
            dataset=folder / "masked",
            evidence=folder / "masked.evidence",
            masking=masking,
            report=folder / "report",
            details=folder / "details",
            bundle=folder / "judged.evidence",
        )
    return statements(folder / "judged.evidence")


def test_the_joined_data_set_is_the_one_that_a_run_of_the_whole_makes(sharded_run, whole) -> None:
    made = statements(sharded_run.task("merge-shards/merged_evidence"))
    assert made["merge_shards"].outputs["dataset"] == whole["mask_pii"].outputs["dataset"]
    assert made["plan_shards"].figures["raw"] == whole["ingest"].inputs["raw"] == path_digest(sharded_run.source)
    for name in ("rows", "columns", "schema", "bytes", "files"):
        assert made["plan_shards"].figures[name] == whole["ingest"].figures[name], name
    with sharded_run.environment():
        table = parse_dataset(open_dataset(sharded_run.task("merge-shards/merged"), key=pipeline_key())).table
    assert table.num_rows == 9180


def test_the_counts_of_the_shards_add_up_to_those_of_the_whole(sharded_run, whole) -> None:
    made = statements(sharded_run.task("merge-shards/merged_evidence"))
    counts = {name: it for name, it in made["merge_shards"].figures.items() if name.startswith("masked")}
    assert counts == {name: it for name, it in whole["mask_pii"].figures.items() if name.startswith("masked")}
    assert counts["masked:PERSON_NAME:first_name"] == 9180
    gates = [made[f"residual_pii#{it}/3"] for it in range(3)]
    assert {it.verdict for it in gates} == {whole["residual_pii"].verdict} == {"PASSED"}
    for name, figure in whole["residual_pii"].figures.items():
        if name != "columns_scanned":
            assert sum(it.figures[name] for it in gates) == figure, name


def test_the_shards_set_aside_what_a_run_of_the_whole_sets_aside(sharded_run, whole) -> None:
    made = statements(sharded_run.task("merge-shards/merged_evidence"))
    counts = {name: it for name, it in whole["ingest"].figures.items() if name.startswith("quarantined")}
    reasons = dict.fromkeys(("number_of_cells", "not_utf8", "out_of_bounds"), 1)
    assert counts == {"quarantined": 3} | {f"quarantined_{reason}": 1 for reason in reasons}
    for step in ("plan_shards", "merge_shards"):
        assert {name: it for name, it in made[step].figures.items() if name.startswith("quarantined")} == counts
    shards = [made[f"ingest#{index}/3"] for index in range(3)]
    surveys = [made[f"survey_shard#{index}/3"] for index in range(3)]
    assert [it.figures["quarantined"] for it in shards] == [it.figures["quarantined"] for it in surveys] == [0, 1, 2]
    assert sum(it.figures["records"] for it in shards) == whole["ingest"].figures["records"] == 9183
    with sharded_run.environment():
        key = pipeline_key()
        opened = []
        for path, stated in zip(sharded_run.shards("ingest/quarantine"), shards, strict=True):
            with open_quarantine(path, stated, key=key) as records:
                opened += records
    assert [(it["path"], it["reason"], base64.b64decode(it["bytes"])) for it in opened] == [
        (f"part-{part}.csv", reason, small.MALFORMED[part]) for part, reason in enumerate(reasons, start=1)
    ]
    for it in opened:
        before = (sharded_run.source / it["path"]).read_bytes()[: it["offset"]]
        assert it["line"] == before.count(b"\n") + 1 and before.endswith(b"\n")


def test_its_evidence_is_one_chain(sharded_run) -> None:
    store = TrustStore.load(sharded_run.home.trust)
    lines = split_bundle(sharded_run.task("merge-shards/merged_evidence").read_bytes())
    chain = verify_chain(lines, store.policy, needed=["merge_shards"], judged_at=now_ms())
    assert set(chain.statements) == set(store.policy.steps)
    assert len(chain.statements) == 3 + small.SHARDS * len(SHARDED)


def test_every_shard_is_masked_by_the_head_of_the_whole(sharded_run) -> None:
    """Only the first shard holds names; by its own head, another would have kept that column."""
    with sharded_run.environment():
        key = pipeline_key()
        tables = [parse_dataset(open_dataset(it, key=key)).table for it in sharded_run.shards("mask-pii/masked")]
        cells = {cell for table in tables[1:] for cell in table.column("first_name").to_pylist()}
    assert cells and all("item" not in cell for cell in cells)
    spec = DatasetSpec.from_dict(sharded_run.config.dataset.to_dict())
    alone = open_source(str(sharded_run.source / "part-1.csv"), spec)
    plan = masking_plan(alone.spec, sharded_run.config.masking.to_dict())
    own = mask_stream(alone.table, plan, key=symmetric_key(f"file:{sharded_run.home.keys / 'masking.key'}"))
    assert "item 1" in {cell for it in own.table.pieces() for cell in it.column("first_name").to_pylist()}


# --- the steps and the packages ---------------------------------------------------------------------------------------


def test_a_configuration_without_shards_has_the_steps_that_it_had() -> None:
    assert steps_of(ReferenceConfig.load(None)) == STEPS
    assert "shards" not in ReferenceConfig.load(None).arguments("x")


def test_the_steps_over_shards_are_the_others_and_three_more() -> None:
    config = small.over(ReferenceConfig.load(None), 4)
    steps = steps_of(config)
    assert {it.name for it in steps} == {it.name for it in (*STEPS, *SHARD_STEPS)}
    assert tuple(it.name for it in steps if it.sharded) == SHARDED
    assert not [
        it for it in steps if not it.sharded and it.name != "merge_shards" and "mask_pii.dataset" in it.inputs.values()
    ]
    assert config.arguments("x")["shards"][3] == {name: f"{name}#3/4" for name in SHARDED}


@pytest.mark.parametrize("shards", [0, -1, 1025, True, "2", 2.0, None])
def test_a_number_of_shards_is_a_whole_one(shards) -> None:
    with pytest.raises(ConfigError, match="shards is a whole number from 1 to 1024"):
        ReferenceConfig.from_dict({"dataset": small.CONFIG.dataset.to_dict(), "shards": shards})


@pytest.mark.parametrize("split", [False, True])
def test_a_package_over_shards_reaches_the_data_in_both_loops(split) -> None:
    config = small.over(small.CONFIG, 4)
    made = package(config, DataAccess("s3://bucket/rows/", secret="my-s3"), split=split)
    text = next(iter(made.values())).decode()
    assert "name: portcullis-sharded" in text
    assert text.count("secretName: my-s3") == 2
    assert all(f"residual_pii#{index}/4" in text for index in range(4))


def test_a_sharded_step_has_one_secret_and_one_key(sharded_run) -> None:
    policy = TrustStore.load(sharded_run.home.trust).policy
    secrets = secrets_of(policy, "all")
    assert set(secrets) == {secret_name(step) for step in small.STEPS}
    assert secrets["portcullis-survey-shard"] == ("survey_shard.pem", "pipeline.pub.pem")
    assert secrets["portcullis-merge-shards"] == ("merge_shards.pem", "pipeline.pem", "pipeline.pub.pem")
    assert len({rule.key.keyid for rule in policy.steps.values()}) == len(small.STEPS)


def test_a_sharded_step_s_key_is_revoked_for_all_its_shards(sharded_run, tmp_path: Path) -> None:
    home = small.prepare(tmp_path)
    store = revoke(home, step="mask_pii")
    assert store.policy.step("mask_pii#2/3").key.keyid in store.revocations.keys
    with pytest.raises(UsageError, match="there is no step 'mask_pii#2/3'"):
        revoke(home, step="mask_pii#2/3")
    lines = split_bundle(sharded_run.task("merge-shards/merged_evidence").read_bytes())
    policy = TrustStore.load(sharded_run.home.trust).policy
    revoked = {policy.step("mask_pii#0/3").key.keyid}
    with pytest.raises(EvidenceError, match="is revoked"):
        verify_chain(lines, policy, needed=["merge_shards"], judged_at=now_ms(), revoked_keys=revoked)


def test_a_number_of_shards_on_the_command_line_is_a_whole_one() -> None:
    for shards in ("0", "1025", "many"):
        assert CliRunner().invoke(cli, ["run", "--shards", shards]).exit_code == 2
