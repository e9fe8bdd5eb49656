"""The measurement in the locked child process: what it prepares while it may open files, and what it does after.

The model's bytes, and the code of an architecture that is not ours, are touched only after the lock.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import DatasetSpec
from portcullis.errors import InconclusiveError
from portcullis.models import locked
from portcullis.models.pytorch import choose_device, torch
from portcullis.models.store import LoadedModel, ModelSpec, load_model_files
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.findings import to_plain
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import TabularSettings, TabularThreat, judge_black_box, read_threat
from portcullis.robustness.tabular.probabilities import probabilities_of
from portcullis.robustness.trial import Counted
from portcullis.robustness.verdict import Question

_SHAPE, _ROWS = (1, 2, 2), 32
_FEW = 10  # steps: enough to have been through everything


def prepare(*, settings: Mapping[str, Any], **_: object) -> bool:
    """Attack a network of our own by the same plan: what attacks import on first use is then imported.

    Returns:
        Whether a CUDA device is in use.
    """
    locked.prepare()
    plan = RobustnessSettings(**settings)
    steps = {name: min(getattr(plan, name), _FEW) for name in ("cw_steps", "ddn_steps", "deepfool_steps", "apgd_steps")}
    plan = dataclasses.replace(plan, **steps, n_min=1, mode="full")
    with contextlib.suppress(InconclusiveError):  # of no interest; whatever fails here fails again on the model
        evaluate(*_rehearsal(), plan)
    model, features = _rehearsal()[:2]
    inputs = model.preprocess(features).requires_grad_()
    short = Counted(model.module, len(model.spec.labels), _ROWS // 2)  # as where there is little memory
    torch.autograd.grad(short(inputs).sum(), inputs)
    # Adam brings in PyTorch's compiler on its first step.
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    torch.optim.Adam([weight]).step()
    return choose_device().type == "cuda"


def prepare_table(**_: object) -> bool:
    """Search a network of our own, likewise.

    Returns:
        False: no device is opened.
    """
    locked.prepare()
    model, features, labels = _rehearsal()
    everything, nothing = np.ones(4), np.zeros(4, dtype=np.int64)
    threat = TabularThreat(everything, nothing.astype(np.float64), everything, nothing.astype(np.bool_), nothing)
    with contextlib.suppress(InconclusiveError):
        judge_black_box(
            probabilities_of(model, features), features, labels, threat, TabularSettings(queries=100, n_min=1)
        )
    return False


def _rehearsal() -> tuple[LoadedModel, NDArray[np.float32], NDArray[np.int64]]:
    """Return a network of our own that needs no file, and rows (32, 4) that it classifies correctly."""
    spec = ModelSpec("rehearsal", {}, _SHAPE, 0, 1, ("dark", "bright"))
    linear = torch.nn.Linear(4, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        linear.bias.copy_(torch.tensor([2.0, -2.0]))
    module = torch.nn.Sequential(torch.nn.Flatten(), linear)
    features = np.random.default_rng(0).uniform(0, 1, (_ROWS, 4)).astype(np.float32)
    model = LoadedModel(spec, module.eval().requires_grad_(requires_grad=False))
    return model, features, (features.sum(axis=1) > 2).astype(np.int64)


def measure_table(
    description: BinaryIO,
    weights: BinaryIO,
    features: BinaryIO,
    labels: BinaryIO,
    *,
    shape: Sequence[int],
    settings: Mapping[str, Any],
    rows: Mapping[str, Any],
) -> dict[str, Any]:
    """Load a model and search for changes of a row that the settings' threat allows and that break it.

    Args:
        description: The model's `model.json`.
        weights: Its `weights.safetensors`.
        features: Raw features (N, D), float32 in C order, little-endian.
        labels: Class indices (N,), int64, likewise.
        shape: (N, D).
        settings: The fields of `RobustnessSettings`, a threat among them.
        rows: The fields of the rows' `DatasetSpec`.

    Returns:
        The figures of `portcullis.robustness.tabular.TabularReport`.

    Raises:
        ModelError: The model cannot be loaded.
        InconclusiveError: Nothing can be judged.
    """
    model = load_model_files({"model.json": description.read(), "weights.safetensors": weights.read()})
    plan = RobustnessSettings(**settings)
    values = np.frombuffer(features.read(), np.float32).reshape(shape)
    found = judge_black_box(
        probabilities_of(model, values),
        values,
        np.frombuffer(labels.read(), np.int64).copy(),
        read_threat(plan.threat, DatasetSpec.from_dict(rows)),
        plan.tabular,
    )
    return dict(found.figures)


def measure(
    description: BinaryIO,
    weights: BinaryIO,
    features: BinaryIO,
    labels: BinaryIO,
    *,
    shape: Sequence[int],
    settings: Mapping[str, Any],
    question: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Load a model and attack it.

    Args:
        description: The model's `model.json`.
        weights: Its `weights.safetensors`.
        features: Raw features (N, D), float32 in C order, little-endian.
        labels: Class indices (N,), int64, likewise.
        shape: (N, D).
        settings: The fields of `RobustnessSettings`.
        question: What `verdict` mode must decide: `threshold`, `key` in hexadecimal, and `subjects`.

    Returns:
        What `portcullis.robustness.findings.to_plain` makes of the report.

    Raises:
        ModelError: The model cannot be loaded.
        InconclusiveError: Nothing can be judged.
    """
    model = load_model_files({"model.json": description.read(), "weights.safetensors": weights.read()})
    rows = np.frombuffer(features.read(), np.float32).reshape(shape)
    asked = None
    if question is not None:
        asked = Question(question["threshold"], bytes.fromhex(question["key"]), tuple(question["subjects"]))
    found = evaluate(model, rows, np.frombuffer(labels.read(), np.int64).copy(), RobustnessSettings(**settings), asked)
    return to_plain(found)
