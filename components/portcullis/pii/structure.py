"""The fast path: what is settled about a reading by comparing runs of digits as arrays, without any pattern.

Digits, `@` and `::` are found in one pass. Runs of digits with at most three blanks, dashes, dots, slashes or brackets
between them make a region; its lengths and separators are compared with the usual spellings of each identifier
(3-2-4 of a US social security number, 4-4-4-4 of a card), and checksums are computed over all candidates at once.

This path only answers where its answer is that of the recognisers (`portcullis.pii.entities`): a region that has a
usual spelling between two words is a finding, and one that cannot hold any is none. Wherever anything else might be,
the value is deferred: the recognisers themselves read it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from portcullis.pii.entities import (
    CARD_LENGTHS,
    IBAN_LENGTHS,
    PHONE_CUE,
    PRIORITY,
    SSN_CUE,
    Cue,
    Entity,
    Recogniser,
)
from portcullis.pii.reading import DASH, LETTER, Bytes, Ints

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spans:
    """Findings in a reading as arrays of one length: where each starts, where it ends (exclusive), and its priority."""

    starts: Ints
    ends: Ints
    ranks: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Survey:
    """What the fast path found, and where it leaves values to the recognisers.

    Attributes:
        spans: What it found.
        deferred: A place in each value that recognisers without a hint must read.
        hinted: For each recogniser with a hint, a place in each value that it must read; those without one are absent.
    """

    spans: Spans
    deferred: Ints
    hinted: Sequence[tuple[Recogniser, Ints]]


def joined(parts: Collection[Spans]) -> Spans:
    """Return the findings of all parts, overlapping ones united and in order.

    Nothing that any saw is left, and the entity that comes first in priority names a union.
    """
    starts = np.concatenate([part.starts for part in parts])
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    ends = np.concatenate([part.ends for part in parts])[order]
    ranks = np.concatenate([part.ranks for part in parts])[order]
    if not len(starts):
        return Spans(starts, ends, ranks)
    reach = np.maximum.accumulate(ends)
    heads = np.flatnonzero(np.append(True, starts[1:] >= reach[:-1]))
    return Spans(starts[heads], np.maximum.reduceat(ends, heads), np.minimum.reduceat(ranks, heads))


def spans_of(starts: Ints, ends: Ints, entity: Entity) -> Spans:
    """Return findings that are all of one entity."""
    return Spans(starts, ends, np.full(len(starts), PRIORITY[entity], np.uint8))


def survey(text: Bytes, recognisers: Sequence[Recogniser], speaking: Collection[Entity]) -> Survey:
    """Find what has a usual spelling, and where else something may be.

    Args:
        text: A reading's text, with its margins.
        recognisers: Those that are asked for. Of those without a hint, all that are known of an entity.
        speaking: The entities of recognisers without a hint that the column's name speaks for.
    """
    entities = {recogniser.entity for recogniser in recognisers if recogniser.hint is None}
    found: list[Spans] = [spans_of(_NONE, _NONE, Entity.EMAIL)]
    deferred: list[Ints] = []
    hinted: list[tuple[Recogniser, Ints]] = []
    if Entity.EMAIL in entities:
        found.append(_emails(text, deferred))
    if Entity.IP_ADDRESS in entities:
        found.append(_ipv6(text, deferred))
    if Entity.MAC_ADDRESS in entities:
        found.append(_macs(text))
    is_digit = text - ord("0") < 10  # unsigned: what lies below wraps around
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    if Entity.IBAN in entities:
        found.append(_ibans(text, starts, ends))
    regions = _regions(text, starts, ends)
    if len(regions.first):
        regions = regions.outside(joined(found), text)
    if len(regions.first):
        words = _Words(text, recognisers)
        found.append(_Judgement(text, regions, entities, speaking, words).settle(deferred))
        hinted = _hinted(text, regions, recognisers, words)
    return Survey(joined(found), np.concatenate(deferred) if deferred else _NONE, hinted)


_NONE = np.zeros(0, np.intp)


def _table(characters: bytes) -> Bools:
    table = np.zeros(256, np.bool_)
    table[list(characters)] = True
    return table


_DIGITS = b"0123456789"
_ASCII_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGIT = _table(_DIGITS)
_LETTER = _table(_ASCII_LETTERS + bytes([LETTER]))
_ASCII_LETTER = _table(_ASCII_LETTERS)
_ALNUM = _DIGIT | _LETTER
_WORD = _ALNUM | _table(b"_")
_BLANK = _table(b" \t")
_DASH = _table(bytes([ord("-"), DASH]))
_PUNCTUATION = _DASH | _table(b"./")
_GAP = _BLANK | _PUNCTUATION
_BRACKET = _table(b"()")
_LINK = _GAP | _BRACKET
_LEAD = _table(b"+(")
_BLANK_OR_DASH = _BLANK | _DASH
_HEX_OR_COLON = _table(b"0123456789abcdefABCDEF:")


# --- e-mail ---------------------------------------------------------------------------------------------------------

_LOCAL = _WORD | _table(b".!#$%&'*+^~-")
_DOMAIN = _WORD | _table(b".-")
_LOCAL_REACH = 40
_DOMAIN_REACH = 48


def _emails(text: Bytes, deferred: list[Ints]) -> Spans:
    at = np.flatnonzero(text == ord("@"))
    if not len(at):
        return spans_of(_NONE, _NONE, Entity.EMAIL)
    before = sliding_window_view(text, _LOCAL_REACH)[at - _LOCAL_REACH][:, ::-1]
    after = sliding_window_view(text, _DOMAIN_REACH)[at + 1]
    local = _first_false(_LOCAL[before])
    inside = np.arange(_LOCAL_REACH) < local[:, None]
    words = _WORD[before] & inside
    # The first word character of the run: marks before it stay outside.
    begins = at - _LOCAL_REACH + np.argmax(words[:, ::-1], 1)
    has_local = words.any(1)

    is_domain = _DOMAIN[after]
    length = _first_false(is_domain)
    opens = _ALNUM[after[:, 0]] & (length > 0)
    literal = after[:, 0] == ord("[")
    columns = np.arange(_DOMAIN_REACH)
    dots = (after == ord(".")) & (columns < length[:, None])
    has_dot = dots.any(1)
    rows = np.arange(len(at))
    # One dot after it all ends the sentence.
    length = length - (after[rows, np.maximum(length, 1) - 1] == ord("."))
    dots &= columns < length[:, None]
    alnum = _ALNUM[after]
    torn = (dots[:, :-1] & ~alnum[:, 1:]).any(1)
    last = _DOMAIN_REACH - 1 - np.argmax(dots[:, ::-1], 1)
    top = (columns > last[:, None]) & (columns < length[:, None])
    good_top = ~(top & ~_LETTER[after]).any(1) & (length - 1 - last >= 2)
    usual = dots.any(1) & ~torn & good_top & (text[at + 1 + length] != ord("@"))
    candidate = opens & has_dot & has_local
    odd = (
        (candidate & ~usual)
        | ((local >= _LOCAL_REACH) & (opens | literal))
        | ((length >= _DOMAIN_REACH - 1) & has_local)
        | (literal & has_local)
        | ((before[:, 0] == ord('"')) & (opens | literal))
    )
    deferred.append(at[odd])
    hit = candidate & usual & ~odd
    return spans_of(begins[hit], (at + 1 + length)[hit], Entity.EMAIL)


def _first_false(table: Bools) -> Ints:
    """Return the column of each row's first False, or the number of columns."""
    first: Ints = np.where(table.all(1), table.shape[1], np.argmin(table, 1))
    return first


# --- IPv6 -----------------------------------------------------------------------------------------------------------

_LONGEST_IPV6 = 39


def _ipv6(text: Bytes, deferred: list[Ints]) -> Spans:
    colons = np.flatnonzero(text == ord(":"))
    if len(colons) < 2:
        return spans_of(_NONE, _NONE, Entity.IP_ADDRESS)
    steps = np.diff(colons)
    near = np.append(0, np.cumsum(steps <= 5))
    double = colons[:-1][steps == 1]
    six = colons[:-5][near[5:] - near[:-5] == 5] if len(colons) > 5 else _NONE
    places = np.concatenate((double, six))
    if not len(places):
        return spans_of(_NONE, _NONE, Entity.IP_ADDRESS)
    borders = np.flatnonzero(~_HEX_OR_COLON[text])
    starts = np.unique(borders[np.searchsorted(borders, places) - 1] + 1)
    ends = borders[np.searchsorted(borders, starts)]
    first = np.searchsorted(colons, starts)
    count = np.searchsorted(colons, ends) - first
    doubles = np.searchsorted(double, ends) - np.searchsorted(double, starts)
    # Every group has at most four: no longer way between two colons, nor from the borders.
    steps = np.append(steps, 0)
    long_step = np.append(0, np.cumsum(steps > 5))
    groups = long_step[first + count - 1] - long_step[first] == 0
    head = colons[first] - starts
    tail = ends - 1 - colons[first + count - 1]
    groups &= (head >= 1) & (head <= 4) & (tail >= 1) & (tail <= 4)
    whole = (doubles == 0) & (count == 7)
    short = (doubles == 1) & (count <= 7) & ((count >= 3) | (head == 4))
    after = text[ends]
    apart = ~_ALNUM[text[starts - 1]] & ~_ALNUM[after] & (after != ord("%"))
    apart &= (after != ord(".")) | ~(_HEX_OR_COLON | _table(b"."))[text[ends + 1]]
    usual = groups & (whole | short) & apart & (ends - starts <= _LONGEST_IPV6)
    deferred.append(starts[~usual])
    return spans_of(starts[usual], ends[usual], Entity.IP_ADDRESS)


# --- MAC addresses --------------------------------------------------------------------------------------------------

_HEX = _table(b"0123456789abcdefABCDEF")


def _macs(text: Bytes) -> Spans:
    """Find every MAC address: this is the whole rule, so nothing is deferred."""
    found = []
    for mark in b":-":
        marks = np.flatnonzero(text == mark)
        if len(marks) < 5:
            continue
        near = np.append(0, np.cumsum(np.diff(marks) == 3))
        starts = marks[:-4][near[4:] - near[:-4] == 4] - 2
        window = sliding_window_view(text, 17)[starts]
        pairs = np.arange(17) % 3 < 2
        good = _HEX[window[:, pairs]].all(1)
        before, after = text[starts - 1], text[starts + 17]
        good &= ~_ALNUM[before] & ~(_COLON_OR_DASH[before] & _ALNUM[text[starts - 2]])
        good &= ~_ALNUM[after] & ~(_COLON_OR_DASH[after] & _ALNUM[text[starts + 18]])
        digits = window[:, pairs] | 32
        good &= (digits != ord("0") | 32).any(1) & (digits != ord("f")).any(1)
        found.append(spans_of(starts[good], starts[good] + 17, Entity.MAC_ADDRESS))
    return joined([spans_of(_NONE, _NONE, Entity.MAC_ADDRESS), *found])


_COLON_OR_DASH = _table(b":-")


# --- IBAN -----------------------------------------------------------------------------------------------------------

# Blanks between groups of four; and between all of 34 characters.
_IBAN_REACH, _IBAN_FAR_REACH = 44, 34 * 2
_COUNTRY_LENGTH = np.zeros((32, 32), np.intp)
for _country, _length in IBAN_LENGTHS.items():
    _COUNTRY_LENGTH[ord(_country[0]) & 31, ord(_country[1]) & 31] = _length
_NO_VALUE = 99
_VALUE = np.full(256, _NO_VALUE, np.uint16)
for _character in _DIGITS + _ASCII_LETTERS:
    _VALUE[_character] = int(chr(_character), 36)


def _ibans(text: Bytes, starts: Ints, ends: Ints) -> Spans:
    """Find every IBAN: this is the whole rule, so nothing is deferred."""
    one, two = text[starts - 2], text[starts - 1]
    usual = _ASCII_LETTER[one] & _ASCII_LETTER[two] & ~_ALNUM[text[starts - 3]] & (ends - starts >= 2)
    starts = starts[usual] - 2
    length = _COUNTRY_LENGTH[text[starts] & 31, text[starts + 1] & 31]
    starts, length = starts[length > 0], length[length > 0]
    near, beyond = _spelled_ibans(text, starts, length, _IBAN_REACH)
    far, _ = _spelled_ibans(text, *beyond, _IBAN_FAR_REACH)
    return joined([near, far])


def _spelled_ibans(text: Bytes, starts: Ints, length: Ints, reach: int) -> tuple[Spans, tuple[Ints, Ints]]:
    """Return the IBANs of these lengths that end within reach of these starts, and the starts and lengths beyond it."""
    if not len(starts):
        return spans_of(_NONE, _NONE, Entity.IBAN), (starts, length)
    window = sliding_window_view(text, reach + 1)[starts]
    alnum = _ALNUM[window]
    place = np.cumsum(alnum, 1, dtype=np.uint8)
    last = np.argmax(place >= length[:, None], 1)
    short = place[:, -1] < length
    beyond = starts[short], length[short]
    within = np.arange(reach + 1) <= last[:, None]
    gap = within & ~alnum
    torn = (gap & ~_BLANK_OR_DASH[window]).any(1) | (gap[:, 1:] & gap[:, :-1]).any(1)
    good = ~short & ~torn & ~_ALNUM[text[starts + last + 1]]
    starts, length, last, window, place = starts[good], length[good], last[good], window[good], place[good]
    row, column = np.nonzero(within[good] & alnum[good])
    value = _VALUE[window[row, column]]
    # In the order of the check: country and check digits last.
    order = place[row, column].astype(np.intp) - 5
    order += np.where(order < 0, length[row], 0)
    values = np.zeros((34, len(starts)), np.uint16)
    values[order, row] = value
    rest = np.zeros(len(starts), np.uint16)
    for step in range(int(length.max(initial=0))):
        rest = np.where(step < length, (rest * np.where(values[step] < 10, 10, 100) + values[step]) % 97, rest)
    rest[row[value == _NO_VALUE]] = 0
    valid = rest == 1
    return spans_of(starts[valid], (starts + last + 1)[valid], Entity.IBAN), beyond


# --- regions of digits ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Regions:
    """Runs of digits, and which of them stand together.

    Attributes:
        starts: Where each run starts.
        ends: Where it ends, exclusive.
        first: Each region's first run.
        runs: How many runs it has.
        total: How many digits it has.
    """

    starts: Ints
    ends: Ints
    first: Ints
    runs: Ints
    total: Ints

    def kept(self, keep: Bools) -> "_Regions":
        return _Regions(self.starts, self.ends, self.first[keep], self.runs[keep], self.total[keep])

    def outside(self, spans: Spans, text: Bytes) -> "_Regions":
        """Return the regions but those within a finding: whatever they might be, it would be part of that."""
        if not len(spans.starts):
            return self
        starts, ends = self.starts[self.first], self.ends[self.first + self.runs - 1]
        near = np.maximum(np.searchsorted(spans.starts, starts) - 1, 0)
        within = (spans.starts[near] < starts) & (ends <= spans.ends[near])
        return self.kept(~within | _extended(text, ends))


def _regions(text: Bytes, starts: Ints, ends: Ints) -> _Regions:
    """Return the regions that may hold something: six digits, four groups with dots, or five after a `+` or bracket."""
    if not len(starts):
        return _Regions(_NONE, _NONE, _NONE, _NONE, _NONE)
    left = ends[:-1]
    gap = starts[1:] - left
    linked = (gap <= 3) & _LINK[text[left]]
    linked &= (gap < 2) | _LINK[text[left + 1]]
    linked &= (gap < 3) | _LINK[text[left + 2]]
    first = np.append(0, np.flatnonzero(~linked) + 1)
    runs = np.diff(np.append(first, len(starts)))
    count = np.append(0, np.cumsum(ends - starts))
    total = count[first + runs] - count[first]
    lead = _far(text, starts[first]) | _LEAD[text[starts[first] - 1]]
    may = (total >= 6) | (runs >= 4) | (lead & (total == 5))
    return _Regions(starts, ends, first, runs, total).kept(may)


def _far(text: Bytes, starts: Ints) -> Bools:
    """Tell where a `+` or a bracket stands before the digits, though not right before them."""
    far = np.zeros(len(starts), np.bool_)
    for back in range(2, 6):
        far |= _LEAD[text[starts - back]]
    near = text[starts - 1]
    return far & (_LINK[near] | _LEAD[near])


def _extended(text: Bytes, ends: Ints) -> Bools:
    """Tell where `x12`, `ext. 12` or `#12` may follow: at once, or after at most two blanks or commas."""
    one, two, three = text[ends], text[ends + 1], text[ends + 2]
    skip = _BLANK | _table(b",")
    may = _extension(one, two)
    may |= skip[one] & _extension(two, three)
    return may | (skip[one] & skip[two] & _extension(three, text[ends + 3]))


def _extension(here: Bytes, after: Bytes) -> Bools:
    found: Bools = _IS_X[here] | (here == ord("#")) | (_IS_E[here] & _IS_X[after])
    return found


class _Words:
    """Where words begin that may be a cue's; looked up once, when first asked."""

    def __init__(self, text: Bytes, recognisers: Sequence[Recogniser]) -> None:
        self.text = text
        cues = dict.fromkeys(it.cue for it in recognisers if it.cue is not None)
        self.bits = {cue: np.uint32(1 << bit) for bit, cue in enumerate(cues)}

    @cached_property
    def _hits(self) -> tuple[Ints, npt.NDArray[np.uint32]]:
        stems = np.zeros(1 << 15, np.uint32)
        for cue, bit in self.bits.items():
            for stem in cue.stems:
                one, two, three = (letter & 31 for letter in stem.encode())
                stems[(one << 10) | (two << 5) | three] |= bit
        letters = np.where(_ASCII_LETTER, np.arange(256) & 31, 0).astype(np.uint16)[self.text]
        code = (letters[:-2] << 10) | (letters[1:-1] << 5) | letters[2:]
        hits = np.flatnonzero((stems != 0)[code])
        hits = hits[~_ALNUM[self.text[hits - 1]]]
        return hits, stems[code[hits]]

    def near(self, cues: Sequence[Cue], starts: Ints, ends: Ints) -> Bools:
        """Tell where a word of one of the cues may be near enough to `text[starts:ends]`."""
        hits, bits = self._hits
        wanted = np.bitwise_or.reduce([self.bits[cue] for cue in cues if cue in self.bits] or [np.uint32(0)])
        hits = hits[(bits & wanted) != 0]
        low = np.searchsorted(hits, starts - _CUE_REACH)
        found: Bools = np.searchsorted(hits, ends + _CUE_REACH) > low
        return found


def _hinted(
    text: Bytes, regions: _Regions, recognisers: Sequence[Recogniser], words: _Words
) -> list[tuple[Recogniser, Ints]]:
    """Return the recognisers with a hint that may match, and a place near each candidate."""
    enough = regions.kept(regions.total >= 6)
    if not len(enough.first):
        return []
    offset = np.cumsum(enough.runs) - enough.runs
    left = np.repeat(enough.runs + offset, enough.runs) - np.arange(int(enough.runs.sum()))
    index = np.repeat(enough.first - offset, enough.runs) + np.arange(len(left))
    starts, ends = enough.starts[index], enough.ends[index]
    size = ends - starts
    found = []
    for recogniser in recognisers:
        hint = recogniser.hint
        if hint is None:
            continue
        begins, stops = [], []
        for group in hint.groups:
            which = np.flatnonzero((size == group[0]) & (left >= len(group)))
            for place, wanted in enumerate(group[1:], 1):
                which = which[size[which + place] == wanted]
            begins.append(starts[which])
            stops.append(ends[which + len(group) - 1])
        if not hint.groups:
            begins.append(starts)
            stops.append(ends)
        begin, stop = np.concatenate(begins), np.concatenate(stops)
        good = _table(hint.first.encode())[text[begin]]
        good &= _beside(text, begin, -1, hint.lead) & _beside(text, stop - 1, 1, hint.tail)
        begin, stop = begin[good], stop[good]
        if recogniser.cue is not None and len(begin):
            begin = begin[words.near([recogniser.cue], begin, stop)]
        if len(begin):
            found.append((recogniser, begin))
    return found


def _beside(text: Bytes, places: Ints, step: int, letters: str) -> Bools:
    """Tell where one of the letters is the next character in a direction, or the one after a blank or mark."""
    if not letters:
        return np.ones(len(places), np.bool_)
    table = _table((letters + letters.lower()).encode())
    near = text[places + step]
    found: Bools = table[near] | (_GAP[near] & table[text[places + 2 * step]])
    return found


class _Judgement:
    """Judges regions of digits: findings, nothing, or to be deferred."""

    def __init__(
        self,
        text: Bytes,
        regions: _Regions,
        entities: Collection[Entity],
        speaking: Collection[Entity],
        words: _Words,
    ) -> None:
        self.text = text
        self.regions = regions
        self.entities = entities
        self.speaking = speaking
        self.words = words
        self.first = regions.first
        self.last = regions.first + regions.runs - 1
        self.runs = regions.runs
        self.total = regions.total
        self.starts = regions.starts[self.first]
        self.ends = regions.ends[self.last]
        lead = text[self.starts - 1]
        self.plus = lead == ord("+")
        self.bracket = lead == ord("(")
        self.far_lead = _far(text, self.starts)
        after = text[self.ends]
        self.extended = _extended(text, self.ends)
        glued = _ALNUM[lead] | ((self.plus | (lead == ord(","))) & _DIGIT[text[self.starts - 2]])
        self.glued_after = _ALNUM[after]
        self.clean = ~(glued | self.glued_after | self.extended | self.far_lead)

    def settle(self, deferred: list[Ints]) -> Spans:
        """Return what is found; what must be deferred is added to `deferred`."""
        count = len(self.first)
        rank = np.full(count, _NO_RANK, np.uint8)
        begins = self.starts.copy()
        one = self.runs == 1
        phones, others, nine = self._flags()

        def claim(which: Ints, entity: Entity) -> None:
            rank[which] = np.minimum(rank[which], PRIORITY[entity])

        if Entity.US_SSN in self.entities:
            claim(self._ssn(), Entity.US_SSN)
            if Entity.US_SSN in self.speaking:
                which = np.flatnonzero(self.clean & one & (self.total == 9))
                claim(which[self._valid_ssn(self._digits(which, 9))], Entity.US_SSN)
        if Entity.IP_ADDRESS in self.entities:
            claim(self._ipv4(), Entity.IP_ADDRESS)
        if Entity.CREDIT_CARD in self.entities:
            claim(self._cards(), Entity.CREDIT_CARD)
        if Entity.PHONE in self.entities:
            which, opened = self._nanp()
            claim(which, Entity.PHONE)
            begins[which[opened]] -= 1
            international = self.clean & self.plus & (self.total >= 8) & (self.total <= 15)
            international &= (self.text[self.starts] != ord("0")) & (~nine | (rank != _NO_RANK))
            international &= one | ~others | (rank != _NO_RANK)
            claim(np.flatnonzero(international), Entity.PHONE)
            begins[international] = self.starts[international] - 1
            if Entity.PHONE in self.speaking:
                spoken = self.clean & one & (self.total >= 7) & (self.total <= 17) & ~self.plus & ~self.bracket
                claim(np.flatnonzero(spoken), Entity.PHONE)
        found = rank != _NO_RANK
        open_ = ~found & ~(one & self.glued_after & ~self.extended)
        flagged = open_ & (phones | others | self._lead_flag())
        rest = np.flatnonzero(open_ & ~flagged & (self.total >= 6))
        if len(rest):
            near = self.words.near([PHONE_CUE, SSN_CUE], self.starts[rest], self.ends[rest])
            flagged[rest[near]] = True
        deferred.append(self.starts[flagged])
        return Spans(begins[found], self.ends[found], rank[found])

    # Shapes. Each returns the regions that are that identifier and nothing else.

    def _ssn(self) -> Ints:
        which = self._shape((3, 2, 4))
        for run in (0, 1):
            which = which[self._ssn_gap(which, run)]
        digits = np.hstack([self._run_digits(which, run, size) for run, size in enumerate((3, 2, 4))])
        return which[self._valid_ssn(digits)]

    def _ssn_gap(self, which: Ints, run: int) -> Bools:
        """Tell where the gap after a run is one blank, or a dash, dot or slash with a blank on either side or none."""
        at = self.regions.ends[self.first[which] + run]
        size = self.regions.starts[self.first[which] + run + 1] - at
        one, two, three = self.text[at], self.text[at + 1], self.text[at + 2]
        middle = _BLANK[one] & _PUNCTUATION[two] & _BLANK[three]
        pair = (_BLANK[one] & _PUNCTUATION[two]) | (_PUNCTUATION[one] & _BLANK[two])
        good: Bools = ((size == 1) & _GAP[one]) | ((size == 2) & pair) | ((size == 3) & middle)
        return good

    @staticmethod
    def _valid_ssn(digits: Bytes) -> Bools:
        area = _number(digits[:, :3])
        issued = (area != 0) & (area != 666) & (area < 900)
        good: Bools = issued & (_number(digits[:, 3:5]) != 0) & (_number(digits[:, 5:]) != 0)
        return good

    def _ipv4(self) -> Ints:
        which = np.flatnonzero(self.clean & (self.runs == 4) & (self.total <= 12))
        for run in range(4):
            at = self.regions.starts[self.first[which] + run]
            end = self.regions.ends[self.first[which] + run]
            size = end - at
            value = np.zeros(len(which), np.intp)
            for place in range(3):
                value = np.where(place < size, value * 10 + self.text[at + place] - 48, value)
            good = (size <= 3) & (value <= 255)
            if run < 3:
                good &= (self.text[end] == ord(".")) & (self.regions.starts[self.first[which] + run + 1] == end + 1)
            which = which[good]
        return which

    def _cards(self) -> Ints:
        which = np.flatnonzero(self.clean & (self.total >= 12) & (self.total <= 19) & (self.runs <= 6))
        digits = np.zeros((len(which), 19), np.uint8)  # aligned to the right: leading zeros do not count in Luhn's sum
        filled = np.zeros(len(which), np.intp)
        good = np.ones(len(which), np.bool_)
        first, runs, total = self.first[which], self.runs[which], self.total[which]
        for run in range(6):
            has = run < runs
            if not has.any():
                break
            index = np.where(has, first + run, first)
            at, end = self.regions.starts[index], self.regions.ends[index]
            size = np.where(has, end - at, 0)
            inner = run < runs - 1
            good &= ~inner | ((size >= 3) & (self.regions.starts[np.where(inner, index + 1, index)] == end + 1))
            good &= ~inner | _BLANK_OR_DASH[self.text[end]] | ((self.text[end] == ord(".")) & (runs > 2))
            good &= ~has | (run == 0) | (size <= 13)
            row, column = np.nonzero(np.arange(19) < size[:, None])
            digits[row, 19 - total[row] + filled[row] + column] = self.text[at[row] + column] - ord("0")
            filled += size
        which, digits, total = which[good], digits[good], total[good]
        prefix = np.zeros(len(which), np.intp)
        for place in range(4):
            prefix = prefix * 10 + digits[np.arange(len(which)), 19 - total + place]
        issued = (CARD_LENGTHS[prefix] >> total) & 1
        luhn = digits[:, ::-2].sum(1, dtype=np.intp) + _DOUBLED[digits[:, -2::-2]].sum(1, dtype=np.intp)
        found: Ints = which[(issued == 1) & (luhn % 10 == 0)]
        return found

    def _nanp(self) -> tuple[Ints, Bools]:
        """Return the North American numbers, and which of them begin with their bracket."""
        text, starts = self.text, self.starts
        bare = self.clean & (self.runs == 1) & (text[starts] >= ord("2")) & (text[starts + 3] >= ord("2"))
        ten = np.flatnonzero(bare & (self.total == 10))
        eleven = self.clean & (self.runs == 1) & (self.total == 11) & (text[starts] == ord("1"))
        eleven = np.flatnonzero(eleven & (text[starts + 1] >= ord("2")) & (text[starts + 4] >= ord("2")))
        three = self._grouped(self._shape((3, 3, 4)), 0)
        four = self._shape((1, 3, 3, 4))
        four = self._grouped(four[text[starts[four]] == ord("1")], 1)
        which = np.concatenate((ten, eleven, three, four))
        opened = self.bracket[which]
        opened[len(ten) : len(ten) + len(eleven)] = False
        opened[len(which) - len(four) :] = False
        return which, opened

    def _grouped(self, which: Ints, area: int) -> Ints:
        """Return those whose brackets, if any, are around the area code; `area` is its run."""
        good = np.ones(len(which), np.bool_)
        marked = self.bracket[which] & (area == 0)
        for run in range(area + 2):
            at = self.regions.ends[self.first[which] + run]
            size = self.regions.starts[self.first[which] + run + 1] - at
            for place in range(3):
                here = self.text[at + place]
                inside = place < size
                allowed = _GAP[here]
                if run == area and place == 0:
                    allowed = allowed | (here == ord(")"))
                if run < area:
                    allowed = allowed | ((here == ord("(")) & (place == size - 1))
                good &= ~inside | allowed
                marked |= inside & ~_BLANK[here]
        area_at = self.regions.starts[self.first[which] + area]
        exchange_at = self.regions.starts[self.first[which] + area + 1]
        issued = (self.text[area_at] >= ord("2")) & (self.text[exchange_at] >= ord("2"))
        found: Ints = which[good & (marked | issued)]
        return found

    # What may be there in another spelling.

    def _flags(self) -> tuple[Bools, Bools, Bools]:
        """Tell which regions may hold, in any part of them, an identifier that needs no word beside it.

        Returns:
            Of regions, where that may be a telephone number; where it may be another; and where nine digits stand
            together, which a word may call a social security number.
        """
        regions = self.regions
        count = int(self.runs.sum())
        offset = np.cumsum(self.runs) - self.runs
        within = np.arange(count) - np.repeat(offset, self.runs)
        index = np.repeat(self.first, self.runs) + within
        starts = regions.starts[index]
        size = regions.ends[index] - starts
        upto = np.cumsum(size)
        # What follows `digit.` is the fraction of a decimal: neither a card nor a telephone number begins there.
        dot = (within > 0) & (self.text[starts - 1] == ord(".")) & _DIGIT[self.text[starts - 2]]
        phone = np.zeros(count, np.bool_)
        other = np.zeros(count, np.bool_)
        if Entity.PHONE in self.entities:
            line = (size == 4) | (size == 7) | (size == 10) | (size == 11) | (size == 13)
            for back in range(4):
                last = np.flatnonzero(line & (within >= back))
                from_ = last - back
                digits = upto[last] - upto[from_] + size[from_]
                head = self.text[starts[from_]]
                usual = (digits == 10) | ((digits == 11) & (head == ord("1"))) | ((digits == 13) & (head == ord("0")))
                phone[last[usual & ~dot[from_]]] = True
            if Entity.PHONE in self.speaking:
                phone |= np.repeat((self.total >= 6) | self.plus | self.bracket, self.runs)
        if Entity.CREDIT_CARD in self.entities:
            # Digits since the last group of fewer than three, or since the region's start.
            before = upto - size
            fresh = (within == 0) | np.append(True, size[:-1] < 3)
            decimal = dot & (fresh | np.repeat(self.runs == 2, self.runs))
            since = np.maximum.accumulate(np.where(decimal, upto, np.where(fresh, before, 0)))
            other |= upto - since >= 12
        if Entity.US_SSN in self.entities:
            if count > 2:
                other[2:] |= (size[2:] == 4) & (size[1:-1] == 2) & (size[:-2] == 3) & (within[2:] >= 2)
            if Entity.US_SSN in self.speaking:
                other |= size == 9
        if Entity.IP_ADDRESS in self.entities and count > 3:
            other[3:] |= dot[3:] & dot[2:-1] & dot[1:-2] & (size[3:] <= 3)
        nine = (size == 9) & (Entity.US_SSN in self.entities)
        return (
            np.logical_or.reduceat(phone, offset),
            np.logical_or.reduceat(other, offset),
            np.logical_or.reduceat(nine, offset),
        )

    def _lead_flag(self) -> Bools:
        """Tell where a `+` or a bracket before five digits or more may begin a telephone number."""
        if Entity.PHONE not in self.entities:
            return np.zeros(len(self.first), np.bool_)
        lead = self.plus | self.bracket | self.far_lead
        opening = np.flatnonzero(self.text == ord("("))
        inner = np.searchsorted(opening, self.ends) > np.searchsorted(opening, self.starts)
        may: Bools = (lead & ((self.total >= 8) | self.extended)) | (inner & (self.total >= 8))
        return may

    def _shape(self, sizes: tuple[int, ...]) -> Ints:
        """Return the clean regions of runs of these sizes."""
        which = np.flatnonzero(self.clean & (self.runs == len(sizes)) & (self.total == sum(sizes)))
        for run, size in enumerate(sizes[:-1]):
            index = self.first[which] + run
            which = which[self.regions.ends[index] - self.regions.starts[index] == size]
        return which

    def _run_digits(self, which: Ints, run: int, size: int) -> Bytes:
        return self._at(self.regions.starts[self.first[which] + run], size)

    def _digits(self, which: Ints, size: int) -> Bytes:
        return self._at(self.starts[which], size)

    def _at(self, places: Ints, size: int) -> Bytes:
        found: Bytes = sliding_window_view(self.text, size)[places] - 48
        return found


_NO_RANK = 255
# Further than any cue is looked for, an extension included.
_CUE_REACH = 60
_DOUBLED = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9], np.uint8)
_IS_X = _table(b"xX")
_IS_E = _table(b"eE")


def _number(digits: Bytes) -> Ints:
    value = np.zeros(len(digits), np.intp)
    for column in range(digits.shape[1]):
        value = value * 10 + digits[:, column]
    return value
