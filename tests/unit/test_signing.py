"""The OpenSSF model signature: what is signed is what is verified, in this tool and in theirs."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
from foreign import ForeignPipeline, step
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.attestation.stage import start_chain
from portcullis.digest import canonical_json, sha256, tree_files
from portcullis.errors import DataError, EvidenceError, KeyMaterialError, SealError
from portcullis.evidence.dsse import pre_authentication_encoding, seal_payload
from portcullis.keys import PublicKey, Signer
from portcullis.sealing.sealed import SIDECAR, sealed_digest
from portcullis.signing import stage
from portcullis.signing.oms import OMS_PREDICATE, sign_files, verify_files
from portcullis.signing.stage import sign, verify_signature

GOLDEN = Path(__file__).parents[1] / "data" / "oms"
THEIRS = (GOLDEN / "model.sig").read_bytes()
THEIR_KEY = PublicKey.from_pem((GOLDEN / "key.pub.pem").read_bytes())
SIGNER = Signer.generate()
KEY = SIGNER.public_key
FILES = {"b.txt": sha256(b"1"), "b/a": sha256(b"2"), "a": sha256(b"3")}
OURS = sign_files(FILES, name="m", ignored={SIDECAR}, signer=SIGNER)


def signed_statement(signature: bytes) -> dict:
    return json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "model", tmp_path / "sealed"))


def signed(model: Path) -> bytes:
    files = {entry.path: entry.sha256 for entry in tree_files(model, exclude={SIDECAR})}
    return sign_files(files, name="sealed", ignored={SIDECAR}, signer=SIGNER)


# The format.


def test_what_was_signed_is_what_is_verified():
    assert verify_files(OURS, KEY) == FILES


@given(st.dictionaries(st.text(min_size=1), st.binary(max_size=4).map(sha256), min_size=1))
@settings(max_examples=50, deadline=None)
def test_any_names_survive(files):
    try:
        signature = sign_files(files, name="m", ignored=(), signer=SIGNER)
    except DataError:
        assert any("\ud800" <= character <= "\udfff" for name in files for character in name)
        return
    assert verify_files(signature, KEY) == files


def test_a_signature_that_model_signing_made_is_verified():
    verify_signature(GOLDEN / "model", THEIRS, THEIR_KEY)


def test_one_model_is_stated_as_model_signing_states_it(model):
    ours, theirs = signed_statement(signed(model)), signed_statement(THEIRS)
    assert ours["subject"][0]["digest"] == theirs["subject"][0]["digest"]
    assert ours["predicate"]["resources"] == theirs["predicate"]["resources"]
    assert set(ours["predicate"]["serialization"]["ignore_paths"]) == {SIDECAR}
    for name in ("method", "hash_type", "allow_symlinks"):
        assert ours["predicate"]["serialization"][name] == theirs["predicate"]["serialization"][name]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_change_of_any_byte_of_the_signature_is_refused(data):
    signature, key = data.draw(st.sampled_from([(OURS, KEY), (THEIRS, THEIR_KEY)]))
    position = data.draw(st.integers(0, len(signature) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != signature[position]))
    with pytest.raises(EvidenceError):
        verify_files(signature[:position] + bytes([byte]) + signature[position + 1 :], key)


@given(st.binary(max_size=200) | st.integers(0, len(OURS) - 1).map(lambda end: OURS[:end]))
@settings(max_examples=100, deadline=None)
def test_what_is_no_signature_is_refused(data):
    with pytest.raises(EvidenceError):
        verify_files(data, KEY)


def test_another_key_is_refused():
    other = Signer.generate().public_key
    with pytest.raises(EvidenceError, match="another key"):
        verify_files(OURS, other)
    bundle = json.loads(OURS)
    bundle["verificationMaterial"]["publicKey"]["hint"] = sha256(other.pem.encode())
    with pytest.raises(EvidenceError, match="is not by key"):
        verify_files(canonical_json(bundle), other)


def test_only_p256_keys_sign_and_verify(model):
    signer = Signer.generate("ed25519")
    with pytest.raises(KeyMaterialError, match="need an ECDSA P-256 key"):
        sign_files(FILES, name="m", ignored=(), signer=signer)
    with pytest.raises(KeyMaterialError, match="need an ECDSA P-256 key"):
        verify_files(OURS, signer.public_key)
    with pytest.raises(EvidenceError, match="need an ECDSA P-256 key"):
        verify_signature(model, signed(model), signer.public_key)


def test_nothing_is_not_signed():
    with pytest.raises(DataError, match="no file"):
        sign_files({}, name="m", ignored=(), signer=SIGNER)


def test_what_protobuf_may_leave_out_may_be_missing():
    bundle = json.loads(OURS)
    del bundle["verificationMaterial"]["tlogEntries"]
    del bundle["dsseEnvelope"]["signatures"][0]["keyid"]
    assert verify_files(canonical_json(bundle), KEY) == FILES


def _at(bundle: dict, path: str) -> tuple[dict, str]:
    *parents, last = path.split(".")
    for part in parents:
        bundle = bundle[int(part) if part.isdigit() else part]
    return bundle, last


# Bundles whose signature itself is sound.
BAD_BUNDLES = {
    "other media type": ("mediaType", "application/vnd.dev.sigstore.bundle.v0.2+json"),
    "unknown field": ("more", 1),
    "transparency log": ("verificationMaterial.tlogEntries", [{}]),
    "certificate beside the key": ("verificationMaterial.certificate", {"rawBytes": ""}),
    "no key hint": ("verificationMaterial.publicKey", {}),
    "other key hint": ("verificationMaterial.publicKey.hint", "0" * 64),
    "no envelope": ("dsseEnvelope", None),
    "other payload type": ("dsseEnvelope.payloadType", "application/json"),
    "no signature": ("dsseEnvelope.signatures", []),
    "two signatures": ("dsseEnvelope.signatures", [{"sig": "AA==", "keyid": ""}] * 2),
    "other keyid": ("dsseEnvelope.signatures.0.keyid", "0" * 64),
    "keyid a number": ("dsseEnvelope.signatures.0.keyid", 0),
    "signature a number": ("dsseEnvelope.signatures.0.sig", 5),
    "payload not base64": ("dsseEnvelope.payload", "äö"),
}


@pytest.mark.parametrize("name", BAD_BUNDLES)
def test_a_bundle_in_another_form_is_refused(name):
    path, value = BAD_BUNDLES[name]
    bundle = json.loads(OURS)
    place, field = _at(bundle, path)
    place[field] = value
    with pytest.raises(EvidenceError):
        verify_files(canonical_json(bundle), KEY)


def test_base64_in_another_spelling_is_refused():
    bundle = json.loads(OURS)
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "QR=="  # the same byte as QQ==
    with pytest.raises(EvidenceError, match="standard spelling"):
        verify_files(canonical_json(bundle), KEY)


def _without(name: str):
    return lambda statement: statement.pop(name)


# Statements that the trusted key signed, but that are not of whole files.
BAD_STATEMENTS = {
    "other predicate": lambda it: it.update(predicateType="https://slsa.dev/provenance/v1"),
    "the old predicate": lambda it: it.update(predicateType="https://model_signing/Digests/v0.1"),
    "other statement": lambda it: it.update(_type="https://in-toto.io/Statement/v0.1"),
    "no type": _without("_type"),
    "no predicate": _without("predicate"),
    "unknown field": lambda it: it.update(more=1),
    "shards": lambda it: it["predicate"]["serialization"].update(method="shards", shard_size=1),
    "other hash": lambda it: it["predicate"]["serialization"].update(hash_type="blake3"),
    "links": lambda it: it["predicate"]["serialization"].update(allow_symlinks=True),
    "no serialization": lambda it: it["predicate"].pop("serialization"),
    "no files": lambda it: it["predicate"].update(resources=[]),
    "a file twice": lambda it: it["predicate"]["resources"].append(it["predicate"]["resources"][0]),
    "a file with another hash": lambda it: it["predicate"]["resources"][0].update(algorithm="blake3"),
    "a file with no digest": lambda it: it["predicate"]["resources"][0].update(digest="00"),
    "a digest in capitals": lambda it: it["predicate"]["resources"][0].update(
        digest=it["predicate"]["resources"][0]["digest"].upper()
    ),
    "a file with no name": lambda it: it["predicate"]["resources"][0].update(name=1),
    "a file left out": lambda it: it["predicate"]["resources"].pop(),
    "files in another order": lambda it: it["predicate"]["resources"].reverse(),
    "no subject": lambda it: it.update(subject=[]),
    "two subjects": lambda it: it["subject"].append(it["subject"][0]),
    "other subject": lambda it: it["subject"][0].update(digest={"sha256": "0" * 64}),
    "subject with two digests": lambda it: it["subject"][0]["digest"].update(sha512="0"),
}


@pytest.mark.parametrize("name", BAD_STATEMENTS)
def test_a_signed_statement_of_something_else_is_refused(name):
    statement = signed_statement(OURS)
    BAD_STATEMENTS[name](statement)
    with pytest.raises(EvidenceError):
        verify_files(_bundle_of(canonical_json(statement)), KEY)


def test_a_statement_signed_as_it_is_verifies():
    assert verify_files(_bundle_of(canonical_json(signed_statement(OURS))), KEY) == FILES
    assert signed_statement(OURS)["predicateType"] == OMS_PREDICATE


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"null", b'{"a":1,"a":1}', b"[" * 10_000])
def test_a_signed_payload_that_is_no_statement_is_refused(payload):
    with pytest.raises(EvidenceError):
        verify_files(_bundle_of(payload), KEY)


def _bundle_of(payload: bytes) -> bytes:
    envelope = seal_payload(payload, SIGNER)
    assert KEY.verifies(envelope.signature, pre_authentication_encoding(envelope.payload_type, payload))
    bundle = json.loads(OURS)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(envelope.signature).decode()
    return canonical_json(bundle)


# A sealed model.


def test_the_recipients_may_rotate(model):
    signature = signed(model)
    (model / SIDECAR).write_bytes(b"others")
    verify_signature(model, signature, KEY)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_change_of_any_byte_of_the_model_is_refused(tmp_path_factory, data):
    model = tmp_path_factory.mktemp("model") / "sealed"
    shutil.copytree(GOLDEN / "model", model)
    path = data.draw(st.sampled_from(sorted(model.rglob("*.sealed"))))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(SealError, match=re.escape(f"differs in '{path.relative_to(model).as_posix()}'")):
        verify_signature(model, THEIRS, THEIR_KEY)


ALTERED = {
    "added": lambda model: (model / "more.sealed").write_bytes(b""),
    "hidden": lambda model: (model / ".gitignore").write_bytes(b""),
    "removed": lambda model: (model / "sub.txt.sealed").unlink(),
    "renamed": lambda model: (model / "sub.txt.sealed").rename(model / "sub2.txt.sealed"),
    "swapped": lambda model: shutil.copy(model / "sub.txt.sealed", model / "model.json.sealed"),
    "recipients in a folder": lambda model: (model / "sub" / SIDECAR).write_bytes(b"{}"),
    "link": lambda model: (model / "link").symlink_to(model / "sub.txt.sealed"),
    "linked folder": lambda model: (model / "link").symlink_to(model / "sub"),
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
@pytest.mark.parametrize("made_by", ["ours", "theirs"])
def test_an_altered_model_is_refused(model, alter, made_by):
    signature, key = (signed(model), KEY) if made_by == "ours" else (THEIRS, THEIR_KEY)
    alter(model)
    with pytest.raises(SealError):
        verify_signature(model, signature, key)


def test_a_signature_that_says_to_ignore_a_file_still_covers_it(model):
    files = {entry.path: entry.sha256 for entry in tree_files(model, exclude={SIDECAR, "sub"})}
    signature = sign_files(files, name="sealed", ignored={SIDECAR, "sub"}, signer=SIGNER)
    with pytest.raises(SealError, match=r"differs in 'sub/weights\.sealed'"):
        verify_signature(model, signature, KEY)


# The step.


@pytest.fixture
def pipeline(model, monkeypatch) -> ForeignPipeline:
    made = ForeignPipeline(
        model.parent, monkeypatch, step("sign", "sign", {"sealed": "start_chain.artifact"}, "signature")
    )
    _begin(made)
    return made


def _begin(pipeline: ForeignPipeline) -> None:
    # What comes before attests the sealed directory without its recipients, as `encrypt` does.
    bare = pipeline.root / "bare"
    shutil.rmtree(bare, ignore_errors=True)
    shutil.copytree(pipeline.root / "sealed", bare, ignore=shutil.ignore_patterns(SIDECAR))
    start_chain(step="start_chain", artifact=bare, bundle=pipeline.bundle("start_chain"))


def run(pipeline: ForeignPipeline):
    return sign(
        step="sign",
        sealed=pipeline.root / "sealed",
        evidence=pipeline.bundle("start_chain"),
        signature=pipeline.root / "model.sig",
        bundle=pipeline.bundle("sign"),
    )


def test_the_step_signs_what_its_evidence_speaks_of(pipeline):
    statement = run(pipeline)
    signature = (pipeline.root / "model.sig").read_bytes()
    assert statement.inputs == {"sealed": sealed_digest(pipeline.root / "sealed")}
    assert statement.outputs == {"signature": sha256(signature)}
    paths = list((pipeline.root / "sealed").rglob("*.sealed"))
    assert statement.figures == {"files": len(paths), "bytes": sum(path.stat().st_size for path in paths)}
    verify_signature(pipeline.root / "sealed", signature, pipeline.keys["sign"].public_key)


def test_the_step_refuses_another_model(pipeline):
    (pipeline.root / "sealed" / "sub.txt.sealed").write_bytes(b"other")
    with pytest.raises(EvidenceError, match="swapped or altered"):
        run(pipeline)
    assert not (pipeline.root / "model.sig").exists() and not pipeline.bundle("sign").exists()


def test_the_step_refuses_an_ed25519_key(pipeline):
    pipeline.keys["sign"] = Signer.generate("ed25519")
    pipeline.furnish()
    _begin(pipeline)
    with pytest.raises(KeyMaterialError, match="need an ECDSA P-256 key"):
        run(pipeline)
    assert not (pipeline.root / "model.sig").exists() and not pipeline.bundle("sign").exists()


def test_a_model_that_changes_while_it_is_signed_is_refused(pipeline, monkeypatch):
    def alter_then_sign(*arguments, **options):
        (pipeline.root / "sealed" / "sub.txt.sealed").write_bytes(b"other")
        return sign_files(*arguments, **options)

    monkeypatch.setattr(stage, "sign_files", alter_then_sign)
    with pytest.raises(SealError, match="not what was signed"):
        run(pipeline)
    assert not (pipeline.root / "model.sig").exists() and not pipeline.bundle("sign").exists()
