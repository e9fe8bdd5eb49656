"""A mark in a model's soft labels, which a student that learns from them takes over.

A marked model gives a small *share* of its probability to the classes that it does not choose, and which of them get
how much follows waves over its inputs. Let K be HMAC-SHA-256 under the key of "portcullis/wm/v1|soft|", the owner, "|"
and the digest of the unmarked model. From the keystream of ChaCha20 under HMAC-SHA-256(K, a name) come, for each of J =
256 waves, a direction d_j over the D scaled features (+-8/sqrt(D)), a phase, a sign v_jc for each of the k classes, and
the code b_j, a sign too. At an input x the hint for class c is the sum over j of b_j sqrt(2) cos(d_j x + phase_j)
v_jc / sqrt(J); the share is spread over all classes but the chosen one by a softmax of three times their hints.

**Reading** needs the suspect's probabilities at some rows, whether its weights are at hand or not. The logarithms of
those of the classes not chosen, less their mean in each row and clipped at twice their spread, are fitted by the J
waves without the code (ridge regression), and z is sum(b_j a_j) over the norm of the J coefficients a.

**The p-value holds for any model and any rows**, because the code is random and takes no part in the fit: for a model
that was made without the key, z is a weighted sum of independent signs, so P(z >= t) <= exp(-t^2 / 2) (Hoeffding 1963).

To mark what is distilled is older: Charette et al. 2022 (CosWM, AAAI), one keyed cosine in the outputs, found in its
spectrum; Sablayrolles et al. 2020 (arXiv:2002.00937), radioactive data. Students of hard labels take nothing over.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.errors import ConfigError, InconclusiveError, ModelError, UsageError
from portcullis.models.store import ModelSpec
from portcullis.watermark.mark import Claim, keystream, mac, require_key, verdict_of

WAVES = 256
MAX_SHARE = 0.5
MIN_ROWS = 100
MAX_ROWS = 10_000
# How sharply the share follows the hints, and how far from one another inputs are whose hints differ.
_SHARPNESS = 3.0
_FREQUENCY = 8.0
_LEAST = 1e-9
_CLIP = 2.0
_BLOCK = 500

Probabilities = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class Waves:
    """A key's waves over a model's inputs.

    Attributes:
        directions: (D, J) float32.
        phases: (J,) float32, radians.
        classes: (J, k) float32, each +-1.
        code: (J,) float32, each +-1.
    """

    directions: NDArray[np.float32]
    phases: NDArray[np.float32]
    classes: NDArray[np.float32]
    code: NDArray[np.float32]

    def at(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the waves (N, J) at scaled inputs (N, …), each of variance one."""
        angles = inputs.reshape(len(inputs), -1) @ self.directions + self.phases
        result: NDArray[np.float32] = np.float32(math.sqrt(2)) * np.cos(angles)
        return result

    def spread(self, inputs: NDArray[np.float32], chosen: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return how the share is spread over the classes (N, k) at scaled inputs: the chosen one gets nothing."""
        hints = (self.at(inputs) * self.code) @ self.classes / np.float32(math.sqrt(WAVES))
        raised = np.exp(np.float32(_SHARPNESS) * (hints - hints.max(axis=1, keepdims=True)))
        raised[np.arange(len(raised)), chosen] = 0
        result: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
        return result


@dataclass(frozen=True)
class SoftReading:
    """What a key reads in a model's soft labels.

    Attributes:
        rows: At how many rows it was asked.
        z: The evidence of all of them; of a key that has nothing to do with the model, its mean is 0 and its spread 1.
        tried: How many readings, keys and models were tried; the p-value is multiplied by it (Bonferroni).
    """

    rows: int
    z: float
    tried: int

    @property
    def log10_p_hoeffding(self) -> float:
        """Bound on the chance of such a z without a mark, as a decimal logarithm; finite and at most 0."""
        return min(-(max(self.z, 0.0) ** 2) / 2 * math.log10(math.e) + math.log10(self.tried), 0.0)

    @property
    def verdict(self) -> str:
        """PRESENT, ABSENT or INCONCLUSIVE."""
        return verdict_of(self.log10_p_hoeffding)


def require_share(share: float) -> float:
    """Return the share of probability that a mark takes, above 0 and at most 0.5.

    Raises:
        ConfigError: It is no such number.
    """
    if type(share) not in (int, float) or not (math.isfinite(share) and 0 < share <= MAX_SHARE):
        raise ConfigError(f"watermark: soft_share must be above 0 and at most {MAX_SHARE}")
    return float(share)


def waves(key: bytes, claim: Claim, spec: ModelSpec) -> Waves:
    """Make a key's waves for a model.

    Args:
        key: 32 secret bytes.
        claim: Owner and unmarked model.
        spec: What that model is: shape of its inputs, its classes.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        ConfigError: The model has two classes: of the one that it does not choose nothing can be told.
    """
    require_key(key)
    size, classes = math.prod(spec.shape), len(spec.labels)
    if classes < 3:
        raise ConfigError("watermark: soft labels of two classes carry no mark; set soft_share to 0")
    secret = mac(key, f"portcullis/wm/v1|soft|{claim.owner}|{claim.digest}")

    def signs(name: str, count: int) -> NDArray[np.float32]:
        bits = np.unpackbits(np.frombuffer(keystream(mac(secret, name), -(-count // 8)), np.uint8), count=count)
        return (1 - 2 * bits.astype(np.int8)).astype(np.float32)

    turns = np.frombuffer(keystream(mac(secret, "phases"), 4 * WAVES), "<u4").astype(np.float64) / 2**32
    return Waves(
        signs("directions", size * WAVES).reshape(size, WAVES) * np.float32(_FREQUENCY / math.sqrt(size)),
        (2 * np.pi * turns).astype(np.float32),
        signs("classes", WAVES * classes).reshape(WAVES, classes),
        signs("code", WAVES),
    )


def read_soft_labels(
    probabilities: NDArray[np.floating[Any]], inputs: NDArray[np.float32], keyed: Waves, *, tried: int = 1
) -> SoftReading:
    """Read a mark in a model's soft labels.

    Args:
        probabilities: What the model answered, (N, k): finite, none negative, adding up to 1 in each row.
        inputs: To which scaled inputs (N, …), in [0, 1]; chosen without the code.
        keyed: The key's waves for the model that was marked.
        tried: How many readings, keys and models are tried in all, this one included.

    Raises:
        ModelError: The answers are not such probabilities.
        InconclusiveError: There are too few rows, or the answers tell nothing but the chosen class.
        UsageError: `tried` is not positive, or there are more than 10,000 rows.
    """
    if tried < 1:
        raise UsageError("tried must be at least 1")
    classes = keyed.classes.shape[1]
    if len(inputs) > MAX_ROWS:
        raise UsageError(f"soft labels are read at {MAX_ROWS} rows at most")
    if len(inputs) < MIN_ROWS:
        raise InconclusiveError(f"soft labels are read at {MIN_ROWS} rows or more; here are {len(inputs)}")
    if probabilities.shape != (len(inputs), classes) or not np.isfinite(probabilities).all():
        raise ModelError(f"the model did not answer {len(inputs)} rows with {classes} finite probabilities each")
    if not (probabilities.min() >= 0 and np.abs(probabilities.sum(axis=1, dtype=np.float64) - 1).max() <= 0.05):
        raise ModelError("what the model answered are no probabilities")
    chosen = probabilities.argmax(axis=1)
    others = np.ones(probabilities.shape, bool)
    others[np.arange(len(others)), chosen] = False
    logs = np.log(np.maximum(probabilities.astype(np.float64), _LEAST))
    centred = (logs - (logs * others).sum(axis=1, keepdims=True) / (classes - 1)) * others
    limit = _CLIP * float(centred[others].std())
    if not limit > 0:
        raise InconclusiveError("the model tells which class it chooses and nothing of the others")
    squares, products = _normal_equations(np.clip(centred, -limit, limit), chosen, inputs, keyed)
    ridge = np.trace(squares) / WAVES
    fitted = np.linalg.solve(squares + ridge * np.eye(WAVES), products)
    norm = float(np.linalg.norm(fitted))
    if not (math.isfinite(norm) and norm > 0):
        raise InconclusiveError("the model's soft labels follow no wave at all")
    return SoftReading(len(inputs), float(fitted @ keyed.code) / norm, tried)


def _normal_equations(
    wanted: NDArray[np.float64], chosen: NDArray[np.integer[Any]], inputs: NDArray[np.float32], keyed: Waves
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return X'X and X'y of the fit: a row of X for each row and class not chosen, a column for each wave.

    X is the wave's height times its sign for the class, less the mean of that over the classes not chosen. So sums over
    the classes are products of the signs, and X itself is never laid out.
    """
    signs = keyed.classes.astype(np.float64)
    count = signs.shape[1] - 1
    squares, products = np.zeros((WAVES, WAVES)), np.zeros(WAVES)
    for start in range(0, len(inputs), _BLOCK):
        block = slice(start, start + _BLOCK)
        heights, own, given = keyed.at(inputs[block]).astype(np.float64), signs[:, chosen[block]].T, wanted[block]
        mean = (signs.sum(axis=1) - own) / count
        squares += (signs @ signs.T) * (heights.T @ heights)
        squares -= (heights * own).T @ (heights * own) + count * (heights * mean).T @ (heights * mean)
        products += (heights * (given @ signs.T - mean * given.sum(axis=1, keepdims=True))).sum(axis=0)
    return squares, products
