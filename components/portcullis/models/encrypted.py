"""Tensors straight out of a sealed safetensors file: decrypted into their own memory, never onto a disk."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from portcullis.errors import ModelError
from portcullis.safetensors_header import read_header
from portcullis.sealing.stream import EncryptedFile

if TYPE_CHECKING:
    import torch

# safetensors' types, as PyTorch calls them; it has none for those of less than a byte.
_TYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "BF16": "bfloat16",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


def load_safetensors(file: EncryptedFile, names: Collection[str] | None = None) -> "dict[str, torch.Tensor]":
    """Load tensors from a sealed safetensors file; only the segments that they lie in are decrypted.

    Args:
        file: The opened file.
        names: Which; all of them when None.

    Returns:
        Tensors on the CPU, each in memory of its own, in the order in which they lie in the file.

    Raises:
        SealError: A segment was altered.
        ModelError: It is no safetensors file, has no tensor of such a name, or one of a type that PyTorch lacks.
    """
    from portcullis.models.pytorch import torch

    file.seek(0)
    entries = read_header(file, file.size)
    if missing := set(names or ()) - set(entries):
        raise ModelError(f"there is no tensor {min(missing)[:80]!a} in the file")
    loaded = {}
    for name, entry in sorted(entries.items(), key=lambda it: it[1]):
        if names is not None and name not in names:
            continue
        dtype = getattr(torch, _TYPES.get(entry.dtype, ""), None)
        if dtype is None:
            raise ModelError(f"PyTorch has no tensors of the type {entry.dtype}")
        tensor = torch.empty(entry.shape, dtype=dtype)
        if entry.end > entry.start:
            file.seek(entry.start)
            memory = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
            if file.readinto(memory) != len(memory):
                raise ModelError("the file ended within a tensor")
        loaded[name] = tensor
    return loaded
