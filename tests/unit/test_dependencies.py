"""What is installed, judged by a lock, and the bills of materials that are written of it."""

import base64
import contextlib
import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
from chains import NOW, World
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from portcullis.attestation.stage import start_chain
from portcullis.cli.main import _guarded, cli
from portcullis.digest import path_digest
from portcullis.errors import ConfigError, DataError, EvidenceError, MissingDependencyError, PolicyError, UsageError
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.supply_chain import stage
from portcullis.supply_chain.bill import encode_bill, model_bill, software_bill
from portcullis.supply_chain.component import verify_dependencies as verify_component
from portcullis.supply_chain.dependencies import (
    Installed,
    Locked,
    find_installed,
    judge_dependencies,
    read_lock,
    require_sound,
)
from portcullis.supply_chain.voices import ask_auditor

ROOT = Path(__file__).parents[2]
HASH = "--hash=sha256:" + "a" * 64
LOCK = {"alpha": Locked("1.0", frozenset({"a" * 64})), "beta": Locked("2.0", frozenset({"b" * 64}))}


def recorded(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def install(folder: Path, name: str = "Alpha", version: str = "1.0") -> Path:
    """Lay a distribution down as an installer does, and return its module."""
    module = folder / f"{name.lower()}.py"
    module.write_bytes(b"value = 1\n")
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    (info / "METADATA").write_bytes(metadata)
    rows = [
        f"{module.name},{recorded(module.read_bytes())},10",
        f"{info.name}/METADATA,{recorded(metadata)},{len(metadata)}",
        f"__pycache__/{module.stem}.pyc,,",
        f"{info.name}/RECORD,,",
    ]
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    return module


def judged(folder: Path, **options):
    return judge_dependencies(find_installed([str(folder)]), LOCK, **options)


def test_what_the_lock_names_and_nobody_touched_is_sound(tmp_path):
    install(tmp_path)
    found = judged(tmp_path)
    assert found.faults == () and found.installed == (Installed("alpha", "1.0", 2, 2, (), recorded=True),)
    require_sound(found)


def test_the_own_lock_is_read():
    lock = read_lock((ROOT / "requirements.lock").read_bytes())
    assert lock["numpy"].version and all(it.archives for it in lock.values()) and len(lock) > 50


def test_this_environment_is_read_and_its_files_are_as_they_were_installed():
    numpy = next(it for it in find_installed() if it.name == "numpy")
    assert numpy.files > 100 and numpy.altered == ()


def record_of(module: Path) -> Path:
    return module.parent / "Alpha-1.0.dist-info/RECORD"


def blank(module: Path) -> None:
    rows = record_of(module).read_text().splitlines()
    record_of(module).write_text("\n".join([f"{module.name},,", *rows[1:]]) + "\n")


FAULTS = {
    "an altered file": (lambda it: it.write_bytes(b"value = 2\n"), "alpha: 1 files are not as installed"),
    "a file that is gone": (lambda it: it.unlink(), "alpha: 1 files are not as installed"),
    "a folder in its place": (lambda it: (it.unlink(), it.mkdir()), "alpha: 1 files are not as installed"),
    "an altered file whose hash is blanked": (
        lambda it: (it.write_bytes(b"value = 2\n"), blank(it)),
        "not as installed",
    ),
    "a record of nothing": (lambda it: record_of(it).write_text(""), "has no record"),
    "no record": (lambda it: (it.parent / "Alpha-1.0.dist-info/RECORD").unlink(), "has no record"),
}


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=FAULTS)
def test_files_that_are_not_as_installed_are_refused(tmp_path, break_it, message):
    break_it(install(tmp_path))
    with pytest.raises(DataError, match=message):
        require_sound(judged(tmp_path))


def test_another_version_is_refused_whatever_is_allowed_beside(tmp_path):
    install(tmp_path, version="1.1")
    for beside in ((), ("alpha",)):
        with pytest.raises(DataError, match=r"alpha is 1\.1, the lock says 1\.0"):
            require_sound(judged(tmp_path, beside=beside))


def test_what_the_lock_does_not_name_is_refused_unless_it_may_lie_beside(tmp_path):
    install(tmp_path, "Gam_Ma")
    with pytest.raises(DataError, match=r"gam-ma 1\.0 is not in the lock"):
        require_sound(judged(tmp_path))
    assert judged(tmp_path, beside=["gam.ma"]).faults == ()


def test_beside_the_lock_files_count_all_the_same(tmp_path):
    install(tmp_path, "Gamma").write_bytes(b"evil")
    assert judged(tmp_path, beside=["gamma"]).faults == ("gamma: 1 files are not as installed, such as gamma.py",)


def test_nothing_installed_is_refused(tmp_path):
    with pytest.raises(DataError, match="nothing is installed"):
        require_sound(judged(tmp_path))


def test_two_versions_of_one_are_refused(tmp_path):
    for folder, version in ((tmp_path / "a", "1.0"), (tmp_path / "b", "1.1")):
        folder.mkdir()
        install(folder, version=version)
    with pytest.raises(DataError, match="is installed as"):
        find_installed([str(tmp_path / "a"), str(tmp_path / "b")])


@pytest.mark.parametrize("row", ["alpha.py", "alpha.py,sha256=x,1,2", 'alpha.py,"x'])
def test_a_malformed_record_is_refused(tmp_path, row):
    install(tmp_path)
    (tmp_path / "Alpha-1.0.dist-info/RECORD").write_text(row + "\n")
    with pytest.raises(DataError, match="record of alpha is malformed"):
        find_installed([str(tmp_path)])


@pytest.mark.parametrize("encoded", ["md5=x", "sha256=", "sha256=" + "A" * 42, "sha512=" + "A" * 86, "x"])
def test_another_digest_than_sha256_counts_as_altered(tmp_path, encoded):
    install(tmp_path)
    (tmp_path / "Alpha-1.0.dist-info/RECORD").write_text(f"alpha.py,{encoded},10\n")
    assert find_installed([str(tmp_path)])[0].altered == ("alpha.py",)


LOCKS = {
    "nothing": b"",
    "comments": b"# a\n\n",
    "no hash": b"alpha==1.0\n",
    "a range": b"alpha>=1.0 " + HASH.encode(),
    "no version": b"alpha " + HASH.encode(),
    "a wildcard": b"alpha==1.* " + HASH.encode(),
    "an address": b"alpha @ https://example.org/a.whl " + HASH.encode(),
    "an option": b"--index-url https://example.org\nalpha==1.0 " + HASH.encode(),
    "a short hash": b"alpha==1.0 --hash=sha256:" + b"a" * 63,
    "another hash": b"alpha==1.0 --hash=md5:" + b"a" * 32,
    "a good and a bad hash": b"alpha==1.0 " + HASH.encode() + b" --hash=md5:aa",
    "twice": b"alpha==1.0 " + HASH.encode() + b"\nAlpha==1.0 " + HASH.encode(),
    "another file": b"-r other.txt\n",
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("data", LOCKS.values(), ids=LOCKS)
def test_a_lock_that_pins_not_everything_is_refused(data):
    with pytest.raises(ConfigError, match="lock"):
        read_lock(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="alph==1.0 -hs:256\\\n#;", max_size=120).map(str.encode))
def test_any_bytes_are_a_lock_or_are_refused(data):
    with contextlib.suppress(ConfigError):
        assert read_lock(data)


# Bills of materials.


def model_of(tmp_path):
    world = World()
    policy = world.policy()
    return model_bill(list(world.statements(policy).values()), policy, content="c" * 64, time=NOW)


def test_the_bill_lists_what_is_installed_and_is_the_same_each_time(tmp_path):
    install(tmp_path)
    installed = find_installed([str(tmp_path)])
    bill = software_bill(installed, time=NOW)
    assert [(it["name"], it["version"], it["purl"]) for it in bill["components"]] == [
        ("alpha", "1.0", "pkg:pypi/alpha@1.0")
    ]
    assert encode_bill(bill) == encode_bill(software_bill(installed, time=NOW))
    assert bill["serialNumber"] != software_bill(installed, time=NOW + 1)["serialNumber"]


def test_the_models_card_holds_the_figures_that_gates_signed(tmp_path):
    model = model_of(tmp_path)["metadata"]["component"]
    assert model["type"] == "machine-learning-model" and model["hashes"] == [{"alg": "SHA-256", "content": "c" * 64}]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {"type": "robustness:trained robust_accuracy", "value": "0.8125"},
        {"type": "robustness:trained samples", "value": "359"},
    ]
    assert {"name": "portcullis:verdict:robustness:trained", "value": "PASSED"} in model["properties"]


def test_bills_are_valid_cyclonedx(tmp_path):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib[json-validation]")
    from cyclonedx.schema import SchemaVersion

    strict = validation.JsonStrictValidator(SchemaVersion.V1_6)
    install(tmp_path)
    for bill in (software_bill(find_installed([str(tmp_path)]), time=NOW), model_of(tmp_path)):
        assert strict.validate_str(encode_bill(bill).decode()) is None
        broken = {**bill, "components": [{"name": "no type"}]}
        assert strict.validate_str(json.dumps(broken)) is not None


def test_the_command_writes_nothing_when_the_lock_says_otherwise(tmp_path, capfd):
    lock, output = tmp_path / "lock", tmp_path / "sbom.json"
    lock.write_text(f"alpha==1.0 {HASH}\n")
    command = ["sbom", "--lock", str(lock), "--output", str(output)]
    assert _guarded(partial(cli, command, prog_name="portcullis")) == 1
    assert "is not in the lock" in capfd.readouterr().err and not output.exists()
    assert _guarded(partial(cli, ["sbom", "--output", str(output)], prog_name="portcullis")) == 0
    assert json.loads(output.read_bytes())["specVersion"] == "1.6"


# As a step.

STEPS = [
    {
        "name": "start",
        "stage": "start_chain",
        "kind": "transform",
        "inputs": {"policy": "policy", "artifact": "external"},
        "outputs": ["artifact"],
    },
    {
        "name": "verify_dependencies",
        "stage": "verify_dependencies",
        "kind": "transform",
        "inputs": {"lock": "start.artifact"},
        "outputs": ["sbom"],
        "parameters": {"beside": ["kfp-portcullis"], "voices": []},
    },
]


@pytest.fixture
def place(request, tmp_path, monkeypatch):
    """An environment of one distribution, a lock that names it, and the step under a policy of its own."""
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    parameters = {"beside": ["kfp-portcullis"], "voices": getattr(request, "param", [])}
    steps = [step | ({"parameters": parameters} if "parameters" in step else {}) for step in STEPS]
    world = World()
    world.keys |= {step["name"]: Signer.generate() for step in STEPS}
    blank = {"parameters": {}, "requires": [], "checks": {}}
    write_trust_store(
        tmp_path / "trust",
        owner=world.owner.public_key,
        name="demo",
        environment="development",
        policy=world.policy_bytes(
            steps=[{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in steps],
            expires=now_ms() + 10**8,
        ),
        revocations=Revocations(1).sign(world.owner),
    )
    for step in STEPS:
        write_bytes(tmp_path / "keys" / f"{step['name']}.pem", world.keys[step["name"]].private_pem(), mode=0o600)
    (tmp_path / "site").mkdir()
    (tmp_path / "lock").write_text(f"alpha==1.0 {HASH}\n")
    monkeypatch.setattr(stage, "find_installed", lambda: find_installed([str(tmp_path / "site")]))
    start_chain(step="start", artifact=tmp_path / "lock", bundle=tmp_path / "evidence")
    return tmp_path


def verify(place, **changes):
    given = {
        "beside": ["kfp-portcullis"],
        "voices": [],
        "lock": place / "lock",
        "evidence": place / "evidence",
    } | changes
    return stage.verify_dependencies(step="verify_dependencies", sbom=place / "sbom", bundle=place / "bundle", **given)


def test_the_step_signs_what_it_found(place):
    install(place / "site")
    statement = verify(place)
    assert statement.figures == {"distributions": 1, "files": 2, "unhashed_files": 2}
    assert statement.outputs == {"sbom": path_digest(place / "sbom")} and (place / "bundle").exists()
    assert json.loads((place / "sbom").read_bytes())["components"][0]["name"] == "alpha"


STEP_REFUSALS = {
    "another version": (lambda place: install(place / "site", version="2.0"), {}, DataError),
    "another package": (lambda place: install(place / "site", "Evil"), {}, DataError),
    "an altered file": (lambda place: install(place / "site").write_bytes(b"evil"), {}, DataError),
    "nothing installed": (lambda place: None, {}, DataError),
    "another lock": (lambda place: (place / "lock").write_text(f"alpha==2.0 {HASH}\n"), {}, EvidenceError),
    "more beside the lock": (lambda place: install(place / "site"), {"beside": ["kfp-portcullis", "x"]}, PolicyError),
    "nobody is asked": (lambda place: install(place / "site"), {"voices": ["pip-audit"]}, PolicyError),
    "no lock": (lambda place: (place / "lock").unlink(), {}, UsageError),
    "no evidence": (lambda place: (place / "evidence").unlink(), {}, EvidenceError),
}


@pytest.mark.parametrize(("change", "given", "error"), STEP_REFUSALS.values(), ids=STEP_REFUSALS)
def test_the_step_refuses_and_leaves_nothing(place, change, given, error):
    change(place)
    with pytest.raises(error):
        verify(place, **given)
    assert not (place / "sbom").exists() and not (place / "bundle").exists()


def auditor(folder, code, monkeypatch):
    """Put a pip-audit on the path that only has an opinion, and notes what it was asked."""
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "pip-audit"
    command.write_text(
        f'#!/bin/sh\nenv > {folder}/environment\necho "$@" > {folder}/asked\ncat "$9" > {folder}/seen\nexit {code}\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_pip_audit_is_asked_about_the_lock_and_can_only_refuse(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTCULLIS_KEYS", "file:/secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    for code in (0, 1, 2, 77):
        auditor(tmp_path, code, monkeypatch)
        assert bool(ask_auditor(b"alpha==1.0\n")) == (code != 0)
    assert (tmp_path / "seen").read_bytes() == b"alpha==1.0\n"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["--strict", "--require-hashes", "--disable-pip"]
    environment = (tmp_path / "environment").read_text()
    assert "/secret" not in environment and "HTTPS_PROXY=http://proxy:3128" in environment
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="pipx install pip-audit"):
        ask_auditor(b"")


@pytest.mark.parametrize("place", [["pip-audit"]], indirect=True)
def test_the_step_refuses_what_pip_audit_refuses(place, monkeypatch):
    install(place / "site")
    auditor(place, 1, monkeypatch)
    with pytest.raises(DataError, match="pip-audit refuses"):
        verify(place, voices=["pip-audit"])
    assert not (place / "sbom").exists() and not (place / "bundle").exists()
    auditor(place, 0, monkeypatch)
    assert verify(place, voices=["pip-audit"]).parameters["voices"] == ["pip-audit"]


@pytest.mark.parametrize("place", [["safety"]], indirect=True)
def test_nobody_else_is_asked(place):
    install(place / "site")
    with pytest.raises(UsageError, match="only pip-audit"):
        verify(place, voices=["safety"])


def test_the_component_calls_the_step(place):
    install(place / "site")
    artifact = lambda name: dsl.Artifact(name=name, uri=str(place / name))  # noqa: E731
    metrics = dsl.Metrics(name="metrics", uri=str(place / "metrics"))
    returned = verify_component.python_func(
        lock=artifact("lock"),
        evidence=artifact("evidence"),
        beside=["kfp-portcullis"],
        voices=[],
        sbom=artifact("sbom"),
        sbom_evidence=artifact("bundle"),
        metrics=metrics,
        step="verify_dependencies",
    )
    assert returned.digest == path_digest(place / "sbom") and metrics.metadata["distributions"] == 1
