"""Signing keys: ECDSA P-256 with SHA-256 by default (the widest interoperability), Ed25519 accepted.

Formats: PEM, PKCS #8 (RFC 5958) for private and SubjectPublicKeyInfo (RFC 5280) for public keys.
"""

import hmac
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError, KeyServiceError
from portcullis.keys.service import ServiceKey, service_key
from portcullis.keys.uri import resolve, service_reference

Algorithm = Literal["ecdsa-p256", "ed25519"]
_ECDSA = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class PublicKey:
    """A verification key. Two are equal when their SubjectPublicKeyInfo is."""

    spki: bytes
    _key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes | str) -> "PublicKey":
        """Read one PEM SubjectPublicKeyInfo.

        Raises:
            KeyMaterialError: Not PEM, or neither ECDSA P-256 nor Ed25519.
        """
        try:
            key = serialization.load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyMaterialError("not a PEM public key") from error
        return cls._of(key)

    @classmethod
    def _of(cls, key: object) -> "PublicKey":
        if isinstance(key, ed25519.Ed25519PublicKey) or (
            isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        ):
            der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            return cls(der, key)
        raise KeyMaterialError("signing keys are ECDSA P-256 or Ed25519")

    @property
    def algorithm(self) -> Algorithm:
        """Which of the two algorithms the key is for."""
        return "ed25519" if isinstance(self._key, ed25519.Ed25519PublicKey) else "ecdsa-p256"

    @cached_property
    def keyid(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, hexadecimal. A hint in envelopes, never a reason to trust."""
        return sha256(self.spki)

    @cached_property
    def pem(self) -> str:
        """The key as PEM text."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Tell whether `signature` over `message` was made by this key's private half."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, message)
            else:
                self._key.verify(signature, message, _ECDSA)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A private signing key, here or in a service; its `repr` shows the public half only."""

    public_key: PublicKey
    _key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ServiceKey = field(repr=False, compare=False)

    @classmethod
    def generate(cls, algorithm: Algorithm = "ecdsa-p256") -> "Signer":
        """Make a new key pair from the system's CSPRNG."""
        if algorithm == "ed25519":
            return cls._of(ed25519.Ed25519PrivateKey.generate())
        return cls._of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> "Signer":
        """Read one unencrypted PKCS #8 PEM private key.

        Raises:
            KeyMaterialError: Not PEM, encrypted, or neither ECDSA P-256 nor Ed25519.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyMaterialError("not an unencrypted PEM private key") from error
        return cls._of(key)

    @classmethod
    def from_uri(cls, uri: str) -> "Signer":
        """Read the signing key that `uri` names, or the name of a service's key that lies there in its place.

        Raises:
            KeyMaterialError: As `resolve`, `from_pem` and `of_service`.
        """
        data = resolve(uri)
        reference = service_reference(data)
        return cls.of_service(reference) if reference else cls.from_pem(data)

    @classmethod
    def of_service(cls, uri: str) -> "Signer":
        """Return a signing key that a service holds (`portcullis.keys.service`); its public half is asked for now.

        Raises:
            KeyMaterialError: The URI is malformed, the service did not tell, or it is neither ECDSA P-256 nor Ed25519.
        """
        key = service_key(uri)
        return cls(PublicKey.from_pem(key.public_pem()), key)

    def derive(self, purpose: bytes) -> bytes:
        """Return 32 secret bytes for one purpose: HMAC-SHA-256 under the private key, of which they say nothing.

        Raises:
            KeyMaterialError: A service holds it.
        """
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            secret = self._key.private_bytes_raw()
        elif isinstance(self._key, ec.EllipticCurvePrivateKey):
            secret = self._key.private_numbers().private_value.to_bytes(32)
        else:
            raise KeyMaterialError(
                f"nothing can be derived from {self._key.uri}; this step needs a key of its own, in PEM"
            )
        return hmac.digest(secret, b"portcullis-derived-key/v1|" + purpose, "sha256")

    @classmethod
    def _of(cls, key: object) -> "Signer":
        if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            return cls(PublicKey._of(key.public_key()), key)  # noqa: SLF001 - the two halves are one module
        raise KeyMaterialError("signing keys are ECDSA P-256 or Ed25519")

    def sign(self, message: bytes) -> bytes:
        """Sign `message`: DER ECDSA (about 71 bytes) or 64 bytes of Ed25519.

        Raises:
            KeyServiceError: A service holds the key and did not sign, or not so that the public half verifies it.
        """
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, _ECDSA)
        signature = self._key.sign(message, self.public_key.algorithm)
        if not self.public_key.verifies(signature, message):
            raise KeyServiceError(f"{self._key.uri}: the service signed by another key, or something else")
        return signature

    def private_pem(self) -> bytes:
        """Return the private key as PKCS #8 PEM, to be written to a file of mode 0600.

        Raises:
            KeyMaterialError: A service holds it.
        """
        if not isinstance(self._key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise KeyMaterialError(f"{self._key.uri} does not leave its service")
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
