"""Google Cloud KMS, by its REST API v1: `encrypt`, `decrypt`, `getPublicKey`, `asymmetricSign`.

The context is sent as *additional authenticated data*. Both directions carry the CRC-32C that Google's guidelines for
end-to-end data integrity ask for. The token comes from google-auth (application default credentials: workload identity,
or the file that GOOGLE_APPLICATION_CREDENTIALS names); Google's own client for KMS would bring gRPC along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError, KeyServiceError, MissingDependencyError, SealError
from portcullis.keys.encoding import decode, encode
from portcullis.keys.https import ask, unsafe_endpoint

_SCOPE = "https://www.googleapis.com/auth/cloudkms"
_EXTRA = "pip install 'kfp-portcullis[gcp]'"


@dataclass(frozen=True)
class GcpKmsKey:
    """A key of Google Cloud KMS, or one version of a signing key."""

    uri: str
    versioned: bool = field(repr=False)

    def encrypt(self, payload: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.encrypt`; so are the others."""
        fields = {"plaintext": payload, "additionalAuthenticatedData": bound}
        answer = self._ask("POST", ":encrypt", fields)
        if not (self._is_ours(answer) and _received(answer, fields)):
            raise KeyServiceError(f"{self.uri}: the service answered for another key, or did not get what was sent")
        return self._bytes(answer, "ciphertext")

    def decrypt(self, encrypted: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.decrypt`."""
        try:
            answer = self._ask("POST", ":decrypt", {"ciphertext": encrypted, "additionalAuthenticatedData": bound})
        except KeyServiceError as error:
            if error.code == "INVALID_ARGUMENT":
                raise SealError(f"{self.uri} does not open this: altered, or for another context") from error
            raise
        return self._bytes(answer, "plaintext")

    def public_pem(self) -> str:
        """As `ServiceKey.public_pem`."""
        self._require_version()
        answer = self._ask("GET", "/publicKey")
        pem = answer.get("pem")
        if not self._is_ours(answer) or not isinstance(pem, str) or answer.get("pemCrc32c") != _crc(pem.encode()):
            raise KeyServiceError(f"{self.uri}: the service answered with no public key of this one")
        return pem

    def sign(self, message: bytes, algorithm: str) -> bytes:
        """As `ServiceKey.sign`."""
        self._require_version()
        if algorithm == "ed25519":
            fields: Mapping[str, bytes] = {"data": message}
            answer = self._ask("POST", ":asymmetricSign", fields)
        else:
            digest = bytes.fromhex(sha256(message))
            fields = {"digest": digest}
            body = {"digest": {"sha256": encode(digest)}, "digestCrc32c": _crc(digest)}
            answer = ask(self.uri, "POST", f"{self._url}:asymmetricSign", headers=self._headers(), body=body)
        if not (self._is_ours(answer) and _received(answer, fields)):
            raise KeyServiceError(f"{self.uri}: the service answered for another key, or did not get what was sent")
        return self._bytes(answer, "signature")

    @property
    def _name(self) -> str:
        return self.uri.removeprefix("gcp-kms:")

    @property
    def _url(self) -> str:
        return f"{unsafe_endpoint() or 'https://cloudkms.googleapis.com'}/v1/{self._name}"

    def _require_version(self) -> None:
        if not self.versioned:
            raise KeyMaterialError(f"{self.uri} names no version; a signing key is named …/cryptoKeyVersions/N")

    def _ask(self, method: str, verb: str, fields: Mapping[str, bytes] | None = None) -> Mapping[str, Any]:
        body = None
        if fields is not None:
            body = {name: encode(data) for name, data in fields.items()}
            body |= {f"{name}Crc32c": _crc(data) for name, data in fields.items()}
        return ask(self.uri, method, f"{self._url}{verb}", headers=self._headers(), body=body)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {_token(self.uri)}"}

    def _is_ours(self, answer: Mapping[str, Any]) -> bool:
        """Tell whether an answer names this key, or a version of it."""
        name = str(answer.get("name")).removesuffix("/publicKey")
        return name == self._name if self.versioned else name.rpartition("/cryptoKeyVersions/")[0] == self._name

    def _bytes(self, answer: Mapping[str, Any], name: str) -> bytes:
        data = decode(self.uri, answer.get(name))
        if answer.get(f"{name}Crc32c") != _crc(data):
            raise KeyServiceError(f"{self.uri}: the answer was damaged on its way: {name} is not what its CRC says")
        return data


def _received(answer: Mapping[str, Any], fields: Mapping[str, bytes]) -> bool:
    """Tell whether the service says that it compared the CRC of all that it was sent."""
    return all(answer.get(f"verified{name[0].upper()}{name[1:]}Crc32c") is True for name in fields)


def _crc(data: bytes) -> str:
    try:
        import google_crc32c
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"Google Cloud KMS needs google-crc32c: {_EXTRA}") from error
    return str(int(google_crc32c.value(data)))  # an int64, which is text in Google's JSON


def _token(uri: str) -> str:
    try:
        import google.auth
        import google.auth.exceptions
        import google.auth.transport.urllib3
        import urllib3
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{uri} needs google-auth: {_EXTRA}") from error
    try:
        transport: Any = google.auth.transport.urllib3
        credentials: Any = google.auth.default(scopes=[_SCOPE])[0]
        with urllib3.PoolManager() as pool:
            credentials.refresh(transport.Request(pool))
        token = credentials.token
    except (google.auth.exceptions.GoogleAuthError, ValueError, OSError):
        token = None
    if not isinstance(token, str) or not token:
        raise KeyMaterialError(f"{uri}: no Google credentials here; give the workload an identity that may use the key")
    return token
