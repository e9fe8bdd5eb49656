"""What a mark survives: three networks, three seeds, every attack with the accuracy that it leaves.

Real digits (scikit-learn's), 1,200 rows to train and 597 to test. The attacker has all the training rows. A row of the
table is the worst of the seeds: fewest bits, largest p-value, and the mean accuracy on the test rows.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks import Record
from benchmarks.networks import CLASSES, NETWORKS, SIDE, Network, Tensors, accuracy, fit, hide, module_of, tensors_of
from portcullis.digest import sha256
from portcullis.models.pytorch import reproducible
from portcullis.models.store import ModelSpec
from portcullis.watermark.battery import add_noise, attack, prune, round_to_int8
from portcullis.watermark.examine import Examination, examine
from portcullis.watermark.mark import Claim, embed

KEY = bytes(range(32))
TRAIN_ROWS = 1200
TABLE = Path("docs/watermark-survival.md")
SPEC = ModelSpec("digits-cnn", {}, (1, SIDE, SIDE), 0, 16, tuple(map(str, range(CLASSES))))
# The goals: what must hold to a p-value of 1e-19, and pruning of 90 % to 1e-12.
STRICT, LOOSE = -19.0, -12.0


@dataclass(frozen=True)
class Outcome:
    """What one attack left, with one network and seed."""

    bits: int
    bits_read: int
    log10_p: float
    way: str
    accuracy: float


@dataclass(frozen=True)
class Marked:
    """A trained network, its mark and its data."""

    network: Network
    seed: int
    unmarked: Tensors
    tensors: Tensors
    claim: Claim

    def outcome(self, suspect: Tensors, module: nn.Module | None = None) -> Outcome:
        """Read the mark in a suspect and test what it still can do."""
        found: Examination = examine(suspect, self.unmarked, KEY, self.claim)
        _, test = digits()
        reading = found.reading
        return Outcome(
            reading.bits,
            reading.bits_read,
            reading.log10_p_hoeffding,
            found.way,
            accuracy(module or module_of(self.network, suspect), *test),
        )


Data = tuple[torch.Tensor, torch.Tensor]


@cache
def digits() -> tuple[Data, Data]:
    """Return images (N, 1, 8, 8) in [0, 1] and classes (N,): to train, and to test."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = torch.from_numpy((features / 16).astype(np.float32)).reshape(-1, 1, SIDE, SIDE)
    targets = torch.from_numpy(labels.astype(np.int64))
    train, test = (torch.from_numpy(it) for it in (order[:TRAIN_ROWS], order[TRAIN_ROWS:]))
    return (images[train], targets[train]), (images[test], targets[test])


def trained(network: Network, seed: int) -> Marked:
    """Train a network and mark it."""
    train, _ = digits()
    with reproducible(seed, torch.device("cpu")):
        module = fit(network.build(network.widths), *train, epochs=network.epochs, rate=network.rate, one_cycle=True)
    unmarked = tensors_of(module)
    claim = Claim("benchmark", sha256(b"".join(it.tobytes() for it in unmarked.values())))
    return Marked(network, seed, unmarked, dict(embed(unmarked, KEY, claim).tensors), claim)


def _tuned(it: Marked, tensors: Tensors, *, epochs: int, rate: float) -> Tensors:
    with reproducible(it.seed, torch.device("cpu")):
        return tensors_of(fit(module_of(it.network, tensors), *digits()[0], epochs=epochs, rate=rate))


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Marked], Outcome]:
    return lambda it: it.outcome({name: w.astype(np.float32) for name, w in attack(it.tensors, change).items()})


def _fine_tuned(epochs: int, rate: float) -> Callable[[Marked], Outcome]:
    return lambda it: it.outcome(_tuned(it, it.tensors, epochs=epochs, rate=rate))


def _hidden(
    before: Callable[[Marked], Tensors] = lambda it: it.tensors, **options: float
) -> Callable[[Marked], Outcome]:
    def run(it: Marked) -> Outcome:
        tensors, widths = hide(it.network, before(it), it.seed, **options)
        return it.outcome(tensors, module_of(it.network, tensors, widths))

    return run


def _pruned_and_tuned(it: Marked) -> Outcome:
    return it.outcome(_tuned(it, attack(it.tensors, lambda w: prune(w, 0.9)), epochs=5, rate=1e-3))


def _overwritten(it: Marked) -> Outcome:
    tensors = it.tensors
    for number in range(10):
        tensors = dict(embed(tensors, bytes([200 + number]) * 32, Claim("thief", sha256(b"%d" % number))).tensors)
    return it.outcome(tensors)


def _averaged(copies: int) -> Callable[[Marked], Outcome]:
    """Average copies of one model, each marked for another owner; the first one's mark is looked for."""

    def run(it: Marked) -> Outcome:
        others = [
            embed(it.unmarked, KEY, Claim(f"licensee {number}", it.claim.digest)).tensors for number in range(1, copies)
        ]
        mean = {
            name: np.mean([weights, *(other[name] for other in others)], axis=0, dtype=np.float32)
            for name, weights in it.tensors.items()
        }
        return it.outcome(mean)

    return run


def _distilled(it: Marked) -> Outcome:
    inputs, _ = digits()[0]
    with reproducible(it.seed + 100, torch.device("cpu")):
        with torch.no_grad():
            soft = module_of(it.network, it.tensors)(inputs).softmax(dim=1)
        student = fit(
            it.network.build(it.network.widths),
            inputs,
            soft,
            epochs=it.network.epochs,
            rate=it.network.rate,
            one_cycle=True,
        )
    return it.outcome(tensors_of(student))


# Attack, and the log10 of the p-value that it is to stay below; None where nothing is promised.
ATTACKS: Mapping[str, tuple[Callable[[Marked], Outcome], float | None]] = {
    "none": (lambda it: it.outcome(it.tensors), STRICT),
    "fp16": (_changed(lambda w: w.astype(np.float16)), STRICT),
    "int8": (_changed(round_to_int8), STRICT),
    "noise of 10 %": (_changed(lambda w: add_noise(w, 0.1)), STRICT),
    "noise of 30 %": (_changed(lambda w: add_noise(w, 0.3)), STRICT),
    "prune 50 %": (_changed(lambda w: prune(w, 0.5)), STRICT),
    "prune 70 %": (_changed(lambda w: prune(w, 0.7)), STRICT),
    "prune 90 %": (_changed(lambda w: prune(w, 0.9)), LOOSE),
    "prune 90 %, then fine-tune": (_pruned_and_tuned, LOOSE),
    "fine-tune, Adam 1e-4, 10 epochs": (_fine_tuned(10, 1e-4), STRICT),
    "fine-tune, Adam 1e-3, 10 epochs": (_fine_tuned(10, 1e-3), STRICT),
    "fine-tune, Adam 5e-3, 10 epochs": (_fine_tuned(10, 5e-3), None),
    "overwrite by 10 other keys": (_overwritten, STRICT),
    "permute": (_hidden(), STRICT),
    "rescale": (_hidden(order=False, scale=1.0), STRICT),
    "permute and rescale": (_hidden(scale=1.0), STRICT),
    "split and dummy neurons, permute, rescale": (_hidden(scale=1.0, more=0.25), STRICT),
    "fine-tune, then permute and rescale": (
        _hidden(lambda it: _tuned(it, it.tensors, epochs=5, rate=1e-3), scale=1.0),
        STRICT,
    ),
    "prune 70 %, then split, permute, rescale": (
        _hidden(lambda it: attack(it.tensors, lambda w: prune(w, 0.7)), scale=1.0, more=0.25),
        STRICT,
    ),
    "collusion of 2 (mean of copies)": (_averaged(2), None),
    "collusion of 5 (mean of copies)": (_averaged(5), None),
    "distillation into a fresh student": (_distilled, None),
}
QUICK = ("none", "prune 70 %", "permute and rescale", "fine-tune, Adam 1e-3, 10 epochs")


def survival(quick: bool) -> list[Record]:  # noqa: FBT001
    """Run every attack and return the worst p-value of each; unless quick, write the table too."""
    networks, seeds = (NETWORKS[:1], (0,)) if quick else (NETWORKS, (0, 1, 2))
    names = QUICK if quick else tuple(ATTACKS)
    found: dict[str, dict[str, list[Outcome]]] = {network.name: {name: [] for name in names} for network in networks}
    before: dict[str, list[float]] = {network.name: [] for network in networks}
    for network in networks:
        for seed in seeds:
            it = trained(network, seed)
            before[network.name].append(accuracy(module_of(network, it.unmarked), *digits()[1]))
            for name in names:
                found[network.name][name].append(ATTACKS[name][0](it))
    records = [
        figure(f"survival {network}: {name}", max(each.log10_p for each in outcomes), ATTACKS[name][1])
        for network, rows in found.items()
        for name, outcomes in rows.items()
    ]
    drops = [
        unmarked - each.accuracy
        for network, rows in found.items()
        for unmarked, each in zip(before[network], rows["none"], strict=True)
    ]
    records += [
        figure("accuracy drop by marking, mean", statistics.fmean(drops), 0.005, unit="of 1"),
        figure("accuracy drop by marking, worst", max(drops), None, unit="of 1"),
    ]
    if not quick:
        TABLE.write_text(_page(found, before))
    return records


def figure(name: str, ours: float, target: float | None, *, unit: str = "log10 p") -> Record:
    """Return a figure of ours alone, lower for better."""
    return Record(name, unit, ours, None, "", None, 0.0, target, "lower")


def _page(
    found: Mapping[str, Mapping[str, list[Outcome]]],
    before: Mapping[str, list[float]],
) -> str:
    networks = list(found)
    lines = [
        "# What a watermark survives",
        "",
        "Written by `python -m benchmarks.watermark`; do not edit. Scikit-learn's digits, 1,200 rows to train and 597",
        "to test; three small networks, three seeds each, marked by the rule (64 bits, at most 10 % of the weights'",
        "norm). The attacker has all training rows. A cell holds the worst of three seeds: bits read of 64, log10 of",
        "the Hoeffding bound (corrected for two readings; PRESENT at -9); and the mean accuracy afterwards. `a` stands",
        "where the worst was read aligned to the unmarked model.",
        "",
        "| attack | " + " | ".join(networks) + " |",
        "| --- |" + " --- |" * len(networks),
        "| unmarked | " + " | ".join(f"accuracy {statistics.fmean(before[it]):.3f}" for it in networks) + " |",
    ]
    for name in ATTACKS:
        cells = []
        for network in networks:
            outcomes = found[network][name]
            worst = max(outcomes, key=lambda it: it.log10_p)
            aligned = " a" if worst.way == "aligned" else ""
            mean = statistics.fmean(it.accuracy for it in outcomes)
            cells.append(f"{min(it.bits_read for it in outcomes)} / {worst.log10_p:.1f}{aligned} / {mean:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
