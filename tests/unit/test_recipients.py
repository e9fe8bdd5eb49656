import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from portcullis.digest import canonical_json
from portcullis.errors import KeyMaterialError, SealError, UsageError
from portcullis.sealing import recipients
from portcullis.sealing.recipients import SealingPrivateKey, SealingPublicKey, unwrap_dek, wrap_dek

DEK = bytes(range(32))
CONTEXT = {"model": "5f" * 32}
KEY = SealingPrivateKey.generate()
OTHER = SealingPrivateKey.generate()
BOTH = [KEY.public_key(), OTHER.public_key()]
SIDECAR = wrap_dek(DEK, BOTH, context=CONTEXT)
PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8)
SPKI = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
MLKEM_PEM, X25519_PEM = (
    KEY.mlkem.private_bytes(*PKCS8, NoEncryption()),
    KEY.x25519.private_bytes(*PKCS8, NoEncryption()),
)
PUBLIC_MLKEM_PEM = KEY.mlkem.public_key().public_bytes(*SPKI)
PUBLIC_X25519_PEM = KEY.x25519.public_key().public_bytes(*SPKI)


def test_keys_survive_their_pem():
    private = SealingPrivateKey.from_pem(KEY.to_pem())
    public = SealingPublicKey.from_pem(KEY.public_key().to_pem())
    assert private.to_pem() == KEY.to_pem() == MLKEM_PEM + X25519_PEM
    assert public.to_pem() == KEY.public_key().to_pem() == PUBLIC_MLKEM_PEM + PUBLIC_X25519_PEM
    assert private.key_id == public.key_id == KEY.key_id != OTHER.key_id
    assert unwrap_dek(wrap_dek(DEK, [public], context=CONTEXT), private, context=CONTEXT) == DEK


def test_nothing_shows_key_material():
    assert repr(KEY) == f"SealingPrivateKey(key_id='{KEY.key_id}')" == str(KEY)
    assert repr(KEY.public_key()) == f"SealingPublicKey(key_id='{KEY.key_id}')"


def test_pem_errors_show_no_key_material():
    with pytest.raises(KeyMaterialError) as caught:
        SealingPrivateKey.from_pem(KEY.to_pem() + b"\n")
    assert not any(line and line in str(caught.value) for line in KEY.to_pem().decode().splitlines())


BAD_PEM = [
    pytest.param(lambda first, second: b"", id="empty"),
    pytest.param(lambda first, second: b"key", id="text"),
    pytest.param(lambda first, second: b"\xff\x00", id="binary"),
    pytest.param(lambda first, second: first, id="first only"),
    pytest.param(lambda first, second: second, id="second only"),
    pytest.param(lambda first, second: second + first, id="swapped"),
    pytest.param(lambda first, second: first + first, id="first twice"),
    pytest.param(lambda first, second: second + second, id="second twice"),
    pytest.param(lambda first, second: first + second + second, id="three blocks"),
    pytest.param(lambda first, second: first + second + b"\n", id="blank line after"),
    pytest.param(lambda first, second: first + b"\n" + second, id="blank line between"),
    pytest.param(lambda first, second: b"\n" + first + second, id="blank line before"),
    pytest.param(lambda first, second: b"comment\n" + first + second, id="comment"),
    pytest.param(lambda first, second: (first + second)[:-1], id="no last line break"),
    pytest.param(lambda first, second: (first + second)[:-40], id="cut"),
    pytest.param(lambda first, second: (first + second).replace(b"\n", b"\r\n"), id="CRLF"),
    pytest.param(lambda first, second: (first + second).replace(b"KEY", b"DOG"), id="another label"),
]


@pytest.mark.parametrize("alter", BAD_PEM)
def test_any_other_private_pem_is_refused(alter):
    with pytest.raises(KeyMaterialError):
        SealingPrivateKey.from_pem(alter(MLKEM_PEM, X25519_PEM))


@pytest.mark.parametrize("alter", BAD_PEM)
def test_any_other_public_pem_is_refused(alter):
    with pytest.raises(KeyMaterialError):
        SealingPublicKey.from_pem(alter(PUBLIC_MLKEM_PEM, PUBLIC_X25519_PEM))


def test_public_and_private_pem_are_not_confused():
    with pytest.raises(KeyMaterialError):
        SealingPrivateKey.from_pem(KEY.public_key().to_pem())
    with pytest.raises(KeyMaterialError):
        SealingPublicKey.from_pem(KEY.to_pem())


def test_keys_of_another_kind_are_refused():
    elliptic, larger = generate_private_key(SECP256R1()), MLKEM1024PrivateKey.generate()
    encrypted = KEY.x25519.private_bytes(*PKCS8, BestAvailableEncryption(b"password"))
    for pem in (
        MLKEM_PEM + elliptic.private_bytes(*PKCS8, NoEncryption()),
        larger.private_bytes(*PKCS8, NoEncryption()) + X25519_PEM,
        MLKEM_PEM + encrypted,
    ):
        with pytest.raises(KeyMaterialError):
            SealingPrivateKey.from_pem(pem)
    with pytest.raises(KeyMaterialError):
        SealingPublicKey.from_pem(PUBLIC_MLKEM_PEM + elliptic.public_key().public_bytes(*SPKI))


def test_every_recipient_and_nobody_else_unwraps():
    assert unwrap_dek(SIDECAR, KEY, context=CONTEXT) == unwrap_dek(SIDECAR, OTHER, context=CONTEXT) == DEK
    with pytest.raises(SealError, match=r"wrong key.*not among the recipients"):
        unwrap_dek(SIDECAR, SealingPrivateKey.generate(), context=CONTEXT)


@pytest.mark.parametrize("context", [{"model": "60" * 32}, {**CONTEXT, "more": "x"}, {"Model": "5f" * 32}], ids=str)
def test_another_context_is_refused(context):
    with pytest.raises(SealError, match="another context"):
        unwrap_dek(SIDECAR, KEY, context=context)


def test_recipients_can_change_and_the_dek_stays():
    rewrapped = wrap_dek(unwrap_dek(SIDECAR, KEY, context=CONTEXT), [OTHER.public_key()], context=CONTEXT)
    assert unwrap_dek(rewrapped, OTHER, context=CONTEXT) == DEK
    with pytest.raises(SealError, match="wrong key"):
        unwrap_dek(rewrapped, KEY, context=CONTEXT)


@pytest.mark.parametrize(
    ("keys", "context", "dek", "error"),
    [
        pytest.param([], CONTEXT, DEK, UsageError, id="no recipient"),
        pytest.param([BOTH[0], BOTH[0]], CONTEXT, DEK, UsageError, id="one twice"),
        pytest.param(BOTH, {}, DEK, UsageError, id="no context"),
        pytest.param(BOTH, {"a": 1}, DEK, UsageError, id="number in the context"),
        pytest.param(BOTH, CONTEXT, b"short", KeyMaterialError, id="short key"),
        pytest.param(BOTH, CONTEXT, "x" * 32, KeyMaterialError, id="text as key"),
    ],
)
def test_bad_arguments_are_refused(keys, context, dek, error):
    with pytest.raises(error):
        wrap_dek(dek, keys, context=context)


def test_too_many_recipients_are_refused(monkeypatch):
    monkeypatch.setattr(recipients, "MAX_RECIPIENTS", 1)
    with pytest.raises(UsageError, match="1 to 1 recipients"):
        wrap_dek(DEK, BOTH, context=CONTEXT)


def test_a_point_of_low_order_is_refused():
    degenerate = SealingPublicKey(BOTH[0].mlkem, X25519PublicKey.from_public_bytes(bytes(32)))
    with pytest.raises(KeyMaterialError, match="cannot be sealed for"):
        wrap_dek(DEK, [degenerate], context=CONTEXT)


def test_a_flip_of_any_byte_of_the_sidecar_is_refused():
    for position in range(len(SIDECAR)):
        altered = bytearray(SIDECAR)
        altered[position] ^= 1
        with pytest.raises(SealError):
            unwrap_dek(bytes(altered), KEY, context=CONTEXT)


def edited(edit):
    fields = json.loads(SIDECAR)
    edit(fields)
    return canonical_json(fields)


def entry(fields, key):
    return next(entry for entry in fields["recipients"] if entry["key_id"] == key.key_id)


@pytest.mark.parametrize(
    "sidecar",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b"[]", id="array"),
        pytest.param(b"7", id="number"),
        pytest.param(b'"recipients"', id="string"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"recipients":7}', id="recipients is a number"),
        pytest.param(b'{"recipients":{"key_id":"a"}}', id="recipients is an object"),
        pytest.param(b'{"recipients":["key_id"]}', id="entry is a string"),
        pytest.param(b'{"recipients":[{"key_id":[],"wrapped":""}]}', id="key id is an array"),
        pytest.param(b'{"recipients":[{"key_id":"\\ud800","wrapped":""}]}', id="key id is a surrogate"),
        pytest.param(b'{"recipients":[{"key_id":"a","wrapped":7}]}', id="wrapped key is a number"),
        pytest.param(SIDECAR + b"\n", id="line break after"),
        pytest.param(b" " + SIDECAR, id="blank before"),
        pytest.param(json.dumps(json.loads(SIDECAR), indent=1).encode(), id="indented"),
        pytest.param(edited(lambda fields: fields.clear()), id="no member"),
        pytest.param(edited(lambda fields: fields["recipients"].clear()), id="no recipient"),
        pytest.param(edited(lambda fields: fields["recipients"].reverse()), id="order"),
        pytest.param(edited(lambda fields: fields["recipients"].append(fields["recipients"][0])), id="repeated"),
        pytest.param(edited(lambda fields: fields["recipients"].remove(entry(fields, OTHER))), id="other removed"),
        pytest.param(edited(lambda fields: entry(fields, OTHER).update(wrapped="00" * 1168)), id="other altered"),
        pytest.param(edited(lambda fields: entry(fields, OTHER).update(key_id="0" * 64)), id="other renamed"),
        pytest.param(edited(lambda fields: entry(fields, OTHER).update(key_id=7)), id="other renamed to a number"),
        pytest.param(SIDECAR.replace(OTHER.key_id.encode(), b"\\ud800"), id="other renamed to a surrogate"),
        pytest.param(edited(lambda fields: entry(fields, KEY).update(wrapped="")), id="wrapped key empty"),
        pytest.param(edited(lambda fields: entry(fields, KEY).update(wrapped="zz")), id="wrapped key not hex"),
        pytest.param(edited(lambda fields: entry(fields, KEY).update(wrapped="00" * 1168)), id="wrapped key zero"),
        pytest.param(
            edited(lambda fields: entry(fields, KEY).update(wrapped=entry(fields, KEY)["wrapped"].upper())),
            id="upper case",
        ),
        pytest.param(edited(lambda fields: fields.update(format="portcullis-recipients/v2")), id="other version"),
        pytest.param(edited(lambda fields: fields.update(more=1)), id="a member more"),
        pytest.param(edited(lambda fields: fields.pop("mac")), id="no MAC"),
        pytest.param(edited(lambda fields: fields.update(mac="00" * 32)), id="other MAC"),
        pytest.param(wrap_dek(bytes(32), [OTHER.public_key()], context=CONTEXT), id="for others only"),
    ],
)
def test_any_other_sidecar_is_refused(sidecar):
    with pytest.raises(SealError):
        unwrap_dek(sidecar, KEY, context=CONTEXT)


def test_a_wrapped_key_of_another_length_is_refused():
    # Whoever has the public key can wrap anything for it.
    public = recipients.MLKEM768X25519PublicKey(KEY.mlkem.public_key(), KEY.x25519.public_key())
    blob = recipients._SUITE.encrypt(b"short", public, info=recipients._info(KEY.key_id, CONTEXT))
    sidecar = recipients._sidecar(b"short", {KEY.key_id: blob})
    with pytest.raises(SealError):
        unwrap_dek(sidecar, KEY, context=CONTEXT)
