"""`encryption`: sealing and opening a model file beside Tink, age, Fernet and AES-GCM over the whole file.

Each side is a process of its own that encrypts one file of random bytes into another, a few times, after a first that
is not counted; its figures are processor time, and the peak of its memory (resident set) beyond that of a process which
does the same to a file of 64 KiB. Peers: Tink's streaming AEAD AES256_GCM_HKDF_1MB, age by pyrage, and of
`cryptography` Fernet and AES-GCM over the whole file in memory, as it is commonly written. Loading is from the
encrypted file to PyTorch tensors: ours decrypts into their memory, the peer decrypts the file and has safetensors parse
it.
"""

import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import Record, command
from benchmarks.peers import peer_python
from portcullis.models.pytorch import torch

# Each defines seal(source, target) and open_(source): from the sealed file to all of its plaintext or tensors.
OURS = """
from pathlib import Path
from portcullis.sealing.stream import open_sealed, seal
DEK, CONTEXT = bytes(32), {"model": "0" * 64}
def encrypt(source, target):
    with open(source, "rb", buffering=0) as plain, open(target, "wb", buffering=0) as sealed:
        seal(plain, sealed, dek=DEK, context=CONTEXT)
def load(source):
    from portcullis.models.encrypted import load_safetensors
    with open_sealed(Path(source), dek=DEK, context=CONTEXT) as file:
        return load_safetensors(file)
"""
SIDES = {
    "tink": """
import io, tink
from tink import streaming_aead
streaming_aead.register()
template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
primitive = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)
def encrypt(source, target):
    with open(source, "rb") as plain, open(target, "wb") as sealed:
        with primitive.new_encrypting_stream(sealed, b"") as stream:
            while part := plain.read(1 << 20):
                stream.write(part)
""",
    "age": """
import pyrage
recipient = pyrage.x25519.Identity.generate().to_public()
def encrypt(source, target):
    with open(source, "rb") as plain, open(target, "wb") as sealed:
        pyrage.encrypt_io(plain, sealed, [recipient])
""",
    "fernet": """
from cryptography.fernet import Fernet
key = Fernet(Fernet.generate_key())
def encrypt(source, target):
    with open(source, "rb") as plain, open(target, "wb") as sealed:
        sealed.write(key.encrypt(plain.read()))
""",
    "whole-file gcm": """
import os
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
KEY = AESGCM(bytes(32))
def encrypt(source, target):
    with open(source, "rb") as plain, open(target, "wb") as sealed:
        nonce = os.urandom(12)
        sealed.write(nonce + KEY.encrypt(nonce, plain.read(), None))
def load(source):
    from safetensors.torch import load
    with open(source, "rb") as sealed:
        data = sealed.read()
    return load(KEY.decrypt(data[:12], data[12:], None))
""",
}
DRIVER = """
import json, sys, time
{side}
source, target, work, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def once():
    if work == "encrypt":
        encrypt(source, target)
        return
    tensors = load(target)  # PyTorch is imported by the first, which is not counted
    assert sum(it.numel() for it in tensors.values()) > 0
if work == "load":
    encrypt(source, target)
def peak():  # KiB of this program; getrusage would tell the parent's too
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
seconds = []
for index in range(rounds + 1):
    start = time.process_time()
    once()
    seconds.append(time.process_time() - start)
print(json.dumps(dict(seconds=seconds[1:], memory=peak() / 1024)))
"""


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Encrypt one file with each, in turn, and load it with two of them."""
    mebibytes, rounds = (64, 3) if quick else (512, 5)
    tink = peer_python("tink", "tink==1.16.1", "numpy")
    pythons = {"tink": tink, "age": peer_python("age", "pyrage==1.4.0"), "fernet": Path(sys.executable)}
    records = []
    with tempfile.TemporaryDirectory(dir="build") as folder:
        source, target = Path(folder) / "weights.safetensors", Path(folder) / "sealed"
        tiny = Path(folder) / "tiny"
        tiny.write_bytes(bytes(1 << 16))
        _write_model(source, mebibytes)
        idle = _ask(Path(sys.executable), OURS, tiny, target, "encrypt", 1)["memory"]
        targets = {"tink": 3.0, "age": 2.5, "fernet": 20.0, "whole-file gcm": 2.5}
        for peer, side in SIDES.items():
            ours = _ask(Path(sys.executable), OURS, source, target, "encrypt", rounds)
            theirs = _ask(pythons.get(peer, Path(sys.executable)), side, source, target, "encrypt", rounds)
            records.append(_record(f"vs {peer}: encrypt {mebibytes} MiB", ours, theirs, peer, targets[peer]))
            resting = _ask(pythons.get(peer, Path(sys.executable)), side, tiny, target, "encrypt", 1)["memory"]
            records.append(_memory(f"vs {peer}: memory", ours["memory"] - idle, theirs["memory"] - resting, peer))
        ours = _ask(Path(sys.executable), OURS, source, target, "load", rounds)
        theirs = _ask(Path(sys.executable), SIDES["whole-file gcm"], source, target, "load", rounds)
        label = f"load vs whole-file gcm: {mebibytes} MiB into tensors"
        records.append(_record(label, ours, theirs, "whole-file gcm and safetensors", 3.0))
    return records


def _write_model(path: Path, mebibytes: int) -> None:
    from safetensors.torch import save_file

    layers = max(1, mebibytes // 32)
    size = mebibytes * (1 << 20) // layers
    save_file(
        {f"layer{i}": torch.frombuffer(bytearray(secrets.token_bytes(size)), dtype=torch.uint8) for i in range(layers)},
        str(path),
    )


def _ask(python: Path, side: str, source: Path, target: Path, work: str, rounds: int) -> dict[str, Any]:
    driver = DRIVER.replace("{side}", side)
    command_line = [str(python), "-c", driver, str(source), str(target), work, str(rounds)]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _record(name: str, ours: dict[str, Any], theirs: dict[str, Any], peer: str, target: float) -> Record:
    ratios = [b / a for a, b in zip(ours["seconds"], theirs["seconds"], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    own, other = median(ours["seconds"]), median(theirs["seconds"])
    return Record(name, "CPU s", own, other, peer, median(ratios), (high - low) / median(ratios), target, "lower")


def _memory(name: str, ours: float, theirs: float, peer: str) -> Record:
    return Record(name, "MiB", ours, theirs, peer, None, 0.0, 32.0, "lower")


if __name__ == "__main__":
    command("encryption", measure)
