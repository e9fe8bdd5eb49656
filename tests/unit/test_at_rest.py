"""Data sets at rest: sealed for the pipeline's key, opened in memory, and never accepted in plain text by mistake."""

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resting
from foreign import ForeignPipeline, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portcullis import at_rest
from portcullis.at_rest import (
    CONTEXT,
    PRIVATE_KEY,
    PUBLIC_KEY,
    input_digest,
    open_dataset,
    pipeline_key,
    pipeline_recipient,
    product_digest,
    read_input,
    subject_digest,
)
from portcullis.attestation.stage import attest, start_chain
from portcullis.dataset import DATA_FILE, SPEC_FILE, Dataset, DatasetSpec, Features, Label, write_dataset
from portcullis.digest import tree_digest
from portcullis.errors import (
    ConfigError,
    DataError,
    EvidenceError,
    KeyMaterialError,
    PolicyError,
    SealError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence.component import enforce
from portcullis.sealing.recipients import SealingPrivateKey, unwrap_dek, wrap_dek
from portcullis.sealing.sealed import SIDECAR, seal_files

SPEC = DatasetSpec("small", Label("label", ("a", "b")), Features(("x",), (1,), 0, 100), {"mail": "token"})
MAILS = [f"ada{row}.lovelace@example.org" for row in range(50)]
TABLE = pa.table({"mail": MAILS, "label": ["a", "b"] * 25, "x": list(range(50))})
FILES = {f"{DATA_FILE}.sealed", f"{SPEC_FILE}.sealed", SIDECAR}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    resting.seal(tmp_path / "rows", TABLE, SPEC)
    return tmp_path / "rows"


def test_what_is_sealed_opens_to_what_it_was(sealed: Path, tmp_path: Path) -> None:
    assert {path.name for path in sealed.iterdir()} == FILES
    assert resting.opened(sealed) == Dataset(TABLE, SPEC)


def test_the_digest_is_that_of_the_content(sealed: Path, tmp_path: Path) -> None:
    """So that sealing the same rows again, or for another key, changes no evidence."""
    plain = write_dataset(tmp_path / "plain", TABLE, SPEC)
    assert plain == tree_digest(tmp_path / "plain") == resting.content(sealed)
    assert resting.seal(tmp_path / "again", TABLE, SPEC) == plain
    assert tree_digest(tmp_path / "again") != tree_digest(sealed)


def shown(path: Path) -> str:
    """Return what whoever reads a file can make of it: its bytes as text and, where it is Parquet, its cells."""
    data = path.read_bytes()
    text = data.decode("latin-1")
    if b"PAR1" in data:
        text += str(pq.read_table(io.BytesIO(data)).to_pydict())
    return text


def test_a_reader_of_the_store_sees_no_row_and_no_column(sealed: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "plain", TABLE, SPEC)
    plain = "".join(shown(path) for path in (tmp_path / "plain").iterdir())
    closed = "".join(shown(path) for path in sealed.iterdir())
    for word in (MAILS[7], "lovelace", '"mail"', '"columns"', "PAR1"):
        assert word in plain and word not in closed


OPENED: list[str] = []
WATCHED: list[bool] = []


def _watch(event: str, arguments: tuple) -> None:
    # A number is a descriptor, whose opening was seen before.
    if WATCHED and event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and not isinstance(arguments[0], int):
        OPENED.append(os.fsdecode(arguments[0]))


def test_plain_text_touches_no_file(tmp_path: Path) -> None:
    """Every file that is opened for writing, temporary ones included, is a sealed one beside its place."""
    sys.addaudithook(_watch)  # it cannot be taken away again, only told to look away
    WATCHED.append(True)
    try:
        resting.seal(tmp_path / "rows", TABLE, SPEC)
        resting.opened(tmp_path / "rows")
        closed = [*OPENED]
        OPENED.clear()
        write_dataset(tmp_path / "plain", TABLE, SPEC)
    finally:
        WATCHED.clear()
    assert {Path(name).name for name in closed} == FILES and len(closed) == 3
    assert all(Path(name).is_relative_to(tmp_path) for name in closed)
    assert {Path(name).name for name in OPENED} == {DATA_FILE, SPEC_FILE}  # in plain text it would have been seen
    assert {path.name for path in tmp_path.iterdir()} == {"rows", "plain"}


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_change_of_any_byte_is_refused(sealed: Path, data: st.DataObject) -> None:
    path = sealed / data.draw(st.sampled_from(sorted(FILES)), label="file")
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1), label="position")
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255), label="mask")
    path.write_bytes(changed)
    try:
        with pytest.raises(SealError):
            resting.opened(sealed)
    finally:
        path.write_bytes(original)
    resting.opened(sealed)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def exchange(sealed: Path, name: str) -> None:
    """Take a file of another data set, of fewer rows, that was sealed for the same key."""
    other = sealed.parent / "other"
    resting.seal(other, TABLE.slice(1), SPEC)
    shutil.copyfile(other / name, sealed / name)


def wrap_for_another(sealed: Path) -> None:
    dek = unwrap_dek((sealed / SIDECAR).read_bytes(), resting.KEY, context=CONTEXT)
    keys = [resting.KEY.public_key(), SealingPrivateKey.generate().public_key()]
    (sealed / SIDECAR).write_bytes(wrap_dek(dek, keys, context=CONTEXT))


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def reseal(sealed: Path, **changes: object) -> None:
    """Seal what is in it in another way, as whoever has the public key can."""
    files = open_dataset(sealed, key=resting.KEY)
    seal_files(files, sealed, **({"recipients": [resting.KEY.public_key()], "context": CONTEXT} | changes))


ATTACKS: dict[str, Callable[[Path], object]] = {
    "the rows are truncated": lambda d: cut(d / f"{DATA_FILE}.sealed"),
    "the rows are another data set's": lambda d: exchange(d, f"{DATA_FILE}.sealed"),
    "the description is another data set's": lambda d: exchange(d, f"{SPEC_FILE}.sealed"),
    "the recipients are another data set's": lambda d: exchange(d, SIDECAR),
    "the recipients are more than the pipeline": wrap_for_another,
    "the recipients are nonsense": lambda d: (d / SIDECAR).write_bytes(b"{}"),
    "the recipients are gone": lambda d: (d / SIDECAR).unlink(),
    "the rows are gone": lambda d: (d / f"{DATA_FILE}.sealed").unlink(),
    "a file is added": lambda d: (d / "more.sealed").write_bytes(b""),
    "a file in plain text is added": lambda d: (d / DATA_FILE).write_bytes(b"PAR1"),
    "the rows are a link": lambda d: replace_by_link(d / f"{DATA_FILE}.sealed"),
    "it is sealed for another key": lambda d: reseal(d, recipients=[SealingPrivateKey.generate().public_key()]),
    "it is sealed as something else": lambda d: reseal(d, context={"model": "5f" * 32}),
    "it is sealed as nothing in particular": lambda d: reseal(d, context={"content": "dataset"}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attacked_data_set_is_refused(sealed: Path, name: str) -> None:
    ATTACKS[name](sealed)
    with pytest.raises((SealError, DataError)):
        resting.opened(sealed)


def test_rows_and_description_cannot_change_places(sealed: Path) -> None:
    rows, description = sealed / f"{DATA_FILE}.sealed", sealed / f"{SPEC_FILE}.sealed"
    first, second = rows.read_bytes(), description.read_bytes()
    rows.write_bytes(second)
    description.write_bytes(first)
    with pytest.raises(SealError, match="context"):
        resting.opened(sealed)


def test_another_key_opens_nothing(sealed: Path) -> None:
    with pytest.raises(SealError, match="others than this pipeline's key"):
        resting.opened(sealed, SealingPrivateKey.generate())


def test_what_is_larger_than_allowed_is_not_read(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_rest, "FILE_LIMITS", {DATA_FILE: 100, SPEC_FILE: 100})
    with pytest.raises(SealError, match="larger than the 100 bytes"):
        resting.opened(sealed)


def test_what_cannot_be_sealed_leaves_what_lay_there(sealed: Path) -> None:
    before = tree_digest(sealed)
    with pytest.raises(DataError, match="0 rows"):
        resting.seal(sealed, TABLE.slice(0, 0), SPEC)
    with pytest.raises(DataError, match="no column"):
        resting.seal(sealed, TABLE.drop_columns(["x"]), SPEC)
    with pytest.raises(ConfigError):
        resting.seal(sealed, TABLE, DatasetSpec("x", SPEC.label, Features(("x*",), (2,), 0, 1)))
    assert tree_digest(sealed) == before


# As the input of a step.

MASK = step("mask", "mask_pii", {"dataset": "start_chain.artifact"}, "dataset")
SPLIT = step("split", "split", {"dataset": "mask.dataset"}, "train")
OWN = step("own", "train", {"dataset": "external", "begun": "start_chain.artifact"}, "model")
AUGMENT = step("augment", "attest", {"material": "mask.dataset"}, "product")
GATE = {
    **step("gate", "residual_pii_gate", {"dataset": "mask.dataset"}, "dataset"),
    "kind": "gate",
    "checks": {"residual_identifiers": {"min": 0, "max": 0}},
}


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForeignPipeline:
    made = ForeignPipeline(tmp_path, monkeypatch, MASK, SPLIT, OWN, AUGMENT, GATE)
    resting.write_keys(tmp_path / "keys")
    return made


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "plain", TABLE, SPEC)
    return tmp_path / "plain"


def without_keys(pipeline: ForeignPipeline) -> None:
    for name in (PRIVATE_KEY, PUBLIC_KEY):
        (pipeline.root / "keys" / name).unlink()


@pytest.mark.parametrize(("name", "of"), [("mask", "dataset"), ("split", "dataset"), ("own", "dataset")])
def test_a_sealed_data_set_is_opened_wherever_it_comes_from(pipeline, sealed: Path, plain: Path, name, of) -> None:
    assert read_input(name, of, sealed) == {path.name: path.read_bytes() for path in plain.iterdir()}
    assert input_digest(name, of, sealed) == tree_digest(plain)


@pytest.mark.parametrize("keys", [True, False], ids=["with keys", "without"])
def test_a_plain_data_set_in_the_place_of_a_sealed_one_is_refused(pipeline, sealed: Path, plain: Path, keys) -> None:
    """Its content is the very same, so every digest fits; and that no key is there opens no door either."""
    if not keys:
        without_keys(pipeline)
    for read in (read_input, input_digest):
        with pytest.raises(SealError, match=r"'dataset' lies in plain text; mask\.dataset is sealed"):
            read("split", "dataset", plain)
    with pytest.raises(SealError, match="plain text"):
        subject_digest("gate", plain)
    with pytest.raises(SealError, match="plain text"):
        product_digest(plain)


def test_a_users_own_data_set_may_be_plain_where_the_policy_says_external(pipeline, plain: Path) -> None:
    without_keys(pipeline)
    for name in ("own", "mask"):  # what start_chain began with comes from outside too
        assert set(read_input(name, "dataset", plain)) == {DATA_FILE, SPEC_FILE}
        assert input_digest(name, "dataset", plain) == tree_digest(plain)


def test_without_the_key_a_sealed_data_set_stays_closed(pipeline, sealed: Path) -> None:
    without_keys(pipeline)
    for name in ("own", "mask", "split"):
        with pytest.raises(KeyMaterialError):
            read_input(name, "dataset", sealed)
    for digest in (lambda: subject_digest("gate", sealed), lambda: product_digest(sealed)):
        with pytest.raises(KeyMaterialError):
            digest()


def test_what_the_policy_does_not_know_is_not_read_in_plain_text(pipeline, plain: Path, monkeypatch) -> None:
    with pytest.raises(PolicyError, match="knows no step"):
        read_input("unknown", "dataset", plain)
    with pytest.raises(SealError, match="plain text"):
        read_input("own", "unknown", plain)
    monkeypatch.delenv("PORTCULLIS_TRUST")
    with pytest.raises(TrustStoreError):
        read_input("own", "dataset", plain)


BAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.mkdir(),
    "a file": lambda path: path.write_bytes(b"PAR1"),
    "a link": lambda path: path.symlink_to(path.parent / "rows"),
    "something else": lambda path: (path.mkdir(), (path / "weights").write_bytes(b"")),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ["own", "split"])
def test_what_is_no_data_set_is_refused(pipeline, sealed: Path, tmp_path: Path, make, name) -> None:
    make(tmp_path / "bad")
    with pytest.raises(DataError):
        read_input(name, "dataset", tmp_path / "bad")


def test_a_plain_data_set_is_checked_as_ever(pipeline, plain: Path) -> None:
    (plain / DATA_FILE).unlink()
    os.mkfifo(plain / DATA_FILE)
    with pytest.raises(DataError, match="not a regular file"):
        read_input("own", "dataset", plain)


def test_what_is_no_data_set_is_digested_as_it_lies(pipeline, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"\1")
    for digest in (input_digest("own", "dataset", tmp_path / "model"), subject_digest("gate", tmp_path / "model")):
        assert digest == tree_digest(tmp_path / "model")
    assert product_digest(tmp_path / "model") == tree_digest(tmp_path / "model")
    with pytest.raises(DataError):
        subject_digest("gate", tmp_path / "nothing")


def test_enforce_looks_at_the_content_of_a_sealed_data_set(pipeline, sealed: Path, plain: Path, monkeypatch) -> None:
    from kfp import dsl

    seen = []
    monkeypatch.setattr("portcullis.evidence.step.enforce", lambda gate, **given: seen.append((gate, given["subject"])))
    artifacts = {name: dsl.Artifact(uri=str(pipeline.root / name)) for name in ("rows", "plain", "evidence", "passed")}
    given = {"evidence": artifacts["evidence"], "gate": "gate", "passed": artifacts["passed"]}
    enforce.python_func(subject=artifacts["rows"], **given)
    assert seen == [("gate", tree_digest(plain))]
    with pytest.raises(SealError, match="plain text"):
        enforce.python_func(subject=artifacts["plain"], **given)
    assert len(seen) == 1


def test_a_task_of_ones_own_takes_and_makes_sealed_data_sets(pipeline, sealed: Path, plain: Path, tmp_path) -> None:
    """`start_chain` takes a data set as it came; what tasks make of it is attested by its content, and sealed."""
    begun = start_chain(step="start_chain", artifact=plain, bundle=pipeline.bundle("begun"))
    assert begun.outputs == {"artifact": tree_digest(plain)}
    again = start_chain(step="start_chain", artifact=sealed, bundle=pipeline.bundle("again"))
    assert again.outputs == begun.outputs

    from portcullis.evidence.step import begin

    made = begin(
        "mask",
        stage="mask_pii",
        inputs={"dataset": tree_digest(plain)},
        parameters={},
        evidence=[pipeline.bundle("begun")],
    )
    made.finish(bundle=pipeline.bundle("mask"), outputs={"dataset": resting.content(sealed)}, figures={})
    given = {"step": "augment", "evidence": pipeline.bundle("mask"), "bundle": pipeline.bundle("augment")}
    with pytest.raises(SealError, match="plain text"):
        attest(material=plain, product=sealed, **given)
    write_dataset(tmp_path / "leaked", TABLE.slice(1), SPEC)
    with pytest.raises(SealError, match="whoever made it must seal it"):
        attest(material=sealed, product=tmp_path / "leaked", **given)
    resting.seal(tmp_path / "more", TABLE.slice(1), SPEC)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        attest(material=tmp_path / "more", product=sealed, **given)
    assert not pipeline.bundle("augment").exists()
    statement = attest(material=sealed, product=tmp_path / "more", **given)
    assert statement.outputs == {"product": tree_digest(tmp_path / "leaked")}


# The keys.


def test_the_two_keys_are_found_where_keys_are(pipeline) -> None:
    assert pipeline_recipient().key_id == pipeline_key().key_id == resting.KEY.key_id


@pytest.mark.parametrize("spoil", [b"", b"\0", b"-----BEGIN PRIVATE KEY-----\n"], ids=["empty", "nul", "cut"])
@pytest.mark.parametrize(("name", "load"), [(PRIVATE_KEY, pipeline_key), (PUBLIC_KEY, pipeline_recipient)])
def test_a_damaged_key_is_refused(pipeline, name, load, spoil) -> None:
    (pipeline.root / "keys" / name).write_bytes(spoil)
    with pytest.raises(KeyMaterialError):
        load()


def test_a_key_that_others_can_read_is_refused(pipeline) -> None:
    (pipeline.root / "keys" / PRIVATE_KEY).chmod(0o640)
    with pytest.raises(KeyMaterialError, match="chmod 600"):
        pipeline_key()


def test_the_halves_are_not_interchangeable(pipeline) -> None:
    shutil.copyfile(pipeline.root / "keys" / PUBLIC_KEY, pipeline.root / "keys" / PRIVATE_KEY)
    with pytest.raises(KeyMaterialError, match="private sealing key"):
        pipeline_key()


def test_nobody_says_where_the_keys_are(pipeline, monkeypatch) -> None:
    monkeypatch.delenv("PORTCULLIS_KEYS")
    for load in (pipeline_key, pipeline_recipient):
        with pytest.raises(UsageError, match="PORTCULLIS_KEYS"):
            load()
