"""Keys by URI, and the signing keys made of them."""

import base64
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519

from portcullis.digest import sha256
from portcullis.errors import KeyMaterialError
from portcullis.keys import PublicKey, Signer, resolve, role_uri, symmetric_key
from portcullis.keys.uri import MAX_KEY_BYTES

ALGORITHMS = ("ecdsa-p256", "ed25519")
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P384 = ec.generate_private_key(ec.SECP384R1())
X25519 = x25519.X25519PrivateKey.generate()


def private_pem(key, *, password=None):
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_survives_its_pem_and_verifies_only_its_own_signatures(algorithm):
    signer = Signer.generate(algorithm)
    again = Signer.from_pem(signer.private_pem())
    public = PublicKey.from_pem(signer.public_key.pem)
    assert public == again.public_key == PublicKey.from_pem(public.pem.encode())
    assert public.algorithm == algorithm
    assert public.verifies(again.sign(b"message"), b"message")
    assert not public.verifies(again.sign(b"message"), b"massage")
    assert not Signer.generate(algorithm).public_key.verifies(again.sign(b"message"), b"message")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: b"",
        lambda s: s[:-1],
        lambda s: s + b"\0",
        lambda s: b"\0" * len(s),
        lambda s: bytes([s[0] ^ 1]) + s[1:],
    ],
    ids=["empty", "cut", "longer", "zeros", "flipped"],
)
def test_a_malformed_signature_does_not_verify(algorithm, spoil):
    signer = Signer.generate(algorithm)
    assert not signer.public_key.verifies(spoil(signer.sign(b"message")), b"message")


def test_keys_are_equal_by_what_they_are():
    signer, other = Signer.generate(), Signer.generate()
    assert len({signer.public_key, PublicKey.from_pem(signer.public_key.pem), other.public_key}) == 2


def test_the_keyid_is_the_digest_of_the_key_that_openssl_writes(tmp_path):
    key = Signer.generate().public_key
    (tmp_path / "key.pem").write_text(key.pem)
    command = ["openssl", "pkey", "-pubin", "-in", str(tmp_path / "key.pem"), "-outform", "DER"]
    assert key.keyid == sha256(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signer_does_not_show_its_private_half(algorithm):
    signer = Signer.generate(algorithm)
    assert repr(signer) == str(signer) == f"Signer(public_key={signer.public_key!r})"


BAD_PUBLIC = {
    "nothing": b"",
    "text": "not a key",
    "surrogates": "\ud800",
    "rsa": public_pem(RSA),
    "p-384": public_pem(P384),
    "x25519": public_pem(X25519),
    "private": Signer.generate().private_pem(),
    "cut": Signer.generate().public_key.pem[:-40],
    "der": Signer.generate().public_key.spki,
}


@pytest.mark.parametrize("pem", BAD_PUBLIC.values(), ids=BAD_PUBLIC.keys())
def test_another_public_key_is_refused(pem):
    with pytest.raises(KeyMaterialError):
        PublicKey.from_pem(pem)


BAD_PRIVATE = {
    "nothing": b"",
    "text": b"not a key",
    "rsa": private_pem(RSA),
    "p-384": private_pem(P384),
    "x25519": private_pem(X25519),
    "encrypted": private_pem(ec.generate_private_key(ec.SECP256R1()), password=b"secret"),
    "public": Signer.generate().public_key.pem.encode(),
    "cut": Signer.generate().private_pem()[:-40],
}


@pytest.mark.parametrize("pem", BAD_PRIVATE.values(), ids=BAD_PRIVATE.keys())
def test_another_private_key_is_refused(pem):
    with pytest.raises(KeyMaterialError):
        Signer.from_pem(pem)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "train.pem"
    path.write_bytes(Signer.generate().private_pem())
    path.chmod(0o600)
    return path


def test_a_signer_is_read_from_a_file_or_the_environment(key_file, monkeypatch):
    signer = Signer.from_uri(f"file:{key_file}")
    monkeypatch.setenv("DEMO_TRAIN_PEM", key_file.read_text())
    assert Signer.from_uri("env:DEMO_TRAIN_PEM").public_key == signer.public_key


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o606, 0o610, 0o601, 0o777], ids=oct)
def test_a_key_open_to_others_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(KeyMaterialError, match="chmod 600"):
        resolve(f"file:{key_file}")


@pytest.mark.parametrize(("mode", "allowed"), [(0o444, True), (0o440, True), (0o464, False), (0o446, False)])
def test_a_mounted_secret_may_be_read_but_not_written_by_others(key_file, monkeypatch, mode, allowed):
    key_file.chmod(mode)
    monkeypatch.setattr("portcullis.keys.uri.os.geteuid", lambda: key_file.stat().st_uid + 1)
    if allowed:
        assert resolve(f"file:{key_file}") == key_file.read_bytes()
    else:
        with pytest.raises(KeyMaterialError, match="open to other users"):
            resolve(f"file:{key_file}")


def test_a_mounted_secrets_link_is_followed_to_the_file_that_counts(key_file):
    link = key_file.with_name("link.pem")
    link.symlink_to(key_file.name)
    assert resolve(f"file:{link}") == key_file.read_bytes()
    key_file.chmod(0o644)
    with pytest.raises(KeyMaterialError, match="open to other users"):
        resolve(f"file:{link}")


BAD_URIS = {
    "nothing": "",
    "no scheme": "/abs/key",
    "unknown scheme": "http://host/key",
    "relative": "file:key.pem",
    "a host": "file://host/key",
    "no name": "env:",
    "variable not set": "env:PORTCULLIS_NO_SUCH_KEY",
    "missing file": "file:/no/such/key.pem",
    "directory": "file:/",
    "device": "file:/dev/zero",
    "a Secret without a name": "k8s-secret:serving",
    "a Secret without a file": "k8s-secret:serving/keys",
    "a Secret above": "k8s-secret:../keys/serving.pem",
    "a path in a Secret": "k8s-secret:serving/keys/../owner.pem",
    "a query": "k8s-secret:serving/keys?x=y/serving.pem",
}


@pytest.mark.parametrize("uri", BAD_URIS.values(), ids=BAD_URIS.keys())
def test_a_uri_without_a_key_is_refused(uri):
    with pytest.raises(KeyMaterialError):
        resolve(uri)


@pytest.mark.parametrize("data", [b"", b"x" * (MAX_KEY_BYTES + 1)], ids=["empty", "too large"])
def test_a_file_that_can_be_no_key_is_refused(key_file, data):
    key_file.write_bytes(data)
    with pytest.raises(KeyMaterialError):
        resolve(f"file:{key_file}")


ROLES = {
    "step": ("file:/keys", "train.pem", "file:/keys/train.pem"),
    "slash at the end": ("file:/keys/", "train.pem", "file:/keys/train.pem"),
    "second use of a stage": ("file:/keys", "robustness:trained.pem", "file:/keys/robustness.trained.pem"),
    "Secret": ("k8s-secret:serving/keys", "robustness:trained.pem", "k8s-secret:serving/keys/robustness.trained.pem"),
    "environment": ("env:DEMO", "robustness:trained.pem", "env:DEMO_ROBUSTNESS_TRAINED_PEM"),
}


@pytest.mark.parametrize(("base", "role", "uri"), ROLES.values(), ids=ROLES.keys())
def test_a_role_names_a_key_below_a_base(base, role, uri):
    assert role_uri(base, role) == uri


BAD_ROLES = {
    "nothing": ("file:/keys", ""),
    "parent": ("file:/keys", "../owner.pem"),
    "hidden parent": ("file:/keys", "a:..:owner"),
    "absolute": ("file:/keys", "/etc/passwd"),
    "folder": ("file:/keys", "a/b"),
    "upper case": ("file:/keys", "Train.pem"),
    "newline at the end": ("file:/keys", "train.pem\n"),
    "null": ("file:/keys", "train\0"),
    "relative base": ("file:keys", "train.pem"),
    "unknown base": ("vault:keys", "train.pem"),
    "empty base": ("", "train.pem"),
    "empty prefix": ("env:", "train.pem"),
    "Secret without a name": ("k8s-secret:serving", "train.pem"),
    "Secret and a path": ("k8s-secret:serving/keys/x", "train.pem"),
    "a service": ("aws-kms:arn:aws:kms:eu-west-1:111122223333:key/k", "train.pem"),
}


@pytest.mark.parametrize(("base", "role"), BAD_ROLES.values(), ids=BAD_ROLES.keys())
def test_a_malformed_role_or_base_is_refused(base, role):
    with pytest.raises(KeyMaterialError):
        role_uri(base, role)


def test_a_symmetric_key_is_a_line_of_base64(key_file):
    key_file.write_bytes(base64.b64encode(bytes(range(32))) + b"\n")
    assert symmetric_key(f"file:{key_file}") == bytes(range(32))


BAD_SYMMETRIC = {
    "short": base64.b64encode(bytes(31)),
    "long": base64.b64encode(bytes(33)),
    "raw": bytes(range(32)),
    "hexadecimal": b"00" * 32,
    "url-safe alphabet": base64.urlsafe_b64encode(b"\xff" * 32),
    "two lines": base64.encodebytes(bytes(16)) + base64.encodebytes(bytes(16)),
    "blank": b" \n",
}


@pytest.mark.parametrize("data", BAD_SYMMETRIC.values(), ids=BAD_SYMMETRIC.keys())
def test_another_symmetric_key_is_refused(key_file, data):
    key_file.write_bytes(data)
    with pytest.raises(KeyMaterialError, match=r"base64|bytes"):
        symmetric_key(f"file:{key_file}")


def test_a_variable_that_is_not_utf_8_leaks_no_other_error(monkeypatch):
    monkeypatch.setenv("DEMO_KEY", "\udcff")
    with pytest.raises(KeyMaterialError, match="base64"):
        symmetric_key("env:DEMO_KEY")
