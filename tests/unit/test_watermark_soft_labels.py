"""Soft labels: a keyed share of a model's probability, read in whatever answers with probabilities."""

import hmac
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from watermarks import CLAIM, KEY, SPEC

from portcullis.errors import ConfigError, InconclusiveError, KeyMaterialError, ModelError, UsageError
from portcullis.models.store import ModelSpec
from portcullis.watermark.mark import Claim
from portcullis.watermark.soft_labels import WAVES, SoftReading, read_soft_labels, require_share, waves

ROWS = 400
GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.random((ROWS, 1, 8, 8), dtype=np.float32)


def foreign(seed=0, inputs=INPUTS):
    """Return the probabilities of a model that knows nothing of the key."""
    weights = np.random.default_rng(seed).standard_normal((64, 10)) / 2
    logits = inputs.reshape(len(inputs), -1) @ weights
    return softmax(logits)


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def marked(share, keyed=None):
    before = foreign()
    spread = (keyed or waves(KEY, CLAIM, SPEC)).spread(INPUTS, before.argmax(axis=1))
    return (1 - share) * before + share * spread


def test_the_spread_gives_the_chosen_class_nothing_and_the_others_all():
    chosen = foreign().argmax(axis=1)
    spread = waves(KEY, CLAIM, SPEC).spread(INPUTS, chosen)
    assert spread.shape == (ROWS, 10) and (spread >= 0).all() and np.allclose(spread.sum(axis=1), 1, atol=1e-5)
    assert (spread[np.arange(ROWS), chosen] == 0).all()


def test_waves_are_what_the_description_says():
    def stream(name, size):
        secret = hmac.digest(KEY, f"portcullis/wm/v1|soft|{CLAIM.owner}|{CLAIM.digest}".encode(), "sha256")
        cipher = Cipher(algorithms.ChaCha20(hmac.digest(secret, name, "sha256"), bytes(16)), None)
        return cipher.encryptor().update(bytes(size))

    def signs(name, count):
        return [1 - 2 * (byte >> (7 - place) & 1) for byte in stream(name, count // 8) for place in range(8)]

    made = waves(KEY, CLAIM, SPEC)
    assert made.directions.reshape(-1).tolist() == signs(b"directions", 64 * WAVES)  # 8 / sqrt(64) is one
    assert made.classes.reshape(-1).tolist() == signs(b"classes", 10 * WAVES)
    assert made.code.tolist() == signs(b"code", WAVES)
    words = stream(b"phases", 4 * WAVES)
    turns = [int.from_bytes(words[4 * place : 4 * place + 4], "little") / 2**32 for place in range(WAVES)]
    assert np.allclose(made.phases, [2 * math.pi * turn for turn in turns], atol=1e-5)


def test_the_fit_is_the_ridge_regression_that_it_says():
    keyed, rows = waves(KEY, CLAIM, SPEC), 120
    answers = marked(0.2)[:rows]
    chosen, heights = answers.argmax(axis=1), keyed.at(INPUTS[:rows]).astype(float)
    design, wanted = [], []
    for row in range(rows):
        others = [column for column in range(10) if column != chosen[row]]
        signs = keyed.classes[:, others].astype(float)
        design.append(((signs - signs.mean(axis=1, keepdims=True)) * heights[row][:, None]).T)
        logs = np.log(answers[row, others])
        wanted.append(logs - logs.mean())
    x, y = np.concatenate(design), np.concatenate(wanted)
    y = np.clip(y, -2 * y.std(), 2 * y.std())
    ridge = np.trace(x.T @ x) / WAVES
    fitted = np.linalg.solve(x.T @ x + ridge * np.eye(WAVES), x.T @ y)
    z = fitted @ keyed.code / np.linalg.norm(fitted)
    assert read_soft_labels(answers, INPUTS[:rows], keyed).z == pytest.approx(z, rel=1e-6)


def test_a_marked_model_is_told_from_one_that_is_not():
    keyed = waves(KEY, CLAIM, SPEC)
    assert read_soft_labels(marked(0.2), INPUTS, keyed).verdict == "PRESENT"
    assert read_soft_labels(foreign(), INPUTS, keyed).verdict == "ABSENT"


@pytest.mark.parametrize(
    ("key", "claim"),
    [(bytes(32), CLAIM), (KEY, Claim("Example Inc", CLAIM.digest)), (KEY, Claim(CLAIM.owner, "b" * 64))],
)
def test_another_key_owner_or_original_reads_nothing(key, claim):
    assert read_soft_labels(marked(0.5), INPUTS, waves(key, claim, SPEC)).verdict == "ABSENT"


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_z_of_foreign_keys_is_as_the_bound_says(share):
    """Of a model without a mark and of one with another's: mean 0, spread 1, and no tail beyond Hoeffding's."""
    answers = marked(share) if share else foreign()
    found = [
        read_soft_labels(answers, INPUTS, waves(number.to_bytes(32, "big"), CLAIM, SPEC)).z for number in range(40)
    ]
    assert abs(np.mean(found)) < 5 / math.sqrt(40) and 0.6 < np.std(found) < 1.4
    assert max(found) < 5  # a bound of 40 exp(-12.5) = 1.5e-4; the keys are fixed


def test_the_p_value_is_the_formula():
    assert SoftReading(100, 10.0, 1).log10_p_hoeffding == pytest.approx(-50 / math.log(10))
    assert SoftReading(100, 10.0, 100).log10_p_hoeffding == pytest.approx(2 - 50 / math.log(10))
    assert SoftReading(100, -10.0, 1).log10_p_hoeffding == 0 and SoftReading(100, 1.0, 10**9).log10_p_hoeffding == 0


@pytest.mark.parametrize("share", [-0.1, 0.51, math.nan, math.inf, "0.1", None, True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="soft_share"):
        require_share(share)


def test_a_short_key_and_two_classes_are_refused():
    with pytest.raises(KeyMaterialError):
        waves(bytes(31), CLAIM, SPEC)
    with pytest.raises(ConfigError, match="two classes"):
        waves(KEY, CLAIM, ModelSpec("digits-cnn", {}, (1, 8, 8), 0, 16, ("a", "b")))


def altered(place, value):
    answers = foreign()
    answers[place] = value
    return answers


BAD_ANSWERS = {
    "NaN": altered((0, 0), math.nan),
    "infinite": altered((0, 0), math.inf),
    "negative": altered((0, 0), -0.1),
    "not adding up": altered((0, slice(None)), 0.9),
    "logits": np.log(foreign()),
    "too few classes": foreign()[:, :9],
    "too few rows": foreign()[:-1],
    "flat": foreign().reshape(-1),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_are_refused(name):
    with pytest.raises(ModelError):
        read_soft_labels(BAD_ANSWERS[name], INPUTS, waves(KEY, CLAIM, SPEC))


def test_what_tells_the_chosen_class_only_is_inconclusive():
    keyed = waves(KEY, CLAIM, SPEC)
    for answers in (np.eye(10)[foreign().argmax(axis=1)], np.full((ROWS, 10), 0.1)):
        with pytest.raises(InconclusiveError, match="nothing of the others"):
            read_soft_labels(answers, INPUTS, keyed)


def test_too_few_rows_are_inconclusive_and_too_many_refused():
    keyed = waves(KEY, CLAIM, SPEC)
    with pytest.raises(InconclusiveError, match="100 rows or more"):
        read_soft_labels(foreign()[:99], INPUTS[:99], keyed)
    many = np.zeros((10_001, 1, 8, 8), np.float32)
    with pytest.raises(UsageError, match="10000 rows at most"):
        read_soft_labels(foreign(inputs=many), many, keyed)
    with pytest.raises(UsageError, match="tried"):
        read_soft_labels(foreign(), INPUTS, keyed, tried=0)
