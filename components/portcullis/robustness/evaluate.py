"""The robustness gate's measurement.

A sample is robust when the model classifies it correctly and no attack finds an adversarial input for it: the worst
case over the attacks, sample by sample. In `full` mode every attack runs on every sample that is classified correctly,
so an attack's own figure does not depend on the others; in `verdict` mode later ones run on what earlier ones left, and
only until the verdict is known. "Robust" means that this plan found nothing, not that there is nothing.

Measuring robustness wrongly is easy and flatters the model (Carlini et al. 2019, arXiv:1902.06705; Athalye et al. 2018,
arXiv:1802.00420). So conditions under which the attacks prove little make the measurement inconclusive.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import DataError, InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.models.margin import margin
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import LoadedModel
from portcullis.robustness import soundness
from portcullis.robustness.attacks import CHEAP, planned_attacks, unbounded_attack
from portcullis.robustness.proposal import Target
from portcullis.robustness.report import MIN_UNBOUNDED_SUCCESS, Example, RobustnessReport, Tried
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.trial import Counted, Rows, Trial, affordable_rows
from portcullis.robustness.verdict import Conclusion, Question, judge_in_turn, least_count
from portcullis.robustness.verify import adversarial, untouched

UNBOUNDED_SAMPLES = 128
MAX_LEAD_OF_FGSM = 0.01
EXAMPLES = 6


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
            # Convolutions of few channels are faster so; attacks and their figures stay the same within rounding.
            module = copy.deepcopy(model.module).to(device)
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs, targets = inputs.to(device), targets.to(device)
            asked = question if settings.mode == "verdict" else None
            counted = Counted(module, len(model.spec.labels), affordable_rows(module, inputs)).to(device)
            return _measure(counted, inputs, targets, model.spec.labels, settings, asked)
        except FOREIGN_ERRORS as error:
            raise InconclusiveError(f"the model could not be attacked: {type(error).__name__}: {error}") from error


def _measure(
    module: Counted,
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
    samples, rows = len(hits), Rows(inputs[hits], targets[hits])
    target = Target(module, len(classes), float(margins[hits].median()))
    trials = {name: Trial.of(attack, rows) for name, attack in planned_attacks(target, settings).items()}
    figures: dict[str, Figure] = {
        "samples": samples,
        "classes": len(classes),
        "clean_accuracy": soundness.share(hits),
        "device": inputs.device.type,
    }
    curve: Mapping[float, float] = {}
    need = None if question is None else least_count(question.threshold, samples)
    few = None if need is None else _too_few(module, rows, trials, need)
    if few is not None:
        # What is broken is broken, however soundly the rest could have been measured.
        conclusion = Conclusion(0, few, 0, "certain")
        figures |= _interval(conclusion, few, samples)
    else:
        figures["batch_difference"] = soundness.batch_difference(module, inputs, logits, target.median_margin)
        figures |= _soundness(target, rows, settings)
        for name in CHEAP:
            trials[name].run_all(module, rows, (~trials[name].ran).nonzero()[:, 0])
        _require_pgd_no_weaker_than_fgsm(trials, samples)
        curve = soundness.curve(module, rows.inputs, rows.targets, epsilon=settings.epsilon, seed=settings.seed)
        if question is None or need is None:
            for trial in trials.values():
                trial.run_all(module, rows, (~trial.ran).nonzero()[:, 0])
            whole = int((~_broken(trials)).sum())
            conclusion = Conclusion(whole, whole, len(rows), "exhausted")
        else:
            pool = int((~_broken(trials)).sum())
            conclusion = _until_known(module, rows, trials, question, need=need, n_min=settings.n_min)
            figures |= _interval(conclusion, pool, samples)
        left = ~_broken(trials) & torch.stack([trial.ran for trial in trials.values()]).all(dim=0)
        epsilon, seed = settings.epsilon, settings.seed
        free = soundness.gradient_free(module, rows.inputs[left], rows.targets[left], epsilon=epsilon, seed=seed)
        left[left.clone()] = ~free
        withstood = Rows(rows.inputs[left], rows.targets[left])
        figures["gradient_reach"] = soundness.gradient_reach(
            module, withstood.inputs, withstood.targets, epsilon=epsilon
        )
        averaged = soundness.gradient_averaged(
            module, withstood.inputs, withstood.targets, samples=len(rows), epsilon=epsilon, seed=seed
        )
        figures["gradient_free"], figures["gradient_averaged"] = int(free.sum()), int(averaged.sum())
        found = int(free.sum() + averaged.sum())
        conclusion = dataclasses.replace(conclusion, low=max(conclusion.low - found, 0))
    robust = {
        f"robust_accuracy_{name}": int((~trial.broken).sum()) / samples
        for name, trial in trials.items()
        if trial.ran.all()
    }
    examples = _examples(module, rows, classes, trials)
    cost = {"robust_accuracy": conclusion.low / samples, "forward_equivalents": module.cost}
    tried = {
        name: Tried(trial.attack.ball, int(trial.ran.sum()), int(trial.broken.sum()), trial.cost)
        for name, trial in trials.items()
        if trial.ran.any()
    }
    return RobustnessReport({**figures, **robust, **cost}, attacks=tried, curve=curve, examples=examples)


def _too_few(module: Counted, rows: Rows, trials: Mapping[str, Trial], need: int) -> int | None:
    """Run the cheap attacks, each on what is left, until fewer rows than `need` are left.

    Returns:
        How many are left then, or None if they are not fewer.
    """
    if len(rows) < need:
        return len(rows)
    for name in CHEAP:
        for _ in trials[name].run(module, rows, (~_broken(trials)).nonzero()[:, 0]):
            left = int((~_broken(trials)).sum())
            if left < need:
                return left
    return None


def _until_known(
    module: Counted, rows: Rows, trials: Mapping[str, Trial], question: Question, *, need: int, n_min: int
) -> Conclusion:
    """Run the later attacks on what the cheap ones left, in the question's order, until the verdict is known."""
    pool = (~_broken(trials)).nonzero()[:, 0]

    def judge(places: NDArray[np.int64]) -> NDArray[np.bool_]:
        chosen = pool[torch.from_numpy(places).to(pool.device)]
        left = chosen
        for name, trial in trials.items():
            if name in CHEAP:
                continue
            trial.run_all(module, rows, left)
            # A row that is broken is done with.
            left = left[~trial.broken[left]]
        withstood = torch.zeros_like(rows.targets, dtype=torch.bool)
        withstood[left] = True
        result: NDArray[np.bool_] = withstood[chosen].cpu().numpy()
        return result

    return judge_in_turn(question.order(len(pool)), judge, need=need, n_min=n_min)


def _broken(trials: Mapping[str, Trial]) -> torch.Tensor:
    return torch.stack([trial.broken for trial in trials.values()]).any(dim=0)


def _interval(conclusion: Conclusion, pool: int, samples: int) -> dict[str, Figure]:
    return {
        "robust_accuracy_high": conclusion.high / samples,
        "pool": pool,
        "judged": conclusion.judged,
        "stop": conclusion.stop,
    }


def _soundness(target: Target, rows: Rows, settings: RobustnessSettings) -> dict[str, Figure]:
    module, inputs, targets = target.module, rows.inputs, rows.targets
    epsilon, seed = settings.epsilon, settings.seed
    smallest = soundness.smallest_gradient(module, inputs, targets)
    agreement = soundness.gradient_agreement(module, inputs, targets, epsilon=epsilon, seed=seed)
    attack = unbounded_attack(target)
    first, labels = inputs[:UNBOUNDED_SAMPLES], targets[:UNBOUNDED_SAMPLES]
    success = soundness.share(adversarial(module, first, attack.propose(first, labels), labels, attack.ball))
    if not success >= MIN_UNBOUNDED_SUCCESS:
        raise InconclusiveError(
            f"even an unbounded attack breaks only {success:.1%} of samples; the gradients cannot be followed"
        )
    planted = soundness.planted_found(
        module, inputs, median_margin=target.median_margin, epsilon=epsilon, steps=settings.apgd_steps, seed=seed
    )
    return {
        "smallest_gradient": smallest,
        "gradient_agreement": agreement,
        "unbounded_success": success,
        "planted_found": planted,
    }


def _require_pgd_no_weaker_than_fgsm(trials: Mapping[str, Trial], samples: int) -> None:
    lead = int(trials["fgsm"].broken.sum()) - int(trials["pgd"].broken.sum())
    if lead > MAX_LEAD_OF_FGSM * samples:
        raise InconclusiveError("one step of FGSM breaks more samples than all steps of PGD; the gradients mislead")


def _examples(
    module: torch.nn.Module, rows: Rows, classes: tuple[str, ...], trials: Mapping[str, Trial]
) -> tuple[Example, ...]:
    """Return a few samples that were broken, each by another attack in turn where it can be."""
    chosen: dict[int, str] = {}
    names = [name for name, trial in trials.items() if trial.shown]
    for turn in range(EXAMPLES):
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else ():
            fresh = [place for place in trials[name].shown if place not in chosen]
            if fresh:
                chosen[fresh[0]] = name
                break
    examples = []
    for place, name in chosen.items():
        changed = trials[name].shown[place]
        with torch.no_grad():
            answer = int(module(changed[None])[0].argmax())
        clean, label = rows.inputs[place].cpu().numpy(), classes[int(rows.targets[place])]
        examples.append(Example(name, clean, changed.cpu().numpy(), label, classes[answer]))
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
