"""The fuzz targets hold on their seeds, on what was found before, on what hypothesis makes, and on what atheris does.

`python -m fuzz` runs them for longer; PORTCULLIS_FUZZ_SECONDS says for how long the last test runs each of them.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.__main__ import ROOT, run, targets
from fuzz.inputs import inputs

SECONDS = int(float(os.environ.get("PORTCULLIS_FUZZ_SECONDS", "30")))
TARGETS = targets()
FOUND = sorted((ROOT / "fuzz" / "found").glob("*/*"))


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_on_its_seeds(name: str) -> None:
    seeds = TARGETS[name].seeds()
    assert seeds and all(len(seed) <= TARGETS[name].longest for seed in seeds)
    for seed in seeds:
        TARGETS[name].fuzz_one(seed)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}: {path.name}")
def test_what_was_found_stays_mended(path: Path) -> None:
    TARGETS[path.parent.name].fuzz_one(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_on_what_hypothesis_makes_of_its_seeds(name: str) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(TARGETS[name]))
    def hold(data: bytes) -> None:
        TARGETS[name].fuzz_one(data)

    hold()


@pytest.mark.slow
def test_fuzzing_finds_nothing() -> None:
    seed = 1 if os.environ.get("PORTCULLIS_CI") == "1" else None
    assert not run(list(TARGETS), seconds=SECONDS, jobs=2, seed=seed)
