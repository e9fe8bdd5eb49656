"""Shards in a policy and in evidence: a step in as many parts as the policy says, joined to the very same table."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import resting
import yaml
from chains import NONCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharded import SPEC, ShardedWorld, evidence_of

from portcullis.digest import sha256
from portcullis.errors import DataError, EvidenceError, PolicyError, SealError
from portcullis.evidence.chain import verify_chain
from portcullis.evidence.policy import parse_policy
from portcullis.evidence.shards import Shard, base_step, shards_of
from portcullis.evidence.step import now_ms
from portcullis.evidence.trust import TRUST_ENV, Revocations, write_trust_store
from portcullis.pii.figures import pair_figures
from portcullis.sharding.stage import merge_shards, merged_counts
from portcullis.table import logical_root, table_digests

WORLD = ShardedWorld(count=3)
POLICY = WORLD.rules


def table_of(rows: int, first: int = 0) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {"label": ["a" if it % 2 else "b" for it in numbers], "x": list(numbers), "t": list(map(str, numbers))}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Keys and trust store where a step finds them."""
    folder = tmp_path_factory.mktemp("home")
    keys = folder / "keys"
    keys.mkdir()
    resting.write_keys(keys)
    for name, signer in WORLD.keys.items():
        (keys / f"{name}.pem").write_bytes(signer.private_pem())
        (keys / f"{name}.pem").chmod(0o600)
    write_trust_store(
        folder / "trust",
        owner=WORLD.owner.public_key,
        name="demo",
        environment="development",
        policy=WORLD.signed,
        revocations=Revocations(1).sign(WORLD.owner),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTCULLIS_KEYS", f"file:{keys}")
        patch.setenv(TRUST_ENV, str(folder / "trust"))
        yield folder


def merge(folder: Path, shards: list[Path], evidence: list[Path] | None = None):
    return merge_shards(
        step="merge_shards",
        datasets=shards,
        evidence=[evidence_of(it) for it in shards] if evidence is None else evidence,
        merged=folder / "merged",
        bundle=folder / "bundle",
    )


# --- the policy -------------------------------------------------------------------------------------------------------


def test_a_sharded_step_is_as_many_steps_with_one_key() -> None:
    shards = [f"mask_pii#{it}/3" for it in range(3)]
    assert list(POLICY.steps) == ["preflight", *shards, "merge_shards"]
    assert {POLICY.step(name).key.keyid for name in shards} == {WORLD.keys["mask_pii"].public_key.keyid}
    assert {POLICY.step(name).base for name in shards} == {"mask_pii"}
    assert POLICY.step("merge_shards").inputs == {f"dataset#{it}/3": f"mask_pii#{it}/3.dataset" for it in range(3)}
    assert POLICY.ancestors("merge_shards") == {"preflight", *shards}
    assert POLICY.ancestors("mask_pii#1/3") == {"preflight"}


@pytest.mark.parametrize("name", ["mask_pii", "mask_pii#3/3", "mask_pii#0/4", "mask_pii#-1/3", "mask_pii#00/3"])
def test_no_other_shard_is_known(name: str) -> None:
    with pytest.raises(PolicyError, match="knows no step"):
        POLICY.step(name)


def body(**edit) -> bytes:
    text = WORLD.signed.rpartition(b"# portcullis-signature")[0].decode()
    for old, new in edit.items():
        text = text.replace(old.replace("_is_", ": "), new)
    return text.encode()


@pytest.mark.parametrize("count", ["0", "1", "-3", "1025", "true", "'3'", "2.0", "[3]"])
def test_a_count_of_shards_is_a_whole_number_from_2_to_1024(count: str) -> None:
    with pytest.raises(PolicyError, match="shards"):
        parse_policy(body(shards_is_3=f"shards: {count}"), digest=sha256(b""))


def test_a_policy_cannot_name_a_shard_itself() -> None:
    with pytest.raises(PolicyError):
        parse_policy(body(name_is_mask_pii="name: mask_pii#0/3"), digest=sha256(b""))


def test_shards_of_different_counts_are_not_joined() -> None:
    document = yaml.safe_load(body())
    again = {**document["steps"][1], "name": "again", "inputs": {"dataset": "mask_pii.dataset"}, "shards": 2}
    again["key"] = WORLD.owner.public_key.pem
    document["steps"].insert(2, again)
    with pytest.raises(PolicyError, match="again has 2 shards, mask_pii, which comes before it, has 3"):
        parse_policy(json.dumps(document).encode(), digest=sha256(b""))


def test_a_step_s_name_names_its_shard() -> None:
    assert Shard.of("mask_pii#3/64") == Shard(3, 64)
    assert Shard.of("mask_pii") is None
    assert (Shard(3, 64).named("mask_pii"), base_step("mask_pii#3/64")) == ("mask_pii#3/64", "mask_pii")
    assert shards_of(3) == ["0/3", "1/3", "2/3"]


# --- the chain --------------------------------------------------------------------------------------------------------


def lines(**changes):
    digests = [sha256(f"part {it}".encode()) for it in range(3)]
    shards = [WORLD.statement(f"mask_pii#{it}/3", {"dataset": digests[it]}, **changes) for it in range(3)]
    merged = WORLD.statement("preflight", {"nonce": sha256(NONCE.encode())})
    return [WORLD.sign(merged), *map(WORLD.sign, shards)], digests


def whole(digests):
    rule = POLICY.step("merge_shards")
    base = WORLD.statement("preflight", {"dataset": sha256(b"whole")})
    inputs = dict(zip(rule.inputs, digests, strict=True))
    return WORLD.sign(base.replace(step="merge_shards", stage="merge_shards", inputs=inputs, parameters={}))


def judged(given):
    return verify_chain(given, POLICY, needed=["merge_shards"], judged_at=now_ms())


def test_a_chain_over_shards_verifies() -> None:
    made, digests = lines()
    assert set(judged([*made, whole(digests)]).statements) == set(POLICY.steps)


@pytest.mark.parametrize("missing", range(3))
def test_every_shard_must_be_there(missing: int) -> None:
    made, digests = lines()
    del made[1 + missing]
    with pytest.raises(EvidenceError, match=rf"'mask_pii#{missing}/3', which must come before, has none"):
        judged([*made, whole(digests)])


def test_a_shard_is_stated_once() -> None:
    made, digests = lines()
    again = WORLD.statement("mask_pii#1/3", {"dataset": sha256(b"better")})
    with pytest.raises(EvidenceError, match="two different statements for one step"):
        judged([*made, WORLD.sign(again), whole(digests)])


def test_the_merged_inputs_stand_in_the_order_of_the_shards() -> None:
    made, digests = lines()
    with pytest.raises(EvidenceError, match=r"input 'dataset#0/3' is not mask_pii#0/3\.dataset"):
        judged([*made, whole(digests[::-1])])


# --- joining ----------------------------------------------------------------------------------------------------------


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([1, 7, 1023, 1024, 1025, 2048]), min_size=3, max_size=3),
    order=st.permutations(range(3)),
)
def test_joined_shards_are_the_whole_table(home, tmp_path_factory, sizes, order) -> None:
    folder = tmp_path_factory.mktemp("shards")
    table = table_of(sum(sizes))
    starts = [sum(sizes[:it]) for it in range(3)]
    parts = [table.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    shards = WORLD.shards(folder, parts)
    statement = merge(folder, [shards[it] for it in order])
    merged = resting.opened(folder / "merged")
    assert merged.table.equals(table) and merged.spec == SPEC
    assert statement.outputs["dataset"] == resting.seal(folder / "whole", table, SPEC)
    assert statement.figures["logical_root"] == logical_root(table)
    assert table_digests(merged.table) == table_digests(table)
    assert (statement.figures["rows"], statement.figures["shards"]) == (sum(sizes), 3)


def test_shards_that_hold_the_same_rows_are_two_shards(home, tmp_path: Path) -> None:
    table = table_of(5)
    shards = WORLD.shards(tmp_path, [table, table, table])
    merge(tmp_path, shards)
    assert resting.opened(tmp_path / "merged").table.equals(pa.concat_tables([table] * 3).combine_chunks())


def refused(folder: Path, error: type[Exception], match: str, shards, evidence=None) -> None:
    with pytest.raises(error, match=match):
        merge(folder, shards, evidence)
    assert not (folder / "merged").exists() and not (folder / "bundle").exists()


@pytest.fixture
def made(home, tmp_path: Path) -> list[Path]:
    return WORLD.shards(tmp_path, [table_of(5, 5 * it) for it in range(3)])


def evidence_for(paths):
    return [evidence_of(it) for it in paths]


def test_a_dropped_shard_is_missed(made, tmp_path: Path) -> None:
    refused(tmp_path, EvidenceError, r"no evidence of step 'mask_pii#1/3'", [made[0], made[2]])
    refused(tmp_path, EvidenceError, "a shard is missing", [made[0], made[2]], evidence_for(made))


def test_a_repeated_shard_is_refused(made, tmp_path: Path) -> None:
    refused(tmp_path, EvidenceError, "repeated, or no shard's", [*made, made[1]])
    refused(tmp_path, EvidenceError, "a shard is missing", [made[0], made[1], made[1]], evidence_for(made))


def test_a_foreign_data_set_is_refused(made, tmp_path: Path) -> None:
    resting.seal(tmp_path / "foreign", table_of(5, 90), SPEC)
    refused(tmp_path, EvidenceError, "a shard is missing", [*made[:2], tmp_path / "foreign"], evidence_for(made))
    refused(tmp_path, EvidenceError, "repeated, or no", [*made, tmp_path / "foreign"], evidence_for(made))


def test_a_shard_of_another_run_is_refused(made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = WORLD.shards(tmp_path / "other", [table_of(5)] * 3, nonce="f" * 32)
    refused(tmp_path, EvidenceError, "from another run", [*made[:2], other[2]])


def test_a_shard_under_other_parameters_is_refused(made, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    weak = {"masking": {"columns": {"t": "keep"}}}
    other = WORLD.shards(tmp_path / "other", [table_of(5)] * 3, parameters=weak)
    refused(tmp_path, EvidenceError, "parameters differ from the policy's", [*made[:2], other[2]])


def test_shards_of_another_count_are_refused(made, tmp_path: Path) -> None:
    four = ShardedWorld(count=4, owner=WORLD.owner, keys=WORLD.keys)
    (tmp_path / "four").mkdir()
    others = four.shards(tmp_path / "four", [table_of(5)] * 4)
    refused(tmp_path, PolicyError, "knows no step 'mask_pii#0/4'", others)
    refused(tmp_path, EvidenceError, "two different statements for one step", [*made, others[3]])
    alone = tmp_path / "alone"
    alone.write_bytes(evidence_of(others[3]).read_bytes().split(b"\n")[1] + b"\n")
    refused(tmp_path, PolicyError, "knows no step 'mask_pii#3/4'", [*made, others[3]], [*evidence_for(made), alone])


def test_a_shard_that_was_altered_at_rest_is_refused(made, tmp_path: Path) -> None:
    resting.seal(made[1], table_of(5, 70), SPEC)
    refused(tmp_path, EvidenceError, r"mask_pii#1/3\.dataset is not among its inputs", made)
    data = made[1] / "data.parquet.sealed"
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    refused(tmp_path, SealError, "altered", made)


def test_a_shard_with_other_columns_is_refused(home, tmp_path: Path) -> None:
    tables = [table_of(5), table_of(5), table_of(5).append_column("more", [list("abcde")])]
    shards = WORLD.shards(tmp_path, tables)
    refused(tmp_path, DataError, "shard 2 has other columns", shards)


# --- reports ----------------------------------------------------------------------------------------------------------

COUNTS = st.dictionaries(
    st.sampled_from(["mail", "note", "a:b"]),
    st.dictionaries(st.sampled_from(["EMAIL", "US_SSN", "VALUE"]), st.integers(0, 9), max_size=3),
    min_size=3,
    max_size=3,
)


def stated(counts):
    sums = {f"masked_{column}": sum(entities.values()) for column, entities in counts.items()}
    return sums | pair_figures("masked", counts) | {"rows": 7}


@given(st.lists(COUNTS, min_size=1, max_size=5))
def test_counts_of_shards_add_up_to_those_of_the_whole(shards) -> None:
    whole_counts = {
        column: {
            entity: sum(it.get(column, {}).get(entity, 0) for it in shards) for entity in ("EMAIL", "US_SSN", "VALUE")
        }
        for column in ("mail", "note", "a:b")
    }
    expected = {name: it for name, it in stated(whole_counts).items() if name != "rows"}
    assert merged_counts(list(map(stated, shards))) == expected


def test_counts_by_entity_that_a_shard_left_out_are_not_made_up() -> None:
    shards = [{"masked_note": 2, "masked:EMAIL:note": 2}, {"masked_note": 5}]
    assert merged_counts(shards) == {"masked_note": 7}
