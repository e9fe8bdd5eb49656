"""PyTorch, or the line that installs it; and what every use of it here shares.

Only modules that compute with tensors import this one, so that nothing else needs PyTorch.
"""

import contextlib
from collections.abc import Iterator

from portcullis.errors import MissingDependencyError, UsageError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("PyTorch is missing; run: pip install 'kfp-portcullis[torch]'") from error

__all__ = ["FOREIGN_ERRORS", "choose_device", "reproducible", "torch"]

# What PyTorch, and networks and attacks written for it, raise on options, weights or inputs that they cannot work with.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


def choose_device(choice: str = "auto") -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" stands for; "auto" is the first CUDA device where there is one.

    Raises:
        UsageError: "cuda" where PyTorch finds no CUDA device.
    """
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UsageError("CUDA was asked for, but PyTorch finds no CUDA device; use device=auto or cpu")
    return torch.device("cuda", 0) if available and choice != "cpu" else torch.device("cpu")


@contextlib.contextmanager
def reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators, compute on one CPU thread and in whole float32; put all back after the block.

    Initialisation, dropout and the attacks draw from the global generators of the CPU and of `device`, so a generator
    of one's own cannot reach them. The order of floating-point sums depends on the number of threads; and where cores
    are shared, threads that wait for one another make small networks many times slower. On CUDA, convolutions would by
    default be computed in TF32, with 10 bits of precision, and by whichever algorithm is fastest that time.
    """
    cuda = [] if device.type == "cpu" else [torch.cuda.current_device() if device.index is None else device.index]
    threads, backend = torch.get_num_threads(), torch.backends.cudnn
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also seed, for good, the accelerators that are not in use.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        torch.set_num_threads(1)
        try:
            with backend.flags(enabled=backend.enabled, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_num_threads(threads)
