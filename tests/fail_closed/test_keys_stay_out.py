"""No key is in anything that a whole run left: artifacts, parameters, reports, logs, the audit log, scratch files."""

import base64
from pathlib import Path

import pytest

from portcullis.files import read_bytes
from portcullis.keys import Signer
from portcullis.sealing.recipients import SealingPrivateKey

pytestmark = pytest.mark.slow


def secrets_below(keys: Path) -> dict[str, set[bytes]]:
    """Return what must not be found of each key: its lines, and its secret bytes raw, in hex and in base64."""
    found = {}
    for path in sorted(keys.iterdir()):
        if path.name.endswith(".pub.pem"):
            continue
        data = read_bytes(path, limit=1 << 16)
        spelled = {line for line in data.splitlines() if not line.startswith(b"-----") and len(line) >= 40}
        for secret in raw_of(path, data):
            spelled |= {secret, secret.hex().encode(), base64.b64encode(secret), base64.urlsafe_b64encode(secret)}
        assert spelled, path
        found[path.name] = spelled
    return found


def raw_of(path: Path, data: bytes) -> list[bytes]:
    if path.suffix != ".pem":
        return [base64.b64decode(data)]
    if path.name in ("pipeline.pem", "serving.pem"):
        key = SealingPrivateKey.from_pem(data)
        return [key.mlkem.private_bytes_raw(), key.x25519.private_bytes_raw()]
    return [Signer.from_pem(data)._key.private_numbers().private_value.to_bytes(32)]


def places_of(secrets: dict[str, set[bytes]], *folders: Path) -> list[str]:
    """Return which key lies in which file below some folders, or in its name."""
    return [
        f"{name} in {path}"
        for folder in folders
        for path in folder.rglob("*")
        for data in [str(path).encode() + (path.read_bytes() if path.is_file() and not path.is_symlink() else b"")]
        for name, spelled in secrets.items()
        if any(secret in data for secret in spelled)
    ]


def test_no_key_is_in_what_a_run_left(real_run):
    secrets = secrets_below(real_run.home.keys)
    assert len(secrets) > 20
    assert places_of(secrets, real_run.output, real_run.root, real_run.scratch, real_run.home.trust) == []


def test_a_key_would_be_found(real_run, tmp_path):
    secrets = secrets_below(real_run.home.keys)
    found = {place.split(" in ")[0] for place in places_of(secrets, real_run.home.keys)}
    assert found == set(secrets)
    for index, spelled in enumerate(secrets.values()):
        for number, secret in enumerate(spelled):
            (tmp_path / f"{index}-{number}").write_bytes(b"log: " + secret + b"\n")
    assert len(places_of(secrets, tmp_path)) >= sum(map(len, secrets.values()))
