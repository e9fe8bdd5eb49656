"""What every component and gate shares on the KFP side: its image, its decorator, its compilation."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from portcullis import __version__
from portcullis.errors import MissingDependencyError

try:
    from kfp import dsl
except ImportError as error:
    raise MissingDependencyError("components need KFP; run: pip install 'kfp-portcullis[kfp]'") from error

# One image carries every stage; its tag is the package's version. Private registries override it when they compile.
IMAGE = os.environ.get("PORTCULLIS_IMAGE", f"ghcr.io/kfp-portcullis/portcullis-python:{__version__}")

# The image holds the wheel and KFP already: a security component installs nothing when it runs.
component: Callable[..., Any] = partial(
    dsl.component, base_image=IMAGE, packages_to_install=[], install_kfp_package=False
)


def gate_pipeline(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a gate: a nested pipeline of `evaluate` and `enforce` that is never cached.

    A failing KFP task loses its outputs, so `evaluate` always publishes report and signed verdict and `enforce` raises.
    A nested pipeline's missing inputs are filled from its caller by name, so a gate declares no default and takes at
    least one parameter.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        import functools

        @functools.wraps(function)
        def body(*args: Any, **kwargs: Any) -> Any:
            outputs = function(*args, **kwargs)
            never_cache()
            return outputs

        return dsl.pipeline(body, name=name)

    return decorate


def never_cache() -> None:
    """Switch caching off for every task of the pipeline being defined: a cached verdict is a stale verdict."""
    for task in dsl.pipeline_context.Pipeline.get_default_pipeline().tasks.values():
        task.set_caching_options(False)
