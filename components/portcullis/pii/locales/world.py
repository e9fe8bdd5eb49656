"""What holds everywhere, in the mode `recall`: a card or an account whose check digit fails, where a word names it."""

import re

from portcullis.pii.entities import IBAN_LENGTHS, Entity, Hint, Recogniser, alphanumeric, cue, shaped

_CARD_NOUN = r"credit|debit|cards?|visa|master[\s_-]?card|amex|cc"
_CARD_CUE = cue(
    rf"(?:{_CARD_NOUN})(?:[\s_]?(?:numbers?|no|nr|num))?",
    _CARD_NOUN,
    r"(?:credit|debit|card|pan|visa|cc)(?:[\s_-]?(?:card|numbers?|no|nr|num))*",
    ("cre", "deb", "car", "vis", "mas", "ame"),
)
_IBAN_NOUN = r"iban|accounts?|konto|compte|cuenta"
_IBAN_CUE = cue(
    rf"(?:{_IBAN_NOUN})(?:[\s_]?(?:numbers?|no|nr|num|nummer))?",
    _IBAN_NOUN,
    _IBAN_NOUN,
    ("iba", "acc", "kon", "com", "cue"),
)


def _long_as_an_iban(text: str) -> bool:
    compact = alphanumeric(text)
    return len(compact) == IBAN_LENGTHS.get(compact[:2])


RECOGNISERS = (
    shaped(
        Entity.CREDIT_CARD,
        ((13,), (14,), (15,), (16,), (19,), (4, 4, 4, 4), (4, 6, 5), (4, 6, 4)),
        bool,
        cue=_CARD_CUE,
        recall=True,
    ),
    Recogniser(
        Entity.IBAN,
        re.compile(r"(?<![^\W_])([A-Za-z]{2}\d\d(?:[ -]?[A-Za-z\d]){11,30})(?![^\W_])"),
        _long_as_an_iban,
        _IBAN_CUE,
        Hint(),
        recall=True,
    ),
)
