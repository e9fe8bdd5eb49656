"""E-mail addresses: the runs of characters on either side of an `@`."""

import numpy as np

from portcullis.pii.entities import Entity
from portcullis.pii.reading import LETTER, Ints
from portcullis.pii.structure.characters import (
    IS_ALNUM,
    IS_DOMAIN,
    IS_LETTER,
    IS_LOCAL,
    ROW,
    Characters,
    bits,
    bits_before,
    count,
    first_run,
    is_word,
    rows,
    through_last,
)
from portcullis.pii.structure.spans import NONE, Spans, spans_of


def mailboxes(of: Characters, deferred: list[Ints]) -> Spans:
    """Find the addresses of usual spelling; an `@` of any other that may be one is added to `deferred`."""
    text = of.text
    at = of.places_of(ord("@"))
    if not len(at):
        return spans_of(NONE, NONE, Entity.EMAIL)
    before, after = rows(of.kinds, at - ROW), rows(of.kinds, at + 1)
    local = first_run(bits_before(before & IS_LOCAL))
    words = bits_before(is_word(before)) & local
    # The first word character of the run: marks before it stay outside.
    begins = at - count(through_last(words))

    domain = first_run(bits(after & IS_DOMAIN))
    # Letters of other scripts than ASCII's, too.
    other = bits(rows(text, at + 1) == LETTER) if of.has(bytes([LETTER])) else np.zeros(len(at), np.uint64)
    alnum = bits(after & IS_ALNUM) | other
    dots = bits(rows(text, at + 1) == ord(".")) & domain
    first = text[at + 1]
    opens = (alnum & 1) != 0
    literal = first == ord("[")
    candidate = opens & (dots != 0) & (words != 0)
    far = count(domain) >= ROW - 1
    # One dot after it all ends the sentence.
    domain &= ~(dots & ~(domain >> 1))
    dots &= domain
    ends = at + 1 + count(domain)
    torn = (dots & ~(alnum >> 1)) != 0
    top = domain & ~through_last(dots)
    named = ((top & ~(bits(after & IS_LETTER) | other)) == 0) & (count(top) >= 2)
    usual = (dots != 0) & ~torn & named & (text[ends] != ord("@"))
    odd = (
        (candidate & ~usual)
        | ((count(local) >= ROW) & (opens | literal))
        | ((far | literal) & (words != 0))
        | ((text[at - 1] == ord('"')) & (opens | literal))
    )
    deferred.append(at[odd])
    hit = candidate & usual & ~odd
    return spans_of(begins[hit], ends[hit], Entity.EMAIL)
