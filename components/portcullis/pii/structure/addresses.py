"""IPv6 and MAC addresses: colons or dashes close together."""

import numpy as np

from portcullis.pii.entities import Entity
from portcullis.pii.reading import Ints
from portcullis.pii.structure.characters import (
    ASCII_DIGITS,
    IS_ALNUM,
    IS_HEX,
    ROW,
    Characters,
    bits,
    bits_before,
    count,
    first_run,
    rows,
    table,
)
from portcullis.pii.structure.spans import NONE, Spans, joined, spans_of

_HEX = table(ASCII_DIGITS + b"abcdefABCDEF")
_COLON_OR_DASH = table(b":-")
_ESCAPED = table(b"nrt")
_DIGIT = table(ASCII_DIGITS)
_LONGEST_IPV6 = 39


def ipv6(of: Characters, deferred: list[Ints]) -> Spans:
    """Find the IPv6 addresses of usual spelling; a place in any that may be another is added to `deferred`."""
    places = _colons(of)
    if not len(places):
        return spans_of(NONE, NONE, Entity.IP_ADDRESS)
    text, kinds = of.text, of.kinds
    starts = places - count(first_run(bits_before(rows(kinds, places - ROW) & IS_HEX)))
    starts = starts[np.append(True, starts[1:] != starts[:-1])]
    run = first_run(bits(rows(kinds, starts) & IS_HEX))
    colon = bits(rows(text, starts) == ord(":")) & run
    number, doubles, size = count(colon), count(colon & (colon >> np.uint64(1))), count(run)
    # No group is longer than four, and a digit is first and last.
    digit = run & ~colon
    pairs = digit & (digit >> 1)
    groups = (pairs & (pairs >> 2) & (digit >> 4)) == 0
    last = run & ~(run >> 1)
    groups &= ((colon & 1) == 0) & ((colon & last) == 0)
    four = (colon & 0b11111) == 0b10000
    whole = (doubles == 0) & (number == 7)
    short = (doubles == 1) & (number <= 7) & ((number >= 3) | four)
    ends = starts + size
    after = text[ends]
    apart = ((kinds[starts - 1] | kinds[ends]) & IS_ALNUM == 0) & (after != ord("%"))
    beyond = text[ends + 1]
    apart &= (after != ord(".")) | ((kinds[ends + 1] & IS_HEX == 0) & (beyond != ord(".")))
    usual = groups & (whole | short) & apart & (size <= _LONGEST_IPV6)
    deferred.append(starts[~usual])
    return spans_of(starts[usual], ends[usual], Entity.IP_ADDRESS)


def _colons(of: Characters) -> Ints:
    """Return colons, ascending, of which another stands right after, or five more no further than a group apart."""
    colons = of.places_of(ord(":"))
    if len(colons) < 2:
        return NONE
    steps = np.diff(colons)
    wanted = np.append(steps == 1, False)
    if len(colons) > 5:
        near = np.append(0, np.cumsum(steps <= 5))
        wanted[:-5] |= near[5:] - near[:-5] == 5
    found: Ints = colons[wanted]
    return found


def macs(of: Characters) -> Spans:
    """Find every MAC address: this is the whole rule, so nothing is deferred."""
    text, kinds = of.text, of.kinds
    found = []
    for mark in b":-":
        marks = of.places_of(mark)
        if len(marks) < 5:
            continue
        near = np.append(0, np.cumsum(np.diff(marks) == 3))
        starts = marks[:-4][near[4:] - near[:-4] == 4] - 2
        window = rows(text, starts, 17)
        pairs = np.arange(17) % 3 < 2
        good = _HEX[window[:, pairs]].all(1)
        before, after = text[starts - 1], text[starts + 17]
        # Another pair before it makes it a longer address; `mac:` is none.
        pair = _HEX[text[starts - 2]] & (
            _DIGIT[text[starts - 2]] | (_HEX[text[starts - 3]] & (kinds[starts - 4] & IS_ALNUM == 0))
        )
        apart = (kinds[starts - 1] & IS_ALNUM == 0) & ~(_COLON_OR_DASH[before] & pair)
        # Behind an escape as in JSON.
        apart |= (text[starts - 2] == ord("\\")) & _ESCAPED[before]
        good &= apart & (kinds[starts + 17] & IS_ALNUM == 0)
        good &= ~(_COLON_OR_DASH[after] & (kinds[starts + 18] & IS_ALNUM != 0))
        digits = window[:, pairs] | 32
        good &= (digits != ord("0") | 32).any(1) & (digits != ord("f")).any(1)
        found.append(spans_of(starts[good], starts[good] + 17, Entity.MAC_ADDRESS))
    found.append(_dotted_macs(of))
    return joined(found)


def _dotted_macs(of: Characters) -> Spans:
    """Find every MAC address of three groups of four with dots."""
    text, kinds = of.text, of.kinds
    dots = of.places_of(ord("."))
    starts = dots[:-1][np.diff(dots) == 5] - 4
    starts = starts[(kinds[starts - 1] & IS_ALNUM == 0) & (text[starts - 1] != ord("."))]
    window = rows(text, starts, 14)
    digits = window[:, np.arange(14) % 5 < 4]
    decimal = _DIGIT[digits]
    good = _HEX[digits].all(1) & decimal.any(1) & (~decimal.all(1) | (window[:, :2] == ord("0")).all(1))
    good &= kinds[starts + 14] & IS_ALNUM == 0
    good &= ~((text[starts + 14] == ord(".")) & (kinds[starts + 15] & IS_ALNUM != 0))
    good &= (digits != ord("0")).any(1) & ((digits | 32) != ord("f")).any(1)
    return spans_of(starts[good], starts[good] + 14, Entity.MAC_ADDRESS)
