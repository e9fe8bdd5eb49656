"""Whether attacks on a model prove anything: what must hold before a measurement of robustness is believed.

Attacks that follow gradients say nothing of a model whose gradients lead nowhere, and then it looks robust. Each check
here returns its figure, or refuses. Sources: Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019,
arXiv:1902.06705; Pintor et al. 2022, arXiv:2106.09947; Zimmermann et al. 2022, arXiv:2206.13991.

All take a network in `eval()` mode and, except where they say otherwise, rows (n, ...) in [0, 1] that it classifies
correctly with their labels (n,). `median_margin` is the median of its margins on those, the unit of its logits.
"""

import itertools
import math
from collections.abc import Mapping

from portcullis.errors import InconclusiveError
from portcullis.models.margin import margin
from portcullis.models.pytorch import torch
from portcullis.robustness import native
from portcullis.robustness.report import (
    MAX_BATCH_DIFFERENCE,
    MIN_AGREEMENT,
    MIN_PLANTED_FOUND,
    MIN_REACH,
    TOLERATED_SHARE,
    Ball,
)
from portcullis.robustness.verify import adversarial, inside

CHUNK = 128
CHECKED_SAMPLES = 32
MIN_TIMES_CHANCE = 1.5

DIFFERENCE_STEP = 0.01
MAX_DISAGREEMENT = 0.5

PLANTED_DRAWS = 64

CURVE_SAMPLES = 96
CURVE_STEPS = 10
CURVE_RADII = (0.25, 0.5, 1.0, 1.5, 2.0)

FREE_SAMPLES = 96
NOISE_DRAWS = 20
SQUARE_QUERIES = 300

REACH_QUANTILE = 0.25
AVERAGED_SAMPLES = 32
AVERAGED_DRAWS = 32
AVERAGED_STEPS = 4


def clean_logits(module: torch.nn.Module, inputs: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the logits (N, classes) of all rows, correct or not."""
    with torch.no_grad():
        parts = [module(rows) for rows in torch.split(inputs, CHUNK)]
    for rows, part in zip(torch.split(inputs, CHUNK), parts, strict=True):
        if part.shape != (len(rows), classes) or part.dtype != torch.float32 or not part.isfinite().all():
            raise InconclusiveError(f"the model does not return {classes} finite float32 logits for each sample")
    logits = torch.cat(parts)
    # Probabilities round to exactly 0 and 1, where no gradient is left. A sure model's gradient would vanish unseen.
    if ((logits >= 0) & (logits <= 1)).all() and ((logits.sum(dim=1) - 1).abs() < 1e-4).all():
        raise InconclusiveError("the model returns probabilities or labels; it must return logits, without softmax")
    return logits


def require_better_than_chance(hits: torch.Tensor, targets: torch.Tensor, classes: int) -> None:
    """Refuse a model that is hardly better than chance; takes all rows' hits (N,) and labels (N,).

    A model that always answers the commonest class cannot be moved from it, so it would look robust.
    """
    commonest = int(targets.bincount(minlength=classes).max()) / len(targets)
    floor = max(MIN_TIMES_CHANCE / classes, commonest)
    if not share(hits) > floor:
        raise InconclusiveError(f"clean accuracy {share(hits):.3f} is not above {floor:.3f}, hardly better than chance")


def batch_difference(
    module: torch.nn.Module, inputs: torch.Tensor, logits: torch.Tensor, median_margin: float
) -> float:
    """Return the largest change of a logit, in median margins, when its row is alone or gradients are computed.

    Takes all rows and their logits, correct or not.
    """
    first = inputs[:CHECKED_SAMPLES]
    with torch.no_grad():
        alone = torch.cat([module(row) for row in torch.split(first, 1)])
    watched = module(first.clone().requires_grad_()).detach()
    known = logits[:CHECKED_SAMPLES]
    # torch's maximum hands NaN on, Python's may not.
    difference = float(torch.stack([(alone - known).abs().max(), (watched - known).abs().max()]).max()) / median_margin
    if not difference <= MAX_BATCH_DIFFERENCE:
        raise InconclusiveError(
            f"a sample's logits change by {difference:.2g} median margins when it is alone; they must not depend "
            "on chance, on whether gradients are computed or on the other samples of a batch, nor drown in rounding"
        )
    return difference


def smallest_gradient(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the least L2 norm of the margin's input gradient, which must be above 0."""
    norms: list[torch.Tensor] = []
    for rows, labels in zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True):
        norms.append(_margin_gradient(module, rows, labels).flatten(1).norm(dim=1))
    smallest = float(torch.cat(norms).min())  # NaN if any is
    if not (math.isfinite(smallest) and smallest > 0):
        raise InconclusiveError("the margin has no finite input gradient above zero for every sample")
    return smallest


def gradient_agreement(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, epsilon: float, seed: int
) -> float:
    """Return the share of points where the margin changes along its gradient as the gradient says.

    Points are each row and a random one in its ball, both moved off the ends of the range. A step of 0.01 in L2 to both
    sides is small beside the kinks of a network, and large beside rounding. Gradients that are made up for the backward
    pass, as those of straight-through estimators, disagree.
    """
    rows, labels = inputs[:CHECKED_SAMPLES], targets[:CHECKED_SAMPLES]
    generator = native.generator_of(seed, rows.device)
    shift = torch.rand(rows.shape, generator=generator, device=rows.device) * 2 - 1
    points = torch.cat([rows, rows + epsilon * shift]).clamp(DIFFERENCE_STEP, 1 - DIFFERENCE_STEP)
    both = torch.cat([labels, labels])
    gradient = _margin_gradient(module, points, both)
    length = gradient.flatten(1).norm(dim=1)
    step = (
        DIFFERENCE_STEP
        * gradient
        / length.clamp(min=torch.finfo(torch.float32).tiny).view(-1, *[1] * (points.dim() - 1))
    )
    with torch.no_grad():
        measured = (margin(module(points + step), both) - margin(module(points - step), both)) / (2 * DIFFERENCE_STEP)
    agreement = share((measured - length).abs() <= MAX_DISAGREEMENT * length)
    if not agreement >= MIN_AGREEMENT:
        raise InconclusiveError(
            f"the margin changes as its gradient says at only {agreement:.1%} of points; the gradients are not its own"
        )
    return agreement


def planted_found(
    module: torch.nn.Module, inputs: torch.Tensor, *, median_margin: float, epsilon: float, steps: int, seed: int
) -> float:
    """Return the share of planted adversarial examples that this gate's own APGD finds on this model.

    For each row the decision is replaced by a random linear readout of the logits. Of some random points in the ball,
    the one furthest along the readout is planted: the row counts as broken where the readout is no less than there. An
    attack that does not find what is known to exist proves nothing by finding nothing (Zimmermann et al. 2022).
    """
    rows = inputs[:CHECKED_SAMPLES]
    generator = native.generator_of(seed, rows.device)
    points = rows[:, None] + epsilon * _signs_or_uniform(rows, generator)
    points = points.clamp(0, 1)
    with torch.no_grad():
        logits = module(points.flatten(0, 1)).unflatten(0, points.shape[:2]) / median_margin
        start = module(rows) / median_margin
    readout = torch.randn(start.shape, generator=generator, device=rows.device)
    reach = (logits * readout[:, None]).sum(dim=2).amax(dim=1)
    here = (start * readout).sum(dim=1)
    # The batch that a logit is computed in may change its last digits.
    level = reach - 1e-3 * (reach - here)

    def along(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ahead: torch.Tensor = (logits / median_margin * readout[places]).sum(dim=1) - level[places]
        return ahead

    planted = (reach - here > 1e-4) & reach.isfinite()
    found = native.apgd(
        module, rows, along, lambda logits, places: along(logits, places) >= 0, epsilon=epsilon, steps=steps,
        generator=generator,
    )  # fmt: skip
    with torch.no_grad():
        broken = along(module(found), torch.arange(len(rows), device=rows.device)) >= 0
    broken &= inside(Ball("linf", epsilon), rows, found)
    result = int((broken & planted).sum()) / max(int(planted.sum()), 1)
    if not result >= MIN_PLANTED_FOUND:
        raise InconclusiveError(
            f"the attack finds only {result:.1%} of adversarial examples that were planted in the model; that it finds "
            "no others proves nothing"
        )
    return result


def curve(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, epsilon: float, seed: int
) -> Mapping[float, float]:
    """Return, by Linf radius, the share of rows that withstand PGD on the margin; it must not rise with the radius."""
    rows, labels = inputs[:CURVE_SAMPLES], targets[:CURVE_SAMPLES]
    left: dict[float, float] = {0.0: 1.0}
    for times in CURVE_RADII:
        radius = min(times * epsilon, 1.0)
        found = native.pgd(
            module,
            rows,
            native.margin_loss(labels),
            native.misclassified(labels),
            epsilon=radius,
            steps=CURVE_STEPS,
            generator=native.generator_of(seed, rows.device),
        )
        left[radius] = share(~adversarial(module, rows, found, labels, Ball("linf", radius)))
    require_falling(left, len(rows))
    return left


def require_falling(left: Mapping[float, float], samples: int) -> None:
    """Refuse shares by radius that rise: whatever breaks a row at a small radius would break it at a larger one."""
    shares = [left[radius] for radius in sorted(left)]
    for smaller, larger in itertools.pairwise(shares):
        if not larger <= smaller + max(TOLERATED_SHARE, 1.5 / samples):
            raise InconclusiveError(
                f"{larger:.1%} of samples withstand an attack of which a smaller radius leaves {smaller:.1%}; the "
                "gradients mislead"
            )


def gradient_free(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, epsilon: float, seed: int
) -> torch.Tensor:
    """Return which of these rows, that withstood all attacks, noise or Square breaks after all: (n,) bool.

    Neither uses gradients, so neither should find much that the others did not.
    """
    rows, labels = inputs[:FREE_SAMPLES], targets[:FREE_SAMPLES]
    broken = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if not len(rows):
        return broken
    generator = native.generator_of(seed, rows.device)
    ball = Ball("linf", epsilon)
    found = native.noise(module, rows, labels, epsilon=epsilon, draws=NOISE_DRAWS, generator=generator)
    first = adversarial(module, rows, found, labels, ball)
    found = native.square(module, rows, labels, epsilon=epsilon, queries=SQUARE_QUERIES, generator=generator)
    first |= adversarial(module, rows, found, labels, ball)
    broken[: len(rows)] = first
    count = int(first.sum())
    if count > 1 and not count <= TOLERATED_SHARE * len(rows):
        raise InconclusiveError(
            f"attacks without gradients break {count} of {len(rows)} samples that all others left; the gradients "
            "mislead"
        )
    return broken


def gradient_reach(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, epsilon: float) -> float:
    """Return how much of the fall that the gradient says is there over a whole radius, on rows that withstood all.

    Of each row, the margin's fall over a step of `epsilon` against the gradient's sign, within [0, 1], over that of the
    margin as a linear function; of all, the lower quartile, and 1 where there are no rows. A ripple too fine for
    `gradient_agreement` to tell from the margin's own slope has a gradient that says far more. Networks that were
    trained, plainly or adversarially, were above 0.7 at radii up to 0.3, and above 0.5 at 0.45; ripples that deceived
    all attacks were below 0.18.
    """
    if not len(inputs):
        return 1.0
    rows, labels = inputs[:CHUNK], targets[:CHUNK]
    gradient = _margin_gradient(module, rows, labels)
    moved = (rows - epsilon * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        fall = margin(module(rows), labels) - margin(module(moved), labels)
    said = (gradient * (rows - moved)).flatten(1).sum(dim=1)
    # Where all that would help is at the end of its range already, no step is taken and no fall is foretold.
    still = (moved == rows).flatten(1).all(dim=1) & (gradient != 0).flatten(1).any(dim=1)
    reach = float(torch.where(still, 1, fall / said).quantile(REACH_QUANTILE))  # NaN if any is
    if not (math.isfinite(reach) and reach >= MIN_REACH):
        raise InconclusiveError(
            f"at the edge of the ball the margin fell by {reach:.2g} of what the gradient says, on samples that all "
            "attacks left; the gradients mislead"
        )
    return reach


def gradient_averaged(
    module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, *, samples: int, epsilon: float, seed: int
) -> torch.Tensor:
    """Return which of these rows, that withstood all else, gradients averaged over the ball break: (n,) bool.

    Of `samples` rows that are classified correctly they may break as few as chance may tip. Where few are left, all of
    them are close to a boundary, and another attack breaks some.
    """
    rows, labels = inputs[:AVERAGED_SAMPLES], targets[:AVERAGED_SAMPLES]
    broken = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    if not len(rows):
        return broken
    found = native.averaged(
        module, rows, labels, epsilon=epsilon, draws=AVERAGED_DRAWS, steps=AVERAGED_STEPS,
        generator=native.generator_of(seed, rows.device),
    )  # fmt: skip
    broken[: len(rows)] = adversarial(module, rows, found, labels, Ball("linf", epsilon))
    count = int(broken.sum())
    if count > 1 and not count / len(rows) * len(inputs) <= TOLERATED_SHARE * samples:
        raise InconclusiveError(
            f"averaged gradients break {count} of {len(rows)} samples that all others left; the gradients mislead"
        )
    return broken


def share(hits: torch.Tensor) -> float:
    """Return the share of true ones, in 0..1."""
    return int(hits.sum()) / len(hits)


def _margin_gradient(module: torch.nn.Module, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    moved = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(module(moved), labels).sum(), moved)
    return gradient


def _signs_or_uniform(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = (len(rows), PLANTED_DRAWS, *rows.shape[1:])
    drawn = torch.rand(shape, generator=generator, device=rows.device) * 2 - 1
    drawn[:, ::2] = drawn[:, ::2].sign()
    return drawn
