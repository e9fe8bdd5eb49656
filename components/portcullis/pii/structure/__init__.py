"""The fast path: what is settled about a reading by comparing runs of characters as arrays, without any pattern.

Digits, `@` and `::` are found in one pass. Runs of digits with at most three blanks, dashes, dots, slashes or brackets
between them make a region; its lengths and separators are compared with the usual spellings of each identifier
(3-2-4 of a US social security number, 4-4-4-4 of a card), and checksums are computed over all candidates at once.

This path only answers where its answer is that of the recognisers (`portcullis.pii.entities`): a region that has a
usual spelling between two words is a finding, and one that cannot hold any is none. Wherever anything else might be,
the value is deferred: the recognisers themselves read it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from portcullis.pii.entities import Entity, Recogniser
from portcullis.pii.reading import Ints
from portcullis.pii.structure.addresses import ipv6, macs
from portcullis.pii.structure.characters import Characters, digit_runs
from portcullis.pii.structure.iban import grouped_otherwise, ibans
from portcullis.pii.structure.mail import mailboxes
from portcullis.pii.structure.numbers import Judgement
from portcullis.pii.structure.regions import Regions, Words, hinted
from portcullis.pii.structure.spans import NONE, Spans, joined


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


def survey(text: bytes, recognisers: Sequence[Recogniser], speaking: Collection[Entity]) -> Survey:
    """Find what has a usual spelling, and where else something may be.

    Args:
        text: A reading's text, with its margins.
        recognisers: Those that are asked for. Of those without a hint, all that are known of an entity.
        speaking: The entities of recognisers without a hint that the column's name speaks for.
    """
    entities = {recogniser.entity for recogniser in recognisers if recogniser.hint is None}
    of = Characters.of(text)
    found: list[Spans] = []
    deferred: list[Ints] = [NONE]
    possible: list[tuple[Recogniser, Ints]] = []
    if Entity.EMAIL in entities:
        found.append(mailboxes(of, deferred))
    if Entity.IP_ADDRESS in entities:
        found.append(ipv6(of, deferred))
    if Entity.MAC_ADDRESS in entities:
        found.append(macs(of))
    starts, ends = digit_runs(of.text)
    if Entity.IBAN in entities:
        found.append(ibans(of, starts, ends))
        deferred.append(grouped_otherwise(of, starts, ends, found[-1]))
    numbers = Regions.of(of, starts, ends)
    settled = joined(found)
    if len(numbers.first):
        numbers = numbers.outside(settled, of)
    words = Words(of, recognisers)
    # Where the column's name speaks, wherever a digit is; else, where a word does and digits are.
    worded = [it for it in recognisers if it.hint is not None and it.hint.worded] if len(starts) else []
    possible += [(it, starts if it.cue is None else words.of(it.cue)) for it in worded]
    if len(numbers.first):
        judged = Judgement(of, numbers, entities, speaking, words).settle(deferred)
        possible += hinted(of, numbers, recognisers, words)
        settled = joined([settled, judged])
    return Survey(settled, np.concatenate(deferred), possible)
