"""Keys that never leave the service that holds them, by URI.

| URI | service |
|---|---|
| `aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID` | AWS Key Management Service |
| `gcp-kms:projects/P/locations/L/keyRings/R/cryptoKeys/K` and, to sign, `/cryptoKeyVersions/N` | Google Cloud KMS |
| `azure-kv:VAULT.vault.azure.net/keys/NAME/VERSION` | Azure Key Vault or Managed HSM |
| `vault-transit:HOST:PORT/MOUNT/keys/NAME` and, to sign, `/N` | HashiCorp Vault's (or OpenBao's) transit engine |

A URI is no secret, and names the service whole, so that a policy which names a key says where it lies; no environment
variable sends a key elsewhere. What authorises a request comes from the service's usual environment or the workload's
identity, never from a URI, a parameter or a file of ours.
"""

import re
from collections.abc import Mapping
from typing import Protocol

from portcullis.errors import KeyMaterialError
from portcullis.keys.https import UNSAFE_ENV

_HOST = r"[a-z0-9](?:[a-z0-9.-]{0,250}[a-z0-9])?"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}"
URIS = {
    "aws-kms": re.compile(
        r"aws-kms:arn:aws(?:-[a-z-]{1,20})?:kms:(?P<region>[a-z0-9-]{1,40}):[0-9]{12}:key/[A-Za-z0-9-]{1,64}"
    ),
    "gcp-kms": re.compile(
        rf"gcp-kms:projects/{_NAME}/locations/{_NAME}/keyRings/{_NAME}/cryptoKeys/{_NAME}"
        r"(?P<version>/cryptoKeyVersions/[1-9][0-9]{0,9})?"
    ),
    "azure-kv": re.compile(
        rf"azure-kv:{_HOST}\.(?P<kind>vault|managedhsm)\.(?:azure\.net|azure\.cn|usgovcloudapi\.net)"
        r"/keys/[A-Za-z0-9-]{1,127}/[0-9a-f]{32}"
    ),
    "vault-transit": re.compile(
        rf"vault-transit:(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/(?P<mount>{_NAME}(?:/{_NAME})*)/keys/(?P<name>{_NAME})"
        r"(?:/(?P<version>[1-9][0-9]{0,9}))?"
    ),
}
# What a process that asks the service may need of its environment, and is handed on to a child that asks too.
VARIABLES = {
    "aws-kms": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE"),
        *("AWS_SHARED_CREDENTIALS_FILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME"),
        *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CA_BUNDLE"),
        *("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_STS_REGIONAL_ENDPOINTS", "HOME"),
    ),
    "gcp-kms": ("GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST", "CLOUDSDK_CONFIG", "HOME"),
    "azure-kv": (
        *("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH"),
        *("AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "HOME"),
    ),
    "vault-transit": ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "PORTCULLIS_VAULT_ROLE", "HOME"),
}


class ServiceKey(Protocol):
    """A key in a service. Its `repr` is its URI."""

    @property
    def uri(self) -> str:
        """Where it lies."""

    def encrypt(self, payload: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:
        """Encrypt at most 128 bytes.

        Args:
            payload: What.
            context: What the service is told, and logs, where it takes names and values.
            bound: The same and more in one byte string, for services that take that.

        Raises:
            KeyServiceError: The service did not.
            KeyMaterialError: This process has nothing that authorises it.
        """

    def decrypt(self, encrypted: bytes, *, context: Mapping[str, str], bound: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            SealError: It was altered, encrypted under another key, or for another context.
            KeyServiceError: The service did not.
            KeyMaterialError: This process has nothing that authorises it.
        """

    def public_pem(self) -> str:
        """Return the public half of a signing key, PEM SubjectPublicKeyInfo.

        Raises:
            KeyServiceError: The service did not tell.
            KeyMaterialError: The URI names no signing key, or this process has nothing that authorises it.
        """

    def sign(self, message: bytes, algorithm: str) -> bytes:
        """Sign: ECDSA P-256 in DER, or 64 bytes of Ed25519.

        Args:
            message: What; of ECDSA only its SHA-256 leaves this process.
            algorithm: `ecdsa-p256` or `ed25519`, as the public half says.

        Raises:
            KeyServiceError: The service did not.
            KeyMaterialError: This service does not sign so, or this process has nothing that authorises it.
        """


def is_service_uri(value: object) -> bool:
    """Tell whether a value is a text and, whole, the URI of a key in a service."""
    pattern = URIS.get(value.partition(":")[0]) if isinstance(value, str) else None
    return pattern is not None and pattern.fullmatch(str(value)) is not None


def service_key(uri: str) -> ServiceKey:
    """Return the key that a URI names; nothing is asked yet.

    Raises:
        KeyMaterialError: The URI is malformed.
    """
    scheme = uri.partition(":")[0]
    match = URIS[scheme].fullmatch(uri) if scheme in URIS else None
    if match is None:
        raise KeyMaterialError(
            f"{uri[:300]!r} names no key of {', '.join(URIS)}; docs/keys.md says how they are written"
        )
    if scheme == "aws-kms":
        from portcullis.keys.aws_kms import AwsKmsKey

        return AwsKmsKey(uri, region=match["region"])
    if scheme == "gcp-kms":
        from portcullis.keys.gcp_kms import GcpKmsKey

        return GcpKmsKey(uri, versioned=match["version"] is not None)
    if scheme == "azure-kv":
        from portcullis.keys.azure_kv import AzureKey

        return AzureKey(uri, kind=match["kind"])
    from portcullis.keys.vault_transit import VaultKey

    return VaultKey(
        uri, host=match["host"], mount=match["mount"], name=match["name"], version=int(match["version"] or 0)
    )


def variables(uri: str) -> tuple[str, ...]:
    """Return the environment variables by which a process may be authorised to use a key.

    Raises:
        KeyMaterialError: The URI is malformed.
    """
    service_key(uri)
    return (*VARIABLES[uri.partition(":")[0]], UNSAFE_ENV)
