"""torchattacks, foolbox and ART behind one protocol: what they find, and that their known faults are worked around."""

import dataclasses
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from digits_models import Wrapped, digits, plain_model

from portcullis.errors import ConfigError, InconclusiveError, MissingDependencyError
from portcullis.models.margin import margin
from portcullis.models.pytorch import reproducible
from portcullis.robustness import attacks, backends, native
from portcullis.robustness.attacks import planned_attacks
from portcullis.robustness.backends import art_attacks, foolbox_attacks, torchattacks_attacks
from portcullis.robustness.evaluate import evaluate
from portcullis.robustness.proposal import Attack, Target
from portcullis.robustness.report import Ball
from portcullis.robustness.settings import LIBRARIES, RobustnessSettings
from portcullis.robustness.verify import adversarial, correct, untouched

CPU = torch.device("cpu")
SETTINGS = RobustnessSettings(cw_steps=20, ddn_steps=20, deepfool_steps=20)
FAST = {"torchattacks": ("fgsm", "pgd", "deepfool"), "foolbox": ("fgsm", "pgd", "deepfool", "ddn", "cw")}
FAST["art"] = ("fgsm", "pgd", "deepfool")
EACH = [(library, name) for library, names in FAST.items() for name in names]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def numpy_state() -> tuple[list[int], int]:
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002
    return words.tolist(), place


class Field:
    """A network and some rows that it classifies correctly."""

    def __init__(self, module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        with torch.no_grad():
            margins = margin(module(inputs), labels)
        hits = margins > 0
        self.inputs, self.labels = inputs[hits], labels[hits]
        self.target = Target(module, classes, float(margins[hits].median()))

    def broken(self, attack: Attack) -> torch.Tensor:
        module = self.target.module
        with reproducible(0, CPU), untouched(module):
            found = attack.propose(self.inputs, self.labels).detach()
        return adversarial(module, self.inputs, found, self.labels, attack.ball)

    def by(self, library: str, name: str) -> torch.Tensor:
        def propose(clean: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return backends.find_backend(library)(self.target, SETTINGS)[name].propose(clean, labels)

        with untouched(self.target.module):
            ball = backends.find_backend(library)(self.target, SETTINGS)[name].ball
        return self.broken(Attack(propose, ball))


@pytest.fixture(scope="module")
def field() -> Field:
    model = plain_model()
    return Field(model.module, model.preprocess(digits()[0][:40]), torch.from_numpy(digits()[1][:40]), 10)


@pytest.fixture(scope="module")
def saturated(field: Field) -> Field:
    """The same network with logits times 1000, whose cross-entropy has no gradient in float32."""
    module = Wrapped(field.target.module, lambda inner, inputs: inner(inputs) * 1e3).eval()
    return Field(module, field.inputs, field.labels, 10)


@pytest.mark.parametrize(("library", "name"), [it for it in EACH if it[1] != "cw"])
def test_finds_what_our_own_finds(field: Field, library: str, name: str) -> None:
    own = planned_attacks(field.target, SETTINGS)
    reference = field.broken(own["ddn" if name == "deepfool" else name])
    assert abs(int(field.by(library, name).sum()) - int(reference.sum())) <= 4


@pytest.mark.parametrize(("library", "name"), [it for it in EACH if it[1] in ("fgsm", "pgd", "deepfool")])
def test_large_logits_hide_nothing(field: Field, saturated: Field, library: str, name: str) -> None:
    """All three libraries find next to nothing by PGD on logits times 1000, if they are let."""
    honest, scaled = field.by(library, name), saturated.by(library, name)
    assert int(honest.sum()) >= 8 and abs(int(honest.sum()) - int(scaled.sum())) <= 2


def test_large_logits_hide_everything_from_the_libraries_alone(saturated: Field) -> None:
    module, inputs, labels = saturated.target.module, saturated.inputs, saturated.labels
    classifier = PyTorchClassifier(
        module, loss=torch.nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, device_type="cpu"
    )
    attack = evasion.ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.025, max_iter=10, verbose=False)
    wrapped = foolbox_attacks.foolbox.PyTorchModel(module, bounds=(0, 1), device=CPU)
    with reproducible(0, CPU), untouched(module):
        _, theirs, _ = foolbox_attacks.foolbox.attacks.LinfPGD(steps=10, abs_stepsize=0.025)(
            wrapped, inputs, labels, epsilons=0.1
        )
        found = [theirs, torch.from_numpy(attack.generate(inputs.numpy(), y=labels.numpy()))]
    for candidates in found:
        assert adversarial(module, inputs, candidates, labels, Ball("linf", 0.1)).sum() <= 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_leaves_everything_as_it_was(field: Field, library: str, capfd: pytest.CaptureFixture) -> None:
    module = Wrapped(field.target.module, lambda inner, inputs: inner(inputs))
    module.train()
    for weights in module.parameters():
        weights.requires_grad_(True).grad = torch.ones_like(weights)
    few = Field(module, field.inputs[:4], field.labels[:4], 10)
    states = numpy_state(), torch.get_rng_state().tolist()
    try:
        for name in FAST[library]:
            few.by(library, name)
        assert module.training and all(part.training for part in module.modules())
        assert all(weights.requires_grad and (weights.grad == 1).all() for weights in module.parameters())
        assert (numpy_state(), torch.get_rng_state().tolist()) == states
    finally:
        for weights in module.parameters():
            weights.requires_grad_(False).grad = None
        module.eval()
    shown = capfd.readouterr()
    assert not shown.err and not shown.out, "ART's progress bars are off"


class TestFaults:
    """One test for each known fault that is worked around; a fault that is fixed fails here, and the remedy may go."""

    def test_foolbox_cannot_be_imported_without_git(self) -> None:
        environment = {**os.environ, "PATH": "/nonexistent"}
        environment.pop("GIT_PYTHON_REFRESH", None)
        alone = subprocess.run([sys.executable, "-c", "import foolbox"], env=environment, capture_output=True)
        ours = "import portcullis.robustness.backends.foolbox_attacks"
        worked_around = subprocess.run([sys.executable, "-c", ours], env=environment, capture_output=True)
        assert alone.returncode != 0 and b"git" in alone.stderr
        assert worked_around.returncode == 0, worked_around.stderr.decode()

    def test_art_does_not_declare_packaging(self) -> None:
        extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        assert any(it.startswith("packaging") for it in extras["optional-dependencies"]["art"])

    def test_art_draws_from_numpys_global_generator(self, field: Field) -> None:
        classifier = PyTorchClassifier(
            field.target.scaled(), loss=torch.nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10,
            device_type="cpu",
        )  # fmt: skip
        attack = evasion.ProjectedGradientDescent(classifier, eps=0.1, max_iter=1, num_random_init=1, verbose=False)
        with art_attacks.numpy_generator(0):
            state = numpy_state()
            attack.generate(field.inputs[:2].numpy(), y=field.labels[:2].numpy())
            assert numpy_state() != state

    def test_art_shows_progress_unless_told_not_to(self, field: Field, capfd: pytest.CaptureFixture) -> None:
        classifier = PyTorchClassifier(
            field.target.scaled(), loss=torch.nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10,
            device_type="cpu",
        )  # fmt: skip
        evasion.DeepFool(classifier, max_iter=1).generate(field.inputs[:2].numpy())
        assert "DeepFool" in capfd.readouterr().err

    def test_arts_autoattack_lacks_the_targeted_attacks(self, field: Field) -> None:
        names = set(FAST["art"])
        assert names == set(backends.find_backend("art")(field.target, SETTINGS))

    def test_torchattacks_deepfool_stops_short_of_the_boundary(self, field: Field) -> None:
        with reproducible(0, CPU), untouched(field.target.module):
            found = torchattacks.DeepFool(field.target.module, steps=20)(field.inputs, field.labels)
        assert correct(field.target.module, found, field.labels).float().mean() > 0.1
        own = native.deepfool(field.target.module, field.inputs, field.labels, steps=20, overshoot=0.02, classes=9)
        assert not correct(field.target.module, own, field.labels).any()

    def test_torchattacks_cw_takes_the_other_logits_to_be_positive(self) -> None:
        logits, labels = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([0])
        attack = torchattacks.CW(torch.nn.Linear(1, 1))
        assert float(attack.f(logits, labels)) == 0, "it calls a margin of 1 none at all"
        assert float(torchattacks_attacks._margin_above_zero(logits, labels)) == 1

    @pytest.mark.parametrize("classes", [2, 3])
    def test_autoattack_crashes_on_few_classes_and_on_what_is_no_image(self, classes: int) -> None:
        with reproducible(3, CPU):
            inputs, rule = torch.rand(60, 6), torch.randn(6, classes)
            labels = ((inputs - 0.5) @ rule).argmax(dim=1)
            module = torch.nn.Sequential(torch.nn.Linear(6, classes))
            with torch.no_grad():
                module[0].weight.copy_(20 * rule.T)
                module[0].bias.copy_(-10 * rule.sum(dim=0))
        module.eval().requires_grad_(requires_grad=False)
        flat = Field(module, inputs, labels, classes)
        with pytest.raises((IndexError, RuntimeError, ValueError)), untouched(module), reproducible(0, CPU):
            torchattacks.AutoAttack(module, eps=0.1, n_classes=classes, seed=0)(flat.inputs, flat.labels)
        worked_around = flat.broken(backends.find_backend("torchattacks")(flat.target, SETTINGS)["autoattack"])
        own = flat.broken(planned_attacks(flat.target, SETTINGS)["apgd"])
        assert own.any() and not own.all() and int(worked_around.sum()) == int(own.sum())

    def test_autoattack_runs_the_references_steps(self, field: Field, monkeypatch) -> None:
        """Ten classes and 100 steps, each part on what the ones before left; Square's 5000 queries are only counted."""
        seen: list[tuple[str, dict[str, object], int]] = []

        def part(name: str):
            class Part:
                def __init__(self, network, **options) -> None:
                    self.options = options

                def __call__(self, inputs, labels):
                    seen.append((name, self.options, len(inputs)))
                    moved = inputs.clone()
                    # The first row is broken by anything, the second only out of the ball, where it does not count.
                    moved[0] = 1 - moved[0]
                    return moved

            return Part

        for name in ("APGD", "APGDT", "FAB", "Square"):
            monkeypatch.setattr(torchattacks, name, part(name))
        field.broken(backends.find_backend("torchattacks")(field.target, SETTINGS)["autoattack"])
        assert [it[0] for it in seen] == ["APGD", "APGDT", "FAB", "Square"]
        assert [it[1].get("steps") for it in seen] == [100, 100, 100, None] and seen[3][1]["n_queries"] == 5000
        assert [it[1].get("n_classes") for it in seen] == [None, 10, 10, None]
        assert {it[2] for it in seen} == {len(field.labels)}, "what lies out of the ball is not broken"


class TestPlan:
    def test_adds_the_libraries_that_it_names(self, field: Field) -> None:
        settings = dataclasses.replace(SETTINGS, libraries="art,foolbox")
        plan = planned_attacks(field.target, settings)
        assert list(plan)[:6] == ["fgsm", "pgd", "deepfool", "ddn", "apgd", "cw"]
        assert [name for name in plan if "_" in name] == [
            f"{library}_{name}" for library in ("art", "foolbox") for name in FAST[library]
        ]

    def test_what_a_library_alone_finds_counts(self, field: Field, monkeypatch) -> None:
        """The worst case over all attacks, row by row, verified here."""
        cheat = Attack(lambda clean, labels: 1 - clean, Ball("linf", 0.1))
        silver = Attack(lambda clean, labels: native.fgsm(
            field.target.module, clean, native.margin_loss(labels), epsilon=0.3
        ), Ball("linf", 0.3))  # fmt: skip
        monkeypatch.setattr(attacks, "find_backend", lambda name: lambda target, settings: {"a": cheat, "b": silver})
        rows = (digits()[0][:120], digits()[1][:120])
        settings = dataclasses.replace(SETTINGS, epsilon=0.05, l2_budget=0.1, cw_steps=5, apgd_steps=10, apgd_targets=1)
        figures = evaluate(plain_model(), *rows, dataclasses.replace(settings, libraries="foolbox")).figures
        assert figures["robust_accuracy_foolbox_a"] == figures["clean_accuracy"], "out of its ball nothing counts"
        others = [value for name, value in figures.items() if name.startswith("robust_accuracy_")]
        assert figures["robust_accuracy"] == figures["robust_accuracy_foolbox_b"] == min(others)
        assert sorted(others)[1] > min(others)

    def test_a_library_that_fails_proves_nothing(self, monkeypatch) -> None:
        def fail(clean, labels):
            raise RuntimeError("killed")

        failing = {"pgd": Attack(fail, Ball("linf", 0.1))}
        monkeypatch.setattr(attacks, "find_backend", lambda name: lambda target, settings: failing)
        settings = dataclasses.replace(SETTINGS, libraries="art", cw_steps=5, apgd_steps=10, apgd_targets=1)
        with pytest.raises(InconclusiveError, match="could not be attacked: RuntimeError: killed"):
            evaluate(plain_model(), digits()[0][:120], digits()[1][:120], settings)

    def test_refuses_a_library_that_there_is_not(self) -> None:
        with pytest.raises(ConfigError, match="no library 'os'"):
            backends.find_backend("os")

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_says_what_installs_a_library_that_is_missing(self, library: str, monkeypatch) -> None:
        name = f"portcullis.robustness.backends.{library}_attacks"
        monkeypatch.setitem(sys.modules, "art.attacks" if library == "art" else library, None)
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(MissingDependencyError, match=r"pip install 'kfp-portcullis\["):
            backends.find_backend(library)
