"""`scan`: hostile model files that go unnoticed, and what judging a large checkpoint costs, beside other scanners.

Each peer judges every file of one corpus by its own API, in its own environment; a file that it calls clean, or skips
without a word, is a silent miss. The corpus is that of the tests (`tests/unit/hostile_models.py`): pickles, alone
and in archives, that hold something a tensor never needs, not all of which anybody knows how to abuse; and archives
that are not what they seem. Times are processor time of the judging alone, in a running process; memory is the peak
of that process, which has imported the scanner and nothing else.
"""

import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import Record, command
from benchmarks.peers import peer_python
from portcullis.models.pytorch import torch

ROOT = Path(__file__).parents[1]

# Each defines whether a file is flagged; the driver tells which of a folder are, and whether one large, sound one is.
OURS = """
import io
from pathlib import Path
from portcullis.supply_chain.scan import scan_files
def flagged(path):
    with io.FileIO(path) as stream:
        return bool(scan_files(stream, names=[Path(path).name])[0]["refused"])
"""
JUDGES = {
    "modelscan": (
        ("modelscan==0.8.8",),
        """
from modelscan.modelscan import ModelScan
def flagged(path):
    found = ModelScan().scan(path)
    return bool(found["issues"] or found["errors"])
""",
    ),
    "picklescan": (
        ("picklescan==1.0.5",),
        """
import logging
from picklescan.scanner import SafetyLevel, scan_file_path
logging.disable(logging.CRITICAL)
def flagged(path):
    found = scan_file_path(path)
    suspicious = any(it.safety != SafetyLevel.Innocuous for it in found.globals)
    return bool(found.issues_count or found.scan_err or suspicious)
""",
    ),
    "fickling": (
        ("fickling==0.1.12", "typing_extensions"),
        """
import zipfile
from fickling.loader import scan_file, scan_zip_archive
def flagged(path):
    if zipfile.is_zipfile(path):
        return not all(scan_zip_archive(path).values())
    return not scan_file(path)
""",
    ),
}
DRIVER = """
import contextlib, io, json, pathlib, sys, time
{judge}
folder, large, rounds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
found, seconds = [], []
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for path in sorted(folder.iterdir()):
        try:
            if flagged(str(path)):
                found.append(path.name)
        except Exception:
            found.append(path.name)
    for _ in range(rounds):
        start = time.process_time()
        sound = not flagged(large)
        seconds.append(time.process_time() - start)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps(dict(flagged=found, sound=sound, seconds=seconds, memory=peak / 1024)))
"""


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Judge one corpus and one large checkpoint with every scanner."""
    hostile = runpy.run_path(str(ROOT / "tests" / "unit" / "hostile_models.py"))
    rounds = 3 if quick else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "corpus"
        folder.mkdir()
        _write_corpus(folder, hostile)
        large = Path(name) / "large.pt"
        torch.save({f"layer{i}.weight": torch.zeros(1 << 20) for i in range(16 if quick else 128)}, large)
        files = sorted(folder.iterdir())
        own = _ask(Path(sys.executable), OURS, folder, large, rounds)
        if not own["sound"]:
            raise AssertionError("a sound checkpoint was refused")
        missed = len(files) - len(own["flagged"])
        records = [_record("hostile files that pass", "files", missed, None, "", target=0)]
        label = f"judging {large.stat().st_size >> 20} MiB of tensors"
        for peer, (requirements, judge) in JUDGES.items():
            answer = _ask(peer_python(peer, *requirements), judge, folder, large, rounds)
            theirs = len(files) - len(answer["flagged"])
            milliseconds = [median(it["seconds"]) * 1e3 for it in (own, answer)]
            target = 4.0 if peer == "modelscan" else None
            records += [
                _record(f"hostile files that pass, of {len(files)}", "files", missed, theirs, peer),
                _record("sound checkpoints refused", "files", 0, float(not answer["sound"]), peer),
                _record(label, "ms", *milliseconds, peer, target=target),
                _record(f"{label}: memory", "MiB", own["memory"], answer["memory"], peer),
            ]
    return records


def _write_corpus(folder: Path, hostile: dict[str, Any]) -> None:
    for index, (_, data) in enumerate(hostile["pickles"]()):
        (folder / f"pickle-{index:03}.pkl").write_bytes(data)
        (folder / f"inside-{index:03}.pt").write_bytes(hostile["archive"](data))
    for index, (_, data) in enumerate(hostile["archives"]()):
        (folder / f"archive-{index:03}.pt").write_bytes(data)


def _ask(python: Path, judge: str, folder: Path, large: Path, rounds: int) -> dict[str, Any]:
    driver = DRIVER.replace("{judge}", judge)
    done = subprocess.run(
        [str(python), "-c", driver, str(folder), str(large), str(rounds)], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _record(
    name: str, unit: str, ours: float, peer: float | None, peer_name: str, *, target: float | None = None
) -> Record:
    ratio = peer / ours if peer is not None and ours else None
    return Record(name, unit, ours, peer, peer_name, ratio, 0.0, target, "lower")


if __name__ == "__main__":
    command("scan", measure)
