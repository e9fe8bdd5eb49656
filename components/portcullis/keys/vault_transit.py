"""The transit secrets engine of HashiCorp Vault (or OpenBao), by its HTTP API: `encrypt`, `decrypt`, `sign`, `keys`.

The context is sent as `associated_data`, which keys of the types aes256-gcm96 and chacha20-poly1305 take. Signing keys
are ed25519 or ecdsa-p256, named with their version.

The token is VAULT_TOKEN's, else ~/.vault-token's as Vault's own command leaves it, else what Vault's Kubernetes login
gives the pod's service account for the role that PORTCULLIS_VAULT_ROLE names. VAULT_NAMESPACE and VAULT_CACERT mean
what they mean to Vault's command; VAULT_ADDR is not read, as the key's URI says where it lies.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError, KeyServiceError, SealError, UsageError
from portcullis.files import read_bytes
from portcullis.keys.encoding import decode, encode
from portcullis.keys.https import ask, unsafe_endpoint

ROLE_ENV = "PORTCULLIS_VAULT_ROLE"
POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_CIPHERTEXT = re.compile(r"vault:v[1-9][0-9]{0,9}:[A-Za-z0-9+/=]{1,4000}")
_TOKEN = re.compile(r"[!-~]{1,16384}")


@dataclass(frozen=True)
class VaultKey:
    """A key of a transit engine, or one version of a signing key."""

    uri: str
    host: str = field(repr=False)
    mount: str = field(repr=False)
    name: str = field(repr=False)
    version: int = field(repr=False)

    def encrypt(self, payload: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.encrypt`; so are the others."""
        self._require_no_version()
        text = self._post("encrypt", {"plaintext": encode(payload), "associated_data": encode(bound)}).get("ciphertext")
        if not isinstance(text, str) or not _CIPHERTEXT.fullmatch(text):
            raise KeyServiceError(f"{self.uri}: the answer is malformed: it lacks a ciphertext")
        return text.encode()

    def decrypt(self, encrypted: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.decrypt`."""
        self._require_no_version()
        text = encrypted.decode("ascii", "replace")
        if not _CIPHERTEXT.fullmatch(text):
            raise SealError(f"{self.uri} does not open this: it is no ciphertext of a transit engine")
        try:
            answer = self._post("decrypt", {"ciphertext": text, "associated_data": encode(bound)})
        except KeyServiceError as error:
            if error.code == "400":
                raise SealError(f"{self.uri} does not open this: altered, or for another context") from error
            raise
        return decode(self.uri, answer.get("plaintext"))

    def public_pem(self) -> str:
        """As `ServiceKey.public_pem`."""
        self._require_version()
        data = self._ask("GET", f"keys/{self.name}")
        versions = data.get("keys")
        entry = versions.get(str(self.version)) if isinstance(versions, dict) else None
        public = entry.get("public_key") if isinstance(entry, dict) else None
        if data.get("name") != self.name or not isinstance(public, str):
            raise KeyServiceError(f"{self.uri}: the service answered with no public key of this one")
        return _ed25519_pem(self.uri, public) if data.get("type") == "ed25519" else public

    def sign(self, message: bytes, algorithm: str) -> bytes:
        """As `ServiceKey.sign`."""
        self._require_version()
        body: dict[str, Any] = {"key_version": self.version}
        if algorithm == "ed25519":
            body |= {"input": encode(message)}
        else:
            digest = encode(bytes.fromhex(sha256(message)))
            body |= {"input": digest, "prehashed": True, "hash_algorithm": "sha2-256", "marshaling_algorithm": "asn1"}
        text = self._post("sign", body).get("signature")
        prefix = f"vault:v{self.version}:"
        if not isinstance(text, str) or not text.startswith(prefix):
            raise KeyServiceError(f"{self.uri}: the service answered with no signature by version {self.version}")
        return decode(self.uri, text.removeprefix(prefix))

    def _require_version(self) -> None:
        if not self.version:
            raise KeyMaterialError(f"{self.uri} names no version; a signing key is named …/keys/{self.name}/N")

    def _require_no_version(self) -> None:
        if self.version:
            raise KeyMaterialError(f"{self.uri} names a version; what is wrapped says itself under which it was")

    def _post(self, operation: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._ask("POST", f"{operation}/{self.name}", body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        token = _token() or self._login()
        answer = self._send(method, f"{self.mount}/{path}", {"X-Vault-Token": token}, body)
        data = answer.get("data")
        if not isinstance(data, dict):
            raise KeyServiceError(f"{self.uri}: the answer is malformed: it lacks data")
        return data

    def _login(self) -> str:
        """Log the pod's service account in (Vault's Kubernetes auth method)."""
        role = os.environ.get(ROLE_ENV)
        if not role:
            raise KeyMaterialError(f"{self.uri}: no Vault token here; set VAULT_TOKEN, or {ROLE_ENV} in a pod")
        try:
            pod = read_bytes(POD_TOKEN, limit=1 << 16).decode("ascii", "replace").strip()
        except UsageError as error:
            raise KeyMaterialError(f"{self.uri}: the pod has no service account's token to log in with") from error
        answer = self._send("POST", "auth/kubernetes/login", {}, {"role": role, "jwt": pod})
        granted = answer.get("auth")
        token = granted.get("client_token") if isinstance(granted, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise KeyServiceError(f"{self.uri}: the login gave no token")
        return token

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        namespace = os.environ.get("VAULT_NAMESPACE")
        return ask(
            self.uri,
            method,
            f"{unsafe_endpoint() or f'https://{self.host}'}/v1/{path}",
            headers={"X-Vault-Request": "true", **({"X-Vault-Namespace": namespace} if namespace else {}), **headers},
            body=body,
            authorities=os.environ.get("VAULT_CACERT") or None,
        )


def _token() -> str:
    """Return the token that lies here, empty if none does.

    Raises:
        KeyMaterialError: It is no token.
    """
    named = os.environ.get("VAULT_TOKEN", "")
    file = Path.home() / ".vault-token"
    if not named and file.is_file():
        named = read_bytes(file, limit=1 << 16).decode("ascii", "replace")
    token = named.strip()
    if token and not _TOKEN.fullmatch(token):
        raise KeyMaterialError("the Vault token is not one line of ASCII text")
    return token


def _ed25519_pem(uri: str, public: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = Ed25519PublicKey.from_public_bytes(decode(uri, public))
    except ValueError:
        raise KeyServiceError(f"{uri}: the service answered with no Ed25519 key") from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
