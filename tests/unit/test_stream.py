import hashlib
import os
import threading
import tracemalloc
from io import BytesIO

import pytest

from portcullis.errors import KeyMaterialError, SealError, UsageError
from portcullis.sealing import stream
from portcullis.sealing.stream import HEADER_SIZE, SEGMENT_SIZE, TAG_SIZE, open_sealed, seal

DEK = bytes(range(32))
OTHER_DEK = bytes(range(1, 33))
CONTEXT = {"model": "5f" * 32, "file": "weights.safetensors"}


def sealed_bytes(plaintext, *, segment_size=16, dek=DEK, context=CONTEXT):
    target = BytesIO()
    seal(BytesIO(plaintext), target, dek=dek, context=context, _segment_size=segment_size)
    return target.getvalue()


def opened(path, *, dek=DEK, context=CONTEXT):
    with open_sealed(path, dek=dek, context=context) as file:
        return file.read_all()


def pipe():
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", buffering=0), os.fdopen(writer, "wb", buffering=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.sealed"


@pytest.mark.parametrize("size", [0, 1, SEGMENT_SIZE - 1, SEGMENT_SIZE, SEGMENT_SIZE + 1, 2 * SEGMENT_SIZE])
def test_what_is_sealed_opens(path, size):
    plaintext = os.urandom(size)
    path.write_bytes(sealed_bytes(plaintext, segment_size=SEGMENT_SIZE))
    segments = max(1, -(-size // SEGMENT_SIZE))
    assert path.stat().st_size == HEADER_SIZE + size + segments * TAG_SIZE
    with open_sealed(path, dek=DEK, context=CONTEXT) as file:
        assert file.size == size
        assert file.read_all() == plaintext
        assert b"".join(list(file.chunks())) == plaintext


def test_each_file_has_its_own_key():
    first, second = sealed_bytes(b"same"), sealed_bytes(b"same")
    assert first[:HEADER_SIZE] != second[:HEADER_SIZE]
    assert first[HEADER_SIZE:] != second[HEADER_SIZE:]


def test_streams_need_not_be_seekable_nor_read_or_write_in_full(path):
    plaintext = os.urandom(300_000)  # several times a pipe's capacity, in segments that no pipe fills at once
    (source, feed), (drain, target) = pipe(), pipe()
    received = []

    def write():
        with feed:
            for start in range(0, len(plaintext), 777):
                feed.write(plaintext[start : start + 777])

    def read():
        with drain:
            received.append(drain.readall())

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    with source, target:
        seal(source, target, dek=DEK, context=CONTEXT, _segment_size=100_000)
    for thread in threads:
        thread.join()
    path.write_bytes(received[0])
    assert opened(path) == plaintext


def test_a_pause_of_a_non_blocking_source_is_not_its_end():
    source, feed = pipe()
    os.set_blocking(source.fileno(), False)
    with source, feed:
        feed.write(b"first part")
        with pytest.raises(UsageError, match="non-blocking"):
            seal(source, BytesIO(), dek=DEK, context=CONTEXT)


def test_a_full_non_blocking_target_is_refused():
    drain, target = pipe()
    os.set_blocking(target.fileno(), False)
    with drain, target, pytest.raises(UsageError, match="target"):
        seal(BytesIO(bytes(1 << 20)), target, dek=DEK, context=CONTEXT)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        pytest.param({}, "empty", id="empty"),
        pytest.param({"": "x"}, "printable", id="empty name"),
        pytest.param({"x": ""}, "printable", id="empty value"),
        pytest.param({"x": 1}, "printable", id="number"),
        pytest.param({1: "x"}, "printable", id="number as name"),
        pytest.param({"x": b"x"}, "printable", id="bytes"),
        pytest.param({"x": None}, "printable", id="none"),
        pytest.param({"x": "a\nb"}, "printable", id="line break"),
        pytest.param({"x\x1b": "a"}, "printable", id="escape"),
        pytest.param({"\ud800": "a"}, "printable", id="surrogate as name"),
        pytest.param({"x": "\udcff"}, "printable", id="surrogate"),
        pytest.param({"x": "a" * 4096}, "bytes too long", id="too long"),
    ],
)
def test_an_unusable_context_is_refused(path, context, message):
    with pytest.raises(UsageError, match=message):
        sealed_bytes(b"", context=context)
    path.write_bytes(sealed_bytes(b""))
    with pytest.raises(UsageError, match=message):
        opened(path, context=context)


def test_the_longest_context_fits(path):
    room = 4096
    with pytest.raises(UsageError, match="too long") as caught:
        sealed_bytes(b"x", context={"x": "é" * room})
    excess = int(str(caught.value).split()[3])
    context = {"x": "é" * (room - (excess + 1) // 2)}
    path.write_bytes(sealed_bytes(b"x", context=context))
    assert opened(path, context=context) == b"x"
    with pytest.raises(UsageError, match="too long"):
        sealed_bytes(b"x", context={"x": context["x"] + "é"})


@pytest.mark.parametrize("dek", [b"", bytes(31), bytes(33), "x" * 32, None, bytearray(32)], ids=repr)
def test_a_dek_is_32_bytes(path, dek):
    with pytest.raises(KeyMaterialError, match="32 random bytes"):
        sealed_bytes(b"", dek=dek)
    path.write_bytes(sealed_bytes(b""))
    with pytest.raises(KeyMaterialError, match="32 random bytes"):
        opened(path, dek=dek)


def test_a_wrong_key_says_so(path):
    path.write_bytes(sealed_bytes(b"secret"))
    with pytest.raises(SealError, match="wrong key"):
        opened(path, dek=OTHER_DEK)


@pytest.mark.parametrize(
    ("context", "difference"),
    [
        pytest.param({**CONTEXT, "file": "other"}, "differs in: file$", id="other value"),
        pytest.param({**CONTEXT, "more": "x"}, "differs in: more$", id="more"),
        pytest.param({"model": CONTEXT["model"]}, "entries that are not given", id="less"),
        pytest.param({"Model": "5f" * 32, "file": CONTEXT["file"]}, "differs in: Model$", id="other name"),
    ],
)
def test_another_context_is_refused(path, context, difference):
    path.write_bytes(sealed_bytes(b"secret"))
    with pytest.raises(SealError, match=difference):
        opened(path, context=context)


def test_a_flip_of_any_byte_is_refused(path):
    sealed = sealed_bytes(bytes(40))
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        path.write_bytes(altered)
        with pytest.raises(SealError):
            opened(path)
    path.write_bytes(sealed)
    assert opened(path) == bytes(40)


def test_a_cut_at_any_byte_is_refused_at_open(path):
    path.write_bytes(sealed_bytes(bytes(40)))
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(SealError), open_sealed(path, dek=DEK, context=CONTEXT):
            pass


SEALED = sealed_bytes(bytes(range(40)))
HEADER, FIRST, SECOND, LAST = SEALED[:4096], SEALED[4096:4128], SEALED[4128:4160], SEALED[4160:]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([], id="no segment"),
        pytest.param([FIRST, SECOND], id="last dropped"),
        pytest.param([FIRST, LAST], id="middle dropped"),
        pytest.param([SECOND, LAST], id="first dropped"),
        pytest.param([LAST], id="only the last"),
        pytest.param([SECOND, FIRST, LAST], id="swapped"),
        pytest.param([FIRST, FIRST, LAST], id="repeated"),
        pytest.param([FIRST, SECOND, LAST, LAST], id="last repeated"),
        pytest.param([FIRST, SECOND, LAST, b"\0"], id="a byte appended"),
        pytest.param([FIRST, SECOND, LAST, bytes(16)], id="a tag appended"),
        pytest.param([FIRST, SECOND, LAST, bytes(32)], id="a segment appended"),
    ],
)
def test_dropped_moved_and_appended_segments_are_refused(path, body):
    path.write_bytes(SEALED)
    assert opened(path) == bytes(range(40))
    path.write_bytes(b"".join([HEADER, *body]))
    with pytest.raises(SealError):
        opened(path)


def test_segments_of_another_file_are_refused(path):
    other = sealed_bytes(bytes(range(40)))
    path.write_bytes(HEADER + other[4096:])
    with pytest.raises(SealError, match="not authentic"):
        opened(path)


def test_no_altered_segment_is_given_out(path):
    path.write_bytes(HEADER + FIRST + bytes(32) + LAST)
    with open_sealed(path, dek=DEK, context=CONTEXT) as file:
        chunks = file.chunks()
        assert next(chunks) == bytes(range(16))
        with pytest.raises(SealError, match="segment 1 is not authentic"):
            next(chunks)


def test_a_file_cut_after_it_was_opened_is_refused(path):
    path.write_bytes(SEALED)
    with open_sealed(path, dek=DEK, context=CONTEXT) as file:
        os.truncate(path, HEADER_SIZE + 40)
        with pytest.raises(SealError, match="truncated while it was read"):
            file.read_all()


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"1" * 4000, id="long number"),
        pytest.param(b"[" * 4000, id="deep"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b'{"\\ud800":1}', id="surrogate"),
        pytest.param(b'{"salt":1,"segment_size":1,"context":{}}', id="salt is a number"),
        pytest.param(b'{"salt":"%s","segment_size":0,"context":{}}' % (b"0" * 64), id="segments of nothing"),
        pytest.param(b'{"salt":"%s","segment_size":1048577,"context":{}}' % (b"0" * 64), id="segments too large"),
        pytest.param(b'{"salt":"%s","segment_size":true,"context":{}}' % (b"0" * 64), id="true is no size"),
        pytest.param(b'{"salt":"%s","segment_size":1.5,"context":{}}' % (b"0" * 64), id="fraction"),
        pytest.param(b'{"salt":"%s","segment_size":1,"context":7}' % (b"0" * 64), id="context is a number"),
        pytest.param(b'{"salt":"%s","segment_size":1}' % (b"0" * 64), id="no context"),
    ],
)
def test_a_header_of_anything_else_is_refused(path, header):
    path.write_bytes((stream.MAGIC + header).ljust(HEADER_SIZE, b"\0") + bytes(16))
    with pytest.raises(SealError):
        opened(path)


def test_the_same_header_in_another_spelling_is_refused(path):
    sealed = sealed_bytes(b"x")
    for old, new in ((b'"segment_size":16', b'"segment_size":1.6e1'), (b'{"algorithm"', b'{ "algorithm"')):
        path.write_bytes(sealed[:4096].replace(old, new)[:4096] + sealed[4096:])
        with pytest.raises(SealError):
            opened(path)


def test_not_even_the_key_holder_can_write_another_spelling(path):
    salt = bytes(32)
    for segment_size, segments in ((16, [bytes(16), b""]), (True, [b"x"])):
        block, cipher = stream._header(DEK, CONTEXT, "AES-256-GCM-STREAM", salt, segment_size)
        associated = hashlib.sha256(block).digest()
        nonces = [stream._nonce(index, last=index == len(segments) - 1) for index in range(len(segments))]
        sealed = [cipher.encrypt(nonce, text, associated) for nonce, text in zip(nonces, segments, strict=True)]
        path.write_bytes(block + b"".join(sealed))
        with pytest.raises(SealError):
            opened(path)


def test_a_file_of_another_version_is_refused(path):
    path.write_bytes(sealed_bytes(b"x").replace(b"portcullis-seal\x01", b"portcullis-seal\x02"))
    with pytest.raises(SealError, match="known version"):
        opened(path)


@pytest.mark.parametrize("make", [lambda _: None, os.mkdir, os.mkfifo, lambda path: path.symlink_to(__file__)])
def test_only_a_regular_file_is_opened(path, make):
    make(path)
    with pytest.raises(UsageError):
        opened(path)


def test_too_many_segments_are_refused(path, monkeypatch):
    sealed = sealed_bytes(bytes(5), segment_size=1)
    path.write_bytes(sealed)
    monkeypatch.setattr(stream, "MAX_SEGMENTS", 5)
    assert sealed_bytes(bytes(5), segment_size=1)[4096:]
    assert opened(path) == bytes(5)
    monkeypatch.setattr(stream, "MAX_SEGMENTS", 4)
    with pytest.raises(UsageError, match="split it"):
        sealed_bytes(bytes(5), segment_size=1)
    with pytest.raises(SealError, match="no sealed file has its length"):
        opened(path)


class Zeros:
    """A source of so many zero bytes that holds none of them."""

    def __init__(self, size):
        self.left = size

    def read(self, size):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def test_memory_does_not_grow_with_the_file(path):
    size = 64 << 20
    tracemalloc.start()
    try:
        with path.open("wb", buffering=0) as target:
            seal(Zeros(size), target, dek=DEK, context=CONTEXT)
        with open_sealed(path, dek=DEK, context=CONTEXT) as file:
            assert sum(map(len, file.chunks())) == size
        assert tracemalloc.get_traced_memory()[1] < 6 * SEGMENT_SIZE
        tracemalloc.reset_peak()
        assert len(opened(path)) == size
        assert tracemalloc.get_traced_memory()[1] < size + 6 * SEGMENT_SIZE
    finally:
        tracemalloc.stop()


def test_chacha_is_chosen_where_the_processor_has_no_instructions_for_aes(monkeypatch):
    from pathlib import Path

    from portcullis.sealing.stream import fast_algorithm

    def told(text):
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        fast_algorithm.cache_clear()
        return fast_algorithm()

    assert told("flags\t: fpu vme aes avx\n") == "AES-256-GCM-STREAM"
    assert told("Features\t: fp asimd evtstrm aes pmull\n") == "AES-256-GCM-STREAM"
    assert told("Features\t: fp asimd evtstrm crc32 cpuid\n") == "ChaCha20-Poly1305-STREAM"
    monkeypatch.undo()
    fast_algorithm.cache_clear()


def test_a_file_by_one_cipher_is_not_one_by_the_other(tmp_path):
    target = BytesIO()
    seal(BytesIO(b"text"), target, dek=DEK, context=CONTEXT, algorithm="ChaCha20-Poly1305-STREAM")
    (tmp_path / "file").write_bytes(target.getvalue())
    with open_sealed(tmp_path / "file", dek=DEK, context=CONTEXT) as file:
        assert file.read_all() == b"text"
    for name in (b"AES-256-GCM-STREAM", b"AES-256-SIV-STREAM"):
        block = target.getvalue()[:HEADER_SIZE].replace(b"ChaCha20-Poly1305-STREAM", name).ljust(HEADER_SIZE, b"\0")
        (tmp_path / "file").write_bytes(block + target.getvalue()[HEADER_SIZE:])
        with pytest.raises(SealError), open_sealed(tmp_path / "file", dek=DEK, context=CONTEXT):
            pass
