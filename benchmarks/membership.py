"""`membership`: what membership inference and inversion find in reference models, over several splits and seeds.

Each model is trained as the reference pipeline trains it, on 1,437 of scikit-learn's digits, and attacked with those
and the other 360; and one private model for each epsilon that `portcullis run --private` offers. The largest upper end
of the intervals is what the reference policy's bound must be above.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits

from benchmarks import Record, command, spread
from benchmarks.dp_training import EPSILONS, spec_of
from portcullis.dataset import Dataset, DatasetSpec, Features, Label, features_and_labels
from portcullis.dp_training import private
from portcullis.evidence.statement import Figure
from portcullis.membership.attack import attack
from portcullis.membership.inversion import invert
from portcullis.membership.losses import losses
from portcullis.membership.settings import MembershipSettings
from portcullis.models.store import LoadedModel
from portcullis.training import adversarial
from portcullis.training.settings import TrainingSettings
from portcullis_pipelines.config import ReferenceConfig

COLUMNS = tuple(f"pixel_{index}" for index in range(64))
SPEC = DatasetSpec("digits", Label("digit", tuple("0123456789")), Features(COLUMNS, (1, 8, 8), 0, 16))


def sides(split: int) -> tuple[Dataset, Dataset]:
    """Return training and test rows."""
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(100 + split).permutation(len(features))
    columns = {name: features[order, index] for index, name in enumerate(COLUMNS)}
    table = pa.table({**columns, "digit": [str(label) for label in labels[order]]})
    return Dataset(table.slice(0, 1437), SPEC), Dataset(table.slice(1437), SPEC)


def attacked(config: ReferenceConfig, split: int) -> Mapping[str, Figure]:
    """Train a model on one split, and return what both attacks find."""
    known, held = sides(split)
    features, labels = features_and_labels(known)
    if config.dp_training is None:
        module, _ = adversarial.train(features, labels, spec_of(config), TrainingSettings(device="cpu", seed=split))
    else:
        module, _ = private.train(features, labels, spec_of(config), config.dp_training)
    model = LoadedModel(spec_of(config), module.eval())
    members, others = (losses(model, *features_and_labels(side)) for side in (known, held))
    settings = MembershipSettings()
    figures = attack(members, others, settings) | invert(model, known, held, settings)[0]
    print(f"{config.policy_name}, split {split}: {dict(figures)}")
    return figures


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    reference = ReferenceConfig.load(None)
    found = [attacked(reference, split) for split in range(1 if quick else 5)]
    records = _records("reference", found, reference)
    for split, epsilon in enumerate(EPSILONS[:1] if quick else EPSILONS):
        config = ReferenceConfig.load(None, private=True, epsilon=epsilon)
        records += _records(f"private eps {epsilon:g}", [attacked(config, split)], config)
    return records


def _records(name: str, found: Sequence[Mapping[str, Figure]], config: ReferenceConfig) -> list[Record]:
    bounds = {"auc": config.thresholds.membership_auc, "inversion_auc": config.thresholds.inversion_auc}
    records = []
    for figure, bound in bounds.items():
        values = [float(it[figure]) for it in found]
        high = max(float(it[f"{figure}_high"]) for it in found)
        records += [
            _record(f"{name}, {figure}", statistics.median(values), spread(values), None),
            _record(f"{name}, {figure}, largest upper end", high, 0.0, bound),
        ]
    recognised = statistics.median(float(it["inversion_recognised"]) for it in found)
    return [*records, _record(f"{name}, classes recognised", recognised, 0.0, None)]


def _record(name: str, value: float, spread_of: float, target: float | None) -> Record:
    return Record(name, "share", value, None, "", None, spread_of, target, "lower")


if __name__ == "__main__":
    command("membership", measure)
