"""The watermark: read back, survived, not found where it is not, and refused where it would not hold."""

import base64
import dataclasses
import hmac
import json
import math
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save
from watermarks import CLAIM, KEY, NONCE, OWNER, SHAPES, SPEC, Workshop, model

from portcullis.digest import canonical_json, content_digest, sha256
from portcullis.errors import (
    ConfigError,
    EvidenceError,
    GateFailedError,
    GateInconclusiveError,
    KeyMaterialError,
    ModelError,
    PolicyError,
    UsageError,
)
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE
from portcullis.watermark.battery import BATTERY, add_noise, attack, prune, round_to_int8
from portcullis.watermark.claims import open_commitment
from portcullis.watermark.mark import (
    Claim,
    Reading,
    code_length,
    decoy_null,
    embed,
    is_carrier,
    read,
)
from portcullis.watermark.weights import decode_weights, replace_weights


def marked(seed=0, dtype=np.float32):
    return dict(embed(model(seed, dtype), KEY, CLAIM).tensors)


def single(rows=200, columns=100, **options):
    return {"w": np.random.default_rng(5).standard_normal((rows, columns), **options)}


# What a mark is.


def test_a_mark_is_read_back_whole():
    mark = embed(model(), KEY, CLAIM)
    reading = read(mark.tensors, KEY, CLAIM)
    assert (mark.carriers, mark.bits, mark.rho) == (59_520, 64, 0.10)
    assert (reading.carriers, reading.bits, reading.bits_read, reading.tried) == (59_520, 64, 64, 1)
    assert reading.verdict == "PRESENT"
    assert reading.margin > 2
    assert reading.log10_p_hoeffding < -60
    assert reading.log10_p_binomial == pytest.approx(-64 * math.log10(2))


def test_only_the_carriers_change_and_none_more_than_its_share():
    before, after = model(), marked()
    for name, weights in before.items():
        assert (after[name].dtype, after[name].shape) == (weights.dtype, weights.shape)
        if name in ("classifier.0.weight", "features.2.weight"):
            changed, kept = (it.reshape(len(it), -1) for it in (after[name] - weights, weights))
            share = np.linalg.norm(changed, axis=1) / np.linalg.norm(kept, axis=1)
            assert share.min() > 0.05 and share.max() < 0.15
        else:
            assert np.array_equal(after[name], weights)


def test_what_came_in_is_not_touched():
    before, kept = model(), model()
    for weights in before.values():
        weights.flags.writeable = False
    embed(before, KEY, CLAIM)
    assert all(np.array_equal(before[name], kept[name]) for name in kept)


def test_marking_twice_gives_the_same_bytes():
    assert all(np.array_equal(weights, marked()[name]) for name, weights in marked().items())


def test_the_order_of_the_tensors_does_not_matter():
    backwards = dict(reversed(marked().items()))
    assert read(backwards, KEY, CLAIM) == read(marked(), KEY, CLAIM)


def test_chips_and_code_are_what_the_description_says():
    """Read the mark once more, by the words of the description and by other code."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    def signs(key, count):
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(count // 8 + 1))
        return [1 if (stream[i // 8] >> (7 - i % 8)) & 1 == 0 else -1 for i in range(count)]

    tensors = {"w": np.sign(np.random.default_rng(3).standard_normal((160, 64))).astype(np.float32)}
    secret = hmac.digest(KEY, f"portcullis/wm/v1|mark|{CLAIM.owner}|{CLAIM.digest}".encode(), "sha256")
    digest = hmac.digest(secret, b"bits", "sha256")
    code = [1 if (digest[j // 8] >> (7 - j % 8)) & 1 == 0 else -1 for j in range(32)]
    chips = signs(hmac.digest(secret, b"chips|w", "sha256"), 160 * 64)
    sums = [0] * 32
    for i, weight in enumerate(tensors["w"].reshape(-1)):
        sums[i % 32] += chips[i] * int(weight)
    right = [bit * total for bit, total in zip(code, sums, strict=True)]
    reading = read(tensors, KEY, CLAIM)  # signs have rows and columns of root mean square one: nothing is scaled
    assert reading.bits_read == sum(each > 0 for each in right)
    assert reading.z == pytest.approx(sum(right) / math.sqrt(160 * 64), rel=1e-5)
    assert reading.margin == pytest.approx(min(right) / math.sqrt(160 * 64 / 32), rel=1e-5)


def test_nothing_of_the_code_can_be_chosen():
    assert [field.name for field in dataclasses.fields(Claim)] == ["owner", "digest"]


# Where there is no mark, none is found.

ELSEWHERE = {
    "an unmarked model": (lambda: model(), KEY, CLAIM),
    "another model": (lambda: model(1), KEY, CLAIM),
    "another key": (marked, bytes(32), CLAIM),
    "another owner": (marked, KEY, Claim("Example Inc", CLAIM.digest)),
    "another original": (marked, KEY, Claim(CLAIM.owner, "b" * 64)),
    "the mark turned over": (lambda: {name: -weights for name, weights in marked().items()}, KEY, CLAIM),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_mark_is_not_found_where_it_is_not(name):
    tensors, key, claim = ELSEWHERE[name]
    assert read(tensors(), key, claim).verdict == "ABSENT"


@pytest.mark.parametrize("tensors", [model, marked], ids=["unmarked", "marked"])
@pytest.mark.parametrize("vary", ["key", "owner", "digest"])
def test_other_keys_owners_and_originals_read_as_chance_has_it(tensors, vary):
    """The null holds for a marked model too, and between one key's own claims."""
    weights = tensors()
    readings = []
    for number in range(250):
        key = sha256(b"%d" % number)[:32].encode() if vary == "key" else KEY
        owner = f"owner {number}" if vary == "owner" else CLAIM.owner
        digest = sha256(b"%d" % number) if vary == "digest" else CLAIM.digest
        readings.append(read(weights, key, Claim(owner, digest)))
    z = np.array([reading.z for reading in readings])
    right = np.array([reading.bits_read for reading in readings])
    assert abs(z.mean()) < 0.3 and 0.8 < z.std() < 1.2 and z.max() < 5
    assert abs(right.mean() - 32) < 1.3 and 3.2 < right.std() < 4.8
    assert all(reading.verdict != "PRESENT" for reading in readings)
    shares = [np.mean([10**reading.log10_p_binomial <= p for reading in readings]) for p in (0.01, 0.1)]
    assert shares[0] < 0.05 and shares[1] < 0.17


def test_decoy_keys_read_as_chance_has_it_and_repeat():
    null = decoy_null(marked(), KEY)
    assert null.decoys == 1000
    assert abs(null.mean) < 0.15 and 0.88 < null.sd < 1.12 and 2 < null.maximum < 5
    assert decoy_null(marked(), KEY) == null
    assert decoy_null(marked(), bytes(32)) != null


# What a mark withstands. The second figure is the largest log10 of the p-value.


def rescaled(tensors, rows, columns):
    """Scale outputs and inputs of every carrier, as functions that do not change allow it."""
    generator = np.random.default_rng(11)
    changed = dict(tensors)
    for name, weights in tensors.items():
        if is_carrier(weights):
            more = [1] * (weights.ndim - 2)
            left, right = rows(generator, weights.shape[0]), columns(generator, weights.shape[1])
            scale = left.reshape(-1, 1, *more) * right.reshape(1, -1, *more)
            changed[name] = (weights * scale).astype(np.float32)
    return changed


def one_neuron(tensors):
    """Scale one channel by a million and undo it in the layer that takes it: sixteen inputs of the linear layer."""
    changed = {name: weights.copy() for name, weights in tensors.items()}
    changed["features.2.weight"][7] *= 1e6
    changed["features.2.bias"][7] *= 1e6
    changed["classifier.0.weight"][:, 7 * 16 : 8 * 16] /= 1e6
    return changed


def drifted(tensors):
    """Move all weights as fine-tuning does: by a low-rank change, and a little each on its own."""
    generator = np.random.default_rng(12)

    def change(weights):
        matrix = weights.reshape(len(weights), -1)
        low = generator.standard_normal((len(matrix), 4)) @ generator.standard_normal((4, matrix.shape[1])) / 2
        own = generator.standard_normal(matrix.shape)
        return (matrix + matrix.std() * (0.3 * low + 0.2 * own)).reshape(weights.shape).astype(np.float32)

    return attack(tensors, change)


def dusted(tensors):
    """Prune half of each tensor to noise, of another size in each, so that its median says nothing of what is left."""
    generator, sizes = np.random.default_rng(13), iter((1e-2, 1e-7))

    def change(weights):
        dust = generator.standard_normal(weights.shape, dtype=np.float32) * np.float32(next(sizes) * weights.std())
        return np.where(prune(weights, 0.51) == 0, dust, weights)

    return attack(tensors, change)


def lognormal(generator, size):
    return np.exp(generator.normal(0, 2, size))


SURVIVED = {
    "nothing": (lambda tensors: tensors, -60),
    "half pruned": (lambda tensors: attack(tensors, BATTERY["prune_50"]), -55),
    "70 % pruned": (lambda tensors: attack(tensors, BATTERY["prune_70"]), -40),
    "90 % pruned": (lambda tensors: attack(tensors, lambda weights: prune(weights, 0.9)), -15),
    "half turned to dust": (dusted, -50),
    "int8": (lambda tensors: attack(tensors, round_to_int8), -60),
    "fp16": (lambda tensors: attack(tensors, lambda weights: weights.astype(np.float16)), -60),
    "noise of a tenth": (lambda tensors: attack(tensors, BATTERY["noise_10"]), -60),
    "noise as large as the weights": (
        lambda tensors: attack(tensors, lambda weights: add_noise(weights, 1.0)),
        -25,
    ),
    "drift": (drifted, -30),
    "one neuron a million times larger": (one_neuron, -60),
    "outputs rescaled": (lambda tensors: rescaled(tensors, lognormal, lambda _, size: np.ones(size)), -60),
    "inputs rescaled": (lambda tensors: rescaled(tensors, lambda _, size: np.ones(size), lognormal), -60),
    "outputs and inputs rescaled": (lambda tensors: rescaled(tensors, lognormal, lognormal), -60),
    "another's mark on top": (lambda tensors: embed(tensors, bytes(32), Claim("thief", "b" * 64)).tensors, -50),
    "ten others' marks on top": (
        lambda tensors: [
            tensors := embed(tensors, bytes([number]) * 32, Claim("thief", "b" * 64)).tensors for number in range(10)
        ][-1],
        -30,
    ),
    "biases replaced": (
        lambda tensors: {name: np.ones_like(it) if it.ndim == 1 else it for name, it in tensors.items()},
        -60,
    ),
    "a tensor lost": (lambda tensors: {name: it for name, it in tensors.items() if name != "features.2.weight"}, -30),
}


@pytest.mark.parametrize("name", [name for name in SURVIVED if name != "a tensor lost"])
def test_a_mark_withstands(name):
    change, most = SURVIVED[name]
    for seed in (0, 1):
        reading = read(change(marked(seed)), KEY, CLAIM)
        assert reading.verdict == "PRESENT"
        assert math.isfinite(reading.log10_p_hoeffding) and reading.log10_p_hoeffding <= most


@pytest.mark.parametrize("step", range(13, 24))
def test_weights_taken_out_at_even_steps_do_not_hide_a_mark(step):
    tensors = dict(embed(single(1000, 1100, dtype=np.float32), KEY, CLAIM).tensors)
    tensors["w"].reshape(-1)[::step] = 0
    found = read(tensors, KEY, CLAIM)
    assert found.verdict == "PRESENT" and found.log10_p_hoeffding < -300
    assert found.bits_read == (240 if step == 16 else 256)  # every sixteenth weight bears sixteen of the bits
    assert decoy_null(tensors, KEY).sd == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("name", SURVIVED)
def test_what_a_mark_withstands_makes_none(name):
    change, _ = SURVIVED[name]
    tensors = change(model())
    if sum(it.size for it in tensors.values() if is_carrier(it)) >= 50_000:
        assert read(tensors, KEY, CLAIM).verdict != "PRESENT"


def test_permuted_neurons_are_not_withstood():
    """Stated, so that it is known: who reorders neurons hides the mark from the blind test."""
    tensors, order = marked(), np.random.default_rng(0).permutation(48)
    tensors["features.2.weight"] = tensors["features.2.weight"][order]
    linear = tensors["classifier.0.weight"].reshape(64, 48, 16)[:, order]
    tensors["classifier.0.weight"] = linear.reshape(64, 768)[np.random.default_rng(1).permutation(64)]
    assert read(tensors, KEY, CLAIM).verdict == "ABSENT"


# Types, sizes, strange weights.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_are_kept(dtype):
    after = marked(dtype=dtype)
    assert all(weights.dtype == dtype for weights in after.values())
    assert read(after, KEY, CLAIM).bits_read == 64


def test_zeros_stay_zero():
    tensors = attack(model(), BATTERY["prune_50"])
    after = embed(tensors, KEY, CLAIM).tensors
    for name, weights in tensors.items():
        if is_carrier(weights):
            assert np.array_equal(weights == 0, after[name] == 0)
    assert read(after, KEY, CLAIM).bits_read == 64


@pytest.mark.parametrize(
    ("carriers", "bits"),
    [(10_000, 32), (49_999, 32), (50_000, 64), (999_999, 64), (1_000_000, 256), (10**9, 256)],
)
def test_the_length_of_the_code_follows_from_the_size(carriers, bits):
    assert code_length(carriers) == bits


def test_a_million_weights_carry_256_bits_at_less_strength():
    mark = embed(single(1000, 1100, dtype=np.float32), KEY, CLAIM)
    assert (mark.bits, mark.carriers) == (256, 1_100_000)
    assert mark.rho == pytest.approx(4 * math.sqrt(256 / 1_100_000))
    assert mark.change == pytest.approx(mark.rho, rel=0.02)
    reading = read(mark.tensors, KEY, CLAIM)
    assert reading.bits_read == 256 and reading.log10_p_hoeffding < -300
    assert decoy_null(mark.tensors, KEY).maximum < 5


def test_fifteen_thousand_weights_are_enough_for_every_key():
    for number in range(20):
        tensors = embed(single(150, 100, dtype=np.float32), bytes([number]) * 32, CLAIM).tensors
        for change in BATTERY.values():
            assert read(attack(tensors, change), bytes([number]) * 32, CLAIM).verdict == "PRESENT"


THIN = {"one row": (1, 20_000), "one column": (20_000, 1), "three rows": (3, 8_000), "depthwise": (3_000, 1, 3, 3)}


@pytest.mark.parametrize("shape", THIN.values(), ids=THIN.keys())
def test_thin_tensors_carry_a_mark(shape):
    tensors = {"w": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
    assert read(embed(tensors, KEY, CLAIM).tensors, KEY, CLAIM).bits_read == 32


@pytest.mark.parametrize("exponent", [-38, -30, -20, 15])
def test_the_scale_of_a_tensor_does_not_matter(exponent):
    scale = np.float32(10.0**exponent)
    after = {"w": embed(single(dtype=np.float32), KEY, CLAIM).tensors["w"] * scale}
    assert read(after, KEY, CLAIM).verdict == "PRESENT"


def flawed(value, position=(3, 3)):
    tensors = single(dtype=np.float32)
    tensors["w"][position] = value
    return tensors


BAD_MODELS = {
    "no tensor": (dict, "too small to carry a mark: 0 weights"),
    "too few weights": (lambda: single(99, 100), "too small to carry a mark: 9900 weights"),
    "only vectors": (lambda: {"w": np.ones(20_000)}, "too small to carry a mark: 0 weights"),
    "only whole numbers": (lambda: {"w": np.ones((200, 100), np.int64)}, "too small to carry a mark: 0 weights"),
    "only small tensors": (
        lambda: {str(number): np.ones((31, 33), np.float32) for number in range(50)},
        "too small to carry a mark: 0 weights",
    ),
    "NaN": (lambda: flawed(math.nan), "tensor 'w' holds NaN or an infinity"),
    "infinity": (lambda: flawed(math.inf), "tensor 'w' holds NaN or an infinity"),
    "negative infinity": (lambda: flawed(-math.inf, (0, 0)), "tensor 'w' holds NaN or an infinity"),
}
UNMARKABLE = {
    "only zeros": (lambda: {"w": np.zeros((200, 100), np.float32)}, "too small to carry a mark: 0 weights"),
    "hardly anything but zeros": (
        lambda: attack(single(dtype=np.float32), lambda weights: prune(weights, 0.9)),
        "too small to carry a mark: 2000 weights",
    ),
    "a bit without a weight": (
        lambda: {"w": np.where(np.arange(20_000) % 32 == 0, 0, 1).reshape(200, 100).astype(np.float32)},
        "too small to carry a mark",
    ),
    "weights that cannot move": (
        lambda: {"w": np.sign(single()["w"]).astype(np.float16) * np.float16(6e-8)},
        "does not hold a mark",
    ),
    "weights at the end of their type": (
        lambda: {"w": np.sign(single()["w"]).astype(np.float16) * np.float16(65504)},
        "NaN or an infinity",
    ),
    "weights whose squares overflow": (
        lambda: {"w": single(dtype=np.float32)["w"] * np.float32(1e30)},
        "too large or too small",
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_neither_marked_nor_read(name):
    tensors, message = BAD_MODELS[name]
    for work in (lambda it: embed(it, KEY, CLAIM), lambda it: read(it, KEY, CLAIM), lambda it: decoy_null(it, KEY)):
        with pytest.raises(ModelError, match=message):
            work(tensors())


@pytest.mark.parametrize("name", UNMARKABLE)
def test_a_model_that_holds_no_mark_is_refused(name):
    tensors, message = UNMARKABLE[name]
    with pytest.raises(ModelError, match=message):
        embed(tensors(), KEY, CLAIM)


def test_of_zeros_nothing_is_read():
    zeros = {"w": np.zeros((200, 100), np.float32)}
    for work in (lambda: read(zeros, KEY, CLAIM), lambda: decoy_null(zeros, KEY)):
        with pytest.raises(ModelError, match="every weight is zero"):
            work()


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(key):
    for work in (
        lambda: embed(model(), key, CLAIM),
        lambda: read(model(), key, CLAIM),
        lambda: decoy_null(model(), key),
    ):
        with pytest.raises(KeyMaterialError, match="it needs 32"):
            work()


BAD_CLAIMS = {
    "no owner": ("", "a" * 64),
    "a long owner": ("x" * 201, "a" * 64),
    "an owner of two lines": ("a\nb", "a" * 64),
    "no text": (7, "a" * 64),
    "no digest": ("a", ""),
    "a short digest": ("a", "a" * 63),
    "capitals": ("a", "A" * 64),
}


@pytest.mark.parametrize("fields", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
def test_a_bad_claim_is_refused(fields):
    with pytest.raises(ConfigError):
        Claim(*fields)


# Figures.


def reading(**changes):
    values = {"carriers": 59_520, "bits": 64, "bits_read": 64, "z": 8.0, "margin": 0.5, "tried": 1}
    return Reading(**{**values, **changes})


def test_p_values_are_the_formulas():
    assert reading(z=8.0).log10_p_hoeffding == pytest.approx(math.log10(math.exp(-32)))
    assert 10 ** reading(bits=32, bits_read=31).log10_p_binomial == pytest.approx(33 / 2**32)
    assert 10 ** reading(bits=256, bits_read=129).log10_p_binomial == pytest.approx(0.475, abs=0.001)
    assert reading(bits_read=0).log10_p_binomial == 0
    assert reading(z=-9.0).log10_p_hoeffding == 0


def test_every_further_try_weakens_the_p_values():
    assert reading(tried=1000).log10_p_hoeffding == pytest.approx(reading().log10_p_hoeffding + 3)
    assert reading(tried=1000).log10_p_binomial == pytest.approx(reading().log10_p_binomial + 3)
    assert reading(tried=10**40).log10_p_hoeffding == 0
    assert read(marked(), KEY, CLAIM, tried=10).tried == 10
    with pytest.raises(UsageError, match="at least 1"):
        read(marked(), KEY, CLAIM, tried=0)


@pytest.mark.parametrize(
    ("z", "verdict"),
    [
        (6.44, "PRESENT"),
        (6.43, "INCONCLUSIVE"),
        (3.72, "INCONCLUSIVE"),
        (3.71, "ABSENT"),
        (0.0, "ABSENT"),
        (-50.0, "ABSENT"),
        (math.nan, "INCONCLUSIVE"),
        (math.inf, "INCONCLUSIVE"),
    ],
)
def test_the_verdict_follows_from_the_bound(z, verdict):
    assert reading(z=z).verdict == verdict


def test_figures_of_a_huge_model_stay_finite():
    assert math.isfinite(reading(z=3e4).log10_p_hoeffding)


# Weights at rest.


def bfloat16_file(values):
    """Return a safetensors file of one bfloat16 tensor, whose values are the upper halves of `values`' bits."""
    raw = (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    header = {"w": {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [0, len(raw)]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw


@pytest.mark.parametrize("shape", [[2**62, 0], [2**64 - 1, 0], [1] * 70], ids=["2**62", "2**64 - 1", "70 axes"])
def test_a_shape_that_no_array_has_is_a_model_error(shape):
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0 if 0 in shape else 4]}}
    text = json.dumps(header).encode()
    with pytest.raises(ModelError):
        decode_weights(len(text).to_bytes(8, "little") + text + (b"" if 0 in shape else bytes(4)))


def test_weights_are_read_and_replaced():
    tensors = {
        **model(),
        "half": np.float16([1.5, -2]),
        "double": np.float64([[1e300]]),
        "whole": np.array([1, 2]),
        "small": np.array([3], np.int32),
        "bytes": np.array([255], np.uint8),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    data = save(tensors)
    found = decode_weights(data)
    assert found.keys() == tensors.keys()
    for name, weights in tensors.items():
        assert (found[name].dtype, found[name].shape) == (weights.dtype, weights.shape)
        assert np.array_equal(found[name], weights)
    assert replace_weights(data, found) == data
    found["half"] = found["half"] + np.float16(1)
    again = decode_weights(replace_weights(data, found))
    assert list(again["half"]) == [2.5, -1]
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors if name != "half")


def test_bfloat16_rounds_to_nearest_even():
    data = bfloat16_file(np.ones(6, np.float32))
    one = 2.0**-7  # the step above 1
    values = np.float32([1 + one / 2, 1 + 3 * one / 2, 1 + one * 0.51, -1 - one * 0.49, 1 + one, 3e-41])
    rounded = decode_weights(replace_weights(data, {"w": values}))["w"]
    assert list(rounded[:5]) == [1, 1 + 2 * one, 1 + one, -1, 1 + one]
    assert rounded[5] == pytest.approx(3e-41, abs=5e-41)


def test_a_bfloat16_model_carries_a_mark():
    data = bfloat16_file(single(dtype=np.float32)["w"])
    mark = embed(decode_weights(data), KEY, CLAIM)
    written = replace_weights(data, mark.tensors)
    assert len(written) == len(data) and written != data
    reading = read(decode_weights(written), KEY, CLAIM)
    assert reading.bits_read == 32 and reading.verdict == "PRESENT"


def test_beyond_the_largest_bfloat16_nothing_is_read():
    data = bfloat16_file(np.ones(2, np.float32))
    largest = np.finfo(np.float32).max
    with pytest.raises(ModelError, match="NaN or an infinity"):
        decode_weights(replace_weights(data, {"w": np.float32([1, largest])}))


def headed(header, body=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_FILES = {
    "nothing": b"",
    "text": b"weights",
    "a pickle": b"\x80\x04K\x01.",
    "a cut file": save(model())[:-1],
    "a file and more": save(model()) + b"\0",
    "a huge header": struct.pack("<Q", 2**63) + bytes(8),
    "a list": headed([]),
    "overlapping tensors": headed({"a": ENTRY, "b": ENTRY}),
    "a negative size": headed({"a": {**ENTRY, "shape": [-2]}}),
    "a size that overflows": headed({"a": {**ENTRY, "shape": [2**32, 2**32]}}),
    "a type that no model has": headed({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}),
    "NaN": headed({"a": ENTRY}, np.float32([1, math.nan]).tobytes()),
    "infinity": headed({"a": {**ENTRY, "dtype": "F16", "shape": [4]}}, np.float16([1, 2, math.inf, 3]).tobytes()),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name):
    with pytest.raises(ModelError):
        decode_weights(BAD_FILES[name])


def test_a_file_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("portcullis.watermark.weights.MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(ModelError, match="100 are allowed"):
        decode_weights(save(model()))


def test_a_header_that_two_readers_may_read_differently_is_refused():
    twice = b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(ENTRY).encode()}
    with pytest.raises(ModelError):
        replace_weights(headed(twice), {"a": np.zeros(2, np.float32)})


OTHER_TENSORS = {
    "missing": {},
    "another name": {"b": np.zeros(2, np.float32)},
    "one more": {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)},
    "another shape": {"a": np.zeros((1, 2), np.float32)},
    "another type": {"a": np.zeros(2, np.float64)},
}


@pytest.mark.parametrize("tensors", OTHER_TENSORS.values(), ids=OTHER_TENSORS.keys())
def test_other_tensors_are_not_written(tensors):
    with pytest.raises(ModelError):
        replace_weights(headed({"a": ENTRY}), tensors)


def test_the_battery_does_what_it_says():
    weights = model()["classifier.0.weight"]
    for share in (0.5, 0.7):
        pruned = prune(weights, share)
        assert (pruned == 0).mean() == pytest.approx(share, abs=1e-3)
        assert np.abs(pruned[pruned != 0]).min() >= np.abs(weights[pruned == 0]).max()
    rounded = round_to_int8(weights)
    assert all(len(np.unique(row)) <= 255 for row in rounded)
    assert 0 < np.abs(rounded - weights).max() <= np.abs(weights).max() / 127
    assert not round_to_int8(np.zeros((2, 3), np.float32)).any()
    noise = add_noise(weights, 0.1) - weights
    assert noise.std() == pytest.approx(0.1 * weights.std(), rel=0.02)
    assert all(attack({"w": weights}, change)["w"].dtype == np.float32 for change in BATTERY.values())


# The stages, with real files, keys and a trust store.


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return a workshop whose model is trained, and one whose model is marked; tests work on copies."""
    fresh, finished = (tmp_path_factory.mktemp("watermark") for _ in range(2))
    with pytest.MonkeyPatch.context() as monkeypatch:
        Workshop(fresh, monkeypatch).furnish(model())
        shutil.copytree(fresh, finished, dirs_exist_ok=True)
        Workshop(finished, monkeypatch).mark()
    return fresh, finished


@pytest.fixture
def workshop(places, tmp_path, monkeypatch):
    shutil.copytree(places[0], tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path, monkeypatch)


@pytest.fixture
def finished(places, tmp_path, monkeypatch):
    shutil.copytree(places[1], tmp_path, dirs_exist_ok=True)
    return Workshop(tmp_path, monkeypatch)


def test_a_model_is_marked_verified_and_passed_on(workshop):
    statement = workshop.mark()
    claim = Claim(OWNER, workshop.digest("trained"))
    assert dict(statement.outputs) == {"model": workshop.digest("marked")}
    assert (workshop.root / "marked" / SPEC_FILE).read_bytes() == SPEC.to_json()
    figures = statement.figures
    tensors = workshop.tensors("marked")
    found = read(tensors, KEY, claim)
    assert set(figures) == {
        "carriers",
        "bits",
        "bits_read",
        "rho",
        "relative_change",
        "z",
        "margin",
        "log10_p_hoeffding",
        "log10_p_binomial",
        *(f"log10_p_hoeffding_{name}" for name in ("prune_50", "prune_70", "int8", "noise_10")),
        "commitment",
    }
    assert (figures["carriers"], figures["bits"], figures["bits_read"], figures["rho"]) == (59_520, 64, 64, 0.1)
    assert (figures["z"], figures["log10_p_hoeffding"]) == (found.z, found.log10_p_hoeffding)
    assert figures["relative_change"] == pytest.approx(0.1, rel=0.02)
    assert all(figures[f"log10_p_hoeffding_{name}"] < -40 for name in BATTERY)
    opened = open_commitment(KEY, claim, marked=workshop.digest("marked"), tensors=tensors, bits=64).digest
    assert figures["commitment"] == opened

    judged = workshop.verify()
    assert (judged.verdict, judged.figures["verdict"], judged.figures["present"]) == ("PASSED", "PRESENT", 1)
    assert (judged.figures["bits_read"], judged.figures["tried"], judged.figures["decoys"]) == (64, 2, 1000)
    assert judged.figures["decoy_max_z"] < 5 < judged.figures["z"]
    assert "log10_p_hoeffding" in (workshop.root / "report.html").read_text()
    assert "does not survive distillation" in (workshop.root / "report.html").read_text()
    assert workshop.enforce().statements["verify_watermark"] == judged


def test_marking_again_gives_the_same_model(finished):
    before = finished.digest("marked")
    finished.mark()
    assert finished.digest("marked") == before


def test_no_weight_of_the_key_leaves_the_step(finished):
    finished.verify()
    written = [path for path in finished.root.rglob("*") if path.is_file() and path.parent.name != "keys"]
    for path in written:
        data = path.read_bytes()
        assert not {spelling for spelling in (KEY, KEY.hex().encode(), base64.b64encode(KEY)) if spelling in data}


def test_another_owner_is_not_found(finished):
    judged = finished.verify(step="verify_watermark:other_owner", owner="Example Inc")
    assert (judged.verdict, judged.figures["present"]) == ("FAILED", 0)
    with pytest.raises(GateFailedError):
        finished.enforce("verify_watermark:other_owner")


def test_another_key_finds_nothing(finished):
    finished.watermark_key(bytes(32))
    judged = finished.verify()
    assert (judged.verdict, judged.figures["verdict"]) == ("FAILED", "ABSENT")
    assert judged.reason.startswith("log10_p_hoeffding = ")


def test_a_pruned_model_still_bears_its_mark(finished):
    judged = finished.alter(save(attack(finished.tensors("marked"), BATTERY["prune_70"])))
    assert judged.verdict == "PASSED"
    finished.enforce("verify_watermark:altered", "altered")


def test_an_exchanged_model_bears_none(finished):
    judged = finished.alter(save(model(1)))
    assert (judged.verdict, judged.figures["verdict"]) == ("FAILED", "ABSENT")
    with pytest.raises(GateFailedError):
        finished.enforce("verify_watermark:altered", "altered")


UNJUDGED = {
    "NaN": lambda tensors: save(tensors | {"classifier.0.weight": np.full((64, 768), math.nan, np.float32)}),
    "zeros": lambda tensors: save({name: np.zeros_like(weights) for name, weights in tensors.items()}),
    "a small rest": lambda tensors: save({"classifier.2.weight": tensors["classifier.2.weight"]}),
    "no safetensors file": lambda tensors: b"weights",
    "an empty file": lambda tensors: b"",
}


@pytest.mark.parametrize("name", UNJUDGED)
def test_what_cannot_be_read_is_inconclusive(finished, name):
    judged = finished.alter(UNJUDGED[name](finished.tensors("marked")))
    assert judged.verdict == "FAILED" and judged.reason.startswith("inconclusive: ")
    assert (finished.root / "report.html").exists()
    with pytest.raises(GateInconclusiveError):
        finished.enforce("verify_watermark:altered", "altered")


BAD_TRAINED = {
    "too small": (save({"w": np.ones((90, 100), np.float32)}), "too small to carry a mark"),
    "not finite": (save(model() | {"features.0.bias": np.full(24, math.nan, np.float32)}), "NaN or an infinity"),
    "no safetensors file": (b"weights", "not a safetensors file"),
    "a type that no model has": (headed({"a": {**ENTRY, "dtype": "F8_E4M3", "shape": [8]}}), "which no model has"),
}


@pytest.mark.parametrize("name", BAD_TRAINED)
def test_nothing_is_written_of_a_model_that_cannot_be_marked(tmp_path, monkeypatch, name):
    weights, message = BAD_TRAINED[name]
    workshop = Workshop(tmp_path, monkeypatch).furnish(model())
    workshop.model("trained", weights)
    begun = begin(
        "train",
        stage="train",
        inputs={"nonce": sha256(NONCE.encode())},
        parameters={},
        evidence=[workshop.bundle("preflight")],
    )
    begun.finish(bundle=workshop.bundle("trained"), outputs={"model": workshop.digest("trained")}, figures={})
    with pytest.raises(ModelError, match=message):
        workshop.mark()
    assert not (workshop.root / "marked").exists() and not workshop.bundle("marked").exists()


def test_a_mark_that_a_cheap_attack_removes_is_not_handed_out(workshop, monkeypatch):
    monkeypatch.setattr("portcullis.watermark.stage.BATTERY", {**BATTERY, "turned_over": lambda weights: -weights})
    with pytest.raises(ModelError, match="the mark does not hold after turned_over: 0 of 64 bits"):
        workshop.mark()
    assert not (workshop.root / "marked").exists() and not workshop.bundle("marked").exists()


def test_what_is_written_is_what_was_read_back(workshop, monkeypatch):
    """A writer that loses the mark is found out before anything is written."""
    monkeypatch.setattr("portcullis.watermark.stage.replace_weights", lambda data, tensors: data)
    with pytest.raises(ModelError, match="the mark does not hold as it is written"):
        workshop.mark()
    assert not (workshop.root / "marked").exists() and not workshop.bundle("marked").exists()


def test_the_policy_says_whom_the_mark_names(workshop):
    with pytest.raises(PolicyError, match="owner is 'thief'"):
        workshop.mark(owner="thief")
    workshop.mark()
    with pytest.raises(PolicyError, match="owner is 'thief'"):
        workshop.verify(owner="thief")


def test_another_model_than_the_evidence_speaks_of_is_refused(finished):
    finished.model("trained", save(model(1)))
    for work in (finished.mark, finished.verify):
        with pytest.raises(EvidenceError, match="swapped or altered"):
            work()


def test_marked_and_unmarked_swapped_are_refused(finished):
    with pytest.raises(EvidenceError, match="swapped or altered"):
        finished.verify(model=finished.root / "trained", unmarked=finished.root / "marked")
    with pytest.raises(EvidenceError, match="swapped or altered"):
        finished.verify(unmarked=finished.root / "marked")
    assert not finished.bundle("judged").exists()


@pytest.mark.parametrize("name", [SPEC_FILE, WEIGHTS_FILE])
def test_a_bit_changed_after_marking_is_refused(finished, name):
    path = finished.root / "marked" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        finished.verify()


def test_a_bit_changed_after_judging_is_refused(finished):
    finished.verify()
    path = finished.root / "marked" / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EvidenceError, match="judged something else"):
        finished.enforce()


BAD_KEYS = {"none": None, "empty": b"", "short": b"AAAA\n", "no base64": b"!" * 44}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_without_the_key_nothing_is_marked_or_judged(finished, name):
    path = finished.root / "keys" / "watermark.key"
    path.unlink()
    if BAD_KEYS[name] is not None:
        write_bytes(path, BAD_KEYS[name], mode=0o600)
    for work in (finished.mark, finished.verify):
        with pytest.raises(KeyMaterialError):
            work()
    assert not finished.bundle("judged").exists()


def test_a_commitment_holds_to_everything_it_names():
    tensors = model()
    claim, other = Claim(OWNER, "a" * 64), bytes(32)
    base = {"key": KEY, "claim": claim, "marked": "c" * 64, "tensors": tensors, "bits": 64}
    changes = [
        {},
        {"key": other},
        {"claim": Claim("thief", "a" * 64)},
        {"claim": Claim(OWNER, "b" * 64)},
        {"marked": "d" * 64},
        {"tensors": {name: weights for name, weights in tensors.items() if name != "classifier.2.bias"}},
        {"tensors": tensors | {"classifier.2.bias": np.zeros((10, 1), np.float32)}},
        {"bits": 32},
        {"triggers": 100},
        {"soft_share": 0.1},
    ]
    made = []
    for change in changes:
        values = {**base, **change}
        key, named = values.pop("key"), values.pop("claim")
        made.append(open_commitment(key, named, **values).digest)
    assert len(set(made)) == len(changes)
    again = open_commitment(KEY, claim, marked="c" * 64, tensors=model(3), bits=64)
    assert made[0] == again.digest  # names and shapes alone


def test_a_commitment_can_be_opened_by_its_description():
    salt = hmac.digest(KEY, b"salt|" + b"a" * 64, "sha256")
    document = {
        "format": "portcullis-watermark/v3",
        "key": sha256(salt + KEY),
        "owner": OWNER,
        "unmarked": "a" * 64,
        "marked": "c" * 64,
        "tensors": [[name, list(SHAPES[name])] for name in sorted(SHAPES)],
        "bits": 64,
        "triggers": 0,
        "soft_share": 0,
    }
    made = open_commitment(KEY, Claim(OWNER, "a" * 64), marked="c" * 64, tensors=model(), bits=64)
    assert made.salt == salt.hex() and made.digest == sha256(canonical_json(document))


def test_the_components_do_what_the_stages_do(workshop):
    from kfp import dsl

    from portcullis.watermark.component import evaluate_watermark, watermark

    def artifact(kind, path):
        return kind(name=path.name, uri=str(path), metadata={})

    metrics = dsl.Metrics(name="metrics", uri=str(workshop.root / "metrics"), metadata={})
    outputs = watermark.python_func(
        model=artifact(dsl.Model, workshop.root / "trained"),
        evidence=artifact(dsl.Artifact, workshop.bundle("trained")),
        owner=OWNER,
        marked=artifact(dsl.Model, workshop.root / "marked"),
        marked_evidence=artifact(dsl.Artifact, workshop.bundle("marked")),
        metrics=metrics,
    )
    assert (
        outputs.digest
        == workshop.digest("marked")
        == content_digest({path.name: path.read_bytes() for path in (workshop.root / "marked").iterdir()})
    )
    assert metrics.metadata["bits_read"] == 64
    evaluate_watermark.python_func(
        model=artifact(dsl.Model, workshop.root / "marked"),
        unmarked=artifact(dsl.Model, workshop.root / "trained"),
        evidence=artifact(dsl.Artifact, workshop.bundle("marked")),
        owner=OWNER,
        step="verify_watermark",
        verdict_evidence=artifact(dsl.Artifact, workshop.bundle("judged")),
        report=artifact(dsl.HTML, workshop.root / "report.html"),
        metrics=metrics,
    )
    assert metrics.metadata["present"] == 1
    workshop.enforce()


@pytest.mark.slow
def test_a_trained_model_keeps_its_accuracy_and_its_mark():
    """Two networks, trained on digits, marked by three keys each: what it costs on rows that they never saw."""
    from sklearn.datasets import load_digits

    from portcullis.models.store import load_model_files, model_files
    from portcullis.training.adversarial import train
    from portcullis.training.settings import TrainingSettings

    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    test, rest = order[:597], order[597:]

    def accuracy(files):
        return (load_model_files(files).predict(features[test]) == labels[test]).mean()

    drops = []
    for seed in (0, 1):
        settings = TrainingSettings(method="plain", epochs=15, seed=seed, device="cpu")
        module, _ = train(features[rest], labels[rest], SPEC, settings)
        files = model_files(module, SPEC)
        right = accuracy(files)
        assert right > 0.96
        for number in range(3):
            key, claim = bytes([number]) * 32, Claim(OWNER, content_digest(files))
            mark = embed(decode_weights(files[WEIGHTS_FILE]), key, claim)
            after = {**files, WEIGHTS_FILE: replace_weights(files[WEIGHTS_FILE], mark.tensors)}
            drops.append(right - accuracy(after))
            found = read(decode_weights(after[WEIGHTS_FILE]), key, claim)
            assert found.bits_read == 64 and found.log10_p_hoeffding < -60
            for change in BATTERY.values():
                assert read(attack(mark.tensors, change), key, claim).verdict == "PRESENT"
        tuned = decode_weights(fine_tuned(after, features[rest], labels[rest])[WEIGHTS_FILE])
        moved = np.linalg.norm(tuned["classifier.0.weight"] - mark.tensors["classifier.0.weight"])
        assert moved > 0.1 * np.linalg.norm(mark.tensors["classifier.0.weight"])
        assert read(tuned, key, claim).log10_p_hoeffding < -30
        assert read(tuned, bytes([9]) * 32, claim).verdict != "PRESENT"
    assert np.mean(drops) <= 0.005
    assert max(drops) <= 0.005 + 2 * math.sqrt(0.02 * 0.98 / len(test))


def fine_tuned(files, features, labels):
    """Train a model on, on all the data that made it."""
    import torch

    from portcullis.models.pytorch import reproducible
    from portcullis.models.store import load_model_files, model_files

    loaded = load_model_files(files)
    module, inputs, targets = loaded.module, loaded.preprocess(features), torch.from_numpy(labels.astype(np.int64))
    module.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    with reproducible(0, torch.device("cpu")):
        for _ in range(5):
            for rows in torch.split(torch.randperm(len(inputs)), 64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    return model_files(module.eval().requires_grad_(requires_grad=False), SPEC)
