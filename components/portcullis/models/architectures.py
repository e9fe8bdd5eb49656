"""The architectures that are installed: entry points of the group `portcullis.architectures`.

An architecture is a `torch.nn.Module` class called with `input_shape` (without the batch axis), `classes` and the
options of a model's description. Its forward pass maps (N, *input_shape) float32 in [0, 1] to logits (N, classes)
float32; in `eval()` mode each row's logits depend on that row alone. All its state is in its `state_dict`, and it
raises `ModelError` for options or shapes that it does not support.
"""

import inspect
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from portcullis.errors import ModelError

if TYPE_CHECKING:
    import torch

GROUP = "portcullis.architectures"


def find_architecture(name: str) -> type["torch.nn.Module"]:
    """Return the installed architecture of that name. The name is looked up; it is never imported as a path.

    Raises:
        ModelError: No installed package, or more than one, offers the name, or what it offers is no architecture.
        MissingDependencyError: PyTorch is missing.
    """
    from portcullis.models.pytorch import torch

    installed = entry_points(group=GROUP)
    found = installed.select(name=name)
    if len(found) != 1:
        names = ", ".join(sorted(installed.names)) or "none"
        raise ModelError(f"{len(found)} architectures are called {name!r}; exactly one must be (installed: {names})")
    (entry,) = found
    try:
        architecture = entry.load()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"architecture {name!r} is declared as {entry.value}, which cannot be imported") from error
    if not (inspect.isclass(architecture) and issubclass(architecture, torch.nn.Module)):
        raise ModelError(f"architecture {name!r} ({entry.value}) is not a torch.nn.Module class")
    return architecture
