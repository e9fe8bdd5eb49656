"""Identifiers that are encoded, in one way or in one upon another.

Percent-encoding (RFC 3986), as forms write it too (`+` for a blank, in a text with `=` or `%`); character references of
HTML; base64 of either alphabet (RFC 4648); and hexadecimal.

A text is decoded so that each byte knows where it came from. What percent-encoding and HTML spell character by
character is masked exactly; a run of base64 or hexadecimal as a whole. Nothing grows when it is decoded, but for a few
of HTML's references by half, and there are two levels, so the work is linear.

Base64 of text in ASCII is told from words by its form: no byte of it is above 127 or below a blank, which leaves each
character of a group of four a part of the alphabet. Two such groups in a row make a run worth decoding. Hexadecimal
likewise: each pair begins with 2 to 7. So what is decoded has six bytes of ASCII in a row at least; text in UTF-16,
and runs that are broken over lines, are not seen.
"""

import base64
import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.reading import Bytes, Ints
from portcullis.pii.scan import Found

LEVELS = 2

_ANY = "[A-Za-z0-9+/_-]"
_GROUP = f"[I-Za-f][C-HS-Xi-nyz0-3][ABEFIJMNQRUVYZcdghklopstwx014589]{_ANY}"
_ASCII_BASE64 = f"(?:{_ANY}{{4}})*?(?:{_GROUP}){{2}}"
# Six bytes of ASCII in a row, and no control character but tab and line breaks before them. All digits, as many a
# number is, they are only where they spell hexadecimal digits, blanks and `%`.
_PAIR, _LETTER = "[2-7][0-9A-Fa-f]", "[2-7][A-Fa-f]"
_SPELT = "(?:3[0-9]|2[05]|[46][1-6]){6}"
_ASCII_HEX = f"(?:[2-9A-Fa-f][0-9A-Fa-f]|0[9ADad])*?(?:{_SPELT}|{_LETTER}(?:{_PAIR}){{5}}|(?:{_PAIR}){{5}}{_LETTER})"
# What Arrow looks for in all values at once; the rest is done where it finds something.
_SUSPECT = (
    r"%[0-9A-Fa-f]{2}|&[#A-Za-z]|[0-9)]\+[0-9(]"
    rf"|(?:^|[^A-Za-z0-9])(?:{_ASCII_BASE64}|(?:0[xX])?{_ASCII_HEX})"
)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_FORM = re.compile(rb"[=%].*\+|\+.*[=%]", re.DOTALL)
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
_RUNS = (re.compile(rb"[A-Za-z0-9+/]{8,}"), re.compile(rb"[A-Za-z0-9_-]{8,}"))
_PADDING = re.compile(rb"={0,2}")
_IS_ASCII_BASE64 = re.compile(_ASCII_BASE64.encode())
_HEX = re.compile(rb"(?<![0-9A-Za-z])(?:0[xX])?((?:[0-9A-Fa-f]{2}){6,})(?![0-9A-Za-z])")
_IS_ASCII_HEX = re.compile(_ASCII_HEX.encode())
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class _View:
    """A value as one way of decoding shows it.

    Attributes:
        value: Which value.
        text: What is shown, UTF-8.
        begins: For each byte of it, the first byte of the value that spells it.
        ends: And the one after the last.
        form: Whether a `+` may be a blank in it.
    """

    value: int
    text: bytes
    begins: Ints
    ends: Ints
    form: bool = True


class EncodedFinder:
    """Finds encoded identifiers; see `portcullis.pii.scan.Finder`.

    Args:
        search: What finds identifiers in decoded texts.
    """

    def __init__(self, search: Callable[[Any, str], Found]) -> None:
        self._search = search

    def __call__(self, values: Any, column: str) -> Found:
        """Return the encoded identifiers in a large_string array without nulls, in a column of this name."""
        suspects = np.flatnonzero(may_be_encoded(values))
        views = [view for value in suspects.tolist() for view in _views(value, values[value].as_py().encode())]
        if not views:
            nothing = np.zeros(0, np.intp)
            return nothing, nothing, nothing, np.zeros(0, np.uint8)
        texts = pa.array([view.text.decode() for view in views], pa.large_string())
        which, starts, ends, ranks = self._search(texts, column)
        numbers = np.array([view.value for view in views], np.intp)
        rows = [(views[view], start, end) for view, start, end in zip(which, starts, ends - 1, strict=True)]
        begins = np.array([view.begins[start] for view, start, _ in rows], np.intp)
        stops = np.array([view.ends[end] for view, _, end in rows], np.intp)
        return numbers[which], begins, stops, ranks


def may_be_encoded(values: Any) -> npt.NDArray[np.bool_]:
    """Return which values of a large_string array without nulls may hold anything encoded."""
    suspects: npt.NDArray[np.bool_] = pc.match_substring_regex(values, _SUSPECT).to_numpy(zero_copy_only=False)
    return suspects


def _views(value: int, text: bytes) -> Iterator[_View]:
    places = np.arange(len(text) + 1)
    level: Sequence[_View] = [_View(value, text, places[:-1], places[1:], form=_FORM.search(text) is not None)]
    for _ in range(LEVELS):
        level = [decoded for view in level for decode in (_unquoted, _unescaped, _runs) for decoded in decode(view)]
        yield from level


def _unquoted(view: _View) -> Iterator[_View]:
    """Yield a view with each `%40` as the byte that it stands for, and one with each `+` as a blank besides."""
    encoded = np.array([match.start() for match in _PERCENT.finditer(view.text)], np.intp)
    data = np.frombuffer(view.text, np.uint8).copy()
    ends = view.ends.copy()
    keep = np.ones(len(data), np.bool_)
    if len(encoded):
        data[encoded] = [int(view.text[place + 1 : place + 3], 16) for place in encoded.tolist()]
        ends[encoded] = view.ends[encoded + 2]
        keep[encoded + 1] = keep[encoded + 2] = False
        yield _View(view.value, _as_text(data[keep]), view.begins[keep], ends[keep])
    if view.form and b"+" in view.text:
        data[np.frombuffer(view.text, np.uint8) == ord("+")] = ord(" ")
        yield _View(view.value, _as_text(data[keep]), view.begins[keep], ends[keep])


def _unescaped(view: _View) -> Iterator[_View]:
    """Yield a view with each `&#64;` as the character that it stands for."""
    text = view.text.decode()
    if "&" not in text:
        return
    parts: list[bytes] = []
    begins, ends = [], []
    place = last = 0  # in bytes, in characters
    for match in _REFERENCE.finditer(text):
        before, written = text[last : match.start()].encode(), match[0].encode()
        spelled = html.unescape(match[0]).encode("utf-8", "replace")
        start = place + len(before)
        stop = start + len(written)
        parts += [before, spelled]
        begins += [view.begins[place:start], np.full(len(spelled), view.begins[start])]
        ends += [view.ends[place:start], np.full(len(spelled), view.ends[stop - 1])]
        place, last = stop, match.end()
    if parts:
        parts.append(view.text[place:])
        yield _View(
            view.value,
            b"".join(parts),
            np.concatenate([*begins, view.begins[place:]]),
            np.concatenate([*ends, view.ends[place:]]),
        )


def _runs(view: _View) -> Iterator[_View]:
    """Yield a view of each run of base64 or hexadecimal, every byte of which came from the whole run."""
    seen = set()
    for runs in _RUNS:
        for match in runs.finditer(view.text):
            run = match[0].translate(_STANDARD)
            if match.span() in seen or not _IS_ASCII_BASE64.match(run):
                continue
            seen.add(match.span())
            run = run[: len(run) - (len(run) % 4 == 1)]
            padding = _PADDING.match(view.text, match.end())
            end = padding.end() if padding else match.end()
            yield _whole(view, match.start(), end, base64.b64decode(run + b"=" * (-len(run) % 4)))
    for match in _HEX.finditer(view.text):
        if _IS_ASCII_HEX.match(match[1]):
            yield _whole(view, match.start(), match.end(), bytes.fromhex(match[1].decode()))


def _whole(view: _View, start: int, end: int, decoded: bytes) -> _View:
    text = _as_text(np.frombuffer(decoded, np.uint8))
    return _View(view.value, text, np.full(len(text), view.begins[start]), np.full(len(text), view.ends[end - 1]))


def _as_text(data: npt.NDArray[np.uint8] | Bytes) -> bytes:
    """Return bytes as valid UTF-8 of the same length: where they are none, without what is beyond ASCII."""
    text = data.tobytes()
    try:
        text.decode()
    except UnicodeDecodeError:
        return np.where(data < 0x80, data, ord("?")).astype(np.uint8).tobytes()
    return text
