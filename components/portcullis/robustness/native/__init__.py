"""Attacks of our own where libraries are wrong, weak, slow or made for images only: batched, for inputs of any shape.

- torchattacks' AutoAttack runs APGD for 10 steps, not 100, and fails with fewer than four classes.
- Its APGD and Square need (N, C, H, W), and reseed PyTorch's global generator.
- Its PGD climbs the cross-entropy only, and works on a row long after it is broken.
- Its DeepFool goes row by row and class by class, and stops for good at the edge of the range.

All draw from a generator of their own, stop a row as soon as it is broken, take gradients by `torch.autograd.grad` and
so touch no `.grad`. What they return are candidates: `portcullis.robustness.verify` decides.
"""

from portcullis.robustness.native.auto_pgd import apgd, apgd_ensemble
from portcullis.robustness.native.climb import (
    cross_entropy,
    generator_of,
    margin_loss,
    misclassified,
    targeted_dlr,
)
from portcullis.robustness.native.decoupled import ddn
from portcullis.robustness.native.deep_fool import deepfool
from portcullis.robustness.native.gradient import averaged, fgsm, pgd
from portcullis.robustness.native.random_search import noise, square

__all__ = [
    "apgd",
    "apgd_ensemble",
    "averaged",
    "cross_entropy",
    "ddn",
    "deepfool",
    "fgsm",
    "generator_of",
    "margin_loss",
    "misclassified",
    "noise",
    "pgd",
    "square",
    "targeted_dlr",
]
