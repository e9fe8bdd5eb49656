"""DP-SGD (Abadi et al. 2016, arXiv:1607.00133) through Opacus: per-row gradients, clipped, summed, with Gaussian noise.

Opacus computes the gradient of every row, clips it and sums. Noise and sampling come from a cryptographic generator.
Each batch is a Poisson sample, and the sum is divided by the expected size of a batch, never by the actual one.

What is computed in floating point only approximates the mechanism that is accounted for: the guarantee is that of
noise that is a real number (Mironov 2012, 10.1145/2382196.2382264, on what its low bits can tell).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.dp_training.accounting import Plan, plan
from portcullis.dp_training.noise import RandomStream
from portcullis.dp_training.settings import PrivateSettings
from portcullis.errors import MissingDependencyError, ModelError
from portcullis.evidence.statement import Figure
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import ModelSpec, build_module
from portcullis.training.adversarial import training_tensors
from portcullis.training.recipes import ascend

try:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from opacus.validators import ModuleValidator
except ImportError as error:
    raise MissingDependencyError("private training needs Opacus; run: pip install 'kfp-portcullis[dp]'") from error

functional = torch.nn.functional

CLAIM = (
    "the weights are (epsilon, delta)-differentially private for idealised real-valued noise; unit: one training row; "
    "neighbours: data sets that differ by one row added or removed; the number of rows is public"
)
MECHANISM = "DP-SGD: Poisson-subsampled Gaussian mechanism, composed over the steps"
NOISE = "floating-point Gaussian from AES-256-CTR under a key of the operating system; its low bits are not protected"
UNCOVERED = (
    "the choice among settings, several rows of one person, digests in the evidence, and what gates measured on "
    "training rows are not covered"
)

GRADIENT_BYTES = 256 << 20
_PROBES = 4


def train(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    spec: ModelSpec,
    settings: PrivateSettings,
    *,
    before: Callable[[Plan], object] = lambda _: None,
    unsafe_key: bytes | None = None,
) -> tuple[torch.nn.Module, Plan]:
    """Train the network that `spec` names, privately.

    Args:
        features: Raw features (N, D) in [spec.low, spec.high].
        labels: Class indices (N,), integers in [0, k), of two or more classes.
        spec: The model to be.
        settings: How to train it, and how private.
        before: Called with the plan before a row is learnt from; what it raises ends the training.
        unsafe_key: For tests only: 32 bytes that noise and sampling come from.

    Returns:
        The module, on the CPU, in `eval()` mode, and what was done; of the rows it tells their number alone.

    Raises:
        DataError: As `training_tensors`, or too few rows for these settings.
        ConfigError: As `plan`.
        InconclusiveError: The accountants contradict each other.
        ModelError: The architecture is unknown or cannot be trained privately, or training did not stay finite.
        UsageError: CUDA was asked for and is not there.
        MissingDependencyError: Opacus or dp-accounting is not installed.
    """
    inputs, targets = training_tensors(features, labels, spec)
    planned = plan(len(inputs), settings)
    device = choose_device(settings.device)
    stream = RandomStream() if unsafe_key is None else RandomStream.unsafe_fixed_key(unsafe_key)
    with reproducible(settings.seed, device):
        module = build_module(spec).to(device)
        require_private(module, inputs.shape[1:])
        before(planned)
        fit(module, inputs.to(device), targets.to(device), planned, settings, stream)
        module.cpu()
    return module, planned


def certificate(planned: Plan, settings: PrivateSettings, module: torch.nn.Module) -> dict[str, Figure]:
    """Return what the training guarantees, and what it does not. Of the rows, their number alone counts."""
    size = sum(weights.numel() for weights in module.parameters())
    # What all the noise adds up to, beside the farthest that all clipped gradients together could lead.
    noise = planned.noise_multiplier * math.sqrt(size * planned.steps)
    signal = planned.sampling_rate * planned.rows * planned.steps
    return {
        "epsilon": planned.epsilon,
        "epsilon_prv": planned.epsilon_prv,
        "epsilon_pld": planned.epsilon_pld,
        "delta": settings.delta,
        "samples": planned.rows,
        "parameters": size,
        "sampling_rate": planned.sampling_rate,
        "steps": planned.steps,
        "noise_multiplier": planned.noise_multiplier,
        "max_grad_norm": settings.max_grad_norm,
        "settings_tried": settings.settings_tried,
        "noise_to_signal": noise / signal,
        "utility": "the noise drowns the signal" if noise > signal else "the signal outweighs the noise",
        "unit": "one training row",
        "adjacency": "add or remove one row",
        "sampling": "Poisson",
        "mechanism": MECHANISM,
        "noise": NOISE,
        "claim": CLAIM,
        "uncovered": UNCOVERED,
    }


def require_private(module: torch.nn.Module, shape: torch.Size) -> None:
    """Refuse a network in which one row's gradient can depend on another row, or that keeps what it saw.

    Args:
        module: The network, on any device; left in `train()` mode.
        shape: Of one input.

    Raises:
        ModelError: It has buffers, no parameters, a layer that Opacus does not support, or mixes the rows of a batch.
    """
    module.train()
    if any(True for _ in module.buffers()) or not any(weights.requires_grad for weights in module.parameters()):
        raise ModelError("a private network has parameters and no buffers, such as batch statistics; take GroupNorm")
    if unsupported := ModuleValidator.validate(module, strict=False):
        raise ModelError(f"the network cannot be trained privately: {unsupported[0]}")
    device = next(module.parameters()).device
    try:
        probes = torch.rand(_PROBES, *shape, device=device, requires_grad=True)
        for row in range(_PROBES):
            (gradient,) = torch.autograd.grad(module(probes)[row].sum(), probes)
            others = torch.arange(_PROBES, device=device) != row
            if gradient[others].any() or not gradient.isfinite().all():
                raise ModelError("the network mixes the rows of a batch, so no row's gradient can be bounded")
        if module(probes[:0]).shape[:1] != (0,):
            raise ModelError("the network does not take a batch without rows, which sampling can draw")
    except FOREIGN_ERRORS as error:
        raise ModelError(f"the network cannot be trained privately: {error}") from error


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer with noise from a `RandomStream` in place of PyTorch's generator."""

    def __init__(self, *args: Any, stream: RandomStream, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stream = stream

    def add_noise(self) -> None:
        """Put the sum of the clipped gradients, with noise, into each parameter's `grad`."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for weights in self.params:
            with np.errstate(over="ignore"):  # what is not finite is refused in the end
                noise = (deviation * self._stream.normal(weights.numel())).astype(np.float32)
            weights.grad = weights.summed_grad + torch.from_numpy(noise).reshape(weights.shape).to(weights.device)


def sample(rows: int, rate: float, stream: RandomStream) -> NDArray[np.int64]:
    """Return a Poisson sample: each of the rows 0 … rows - 1 with probability `rate`, each apart."""
    return np.flatnonzero(stream.uniform(rows) < rate)


def fit(
    module: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    planned: Plan,
    settings: PrivateSettings,
    stream: RandomStream,
    *,
    gradient_bytes: int = GRADIENT_BYTES,
) -> None:
    """Train a module in place, and leave it in `eval()` mode.

    Args:
        module: The network, on the device.
        inputs: (N, *shape), float32 in [0, 1], on the device.
        targets: (N,), int64, on the device.
        planned: How to sample, and how much noise to add.
        settings: The rest.
        stream: Where samples and noise come from.
        gradient_bytes: How much the gradients of rows may take at once; a batch that needs more comes in pieces.

    Raises:
        ModelError: Opacus cannot compute the gradients of its rows, or training did not stay finite.
    """
    size = sum(4 * weights.numel() for weights in module.parameters())
    at_once = max(1, gradient_bytes // size)
    module.train()
    try:
        with warnings.catch_warnings():
            # Of Opacus's own hooks: PyTorch's advice on inputs that need no gradient.
            warnings.simplefilter("ignore", UserWarning)
            wrapped = GradSampleModule(module, loss_reduction="sum")
            optimizer = NoisyOptimizer(
                torch.optim.SGD(module.parameters(), lr=settings.learning_rate),
                noise_multiplier=planned.noise_multiplier,
                max_grad_norm=settings.max_grad_norm,
                expected_batch_size=planned.sampling_rate * planned.rows,
                stream=stream,
            )
            for _ in range(planned.steps):
                pieces = torch.split(torch.from_numpy(sample(len(inputs), planned.sampling_rate, stream)), at_once)
                for number, piece in enumerate(pieces, start=1):
                    rows = piece.to(inputs.device)
                    batch, wanted = inputs[rows], targets[rows]
                    if settings.attack_epsilon:
                        batch = _attacked(wrapped, batch, wanted, settings)
                    functional.cross_entropy(module(batch), wanted, reduction="sum").backward()  # type: ignore[no-untyped-call]
                    optimizer.signal_skip_step(do_skip=number < len(pieces))
                    optimizer.step()
                    optimizer.zero_grad()
            wrapped.to_standard_module()
    except FOREIGN_ERRORS as error:
        raise ModelError(f"the network cannot be trained privately: {error}") from error
    module.eval().requires_grad_(requires_grad=False).zero_grad()
    if not all(bool(weights.isfinite().all()) for weights in module.state_dict().values()):
        raise ModelError("training did not stay finite; lower the learning rate")


def _attacked(
    wrapped: GradSampleModule, clean: torch.Tensor, targets: torch.Tensor, settings: PrivateSettings
) -> torch.Tensor:
    """Attack each row by itself; the gradients on the way are of inputs, and are not those that are clipped."""
    wrapped.disable_hooks()
    try:
        return ascend(
            wrapped._module,  # noqa: SLF001 - the network itself, of which it is a wrapper
            clean,
            lambda logits: functional.cross_entropy(logits, targets, reduction="sum"),
            epsilon=settings.attack_epsilon,
            steps=settings.attack_steps,
        )
    finally:
        wrapped.enable_hooks()
