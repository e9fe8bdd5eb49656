"""Ask a model behind an API: Open Inference Protocol v2 over HTTP, as Portcullis' own server speaks it.

Source: https://github.com/kserve/open-inference-protocol, inference_rest.md.
"""

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from portcullis.digest import parse_json
from portcullis.errors import DataError, InconclusiveError, UsageError
from portcullis.models.store import ModelSpec
from portcullis.watermark.triggers import Predict

MAX_ANSWER_BYTES = 16 << 20
ROWS = 50
SECONDS = 30
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_INFER = "/infer"


def api_model(url: str, spec: ModelSpec, *, token: str = "") -> Predict:
    """Return what puts raw features to a served model and returns the classes it answers.

    The answer's output `label` names the class; a server without one must give an output of one number for each class,
    of which the greatest counts. A redirection is not followed, so a token goes to nobody else.

    Args:
        url: The model's `…/v2/models/NAME/infer`, http or https.
        spec: What the model is said to be: shape of its inputs, its classes.
        token: A bearer token (RFC 6750); empty for none. It is not sent over plain http, but to this machine.

    Raises:
        UsageError: The URL is not one of that form, or the token cannot be sent.
    """
    put = _asking(url, token)

    def predict(features: NDArray[np.float32]) -> NDArray[np.integer[Any]]:
        answers = [label for document, rows in put(features) for label in _classes(document, spec, rows)]
        return np.array(answers, np.int64)

    return predict


def api_probabilities(
    url: str, spec: ModelSpec, *, token: str = ""
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Return what puts raw features to a served model and returns the numbers (n, k) that it answers for the classes.

    Args:
        url: As of `api_model`.
        spec: As of `api_model`.
        token: As of `api_model`.

    Raises:
        UsageError: As of `api_model`.
    """
    put = _asking(url, token)

    def predict(features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.concatenate([_numbers(document, spec, rows) for document, rows in put(features)])

    return predict


def _asking(url: str, token: str) -> Callable[[NDArray[np.float32]], Iterator[tuple[Any, int]]]:
    """Return what puts features to an API in parts, and yields each answer and the number of its rows."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError("the URL is malformed") from error
    if parts.scheme not in ("http", "https") or not host or not parts.path.endswith(_INFER) or parts.username:
        raise UsageError("the URL must be http(s)://HOST/v2/models/NAME/infer, without a user's name")
    if parts.query or parts.fragment or not parts.path.isascii() or not parts.path.isprintable() or " " in parts.path:
        raise UsageError("the URL must end in /infer, and hold neither a query nor spaces")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token holds characters that a bearer token may not have")
    if token and parts.scheme == "http" and host not in _LOOPBACK:
        raise UsageError("a token is sent over https only, or to this machine")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def exchange(path: str, body: bytes | None) -> Any:
        secure = parts.scheme == "https"
        connection = (
            http.client.HTTPSConnection(host, port, timeout=SECONDS, context=ssl.create_default_context())
            if secure
            else http.client.HTTPConnection(host, port, timeout=SECONDS)
        )
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            status, answer = response.status, response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise InconclusiveError(f"the API cannot be asked: {type(error).__name__}") from error
        finally:
            connection.close()
        if status != 200:
            raise InconclusiveError(f"the API answered {status}")
        try:
            return parse_json(answer, limit=MAX_ANSWER_BYTES)
        except DataError as error:
            raise InconclusiveError("the API did not answer in JSON") from error

    def put(features: NDArray[np.float32]) -> Iterator[tuple[Any, int]]:
        match exchange(parts.path.removesuffix(_INFER), None):
            case {"inputs": [{"name": str(name)}]}:
                pass
            case _:
                raise InconclusiveError("the API does not describe a model of one input")
        for rows in np.split(features, range(ROWS, len(features), ROWS)):
            tensor = {"name": name, "datatype": "FP32", "shape": list(rows.shape), "data": rows.reshape(-1).tolist()}
            yield exchange(parts.path, json.dumps({"inputs": [tensor]}).encode()), len(rows)

    return put


def _classes(document: Any, spec: ModelSpec, rows: int) -> list[int]:
    """Read the classes of an answer to so many rows."""
    for output in _outputs(document):
        labels = output.get("data")
        if output.get("name") == "label" and isinstance(labels, list) and len(labels) == rows:
            if not all(isinstance(label, str) and label in spec.labels for label in labels):
                raise InconclusiveError("the API names classes that the unmarked model does not have")
            return [spec.labels.index(label) for label in labels]
    return [int(row.argmax()) for row in _numbers(document, spec, rows)]


def _numbers(document: Any, spec: ModelSpec, rows: int) -> NDArray[np.float64]:
    """Read the numbers (rows, k) of an answer to so many rows."""
    for output in _outputs(document):
        if output.get("shape") == [rows, len(spec.labels)] and isinstance(output.get("data"), list):
            try:
                numbers = np.array(output["data"], np.float64).reshape(rows, len(spec.labels))
            except (ValueError, TypeError) as error:
                raise InconclusiveError("the API's answer holds no numbers") from error
            if np.isfinite(numbers).all():
                return numbers
    raise InconclusiveError("the API's answer does not hold one finite number for each class")


def _outputs(document: Any) -> list[Any]:
    match document:
        case {"outputs": [*outputs]} if all(isinstance(it, dict) for it in outputs):
            return outputs
        case _:
            raise InconclusiveError("the API's answer holds no outputs")
