"""The Open Inference Protocol v2 without the network: what a request may say, and what an answer says.

Source: Open Inference Protocol (https://github.com/kserve/open-inference-protocol), HTTP/REST with JSON bodies and no
extensions. A model has one input tensor and two output tensors, `label` (BYTES) and `probabilities` (FP32).

Requests are untrusted and read strictly: a field that the protocol does not define, or that this server would have to
ignore (`parameters`), is refused rather than skipped, and so is a repeated key, NaN or Infinity.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis import __version__
from portcullis.digest import parse_json
from portcullis.errors import DataError, ModelError

DATATYPE = "FP32"
OUTPUTS = ("label", "probabilities")
MAX_ID_LENGTH = 128

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ServedModel:
    """A classifier as the server sees it.

    Attributes:
        name: The name in its URL; letters, digits, `.`, `_` and `-`.
        version: The version in its URL; as `name`.
        input_name: Name of the one input tensor.
        shape: Shape of one sample, without the batch axis; every size at least 1.
        low: Least value that an input element may have; in the range of float32.
        high: Greatest value that an input element may have; above `low`, in the range of float32.
        labels: The k >= 2 class names, distinct, in the order of the logits' columns.
        predict: Maps raw float32 rows (n, D), D the product of `shape`, to logits (n, k) of a floating dtype. It is
            called from several threads at once.

    Raises:
        ModelError: A field is not as described here.
    """

    name: str
    version: str
    input_name: str
    shape: tuple[int, ...]
    low: float
    high: float
    labels: tuple[str, ...]
    predict: Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]

    def __post_init__(self) -> None:
        for field in ("name", "version"):
            if not _SEGMENT.fullmatch(getattr(self, field)):
                raise ModelError(f"a served model's {field} must be 1 to 128 letters, digits, '.', '_' or '-'")
        if not self.input_name or not self.input_name.isprintable():
            raise ModelError("a served model's input tensor needs a printable name")
        if not self.shape or not all(type(size) is int and size >= 1 for size in self.shape):
            raise ModelError("a served model's input shape must be one or more positive integers")
        if not (-_FLOAT32_MAX <= self.low < self.high <= _FLOAT32_MAX):
            raise ModelError("a served model's input bounds must satisfy low < high, both in the range of float32")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ModelError("a served model needs two or more distinct labels")
        if not all(label and label.isprintable() for label in self.labels):
            raise ModelError("a served model's labels must be printable and not empty")

    @property
    def features(self) -> int:
        """D, the number of elements of one sample."""
        return math.prod(self.shape)

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Run the model on rows (n, D) and return its logits (n, k), all finite.

        Raises:
            ModelError: The model returned anything else.
        """
        logits = self.predict(rows)
        expected = (len(rows), len(self.labels))
        if not isinstance(logits, np.ndarray) or logits.dtype.kind != "f" or logits.shape != expected:
            raise ModelError(f"the model did not return floating-point logits of shape {expected}")
        if not np.isfinite(logits).all():
            raise ModelError("the model returned non-finite logits")
        return logits


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a valid request asks: rows (n, D) float32, the names of the outputs it wants, and the id to echo."""

    rows: NDArray[np.float32]
    outputs: tuple[str, ...] = OUTPUTS
    id: str | None = None


def parse_infer_request(body: bytes, model: ServedModel, *, max_bytes: int, max_rows: int) -> InferRequest:
    """Read the body of an infer request.

    The datatype must be FP32, the one that the model declares: JSON numbers have no width, so FP64 would promise a
    precision that the model does not use. The shape is [n, D] or [n, *model.shape], the data a flat list in row-major
    order or nested as the shape says. Values are rounded to float32 first and judged then: that is what the model sees.

    Args:
        body: Untrusted bytes.
        model: The model addressed.
        max_bytes: Longest body accepted.
        max_rows: Largest n accepted.

    Raises:
        DataError: The body is anything but such a request. No other exception leaves this function.
    """
    try:
        document = parse_json(body, limit=max_bytes)
    except DataError as error:
        raise DataError(
            f"the body must be UTF-8 JSON of at most {max_bytes} bytes, without NaN, Infinity or repeated keys"
        ) from error
    request = _fields(document, "the request", required={"inputs"}, optional={"id", "outputs"})
    inputs = request["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise DataError("inputs must be a list of exactly one tensor")
    rows = _parse_tensor(inputs[0], model, max_rows)
    outputs = _parse_outputs(request["outputs"]) if "outputs" in request else OUTPUTS
    identifier = request.get("id")
    if "id" in request and not (
        isinstance(identifier, str) and len(identifier) <= MAX_ID_LENGTH and identifier.isprintable()
    ):
        raise DataError(f"id must be a string of at most {MAX_ID_LENGTH} printable characters")
    return InferRequest(rows, outputs, identifier)


def infer_response(model: ServedModel, request: InferRequest, logits: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """Build the answer to a request from the model's finite logits (n, k).

    `label` holds the n class names of the greatest logits; `probabilities` is the softmax, float32, flat in row-major
    order. The values are NumPy arrays and strings for the JSON encoder to write.
    """
    values = {
        "label": ("BYTES", [len(logits)], [model.labels[index] for index in logits.argmax(axis=1)]),
        "probabilities": (DATATYPE, list(logits.shape), _softmax(logits).ravel()),
    }
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, shape, data) in values.items()
        if name in request.outputs
    ]
    identity = {} if request.id is None else {"id": request.id}
    return {"model_name": model.name, "model_version": model.version, **identity, "outputs": outputs}


def server_metadata() -> dict[str, Any]:
    """Build the answer to `GET /v2`."""
    return {"name": "portcullis", "version": __version__, "extensions": []}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Build the answer to `GET /v2/models/{name}`; -1 is the batch axis."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "portcullis",
        "inputs": [{"name": model.input_name, "datatype": DATATYPE, "shape": [-1, *model.shape]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": DATATYPE, "shape": [-1, len(model.labels)]},
        ],
    }


def error_body(message: str) -> dict[str, str]:
    """Build the body of every answer that is not a success."""
    return {"error": message}


def _fields(value: Any, what: str, *, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} must be a JSON object")
    if not required <= value.keys() <= required | optional:
        allowed = f" and may have {', '.join(sorted(optional))}" if optional else ""
        raise DataError(f"{what} must have {', '.join(sorted(required))}{allowed}, and nothing else")
    return value


def _parse_tensor(value: Any, model: ServedModel, max_rows: int) -> NDArray[np.float32]:
    tensor = _fields(value, "the input tensor", required={"name", "datatype", "shape", "data"}, optional=set())
    if tensor["name"] != model.input_name:
        raise DataError(f"the input tensor's name must be {model.input_name!r}")
    if tensor["datatype"] != DATATYPE:
        raise DataError(f"the input tensor's datatype must be {DATATYPE}")
    shape = tensor["shape"]
    if (
        not isinstance(shape, list)
        or not all(type(size) is int for size in shape)
        or tuple(shape[1:]) not in {model.shape, (model.features,)}
        or not 1 <= shape[0] <= max_rows
    ):
        sample = ", ".join(map(str, model.shape))
        raise DataError(f"the shape must be [n, {sample}] or [n, {model.features}] with n from 1 to {max_rows}")
    numbers = _row_major(tensor["data"], shape)
    if not set(map(type, numbers)) <= {int, float}:
        raise DataError("the data must be numbers")
    try:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused below
            rows = np.array(numbers, dtype=np.float64).astype(np.float32).reshape(shape[0], model.features)
    except OverflowError as error:
        raise DataError("the data holds an integer beyond float64") from error
    # Both bounds are finite, so NaN and the infinities fail the comparison too.
    if not ((rows >= np.float32(model.low)) & (rows <= np.float32(model.high))).all():
        raise DataError(f"the data must be finite and within [{model.low}, {model.high}]")
    return rows


def _row_major(data: Any, shape: list[int]) -> list[Any]:
    """Return the elements of `data`, given flat or nested exactly as `shape`; their types are not judged here."""
    if not isinstance(data, list) or not data:
        raise DataError("the data must be a list of numbers, flat or nested as the shape says")
    nested = isinstance(data[0], list)
    level: list[Any] = [data]
    for size in shape if nested else [math.prod(shape)]:
        if not all(isinstance(part, list) and len(part) == size for part in level):
            raise DataError("the data's length or nesting does not match the shape")
        level = list(chain.from_iterable(level))
    return level


def _parse_outputs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError("outputs must be a non-empty list")
    wanted = [_fields(output, "a requested output", required={"name"}, optional=set())["name"] for output in value]
    if any(name not in OUTPUTS for name in wanted) or len(set(wanted)) != len(wanted):
        raise DataError(f"outputs may name each of {', '.join(OUTPUTS)} once")
    return tuple(wanted)


def _softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Softmax over the last axis, in float64 and shifted by the maximum so that no exponential overflows."""
    with np.errstate(over="ignore"):  # float64 logits 1e308 apart: the difference is -inf, and its exponential 0
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float32] = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
