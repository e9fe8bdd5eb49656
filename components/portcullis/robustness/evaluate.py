"""The robustness gate's measurement.

A sample is robust when the model classifies it correctly and no attack finds an adversarial input for it: the worst
case over the attacks, sample by sample. Every attack runs on every sample that is classified correctly, so an attack's
own figure does not depend on the others. "Robust" means that this plan found nothing, not that there is nothing.

Measuring robustness wrongly is easy and flatters the model (Carlini et al. 2019, arXiv:1902.06705; Athalye et al. 2018,
arXiv:1802.00420). So conditions under which the attacks prove little make the measurement inconclusive.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import DataError, InconclusiveError
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import LoadedModel
from portcullis.robustness.attacks import Attack, planned_attacks, unbounded_attack
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verify import adversarial, margin, untouched

CHUNK = 128
CHECKED_SAMPLES = 32
UNBOUNDED_SAMPLES = 128
MIN_UNBOUNDED_SUCCESS = 0.99
MAX_BATCH_DIFFERENCE = 1e-3
MAX_LEAD_OF_FGSM = 0.01
MIN_TIMES_CHANCE = 1.5


@dataclass(frozen=True)
class RobustnessReport:
    """What was measured.

    Attributes:
        figures: `samples`; `classes`; `clean_accuracy`; `robust_accuracy` (share of samples that are classified
            correctly and withstand every attack); `robust_accuracy_fgsm`, `_pgd`, `_cw`, `_deepfool` (share that are
            classified correctly and withstand that one); `unbounded_success` (share of samples that an unbounded attack
            breaks, at least 0.99); `smallest_gradient` (least L2 norm of the margin's input
            gradient, above 0); `batch_difference` (largest change of a logit when its sample is alone, in
            median margins, at most 0.001); `device`, `cpu` or `cuda`. Accuracies and shares are in 0..1.
    """

    figures: Mapping[str, int | float | str]


def evaluate(
    model: LoadedModel,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
) -> RobustnessReport:
    """Attack a model. The model and PyTorch's global random generator are afterwards as they were, errors or not.

    Args:
        model: The model.
        features: Raw features (N, D) in the model's bounds.
        labels: Class indices (N,), integers in [0, k), of all k classes.
        settings: The plan.

    Raises:
        InconclusiveError: Nothing could be judged: too few samples or a class without one; malformed or non-finite
            features; a model that is hardly better than chance, whose logits are not finite or depend on the other
            samples of a batch, or whose gradients vanish or mislead; an attack that fails or loses its way.
    """
    inputs, targets = _tensors(model, features, labels, settings)
    device = choose_device()
    with reproducible(settings.seed, device), untouched(model.module):
        try:
            module = model.module if device.type == "cpu" else copy.deepcopy(model.module).to(device)
            inputs, targets = inputs.to(device), targets.to(device)
            figures = _measure(module, inputs, targets, len(model.spec.labels), settings)
            return RobustnessReport({**figures, "device": device.type})
        except FOREIGN_ERRORS as error:
            raise InconclusiveError(f"the model could not be attacked: {type(error).__name__}: {error}") from error


def _measure(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, classes: int, settings: RobustnessSettings
) -> dict[str, int | float]:
    logits = _clean_logits(module, inputs, classes)
    margins = margin(logits, targets)
    hits = margins > 0
    _require_better_than_chance(hits, targets, classes)
    median_margin = float(margins[hits].median())
    batch_difference = _batch_difference(module, inputs, logits) / median_margin
    if not batch_difference <= MAX_BATCH_DIFFERENCE:
        raise InconclusiveError(
            f"a sample's logits change by {batch_difference:.2g} median margins when it is alone; they must not depend "
            "on chance or on the other samples of a batch, nor drown in rounding"
        )
    inputs, targets = inputs[hits], targets[hits]
    smallest_gradient = _smallest_gradient(module, inputs, targets)
    first = slice(UNBOUNDED_SAMPLES)
    unbounded_success = _share(_broken(unbounded_attack(module, median_margin), module, inputs[first], targets[first]))
    if not unbounded_success >= MIN_UNBOUNDED_SUCCESS:
        raise InconclusiveError(
            f"even an unbounded attack breaks only {unbounded_success:.1%} of samples; the gradients cannot be followed"
        )
    plan = planned_attacks(module, median_margin, settings)
    broken = {name: _broken(attack, module, inputs, targets) for name, attack in plan.items()}
    robust = {name: int((~found).sum()) / len(hits) for name, found in broken.items()}
    if robust["pgd"] > robust["fgsm"] + MAX_LEAD_OF_FGSM:
        raise InconclusiveError("one step of FGSM breaks more samples than all steps of PGD; the gradients mislead")
    return {
        "samples": len(hits),
        "classes": classes,
        "clean_accuracy": _share(hits),
        "robust_accuracy": int((~torch.stack(list(broken.values())).any(dim=0)).sum()) / len(hits),
        **{f"robust_accuracy_{name}": share for name, share in robust.items()},
        "unbounded_success": unbounded_success,
        "smallest_gradient": smallest_gradient,
        "batch_difference": batch_difference,
    }


def _clean_logits(module: torch.nn.Module, inputs: torch.Tensor, classes: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [module(rows) for rows in torch.split(inputs, CHUNK)]
    for rows, part in zip(torch.split(inputs, CHUNK), parts, strict=True):
        if part.shape != (len(rows), classes) or part.dtype != torch.float32 or not part.isfinite().all():
            raise InconclusiveError(f"the model does not return {classes} finite float32 logits for each sample")
    return torch.cat(parts)


def _require_better_than_chance(hits: torch.Tensor, targets: torch.Tensor, classes: int) -> None:
    # A model that always answers the commonest class cannot be moved from it, so it would look robust.
    commonest = int(targets.bincount(minlength=classes).max()) / len(targets)
    floor = max(MIN_TIMES_CHANCE / classes, commonest)
    if not _share(hits) > floor:
        raise InconclusiveError(
            f"clean accuracy {_share(hits):.3f} is not above {floor:.3f}, hardly better than chance"
        )


def _batch_difference(module: torch.nn.Module, inputs: torch.Tensor, logits: torch.Tensor) -> float:
    with torch.no_grad():
        alone = torch.cat([module(row) for row in torch.split(inputs[:CHECKED_SAMPLES], 1)])
    return float((alone - logits[:CHECKED_SAMPLES]).abs().max())


def _smallest_gradient(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    norms: list[torch.Tensor] = []
    for rows, labels in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
        moved = rows.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(margin(module(moved), labels).sum(), moved)
        norms.append(gradient.flatten(1).norm(dim=1))
    smallest = float(torch.cat(norms).min())  # NaN if any is
    if not (math.isfinite(smallest) and smallest > 0):
        raise InconclusiveError("the margin has no finite input gradient above zero for every sample")
    return smallest


def _broken(attack: Attack, module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    for clean, labels in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
        candidates = attack.propose(clean, labels)
        if not candidates.isfinite().all():
            raise InconclusiveError("an attack lost its way in values that are not finite")
        found.append(adversarial(module, clean, candidates.detach(), labels, attack.ball))
    return torch.cat(found)


def _share(hits: torch.Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _tensors(
    model: LoadedModel,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        inputs = model.preprocess(features)
    except DataError as error:
        raise InconclusiveError(f"the test rows cannot be judged: {error}") from error
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (len(inputs),):
        raise InconclusiveError(f"labels must be {len(inputs)} integers, one for each test row")
    if len(inputs) < settings.n_min:
        raise InconclusiveError(f"{len(inputs)} test rows, fewer than the {settings.n_min} that are needed")
    classes = len(model.spec.labels)
    if not ((labels >= 0) & (labels < classes)).all() or len(np.unique(labels)) != classes:
        raise InconclusiveError(f"the test rows' labels must be class indices from 0 to {classes - 1}, and all occur")
    if not settings.l2_budget < math.sqrt(inputs[0].numel()) / 2:
        raise InconclusiveError("l2_budget lets every input become grey; lower it")
    return inputs, torch.from_numpy(labels.astype(np.int64))
