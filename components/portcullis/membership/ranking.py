"""How well scores tell two sides apart: the area under the ROC curve, and DeLong's interval (1988, 10.2307/2531595)."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats


def ranked(ours: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """Return the probability that a score of ours (n,) is above one of the others (m,), and its variance.

    Ties count half. Both sides have two scores or more.
    """
    n, m = len(ours), len(others)
    ranks = stats.rankdata(np.concatenate([ours, others]))
    above_others = (ranks[:n] - stats.rankdata(ours)) / m  # of each of ours, the share of others below it
    below_ours = 1 - (ranks[n:] - stats.rankdata(others)) / n
    return float(above_others.mean()), float(above_others.var(ddof=1) / n + below_ours.var(ddof=1) / m)


def interval(auc: float, variance: float, fewest: int, confidence: float) -> tuple[float, float]:
    """Return the interval of an area, on the logit scale.

    Args:
        auc: The area, in [0, 1].
        variance: Its variance.
        fewest: Scores on the smaller side: the interval of an area of 0 or 1, which has no variance to speak of.
        confidence: Of the interval.
    """
    if not 0 < auc < 1:  # nothing lies between the sides
        return (0.0 if auc == 0 else 1 - 1 / fewest), (1.0 if auc == 1 else 1 / fewest)
    spread = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(variance) / (auc * (1 - auc))
    middle = math.log(auc / (1 - auc))
    return float(special.expit(middle - spread)), float(special.expit(middle + spread))
