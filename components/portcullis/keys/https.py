"""One question to a key service: over TLS, asked once, with a limit on what comes back and on how long it takes.

Nothing that a service says is quoted but its error code: whoever answers was sent a key, and could send it back.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from portcullis.digest import parse_json
from portcullis.errors import DataError, KeyServiceError, MissingDependencyError, UsageError

UNSAFE_ENV = "PORTCULLIS_UNSAFE_KEY_SERVICE"
MAX_ANSWER_BYTES = 64 << 10
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
_LOOPBACK = re.compile(r"http://(?:127\.0\.0\.1|\[::1\]|localhost):[0-9]{1,5}")
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,60}")


def unsafe_endpoint() -> str | None:
    """Return the plain-text address on this machine that stands in for every key service, for tests.

    Raises:
        UsageError: PORTCULLIS_UNSAFE_KEY_SERVICE names anything but `http://` and a port of this machine.
    """
    named = os.environ.get(UNSAFE_ENV)
    if not named:
        return None
    if not _LOOPBACK.fullmatch(named):
        raise UsageError(f"{UNSAFE_ENV} is http://127.0.0.1:PORT, for tests; key services are asked over https")
    logging.getLogger(__name__).warning("%s is set: keys are asked of %s, without TLS", UNSAFE_ENV, named)
    return named


def ask(
    key: str,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None = None,
    authorities: str | None = None,
) -> Mapping[str, Any]:
    """Send one request and return the JSON object that a status of 200 came with.

    Args:
        key: The URI of the key, for messages.
        method: The HTTP method.
        url: `https://…`; plain text only at `unsafe_endpoint`.
        headers: With what authorises the request.
        body: What is sent as JSON; nothing when None.
        authorities: File of the authorities whose certificates are believed; the system's when None.

    Raises:
        KeyServiceError: There was no answer, one that is no JSON object or too large, or another status; its `code` is
            what the service calls the error, else the status.
        UsageError: The URL is neither https nor at `unsafe_endpoint`.
        MissingDependencyError: urllib3 is not installed.
    """
    unsafe = unsafe_endpoint()
    if not url.startswith("https://") and not (unsafe and url.startswith(f"{unsafe}/")):
        raise UsageError(f"{key}: a key service is asked over https only")
    try:
        import urllib3
    except ModuleNotFoundError as error:
        extra = {"gcp-kms": "gcp", "azure-kv": "azure"}.get(key.partition(":")[0], "vault")
        raise MissingDependencyError(f"{key} needs urllib3: pip install 'kfp-portcullis[{extra}]'") from error
    try:
        with urllib3.PoolManager(ca_certs=authorities) as pool:
            response = pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers={**headers, "Accept": "application/json", "Content-Type": "application/json"},
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
                retries=False,
                redirect=False,
                preload_content=False,
            )
            with contextlib.closing(response):
                data = response.read(MAX_ANSWER_BYTES + 1, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise KeyServiceError(f"{key}: the service did not answer: {type(error).__name__}") from None
    try:
        answer = parse_json(data, limit=MAX_ANSWER_BYTES)
    except DataError:
        answer = None
    if response.status != 200:
        code = _code(answer) or str(response.status)
        raise KeyServiceError(f"{key}: the service refused with status {response.status} ({code})", code=code)
    if not isinstance(answer, dict):
        raise KeyServiceError(f"{key}: the service answered with no JSON object of at most {MAX_ANSWER_BYTES} bytes")
    return answer


def _code(answer: Any) -> str:
    """Return the error code of Google's (`error.status`) and Azure's (`error.code`) answers, empty for any other."""
    error = answer.get("error") if isinstance(answer, dict) else None
    codes = [error.get(name) for name in ("status", "code")] if isinstance(error, dict) else []
    return next((code for code in codes if isinstance(code, str) and _CODE.fullmatch(code)), "")
