"""A second reader of sealed directories, written from docs/sealed-format.md alone, and the test vector of that page."""

import hashlib
import hmac
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from key_services import VERSION, AzureKeyVault, serving

from portcullis.digest import content_digest
from portcullis.keys.https import UNSAFE_ENV
from portcullis.sealing import stream
from portcullis.sealing.recipients import SealingPrivateKey, opener_at
from portcullis.sealing.sealed import open_directory, seal_directory, sealed_digest

DATA = Path(__file__).parents[1] / "data"
CONTEXT = {"model": "5f" * 32, "stage": "encrypt"}


def jcs(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hkdf(key, salt, info, size):
    return HKDF(algorithm=SHA512(), length=size, salt=salt, info=info).derive(key)


def header_values(block, dek):
    """Section 1.1: the fields, HKDF's info, the file key and the commitment."""
    fields = json.loads(block[16:].rstrip(b"\0"))
    rest = {name: value for name, value in fields.items() if name != "commitment"}
    info = b"portcullis-seal/v1" + hashlib.sha256(jcs(rest)).digest()
    derived = hkdf(dek, bytes.fromhex(fields["salt"]), info, 64)
    assert block == (b"portcullis-seal\x01" + jcs({**rest, "commitment": derived[32:].hex()})).ljust(4096, b"\0")
    return fields, info, derived[:32], derived[32:]


def nonce(index, *, last):
    return bytes(7) + struct.pack(">I", index) + bytes([last])


def read_file(data, dek, context):
    """Sections 1.1 and 1.2."""
    block, body = data[:4096], data[4096:]
    fields, _, file_key, _ = header_values(block, dek)
    assert fields["context"] == context
    stride = fields["segment_size"] + 16
    segments = [body[start : start + stride] for start in range(0, len(body), stride)]
    associated = hashlib.sha256(block).digest()
    cipher = {"AES-256-GCM-STREAM": AESGCM, "ChaCha20-Poly1305-STREAM": ChaCha20Poly1305}[fields["algorithm"]]
    return b"".join(
        cipher(file_key).decrypt(nonce(index, last=index == len(segments) - 1), segment, associated)
        for index, segment in enumerate(segments)
    )


def hpke_open(wrapped, mlkem, x25519, info):
    """RFC 9180 base mode, single shot, KEM 0x647A, KDF 0x0001, AEAD 0x0002, from its hashes up."""
    encapsulated, ciphertext = wrapped[:1120], wrapped[1120:]
    ours, theirs = x25519.public_key().public_bytes_raw(), encapsulated[1088:]
    shared = hashlib.sha3_256(
        mlkem.decapsulate(encapsulated[:1088])
        + x25519.exchange(X25519PublicKey.from_public_bytes(theirs))
        + theirs
        + ours
        + b"\\.//^\\"
    ).digest()
    suite = b"HPKE" + struct.pack(">HHH", 0x647A, 1, 2)

    def extract(salt, label, key):
        return hmac.digest(salt, b"HPKE-v1" + suite + label + key, "sha256")

    def expand(key, label, rest, size):
        block = struct.pack(">H", size) + b"HPKE-v1" + suite + label + rest + b"\x01"
        return hmac.digest(key, block, "sha256")[:size]

    schedule = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, base = expand(secret, b"key", schedule, 32), expand(secret, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(base, ciphertext, b"")


def key_id_of(mlkem, x25519):
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    der = mlkem.public_key().public_bytes(*form) + x25519.public_key().public_bytes(*form)
    return hashlib.sha256(der).hexdigest()


def read_dek(sidecar, mlkem, x25519, context):
    """Section 2."""
    fields = json.loads(sidecar)
    key_id = key_id_of(mlkem, x25519)
    entry = next(entry for entry in fields["recipients"] if entry["key_id"] == key_id)
    info = jcs({"context": context, "format": "portcullis-recipients/v1", "key_id": key_id})
    dek = hpke_open(bytes.fromhex(entry["wrapped"]), mlkem, x25519, info)
    listed = {"format": "portcullis-recipients/v1", "recipients": fields["recipients"]}
    mac = hmac.digest(hkdf(dek, None, b"portcullis-recipients/v1", 32), jcs(listed), "sha256")
    assert jcs({**listed, "mac": mac.hex()}) == sidecar
    return dek


def read_service_dek(sidecar, key_id, decrypt, context):
    """Sections 2.2 and 2.3, given what the service does to what it made."""
    fields = json.loads(sidecar)
    entry = next(entry for entry in fields["recipients"] if entry["key_id"] == key_id)
    info = jcs({"context": context, "format": "portcullis-recipients/v1", "key_id": key_id})
    payload = decrypt(bytes.fromhex(entry["wrapped"]))
    dek, bound = payload[:32], payload[32:]
    assert bound == hashlib.sha256(info).digest()
    listed = {"format": "portcullis-recipients/v1", "recipients": fields["recipients"]}
    mac = hmac.digest(hkdf(dek, None, b"portcullis-recipients/v1", 32), jcs(listed), "sha256")
    assert jcs({**listed, "mac": mac.hex()}) == sidecar
    return dek


def read_directory(root, mlkem, x25519, context):
    """Section 3."""
    dek = read_dek((root / "recipients.json").read_bytes(), mlkem, x25519, context)
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.sealed")}
    names = sorted(path.removesuffix(".sealed") for path in paths)
    listing = hashlib.sha256(jcs(names)).hexdigest()
    return {
        name: read_file(
            paths[f"{name}.sealed"].read_bytes(),
            dek,
            {**context, "file name": name, "file names in directory": listing},
        )
        for name in names
    }


@pytest.mark.parametrize("algorithm", ["AES-256-GCM-STREAM", "ChaCha20-Poly1305-STREAM"])
def test_the_second_reader_opens_what_is_sealed(tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr(stream, "fast_algorithm", lambda: algorithm)
    files = {
        "empty": b"",
        "config.json": b"{}",
        "weights/exact.safetensors": bytes(range(256)) * 4096,
        "weights/large.safetensors": bytes(range(251)) * 9000,
        "été/naïve ×.txt": b"text",
    }
    for name, data in files.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(data)
    keys = [SealingPrivateKey.generate() for _ in range(2)]
    recipients = [key.public_key() for key in keys]
    seal_directory(tmp_path / "plain", tmp_path / "sealed", recipients=recipients, context=CONTEXT)
    for key in keys:
        assert read_directory(tmp_path / "sealed", key.mlkem, key.x25519, CONTEXT) == files
    assert algorithm.encode() in (tmp_path / "sealed" / "empty.sealed").read_bytes()[:4096]
    # A reader on a machine that would write by the other cipher opens it too.
    monkeypatch.setattr(stream, "fast_algorithm", lambda: "AES-256-GCM-STREAM")
    assert open_directory(tmp_path / "sealed", private_key=keys[0], context=CONTEXT) == files


@pytest.fixture(scope="module")
def vector():
    return json.loads((DATA / "sealed-vector.json").read_text())


@pytest.fixture
def vector_directory(vector, tmp_path):
    (tmp_path / f"{vector['file_name']}.sealed").write_bytes((DATA / "sealed-vector.sealed").read_bytes())
    (tmp_path / "recipients.json").write_text(vector["recipients"])
    return tmp_path


@pytest.fixture
def vector_keys(vector):
    return (
        MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(vector["mlkem768_seed"])),
        X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["x25519_private"])),
    )


def test_the_vector_states_each_value_of_the_specification(vector):
    data = (DATA / "sealed-vector.sealed").read_bytes()
    fields, info, file_key, commitment = header_values(data[:4096], bytes.fromhex(vector["dek"]))
    last = (len(data) - 4096 - 1) // (fields["segment_size"] + 16)
    assert last > 0
    assert vector["salt"] == fields["salt"]
    assert vector["info"] == info.hex()
    assert vector["file_key"] == file_key.hex()
    assert vector["commitment"] == commitment.hex() == fields["commitment"]
    assert vector["associated_data"] == hashlib.sha256(data[:4096]).hexdigest()
    assert vector["nonces"] == [nonce(index, last=index == last).hex() for index in range(last + 1)]


def test_the_second_reader_opens_the_vector(vector, vector_directory, vector_keys):
    assert vector["key_id"] == key_id_of(*vector_keys)
    assert vector["dek"] == read_dek(vector["recipients"].encode(), *vector_keys, vector["context"]).hex()
    opened = read_directory(vector_directory, *vector_keys, vector["context"])
    assert opened == {vector["file_name"]: vector["plaintext"].encode()}


def test_portcullis_opens_the_vector(vector, vector_directory, vector_keys):
    key = SealingPrivateKey(*vector_keys)
    assert key.key_id == vector["key_id"]
    opened = open_directory(vector_directory, private_key=key, context=vector["context"])
    assert opened == {vector["file_name"]: vector["plaintext"].encode()}
    assert content_digest(opened) == vector["content_digest"]
    assert sealed_digest(vector_directory) == vector["sealed_digest"]


@pytest.fixture(scope="module")
def service_vector():
    return json.loads((DATA / "sealed-vector-service.json").read_text())


def test_the_second_reader_opens_the_vector_of_a_services_key(vector, service_vector):
    key = load_der_private_key(bytes.fromhex(service_vector["rsa_private"]), password=None)
    oaep = padding.OAEP(mgf=padding.MGF1(SHA256()), algorithm=SHA256(), label=None)
    sidecar = service_vector["recipients"].encode()
    dek = read_service_dek(sidecar, service_vector["key_id"], lambda it: key.decrypt(it, oaep), vector["context"])
    assert dek.hex() == vector["dek"]


def test_portcullis_opens_the_vector_of_a_services_key(
    vector, service_vector, vector_directory, monkeypatch, tmp_path_factory
):
    (vector_directory / "recipients.json").write_text(service_vector["recipients"])
    key = load_der_private_key(bytes.fromhex(service_vector["rsa_private"]), password=None)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    with serving(AzureKeyVault(keys={f"serving/{VERSION}": key})) as service:
        for name, value in {**service.environment, UNSAFE_ENV: service.url}.items():
            monkeypatch.setenv(name, value)
        opener = opener_at(service_vector["key_id"])
        opened = open_directory(vector_directory, private_key=opener, context=vector["context"])
    assert opened == {vector["file_name"]: vector["plaintext"].encode()}
    assert sealed_digest(vector_directory) == vector["sealed_digest"]
