"""Training a classifier, adversarially by default.

Adam with a one-cycle learning rate (Smith and Topin 2019, arXiv:1708.07120). What is kept is an exponential mean of the
weights, and of those means the one that withstood most on rows that were not learnt from: with an attack inside,
training longer can make a model less robust (Rice et al. 2020, arXiv:2002.11569), and training on a single step can
collapse within an epoch (Wong et al. 2020, arXiv:2001.03994), upon which it is stopped.

Every epoch seeds the generators anew, so a training that was interrupted goes on from its last checkpoint to the very
same weights. On a CPU one thread computes, and the same seed gives the same model, bit by bit, with the same PyTorch
release and kind of processor; some CUDA kernels do not fix the order of their sums, so there it may differ.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis import __version__
from portcullis.digest import canonical_json
from portcullis.errors import DataError, ModelError
from portcullis.evidence.statement import Figure
from portcullis.models.margin import margin
from portcullis.models.pytorch import FOREIGN_ERRORS, choose_device, reproducible, torch
from portcullis.models.store import ModelSpec, build_module
from portcullis.training.checkpoint import Checkpoints
from portcullis.training.recipes import ascend, batch_loss
from portcullis.training.settings import TrainingSettings

EVALUATION_ROWS = 512
CHECKS = 20  # of the rows held out, and checkpoints, evenly over the epochs
MIN_HELD_OUT = 30
CHECK_STEPS = 10  # of PGD on the rows held out
# A collapse: less than half of what the best checkpoint withstood, by more than chance, twice in a row.
COLLAPSED_SHARE, COLLAPSED_ERRORS, COLLAPSED_CHECKS = 0.5, 3.0, 2


@dataclass(frozen=True)
class Check:
    """How training stood after some epochs.

    Attributes:
        epoch: How many.
        loss: Mean over the last of them.
        accuracy: Of the mean of the weights on the rows held out, in 0..1; 0 where none are.
        robust_accuracy: The same under PGD with 10 steps.
    """

    epoch: int
    loss: float
    accuracy: float
    robust_accuracy: float


def train(
    features: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    spec: ModelSpec,
    settings: TrainingSettings,
    checkpoints: Checkpoints | None = None,
) -> tuple[torch.nn.Module, Mapping[str, Figure]]:
    """Train the network that `spec` names.

    Args:
        features: Raw features (N, D) in [spec.low, spec.high].
        labels: Class indices (N,), integers in [0, k), of two or more classes.
        spec: The model to be.
        settings: How to train it.
        checkpoints: Where to leave checkpoints and to go on from one; None not to.

    Returns:
        The module, on the CPU, in `eval()` mode, and the figures `samples` (rows learnt from), `parameters`, `loss`
        (mean of the last epoch), `train_accuracy` (clean, 0..1), `device`, `epochs` and `stop` (`finished`, or
        `collapsed` where training was stopped). But for "plain" also `held_out` (rows), `best_epoch`,
        `held_out_accuracy` and `held_out_robust_accuracy` (of what is returned), and `history`, JSON: of each check the
        fields of `Check`.

    Raises:
        DataError: No rows, features or labels of another shape, type or range, a single class, or too few rows to hold
            some out.
        ModelError: The architecture is unknown or does not work, or training did not stay finite.
        SealError: A checkpoint was altered.
        UsageError: CUDA was asked for and is not there; or a checkpoint cannot be written or read.
    """
    inputs, targets = training_tensors(features, labels, spec)
    device = choose_device(settings.device)
    with reproducible(settings.seed, device):
        learnt, held = _divided(targets, settings)
        module = build_module(spec).to(device)
    subject = _subject(inputs, targets, spec, settings, device)
    run = _Run.begin(module, settings, steps_per_epoch=-(-len(learnt) // settings.batch_size))
    try:
        if checkpoints is not None and (found := checkpoints.read(subject)) is not None:
            run.restore(*found)
        rows, others = learnt.to(device), held.to(device)
        on_device, wanted = inputs.to(device), targets.to(device)
        while run.epoch < settings.epochs and not run.collapsed(len(held)):
            with reproducible(_epoch_seed(settings.seed, run.epoch), device):
                loss = run.learn(on_device[rows], wanted[rows], settings)
                if run.epoch % -(-settings.epochs // CHECKS) and run.epoch < settings.epochs:
                    continue
                run.check(on_device[others], wanted[others], loss, settings)
            if checkpoints is not None:
                checkpoints.write(subject, *run.state())
        module = run.best.eval().requires_grad_(requires_grad=False).cpu()
        with reproducible(settings.seed, device):
            accuracy = _accuracy(module, inputs[learnt], targets[learnt])
    except FOREIGN_ERRORS as error:
        raise ModelError(f"architecture {spec.architecture!r} cannot be trained on this: {error}") from error
    figures = {"train_accuracy": accuracy, "device": device.type, **run.figures(len(learnt), len(held))}
    if checkpoints is not None:
        checkpoints.remove(subject)
    return module, figures


@dataclass
class _Run:
    """A training under way: what a checkpoint holds."""

    module: torch.nn.Module
    mean: torch.nn.Module
    best: torch.nn.Module
    optimizer: torch.optim.Adam
    schedule: torch.optim.lr_scheduler.OneCycleLR
    epoch: int = 0
    steps: int = 0
    history: list[Check] = field(default_factory=list)

    @classmethod
    def begin(cls, module: torch.nn.Module, settings: TrainingSettings, *, steps_per_epoch: int) -> "_Run":
        optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, epochs=settings.epochs, steps_per_epoch=steps_per_epoch
        )
        mean = copy.deepcopy(module).eval()
        return cls(module, mean, copy.deepcopy(mean), optimizer, schedule)

    def learn(self, inputs: torch.Tensor, targets: torch.Tensor, settings: TrainingSettings) -> float:
        """Train for one epoch and return its mean loss."""
        self.module.train()
        loss_sum = torch.zeros((), device=inputs.device)
        for rows in torch.split(torch.randperm(len(inputs)).to(inputs.device), settings.batch_size):
            loss = batch_loss(self.module, inputs[rows], targets[rows], settings)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            self.steps += 1
            _blend(self.mean, self.module, decay=min(settings.ema, self.steps / (9 + self.steps)))
            loss_sum += loss.detach() * len(rows)
        self.epoch += 1
        loss_mean = float(loss_sum) / len(inputs)
        if not np.isfinite(loss_mean) or not all(bool(it.isfinite().all()) for it in self.mean.state_dict().values()):
            raise ModelError("training did not stay finite; lower the learning rate")
        return loss_mean

    def check(self, inputs: torch.Tensor, targets: torch.Tensor, loss: float, settings: TrainingSettings) -> None:
        """Attack the mean of the weights on the rows held out, and keep it if it withstands as much as any before."""
        accuracy = robust = 0.0
        if len(inputs):
            accuracy = _accuracy(self.mean, inputs, targets)
            robust = _accuracy(self.mean, _attacked(self.mean, inputs, targets, settings.epsilon), targets)
        if all(robust >= before.robust_accuracy for before in self.history):
            self.best.load_state_dict(self.mean.state_dict())
        self.history.append(Check(self.epoch, loss, accuracy, robust))

    def collapsed(self, held_out: int) -> bool:
        """Tell whether the last checks withstood far less than the best one before them."""
        earlier, last = self.history[:-COLLAPSED_CHECKS], self.history[-COLLAPSED_CHECKS:]
        if not earlier:
            return False
        most = max(it.robust_accuracy for it in earlier)
        now = max(it.robust_accuracy for it in last)
        # The standard error of a share is largest at one half.
        return now < COLLAPSED_SHARE * most and most - now > COLLAPSED_ERRORS * 0.5 / np.sqrt(held_out)

    def figures(self, samples: int, held_out: int) -> dict[str, Figure]:
        figures: dict[str, Figure] = {
            "samples": samples,
            "parameters": sum(weights.numel() for weights in self.module.parameters()),
            "loss": self.history[-1].loss,
            "epochs": self.epoch,
            "stop": "collapsed" if self.collapsed(held_out) else "finished",
        }
        if held_out:
            chosen = max(self.history, key=lambda it: (it.robust_accuracy, it.epoch))
            figures |= {
                "held_out": held_out,
                "best_epoch": chosen.epoch,
                "held_out_accuracy": chosen.accuracy,
                "held_out_robust_accuracy": chosen.robust_accuracy,
                "history": canonical_json([dataclasses.asdict(it) for it in self.history]).decode(),
            }
        return figures

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return all of it: plain values, and tensors by name."""
        parts = {"module": self.module, "mean": self.mean, "best": self.best}
        tensors = {f"{part}.{name}": it for part, of in parts.items() for name, it in of.state_dict().items()}
        known = self.optimizer.state_dict()["state"]
        tensors |= {f"adam.{index}.{name}": it for index, values in known.items() for name, it in values.items()}
        (group,) = self.optimizer.param_groups
        plain = {
            "epoch": self.epoch,
            "steps": self.steps,
            "history": [dataclasses.asdict(it) for it in self.history],
            "adam": {"lr": group["lr"], "betas": list(group["betas"])},
        }
        return plain, tensors

    def restore(self, plain: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Become what `state` described."""
        for part, of in (("module", self.module), ("mean", self.mean), ("best", self.best)):
            of.load_state_dict(_below(part, tensors))
        known: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _below("adam", tensors).items():
            index, _, kind = name.partition(".")
            known.setdefault(int(index), {})[kind] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": known})
        self.optimizer.param_groups[0].update(lr=plain["adam"]["lr"], betas=tuple(plain["adam"]["betas"]))
        self.schedule.load_state_dict({"last_epoch": plain["steps"], "_step_count": plain["steps"] + 1})
        self.epoch, self.steps = plain["epoch"], plain["steps"]
        self.history = [Check(**it) for it in plain["history"]]


def _below(part: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}."): it for name, it in tensors.items() if name.startswith(f"{part}.")}


def _blend(mean: torch.nn.Module, module: torch.nn.Module, *, decay: float) -> None:
    """Move the mean towards the module; a short training's must not keep its initial weights, so `decay` grows."""
    with torch.no_grad():
        for kept, value in zip(_tensors(mean), _tensors(module), strict=True):
            if kept.is_floating_point():
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield parameters and buffers, shared ones once."""
    yield from module.parameters()
    yield from module.buffers()


def _divided(targets: torch.Tensor, settings: TrainingSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of the rows to learn from, and of those held out, by the seed."""
    order = torch.randperm(len(targets))
    if settings.method == "plain":
        return order, order[:0]
    count = round(settings.held_out * len(targets))
    if count < MIN_HELD_OUT:
        raise DataError(
            f"held_out: {settings.held_out:g} of {len(targets)} rows is {count}; at least {MIN_HELD_OUT} are needed to "
            "choose among checkpoints, so hold out more or train on more rows"
        )
    if len(np.unique(targets[order[count:]].numpy())) < 2:
        raise DataError("all rows that are not held out are of one class; nothing can be learnt")
    return order[count:], order[:count]


def _epoch_seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def _subject(
    inputs: torch.Tensor, targets: torch.Tensor, spec: ModelSpec, settings: TrainingSettings, device: torch.device
) -> str:
    """Return a digest of everything that the weights depend on."""
    known = {
        "spec": spec.to_json().decode(),
        "settings": dataclasses.asdict(settings),
        "device": device.type,
        "versions": [__version__, torch.__version__],
    }
    digest = hashlib.sha256(canonical_json(known))
    for tensor in (inputs, targets):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _attacked(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epsilon: float) -> torch.Tensor:
    moved = []
    for rows, wanted in zip(_pieces(inputs), _pieces(targets), strict=True):
        climb = partial(_sum_of_leads, targets=wanted)
        moved.append(ascend(module, rows, climb, epsilon=epsilon, steps=CHECK_STEPS))
    return torch.cat(moved)


def _sum_of_leads(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Not the cross-entropy, whose gradient a model that is sure of itself rounds to zero.
    return -margin(logits, targets).sum()


def _accuracy(module: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.inference_mode():
        hits = [
            int((margin(module(rows), wanted) > 0).sum())
            for rows, wanted in zip(_pieces(inputs), _pieces(targets), strict=True)
        ]
    return sum(hits) / len(inputs)


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    return torch.split(tensor, EVALUATION_ROWS)


def training_tensors(
    features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], spec: ModelSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs (N, *shape), float32 in [0, 1], and the targets (N,), int64, of rows to learn from.

    Raises:
        DataError: No rows, features or labels of another shape, type or range, or a single class.
    """
    inputs = spec.scale(features)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (len(inputs),):
        raise DataError(f"labels must be {len(inputs)} integers, one for each row of features")
    if not ((labels >= 0) & (labels < len(spec.labels))).all():
        raise DataError(f"labels must be class indices from 0 to {len(spec.labels) - 1}")
    if len(np.unique(labels)) < 2:
        raise DataError("all training rows are of one class; nothing can be learnt")
    return torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))
