"""Asking a Kubernetes API server for single objects, with a limit on what comes back and on how long it takes."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import yaml

from portcullis.digest import parse_json
from portcullis.errors import DataError, DeploymentError, MissingDependencyError, UsageError

MANAGER = "portcullis"
MAX_ANSWER_BYTES = 4 << 20
MAX_LINE = 1000  # characters of what an API server says that are quoted
REQUEST_SECONDS = 30.0

# What reading a malformed kubeconfig or answer ends in.
UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)


class UnavailableError(DeploymentError):
    """The API server did not answer, or said that it cannot for now."""


def ask(
    client: Any, method: str, path: str, *, body: Mapping[str, Any] | None = None, content_type: str = ""
) -> tuple[int, Mapping[str, Any]]:
    """Send one request and return the answer's status and its JSON object.

    Args:
        client: A configured `kubernetes.client.ApiClient`.
        method: The HTTP method.
        path: From the slash after the host.
        body: What is sent as JSON; nothing when None.
        content_type: Of the body.

    Raises:
        UnavailableError: There was no answer, or a status of 429 or of 500 and above.
        DeploymentError: The answer is no JSON object.
    """
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    headers = {"Accept": "application/json", "User-Agent": MANAGER}
    if body is not None:
        headers["Content-Type"] = content_type
    try:
        client.update_params_for_auth(headers, [], ["BearerToken"])  # reads a token that was rotated anew
        # Through the client's own connections (its certificates and proxy), but with a limit on what comes back.
        response = client.rest_client.pool_manager.request(
            method,
            client.configuration.host + path,
            body=None if body is None else json.dumps(body).encode(),
            headers=headers,
            timeout=REQUEST_SECONDS,
            retries=False,
            redirect=False,
            preload_content=False,
        )
        with contextlib.closing(response):
            data = response.read(MAX_ANSWER_BYTES + 1, decode_content=True)
    except (HTTPError, OSError, ConfigException) as error:
        raise UnavailableError(f"the API server did not answer: {one_line(error)}") from error
    try:
        answer = parse_json(data, limit=MAX_ANSWER_BYTES)
    except DataError:
        answer = None
    if response.status == 429 or response.status >= 500:
        message = answer.get("message") if isinstance(answer, dict) else None
        raise UnavailableError(f"the API server answered {response.status}: {one_line(message or 'no reason')}")
    if not isinstance(answer, dict):
        raise DeploymentError(f"the API server answered {response.status} to {method} {path} with no JSON object")
    return response.status, answer


def api_client() -> Any:
    """Return a client of the cluster that this process runs in, else of the one that the kubeconfig (KUBECONFIG) names.

    Raises:
        MissingDependencyError: The Kubernetes client is not installed.
        UsageError: There is no cluster, or its identity would not be checked.
    """
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        raise MissingDependencyError("a cluster needs a client: pip install 'kfp-portcullis[kfp]'") from error
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError, yaml.YAMLError, *UNREADABLE) as error:
        raise UsageError(f"there is no cluster: {one_line(error)}; set KUBECONFIG") from error
    if not configuration.host.startswith("https://") or not configuration.verify_ssl:
        raise UsageError(f"the identity of {configuration.host} would not be checked; use https with its certificate")
    return client.ApiClient(configuration)


def one_line(text: Any) -> str:
    """Return what a server or a library said in one line of bounded length, without what a terminal would obey."""
    line = "".join(it if it.isprintable() else "?" for it in " ".join(str(text).split()))
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"
