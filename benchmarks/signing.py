"""`signing`: an OpenSSF model signature of a 0.5 GB model, made and verified, beside OpenSSF's own `model_signing`.

Each is a process as a user starts it: start, read every byte of the model, sign or verify. Its figures are processor
time of the whole process, on all its threads, and the peak of its memory. Each verifies what the other signed.
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
from portcullis.keys import Signer

PEER = "model_signing 1.1.1"
OURS = """
import sys
from pathlib import Path
from portcullis.digest import tree_files
from portcullis.keys import PublicKey, Signer
from portcullis.signing.oms import sign_files, verify_files
work, model, key, signature = sys.argv[1], *map(Path, sys.argv[2:])
found = {entry.path: entry.sha256 for entry in tree_files(model)}
if work == "sign":
    signer = Signer.from_pem(key.read_bytes())
    signature.write_bytes(sign_files(found, name="model", ignored=(), signer=signer))
else:
    assert verify_files(signature.read_bytes(), PublicKey.from_pem(key.read_bytes())) == found
"""
THEIRS = """
import sys
from model_signing._cli import main
work, model, key, signature = sys.argv[1:]
kind = "--private_key" if work == "sign" else "--public_key"
sys.argv = ["model_signing", work, "key", model, kind, key, "--signature", signature]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""
TOLD = """
import json, time
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print("\\n" + json.dumps(dict(seconds=time.process_time(), memory=peak / 1024)))
"""


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    mebibytes, rounds = (64, 3) if quick else (512, 7)
    python = peer_python("model-signing", "model-signing==1.1.1", "pyopenssl==26.4.0")
    with tempfile.TemporaryDirectory(dir="build") as folder:
        work = Path(folder)
        model, private, public = work / "model", work / "key.pem", work / "key.pub.pem"
        model.mkdir()
        with (model / "weights.safetensors").open("wb") as stream:
            for _ in range(mebibytes):
                stream.write(secrets.token_bytes(1 << 20))
        signer = Signer.generate()
        private.write_bytes(signer.private_pem())
        public.write_text(signer.public_key.pem)
        sides: tuple[tuple[Path, str], ...] = ((Path(sys.executable), OURS), (python, THEIRS))
        signatures = (work / "ours.sig", work / "theirs.sig")
        records = []
        for verb, key, of in (("sign", private, signatures), ("verify", public, signatures[::-1])):
            told: tuple[list[Any], list[Any]] = ([], [])
            for _ in range(rounds):
                for side, (interpreter, program), signature in zip(told, sides, of, strict=True):
                    if verb == "sign":
                        signature.unlink(missing_ok=True)
                    side.append(_run(interpreter, program, verb, model, key, signature))
            records += _records(f"{verb} a model of {mebibytes} MiB", *told, target=1.5 if verb == "sign" else None)
        return records


def _run(python: Path, program: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run(
        [str(python), "-c", program + TOLD, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def _records(
    name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]], *, target: float | None
) -> list[Record]:
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    (own, other), (small, large) = (
        [median(it[figure] for it in side) for side in (ours, theirs)] for figure in ("seconds", "memory")
    )
    spread = (high - low) / median(ratios)
    return [
        Record(name, "CPU s", own, other, PEER, median(ratios), spread, target, "lower"),
        Record(f"{name}: memory", "MiB", small, large, PEER, large / small, 0.0, None, "lower"),
    ]


if __name__ == "__main__":
    command("signing", measure)
