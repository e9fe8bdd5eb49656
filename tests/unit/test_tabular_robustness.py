"""Black boxes of tables: real scikit-learn models on real data, what may change, and when nothing can be judged."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.errors import ConfigError, InconclusiveError
from portcullis.robustness.tabular import (
    TabularSettings,
    TabularThreat,
    judge,
    judge_black_box,
    parse_threat,
    read_threat,
)
from portcullis.robustness.tabular.search import draw, search

HELD = 150
FEW = TabularSettings(queries=200)


@cache
def rows(load):
    features, labels = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return features[order], labels[order]


@cache
def fitted(load, kind: str):
    features, labels = rows(load)
    held = HELD if load is load_breast_cancer else 60
    model = {
        "trees": RandomForestClassifier(15, random_state=0),
        "tree": DecisionTreeClassifier(random_state=0),
        "linear": make_pipeline(StandardScaler(), LogisticRegression()),
    }[kind]
    return model.fit(features[held:], labels[held:]), features[:held], labels[:held]


def simple(**changes: object) -> TabularThreat:
    """Four features: one free, one whole, and a group of two."""
    threat = TabularThreat(
        epsilon=np.array([0.5, 2.0, 0.0, 0.0]),
        low=np.array([0.0, 0.0, 0.0, 0.0]),
        high=np.array([1.0, 9.0, 1.0, 1.0]),
        whole=np.array([False, True, False, False]),
        direction=np.array([0, 1, 0, 0]),
        groups=((2, 3),),
        swaps=1,
    )
    return dataclasses.replace(threat, **changes)


class TestRealModels:
    @pytest.mark.parametrize("mutable", [range(30), range(10)], ids=["all features", "ten of thirty"])
    def test_finds_all_that_there_is_to_find_in_a_linear_model(self, mutable) -> None:
        """Its worst case is known exactly: each feature at the end that its weight points away from."""
        model, features, labels = fitted(load_breast_cancer, "linear")
        threat = TabularThreat.of_deviations(rows(load_breast_cancer)[0], 0.25, mutable)
        report = judge_black_box(model.predict_proba, features, labels, threat)
        scale, linear = model[0], model[1]
        weights = linear.coef_[0] / scale.scale_ * np.where(labels == 1, 1, -1)[:, None]
        bias = (linear.intercept_[0] - (linear.coef_[0] * scale.mean_ / scale.scale_).sum()) * np.where(labels, 1, -1)
        low, high = threat.box(features)
        robust = np.minimum(weights * low, weights * high).sum(axis=1) + bias > 0
        assert 0.5 < robust.mean() < report.figures["clean_accuracy"]
        assert report.figures["robust_accuracy"] == pytest.approx(robust.mean(), abs=0.02)
        assert report.figures["robust_accuracy"] >= robust.mean(), "nothing breaks what cannot be broken"
        assert judge_black_box(model.predict_proba, features, labels, threat).figures == report.figures

    def test_breaks_trees_and_leaves_what_may_not_change_bit_for_bit(self) -> None:
        model, features, labels = fitted(load_breast_cancer, "trees")
        shares = []
        for mutable in (range(10), range(30)):
            threat = TabularThreat.of_deviations(rows(load_breast_cancer)[0], 0.5, mutable)
            report = judge_black_box(model.predict_proba, features, labels, threat, FEW)
            still = [place for place in range(30) if place not in mutable]
            assert report.candidates[:, still].tobytes() == features[:, still].tobytes()
            assert threat.holds(features, report.candidates).all()
            assert (model.predict(report.candidates[report.broken]) != labels[report.broken]).all()
            shares.append(report.figures["robust_accuracy"])
        assert 0.2 < shares[1] < shares[0] < report.figures["clean_accuracy"], "the mask decides the verdict"
        assert report.figures["planted_found"] >= 0.9

    def test_three_classes(self) -> None:
        model, features, labels = fitted(load_wine, "linear")
        threat = TabularThreat.of_deviations(rows(load_wine)[0], 0.5, range(13), whole=[12])
        settings = TabularSettings(queries=200, n_min=50)
        report = judge_black_box(model.predict_proba, features, labels, threat, settings)
        assert report.figures["classes"] == 3
        assert report.figures["robust_accuracy"] < report.figures["clean_accuracy"]
        proline = report.candidates[report.broken, 12]
        assert (proline == np.round(proline)).all() and (proline != features[report.broken, 12]).any()


def bad(change):
    """Wrap a model's probabilities."""
    model, _, _ = fitted(load_breast_cancer, "linear")
    return lambda values: change(model.predict_proba, values)


def failing(inner, values):
    raise OSError("connection lost")


class TestInconclusive:
    threat = TabularThreat.of_deviations(rows(load_breast_cancer)[0], 0.25, range(30))

    @pytest.mark.parametrize(
        ("network", "reason"),
        [
            pytest.param(lambda inner, x: inner(x) * np.nan, "from 0 to 1", id="NaN"),
            pytest.param(lambda inner, x: inner(x) * 2, "sum to 1", id="no probabilities"),
            pytest.param(lambda inner, x: inner(x)[:, :1], "same classes", id="one column"),
            pytest.param(lambda inner, x: inner(x)[:-1], "for each row", id="a row too few"),
            pytest.param(lambda inner, x: inner(x).argmax(axis=1), "same classes", id="labels"),
            pytest.param(lambda inner, x: inner(x).round(), "labels, not probabilities", id="hard labels"),
            pytest.param(lambda inner, x: 0.9 * inner(x).round() + 0.05, "labels, not prob", id="softened labels"),
            pytest.param(lambda inner, x: inner(x)[:, ::-1], "better than chance", id="always wrong"),
            pytest.param(lambda inner, x: np.tile([0.4, 0.6], (len(x), 1)), "better than chance", id="constant"),
            pytest.param(
                lambda inner, x: (lambda p: np.column_stack([p, 1 - p]))(np.random.default_rng().random(len(x))),
                "depend on chance",
                id="random",
            ),
            pytest.param(
                lambda inner, x: 0.5 * inner(x) + 0.5 * inner(x.mean(axis=0, keepdims=True)), "other rows", id="batch"
            ),
            pytest.param(failing, "could not be attacked: OSError: connection lost", id="fails"),
        ],
    )
    def test_refuses_to_judge(self, network, reason: str) -> None:
        _, features, labels = fitted(load_breast_cancer, "linear")
        with pytest.raises(InconclusiveError, match=reason):
            judge_black_box(bad(network), features, labels, self.threat, FEW)

    def test_refuses_a_tree_that_only_answers_with_labels(self) -> None:
        model, features, labels = fitted(load_breast_cancer, "tree")
        with pytest.raises(InconclusiveError, match="labels, not probabilities"):
            judge_black_box(model.predict_proba, features, labels, self.threat, FEW)

    def test_refuses_when_the_search_misses_what_was_planted(self, monkeypatch) -> None:
        monkeypatch.setattr(judge, "search", lambda asked, clean, *_, **__: clean.copy())
        model, features, labels = fitted(load_breast_cancer, "linear")
        with pytest.raises(InconclusiveError, match=r"finds only 0\.0% of adversarial examples that were planted"):
            judge_black_box(model.predict_proba, features, labels, self.threat, FEW)

    def test_refuses_when_noise_beats_the_search(self, monkeypatch) -> None:
        monkeypatch.setattr(judge, "_planted_found", lambda *_: 1.0)
        monkeypatch.setattr(judge, "search", lambda asked, clean, *_, **__: clean.copy())
        model, features, labels = fitted(load_breast_cancer, "linear")
        threat = TabularThreat.of_deviations(rows(load_breast_cancer)[0], 1.0, range(30))
        with pytest.raises(InconclusiveError, match="led astray"):
            judge_black_box(model.predict_proba, features, labels, threat, FEW)

    def test_refuses_when_no_change_changes_any_answer(self) -> None:
        model, features, labels = fitted(load_breast_cancer, "linear")
        frozen = TabularThreat.of_deviations(rows(load_breast_cancer)[0], 1e-12, [0])
        with pytest.raises(InconclusiveError, match="no allowed change"):
            judge_black_box(model.predict_proba, features, labels, frozen, FEW)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda x, y: (x[:99], y[:99]), id="too few"),
            pytest.param(lambda x, y: (x[y == 1], y[y == 1]), id="a class is missing"),
            pytest.param(lambda x, y: (x, y[:-1]), id="labels too few"),
            pytest.param(lambda x, y: (x, y + 1), id="label too large"),
            pytest.param(lambda x, y: (x, y.astype(float)), id="labels are floats"),
            pytest.param(lambda x, y: (x[:, :29], y), id="a feature too few"),
            pytest.param(lambda x, y: (np.where(x > 20, np.nan, x), y), id="NaN"),
            pytest.param(lambda x, y: (x * 100, y), id="another range"),
            pytest.param(lambda x, y: (x.astype(str), y), id="text"),
            pytest.param(lambda x, y: (x, np.roll(y, 1)), id="labels of other rows"),
        ],
    )
    def test_refuses_to_judge_by_bad_rows(self, change) -> None:
        model, features, labels = fitted(load_breast_cancer, "linear")
        with pytest.raises(InconclusiveError):
            judge_black_box(model.predict_proba, *change(features, labels), self.threat, FEW)


class TestThreat:
    clean = np.array([[0.5, 3.0, 1.0, 0.0]])

    @pytest.mark.parametrize(
        ("candidate", "held"),
        [
            pytest.param([0.5, 3.0, 1.0, 0.0], True, id="nothing"),
            pytest.param([1.0, 5.0, 0.0, 1.0], True, id="all that may"),
            pytest.param([0.0, 3.0, 1.0, 0.0], True, id="to its low end"),
            pytest.param([0.5, 6.0, 1.0, 0.0], False, id="too far"),
            pytest.param([0.5, 2.0, 1.0, 0.0], False, id="down, and may only rise"),
            pytest.param([0.5, 3.5, 1.0, 0.0], False, id="no whole number"),
            pytest.param([0.5, 3.0, 0.0, 0.0], False, id="no category"),
            pytest.param([0.5, 3.0, 1.0, 1.0], False, id="two categories"),
            pytest.param([0.5, 3.0, 0.5, 0.5], False, id="half a category"),
            pytest.param([1.1, 3.0, 1.0, 0.0], False, id="out of range"),
            pytest.param([np.nan, 3.0, 1.0, 0.0], False, id="NaN"),
            pytest.param([np.inf, 3.0, 1.0, 0.0], False, id="infinite"),
        ],
    )
    def test_holds_a_candidate_to_what_may_change(self, candidate, held: bool) -> None:
        assert simple().holds(self.clean, np.array([candidate])).item() is held

    def test_no_more_groups_change_than_may(self) -> None:
        assert not simple(swaps=0).holds(self.clean, np.array([[0.5, 3.0, 0.0, 1.0]])).item()

    @given(seed=st.integers(0, 2**32), share=st.floats(0.01, 1), between=st.booleans(), swaps=st.integers(0, 1))
    def test_whatever_is_drawn_is_allowed(self, seed: int, share: float, between: bool, swaps: int) -> None:
        generator = np.random.default_rng(seed)
        clean = np.column_stack(
            [generator.random(8), generator.integers(0, 10, 8), np.eye(2)[generator.integers(0, 2, 8)]]
        )
        threat = simple(swaps=swaps)
        first = draw(threat, clean, clean, 1.0, generator, between)
        for drawn in (first, draw(threat, clean, first, share, generator, between)):
            assert threat.holds(clean, drawn).all()

    def test_a_group_is_searched(self) -> None:
        """Only another category breaks this model."""

        def classifier(values: np.ndarray) -> np.ndarray:
            share = 0.2 + 0.6 * values[:, 3]
            return np.column_stack([1 - share, share])

        found = search(
            classifier, self.clean, simple(), lambda answers, places: answers[:, 0] - answers[:, 1],
            queries=50, generator=np.random.default_rng(0),
        )  # fmt: skip
        assert found[0, 2:].tolist() == [0, 1]

    @pytest.mark.parametrize(
        "changes",
        [
            {"epsilon": np.array([0.5, 2.0, 0.0])},
            {"epsilon": np.array([-0.5, 2.0, 0.0, 0.0])},
            {"epsilon": np.array([np.nan, 2.0, 0.0, 0.0])},
            {"epsilon": np.array([0.5, 2.0, 0.1, 0.0])},
            {"epsilon": np.zeros(4), "swaps": 0},
            {"low": np.array([2.0, 0.0, 0.0, 0.0])},
            {"high": np.array([np.inf, 9.0, 1.0, 1.0])},
            {"direction": np.array([2, 0, 0, 0])},
            {"groups": ((2,),)},
            {"groups": ((2, 3), (3, 2))},
            {"groups": ((2, 4),)},
            {"swaps": 2},
            {"swaps": True},
        ],
    )
    def test_refuses_a_threat(self, changes) -> None:
        with pytest.raises(ConfigError, match="threat: "):
            simple(**changes)


class TestDocument:
    spec = DatasetSpec("people", Label("ok", ("no", "yes")), Features(("age", "pay", "red", "blue"), (4,), 0, 100))

    def test_is_read(self) -> None:
        threat = parse_threat(
            {
                "mutable": {"age": {"epsilon": 2, "low": 18, "high": 90, "whole": True, "direction": "up"}},
                "groups": [["red", "blue"]],
                "swaps": 1,
            },
            self.spec,
        )
        assert threat.epsilon.tolist() == [2, 0, 0, 0] and threat.low.tolist() == [18, 0, 0, 0]
        assert threat.high.tolist() == [90, 100, 100, 100] and threat.whole.tolist() == [True, False, False, False]
        assert threat.direction.tolist() == [1, 0, 0, 0] and threat.groups == ((2, 3),) and threat.swaps == 1

    @pytest.mark.parametrize(
        "document",
        [
            None,
            [],
            {},
            {"mutable": {}},
            {"mutable": {"height": {"epsilon": 1}}},
            {"mutable": {"age": 1}},
            {"mutable": {"age": {}}},
            {"mutable": {"age": {"epsilon": "1"}}},
            {"mutable": {"age": {"epsilon": True}}},
            {"mutable": {"age": {"epsilon": 1, "whole": 1}}},
            {"mutable": {"age": {"epsilon": 1, "direction": "left"}}},
            {"mutable": {"age": {"epsilon": 1, "direction": ["up"]}}},
            {"mutable": {"age": {"epsilon": 1, "direction": {}}}},
            {"mutable": {"age": {"epsilon": 1, "direction": None}}},
            {"mutable": {"age": {"epsilon": 10**400}}},
            {"mutable": {"age": {"epsilon": float("nan")}}},
            {"mutable": {10**5000: {"epsilon": 1}}},
            {"mutable": {"age": {"epsilon": 1}}, "groups": [[["red"], "blue"]]},
            {"mutable": {"age": {"epsilon": 1}}, "groups": [["red", "blue"]], "swaps": [1]},
            {"mutable": {"age": {"epsilon": 1, "more": 1}}},
            {"mutable": {"age": {"epsilon": 1}}, "groups": ["red"]},
            {"mutable": {"age": {"epsilon": 1}}, "groups": [["red", "green"]]},
            {"mutable": {"age": {"epsilon": 1}}, "swaps": 1},
            {"mutable": {"age": {"epsilon": 1}}, "immutable": []},
        ],
    )
    def test_refuses_a_document(self, document) -> None:
        with pytest.raises(ConfigError, match="threat: "):
            parse_threat(document, self.spec)

    @pytest.mark.parametrize(
        "text",
        [
            '{"mutable":{"age":{"epsilon":1e-7}}}',  # as canonical JSON spells it
            '{"mutable": {"age": {"epsilon": 0.0000001}}}',
            "mutable: {age: {epsilon: 0.0000001}}",
            "mutable:\n  age:\n    epsilon: 0.0000001\n",
        ],
    )
    def test_is_read_as_json_or_yaml(self, text: str) -> None:
        assert read_threat(text, self.spec).epsilon.tolist() == [1e-7, 0, 0, 0]

    @pytest.mark.parametrize(
        "text",
        [
            " ",
            "none",
            "[]",
            "{",
            "mutable: {age: {epsilon: 1, direction: [a]}}",
            "mutable: {age: {epsilon: 1}, age: {epsilon: 2}}",
            '{"mutable": {"age": {"epsilon": 1}}, "mutable": {"pay": {"epsilon": 9}}}',
            '{"mutable": {"age": {"epsilon": NaN}}}',
            "mutable: {age: {epsilon: .inf}}",
            "mutable: &a {age: {epsilon: 1}}\ngroups: *a",
            "mutable: !!python/object:os.system {}",
            "[" * 5000,
            "\ud800",
            "\0",
        ],
    )
    def test_refuses_text(self, text: str) -> None:
        with pytest.raises(ConfigError, match="threat: "):
            read_threat(text, self.spec)


@pytest.mark.parametrize(("name", "value"), [("queries", 99), ("queries", 200.0), ("n_min", 0), ("seed", -1)])
def test_refuses_settings(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        TabularSettings(**{name: value})
