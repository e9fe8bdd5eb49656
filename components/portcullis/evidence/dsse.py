"""DSSE envelopes, on `cryptography` alone.

Source: Dead Simple Signing Envelope v1.0 (secure-systems-lab/dsse, protocol.md and envelope.md). Two things are
stricter here, so that no byte of an envelope can change unseen: the JSON must be in canonical form (RFC 8785), the
base64 in its one standard spelling. `keyid` is a hint for other tools: it is never used to choose or trust a key, and
because it lies outside the signature it must be empty or name the very key that verified.
"""

import base64
import binascii
from dataclasses import dataclass

from portcullis.digest import canonical_json, parse_canonical_json
from portcullis.errors import DataError, EvidenceError
from portcullis.keys import PublicKey, Signer

IN_TOTO_PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES = 4 << 20


@dataclass(frozen=True)
class Envelope:
    """One payload under one signature. Nothing in it is trusted before `verify`."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes

    def encode(self) -> bytes:
        """Return the envelope as one line of canonical JSON, without a newline. `Envelope.parse` inverts it."""
        return canonical_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": self.keyid, "sig": base64.b64encode(self.signature).decode()}],
            }
        )

    @classmethod
    def parse(cls, line: bytes) -> "Envelope":
        """Read one envelope.

        Raises:
            EvidenceError: Not the canonical form of an envelope with exactly one signature.
        """
        try:
            document = parse_canonical_json(line, limit=MAX_ENVELOPE_BYTES)
            (signature,) = document["signatures"]
            envelope = cls(
                payload_type=document["payloadType"],
                payload=base64.b64decode(document["payload"], validate=True),
                keyid=signature["keyid"],
                signature=base64.b64decode(signature["sig"], validate=True),
            )
            whole = envelope.encode() == line
        except (DataError, KeyError, TypeError, ValueError, binascii.Error) as error:
            raise EvidenceError(f"not a DSSE envelope with one signature: {error}") from error
        if not (whole and isinstance(envelope.payload_type, str) and isinstance(envelope.keyid, str)):
            raise EvidenceError("the envelope is not in canonical form or holds unknown fields")
        return envelope

    def verify(self, key: PublicKey, *, payload_type: str = IN_TOTO_PAYLOAD_TYPE) -> bytes:
        """Return the payload when this key signed it as this type.

        Raises:
            EvidenceError: Another type, not signed by this key, or labelled with another key's id.
        """
        if self.payload_type != payload_type:
            raise EvidenceError(f"the envelope holds {self.payload_type!r}, not {payload_type!r}")
        if not key.verifies(self.signature, pre_authentication_encoding(self.payload_type, self.payload)):
            raise EvidenceError(f"the signature is not by key {key.keyid[:16]}…")
        if self.keyid not in ("", key.keyid):
            raise EvidenceError("the envelope's keyid names another key than the one that signed it")
        return self.payload


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return PAE(type, body): what DSSE really signs, so that a payload can never pass for another type."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal_payload(payload: bytes, signer: Signer, *, payload_type: str = IN_TOTO_PAYLOAD_TYPE) -> Envelope:
    """Sign `payload` into an envelope."""
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    return Envelope(payload_type, payload, signer.public_key.keyid, signature)
