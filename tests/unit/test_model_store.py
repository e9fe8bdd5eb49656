"""Models at rest and in memory: what is written, what is read, and everything that is refused."""

import json
import os
import struct
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from portcullis.digest import canonical_json
from portcullis.errors import DataError, ModelError
from portcullis.models import architectures
from portcullis.models.digits_cnn import DigitsCNN
from portcullis.models.store import (
    MAX_SPEC_BYTES,
    SPEC_FILE,
    WEIGHTS_FILE,
    LoadedModel,
    ModelSpec,
    build_module,
    load_model,
    load_model_files,
    model_files,
    save_model,
)

SPEC = ModelSpec("digits-cnn", {"width": 2, "hidden": 3}, (1, 4, 4), 0, 16, ("no", "yes"))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    torch.manual_seed(1)
    return model_files(build_module(SPEC), SPEC)


def document(**changes: object) -> bytes:
    """Return model.json with some top-level values replaced; `...` leaves one out."""
    value = json.loads(SPEC.to_json()) | changes
    return canonical_json({name: it for name, it in value.items() if it is not ...})


def described(**changes: object) -> bytes:
    return document(input={"shape": [1, 4, 4], "low": 0, "high": 16} | changes)


class TestSpec:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"{}", id="no fields"),
            pytest.param(b"[]", id="a list"),
            pytest.param(b'{"format":"\xff"}', id="not UTF-8"),
            pytest.param(SPEC.to_json() + b"\n", id="trailing newline"),
            pytest.param(SPEC.to_json().replace(b":", b": ", 1), id="not canonical"),
            pytest.param(b" " * (MAX_SPEC_BYTES + 1), id="too large"),
            pytest.param(b"[" * 100_000, id="deeply nested"),
            pytest.param(document(format="portcullis-model/v2"), id="another format"),
            pytest.param(document(extra=1), id="an unknown field"),
            pytest.param(document(labels=...), id="a missing field"),
            pytest.param(document(architecture="os.system"), id="an import path"),
            pytest.param(document(architecture="portcullis.models.digits_cnn:DigitsCNN"), id="an entry point's value"),
            pytest.param(document(architecture=7), id="architecture is no text"),
            pytest.param(document(architecture=""), id="no architecture"),
            pytest.param(document(options=[]), id="options are a list"),
            pytest.param(document(options={"a b": 1}), id="option with a blank"),
            pytest.param(document(options={"class": 1}), id="option is a keyword"),
            pytest.param(document(options={"width": None}), id="option is null"),
            pytest.param(document(options={"width": [1]}), id="option is a list"),
            pytest.param(document(options={"width": "\n"}), id="option is not printable"),
            pytest.param(document(input=[]), id="input is a list"),
            pytest.param(described(mean=0), id="unknown input field"),
            pytest.param(described(shape=16), id="shape is a number"),
            pytest.param(described(shape=[]), id="empty shape"),
            pytest.param(described(shape=[1, 0, 4]), id="size zero"),
            pytest.param(described(shape=[1, -4, -4]), id="negative sizes"),
            pytest.param(described(shape=[True, 4, 4]), id="boolean size"),
            pytest.param(described(shape=[1, 4.5, 4]), id="broken size"),
            pytest.param(described(shape=[1, 1 << 20, 1 << 20]), id="too many elements"),
            pytest.param(described(low="0"), id="bound is text"),
            pytest.param(described(low=None), id="bound is null"),
            pytest.param(described(low=False), id="bound is a boolean"),
            pytest.param(described(low=16), id="bounds are equal"),
            pytest.param(described(low=16 - 1e-9), id="bounds are equal in float32"),
            pytest.param(described(low=17), id="bounds are reversed"),
            pytest.param(described(high=1e300), id="bound too large"),
            pytest.param(document(labels="no"), id="labels are text"),
            pytest.param(document(labels=["no"]), id="one label"),
            pytest.param(document(labels=["no", "no"]), id="a label twice"),
            pytest.param(document(labels=["no", ""]), id="empty label"),
            pytest.param(document(labels=["no", "y\u0000"]), id="label is not printable"),
            pytest.param(document(labels=["no", 1]), id="label is a number"),
            pytest.param(document(labels=["no", ["yes"]]), id="label is a list"),
            pytest.param(document(labels=[str(n) for n in range(1001)]), id="too many labels"),
        ],
    )
    def test_refuses(self, data: bytes) -> None:
        with pytest.raises(ModelError):
            ModelSpec.from_json(data)

    def test_refuses_numbers_that_json_cannot_hold(self) -> None:
        for bad in (float("nan"), float("inf"), 2**53, 2.0**53):
            with pytest.raises(ModelError):
                ModelSpec("digits-cnn", {"width": bad}, (1, 4, 4), 0, 16, ("no", "yes"))
            with pytest.raises(ModelError):
                ModelSpec("digits-cnn", {}, (1, 4, 4), 0, bad, ("no", "yes"))

    def test_whole_options_are_integers_however_they_were_written(self) -> None:
        spec = ModelSpec("digits-cnn", {"width": 2.0}, (1, 4, 4), 0, 16, ("no", "yes"))
        assert type(spec.options["width"]) is int
        assert build_module(spec)

    def test_is_described_as_documented(self) -> None:
        assert json.loads(SPEC.to_json()) == {
            "format": "portcullis-model/v1",
            "architecture": "digits-cnn",
            "options": {"width": 2, "hidden": 3},
            "input": {"shape": [1, 4, 4], "low": 0, "high": 16},
            "labels": ["no", "yes"],
        }


class TestScale:
    def test_maps_the_bounds_to_zero_and_one_and_shapes_rows(self) -> None:
        values = np.array([np.arange(16), np.full(16, 16)], dtype=np.float64)
        scaled = SPEC.scale(values)
        assert scaled.dtype == np.float32 and scaled.shape == (2, 1, 4, 4)
        np.testing.assert_array_equal(scaled.reshape(2, 16), (values / 16).astype(np.float32))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
    def test_takes_every_numeric_type(self, dtype: type) -> None:
        assert SPEC.scale(np.full((1, 16), 16, dtype=dtype)).max() == 1

    def test_judges_float32_values_against_bounds_that_float32_cannot_hold(self) -> None:
        spec = ModelSpec("digits-cnn", {}, (1,), 0.1, 0.7, ("no", "yes"))
        rows = np.array([[0.1], [0.7]])
        for values in (rows, rows.astype(np.float32)):
            np.testing.assert_array_equal(spec.scale(values), [[0], [1]])

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([[0.0] * 16], id="a list"),
            pytest.param(np.zeros((0, 16)), id="no row"),
            pytest.param(np.zeros(16), id="one dimension"),
            pytest.param(np.zeros((1, 4, 4)), id="three dimensions"),
            pytest.param(np.zeros((1, 15)), id="a feature too few"),
            pytest.param(np.zeros((1, 16), dtype=bool), id="booleans"),
            pytest.param(np.full((1, 16), "1"), id="text"),
            pytest.param(np.full((1, 16), None), id="objects"),
            pytest.param(np.zeros((1, 16), dtype=complex), id="complex"),
            pytest.param(np.full((1, 16), np.nan), id="NaN"),
            pytest.param(np.full((1, 16), np.inf), id="infinity"),
            pytest.param(np.full((1, 16), -np.inf), id="minus infinity"),
            pytest.param(np.full((1, 16), 1e300), id="beyond float32"),
            pytest.param(np.full((1, 16), 16.001), id="above"),
            pytest.param(np.full((1, 16), -0.001), id="below"),
        ],
    )
    def test_refuses(self, values: np.ndarray) -> None:
        with pytest.raises(DataError):
            SPEC.scale(values)

    def test_names_the_first_bad_value(self) -> None:
        values = np.zeros((3, 16))
        values[1, 5] = np.nan
        with pytest.raises(DataError, match="row 1, feature 5 is nan"):
            SPEC.scale(values)


class TestLoadedModel:
    def test_is_frozen_and_predicts_what_the_network_says(self, files: dict[str, bytes]) -> None:
        model = load_model_files(files)
        assert not model.module.training and not any(p.requires_grad for p in model.module.parameters())
        values = np.linspace(0, 16, 5 * 16).reshape(5, 16)
        logits = model.predict_logits(values)
        assert logits.dtype == np.float32 and logits.shape == (5, 2)
        torch.testing.assert_close(torch.from_numpy(logits), model.module(model.preprocess(values)))
        np.testing.assert_array_equal(model.predict(values), logits.argmax(axis=1))
        alone = np.concatenate([model.predict_logits(row[None]) for row in values])
        np.testing.assert_allclose(alone, logits, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "returned",
        [
            pytest.param(lambda n: torch.full((n, 2), torch.nan), id="NaN"),
            pytest.param(lambda n: torch.full((n, 2), torch.inf), id="infinite"),
            pytest.param(lambda n: torch.zeros(n, 3), id="too many logits"),
            pytest.param(lambda n: torch.zeros(n), id="one dimension"),
            pytest.param(lambda n: torch.zeros(n, 2, dtype=torch.float64), id="float64"),
            pytest.param(lambda n: torch.zeros(n, 2, dtype=torch.int64), id="integers"),
            pytest.param(lambda n: None, id="nothing"),
        ],
    )
    def test_refuses_what_is_not_finite_logits(self, returned) -> None:
        class Broken(torch.nn.Module):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return returned(len(inputs))

        model = LoadedModel(SPEC, Broken())
        with pytest.raises(ModelError):
            model.predict(np.zeros((3, 16)))


class TestFiles:
    def test_round_trip(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        model = load_model_files(files)
        save_model(tmp_path / "model", model.module, model.spec)
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [SPEC_FILE, WEIGHTS_FILE]
        again = load_model(tmp_path / "model")
        assert again.spec == model.spec
        for name, weights in model.module.state_dict().items():
            assert torch.equal(again.module.state_dict()[name], weights)
        assert model_files(again.module, again.spec) == files

    def test_replaces_a_model_and_leaves_it_when_the_new_one_is_refused(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        save_model(target, build_module(SPEC), SPEC)
        before = {path.name: path.read_bytes() for path in target.iterdir()}
        broken = build_module(SPEC)
        with torch.no_grad():
            broken.classifier[0].weight[0, 0] = torch.nan
        with pytest.raises(ModelError, match="NaN"):
            save_model(target, broken, SPEC)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert list(tmp_path.iterdir()) == [target]
        save_model(target, build_module(SPEC), SPEC)
        assert (target / WEIGHTS_FILE).read_bytes() != before[WEIGHTS_FILE]

    def test_refuses_to_save_what_the_description_does_not_say(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="the architecture needs"):
            save_model(tmp_path / "model", DigitsCNN((1, 8, 8), 2, width=2, hidden=3), SPEC)
        assert not (tmp_path / "model").exists()

    def test_neither_building_nor_loading_draws_from_the_global_generator(self, files: dict[str, bytes]) -> None:
        state = torch.get_rng_state()
        load_model_files(files)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda root: (root / SPEC_FILE).unlink(), id="no description"),
            pytest.param(lambda root: (root / WEIGHTS_FILE).unlink(), id="no weights"),
            pytest.param(lambda root: (root / "model.pkl").write_bytes(b""), id="a third file"),
            pytest.param(lambda root: (root / "code").mkdir(), id="a folder"),
            pytest.param(
                lambda root: (
                    (root / WEIGHTS_FILE).rename(root.parent / "w"),
                    (root / WEIGHTS_FILE).symlink_to("../w"),
                ),
                id="a link",
            ),
            pytest.param(
                lambda root: ((root / SPEC_FILE).unlink(), (root / SPEC_FILE).mkdir()), id="folder for a file"
            ),
            pytest.param(lambda root: ((root / SPEC_FILE).unlink(), os.mkfifo(root / SPEC_FILE)), id="a pipe"),
            pytest.param(lambda root: (root / SPEC_FILE).write_bytes(b" " * (MAX_SPEC_BYTES + 1)), id="too large"),
            pytest.param(lambda root: root.rename(root.parent / "gone"), id="no directory"),
        ],
    )
    def test_refuses_another_directory(self, tmp_path: Path, files: dict[str, bytes], damage) -> None:
        root = tmp_path / "model"
        root.mkdir()
        for name, data in files.items():
            (root / name).write_bytes(data)
        load_model(root)
        damage(root)
        with pytest.raises(ModelError):
            load_model(root)


def header(value: object, body: bytes = b"") -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + body


class TestWeights:
    def altered(self, files: dict[str, bytes], change) -> dict[str, bytes]:
        weights = load(files[WEIGHTS_FILE])
        change(weights)
        return files | {WEIGHTS_FILE: save(weights)}

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda w: w.popitem(), id="one tensor less"),
            pytest.param(lambda w: w.clear(), id="no tensor"),
            pytest.param(lambda w: w.update(more=torch.zeros(1)), id="one more"),
            pytest.param(lambda w: w.update({"classifier.2.bias ": w.pop("classifier.2.bias")}), id="another name"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(3)}), id="another shape"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(1, 2)}), id="another rank"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(0)}), id="empty"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(2).double()}), id="float64"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(2).half()}), id="float16"),
            pytest.param(lambda w: w.update({"classifier.2.bias": torch.zeros(2).int()}), id="int32"),
            pytest.param(lambda w: w["classifier.2.bias"].fill_(torch.nan), id="NaN"),
            pytest.param(lambda w: w["classifier.2.weight"][1].fill_(torch.inf), id="infinity"),
        ],
    )
    def test_refuses_other_tensors(self, files: dict[str, bytes], change) -> None:
        with pytest.raises(ModelError):
            load_model_files(self.altered(files, change))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\x80\x04.", id="a pickle"),
            pytest.param(b"PK\x03\x04" + bytes(64), id="a zip"),
            pytest.param(struct.pack("<Q", 2**63), id="header length beyond the file"),
            pytest.param(struct.pack("<Q", 1 << 40) + bytes(100), id="huge header"),
            pytest.param(header([]), id="header is a list"),
            pytest.param(header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}), id="huge shape"),
            pytest.param(
                header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), id="negative"
            ),
            pytest.param(header({"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), id="type"),
            pytest.param(header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), id="no data"),
            pytest.param(header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)), id="a tail"),
        ],
    )
    def test_refuses_what_is_not_safetensors(self, files: dict[str, bytes], data: bytes) -> None:
        with pytest.raises(ModelError):
            load_model_files(files | {WEIGHTS_FILE: data})

    def test_refuses_other_files(self, files: dict[str, bytes]) -> None:
        for bad in ({}, {SPEC_FILE: files[SPEC_FILE]}, files | {"weights.pt": b""}):
            with pytest.raises(ModelError, match="exactly"):
                load_model_files(bad)


class TestArchitectures:
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({"depth": 3}, id="unknown"),
            pytest.param({"width": 0}, id="zero"),
            pytest.param({"width": 10**9}, id="huge"),
            pytest.param({"width": 2.5}, id="not whole"),
            pytest.param({"width": "2"}, id="text"),
            pytest.param({"width": True}, id="boolean"),
            pytest.param({"classes": 2}, id="already given"),
            pytest.param({"self": 2}, id="self"),
        ],
    )
    def test_refuses_options(self, files: dict[str, bytes], options: dict[str, object]) -> None:
        with pytest.raises(ModelError):
            load_model_files(files | {SPEC_FILE: document(options=options)})

    @pytest.mark.parametrize("shape", [[16], [4, 4], [1, 1, 4], [1, 4, 1000], [600, 4, 4], [1, 1, 4, 4]])
    def test_refuses_shapes(self, files: dict[str, bytes], shape: list[int]) -> None:
        with pytest.raises(ModelError):
            load_model_files(files | {SPEC_FILE: described(shape=shape)})

    def test_takes_no_memory_for_a_network_that_is_too_large(self, files: dict[str, bytes]) -> None:
        large = document(
            options={"width": 512, "hidden": 4096}, input={"shape": [1, 256, 256], "low": 0, "high": 16}
        )  # 275 GB
        with pytest.raises(ModelError, match="the network takes"):
            load_model_files(files | {SPEC_FILE: large})

    def test_unknown_names_are_refused_with_the_known_ones(self, files: dict[str, bytes]) -> None:
        with pytest.raises(ModelError, match="installed: digits-cnn"):
            load_model_files(files | {SPEC_FILE: document(architecture="resnet")})

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param(["portcullis.models.digits_cnn:DigitsCNN", "collections:OrderedDict"], id="two of one name"),
            pytest.param(["collections:OrderedDict"], id="no module class"),
            pytest.param(["math:pi"], id="no class"),
            pytest.param(["portcullis.models.digits_cnn:Missing"], id="no such attribute"),
            pytest.param(["portcullis.missing:Missing"], id="no such module"),
        ],
    )
    def test_refuses_registrations(self, monkeypatch: pytest.MonkeyPatch, values: list[str]) -> None:
        found = EntryPoints(EntryPoint("digits-cnn", value, architectures.GROUP) for value in values)
        monkeypatch.setattr(architectures, "entry_points", lambda group: found.select(group=group))
        with pytest.raises(ModelError):
            build_module(SPEC)

    def test_refuses_state_outside_the_state_dict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Hidden(DigitsCNN):
            def __init__(self, **options: object) -> None:
                super().__init__(**options)
                self.register_buffer("shift", torch.zeros(1), persistent=False)

        monkeypatch.setattr("portcullis.models.store.find_architecture", lambda name: Hidden)
        with pytest.raises(ModelError, match="outside its state_dict"):
            model_files(build_module(SPEC), SPEC)

    def test_default_network_has_room_for_a_watermark(self) -> None:
        module = DigitsCNN((1, 8, 8), 10)
        sizes = [p.numel() for p in module.parameters() if p.dim() >= 2 and p.numel() >= 1024]
        assert sum(sizes) >= 50_000
        assert sum(p.numel() for p in module.parameters()) == 60_522


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("torch", "from portcullis.models.store import load_model_files; load_model_files({SPEC!r})"),
        ("torch", "import portcullis.training.adversarial"),
        ("torch", "import portcullis.robustness.evaluate"),
        ("torchattacks", "import portcullis.robustness.evaluate"),
    ],
)
def test_a_missing_package_is_named_at_the_point_of_use(files: dict[str, bytes], missing: str, use: str) -> None:
    """A fresh interpreter in which the package cannot be imported."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import portcullis.models.store, portcullis.training.settings, portcullis.robustness.settings\n"
        "from portcullis.errors import MissingDependencyError\n"
        f"try:\n    {use.replace('{SPEC!r}', repr(files))}\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kfp-portcullis[torch]'" in done.stdout, done.stderr
