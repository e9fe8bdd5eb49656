"""The architectures that are installed: entry points of the group `portcullis.architectures`.

An architecture is a `torch.nn.Module` class called with `input_shape` (without the batch axis), `classes` and the
options of a model's description. Its forward pass maps (N, *input_shape) float32 in [0, 1] to logits (N, classes)
float32; in `eval()` mode each row's logits depend on that row alone. All its state is in its `state_dict`, and it
raises `ModelError` for options or shapes that it does not support.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from portcullis.errors import ModelError

if TYPE_CHECKING:
    import torch

GROUP = "portcullis.architectures"
MAX_SOURCES = 64 << 20

_OWN = __name__.partition(".")[0]
_kept: list[EntryPoints] = []


def find_architecture(name: str) -> type["torch.nn.Module"]:
    """Return the installed architecture of that name. The name is looked up; it is never imported as a path.

    Raises:
        ModelError: No installed package, or more than one, offers the name, or what it offers is no architecture.
        MissingDependencyError: PyTorch is missing.
    """
    from portcullis.models.pytorch import torch

    installed = _kept[0] if _kept else entry_points(group=GROUP)
    found = installed.select(name=name)
    if len(found) != 1:
        names = ", ".join(sorted(installed.names)) or "none"
        raise ModelError(f"{len(found)} architectures are called {name!r}; exactly one must be (installed: {names})")
    (entry,) = found
    try:
        architecture = entry.load()
    except (ImportError, AttributeError, OSError) as error:
        where = " by a locked process, which finds its own package's Python files alone" if _kept else ""
        raise ModelError(
            f"architecture {name!r} is declared as {entry.value}, which cannot be imported{where}: {error}"
        ) from error
    if not (inspect.isclass(architecture) and issubclass(architecture, torch.nn.Module)):
        raise ModelError(f"architecture {name!r} ({entry.value}) is not a torch.nn.Module class")
    return architecture


def keep_installed() -> None:
    """Let this process find the installed architectures when it can open no more files.

    Those of this package are imported. Of others the Python files of their package are read and not run: whoever wrote
    them may be hostile, so they are imported from memory, when the process is locked in. They can then use what is
    imported already, PyTorch among it, and nothing else.

    Raises:
        ModelError: Their files are too large.
    """
    installed = entry_points(group=GROUP)
    sources: dict[str, tuple[bytes, bool]] = {}
    for entry in installed:
        package = entry.module.partition(".")[0]
        if package == _OWN:
            importlib.import_module(entry.module)
        elif package not in sources:
            sources |= _sources_of(package)
    if sum(len(source) for source, _ in sources.values()) > MAX_SOURCES:
        raise ModelError(f"the packages of the installed architectures have more than {MAX_SOURCES} bytes of Python")
    sys.meta_path.insert(0, _InMemory(sources))
    _kept[:] = [installed]


def _sources_of(package: str) -> dict[str, tuple[bytes, bool]]:
    """Return each module's source and whether it is a package; nothing if there is no such package."""
    try:
        spec = importlib.util.find_spec(package)  # of a top-level name: finds, and imports nothing
    except ValueError:
        return {}
    if spec is None:
        return {}
    if spec.submodule_search_locations is None:
        file = Path(spec.origin or "")
        return {package: (file.read_bytes(), False)} if file.suffix == ".py" else {}
    return dict(_modules_below(package, map(Path, spec.submodule_search_locations)))


def _modules_below(package: str, folders: Iterator[Path]) -> Iterator[tuple[str, tuple[bytes, bool]]]:
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            is_package = parts[-1] == "__init__"
            yield ".".join(parts[:-1] if is_package else parts), (path.read_bytes(), is_package)


class _InMemory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads modules whose sources it was given."""

    def __init__(self, sources: Mapping[str, tuple[bytes, bool]]) -> None:
        self._sources = sources

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the signature is importlib's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module comes from; None for one that is not here."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in self._sources else None

    def is_package(self, fullname: str) -> bool:
        """Tell whether the module is a package."""
        return self._sources[fullname][1]

    def get_source(self, fullname: str) -> str:
        """Return a module's source."""
        return importlib.util.decode_source(self._sources[fullname][0])
