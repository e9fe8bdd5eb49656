import json
from io import BytesIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portcullis.digest import content_digest, tree_digest
from portcullis.errors import KeyMaterialError, SealError
from portcullis.sealing.recipients import SealingPrivateKey, SealingPublicKey, unwrap_dek, wrap_dek
from portcullis.sealing.sealed import open_directory, seal_directory
from portcullis.sealing.stream import HEADER_SIZE, MAGIC, SEGMENT_SIZE, open_sealed, seal

DEK = bytes(range(32))
CONTEXT = {"model": "5f" * 32, "file": "weights"}
KEY = SealingPrivateKey.generate()
PUBLIC = [KEY.public_key(), SealingPrivateKey.generate().public_key()]
SIDECAR = wrap_dek(DEK, PUBLIC, context=CONTEXT)
SEGMENT = 64
SEALED = BytesIO()
seal(BytesIO(bytes(range(200))), SEALED, dek=DEK, context=CONTEXT, _segment_size=SEGMENT)
SEALED = SEALED.getvalue()

# One temporary directory serves all examples of a test: each example writes the whole file anew.
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)

text = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
contexts = st.dictionaries(text, text, min_size=1, max_size=4)
any_text = st.text(st.characters())  # lone surrogates, too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(any_text, children, max_size=3),
    max_leaves=8,
)


def opened(path, *, dek=DEK, context=CONTEXT):
    with open_sealed(path, dek=dek, context=context) as file:
        return file.read_all()


def must_refuse(path, data):
    path.write_bytes(data)
    with pytest.raises(SealError):
        opened(path)


@same_folder
@given(segment=st.integers(1, 40), segments=st.integers(0, 4), offset=st.integers(-1, 1), fill=st.binary(max_size=8))
def test_round_trip_around_segment_boundaries(tmp_path, segment, segments, offset, fill):
    plaintext = (fill + bytes(range(200)))[: max(0, segment * segments + offset)]
    target = BytesIO()
    seal(BytesIO(plaintext), target, dek=DEK, context=CONTEXT, _segment_size=segment)
    (tmp_path / "file").write_bytes(target.getvalue())
    with open_sealed(tmp_path / "file", dek=DEK, context=CONTEXT) as file:
        assert file.size == len(plaintext)
        assert file.read_all() == plaintext
        assert b"".join(file.chunks()) == plaintext


@same_folder
@given(dek=st.binary(min_size=32, max_size=32), context=contexts, plaintext=st.binary(max_size=300))
def test_round_trip_of_any_key_context_and_content(tmp_path, dek, context, plaintext):
    target = BytesIO()
    seal(BytesIO(plaintext), target, dek=dek, context=context, _segment_size=SEGMENT)
    (tmp_path / "file").write_bytes(target.getvalue())
    assert opened(tmp_path / "file", dek=dek, context=context) == plaintext


@same_folder
@given(position=st.integers(0, len(SEALED) - 1), change=st.integers(1, 255))
def test_a_change_of_any_byte_is_refused(tmp_path, position, change):
    altered = bytearray(SEALED)
    altered[position] ^= change
    must_refuse(tmp_path / "file", altered)


@same_folder
@given(start=st.integers(0, len(SEALED)), size=st.integers(0, 200), inserted=st.binary(max_size=200))
def test_bytes_cut_out_or_put_in_are_refused(tmp_path, start, size, inserted):
    altered = SEALED[:start] + inserted + SEALED[start + size :]
    if altered != SEALED:
        must_refuse(tmp_path / "file", altered)


@same_folder
@given(order=st.lists(st.integers(0, 3), max_size=6))
def test_segments_in_any_other_order_are_refused(tmp_path, order):
    body = SEALED[HEADER_SIZE:]
    segments = [body[start : start + SEGMENT + 16] for start in range(0, len(body), SEGMENT + 16)]
    if order != list(range(len(segments))):
        must_refuse(tmp_path / "file", SEALED[:HEADER_SIZE] + b"".join(segments[index] for index in order))


@same_folder
@given(
    fields=json_values
    | st.fixed_dictionaries(
        {
            "algorithm": st.sampled_from(["AES-256-GCM-STREAM", "ChaCha20-Poly1305-STREAM"]) | json_values,
            "salt": st.just("0" * 64) | json_values,
            "segment_size": st.integers(1, SEGMENT_SIZE) | json_values,
            "context": st.just(CONTEXT) | json_values,
        }
    )
)
def test_no_header_makes_anything_but_a_refusal(tmp_path, fields):
    must_refuse(tmp_path / "file", (MAGIC + json.dumps(fields).encode()).ljust(HEADER_SIZE, b"\0") + bytes(16))


@same_folder
@given(position=st.integers(0, len(SIDECAR) - 1), change=st.integers(1, 255))
def test_a_change_of_any_byte_of_the_sidecar_is_refused(position, change):
    altered = bytearray(SIDECAR)
    altered[position] ^= change
    with pytest.raises(SealError):
        unwrap_dek(bytes(altered), KEY, context=CONTEXT)


hexadecimal = (st.binary(max_size=50) | st.binary(min_size=1168, max_size=1168)).map(bytes.hex)


@given(
    sidecar=st.binary(max_size=100)
    | json_values.map(json.dumps).map(str.encode)
    | st.lists(
        st.fixed_dictionaries({"key_id": st.just(KEY.key_id) | json_values, "wrapped": hexadecimal | json_values}),
        max_size=3,
    ).map(lambda entries: json.dumps({"recipients": entries}).encode())
)
def test_no_sidecar_makes_anything_but_a_refusal(sidecar):
    with pytest.raises(SealError):
        unwrap_dek(sidecar, KEY, context=CONTEXT)


@settings(deadline=None)
@given(
    pem=st.sampled_from(["private", "public"]), position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255)
)
def test_no_altered_pem_is_read_as_another(pem, position, change):
    original = KEY.to_pem() if pem == "private" else KEY.public_key().to_pem()
    kind = SealingPrivateKey if pem == "private" else SealingPublicKey
    altered = bytearray(original)
    altered[int(position * len(original))] ^= change
    try:
        key = kind.from_pem(bytes(altered))
    except KeyMaterialError:
        return
    assert key.to_pem() == altered


names = st.lists(text.filter(lambda part: "/" not in part and part not in {".", ".."}), min_size=1, max_size=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(tree=st.dictionaries(names.map("/".join), st.binary(max_size=100), min_size=1, max_size=4), context=contexts)
def test_any_tree_opens_as_it_was_sealed(tmp_path_factory, tree, context):
    folder = tmp_path_factory.mktemp("tree")
    try:
        for name, data in tree.items():
            (folder / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "plain" / name).write_bytes(data)
    except OSError:
        return  # one name is another's directory
    seal_directory(folder / "plain", folder / "sealed", recipients=PUBLIC, context=context)
    files = open_directory(folder / "sealed", private_key=KEY, context=context)
    assert files == tree
    assert content_digest(files) == tree_digest(folder / "plain")


def test_segments_are_one_mebibyte_unless_told_otherwise():
    target = BytesIO()
    seal(BytesIO(b""), target, dek=DEK, context=CONTEXT)
    assert f'"segment_size":{SEGMENT_SIZE}}}'.encode() in target.getvalue()
    assert SEGMENT_SIZE == 1 << 20
