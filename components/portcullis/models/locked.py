"""What a process that is about to be locked in needs to load and to ask a model; see `portcullis.isolation`."""

import numpy as np

from portcullis.models.architectures import keep_installed
from portcullis.models.pytorch import torch
from portcullis.models.store import ModelSpec, build_module, load_model_files, model_files

_SPEC = ModelSpec("digits-cnn", {"width": 1, "hidden": 1}, (1, 2, 2), 0, 1, ("dark", "bright"))


def prepare(**_: object) -> bool:
    """Load and ask a model of our own: what is imported or read on first use is imported and read now.

    Returns:
        False: no device is opened.
    """
    keep_installed()
    torch.set_num_threads(1)
    load_model_files(model_files(build_module(_SPEC), _SPEC)).predict(np.zeros((2, 4), np.float32))
    return False
