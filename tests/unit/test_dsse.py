"""DSSE envelopes: one spelling, one signature, and what other tools make of them."""

import base64
import json
import subprocess

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope as PeerEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from portcullis.digest import canonical_json
from portcullis.errors import EvidenceError
from portcullis.evidence.dsse import (
    IN_TOTO_PAYLOAD_TYPE,
    MAX_ENVELOPE_BYTES,
    Envelope,
    pre_authentication_encoding,
    seal_payload,
)
from portcullis.keys import Signer

ALGORITHMS = ("ecdsa-p256", "ed25519")
SIGNER = Signer.generate()
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'
LINE = seal_payload(PAYLOAD, SIGNER).encode()


def edited(edit):
    document = json.loads(LINE)
    edit(document)
    return canonical_json(document)


def test_pae_is_that_of_the_specification():
    # The test vector of DSSE's protocol.md.
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_pae_counts_bytes_so_that_no_two_messages_meet():
    assert pre_authentication_encoding("é", b"x") == b"DSSEv1 2 \xc3\xa9 1 x"
    assert pre_authentication_encoding("a 1 b", b"c") != pre_authentication_encoding("a", b"b 1 c")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_envelope_survives_its_line_and_verifies(algorithm):
    signer = Signer.generate(algorithm)
    envelope = seal_payload(PAYLOAD, signer)
    line = envelope.encode()
    assert b"\n" not in line
    assert Envelope.parse(line) == envelope
    assert envelope.verify(signer.public_key) == PAYLOAD


def test_an_envelope_without_keyid_verifies():
    envelope = Envelope.parse(edited(lambda d: d["signatures"][0].update(keyid="")))
    assert envelope.verify(SIGNER.public_key) == PAYLOAD


REFUSED = {
    "another key": (Envelope.parse(LINE), Signer.generate().public_key),
    "another algorithm's key": (Envelope.parse(LINE), Signer.generate("ed25519").public_key),
    "another payload": (Envelope.parse(edited(lambda d: d.update(payload="e30="))), SIGNER.public_key),
    "another type": (Envelope.parse(edited(lambda d: d.update(payloadType="text/plain"))), SIGNER.public_key),
    "another keyid": (Envelope.parse(edited(lambda d: d["signatures"][0].update(keyid="x"))), SIGNER.public_key),
    "no signature": (Envelope.parse(edited(lambda d: d["signatures"][0].update(sig=""))), SIGNER.public_key),
}


@pytest.mark.parametrize(("envelope", "key"), REFUSED.values(), ids=REFUSED.keys())
def test_what_this_key_did_not_sign_is_refused(envelope, key):
    with pytest.raises(EvidenceError):
        envelope.verify(key)


def test_a_signature_for_one_type_is_none_for_another():
    envelope = seal_payload(PAYLOAD, SIGNER, payload_type="application/vnd.other")
    relabelled = Envelope(IN_TOTO_PAYLOAD_TYPE, PAYLOAD, envelope.keyid, envelope.signature)
    with pytest.raises(EvidenceError, match="signature"):
        relabelled.verify(SIGNER.public_key)


def signatures(edit):
    return lambda d: d.update(signatures=edit(d["signatures"]))


def respell(field):
    """Set the spare bits of the last base64 character, which a lax decoder drops."""

    def edit(document):
        holder = document["signatures"][0] if field == "sig" else document
        data = base64.b64decode(holder[field]) + b"!"  # three characters more, of which spare bits remain
        text = base64.b64encode(data[: len(data) // 3 * 3 - 2]).decode()
        assert text.endswith("==")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        holder[field] = text[:-3] + alphabet[alphabet.index(text[-3]) | 1] + "=="

    return edit


MALFORMED = {
    "nothing": b"",
    "no json": b"x",
    "a list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "empty object": b"{}",
    "cut": LINE[:-1],
    "newline at the end": LINE + b"\n",
    "blanks": json.dumps(json.loads(LINE)).encode(),
    "keys out of order": json.dumps(dict(reversed(json.loads(LINE).items())), separators=(",", ":")).encode(),
    "repeated key": LINE[:-1] + b',"payloadType":"x"}',
    "escaped letter": LINE.replace(b"payloadType", b"\\u0070ayloadType"),
    "no payload": edited(lambda d: d.pop("payload")),
    "no type": edited(lambda d: d.pop("payloadType")),
    "no signatures": edited(lambda d: d.pop("signatures")),
    "zero signatures": edited(signatures(lambda s: [])),
    "two signatures": edited(signatures(lambda s: s * 2)),
    "signatures in an object": edited(signatures(lambda s: {"0": s[0]})),
    "signature is text": edited(signatures(lambda s: ["x"])),
    "no keyid": edited(lambda d: d["signatures"][0].pop("keyid")),
    "no sig": edited(lambda d: d["signatures"][0].pop("sig")),
    "unknown field": edited(lambda d: d.update(more=1)),
    "unknown field of the signature": edited(lambda d: d["signatures"][0].update(cert="x")),
    "type is no text": edited(lambda d: d.update(payloadType=[])),
    "keyid is no text": edited(lambda d: d["signatures"][0].update(keyid=1)),
    "payload is a number": edited(lambda d: d.update(payload=1)),
    "payload is a list": edited(lambda d: d.update(payload=["e30="])),
    "sig is null": edited(lambda d: d["signatures"][0].update(sig=None)),
    "payload not base64": edited(lambda d: d.update(payload="***")),
    "payload not ascii": edited(lambda d: d.update(payload="é")),
    "payload without padding": edited(lambda d: d.update(payload="e30")),
    "payload with a newline": edited(lambda d: d.update(payload="e3\n0=")),
    "payload in the url-safe alphabet": edited(lambda d: d.update(payload="__-_")),
    "payload with spare bits": edited(respell("payload")),
    "sig with spare bits": edited(respell("sig")),
    "too large": b'"' + b"x" * MAX_ENVELOPE_BYTES + b'"',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED.keys())
def test_anything_but_one_canonical_envelope_is_refused(line):
    with pytest.raises(EvidenceError):
        Envelope.parse(line)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_securesystemslib_verifies_our_envelopes(algorithm):
    signer = Signer.generate(algorithm)
    public = signer.public_key
    peer = SSlibKey.from_crypto(load_pem_public_key(public.pem.encode()), keyid=public.keyid)
    line = seal_payload(PAYLOAD, signer).encode()
    assert list(PeerEnvelope.from_dict(json.loads(line)).verify([peer], 1)) == [public.keyid]

    tampered = json.loads(line)
    tampered["payload"] = "e30="
    with pytest.raises(VerificationError):
        PeerEnvelope.from_dict(tampered).verify([peer], 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_we_verify_securesystemslibs_envelopes(algorithm):
    signer = Signer.generate(algorithm)
    public = signer.public_key
    peer = CryptoSigner(
        load_pem_private_key(signer.private_pem(), password=None),
        SSlibKey.from_crypto(load_pem_public_key(public.pem.encode()), keyid=public.keyid),
    )
    envelope = PeerEnvelope(PAYLOAD, IN_TOTO_PAYLOAD_TYPE, {})
    envelope.sign(peer)
    assert Envelope.parse(canonical_json(envelope.to_dict())).verify(public) == PAYLOAD


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("payload", [PAYLOAD, b"{}"], ids=["the payload", "another payload"])
def test_openssl_verifies_the_signature_over_pae(tmp_path, algorithm, payload):
    signer = Signer.generate(algorithm)
    envelope = Envelope.parse(seal_payload(PAYLOAD, signer).encode())
    key, message, signature = (tmp_path / name for name in ("key.pem", "message", "signature"))
    key.write_text(signer.public_key.pem)
    message.write_bytes(pre_authentication_encoding(envelope.payload_type, payload))
    signature.write_bytes(envelope.signature)
    digest = ["-digest", "sha256"] if algorithm == "ecdsa-p256" else []
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", *digest]
    done = subprocess.run([*command, "-in", message, "-sigfile", signature], check=False, capture_output=True)
    assert (done.returncode == 0) == (payload == PAYLOAD)
