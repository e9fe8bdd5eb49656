"""Submitting a compiled pipeline to Kubeflow Pipelines, with KFP's own client, and waiting for how its run ends.

What is uploaded is what was inspected, byte for byte, and the run names that very upload. Caching is left as compiled:
KFP's `enable_caching=True` would turn it on again for the tasks at the root.

The client takes nothing from this machine but what it is given: no saved cookie or namespace of `~/.config/kfp`, no
kubeconfig, no cloud identity. It writes nothing there either. It follows no redirect, so a token goes to no other host.

The state of a run is not the verdict. Older back ends called a run succeeded whose exit handler had run although a
task had failed, so that counts as failed here; and what may be served the signed admission says, however a run ended.
"""

import contextlib
import io
import ipaddress
import json
import re
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from portcullis.errors import (
    InconclusiveError,
    KeyMaterialError,
    MissingDependencyError,
    PipelineError,
    PortcullisError,
    UsageError,
)
from portcullis.keys import resolve
from portcullis_pipelines.inspection import Package

try:
    import kfp_server_api
    import urllib3
    from kfp import Client
except ImportError as error:
    raise MissingDependencyError("submitting needs KFP; run: pip install 'kfp-portcullis[kfp]'") from error

TOKEN_ENV = "KF_PIPELINES_TOKEN"  # noqa: S105 - a name
COOKIES_ENV = "KF_PIPELINES_COOKIES"
POLL_SECONDS = 5.0
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
ATTEMPTS = 5  # questions in a row without an answer before the run's state counts as unknown

SUCCEEDED, FAILED, CANCELED, SKIPPED = "SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"
_ENDED = (SUCCEEDED, FAILED, CANCELED, SKIPPED)
_GOING_ON = ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED", None)

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CREDENTIAL = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
_UNAUTHENTICATED = (401, 403)
# What kfp_server_api raises on an answer that is not of its API's shape, apart from its own errors.
_GARBAGE = (ValueError, TypeError, AttributeError, LookupError)

T = TypeVar("T")


@dataclass(frozen=True)
class Credentials:
    """What the server knows the caller by; never shown.

    Attributes:
        token: A bearer token, or empty.
        cookies: The value of a `Cookie` header, or empty.
    """

    token: str = field(default="", repr=False)
    cookies: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for value in (self.token, self.cookies):
            if value and not _CREDENTIAL.fullmatch(value):
                raise UsageError("a token or cookie holds characters that no HTTP header may; is it the right file?")

    @classmethod
    def find(cls, environment: Mapping[str, str], token_file: Path | None = None) -> "Credentials":
        """Read the token from a file or from KF_PIPELINES_TOKEN, and cookies from KF_PIPELINES_COOKIES.

        Raises:
            KeyMaterialError: The file is empty, unreadable, or open to other users.
            UsageError: A character that no header may hold.
        """
        token = _token(token_file) if token_file else environment.get(TOKEN_ENV, "").strip()
        return cls(token, environment.get(COOKIES_ENV, "").strip())


def _token(path: Path) -> str:
    try:
        token = resolve(f"file:{path.absolute()}").decode("utf-8", "replace").strip()
    except KeyMaterialError as error:  # it would advise on keys
        raise KeyMaterialError(
            f"--token-file {path} must be a file that holds a token and is not open to other users (chmod 600)"
        ) from error
    if not token:
        raise KeyMaterialError(f"--token-file {path} holds no token")
    return token


@dataclass(frozen=True)
class Run:
    """What the server says of a run.

    Attributes:
        state: One of KFP's states.
        failed: The task that failed first, and what was said of it; empty when none did, or the server does not tell.
        ended: How many of its tasks ended.
    """

    state: str
    failed: str = ""
    ended: int = 0


@dataclass(frozen=True)
class Submission:
    """A run that was created.

    Attributes:
        pipeline: Id of the pipeline.
        version: Id of the version that was uploaded.
        run: Id of the run.
        url: Where a person sees it.
        sha256: Of the package.
    """

    pipeline: str
    version: str
    run: str
    url: str
    sha256: str


class _Client(Client):  # type: ignore[misc]
    """KFP's client, told everything; it would otherwise look for credentials and a namespace on this machine."""

    def __init__(self, host: str, credentials: Credentials, ca_file: str | None) -> None:
        self._given = (host, credentials, ca_file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that it speaks to KFP 2 only
            super().__init__(host=host, cookies=credentials.cookies)
        self._context_setting["namespace"] = ""
        api = self._run_api.api_client
        ask = api.call_api

        def call_api(*arguments: Any, **settings: Any) -> Any:
            answer = ask(*arguments, **settings | {"_request_timeout": (CONNECT_SECONDS, ANSWER_SECONDS)})
            if not isinstance(json.loads(api.last_response.data), dict):
                raise TypeError("not a JSON object")
            return answer

        # By itself it waits for ever, and makes an empty answer of a page of HTML.
        api.call_api = call_api

    def _load_config(self, *_: Any, **__: Any) -> Any:
        host, credentials, ca_file = self._given
        config = kfp_server_api.Configuration(host=host)
        config.retries = urllib3.Retry(total=0, redirect=False)
        config.ssl_ca_cert = ca_file
        if credentials.token:
            config.api_key["authorization"] = credentials.token
            config.api_key_prefix["authorization"] = "Bearer"
        return config

    def _load_context_setting_or_default(self) -> None:
        self._context_setting = {"namespace": "-"}  # without one, the constructor would ask the server for it


class Server:
    """A Kubeflow Pipelines server.

    Raises, from every method that asks it something:
        UsageError: It is no such server, or does not know the caller.
        PipelineError: It refuses what it is asked.
        InconclusiveError: It does not answer, or not as KFP's API does.
    """

    def __init__(self, host: str, credentials: Credentials, environment: Mapping[str, str]) -> None:
        """Name the server; it is not asked anything yet.

        Args:
            host: Its URL.
            credentials: What it knows the caller by.
            environment: SSL_CERT_FILE names the certificates to believe instead of the public authorities'.

        Raises:
            UsageError: No such URL, or one that would send a credential in the clear.
        """
        self.host = _checked_host(host, credentials)
        self._credentials = credentials
        self._client = _Client(self.host, credentials, environment.get("SSL_CERT_FILE"))

    def version(self) -> str:
        """Return the version that the server gives itself, `unknown` where it does not."""
        answer = self._ask("for its version", lambda: self._v1_health())
        tag = answer.get("tag_name") if isinstance(answer, dict) else None
        return tag if isinstance(tag, str) and tag else "unknown"

    def _v1_health(self) -> Any:
        # Not in the second API; the first one's is still served for old clients, and holds the release.
        api = self._client.runs.run_service_get_run.__self__.api_client
        return api.call_api(
            "/apis/v1beta1/healthz",
            "GET",
            header_params={"Accept": "application/json"},
            response_type="object",
            auth_settings=["Bearer"],
            _return_http_data_only=True,
        )

    def multi_user(self) -> bool:
        """Tell whether the server keeps its users apart, each in a namespace."""
        return bool(self._ask("for its health", lambda: self._client.healthzs.healthz_service_get_healthz().multi_user))

    def require_access(self, namespace: str) -> None:
        """Check that the server knows the caller and lets it look at the runs of a namespace.

        Args:
            namespace: On a server with several users, whose; empty on one without.

        Raises:
            UsageError: Besides the above, a namespace is missing or too many.
        """
        multi_user = self.multi_user()
        if multi_user and not namespace:
            raise UsageError(f"{self.host} keeps its users apart; say --namespace")
        if namespace and not multi_user:
            raise UsageError(f"{self.host} runs everything in the namespace it was installed in; leave out --namespace")
        self._ask("for experiments", lambda: self._client.list_experiments(page_size=1, namespace=namespace or None))

    def submit(
        self,
        package: Package,
        *,
        arguments: Mapping[str, Any],
        namespace: str,
        experiment: str,
        run_name: str,
        service_account: str | None,
    ) -> Submission:
        """Upload a package as a new version of its pipeline, and run that version.

        Args:
            package: What was inspected.
            arguments: Of the pipeline.
            namespace: On a server with several users, whose; empty on one without.
            experiment: Name of the experiment; it is created when missing.
            run_name: Name of the run.
            service_account: What the run's pods run as; the server's default when None.
        """
        package.require_pinned()
        self.require_access(namespace)
        client, description = self._client, f"sha256:{package.digest}"
        # By a name of its own: whoever else can write there may have put another package under one that we could guess.
        version = f"sha256-{package.digest[:12]}-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory(prefix="portcullis-") as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_bytes(package.data)
            pipeline = self._pipeline_id(package.name, namespace)
            if pipeline is None:  # it begins with a version of its own, whose id we are not told
                made = self._ask(
                    "to create the pipeline",
                    lambda: client.upload_pipeline(str(path), package.name, description, namespace or None),
                )
                pipeline = self._identifier(made.pipeline_id)
            uploaded = self._ask(
                "to take the package",
                lambda: client.upload_pipeline_version(
                    str(path), version, pipeline_id=pipeline, description=description
                ),
            )
        version_id = self._identifier(uploaded.pipeline_version_id)
        within = self._ask(
            "for the experiment", lambda: client.create_experiment(experiment, namespace=namespace or None)
        )
        created = self._ask(
            "to create the run; whether there is one now, its page tells",
            lambda: client.run_pipeline(
                self._identifier(within.experiment_id),
                run_name,
                params=dict(arguments),
                pipeline_id=pipeline,
                version_id=version_id,
                service_account=service_account,
            ),
        )
        run = self._identifier(created.run_id)
        return Submission(pipeline, version_id, run, f"{self.host}/#/runs/details/{run}", package.digest)

    def _pipeline_id(self, name: str, namespace: str) -> str | None:
        predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        found = self._ask(
            "for the pipeline",
            lambda: self._client.list_pipelines(
                filter=json.dumps({"predicates": [predicate]}), namespace=namespace or None
            ),
        )
        same = [it for it in found.pipelines or [] if it.display_name == name]
        return self._identifier(same[0].pipeline_id) if same else None

    def run(self, run: str) -> Run:
        """Return how a run stands."""

        def look() -> Run:
            answer = self._client.get_run(run)
            if answer.run_id != run or answer.state not in (*_ENDED, *_GOING_ON):
                raise ValueError("another run, or a state that KFP does not have")
            tasks = (answer.run_details and answer.run_details.task_details) or []
            # A nested pipeline fails with what is in it, so the first to fail has nothing in it.
            failed = [it for it in tasks if it.state == FAILED]
            first = min(failed, key=lambda it: (bool(it.child_tasks), str(it.end_time)), default=None)
            ended = sum(it.state in _ENDED for it in tasks)
            return Run(answer.state or "PENDING", self._told(first) if first else "", ended)

        return self._ask("for the run", look)

    def _told(self, task: Any) -> str:
        said = [task.display_name or "without a name", task.error and task.error.message]
        return self._shown(": ".join(str(it) for it in said if it))

    def wait(
        self, submission: Submission, *, timeout: float, progress: Callable[[Run], None], every: float = POLL_SECONDS
    ) -> Run:
        """Ask until the run has ended, and return how.

        KFP's own `wait_for_run_completion` does not know that a canceled run has ended.

        Args:
            submission: The run.
            timeout: Seconds.
            progress: Called with each answer.
            every: Seconds between questions.

        Raises:
            InconclusiveError: It has not ended in time, or the server no longer tells.
        """
        end, missed = time.monotonic() + timeout, 0
        while True:
            try:
                run = self.run(submission.run)
                missed = 0
                progress(run)
                if run.state in _ENDED:
                    return run
            except InconclusiveError as error:
                missed += 1
                if missed >= ATTEMPTS:
                    raise InconclusiveError(f"{error}; run {submission.run} may go on: {submission.url}") from error
            except PortcullisError as error:  # a token that has expired, say: nothing was judged
                raise InconclusiveError(f"{error}; run {submission.run} goes on: {submission.url}") from error
            left = end - time.monotonic()
            if left <= 0:
                raise InconclusiveError(
                    f"run {submission.run} has not ended after {timeout:g} s and goes on: {submission.url}"
                )
            time.sleep(min(every, left))

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # KFP's client prints links
                return call()
        except kfp_server_api.ApiException as error:
            raise self._refusal(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, urllib3.exceptions.SSLError):
                raise UsageError(
                    f"the certificate of {self.host} is not to be trusted; SSL_CERT_FILE can name its authority's"
                ) from error
            raise InconclusiveError(f"no answer from {self.host}, asked {what}: {type(reason).__name__}") from error
        except _GARBAGE as error:
            raise InconclusiveError(f"{self.host}, asked {what}, does not answer as KFP's API does") from error

    def _refusal(self, what: str, error: Any) -> PortcullisError:
        status = error.status or 0
        try:
            body = json.loads(error.body)
            said = str(body.get("message") or body.get("error") or "")
        except _GARBAGE:
            said = ""
        told = f"{self.host}, asked {what}, answers {status}{said and ': '}{self._shown(said)}"
        if status in _UNAUTHENTICATED or 300 <= status < 400:
            return UsageError(f"{told}; give it a valid token by {TOKEN_ENV} or --token-file, or by {COOKIES_ENV}")
        if status == 404:
            return UsageError(f"{told}; is it the address of Kubeflow Pipelines?")
        if 400 <= status < 500 and status not in (408, 429):
            return PipelineError(told)
        return InconclusiveError(told)

    def _identifier(self, value: Any) -> str:
        if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
            raise InconclusiveError(f"{self.host} answers without the id of what it made")
        return value

    def _shown(self, text: str | None) -> str:
        """Return what the server said, of bounded length, and without the credentials, should it have echoed them."""
        text = text or ""
        cookies = [pair.partition("=")[2].strip() for pair in self._credentials.cookies.split(";")]
        # A value of a few characters is no secret, and would take letters out of every word.
        for secret in (self._credentials.token, self._credentials.cookies, *(it for it in cookies if len(it) >= 8)):
            text = text.replace(secret, "…") if secret else text
        return text[:300]


def require_succeeded(run: Run, url: str) -> None:
    """Check how a run ended.

    Raises:
        PipelineError: Not well, or a task of it did not.
    """
    if run.state != SUCCEEDED or run.failed:
        where = f" at task {run.failed}" if run.failed else ""
        raise PipelineError(f"the run ended {run.state}{where}; see {url}")


def _checked_host(host: str, credentials: Credentials) -> str:
    try:
        url = urlsplit(host)
        name, _ = url.hostname, url.port
    except ValueError as error:
        raise UsageError("--host is no URL; write https://…") from error
    if url.scheme not in ("http", "https") or not name or not host.isprintable():
        raise UsageError(f"--host {host[:200]!r} is no URL; write https://…")
    if url.username is not None or url.password is not None:
        raise UsageError(
            f"--host holds a user name or password, which other users of this machine see; use {TOKEN_ENV}"
        )
    if url.query or url.fragment:
        raise UsageError("--host is the server's address alone, without '?…' or '#…'")
    if url.scheme == "http" and (credentials.token or credentials.cookies) and not is_loopback(name):
        raise UsageError(
            f"http://{name} would carry your token in the clear, for anyone on the way to take; use https://, "
            "or kubectl port-forward and http://localhost"
        )
    return host.rstrip("/")


def is_loopback(name: str) -> bool:
    """Tell whether a host's name is this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
