"""An audit of the private trainer in one run: is it as private as its certificate says?

A copy is trained by the very same code, noise, sampling rate and steps, on rows that are made up, so that the audit
costs no privacy and needs none of the data. Three things are looked at:

1. **Canaries** (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846). A fair coin each decides which rows are trained on.
   The auditor sees what each step releases, estimates by least squares how much of each row's clipped gradient is in
   it, and guesses. Whoever is (epsilon, delta)-private cannot be guessed too well; how well it was guessed is an exact
   p-value for each epsilon, and those that are ruled out give a lower bound.
2. **Sampling**: which rows the network was given at each step, as it saw them, beside what Poisson sampling gives.
3. **Clipping and noise**: what each step released, less the sum of the rows' clipped gradients, beside Gaussian noise
   of the deviation that the certificate names.

A low bound proves nothing: it is what this attack found. The second and third are sharper, and all of them judge this
code as it is installed here, not the very process that trained the model.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch.optim.optimizer import register_optimizer_step_pre_hook

from portcullis.dp_training import private
from portcullis.dp_training.accounting import Plan
from portcullis.dp_training.noise import RandomStream
from portcullis.dp_training.settings import AuditSettings, PrivateSettings
from portcullis.errors import InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.models.pytorch import choose_device, reproducible, torch
from portcullis.models.store import ModelSpec, build_module

functional = torch.nn.functional

_SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of the canaries, about which the auditor dares to guess
_MOST = 64.0  # epsilon that a bound is looked for below
_WHOLE = 1 << 40  # bytes: the gradients of a batch are not computed in pieces, so that they can be followed
_ESTIMATES = 40  # steps, about, in which each canary's gradient is looked for
_RIDGE = 1e-6  # relative, against gradients that are the same
_HAIR = 1e-5  # of the scaled input, by which a row that was looked up may differ for rounding


def audit(
    spec: ModelSpec, planned: Plan, settings: PrivateSettings, audited: AuditSettings, *, coins: bytes
) -> dict[str, Figure]:
    """Train a copy on made-up rows and return what was found.

    Args:
        spec: The model's.
        planned: What the certificate says was done.
        settings: How the model was trained.
        audited: How thorough the audit is.
        coins: Secret bytes that rows and coins follow from, so that the same audit is the same again. The trainer must
            not know them; its own noise is fresh each time.

    Returns:
        `epsilon_lower`, the lower bound of epsilon that the canaries give; how many of them there were (`canaries`),
        were guessed (`guesses`) and guessed right (`guessed_right`), where the bound is the largest;
        `sampling_p_value`; `noise_ratio`, the deviation of the noise as measured by the one that was stated, and
        `noise_p_value`; `clipping_p_value`, of that noise having nothing to do with the clipped gradients, nor with
        what clipping took off; `steps_seen`.

    Raises:
        InconclusiveError: What the trainer did cannot be followed.
        ModelError: The copy cannot be trained.
        UsageError: CUDA was asked for and is not there.
    """
    rows = MadeUpRows.draw(spec, audited.canaries, coins)
    device = choose_device(settings.device)
    with reproducible(settings.seed, device):
        module = build_module(spec).to(device)
        private.require_private(module, rows.inputs.shape[1:])
        watch = Watch(module, rows.to(device), planned, settings)
        inputs, targets = rows.inputs[rows.kept].to(device), rows.targets[rows.kept].to(device)
        with watch.over(module, inputs):
            private.fit(module, inputs, targets, planned, settings, RandomStream(), gradient_bytes=_WHOLE)
    if not np.isfinite(watch.scores).all():
        raise InconclusiveError("the audited copy has gradients that are not finite")
    found = lower_bound(watch.scores, rows.kept.numpy(), settings.delta, confidence=audited.confidence)
    return {"canaries": audited.canaries, **found, **watch.figures()}


@dataclass(frozen=True, eq=False)
class MadeUpRows:
    """Canaries, which nobody is behind: inputs of high contrast, for large gradients, and random labels.

    Attributes:
        inputs: (canaries, *shape), float32 in [0, 1].
        targets: (canaries,), int64.
        kept: (canaries,), bool: by a fair coin each, whether it is trained on.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    kept: torch.Tensor

    @classmethod
    def draw(cls, spec: ModelSpec, canaries: int, coins: bytes) -> "MadeUpRows":
        """Draw them from secret bytes."""
        generator = np.random.default_rng(np.frombuffer(coins, np.uint8))
        inputs = generator.beta(0.1, 0.1, (canaries, *spec.shape)).astype(np.float32)
        targets = generator.integers(0, len(spec.labels), canaries)
        kept = generator.integers(0, 2, canaries).astype(bool)
        return cls(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(kept))

    def to(self, device: torch.device) -> "MadeUpRows":
        """Return them on a device; the coins stay where they are."""
        return MadeUpRows(self.inputs.to(device), self.targets.to(device), self.kept)


def lower_bound(
    scores: NDArray[np.float64], coins: NDArray[np.bool_], delta: float, *, confidence: float
) -> dict[str, Figure]:
    """Return what one run's canaries rule out.

    The auditor guesses that the canaries with the highest scores were trained on and those with the lowest were not,
    and abstains between. How many to guess is tried several times, for which the p-value is multiplied (Bonferroni).

    Args:
        scores: (m,), the higher the likelier trained on.
        coins: (m,), which were.
        delta: Of the claim.
        confidence: With which the bound holds, above 0 and below 1.

    Returns:
        `epsilon_lower`, 0 when nothing is ruled out; `guesses`; `guessed_right`.
    """
    count, order = len(scores), np.argsort(scores, kind="stable")
    best = (0.0, 0, 0)
    for share in _SHARES:
        half = max(1, round(share * count / 2))
        right = int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())
        alpha = (1 - confidence) / len(_SHARES)
        best = max(best, (_ruled_out(count, 2 * half, right, delta, alpha), 2 * half, right))
    return {"epsilon_lower": best[0], "guesses": best[1], "guessed_right": best[2]}


def _ruled_out(canaries: int, guesses: int, right: int, delta: float, alpha: float) -> float:
    """Return the largest epsilon whose p-value is at most `alpha`, rounded down; 0 for none."""
    low, high = 0.0, _MOST
    if p_value(canaries, guesses, right, 0.0, delta) > alpha:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) <= alpha else (low, middle)
    return low


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return how likely at most so many right guesses are if the trainer is (epsilon, delta)-private.

    Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), theorem 5.2, for coins that are fair and guesses that may abstain.

    Args:
        canaries: m, of which each is trained on with probability 1/2, each apart.
        guesses: How many of them were guessed about, at most m.
        right: How many of the guesses are right.
        epsilon: Of the claim, at least 0.
        delta: Of the claim, in [0, 1].
    """
    chance = 1 / (1 + math.exp(-epsilon))
    tail = stats.binom.sf(right - 1, guesses, chance)
    steps = np.arange(1, canaries + 1)
    more = stats.binom.sf(right - 1 - steps, guesses, chance) - tail
    return float(min(1.0, tail + 2 * canaries * delta * max(0.0, float((more / steps).max()))))


class Watch:
    """Follows a training from outside: what the network is given, and what each step releases.

    Attributes:
        scores: (canaries,), float64, the higher the more of a canary's gradient was in what was released.
    """

    def __init__(self, module: torch.nn.Module, canaries: MadeUpRows, planned: Plan, settings: PrivateSettings) -> None:
        self._network = copy.deepcopy(module).eval()  # before anything is hung on its layers
        self._canaries = canaries
        self._planned = planned
        self._settings = settings
        self._batch: torch.Tensor | None = None
        self._drawn: list[NDArray[np.int64]] = []
        self._squares = self._products = 0.0
        self._count = self._pairs = 0
        self._along, self._lengths = np.zeros(2), np.zeros(2)
        self._last: torch.Tensor | None = None
        self.scores = np.zeros(len(canaries.kept))

    @contextmanager
    def over(self, module: torch.nn.Module, inputs: torch.Tensor) -> Iterator[None]:
        """Watch what is done to `module`, which learns from `inputs`, until the block ends."""
        self._rows = inputs.flatten(1)
        given = module.register_forward_pre_hook(self._given)
        stepped = register_optimizer_step_pre_hook(self._stepped)
        try:
            yield
        finally:
            given.remove()
            stepped.remove()

    def _given(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if module.training and torch.is_grad_enabled():  # an attack inside training is in `eval()` mode
            self._batch = arguments[0].detach()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._batch is None:
            raise InconclusiveError("the trainer took a step without giving the network a batch")
        self._drawn.append(self._identified(self._batch.flatten(1)))
        weights = [it for group in optimizer.param_groups for it in group["params"]]
        released = self._released(weights)
        if (len(self._drawn) - 1) % max(1, self._planned.steps // _ESTIMATES) == 0:
            self._estimate(weights, released)
        noise, clipped, excess = self._noise(weights, released, len(self._batch))
        self._along += np.array([float(noise @ clipped), float(noise @ excess)])
        self._lengths += np.array([float(clipped @ clipped), float(excess @ excess)])
        self._squares += float((noise * noise).sum())
        self._count += noise.numel()
        if self._last is not None:
            self._products += float((noise * self._last).sum())
            self._pairs += noise.numel()
        self._last, self._batch = noise, None

    def _released(self, weights: list[torch.nn.Parameter]) -> torch.Tensor:
        """Return the sum of clipped gradients with its noise, flat, as anyone sees it who compares the weights."""
        gradients = [it.grad for it in weights]
        expected = self._planned.sampling_rate * self._planned.rows
        flat = [it.flatten().double() for it in gradients if it is not None]
        if len(flat) != len(gradients):
            raise InconclusiveError("the trainer does not move every weight")
        return expected * torch.cat(flat)

    def _estimate(self, weights: list[torch.nn.Parameter], released: torch.Tensor) -> None:
        """Add to each canary's score how much of its gradient is in what was released, by how sure that is."""
        names = [name for name, _ in self._network.named_parameters()]
        now = dict(zip(names, (it.detach() for it in weights), strict=True))

        def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            logits = torch.func.functional_call(self._network, parameters, (row[None],))
            lost: torch.Tensor = functional.cross_entropy(logits, target[None])
            return lost

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
            now, self._canaries.inputs, self._canaries.targets
        )
        each = self._clipped(torch.cat([gradients[name].flatten(1).double() for name in names], dim=1))
        gram = each @ each.T
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        inverse = torch.linalg.inv(gram)
        share = inverse @ (each @ released)
        self.scores += ((share - self._planned.sampling_rate / 2) / inverse.diagonal()).cpu().numpy()

    def _clipped(self, each: torch.Tensor) -> torch.Tensor:
        norm = self._settings.max_grad_norm
        clipped: torch.Tensor = each * (norm / each.norm(dim=1).clamp(min=norm))[:, None]
        return clipped

    def _identified(self, batch: torch.Tensor) -> NDArray[np.int64]:
        """Return which rows a batch is, although each may have been moved by an attack."""
        if not len(batch):
            return np.zeros(0, dtype=np.int64)
        nearest = torch.cdist(batch, self._rows).argmin(dim=1)
        apart = (batch - self._rows[nearest]).abs().max()
        if not apart <= self._settings.attack_epsilon + _HAIR:
            raise InconclusiveError("the trainer gave the network what is no row, or rows too near to be told apart")
        return nearest.cpu().numpy()

    def _noise(
        self, weights: list[torch.nn.Parameter], released: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what was added to the sum of the clipped gradients, that sum, and what clipping took off it.

        All are flat, in units of the stated deviation.
        """
        gradients = [getattr(it, "grad_sample", None) for it in weights]
        flat = [it.reshape(size, -1).double() for it in gradients if isinstance(it, torch.Tensor) and len(it) == size]
        if len(flat) != len(gradients):
            raise InconclusiveError("the trainer's gradients are not one for each row of the batch")
        each = torch.cat(flat, dim=1)
        clipped = self._clipped(each).sum(dim=0)
        deviation = self._planned.noise_multiplier * self._settings.max_grad_norm
        return (released - clipped) / deviation, clipped / deviation, (each.sum(dim=0) - clipped) / deviation

    def figures(self) -> dict[str, Figure]:
        """Return what was seen of sampling and noise.

        Raises:
            InconclusiveError: Fewer than two steps were seen, the noise is not finite, or nothing had to be clipped.
        """
        if self._pairs == 0 or not math.isfinite(self._squares):
            raise InconclusiveError("too few steps were seen, or what they added is not finite")
        if not (self._lengths > 0).all():
            raise InconclusiveError("no gradient was above max_grad_norm, so that clipping cannot be seen; lower it")
        spread = _two_sided((self._squares - self._count) / math.sqrt(2 * self._count))
        repeated = _two_sided(self._products / math.sqrt(self._pairs))
        return {
            "steps_seen": len(self._drawn),
            "sampling_p_value": sampling_p_value(self._drawn, len(self._rows), self._planned.sampling_rate),
            "noise_ratio": math.sqrt(self._squares / self._count),
            "noise_p_value": min(1.0, 2 * min(spread, repeated)),
            "clipping_p_value": min(1.0, 2 * min(map(_two_sided, self._along / np.sqrt(self._lengths)))),
        }


def sampling_p_value(drawn: list[NDArray[np.int64]], rows: int, rate: float) -> float:
    """Return how likely batches like these are if each row is in each with probability `rate`, each apart.

    Four things are compared, and the least of their p-values multiplied by four: how many rows were drawn in all; how
    far the sizes of the batches spread; how far the rows differ in how often they were drawn; and how many rows two
    batches in a row share. Shuffled epochs, batches of fixed size and a wrong rate each fail one of them.

    Args:
        drawn: For each of two or more steps, the indices of its rows.
        rows: How many there are to draw from.
        rate: The probability, above 0 and below 1.
    """
    steps = len(drawn)
    seen = np.zeros((steps, rows), dtype=bool)
    for step, batch in enumerate(drawn):
        seen[step, batch] = True
    if seen.sum() != sum(map(len, drawn)):  # a row twice in one batch
        return 0.0
    total, variance = int(seen.sum()), rate * (1 - rate)
    binomial = stats.binom(rows * steps, rate)
    in_all = min(1.0, 2 * min(binomial.cdf(total), binomial.sf(total - 1)))
    shared = float((seen[1:] & seen[:-1]).sum())
    several = (steps - 1) * rate**2 * (1 - rate**2) + 2 * max(steps - 2, 0) * rate**3 * (1 - rate)
    overlaps = _two_sided((shared - rows * (steps - 1) * rate**2) / math.sqrt(rows * several))
    sizes = _dispersion(seen.sum(axis=1), rows, rate, variance)
    times = _dispersion(seen.sum(axis=0), steps, rate, variance)
    return float(min(1.0, 4 * min(in_all, sizes, times, overlaps)))


def _dispersion(counts: NDArray[np.int64], trials: int, rate: float, variance: float) -> float:
    """Return the two-sided p-value of how far binomial counts spread: a gamma with the exact first two moments.

    Of many trials it is the chi-square distribution.
    """
    squares = ((counts - trials * rate) ** 2 / (trials * variance)).sum()
    scale = 2 + (1 - 6 * variance) / (trials * variance)  # the variance of one of them; its mean is 1
    spread = stats.gamma(len(counts) / scale, scale=scale)
    return float(min(1.0, 2 * min(spread.cdf(squares), spread.sf(squares))))


def _two_sided(deviations: float) -> float:
    return float(2 * stats.norm.sf(abs(deviations)))
