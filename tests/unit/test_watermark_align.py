"""Alignment: a mark is found again in a model whose neurons were reordered, rescaled, split, added or taken out."""

import sys

import numpy as np
import pytest
from watermarks import CHAIN, CLAIM, KEY, obfuscated

from portcullis.errors import MissingDependencyError, ModelError
from portcullis.watermark.align import align
from portcullis.watermark.battery import add_noise, attack, prune
from portcullis.watermark.examine import WAYS, examine
from portcullis.watermark.mark import embed, read


def chain(seed=0):
    """Return a small convolutional network as training leaves it: neurons that differ in size."""
    generator = np.random.default_rng(seed)
    return {
        name: (
            generator.standard_normal((rows, *rest))
            * np.exp(generator.normal(0, 0.3, (rows, *[1] * len(rest))))
            / np.sqrt(np.prod(rest))
        ).astype(np.float32)
        for name, rows, rest in CHAIN
    }


def marked(seed=0):
    return dict(embed(chain(seed), KEY, CLAIM).tensors)


def forward(tensors, images):
    """The network's answers, (N, 10), float64."""
    values = images
    for name in ("one", "two"):
        padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        values = np.maximum(np.einsum("ncxyij,ocij->noxy", windows, tensors[name].astype(np.float64)), 0)
    flat = values.reshape(len(values), -1)
    return np.maximum(flat @ tensors["three"].T.astype(np.float64), 0) @ tensors["four"].T.astype(np.float64)


BEFORE = {
    "": lambda tensors: tensors,
    ", 70 % pruned": lambda tensors: attack(tensors, lambda weights: prune(weights, 0.7)),
    ", noise of a third": lambda tensors: attack(tensors, lambda weights: add_noise(weights, 0.3)),
    ", noise as large as the weights": lambda tensors: attack(tensors, lambda weights: add_noise(weights, 1.0)),
}
OBFUSCATED = {
    "permuted": {},
    "permuted and rescaled": {"scale": 2.0},
    "split": {"split": 0.25, "scale": 1.0},
    "with dummy neurons": {"dummies": 4, "scale": 1.0},
}


def test_the_attacks_do_not_change_what_the_network_computes():
    images = np.random.default_rng(0).random((20, 1, 4, 4))
    plain = forward(marked(), images)
    for options in OBFUSCATED.values():
        after = forward(obfuscated(marked(), 1, **options), images)
        assert np.allclose(after, plain, atol=5e-3 * np.abs(plain).max())  # of float32, and dummies that are large


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", OBFUSCATED)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mark_is_found_after(seed, name, before):
    """Thirty-two cases: every bit, and a p-value of at most 1e-19."""
    suspect = obfuscated(BEFORE[before](marked(seed)), seed, **OBFUSCATED[name])
    found = examine(suspect, chain(seed), KEY, CLAIM)
    assert (found.verdict, found.way, found.reading.tried) == ("PRESENT", "aligned", WAYS)
    assert found.reading.bits_read == found.reading.bits == 64
    assert found.reading.log10_p_hoeffding <= -19
    assert found.null.maximum < 5


def renamed(tensors):
    return {f"{index}.w": tensors[name] for index, name in enumerate(reversed(tensors))}


OTHERWISE = {
    "renamed": lambda: renamed(marked()),
    "renamed and permuted": lambda: renamed(obfuscated(marked(), 3, scale=1.0)),
    "neurons taken out": lambda: obfuscated(marked(), 3, lost=6, scale=1.0),
    "a layer lost": lambda: {name: it for name, it in obfuscated(marked(), 3).items() if name != "one"},
    "half precision": lambda: {name: it.astype(np.float16) for name, it in obfuscated(marked(), 3).items()},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_mark_is_found_in_a_model_changed_otherwise(name):
    found = examine(OTHERWISE[name](), chain(), KEY, CLAIM)
    assert (found.verdict, found.way) == ("PRESENT", "aligned")
    assert found.reading.log10_p_hoeffding <= -19 and found.likeness > 0.5


def test_an_untouched_model_is_read_blind_and_not_aligned():
    found = examine(marked(), chain(), KEY, CLAIM)
    assert (found.way, found.likeness, found.reading.bits_read) == ("blind", None, 64)
    assert found.figures()["verdict"] == "PRESENT" and "likeness" not in found.figures()


def test_what_is_aligned_is_the_suspect_in_the_order_of_the_original():
    suspect = obfuscated(marked(), 4)
    alignment = align(suspect, chain())
    assert set(alignment.tensors) == {"two", "three"}  # the carriers
    assert all(np.array_equal(weights, marked()[name]) for name, weights in alignment.tensors.items())
    assert alignment.likeness > 0.99


def test_other_keys_and_other_models_find_nothing_however_they_are_aligned():
    """The order is fitted to the unmarked model, so the null must be looked at after fitting."""
    z = []
    for seed in range(4):
        other = align(chain(seed + 10), chain(seed))
        assert abs(other.likeness) < 0.4
        z += [read(other.tensors, number.to_bytes(32, "big"), CLAIM).z for number in range(50)]
        right = align(obfuscated(marked(seed), seed), chain(seed))
        z += [read(right.tensors, number.to_bytes(32, "big"), CLAIM).z for number in range(50)]
    assert abs(np.mean(z)) < 0.2 and 0.85 < np.std(z) < 1.15 and max(z) < 5


def test_an_unrelated_model_is_absent():
    assert examine(chain(5), chain(), KEY, CLAIM).verdict == "ABSENT"
    assert examine(obfuscated(chain(), 3), chain(), KEY, CLAIM).verdict == "ABSENT"  # the unmarked model itself


def test_aligning_again_gives_the_same():
    suspect = obfuscated(marked(), 5, split=0.2)
    first, second = align(suspect, chain()), align(suspect, chain())
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


BAD = {
    "nothing": (dict, chain, "another architecture"),
    "only vectors": (lambda: {"b": np.ones(5000, np.float32)}, chain, "another architecture"),
    "another kernel": (lambda: {"w": np.ones((9, 9, 7, 7), np.float32)}, chain, "another architecture"),
    "an original of vectors": (chain, lambda: {"b": np.ones(5000, np.float32)}, "no tensor that carries a mark"),
    "an empty original": (chain, dict, "no tensor that carries a mark"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_aligned_is_refused(name):
    suspect, unmarked, message = BAD[name]
    with pytest.raises(ModelError, match=message):
        align(suspect(), unmarked())


def test_zeros_and_empty_tensors_are_aligned_to_nothing():
    zeros = {name: np.zeros_like(weights) for name, weights in chain().items()} | {"e": np.zeros((0, 3), np.float32)}
    assert align(zeros, chain()).likeness == 0
    with pytest.raises(ModelError, match="every weight is zero"):
        examine(zeros, chain(), KEY, CLAIM)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        align(chain(1), chain())
