"""Random access to sealed files is the same as to the plain bytes, and anything altered is refused when it is read."""

import io
import struct
from contextlib import contextmanager

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from portcullis.errors import ModelError, SealError, UsageError
from portcullis.models.encrypted import load_safetensors
from portcullis.models.pytorch import torch
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis.sealing.sealed import open_files, open_remote_files, seal_files
from portcullis.sealing.stream import HEADER_SIZE, TAG_SIZE, open_sealed, seal

DEK = bytes(range(32))
CONTEXT = {"model": "5f" * 32}
KEY = SealingPrivateKey.generate()
SEGMENT = 64
PLAIN = bytes(range(256)) * 3 + b"the end"


def sealed(plain, segment=SEGMENT):
    target = io.BytesIO()
    seal(io.BytesIO(plain), target, dek=DEK, context=CONTEXT, _segment_size=segment)
    return target.getvalue()


@contextmanager
def opened(data):
    with open_sealed(io.BytesIO(data), dek=DEK, context=CONTEXT) as file:
        yield file


class Trickle(io.BytesIO):
    """A store that gives what it is asked for in pieces."""

    def read(self, size=-1):
        return super().read(min(size, 7) if size >= 0 else size)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("seek"), st.integers(0, len(PLAIN) + 100), st.just(0)),
        st.tuples(st.just("seek"), st.integers(-50, 50), st.just(1)),
        st.tuples(st.just("seek"), st.integers(-len(PLAIN), 50), st.just(2)),
        st.tuples(st.just("read"), st.integers(0, 400)),
        st.tuples(st.just("read"), st.just(-1)),
        st.tuples(st.just("readinto"), st.integers(0, 300)),
        st.tuples(st.just("tell")),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=80)
@given(
    operations=operations,
    segment=st.integers(1, 300),
    buffered=st.booleans(),
    store=st.sampled_from([io.BytesIO, Trickle]),
)
def test_a_sealed_file_is_read_and_sought_in_as_its_plain_bytes(operations, segment, buffered, store):
    with open_sealed(store(sealed(PLAIN, segment)), dek=DEK, context=CONTEXT) as file:
        ours, plain = (io.BufferedReader(file, 16) if buffered else file), io.BytesIO(PLAIN)
        for name, *arguments in operations:
            if name == "readinto":
                mine, theirs = bytearray(arguments[0]), bytearray(arguments[0])
                assert ours.readinto(mine) == plain.readinto(theirs)
                assert mine == theirs
                continue
            if name == "seek" and arguments[0] + (0, plain.tell(), len(PLAIN))[arguments[1]] < 0:
                with pytest.raises((ValueError, OSError)):
                    ours.seek(*arguments)
                return
            expected = getattr(plain, name)(*arguments)
            assert getattr(ours, name)(*arguments) == expected
        if buffered:
            ours.detach()


@settings(deadline=None, max_examples=100)
@given(position=st.integers(HEADER_SIZE, HEADER_SIZE + len(sealed(PLAIN)) - HEADER_SIZE - 1), flip=st.integers(1, 255))
def test_an_altered_segment_is_refused_where_it_is_read_and_the_others_are_not(position, flip):
    data = bytearray(sealed(PLAIN))
    data[position] ^= flip
    hit = (position - HEADER_SIZE) // (SEGMENT + TAG_SIZE)
    last = (len(data) - HEADER_SIZE - 1) // (SEGMENT + TAG_SIZE)
    if hit == last:
        with pytest.raises(SealError), opened(bytes(data)):
            pass
        return
    with opened(bytes(data)) as file:
        for index in range(last + 1):
            file.seek(index * SEGMENT)
            buffer = bytearray(SEGMENT)
            if index == hit:
                with pytest.raises(SealError):
                    file.readinto(buffer)
                assert buffer == bytes(SEGMENT), "nothing that is not authentic is left in the buffer"
            else:
                assert file.readinto(buffer) and buffer.startswith(PLAIN[index * SEGMENT : (index + 1) * SEGMENT])
        with pytest.raises(SealError):
            file.read_all()


class Failing(io.BytesIO):
    """A store that is gone once the file was opened; or one that gives more than was asked for."""

    gone = more = False

    def read(self, size=-1):
        if self.gone:
            raise OSError("connection lost")
        return super().read(size + 1 if self.more else size)


def test_a_store_that_fails_or_gives_too_much_is_refused():
    store = Failing(sealed(PLAIN))
    with open_sealed(store, dek=DEK, context=CONTEXT, name="s3://bucket/x") as file:
        store.gone = True
        with pytest.raises(SealError, match="cannot read s3://bucket/x"):
            file.read(10)
        store.gone, store.more = False, True
        file.seek(200)
        with pytest.raises(SealError, match="more than it was asked"):
            file.read(10)


DTYPES = [
    *(torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64),
]
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensor = st.builds(
    lambda dtype, shape, seed: (
        torch.tensor([(seed + i) % 2 for i in range(int(torch.tensor(shape).prod()) if shape else 1)])
        .to(dtype)
        .reshape(shape)
    ),
    st.sampled_from(DTYPES),
    shapes,
    st.integers(0, 9),
)


@settings(deadline=None, max_examples=60)
@given(tensors=st.dictionaries(st.text("abc.", min_size=1, max_size=4), tensor, min_size=1, max_size=5), data=st.data())
def test_tensors_are_loaded_as_they_were_saved(tensors, data):
    wanted = data.draw(st.none() | st.sets(st.sampled_from(sorted(tensors))))
    with opened(sealed(save(tensors), segment=100)) as file:
        loaded = load_safetensors(file, wanted)
    assert set(loaded) == (set(tensors) if wanted is None else wanted)
    for name, found in loaded.items():
        assert (found.dtype, found.shape) == (tensors[name].dtype, tensors[name].shape)
        raw = (it.reshape(-1).view(torch.uint8) for it in (found, tensors[name]))
        assert torch.equal(*raw) if found.numel() else True


def test_only_the_segments_of_the_tensors_asked_for_are_decrypted():
    tensors = {name: torch.full((1000,), index, dtype=torch.float32) for index, name in enumerate("abc")}
    data = bytearray(sealed(save(tensors), segment=512))
    data[HEADER_SIZE + 10 * (512 + TAG_SIZE)] ^= 1  # within b
    with opened(bytes(data)) as file:
        assert set(load_safetensors(file, ["a", "c"])) == {"a", "c"}
        with pytest.raises(SealError):
            load_safetensors(file)


SOUND = save({"w": torch.zeros(4)})


@pytest.mark.parametrize(
    ("plain", "names"),
    [
        (b"", None),
        (b"\x80\x05.", None),
        (SOUND[:-1], None),
        (SOUND + b"\0", None),
        (struct.pack("<Q", 1 << 40) + SOUND[8:], None),
        (SOUND.replace(b'"F32"', b'"F33"'), None),
        (SOUND.replace(b"[0,16]", b"[1,17]"), None),
        (SOUND, ["v"]),
    ],
)
def test_what_is_no_safetensors_file_is_refused(plain, names):
    with opened(sealed(plain)) as file, pytest.raises(ModelError):
        load_safetensors(file, names)


@pytest.fixture
def store(tmp_path):
    files = {"model.json": b"{}", "weights.safetensors": save({"w": torch.arange(300_000)})}
    seal_files(files, tmp_path / "sealed", recipients=[KEY.public_key()], context=CONTEXT)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "sealed"), "/bucket/sealed", recursive=True)
    yield memory
    memory.rm("/bucket", recursive=True)


NAMES = ("model.json", "weights.safetensors")


def test_tensors_are_loaded_straight_from_a_store(store, tmp_path):
    arguments = {"private_key": KEY, "context": CONTEXT, "names": NAMES}
    with (
        open_remote_files("memory://bucket/sealed", **arguments) as there,
        open_files(tmp_path / "sealed", **arguments) as here,
    ):
        assert torch.equal(load_safetensors(there[NAMES[1]])["w"], torch.arange(300_000))
        assert there[NAMES[0]].read() == here[NAMES[0]].read() == b"{}"
    for changes in (
        {"context": {"model": "other"}},
        {"names": NAMES[:1]},
        {"private_key": SealingPrivateKey.generate()},
    ):
        with pytest.raises(SealError), open_remote_files("memory://bucket/sealed", **{**arguments, **changes}):
            pass
    with pytest.raises(UsageError), open_remote_files("memory://bucket/nothing", **arguments):
        pass


@pytest.mark.parametrize("path", ["weights.safetensors.sealed", "model.json.sealed", "recipients.json"])
def test_what_is_altered_in_a_store_is_refused(store, path):
    data = bytearray(store.cat(f"/bucket/sealed/{path}"))
    data[-1] ^= 1
    store.pipe(f"/bucket/sealed/{path}", bytes(data))
    with (
        pytest.raises(SealError),
        open_remote_files("memory://bucket/sealed", private_key=KEY, context=CONTEXT, names=NAMES),
    ):
        pass


def test_a_file_more_or_less_in_a_store_is_refused(store):
    arguments = {"private_key": KEY, "context": CONTEXT, "names": NAMES}
    store.pipe("/bucket/sealed/more.sealed", b"x")
    with (
        pytest.raises(SealError, match="not the sealed files"),
        open_remote_files("memory://bucket/sealed", **arguments),
    ):
        pass
    store.rm("/bucket/sealed/more.sealed")
    store.rm("/bucket/sealed/model.json.sealed")
    with (
        pytest.raises(SealError, match="not the sealed files"),
        open_remote_files("memory://bucket/sealed", **arguments),
    ):
        pass


def test_nothing_is_written_to_a_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(sealed(save({"w": torch.zeros(50_000)})))
    real = open

    def refuse(path, mode="r", *arguments, **keywords):
        assert not set(mode) & set("wax+"), path
        return real(path, mode, *arguments, **keywords)

    monkeypatch.setattr("builtins.open", refuse)
    with open_sealed(tmp_path / "file", dek=DEK, context=CONTEXT) as file:
        assert load_safetensors(file)["w"].shape == (50_000,)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
