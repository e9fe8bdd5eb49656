"""Trees as tensors: weights from strangers are trees, or are refused when they are loaded."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from portcullis.errors import ModelError
from portcullis.models.store import LoadedModel, ModelSpec, build_module, load_model_files

# Two trees: x0 <= 0.5 (x1 <= 0.25 (leaf 0, leaf 1), leaf 2), and x1 <= 0.75 (leaf 3, leaf 4).
OPTIONS = {"trees": 2, "splits": 3, "depth": 2}
SPEC = ModelSpec("tree-ensemble", OPTIONS, (2,), 0, 1, ("no", "yes"))
WEIGHTS = {
    "root": torch.tensor([0, 1]),
    "feature": torch.tensor([0, 1, 1]),
    "threshold": torch.tensor([0.5, 0.75, 0.25]),
    "left": torch.tensor([2, 6, 3]),
    "right": torch.tensor([5, 7, 4]),
    "value": torch.tensor([[1, 0], [2, 0], [4, 0], [0, 8], [0, 16]], dtype=torch.float64),
    "base": torch.tensor([0.5, 0.25], dtype=torch.float64),
}


def load(options: dict | None = None, **changes: torch.Tensor) -> LoadedModel:
    spec = ModelSpec("tree-ensemble", {**OPTIONS, **(options or {})}, (2,), 0, 1, ("no", "yes"))
    return load_model_files({"model.json": spec.to_json(), "weights.safetensors": save({**WEIGHTS, **changes})})


@pytest.mark.parametrize(
    ("row", "logits"),
    [
        ([0.5, 0.25], [1.5, 8.25]),
        ([0.5, np.nextafter(np.float32(0.25), 1)], [2.5, 8.25]),
        ([np.nextafter(np.float32(0.5), 1), 0.0], [4.5, 8.25]),
        ([0.0, 1.0], [2.5, 16.25]),
        ([1.0, 0.75], [4.5, 8.25]),
    ],
)
def test_a_row_walks_every_tree_and_the_leaves_add_up(row: list[float], logits: list[float]) -> None:
    assert load().predict_logits(np.array([row], np.float32)).tolist() == [logits]


def test_sums_that_are_probabilities_become_their_logarithms() -> None:
    shares = {"value": torch.tensor([[0.5, 0], [0.25, 0.25], [0, 0.5], [0.5, 0], [0, 0.5]], dtype=torch.float64)}
    model = load({"probabilities": 1}, base=torch.zeros(2, dtype=torch.float64), **shares)
    rows = np.array([[0, 0], [0, 0.5], [1, 0], [1, 1]], np.float32)
    assert np.allclose(model.predict_probabilities(rows), [[1, 0], [0.75, 0.25], [0.5, 0.5], [0, 1]], atol=1e-8)
    assert np.isfinite(model.predict_logits(rows)).all()


def test_each_row_is_its_own_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((64, 2), np.float32)
    whole = load().predict_logits(rows)
    monkeypatch.setattr("portcullis.models.tree_ensemble._BLOCK", 10)
    assert np.array_equal(load().predict_logits(rows), whole)
    assert np.array_equal(np.concatenate([load().predict_logits(row[None]) for row in rows]), whole)
    assert len(np.unique(whole, axis=0)) > 3


def whole(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"left": whole(0, 6, 3)}, "exactly one", id="a split is its own child"),
        pytest.param({"root": whole(3, 1), "left": whole(2, 6, 0)}, "after its child", id="a cycle"),
        pytest.param({"root": whole(3, 4), "left": whole(2, 0, 1)}, "exactly one|after", id="cycles without a way in"),
        pytest.param({"left": whole(5, 6, 3)}, "exactly one", id="one leaf on both sides"),
        pytest.param({"left": whole(1, 6, 3)}, "exactly one", id="a split of two parents"),
        pytest.param({"root": whole(0, 0)}, "exactly one", id="one tree twice"),
        pytest.param({"left": whole(8, 6, 3)}, "no node", id="a child beyond the nodes"),
        pytest.param({"left": whole(-1, 6, 3)}, "no node", id="a negative child"),
        pytest.param({"right": whole(2**63 - 1, 7, 4)}, "no node", id="the largest child"),
        pytest.param({"root": whole(-(2**63), 1)}, "no node", id="the least root"),
        pytest.param({"feature": whole(0, 2, 1)}, "none of the 2 inputs", id="a feature beyond the inputs"),
        pytest.param({"feature": whole(-1, 1, 1)}, "none of the 2 inputs", id="a negative feature"),
        pytest.param({"threshold": torch.tensor([math.nan, 1, 1])}, "NaN", id="a threshold of NaN"),
        pytest.param({"threshold": torch.tensor([math.inf, 1, 1])}, "infinity", id="an infinite threshold"),
        pytest.param({"value": WEIGHTS["value"] * math.nan}, "NaN", id="values of NaN"),
        pytest.param({"value": WEIGHTS["value"] * 1e300}, "too large", id="values whose sum is infinite"),
        pytest.param({"base": WEIGHTS["base"] * 1e40}, "too large", id="a base that float32 has not"),
        pytest.param({"base": WEIGHTS["base"].float()}, "needs F64", id="a base of another type"),
        pytest.param({"left": WEIGHTS["left"].int()}, "needs I64", id="children of another type"),
        pytest.param({"left": whole(2, 6)}, "needs I64", id="children too few"),
        pytest.param({"more": whole(1)}, "exactly the architecture's", id="a tensor more"),
    ],
)
def test_refuses_weights_that_are_no_trees(changes: dict, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        load(**changes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param({"depth": 1}, "longer than 1", id="a path longer than the depth"),
        pytest.param({"depth": 513}, "depth", id="a depth beyond the limit"),
        pytest.param({"splits": 0}, "splits", id="no split"),
        pytest.param({"trees": True}, "trees", id="a truth for a number"),
        pytest.param({"trees": 100_001}, "trees", id="too many trees"),
        pytest.param({"splits": 1 << 24, "trees": 100_000}, "needs", id="as large as can be"),
        pytest.param({"splits": 1 << 40}, "splits", id="larger than any memory"),
        pytest.param({"probabilities": 2}, "probabilities", id="neither yes nor no"),
        pytest.param({"leaves": 5}, "options", id="an unknown option"),
    ],
)
def test_refuses_options(options: dict, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        load(options)


def test_without_weights_there_are_no_trees() -> None:
    with pytest.raises(ModelError, match="exactly one"):
        build_module(SPEC).load_state_dict(build_module(SPEC).state_dict())


@given(
    name=st.sampled_from(["root", "feature", "left", "right"]),
    place=st.integers(0, 2),
    value=st.one_of(st.integers(-1, 9), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_other_number_is_refused_or_still_trees(name: str, place: int, value: int) -> None:
    tensor = WEIGHTS[name].clone()
    tensor[place % len(tensor)] = value
    try:
        model = load(**{name: tensor})
    except ModelError:
        return
    rows = np.random.default_rng(0).random((16, 2), np.float32)
    assert np.isfinite(model.predict_logits(rows)).all()
    assert name == "feature" or torch.equal(tensor, WEIGHTS[name])
