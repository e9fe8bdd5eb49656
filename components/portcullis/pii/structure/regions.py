"""Runs of digits that stand together, and the words beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from portcullis.pii.entities import Cue, Recogniser
from portcullis.pii.reading import Ints, looked_up
from portcullis.pii.structure.characters import (
    ASCII_LETTERS,
    IS_GAP,
    IS_LETTER,
    IS_LINK,
    Bools,
    Characters,
    rows,
    table,
)
from portcullis.pii.structure.spans import NONE, Spans

# Further than any cue is looked for, an extension included.
_CUE_REACH = 60
_LEAD = table(b"+(")
# What an extension begins with: at once, `e` before `x`, or what may stand before it.
_AT_ONCE, _E, _SKIPPED = 1, 2, 4
_EXTENSION = np.zeros(256, np.uint8)
_EXTENSION[list(b"xX#")] = _AT_ONCE
_EXTENSION[list(b"eE")] = _E
_EXTENSION[list(b" \t,")] = _SKIPPED
_IS_X = table(b"xX")
_ASCII_LETTER = table(ASCII_LETTERS)


@dataclass(frozen=True)
class Regions:
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

    @classmethod
    def of(cls, of: Characters, starts: Ints, ends: Ints) -> "Regions":
        """Return those that may hold something: six digits, four groups with dots, or five after a `+` or bracket."""
        if not len(starts):
            return cls(NONE, NONE, NONE, NONE, NONE)
        gap = starts[1:] - ends[:-1]
        near = np.flatnonzero(gap <= 3)
        left, size = ends[near], gap[near]
        linked = (of.kinds[left] & IS_LINK) != 0
        for place in (1, 2):
            wider = np.flatnonzero(size > place)
            linked[wider] &= (of.kinds[left[wider] + place] & IS_LINK) != 0
        heads = np.ones(len(starts), np.bool_)
        heads[near[linked] + 1] = False
        first = np.flatnonzero(heads)
        bounds = np.append(first, len(starts))
        runs = np.diff(bounds)
        total = np.diff(np.append(0, np.cumsum(ends - starts))[bounds])
        may = (total >= 6) | (runs >= 4)
        five = np.flatnonzero((total == 5) & ~may)
        begins = starts[first[five]]
        may[five] = far_lead(of, begins) | _LEAD[of.text[begins - 1]]
        return cls(starts, ends, first, runs, total).kept(may)

    def kept(self, keep: Bools) -> "Regions":
        """Return these regions only."""
        which = np.flatnonzero(keep)
        if len(which) == len(keep):
            return self
        return Regions(self.starts, self.ends, self.first[which], self.runs[which], self.total[which])

    def outside(self, spans: Spans, of: Characters) -> "Regions":
        """Return the regions but those within a finding: whatever they might be, it would be part of that."""
        if not len(spans.starts):
            return self
        starts, ends = self.starts[self.first], self.ends[self.first + self.runs - 1]
        near = np.maximum(np.searchsorted(spans.starts, starts) - 1, 0)
        within = np.flatnonzero((spans.starts[near] < starts) & (ends <= spans.ends[near]))
        keep = np.ones(len(starts), np.bool_)
        keep[within] = extended(of, ends[within])
        return self.kept(keep)


def far_lead(of: Characters, starts: Ints) -> Bools:
    """Tell where a `+` or a bracket stands before the digits, though not right before them."""
    far = np.zeros(len(starts), np.bool_)
    if not of.has(b"+("):
        return far
    near = of.text[starts - 1]
    linked = np.flatnonzero(((of.kinds[starts - 1] & IS_LINK) != 0) | (near == ord("+")))
    for back in range(2, 6):
        before = of.text[starts[linked] - back]
        far[linked] |= (before == ord("+")) | (before == ord("("))
    return far


def extended(of: Characters, ends: Ints) -> Bools:
    """Tell where `x12`, `ext. 12` or `#12` may follow: at once, or after at most two blanks or commas."""
    may = np.zeros(len(ends), np.bool_)
    if not of.has(b"xX#"):
        return may
    text = of.text
    left, at = np.arange(len(ends)), ends
    for _ in range(3):
        kind = _EXTENSION[text[at]]
        may[left] = (kind == _AT_ONCE) | ((kind == _E) & _IS_X[text[at + 1]])
        on = kind == _SKIPPED
        left, at = left[on], at[on] + 1
    return may


class Words:
    """Where words begin that may be a cue's; looked up once, when first asked."""

    def __init__(self, of: Characters, recognisers: Sequence[Recogniser]) -> None:
        self._of = of
        cues = dict.fromkeys(it.cue for it in recognisers if it.cue is not None)
        self._bits = {cue: np.uint32(1 << bit) for bit, cue in enumerate(cues)}

    @cached_property
    def _hits(self) -> tuple[Ints, npt.NDArray[np.uint32]]:
        stems = np.zeros(1 << 15, np.uint32)
        begin = np.zeros(256, np.bool_)
        for cue, bit in self._bits.items():
            for stem in cue.stems:
                first, second, *third = (letter & 31 for letter in stem.encode())
                stems[[(first << 10) | (second << 5) | last for last in third or range(32)]] |= bit
                begin[[first | 0x40, first | 0x60]] = True
        word = (self._of.kinds & IS_LETTER) != 0  # a digit may stand right before one: `(212) 555-0123phone`
        begins = np.flatnonzero(looked_up(begin, self._of.text)[1:] > word[:-1]) + 1
        one, two, three = ((self._of.text[begins + place] & 31).astype(np.uint16) for place in range(3))
        bits = stems[(one << 10) | (two << 5) | three]
        known = np.flatnonzero(bits)
        known = known[_ASCII_LETTER[rows(self._of.text, begins[known], 2)].all(1)]
        return begins[known], bits[known]

    def of(self, cue: Cue) -> Ints:
        """Return where words begin that may be the cue's."""
        hits, bits = self._hits
        found: Ints = hits[(bits & self._bits[cue]) != 0]
        return found

    def near(self, cues: Sequence[Cue], starts: Ints, ends: Ints) -> Bools:
        """Tell where a word of one of the cues may be near enough to `text[starts:ends]`."""
        hits, bits = self._hits
        wanted = np.bitwise_or.reduce([self._bits[cue] for cue in cues if cue in self._bits] or [np.uint32(0)])
        hits = hits[(bits & wanted) != 0]
        low = np.searchsorted(hits, starts - _CUE_REACH)
        found: Bools = np.searchsorted(hits, ends + _CUE_REACH) > low
        return found


def hinted(
    of: Characters, these: Regions, recognisers: Sequence[Recogniser], words: Words
) -> list[tuple[Recogniser, Ints]]:
    """Return the recognisers with a hint that may match, and a place near each candidate."""
    asked = [it for it in recognisers if it.hint is not None and not it.hint.worded]
    enough = these.kept(these.total >= 6)
    if not asked or not len(enough.first):
        return []
    offset = np.cumsum(enough.runs) - enough.runs
    left = np.repeat(enough.runs + offset, enough.runs) - np.arange(int(enough.runs.sum()))
    index = np.repeat(enough.first - offset, enough.runs) + np.arange(len(left))
    starts, ends = enough.starts[index], enough.ends[index]
    size = ends - starts
    found = []
    for recogniser in asked:
        hint = recogniser.hint
        assert hint is not None  # noqa: S101 - chosen so
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
        good = table(hint.first.encode())[of.text[begin]]
        good &= _beside(of, begin, -1, hint.lead) & _beside(of, stop - 1, 1, hint.tail)
        begin, stop = begin[good], stop[good]
        if recogniser.cue is not None and len(begin):
            begin = begin[words.near([recogniser.cue], begin, stop)]
        if len(begin):
            found.append((recogniser, begin))
    return found


def _beside(of: Characters, places: Ints, step: int, letters: str) -> Bools:
    """Tell where one of the letters is the next character in a direction, or the one after a blank or mark."""
    if not letters:
        return np.ones(len(places), np.bool_)
    wanted = table((letters + letters.lower()).encode())
    gap = (of.kinds[places + step] & IS_GAP) != 0
    found: Bools = wanted[of.text[places + step]] | (gap & wanted[of.text[places + 2 * step]])
    return found
