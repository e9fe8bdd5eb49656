"""Square on tables: a random search that sees probabilities only, and so attacks trees as well as networks."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from portcullis.robustness.tabular.threat import Rows, TabularThreat

# Maps rows (n, D) to probabilities of the classes (n, k).
Classifier = Callable[[Rows], NDArray[np.float64]]
# Maps probabilities (n, k) and their rows' places (n,) to what is to fall (n,); a row is done at 0 or below.
Score = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]

FIRST_SHARE = 0.8
HALVINGS = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
# Every so many queries go to points between the ends: what a tree does there, its ends do not tell.
BETWEEN = 4


def search(
    classifier: Classifier,
    clean: Rows,
    threat: TabularThreat,
    score: Score,
    *,
    queries: int,
    generator: np.random.Generator,
) -> Rows:
    """Return candidates (n, D) that the threat allows, with a low score.

    In each query a random share of what may change is set anew: a feature to an end of what it may take, or between, a
    group to a random member. It is kept where the score does not rise; on the plateaus of trees that is how one moves.

    Source: Andriushchenko et al. 2020, arXiv:1912.00049, with features in place of pixels.

    Args:
        classifier: The model.
        clean: Rows (n, D) that the threat holds possible.
        threat: What may change.
        score: What is to fall.
        queries: Rows that the model is asked about, for each clean one.
        generator: Of the search.
    """
    found = clean.copy()
    least = np.full(len(clean), np.inf)
    rows = np.arange(len(clean), dtype=np.int64)
    for query in range(queries):
        share = FIRST_SHARE / 2 ** sum(query > limit * queries for limit in HALVINGS)
        tried = draw(threat, clean[rows], found[rows], 1.0 if query == 0 else share, generator, query % BETWEEN == 3)
        reached = score(classifier(tried), rows)
        taken = reached <= least[rows]
        found[rows[taken]], least[rows[taken]] = tried[taken], reached[taken]
        rows = rows[least[rows] > 0]
        if not len(rows):
            break
    return found


def draw(
    threat: TabularThreat,
    clean: Rows,
    found: Rows,
    share: float,
    generator: np.random.Generator,
    between: bool,  # noqa: FBT001
) -> Rows:
    """Set a random share of what may change anew, in rows (n, D) that were found so far."""
    low, high = threat.box(clean)
    place = generator.random(clean.shape) if between else generator.integers(0, 2, clean.shape)
    moved = np.clip(low + place * (high - low), low, high)
    moved = np.where(threat.whole, np.clip(np.round(moved), low, high), moved)
    movable = np.flatnonzero(threat.epsilon)
    mask = np.zeros(clean.shape, dtype=bool)
    if len(movable):
        drawn = generator.random((len(clean), len(movable)))
        most = min(max(round(share * len(movable)), 1), len(movable))
        mask[:, movable] = drawn <= np.partition(drawn, most - 1, axis=1)[:, most - 1 : most]
    tried = np.where(mask, moved, found)
    for group in threat.groups if threat.swaps else ():
        chosen = generator.random(len(clean)) < max(share, 1 / len(threat.groups))
        member = np.eye(len(group))[generator.integers(0, len(group), len(clean))]
        tried[:, list(group)] = np.where(chosen[:, None], member, tried[:, list(group)])
    for turn in generator.permutation(len(threat.groups)):
        members = list(threat.groups[turn])
        many = threat.swapped(clean, tried) > threat.swaps
        tried[:, members] = np.where(many[:, None], clean[:, members], tried[:, members])
    return tried
