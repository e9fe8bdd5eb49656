"""Laws of the watermark: of weights at rest, of what changes a reading, and of the chance of a false one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from portcullis.errors import ModelError
from portcullis.watermark.align import align
from portcullis.watermark.mark import Claim, Reading, embed, read
from portcullis.watermark.triggers import Answers
from portcullis.watermark.weights import decode_weights, replace_weights

KEYS = st.binary(min_size=32, max_size=32)
CLAIM = Claim("owner", "0" * 64)
SEEDS = st.integers(0, 2**32)
SMALL = save({"half": np.float16([1, -2, 3]), "w": np.arange(6, dtype=np.float32).reshape(2, 3)})


def weights(seed: int, rows: int = 160, columns: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


@settings(max_examples=25, deadline=None)
@given(SEEDS, KEYS, st.integers(8, 200))
def test_every_key_marks_and_reads_every_model(seed: int, key: bytes, rows: int) -> None:
    tensors = {"w": weights(seed, rows, -(-20_000 // rows))}
    mark = embed(tensors, key, CLAIM)
    reading = read(mark.tensors, key, CLAIM)
    assert reading.bits_read == reading.bits == 32 and reading.verdict == "PRESENT"
    assert mark.change <= 0.11


@settings(max_examples=40, deadline=None)
@given(SEEDS, KEYS, st.floats(0, 4), st.floats(0, 4))
def test_rescaled_rows_and_columns_read_the_same(seed: int, key: bytes, rows: float, columns: float) -> None:
    tensors = {"w": weights(seed)}
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.normal(0, rows, (160, 1)) + generator.normal(0, columns, (1, 100)))
    before, after = (read({"w": it}, key, CLAIM) for it in (tensors["w"], (tensors["w"] * scale).astype(np.float32)))
    assert after.z == pytest.approx(before.z, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(SEEDS, KEYS, st.integers(-60, 60))
def test_a_scaled_model_reads_the_same(seed: int, key: bytes, power: int) -> None:
    scaled = np.ldexp(weights(seed), power).astype(np.float32)
    assert read({"w": scaled}, key, CLAIM).z == pytest.approx(read({"w": weights(seed)}, key, CLAIM).z, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(SEEDS, KEYS, st.floats(0, 2), st.integers(0, 40), st.integers(0, 30))
def test_reordered_rescaled_and_widened_weights_read_the_same(
    seed: int, key: bytes, scale: float, rows: int, columns: int
) -> None:
    generator = np.random.default_rng(seed)
    original = {"w": weights(seed)}
    marked = embed(original, key, CLAIM).tensors["w"]
    wide = generator.standard_normal((160 + rows, 100 + columns), dtype=np.float32)
    wide[:160, :100] = marked
    factors = np.exp(generator.normal(0, scale, (len(wide), 1)) + generator.normal(0, scale, (1, wide.shape[1])))
    hidden = (wide * factors)[generator.permutation(len(wide))][:, generator.permutation(wide.shape[1])]
    alignment = align({"w": hidden.astype(np.float32)}, original)
    found, plain = read(alignment.tensors, key, CLAIM), read({"w": marked}, key, CLAIM)
    assert found.z == pytest.approx(plain.z, abs=0.02) and found.bits_read == 32


@settings(max_examples=15, deadline=None)
@given(SEEDS, KEYS)
def test_aligning_never_makes_a_mark(seed: int, key: bytes) -> None:
    alignment = align({"w": weights(seed)}, {"w": weights(seed + 1)})
    assert read(alignment.tensors, key, CLAIM).verdict != "PRESENT"


SHAPES_OF_WEIGHTS = {
    "normal": lambda generator: generator.standard_normal((128, 100)),
    "heavy tails": lambda generator: generator.standard_cauchy((128, 100)),
    "signs": lambda generator: np.sign(generator.standard_normal((128, 100))),
    "constant": lambda _: np.ones((128, 100)),
    "a ramp": lambda _: np.arange(12_800.0).reshape(128, 100),
    "one large weight": lambda _: np.eye(1, 12_800, 77).reshape(128, 100) * 1e9 + 1,
    "mostly zero": lambda generator: generator.standard_normal((128, 100)) * (generator.random((128, 100)) < 0.02),
    "low rank": lambda generator: np.outer(generator.standard_normal(128), generator.standard_normal(100)),
}


@pytest.mark.parametrize("name", SHAPES_OF_WEIGHTS)
def test_no_weights_make_a_false_mark_more_likely_than_the_bounds(name: str) -> None:
    """Over a thousand keys the p-values keep what they promise, for weights of any kind."""
    tensors = {"w": SHAPES_OF_WEIGHTS[name](np.random.default_rng(4)).astype(np.float32)}
    readings = [read(tensors, number.to_bytes(32, "big"), CLAIM) for number in range(1000)]
    for p, most in ((0.1, 0.13), (0.01, 0.022)):
        for figure in ("log10_p_hoeffding", "log10_p_binomial"):
            assert np.mean([getattr(it, figure) <= math.log10(p) for it in readings]) <= most
    assert abs(np.mean([it.z for it in readings])) < 0.15
    assert np.std([it.z for it in readings]) == pytest.approx(1, abs=0.1)


@given(st.integers(1, 256).flatmap(lambda bits: st.tuples(st.just(bits), st.integers(0, bits))), st.floats(-1e5, 1e5))
def test_figures_are_finite_and_fall_with_more_evidence(counts: tuple[int, int], z: float) -> None:
    bits, right = counts
    reading = Reading(carriers=10_000, bits=bits, bits_read=right, z=z, margin=0, tried=1)
    for figure in (reading.log10_p_binomial, reading.log10_p_hoeffding):
        assert math.isfinite(figure) and figure <= 0
    more = Reading(carriers=10_000, bits=bits, bits_read=min(right + 1, bits), z=z + 1, margin=0, tried=1)
    assert more.log10_p_binomial <= reading.log10_p_binomial
    assert more.log10_p_hoeffding <= reading.log10_p_hoeffding


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.integers(2, 1000))
def test_p_values_of_answers_are_finite_and_fall_with_more_right_ones(counts: tuple[int, int], classes: int) -> None:
    asked, right = counts
    value = Answers(asked, right, classes, 1).log10_p_binomial
    assert math.isfinite(value) and value <= 0
    assert Answers(asked, min(right + 1, asked), classes, 1).log10_p_binomial <= value
    assert Answers(asked, right, classes, 7).log10_p_binomial >= value


TENSORS = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name != "__metadata__" and name.encode("utf-8", "ignore").decode() == name),
    st.tuples(
        st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]),
        st.lists(st.integers(0, 3), max_size=3),
        SEEDS,
    ).map(lambda it: np.asarray(np.random.default_rng(it[2]).integers(0, 99, it[1]), it[0])),
    max_size=4,
)


@given(TENSORS)
def test_weights_that_are_read_are_written_back_to_the_byte(tensors: dict[str, np.ndarray]) -> None:
    data = save(tensors)
    found = decode_weights(data)
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], it) and found[name].dtype == it.dtype for name, it in tensors.items())
    assert replace_weights(data, found) == data


@settings(max_examples=300)
@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_an_altered_byte_is_refused_or_reads_finite_weights(position: int, flip: int) -> None:
    data = bytearray(SMALL)
    data[position] ^= flip
    try:
        found = decode_weights(bytes(data))
        again = replace_weights(bytes(data), found)
    except ModelError:
        return
    assert all(np.isfinite(it).all() for it in found.values())
    assert again == data


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        decode_weights(data)
    except ModelError:
        return


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_bfloat16_is_the_nearest(value: float) -> None:
    from portcullis.watermark.weights import _to_bfloat16

    (upper,) = _to_bfloat16(np.float32([value]))
    with np.errstate(over="ignore"):
        near = [
            float((np.uint32([candidate]) << 16).view(np.float32)[0])
            for candidate in (int(upper) - 1, int(upper), int(upper) + 1)
            if 0 <= candidate <= 0xFFFF
        ]
    chosen = float((np.uint32([upper]) << 16).view(np.float32)[0])
    if math.isfinite(chosen):
        gaps = [abs(other - value) for other in near if math.isfinite(other)]
        assert abs(chosen - value) <= min(gaps)
    else:
        assert abs(value) > 3.38e38
