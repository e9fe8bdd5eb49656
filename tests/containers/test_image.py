"""The image holds what was tested, by hash, and nothing that is for developers only."""

import re

import pytest

from portcullis import __version__
from portcullis_pipelines.compile import ROOT

CONTAINERFILE = (ROOT / "images" / "Containerfile").read_text()
FINAL = CONTAINERFILE[CONTAINERFILE.rindex("\nFROM ") :]
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+) ((?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+)$", re.MULTILINE)


def pins(lock):
    return {name: (version, hashes) for name, version, hashes in PIN.findall((ROOT / lock).read_text())}


def test_every_line_of_the_lock_is_a_pin_with_its_hashes():
    rest = PIN.sub("", (ROOT / "images" / "requirements.lock").read_text())
    assert not rest.strip()


def test_the_image_holds_the_very_releases_that_were_tested():
    tested, shipped = pins("requirements.lock"), pins("images/requirements.lock")
    assert {name: tested.get(name) for name in shipped} == shipped, "run: make lock"
    assert {"kfp", "cryptography", "starlette", "torchattacks", "scikit-learn", "setuptools"} <= set(shipped)


@pytest.mark.parametrize("package", ["pytest", "hypothesis", "ruff", "mypy", "pre-commit", "hatchling", "httpx", "pip"])
def test_the_image_holds_nothing_for_developers(package):
    assert package not in pins("images/requirements.lock")


def test_the_image_holds_no_cuda():
    cuda = [name for name in pins("images/requirements.lock") if name.startswith(("nvidia", "cuda", "triton"))]
    assert not cuda, "run: make lock TORCH_INDEX=https://download.pytorch.org/whl/cpu"


def test_the_image_runs_as_a_number_that_is_not_root():
    users = re.findall(r"^USER (\S+)$", FINAL, re.MULTILINE)
    assert users == ["10001:10001"]


def test_everything_but_pytorch_is_installed_by_hash_or_from_the_wheel():
    installs = re.findall(r"pip --python /opt/portcullis install (.+)$", CONTAINERFILE, re.MULTILINE)
    by_hash = [line for line in installs if "--require-hashes" in line]
    assert [line for line in installs if line not in by_hash] == [
        '--index-url "${TORCH_INDEX}" "${TORCH}"',
        "--no-deps --no-index /build/*.whl && pip --python /opt/portcullis check",
    ]
    assert len(by_hash) == 2 and all("trusted-host" not in line for line in installs)


def test_the_versions_agree_with_their_sources():
    (torch,) = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"\nARG TORCH={torch}\n" in CONTAINERFILE
    (name,) = re.findall(r"^ARG PORTCULLIS_IMAGE=(\S+):(\S+)$", FINAL, re.MULTILINE)
    assert name[1] == __version__
    assert f'"{name[0]}:{{__version__}}"' in (ROOT / "components" / "portcullis" / "container.py").read_text()
