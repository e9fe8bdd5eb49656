"""Bounded reads, and writes that appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from portcullis.errors import UsageError
from portcullis.files import atomic_path, read_bytes, write_bytes


def test_a_read_is_bounded(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(UsageError, match="larger than the 4 bytes"):
        read_bytes(path, limit=4)


def test_a_read_follows_links_as_mounted_secrets_need(tmp_path):
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "key").write_bytes(b"x")
    (tmp_path / "key").symlink_to("..data/key")
    assert read_bytes(tmp_path / "key", limit=1) == b"x"


UNREADABLE = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "named pipe": lambda path: os.mkfifo(path),
    "device without end": lambda path: path.symlink_to("/dev/zero"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "loop of links": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_only_a_regular_file_is_read(tmp_path, make):
    make(tmp_path / "it")
    with pytest.raises(UsageError, match="it"):
        read_bytes(tmp_path / "it", limit=10)


def test_a_path_below_a_file_cannot_be_read(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        read_bytes(tmp_path / "file" / "below", limit=10)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_write_makes_its_folders_and_sets_exactly_its_mode(tmp_path, mode):
    path = tmp_path / "new" / "folder" / "file"
    before = os.umask(0o077)
    try:
        write_bytes(path, b"data", mode=mode)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == mode
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_replaces_the_file_and_not_what_a_link_points_to(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "real").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new" and not (tmp_path / "link").is_symlink()


def test_a_directory_replaces_a_directory_whole(tmp_path):
    old = tmp_path / "tree"
    old.mkdir()
    (old / "stale").write_bytes(b"")
    with atomic_path(old) as temporary:
        temporary.mkdir()
        (temporary / "fresh").write_bytes(b"")
        assert [entry.name for entry in old.iterdir()] == ["stale"]
    assert [entry.name for entry in old.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [old]


def test_a_failure_half_way_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_target_of_the_other_kind_is_left_as_it_was(tmp_path, kind):
    path = tmp_path / "target"
    if kind == "file":
        path.write_bytes(b"old")
    else:
        path.mkdir()

    def replace():
        with atomic_path(path) as temporary:
            if kind == "file":
                temporary.mkdir()
            else:
                temporary.write_bytes(b"new")

    with pytest.raises(OSError, match="target"):
        replace()
    assert path.is_file() == (kind == "file")
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = (
        "import os, sys; from pathlib import Path; from portcullis.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, cwd=Path(__file__).parent)
    assert done.returncode == 9
    assert path.read_bytes() == b"old"
