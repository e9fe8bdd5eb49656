"""Keyed tokens: what an identifier is replaced by, the same one wherever the same key meets the same identifier."""

import hmac
import re

from portcullis.errors import KeyMaterialError
from portcullis.pii.entities import Entity

# Whole cells that hold no identifier of a known kind.
VALUE = "VALUE"
KEY_BYTES = 32

_LABEL = b"portcullis/pii-token/v1"
_HEX = "0123456789abcdef"
# No digit, so a token holds no number; no vowel, so it spells no word.
_LETTERS = "bcdfghjklmnpqrst"
_TO_LETTERS = bytes.maketrans(_HEX.encode(), _LETTERS.encode())
TOKEN = re.compile(f"<(?:{'|'.join([*Entity, VALUE])}):[{_LETTERS}]{{32}}>")


def require_key(key: bytes) -> None:
    """Check that `key` can key tokens.

    Raises:
        KeyMaterialError: It is not exactly 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise KeyMaterialError(f"the masking key must be exactly {KEY_BYTES} random bytes")


def token(key: bytes, entity: str, value: str) -> str:
    """Return `<ENTITY:`, 128 bits as 32 letters, `>`: HMAC-SHA-256 (RFC 2104) of label, entity and canonical value."""
    message = b"\0".join((_LABEL, entity.encode(), value.encode()))
    letters = hmac.digest(key, message, "sha256")[:16].hex().encode().translate(_TO_LETTERS)
    return (b"<%b:%b>" % (entity.encode(), letters)).decode()
