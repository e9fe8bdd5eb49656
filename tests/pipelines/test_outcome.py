"""What a run leaves: facts for a program, a page for people, and after a refusal nothing that deploys."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from chains import NONCE, World

from portcullis.digest import sha256
from portcullis.errors import DataError, EvidenceError, GateFailedError, UsageError
from portcullis.evidence.chain import split_bundle
from portcullis.evidence.statement import Check
from portcullis.keys import Signer
from portcullis.report import bar_chart, bound_chart, gate_section, page, paragraph, table
from portcullis_pipelines.outcome import EVIDENCE, REPORT, RUN, publish_refusal, run_page, verify_directory, written
from portcullis_pipelines.picture import chain_picture, mermaid
from portcullis_pipelines.steps import STEPS

WORLD = World()
POLICY = WORLD.policy()
FAILED = {"verdict": "FAILED", "reason": "robust_accuracy = 0.5", "figures": {"robust_accuracy": 0.5, "samples": 359}}


class Tags(HTMLParser):
    """Collects the tags of a page and refuses one that is left open."""

    VOID = frozenset({"meta", "rect", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# After a refusal.


@pytest.fixture
def refused(tmp_path):
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    for name in ("admission.json", "deployment.json", "policy.yaml", "model/weights.sealed", RUN):
        (folder / name).write_bytes(b"an earlier run")
    lines = WORLD.lines(POLICY, robustness__trained=lambda it: it.replace(**FAILED))[:3]
    error = GateFailedError("step 'robustness:trained': the gate FAILED: robust_accuracy = 0.5")
    publish_refusal(folder, POLICY, error, lines)
    return folder


def test_a_refusal_replaces_what_an_earlier_run_left_by_nothing_that_deploys(refused):
    assert files(refused) == sorted([EVIDENCE, REPORT, RUN])
    assert [path.name for path in refused.parent.iterdir()] == ["run"]


def test_a_refusal_says_why_to_programs(refused):
    facts = json.loads((refused / RUN).read_bytes())
    assert facts["status"] == "REFUSED"
    assert facts["error"] == {
        "type": "GateFailedError",
        "message": "step 'robustness:trained': the gate FAILED: robust_accuracy = 0.5",
    }
    assert [(it["step"], it["status"]) for it in facts["steps"]] == [
        ("preflight", "DONE"),
        ("train", "DONE"),
        ("robustness:trained", "FAILED"),
    ]
    assert facts["steps"][2]["figures"] == FAILED["figures"] and facts["steps"][2]["seconds"] == 1.0


def test_a_refusal_says_why_to_people(refused):
    text = (refused / REPORT).read_text()
    assert "demo: refused" in text and "admitted" not in text
    assert '<p class="FAILED">GateFailedError: step &#x27;robustness:trained&#x27;' in text


def test_a_refused_run_does_not_verify(refused, tmp_path):
    with pytest.raises(EvidenceError, match="not the directory of a run that passed"):
        verify_directory(refused, replace(WORLD.store(tmp_path / "trust"), path=tmp_path / "trust"))


def test_what_no_step_signed_is_kept_as_evidence_but_told_to_nobody(tmp_path):
    lines = WORLD.lines(POLICY)
    statements = WORLD.statements(POLICY)
    rogue = WORLD.line(statements["train"].replace(figures={"stolen": 1}), Signer.generate())
    unknown = WORLD.line(statements["train"].replace(step="backdoor"), WORLD.keys["train"])
    publish_refusal(tmp_path / "run", POLICY, DataError("x"), [rogue, unknown, b"nonsense", *reversed(lines)])
    assert len(split_bundle((tmp_path / "run" / EVIDENCE).read_bytes())) == 7
    facts = json.loads((tmp_path / "run" / RUN).read_bytes())
    assert [it["step"] for it in facts["steps"]] == ["preflight", "train", "robustness:trained", "encrypt"]
    told = (tmp_path / "run" / RUN).read_text() + (tmp_path / "run" / REPORT).read_text()
    assert "stolen" not in told and "backdoor" not in told


def test_a_refusal_before_any_evidence(tmp_path):
    publish_refusal(tmp_path / "run", POLICY, DataError("nothing"), [])
    assert (tmp_path / "run" / EVIDENCE).read_bytes() == b""
    Tags((tmp_path / "run" / REPORT).read_text())


def test_what_cannot_be_written_is_the_callers_to_mend(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(UsageError, match="cannot write"), written(place):
            pass


def test_an_exception_leaves_the_directory_as_it_was(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN).write_bytes(b"earlier")

    def interrupted():
        with written(tmp_path / "run") as temporary:
            (temporary / RUN).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "run" / RUN).read_bytes() == b"earlier"
    assert files(tmp_path) == ["run"]


# The page.


def colours(svg):
    """Return each step's colour."""
    root = ET.fromstring(svg)
    boxes = [it.get("stroke") for it in root.iter("rect")]
    names = [it.text for it in root.iter("text") if it.get("class") is None]
    return dict(zip(names, boxes, strict=True))


def test_the_picture_shows_how_each_step_went():
    svg = chain_picture(POLICY, {"preflight": "PASSED", "train": "PASSED", "robustness:trained": "FAILED"})
    assert colours(svg) == {
        "preflight": "var(--ok)",
        "train": "var(--ok)",
        "robustness:trained": "var(--bad)",
        "encrypt": "var(--line)",
        "admit": "var(--line)",
        "deploy": "var(--line)",
    }
    edges = sum(len(rule.parents) for rule in POLICY.steps.values())
    assert len(list(ET.fromstring(svg).iter("path"))) == edges > 5
    assert "model from train.model, test from train.test" in svg and "; after robustness:trained" in svg


def test_the_step_that_refused_is_shown_though_it_left_no_evidence():
    statements = list(WORLD.statements(POLICY).values())[:1]
    text = run_page(POLICY, statements, error=DataError("step 'train': bad rows"), step="train")
    (svg,) = re.findall(r"<svg.*?</svg>", text)
    shown = colours(svg)
    assert (shown["preflight"], shown["train"], shown["admit"]) == ("var(--ok)", "var(--bad)", "var(--line)")


def test_the_page_is_whole_alone_and_runs_nothing():
    statements = [*WORLD.statements(POLICY).values()]
    text = run_page(POLICY, statements, error=DataError("no"))
    found = Tags(text).found
    assert not {tag for tag, _ in found} & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"}
    assert not [attribute for _, attributes in found for attribute in attributes if attribute.startswith("on")]
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    for digest in (sha256(NONCE.encode()), POLICY.digest):
        assert digest in text


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "</style>", "&lt;"])
def test_whatever_is_shown_is_text(hostile):
    statement = WORLD.statements(POLICY)["robustness:trained"].replace(
        verdict="FAILED", reason=hostile, figures={"robust_accuracy": 0.5, f"accuracy{hostile}": 0.5, "x": hostile}
    )
    text = page(
        hostile,
        [
            paragraph(hostile, kind=hostile),
            table([hostile], [[hostile]]),
            *gate_section(statement, {"robust_accuracy": Check(0.75, 1)}),
            run_page(POLICY, [statement], error=DataError(hostile)),
        ],
    )
    found = Tags(text)
    assert found.text.count(hostile) >= 6
    assert not {tag for tag, _ in found.found} & {"script", "img"}


def test_a_gates_figures_stand_beside_their_bounds():
    statement = WORLD.statements(POLICY)["robustness:trained"].replace(**FAILED)
    checks = {"robust_accuracy": Check(0.75, 1), "samples": Check(low=100), "absent": Check(0, 0)}
    text = "".join(gate_section(statement, checks))
    assert '<span class="FAILED">FAILED</span>' in text
    assert '<td>robust_accuracy</td><td>0.5</td><td>0.75</td><td>1</td><td class="FAILED">FAILED</td>' in text
    assert '<td>samples</td><td>359</td><td>100</td><td></td><td class="PASSED">PASSED</td>' in text
    assert '<td>absent</td><td>missing</td><td>0</td><td>0</td><td class="FAILED">FAILED</td>' in text


def test_each_bar_is_measured_by_its_own_line():
    svg = bar_chart(
        {"clean": 0.8, "robust": 0.8, "free": 0.1, "nan": float("nan")}, {"clean": 0.9, "robust": 0.75, "nan": 0}
    )
    root = ET.fromstring(svg).find("svg")
    assert [it.get("fill") for it in root.iter("rect")] == ["var(--bad)", "var(--bar)", "var(--bar)", "var(--bad)"]
    lines = [float(re.match(r"M([0-9.]+) ", it.get("d"))[1]) for it in root.iter("path")]
    ends = [float(it.get("x")) + float(it.get("width")) for it in root.iter("rect")]
    assert lines[0] > ends[0] and lines[1] < ends[1] and len(lines) == 3


def test_a_bound_is_drawn_for_whatever_it_finds():
    checks = {name: Check(high=high) for name, high in {"a": 4, "b": 4, "c": 0, "d": 0, "e": 1, "f": 1, "g": 1}.items()}
    figures = {"a": 3, "b": 99, "c": 0, "d": 1e-9, "e": float("nan"), "f": "text", "h": 7}
    bars = list(ET.fromstring(bound_chart(figures, checks | {"h": Check(low=3)})).iter("rect"))
    assert [it.get("width") for it in bars] == ["135.0", "360.0", "0.0", "360.0", "0.0", "0.0", "0.0"]
    bad = ["var(--bad)"]
    assert [it.get("fill") for it in bars] == ["var(--bar)", *bad, "var(--bar)", *bad * 4]


def test_what_an_accuracy_is_made_of_shares_its_line():
    figures = {"robust_accuracy": 0.8, "robust_accuracy_pgd": 0.7, "clean_accuracy": 0.9, "accuracy": "text"}
    statement = WORLD.statements(POLICY)["robustness:trained"].replace(figures=figures)
    text = "".join(gate_section(statement, {"robust_accuracy": Check(0.75, 1)}))
    assert text.count("stroke-dasharray") == 2 and text.count('fill="var(--bad)"') == 1


def test_the_readmes_picture_has_every_step_and_edge():
    text = mermaid()
    assert text.startswith("flowchart TD\n")
    for step in STEPS:
        assert f"    {step.name.replace(':', '_')}" in text
    assert "    split -- test --> robustness_trained\n" in text
    assert "    robustness_trained -. PASSED .-> watermark\n" in text
    assert "    equivalence -. PASSED .-> encrypt\n" in text


# Of a run that passed.


@pytest.mark.slow
def test_a_run_tells_programs_what_its_evidence_says(real_run):
    facts = json.loads((real_run.output / RUN).read_bytes())
    verified = real_run.verify()
    assert facts["status"] == "PASSED" and facts["policy"]["development"] is True
    assert [it["step"] for it in facts["steps"]] == [step.name for step in STEPS if step.kind != "admission"]
    assert {it["status"] for it in facts["steps"]} == {"DONE", "PASSED"}
    by_step = {it["step"]: it for it in facts["steps"]}
    assert facts["model"]["sha256"] == by_step["watermark"]["outputs"]["model"] == verified.admission.content
    assert facts["model"]["sealed_sha256"] == by_step["encrypt"]["outputs"]["sealed"]
    assert facts["nonce"] == verified.chain.nonce
    for gate in ("robustness:trained", "robustness:watermarked"):
        assert by_step[gate]["figures"]["robust_accuracy"] >= 0.75
    assert by_step["verify_watermark"]["figures"]["bits_read"] == by_step["verify_watermark"]["figures"]["bits"] == 64
    noise = by_step["dp_noise"]["figures"]
    assert (noise["columns_noised"], noise["delta"], noise["drowned"]) == (2, 0, "") and 5 < noise[
        "epsilon_record"
    ] <= 6
    assert "pixel_00" in noise["unnoised"] and "are not private" in noise["claim"]


@pytest.mark.slow
def test_a_run_tells_people_what_its_evidence_says(real_run):
    text = (real_run.output / REPORT).read_text()
    admission = real_run.verify().admission
    Tags(text)
    assert "cheque-digits: admitted and deployed" in text and "FAILED" not in re.sub(
        r"<style>.*?</style>", "", text, flags=re.S
    )
    assert admission.content in text and admission.sealed in text and "development" in text
    assert "Differential privacy" in text and "any model trained on them, are not private" in text
    assert set(colours(re.search(r"<svg.*?</svg>", text)[0]).values()) == {"var(--ok)"}
