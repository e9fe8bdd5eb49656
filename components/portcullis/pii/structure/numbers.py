"""Cards, social security numbers, IPv4 addresses and telephone numbers: regions of digits, judged by their shape."""

from collections.abc import Collection

import numpy as np

from portcullis.pii.entities import CARD_LENGTHS, PHONE_CUE, PRIORITY, SSN_CUE, Entity
from portcullis.pii.reading import DASH, Bytes, Ints
from portcullis.pii.structure.characters import (
    IS_ALNUM,
    IS_BLANK,
    IS_DIGIT,
    IS_GAP,
    IS_LETTER,
    IS_PUNCTUATION,
    Bools,
    Characters,
    bits,
    rows,
)
from portcullis.pii.structure.regions import Regions, Words, extended, far_lead
from portcullis.pii.structure.spans import Spans

_NO_RANK = 255
# Digits and blanks of a card in groups: 3-3-3-3-3-4.
_LONGEST_CARD = 19 + 5


class Judgement:
    """Judges regions of digits: findings, nothing, or to be deferred."""

    def __init__(
        self,
        of: Characters,
        regions: Regions,
        entities: Collection[Entity],
        speaking: Collection[Entity],
        words: Words,
    ) -> None:
        self.of = of
        self.text = of.text
        self.regions = regions
        self.entities = entities
        self.speaking = speaking
        self.words = words
        self.first = regions.first
        # No shape has as many; in one byte each, they are compared many times as fast.
        self.runs, self.total = (np.minimum(it, 255).astype(np.uint8) for it in (regions.runs, regions.total))
        self.starts = regions.starts[self.first]
        self.ends = regions.ends[self.first + regions.runs - 1]
        self.one = self.runs == 1
        lead = self.text[self.starts - 1]
        self.plus = lead == ord("+")
        self.bracket = lead == ord("(")
        self.far_lead = far_lead(of, self.starts)
        self.extended = extended(of, self.ends)
        glued = self._kind(self.starts - 1, IS_ALNUM)
        glued |= self.plus & self._kind(self.starts - 2, IS_DIGIT)
        glued |= (lead == ord(",")) & (self.text[self.starts - 2] == ord("0"))
        glued |= self._kind(self.ends, IS_ALNUM)
        self.clean = ~(glued | self.extended | self.far_lead)

    def settle(self, deferred: list[Ints]) -> Spans:
        """Return what is found; what must be deferred is added to `deferred`."""
        rank = np.full(len(self.first), _NO_RANK, np.uint8)
        begins = self.starts.copy()

        def claim(which: Ints, entity: Entity) -> None:
            rank[which] = np.minimum(rank[which], PRIORITY[entity])

        if Entity.US_SSN in self.entities:
            claim(self._ssn(), Entity.US_SSN)
            if Entity.US_SSN in self.speaking:
                which = np.flatnonzero(self.clean & self.one & (self.total == 9))
                claim(which[self._valid_ssn(self._digits(self.starts[which], 9))], Entity.US_SSN)
        if Entity.IP_ADDRESS in self.entities:
            claim(self._ipv4(), Entity.IP_ADDRESS)
        if Entity.CREDIT_CARD in self.entities:
            claim(self._cards(), Entity.CREDIT_CARD)
        if Entity.PHONE in self.entities:
            which, opened = self._nanp()
            claim(which, Entity.PHONE)
            begins[which[opened]] -= 1
        open_ = np.flatnonzero(rank == _NO_RANK)
        phones, others, nine = self._flags(open_)
        if Entity.PHONE in self.entities:
            international = self.clean & self.plus & (self.total >= 8) & (self.total <= 15)
            international &= self.text[self.starts] != ord("0")
            international[open_] &= ~nine & (self.one[open_] | ~others)
            claim(np.flatnonzero(international), Entity.PHONE)
            begins[international] = self.starts[international] - 1
            if Entity.PHONE in self.speaking:
                spoken = self.clean & self.one & (self.total >= 7) & (self.total <= 17) & ~self.plus & ~self.bracket
                claim(np.flatnonzero(spoken), Entity.PHONE)
        left = (rank[open_] == _NO_RANK) & ~self._torn(open_)
        flagged = left & (phones | others | self._lead_flag(open_))
        rest = np.flatnonzero(left & ~flagged & (self.total[open_] >= 6))
        if len(rest):
            flagged[rest] = self.words.near([PHONE_CUE, SSN_CUE], self.starts[open_[rest]], self.ends[open_[rest]])
        deferred.append(self.starts[open_[flagged]])
        found = rank != _NO_RANK
        return Spans(begins[found], self.ends[found], rank[found])

    def _torn(self, which: Ints) -> Bools:
        """Tell which have letters on both sides, or a single one and more digits beyond it: pieces of hashes."""
        torn = np.zeros(len(which), np.bool_)
        there = np.flatnonzero((self.one & ~self.extended)[which])
        starts, ends = self.starts[which[there]], self.ends[which[there]]
        before, after = self._kind(starts - 1, IS_LETTER), self._kind(ends, IS_LETTER)
        torn[there] = before & (after | self._kind(starts - 2, IS_DIGIT)) | (after & self._kind(ends + 1, IS_DIGIT))
        return torn

    # Shapes. Each returns the regions that are that identifier and nothing else.

    def _ssn(self) -> Ints:
        which = self._shape((3, 2, 4))
        if not len(which):
            return which
        # Of eleven characters, one is in each gap.
        short = self.ends[which] - self.starts[which] == 11
        usual, odd = which[short], which[~short]
        for place in (3, 6):
            usual = usual[self._kind(self.starts[usual] + place, IS_GAP)]
        for run in (0, 1):
            odd = odd[self._ssn_gap(odd, run)]
        which = np.concatenate((usual, odd))
        digits = np.hstack([self._digits(self._run(which, run), size) for run, size in enumerate((3, 2, 4))])
        return which[self._valid_ssn(digits)]

    def _ssn_gap(self, which: Ints, run: int) -> Bools:
        """Tell where the gap after a run is one blank, or a dash, dot or slash with a blank on either side or none."""
        at = self._run_end(which, run)
        size = self._run(which, run + 1) - at
        blank = [self._kind(at + place, IS_BLANK) for place in range(3)]
        mark = [self._kind(at + place, IS_PUNCTUATION) for place in range(3)]
        middle = blank[0] & mark[1] & blank[2]
        pair = (blank[0] & mark[1]) | (mark[0] & blank[1])
        good: Bools = ((size == 1) & (blank[0] | mark[0])) | ((size == 2) & pair) | ((size == 3) & middle)
        return good

    @staticmethod
    def _valid_ssn(digits: Bytes) -> Bools:
        area = _number(digits[:, :3])
        issued = (area != 0) & (area != 666) & (area < 900)
        good: Bools = issued & (_number(digits[:, 3:5]) != 0) & (_number(digits[:, 5:]) != 0)
        return good

    def _ipv4(self) -> Ints:
        which = np.flatnonzero(self.clean & (self.runs == 4) & (self.total <= 12))
        if not len(which):
            return which
        for run in range(3):
            end = self._run_end(which, run)
            which = which[(self.text[end] == ord(".")) & (self._run(which, run + 1) == end + 1)]
        for run in range(4):
            at = self._run(which, run)
            size = self._run_end(which, run) - at
            digits = self._digits(at, 3).astype(np.intp)
            value = np.where(size == 3, digits @ (100, 10, 1), 0)
            which = which[(size <= 3) & (value <= 255)]
        return which

    def _cards(self) -> Ints:
        size = self.ends - self.starts
        few = (self.total >= 12) & (self.total <= 19) & (self.runs <= 6) & (size <= _LONGEST_CARD)
        which = np.flatnonzero(self.clean & few)
        if not len(which):
            return which
        starts, size, total, runs = self.starts[which], size[which], self.total[which], self.runs[which]
        # After a gap, where there is one: what else begins is no card, and only must not go beyond the table.
        prefix = _number(np.minimum(self._digits(starts, 3), 9)) * 10
        fourth = np.where(self._kind(starts + 3, IS_DIGIT), self.text[starts + 3], self.text[starts + 4])
        prefix += np.minimum(fourth - ord("0"), 9)
        issued = (CARD_LENGTHS[prefix] >> total) & 1 == 1
        grouped = np.flatnonzero(issued & (runs > 1))
        if len(grouped):
            issued[grouped] = self._grouped_as_cards(starts[grouped], size[grouped], runs[grouped])
        which, size = which[issued], size[issued]
        found: Ints = which[self._luhn(self.ends[which], size)]
        return found

    def _grouped_as_cards(self, starts: Ints, size: Ints, runs: Bytes) -> Bools:
        """Tell where single blanks, dashes, or dots in more than two groups, stand behind three digits or more."""
        text, kinds = rows(self.text, starts), rows(self.of.kinds, starts)
        inside = (np.uint64(1) << size.astype(np.uint64)) - np.uint64(1)
        digit = bits(kinds & IS_DIGIT) & inside
        gap = inside & ~digit
        mark = bits((kinds & IS_BLANK) | (text == ord("-")) | (text == DASH))
        mark |= np.where(runs > 2, bits(text == ord(".")), np.uint64(0))
        three = (digit << 1) & (digit << 2) & (digit << 3)
        long = digit & (digit >> 1)
        for step in (2, 4, 6):  # of fourteen
            long &= long >> step
        good: Bools = (gap & ~(mark & three) == 0) & ((gap << 1) & long == 0)
        return good

    def _luhn(self, ends: Ints, size: Ints) -> Bools:
        """Tell where the check digit holds of the digits in `size` characters before `ends`."""
        row = np.ascontiguousarray(rows(self.text, ends - _LONGEST_CARD, _LONGEST_CARD).T) - ord("0")
        digit = (row < 10) & (np.arange(_LONGEST_CARD, 0, -1, dtype=np.uint8)[:, None] <= size.astype(np.uint8))
        row *= digit
        twice = row + row
        twice -= 9 * (row > 4).view(np.uint8)
        total = np.zeros(len(ends), np.uint8)  # at most 9 times 19
        doubled = np.zeros(len(ends), np.bool_)
        for place in range(_LONGEST_CARD - 1, -1, -1):
            total += np.where(doubled, twice[place], row[place])
            doubled ^= digit[place]
        good: Bools = total % 10 == 0
        return good

    def _nanp(self) -> tuple[Ints, Bools]:
        """Return the North American numbers, and which of them begin with their bracket."""
        text, starts = self.text, self.starts
        bare = self.clean & self.one
        ten, eleven = np.flatnonzero(bare & (self.total == 10)), np.flatnonzero(bare & (self.total == 11))
        ten = ten[self._issued(starts[ten], starts[ten] + 3)]
        eleven = eleven[self._issued(starts[eleven] + 1, starts[eleven] + 4) & (text[starts[eleven]] == ord("1"))]
        three = self._grouped(self._shape((3, 3, 4)), 0)
        four = self._shape((1, 3, 3, 4))
        four = self._grouped(four[text[starts[four]] == ord("1")], 1)
        which = np.concatenate((ten, eleven, three, four))
        opened = self.bracket[which]
        opened[len(ten) : len(ten) + len(eleven)] = False
        opened[len(which) - len(four) :] = False
        return which, opened

    def _issued(self, area: Ints, exchange: Ints) -> Bools:
        """Tell where area code and exchange begin with 2 to 9."""
        issued: Bools = (self.text[area] >= ord("2")) & (self.text[exchange] >= ord("2"))
        return issued

    def _grouped(self, which: Ints, area: int) -> Ints:
        """Return those whose brackets, if any, are around the area code; `area` is its run."""
        if not len(which):
            return which
        good = np.ones(len(which), np.bool_)
        marked = self.bracket[which] & (area == 0)
        for run in range(area + 2):
            at = self._run_end(which, run)
            size = self._run(which, run + 1) - at
            for place in range(3):
                inside = np.flatnonzero(size > place)
                if not len(inside):
                    break
                here = at[inside] + place
                kinds = self.of.kinds[here]
                allowed = (kinds & IS_GAP) != 0
                if run == area and place == 0:
                    allowed |= self.text[here] == ord(")")
                if run < area:
                    allowed |= (self.text[here] == ord("(")) & (place == size[inside] - 1)
                good[inside] &= allowed
                marked[inside] |= (kinds & IS_BLANK) == 0
        found: Ints = which[good & (marked | self._issued(self._run(which, area), self._run(which, area + 1)))]
        return found

    # What may be there in another spelling.

    def _flags(self, which: Ints) -> tuple[Bools, Bools, Bools]:
        """Tell which of these regions may hold, in any part of them, an identifier that needs no word beside it.

        Returns:
            Of each, whether that may be a telephone number; whether it may be another; and whether nine digits stand
            together, which a word may call a social security number.
        """
        if not len(which):
            return (np.zeros(0, np.bool_),) * 3
        regions = self.regions
        runs = regions.runs[which]
        count = int(runs.sum())
        offset = np.cumsum(runs) - runs
        within = np.arange(count) - np.repeat(offset, runs)
        index = np.repeat(self.first[which], runs) + within
        starts = regions.starts[index]
        size = regions.ends[index] - starts
        upto = np.cumsum(size)
        # What follows `digit.` is the fraction of a decimal: neither a card nor a telephone number begins there.
        dot = (within > 0) & (self.text[starts - 1] == ord(".")) & self._kind(starts - 2, IS_DIGIT)
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
                phone |= np.repeat((self.total[which] >= 6) | self.plus[which] | self.bracket[which], runs)
        if Entity.CREDIT_CARD in self.entities:
            # Digits since the last group of fewer than three, or since the region's start.
            before = upto - size
            fresh = (within == 0) | np.append(True, size[:-1] < 3)
            decimal = dot & (fresh | np.repeat(runs == 2, runs))
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
        flags = np.bitwise_or.reduceat(
            phone.view(np.uint8) | other.view(np.uint8) << 1 | nine.view(np.uint8) << 2, offset
        )
        return (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0

    def _lead_flag(self, which: Ints) -> Bools:
        """Tell where a `+` or a bracket before five digits or more may begin a telephone number."""
        if Entity.PHONE not in self.entities:
            return np.zeros(len(which), np.bool_)
        eight = self.total[which] >= 8
        lead = self.plus[which] | self.bracket[which] | self.far_lead[which]
        may: Bools = lead & (eight | self.extended[which])
        long = np.flatnonzero(eight & ~may)
        if len(long):
            opening = np.flatnonzero(self.text == ord("("))
            starts, ends = self.starts[which[long]], self.ends[which[long]]
            may[long] = np.searchsorted(opening, ends) > np.searchsorted(opening, starts)
        return may

    def _shape(self, sizes: tuple[int, ...]) -> Ints:
        """Return the clean regions of runs of these sizes."""
        which = np.flatnonzero(self.clean & (self.runs == len(sizes)) & (self.total == sum(sizes)))
        for run, size in enumerate(sizes[:-1]):
            which = which[self._run_end(which, run) - self._run(which, run) == size]
        return which

    def _run(self, which: Ints, run: int) -> Ints:
        """Return where a run of each region starts."""
        return self.regions.starts[self.first[which] + run]

    def _run_end(self, which: Ints, run: int) -> Ints:
        return self.regions.ends[self.first[which] + run]

    def _digits(self, places: Ints, size: int) -> Bytes:
        """Return the values of digits from each place on, shape (places, size)."""
        return rows(self.text, places, size) - ord("0")

    def _kind(self, places: Ints, kinds: int) -> Bools:
        """Tell where the character at a place is of one of these kinds."""
        there: Bools = (self.of.kinds[places] & kinds) != 0
        return there


def _number(digits: Bytes) -> Ints:
    """Return the number that the digits of each row spell, shape (n, digits)."""
    value = np.zeros(len(digits), np.intp)
    for column in range(digits.shape[1]):
        value = value * 10 + digits[:, column]
    return value
