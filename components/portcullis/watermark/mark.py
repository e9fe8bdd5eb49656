"""A keyed mark in a model's weights: who owns it, spread so thin over all its weights that it hides and holds.

**Carriers** are the floating-point tensors of two or more dimensions with at least 1024 elements. Weight i of a tensor,
counted in C order, carries bit i mod m, with the sign of its *chip*. Let K be HMAC-SHA-256 under the key of
"portcullis/wm/v1|mark|", the owner, "|" and the digest of the unmarked model. The m code bits are the first of
HMAC-SHA-256(K, "bits"); a tensor's chips are the keystream of ChaCha20 (RFC 8439, nonce 0) under HMAC-SHA-256(K,
"chips|" and its name). Bits are read from the highest of each byte, and 0 stands for +1. Nothing of this is chosen, so
a forger can only try keys; and since code and chips follow from the whole claim, a key's claims to other owners or
models are as independent of it as other keys are.

**Reading is blind**: it needs the key and the claim, never the original. A tensor is taken as a matrix (first axis
by all others), its rows and columns are scaled in turn to a root mean square of one, and values are clipped at four
robust standard deviations (1.4826 medians of the absolute values that are not zero; of large tensors, of a sample that
the key chooses, so that nobody else steers it) and scaled again, so that no tensor outweighs another. So neurons may be
rescaled, even by 1e6 with the factor undone in the next layer, and the mark is read as before. With s_j the sum of chip
times weight over the carriers of bit j, bit j is read as the sign of s_j, and z is sum(code_j s_j) over the root of the
sum of all squared weights.

**Both p-values hold for any weights, because the key is random.** Were the weights made without the key, each bit would
be right with a probability of at most one half, independently: the binomial tail is exact. And z would be a weighted
sum of independent signs: P(z >= t) <= exp(-t^2 / 2) (Hoeffding 1963). No distribution of weights is assumed. They say
nothing of a key that was picked after the weights were seen.

**Embedding** moves each weight by its chip, in units of its row's and column's scale, so that no neuron changes more
than another in proportion. The step of each bit is the least-norm solution that lifts the worst bit highest for a given
relative change, rho = clip(4 sqrt(m / N), .02, .10) of N weights that are not zero; zeros stay zero.
"""

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from portcullis.digest import is_digest
from portcullis.errors import ConfigError, KeyMaterialError, ModelError, UsageError
from portcullis.watermark.scaling import Scales, balance, wide

KEY_BYTES = 32
MIN_TENSOR = 1024
MIN_CARRIERS = 10_000
MAX_OWNER = 200
DECOYS = 1000
PRESENT_LOG10_P = -9.0
ABSENT_LOG10_P = -3.0

# Four standard deviations, in medians of the absolute value of a normal variable.
_CLIP_MEDIANS = 4 * 1.4826
_MEDIAN_SAMPLE = 1 << 16
_DECOY_SAMPLE = 1 << 17
_SIGNS = (1 - 2 * np.unpackbits(np.arange(256, dtype=np.uint8)).astype(np.float32)).reshape(256, 8)

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Claim:
    """What a mark says: whose model it is, and which.

    Attributes:
        owner: Whoever marks it, 1 to 200 printable characters.
        digest: Content digest of the unmarked model.

    Raises:
        ConfigError: A field is not as described here.
    """

    owner: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.owner, str) or not self.owner.isprintable() or not 1 <= len(self.owner) <= MAX_OWNER:
            raise ConfigError(f"watermark: owner must be 1 to {MAX_OWNER} printable characters")
        if not is_digest(self.digest):
            raise ConfigError("watermark: the unmarked model's digest must be a SHA-256 in hexadecimal")


@dataclass(frozen=True)
class Marked:
    """A model's tensors with a mark in them.

    Attributes:
        tensors: All tensors by name; carriers are new arrays, the others those that came in.
        carriers: Number of weights in carriers.
        bits: Length of the code.
        rho: Norm of the change over norm of the weights, both as the reader scales them.
        change: The same of the weights as they are.
    """

    tensors: Tensors
    carriers: int
    bits: int
    rho: float
    change: float


@dataclass(frozen=True)
class Reading:
    """What a key reads in a model's weights.

    Attributes:
        carriers: Number of weights in carriers.
        bits: Length m of the code.
        bits_read: How many bits are read as the claim says, 0..m.
        z: The evidence of all weights together; a standard normal variable for a key that has nothing to do with them.
        margin: The worst bit's own z; negative when it is misread.
        tried: How many keys, claims and models were tried; every p-value is multiplied by it (Bonferroni).
    """

    carriers: int
    bits: int
    bits_read: int
    z: float
    margin: float
    tried: int

    @property
    def log10_p_hoeffding(self) -> float:
        """Bound on the chance of such a z without a mark, as a decimal logarithm; finite and at most 0."""
        return self._corrected(-(max(self.z, 0.0) ** 2) / 2 * math.log10(math.e))

    @property
    def log10_p_binomial(self) -> float:
        """Chance of so many right bits without a mark, as a decimal logarithm; finite and at most 0."""
        ways = sum(math.comb(self.bits, right) for right in range(self.bits_read, self.bits + 1))
        return self._corrected(math.log10(ways) - self.bits * math.log10(2))

    @property
    def verdict(self) -> str:
        """PRESENT, ABSENT or INCONCLUSIVE, of the Hoeffding bound alone."""
        return verdict_of(self.log10_p_hoeffding)

    def _corrected(self, log10_p: float) -> float:
        return min(log10_p + math.log10(self.tried), 0.0)


@dataclass(frozen=True)
class Null:
    """What decoy keys read: z of `decoys` keys that have nothing to do with the weights; theory says 0 and 1."""

    decoys: int
    mean: float
    sd: float
    maximum: float


def embed(tensors: Tensors, key: bytes, claim: Claim) -> Marked:
    """Mark a model.

    Args:
        tensors: Its tensors by name, as stored; bfloat16 widened to float32.
        key: 32 secret bytes.
        claim: What the mark is to say.

    Returns:
        The marked tensors, of the same names, shapes and types, and how much they changed.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        ModelError: Fewer than 10,000 weights that can carry a mark, one that is not finite, or a mark that cannot be
            read back.
    """
    secret = _secret(key, claim)
    carriers, total = _carriers(tensors)
    bits = code_length(total)
    code = _code(secret, bits)
    sums, counts, energy = np.zeros(bits), np.zeros(bits), 0.0
    scales = {}
    for name, weights in carriers.items():
        values, *scales[name] = _canonical(secret, name, weights)
        energy += _energy(values)
        counts += _sum_by_bit((values != 0).astype(np.float32), bits)
        sums += _sum_by_bit(_chips(secret, name, values.size) * values, bits)
    movable = int(counts.sum())
    if movable < MIN_CARRIERS or not counts.min():
        raise ModelError(
            f"too small to carry a mark: {movable} weights that are not zero; {MIN_CARRIERS} are needed, and some for "
            f"each of {bits} bits"
        )
    rho = min(max(4 * math.sqrt(bits / movable), 0.02), 0.10)
    # In units of a bit's own standard deviation.
    unit = math.sqrt(energy / bits)
    steps = code * _least_norm(code * sums / unit, counts, rho) * unit / counts
    marked, moved, norm = dict(tensors), 0.0, 0.0
    for name, weights in carriers.items():
        change = _by_bit(_chips(secret, name, weights.size), steps).reshape(len(weights), -1)
        rows, columns = scales[name]
        before = wide(weights)
        with np.errstate(over="ignore", invalid="ignore"):  # what does not stay finite is refused below
            change = change * rows[:, None] * columns * (before != 0)
            moved, norm = moved + _energy(change), norm + _energy(before)
            marked[name] = (before + change).astype(weights.dtype).reshape(weights.shape)
    if not 0 < norm < math.inf:
        raise ModelError("the weights are too large or too small to be marked")
    reading = read(marked, key, claim)
    if reading.bits_read != bits or reading.verdict != "PRESENT":
        raise ModelError(f"the model does not hold a mark: {reading.bits_read} of {bits} bits read back")
    return Marked(marked, total, bits, rho, math.sqrt(moved / norm))


def read(tensors: Tensors, key: bytes, claim: Claim, *, tried: int = 1) -> Reading:
    """Read a model's weights with a key, blind.

    Args:
        tensors: The tensors by name, as stored; bfloat16 widened to float32.
        key: 32 secret bytes.
        claim: What the mark is said to say.
        tried: How many keys, claims and models are tried in all, this one included.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        ModelError: Fewer than 10,000 carriers, or one that is not finite, or only zeros.
        UsageError: `tried` is not positive.
    """
    if tried < 1:
        raise UsageError("tried must be at least 1")
    secret = _secret(key, claim)
    carriers, total = _carriers(tensors)
    bits = code_length(total)
    code = _code(secret, bits)
    sums, energy = np.zeros(bits), 0.0
    for name, weights in carriers.items():
        values, _, _ = _canonical(secret, name, weights)
        energy += _energy(values)
        sums += _sum_by_bit(_chips(secret, name, values.size) * values, bits)
    if not energy > 0:
        raise ModelError("no mark can be read: every weight is zero")
    each = code * sums
    return Reading(
        carriers=total,
        bits=bits,
        bits_read=int((each > 0).sum()),
        z=float(each.sum() / math.sqrt(energy)),
        margin=float(each.min() / math.sqrt(energy / bits)),
        tried=tried,
    )


def decoy_null(tensors: Tensors, key: bytes) -> Null:
    """Read with a thousand decoy keys, derived from `key` so that a repetition finds the same.

    Of large models they read about 131,072 weights at keyed places: their z is as good a draw from the null.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        ModelError: As `read`.
    """
    require_key(key)
    carriers, total = _carriers(tensors)
    secret = mac(key, "portcullis/wm/v1|decoys")
    sample = np.concatenate(
        [
            _sample(
                mac(secret, f"decoys|{name}"),
                _canonical(secret, name, weights)[0],
                weights.size if total <= _DECOY_SAMPLE else -(-weights.size * _DECOY_SAMPLE // total),
            )
            for name, weights in carriers.items()
        ]
    )
    norm = math.sqrt(_energy(sample))
    if not norm > 0:
        raise ModelError("no mark can be read: every weight is zero")
    z = np.array([_signs(mac(secret, f"decoy|{decoy}"), sample.size) @ sample for decoy in range(DECOYS)]) / norm
    return Null(DECOYS, float(z.mean()), float(z.std(ddof=1)), float(z.max()))


def verdict_of(log10_p: float) -> str:
    """Return PRESENT at a p-value of at most 1e-9, ABSENT from 1e-3, INCONCLUSIVE between them."""
    if math.isfinite(log10_p) and log10_p <= PRESENT_LOG10_P:
        return "PRESENT"
    return "ABSENT" if log10_p >= ABSENT_LOG10_P else "INCONCLUSIVE"


def code_length(carriers: int) -> int:
    """Return the length m of the code that so many carriers bear."""
    return 256 if carriers >= 1_000_000 else 64 if carriers >= 50_000 else 32


def is_carrier(weights: NDArray[Any]) -> bool:
    """Tell whether a tensor carries a share of the mark."""
    return weights.dtype.kind == "f" and weights.ndim >= 2 and weights.size >= MIN_TENSOR


def _carriers(tensors: Tensors) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the tensors that carry a mark, and the number of their weights."""
    carriers = {name: tensors[name] for name in sorted(tensors) if is_carrier(tensors[name])}
    total = sum(weights.size for weights in carriers.values())
    if total < MIN_CARRIERS:
        raise ModelError(f"too small to carry a mark: {total} weights in large tensors; {MIN_CARRIERS} are needed")
    return carriers, total


def _canonical(secret: bytes, name: str, weights: NDArray[Any]) -> tuple[NDArray[np.float32], Scales, Scales]:
    """Return a tensor's weights as they are read, flat, and the scales that were taken from its rows and columns."""
    matrix = wide(weights)
    if not np.isfinite(matrix).all():
        raise ModelError(f"tensor {name!r} holds NaN or an infinity")
    matrix, rows, columns = balance(matrix)
    values = matrix.reshape(-1)
    sample = np.abs(_sample(mac(secret, f"sample|{name}"), values, _MEDIAN_SAMPLE))
    sample = sample[sample > 0]  # zeros of a pruned tensor say nothing of its spread
    limit = np.float32(_CLIP_MEDIANS * np.median(sample)) if sample.size else np.float32(0)
    np.clip(values, -limit, limit, out=values)
    energy = _energy(values)
    spread = np.float32(math.sqrt(energy / np.count_nonzero(values))) if energy > 0 else np.float32(1)
    values /= spread
    return values, rows * spread, columns


def _sample(key: bytes, values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return all values when they are at most `size`, else so many at keyed places, some perhaps twice."""
    if values.size <= size:
        return values
    places = np.frombuffer(keystream(key, 4 * size), "<u4") % values.size
    sample: NDArray[np.float32] = values[places]
    return sample


def _least_norm(margins: NDArray[np.float64], counts: NDArray[np.float64], rho: float) -> NDArray[np.float64]:
    """Return how far to lift each bit so that the worst ends highest, for a relative change of `rho` in all.

    Lifting bit j by x standard deviations takes x^2 / (m counts_j) of the weights' energy. So all that lie below one
    level are lifted to it; the level follows by bisection.
    """
    low, high = float(margins.min()), float(margins.min() + rho * math.sqrt(len(counts) * counts.max()))
    for _ in range(64):
        level = (low + high) / 2
        spent = float((np.maximum(level - margins, 0) ** 2 / counts).mean())
        low, high = (level, high) if spent < rho**2 else (low, level)
    return np.maximum(low - margins, 0)


def _sum_by_bit(values: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    whole = values.size - values.size % bits
    sums: NDArray[np.float64] = values[:whole].reshape(-1, bits).sum(axis=0, dtype=np.float64)
    sums[: values.size - whole] += values[whole:]
    return sums


def _by_bit(chips: NDArray[np.float32], steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Multiply each chip by its bit's step, in place."""
    whole = chips.size - chips.size % steps.size
    narrow = steps.astype(np.float32)
    chips[:whole].reshape(-1, steps.size)[:] *= narrow
    chips[whole:] *= narrow[: chips.size - whole]
    return chips


def _chips(secret: bytes, name: str, count: int) -> NDArray[np.float32]:
    return _signs(mac(secret, f"chips|{name}"), count)


def _code(secret: bytes, bits: int) -> NDArray[np.float32]:
    return _SIGNS[np.frombuffer(mac(secret, "bits"), np.uint8)].reshape(-1)[:bits]


def _signs(key: bytes, count: int) -> NDArray[np.float32]:
    """Return `count` keyed signs, float32, from a keystream's bits."""
    stream = keystream(key, -(-count // 8))
    return _SIGNS.take(np.frombuffer(stream, np.uint8), axis=0).reshape(-1)[:count]


def keystream(key: bytes, size: int) -> bytes:
    """Return `size` bytes of ChaCha20's keystream under a key that is used for nothing else."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(size))


def _secret(key: bytes, claim: Claim) -> bytes:
    require_key(key)
    return mac(key, f"portcullis/wm/v1|mark|{claim.owner}|{claim.digest}")


def require_key(key: bytes) -> None:
    """Refuse a watermark key of another length.

    Raises:
        KeyMaterialError: It does not have 32 bytes.
    """
    if len(key) != KEY_BYTES:
        raise KeyMaterialError(f"the watermark key has {len(key)} bytes; it needs {KEY_BYTES}")


def mac(key: bytes, message: str) -> bytes:
    """Return HMAC-SHA-256 of a message: 32 bytes from which nothing else under the key can be told."""
    return hmac.digest(key, message.encode(), "sha256")


def _energy(values: NDArray[Any]) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))
