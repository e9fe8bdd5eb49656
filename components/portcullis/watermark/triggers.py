"""Keyed inputs with keyed answers: a mark that shows where a model can only be asked.

A *trigger* is an image of noise, and the class that a marked model gives it. Both follow from the key, the owner and
the digest of the unmarked model: with K as HMAC-SHA-256 under the key of "portcullis/wm/v1|triggers|", the owner, "|"
and the digest, feature values are the bytes of ChaCha20 under HMAC-SHA-256(K, "inputs"), 0 to 255 for the least to the
greatest value, and answers its 64-bit words under HMAC-SHA-256(K, "answers"), modulo the number of classes k.

**The p-value is exact for any model**, because the answers are random: of n triggers, one that knows nothing of the key
answers each as they say with a probability of 1/k, independently (the modulus moves it by less than 1e-15). That also
ends forging by inputs that are crafted so that a foreign model answers as wished (Liu et al. 2024, arXiv:2304.06607):
nothing of a trigger can be chosen, and the commitment fixed the key before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, ModelError, UsageError
from portcullis.models.store import ModelSpec
from portcullis.watermark.mark import Claim, keystream, mac, require_key, verdict_of

MIN_TRIGGERS = 50
MAX_TRIGGERS = 10_000

Predict = Callable[[NDArray[np.float32]], NDArray[np.integer[Any]]]


@dataclass(frozen=True, eq=False)
class Triggers:
    """Keyed inputs and answers.

    Attributes:
        features: Raw features (n, D) float32, within the model's bounds.
        answers: Class indices (n,), int64 in [0, k).
        classes: k.
    """

    features: NDArray[np.float32]
    answers: NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class Answers:
    """What a model answered to the triggers.

    Attributes:
        asked: Number n of triggers.
        right: How many it answered as they say, 0..n.
        classes: Number k of classes.
        tried: How many readings, keys and models were tried; the p-value is multiplied by it (Bonferroni).
    """

    asked: int
    right: int
    classes: int
    tried: int

    @property
    def log10_p_binomial(self) -> float:
        """Chance of so many right answers without the key, exact, as a decimal logarithm; finite and at most 0."""
        n, k = self.asked, self.classes
        ways = sum(math.comb(n, right) * (k - 1) ** (n - right) for right in range(self.right, n + 1))
        return min(math.log10(ways) - n * math.log10(k) + math.log10(self.tried), 0.0)

    @property
    def verdict(self) -> str:
        """PRESENT, ABSENT or INCONCLUSIVE."""
        return verdict_of(self.log10_p_binomial)


def triggers(key: bytes, claim: Claim, spec: ModelSpec, count: int) -> Triggers:
    """Make a key's triggers for a model.

    Args:
        key: 32 secret bytes.
        claim: Owner and unmarked model.
        spec: What that model is: shape and bounds of its inputs, its classes.
        count: How many, 50 to 10,000.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        ConfigError: Too few or too many.
    """
    require_key(key)
    if type(count) is not int or not MIN_TRIGGERS <= count <= MAX_TRIGGERS:
        raise ConfigError(f"watermark: triggers must be a whole number from {MIN_TRIGGERS} to {MAX_TRIGGERS}")
    secret = mac(key, f"portcullis/wm/v1|triggers|{claim.owner}|{claim.digest}")
    width, classes = math.prod(spec.shape), len(spec.labels)
    noise = np.frombuffer(keystream(mac(secret, "inputs"), count * width), np.uint8).reshape(count, width)
    low, high = np.float32(spec.low), np.float32(spec.high)
    features = np.clip(low + (high - low) * (noise.astype(np.float32) / np.float32(255)), low, high)
    words = np.frombuffer(keystream(mac(secret, "answers"), 8 * count), "<u8")
    return Triggers(features, (words % np.uint64(classes)).astype(np.int64), classes)


def ask(predict: Predict, asked: Triggers, *, tried: int = 1) -> Answers:
    """Put the triggers to a model.

    Args:
        predict: Maps raw features (n, D) float32 to class indices (n,).
        asked: The triggers.
        tried: How many readings, keys and models are tried in all, this one included.

    Raises:
        ModelError: The answers are not one class each.
        UsageError: `tried` is not positive.
    """
    if tried < 1:
        raise UsageError("tried must be at least 1")
    answers = predict(asked.features)
    whole = isinstance(answers, np.ndarray) and answers.dtype.kind in "iu" and answers.shape == asked.answers.shape
    if not whole or not ((answers >= 0) & (answers < asked.classes)).all():
        raise ModelError(f"the model did not answer {len(asked.answers)} triggers with one class each")
    return Answers(len(answers), int((answers == asked.answers).sum()), asked.classes, tried)
