"""A verdict on a share for less than all of the work: look at rows in a secret order until the rest cannot matter.

Of N rows, `pool` may still be robust, and the share passes when at least `need` of the N are. The pool's rows are
judged in an order that nobody could choose. The verdict stands as soon as

- it is certain: enough rows withstood, or too many broke, whatever the others would do; or
- all numbers of robust rows on the other side of `need` are excluded by a test that holds at every look: sampling
  without replacement, whose prior-posterior ratio is a martingale (Waudby-Smith and Ramdas 2020, arXiv:2006.04347).

The test errs with probability at most `ALPHA` over the order, however often one looks, and is exact once all are
judged. It covers the choice of rows, never the strength of the attacks.
"""

import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from portcullis.errors import InconclusiveError

ALPHA = 0.01
# Each chunk is half of what was judged before: few looks, and little is judged in vain.
LEAST_CHUNK = 32
# Beta prior of the share of the pool that is robust: most of what withstands the cheap attacks withstands the others.
PRIOR = (4.0, 0.5)

Stop = Literal["certain", "sequential", "exhausted"]


@dataclass(frozen=True)
class Conclusion:
    """Where judging stopped.

    Attributes:
        low: Least number of robust rows.
        high: Greatest; `low` and `high` lie on the same side of `need` unless equal.
        judged: Rows of the pool that were judged.
        stop: Why: `certain`, `sequential` (right with probability 1 - ALPHA), or `exhausted` (all were judged).
    """

    low: int
    high: int
    judged: int
    stop: Stop


@dataclass(frozen=True)
class Question:
    """What a verdict is asked for, and the secret that orders the rows.

    The same model, rows and policy are judged in the same order however often one tries, so trying again cannot buy
    another verdict; and who has no key cannot know which rows come first.

    Attributes:
        threshold: Least share of robust rows, in (0, 1].
        key: Secret, at least 32 bytes.
        subjects: Digests of the model, the rows and the policy.
    """

    threshold: float
    key: bytes = field(repr=False)
    subjects: tuple[str, str, str]

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InconclusiveError("mode=verdict needs a policy that demands a robust_accuracy above 0, up to 1")
        if len(self.key) < 32:
            raise InconclusiveError("the key that orders the rows has fewer than 32 bytes")

    def order(self, size: int) -> NDArray[np.int64]:
        """Return a permutation of `size` places, by HMAC-SHA-256 of the subjects."""
        seed = hmac.digest(self.key, "|".join(self.subjects).encode(), "sha256")
        # Ranks of a keyed hash, not a library's generator, whose stream may change with its version.
        ranks = [hmac.digest(seed, place.to_bytes(8, "big"), "sha256") for place in range(size)]
        return np.array(sorted(range(size), key=ranks.__getitem__), dtype=np.int64)


def least_count(threshold: float, rows: int) -> int:
    """Return the least number of rows whose share of all, as a float, reaches a threshold in (0, 1]."""
    count = max(math.floor(threshold * rows) - 1, 0)
    while count / rows < threshold:
        count += 1
    return count


def plausible(pool: int, judged: int, withstood: int, alpha: float = ALPHA) -> tuple[int, int]:
    """Return the least and greatest number of robust rows in the pool that the test does not exclude.

    Over all looks together, the true number is excluded with probability at most `alpha`.
    """
    counts = np.arange(withstood, pool - (judged - withstood) + 1)
    first, second = PRIOR
    seen = betaln(first + withstood, second + judged - withstood) - betaln(first, second)
    log_ratio = seen + _log_choose(pool, counts) - _log_choose(pool - judged, counts - withstood)
    held = counts[log_ratio < -math.log(alpha)]
    # The likelihood has one peak, so what is held is an interval; at the peak the ratio is at most 1.
    return int(held.min()), int(held.max())


def conclude(pool: int, judged: int, withstood: int, *, need: int, n_min: int) -> Conclusion | None:
    """Return the conclusion after `judged` rows of the pool, of which some withstood, or None to go on."""
    low, high = withstood, pool - (judged - withstood)
    if judged == pool:
        return Conclusion(low, high, judged, "exhausted")
    if low >= need or high < need:
        return Conclusion(low, high, judged, "certain")
    if judged >= n_min:
        low, high = plausible(pool, judged, withstood)
        if low >= need or high < need:
            return Conclusion(low, high, judged, "sequential")
    return None


def judge_in_turn(
    order: NDArray[np.int64],
    judge: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    *,
    need: int,
    n_min: int,
) -> Conclusion:
    """Judge the pool in growing chunks, the first of `n_min` rows, until there is a conclusion.

    Args:
        order: Places of the pool's rows, in the order in which they are judged.
        judge: Tells which of some places withstand everything.
        need: Least number of robust rows to pass.
        n_min: Rows that are judged before the sequential test may decide.
    """
    judged = withstood = 0
    while (found := conclude(len(order), judged, withstood, need=need, n_min=n_min)) is None:
        size = max(judged // 2, LEAST_CHUNK) if judged else n_min
        chunk = order[judged : judged + size]
        withstood += int(judge(chunk).sum())
        judged += len(chunk)
    return found


def _log_choose(total: int, chosen: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)
    return result
