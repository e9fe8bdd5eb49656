"""What a process that is about to be locked in needs to load and to ask a model; see `portcullis.isolation`."""

import numpy as np

from portcullis.models.architectures import keep_installed
from portcullis.models.exported_graph import ARCHITECTURE, INPUT, Graph, Step
from portcullis.models.pytorch import torch
from portcullis.models.store import LoadedModel, ModelSpec, build_module, load_model_files, model_files

_SHAPE, _LABELS = (1, 2, 2), ("dark", "bright")
_GRAPH = Graph(
    {"weight": (2, 4)},
    {},
    (
        Step("flatten.using_ints", {"self": INPUT, "start_dim": 1}),
        Step("linear.default", {"input": "%0", "weight": "weight"}),
    ),
    "%1",
)
_SPECS = (
    ModelSpec("digits-cnn", {"width": 1, "hidden": 1}, _SHAPE, 0, 1, _LABELS),
    ModelSpec(ARCHITECTURE, {"graph": _GRAPH.to_text()}, _SHAPE, 0, 1, _LABELS),
)


def prepare(**_: object) -> bool:
    """Load and ask models of our own: what is imported or read on first use is imported and read now.

    Returns:
        False: no device is opened.
    """
    keep_installed()
    torch.set_num_threads(1)
    for model in rehearsals():
        model.predict(np.zeros((2, 4), np.float32))
    return False


def rehearsals() -> list[LoadedModel]:
    """Return small models of our own architectures, loaded."""
    return [load_model_files(model_files(build_module(spec), spec)) for spec in _SPECS]
