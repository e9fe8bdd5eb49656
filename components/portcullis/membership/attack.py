"""Membership inference by loss (Yeom et al. 2018, arXiv:1709.01604): rows that a model learnt from have lower losses.

The area under the attack's ROC curve is the probability that a training row scores higher than a test row; 0.5 is
guessing. Its interval is DeLong's (1988, 10.2307/2531595), on the logit scale. The true-positive rate at a low
false-positive rate is what an attacker who must be sure gets (Carlini et al. 2022, arXiv:2112.03570).

That rate is bounded through both binomial proportions: the threshold is set at the test rows' own order statistic, and
the exact (Clopper-Pearson) upper bound of the false-positive rate there says whether so low a rate was measured at all.
Attacks that train shadow models (LiRA) find more; these figures are lower ends of what an attacker can do.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from portcullis.errors import InconclusiveError
from portcullis.evidence.statement import Figure
from portcullis.membership.ranking import interval, ranked
from portcullis.membership.settings import MembershipSettings


def attack(
    members: NDArray[np.float64], others: NDArray[np.float64], settings: MembershipSettings
) -> dict[str, Figure]:
    """Return how well losses tell training rows from others.

    Args:
        members: (n,), the losses of rows that the model learnt from.
        others: (m,), those of rows of the same distribution that it did not.
        settings: What to report, and how sure.

    Returns:
        `auc` and its interval `auc_low`, `auc_high`; `tpr`, the share of members below the loss at which at most
        `false_positives` of the others lie, with the exact interval `tpr_low`, `tpr_high`; `fpr_high`, the exact upper
        bound of the false-positive rate at that loss; `fpr_measurable`, whether that is at most twice what was asked
        for; `members` and `others`.

    Raises:
        InconclusiveError: Fewer than `n_min` rows on a side, or a loss that is not finite.
    """
    if min(len(members), len(others)) < settings.n_min:
        raise InconclusiveError(f"{len(members)} training and {len(others)} other rows; {settings.n_min} are needed")
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise InconclusiveError("a loss is not finite")
    auc, variance = ranked(-members, -others)
    low, high = interval(auc, variance, min(len(members), len(others)), settings.confidence)
    allowed = math.floor(settings.false_positives * len(others))
    threshold = np.sort(others)[allowed]
    caught, false = int((members < threshold).sum()), int((others < threshold).sum())
    tpr_low, tpr_high = _clopper_pearson(caught, len(members), settings.confidence)
    _, fpr_high = _clopper_pearson(false, len(others), settings.confidence)
    return {
        "auc": auc,
        "auc_low": low,
        "auc_high": high,
        "tpr": caught / len(members),
        "tpr_low": tpr_low,
        "tpr_high": tpr_high,
        "fpr_high": fpr_high,
        "fpr_measurable": int(fpr_high <= 2 * settings.false_positives),
        "members": len(members),
        "others": len(others),
    }


def _clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    alpha = (1 - confidence) / 2
    low = float(stats.beta.ppf(alpha, hits, trials - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - alpha, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high
