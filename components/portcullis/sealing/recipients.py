"""Recipients: who can open what was sealed. Sealing needs public keys only, so the step that seals cannot open.

A recipient is such a key, or one that a key service holds (`portcullis.keys.service`), to which that service's own
rules say who may wrap and who may unwrap.

A data encryption key (DEK) is wrapped for each recipient with HPKE (RFC 9180, base mode) over X-Wing, the hybrid KEM of
ML-KEM-768 (FIPS 203) and X25519 (draft-connolly-cfrg-xwing-kem), so that recorded ciphertext stays closed unless both
are broken. The wrapped keys lie in a sidecar outside the sealed files, so that recipients can change while the files
stay as they are. A MAC keyed by the DEK covers the whole list, as the header MAC of age does: a reader rebuilds the
sidecar and compares every byte.

Whoever has the public keys can seal; that a sealed thing is the right one is shown by a signature, not by its opening.
"""

import contextlib
import hashlib
import hmac
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from portcullis.digest import canonical_json, is_digest, parse_json, sha256
from portcullis.errors import DataError, KeyMaterialError, SealError, UsageError
from portcullis.keys.service import ServiceKey, is_service_uri, service_key
from portcullis.keys.uri import resolve, service_reference
from portcullis.sealing.stream import DEK_SIZE, check_context, check_dek, derive

FORMAT = "portcullis-recipients/v1"
MAX_RECIPIENTS = 1000
MAX_WRAPPED = 8 << 10  # bytes of one recipient's wrapped key
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Recipient(Protocol):
    """A key that data encryption keys are wrapped for."""

    @property
    def key_id(self) -> str:
        """What it is called in a sidecar and in a policy."""

    def wrap(self, dek: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a data encryption key, bound to a context.

        Raises:
            KeyMaterialError: The key is degenerate, or a service holds it and did not wrap.
        """


class Opener(Protocol):
    """A key that unwraps what was wrapped for it."""

    @property
    def key_id(self) -> str:
        """That of the recipient."""

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Return what was wrapped.

        Raises:
            SealError: It was altered, or wrapped under another key or for another context.
            KeyMaterialError: A service holds the key and did not unwrap.
        """


def recipient_at(uri: str) -> Recipient:
    """Return the key to seal for that a URI names: a service's, or what `resolve` finds there, maybe after `hpke:`.

    Raises:
        KeyMaterialError: The URI is malformed, or what lies there is no public sealing key and names no service's.
    """
    found = _key_at(uri)
    return SealingPublicKey.from_pem(found) if isinstance(found, bytes) else found


def opener_at(uri: str) -> Opener:
    """Return the key to open with that a URI names; as `recipient_at`, but for a private sealing key.

    Raises:
        KeyMaterialError: As `recipient_at`.
    """
    found = _key_at(uri)
    return SealingPrivateKey.from_pem(found) if isinstance(found, bytes) else found


def _key_at(uri: str) -> "bytes | ServiceSealingKey":
    if is_service_uri(uri):
        return ServiceSealingKey(service_key(uri))
    place = uri.removeprefix("hpke:")
    data = resolve(place)
    reference = service_reference(data)
    if reference is None:
        return data
    if place != uri:
        raise KeyMaterialError(f"{uri} names {reference}, which is no hybrid sealing key")
    return ServiceSealingKey(service_key(reference))


@dataclass(frozen=True)
class ServiceSealingKey:
    """A key in a service, for both directions; which of them a process may use, the service's own rules say.

    The context is bound inside what is wrapped too, since not every service binds one.
    """

    service: ServiceKey

    @property
    def key_id(self) -> str:
        """Its URI."""
        return self.service.uri

    def wrap(self, dek: bytes, context: Mapping[str, str]) -> bytes:
        """As `Recipient.wrap`."""
        bound = _info(self.key_id, context)
        return self.service.encrypt(dek + hashlib.sha256(bound).digest(), context=context, bound=bound)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """As `Opener.unwrap`."""
        bound = _info(self.key_id, context)
        payload = self.service.decrypt(wrapped, context=context, bound=bound)
        dek, named = payload[:DEK_SIZE], payload[DEK_SIZE:]
        if not hmac.compare_digest(named, hashlib.sha256(bound).digest()):
            raise SealError(f"{self.key_id} opened this, but it was wrapped for another context")
        return dek


@dataclass(frozen=True, eq=False, repr=False)
class SealingPublicKey:
    """The key that seals. Whatever `from_pem` accepts, `to_pem` writes again, byte for byte."""

    mlkem: MLKEM768PublicKey
    x25519: X25519PublicKey

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read two PEM blocks of SubjectPublicKeyInfo, ML-KEM-768 then X25519, and nothing else.

        Raises:
            KeyMaterialError: It is anything else, be it a blank line more.
        """
        with _key_errors("public"):
            mlkem, x25519 = (load_pem_public_key(block) for block in _blocks(pem))
        if not isinstance(mlkem, MLKEM768PublicKey) or not isinstance(x25519, X25519PublicKey):
            raise KeyMaterialError("a public sealing key is an ML-KEM-768 key, then an X25519 key")
        key = cls(mlkem, x25519)
        if key.to_pem() != pem:
            raise KeyMaterialError("the public sealing key is not exactly two PEM blocks as Portcullis writes them")
        return key

    def to_pem(self) -> bytes:
        """Write both parts as SubjectPublicKeyInfo PEM."""
        return self._encode(Encoding.PEM)

    @property
    def key_id(self) -> str:
        """SHA-256 (hex) of the DER of both parts."""
        return sha256(self._encode(Encoding.DER))

    def wrap(self, dek: bytes, context: Mapping[str, str]) -> bytes:
        """As `Recipient.wrap`; an X25519 point of low order is degenerate."""
        try:
            public = MLKEM768X25519PublicKey(self.mlkem, self.x25519)
            return _SUITE.encrypt(dek, public, info=_info(self.key_id, context))
        except ValueError as error:
            raise KeyMaterialError(f"the recipient's key {self.key_id} cannot be sealed for") from error

    def _encode(self, encoding: Encoding) -> bytes:
        form = PublicFormat.SubjectPublicKeyInfo
        return self.mlkem.public_bytes(encoding, form) + self.x25519.public_bytes(encoding, form)

    def __repr__(self) -> str:
        return f"SealingPublicKey(key_id={self.key_id!r})"


@dataclass(frozen=True, eq=False, repr=False)
class SealingPrivateKey:
    """The key that opens. Whatever `from_pem` accepts, `to_pem` writes again, byte for byte."""

    mlkem: MLKEM768PrivateKey
    x25519: X25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        """Draw a new key from the operating system's random generator."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read two unencrypted PEM blocks of PKCS #8, ML-KEM-768 (its 64-byte seed) then X25519, and nothing else.

        Raises:
            KeyMaterialError: It is anything else, be it a blank line more.
        """
        with _key_errors("private"):
            mlkem, x25519 = (load_pem_private_key(block, password=None) for block in _blocks(pem))
        if not isinstance(mlkem, MLKEM768PrivateKey) or not isinstance(x25519, X25519PrivateKey):
            raise KeyMaterialError("a private sealing key is an ML-KEM-768 key, then an X25519 key")
        key = cls(mlkem, x25519)
        if not hmac.compare_digest(key.to_pem(), pem):
            raise KeyMaterialError("the private sealing key is not exactly two PEM blocks as Portcullis writes them")
        return key

    def to_pem(self) -> bytes:
        """Write both parts as unencrypted PKCS #8 PEM; the caller keeps it secret."""
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self.mlkem.private_bytes(*form) + self.x25519.private_bytes(*form)

    def public_key(self) -> SealingPublicKey:
        """Return the key that seals for this one."""
        return SealingPublicKey(self.mlkem.public_key(), self.x25519.public_key())

    @property
    def key_id(self) -> str:
        """That of the public key."""
        return self.public_key().key_id

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """As `Opener.unwrap`."""
        key_id = self.key_id
        try:
            pair = MLKEM768X25519PrivateKey(self.mlkem, self.x25519)
            return _SUITE.decrypt(wrapped, pair, info=_info(key_id, context))
        except InvalidTag as error:
            raise SealError(f"the entry of key {key_id} was altered, or it was sealed for another context") from error

    def __repr__(self) -> str:
        return f"SealingPrivateKey(key_id={self.key_id!r})"


def wrap_dek(dek: bytes, recipients: Collection[Recipient], *, context: Mapping[str, str]) -> bytes:
    """Wrap a data encryption key for each recipient; returns the sidecar, canonical JSON (docs/sealed-format.md).

    Args:
        dek: 32 random bytes.
        recipients: One to 1000 different keys.
        context: As for `seal`; bound into every entry, and not written into the sidecar.

    Raises:
        KeyMaterialError: `dek` is not 32 bytes, or a recipient's key is degenerate, or a service did not wrap.
        UsageError: There is no recipient, too many, or one twice; the context is empty or not printable text.
    """
    check_dek(dek)
    check_context(context)
    keys = {key.key_id: key for key in recipients}
    if len(keys) != len(recipients) or not 0 < len(keys) <= MAX_RECIPIENTS:
        raise UsageError(f"seal for 1 to {MAX_RECIPIENTS} recipients, each named once")
    wrapped = {key_id: key.wrap(dek, context) for key_id, key in sorted(keys.items())}
    return _sidecar(dek, wrapped)


def unwrap_dek(sidecar: bytes, private_key: Opener, *, context: Mapping[str, str]) -> bytes:
    """Return the data encryption key of 32 bytes that a sidecar holds for this key.

    Raises:
        SealError: A byte of the sidecar was altered, the key is not among its recipients, or the context is another.
        KeyMaterialError: A service holds the key and did not unwrap.
        UsageError: The context is empty or not printable text.
    """
    check_context(context)
    wrapped = _parse_sidecar(sidecar)
    key_id = private_key.key_id
    if key_id not in wrapped:
        raise SealError(f"this is the wrong key: {key_id} is not among the recipients")
    dek = private_key.unwrap(wrapped[key_id], context)
    if len(dek) != DEK_SIZE or not hmac.compare_digest(_sidecar(dek, wrapped), sidecar):
        raise SealError("the list of recipients was altered")
    return dek


def _info(key_id: str, context: Mapping[str, str]) -> bytes:
    return canonical_json({"context": dict(context), "format": FORMAT, "key_id": key_id})


def _sidecar(dek: bytes, wrapped: Mapping[str, bytes]) -> bytes:
    """Build the one sidecar of these wrapped keys, ordered by key id."""
    entries = [{"key_id": key_id, "wrapped": blob.hex()} for key_id, blob in sorted(wrapped.items())]
    fields = {"format": FORMAT, "recipients": entries}
    mac_key = derive(dek, salt=None, info=FORMAT.encode(), length=32)
    mac = hmac.digest(mac_key, canonical_json(fields), "sha256")
    return canonical_json(fields | {"mac": mac.hex()})


def claimed_recipients(sidecar: bytes) -> list[str]:
    """Return the key ids, sorted, that a sidecar lists; nothing of it is authentic before `unwrap_dek` has opened it.

    Raises:
        SealError: The sidecar is malformed.
    """
    return sorted(_parse_sidecar(sidecar))


def _parse_sidecar(sidecar: bytes) -> dict[str, bytes]:
    """Return the wrapped keys that a sidecar claims, by key id; nothing of it is authentic yet."""
    try:
        entries = parse_json(sidecar)["recipients"]
        wrapped = {entry["key_id"]: bytes.fromhex(entry["wrapped"]) for entry in entries}
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise SealError("the list of recipients was altered: it is malformed") from error
    if not all(is_digest(key_id) or is_service_uri(key_id) for key_id in wrapped):
        raise SealError("the list of recipients was altered: a key id is malformed")
    if not all(len(blob) <= MAX_WRAPPED for blob in wrapped.values()):
        raise SealError("the list of recipients was altered: a wrapped key is too long")
    return wrapped


def _blocks(pem: bytes) -> tuple[bytes, bytes]:
    second = pem.find(b"-----BEGIN", 1)
    return pem[:second], pem[second:]


@contextlib.contextmanager
def _key_errors(kind: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyMaterialError(f"not a {kind} sealing key: two unencrypted PEM blocks are expected") from error
