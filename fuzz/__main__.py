"""Fuzz: `python -m fuzz [TARGET…] [--seconds 30] [--jobs 1] [--seed N]`; also `--list`, and `--replay FILE`.

Each target runs in a process of its own, with a limit on the time of each input (10 s) and on memory. What was found
lies in build/fuzz/TARGET/, and beside it the corpus, which the next run goes on from. Exit code: 0 nothing found,
1 something found, 2 usage.
"""

import argparse
import importlib.util
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import Target

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "fuzz"
MODULES = ("fuzz.tables", "fuzz.identifiers", "fuzz.evidence", "fuzz.models", "fuzz.keys")
INPUT_SECONDS = 10
MEMORY_MB = 2048
# Atheris 3.0 never frees what instrumented code compares, arrays too, up to 20 MB a second: a long run is many short.
ROUND_SECONDS = 30
GUIDED = importlib.util.find_spec("atheris") is not None


def targets() -> Mapping[str, Target]:
    """Return every target by its name."""
    modules = [importlib.import_module(name) for name in MODULES]
    return {target.name: target for module in modules for target in module.TARGETS}


def run(names: Sequence[str], *, seconds: int, jobs: int, seed: int | None = None) -> list[str]:
    """Fuzz targets, each in its own process; returns the names of those with a finding.

    Args:
        names: Of the targets.
        seconds: For each of them.
        jobs: How many at a time.
        seed: What is tried is drawn from it, as far as the time goes; from chance when None.
    """

    def one(name: str) -> str | None:
        folder = FOLDER / name
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        before = set(folder.glob("*-*"))
        runs, left, code, text = 0, seconds, 0, ""
        while left > 0 and not code:
            code, text = _round(name, min(left, ROUND_SECONDS), folder / "log", seed)
            runs += sum(map(int, re.findall(r"^stat::number_of_executed_units: *(\d+)", text, re.M)))
            left -= ROUND_SECONDS
        if runs and not code:
            print(f"{name}: {runs} inputs, nothing found")
            return None
        found = sorted(path.name for path in set(folder.glob("*-*")) - before)
        print(f"{name}: {runs} inputs, FOUND {' '.join(found)}", *text.splitlines()[-40:], sep="\n")
        return name

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name in pool.map(one, names) if name]


def _round(name: str, seconds: int, log: Path, seed: int | None) -> tuple[int, str]:
    """Fuzz one target in a process of its own; returns how that ended and what it printed."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "fuzz", "--child", name, "--seconds", str(seconds)]
    command += [] if seed is None else ["--seed", str(seed)]
    with log.open("wb") as file:
        # A native loop that never returns would not see its own alarm.
        limit = seconds + 10 * INPUT_SECONDS
        try:
            code = subprocess.run(
                command, stdout=file, stderr=file, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    return code, log.read_text(errors="replace")


def _child(name: str, seconds: int, seed: int | None) -> None:
    folder = FOLDER / name
    if not GUIDED:
        _unguided(targets()[name], seconds, folder, seed)
        return
    import atheris

    with atheris.instrument_imports(include=["portcullis", "fuzz", "yaml", "json"]):
        target = targets()[name]
    seeds = folder / "seeds"
    seeds.mkdir(exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(data)
    words = folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={target.longest}",
        f"-artifact_prefix={folder}/",
        f"-dict={words}",
        "-print_final_stats=1",
        "-reload=0",
        f"-seed={seed or 0}",  # 0: libFuzzer draws one
    ]
    if target.allocations_mb is not None:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = held + (target.allocations_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus"), str(seeds)], target.fuzz_one)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _unguided(target: Target, seconds: int, folder: Path, seed: int | None) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    from fuzz.inputs import inputs

    tried = 0

    @settings(
        max_examples=200,
        deadline=None,
        database=None,
        derandomize=seed is not None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target))
    def try_some(data: bytes) -> None:
        nonlocal tried
        if time.monotonic() < end:
            tried += 1
            (folder / "current").write_bytes(data)
            target.fuzz_one(data)

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            try_some()
        except BaseException:
            (folder / "current").rename(folder / f"crash-{time.time_ns()}")
            raise
    (folder / "current").unlink(missing_ok=True)
    print(f"stat::number_of_executed_units: {tried}")


def main() -> int:
    """Be the command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz what parses foreign bytes.")
    parser.add_argument("target", nargs="*", help="all when none is named")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (30)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (1)")
    parser.add_argument("--seed", type=int, help="above 0: draw what is tried from it, not from chance")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on one input")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments.target[0], arguments.seconds, arguments.seed)
        return 0
    if arguments.seed is not None and not 0 < arguments.seed < 1 << 32:
        parser.error("--seed is above 0, and below 2**32")
    known = targets()
    names = arguments.target or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"no target {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if arguments.list:
        for target in known.values():
            print(f"{target.name:12} {(target.fuzz_one.__doc__ or '').splitlines()[0]}")
        return 0
    if arguments.replay:
        if len(arguments.target) != 1:
            parser.error("name the one target to run the input on")
        known[names[0]].fuzz_one(arguments.replay.read_bytes())
        return 0
    if not GUIDED:
        print("atheris is not installed (pip install atheris): inputs come from hypothesis, without coverage")
    found = run(names, seconds=arguments.seconds, jobs=arguments.jobs, seed=arguments.seed)
    print(f"found something in: {', '.join(found)}; see {FOLDER}" if found else "nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
