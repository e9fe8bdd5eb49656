"""The gate's own look at encoded text: what a text says once the standard library decoded it, two levels deep.

Only text that decodes to printable characters throughout is looked at: what is not, nobody reads by accident.
"""

import base64
import binascii
import html
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, unquote_plus

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

# A text without any of these decodes to no printable ASCII; Arrow finds them in all texts at once. In base64 the first
# two characters of each four are then of these, in hexadecimal the first digit of each pair. An escape hides what it is
# glued to, or is a piece of it.
_WORTH = (
    r"%[0-9A-Fa-f]{2}|&[#0-9A-Za-z]|[0-9]\+[0-9(]|\x1b\["
    r"|\\(?:[/bfnrt]|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2})(?:[^\\\s]{0,64}[^\\]{0,3}[@:%&\p{Nd}]|[\w+/-]{8})"
    r"|\\x[2-7]|\\u(?:00[2-7]|0[06-9A-Fa-f]|1[07-9A-Ca-c]|[Aa][689ABab]|[Dd]8|[Ff][EFef])"
    r"|(?:^|[^A-Za-z0-9])(?:0[Xx])?(?:[0-9A-Fa-f]{2})*?"
    r"(?:(?:3[0-9]|2[05]|[46][1-6]){6}|(?:[2-7][0-9A-Fa-f]){5}[2-7][A-Fa-f]|[2-7][A-Fa-f](?:[2-7][0-9A-Fa-f]){5})"
    r"|(?:^|[^A-Za-z0-9])(?:[\w+/-]{4})*?(?:[I-Za-f][C-HS-Xi-nyz0-3][\w+/-]{2}){2}"
)
_BASE64 = (re.compile(r"[A-Za-z0-9+/]{8,}={0,2}"), re.compile(r"[A-Za-z0-9_-]{8,}={0,2}"))
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?((?:[0-9A-Fa-f]{2}){6,})(?![0-9A-Za-z])", re.IGNORECASE)

_ESCAPE = re.compile(r"""\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(["'/\\bfnrt]))|\x1b\[[0-9:;<=>?]*[ -/]*[@-~]""")
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def worth_decoding(texts: Any) -> npt.NDArray[np.bool_]:
    """Return which texts of an Arrow array without nulls may be encoded somewhere."""
    worth: npt.NDArray[np.bool_] = pc.match_substring_regex(texts, _WORTH).to_numpy(zero_copy_only=False).copy()
    return worth


def decoded_texts(text: str, *, levels: int = 2) -> Iterator[str]:
    """Yield what a text says decoded: all of it by each way, and each run of base64 and of hex."""
    yield from _decoded(text, levels, form="=" in text or "%" in text)


def _decoded(text: str, levels: int, *, form: bool) -> Iterator[str]:
    for plain in dict.fromkeys((*_whole(text, form=form), *_runs(text))):
        if plain != text:
            yield plain
            if levels > 1:
                yield from _decoded(plain, levels - 1, form=True)


def _whole(text: str, *, form: bool) -> Iterator[str]:
    yield unquote(text)
    if form:
        yield unquote_plus(text)
    if "&" in text:
        yield html.unescape(text)
    if "\\" in text or "\x1b[" in text:
        yield from (_unescaped(text, shown) for shown in ("", " "))


def _unescaped(text: str, shown: str) -> str:
    """Return a text without backslash escapes, and with `shown` for each control sequence of a terminal."""

    def plain(match: re.Match[str]) -> str:
        four, two, letter = match.groups()
        if letter:
            return _LETTERS.get(letter, letter)
        return chr(int(four or two, 16)) if four or two else shown

    # Two escapes of UTF-16's halves are one character; half of one is none.
    return _ESCAPE.sub(plain, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _runs(text: str) -> Iterator[str]:
    for pattern in _BASE64:
        for match in pattern.finditer(text):
            run = match[0].rstrip("=")
            run = run[: len(run) - (len(run) % 4 == 1)]
            yield from _printable(base64.urlsafe_b64decode(run.translate(_URL_SAFE) + "=" * (-len(run) % 4)))
    for match in _HEX.finditer(text):
        yield from _printable(binascii.unhexlify(match[1]))


_URL_SAFE = str.maketrans("+/", "-_")


def _printable(data: bytes) -> Iterator[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:  # no text
        return
    if "".join(text.split()).isprintable():
        yield text
