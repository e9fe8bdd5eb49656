"""The command: what it says, where it says it, and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import click
import httpx
import pytest

from portcullis import __version__, errors
from portcullis.cli import show
from portcullis.cli.main import _guarded, cli
from portcullis.errors import PortcullisError
from portcullis.evidence.step import KEYS_ENV
from portcullis.evidence.trust import STATE_ENV, TRUST_ENV
from portcullis_pipelines.outcome import REPORT, RUN
from portcullis_pipelines.steps import STEPS


@pytest.fixture(autouse=True)
def _own_environment(tmp_path, monkeypatch):
    """Run in a folder and a home of one's own; the command itself sets variables, which must not stay."""
    before = dict(os.environ)
    for name in (KEYS_ENV, TRUST_ENV, STATE_ENV, "XDG_DATA_HOME"):
        os.environ.pop(name, None)
    os.environ |= {"PORTCULLIS_HOME": str(tmp_path / "home"), "COLUMNS": "100"}
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def portcullis(capsys):
    """Call the command in this process: arguments to exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = _guarded(partial(cli, [str(it) for it in arguments], prog_name="portcullis"))
        return code, *capsys.readouterr()

    return call


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


# Exit codes: 0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error.


def every(kind: type[PortcullisError]) -> Iterator[type[PortcullisError]]:
    if kind.__module__ == errors.__name__:  # those of a module of its own never reach the command
        yield kind
    for below in kind.__subclasses__():
        yield from every(below)


@pytest.mark.parametrize("kind", sorted(set(every(PortcullisError)), key=lambda it: it.__name__))
def test_an_error_is_one_line_and_its_own_exit_code(capsys, kind):
    def fail(standalone_mode):
        raise kind("why")

    expected = 3 if "Inconclusive" in kind.__name__ else 1 if issubclass(kind, errors.RefusedError) else 2
    assert _guarded(fail) == (4 if kind is PortcullisError else expected)
    assert capsys.readouterr() == ("", f"{kind.__name__}: why\n")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a\nb\r\n\tc", "DataError: a b c"),
        ("a\x1b[31mred\x07", "DataError: a\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        ("\u202egnp.exe \ud800", "DataError: \N{REPLACEMENT CHARACTER}gnp.exe \N{REPLACEMENT CHARACTER}"),
        ("Zürich", "DataError: Zürich"),
    ],
    ids=["line breaks", "terminal escape", "bidi and surrogate", "letters"],
)
def test_what_data_puts_into_an_error_cannot_break_or_colour_the_line(capsys, message, line):
    def fail(standalone_mode):
        raise errors.DataError(message)

    assert _guarded(fail) == 1
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_an_interruption(capsys, interruption):
    def fail(standalone_mode):
        raise interruption

    assert _guarded(fail) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_the_system_refuses_is_the_callers_to_mend(capsys, tmp_path):
    def fail(standalone_mode):
        (tmp_path / "nothing" / "x").write_bytes(b"")

    assert _guarded(fail) == 2
    assert (
        capsys.readouterr().err == f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/nothing/x'\n"
    )


def test_anything_else_is_an_internal_error_that_can_be_reported(capsys):
    def fail(standalone_mode):
        raise ZeroDivisionError("why")

    assert _guarded(fail) == 4
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith(
        "internal error: ZeroDivisionError('why'); please report it\n"
    )


FOREIGN = ["notes.txt", "run.json"]

USAGE = {
    "no command": ([], "Usage: portcullis"),
    "unknown command": (["bogus"], "No such command"),
    "unknown option": (["run", "--bogus"], "No such option"),
    "no directory": (["verify"], "Missing argument"),
    "a directory that is not there": (["serve", "nothing"], "does not exist"),
    "data without a configuration": (["run", "--data", "rows.csv"], "--data needs --config"),
    "a configuration that is not there": (["run", "--config", "nothing.yaml"], "does not exist"),
    "a malformed configuration": (["run", "--config", "foreign/notes.txt"], "ConfigError: foreign/notes.txt: "),
    "an output that is something else": (["run", "--output", "foreign"], "is not empty and not an earlier run"),
    "an output that is a file": (["run", "--output", "foreign/notes.txt"], "is a file"),
    "an output below a file": (["run", "--output", "foreign/notes.txt/run"], "name another --output"),
    "an output that is a loop": (["run", "--output", "loop"], "cannot be replaced"),
    "an output that is a file system": (["run", "--output", "/"], "name another --output"),
    "an output where nothing can be made": (["run", "--output", "/proc/run"], "/proc/run"),
    "no such port": (["serve", "foreign", "--port", "65536"], "65536"),
    "nothing to revoke": (["keys", "revoke"], "either --step or --admission"),
    "two things to revoke": (["keys", "revoke", "--step", "train", "--admission", "."], "either --step or --admission"),
    "no policy to revoke in": (["keys", "revoke", "--step", "train"], "is no trust store"),
    "no keys": (["keys", "list"], "portcullis keys generate"),
    "no keys to sign with": (["keys", "trust"], "portcullis keys generate"),
    "verify without a trust store": (["verify", "foreign"], "TrustStoreError: no trust store: pass --trust"),
    "admit without a trust store": (["admit", "foreign"], "TrustStoreError: no trust store: pass --trust"),
    "deploy without a trust store": (["deploy", "foreign"], "TrustStoreError: no trust store: pass --trust"),
    "serve without a trust store": (["serve", "foreign"], "TrustStoreError: no trust store: pass --trust"),
    "a trust store that is none": (["verify", "foreign", "--trust", "foreign"], "foreign is no trust store"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_usage_errors_exit_with_2_and_touch_nothing(portcullis, tmp_path, arguments, message):
    (tmp_path / "foreign").mkdir()
    for name in FOREIGN:
        (tmp_path / "foreign" / name).write_text("[mine")
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = portcullis(*arguments)
    assert code == 2 and message in err
    assert {path.name: path.read_text() for path in (tmp_path / "foreign").iterdir()} == dict.fromkeys(FOREIGN, "[mine")
    assert (tmp_path / "loop").is_symlink()


def test_of_two_trust_stores_the_command_chooses_none(portcullis, tmp_path):
    config = tmp_path / "other.yaml"
    config.write_text(
        "dataset: {name: other, label: {column: y, classes: [a, b]}, "
        'features: {columns: ["v*"], shape: [2], low: 0, high: 1}}'
    )
    for options in ([], ["--config", config]):
        assert portcullis("keys", "generate", *options)[0] == 0
        assert portcullis("keys", "trust", *options)[0] == 0
    code, _, err = portcullis("verify", tmp_path)
    assert code == 2 and "cheque-digits/trust; " in err and "other/trust" in err


# Help.


def test_every_command_and_option_says_what_it_does(portcullis):
    found = dict(commands())
    assert {" ".join(path) for path in found} == {
        *("run", "verify", "admit", "deploy", "serve", "init", "compile", "bootstrap", "doctor", "submit"),
        *("diff", "lineage", "quarantine", "mask", "reveal", "scan", "convert", "attack", "sbom"),
        *("ledger", "ledger show", "ledger verify"),
        *("sign-pipeline", "verify-pipeline", "audit", "audit verify", "audit show"),
        *("watermark", "watermark verify", "claim", "claim stamp", "claim make", "claim check"),
        *("keys", "keys generate", "keys list", "keys trust", "keys revoke", "keys rewrap", "keys rollback"),
    }
    for path, command in found.items():
        assert command.help, path
        code, out, err = portcullis(*path, "--help")
        assert (code, err) == (0, "") and out.startswith(f"Usage: {' '.join(['portcullis', *path])} ")
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (path, option.name)
                assert max(option.opts, key=len) in out


def test_the_help_begins_with_how_to_begin(portcullis):
    code, out, _ = portcullis("-h")
    assert code == 0 and "\\b" not in out
    assert (
        "\n  Start with:   portcullis run --output portcullis-run\n  Then look at: portcullis-run/report.html\n" in out
    )
    assert "Exit codes: 0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error." in out


def test_version(portcullis):
    assert portcullis("--version")[1] == f"portcullis, version {__version__}\n"


# Keys.


def test_keys_from_nothing_to_a_rollback(portcullis, tmp_path):
    home = tmp_path / "home" / "cheque-digits"
    code, out, _ = portcullis("keys", "generate")
    assert code == 0 and f"{len(STEPS) + 9} keys made in {home / 'keys'}" in out
    assert "\n0 keys made" in "\n" + portcullis("keys", "generate")[1]
    code, out, _ = portcullis("keys", "trust")
    assert (code, out) == (0, f"policy cheque-digits version 1 (development) in {home / 'trust'}\n")
    code, _, err = portcullis("keys", "revoke", "--step", "owner")
    assert code == 2 and "there is no step 'owner'" in err
    code, out, _ = portcullis("keys", "revoke", "--step", "train")
    assert code == 0 and out.startswith(f"revocation list version 2 in {home / 'trust'}\n")
    (tmp_path / "admission.json").write_bytes((home / "trust" / "revocations.json").read_bytes())
    assert portcullis("keys", "revoke", "--admission", tmp_path)[0] == 0
    code, out, _ = portcullis("keys", "rollback", tmp_path)
    assert (code, out) == (0, f"rollback allowed by revocation list version 4 in {home / 'trust'}\n")


def test_listed_keys_are_public(portcullis, tmp_path):
    portcullis("keys", "generate")
    code, out, _ = portcullis("keys", "list", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["role"] for row in rows] == ["owner", *(step.name for step in STEPS)]
    assert rows[0].keys() == {"role", "algorithm", "keyid", "file"}
    code, table, _ = portcullis("keys", "list")
    assert code == 0 and all(row["keyid"][: show.SHORT] in table for row in rows)
    secret = {line for path in (tmp_path / "home").rglob("keys/*") for line in path.read_text().splitlines()}
    assert not [line for line in secret if line in out or line in table]


def test_a_path_with_brackets_is_shown_as_it_is(portcullis, tmp_path):
    os.environ["PORTCULLIS_HOME"] = str(tmp_path / "[/bold]")
    os.environ["COLUMNS"] = "400"
    portcullis("keys", "generate")
    code, out, err = portcullis("keys", "list")
    assert (code, err) == (0, "") and "[/bold]" in out


# What a run left.


@pytest.fixture
def output(attacked):
    """A copy of the real run's output, and its trust store as the only one."""
    os.environ[TRUST_ENV] = str(attacked.home.trust)
    return attacked.output


@pytest.mark.slow
def test_verify_prints_the_chain(portcullis, output, real_run):
    code, out, err = portcullis("verify", output)
    assert (code, err) == (0, "")
    for name, statement in {it.step: it for it in real_run.verify().statements}.items():
        assert name in out
        assert all(digest[: show.SHORT] in out for digest in statement.outputs.values())
    last = out.splitlines()[-1]
    assert last.startswith("PASSED: model ") and "version 1 for development (development keys)" in last


@pytest.mark.slow
@pytest.mark.parametrize("width", ["20", "60", "200"])
def test_a_narrow_terminal_loses_nothing(portcullis, output, width):
    os.environ |= {"COLUMNS": width, "NO_COLOR": "1"}
    code, out, _ = portcullis("verify", output)
    assert code == 0 and "\x1b" not in out and "…" not in out
    assert max(map(len, out.splitlines()[:-1])) <= int(width)


@pytest.mark.slow
def test_json_is_the_runs_own_and_nothing_else(portcullis, output):
    code, out, err = portcullis("verify", output, "--json")
    assert (code, err) == (0, "")
    assert out == (output / RUN).read_text() and json.loads(out)["status"] == "PASSED"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["verify", "admit", "serve"])
def test_what_was_altered_is_refused_in_one_line(portcullis, output, verb):
    evidence = output / "evidence.intoto.jsonl"
    evidence.write_bytes(evidence.read_bytes().replace(b'"sig":"M', b'"sig":"N', 1))
    before = (output / "admission.json").read_bytes()
    code, _, err = portcullis(verb, output)
    assert code == 1 and err.count("\n") == 1 and err.startswith(("EvidenceError: ", "AdmissionError: "))
    assert (output / "admission.json").read_bytes() == before


@pytest.mark.slow
def test_another_trust_store_admits_nothing(portcullis, output):
    portcullis("keys", "generate")
    portcullis("keys", "trust")
    theirs = os.environ.pop(TRUST_ENV)
    for verb in ("verify", "deploy", "serve"):
        code, _, err = portcullis(verb, output)
        assert code == 1 and err.startswith(("PolicyError", "AdmissionError"))
    assert portcullis("verify", output, "--trust", theirs)[0] == 0


@pytest.mark.slow
def test_admit_then_deploy_then_verify(portcullis, output):
    del os.environ[TRUST_ENV]
    trust = ["--trust", output.parent / "home" / "trust"]
    before = (output / "admission.json").read_bytes()
    code, out, _ = portcullis("admit", output, *trust)
    assert code == 0 and "portcullis deploy" in out
    assert (output / "admission.json").read_bytes() != before
    code, _, err = portcullis("verify", output, *trust)
    assert code == 1 and "did not deploy this admission" in err
    code, out, _ = portcullis("deploy", output, *trust)
    assert code == 0 and "PASSED: model" in out
    assert portcullis("verify", output, *trust)[0] == 0
    assert json.loads((output / RUN).read_text())["status"] == "PASSED" and (output / REPORT).exists()


@pytest.fixture
def server(output):
    """Start `portcullis serve` as a user does, on a port of the system's choice."""
    ready = output.parent / "port"
    command = [sys.executable, "-m", "portcullis.cli", "serve", output, "--port", "0", "--ready-file", ready]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 60
            while not ready.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            yield process, f"http://127.0.0.1:{ready.read_text().strip()}"
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_serves_who_has_the_token_until_it_is_told_to_stop(server, attacked, number):
    process, base = server
    row = [0.0] * 64
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64], "data": row}]}
    url = f"{base}/v2/models/cheque-digits/infer"
    token = (attacked.home.keys / "serving.token").read_text().strip()
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    outputs = {it["name"]: it["data"] for it in answer.json()["outputs"]}
    assert outputs["label"][0] in "0123456789" and sum(outputs["probabilities"]) == pytest.approx(1, abs=1e-5)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
        assert httpx.post(url, json=body, headers=headers).status_code == 401
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "") and out.startswith("verifying ")
    with pytest.raises(httpx.ConnectError):
        httpx.get(base)
