"""Azure Key Vault and Managed HSM, by their REST API 7.4: `wrapkey`, `unwrapkey`, `sign`, and getting a key.

Keys wrap by RSA-OAEP-256, which takes no context; it is bound inside what is wrapped (docs/sealed-format.md). A URI
names one version of a key: another version is another recipient. Signing keys are EC P-256 (ES256); Key Vault has no
Ed25519. The token comes from azure-identity (workload or managed identity, or the environment).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError, KeyServiceError, MissingDependencyError, SealError
from portcullis.keys.encoding import decode, encode_url
from portcullis.keys.https import ask, unsafe_endpoint

API_VERSION = "7.4"


@dataclass(frozen=True)
class AzureKey:
    """One version of a key of Azure Key Vault, or of a Managed HSM."""

    uri: str
    kind: str = field(repr=False)

    def encrypt(self, payload: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.encrypt`; so are the others. The service is told no context."""
        return self._operate("wrapkey", "RSA-OAEP-256", payload)

    def decrypt(self, encrypted: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:  # noqa: ARG002
        """As `ServiceKey.decrypt`."""
        try:
            return self._operate("unwrapkey", "RSA-OAEP-256", encrypted)
        except KeyServiceError as error:
            if error.code == "BadParameter":
                raise SealError(f"{self.uri} does not open this: altered, or under another key") from error
            raise

    def public_pem(self) -> str:
        """As `ServiceKey.public_pem`."""
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        answer = ask(self.uri, "GET", self._url(""), headers=self._headers())
        key = answer.get("key")
        if not isinstance(key, dict) or key.get("kid") != self._kid:
            raise KeyServiceError(f"{self.uri}: the service answered for another key")
        if key.get("crv") != "P-256":
            raise KeyMaterialError(f"{self.uri} is no EC key on P-256, which signing takes")
        x, y = (decode(self.uri, key.get(name), url=True) for name in ("x", "y"))
        try:
            point = EllipticCurvePublicKey.from_encoded_point(
                SECP256R1(), b"\4" + x.rjust(32, b"\0") + y.rjust(32, b"\0")
            )
        except ValueError:
            raise KeyServiceError(f"{self.uri}: the service answered with no point of P-256") from None
        return point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, message: bytes, algorithm: str) -> bytes:
        """As `ServiceKey.sign`."""
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

        if algorithm != "ecdsa-p256":
            raise KeyMaterialError(f"{self.uri}: Key Vault signs by ES256 only, not {algorithm}")
        raw = self._operate("sign", "ES256", bytes.fromhex(sha256(message)))
        if len(raw) != 64:
            raise KeyServiceError(f"{self.uri}: the service answered with no signature by ES256")
        return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))

    @property
    def _kid(self) -> str:
        return "https://" + self.uri.removeprefix("azure-kv:")

    def _url(self, operation: str) -> str:
        kid, unsafe = self._kid, unsafe_endpoint()
        if unsafe:
            kid = unsafe + kid[kid.index("/keys/") :]
        return f"{kid}{operation}?api-version={API_VERSION}"

    def _operate(self, operation: str, algorithm: str, data: bytes) -> bytes:
        body = {"alg": algorithm, "value": encode_url(data)}
        answer = ask(self.uri, "POST", self._url(f"/{operation}"), headers=self._headers(), body=body)
        if answer.get("kid") != self._kid:
            raise KeyServiceError(f"{self.uri}: the service answered for another key")
        return decode(self.uri, answer.get("value"), url=True)

    def _headers(self) -> dict[str, str]:
        domain = self.uri.partition("/")[0].partition(f".{self.kind}.")[2]
        return {"Authorization": f"Bearer {_token(self.uri, f'https://{self.kind}.{domain}/.default')}"}


def _token(uri: str, scope: str) -> str:
    try:
        from azure.core.exceptions import AzureError
        from azure.identity import DefaultAzureCredential
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{uri} needs azure-identity: pip install 'kfp-portcullis[azure]'") from error
    try:
        with DefaultAzureCredential() as credential:
            token: Any = credential.get_token(scope).token
    except (AzureError, ValueError, OSError):
        token = None
    if not isinstance(token, str) or not token:
        raise KeyMaterialError(f"{uri}: no Azure credentials here; give the workload an identity that may use the key")
    return token
