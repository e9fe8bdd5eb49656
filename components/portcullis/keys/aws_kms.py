"""AWS Key Management Service, by boto3: `Encrypt`, `Decrypt`, `GetPublicKey`, `Sign` (AWS KMS API Reference).

The context is sent as KMS's *encryption context*: it is bound to the ciphertext, logged by CloudTrail, and IAM policies
can demand it (`kms:EncryptionContext:model`). Keys are named by their own ARN, never by an alias, which can be moved.

A signing key is of the spec ECC_NIST_P256. KMS signs Ed25519 too, but takes at most 4096 bytes for it where evidence is
longer, and its prehashed variant is another algorithm; so such a key is refused.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import (
    KeyMaterialError,
    KeyServiceError,
    MissingDependencyError,
    PortcullisError,
    SealError,
    UsageError,
)
from portcullis.keys.encoding import MAX_BYTES
from portcullis.keys.https import CONNECT_SECONDS, READ_SECONDS, unsafe_endpoint

_SEALED_OTHERWISE = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


@dataclass(frozen=True)
class AwsKmsKey:
    """A key of AWS KMS."""

    uri: str
    region: str = field(repr=False)

    @property
    def _arn(self) -> str:
        return self.uri.removeprefix("aws-kms:")

    def encrypt(self, payload: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.encrypt`; so are the others."""
        answer = self._ask("encrypt", KeyId=self._arn, Plaintext=payload, EncryptionContext=dict(context))
        return self._bytes(answer, "CiphertextBlob")

    def decrypt(self, encrypted: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.decrypt`."""
        try:
            answer = self._ask("decrypt", KeyId=self._arn, CiphertextBlob=encrypted, EncryptionContext=dict(context))
        except KeyServiceError as error:
            if error.code in _SEALED_OTHERWISE:
                raise SealError(f"{self.uri} does not open this: altered, or for another context") from error
            raise
        return self._bytes(answer, "Plaintext")

    def public_pem(self) -> str:
        """As `ServiceKey.public_pem`."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

        answer = self._ask("get_public_key", KeyId=self._arn)
        try:
            key = load_der_public_key(self._bytes(answer, "PublicKey"))
        except (ValueError, UnsupportedAlgorithm):
            raise KeyServiceError(f"{self.uri}: the service answered with no public key") from None
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, message: bytes, algorithm: str) -> bytes:
        """As `ServiceKey.sign`."""
        if algorithm != "ecdsa-p256":
            raise KeyMaterialError(
                f"{self.uri}: AWS KMS signs evidence by ECC_NIST_P256 keys only; {algorithm} it cannot"
            )
        digest = bytes.fromhex(sha256(message))
        how = {"MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}
        return self._bytes(self._ask("sign", KeyId=self._arn, Message=digest, **how), "Signature")

    def _ask(self, operation: str, **request: Any) -> Mapping[str, Any]:
        with _errors(self.uri):
            client = _client(self.uri, self.region)
            answer: Mapping[str, Any] = getattr(client, operation)(**request)
        if answer.get("KeyId") != self._arn:
            raise KeyServiceError(f"{self.uri}: the service answered for another key")
        return answer

    def _bytes(self, answer: Mapping[str, Any], name: str) -> bytes:
        data = answer.get(name)
        if not isinstance(data, bytes) or not 0 < len(data) <= MAX_BYTES:
            raise KeyServiceError(f"{self.uri}: the answer is malformed: it lacks {name}")
        return data


def _client(uri: str, region: str) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{uri} needs boto3: pip install 'kfp-portcullis[aws]'") from error
    logging.getLogger("botocore").setLevel(logging.INFO)  # below, it logs what is sent and what comes back: keys
    unsafe = unsafe_endpoint()
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"total_max_attempts": 1},
        ignore_configured_endpoint_urls=True,  # the URI says where the key is
    )
    client = boto3.session.Session().client("kms", region_name=region, endpoint_url=unsafe, config=config)
    if not client.meta.endpoint_url.startswith("https://") and client.meta.endpoint_url != unsafe:
        raise UsageError(f"{uri}: a key service is asked over https only")
    return client


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except PortcullisError:
        raise
    except Exception as error:
        from botocore import exceptions

        if isinstance(error, exceptions.ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            code = code if code.isidentifier() else "unknown"
            raise KeyServiceError(f"{uri}: the service refused ({code})", code=code) from None
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            raise KeyMaterialError(f"{uri}: no AWS credentials here; set AWS_ROLE_ARN or AWS_ACCESS_KEY_ID …") from None
        if isinstance(error, exceptions.BotoCoreError):
            raise KeyServiceError(f"{uri}: the service did not answer: {type(error).__name__}") from None
        if isinstance(error, AttributeError | KeyError | TypeError | ValueError):  # botocore, of JSON it did not expect
            raise KeyServiceError(f"{uri}: the answer is malformed") from None
        raise
