"""Identifiers that are encoded, in one way or in one upon another.

Percent-encoding (RFC 3986), as forms write it too (`+` for a blank, in a text with `=` or `%`); character references of
HTML; backslash escapes, as JSON (RFC 8259) and `repr` write them, and control sequences of terminals (ECMA-48), which
show nothing; base64 of either alphabet (RFC 4648); and hexadecimal.

A text is decoded so that each byte knows where it came from. What is spelled character by character is masked exactly;
a run of base64 or hexadecimal as a whole. Nothing grows when it is decoded, but for a few of HTML's references by half,
and there are two levels, so the work is linear.

Base64 of text in ASCII is told from words by its form: no byte of it is above 127 or below a blank, which leaves each
character of a group of four a part of the alphabet. Two such groups in a row make a run worth decoding. Hexadecimal
likewise: each pair begins with 2 to 7. So what is decoded has six bytes of ASCII in a row at least; text in UTF-16,
and runs that are broken over lines, are not seen.
"""

import base64
import html
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import re2

from portcullis.pii.entities import Entity, canonical
from portcullis.pii.reading import Bytes, Ints, buffers
from portcullis.pii.scan import Found, scan_values

LEVELS = 2
Bools = npt.NDArray[np.bool_]

_ANY = "[A-Za-z0-9+/_-]"
_FIRST, _SECOND, _THIRD = "[I-Za-f]", "[C-HS-Xi-nyz0-3]", "[ABEFIJMNQRUVYZcdghklopstwx014589]"
_GROUP = f"{_FIRST}{_SECOND}{_THIRD}{_ANY}"
_ASCII_BASE64 = f"(?:{_ANY}{{4}})*?(?:{_GROUP}){{2}}"
# Six bytes of ASCII in a row, and no control character but tab and line breaks before them. All digits, as many a
# number is, they are only where they spell hexadecimal digits, blanks and `%`.
_PAIR, _LETTER = "[2-7][0-9A-Fa-f]", "[2-7][A-Fa-f]"
_SPELT = "3[0-9]|2[05]|[46][1-6]"
_SIX = f"(?:{_SPELT}){{6}}|{_LETTER}(?:{_PAIR}){{5}}|(?:{_PAIR}){{5}}{_LETTER}"
_ASCII_HEX = f"(?:[2-9A-Fa-f][0-9A-Fa-f]|0[9ADad])*?(?:{_SIX})"
# Behind an escape: what may begin an identifier or something encoded. Elsewhere an escape hides nothing, but for one
# that spells a piece of an identifier itself: ASCII, or a digit of another script.
_BEGINS = r"[^\s\\]{0,64}[^\\]{0,3}[\p{Nd}@:%&]|[A-Za-z0-9+/_-]{8}"
_SPELLS = r"\\(?:x[2-7]|u(?:00[2-7]|0[6-9A-Fa-f]|1[07-9A-Ca-c]|[Aa][689ABab]|[Dd]8|[Ff][EFef]))"
# Looked for in values where a glance shows that it may be; the rest is done where it is found.
_SUSPECT = re2.compile(
    r"%[0-9A-Fa-f]{2}|&[#A-Za-z]|[0-9)]\+[0-9(]"
    rf"|\\(?:[bfnrt/]|u[0-9A-Fa-f]{{4}}|x[0-9A-Fa-f]{{2}})(?:{_BEGINS})|{_SPELLS}|\x1b\["
    rf"|(?:^|[^A-Za-z0-9])(?:{_ASCII_BASE64}|(?:0[xX])?{_ASCII_HEX})"
)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_REFERENCE = re.compile(r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)")
_SURROGATES = r"\\u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}"
_ESCAPE = re.compile(rf"{_SURROGATES}|\\u[0-9A-Fa-f]{{4}}|\\x[0-9A-Fa-f]{{2}}|\\[bfnrt\"'/\\]|\x1b\[[0-?]*[ -/]*[@-~]")
_ESCAPED = dict(zip("bfnrt", "\b\f\n\r\t", strict=True))
_RUNS = (re.compile(rb"[A-Za-z0-9+/]{8,}"), re.compile(rb"[A-Za-z0-9_-]{8,}"))
_PADDING = re.compile(rb"={0,2}")
_IS_ASCII_BASE64 = re.compile(_ASCII_BASE64.encode())
_HEX = re.compile(rb"(?<![0-9A-Za-z])(?:0[xX])?((?:[0-9A-Fa-f]{2}){6,})(?![0-9A-Za-z])")
_IS_ASCII_HEX = re.compile(_ASCII_HEX.encode())
_STANDARD = bytes.maketrans(b"-_", b"+/")
# What each byte may be in a match of `_SUSPECT`, as bits: of a group of base64; the first of a pair of hexadecimal; the
# second, or what stands before a plus; the plus; what alone is enough.
_PARTS = (_FIRST, _SECOND, _THIRD, _ANY, "[2-7]", "[0-9A-Fa-f)]", r"\+", r"[%&\\\x1b]")
_PART_OF = bytes(sum(1 << bit for bit, it in enumerate(_PARTS) if re.match(it, chr(code))) for code in range(256))
_PLUS = 1 << 6
_IS_SPELT = np.zeros((256, 256), np.bool_)
for _first, _second in itertools.product(b"0123456789", repeat=2):
    _IS_SPELT[_first, _second] = re.match(_SPELT, chr(_first) + chr(_second)) is not None
# Looked through at a time, so that what is made on the way stays in the cache; and more than the longest run needs.
_BLOCK, _BEYOND = 1 << 16, 16
_NONE = np.zeros(0, np.intp)


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
        noted: Where each call appends which of its values may hold anything encoded.
    """

    def __init__(self, search: Callable[[Any, str], Found], noted: list[Bools] | None = None) -> None:
        self._search = search
        self._noted = noted

    def noting(self, noted: list[Bools]) -> "EncodedFinder":
        """Return the same, which appends to a list which values of each call may hold anything encoded."""
        return EncodedFinder(self._search, noted)

    def __call__(self, values: Any, column: str) -> Found:
        """Return the encoded identifiers in a large_string array without nulls, in a column of this name."""
        suspects = may_be_encoded(values)
        if self._noted is not None:
            self._noted.append(suspects)
        which = np.flatnonzero(suspects).tolist()
        views = [view for value in which for view in _views(value, values[value].as_py().encode())]
        if not views:
            nothing = np.zeros(0, np.intp)
            return nothing, nothing, nothing, np.zeros(0, np.uint8)
        texts = pa.array([view.text.decode() for view in views], pa.large_string())
        shown, starts, ends, ranks = self._search(texts, column)
        numbers = np.array([view.value for view in views], np.intp)
        rows = [(views[view], start, end) for view, start, end in zip(shown, starts, ends - 1, strict=True)]
        begins = np.array([view.begins[start] for view, start, _ in rows], np.intp)
        stops = np.array([view.ends[end] for view, _, end in rows], np.intp)
        return numbers[shown], begins, stops, ranks


def decoded(entity: Entity, values: Any) -> Any:
    """Return identifiers of one entity with those decoded that are encoded, so that both have one spelling.

    One stays as it is where decoding shows no identifier of that entity, or several.

    Args:
        entity: Which.
        values: A large_string array without nulls.
    """
    which = np.flatnonzero(may_be_encoded(values)).tolist()
    written = {value: values[value].as_py().encode() for value in which}
    views = [view for value, text in written.items() for view in _views(value, text)]
    if not views:
        return values
    found = scan_values(pa.array([view.text.decode() for view in views], pa.large_string()), [entity], recall=True)
    shown: dict[int, set[str]] = {}
    for number, start, end in zip(found.values, found.starts, found.ends, strict=True):
        view = views[number]
        if view.begins[start] == 0 and view.ends[end - 1] == len(written[view.value]):
            shown.setdefault(view.value, set()).add(canonical(entity, view.text[start:end].decode()))
    alone = {value: spellings.pop() for value, spellings in shown.items() if len(spellings) == 1}
    if not alone:
        return values
    there = np.zeros(len(values), np.bool_)
    there[list(alone)] = True
    return pc.replace_with_mask(values, pa.array(there), pa.array([alone[it] for it in sorted(alone)], values.type))


def may_be_encoded(values: Any) -> Bools:
    """Return which values of a large_string array without nulls may hold anything encoded."""
    offsets, data = buffers(values)
    suspects = np.zeros(len(values), np.bool_)
    for places in _promising(data):
        cells = np.searchsorted(offsets, places, "right") - 1
        suspects[cells[places + 1 < offsets[cells + 1]]] = True  # no match is of one byte
    for value in np.flatnonzero(suspects).tolist():
        suspects[value] = _SUSPECT.search(values[value].as_py().encode()) is not None
    return suspects


def _promising(data: Bytes) -> Iterator[Ints]:
    """Yield where `_SUSPECT` may match in the bytes of all values: at least one place in each value where it does."""
    for at in range(0, len(data), _BLOCK):
        read = data[at : at + _BLOCK + _BEYOND].tobytes().translate(_PART_OF)
        parts = np.frombuffer(read.ljust(_BLOCK + _BEYOND, b"\0"), np.uint8)
        # Each bit and the next one of the next byte.
        pair = parts[:-1] & _lowered(parts, 1)[1:]
        # In bit 0, whether two groups of base64 begin there; in bit 4, whether six pairs of hexadecimal do.
        both = pair[: _BLOCK + 8] & pair[4 : _BLOCK + 12]
        there = both[:_BLOCK] & _lowered(both, 2)[2 : _BLOCK + 2]
        pairs = pair[:-2] & pair[2:]
        six = pairs[:_BLOCK] & pairs[4 : _BLOCK + 4] & pairs[8 : _BLOCK + 8]
        if parts.max() >= _PLUS:
            there |= _lowered(pair[:_BLOCK], 5) | _lowered(parts[:_BLOCK], 7)
        if len(places := _set(there, 0)):
            yield places + at
        if len(places := _set(six, 4)) and len(places := _hexadecimal(data[at:], places)):
            yield places + at


def _hexadecimal(data: Bytes, places: Ints) -> Ints:
    """Return those places of six pairs of hexadecimal where letters say so, or where they spell what encodes."""
    pairs = data[places[:, None] + np.arange(12)].reshape(-1, 6, 2)
    letters = (pairs[:, (0, -1), 1] > ord("9")).any(axis=1)
    there: Ints = places[letters | _IS_SPELT[pairs[..., 0], pairs[..., 1]].all(axis=1)]
    return there


def _set(there: npt.NDArray[Any], bit: int) -> Ints:
    """Return where a bit is set."""
    found = (there & (1 << bit)) != 0
    return np.flatnonzero(found) if found.any() else _NONE


def _lowered(parts: Bytes, bit: int) -> Bytes:
    """Return bytes with one bit of each as its lowest; eight at a time, which leaves others' bits in the rest."""
    return (parts.view(np.uint64) >> np.uint64(bit)).view(np.uint8)


def _views(value: int, text: bytes) -> Iterator[_View]:
    places = np.arange(len(text) + 1)
    level: Sequence[_View] = [_View(value, text, places[:-1], places[1:], form=b"=" in text or b"%" in text)]
    for _ in range(LEVELS):
        level = [decoded for view in level for decode in _DECODERS for decoded in decode(view)]
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


def _unreferenced(view: _View) -> Iterator[_View]:
    """Yield a view with each `&#64;` as the character that it stands for."""
    if b"&" in view.text:
        yield from _replaced(view, _REFERENCE, lambda match: html.unescape(match[0]))


def _unescaped(view: _View) -> Iterator[_View]:
    r"""Yield a view with each `\u0040` as the character that it stands for and no control sequences.

    And one with a blank for each of these, if there are any: what they colour may be a word of its own.
    """
    if b"\\" in view.text or b"\x1b[" in view.text:
        yield from _replaced(view, _ESCAPE, _character)
    if b"\x1b[" in view.text:
        yield from _replaced(view, _ESCAPE, lambda match: _character(match) or " ")


def _character(escape: re.Match[str]) -> str:
    """Return what an escape stands for; nothing for a control sequence."""
    text = escape[0]
    match text[1]:
        case "[":
            return ""
        case "u" | "x":
            units = [int(it[1:], 16) for it in text.split("\\")[1:]]
            data = b"".join(unit.to_bytes(2, "big") for unit in units)
            return data.decode("utf-16-be", "replace")
        case letter:
            return _ESCAPED.get(letter, letter)


def _replaced(view: _View, pattern: re.Pattern[str], plain: Callable[[re.Match[str]], str]) -> Iterator[_View]:
    """Yield a view with each match as what it stands for, if there is any."""
    text = view.text.decode()
    parts: list[bytes] = []
    begins, ends = [], []
    place = last = 0  # in bytes, in characters
    for match in pattern.finditer(text):
        before, written = text[last : match.start()].encode(), match[0].encode()
        spelled = plain(match).encode("utf-8", "replace")
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


_DECODERS = (_unquoted, _unreferenced, _unescaped, _runs)


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
