"""Verdict mode: which rows it looks at, when it may stop, and how often that is wrong."""

import dataclasses
import hmac
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import STEPS, World
from digits_models import digits, hardened_model, plain_model
from hypothesis import given
from hypothesis import strategies as st

from portcullis.errors import InconclusiveError
from portcullis.evidence.chain import Chain
from portcullis.evidence.step import Step
from portcullis.keys import Signer
from portcullis.models.margin import margin
from portcullis.models.pytorch import reproducible
from portcullis.models.store import LoadedModel
from portcullis.robustness import stage
from portcullis.robustness.attacks import CHEAP, planned_attacks
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.page import robustness_details
from portcullis.robustness.proposal import Target
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verdict import (
    ALPHA,
    Conclusion,
    Question,
    conclude,
    judge_in_turn,
    least_count,
    plausible,
)
from portcullis.robustness.verify import adversarial, untouched

GATE = "robustness:trained"
KEY = bytes(range(32))
SUBJECTS = ("a" * 64, "b" * 64, "c" * 64)
QUICK = RobustnessSettings(
    pgd_step_size=0.04, cw_steps=30, cw_learning_rate=0.1, deepfool_steps=10, ddn_steps=20, apgd_targets=2
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    return digits()[0][:200], digits()[1][:200]


class TestOrder:
    def test_is_a_permutation_that_repeats(self) -> None:
        order = Question(0.5, KEY, SUBJECTS).order(1000)
        assert sorted(order.tolist()) == list(range(1000))
        assert order.tolist() == Question(0.9, KEY, SUBJECTS).order(1000).tolist()
        assert order.tolist() != list(range(1000))
        assert Question(0.5, KEY, SUBJECTS).order(0).tolist() == []

    @pytest.mark.parametrize("place", range(3))
    def test_changes_with_model_rows_and_policy(self, place: int) -> None:
        other = tuple("d" * 64 if index == place else it for index, it in enumerate(SUBJECTS))
        assert Question(0.5, KEY, other).order(50).tolist() != Question(0.5, KEY, SUBJECTS).order(50).tolist()

    def test_changes_with_the_key_which_nobody_sees(self) -> None:
        question = Question(0.5, KEY, SUBJECTS)
        assert Question(0.5, KEY[::-1], SUBJECTS).order(50).tolist() != question.order(50).tolist()
        assert KEY.hex() not in repr(question) and repr(KEY) not in repr(question)

    @pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ed25519"])
    def test_key_derives_from_the_gates_own(self, algorithm) -> None:
        signer, other = Signer.generate(algorithm), Signer.generate(algorithm)
        assert signer.derive(b"x") == signer.derive(b"x") and len(signer.derive(b"x")) == 32
        assert len({signer.derive(b"x"), signer.derive(b"y"), other.derive(b"x")}) == 3

    @pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, math.nan, math.inf])
    def test_refuses_a_question_without_an_answer(self, threshold: float) -> None:
        with pytest.raises(InconclusiveError, match="robust_accuracy above 0"):
            Question(threshold, KEY, SUBJECTS)

    def test_refuses_a_short_key(self) -> None:
        with pytest.raises(InconclusiveError, match="32 bytes"):
            Question(0.5, b"short", SUBJECTS)


@given(rows=st.integers(1, 5000), threshold=st.floats(1e-6, 1))
def test_least_count_is_the_least_that_the_policys_bound_holds_for(rows: int, threshold: float) -> None:
    count = least_count(threshold, rows)
    assert count / rows >= threshold and not (count - 1) / rows >= threshold


class TestSequentialTest:
    @given(pool=st.integers(1, 300), data=st.data())
    def test_is_an_interval_around_what_was_seen(self, pool: int, data: st.DataObject) -> None:
        judged = data.draw(st.integers(0, pool))
        withstood = data.draw(st.integers(0, judged))
        low, high = plausible(pool, judged, withstood)
        assert withstood <= low <= high <= pool - (judged - withstood)
        if judged == pool:
            assert low == high == withstood

    @pytest.mark.parametrize("pool", [300, 900])
    @pytest.mark.parametrize("share", [0.7, 0.95])
    def test_is_wrong_in_at_most_one_of_a_hundred_orders_at_the_very_bound(self, pool: int, share: float) -> None:
        """One row too few must not pass, just enough must not fail, with looks after every chunk."""
        generator, runs = np.random.default_rng(0), 600
        need = round(share * pool)
        wrong = {"passes": 0, "fails": 0}
        for name, robust in (("passes", need - 1), ("fails", need)):
            rows = np.arange(pool) < robust
            for _ in range(runs):
                found = judge_in_turn(generator.permutation(pool), rows.__getitem__, need=need, n_min=32)
                wrong[name] += (found.low >= need) != (robust >= need)
        # Twice what is promised has a probability below one in a hundred at this number of runs.
        assert max(wrong.values()) <= 2 * ALPHA * runs

    def test_looks_at_few_rows_when_the_answer_is_clear(self) -> None:
        rows = np.arange(5000) < 4800
        found = judge_in_turn(np.random.default_rng(1).permutation(5000), rows.__getitem__, need=4000, n_min=100)
        assert found.stop == "sequential" and found.judged < 1000
        assert 4000 <= found.low <= 4800 <= found.high

    @pytest.mark.parametrize(
        ("state", "need", "expected"),
        [
            pytest.param((0, 0, 0), 1, Conclusion(0, 0, 0, "exhausted"), id="nothing withstood the cheap attacks"),
            pytest.param((50, 0, 0), 60, Conclusion(0, 50, 0, "certain"), id="too few are left"),
            pytest.param((500, 64, 64), 64, Conclusion(64, 500, 64, "certain"), id="enough withstood"),
            pytest.param((500, 64, 0), 437, Conclusion(0, 436, 64, "certain"), id="too many broke"),
            pytest.param((500, 64, 0), 436, None, id="one fewer"),
            pytest.param((500, 500, 400), 450, Conclusion(400, 400, 500, "exhausted"), id="all were judged"),
        ],
    )
    def test_stops_where_nothing_can_change(self, state, need: int, expected) -> None:
        assert conclude(*state, need=need, n_min=100) == expected

    def test_no_test_decides_before_n_min(self) -> None:
        assert conclude(10_000, 99, 99, need=5000, n_min=100) is None
        assert conclude(10_000, 100, 100, need=5000, n_min=100).stop == "sequential"


def outcomes(model: LoadedModel, settings: RobustnessSettings) -> tuple[np.ndarray, np.ndarray, int]:
    """Return, of 300 rows, which withstand the cheap attacks, which of those all, and how many rows there are."""
    inputs, labels = model.preprocess(digits()[0][:300]), torch.from_numpy(digits()[1][:300])
    with reproducible(0, torch.device("cpu")), untouched(model.module):
        margins = margin(model.module(inputs), labels)
        hits = margins > 0
        inputs, labels = inputs[hits], labels[hits]
        plan = planned_attacks(Target(model.module, 10, float(margins[hits].median())), settings)
        broken = {
            name: adversarial(model.module, inputs, attack.propose(inputs, labels).detach(), labels, attack.ball)
            for name, attack in plan.items()
        }
    cheap = torch.stack([broken[name] for name in CHEAP]).any(dim=0)
    every = torch.stack(list(broken.values())).any(dim=0)
    return (~cheap).numpy(), (~every).numpy(), 300


@pytest.mark.slow
def test_replayed_verdicts_are_those_of_judging_everything() -> None:
    """1,080 decisions on outcomes of real attacks: two models, two radii, nine bounds around the truth, 30 keys."""
    decisions = wrong = judged = whole = 0
    for model in (plain_model(), hardened_model()):
        for epsilon in (0.1, 0.15):
            settings = dataclasses.replace(QUICK, epsilon=epsilon, l2_budget=4 * epsilon)
            cheap, every, rows = outcomes(model, settings)
            pool = every[cheap]
            robust = int(pool.sum()) / rows
            for gap in (-0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2):
                threshold = min(max(robust + gap, 0.01), 1.0)
                need = least_count(threshold, rows)
                for key in range(30):
                    question = Question(threshold, bytes([key]) * 32, SUBJECTS)
                    found = judge_in_turn(question.order(len(pool)), pool.__getitem__, need=need, n_min=100)
                    decisions += 1
                    wrong += (found.low >= need) != (int(pool.sum()) >= need)
                    judged += found.judged
                    whole += len(pool)
    assert decisions >= 1000
    assert wrong <= ALPHA * decisions
    assert judged < 0.7 * whole


class TestEvaluation:
    def ask(self, model: LoadedModel, rows, threshold: float):
        settings = dataclasses.replace(QUICK, mode="verdict", n_min=50)
        return evaluate(model, *rows, settings, Question(threshold, KEY, SUBJECTS)), settings

    def test_fails_a_weak_model_for_a_fraction_of_the_cost(self, rows) -> None:
        report, settings = self.ask(plain_model(), rows, 0.9)
        figures = report.figures
        assert figures["stop"] == "certain" and figures["judged"] == 0
        assert figures["robust_accuracy"] < figures["robust_accuracy_high"] < 0.9
        assert set(report.attacks) == {"fgsm"}, "one cheap attack is enough"
        assert report.attacks["fgsm"].broken < report.attacks["fgsm"].tried < 200
        assert "gradient_agreement" not in figures and not report.curve
        page = "".join(robustness_details(report, settings))
        assert "an interval, not a number" in page and "with certainty" in page and "the rest was not measured" in page

    def test_passes_a_sound_model_and_its_interval_holds_the_number(self, rows) -> None:
        full = evaluate(hardened_model(), *rows, QUICK)
        report, settings = self.ask(hardened_model(), rows, 0.6)
        figures = report.figures
        assert 0.6 <= figures["robust_accuracy"] <= full.figures["robust_accuracy"] <= figures["robust_accuracy_high"]
        assert 0 < figures["judged"] < figures["pool"] and figures["stop"] in ("sequential", "certain")
        assert figures["forward_equivalents"] < full.figures["forward_equivalents"]
        assert "robust_accuracy_cw" not in figures and "robust_accuracy_cw" in full.figures
        again, _ = self.ask(hardened_model(), rows, 0.6)
        assert again.figures == figures
        page = "".join(robustness_details(report, settings))
        assert f"{figures['judged']} met the others" in page
        page = "".join(robustness_details(full, QUICK))
        assert page.count("<svg") == 1 + len(full.examples) >= 3 and "samples withstood every attack" in page

    def test_refuses_to_decide_without_a_question(self, rows) -> None:
        with pytest.raises(InconclusiveError, match="needs a bound"):
            evaluate(plain_model(), *rows, dataclasses.replace(QUICK, mode="verdict"))


class TestPolicy:
    """What the gate's step asks, from its rule in the policy."""

    def begun(self, tmp_path: Path, checks: Mapping[str, object], model: str = "a" * 64) -> Step:
        world = World()
        steps = [
            {"parameters": {}, "requires": [], "checks": {}, **step, "key": world.keys[step["name"]].public_key.pem}
            for step in STEPS
        ]
        next(step for step in steps if step["name"] == GATE)["checks"] = checks
        store = world.store(tmp_path, steps=steps)
        inputs = {"model": model, "test": "b" * 64}
        return Step(store.policy.step(GATE), store, Chain({}, {}, ""), (), "0" * 32, 0, inputs, world.keys[GATE])

    def test_asks_for_the_policys_bound_with_a_key_of_its_own(self, tmp_path: Path) -> None:
        begun = self.begun(tmp_path, {"robust_accuracy": {"min": 0.75, "max": 1}})
        question = stage._question(begun)
        assert question.threshold == 0.75 and question.subjects == ("a" * 64, "b" * 64, begun.store.policy.digest)
        own = begun.signer.derive(b"robustness-order")
        assert question.key == hmac.digest(own, "|".join(question.subjects).encode(), "sha256")
        again = dataclasses.replace(begun, nonce="1" * 32, started=5)
        assert stage._question(again) == question, "another run of the same must judge in the same order"
        other = dataclasses.replace(begun, inputs={**begun.inputs, "model": "e" * 64})
        assert stage._question(other).order(100).tolist() != question.order(100).tolist()

    @pytest.mark.parametrize(
        "checks",
        [
            pytest.param({"samples": {"min": 100}}, id="none"),
            pytest.param({"robust_accuracy": {"max": 1}}, id="from above only"),
            pytest.param({"robust_accuracy": {"min": 0.5, "max": 0.9}}, id="from both sides"),
            pytest.param({"robust_accuracy": {"min": 0, "max": 1}}, id="zero"),
            pytest.param({"robust_accuracy": {"min": 2}}, id="above one"),
        ],
    )
    def test_refuses_a_policy_that_an_interval_cannot_answer(self, tmp_path: Path, checks) -> None:
        with pytest.raises(InconclusiveError, match="mode=verdict needs a policy"):
            stage._question(self.begun(tmp_path, checks))
