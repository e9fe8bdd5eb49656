"""Shared fixtures, and the rules of PORTCULLIS_CI=1: a skip is a failure, and made-up data are the same each time."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

CI = os.environ.get("PORTCULLIS_CI") == "1"
# Machines are noisy. Whoever runs the tests by hand explores; a change lands by what it changes, not by the draw.
settings.register_profile("portcullis", deadline=None, derandomize=CI)
settings.load_profile("portcullis")
# What tests share, and the poisoned copies that the benchmarks measure on.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and CI and "external_data" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped under PORTCULLIS_CI=1: {report.longrepr}"


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory):
    """The one real run that all tests share; never change it, copy it."""
    from real_run import make_real_run

    return make_real_run(tmp_path_factory.mktemp("real"))


@pytest.fixture
def attacked(real_run, tmp_path: Path):
    """A copy of the real run for a test to attack."""
    return real_run.copy(tmp_path)


@pytest.fixture(scope="session")
def sharded_run(tmp_path_factory: pytest.TempPathFactory):
    """The one real run over shards that all tests share; never change it."""
    from sharded_run import make_sharded_run

    return make_sharded_run(tmp_path_factory.mktemp("sharded"))
