"""The committed YAML is what the source compiles to, and every component carries what a user expects."""

import pytest

from portcullis.strict_yaml import load_yaml
from portcullis_pipelines.compile import ROOT, compiled, outputs

OUTPUTS = list(outputs())


@pytest.mark.parametrize(
    ("path", "component"), OUTPUTS, ids=lambda it: str(it.relative_to(ROOT)) if hasattr(it, "parts") else ""
)
def test_the_committed_file_is_what_the_source_compiles_to(path, component):
    assert path.read_bytes() == compiled(component), "run: make compile"


@pytest.mark.parametrize(
    ("path", "component"), OUTPUTS, ids=lambda it: str(it.relative_to(ROOT)) if hasattr(it, "parts") else ""
)
def test_compiling_twice_gives_the_same_bytes(path, component):
    assert compiled(component) == compiled(component)


@pytest.mark.parametrize("path", [path for path, _ in OUTPUTS], ids=lambda it: str(it.relative_to(ROOT)))
def test_a_component_installs_nothing_when_it_runs(path):
    text = path.read_text()
    assert "pip install" not in text
    executors = load_yaml(text.split("\n---\n")[0].encode())["deploymentSpec"]["executors"]
    assert all("python" in executor["container"]["image"] for executor in executors.values())


@pytest.mark.parametrize("path", [path for path, _ in OUTPUTS], ids=lambda it: str(it.relative_to(ROOT)))
def test_kfp_loads_the_committed_file(path):
    from kfp import components

    loaded = components.load_component_from_file(str(path))
    assert loaded.description
