"""What runs in the locked child of `convert`: PyTorch's restricted loader, and safetensors' writer."""

import io
from collections.abc import Mapping
from typing import BinaryIO

from safetensors.torch import save

from portcullis.errors import ModelError
from portcullis.files import write_all
from portcullis.models.pytorch import FOREIGN_ERRORS, torch


def to_safetensors(checkpoint: BinaryIO, target: BinaryIO, *, key: str) -> int:
    """Write the tensors of a checkpoint as a safetensors file; returns how many there are.

    Raises:
        ModelError: It holds no state dictionary there, or one with something else than dense tensors.
    """
    try:
        document = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FOREIGN_ERRORS as error:
        raise ModelError(f"PyTorch's restricted loader refuses the checkpoint ({type(error).__name__})") from error
    if key:
        if not isinstance(document, Mapping) or key not in document:
            raise ModelError("the checkpoint holds nothing of that name")
        document = document[key]
    if not isinstance(document, Mapping) or not document:
        raise ModelError("the checkpoint holds no state dictionary there; name its key")
    tensors = {}
    for name, tensor in document.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise ModelError("the checkpoint holds no state dictionary there; name its key")
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)  # tied weights are told apart
    write_all(target, save(tensors))
    return len(tensors)


def _import_all() -> None:
    """Convert a tensor of our own from both layouts, which imports what a locked process can no longer import."""
    for archive in (True, False):
        stream = io.BytesIO()
        torch.save({"": torch.zeros(1)}, stream, _use_new_zipfile_serialization=archive)
        stream.seek(0)
        to_safetensors(stream, io.BytesIO(), key="")


_import_all()
