"""A target for what names keys, and for what is read about them: URIs, answers of services, signatures, locks."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from fuzz import Target
from portcullis.digest import parse_json
from portcullis.errors import ConfigError, DataError, EvidenceError, KeyMaterialError, KeyServiceError, SealError
from portcullis.keys import PublicKey, Signer, azure_kv, gcp_kms, vault_transit
from portcullis.keys.service import is_service_uri, service_key
from portcullis.signing.oms import sign_files, verify_files
from portcullis.supply_chain.dependencies import read_lock

RING = "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k"
_VAULT = "vault-transit:vault:8200/transit/keys/k"
_AZURE = "azure-kv:v.vault.azure.net/keys/k/" + "0" * 32
_WRAPPING = (RING, _VAULT, _AZURE)
_SIGNING = (f"{RING}/cryptoKeyVersions/1", f"{_VAULT}/1", _AZURE)
_SIGNER = Signer.generate()
_FILES = {"weights.safetensors": "5f" * 32}
_SIGNED = sign_files(_FILES, name="model", ignored=(), signer=_SIGNER)
_LOCK = b"numpy==2.0 \\\n    --hash=sha256:" + b"0" * 64 + b"\n"


@contextlib.contextmanager
def _answering(data: bytes) -> Iterator[None]:
    """Have every service answer with these bytes, as what came over the wire."""

    def ask(key: str, *_: object, **__: object) -> Mapping[str, Any]:
        try:
            answer = parse_json(data)
        except DataError:
            answer = None
        if not isinstance(answer, dict):
            raise KeyServiceError(f"{key}: no JSON object")
        return answer

    with contextlib.ExitStack() as stack:
        for module in (gcp_kms, azure_kv, vault_transit):
            stack.enter_context(mock.patch.object(module, "ask", ask))
        for module in (gcp_kms, azure_kv, vault_transit):
            stack.enter_context(mock.patch.object(module, "_token", return_value="token"))
        yield


def fuzz_keys(data: bytes) -> None:
    """Nothing but a refusal comes of what is not exactly what was asked for.

    The first byte says what the rest is: a URI, an answer of a key service, a model's signature, or a lock.
    """
    kind, rest = data[:1], data[1:]
    if kind <= b"\x3f":
        uri = rest.decode("latin-1")
        try:
            key = service_key(uri)
        except KeyMaterialError:
            assert not is_service_uri(uri)
        else:
            assert key.uri == uri and uri.isascii() and uri.isprintable() and is_service_uri(uri)
            assert not set(uri) & set("?#@%\\ ")
            assert "/../" not in uri
    elif kind <= b"\x9f":
        with _answering(rest):
            for uri in _WRAPPING:
                for attempt in ("encrypt", "decrypt"):
                    with contextlib.suppress(KeyServiceError, SealError):
                        done = getattr(service_key(uri), attempt)(b"vault:v1:AAAA", context={"a": "b"}, bound=b"x")
                        assert isinstance(done, bytes) and 0 < len(done) <= 16 << 10
            for uri in _SIGNING:
                with contextlib.suppress(KeyMaterialError):
                    signer = Signer.of_service(uri)
                    assert PublicKey.from_pem(signer.public_key.pem) == signer.public_key
                with contextlib.suppress(KeyServiceError):
                    Signer(_SIGNER.public_key, service_key(uri)).sign(b"message")
                    raise AssertionError("nobody can have signed this")
    elif kind <= b"\xcf":
        with contextlib.suppress(EvidenceError, KeyMaterialError):
            assert verify_files(rest, _SIGNER.public_key) == _FILES
    else:
        with contextlib.suppress(ConfigError):
            for locked in read_lock(rest).values():
                assert locked.archives and all(len(it) == hashlib.sha256().digest_size * 2 for it in locked.archives)


def _seeds() -> list[bytes]:
    google = {"name": f"{RING.removeprefix('gcp-kms:')}/cryptoKeyVersions/1", "ciphertext": "AAAA"}
    google |= {"ciphertextCrc32c": "0", "verifiedPlaintextCrc32c": True}
    public = {"name": "k", "type": "ecdsa-p256", "keys": {"1": {"public_key": _SIGNER.public_key.pem}}}
    answers: list[dict[str, Any]] = [
        google,
        {"data": {"ciphertext": "vault:v1:AAAA", "plaintext": "AAAA", "signature": "vault:v1:AAAA"}},
        {"data": public},
        {"kid": _AZURE.replace("azure-kv:", "https://"), "value": "AAAA"},
        {"key": {"kid": _AZURE.replace("azure-kv:", "https://"), "crv": "P-256", "x": "AAAA", "y": "AAAA"}},
    ]
    uris = (*_WRAPPING, *_SIGNING, "aws-kms:arn:aws:kms:eu-west-1:111122223333:key/k")
    return [
        *(b"\0" + uri.encode() for uri in uris),
        *(b"\x40" + json.dumps(answer).encode() for answer in answers),
        b"\xa0" + _SIGNED,
        b"\xd0" + _LOCK,
    ]


_WORDS = (b"/cryptoKeyVersions/", b'"value":', b'"data":{', b"--hash=sha256:", b"==")

TARGETS = (Target("keys", fuzz_keys, _seeds, _WORDS, 4096),)
