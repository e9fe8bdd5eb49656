"""`dp_train` and its audit: accuracy and CPU seconds at an epsilon of 1, 3 and 8, beside plain Opacus and no privacy.

All train on the digits of scikit-learn, 1,437 rows, and are judged on the other 360. Plain Opacus is its
`PrivacyEngine` with a data loader, for the same network, epsilon and number of epochs; it has no attack inside
training. The audit rows are the lower bounds of epsilon of an honest trainer and of one without any noise. Its records
are among those of `python -m benchmarks.dp` too.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks import Record, command, spread
from portcullis.dp_training import private
from portcullis.dp_training.accounting import plan
from portcullis.dp_training.audit import audit
from portcullis.dp_training.settings import AuditSettings
from portcullis.models.store import LoadedModel, ModelSpec, build_module
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.settings import RobustnessSettings
from portcullis.training import adversarial
from portcullis.training.settings import TrainingSettings
from portcullis_pipelines.config import ReferenceConfig

EPSILONS = (1.0, 3.0, 8.0)
GOALS = {1.0: 0.84, 3.0: 0.91, 8.0: 0.92}  # of accuracy
# The noise is drawn anew each time, and at an epsilon of 1 moves the accuracy by some points.
ROUNDS = {1.0: 9, 3.0: 3, 8.0: 3}
SECONDS = 15.0  # of processor time
CANARIES = AuditSettings()
OPACUS = "Opacus, PrivacyEngine"

Rows = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def digits() -> tuple[Rows, Rows]:
    """Return training and test rows."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(features))
    known, held = order[:1437], order[1437:]
    features = features.astype(np.float32)
    return (features[known], labels[known]), (features[held], labels[held])


def spec_of(config: ReferenceConfig) -> ModelSpec:
    """Return the model of a configuration."""
    return ModelSpec.of_rows(config.dataset, config.architecture, config.options)


def judge(spec: ModelSpec, module: torch.nn.Module, held: Rows) -> tuple[float, float]:
    """Return clean accuracy, and accuracy under the gate's attacks."""
    found = evaluate(LoadedModel(spec, module), *held, RobustnessSettings()).figures
    return float(found["clean_accuracy"]), float(found["robust_accuracy"])


def plain_opacus(config: ReferenceConfig, known: Rows) -> torch.nn.Module:
    """Train the same network by Opacus's own engine, loader and generator, to the same epsilon."""
    from opacus import PrivacyEngine

    settings = config.dp_training
    assert settings is not None
    spec = spec_of(config)
    data = torch.utils.data.TensorDataset(torch.from_numpy(spec.scale(known[0])), torch.from_numpy(known[1]))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = build_module(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, optimizer, loader = PrivacyEngine(accountant="prv").make_private_with_epsilon(
            module=module,
            optimizer=torch.optim.SGD(module.parameters(), lr=settings.learning_rate),
            data_loader=torch.utils.data.DataLoader(data, batch_size=settings.batch_size),
            epochs=settings.epochs,
            target_epsilon=settings.target_epsilon,
            target_delta=settings.delta,
            max_grad_norm=settings.max_grad_norm,
        )
        for _ in range(settings.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        plain: torch.nn.Module = network.to_standard_module()
    return plain.eval().requires_grad_(requires_grad=False)


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    known, held = digits()
    records = []
    reference = ReferenceConfig.load(None)
    seconds, (module, _) = _timed(lambda: adversarial.train(*known, spec_of(reference), TrainingSettings(device="cpu")))
    clean, robust = judge(spec_of(reference), module, held)
    records += [_record("not private, accuracy", [clean]), _record("not private, robust accuracy", [robust])]
    records.append(_record("not private, training", [seconds], unit="CPU s", better="lower"))
    for epsilon in EPSILONS[:1] if quick else EPSILONS:
        records += _private(epsilon, known, held, rounds=1 if quick else ROUNDS[epsilon], without=clean)
    return records


def _private(epsilon: float, known: Rows, held: Rows, *, rounds: int, without: float) -> list[Record]:
    config = ReferenceConfig.load(None, private=True, epsilon=epsilon)
    spec, settings = spec_of(config), config.dp_training
    assert settings is not None
    own, peers, cost = [], [], []
    for _ in range(rounds):
        seconds, (module, planned) = _timed(lambda: private.train(*known, spec, settings))
        own.append(judge(spec, module, held))
        cost.append(seconds)
        other_seconds, peer = _timed(lambda: plain_opacus(config, known))
        peers.append((*judge(spec, peer, held), other_seconds))
    name = f"dp-sgd eps {epsilon:g}"
    clean, robust = (list(it) for it in zip(*own, strict=True))
    peer_clean, peer_robust, peer_seconds = (list(it) for it in zip(*peers, strict=True))
    print(f"{name}: each run (clean, robust) {np.round(own, 3).tolist()}")
    planned = plan(len(known[0]), settings)
    honest = audit(spec, planned, settings, CANARIES, coins=bytes(32))
    with mock.patch.object(private.RandomStream, "normal", lambda _, count: np.zeros(count)):
        silent = audit(spec, planned, settings, CANARIES, coins=bytes(32))
    print(f"{name}: audit, honest {honest}\n{name}: audit, without noise {silent}")
    return [
        _record(name, clean, unit="accuracy", target=GOALS[epsilon]),
        _record(f"{name}, training", cost, unit="CPU s", better="lower", target=SECONDS),
        _record(f"{name}, beside no privacy", clean, [without] * rounds, "the reference's training", unit="accuracy"),
        _record(f"{name}, beside Opacus", clean, peer_clean, OPACUS, unit="accuracy"),
        _record(f"{name}, robust accuracy", robust, peer_robust, OPACUS),
        _record(f"{name}, training beside Opacus", cost, peer_seconds, OPACUS, unit="CPU s", better="lower"),
        _record(f"audit eps {epsilon:g}, honest", [float(honest["epsilon_lower"])], unit="epsilon", better="lower"),
        _record(f"audit eps {epsilon:g}, without noise", [float(silent["epsilon_lower"])], unit="epsilon", target=2.0),
    ]


def _record(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    peer_name: str = "",
    *,
    unit: str = "share",
    better: Any = "higher",
    target: float | None = None,
) -> Record:
    ratios = [a / b if better == "higher" else b / a for a, b in zip(ours, peer, strict=True)] if peer else []
    return Record(
        name=name,
        unit=unit,
        ours=statistics.median(ours),
        peer=statistics.median(peer) if peer else None,
        peer_name=peer_name,
        ratio=statistics.median(ratios) if ratios else None,
        spread=spread(ratios or ours),
        target=target,
        better=better,
    )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds, as other work on the machine would count in the others, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    command("dp_training", measure)
