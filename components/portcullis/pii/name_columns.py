"""Columns that look like names of persons, by words of the gate's own: the second look, which knows no gazetteer.

A column is called as persons are (`last_name`, `customer`, `Nachname`), and its cells are shaped as names: one to five
words that begin with a capital. The price of knowing no names: a column `name` of products is suspected too. Whoever
declares what happens to it (`scan`: names in it may stay) has decided, and nothing is suspected.
"""

import itertools
import re

# Of the cells that are not masked, those shaped as names: from this share on a column is suspected.
SUSPECT_SHARE = 0.5

_WORDS = re.compile(r"[A-Z]+(?![a-zà-ÿ])|[A-ZÀ-Þ]?[a-zà-ÿ]+")
_ALONE = re.compile(
    r"surname|forename|(?:first|last|full|family|given|maiden|middle|nick)names?|(?:vor|nach|familien)name|pr[eé]nom|nom"
    r"|apellidos?|nombre|cognome|achternaam|voornaam|imie|nazwisko|sobrenome|customer|client|patient|employee|person"
    r"|passenger|traveller|insured|beneficiary|applicant|borrower|tenant|(?:card|account|policy)holder|spouse|guardian"
)
_BEFORE_NAME = re.compile(
    r"first|last|full|family|given|maiden|middle|birth|legal|preferred|person|people|user|member|owner|holder|guest"
    r"|student|pupil|teacher|doctor|physician|nurse|contact|author|recipient|sender|buyer|seller|driver|staff|worker"
    r"|agent|manager|victim|witness"
)
_NAME = re.compile(r"names?")
# What else has a name, or is meant by a word such as `customer_id`.
_NO_PERSON = re.compile(
    r"file|host|domain|product|company|brand|city|country|street|column|table|event|item|project|app|service|region"
    r"|class|type|id|key|code|number|no|num|nr|count|segment|group|status|e?mail|phone|url|date|since|species|drug|model"
    r"|team|league|school|hospital"
)
_WORD = r"[^\W\d_a-zß-ÿ](?:[^\W\d_]|[.'’\-](?=[^\W\d_]))*\.?"
_PERSON = re.compile(
    rf"\s*(?:{_WORD}|(?:d[aeiou]|del|della|der|den|des|van|von|zu|bin|al|el|la|le|y)(?=\s))"
    rf"(?:,?\s+(?:{_WORD}|(?:d[aeiou]|del|della|der|den|des|van|von|zu|bin|al|el|la|le|y)(?=\s))){{0,4}}\s*"
)
_LONGEST = 80


def called_as_persons(column: str) -> bool:
    """Tell whether a column's name says that it holds names of persons."""
    words = [word.lower() for word in _WORDS.findall(column)]
    if any(map(_NO_PERSON.fullmatch, words)):
        return False
    called = any(_BEFORE_NAME.fullmatch(one) and _NAME.fullmatch(two) for one, two in itertools.pairwise(words))
    return called or any(map(_ALONE.fullmatch, words)) or (len(words) == 1 and _NAME.fullmatch(words[0]) is not None)


def shaped_as_person(text: str) -> bool:
    """Tell whether a text is shaped as a name: one to five capitalised words, particles between."""
    return len(text) <= _LONGEST and _PERSON.fullmatch(text) is not None
