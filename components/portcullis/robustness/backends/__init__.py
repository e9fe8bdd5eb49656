"""Libraries of attacks behind one protocol, each loaded only where a plan names it."""

import importlib

from portcullis.errors import ConfigError
from portcullis.robustness.proposal import Backend
from portcullis.robustness.settings import LIBRARIES


def find_backend(name: str) -> Backend:
    """Return a library's attacks.

    Raises:
        ConfigError: The name is none of `LIBRARIES`.
        MissingDependencyError: The library is not installed.
    """
    if name not in LIBRARIES:
        raise ConfigError(f"robustness: there is no library {name!r}; there are {', '.join(LIBRARIES)}")
    backend: Backend = importlib.import_module(f"portcullis.robustness.backends.{name}_attacks").attacks
    return backend
