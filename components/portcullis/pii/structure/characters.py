"""What each character of a reading is, and questions about 64 of them at once.

A character's kinds are the bits of one byte, so that all are looked up in one pass. What stands next to a place is a
row of 64 characters; one question about each of them is a row of 64 bits, a number, and runs and gaps in it are found
by arithmetic on such numbers (Warren, Hacker's Delight, chapter 2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from portcullis.pii.reading import DASH, LETTER, Bytes, Ints

Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint64]

ASCII_DIGITS = b"0123456789"
ASCII_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def table(characters: bytes) -> Bools:
    """Return the table that tells of each byte whether it is one of these."""
    there = np.zeros(256, np.bool_)
    there[list(characters)] = True
    return there


_WORD = ASCII_DIGITS + ASCII_LETTERS + bytes([LETTER]) + b"_"
# The kinds. Letters of ASCII; RFC 5321's atoms and dots; letters of every script, digits, `_`, dots and dashes;
# hexadecimal digits and colons.
IS_DIGIT, IS_LETTER, IS_LOCAL, IS_DOMAIN, IS_BLANK, IS_PUNCTUATION, IS_HEX, IS_BRACKET = (1 << bit for bit in range(8))
_CHARACTERS = {
    IS_DIGIT: ASCII_DIGITS,
    IS_LETTER: ASCII_LETTERS,
    IS_LOCAL: _WORD + b".!#$%&'*+^~-",
    IS_DOMAIN: _WORD + b".-",
    IS_BLANK: b" \t",
    IS_PUNCTUATION: b"-./" + bytes([DASH]),
    IS_HEX: b"0123456789abcdefABCDEF:",
    IS_BRACKET: b"()",
}
IS_ALNUM = IS_DIGIT | IS_LETTER
IS_GAP = IS_BLANK | IS_PUNCTUATION
IS_LINK = IS_GAP | IS_BRACKET
_KINDS = bytes(sum(bit for bit, those in _CHARACTERS.items() if code in those) for code in range(256))
ROW = 64
# Looked through at a time: what is made on the way stays in the cache, and in memory that the process has already.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Characters:
    """A reading's text as it is written and as an array, and of each character its kinds."""

    written: bytes
    text: Bytes
    kinds: Bytes

    @classmethod
    def of(cls, text: bytes) -> "Characters":
        """Look up the kinds of a text that has margins."""
        return cls(text, np.frombuffer(text, np.uint8), np.frombuffer(text.translate(_KINDS), np.uint8))

    def has(self, characters: bytes) -> bool:
        """Tell whether any of these stands anywhere; far quicker than a look at places."""
        return any(code in self.written for code in characters)

    def places_of(self, code: int) -> Ints:
        """Return where a character stands, ascending."""
        if code not in self.written:
            return np.zeros(0, np.intp)
        blocks = range(0, len(self.text), _BLOCK)
        return np.concatenate([_beyond(np.flatnonzero(self.text[at : at + _BLOCK] == code), at) for at in blocks])


def _beyond(places: Ints, start: int) -> Ints:
    """Return places in a block as places in the text that it starts in, in the same memory."""
    return np.add(places, start, out=places)


def digit_runs(text: Bytes) -> tuple[Ints, Ints]:
    """Return where each run of digits starts, and where it ends (exclusive), of a text that has margins."""
    edges = []
    for at in range(0, len(text) - 1, _BLOCK):
        digit = text[at : at + _BLOCK + 1] - ord("0") < 10  # unsigned: what lies below wraps around
        edges.append(_beyond(np.flatnonzero(digit[1:] != digit[:-1]), at + 1))
    starts, ends = np.ascontiguousarray(np.concatenate(edges).reshape(-1, 2).T)
    return starts, ends


def is_word(kinds: Bytes) -> Bools:
    """Tell which are letters, digits or `_`."""
    word: Bools = (kinds & (IS_DOMAIN | IS_PUNCTUATION)) == IS_DOMAIN
    return word


def rows(characters: Bytes, places: Ints, size: int = ROW) -> Bytes:
    """Return the characters from each place on, shape (places, size)."""
    # What `sliding_window_view` gives, without its checks, which cost more than the view.
    view: Bytes = np.ndarray((len(characters) - size + 1, size), np.uint8, characters, strides=(1, 1))
    return view[places]


def bits(there: npt.NDArray[Any]) -> Bits:
    """Return the bits of rows that begin at a place: bit n is set where the character n after it is not zero."""
    row: Bits = np.packbits(there, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    return row


def bits_before(there: npt.NDArray[Any]) -> Bits:
    """Return the bits of rows that end at a place: bit n is set where the character n before their last is not zero."""
    row: Bits = np.packbits(there).view(">u8").astype(np.uint64)
    return row


def first_run(row: Bits) -> Bits:
    """Return the bits that are set from bit 0 on without a gap."""
    run: Bits = row & ~(row + 1)
    return run


def through_last(row: Bits) -> Bits:
    """Return all bits up to the last one that is set, that one included; none where none is."""
    for step in (1, 2, 4, 8, 16, 32):
        row = row | (row >> np.uint64(step))
    return row


def count(row: Bits) -> Ints:
    """Return how many bits are set."""
    return np.bitwise_count(row).astype(np.intp)
