"""IBANs: letters of a country before digits, the country's length, and ISO 7064 MOD 97-10 over all at once."""

import numpy as np
import numpy.typing as npt

from portcullis.pii.entities import IBAN_LENGTHS, Entity, torn
from portcullis.pii.reading import DASH, ENCODING, Bytes, Ints
from portcullis.pii.structure.characters import (
    ASCII_DIGITS,
    ASCII_LETTERS,
    IS_ALNUM,
    IS_DIGIT,
    IS_GAP,
    IS_LETTER,
    Bools,
    Characters,
    bits,
    count,
    first_run,
    rows,
    table,
)
from portcullis.pii.structure.spans import Spans, joined, spans_of

_LONGEST = max(IBAN_LENGTHS.values()) + 1
# With a blank between any two characters.
_REACH = 2 * _LONGEST
_COUNTRY_LENGTH = np.zeros(1 << 10, np.intp)
for _country, _length in IBAN_LENGTHS.items():
    _COUNTRY_LENGTH[(ord(_country[0]) & 31) << 5 | ord(_country[1]) & 31] = _length
_NO_VALUE = 99
_VALUE = bytes(int(chr(c), 36) if c in ASCII_DIGITS + ASCII_LETTERS else _NO_VALUE for c in range(256))
# Of each length in groups of four: where its characters are, and the end of the last.
_FOURS = [sum(1 << place + place // 4 for place in range(length)) for length in range(_LONGEST + 1)]
_IN_FOURS = np.array(_FOURS, np.uint64)
_THROUGH = np.array([(2 << row.bit_length()) - 1 for row in _FOURS], np.uint64)
_PLACE_IN_FOURS = np.arange(_LONGEST) + np.arange(_LONGEST) // 4
_BLANK_OR_DASH = table(b" \t-" + bytes([DASH]))
# 10^n modulo 97.
_POWER = np.array([pow(10, n, 97) for n in range(2 * _LONGEST)], np.uint32)


def ibans(of: Characters, starts: Ints, ends: Ints) -> Spans:
    """Find every IBAN: this is the whole rule, so nothing is deferred.

    Args:
        of: The text.
        starts: Where each run of digits starts.
        ends: And where it ends.
    """
    text, kinds = of.text, of.kinds
    which = np.flatnonzero(kinds[starts - 1] & IS_LETTER)
    if not len(which):
        return joined([])
    starts = starts[which[ends[which] - starts[which] >= 2]] - 2
    starts = starts[(kinds[starts] & IS_LETTER) != 0]
    one, two = text[starts], text[starts + 1]
    length = _COUNTRY_LENGTH[((one & 31).astype(np.intp) << 5) | (two & 31)]
    usual = (kinds[starts - 1] & IS_DIGIT == 0) & (length > 0)
    starts, length = starts[usual], length[usual]
    if not len(starts):
        return joined([])

    alnum = bits(rows(kinds, starts) & IS_ALNUM)
    run = count(first_run(alnum))
    solid = np.flatnonzero((run >= length) & (kinds[starts + length] & IS_DIGIT == 0))
    fours = np.flatnonzero((run == 4) & ((alnum & _THROUGH[length]) == _IN_FOURS[length]))
    gaps = rows(text, starts[fours] + 4, 5 * (_LONGEST // 4))[:, ::5]
    fours = fours[(_BLANK_OR_DASH[gaps] | (np.arange(_LONGEST // 4) >= (length[fours, None] - 1) // 4)).all(1)]
    other = run < length
    other[fours] = False
    found = [
        _valid(rows(text, starts[solid], _LONGEST), starts[solid], length[solid], length[solid]),
        _valid(
            rows(text, starts[fours], _LONGEST + _LONGEST // 4)[:, _PLACE_IN_FOURS],
            starts[fours],
            length[fours],
            length[fours] + (length[fours] - 1) // 4,
        ),
        _spelled_otherwise(of, starts[other], length[other]),
    ]
    return _apart(of, joined(found))


def grouped_otherwise(of: Characters, starts: Ints, ends: Ints, known: Spans) -> Ints:
    """Return where an IBAN may begin that is in groups of four further apart, or with its country for itself.

    `known` are those that are found.
    """
    kinds = of.kinds
    size, lead = ends - starts, kinds[starts - 1]
    two = size == 2
    which = np.flatnonzero((lead & IS_LETTER != 0) & two & (kinds[ends] & IS_GAP != 0))
    found = []
    for gap in range(4):
        if gap == 1:
            # Behind the check digits is a letter or a gap, or at least the three digits of a bank.
            which = np.flatnonzero((lead & IS_GAP != 0) & (two | (size >= 5)))
        elif gap:
            which = which[kinds[starts[which] - gap] & IS_GAP != 0]
        these = starts[which[kinds[starts[which] - gap - 1] & IS_LETTER != 0]]
        letters = these - gap - 2
        word = (kinds[letters] & IS_LETTER != 0) & (kinds[letters - 1] & IS_ALNUM == 0)
        these, letters = these[word], letters[word]
        length = _COUNTRY_LENGTH[((of.text[letters] & 31).astype(np.intp) << 5) | (of.text[letters + 1] & 31)]
        new = length > 0
        if len(known.starts):
            near = np.minimum(np.searchsorted(known.starts, letters), len(known.starts) - 1)
            new &= known.starts[near] != letters
        these, letters, length = these[new], letters[new], length[new]
        alnum = bits(rows(kinds, these) & IS_ALNUM)
        run = count(first_run(alnum))
        # Two digits, one to three blanks or marks, and the first group of four.
        beyond = alnum >> np.uint64(2)
        space = count(first_run(~beyond)).astype(np.uint64)
        group = (space >= 1) & (space <= 3) & (count(first_run(beyond >> np.minimum(space, np.uint64(3)))) == 4)
        found.append(letters[((run == 2) & group) | ((run == length - 2) & (gap > 0))])
    return np.concatenate(found)


def _apart(of: Characters, spans: Spans) -> Spans:
    """Return those that are not torn from something longer."""
    beside = (of.kinds[spans.starts - 1] | of.kinds[spans.ends]) & IS_LETTER
    good = np.ones(len(beside), np.bool_)
    for index in np.flatnonzero(beside).tolist():
        start, end = int(spans.starts[index]), int(spans.ends[index])
        near = of.written[start - _NEAR : end + _NEAR].decode(ENCODING)
        good[index] = not torn(near, _NEAR, _NEAR + end - start)
    return Spans(spans.starts[good], spans.ends[good], spans.ranks[good])


# Further than a word that may touch one.
_NEAR = 32


def _spelled_otherwise(of: Characters, starts: Ints, length: Ints) -> Spans:
    """Return the IBANs with at most one blank or dash between any two characters."""
    if not len(starts):
        return joined([])
    window = rows(of.text, starts, _REACH + 1)
    alnum = rows(of.kinds, starts, _REACH + 1) & IS_ALNUM != 0
    place = np.cumsum(alnum, 1, dtype=np.uint8)
    last = np.argmax(place >= length[:, None], 1)
    within = np.arange(_REACH + 1) <= last[:, None]
    gap = within & ~alnum
    good = (place[:, -1] >= length) & (of.kinds[starts + last + 1] & IS_DIGIT == 0)
    good &= ~((gap & ~_BLANK_OR_DASH[window]).any(1) | (gap[:, 1:] & gap[:, :-1]).any(1))
    row, column = np.nonzero(within[good] & alnum[good])
    spelled = np.zeros((int(good.sum()), _LONGEST), np.uint8)
    spelled[row, place[good][row, column] - 1] = window[good][row, column]
    return _valid(spelled, starts[good], length[good], last[good] + 1)


def _valid(spelled: Bytes, starts: Ints, length: Ints, size: Ints) -> Spans:
    """Return those whose check digits hold, of IBANs of these lengths written without blanks, shape (n, 34)."""
    if not len(starts):
        return joined([])
    good = _checked(np.ascontiguousarray(spelled.T), length)
    return spans_of(starts[good], (starts + size)[good], Entity.IBAN)


def _checked(spelled: Bytes, length: Ints) -> Bools:
    """Tell which have the remainder 1, given by character, shape (34, n)."""
    value = np.frombuffer(spelled.tobytes().translate(_VALUE), np.uint8).reshape(spelled.shape)
    inside = np.arange(len(value), dtype=np.uint8)[:, None] < length.astype(np.uint8)
    good: Bools = ~((value == _NO_VALUE) & inside).any(0)
    value = value * inside
    digits = inside + (value > 9).view(np.uint8)  # a letter stands for two
    # Country and check digits come last, six digits in all.
    total: npt.NDArray[np.uint32] = value[0] * _POWER[4] + value[1] * _POWER[2] + value[2] * _POWER[1] + value[3]
    behind = np.full(len(length), 6, np.intp)
    for place in range(len(value) - 1, 3, -1):
        total += value[place] * _POWER[behind]
        behind += digits[place]
    good &= total % 97 == 1
    return good
