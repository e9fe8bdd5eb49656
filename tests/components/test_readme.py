"""Every stage says what it is in text that cannot rot: tables, snippets, the tests that it names, links."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from compiled_documents import documents

from portcullis.container import IMAGE
from portcullis.errors import UsageError
from portcullis.strict_yaml import load_yaml
from portcullis_pipelines import readme
from portcullis_pipelines.compile import ROOT, STAGES, compiled

STAGE_FOLDERS = ROOT / "components" / "portcullis"
NOT_OURS = {"build", "dist", "portcullis-run", "node_modules"}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|^\[[^\]]+\]: +(\S+)", re.MULTILINE)


def name_of(path):
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else ""


@pytest.mark.parametrize(("path", "text"), list(readme.outputs()), ids=name_of)
def test_the_generated_parts_are_what_the_sources_say(path, text):
    assert path.read_text() == text, "run: make compile"


@pytest.mark.parametrize("folder", [*STAGES, "serving"])
def test_a_stage_says_what_it_refuses_and_what_it_does_not(folder):
    headings = re.findall(r"^##? (.+)$", (STAGE_FOLDERS / folder / "README.md").read_text(), re.MULTILINE)
    wanted = {"Refuses", "Does not do"} if folder == "serving" else {"Does not defend against", "Use"}
    assert wanted <= set(headings)


@pytest.mark.parametrize("folder", STAGES)
def test_the_snippet_compiles_to_a_pipeline_that_is_hardened_and_cannot_run_past_a_gate(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, _, use = (STAGE_FOLDERS / folder / "README.md").read_text().partition("\n## Use\n")
    (snippet,) = (code for kind, code in FENCE.findall(use) if kind)
    names: dict[str, object] = {}
    exec(compile(snippet, f"{folder}/README.md", "exec"), names)
    executors, settings = documents(compiled(names["pipeline"]))
    # Every container may run on a cluster, and every step of ours finds its keys there.
    assert set(executors) == set(settings)
    ours = {name for name, it in executors.items() if it["container"]["image"] == IMAGE and "enforce" not in name}
    assert ours and all(settings[name].secret_as_volume for name in ours)


@pytest.mark.parametrize("folder", STAGES)
def test_metadata_says_what_the_stage_is_and_which_tests_answer_its_threats(folder):
    metadata = load_yaml((STAGE_FOLDERS / folder / "metadata.yaml").read_bytes())
    assert set(metadata) == {"name", "stability", "tags", "dependencies", "threats", "controls"}
    assert metadata["name"] == STAGES[folder]
    assert metadata["stability"] == "alpha"
    assert metadata["dependencies"] == {"kubeflow": [{"name": "Pipelines", "version": ">=2.17"}]}
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", tag) for tag in metadata["tags"])
    assert metadata["tags"] and metadata["controls"]
    assert all(set(threat) == {"id", "name"} for threat in metadata["threats"])
    threats = {threat["id"] for threat in metadata["threats"]}
    assert {control["threat"] for control in metadata["controls"] if "threat" in control} == threats
    for control in metadata["controls"]:
        assert {"rule", "test"} <= set(control) <= {"rule", "test", "threat"}
        file, _, test = control["test"].partition("::")
        assert test in functions_in(ROOT / file), f"{control['test']} does not exist"


def test_a_threat_has_one_name():
    named = {
        (threat["id"], threat["name"])
        for folder in STAGES
        for threat in load_yaml((STAGE_FOLDERS / folder / "metadata.yaml").read_bytes())["threats"]
    }
    assert all(re.fullmatch(r"AML\.T\d{4}(\.\d{3})?", identifier) for identifier, _ in named)
    assert len({identifier for identifier, _ in named}) == len(named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_relative_link_points_to_something(document):
    dead = [target for target in relative_links(document) if not leads_somewhere(document, target)]
    assert not dead


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[a](nowhere.md)", True),
        ("[a](README.md#nowhere)", True),
        ("![a](nowhere.png)", True),
        ("[a]\n\n[a]: nowhere.md\n", True),
        ("[a](#no-such-heading)", True),
        ("[a](other.md) [b](other.md#a-heading-with-code) [c](https://example.org/x)", False),
        ("`[a](nowhere.md)`\n\n```\n[a](nowhere.md)\n```\n", False),
    ],
    ids=["file", "heading", "picture", "reference", "own heading", "alive", "code"],
)
def test_dead_links_are_seen(tmp_path, text, dead):
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "other.md").write_text("## A heading: with `code`\n")
    links = relative_links(tmp_path / "README.md")
    assert any(not leads_somewhere(tmp_path / "README.md", target) for target in links) == dead


@pytest.mark.parametrize(
    "text",
    ["", "<!-- a -->", "<!-- /a --><!-- a -->", "<!-- a --><!-- a --><!-- /a -->"],
    ids=["none", "open", "reversed", "twice"],
)
def test_a_readme_without_its_markers_is_refused(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UsageError, match="once each"):
        readme._filled(tmp_path / "README.md", {"a": "part"})


@cache
def functions_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@cache
def anchors_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative_links(document: Path) -> list[str]:
    prose = re.sub(r"`[^`\n]+`", "", FENCE.sub("", document.read_text()))
    targets = [inline or reference for inline, reference in LINK.findall(prose)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def leads_somewhere(document: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    other = document.parent / path if path else document
    return other.exists() and (not anchor or anchor in anchors_of(other))
