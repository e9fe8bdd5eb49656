"""Keyed spellings: what an identifier is replaced by, the same one wherever the same key meets the same identifier.

    <EMAIL:bcdf…>   a token: 32 letters, AES-CMAC; or a hash: 64 letters, HMAC-SHA-256
    <EMAIL~bcdf…>   a reversible token: AES-SIV, two letters for each byte of what was written and 32 for its tag
    <EMAIL>         redacted: nothing but the kind

Letters stand for four bits each. There is no digit among them, so a spelling holds no number, and no vowel, so it
spells no word.

Each operator has a key of its own, HKDF-SHA-256 (RFC 5869) of the masking key without salt and with the info
`portcullis/masking/v1/` and the operator's name, so that tokens, hashes and made-up values cannot be linked without it:

- token, synthetic: AES-256-CMAC (NIST SP 800-38B) over the entity, filled up with at least one zero byte to a multiple
  of 16, and the canonical value;
- hash: HMAC-SHA-256 (RFC 2104), in full, over the same;
- reversible: AES-256-SIV (RFC 5297), deterministic, with the entity as associated data, of the text as it is written.
"""

import hmac
import re
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from portcullis.errors import DataError, KeyMaterialError
from portcullis.pii.cmac import cmac
from portcullis.pii.entities import Entity
from portcullis.pii.operators import VALUE

KEY_BYTES = 32
KINDS = (*Entity, VALUE)

_INFO = b"portcullis/masking/v1/"
_LETTERS = "bcdfghjklmnpqrst"
_PAIRS = np.frombuffer("".join(a + b for a in _LETTERS for b in _LETTERS).encode(), np.uint16)
_BYTES = {a + b: 16 * i + j for i, a in enumerate(_LETTERS) for j, b in enumerate(_LETTERS)}
_BLOCK = 16
_TAG_BYTES = 16


@dataclass(frozen=True)
class Spellings:
    """What the keyed spellings of some entities look like.

    Attributes:
        token: A token.
        hash: A keyed hash.
        reversible: A reversible token; group 1 is the entity, group 2 the letters.
        redacted: What stands for a redacted one.
        begun: How any of them begins; group 1 is the entity.
    """

    token: re.Pattern[str]
    hash: re.Pattern[str]
    reversible: re.Pattern[str]
    redacted: re.Pattern[str]
    begun: re.Pattern[str]


@lru_cache
def spellings(kinds: tuple[str, ...]) -> Spellings:
    """Return what the keyed spellings of these entities look like."""
    kind = f"(?:{'|'.join(kinds)})"
    return Spellings(
        token=re.compile(f"<{kind}:[{_LETTERS}]{{32}}>"),
        hash=re.compile(f"<{kind}:[{_LETTERS}]{{64}}>"),
        reversible=_reversible(kind),
        redacted=re.compile(f"<{kind}>"),
        begun=re.compile(f"<({kind})[:~>]"),
    )


def _reversible(kind: str) -> re.Pattern[str]:
    return re.compile(f"<({kind})~((?:[{_LETTERS}]{{2}}){{{_TAG_BYTES},}})>")


KIND = f"(?:{'|'.join(KINDS)})"
TOKEN, HASH, REDACTED = (getattr(spellings(KINDS), it) for it in ("token", "hash", "redacted"))
# A reversible token of whatever entity, a user's own too: the key tells whether it is one.
REVERSIBLE = _reversible("[A-Z]+(?:_[A-Z]+)*")


@dataclass(frozen=True)
class MaskingKeys:
    """The operators' keys, derived from the masking key.

    Attributes:
        token: 32 bytes.
        hash: 32 bytes.
        reversible: 64 bytes.
        synthetic: 32 bytes.
    """

    token: bytes = field(repr=False)
    hash: bytes = field(repr=False)
    reversible: bytes = field(repr=False)
    synthetic: bytes = field(repr=False)

    @classmethod
    def derive(cls, key: bytes) -> "MaskingKeys":
        """Derive them.

        Args:
            key: The masking key; whoever has it can link guesses to tokens and undo reversible ones.

        Raises:
            KeyMaterialError: It is not exactly 32 bytes.
        """
        return cls(
            derived(key, "token"),
            derived(key, "hash"),
            derived(key, "reversible", size=2 * KEY_BYTES),
            derived(key, "synthetic"),
        )


def derived(key: bytes, purpose: str, *, size: int = KEY_BYTES) -> bytes:
    """Return the key of `size` bytes that the masking key gives for one purpose.

    Raises:
        KeyMaterialError: The masking key is not exactly 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise KeyMaterialError(f"the masking key must be exactly {KEY_BYTES} random bytes")
    return HKDF(hashes.SHA256(), size, None, _INFO + purpose.encode()).derive(key)


def label(entity: str) -> bytes:
    """Return what a keyed function reads before the value: no entity's label begins with another's."""
    name = entity.encode()
    return name + bytes(_BLOCK - len(name) % _BLOCK)


def token(key: bytes, entity: str, value: str) -> str:
    """Return the token of one canonical value under a masking key, for whoever looks for that one."""
    made: str = tokens(MaskingKeys.derive(key), entity, pa.array([value], pa.large_string()))[0].as_py()
    return made


def tokens(keys: MaskingKeys, entity: str, values: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the token of each canonical value; `values` has no nulls."""
    return _spelled(f"<{entity}:", cmac(keys.token, label(entity), values))


def hashed(keys: MaskingKeys, entity: str, values: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the keyed hash of each canonical value; `values` has no nulls."""
    start = label(entity)
    codes = b"".join(hmac.digest(keys.hash, start + text.encode(), "sha256") for text in values.to_pylist())
    return _spelled(f"<{entity}:", np.frombuffer(codes, np.uint8).reshape(-1, 32))


def reversible(keys: MaskingKeys, entity: str, texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the reversible token of each text as it is written; `texts` has no nulls."""
    cipher, associated = AESSIV(keys.reversible), [entity.encode()]
    sealed = (cipher.encrypt(text.encode(), associated) for text in texts.to_pylist())
    return pa.array([f"<{entity}~{_letters(code)}>" for code in sealed], pa.large_string())


def redacted(entity: str, size: int) -> pa.LargeStringArray:
    """Return `size` times what stands for a redacted entity."""
    return pa.repeat(pa.scalar(f"<{entity}>", pa.large_string()), size)


def revealed(keys: MaskingKeys, made: re.Match[str]) -> str:
    """Return what a match of `REVERSIBLE` stands for, as it was written.

    Raises:
        DataError: It was altered, or made under another key.
    """
    entity, letters = made.groups()
    code = bytes(_BYTES[letters[place : place + 2]] for place in range(0, len(letters), 2))
    try:
        return AESSIV(keys.reversible).decrypt(code, [entity.encode()]).decode()
    except (InvalidTag, UnicodeDecodeError) as error:
        raise DataError("a reversible token was altered, or made under another key; nothing is revealed") from error


def _letters(code: bytes) -> str:
    return _PAIRS[np.frombuffer(code, np.uint8)].tobytes().decode()


def _spelled(head: str, codes: npt.NDArray[np.uint8]) -> pa.LargeStringArray:
    """Return head, letters and `>` for each row of codes, shape (n, bytes)."""
    rows, size = codes.shape
    start = len(head)
    text = np.empty((rows, start + 2 * size + 1), np.uint8)
    text[:, :start] = np.frombuffer(head.encode(), np.uint8)
    text[:, start:-1] = _PAIRS[codes].view(np.uint8)
    text[:, -1] = ord(">")
    offsets = np.arange(rows + 1, dtype=np.int64) * text.shape[1]
    return pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text))
