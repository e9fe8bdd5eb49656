"""Turn a PyTorch checkpoint into safetensors: the one place where a pickle is loaded, in a process that can do no harm.

First the scan must allow the file, which it does without loading it. Then PyTorch's restricted loader
(`weights_only=True`) opens it in a locked child process, which hands back tensors and nothing else. Two nets, and no
keys behind them: CVE-2025-32434 ran code through that loader before PyTorch 2.6.
"""

from pathlib import Path

from portcullis.errors import ModelError
from portcullis.files import memory_file, read_bytes
from portcullis.isolation import run_isolated
from portcullis.models.store import MAX_WEIGHTS_BYTES
from portcullis.supply_chain.scan import scan_model

MAX_CHECKPOINT_BYTES = 4 * MAX_WEIGHTS_BYTES  # an optimizer's state may be three times the weights
SECONDS = 600.0
MEMORY = 16 << 30


def convert_checkpoint(path: Path, *, key: str = "") -> bytes:
    """Return the weights of a checkpoint as a safetensors file.

    Args:
        path: What `torch.save` wrote of a state dictionary, or of a dictionary that holds one.
        key: Under which name it holds it; empty if the file is a state dictionary itself.

    Raises:
        DataError: The file is missing, or is no regular file.
        ModelError: The scan refuses it, it holds no state dictionary there, or it is too large.
        MissingDependencyError: PyTorch is missing.
        UsageError: This system cannot lock a process in.
    """
    (scanned,) = scan_model(path)
    if scanned.refused:
        raise ModelError(f"the checkpoint is refused: {scanned.refused}")
    if not scanned.format.startswith("torch"):
        raise ModelError(f"the checkpoint is {scanned.format}, not what torch.save writes")
    data = read_bytes(path, limit=MAX_CHECKPOINT_BYTES)
    with memory_file(data) as checkpoint, memory_file(b"") as target:
        run_isolated(
            "portcullis.supply_chain.restricted:to_safetensors",
            [checkpoint, target],
            {"key": key},
            seconds=SECONDS,
            memory=MEMORY,
            writes=MAX_WEIGHTS_BYTES,
        )
        target.seek(0)
        return target.read()
