"""`scan_model`: everything that is not plainly a file of tensors is refused, and tensor files are not."""

import io
import json
import os
import zipfile

import hostile_models as hostile
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.errors import DataError, ModelError
from portcullis.supply_chain import scan
from portcullis.supply_chain.pickled import read_pickle
from portcullis.supply_chain.scan import scan_model


def judge(data: bytes, name: str = "") -> dict:
    """Judge bytes in this process; `scan_model` does the same in a child."""
    with io.FileIO(os.memfd_create("model"), "r+b") as stream:
        stream.write(data)
        return scan.scan_files(stream, names=[name])[0]


@pytest.mark.parametrize(("what", "data"), list(hostile.pickles()), ids=lambda it: it if isinstance(it, str) else "")
def test_a_pickle_that_does_more_than_describe_tensors_is_refused(what, data):
    with pytest.raises(ModelError):
        read_pickle(data)
    assert judge(hostile.archive(data))["refused"], what
    assert judge(data)["refused"], what


@pytest.mark.parametrize(("what", "data"), list(hostile.archives()), ids=lambda it: it if isinstance(it, str) else "")
def test_an_archive_that_is_not_what_torch_saves_is_refused(what, data):
    assert judge(data)["refused"], what


@pytest.mark.parametrize(("what", "data"), list(hostile.headers()), ids=lambda it: it if isinstance(it, str) else "")
def test_a_file_whose_header_does_not_fit_is_refused(what, data):
    assert judge(data)["refused"], what


@pytest.mark.parametrize(("what", "data"), list(hostile.polyglots()), ids=lambda it: it if isinstance(it, str) else "")
def test_a_file_that_is_of_another_format_as_well_is_refused_for_that(what, data):
    refused = judge(data)["refused"]
    assert refused.endswith("as well") or refused == "the file does not begin as torch.save begins it", what


def test_what_pytorch_reads_of_an_archive_with_two_ends_is_hidden_from_zipfile():
    torch = pytest.importorskip("torch")
    data = hostile.two_ends()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert b"system" not in archive.read("model/data.pkl")
    assert b"system" in torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")


@pytest.mark.parametrize("tensors", range(1, 40))
def test_safetensors_are_allowed_whatever_their_length_begins_with(tensors):
    """The length's first byte may be any multiple of 8, also the one that pickles begin with."""
    seen = set()
    for letters in range(1, 60, 3):
        data = safetensors.numpy.save({"w" * letters + str(it): np.zeros(3, np.float32) for it in range(tensors)})
        seen.add(data[0])
        assert judge(data)["refused"] == "", data[0]
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("format_", "data", "elements"),
    [("torch", hostile.BENIGN, 12), ("safetensors", hostile.SAFETENSORS, 6), ("gguf", hostile.GGUF, 8)],
)
def test_what_the_hostile_files_were_made_of_is_allowed(format_, data, elements):
    assert judge(data) == {"path": "", "format": format_, "tensors": 1, "elements": elements, "refused": ""}


def numpy_files() -> dict[str, bytes]:
    made = {}
    for name, write in {
        "array.npy": lambda to: np.save(to, np.arange(6.0).reshape(2, 3)),
        "arrays.npz": lambda to: np.savez(to, x=np.ones((3, 4)), y=np.arange(3)),
        "packed.npz": lambda to: np.savez_compressed(to, x=np.ones((300, 4))),
    }.items():
        stream = io.BytesIO()
        write(stream)
        made[name] = stream.getvalue()
    return made


@pytest.mark.parametrize(("name", "data"), numpy_files().items())
def test_arrays_of_numbers_are_allowed(name, data):
    assert judge(data)["refused"] == ""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("checkpoints")
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    odd = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "view": torch.ones(4, 4)[1:, ::2],
        "size": torch.Size([1, 2]),
        "dtype": torch.float32,
        "empty": torch.ones(0),
    }
    checkpoint = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5}
    torch.save(network.state_dict(), folder / "state.pt")
    torch.save(network.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(checkpoint, folder / "checkpoint.pt")
    torch.save(odd, folder / "odd.pt")
    return folder


def test_what_torch_saves_of_tensors_is_allowed(checkpoints):
    found = {entry.path: entry for entry in scan_model(checkpoints)}
    assert {name: entry.refused for name, entry in found.items()} == dict.fromkeys(found, "")
    assert {name: entry.tensors for name, entry in found.items()} == {
        "checkpoint.pt": 9 + 6 * 3,
        "legacy.pt": 9,
        "odd.pt": 5,
        "state.pt": 9,
    }


PT2 = ("models/model.json", "data/weights/model_weights_config.json", "data/sample_inputs/model.pt", "archive_format")


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("program.pt2", [f"program/{member}" for member in PT2], "`portcullis convert` makes a model of it"),
        ("program.pt2", [f"program/{member}" for member in PT2[:3]], "a member that torch.save does not write"),
        ("estimator.skops", ["schema.json"], "a member that torch.save does not write"),
        ("estimator.skops", ["schema.json", "140.npy"], "a member that torch.save does not write"),
    ],
)
def test_exported_programs_and_estimators_are_refused(tmp_path, name, members, message):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in members:
            archive.writestr(member, b"{}")
    (found,) = scan_model(tmp_path / name)
    assert message in found.refused


def test_a_network_in_onnx_is_refused(tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x04\x0a\x00x")
    (found,) = scan_model(tmp_path / "network.onnx")
    assert found.refused.startswith("it is a program")


@pytest.mark.parametrize("data", [b"\x08", b"\x08\x08", b"\x08\x00\x12", b"\x08\x20\x12"])
def test_what_only_begins_like_onnx_is_no_file_of_tensors(tmp_path, data):
    (tmp_path / "network.onnx").write_bytes(data)
    (found,) = scan_model(tmp_path / "network.onnx")
    assert found.refused == "it is no file of tensors"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_whole_modules_and_torchscript_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 2)
    torch.save(network, tmp_path / "module.pt")
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    torch.save({"rows": np.ones(3)}, tmp_path / "numpy.pt")
    assert all(entry.refused for entry in scan_model(tmp_path))


def test_what_is_allowed_loads_without_running_code(checkpoints, tmp_path):
    """PyTorch's own restricted loader takes whatever the scan lets pass."""
    torch = pytest.importorskip("torch")
    (tmp_path / "made.pt").write_bytes(hostile.BENIGN)
    for path in (*checkpoints.iterdir(), tmp_path / "made.pt"):
        torch.load(path, weights_only=True)


def test_a_whole_folder_is_judged_in_a_child_and_one_file_refuses_it(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(hostile.SAFETENSORS)
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    (tmp_path / "model.bin").write_bytes(hostile.archive(hostile.call("os system")))
    found = {entry.path: entry for entry in scan_model(tmp_path)}
    assert list(found) == ["config.json", "model.bin", "weights/model.safetensors"]
    assert not found["config.json"].refused and not found["weights/model.safetensors"].refused
    assert "os.system" in found["model.bin"].refused


@pytest.mark.parametrize("key", sorted(scan._PROGRAMS))
def test_a_description_that_names_a_program_is_refused_at_any_depth(key):
    for document in ({key: {"AutoModel": "modeling.py"}}, {"layers": [{"x": 1}, {"config": [[{key: "Lambda"}]]}]}):
        assert key in judge(json.dumps(document).encode(), "config.json")["refused"]


def test_a_description_alone_is_judged_as_beside_tensors(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden": 3}')
    (found,) = scan_model(tmp_path / "config.json")
    assert (found.path, found.format, found.refused) == ("config.json", "json", "")


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b"{", b'{"a": NaN}', b'{"a": "\xff"}'])
def test_a_description_that_is_malformed_is_refused(data):
    assert judge(data, "config.json")["refused"]


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError):
        scan_model(tmp_path / "missing")
    with pytest.raises(DataError):
        scan_model(tmp_path)  # empty
    (tmp_path / "target").write_bytes(hostile.SAFETENSORS)
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(DataError):
        scan_model(tmp_path)
    with pytest.raises(DataError):
        scan_model(tmp_path / "link")


def test_a_name_that_is_shown_cannot_forge_lines(tmp_path):
    data = hostile.archive(hostile.call("os\x1b[31m system"))
    assert judge(data)["refused"].isprintable()


SEEDS = [hostile.BENIGN, hostile.SAFETENSORS, hostile.GGUF, hostile.state(), *numpy_files().values()]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_altered_files_are_judged_and_nothing_else_happens(data):
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed) - 1))
        if data.draw(st.booleans()):
            seed[at] = data.draw(st.integers(0, 255))
        else:
            del seed[at : at + data.draw(st.integers(1, 9))]
        if not seed:
            break
    assert isinstance(judge(bytes(seed))["refused"], str)


def test_the_child_reads_no_file_but_the_model(tmp_path, monkeypatch):
    """The scan needs nothing that a locked process may not have: no import, no file, on any branch."""
    for index, (_, data) in enumerate([*hostile.archives(), *hostile.headers(), *hostile.polyglots()]):
        (tmp_path / f"{index:03}").write_bytes(data or b"\0")
    (tmp_path / "sound.npz").write_bytes(numpy_files()["packed.npz"])
    found = {entry.path: entry.refused for entry in scan_model(tmp_path)}
    assert found.pop("sound.npz") == ""
    assert all(found.values())
    here = {
        f"{index:03}": judge(data or b"\0")["refused"]
        for index, (_, data) in enumerate([*hostile.archives(), *hostile.headers(), *hostile.polyglots()])
    }
    assert found == here
