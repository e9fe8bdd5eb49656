"""Checkpoints: a training that was interrupted goes on to the very same weights, and from nothing but its own file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from portcullis.errors import SealError, UsageError
from portcullis.models.digits_cnn import DigitsCNN
from portcullis.models.store import ModelSpec
from portcullis.training.adversarial import train
from portcullis.training.checkpoint import Checkpoints
from portcullis.training.settings import TrainingSettings

SPEC = ModelSpec("digits-cnn", {"width": 4, "hidden": 16}, (1, 4, 4), 0, 16, ("dark", "bright"))
KEY, SUBJECT = bytes(range(32)), "5" * 64


class Drawing(DigitsCNN):
    """A network that draws numbers while it learns, and keeps what is no parameter: dropout, batch statistics."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drawn = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout(0.2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.drawn(images))


class Interrupted(BaseException):
    """What ends a process: no error that anything could handle."""


class Ending(Checkpoints):
    """Checkpoints of a process that ends while it writes its third one, leaving half of it."""

    def write(self, subject: str, state: Any, tensors: Any) -> None:
        if state["epoch"] == 3:
            Path(self.folder, ".half").write_bytes(b"half")
            raise Interrupted
        super().write(subject, state, tensors)


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 110)
    return (generator.uniform(0, 8, (110, 16)) + 8 * labels[:, None]).clip(0, 16).astype(np.float32), labels


@pytest.mark.parametrize("method", ["trades2", "nfgsm", "plain"])
def test_a_resumed_training_gives_the_weights_of_one_that_was_not_interrupted(rows, tmp_path, monkeypatch, method):
    monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Drawing)
    settings = TrainingSettings(method=method, epochs=5, batch_size=32, held_out=0.3, epsilon=0.05, device="cpu")
    whole, figures = train(*rows, SPEC, settings)
    with pytest.raises(Interrupted):
        train(*rows, SPEC, settings, Ending(tmp_path, KEY))
    (left,) = tmp_path.glob("*.checkpoint")
    assert left.stat().st_mode & 0o777 == 0o600
    epochs = []
    monkeypatch.setattr(Checkpoints, "write", lambda _, __, state, ___: epochs.append(state["epoch"]))
    resumed, same = train(*rows, SPEC, settings, Checkpoints(tmp_path, KEY))
    assert epochs == [3, 4, 5]
    assert same == figures
    for (name, expected), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name
    assert not list(tmp_path.glob("*.checkpoint"))


def test_what_is_trained_otherwise_does_not_go_on_from_it(rows, tmp_path, monkeypatch):
    settings = {"method": "plain", "epochs": 4, "device": "cpu"}
    with pytest.raises(Interrupted):
        train(*rows, SPEC, TrainingSettings(**settings), Ending(tmp_path, KEY))
    features, labels = rows
    begun = []
    monkeypatch.setattr(Checkpoints, "write", lambda _, __, state, ___: begun.append(state["epoch"]))
    for data, spec, options in (
        ((features, labels), SPEC, {"seed": 1}),
        ((features, labels), SPEC, {"epochs": 5}),
        ((features, 1 - labels), SPEC, {}),
        ((features[::-1].copy(), labels), SPEC, {}),
        ((features, labels), ModelSpec("digits-cnn", {"width": 5}, (1, 4, 4), 0, 16, ("dark", "bright")), {}),
    ):
        begun.clear()
        train(*data, spec, TrainingSettings(**settings | options), Checkpoints(tmp_path, KEY))
        assert begun[0] == 1


@pytest.fixture
def written(tmp_path) -> Path:
    Checkpoints(tmp_path, KEY).write(SUBJECT, {"epoch": 1}, {"a": torch.ones(3), "step": torch.tensor(2.0)})
    return tmp_path / f"{SUBJECT}.checkpoint"


def test_reads_what_it_wrote(written):
    state, tensors = Checkpoints(written.parent, KEY).read(SUBJECT)
    assert state == {"epoch": 1}
    assert torch.equal(tensors["a"], torch.ones(3)) and tensors["step"] == 2


def test_there_may_be_none(tmp_path):
    assert Checkpoints(tmp_path / "missing", KEY).read(SUBJECT) is None


@pytest.mark.parametrize("place", [0, 31, 32, 35, 36, 40, 60, -1])
def test_refuses_a_checkpoint_of_which_a_byte_was_altered(written, place):
    data = bytearray(written.read_bytes())
    data[place] ^= 1
    written.write_bytes(data)
    with pytest.raises(SealError, match="delete it"):
        Checkpoints(written.parent, KEY).read(SUBJECT)


@pytest.mark.parametrize("kept", [0, 10, 32, 35, 36, 100])
def test_refuses_a_checkpoint_that_was_cut_short(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(SealError, match="delete it"):
        Checkpoints(written.parent, KEY).read(SUBJECT)


def test_refuses_a_checkpoint_under_another_key_or_name(written):
    with pytest.raises(SealError):
        Checkpoints(written.parent, bytes(32)).read(SUBJECT)
    other = "6" * 64
    written.rename(written.with_name(f"{other}.checkpoint"))
    with pytest.raises(SealError):
        Checkpoints(written.parent, KEY).read(other)


def test_refuses_what_is_no_file_no_key_and_no_name(tmp_path):
    (tmp_path / f"{SUBJECT}.checkpoint").mkdir()
    with pytest.raises(UsageError):
        Checkpoints(tmp_path, KEY).read(SUBJECT)
    with pytest.raises(UsageError, match="32 bytes"):
        Checkpoints(tmp_path, b"short")
    with pytest.raises(UsageError, match="SHA-256"):
        Checkpoints(tmp_path, KEY).read("../escaped")


def test_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write a checkpoint"):
        Checkpoints(tmp_path / "file", KEY).write(SUBJECT, {}, {"a": torch.ones(1)})


def test_the_folder_in_the_environment_must_be_absolute(monkeypatch):
    from portcullis.training import stage

    monkeypatch.setitem(os.environ, stage.CHECKPOINTS_ENV, "checkpoints")
    with pytest.raises(UsageError, match="absolute"):
        stage._checkpoints(None)
    monkeypatch.delitem(os.environ, stage.CHECKPOINTS_ENV)
    assert stage._checkpoints(None) is None
