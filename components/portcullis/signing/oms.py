"""The OpenSSF model signature (OMS) v1.0, on `cryptography` alone: what `model_signing verify key` of PyPI accepts.

A signature is a Sigstore bundle v0.3 in JSON: a DSSE envelope around an in-toto Statement that lists each file of a
model with its SHA-256. Its subject is the SHA-256 over the files' digests in the order in which they are listed.

Sources: github.com/ossf/model-signing-spec; sigstore protobuf-specs, bundle v0.3; DSSE v1.0. Stricter here, so that a
signature says one thing only: every field of the bundle must be known, base64 in its one standard spelling, the key
ECDSA P-256, the files hashed whole by SHA-256, links refused. `keyid` and the key's hint choose no key, but may name no
other than the one that verifies.
"""

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from portcullis.digest import canonical_json, is_digest, parse_json
from portcullis.errors import DataError, EvidenceError, KeyMaterialError
from portcullis.evidence.dsse import IN_TOTO_PAYLOAD_TYPE, Envelope, seal_payload
from portcullis.evidence.statement import STATEMENT_TYPE
from portcullis.keys import PublicKey, Signer

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
OMS_PREDICATE = "https://model_signing/signature/v1.0"
MAX_SIGNATURE_BYTES = 16 << 20
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}


def sign_files(files: Mapping[str, str], *, name: str, ignored: Collection[str], signer: Signer) -> bytes:
    """Return the signature of a model's files.

    Args:
        files: Path relative to the model, POSIX, to SHA-256.
        name: What the model is called there; informative.
        ignored: Paths in the model that the signature does not cover; other verifiers take them from it.
        signer: An ECDSA P-256 key.

    Raises:
        KeyMaterialError: The key is of another kind.
        DataError: There is no file.
    """
    _require_p256(signer.public_key)
    if not files:
        raise DataError("there is no file to sign")
    # By the parts of the path, as model_signing sorts them, so that one model has one subject.
    names = sorted(files, key=lambda path: path.split("/"))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(files[path] for path in names)}}],
        "predicateType": OMS_PREDICATE,
        "predicate": {
            "serialization": {**_SERIALIZATION, "ignore_paths": sorted(ignored)},
            "resources": [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in names],
        },
    }
    envelope = seal_payload(canonical_json(statement), signer)
    return canonical_json(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": _hint(signer.public_key)}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(envelope.payload).decode(),
                "payloadType": envelope.payload_type,
                "signatures": [{"keyid": "", "sig": base64.b64encode(envelope.signature).decode()}],
            },
        }
    )


def verify_files(signature: bytes, key: PublicKey) -> dict[str, str]:
    """Return what was signed: each file's path and SHA-256. Whether the files are these is the caller's to check.

    What the signature says is to be ignored is not returned and chooses nothing.

    Raises:
        EvidenceError: Not a signature by this key over a model's files.
        KeyMaterialError: The key is not ECDSA P-256.
    """
    _require_p256(key)
    try:
        payload = _parse_bundle(signature, key).verify(key)
        return _signed_files(parse_json(payload, limit=MAX_SIGNATURE_BYTES))
    except (DataError, KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise EvidenceError(f"not an OpenSSF model signature: {error}") from error


def _parse_bundle(signature: bytes, key: PublicKey) -> Envelope:
    bundle = _fields(parse_json(signature, limit=MAX_SIGNATURE_BYTES), "mediaType verificationMaterial dsseEnvelope")
    if bundle["mediaType"] != BUNDLE_TYPE:
        raise DataError(f"its media type is not {BUNDLE_TYPE}")
    # Protobuf's JSON may leave out what is empty.
    material = _fields(bundle["verificationMaterial"], "publicKey", "tlogEntries")
    if material.get("tlogEntries", []) != []:
        raise DataError("it holds entries of a transparency log, which are not judged here")
    if _fields(material["publicKey"], "hint")["hint"] != _hint(key):
        raise DataError("it names another key than the one that is trusted")
    envelope = _fields(bundle["dsseEnvelope"], "payload payloadType signatures")
    (entry,) = envelope["signatures"]
    entry = _fields(entry, "sig", "keyid")
    if envelope["payloadType"] != IN_TOTO_PAYLOAD_TYPE:
        raise DataError(f"it does not hold {IN_TOTO_PAYLOAD_TYPE}")
    return Envelope(
        payload_type=envelope["payloadType"],
        payload=_decoded(envelope["payload"]),
        keyid=entry.get("keyid", ""),
        signature=_decoded(entry["sig"]),
    )


def _signed_files(statement: Any) -> dict[str, str]:
    _fields(statement, "_type subject predicateType predicate")
    if (statement["_type"], statement["predicateType"]) != (STATEMENT_TYPE, OMS_PREDICATE):
        raise DataError(f"it does not state {OMS_PREDICATE}")
    predicate = statement["predicate"]
    serialization = predicate["serialization"]
    if {name: serialization[name] for name in _SERIALIZATION} != _SERIALIZATION:
        raise DataError("the files were not hashed whole by SHA-256 without links; sign without options")
    listed = [(entry["name"], entry["algorithm"], entry["digest"]) for entry in predicate["resources"]]
    files = {name: digest for name, _, digest in listed}
    if not files or len(files) != len(listed) or not all(isinstance(name, str) for name in files):
        raise DataError("it lists no file, or one twice")
    if not all(algorithm == "sha256" and is_digest(digest) for _, algorithm, digest in listed):
        raise DataError("it lists a file with something else than its SHA-256")
    (subject,) = statement["subject"]
    if subject["digest"] != {"sha256": _root(files.values())}:
        raise DataError("its subject is not the digest of the files that it lists")
    return files


def _require_p256(key: PublicKey) -> None:
    if key.algorithm != "ecdsa-p256":
        raise KeyMaterialError("OpenSSF model signatures need an ECDSA P-256 key; give the signing step such a key")


def _root(digests: Iterable[str]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def _hint(key: PublicKey) -> str:
    return hashlib.sha256(key.pem.encode()).hexdigest()


def _decoded(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise DataError("it holds base64 in another than the standard spelling")
    return data


def _fields(value: Any, required: str, optional: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not set(required.split()) <= set(value) <= {*required.split(), *optional.split()}:
        raise DataError(f"a part of it does not have exactly the fields {required}")
    return value
