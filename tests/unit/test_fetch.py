"""What a server's init container brings: whole or not at all, from wherever it lies, and nothing verified."""

import os
import subprocess
import sys
from pathlib import Path

import object_store
import pytest

from portcullis.digest import path_digest
from portcullis.errors import DataError, UsageError
from portcullis.serving import fetch
from portcullis.serving.fetch import fetch_admitted

SEALED = {"model.json.sealed": b"1", "sub/weights.sealed": b"2" * 5000, "recipients.json": b"{}"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, data in SEALED.items():
        path = tmp_path / "source" / "sealed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "source" / "vsa").write_bytes(b"admission")
    (tmp_path / "source" / "bundle").write_bytes(b"evidence\n")
    return tmp_path / "source"


@pytest.fixture
def store(source: Path, monkeypatch: pytest.MonkeyPatch):
    with object_store.serve() as serving:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", serving.endpoint)
        monkeypatch.setenv("AWS_REGION", object_store.REGION)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        files = [path for path in source.rglob("*") if path.is_file()]
        serving.buckets["bucket"] = {f"run/{path.relative_to(source).as_posix()}": path.read_bytes() for path in files}
        yield serving


def sources(base: str) -> dict[str, str]:
    return {"sealed": f"{base}/sealed", "admission": f"{base}/vsa", "evidence": f"{base}/bundle"}


def brought(source: Path, output: Path) -> bool:
    """Tell whether all three are there, and nothing else."""
    names = sorted(path.name for path in output.iterdir())
    return (
        names == ["admission.json", "evidence.intoto.jsonl", "model"]
        and path_digest(output / "model") == path_digest(source / "sealed")
        and (output / "admission.json").read_bytes() == b"admission"
        and (output / "evidence.intoto.jsonl").read_bytes() == b"evidence\n"
    )


@pytest.mark.parametrize("prefix", ["", "file:", "file://", "file://localhost"])
def test_a_mounted_volume(source, tmp_path, prefix):
    fetch_admitted(**sources(f"{prefix}{source}"), output=tmp_path / "out")
    assert brought(source, tmp_path / "out")


@pytest.mark.parametrize("scheme", ["s3", "minio"])
def test_an_object_store(source, store, tmp_path, scheme):
    fetch_admitted(**sources(f"{scheme}://bucket/run"), output=tmp_path / "out")
    assert brought(source, tmp_path / "out")


def test_the_places_may_differ_and_what_was_there_is_replaced(source, store, tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "old").write_bytes(b"old")
    (tmp_path / "out" / "admission.json").write_bytes(b"old")
    mixed = {**sources(str(source)), "sealed": "s3://bucket/run/sealed/"}
    fetch_admitted(**mixed, output=tmp_path / "out")
    assert brought(source, tmp_path / "out")


def _fifo(source: Path) -> None:
    os.mkfifo(source / "sealed" / "pipe")


def _link(source: Path) -> None:
    (source / "sealed" / "link").symlink_to("/etc/hostname")


def _linked_folder(source: Path) -> None:
    (source / "sealed" / "link").symlink_to("/etc")


def _linked_root(source: Path) -> None:
    (source / "sealed").rename(source / "elsewhere")
    (source / "sealed").symlink_to(source / "elsewhere")


def _empty(source: Path) -> None:
    for path in source.rglob("sealed/*.*"):
        path.unlink()
    (source / "sealed" / "sub" / "weights.sealed").unlink()


BAD_FOLDERS = {
    "pipe": _fifo,
    "link": _link,
    "linked folder": _linked_folder,
    "linked root": _linked_root,
    "empty": _empty,
}


@pytest.mark.parametrize("spoil", BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys())
def test_a_folder_with_something_else_is_refused(source, tmp_path, spoil):
    spoil(source)
    with pytest.raises(DataError):
        fetch_admitted(**sources(str(source)), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", ["local", "s3://bucket/run"])
def test_sizes_are_limited(source, store, tmp_path, monkeypatch, base):
    size = sum(map(len, SEALED.values()))
    where = sources(str(source) if base == "local" else base)
    monkeypatch.setattr(fetch, "MAX_SEALED_BYTES", size - 1)
    with pytest.raises(DataError, match="larger than"):
        fetch_admitted(**where, output=tmp_path / "out")
    monkeypatch.setattr(fetch, "MAX_SEALED_BYTES", size)
    monkeypatch.setattr(fetch, "MAX_ADMISSION_BYTES", len(b"admission") - 1)
    with pytest.raises((DataError, UsageError), match="larger than"):
        fetch_admitted(**where, output=tmp_path / "out")
    assert not (tmp_path / "out" / "admission.json").exists()


@pytest.mark.parametrize("what", ["sealed", "admission", "evidence"])
@pytest.mark.parametrize("base", ["local", "s3://bucket/run"])
def test_what_is_missing_or_of_the_other_kind_is_refused(source, store, tmp_path, base, what):
    where = sources(str(source) if base == "local" else base)
    other_kind = where["admission"] if what == "sealed" else where["sealed"]
    for wrong in (f"{where[what]}-not", other_kind):
        with pytest.raises((DataError, UsageError)):
            fetch_admitted(**{**where, what: wrong}, output=tmp_path / "out")
        assert not (tmp_path / "out" / "admission.json").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "relative",
        "../relative",
        "https://host/x",
        "file:relative",
        "file://host/x",
        "file:///x?y",
        "/a\0b",
        "file:///%00",
    ],
)
def test_other_places_are_a_usage_error(source, tmp_path, uri):
    with pytest.raises(UsageError, match="neither an absolute path nor"):
        fetch_admitted(**{**sources(str(source)), "sealed": uri}, output=tmp_path / "out")


def test_an_output_that_cannot_be_written_is_a_usage_error(source, store, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for base in (str(source), "s3://bucket/run"):
        with pytest.raises(UsageError, match="cannot write"):
            fetch_admitted(**sources(base), output=tmp_path / "file")


def test_the_command(source, store, tmp_path):
    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        where = {**sources("s3://bucket/run"), "output": str(tmp_path / "out"), **changes}
        arguments = [part for name, value in where.items() for part in (f"--{name}", value)]
        command = [sys.executable, "-m", "portcullis.serving.fetch", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert brought(source, tmp_path / "out")
    missing = run(sealed="s3://bucket/nothing")
    assert missing.returncode == 2
    assert missing.stderr.startswith("UsageError: cannot read s3://bucket/nothing: there is no such object or folder")
    assert missing.stderr.count("\n") == 1
    store.buckets["bucket"]["run/sealed/../../../escape"] = b""
    hostile = run()
    assert hostile.returncode == 1
    assert hostile.stderr.startswith("DataError: ") and hostile.stderr.count("\n") == 1
