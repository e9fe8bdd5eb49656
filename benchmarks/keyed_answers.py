"""`keyed answers`: what triggers and marked soft labels survive, distillation among it, and what they cost. No GPU.

Real digits (scikit-learn's), 1,200 rows to train and 597 to test; the CNN, three seeds, taught both and then marked.
The attacker has all the training rows; the owner asks at the test rows.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks import Record, command
from benchmarks.networks import NETWORKS, Network, Tensors, accuracy, fit, module_of
from benchmarks.survival import KEY, SPEC, digits, figure, trained
from portcullis.digest import content_digest
from portcullis.models.pytorch import reproducible
from portcullis.models.store import WEIGHTS_FILE, load_model_files, model_files
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.settings import RobustnessSettings
from portcullis.training.adversarial import train
from portcullis.training.settings import TrainingSettings
from portcullis.watermark.battery import add_noise, attack, prune, round_to_int8
from portcullis.watermark.mark import Claim, embed
from portcullis.watermark.soft_labels import SoftReading, Waves, read_soft_labels, waves
from portcullis.watermark.teach import fine_tune, teach
from portcullis.watermark.triggers import Answers, Triggers, ask, triggers
from portcullis.watermark.weights import decode_weights, replace_weights

TABLE = Path("docs/keyed-answers.md")
TRIGGERS, SHARE = 100, 0.3
CNN, RESNET = NETWORKS[0], NETWORKS[1]
Files = Mapping[str, bytes]
Suspect = Callable[[Files, int], nn.Module]


@dataclass(frozen=True)
class Asked:
    """What a suspect answered: to the triggers, in its soft labels, and right."""

    answers: Answers
    soft: SoftReading
    accuracy: float


@dataclass(frozen=True)
class Owner:
    """What the owner asks: the triggers, and soft labels at the test rows."""

    triggers: Triggers
    waves: Waves

    def ask(self, module: nn.Module) -> Asked:
        """Ask a suspect; it need not be of the owner's architecture."""
        inputs, targets = digits()[1]

        def classes(features: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(torch.from_numpy(SPEC.scale(features))).argmax(dim=1).numpy()

        with torch.no_grad():
            soft = module(inputs).softmax(dim=1).numpy()
        reading = read_soft_labels(soft, inputs.numpy(), self.waves)
        return Asked(ask(classes, self.triggers), reading, accuracy(module, inputs, targets))


def _rows() -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = digits()[0]
    return inputs.reshape(len(inputs), -1).numpy() * 16, targets.numpy()


def _marked(files: Files, claim: Claim) -> Files:
    tensors = embed(decode_weights(files[WEIGHTS_FILE]), KEY, claim).tensors
    return {**files, WEIGHTS_FILE: replace_weights(files[WEIGHTS_FILE], tensors)}


def _changed(change: Callable[[np.ndarray], np.ndarray]) -> Suspect:
    def run(files: Files, _: int) -> nn.Module:
        tensors: Tensors = attack(decode_weights(files[WEIGHTS_FILE]), change)
        return module_of(CNN, {name: it.astype(np.float32) for name, it in tensors.items()})

    return run


def _fine_tuned(rate: float) -> Suspect:
    return lambda files, _: load_model_files(fine_tune(files, *_rows(), epochs=10, rate=rate)).module


def _distilled(network: Network, hard: float) -> Suspect:
    """Distil into a fresh student; `hard` is the share of its targets that are the chosen classes alone."""

    def run(files: Files, seed: int) -> nn.Module:
        inputs, _ = digits()[0]
        with torch.no_grad():
            soft = load_model_files(files).module(inputs).softmax(dim=1)
        targets = (1 - hard) * soft + hard * nn.functional.one_hot(soft.argmax(dim=1), soft.shape[1])
        with reproducible(seed + 100, torch.device("cpu")):
            student = network.build(network.widths)
            return fit(student, inputs, targets, epochs=network.epochs, rate=network.rate, one_cycle=True)

    return run


SUSPECTS: Mapping[str, Suspect] = {
    "none": lambda files, _: load_model_files(files).module,
    "int8": _changed(round_to_int8),
    "noise of 30 %": _changed(lambda w: add_noise(w, 0.3)),
    "prune 50 %": _changed(lambda w: prune(w, 0.5)),
    "prune 70 %": _changed(lambda w: prune(w, 0.7)),
    "fine-tune, Adam 1e-4, 10 epochs": _fine_tuned(1e-4),
    "fine-tune, Adam 1e-3, 10 epochs": _fine_tuned(1e-3),
    "fine-tune, Adam 5e-3, 10 epochs": _fine_tuned(5e-3),
    "distillation of soft labels": _distilled(CNN, 0.0),
    "the same, into a ResNet": _distilled(RESNET, 0.0),
    "distillation, half soft and half hard labels": _distilled(CNN, 0.5),
    "distillation of hard labels": _distilled(CNN, 1.0),
}


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark; unless quick, write the table too."""
    rows: dict[str, list[Asked]] = {}
    for seed in (0,) if quick else (0, 1, 2):
        plain = model_files(module_of(CNN, trained(CNN, seed).unmarked), SPEC)
        claim = Claim("benchmark", content_digest(plain))
        owner = Owner(triggers(KEY, claim, SPEC, TRIGGERS), waves(KEY, claim, SPEC))
        files = _marked(teach(plain, _rows()[0], owner.triggers, owner.waves, SHARE), claim)
        rows.setdefault("unmarked", []).append(owner.ask(load_model_files(plain).module))
        for name, suspect in SUSPECTS.items():
            rows.setdefault(name, []).append(owner.ask(suspect(files, seed)))
    costs = _costs()
    if not quick:
        TABLE.write_text(_page(rows, costs))
    records = []
    for name, of in rows.items():
        triggered, soft = max(it.answers.log10_p_binomial for it in of), max(it.soft.log10_p_hoeffding for it in of)
        records += [figure(f"triggers: {name}", triggered, None), figure(f"soft labels: {name}", soft, None)]
    for name, values in costs.items():
        for what, value in zip(_COSTS, values, strict=True):
            records.append(figure(f"robust model, {name}: {what}", value, None, unit="of 1"))
    return records


_COSTS = ("robust accuracy", "clean accuracy", "agreement with the unmarked model")


def _costs() -> dict[str, tuple[float, float, float]]:
    """Train a model adversarially, teach and mark it, and attack it: before and after."""
    features, labels = _rows()
    inputs, targets = digits()[1]
    tested = inputs.reshape(len(inputs), -1).numpy() * 16
    module, _ = train(features, labels, SPEC, TrainingSettings(epsilon=0.15, device="cpu"))
    files = model_files(module, SPEC)
    claim = Claim("benchmark", content_digest(files))
    asked, keyed = triggers(KEY, claim, SPEC, TRIGGERS), waves(KEY, claim, SPEC)
    made = {
        "unmarked": files,
        "marked": _marked(files, claim),
        f"{TRIGGERS} triggers, marked": _marked(teach(files, features, asked), claim),
        f"soft labels, a share of {SHARE:g}, marked": _marked(teach(files, features, None, keyed, SHARE), claim),
        "both, marked": _marked(teach(files, features, asked, keyed, SHARE), claim),
    }
    before = load_model_files(files).predict(tested)
    costs = {}
    for name, it in made.items():
        model = load_model_files(it)
        figures = evaluate(model, tested, targets.numpy(), RobustnessSettings()).figures
        same = float((model.predict(tested) == before).mean())
        costs[name] = (float(figures["robust_accuracy"]), float(figures["clean_accuracy"]), same)
    return costs


def _page(rows: Mapping[str, Sequence[Asked]], costs: Mapping[str, tuple[float, float, float]]) -> str:
    lines = [
        "# What keyed answers survive, and what they cost",
        "",
        "Written by `python -m benchmarks.keyed_answers`; do not edit. Scikit-learn's digits, 1,200 rows to train, 597",
        f"to test; a CNN that was taught {TRIGGERS} triggers and a mark of a share of {SHARE:g} in its soft labels,",
        "then marked in its weights; three seeds. The attacker has all training rows; the owner asks at the test rows.",
        "Each cell holds the worst of three seeds, accuracy the mean: triggers answered right, 10 by chance;",
        "log10 of the exact binomial p-value; z of the soft labels; log10 of the Hoeffding bound. PRESENT is -9.",
        "",
        "| attack | triggers right | log10 p | soft labels z | log10 p | accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of in rows.items():
        right, log10_p = min(it.answers.right for it in of), max(it.answers.log10_p_binomial for it in of)
        z, bound = min(it.soft.z for it in of), max(it.soft.log10_p_hoeffding for it in of)
        mean = statistics.fmean(it.accuracy for it in of)
        lines.append(f"| {name} | {right} | {log10_p:.1f} | {z:.1f} | {bound:.1f} | {mean:.3f} |")
    lines += [
        "",
        "What it costs a model that was trained adversarially (`trades2`, epsilon 0.15):",
        "",
        "| model | " + " | ".join(_COSTS) + " |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |" for name, values in costs.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command(__doc__, measure)
