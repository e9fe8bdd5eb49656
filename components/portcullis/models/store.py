"""A model at rest: a directory of exactly `model.json` and `weights.safetensors`, neither of which can hold code.

`model.json` is the canonical JSON of a `ModelSpec`; `weights.safetensors` holds the state of the architecture that it
names. Preprocessing is part of the model: raw features are scaled to [0, 1] and shaped here and nowhere else, so that
training, gates and server see the same inputs.
"""

import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from portcullis.dataset import DatasetSpec
from portcullis.digest import canonical_json, content_digest, parse_canonical_json
from portcullis.errors import DataError, ModelError, UsageError
from portcullis.files import atomic_path, read_bytes, write_bytes
from portcullis.models.architectures import find_architecture

if TYPE_CHECKING:
    import torch

FORMAT = "portcullis-model/v1"
SPEC_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
MAX_SPEC_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
MAX_ELEMENTS = 1 << 24
MAX_LABELS = 1_000

# The types that weights may have, as PyTorch and as safetensors call them.
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# Above it a whole number has no spelling in canonical JSON (RFC 8785).
_LARGEST_NUMBER = 2**53 - 1

Option = bool | int | float | str


@dataclass(frozen=True)
class ModelSpec:
    """What a model is, apart from its weights. `ModelSpec.from_json(spec.to_json()) == spec`.

    Attributes:
        architecture: Name of an installed architecture.
        options: Keyword arguments of the architecture: booleans, numbers and text. JSON has one kind of number, so a
            whole one is an int here, however it was written.
        shape: Shape of one input, without the batch axis; D is the product of its sizes.
        low: Least raw feature value; becomes 0.
        high: Greatest raw feature value; becomes 1.
        labels: The k >= 2 class names, distinct, in the order of the logits.

    Raises:
        ModelError: A field is not as described here.
    """

    architecture: str
    options: Mapping[str, Option]
    shape: tuple[int, ...]
    low: float
    high: float
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, str) or not _NAME.fullmatch(self.architecture):
            raise ModelError("a model's architecture must be 1 to 63 lower-case letters, digits or '-'")
        if not isinstance(self.options, Mapping) or not all(map(_is_option, self.options.items())):
            raise ModelError("a model's options must be named like Python arguments, and be numbers, booleans or text")
        object.__setattr__(self, "options", {name: _one_kind(value) for name, value in self.options.items()})
        sized = self.shape and all(type(size) is int and size >= 1 for size in self.shape)
        if not sized or math.prod(self.shape) > MAX_ELEMENTS:
            raise ModelError(f"a model's input shape must be positive sizes with at most {MAX_ELEMENTS} elements")
        if not (_is_number(self.low) and _is_number(self.high) and np.float32(self.low) < np.float32(self.high)):
            raise ModelError("a model's input bounds must be finite and distinct in float32, low below high")
        printable = all(isinstance(label, str) and label and label.isprintable() for label in self.labels)
        if not (printable and 2 <= len(self.labels) <= MAX_LABELS and len(set(self.labels)) == len(self.labels)):
            raise ModelError(f"a model's labels must be 2 to {MAX_LABELS} different printable names")

    def to_json(self) -> bytes:
        """Return the content of `model.json`."""
        return canonical_json(
            {
                "format": FORMAT,
                "architecture": self.architecture,
                "options": dict(self.options),
                "input": {"shape": list(self.shape), "low": self.low, "high": self.high},
                "labels": list(self.labels),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> "ModelSpec":
        """Parse the content of `model.json`.

        Raises:
            ModelError: The bytes are anything but the canonical JSON of a valid description.
        """
        try:
            document = parse_canonical_json(data, limit=MAX_SPEC_BYTES)
        except DataError as error:
            raise ModelError(f"{SPEC_FILE}: {error}") from error
        fields = _fields(document, {"format", "architecture", "options", "input", "labels"}, SPEC_FILE)
        if fields["format"] != FORMAT:
            raise ModelError(f"{SPEC_FILE} is not of the format {FORMAT}")
        described = _fields(fields["input"], {"shape", "low", "high"}, "input")
        if not isinstance(described["shape"], list) or not isinstance(fields["labels"], list):
            raise ModelError(f"{SPEC_FILE}: shape and labels must be lists")
        return cls(
            architecture=fields["architecture"],
            options=fields["options"],
            shape=tuple(described["shape"]),
            low=described["low"],
            high=described["high"],
            labels=tuple(fields["labels"]),
        )

    @classmethod
    def of_rows(cls, rows: DatasetSpec, architecture: str, options: Mapping[str, Option]) -> "ModelSpec":
        """Return what a model that learns from rows of this description is.

        Raises:
            ModelError: The architecture's name, its options, or the rows' description cannot be a model's.
        """
        features = rows.features
        return cls(architecture, options, features.shape, features.low, features.high, rows.label.classes)

    def require_fit(self, rows: DatasetSpec) -> None:
        """Refuse unless the model takes rows of this description.

        Raises:
            ModelError: Shape, bounds or labels differ.
        """
        task = (rows.features.shape, rows.features.low, rows.features.high, rows.label.classes)
        if (self.shape, self.low, self.high, self.labels) != task:
            raise ModelError("the model does not take these rows: shape, bounds or labels differ")

    def scale(self, values: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.float32]:
        """Turn raw features (N, D) in [low, high] into network inputs (N, *shape), float32 in [0, 1].

        A model sees float32, so values and bounds are rounded to it before they are compared.

        Raises:
            DataError: Not numbers, another shape, no row, NaN, or a value out of bounds.
        """
        wanted = math.prod(self.shape)
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            raise DataError("features must be an array of numbers")
        if values.ndim != 2 or values.shape[1] != wanted or not len(values):
            raise DataError(f"features have shape {values.shape}; this model takes one or more rows of {wanted}")
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float32).astype(np.float64)
        low, high = float(np.float32(self.low)), float(np.float32(self.high))
        good = (rounded >= low) & (rounded <= high)  # False for NaN
        if not good.all():
            row, column = map(int, np.argwhere(~good)[0])
            raise DataError(f"row {row}, feature {column} is {values[row, column]:g}, not in [{low:g}, {high:g}]")
        return ((rounded - low) / (high - low)).astype(np.float32).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory, on the CPU.

    Attributes:
        spec: What it is.
        module: The network, in `eval()` mode and without parameters that require gradients. It maps (N, *spec.shape)
            float32 in [0, 1] to logits (N, k) float32.
    """

    spec: ModelSpec
    module: "torch.nn.Module"

    def preprocess(self, values: NDArray[np.floating[Any] | np.integer[Any]]) -> "torch.Tensor":
        """Turn raw features (N, D) into the network's inputs; see `ModelSpec.scale`.

        Raises:
            DataError: As `ModelSpec.scale`.
        """
        from portcullis.models.pytorch import torch

        return torch.from_numpy(self.spec.scale(values))

    def predict_logits(self, values: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.float32]:
        """Return the logits (N, k), float32 and finite, of raw features (N, D). Safe to call from several threads.

        Raises:
            DataError: As `ModelSpec.scale`.
            ModelError: The network returned anything else.
        """
        from portcullis.models.pytorch import torch

        with torch.inference_mode():
            logits = self.module(self.preprocess(values))
        expected = (len(values), len(self.spec.labels))
        if not isinstance(logits, torch.Tensor) or logits.dtype != torch.float32 or tuple(logits.shape) != expected:
            raise ModelError(f"the network did not return float32 logits of shape {expected}")
        result: NDArray[np.float32] = logits.numpy()
        if not np.isfinite(result).all():
            raise ModelError("the network returned logits that are not finite")
        return result

    def predict_probabilities(self, values: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.float32]:
        """Return the probabilities (N, k), the softmax of the logits, of raw features (N, D).

        Raises:
            DataError: As `ModelSpec.scale`.
            ModelError: As `predict_logits`.
        """
        logits = self.predict_logits(values)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
        return result

    def predict(self, values: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.int64]:
        """Return the class indices (N,), int64 in [0, k), of raw features (N, D).

        Raises:
            DataError: As `ModelSpec.scale`.
            ModelError: As `predict_logits`.
        """
        classes: NDArray[np.int64] = self.predict_logits(values).argmax(axis=1)
        return classes


def model_files(module: "torch.nn.Module", spec: ModelSpec) -> dict[str, bytes]:
    """Serialise a model into the bytes of its two files, which `load_model_files` is sure to accept.

    Raises:
        ModelError: The module is not what the description says, or its weights are not all finite.
    """
    from safetensors.torch import save

    # Tensors that share memory would be refused, and a view would be written with what surrounds it.
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    files = {SPEC_FILE: spec.to_json(), WEIGHTS_FILE: save(weights)}
    load_model_files(files)
    return files


def save_model(directory: Path, module: "torch.nn.Module", spec: ModelSpec) -> str:
    """Serialise a model and write its directory; returns as `save_model_files`.

    Raises:
        ModelError: As `model_files`.
    """
    return save_model_files(directory, model_files(module, spec))


def save_model_files(directory: Path, files: Mapping[str, bytes]) -> str:
    """Write a model's directory atomically, replacing one that is there.

    Args:
        directory: Where.
        files: Its two files by name, which `load_model_files` accepted.

    Returns:
        Their digest, taken before they were written: what lies there afterwards may have been exchanged.
    """
    with atomic_path(directory) as temporary:
        temporary.mkdir()
        for name, data in files.items():
            write_bytes(temporary / name, data)
    return content_digest(files)


def read_model_files(directory: Path) -> dict[str, bytes]:
    """Read a model's directory into memory, so that the bytes that are digested are those that are loaded.

    Raises:
        ModelError: It does not hold exactly the two files, regular and not too large.
    """
    limits = {SPEC_FILE: MAX_SPEC_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}
    try:
        found = {path.name: path.is_file() and not path.is_symlink() for path in directory.iterdir()}
        if found != dict.fromkeys(limits, True):
            raise ModelError(f"{directory} must hold exactly {SPEC_FILE} and {WEIGHTS_FILE}, as regular files")
        return {name: read_bytes(directory / name, limit=limit) for name, limit in limits.items()}
    except OSError as error:
        raise ModelError(f"cannot read a model from {directory}: {error.strerror}") from error
    except UsageError as error:
        raise ModelError(str(error)) from error


def load_model(directory: Path) -> LoadedModel:
    """Load a model from its directory.

    Raises:
        ModelError: As `read_model_files` and `load_model_files`.
        MissingDependencyError: PyTorch is missing.
    """
    return load_model_files(read_model_files(directory))


def load_model_files(files: Mapping[str, bytes]) -> LoadedModel:
    """Load a model from the bytes of its two files. No memory is taken for weights that do not fit the architecture.

    Args:
        files: `model.json` and `weights.safetensors` by name; nothing else.

    Raises:
        ModelError: A file is missing, superfluous, malformed or too large; the architecture is unknown or refuses its
            options; names, shapes or types of the weights are not exactly the architecture's, or some are not finite.
        MissingDependencyError: PyTorch is missing.
    """
    if set(files) != {SPEC_FILE, WEIGHTS_FILE}:
        raise ModelError(f"a model is exactly {SPEC_FILE} and {WEIGHTS_FILE}")
    spec = ModelSpec.from_json(files[SPEC_FILE])
    module = build_module(spec, device="meta")
    weights = _read_weights(files[WEIGHTS_FILE], module.state_dict())
    module.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        raise ModelError(f"architecture {spec.architecture!r} keeps state outside its state_dict")
    return LoadedModel(spec, module.eval().requires_grad_(requires_grad=False))


def build_module(spec: ModelSpec, *, device: str = "cpu") -> "torch.nn.Module":
    """Build the network that a description names, with initial weights; on the device "meta" it takes no memory.

    Raises:
        ModelError: The architecture is unknown, refuses its options, or is larger than a file of weights may be.
        MissingDependencyError: PyTorch is missing.
    """
    architecture = find_architecture(spec.architecture)
    from portcullis.models.pytorch import FOREIGN_ERRORS, torch

    def build(where: str) -> "torch.nn.Module":
        with torch.device(where):
            return architecture(input_shape=spec.shape, classes=len(spec.labels), **spec.options)

    try:
        module = build("meta")
        size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        if size > MAX_WEIGHTS_BYTES:
            raise ModelError(f"the network takes {size} bytes; {MAX_WEIGHTS_BYTES} are allowed")
        return module if device == "meta" else build(device)
    except FOREIGN_ERRORS as error:
        raise ModelError(f"architecture {spec.architecture!r} does not accept the model's options: {error}") from error


def _read_weights(data: bytes, expected: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    from portcullis.models.pytorch import torch

    if len(data) > MAX_WEIGHTS_BYTES:
        raise ModelError(f"{WEIGHTS_FILE} has {len(data)} bytes; {MAX_WEIGHTS_BYTES} are allowed")
    try:
        found = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ModelError(f"{WEIGHTS_FILE} is not a safetensors file: {error}") from error
    if found.keys() != expected.keys():
        differing = ", ".join(sorted(found.keys() ^ expected.keys())[:3])
        raise ModelError(f"{WEIGHTS_FILE} does not hold exactly the architecture's tensors; it differs in {differing}")
    weights: dict[str, torch.Tensor] = {}
    for name, like in expected.items():
        stored = (found[name]["dtype"], found[name]["shape"])
        needed = (_DTYPES.get(str(like.dtype)), list(like.shape))
        if stored != needed:
            raise ModelError(
                f"tensor {name!r} is {stored[0]} {stored[1]}; the architecture needs {needed[0]} {needed[1]}"
            )
        # frombuffer refuses an empty buffer.
        flat = torch.frombuffer(found[name]["data"], dtype=like.dtype) if like.numel() else torch.empty(0)
        tensor = flat.to(like.dtype).reshape(like.shape)
        if not torch.isfinite(tensor).all():
            raise ModelError(f"tensor {name!r} holds NaN or an infinity")
        weights[name] = tensor
    return weights


def _fields(value: object, names: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:
        raise ModelError(f"{where} must be an object with exactly {', '.join(sorted(names))}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def _is_option(item: tuple[object, object]) -> bool:
    name, value = item
    named = isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    text = isinstance(value, str) and value.isprintable()
    return named and (text or isinstance(value, bool) or _is_number(value))


def _one_kind(value: Option) -> Option:
    return int(value) if isinstance(value, float) and value.is_integer() else value
