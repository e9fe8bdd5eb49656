"""Key services on loopback, from their published API references, which check what they are sent and compute for real.

- Google Cloud KMS: REST reference v1, projects.locations.keyRings.cryptoKeys `encrypt`, `decrypt`, cryptoKeyVersions
  `getPublicKey`, `asymmetricSign`; the token for a service account's key ("Using OAuth 2.0 for server to server").
- Azure Key Vault: Keys REST reference 7.4, `Wrap Key`, `Unwrap Key`, `Sign`, `Get Key`; the token from App Service's
  managed identity endpoint (REST reference, 2019-08-01).
- HashiCorp Vault: Transit secrets engine (HTTP API), `encrypt`, `decrypt`, `sign`, `keys`; Kubernetes auth `login`.

- AWS Key Management Service: API Reference, `Encrypt`, `Decrypt`, `GetPublicKey`, `Sign`, asked by the real boto3. moto
  stands beside it, which does not refuse a disabled key.

Whatever a request holds that the references do not know is a complaint, which fails the test.
"""

import base64
import contextlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import google_crc32c
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

TOKEN = "hvs.simulated-token-of-a-workload"
JWT = "simulated.pod.token"
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
PREHASHED = ec.ECDSA(Prehashed(hashes.SHA256()))

RING = "projects/acme/locations/europe-west1/keyRings/portcullis/cryptoKeys"
GCP_KEY, GCP_OTHER = f"{RING}/serving", f"{RING}/other"
VERSION = "0123456789abcdef0123456789abcdef"
AZURE_HOST = "https://acme-models.vault.azure.net"


class RefusedError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status, self.body = status, body


RSA = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("serving", "other", "gcp")}


@dataclass
class Service:
    """What every simulated service does: hold keys, be disturbed, write down what it was asked.

    Attributes:
        disturb: What is answered instead, given what would be: a status and bytes; None to answer as it should.
        edit: Changes the answer's JSON before it is sent.
        disabled: Names of keys that are disabled.
        asked: Of each request for a key: method, path, and JSON body.
        complaints: What was sent that the API reference does not know.
    """

    url: str = ""
    delay: float = 0
    disturb: Callable[[bytes], tuple[int, bytes]] | None = None
    edit: Callable[[dict[str, Any]], None] | None = None
    disabled: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def must(self, holds: object, complaint: str) -> None:
        if not holds:
            self.complaints.append(complaint)
            raise RefusedError(400, {"complaint": complaint})

    def fields(self, body: Mapping[str, Any], **known: type) -> None:
        """Complain unless the body has exactly these fields, of these types."""
        found = {name: type(value) for name, value in body.items()}
        self.must(found == known, f"fields {found}, not {known}")

    def token(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        """Answer a request for a token, None if it is none."""
        raise NotImplementedError

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def environment(self) -> dict[str, str]:
        """What a process that may use the keys has in its environment."""
        raise NotImplementedError


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def pem_of(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def crc(data: bytes) -> str:
    return str(google_crc32c.value(data))


def arn_of(name: str) -> str:
    return f"arn:aws:kms:eu-west-1:111122223333:key/{name}"


@dataclass
class AwsKms(Service):
    """Two symmetric keys and two signing keys."""

    symmetric: dict[str, list[bytes]] = field(
        default_factory=lambda: {arn_of(name): [os.urandom(32)] for name in ("serving", "other")}
    )
    signing: dict[str, Any] = field(
        default_factory=lambda: {
            arn_of("ecdsa"): ec.generate_private_key(ec.SECP256R1()),
            arn_of("ed"): ed25519.Ed25519PrivateKey.generate(),
        }
    )

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": TOKEN, "AWS_SESSION_TOKEN": JWT}

    def token(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        return None

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        signed = headers.get("Authorization", "")
        self.must(signed.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), signed)
        self.must("/eu-west-1/kms/aws4_request" in signed, signed)
        self.must(headers.get("X-Amz-Security-Token") == JWT, "X-Amz-Security-Token")
        service, _, operation = headers["X-Amz-Target"].partition(".")
        self.must((method, path, service) == ("POST", "/", "TrentService"), f"{method} {path} {service}")
        arn = body["KeyId"]
        if arn not in {*self.symmetric, *self.signing}:
            raise self._error("NotFoundException")
        if arn in self.disabled:
            raise self._error("DisabledException")
        return {"KeyId": arn, **getattr(self, f"_{operation.lower()}")(arn, body)}

    def _error(self, kind: str) -> RefusedError:
        return RefusedError(400, {"__type": kind, "message": "no"})

    def _bound(self, body: Any) -> bytes:
        context = body["EncryptionContext"]
        self.must(context and all(type(it) is str for entry in context.items() for it in entry), f"{context}")
        return json.dumps(context, sort_keys=True).encode()

    def _encrypt(self, arn: str, body: Any) -> dict[str, Any]:
        self.fields(body, KeyId=str, Plaintext=str, EncryptionContext=dict)
        keys, nonce = self.symmetric[arn], os.urandom(12)
        sealed = AESGCM(keys[-1]).encrypt(nonce, unb64(body["Plaintext"]), self._bound(body))
        return {"CiphertextBlob": b64(bytes([len(keys)]) + nonce + sealed), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}

    def _decrypt(self, arn: str, body: Any) -> dict[str, Any]:
        self.fields(body, KeyId=str, CiphertextBlob=str, EncryptionContext=dict)
        sealed = unb64(body["CiphertextBlob"])
        try:
            key = self.symmetric[arn][sealed[0] - 1]
            plain = AESGCM(key).decrypt(sealed[1:13], sealed[13:], self._bound(body))
        except (InvalidTag, IndexError, ValueError):
            raise self._error("InvalidCiphertextException") from None
        return {"Plaintext": b64(plain), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}

    def _getpublickey(self, arn: str, body: Any) -> dict[str, Any]:
        der = self.signing[arn].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"PublicKey": b64(der), "KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256"}

    def _sign(self, arn: str, body: Any) -> dict[str, Any]:
        self.fields(body, KeyId=str, Message=str, MessageType=str, SigningAlgorithm=str)
        how, digest = (body["MessageType"], body["SigningAlgorithm"]), unb64(body["Message"])
        self.must(how == ("DIGEST", "ECDSA_SHA_256") and len(digest) == 32, f"{how}")
        return {"Signature": b64(self.signing[arn].sign(digest, PREHASHED)), "SigningAlgorithm": how[1]}


@dataclass
class GoogleKms(Service):
    """Two symmetric keys, and versions of two signing keys; the service account's file lies in `folder`."""

    folder: Path = Path()
    symmetric: dict[str, list[bytes]] = field(
        default_factory=lambda: {name: [os.urandom(32)] for name in (GCP_KEY, GCP_OTHER)}
    )
    signing: dict[str, Any] = field(
        default_factory=lambda: {
            f"{RING}/ecdsa/cryptoKeyVersions/1": ec.generate_private_key(ec.SECP256R1()),
            f"{RING}/ecdsa/cryptoKeyVersions/2": ec.generate_private_key(ec.SECP256R1()),
            f"{RING}/ed/cryptoKeyVersions/1": ed25519.Ed25519PrivateKey.generate(),
        }
    )

    @property
    def environment(self) -> dict[str, str]:
        pem = RSA["gcp"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        account = {"type": "service_account", "project_id": "acme", "private_key_id": "1", "private_key": pem}
        account |= {"client_email": "workload@acme.iam.gserviceaccount.com", "token_uri": f"{self.url}/token"}
        (self.folder / "account.json").write_text(json.dumps(account))
        return {"GOOGLE_APPLICATION_CREDENTIALS": str(self.folder / "account.json")}

    def token(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        if path != "/token":
            return None
        form = parse_qs(body)
        self.must(form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"], f"{form}")
        claims = json.loads(base64.urlsafe_b64decode(form["assertion"][0].split(".")[1] + "=="))
        self.must(claims["scope"] == "https://www.googleapis.com/auth/cloudkms", f"{claims}")
        return {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        self.must(headers.get("Authorization") == f"Bearer {TOKEN}", "Authorization")
        self.must(path.startswith("/v1/"), path)
        name, _, verb = path.removeprefix("/v1/").partition(":")
        if method == "GET":
            return self._public_key(name)
        if name.partition("/cryptoKeyVersions/")[0] in self.disabled:
            raise self._error(400, "FAILED_PRECONDITION", f"{name} is not enabled")
        if verb == "asymmetricSign":
            return self._sign(name, body)
        if name not in self.symmetric:
            raise self._error(404, "NOT_FOUND", f"CryptoKey {name} not found.")
        return self._encrypt(name, body) if verb == "encrypt" else self._decrypt(name, body)

    def _error(self, code: int, status: str, message: str) -> RefusedError:
        return RefusedError(code, {"error": {"code": code, "message": message, "status": status}})

    def _checked(self, body: Mapping[str, Any], *names: str) -> list[bytes]:
        self.fields(body, **{name: str for each in names for name in (each, f"{each}Crc32c")})
        data = [unb64(body[name]) for name in names]
        self.must([body[f"{name}Crc32c"] for name in names] == [crc(it) for it in data], "CRC-32C")
        return data

    def _encrypt(self, name: str, body: Any) -> dict[str, Any]:
        plain, bound = self._checked(body, "plaintext", "additionalAuthenticatedData")
        nonce, version = os.urandom(12), len(self.symmetric[name])
        sealed = bytes([version]) + nonce + AESGCM(self.symmetric[name][-1]).encrypt(nonce, plain, bound)
        return {
            "name": f"{name}/cryptoKeyVersions/{version}",
            "ciphertext": b64(sealed),
            "ciphertextCrc32c": crc(sealed),
            "verifiedPlaintextCrc32c": True,
            "verifiedAdditionalAuthenticatedDataCrc32c": True,
            "protectionLevel": "SOFTWARE",
        }

    def _decrypt(self, name: str, body: Any) -> dict[str, Any]:
        sealed, bound = self._checked(body, "ciphertext", "additionalAuthenticatedData")
        try:
            key = self.symmetric[name][sealed[0] - 1]
            plain = AESGCM(key).decrypt(sealed[1:13], sealed[13:], bound)
        except (InvalidTag, IndexError, ValueError):
            raise self._error(400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.") from None
        primary = sealed[0] == len(self.symmetric[name])
        return {"plaintext": b64(plain), "plaintextCrc32c": crc(plain), "usedPrimary": primary}

    def _public_key(self, name: str) -> dict[str, Any]:
        name = name.removesuffix("/publicKey")
        if name not in self.signing:
            raise self._error(404, "NOT_FOUND", f"{name} not found.")
        pem = pem_of(self.signing[name])
        return {"pem": pem, "algorithm": "EC_SIGN_P256_SHA256", "pemCrc32c": crc(pem.encode()), "name": name}

    def _sign(self, name: str, body: Any) -> dict[str, Any]:
        key = self.signing[name]
        if isinstance(key, ed25519.Ed25519PrivateKey):
            (data,) = self._checked(body, "data")
            signature, verified = key.sign(data), "verifiedDataCrc32c"
        else:
            self.fields(body, digest=dict, digestCrc32c=str)
            self.fields(body["digest"], sha256=str)
            digest = unb64(body["digest"]["sha256"])
            self.must(len(digest) == 32 and body["digestCrc32c"] == crc(digest), "digest")
            signature, verified = key.sign(digest, PREHASHED), "verifiedDigestCrc32c"
        return {"signature": b64(signature), "signatureCrc32c": crc(signature), verified: True, "name": name}


@dataclass
class AzureKeyVault(Service):
    """Versions of two RSA keys and an EC key."""

    keys: dict[str, Any] = field(
        default_factory=lambda: {
            f"serving/{VERSION}": RSA["serving"],
            f"other/{VERSION}": RSA["other"],
            f"signing/{VERSION}": ec.generate_private_key(ec.SECP256R1()),
            f"signing/{VERSION[::-1]}": ec.generate_private_key(ec.SECP256R1()),
        }
    )

    @property
    def environment(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": JWT}

    def token(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        asked = urlsplit(path)
        if asked.path != "/msi/token":
            return None
        self.must(headers.get("X-IDENTITY-HEADER") == JWT, "X-IDENTITY-HEADER")
        query = parse_qs(asked.query)
        self.must(query == {"api-version": ["2019-08-01"], "resource": ["https://vault.azure.net"]}, f"{query}")
        expires = str(int(time.time()) + 86400)
        return {"access_token": TOKEN, "expires_on": expires, "resource": query["resource"][0], "token_type": "Bearer"}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        self.must(headers.get("Authorization") == f"Bearer {TOKEN}", "Authorization")
        asked = urlsplit(path)
        self.must(asked.query == "api-version=7.4", asked.query)
        _, folder, name, version, *operation = asked.path.split("/")
        key = self.keys.get(f"{name}/{version}")
        self.must(folder == "keys", asked.path)
        if key is None:
            raise RefusedError(404, {"error": {"code": "KeyNotFound", "message": f"{name}/{version} was not found"}})
        kid = f"{AZURE_HOST}/keys/{name}/{version}"
        if method == "GET":
            point = key.public_key().public_numbers()
            x, y = (url64(it.to_bytes(32)) for it in (point.x, point.y))
            jwk = {"kid": kid, "kty": "EC", "crv": "P-256", "x": x, "y": y, "key_ops": ["sign", "verify"]}
            return {"key": jwk, "attributes": {"enabled": True}}
        if name in self.disabled:
            inner = {"code": "KeyDisabled"}
            raise RefusedError(403, {"error": {"code": "Forbidden", "message": "disabled", "innererror": inner}})
        self.fields(body, alg=str, value=str)
        self.must("=" not in body["value"], "base64url without padding")
        data = base64.urlsafe_b64decode(body["value"] + "=" * (-len(body["value"]) % 4))
        return {"kid": kid, "value": url64(self._operate(operation, body["alg"], key, data))}

    def _operate(self, operation: list[str], algorithm: str, key: Any, data: bytes) -> bytes:
        if operation == ["sign"]:
            self.must(algorithm == "ES256" and len(data) == 32, "ES256 signs a SHA-256")
            r, s = decode_dss_signature(key.sign(data, PREHASHED))
            return r.to_bytes(32) + s.to_bytes(32)
        self.must(algorithm == "RSA-OAEP-256", algorithm)
        if operation == ["wrapkey"]:
            return bytes(key.public_key().encrypt(data, OAEP))
        self.must(operation == ["unwrapkey"], f"{operation}")
        try:
            return bytes(key.decrypt(data, OAEP))
        except ValueError:
            raise RefusedError(400, {"error": {"code": "BadParameter", "message": "The parameter is bad"}}) from None


@dataclass
class Vault(Service):
    """A transit engine at `transit/`: two AEAD keys, and versions of two signing keys."""

    symmetric: dict[str, list[bytes]] = field(
        default_factory=lambda: {name: [os.urandom(32)] for name in ("serving", "other")}
    )
    signing: dict[str, list[Any]] = field(
        default_factory=lambda: {
            "ecdsa": [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)],
            "ed": [ed25519.Ed25519PrivateKey.generate() for _ in range(2)],
        }
    )
    namespace: str = "team-a"

    @property
    def environment(self) -> dict[str, str]:
        return {"VAULT_TOKEN": TOKEN, "VAULT_NAMESPACE": self.namespace}

    def token(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any] | None:
        if path != "/v1/auth/kubernetes/login":
            return None
        self.must(method == "POST" and body == {"role": "serving", "jwt": JWT}, f"{body}")
        return {"auth": {"client_token": TOKEN, "lease_duration": 3600, "renewable": True}}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: Any) -> dict[str, Any]:
        self.must(headers.get("X-Vault-Request") == "true", "X-Vault-Request")
        self.must(headers.get("X-Vault-Namespace") == self.namespace, "X-Vault-Namespace")
        if headers.get("X-Vault-Token") != TOKEN:
            raise RefusedError(403, {"errors": ["permission denied"]})
        _, version, mount, operation, name = path.split("/")
        self.must((version, mount) == ("v1", "transit"), path)
        if name in self.disabled:
            raise RefusedError(403, {"errors": ["1 error occurred:\n\t* permission denied\n\n"]})
        return {"request_id": "1", "lease_duration": 0, "data": self._operate(method, operation, name, body)}

    def _operate(self, method: str, operation: str, name: str, body: Any) -> dict[str, Any]:
        if operation == "keys":
            self.must(method == "GET", method)
            return self._keys(name)
        if operation == "sign":
            return self._sign(name, body)
        bound = unb64(body["associated_data"])
        if operation == "encrypt":
            self.fields(body, plaintext=str, associated_data=str)
            keys, nonce = self.symmetric[name], os.urandom(12)
            sealed = nonce + AESGCM(keys[-1]).encrypt(nonce, unb64(body["plaintext"]), bound)
            return {"ciphertext": f"vault:v{len(keys)}:{b64(sealed)}", "key_version": len(keys)}
        self.must(operation == "decrypt", operation)
        self.fields(body, ciphertext=str, associated_data=str)
        _, version, text = body["ciphertext"].split(":")
        try:
            sealed = unb64(text)
            key = self.symmetric[name][int(version[1:]) - 1]
            return {"plaintext": b64(AESGCM(key).decrypt(sealed[:12], sealed[12:], bound))}
        except (InvalidTag, IndexError, ValueError):
            raise RefusedError(400, {"errors": ["cipher: message authentication failed"]}) from None

    def _keys(self, name: str) -> dict[str, Any]:
        if name not in self.signing:
            raise RefusedError(404, {"errors": []})
        keys = self.signing[name]
        is_ed = isinstance(keys[0], ed25519.Ed25519PrivateKey)
        public = [b64(key.public_key().public_bytes_raw()) if is_ed else pem_of(key) for key in keys]
        versions = {str(index): {"public_key": it} for index, it in enumerate(public, 1)}
        return {"name": name, "type": "ed25519" if is_ed else "ecdsa-p256", "keys": versions}

    def _sign(self, name: str, body: Any) -> dict[str, Any]:
        key = self.signing[name][body["key_version"] - 1]
        data = unb64(body["input"])
        if isinstance(key, ed25519.Ed25519PrivateKey):
            self.fields(body, key_version=int, input=str)
            signature = key.sign(data)
        else:
            self.fields(body, key_version=int, input=str, prehashed=bool, hash_algorithm=str, marshaling_algorithm=str)
            how = (body["prehashed"], body["hash_algorithm"], body["marshaling_algorithm"])
            self.must(how == (True, "sha2-256", "asn1") and len(data) == 32, f"{how}")
            signature = key.sign(data, PREHASHED)
        return {"signature": f"vault:v{body['key_version']}:{b64(signature)}", "key_version": body["key_version"]}


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def _handle(self, method: str) -> None:
        service = self.service
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, length = 200, None
        try:
            is_form = "x-www-form-urlencoded" in self.headers.get("Content-Type", "")
            body = sent.decode() if is_form else json.loads(sent) if sent else None
            answer = service.token(method, self.path, self.headers, body)
            if answer is None:
                service.asked.append((method, self.path, body))
                answer = service.answer(method, self.path, self.headers, body)
                if service.edit:
                    service.edit(answer)
                data = json.dumps(answer).encode()
                if service.disturb:
                    length = len(data)
                    status, data = service.disturb(data)
                    length = length if data and len(data) < length and status == 200 else len(data)
                time.sleep(service.delay)
            else:
                data = json.dumps(answer).encode()
        except RefusedError as refused:
            status, data = refused.status, json.dumps(refused.body).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 302:
                self.send_header("Location", f"{service.url}/elsewhere")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(service: Service, tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    """Serve until the block ends, at `service.url`; nothing may have been sent that the API does not know."""
    handler = type("Handler", (_Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        if tls:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        service.url = f"http{'s' if tls else ''}://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            http.shutdown()
            thread.join()
    assert not service.complaints
