import os
import resource
import shutil

import pytest

from portcullis.digest import content_digest, tree_digest
from portcullis.errors import DataError, SealError, UsageError
from portcullis.sealing.recipients import SealingPrivateKey, unwrap_dek, wrap_dek
from portcullis.sealing.sealed import open_directory, seal_directory, sealed_digest

KEY = SealingPrivateKey.generate()
CONTEXT = {"model": "5f" * 32}
FILES = {
    "config.json": b"{}",
    "empty": b"",
    "recipients.json": b"[]",
    "weights/a.safetensors": bytes(range(256)) * 16,
    "weights/b.safetensors": bytes(4096),
}


def write_tree(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def seal_tree(source, target, *, context=CONTEXT):
    seal_directory(source, target, recipients=[KEY.public_key()], context=context)
    return target


def opened(sealed, *, key=KEY, context=CONTEXT):
    return open_directory(sealed, private_key=key, context=context)


@pytest.fixture
def plain(tmp_path):
    return write_tree(tmp_path / "plain", FILES)


@pytest.fixture
def sealed(plain, tmp_path):
    return seal_tree(plain, tmp_path / "sealed")


def test_what_is_sealed_opens_and_digests_as_before(plain, sealed):
    files = opened(sealed)
    assert files == FILES
    assert content_digest(files) == tree_digest(plain)


def test_no_plaintext_lies_in_the_sealed_directory(sealed):
    names = sorted(path.relative_to(sealed).as_posix() for path in sealed.rglob("*") if path.is_file())
    assert names == sorted([*(f"{name}.sealed" for name in FILES), "recipients.json"])
    assert not any(FILES["weights/a.safetensors"][:64] in (sealed / name).read_bytes() for name in names)


def test_new_recipients_change_neither_digest(sealed):
    before = sealed_digest(sealed)
    sidecar, successor = sealed / "recipients.json", SealingPrivateKey.generate()
    dek = unwrap_dek(sidecar.read_bytes(), KEY, context=CONTEXT)
    sidecar.write_bytes(wrap_dek(dek, [successor.public_key()], context=CONTEXT))
    assert sealed_digest(sealed) == before
    assert opened(sealed, key=successor) == FILES
    with pytest.raises(SealError, match="wrong key"):
        opened(sealed)


def test_sealing_twice_shares_no_key(plain, sealed, tmp_path):
    again = seal_tree(plain, tmp_path / "again")
    assert sealed_digest(again) != sealed_digest(sealed)
    shutil.copy(again / "recipients.json", sealed / "recipients.json")
    with pytest.raises(SealError, match="wrong key"):
        opened(sealed)


def test_another_key_or_context_is_refused(sealed):
    with pytest.raises(SealError, match="wrong key"):
        opened(sealed, key=SealingPrivateKey.generate())
    with pytest.raises(SealError, match="another context"):
        opened(sealed, context={"model": "60" * 32})


def swap(first, second):
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda root: (root / "empty.sealed").unlink(), id="file removed"),
        pytest.param(lambda root: shutil.rmtree(root / "weights"), id="directory removed"),
        pytest.param(lambda root: (root / "empty.sealed").rename(root / "other.sealed"), id="file renamed"),
        pytest.param(lambda root: (root / "weights").rename(root / "layers"), id="directory renamed"),
        pytest.param(lambda root: shutil.copy(root / "empty.sealed", root / "more.sealed"), id="file added"),
        pytest.param(lambda root: (root / "more").write_bytes(b""), id="plain file added"),
        pytest.param(lambda root: (root / "weights/recipients.json").write_bytes(b""), id="sidecar below"),
        pytest.param(lambda root: swap(*(root / "weights").iterdir()), id="files swapped"),
        pytest.param(lambda root: shutil.copy(root / "config.json.sealed", root / "empty.sealed"), id="file repeated"),
        pytest.param(lambda root: os.truncate(root / "empty.sealed", 4100), id="file cut"),
        pytest.param(lambda root: (root / "recipients.json").unlink(), id="no recipients"),
        pytest.param(lambda root: (root / "recipients.json").write_bytes(b"{}"), id="other recipients"),
        pytest.param(lambda root: (root / "link.sealed").symlink_to(root / "empty.sealed"), id="link added"),
        pytest.param(lambda root: (root / "link").symlink_to(root / "weights"), id="link to a directory added"),
        pytest.param(lambda root: os.mkfifo(root / "pipe.sealed"), id="special file added"),
        pytest.param(lambda root: (root / "a\nb.sealed").write_bytes(b""), id="line break in a name"),
        pytest.param(lambda root: (root / os.fsdecode(b"\xff.sealed")).write_bytes(b""), id="undecodable name"),
        pytest.param(lambda root: [path.unlink() for path in root.rglob("*.sealed")], id="nothing left"),
    ],
)
def test_an_altered_directory_is_refused(sealed, alter):
    alter(sealed)
    with pytest.raises(SealError):
        opened(sealed)


def test_a_file_replaced_by_a_link_to_itself_is_refused(sealed):
    (sealed / "empty.sealed").rename(sealed.parent / "aside")
    (sealed / "empty.sealed").symlink_to(sealed.parent / "aside")
    with pytest.raises(SealError, match="link"):
        opened(sealed)


def test_only_a_directory_is_opened(tmp_path):
    with pytest.raises(UsageError, match="missing or not a directory"):
        opened(tmp_path / "missing")


@pytest.mark.parametrize("name", ["file name", "file names in directory"])
def test_a_reserved_name_in_the_context_is_refused(plain, sealed, tmp_path, name):
    with pytest.raises(UsageError, match="reserved"):
        seal_tree(plain, tmp_path / "other", context={**CONTEXT, name: "x"})
    with pytest.raises(UsageError, match="reserved"):
        opened(sealed, context={**CONTEXT, name: "x"})


@pytest.mark.parametrize("target", [".", "..", "inside", "weights"])
def test_source_and_target_may_not_overlap(plain, target):
    with pytest.raises(UsageError, match="overlap"):
        seal_tree(plain, plain / target)
    assert {path.relative_to(plain).as_posix() for path in plain.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        pytest.param(lambda root: shutil.rmtree(root), DataError, id="missing"),
        pytest.param(lambda root: [shutil.rmtree(root), root.mkdir()], DataError, id="empty"),
        pytest.param(lambda root: (root / "link").symlink_to(root / "empty"), DataError, id="link"),
        pytest.param(lambda root: (root / "link").symlink_to(root / "weights"), DataError, id="link to a directory"),
        pytest.param(lambda root: os.mkfifo(root / "pipe"), DataError, id="special file"),
        pytest.param(lambda root: (root / os.fsdecode(b"\xff")).write_bytes(b""), DataError, id="undecodable name"),
        pytest.param(lambda root: (root / "a\nb").write_bytes(b""), UsageError, id="line break in a name"),
        pytest.param(lambda root: (root / ("x" * 250)).write_bytes(b""), UsageError, id="name too long"),
        pytest.param(lambda root: write_tree(root, {"empty.sealed/x": b""}), UsageError, id="names collide"),
    ],
)
def test_a_tree_that_cannot_be_sealed_leaves_nothing(plain, tmp_path, spoil, error):
    spoil(plain)
    with pytest.raises(error):
        seal_tree(plain, tmp_path / "sealed")
    assert {path.name for path in tmp_path.iterdir()} <= {"plain"}


def test_no_recipient_leaves_nothing(plain, tmp_path):
    with pytest.raises(UsageError, match="recipients"):
        seal_directory(plain, tmp_path / "sealed", recipients=[], context=CONTEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_write_that_fails_half_way_leaves_what_was_there(plain, sealed, tmp_path):
    (plain / "weights/a.safetensors").write_bytes(bytes(100_000))
    before = {path: path.read_bytes() for path in sealed.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as a full disk would, but for this process only
    try:
        with pytest.raises(UsageError, match="cannot seal"):
            seal_tree(plain, sealed)
        with pytest.raises(UsageError, match="cannot seal"):
            seal_tree(plain, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in sealed.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "sealed"]


def test_sealing_again_replaces_the_whole_directory(plain, sealed):
    shutil.rmtree(plain / "weights")
    seal_tree(plain, sealed)
    assert opened(sealed) == {name: data for name, data in FILES.items() if not name.startswith("weights/")}


def test_the_digest_of_nothing_is_refused():
    with pytest.raises(DataError):
        content_digest({})
