"""The screening of one data set, cheapest first, so that what stops it leaves the figures measured so far."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import Dataset, features_and_labels
from portcullis.errors import InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.quality.backdoor import cluster_candidates, spectral_candidates, trigger_columns
from portcullis.quality.neighbours import Neighbourhood
from portcullis.quality.rows import constant_share, copies, missing_share, remoteness
from portcullis.quality.settings import QualitySettings

SHOWN_COLUMNS = 5


@dataclass(frozen=True)
class Finding:
    """Figures, and which rows they speak of: what they are suspected of to their indices, from 0.

    `remoteness` is how far each row is from its class's middle, where that was measured.
    """

    figures: Mapping[str, Figure]
    suspects: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    remoteness: NDArray[np.float64] | None = None


def screen(dataset: Dataset, settings: QualitySettings) -> Iterator[Finding]:
    """Screen a data set.

    Shares are in 0..1, of all rows unless said otherwise. The figures, in this order:

    - `rows`; `missing_share`, of cells in the emptiest column of all;
    - `constant_share`, of feature columns that hold one value;
    - `smallest_class`, its rows; `class_balance`, those of the smallest class over those of the largest;
    - `duplicate_rows`, that repeat the features of an earlier row; `largest_group`, the share of the largest group of
      equal rows where rows repeat at all, else 0; `contradicting_rows`, of which an equal row bears another label;
    - `outlying_rows`, far from their class's median;
    - `crowded_rows`, whose neighbours are much nearer than is usual;
    - `reference_accuracy`, of the nearest neighbours' vote; `label_issues`, that it confidently calls otherwise;
    - `reference_accuracy_network`, of the reference network on these rows; `spectral_suspects` and `cluster_suspects`,
      rows of the worst class that stand apart in its activations, by either method, and that the others confidently
      call otherwise;
    - `trigger_columns`, in which most suspects of a class share one value that hardly any other row has; and
      `trigger`, their class and names.

    Args:
        dataset: The data.
        settings: How.

    Yields:
        A finding for each screening.

    Raises:
        DataError: Features or labels are missing or out of bounds.
        InconclusiveError: A class has too few rows to judge it, or the network cannot be trained.
        MissingDependencyError: PyTorch is not installed.
    """
    yield Finding({"rows": dataset.table.num_rows, "missing_share": missing_share(dataset.table)})
    features, labels = features_and_labels(dataset)
    spec, classes = dataset.spec.features, dataset.spec.label.classes
    points = ((features.astype(np.float64) - spec.low) / (spec.high - spec.low)).astype(np.float32)
    yield _counts(points, labels, len(classes))
    sizes = np.bincount(labels, minlength=len(classes))
    if sizes.min() < settings.n_min:
        name = classes[int(sizes.argmin())]
        raise InconclusiveError(f"class {name!r} has {sizes.min()} rows; it is judged with {settings.n_min} or more")
    remote = remoteness(points, labels)
    away = np.flatnonzero(remote > settings.outlier_distance)
    yield Finding({"outlying_rows": len(away) / len(labels)}, {"outlier": away}, remote)
    around = Neighbourhood.of(points, labels, classes=len(classes), neighbours=settings.neighbours)
    crowded, issues = around.crowded(settings.crowding), around.issues()
    yield Finding({"crowded_rows": len(crowded) / len(labels)}, {"crowded": crowded})
    yield Finding({"reference_accuracy": around.accuracy, "label_issues": len(issues) / len(labels)}, {"label": issues})
    yield _backdoors(around, issues, dataset, settings)


def _counts(points: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> Finding:
    sizes = np.bincount(labels, minlength=classes)
    repeated, largest, contradicting = copies(points, labels)
    rows = len(labels)
    return Finding(
        {
            "constant_share": constant_share(points),
            "smallest_class": int(sizes.min()),
            "class_balance": float(sizes.min() / sizes.max()),
            "duplicate_rows": len(repeated) / rows,
            "largest_group": largest / rows if largest > 1 else 0.0,
            "contradicting_rows": len(contradicting) / rows,
        },
        {"duplicate": repeated, "contradiction": contradicting},
    )


def _backdoors(
    around: Neighbourhood, issues: NDArray[np.int64], dataset: Dataset, settings: QualitySettings
) -> Finding:
    from portcullis.quality.network import activations

    labels, names = around.labels, dataset.spec.label.classes
    values, accuracy = activations(
        around.points, labels, classes=around.classes, epochs=settings.epochs, seed=settings.seed
    )
    methods: dict[str, Callable[[NDArray[np.float64]], NDArray[np.int64]]] = {
        "spectral": lambda own: spectral_candidates(own, share=settings.suspected),
        "cluster": cluster_candidates,
    }
    worst = dict.fromkeys(methods, 0)
    every: list[NDArray[np.int64]] = []
    triggers: list[tuple[str, int]] = []
    for label in range(around.classes):
        own = np.flatnonzero(labels == label)
        suspects = [issues[labels[issues] == label]]
        for method, candidates in methods.items():
            found = around.reclassified(own[candidates(values[own])])
            worst[method] = max(worst[method], len(found))
            suspects.append(found)
        together = np.unique(np.concatenate(suspects))
        every.append(together)
        triggers += [(names[label], column) for column in trigger_columns(around.points, together)]
    columns = dataset.spec.features.columns
    shown = "; ".join(f"{columns[column]} in class {name}" for name, column in triggers[:SHOWN_COLUMNS])
    more = f"; and {len(triggers) - SHOWN_COLUMNS} more" if len(triggers) > SHOWN_COLUMNS else ""
    return Finding(
        {
            "reference_accuracy_network": accuracy,
            "spectral_suspects": worst["spectral"] / len(labels),
            "cluster_suspects": worst["cluster"] / len(labels),
            "trigger_columns": len(triggers),
            "trigger": shown + more,
        },
        {"backdoor": np.setdiff1d(np.concatenate(every), issues)},
    )
