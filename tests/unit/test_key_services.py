"""Keys that a service holds: what is asked of it, what it may answer, and whom it may be asked of."""

import datetime as dt
import logging
import ssl

import key_services
import pytest
from botocore.loaders import Loader
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from foreign import ForeignPipeline, step
from key_services import RING, VERSION, AwsKms, AzureKeyVault, GoogleKms, Vault, arn_of
from moto import mock_aws

from portcullis.attestation.stage import start_chain
from portcullis.digest import tree_digest
from portcullis.encryption.stage import encrypt, sealing_context
from portcullis.errors import KeyMaterialError, KeyServiceError, PolicyError, SealError, UsageError
from portcullis.keys import PublicKey, Signer, variables_for
from portcullis.keys import https as asking
from portcullis.keys.https import MAX_ANSWER_BYTES, UNSAFE_ENV
from portcullis.keys.service import is_service_uri, service_key
from portcullis.sealing.recipients import opener_at, recipient_at, unwrap_dek, wrap_dek
from portcullis.sealing.sealed import open_directory, rewrap, sealed_digest, sealed_recipients

CONTEXT = {"digest": "5f" * 32, "model": "cheque-digits"}
DEK = bytes(range(32))
LOADER = Loader()
KEYS = {
    "aws-kms": f"aws-kms:{arn_of('serving')}",
    "gcp-kms": f"gcp-kms:{RING}/serving",
    "azure-kv": f"azure-kv:acme-models.vault.azure.net/keys/serving/{VERSION}",
    "vault-transit": "vault-transit:vault.acme.example:8200/transit/keys/serving",
}
SIGNING = {
    "aws-kms": f"aws-kms:{arn_of('ecdsa')}",
    "gcp-kms ECDSA": f"gcp-kms:{RING}/ecdsa/cryptoKeyVersions/1",
    "gcp-kms Ed25519": f"gcp-kms:{RING}/ed/cryptoKeyVersions/1",
    "azure-kv": f"azure-kv:acme-models.vault.azure.net/keys/signing/{VERSION}",
    "vault-transit ECDSA": "vault-transit:vault.acme.example:8200/transit/keys/ecdsa/2",
    "vault-transit Ed25519": "vault-transit:vault.acme.example:8200/transit/keys/ed/1",
}


@pytest.fixture
def clean(monkeypatch, tmp_path):
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)  # reads megabytes of JSON once
    for name in ("VAULT_TOKEN", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_ID", UNSAFE_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.fixture
def services(clean, tmp_path):
    """Start the service of a URI when it is first asked for; the environment points to it."""
    kinds = {"aws-kms": AwsKms, "azure-kv": AzureKeyVault, "vault-transit": Vault}
    running = []

    def start(uri):
        scheme = uri.partition(":")[0]
        service = GoogleKms(folder=tmp_path) if scheme == "gcp-kms" else kinds[scheme]()
        running.append(key_services.serving(service))
        running[-1].__enter__()
        for name, value in {**service.environment, UNSAFE_ENV: service.url}.items():
            clean.setenv(name, value)
        return service

    yield start
    for each in running:
        each.__exit__(None, None, None)


def wrapped_for(uri):
    return wrap_dek(DEK, [recipient_at(uri)], context=CONTEXT)


def answer(status, data=b"{}"):
    return lambda _: (status, data)


FAULTS = {
    "forbidden": answer(403, b'{"error": {"code": "Forbidden", "status": "PERMISSION_DENIED", "message": "no"}}'),
    "broken": answer(500, b"<html>oops"),
    "overloaded": answer(503),
    "too many requests": answer(429),
    "sends elsewhere": answer(302),
    "empty": answer(200, b""),
    "no object": answer(200, b"[]"),
    "no fields": answer(200, b"{}"),
    "nothing in them": answer(200, b'{"data": {}, "KeyId": 7, "name": null, "kid": [], "value": {}}'),
    "truncated": lambda data: (200, data[:-20]),
    "not JSON": lambda data: (200, b"!" + data),
    "too large": lambda data: (200, data[:-1] + b', "padding": "' + b"x" * MAX_ANSWER_BYTES + b'"}'),
}


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_a_faulty_answer_is_refused_in_one_line_and_nothing_is_asked_twice(services, uri):
    service = services(uri)
    sidecar = wrapped_for(uri)
    for fault, disturb in FAULTS.items():
        if uri.startswith("aws-kms") and fault == "too large":
            continue  # boto3 reads the answer; what is too large in it is refused below
        service.disturb, service.asked[:] = disturb, []
        for attempt in (lambda: wrapped_for(uri), lambda: unwrap_dek(sidecar, opener_at(uri), context=CONTEXT)):
            with pytest.raises(KeyServiceError) as refused:
                attempt()
            assert uri in str(refused.value) and "\n" not in str(refused.value), fault
            assert len(str(refused.value)) < 400 and refused.value.__cause__ is None, fault
        assert len(service.asked) == 2, fault


def test_an_oversized_ciphertext_of_aws_is_refused(services):
    service = services(KEYS["aws-kms"])
    service.edit = lambda it: it.update(CiphertextBlob="A" * 40_000)
    with pytest.raises(KeyServiceError, match="CiphertextBlob"):
        wrapped_for(KEYS["aws-kms"])


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_a_service_that_hangs_is_given_up(services, clean, uri):
    service = services(uri)
    service.delay = 1.0
    for module in (asking, __import__("portcullis.keys.aws_kms", fromlist=["x"])):
        clean.setattr(module, "READ_SECONDS", 0.2)
    with pytest.raises(KeyServiceError, match="did not answer"):
        wrapped_for(uri)
    assert len(service.asked) == 1


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_a_service_that_is_not_there_is_an_error(services, clean, uri):
    services(uri)
    clean.setenv(UNSAFE_ENV, "http://127.0.0.1:9")
    with pytest.raises(KeyServiceError, match="did not answer"):
        wrapped_for(uri)


ANOTHER = {
    "aws-kms": lambda it: it.update(KeyId=arn_of("other")),
    "gcp-kms": lambda it: it.update(name=f"{RING}/other/cryptoKeyVersions/1"),
    "azure-kv": lambda it: it.update(kid=f"https://acme-models.vault.azure.net/keys/serving/{VERSION[::-1]}"),
    "vault-transit": lambda it: it["data"].update(ciphertext="vault:vX:AAAA"),
}


@pytest.mark.parametrize("scheme", KEYS)
def test_an_answer_for_another_key_is_refused(services, scheme):
    services(KEYS[scheme]).edit = ANOTHER[scheme]
    with pytest.raises(KeyServiceError):
        wrapped_for(KEYS[scheme])


@pytest.mark.parametrize(
    "edit",
    [
        lambda it: it.update(ciphertextCrc32c="1"),
        lambda it: it.pop("ciphertextCrc32c"),
        lambda it: it.update(verifiedPlaintextCrc32c=False),
        lambda it: it.pop("verifiedAdditionalAuthenticatedDataCrc32c"),
    ],
)
def test_an_answer_of_google_that_was_damaged_on_its_way_is_refused(services, edit):
    services(KEYS["gcp-kms"]).edit = edit
    with pytest.raises(KeyServiceError):
        wrapped_for(KEYS["gcp-kms"])


@pytest.mark.parametrize("scheme", ["aws-kms", "gcp-kms", "azure-kv", "vault-transit"])
def test_another_key_that_a_service_gives_back_opens_nothing(services, scheme):
    service = services(KEYS[scheme])
    sidecar = wrapped_for(KEYS[scheme])
    payload = bytes(64)
    service.edit = {
        "aws-kms": lambda it: it.update(Plaintext=key_services.b64(payload)),
        "gcp-kms": lambda it: it.update(plaintext=key_services.b64(payload), plaintextCrc32c=key_services.crc(payload)),
        "azure-kv": lambda it: it.update(value=key_services.url64(payload)),
        "vault-transit": lambda it: it["data"].update(plaintext=key_services.b64(payload)),
    }[scheme]
    with pytest.raises(SealError):
        unwrap_dek(sidecar, opener_at(KEYS[scheme]), context=CONTEXT)


def test_what_a_service_is_told_of_the_context(services):
    aws = services(KEYS["aws-kms"])
    wrapped_for(KEYS["aws-kms"])
    assert aws.asked[0][2]["EncryptionContext"] == CONTEXT
    google = services(KEYS["gcp-kms"])
    wrapped_for(KEYS["gcp-kms"])
    bound = key_services.unb64(google.asked[0][2]["additionalAuthenticatedData"])
    assert CONTEXT["digest"].encode() in bound and CONTEXT["model"].encode() in bound
    vault = services(KEYS["vault-transit"])
    wrapped_for(KEYS["vault-transit"])
    assert CONTEXT["digest"].encode() in key_services.unb64(vault.asked[0][2]["associated_data"])


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_without_credentials_nothing_is_asked(services, clean, uri):
    service = services(uri)
    for name in service.environment:
        clean.delenv(name, raising=False)
    clean.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    clean.setenv("NO_GCE_CHECK", "true")
    clean.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(KeyMaterialError, match=r"credentials here|token here") as refused:
        wrapped_for(uri)
    assert "\n" not in str(refused.value)
    assert not service.asked


def test_a_pod_logs_in_at_vault_by_its_service_account(services, clean, tmp_path):
    uri = KEYS["vault-transit"]
    services(uri)
    clean.delenv("VAULT_TOKEN")
    clean.setenv("PORTCULLIS_VAULT_ROLE", "serving")
    pod = tmp_path / "token"
    clean.setattr("portcullis.keys.vault_transit.POD_TOKEN", pod)
    with pytest.raises(KeyMaterialError, match="service account"):
        wrapped_for(uri)
    pod.write_text(key_services.JWT + "\n")
    assert unwrap_dek(wrapped_for(uri), opener_at(uri), context=CONTEXT) == DEK


@pytest.mark.parametrize("token", ["two words", "a\nb", "\u00e9", "x" * 20_000])
def test_a_malformed_vault_token_is_sent_nowhere(services, clean, token):
    service = services(KEYS["vault-transit"])
    clean.setenv("VAULT_TOKEN", token)
    with pytest.raises(KeyMaterialError, match="one line of ASCII") as refused:
        wrapped_for(KEYS["vault-transit"])
    assert token[:9] not in str(refused.value)
    assert not service.asked


def certificate(folder):
    """A certificate for 127.0.0.1 that nobody vouches for."""
    import ipaddress

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault")])
    start = dt.datetime.now(dt.UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


def test_a_service_is_asked_over_tls_and_must_prove_who_it_is(clean, tmp_path):
    with key_services.serving(Vault(), certificate(tmp_path)) as vault:
        for name, value in vault.environment.items():
            clean.setenv(name, value)
        uri = f"vault-transit:{vault.url.removeprefix('https://')}/transit/keys/serving"
        with pytest.raises(KeyServiceError, match="did not answer"):
            wrapped_for(uri)
        clean.setenv("VAULT_CACERT", str(tmp_path / "nothing"))
        with pytest.raises(KeyServiceError, match="did not answer"):
            wrapped_for(uri)
        clean.setenv("VAULT_CACERT", str(tmp_path / "ca.pem"))
        assert unwrap_dek(wrapped_for(uri), opener_at(uri), context=CONTEXT) == DEK
        named = uri.replace("127.0.0.1", "localhost")
        with pytest.raises(KeyServiceError, match="did not answer"):
            wrapped_for(named)
    assert len(vault.asked) == 2


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_plain_text_is_for_this_machine_only(services, clean, uri):
    services(uri)
    for endpoint in ("http://vault.acme.example:8200", "http://127.0.0.1", "ftp://127.0.0.1:1", "x"):
        clean.setenv(UNSAFE_ENV, endpoint)
        with pytest.raises(UsageError, match="for tests"):
            wrapped_for(uri)


def test_what_is_unsafe_is_logged_and_nothing_else_is_plain(services, caplog):
    services(KEYS["vault-transit"])
    with caplog.at_level(logging.WARNING):
        wrapped_for(KEYS["vault-transit"])
    assert "without TLS" in caplog.text
    with pytest.raises(UsageError, match="https only"):
        asking.ask("vault-transit:x", "GET", "http://10.0.0.1/v1/x", headers={})


def test_no_environment_variable_sends_a_key_elsewhere(services, clean):
    service = services(KEYS["aws-kms"])
    clean.delenv(UNSAFE_ENV)
    clean.setenv("AWS_ENDPOINT_URL_KMS", service.url)
    clean.setenv("AWS_ENDPOINT_URL", service.url)
    from portcullis.keys.aws_kms import _client

    assert _client(KEYS["aws-kms"], "eu-west-1").meta.endpoint_url == "https://kms.eu-west-1.amazonaws.com"


MALFORMED = [
    "",
    "aws-kms:",
    "aws-kms:alias/serving",
    "aws-kms:arn:aws:kms:eu-west-1:111122223333:alias/serving",
    "aws-kms:arn:aws:kms:evil.example#:111122223333:key/x",
    f"gcp-kms:{RING}/serving/",
    f"gcp-kms:{RING}/../serving",
    f"gcp-kms:{RING}/serving/cryptoKeyVersions/0",
    f"gcp-kms:{RING}/serving?x=y",
    f"azure-kv:evil.example/keys/serving/{VERSION}",
    f"azure-kv:vault.azure.net/keys/serving/{VERSION}",
    "azure-kv:acme.vault.azure.net/keys/serving",
    f"azure-kv:acme.vault.azure.net:444/keys/serving/{VERSION}",
    f"azure-kv:x@acme.vault.azure.net/keys/serving/{VERSION}",
    "vault-transit:vault/transit/serving",
    "vault-transit:user:password@vault/transit/keys/serving",
    "vault-transit:vault/../keys/serving",
    "vault-transit:vault/transit/keys/serving/0",
    "vault-transit:vault/transit/keys/serving#x",
    "http:vault/transit/keys/serving",
    *(f"{uri}\n" for uri in KEYS.values()),
]


@pytest.mark.parametrize("uri", MALFORMED)
def test_no_other_uri_names_a_key(uri):
    assert not is_service_uri(uri)
    with pytest.raises(KeyMaterialError):
        service_key(uri)
    with pytest.raises(KeyMaterialError):
        recipient_at(uri)


@pytest.mark.parametrize("uri", SIGNING.values(), ids=SIGNING)
def test_a_service_signs_and_its_key_is_pinned(services, uri, tmp_path):
    service = services(uri)
    (tmp_path / "train.pem").write_text(f"{uri}\n")
    (tmp_path / "train.pem").chmod(0o600)
    signer = Signer.from_uri(f"file:{tmp_path}/train.pem")
    message = b"m" * 10_000  # evidence is longer than the 4096 bytes that AWS KMS signs as they are
    assert signer.public_key.verifies(signer.sign(message), message)
    assert PublicKey.from_pem(signer.public_key.pem) == signer.public_key
    assert key_services.TOKEN not in repr(signer)
    with pytest.raises(KeyMaterialError, match="does not leave"):
        signer.private_pem()
    with pytest.raises(KeyMaterialError, match="nothing can be derived"):
        signer.derive(b"x")
    for name in ("signing", "keys"):
        held = getattr(service, name, {})
        for key, value in list(held.items()):  # another key takes its place
            fresh = Signer.generate(signer.public_key.algorithm)._key
            held[key] = [fresh] * len(value) if isinstance(value, list) else fresh
    with pytest.raises(KeyServiceError, match="another key"):
        signer.sign(message)
    service.disturb = FAULTS["forbidden"]
    with pytest.raises(KeyServiceError, match="refused"):
        signer.sign(message)


def test_a_signature_by_another_version_is_refused(services):
    uri = SIGNING["vault-transit ECDSA"]
    service = services(uri)
    signer = Signer.of_service(uri)
    service.edit = lambda it: it["data"].update(signature=it["data"]["signature"].replace(":v2:", ":v1:"))
    with pytest.raises(KeyServiceError, match="version 2"):
        signer.sign(b"message")


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        (f"aws-kms:{arn_of('ed')}", "ECC_NIST_P256"),
        (f"gcp-kms:{RING}/ecdsa", "names no version"),
        ("vault-transit:vault.acme.example:8200/transit/keys/ecdsa", "names no version"),
        (f"azure-kv:acme-models.vault.azure.net/keys/serving/{VERSION}", "P-256"),
    ],
)
def test_a_key_that_does_not_sign_evidence_says_so(services, uri, match):
    service = services(uri)
    service.keys = {name: _Rsa(key) for name, key in getattr(service, "keys", {}).items()}
    with pytest.raises(KeyMaterialError, match=match):
        Signer.of_service(uri).sign(b"message")


class _Rsa:
    """An RSA key as Key Vault describes it; the simulator's own answer is of EC keys."""

    def __init__(self, key):
        self.key = key

    def public_key(self):
        return self

    def public_numbers(self):
        raise key_services.RefusedError(
            200,
            {"key": {"kid": f"https://acme-models.vault.azure.net/keys/serving/{VERSION}", "kty": "RSA", "n": "AQAB"}},
        )


def test_moto_takes_what_is_asked_of_aws(clean):
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        clean.setenv(name, "test")
    with mock_aws():
        kms = boto3.client("kms", region_name="eu-west-1")
        uri = f"aws-kms:{kms.create_key()['KeyMetadata']['Arn']}"
        sidecar = wrapped_for(uri)
        assert unwrap_dek(sidecar, opener_at(uri), context=CONTEXT) == DEK
        with pytest.raises(SealError):
            unwrap_dek(sidecar, opener_at(uri), context={**CONTEXT, "model": "another"})


@pytest.mark.parametrize("uri", KEYS.values(), ids=KEYS)
def test_a_model_is_sealed_for_a_service_and_opened_by_it(services, clean, tmp_path, uri):
    service = services(uri)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    seal = step("encrypt", "encrypt", {"model": "start_chain.artifact"}, "sealed") | {
        "parameters": {"recipients": [uri]}
    }
    pipeline = ForeignPipeline(tmp_path, clean, seal)
    signing = next(it for it in SIGNING.values() if it.startswith(uri.partition(":")[0]))
    pipeline.keys["encrypt"], pipeline.put_key = Signer.of_service(signing), lambda *_: None
    pipeline.furnish()
    (tmp_path / "keys" / "encrypt.pem").write_text(signing)
    (tmp_path / "keys" / "serving.pub.pem").write_text(f"{uri}\n")
    (tmp_path / "keys" / "serving.pub.pem").chmod(0o600)
    begun = tmp_path / "begun"
    start_chain(step="start_chain", artifact=model, bundle=begun)
    sealed = tmp_path / "sealed"
    arguments = {"step": "encrypt", "model": model, "evidence": begun, "sealed": sealed}

    def run(recipient):
        return encrypt(**arguments, recipients=[recipient], bundle=tmp_path / "bundle")

    with pytest.raises(PolicyError):
        run(uri.replace("serving", "other"))
    service.disturb = FAULTS["forbidden"]
    with pytest.raises(KeyServiceError):
        run(uri)
    assert not sealed.exists() and not (tmp_path / "bundle").exists()
    service.disturb = None
    digest = run(uri)
    assert digest == sealed_digest(sealed) and sealed_recipients(sealed) == [uri]
    context = sealing_context("foreign", tree_digest(model))
    rewrap(sealed, opener=opener_at(uri), recipients=[recipient_at(uri)], context=context)
    assert sealed_digest(sealed) == digest
    opened = open_directory(sealed, private_key=opener_at(uri), context=context)
    assert opened == {"weights.safetensors": bytes(range(256)) * 8}
    with pytest.raises(SealError):
        open_directory(sealed, private_key=opener_at(uri), context=sealing_context("another", tree_digest(model)))


def test_a_child_is_handed_on_what_authorises_it(tmp_path, clean):
    for name, text in {"serving.pem": KEYS["vault-transit"], "deploy.pem": "-----BEGIN PRIVATE KEY-----"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    assert "VAULT_TOKEN" in variables_for(f"file:{tmp_path}/serving.pem")
    assert variables_for(f"file:{tmp_path}/deploy.pem") == ()
    clean.setenv("A_KEY", KEYS["aws-kms"])
    assert {"A_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE"} <= set(variables_for("env:A_KEY"))
