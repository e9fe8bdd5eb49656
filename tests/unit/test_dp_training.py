"""Private training: what it costs, that it does what is accounted for, and what it refuses."""

import dataclasses
import functools
import json
import math
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import resting
import torch
from kfp import dsl
from private_place import LEDGER, OPTIONS, SETTINGS, Place, dataset
from private_place import images as rows

from portcullis.digest import content_digest
from portcullis.dp_training import accounting, private
from portcullis.dp_training.accounting import Plan, epsilon_pld, epsilon_prv, plan
from portcullis.dp_training.component import dp_train
from portcullis.dp_training.noise import RandomStream
from portcullis.dp_training.page import certificate_section
from portcullis.dp_training.private import NoisyOptimizer, certificate, fit, require_private, sample, train
from portcullis.dp_training.settings import PrivateSettings
from portcullis.errors import (
    BudgetError,
    ConfigError,
    DataError,
    EvidenceError,
    InconclusiveError,
    ModelError,
    PolicyError,
    UsageError,
)
from portcullis.ledger.mechanisms import DpSgd
from portcullis.models.store import ModelSpec, load_model_files, model_files, read_model_files, save_model
from portcullis_pipelines.config import ReferenceConfig

SPEC = ModelSpec("digits-cnn", {"width": 2, "hidden": 8, "tanh": 1}, (1, 4, 4), 0, 16, ("dark", "bright"))
FAST = PrivateSettings(target_epsilon=8.0, delta=1e-4, epochs=12, batch_size=64, learning_rate=1.0, device="cpu")
KEY = bytes(range(32))


@pytest.fixture(scope="module", autouse=True)
def _accounted_once():
    """The accountants take seconds, and give the same for the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private, "plan", functools.lru_cache(plan))
        yield


def accuracy(module: torch.nn.Module) -> float:
    features, labels = rows()
    with torch.inference_mode():
        found = module(torch.from_numpy(SPEC.scale(features))).argmax(dim=1)
    return float((found == torch.from_numpy(labels)).float().mean())


@pytest.mark.parametrize("attack", [0.0, 0.05])
def test_learns_and_leaves_a_plain_network(attack):
    module, planned = train(*rows(), SPEC, dataclasses.replace(FAST, attack_epsilon=attack))
    assert accuracy(module) > 0.9 and planned.rows == 300
    assert not module.training and not any(weights.requires_grad for weights in module.parameters())
    assert not any(hasattr(weights, "grad_sample") for weights in module.parameters())
    model_files(module, SPEC)


def test_two_trainings_differ_unless_a_test_fixes_the_key(caplog):
    settings = dataclasses.replace(FAST, epochs=1)
    first, second = (model_files(train(*rows(), SPEC, settings)[0], SPEC) for _ in range(2))
    assert first != second
    fixed, again = (model_files(train(*rows(), SPEC, settings, unsafe_key=KEY)[0], SPEC) for _ in range(2))
    assert fixed == again and "not private" in caplog.text


def test_all_rows_can_be_learnt_from_in_pieces():
    """The gradients of a batch need not fit into memory at once; what is learnt is the same but for rounding."""
    features, labels = rows()
    inputs, targets = torch.from_numpy(SPEC.scale(features)), torch.from_numpy(labels)
    planned = Plan(rows=300, sampling_rate=0.2, steps=4, noise_multiplier=1.0, epsilon_prv=1, epsilon_pld=1)
    learnt = []
    for at_once in (300, 7):
        torch.manual_seed(0)
        module = private.build_module(SPEC)
        size = sum(4 * it.numel() for it in module.parameters())
        stream = RandomStream.unsafe_fixed_key(KEY)
        fit(module, inputs, targets, planned, SETTINGS, stream, gradient_bytes=at_once * size)
        learnt.append(torch.cat([it.flatten() for it in module.parameters()]))
    assert torch.allclose(*learnt, atol=1e-4)


def test_the_stated_epsilon_is_within_the_target_by_both_accountants():
    for target in (0.5, 3.0):
        settings = dataclasses.replace(FAST, target_epsilon=target)
        found = plan(300, settings)
        q, steps = 64 / 300, math.ceil(12 * 300 / 64)
        assert (found.rows, found.sampling_rate, found.steps) == (300, q, steps)
        assert found.epsilon_prv == epsilon_prv(found.noise_multiplier, q, steps, 1e-4) <= target
        assert found.epsilon_pld == epsilon_pld(found.noise_multiplier, q, steps, 1e-4) <= target
        assert found.epsilon == max(found.epsilon_prv, found.epsilon_pld) > 0.97 * target


def test_without_sampling_it_is_the_gaussian_mechanism():
    """Balle and Wang 2018 (arXiv:1805.06530): delta of one Gaussian release, in closed form."""
    from scipy.stats import norm

    sigma, delta = 1.7, 1e-5
    epsilon = epsilon_pld(sigma, 1.0, 1, delta)
    exact = norm.cdf(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * norm.cdf(
        -1 / (2 * sigma) - epsilon * sigma
    )
    assert exact <= delta * (1 + 1e-9)
    assert exact > 0.98 * delta


@pytest.mark.parametrize(("prv", "said"), [(lambda e: e + 1, "disagree"), (lambda e: e / 2, "disagree")])
def test_accountants_that_contradict_each_other_end_the_training(monkeypatch, prv, said):
    monkeypatch.setattr(accounting, "epsilon_prv", lambda *given: prv(epsilon_prv(*given)))
    with pytest.raises(InconclusiveError, match=said):
        plan(300, FAST)


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (64, FAST),
        (10, FAST),
        (1001, FAST),
        (300, dataclasses.replace(FAST, delta=4e-4)),
    ],
    ids=["a batch of all rows", "a batch of more rows than there are", "delta for fewer rows", "delta too large"],
)
def test_refuses_rows_that_the_settings_do_not_suit(count, settings):
    with pytest.raises(DataError):
        plan(count, settings)


BAD = [
    {"target_epsilon": 0.0},
    {"target_epsilon": math.nan},
    {"target_epsilon": math.inf},
    {"target_epsilon": 65.0},
    {"target_epsilon": True},
    {"delta": 0.0},
    {"delta": 0.5},
    {"delta": math.nan},
    {"delta": 1},
    {"epochs": 0},
    {"epochs": 1.0},
    {"batch_size": 0},
    {"learning_rate": -1.0},
    {"learning_rate": math.inf},
    {"max_grad_norm": 0.0},
    {"max_grad_norm": math.nan},
    {"attack_epsilon": -0.1},
    {"attack_epsilon": 0.5},
    {"attack_epsilon": math.nan},
    {"attack_steps": 0},
    {"settings_tried": 0},
    {"seed": -1},
    {"device": "tpu"},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_refuses_settings_out_of_range(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        dataclasses.replace(FAST, **change)


def test_refuses_an_epsilon_out_of_reach_and_too_many_steps():
    with pytest.raises(ConfigError, match="out of reach"):
        plan(900, dataclasses.replace(FAST, target_epsilon=1e-5, epochs=1000))
    with pytest.raises(ConfigError, match="steps"):
        plan(900, dataclasses.replace(FAST, batch_size=1, epochs=10_000))


def test_what_comes_before_the_rows_can_end_the_training(monkeypatch):
    def refuse(planned: Plan) -> None:
        raise BudgetError(f"{planned.epsilon:g} is too much")

    monkeypatch.setattr(private, "fit", lambda *_: pytest.fail("a row was learnt from"))
    with pytest.raises(BudgetError):
        train(*rows(), SPEC, FAST, before=refuse)


def test_the_certificate_says_what_is_guaranteed_and_what_is_not():
    planned = plan(300, FAST)
    module = torch.nn.Linear(3, 2)
    stated = certificate(planned, FAST, module)
    assert stated["epsilon"] == planned.epsilon and stated["delta"] == 1e-4 and stated["parameters"] == 8
    assert (stated["unit"], stated["adjacency"], stated["sampling"]) == (
        "one training row",
        "add or remove one row",
        "Poisson",
    )
    assert "idealised real-valued noise" in str(stated["claim"]) and "settings" in str(stated["uncovered"])
    assert stated["utility"] == "the signal outweighs the noise"
    wide = certificate(dataclasses.replace(planned, noise_multiplier=1e3), FAST, module)
    assert wide["utility"] == "the noise drowns the signal" and wide["noise_to_signal"] > 1


class Mixing(torch.nn.Module):
    """Subtracts the batch's mean: no layer gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs - inputs.mean(dim=0, keepdim=True))


class NoEmpty(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs - inputs[0] + inputs[0])


@pytest.mark.parametrize(
    "network",
    [
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)),
        torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, affine=False), torch.nn.Linear(8, 2)),
        torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, track_running_stats=False), torch.nn.Linear(8, 2)
        ),
        torch.nn.Flatten(),
        Mixing(),
        NoEmpty(),
    ],
    ids=[
        "batch norm",
        "batch norm without weights",
        "batch norm without statistics",
        "no weights",
        "mixing",
        "no rows",
    ],
)
def test_refuses_a_network_that_cannot_be_trained_privately(network):
    with pytest.raises(ModelError):
        require_private(network, torch.Size([4]))


def test_takes_a_network_with_group_norm_and_dropout():
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.GroupNorm(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    )
    require_private(network, torch.Size([4]))


def test_training_that_overflows_is_refused():
    loud = Plan(rows=300, sampling_rate=0.1, steps=2, noise_multiplier=1e39, epsilon_prv=1, epsilon_pld=1)
    features, labels = rows()
    inputs, targets = torch.from_numpy(SPEC.scale(features)), torch.from_numpy(labels)
    with pytest.raises(ModelError, match="finite"):
        fit(
            private.build_module(SPEC),
            inputs,
            targets,
            loud,
            dataclasses.replace(FAST, learning_rate=1e3),
            RandomStream(),
        )


def test_asking_for_cuda_where_there_is_none_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError):
        train(*rows(), SPEC, dataclasses.replace(FAST, device="cuda"))


def test_one_row_moves_the_sum_by_the_clipping_norm_at_most():
    """The sensitivity that the accountants count on, of the very code that trains."""
    features, labels = rows(40)
    inputs, targets = torch.from_numpy(SPEC.scale(features)), torch.from_numpy(labels)
    settings = dataclasses.replace(FAST, learning_rate=1.0, max_grad_norm=0.3, attack_epsilon=0.0)
    once = Plan(rows=40, sampling_rate=1.0, steps=1, noise_multiplier=1e-12, epsilon_prv=1, epsilon_pld=1)

    def moved(kept: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        module = private.build_module(SPEC)
        before = torch.cat([it.detach().flatten().clone() for it in module.parameters()])
        fit(module, inputs[kept], targets[kept], once, settings, RandomStream.unsafe_fixed_key(KEY))
        return (before - torch.cat([it.flatten() for it in module.parameters()])) * 40

    every = torch.arange(40)
    whole = moved(every)
    for row in range(0, 40, 5):
        assert (whole - moved(every[every != row])).norm() <= 0.3 * (1 + 1e-3)


def test_the_noise_has_the_deviation_that_is_accounted_for():
    weights = torch.nn.Parameter(torch.zeros(200_000))
    optimizer = NoisyOptimizer(
        torch.optim.SGD([weights], lr=1.0),
        noise_multiplier=4.0,
        max_grad_norm=0.5,
        expected_batch_size=10,
        stream=RandomStream.unsafe_fixed_key(KEY),
    )
    weights.grad_sample = torch.zeros(1, 200_000)
    optimizer.step()
    noise = weights.detach().numpy() * 10
    assert abs(noise.std() / 2 - 1) < 0.01 and abs(noise.mean()) < 0.02


def test_a_poisson_sample_takes_each_row_apart():
    stream = RandomStream.unsafe_fixed_key(KEY)
    drawn = np.zeros((2000, 50))
    for step in range(2000):
        drawn[step, sample(50, 0.3, stream)] = 1
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 5 * math.sqrt(0.21 / 2000)
    sizes = drawn.sum(axis=1)
    assert abs(sizes.var() / (50 * 0.21) - 1) < 0.15  # a sample of fixed size has none
    assert not sample(50, 1e-300, stream).size


def test_the_stream_is_uniform_normal_and_never_the_same(caplog):
    stream = RandomStream.unsafe_fixed_key(KEY)
    uniform = stream.uniform(100_000)
    assert ((uniform > 0) & (uniform < 1)).all() and abs(uniform.mean() - 0.5) < 0.005
    from scipy.stats import kstest

    assert kstest(stream.normal(100_000), "norm").pvalue > 1e-3
    assert np.isfinite(stream.normal(3)).all() and stream.normal(0).shape == (0,)
    assert (RandomStream().uniform(4) != RandomStream().uniform(4)).all()
    assert "not private" in caplog.text


@pytest.fixture
def place(tmp_path, monkeypatch):
    here = Place(tmp_path)
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    here.furnish()
    return here


def test_the_step_charges_what_it_wrote_before_it_writes(place, monkeypatch):
    def charged(*arguments):
        assert place.charged() and place.written() == []
        return save_model(*arguments)

    monkeypatch.setattr("portcullis.dp_training.stage.save_model", charged)
    statement = place.train()
    (entry,) = place.charged()
    assert entry.charge.output == statement.outputs["model"] == load_digest(place.out / "model")
    assert entry.charge.mechanism == DpSgd(
        statement.figures["noise_multiplier"], statement.figures["sampling_rate"], statement.figures["steps"]
    )
    assert (statement.stage, statement.kind) == ("dp_train", "transform")
    assert statement.figures["ledger_entry"] == entry.digest
    assert 0 < statement.figures["ledger_epsilon"] <= statement.figures["epsilon"] <= 1
    assert "idealised" in statement.figures["claim"]


def load_digest(directory):
    files = read_model_files(directory)
    assert load_model_files(files).spec.architecture == "digits-cnn"
    return content_digest(files)


def test_nothing_is_written_above_the_budget(place, monkeypatch):
    """And nothing is learnt: the budget is looked at before the rows are."""
    place.train()
    place.furnish()
    monkeypatch.setattr(private, "fit", lambda *_: pytest.fail("a row was learnt from"))
    with pytest.raises(BudgetError):
        place.train()
    assert place.written() == [] and len(place.charged()) == 1


def test_another_run_that_spent_the_budget_meanwhile_leaves_no_model(place, monkeypatch):
    monkeypatch.setattr("portcullis.dp_training.stage.require_affordable", lambda *_: None)
    place.train()
    place.furnish()
    with pytest.raises(BudgetError):
        place.train()
    assert place.written() == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"settings": dataclasses.replace(SETTINGS, target_epsilon=4.0)}, PolicyError),
        ({"settings": dataclasses.replace(SETTINGS, max_grad_norm=2.0)}, PolicyError),
        ({"settings": dataclasses.replace(SETTINGS, settings_tried=9)}, PolicyError),
        ({"ledger": {**LEDGER, "epsilon": 99.0}}, PolicyError),
        ({"ledger": {}}, ConfigError),
        ({"architecture": "other"}, PolicyError),
        ({"step": "source"}, PolicyError),
    ],
    ids=["more epsilon", "another norm", "fewer tries than there were", "more budget", "no budget", "another", "step"],
)
def test_what_the_policy_does_not_say_is_refused(place, change, error):
    with pytest.raises(error):
        place.train(**change)
    assert place.written() == [] and place.charged() == ()


def test_other_rows_than_the_evidence_says_are_refused(place):
    resting.seal(place.root / "train", dataset(seed=9).table, dataset().spec)
    with pytest.raises(EvidenceError):
        place.train()
    assert place.written() == []


def test_too_few_rows_are_refused_before_they_are_charged(place):
    place.furnish(train=dataset(80))
    with pytest.raises(DataError):
        place.train()
    assert place.written() == [] and place.charged() == ()


def test_the_component_does_what_the_stage_does(place):
    metrics = dsl.Metrics(uri=str(place.out / "metrics"))
    outputs = dp_train.python_func(
        dataset=dsl.Dataset(uri=str(place.root / "train")),
        evidence=dsl.Artifact(uri=str(place.root / "evidence")),
        architecture="digits-cnn",
        options={name: float(value) for name, value in OPTIONS.items()},
        ledger=LEDGER,
        **dataclasses.asdict(SETTINGS),
        model=dsl.Model(uri=str(place.out / "model")),
        model_evidence=dsl.Artifact(uri=str(place.out / "evidence")),
        metrics=metrics,
    )
    assert outputs.digest == load_digest(place.out / "model")
    assert 0 < metrics.metadata["epsilon"] <= 1 and "claim" not in metrics.metadata


def test_the_report_shows_the_certificate_and_warns_where_noise_drowns_the_signal():
    planned = plan(300, FAST)
    module = torch.nn.Linear(3, 2)

    def page(found: Plan, accuracy: float | None) -> str:
        figures = certificate(found, FAST, module)
        return "".join(certificate_section(SimpleNamespace(step="train", figures=figures), accuracy))

    told = page(planned, 0.5)
    assert "idealised real-valued noise" in told and "are not covered" in told
    assert "take more rows" not in told and "accuracy 0.500" in told
    drowned = page(dataclasses.replace(planned, noise_multiplier=1e3), None)
    assert "The noise drowns the signal: take more rows" in drowned and "circle" not in drowned


def test_the_curve_in_the_report_is_of_the_settings_that_are_shipped():
    text = resources.files("portcullis.dp_training").joinpath("reference-curve.json").read_text()
    curve = json.loads(text)
    for point in curve["points"]:
        config = ReferenceConfig.load(None, private=True, epsilon=point["epsilon"])
        assert point["settings"] == dataclasses.asdict(config.dp_training), "run: python -m benchmarks.dp_training"
        assert point["options"] == dict(config.options)
        # What the policy asks for is what was measured, less a margin.
        assert config.thresholds.clean_accuracy < point["accuracy"] < curve["not_private"]
        assert config.thresholds.robust_accuracy < point["robust_accuracy"]
