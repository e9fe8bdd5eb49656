"""`robustness_gate`: what a verdict costs beside torchattacks' five attacks, how strong each is, and wrong verdicts.

Scikit-learn's digits, 1,078 rows to learn from and 719 to test, and the package's own network: trained plainly, and
adversarially. CPU seconds of one thread. torchattacks' five attacks are FGSM, PGD, CW, DeepFool and AutoAttack with its
defaults, on every row, as its users run them. The reference AutoAttack is its authors' package. Robust accuracies are
shares of all rows for which nobody's candidate was verified; CW and DeepFool count within the same L2 budget.
"""

import dataclasses
import importlib
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from statistics import fmean, median

import numpy as np
import torch
import torchattacks
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional

from benchmarks import Record, command, compare
from benchmarks.peers import PEERS
from portcullis.errors import InconclusiveError
from portcullis.models.margin import margin
from portcullis.models.pytorch import reproducible
from portcullis.models.store import LoadedModel, ModelSpec, build_module
from portcullis.robustness import native
from portcullis.robustness.attacks import CHEAP, planned_attacks
from portcullis.robustness.backends import find_backend
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.proposal import Attack, Target
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.trial import Counted, Rows
from portcullis.robustness.verdict import Question, judge_in_turn, least_count
from portcullis.robustness.verify import adversarial, untouched
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {}, (1, 8, 8), 0, 16, tuple(map(str, range(10))))
CPU = torch.device("cpu")
TEST = 719
KEY, SUBJECTS = bytes(range(32)), ("model", "rows", "policy")
# Article's recipe: half of the loss on clean rows, half on those of PGD with ten steps.
TRAINING_EPSILON = 0.2
GAPS = (-0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2)

Data = tuple[NDArray[np.float64], NDArray[np.int64]]


@cache
def digits() -> tuple[Data, Data]:
    """Return raw features and labels: to learn from, and to test."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return tuple((features[rows], labels[rows]) for rows in (order[TEST:], order[:TEST]))


@cache
def model(method: str, seed: int = 0) -> LoadedModel:
    """Return a network trained by a method of the package."""
    epochs = 15 if method == "plain" else 20
    module, _ = train(*digits()[0], SPEC, TrainingSettings(method=method, epochs=epochs, seed=seed, device="cpu"))
    return LoadedModel(SPEC, module)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, the test rows that it classifies correctly, and how it is to be attacked."""

    name: str
    model: LoadedModel
    rows: Rows
    samples: int
    target: Target
    settings: RobustnessSettings

    @classmethod
    def of(cls, method: str, epsilon: float, samples: int) -> "Subject":
        """Return a model under attack on so many test rows."""
        it = model(method)
        features, labels = digits()[1]
        inputs, targets = it.preprocess(features[:samples]), torch.from_numpy(labels[:samples])
        with torch.no_grad():
            margins = margin(it.module(inputs), targets)
        hits = margins > 0
        settings = RobustnessSettings(epsilon=epsilon, l2_budget=4 * epsilon, pgd_step_size=epsilon / 4)
        target = Target(it.module, 10, float(margins[hits].median()))
        return cls(f"{method} {epsilon:g}", it, Rows(inputs[hits], targets[hits]), samples, target, settings)

    def broken(self, attack: Attack) -> NDArray[np.bool_]:
        """Return which rows an attack verifiably breaks."""
        with reproducible(0, CPU), untouched(self.model.module):
            parts = []
            for clean, labels in zip(self.rows.inputs.split(128), self.rows.targets.split(128), strict=True):
                found = attack.propose(clean, labels).detach()
                parts.append(adversarial(self.model.module, clean, found, labels, attack.ball))
        broken: NDArray[np.bool_] = torch.cat(parts).numpy()
        return broken

    def robust(self, broken: NDArray[np.bool_]) -> float:
        """Return the share of all rows that are classified correctly and not broken."""
        return int((~broken).sum()) / self.samples

    def verdict(self, threshold: float) -> Mapping[str, float | str]:
        """Have the gate decide, as it does in verdict mode."""
        features, labels = digits()[1]
        settings = dataclasses.replace(self.settings, mode="verdict")
        question = Question(threshold, KEY, SUBJECTS)
        return evaluate(self.model, features[: self.samples], labels[: self.samples], settings, question).figures

    @property
    def five(self) -> Mapping[str, Attack]:
        """Torchattacks' five attacks as its users run them."""
        module, epsilon = self.model.module, self.settings.epsilon
        linf, l2 = Ball("linf", epsilon), Ball("l2", self.settings.l2_budget)
        return {
            "fgsm": Attack(torchattacks.FGSM(module, eps=epsilon), linf),
            "pgd": Attack(torchattacks.PGD(module, eps=epsilon, alpha=epsilon / 10, steps=40), linf),
            "cw": Attack(torchattacks.CW(module, c=1, steps=100, lr=0.01), l2),
            "deepfool": Attack(torchattacks.DeepFool(module, steps=50), l2),
            "autoattack": Attack(torchattacks.AutoAttack(module, eps=epsilon, n_classes=10, seed=0), linf),
        }


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark; a quick one leaves the reference and training out."""
    records = [
        *_verdicts(Subject.of("pgd", 0.15, 240 if quick else TEST), rounds=1 if quick else 3),
        *_single_attacks(Subject.of("plain", 0.15, 100 if quick else 200), rounds=1 if quick else 3),
    ]
    pairs = [("plain", 0.1)] if quick else list(itertools.product(("plain", "pgd"), (0.05, 0.1, 0.15)))
    subjects = [Subject.of(*pair, 120 if quick else 300) for pair in pairs]
    records += _wrong_verdicts(subjects, keys=120 if quick else 20)
    if quick:
        return records
    sound = itertools.product(("plain", "mix", "pgd", "trades2", "nfgsm"), (0.02, 0.05, 0.1, 0.15, 0.2))
    records.append(_false_alarms([Subject.of(*pair, 300) for pair in sound]))
    return [*records, *_against_the_reference(Subject.of("pgd", 0.15, 100)), *_training(3)]


def _verdicts(it: Subject, *, rounds: int) -> Iterator[Record]:
    """Time PASS and FAIL by 5 and 10 points, and torchattacks' five on the same rows, interleaved."""
    features, labels = digits()[1]
    full = evaluate(it.model, features[: it.samples], labels[: it.samples], it.settings).figures
    robust = float(full["robust_accuracy"])
    times: dict[float, list[float]] = {gap: [] for gap in (-0.1, -0.05, 0.05, 0.1)}
    costs: dict[float, float] = {}
    theirs, ours_in_full = [], []
    union = np.zeros(len(it.rows), dtype=bool)
    counted = Counted(it.model.module, len(SPEC.labels))
    peer = dataclasses.replace(it, model=LoadedModel(SPEC, counted))
    for _ in range(rounds):
        started = time.process_time()
        for attack in peer.five.values():
            union |= peer.broken(attack)
        theirs.append(time.process_time() - started)
        started = time.process_time()
        evaluate(it.model, features[: it.samples], labels[: it.samples], it.settings)
        ours_in_full.append(time.process_time() - started)
        for gap, seconds in times.items():
            started = time.process_time()
            figures = it.verdict(robust + gap)
            seconds.append(time.process_time() - started)
            costs[gap] = float(figures["forward_equivalents"])
            passed = float(figures["robust_accuracy"]) >= robust + gap
            assert passed == (gap < 0), f"a wrong verdict at a gap of {gap}"
    for gap, seconds in times.items():
        way = "pass" if gap < 0 else "fail"
        name = f"gate speed-up {way}, {abs(gap) * 100:.0f} points"
        goal = {-0.05: 3, 0.05: 100, 0.1: 100, -0.1: 3}[gap]
        yield _record(name, seconds, theirs, "torchattacks, five attacks", goal)
    yield _record("gate in full", ours_in_full, theirs, "torchattacks, five attacks", None)
    yield _figure("gate in full: forward-equivalents", float(full["forward_equivalents"]), "passes")
    for gap, cost in costs.items():
        yield _figure(f"verdict {-gap * 100:+.0f} points: forward-equivalents", cost, "passes")
    yield _figure("torchattacks, five attacks: forward-equivalents", counted.cost / rounds, "passes")
    yield _figure(
        f"robust accuracy, {it.name}", robust, "of 1", peer=it.robust(union), peer_name="torchattacks, five attacks"
    )


def _single_attacks(it: Subject, *, rounds: int) -> Iterator[Record]:
    """Compare PGD of as many steps, DeepFool and DDN: time, and what each breaks. All compute on one thread."""
    epsilon = it.settings.epsilon
    foolbox = find_backend("foolbox")(it.target, dataclasses.replace(it.settings, ddn_steps=100, deepfool_steps=50))
    art = find_backend("art")(it.target, dataclasses.replace(it.settings, pgd_steps=40, pgd_step_size=epsilon / 10))
    for name, peer, attack, goal, first in (
        ("pgd", "torchattacks", it.five["pgd"], 1.5, len(it.rows)),
        ("deepfool", "torchattacks", it.five["deepfool"], 20, len(it.rows)),
        ("deepfool", "foolbox", foolbox["deepfool"], 2, len(it.rows)),
        ("ddn", "foolbox", foolbox["ddn"], None, len(it.rows)),
        ("pgd", "ART", art["pgd"], 1.5, 50),
    ):
        few = dataclasses.replace(it, rows=Rows(it.rows.inputs[:first], it.rows.targets[:first]))
        mine = dataclasses.replace(attack, propose=partial(_native, name, it))
        yield compare(
            f"{name} vs {peer}",
            lambda few=few, mine=mine: few.broken(mine),
            lambda few=few, attack=attack: few.broken(attack),
            peer_name=peer,
            rounds=rounds,
            target=goal,
            unit="CPU s",
            clock=time.process_time,
        )
        yield _figure(
            f"{name}: broken rows of {first}, {attack.ball.norm} {attack.ball.radius:g}",
            int(few.broken(mine).sum()),
            "rows",
            peer=int(few.broken(attack).sum()),
            peer_name=peer,
        )
    anywhere = Ball("l2", 1e6)
    success, theirs = (
        float(it.broken(Attack(propose, anywhere)).mean())
        for propose in (partial(_native, "deepfool", it), it.five["deepfool"].propose)
    )
    yield _figure("deepfool: misclassified at any distance", success, "of 1", peer=theirs, peer_name="torchattacks")


def _native(name: str, it: Subject, clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return what our own attack of that name makes of some rows, by as many steps as the peers take."""
    module, epsilon = it.model.module, it.settings.epsilon
    if name == "deepfool":
        return native.deepfool(module, clean, labels, steps=50, overshoot=0.02, classes=9)
    if name == "ddn":
        return native.ddn(module, clean, labels, native.cross_entropy(labels, it.target.scale), steps=100)
    return native.pgd(
        module, clean, native.margin_loss(labels), native.misclassified(labels),
        epsilon=epsilon, steps=40, step_size=epsilon / 10, generator=native.generator_of(0, CPU),
    )  # fmt: skip


def _against_the_reference(it: Subject) -> Iterator[Record]:
    """APGD-CE and APGD-T with 100 steps and 9 targets, and the whole of AutoAttack, beside its authors' own."""
    reference = _reference()
    module, inputs, targets, epsilon = it.model.module, it.rows.inputs, it.rows.targets, it.settings.epsilon
    ball = Ball("linf", epsilon)
    times: dict[str, float] = {}
    broken: dict[str, NDArray[np.bool_]] = {}

    def run(name: str, propose: Callable[[], torch.Tensor]) -> None:
        with reproducible(0, CPU), untouched(module):
            started = time.process_time()
            found = propose().detach()
            times[name] = time.process_time() - started
            broken[name] = adversarial(module, inputs, found, targets, ball).numpy()

    def theirs(*attacks: str) -> torch.Tensor:
        attack = reference.AutoAttack(module, norm="Linf", eps=epsilon, version="custom", attacks=list(attacks), seed=0)
        found: torch.Tensor = attack.run_standard_evaluation(inputs, targets, batch_size=len(inputs))
        return found[0] if isinstance(found, tuple) else found

    run("reference gradient", lambda: theirs("apgd-ce", "apgd-t"))
    run("ours", lambda: native.apgd_ensemble(
        module, inputs, targets, epsilon=epsilon, steps=100, targets=9, scale=it.target.scale,
        generator=native.generator_of(0, CPU),
    ))  # fmt: skip
    run("reference", lambda: theirs("apgd-ce", "apgd-t", "fab-t", "square"))
    run("torchattacks", lambda: it.five["autoattack"].propose(inputs, targets))
    run(
        "torchattacks, 100 steps",
        lambda: find_backend("torchattacks")(it.target, it.settings)["autoattack"].propose(inputs, targets),
    )
    run("the gate's plan", lambda: planned_attacks(it.target, it.settings)["apgd"].propose(inputs, targets))
    ratio = times["reference gradient"] / times["ours"]
    yield Record(
        "autoattack vs reference: APGD-CE and APGD-T", "CPU s", times["ours"], times["reference gradient"],
        "authors' AutoAttack", ratio, 0.0, None, "lower",
    )  # fmt: skip
    for name, found in broken.items():
        if not name.startswith("reference"):
            peer = broken["reference gradient" if name == "ours" else "reference"]
            label = "APGD-CE and APGD-T" if name == "ours" else name
            yield _figure(
                f"robust accuracy: {label}",
                it.robust(found),
                "of 1",
                peer=it.robust(peer),
                peer_name="authors' AutoAttack",
            )


def _reference() -> object:
    """Return the reference AutoAttack, as its authors publish it; it needs no more than PyTorch and NumPy."""
    home = PEERS / "pyautoattack"
    if not (home / "pyautoattack").exists():
        command_line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home)]
        subprocess.run([*command_line, "--disable-pip-version-check", "pyautoattack==0.2.0"], check=True)
    sys.path.append(str(home))
    return importlib.import_module("pyautoattack")


def _wrong_verdicts(subjects: Sequence[Subject], *, keys: int) -> Iterator[Record]:
    """Record what the whole plan, and the libraries' exhaustive attacks, do to every row; then replay decisions."""
    decisions = wrong = judged = whole = 0
    missed: dict[str, int] = dict.fromkeys(("torchattacks", "foolbox", "art"), 0)
    flipped: dict[str, int] = dict.fromkeys(missed, 0)
    rows = 0
    for it in subjects:
        broken = {name: it.broken(attack) for name, attack in planned_attacks(it.target, it.settings).items()}
        cheap = np.any([broken[name] for name in CHEAP], axis=0)
        every = np.any(list(broken.values()), axis=0)
        pool = ~every[~cheap]
        robust = it.robust(every)
        rows += len(every)
        for gap, key in itertools.product(GAPS, range(keys)):
            threshold = min(max(robust + gap, 0.01), 1.0)
            need = least_count(threshold, it.samples)
            order = Question(threshold, bytes([key]) * 32, SUBJECTS).order(len(pool))
            found = judge_in_turn(order, pool.__getitem__, need=need, n_min=it.settings.n_min)
            decisions += 1
            wrong += (found.low >= need) != (int(pool.sum()) >= need)
            judged += found.judged
            whole += len(pool)
        for library in missed:
            first = 50 if library == "art" else len(every)
            few = dataclasses.replace(it, rows=Rows(it.rows.inputs[:first], it.rows.targets[:first]))
            attacks = it.five if library == "torchattacks" else find_backend(library)(it.target, it.settings)
            theirs = np.any([few.broken(attack) for attack in attacks.values()], axis=0)
            missed[library] += int((theirs & ~every[:first]).sum())
            # Would the verdict be another, had the library's exhaustive attacks been added?
            for gap in GAPS:
                need = least_count(min(max(robust + gap, 0.01), 1.0), it.samples)
                with_theirs = int((~every).sum()) - int((theirs & ~every[:first]).sum())
                flipped[library] += gap <= -0.02 and with_theirs < need
    name = f"{decisions} decisions on {len(subjects)} model-eps pairs"
    yield _figure(f"wrong verdicts: {name}", wrong, "verdicts", target=0)
    yield _figure("share of the pool that was judged", judged / whole, "of 1")
    for library, count in missed.items():
        yield _figure(
            f"rows of {rows} that only {library} breaks{' (of 50 each)' if library == 'art' else ''}", count, "rows"
        )
        yield _figure(f"PASS by 2 points or more that {library} would turn", flipped[library], "verdicts", target=0)


def _false_alarms(subjects: Sequence[Subject]) -> Record:
    """Measure sound models, which no check may take for ones that mask their gradients."""
    features, labels = digits()[1]
    alarms = 0
    for it in subjects:
        try:
            evaluate(it.model, features[: it.samples], labels[: it.samples], it.settings)
        except InconclusiveError as error:
            print(f"{it.name}: {error}")
            alarms += 1
    return _figure(f"false alarms on {len(subjects)} sound model-eps pairs", alarms, "alarms", target=0)


def _training(rounds: int) -> Iterator[Record]:
    """Train by the article's recipe and by ours at its cost, and attack both at the training's epsilon."""
    epsilon, gains, theirs, ours, times = TRAINING_EPSILON, [], [], [], []
    for seed in range(rounds):
        started = time.process_time()
        article = _article(seed)
        cost = time.process_time() - started
        settings = TrainingSettings(method="trades", epsilon=epsilon, steps=2, epochs=110, seed=seed, device="cpu")
        started = time.process_time()
        module, _ = train(*digits()[0], SPEC, settings)
        times.append((time.process_time() - started) / cost)
        theirs.append(_withstood(article, epsilon))
        ours.append(_withstood(module, epsilon))
        gains.append(ours[-1][1] - theirs[-1][1])
    clean, robust = (fmean(it[place] for it in ours) for place in (0, 1))
    peer_clean, peer_robust = (fmean(it[place] for it in theirs) for place in (0, 1))
    name = f"at eps {epsilon:g}, mean of {rounds} seeds"
    yield _figure(
        f"adversarial training: robust accuracy {name}",
        robust,
        "of 1",
        peer=peer_robust,
        peer_name="article's recipe",
        better="higher",
    )
    yield _figure(
        f"adversarial training: clean accuracy {name}",
        clean,
        "of 1",
        peer=peer_clean,
        peer_name="article's recipe",
        better="higher",
    )
    yield _figure("adversarial training gain", 100 * fmean(gains), "points", target=10, better="higher")
    yield _figure("adversarial training: CPU time beside the article's recipe", median(times), "of 1")


def _article(seed: int) -> torch.nn.Module:
    """Train by the article's recipe: half the loss of clean rows, half of PGD's with ten steps, for 40 epochs."""
    inputs, targets = torch.from_numpy(SPEC.scale(digits()[0][0])), torch.from_numpy(digits()[0][1])
    with reproducible(seed, CPU):
        module = build_module(SPEC)
        attack = torchattacks.PGD(module, eps=TRAINING_EPSILON, alpha=TRAINING_EPSILON / 4, steps=10)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        for _ in range(40):
            for rows in torch.randperm(len(inputs)).split(64):
                harmed = attack(inputs[rows], targets[rows])
                module.train()
                losses = [functional.cross_entropy(module(each), targets[rows]) for each in (inputs[rows], harmed)]
                optimizer.zero_grad()
                (sum(losses) / 2).backward()
                optimizer.step()
    return module.eval().requires_grad_(requires_grad=False)


def _withstood(module: torch.nn.Module, epsilon: float) -> tuple[float, float]:
    settings = RobustnessSettings(epsilon=epsilon, l2_budget=4 * epsilon, pgd_step_size=epsilon / 4)
    figures = evaluate(LoadedModel(SPEC, module), *digits()[1], settings).figures
    # Within L2 the larger ball: what counts here is the threat that both were trained for.
    linf = min(float(figures[f"robust_accuracy_{name}"]) for name in ("fgsm", "pgd", "apgd"))
    return float(figures["clean_accuracy"]), linf


def _record(name: str, ours: Sequence[float], theirs: Sequence[float], peer: str, goal: float | None) -> Record:
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    spread = (max(ratios) - min(ratios)) / median(ratios)
    return Record(name, "CPU s", median(ours), median(theirs), peer, median(ratios), spread, goal, "lower")


def _figure(
    name: str,
    ours: float,
    unit: str,
    *,
    peer: float | None = None,
    peer_name: str = "",
    target: float | None = None,
    better: str = "lower",
) -> Record:
    return Record(name, unit, ours, peer, peer_name, None, 0.0, target, better)


if __name__ == "__main__":
    command("robustness", measure)
