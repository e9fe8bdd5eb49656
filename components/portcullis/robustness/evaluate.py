"""The robustness gate's measurement.

A sample is robust when the model classifies it correctly and no attack finds an adversarial input for it: the worst
case over the attacks, sample by sample. In `full` mode every attack runs on every sample that is classified correctly,
so an attack's own figure does not depend on the others; in `verdict` mode later ones run on what earlier ones left, and
only until the verdict is known. "Robust" means that this plan found nothing, not that there is nothing.

Measuring robustness wrongly is easy and flatters the model (Carlini et al. 2019, arXiv:1902.06705; Athalye et al. 2018,
arXiv:1802.00420). So conditions under which the attacks prove little make the measurement inconclusive.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import DataError, InconclusiveError
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import LoadedModel
from portcullis.robustness import soundness
from portcullis.robustness.attacks import CHEAP, Attack, planned_attacks, unbounded_attack
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verdict import Conclusion, Question, judge_in_turn, least_count
from portcullis.robustness.verify import Ball, adversarial, margin, untouched

UNBOUNDED_SAMPLES = 128
MIN_UNBOUNDED_SUCCESS = 0.99
MAX_LEAD_OF_FGSM = 0.01
EXAMPLES = 6


@dataclass(frozen=True)
class Tried:
    """What one attack did: on how many correctly classified samples it ran, how many it broke, and its cost.

    `cost` is in forward-equivalents: 1 for a row's forward pass, 2 for its backward pass.
    """

    ball: Ball
    tried: int
    broken: int
    cost: int


@dataclass(frozen=True)
class Example:
    """A sample and what an attack made of it, both of the model's input shape in [0, 1], and the two classes."""

    attack: str
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    label: str
    answer: str


@dataclass(frozen=True)
class RobustnessReport:
    """What was measured.

    Attributes:
        figures: `samples`; `classes`; `clean_accuracy`; `robust_accuracy` (share of samples that are classified
            correctly and withstand every attack); `robust_accuracy_fgsm`, `_pgd`, `_apgd`, `_cw`, `_deepfool` (share
            that are classified correctly and withstand that one); `unbounded_success` (share of samples that an
            unbounded attack breaks, at least 0.99); `smallest_gradient` (least L2 norm of the margin's input gradient,
            above 0); `gradient_agreement` (share of points where the gradient tells the margin's change);
            `planted_found` (share of planted adversarial examples that the attack finds); `gradient_free` (of samples
            that all attacks left, how many noise or Square breaks); `batch_difference` (largest change of a logit when
            its sample is alone, in median margins, at most 0.001); `forward_equivalents`; `device`, `cpu` or `cuda`.
            Accuracies and shares are in 0..1. In `verdict` mode `robust_accuracy` is the low end of an interval and
            `robust_accuracy_high` its other end; `judged` of `pool` samples, which withstand FGSM and PGD, met all
            attacks; `stop` is `certain`, `sequential` or `exhausted`; and only FGSM and PGD have figures of their own.
        attacks: By name, what each attack did.
        curve: By Linf radius, the share of some correctly classified samples that withstand PGD.
        examples: A few samples that were broken.
    """

    figures: Mapping[str, int | float | str]
    attacks: Mapping[str, Tried] = field(default_factory=dict)
    curve: Mapping[float, float] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()


def evaluate(
    model: LoadedModel,
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    settings: RobustnessSettings,
    question: Question | None = None,
) -> RobustnessReport:
    """Attack a model. The model and PyTorch's global random generator are afterwards as they were, errors or not.

    Args:
        model: The model.
        features: Raw features (N, D) in the model's bounds.
        labels: Class indices (N,), integers in [0, k), of all k classes.
        settings: The plan.
        question: What `verdict` mode must decide.

    Raises:
        InconclusiveError: Nothing could be judged: too few samples or a class without one; malformed or non-finite
            features; a model that is hardly better than chance, returns probabilities, or whose logits are not finite
            or depend on the other samples of a batch, or whose gradients vanish or mislead; an attack that fails, loses
            its way or misses what was planted; `verdict` mode without a question.
    """
    if settings.mode == "verdict" and question is None:
        raise InconclusiveError("mode=verdict needs a bound on robust_accuracy to judge by")
    inputs, targets = _tensors(model, features, labels, settings)
    device = choose_device()
    with reproducible(settings.seed, device), untouched(model.module):
        try:
            module = model.module if device.type == "cpu" else copy.deepcopy(model.module).to(device)
            inputs, targets = inputs.to(device), targets.to(device)
            asked = question if settings.mode == "verdict" else None
            return _measure(_Counted(module), inputs, targets, model.spec.labels, settings, asked)
        except FOREIGN_ERRORS as error:
            raise InconclusiveError(f"the model could not be attacked: {type(error).__name__}: {error}") from error


class _Counted(torch.nn.Module):
    """A network that counts its forward-equivalents."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.cost = 0
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(inputs)
        self.cost += len(inputs)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._add(2 * len(inputs)))  # type: ignore[no-untyped-call]
        return logits

    def _add(self, cost: int) -> None:
        self.cost += cost


@dataclass
class _Outcome:
    """What an attack found among n rows: broken (n,) bool, its candidates for the first few, and its cost."""

    broken: torch.Tensor
    candidates: torch.Tensor
    cost: int


def _measure(
    module: _Counted,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    classes: tuple[str, ...],
    settings: RobustnessSettings,
    question: Question | None,
) -> RobustnessReport:
    logits = soundness.clean_logits(module, inputs, len(classes))
    margins = margin(logits, targets)
    hits = margins > 0
    soundness.require_better_than_chance(hits, targets, len(classes))
    median_margin = float(margins[hits].median())
    batch_difference = soundness.batch_difference(module, inputs, logits, median_margin)
    inputs, targets = inputs[hits], targets[hits]
    epsilon, seed, samples = settings.epsilon, settings.seed, len(hits)
    smallest_gradient = soundness.smallest_gradient(module, inputs, targets)
    agreement = soundness.gradient_agreement(module, inputs, targets, epsilon=epsilon, seed=seed)
    unbounded_success = _unbounded_success(module, median_margin, inputs, targets)
    planted_found = soundness.planted_found(
        module, inputs, median_margin=median_margin, epsilon=epsilon, steps=settings.apgd_steps, seed=seed
    )
    plan = planned_attacks(module, median_margin, settings)
    outcomes = {name: _run(attack, module, inputs, targets) for name, attack in plan.items() if name in CHEAP}
    robust = {name: int((~outcome.broken).sum()) / samples for name, outcome in outcomes.items()}
    if robust["pgd"] > robust["fgsm"] + MAX_LEAD_OF_FGSM:
        raise InconclusiveError("one step of FGSM breaks more samples than all steps of PGD; the gradients mislead")
    curve = soundness.curve(module, inputs, targets, epsilon=epsilon, seed=seed)
    broken = torch.stack([outcome.broken for outcome in outcomes.values()]).any(dim=0)
    attacks = {name: _tried(plan[name], outcome) for name, outcome in outcomes.items()}
    later = {name: attack for name, attack in plan.items() if name not in CHEAP}
    interval: dict[str, int | float | str] = {}
    if question is None:
        for name, attack in later.items():
            outcomes[name] = _run(attack, module, inputs, targets)
            attacks[name] = _tried(attack, outcomes[name])
            robust[name] = int((~outcomes[name].broken).sum()) / samples
            broken |= outcomes[name].broken
        left = ~broken
        conclusion = Conclusion(int(left.sum()), int(left.sum()), len(left), "exhausted")
    else:
        left, conclusion = _until_known(later, module, inputs, targets, broken, question, settings, samples, attacks)
        interval = {"pool": int((~broken).sum()), "judged": conclusion.judged, "stop": conclusion.stop}
    free = soundness.gradient_free(module, inputs[left], targets[left], epsilon=epsilon, seed=seed)
    found = int(free.sum())
    if question is not None:
        interval["robust_accuracy_high"] = conclusion.high / samples
    return RobustnessReport(
        figures={
            "samples": samples,
            "classes": len(classes),
            "clean_accuracy": soundness.share(hits),
            "robust_accuracy": max(conclusion.low - found, 0) / samples,
            **{f"robust_accuracy_{name}": share for name, share in robust.items()},
            **interval,
            "unbounded_success": unbounded_success,
            "smallest_gradient": smallest_gradient,
            "gradient_agreement": agreement,
            "planted_found": planted_found,
            "gradient_free": found,
            "batch_difference": batch_difference,
            "forward_equivalents": module.cost,
            "device": inputs.device.type,
        },
        attacks=attacks,
        curve=curve,
        examples=_examples(module, inputs, targets, classes, outcomes),
    )


def _until_known(
    later: Mapping[str, Attack],
    module: _Counted,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    broken: torch.Tensor,
    question: Question,
    settings: RobustnessSettings,
    samples: int,
    attacks: dict[str, Tried],
) -> tuple[torch.Tensor, Conclusion]:
    """Run the later attacks on what is not broken until the verdict is known, and add to `attacks` what they did.

    Returns:
        Which rows (n,) met all attacks and withstood them; and the conclusion.
    """
    pool = (~broken).nonzero()[:, 0]
    withstood = torch.zeros_like(broken)

    def judge(places: NDArray[np.int64]) -> NDArray[np.bool_]:
        rows = pool[torch.from_numpy(places).to(pool.device)]
        for name, attack in later.items():
            left = rows if name == next(iter(later)) else rows[withstood[rows]]
            if not len(left):
                break
            outcome = _run(attack, module, inputs[left], targets[left])
            withstood[left] = ~outcome.broken
            now, before = _tried(attack, outcome), attacks.get(name)
            attacks[name] = now if before is None else _added(before, now)
        return withstood[rows].cpu().numpy()

    need = least_count(question.threshold, samples)
    conclusion = judge_in_turn(question.order(len(pool)), judge, need=need, n_min=settings.n_min)
    return withstood, conclusion


def _unbounded_success(module: _Counted, median_margin: float, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    attack = unbounded_attack(module, median_margin)
    success = soundness.share(_run(attack, module, inputs[:UNBOUNDED_SAMPLES], targets[:UNBOUNDED_SAMPLES]).broken)
    if not success >= MIN_UNBOUNDED_SUCCESS:
        raise InconclusiveError(
            f"even an unbounded attack breaks only {success:.1%} of samples; the gradients cannot be followed"
        )
    return success


def _run(attack: Attack, module: _Counted, inputs: torch.Tensor, targets: torch.Tensor) -> _Outcome:
    before = module.cost
    broken: list[torch.Tensor] = []
    shown: list[torch.Tensor] = []
    for clean, labels in zip(torch.split(inputs, soundness.CHUNK), torch.split(targets, soundness.CHUNK), strict=True):
        candidates = attack.propose(clean, labels).detach()
        if not candidates.isfinite().all():
            raise InconclusiveError("an attack lost its way in values that are not finite")
        broken.append(adversarial(module, clean, candidates, labels, attack.ball))
        if not shown:
            shown.append(candidates)
    cost = module.cost - before
    return _Outcome(torch.cat(broken), shown[0], cost)


def _tried(attack: Attack, outcome: _Outcome) -> Tried:
    return Tried(attack.ball, len(outcome.broken), int(outcome.broken.sum()), outcome.cost)


def _added(first: Tried, second: Tried) -> Tried:
    return Tried(first.ball, first.tried + second.tried, first.broken + second.broken, first.cost + second.cost)


def _examples(
    module: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    classes: tuple[str, ...],
    outcomes: Mapping[str, _Outcome],
) -> tuple[Example, ...]:
    """Return the first samples that an attack on all samples broke, each by another attack in turn where it can be."""
    chosen: dict[int, str] = {}
    names = list(outcomes)
    for turn in range(EXAMPLES):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            first = outcomes[name].broken[: len(outcomes[name].candidates)].nonzero()[:, 0].tolist()
            fresh = [place for place in first if place not in chosen]
            if fresh:
                chosen[fresh[0]] = name
                break
    examples = []
    for place, name in chosen.items():
        changed = outcomes[name].candidates[place]
        with torch.no_grad():
            answer = int(module(changed[None])[0].argmax())
        examples.append(
            Example(
                name,
                inputs[place].cpu().numpy(),
                changed.cpu().numpy(),
                classes[int(targets[place])],
                classes[answer],
            )
        )
    return tuple(examples)


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
