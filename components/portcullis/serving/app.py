"""The HTTP application: who may ask, how much, and what an answer may reveal.

Everything but `/v2/health/live` and `/v2/health/ready` needs the bearer token (RFC 6750), even learning that a path
does not exist. The server knows the token's SHA-256 only. Failures are answered with one line of JSON made here, never
with an unexpected exception's text; logs hold no request data, hence no foreign exception's text either.
"""

import asyncio
import hashlib
import hmac
import logging
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

import numpy as np

from portcullis.digest import is_digest
from portcullis.errors import ConfigError, DataError, MissingDependencyError, ModelError
from portcullis.serving.protocol import (
    ServedModel,
    error_body,
    infer_response,
    model_metadata,
    parse_infer_request,
    server_metadata,
)

try:
    import orjson
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    raise MissingDependencyError(f"serving needs {error.name}: pip install 'kfp-portcullis[serve]'") from error

MAX_BYTES = 1 << 20
MAX_ROWS = 256

_PUBLIC_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
_log = logging.getLogger(__name__)


def build_app(
    model: ServedModel,
    *,
    token_digest: str,
    max_bytes: int = MAX_BYTES,
    max_rows: int = MAX_ROWS,
    max_pending: int = 64,
    threads: int = 2,
    body_seconds: float = 10.0,
    refused: Callable[[int], None] = lambda _: None,
) -> Starlette:
    """Build the server of one model, after one inference has shown that the model works.

    Once the model returns something that is not finite logits, the server stays unready and infers no more: what it
    would answer is no longer what was admitted.

    Args:
        model: What is served.
        token_digest: SHA-256 of the bearer token's bytes, as 64 lower-case hexadecimal characters.
        max_bytes: Longest request body; beyond it 413.
        max_rows: Largest batch; beyond it 400.
        max_pending: Infer requests being read, waiting or running at a time; beyond it 503. With `max_bytes` it bounds
            the memory that requests take.
        threads: Inferences that run at a time.
        body_seconds: Time a client has to send a body; beyond it 408.
        refused: Told the status, from 400, of every answer that refuses a request.

    Raises:
        ConfigError: `token_digest` is not a SHA-256, or a limit is not positive.
        ModelError: The model does not return finite logits for a sample in the middle of its input range.
    """
    if not is_digest(token_digest):
        raise ConfigError("token_digest must be the token's SHA-256 in lower-case hexadecimal")
    if min(max_bytes, max_rows, max_pending, threads, body_seconds) <= 0:
        raise ConfigError("the server's limits must be positive")
    model.logits(np.full((1, model.features), model.low / 2 + model.high / 2, dtype=np.float32))
    service = _Service(
        model,
        max_bytes=max_bytes,
        max_rows=max_rows,
        max_pending=max_pending,
        threads=threads,
        body_seconds=body_seconds,
    )
    of_model = [
        (prefix + suffix, endpoint, methods)
        for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        for suffix, endpoint, methods in (
            ("", service.model_metadata, ["GET"]),
            ("/ready", service.model_ready, ["GET"]),
            ("/infer", service.infer, ["POST"]),
        )
    ]
    app = Starlette(
        routes=[
            Route("/v2", service.server_metadata),
            Route("/v2/health/live", service.live),
            Route("/v2/health/ready", service.ready),
            *(Route(path, endpoint, methods=methods) for path, endpoint, methods in of_model),
        ],
        middleware=[Middleware(_Guard, token_digest=token_digest, refused=refused)],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False  # a redirect would be built from the client's Host header
    return app


class _Service:
    """The endpoints over one model, and the two things that change: whether it is sound, and how much is pending."""

    def __init__(
        self, model: ServedModel, *, max_bytes: int, max_rows: int, max_pending: int, threads: int, body_seconds: float
    ) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._max_pending = max_pending
        self._body_seconds = body_seconds
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._sound = True
        self._pending = 0

    async def live(self, _: Request) -> Response:
        return _json(HTTPStatus.OK, {"live": True})

    async def ready(self, _: Request) -> Response:
        return _json(self._readiness, {"ready": self._sound})

    async def server_metadata(self, _: Request) -> Response:
        return _json(HTTPStatus.OK, server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        self._require_model(request)
        return _json(HTTPStatus.OK, model_metadata(self._model))

    async def model_ready(self, request: Request) -> Response:
        self._require_model(request)
        return _json(self._readiness, {"name": self._model.name, "ready": self._sound})

    async def infer(self, request: Request) -> Response:
        self._require_model(request)
        _require_json(request)
        if not self._sound:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "the model is not ready")
        if self._pending >= self._max_pending:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once", {"Retry-After": "1"})
        self._pending += 1
        try:
            body = await self._read(request)
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, body)
        except ModelError:
            self._sound = False
            raise
        finally:
            self._pending -= 1

    @property
    def _readiness(self) -> HTTPStatus:
        return HTTPStatus.OK if self._sound else HTTPStatus.SERVICE_UNAVAILABLE

    def _require_model(self, request: Request) -> None:
        if request.path_params["name"] != self._model.name:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such model")
        if request.path_params.get("version", self._model.version) != self._model.version:
            raise HTTPException(HTTPStatus.NOT_FOUND, "no such version of the model")

    async def _read(self, request: Request) -> bytes:
        """Read the body, never holding more than `max_bytes` and one chunk of it."""
        too_large = HTTPException(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must be at most {self._max_bytes} bytes"
        )
        # The HTTP parser has refused a Content-Length that is not a number.
        if int(request.headers.get("content-length", "0")) > self._max_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds), aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise too_large
        except TimeoutError as error:
            raise HTTPException(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body must arrive within {self._body_seconds} seconds",
                {"Connection": "close"},
            ) from error
        except ClientDisconnect as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "the client left") from error
        return bytes(body)

    def _answer(self, body: bytes) -> Response:
        """Everything that takes time, for a worker thread."""
        try:
            request = parse_infer_request(body, self._model, max_bytes=self._max_bytes, max_rows=self._max_rows)
        except DataError as error:
            return _json(HTTPStatus.BAD_REQUEST, error_body(str(error)))
        return _json(HTTPStatus.OK, infer_response(self._model, request, self._model.logits(request.rows)))


class _Guard:
    """The outermost layer: asks for the token, and turns what nobody expected into a bare 500."""

    def __init__(self, app: ASGIApp, *, token_digest: str, refused: Callable[[int], None]) -> None:
        self._app = app
        self._token_digest = token_digest
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None

        async def counting(message: Message) -> None:
            # Readiness says 503 to whoever asks; that refuses no request.
            if (
                message["type"] == "http.response.start"
                and message["status"] >= HTTPStatus.BAD_REQUEST
                and scope["path"] not in _PUBLIC_PATHS
            ):
                self._refused(int(message["status"]))
            await send(message)

        try:
            await (refusal or self._app)(scope, receive, counting)
        except Exception as error:  # noqa: BLE001 # the boundary: whatever it is, the client gets a bare 500
            _log_failure(error)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            await _json(status, error_body("internal error"))(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in _PUBLIC_PATHS:
            return None
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        challenge = 'Bearer realm="portcullis"'
        if credentials:
            scheme, _, token = credentials[0].partition(b" ")
            digest = hashlib.sha256(token).hexdigest()
            # Compared as digests, so that neither the token's length nor its content shows in the time taken.
            matches = hmac.compare_digest(digest, self._token_digest)
            if matches and scheme.lower() == b"bearer" and len(credentials) == 1:
                return None
            challenge += ', error="invalid_token"'
        return _json(
            HTTPStatus.UNAUTHORIZED, error_body("a valid bearer token is needed"), {"WWW-Authenticate": challenge}
        )


def _require_json(request: Request) -> None:
    media_type, _, parameter = request.headers.get("content-type", "").lower().partition(";")
    charset = parameter.strip()
    if media_type.strip() != "application/json" or charset not in {"", "charset=utf-8", 'charset="utf-8"'}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must not be compressed")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 # the type it is registered for
    return _json(error.status_code, error_body(error.detail), error.headers)


def _json(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        status_code=status,
        media_type="application/json",
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", **(headers or {})},
    )


def _log_failure(error: Exception) -> None:
    """Log where an exception came from; its text only when it is ours, for a foreign one may quote the request."""
    reason = f"{type(error).__name__}: {error}" if isinstance(error, ModelError) else type(error).__name__
    _log.error("request failed with %s\n%s", reason, "".join(traceback.format_tb(error.__traceback__)))
