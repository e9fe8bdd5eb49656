"""Base64 in the answers of key services: strict, bounded, and never quoted."""

import base64
from typing import Any

from portcullis.errors import KeyServiceError

MAX_BYTES = 16 << 10


def encode(data: bytes) -> str:
    """Return standard base64."""
    return base64.b64encode(data).decode()


def encode_url(data: bytes) -> str:
    """Return base64 for URLs without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(key: str, value: Any, *, url: bool = False) -> bytes:
    """Return the bytes of one base64 text of an answer, 1 to 16384 of them.

    Args:
        key: The URI of the key, for messages.
        value: What the answer holds.
        url: Whether it is base64 for URLs without padding.

    Raises:
        KeyServiceError: It is anything else.
    """
    if isinstance(value, str) and 0 < len(value) <= 2 * MAX_BYTES and value.isascii():
        try:
            if url:
                data = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
            else:
                data = base64.b64decode(value, validate=True)
        except ValueError:
            data = b""
        if 0 < len(data) <= MAX_BYTES:
            return data
    raise KeyServiceError(f"{key}: the answer is malformed: it lacks what was asked for, in base64")
