"""How often a black box withstands the tabular Square attack, and whether that may be believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.robustness.tabular.search import Classifier, Score, draw, search
from portcullis.robustness.tabular.threat import Rows, TabularThreat

CHECKED_ROWS = 32
PLANTED_DRAWS = 64
MIN_PLANTED_FOUND = 0.9
NOISE_DRAWS = 20
MIN_TIMES_CHANCE = 1.5
# By how much a probability may change with the batch, and rows of probabilities miss a sum of 1.
ROUNDING = 1e-5
TOLERATED_SHARE = 0.01


@dataclass(frozen=True)
class TabularSettings:
    """How a black box is attacked.

    Attributes:
        queries: Rows that it is asked about, for each row that it classifies correctly; 100 or more.
        n_min: Fewest rows that are judged.
        seed: Of the search.

    Raises:
        ConfigError: A value is out of its range.
    """

    queries: int = 500
    n_min: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("queries", 100, 1_000_000), ("n_min", 1, 1 << 30), ("seed", 0, 2**53 - 1)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"tabular robustness: {name} must be a whole number from {low} to {high}")


@dataclass(frozen=True)
class TabularReport:
    """What was measured.

    Attributes:
        figures: `samples`; `classes`; `features` that may change, and `groups`; `clean_accuracy`; `robust_accuracy`
            (share of rows that are classified correctly, and of which no allowed change was found that breaks them);
            `planted_found` (share of planted adversarial examples that the search finds, at least 0.9); `noise_found`
            (of the rows that the search left, how many noise breaks); `queries`, of all together.
        candidates: For each row (N, D), the change that breaks it, or the row itself.
        broken: Which rows these break (N,).
    """

    figures: Mapping[str, Figure]
    candidates: Rows
    broken: NDArray[np.bool_]


def judge_black_box(
    predict_proba: Classifier,
    features: NDArray[np.floating[Any] | np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    threat: TabularThreat,
    settings: TabularSettings | None = None,
) -> TabularReport:
    """Attack a model of tables through its probabilities, such as `predict_proba` of a scikit-learn classifier.

    "Robust" means that this search found nothing, not that there is nothing.

    Args:
        predict_proba: Maps rows (n, D) float64 to probabilities (n, k).
        features: Rows (N, D) that the model was not trained on.
        labels: Class indices (N,) in [0, k), of all k classes, in the order of the probabilities.
        threat: What may change in a row.
        settings: The plan; the defaults when None.

    Raises:
        InconclusiveError: Nothing could be judged: too few rows or a class without one; rows that the threat holds
            impossible; a model that is hardly better than chance, that answers with labels or anything but
            probabilities, or whose answers depend on chance or on the other rows; a search that misses what was
            planted, or that noise beats; a model that fails.
    """
    settings = settings or TabularSettings()
    asked = _Asked(predict_proba)
    rows = _checked_rows(features, labels, threat, settings)
    generator = np.random.default_rng(settings.seed)
    clean = asked(rows)
    classes = clean.shape[1]
    if not ((labels >= 0) & (labels < classes)).all() or len(np.unique(labels)) != classes:
        raise InconclusiveError(f"labels must be class indices from 0 to {classes - 1}, and all occur")
    _require_probabilities_of_the_row_alone(asked, rows, clean)
    hits = _margins(clean, labels) > 0
    commonest = int(np.bincount(labels).max()) / len(labels)
    floor = max(MIN_TIMES_CHANCE / classes if classes > 2 else 0.0, commonest)
    if not hits.mean() > floor:
        raise InconclusiveError(f"clean accuracy {hits.mean():.3f} is not above {floor:.3f}, hardly better than chance")
    planted = _planted_found(asked, rows[hits][:CHECKED_ROWS], threat, settings, generator)
    left = np.flatnonzero(hits)
    candidates = rows.copy()
    candidates[left] = search(
        asked, rows[left], threat, _margin_score(labels[left]), queries=settings.queries, generator=generator
    )
    broken = np.zeros(len(rows), dtype=bool)
    broken[left] = verified(asked, rows[left], candidates[left], labels[left], threat)
    left = np.flatnonzero(hits & ~broken)
    noisy = _broken_by_noise(asked, rows[left], labels[left], threat, generator)
    if noisy > 1 and not noisy <= TOLERATED_SHARE * len(left):
        raise InconclusiveError(f"noise breaks {noisy} of {len(left)} rows that the search left; it is led astray")
    candidates[~broken] = rows[~broken]
    figures: dict[str, Figure] = {
        "samples": len(rows),
        "classes": classes,
        **threat.counts,
        "clean_accuracy": float(hits.mean()),
        "robust_accuracy": max(int((hits & ~broken).sum()) - noisy, 0) / len(rows),
        "planted_found": planted,
        "noise_found": noisy,
        "queries": asked.queries,
    }
    return TabularReport(figures, candidates, broken)


def verified(
    classifier: Classifier, clean: Rows, candidates: Rows, labels: NDArray[np.integer[Any]], threat: TabularThreat
) -> NDArray[np.bool_]:
    """Tell which candidates (n, D) the threat allows and the model does not classify as its label; ties count."""
    if not len(clean):
        return np.zeros(0, dtype=bool)
    result: NDArray[np.bool_] = threat.holds(clean, candidates) & ~(_margins(classifier(candidates), labels) > 0)
    return result


class _Asked:
    """A model that is held to its form at every answer, and counts the rows that it was asked about."""

    def __init__(self, predict_proba: Classifier) -> None:
        self.predict_proba = predict_proba
        self.queries = 0
        self.classes: int | None = None

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        try:
            answer = np.asarray(self.predict_proba(rows.copy()))
        except Exception as error:  # whatever a foreign model raises, nothing was judged
            raise InconclusiveError(f"the model could not be attacked: {type(error).__name__}: {error}") from error
        self.queries += len(rows)
        good = answer.dtype.kind == "f" and answer.ndim == 2 and len(answer) == len(rows) and answer.shape[1] >= 2
        if not good or (self.classes is not None and answer.shape[1] != self.classes):
            raise InconclusiveError("the model does not return probabilities of the same classes for each row")
        self.classes = answer.shape[1]
        if not (((answer >= 0) & (answer <= 1)).all() and (np.abs(answer.sum(axis=1) - 1) <= ROUNDING).all()):
            raise InconclusiveError("the model does not return probabilities from 0 to 1 that sum to 1")
        return answer.astype(np.float64)


def _checked_rows(
    features: NDArray[Any], labels: NDArray[Any], threat: TabularThreat, settings: TabularSettings
) -> Rows:
    numbers = isinstance(features, np.ndarray) and features.dtype.kind in "fiu" and features.ndim == 2
    if not numbers or features.shape[1] != len(threat.epsilon):
        raise InconclusiveError(f"the rows must be an array of numbers (N, {len(threat.epsilon)})")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.shape != (len(features),):
        raise InconclusiveError(f"labels must be {len(features)} integers, one for each row")
    if len(features) < settings.n_min:
        raise InconclusiveError(f"{len(features)} rows, fewer than the {settings.n_min} that are needed")
    rows = features.astype(np.float64)
    possible = threat.belongs(rows)
    if not possible.all():
        raise InconclusiveError(f"row {int(np.argmin(possible))} is impossible by the threat's own bounds and groups")
    return rows


def _require_probabilities_of_the_row_alone(asked: _Asked, rows: Rows, clean: NDArray[np.float64]) -> None:
    first = rows[:CHECKED_ROWS]
    alone = np.concatenate([asked(row[None]) for row in first])
    again = asked(rows)
    if not (np.abs(alone - clean[: len(first)]).max() <= ROUNDING and np.abs(again - clean).max() <= ROUNDING):
        raise InconclusiveError("a row's probabilities depend on chance or on the other rows of a batch")
    # As a label it counts too what is softened, such as by a floor: no more different answers than classes.
    if 1 < len(np.unique(clean.round(9), axis=0)) <= clean.shape[1]:
        raise InconclusiveError("the model answers with labels, not probabilities; a search has nothing to follow")


def _planted_found(
    asked: _Asked, rows: Rows, threat: TabularThreat, settings: TabularSettings, generator: np.random.Generator
) -> float:
    """Plant adversarial examples by a random readout of the probabilities, as Zimmermann et al. 2022, and look."""
    readout = generator.standard_normal((len(rows), asked(rows).shape[1]))
    here = (asked(rows) * readout).sum(axis=1)
    reach = here.copy()
    for turn in range(PLANTED_DRAWS):
        drawn = draw(threat, rows, rows, 1.0, generator, turn % 2 == 1)
        reach = np.maximum(reach, (asked(drawn) * readout).sum(axis=1))
    level = reach - 1e-3 * (reach - here)

    def score(answers: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = level[places] - (answers * readout[places]).sum(axis=1)
        return result

    planted = reach - here > 1e-6
    found = search(asked, rows, threat, score, queries=settings.queries, generator=generator)
    reached = (score(asked(found), np.arange(len(rows))) <= 0) & threat.holds(rows, found)
    if not planted.any():
        raise InconclusiveError("no allowed change changes any answer; the threat or the model is empty")
    share = float((reached & planted).sum() / planted.sum())
    if not share >= MIN_PLANTED_FOUND:
        raise InconclusiveError(f"the search finds only {share:.1%} of adversarial examples that were planted")
    return share


def _broken_by_noise(
    asked: _Asked, rows: Rows, labels: NDArray[Any], threat: TabularThreat, generator: np.random.Generator
) -> int:
    broken = np.zeros(len(rows), dtype=bool)
    for turn in range(NOISE_DRAWS if len(rows) else 0):
        drawn = draw(threat, rows, rows, 1.0, generator, turn % 2 == 1)
        broken |= verified(asked, rows, drawn, labels, threat)
    return int(broken.sum())


def _margin_score(labels: NDArray[Any]) -> Score:
    return lambda answers, places: _margins(answers, labels[places])


def _margins(answers: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return each row's probability of its label less the greatest other one (n,)."""
    places = np.arange(len(labels))
    others = answers.copy()
    others[places, labels] = -np.inf
    result: NDArray[np.float64] = answers[places, labels] - others.max(axis=1)
    return result
