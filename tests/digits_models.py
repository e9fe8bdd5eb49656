"""Digit classifiers that tests of the robustness gate attack, trained once, and networks wrapped around them."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits

from portcullis.models.store import LoadedModel, ModelSpec
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {}, (1, 8, 8), 0, 16, tuple("0123456789"))
UNSEEN = 360  # the first rows, that the models have not seen

Network = Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    return load_digits(return_X_y=True)


def trained(**settings: object) -> LoadedModel:
    features, labels = digits()
    module, _ = train(features[UNSEEN:], labels[UNSEEN:], SPEC, TrainingSettings(device="cpu", **settings))
    return LoadedModel(SPEC, module)


@cache
def plain_model() -> LoadedModel:
    return trained(method="plain", epochs=8)


@cache
def hardened_model() -> LoadedModel:
    """Return an adversarially trained one, for a shorter time than by default, so of a shorter mean of its weights."""
    return trained(epochs=12, ema=0.9)


class Wrapped(torch.nn.Module):
    """A network around another one."""

    def __init__(self, inner: torch.nn.Module, network: Network) -> None:
        super().__init__()
        self.inner = inner
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(self.inner, inputs)


def wrapped(model: LoadedModel, network: Network) -> LoadedModel:
    return LoadedModel(SPEC, Wrapped(model.module, network).eval())
