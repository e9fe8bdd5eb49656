"""Submitting through KFP's own client to a simulated server: what is sent, what is refused before, and exit codes."""

import dataclasses
import datetime as dt
import ipaddress
import json
import logging
import os
import ssl
import stat
from functools import partial

import click
import pytest
import yaml
from cluster.kfp_api import TOKEN, KfpServer, serving
from cluster.small_package import IMAGE, make, small_package
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf import json_format
from kfp import kubernetes
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from portcullis.cli.cluster import submit
from portcullis.cli.main import _guarded
from portcullis.container import IMAGE as PORTCULLIS
from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError, PipelineError, UsageError
from portcullis.harden import harden, secure_pipeline
from portcullis_pipelines import submission
from portcullis_pipelines.compile import ROOT, compiled
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.inspection import arguments, inspect
from portcullis_pipelines.submission import COOKIES_ENV, TOKEN_ENV, Credentials, Run, Server, require_succeeded


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A home of one's own, no credentials, and no waiting between questions."""
    for name in list(os.environ):
        if name.startswith(("KF_PIPELINES", "SSL_CERT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv(TOKEN_ENV, TOKEN)
    monkeypatch.setattr(submission.time, "sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server():
    with serving(KfpServer()) as server:
        yield server


@pytest.fixture
def package(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(small_package())
    return path


@pytest.fixture
def call(capfd, server):
    """Call `portcullis submit` in this process; a credential never shows, whatever happens."""

    def run(path, *options, host=None):
        capfd.readouterr()
        command = [str(path), "--host", host or server.url, *map(str, options)]
        code = _guarded(partial(submit, command, prog_name="portcullis submit"))
        out, err = capfd.readouterr()
        assert TOKEN not in out + err
        return code, out, err

    return run


def one_line(err, kind):
    return err.startswith(f"{kind}: ") and err.count("\n") == 1


# What is sent.


def test_a_run_is_submitted_and_watched_to_its_end(call, server, package):
    code, out, err = call(package, "--argument", "rows=7", "--service-account", "runner", "--experiment", "mine")
    assert code == 0, err
    (run,) = server.runs
    assert out.splitlines() == [
        f"run {run} of small, package sha256:{sha256(package.read_bytes())}",
        f"{server.url}/#/runs/details/{run}",
        "SUCCEEDED; the run's state is not the verdict: admission is, verify it with your own trust store",
    ]
    assert err.splitlines() == ["pending, 0 tasks ended", "running, 0 tasks ended", "succeeded, 0 tasks ended"]
    (request,) = server.sent("POST", "/apis/v2beta1/runs")
    (version,) = server.versions.values()
    (experiment,) = server.experiments.values()
    assert experiment["display_name"] == "mine"
    assert request.body == {
        "experiment_id": experiment["experiment_id"],
        "display_name": f"small {sha256(package.read_bytes())[:12]}",
        "pipeline_version_reference": {
            "pipeline_id": version["pipeline_id"],
            "pipeline_version_id": version["pipeline_version_id"],
        },
        "runtime_config": {"parameters": {"rows": 7}},
        "service_account": "runner",
    }


def test_what_the_run_names_is_the_package_byte_for_byte(call, server, package):
    assert call(package, "--argument", "rows=7")[0] == 0
    (version,) = server.versions.values()
    digest = sha256(package.read_bytes())
    assert server.uploads[version["pipeline_version_id"]] == package.read_bytes()
    assert version["display_name"].startswith(f"sha256-{digest[:12]}-")
    assert version["description"] == f"sha256:{digest}"
    sent, kept = version["pipeline_spec"], list(yaml.safe_load_all(package.read_bytes()))
    assert [sent["pipeline_spec"], sent["platform_spec"]] == kept
    assert "enableCache" not in json.dumps(sent)
    executors = sent["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert all(it["securityContext"]["runAsNonRoot"] for it in executors.values()) and len(executors) == 2


def test_the_reference_pipeline_is_submitted_whole(call, server, tmp_path):
    from portcullis_pipelines.packaging import DataAccess
    from portcullis_pipelines.packaging import package as compile_package

    files = compile_package(ReferenceConfig.load(None), DataAccess("builtin:cheque-digits"), image=IMAGE, gpus=1)
    path = tmp_path / "reference.yaml"
    path.write_bytes(files["reference.yaml"])
    code, _, err = call(path)
    assert code == 0, err
    (version,) = server.versions.values()
    json_format.ParseDict(version["pipeline_spec"]["pipeline_spec"], PipelineSpec())


def test_a_pipeline_of_loaded_stages_is_submitted_with_an_image_by_its_digest(call, server, tmp_path, monkeypatch):
    """As the examples are: their stages' YAML names the release's image by its tag."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    path = tmp_path / "mask.yaml"
    path.write_bytes(compiled(__import__("mask_and_hash").mask_and_hash))
    arguments = ("data_uri=s3://b/c", "description=x", "masking={}")
    given = [part for argument in arguments for part in ("--argument", argument)]
    code, _, err = call(path, *given)
    assert code == 2 and "'ghcr.io/kfp-portcullis/portcullis-python:" in err and not server.requests
    code, _, err = call(path, *given, "--image", IMAGE)
    assert code == 0, err
    (uploaded,) = server.uploads.values()
    executors = yaml.safe_load(uploaded.partition(b"\n---\n")[0])["deploymentSpec"]["executors"]
    declared = {"name": "PORTCULLIS_IMAGE", "value": IMAGE}
    assert len(executors) == 5
    assert all(it["container"]["image"] == IMAGE and declared in it["container"]["env"] for it in executors.values())
    # The run is of what was uploaded.
    (version,) = server.versions.values()
    assert version["description"] == f"sha256:{sha256(uploaded)}"


def test_an_image_of_anothers_must_be_pinned_already(call, server, package):
    code, out, err = call(package, "--argument", "rows=7", "--image", IMAGE)
    assert code == 2 and "leave out --image" in err and (out, server.requests) == ("", [])
    theirs = b"registry.example/theirs:1"
    data, own = small_package(), PORTCULLIS.encode()
    package.write_bytes(own.join(data.split(IMAGE.encode(), 1)).replace(IMAGE.encode(), theirs))
    assert own in package.read_bytes() and theirs in package.read_bytes()
    code, out, err = call(package, "--argument", "rows=7", "--image", IMAGE)
    assert code == 2 and "'registry.example/theirs:1', is named without a digest;" in err
    assert (out, server.requests) == ("", [])


@pytest.mark.parametrize("image", ["registry.example/x:1", "x@sha256:12", "", "a b@sha256:" + "0" * 64])
def test_an_image_that_is_put_in_has_a_digest(call, server, package, image):
    code, out, err = call(package, "--argument", "rows=7", "--image", image)
    assert code == 2 and "is no image by digest" in err and (out, server.requests) == ("", [])


def test_it_is_told_how_many_images_lack_a_digest():
    checked = inspect(small_package().replace(b"@sha256:" + b"0" * 64, b":1"))
    with pytest.raises(UsageError, match=r"'exec-judge', 'registry.example/portcullis:1', .*, as are those of 1 more;"):
        checked.require_pinned()
    other = {**checked.images, "exec-judge": IMAGE}
    with pytest.raises(UsageError, match=r"'exec-make', 'registry.example/portcullis:1', is named without a digest; "):
        dataclasses.replace(checked, images=other).require_pinned()


def test_each_submission_is_a_version_of_its_own(call, server, package):
    for _ in range(2):
        assert call(package, "--argument", "rows=7", "--no-wait")[0] == 0
    assert len(server.pipelines) == len(server.experiments) == 1
    assert len(server.versions) == len(server.runs) == 2
    assert len({it["display_name"] for it in server.versions.values()}) == 2
    assert not server.sent("GET", "/apis/v2beta1/runs/.*")


def test_a_pipeline_of_another_name_is_not_taken_for_ours(call, server, package):
    server.pipelines["theirs"] = {"pipeline_id": "theirs", "display_name": "small-2"}
    assert call(package, "--argument", "rows=7", "--no-wait")[0] == 0
    assert {it["pipeline_id"] for it in server.versions.values()} == set(server.pipelines) - {"theirs"}


def test_json_is_facts_and_nothing_else(call, server, package):
    server.states = ["FAILED"]
    server.tasks = [{"display_name": "judge", "state": "FAILED"}]
    code, out, err = call(package, "--argument", "rows=7", "--json")
    (run,) = server.runs
    assert code == 1 and one_line(err, "PipelineError")
    facts = json.loads(out)
    assert facts.keys() == {"pipeline", "version", "run", "url", "sha256", "state", "failed"}
    assert (facts["run"], facts["state"], facts["failed"]) == (run, "FAILED", "judge")


def test_a_server_that_keeps_users_apart_is_told_the_namespace(call, server, package):
    server.multi_user = True
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 2 and one_line(err, "UsageError") and "say --namespace" in err and not server.runs
    code, _, err = call(package, "--argument", "rows=7", "--namespace", "team")
    assert code == 0, err
    assert {it["namespace"] for it in (*server.experiments.values(), *server.pipelines.values())} == {"team"}
    server.multi_user = False
    code, _, err = call(package, "--argument", "rows=7", "--namespace", "team")
    assert code == 2 and "leave out --namespace" in err


# Credentials.


def test_every_request_carries_the_token_and_cookies(call, server, package, monkeypatch):
    monkeypatch.setenv(COOKIES_ENV, "session=abc")
    assert call(package, "--argument", "rows=7")[0] == 0
    assert {it.headers["authorization"] for it in server.requests} == {f"Bearer {TOKEN}"}
    assert {it.headers["Cookie"] for it in server.requests} == {"session=abc"}


def test_a_token_file_counts_before_the_environment(call, package, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN_ENV, "another")
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    assert call(package, "--argument", "rows=7", "--token-file", path)[0] == 0
    path.chmod(0o644)
    code, _, err = call(package, "--argument", "rows=7", "--token-file", path)
    assert code == 2 and one_line(err, "KeyMaterialError") and "open to other users" in err


@pytest.mark.parametrize("content", [None, b"", b" \n", b"x" * (1 << 17)], ids=["folder", "empty", "blank", "large"])
def test_a_token_file_that_is_none_says_so(tmp_path, content):
    path = tmp_path / "token"
    if content is None:
        path.mkdir()
    else:
        path.touch(0o600)
        path.write_bytes(content)
    with pytest.raises(KeyMaterialError, match=r"--token-file .*token") as caught:
        Credentials.find({TOKEN_ENV: TOKEN}, path)
    assert "portcullis keys generate" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_token_that_is_missing_or_wrong_is_the_callers_to_mend(call, server, package, monkeypatch, token):
    monkeypatch.setenv(TOKEN_ENV, token)
    code, out, err = call(package, "--argument", "rows=7")
    assert code == 2 and one_line(err, "UsageError") and TOKEN_ENV in err and out == ""
    assert not token or token not in err
    assert not server.uploads


@pytest.mark.parametrize("token", ["a\nb", "a\r\nX-Admin: 1", "tök", "a  b", "\x7f"])
def test_a_token_that_would_break_the_header_is_refused(token):
    with pytest.raises(UsageError, match="no HTTP header") as caught:
        Credentials(token)
    assert token not in str(caught.value)


def test_credentials_are_not_shown():
    assert "secret" not in repr(Credentials("secret", "secret"))


def test_a_server_that_echoes_the_token_does_not_get_it_shown(call, server, package):
    server.disturb = lambda request: (400, {"message": f"bad {request.headers['authorization']} \x1b[31m\nmore"})
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 1 and one_line(err, "PipelineError") and "bad Bearer …" in err and "\x1b" not in err


def test_a_server_that_echoes_a_single_cookie_does_not_get_it_shown(call, server, package, monkeypatch):
    monkeypatch.setenv(COOKIES_ENV, "oauth2_proxy=SECRETCOOKIE; other=b")
    server.disturb = lambda request: (400, {"message": "bad cookie SECRETCOOKIE"})
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 1 and "bad cookie …" in err and "SECRETCOOKIE" not in err


def test_a_redirect_is_not_followed(call, server, package):
    with serving(KfpServer()) as other:
        server.disturb = lambda request: (302, b"", ("Location", f"{other.url}{request.path}"))
        code, _, err = call(package, "--argument", "rows=7")
        assert code == 2 and "answers 302" in err and not other.requests


HOSTS = {
    "in the clear": ("http://pipelines.example", "in the clear"),
    "a name that begins like loopback": ("http://localhost.example", "in the clear"),
    "an address that is not loopback": ("http://10.0.0.1:8888", "in the clear"),
    "a user in the address": ("https://me:pw@pipelines.example", "holds a user name"),
    "no scheme": ("pipelines.example", "is no URL"),
    "another scheme": ("file:///etc/passwd", "is no URL"),
    "no host": ("https://", "is no URL"),
    "a page of it": ("http://localhost:8080/#/runs", "without"),
    "no port": ("http://localhost:port", "is no URL"),
    "malformed": ("http://[::1", "is no URL"),
}


@pytest.mark.parametrize(("host", "message"), HOSTS.values(), ids=HOSTS)
def test_hosts_that_are_refused(call, package, host, message):
    code, _, err = call(package, "--argument", "rows=7", host=host)
    assert code == 2 and one_line(err, "UsageError") and message in err and "pw" not in err


@pytest.mark.parametrize("host", ["http://localhost:1/", "http://127.9.9.9", "http://[::1]:8", "https://x.example/kfp"])
def test_hosts_that_a_token_may_go_to(host):
    assert Server(host, Credentials("token"), {}).host == host.rstrip("/")


def test_without_a_credential_a_cluster_may_be_asked_in_the_clear():
    assert Server("http://ml-pipeline.kubeflow:8888", Credentials(), {}).host


# This machine.


def test_nothing_of_this_machine_is_used_or_changed(call, server, package, tmp_path, monkeypatch):
    saved = tmp_path / "home" / ".config" / "kfp" / "context.json"
    saved.parent.mkdir(parents=True)
    context = {"namespace": "saved", "client_authentication_cookie": "saved=1"}
    context |= {"client_authentication_header_name": "X-Saved", "client_authentication_header_value": "1"}
    saved.write_text(json.dumps(context))
    monkeypatch.setattr(submission.Client, "_LOCAL_KFP_CONTEXT", str(saved))
    monkeypatch.setenv("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID", "somebody")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://elsewhere.example")
    before = {path: path.stat() for path in (tmp_path / "home").rglob("*")}
    code, out, _ = call(package, "--argument", "rows=7")
    assert code == 0 and "elsewhere" not in out
    assert {path: path.stat() for path in (tmp_path / "home").rglob("*")} == before
    assert not [it for it in server.requests if "Cookie" in it.headers or "X-Saved" in it.headers]
    assert not [it for it in server.requests if it.query.get("namespace")]


def test_what_is_uploaded_is_what_was_checked(server):
    """The file may change while it is being submitted; what was read once counts."""
    checked = inspect(small_package())
    made = Server(server.url, Credentials(TOKEN), {}).submit(
        checked, arguments={"rows": 1}, namespace="", experiment="e", run_name="r", service_account=None
    )
    assert server.uploads[made.version] == checked.data


# How a run ends.


ENDS = {
    "succeeded": (["RUNNING", "SUCCEEDED"], [], 0, ""),
    "failed": (["FAILED"], [], 1, "the run ended FAILED;"),
    "canceled": (["RUNNING", "CANCELING", "CANCELED"], [], 1, "the run ended CANCELED;"),
    "skipped": (["SKIPPED"], [], 1, "the run ended SKIPPED;"),
    "failed, and where": (
        ["FAILED"],
        [
            {"display_name": "root", "state": "FAILED", "child_tasks": [{"task_id": "1"}]},
            {"display_name": "later", "state": "FAILED", "end_time": "2026-01-01T00:00:02+00:00"},
            {
                "display_name": "enforce",
                "state": "FAILED",
                "end_time": "2026-01-01T00:00:01+00:00",
                "error": {"message": "GateFailedError:\n\x1b[31mno"},
            },
        ],
        1,
        "the run ended FAILED at task enforce: GateFailedError: \N{REPLACEMENT CHARACTER}[31mno; see http",
    ),
    "succeeded although a task failed": (
        ["SUCCEEDED"],
        [{"display_name": "enforce", "state": "FAILED"}, {"display_name": "notify", "state": "SUCCEEDED"}],
        1,
        "the run ended SUCCEEDED at task enforce;",
    ),
    "a state that there is not": (["RUNNING", "DONE"], [], 3, "does not answer as KFP's API does"),
}


@pytest.mark.parametrize(("states", "tasks", "code", "message"), ENDS.values(), ids=ENDS)
def test_the_exit_code_is_how_the_run_ended(call, server, package, states, tasks, code, message):
    server.states, server.tasks = states, tasks
    found, _, err = call(package, "--argument", "rows=7")
    assert found == code and message in err.splitlines()[-1]


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "PENDING"])
def test_a_run_that_does_not_end_in_time_is_inconclusive(server, state):
    server.states = [state]
    client = Server(server.url, Credentials(TOKEN), {})
    server.runs["r"] = {"run_id": "r"}
    made = submission.Submission("p", "v", "r", "http://x", "0" * 64)
    with pytest.raises(submission.InconclusiveError, match="has not ended after 0 s and goes on: http://x"):
        client.wait(made, timeout=0, progress=lambda _: None)


def test_an_interrupted_wait_says_that_the_run_goes_on(call, server, package, monkeypatch):
    server.states = ["RUNNING"]

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(submission.time, "sleep", interrupt)
    code, out, err = call(package, "--argument", "rows=7")
    (run,) = server.runs
    assert code == 130 and "SUCCEEDED" not in out
    lines = [line for line in err.splitlines() if line]
    assert lines[-2:] == [f"run {run} goes on: {server.url}/#/runs/details/{run}", "interrupted"]


@pytest.mark.parametrize("run", [Run("FAILED"), Run("RUNNING"), Run("SUCCEEDED", failed="x"), Run("")])
def test_only_success_without_a_failed_task_is_success(run):
    with pytest.raises(PipelineError):
        require_succeeded(run, "http://x")
    require_succeeded(Run("SUCCEEDED"), "http://x")


def watching(request):
    return request.method == "GET" and "/runs/" in request.path


GARBAGE = {
    "no answer": None,
    "an error of the server's": (500, {"error": "boom"}),
    "an error that is not JSON": (503, b"<html>"),
    "bytes that are not UTF-8": (200, b"\xff\xfe"),
    "an error that is not UTF-8": (502, b"\xff\xfe"),
    "a login page": (200, b"<html>log in</html>"),
    "nothing": (200, b""),
    "null": (200, b"null"),
    "a list": (200, b"[]"),
    "text": (200, b'"SUCCEEDED"'),
    "another run": (200, {"run_id": "other", "state": "SUCCEEDED"}),
    "no run": (200, {}),
    "a run of wrong types": (200, {"run_id": {"a": 1}, "run_details": 3}),
}


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
def test_no_sound_answer_about_the_run_is_inconclusive_after_a_few_tries(call, server, package, answer):
    server.disturb = lambda request: answer if watching(request) else ...
    code, out, err = call(package, "--argument", "rows=7")
    assert code == 3 and one_line(err, "InconclusiveError") and "may go on: http" in err
    assert "SUCCEEDED" not in out
    assert len(server.sent("GET", "/apis/v2beta1/runs/.*")) == submission.ATTEMPTS


@pytest.mark.parametrize("answer", [None, (503, b""), (200, b"<html>")])
def test_a_connection_that_comes_back_is_not_noticed(call, server, package, answer):
    answers = [answer] * (submission.ATTEMPTS - 1)
    server.disturb = lambda request: answers.pop() if watching(request) and answers else ...
    assert call(package, "--argument", "rows=7")[0] == 0


def test_a_token_that_expires_while_waiting_is_inconclusive(call, server, package):
    server.disturb = lambda request: (401, {"message": "expired"}) if watching(request) else ...
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 3 and one_line(err, "InconclusiveError") and "goes on: http" in err


@pytest.mark.parametrize("answer", [it for name, it in GARBAGE.items() if "run" not in name])
@pytest.mark.parametrize(
    "path",
    ["healthz", "experiments", "pipelines", "pipelines/upload", "pipelines/upload_version", "runs"],
)
def test_no_sound_answer_before_the_run_is_inconclusive(call, server, package, path, answer):
    server.disturb = lambda request: answer if request.path == f"/apis/v2beta1/{path}" else ...
    code, out, err = call(package, "--argument", "rows=7")
    assert code == 3 and one_line(err, "InconclusiveError") and out == ""
    assert len(server.sent("POST", "/apis/v2beta1/runs")) == (path == "runs")  # asked once, for it may have been made


@pytest.mark.parametrize("path", ["pipelines/upload", "pipelines/upload_version", "experiments", "runs"])
def test_what_the_server_made_must_have_an_id(call, server, package, path):
    def disturb(request):
        made = {"run_id": "../x", "pipeline_id": "", "pipeline_version_id": "a/b", "experiment_id": "?"}
        return (200, made) if request.method == "POST" and request.path.endswith(path) else ...

    server.disturb = disturb
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 3 and one_line(err, "InconclusiveError") and "id" in err


def test_a_server_that_is_none(call, package):
    code, _, err = call(package, "--argument", "rows=7", host="http://127.0.0.1:9")
    assert code == 3 and one_line(err, "InconclusiveError") and "no answer from http://127.0.0.1:9" in err


def test_another_web_server_is_not_pipelines(call, server, package):
    server.disturb = lambda request: (404, b"nothing here")
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 2 and "is it the address of Kubeflow Pipelines?" in err


def test_a_refusal_of_the_servers_is_told(call, server, package):
    server.disturb = lambda request: (
        (409, {"message": "exists already"}) if request.path.endswith("upload_version") else ...
    )
    code, _, err = call(package, "--argument", "rows=7")
    assert code == 1 and one_line(err, "PipelineError") and "answers 409: exists already" in err


def test_kfps_client_logs_no_credential(call, server, package, caplog):
    caplog.set_level(logging.DEBUG)
    assert call(package, "--argument", "rows=7")[0] == 0
    assert TOKEN not in caplog.text


@pytest.fixture
def certificate(tmp_path):
    """A certificate of its own for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pipelines")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "tls.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(pem)
    return tmp_path / "tls.pem", tmp_path / "tls.key"


def test_a_certificate_must_be_one_that_is_believed(call, package, certificate, monkeypatch):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with serving(KfpServer(), tls) as server:
        code, _, err = call(package, "--argument", "rows=7", host=server.url)
        assert code == 2 and one_line(err, "UsageError") and "SSL_CERT_FILE" in err and not server.requests
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        code, _, err = call(package, "--argument", "rows=7", host=server.url)
        assert code == 0, err


# What is refused before anything is sent.


def changed(old: bytes, new: bytes) -> bytes:
    data = small_package()
    assert old in data
    return data.replace(old, new)


def written(**parts) -> bytes:
    root = {"dag": {"tasks": {"a": {"componentRef": {"name": "comp-a"}}}}}
    whole = {"pipelineInfo": {"name": "x"}, "root": root, "components": {"comp-a": {"executorLabel": "exec-a"}}}
    return yaml.safe_dump({**whole, "deploymentSpec": {"executors": {}}, **parts}).encode()


def with_default(value: str) -> bytes:
    """Give a parameter of the pipeline a default that YAML can spell and JSON cannot."""
    return changed(b"        defaultValue: 0.5\n", f"        defaultValue: {value}\n".encode())


def without_second_document() -> bytes:
    return small_package().partition(b"\n---\n")[0]


ALTERED = {
    "an image by tag": (changed(b"@sha256:" + b"0" * 64, b":latest"), "UsageError", "executor 'exec-judge'"),
    "a short digest": (changed(b"@sha256:" + b"0" * 64, b"@sha256:" + b"0" * 63), "UsageError", "without a digest"),
    "a cached task": (
        changed(b"cachingOptions: {}", b"cachingOptions: {enableCache: true}"),
        "PipelineError",
        "cached",
    ),
    "a cached task in the other spelling": (
        changed(b"cachingOptions: {}", b"caching_options: {enable_cache: true}"),
        "PipelineError",
        "may be cached",
    ),
    "a task that runs in spite of a refusal": (
        changed(
            b"dependentTasks:", b"triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}\n        dependentTasks:"
        ),
        "PipelineError",
        "runs although",
    ),
    "a gate without its threshold": (
        changed(
            b"""
            threshold:
              componentInputParameter: threshold
        taskInfo:
          name: gate""",
            b"""
        taskInfo:
          name: gate""",
        ),
        "PipelineError",
        "leaves out the input 'threshold'",
    ),
    "no Kubernetes settings": (without_second_document(), "PipelineError", "harden its task"),
    "a root user": (changed(b"runAsUser: '10001'", b"runAsUser: '0'"), "PipelineError", "running as root"),
    "a root user as a number": (changed(b"runAsUser: '10001'", b"runAsUser: 0"), "PipelineError", "running as root"),
    "perhaps a root user": (changed(b"runAsNonRoot: true", b"runAsNonRoot: false"), "PipelineError", "running as root"),
    "a field of the platform that KFP does not know": (
        changed(b"runAsNonRoot: true", b"runAsNonRoot: true\n            privileged: true"),
        "PipelineError",
        "privileged",
    ),
    "a field of the pipeline that KFP does not know": (
        changed(b"\nschemaVersion:", b"\ngates: []\nschemaVersion:"),
        "PipelineError",
        "gates",
    ),
    "a field of an executor that KFP does not know": (
        changed(b"        resources:", b"        privileged: true\n        resources:"),
        "PipelineError",
        "privileged",
    ),
    "another platform": (changed(b"  kubernetes:\n", b"  elsewhere:\n"), "PipelineError", "other platforms"),
    "a third document": (small_package() + b"\n---\nplatforms: {}\n", "PipelineError", "3 YAML documents"),
    "a document that is split elsewhere": (
        small_package() + b"\n--- \nplatforms: {}\n",
        "PipelineError",
        "not a compiled pipeline",
    ),
    "a repeated key": (changed(b"\nschemaVersion:", b"\nroot: {}\nschemaVersion:"), "PipelineError", "repeated"),
    "an alias": (changed(b"\nschemaVersion:", b"\na: &a 1\nb: *a\nschemaVersion:"), "PipelineError", "alias"),
    "a component that holds itself": (
        written(components={"comp-a": {"dag": {"tasks": {"again": {"componentRef": {"name": "comp-a"}}}}}}),
        "PipelineError",
        "more than 10000 tasks",
    ),
    "an executor of another kind": (
        written(deploymentSpec={"executors": {"exec-a": {"customJob": {}}}}),
        "PipelineError",
        "executor 'exec-a' is neither a container nor an importer",
    ),
    "a default that is no number": (with_default(".nan"), "PipelineError", "not a compiled pipeline"),
    "an infinite default": (with_default(".inf"), "PipelineError", "not a compiled pipeline"),
    "a number beyond a double": (with_default("1" + "0" * 400), "PipelineError", "not a compiled pipeline"),
    "a user beyond all bounds": (changed(b"'10001'", b"1" + b"0" * 400), "PipelineError", "not a compiled pipeline"),
    "a name that a terminal obeys": (
        changed(
            b"\n  name: small\n",
            rb"""
  name: "small\e]0;x\a\nSUCCEEDED"
""",
        ),
        "PipelineError",
        "it holds the name",
    ),
    "no tasks": (b"pipelineInfo: {name: x}\nroot: {dag: {tasks: {}}}\n", "PipelineError", "no task"),
    "no pipeline": (b"hello: world\n", "PipelineError", "not a compiled pipeline"),
    "no YAML": (b"\x00\xff", "PipelineError", "not a compiled pipeline"),
    "nothing": (b"", "PipelineError", "not a compiled pipeline"),
    "too much": (b"#" * (1 << 20) + b"\n", "UsageError", "larger than"),
}


@pytest.mark.parametrize(("data", "kind", "message"), ALTERED.values(), ids=ALTERED)
def test_an_altered_package_is_refused_and_nothing_is_sent(call, server, tmp_path, data, kind, message):
    path = tmp_path / "altered.yaml"
    path.write_bytes(data)
    code, out, err = call(path, "--argument", "rows=7")
    assert code == (2 if kind == "UsageError" else 1) and one_line(err, kind) and message in err
    assert (out, server.requests) == ("", [])


ARGUMENTS = {
    "none": ([], "needs --argument rows="),
    "unknown": (["rows=1", "seed=1"], "it knows gpu_resource, gpus, names"),
    "no pair": (["rows"], "no KEY=VALUE"),
    "twice": (["rows=1", "rows=2"], "twice"),
    "not JSON": (["rows=seven"], "not JSON"),
    "a fraction": (["rows=1.5"], "not a NUMBER_INTEGER"),
    "a truth for a number": (["rows=true"], "not a NUMBER_INTEGER"),
    "not a number": (["rows=1", "threshold=NaN"], "not JSON"),
    "text for a number": (["rows=1", 'threshold="1"'], "not a NUMBER_DOUBLE"),
    "text for a list": (["rows=1", 'names="a"'], "not a LIST"),
    "a list for a mapping": (["rows=1", "options=[]"], "not a STRUCT"),
    "a number for a truth": (["rows=1", "quick=1"], "not a BOOLEAN"),
    "a shared GPU": (["rows=1", "gpu_resource=nvidia.com/gpu.shared"], "has for itself"),
    "too deep": (["rows=1", "names=" + "[" * 100_000], "not JSON"),
}


@pytest.mark.parametrize(("given", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        arguments(inspect(small_package()), given)


def test_arguments_are_read_as_the_pipeline_declares_them():
    given = ["rows=3", "threshold=1", 'names=["a=b"]', 'options={"x": 0.5}', "title=7=seven", "quick=true", "gpus=2"]
    expected = {"rows": 3, "threshold": 1, "names": ["a=b"], "options": {"x": 0.5}, "title": "7=seven", "quick": True}
    assert arguments(inspect(small_package()), given) == expected | {"gpus": "2"}


def test_what_a_package_asks_for_is_followed_through_its_gates():
    judge, made = inspect(small_package("2")).tasks
    assert (judge.path, judge.secrets, judge.gpus, judge.gpu_resource) == (
        "gate/judge",
        {"portcullis-robustness-trained": frozenset()},
        "2",
        "nvidia.com/gpu",
    )
    assert (made.path, made.secrets, made.config_maps, made.gpus) == (
        "make",
        {"portcullis-ingest": frozenset()},
        ("portcullis-trust",),
        "0",
    )
    assert inspect(small_package("2")).gpu_line() == "asks for 2 x nvidia.com/gpu for gate/judge"
    assert inspect(small_package()).gpu_line() == "asks for no GPU"


def test_what_a_pod_starts_without_is_not_asked_for():
    @secure_pipeline(name="optional")
    def optional():
        task = harden(make(rows=1), secret="portcullis-ingest")
        kubernetes.use_secret_as_env(task, "needed", {"key": "KEY", "other": "OTHER"})
        kubernetes.use_secret_as_env(task, "may-be", {"key": "MAYBE"}, optional=True)
        kubernetes.use_secret_as_volume(task, "needed", "/needed", optional=False)
        kubernetes.use_config_map_as_volume(task, "also-may-be", "/also", optional=True)
        kubernetes.mount_pvc(task, "rows", "/data")

    (task,) = inspect(compiled(optional)).tasks
    assert task.secrets == {"portcullis-ingest": frozenset(), "needed": frozenset({"key", "other"})}
    assert (task.config_maps, task.claims) == (("portcullis-trust",), ("rows",))


def test_the_help_teaches(capsys):
    assert _guarded(partial(submit, ["--help"], prog_name="portcullis submit")) == 0
    out = capsys.readouterr().out
    assert "portcullis submit reference.yaml --host http://localhost:8080" in out and "\\b" not in out
    assert all(it.help for it in submit.params if isinstance(it, click.Option))
    assert not [it for it in submit.params if it.name in ("token", "cookies")]


def test_temporary_files_are_private_and_gone(server, monkeypatch, tmp_path):
    monkeypatch.setattr(submission.tempfile, "tempdir", str(tmp_path))
    seen = []

    def look(request):
        seen.extend((stat.S_IMODE(it.stat().st_mode), it.name[:11]) for it in tmp_path.glob("portcullis-*"))
        return ...

    server.disturb = look
    checked = inspect(small_package())
    Server(server.url, Credentials(TOKEN), {}).submit(
        checked, arguments={"rows": 1}, namespace="", experiment="e", run_name="r", service_account=None
    )
    assert set(seen) == {(0o700, "portcullis-")} and not list(tmp_path.glob("portcullis-*"))
