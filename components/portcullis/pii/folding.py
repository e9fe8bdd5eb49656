"""One spelling for text that only looks different, so that an identifier cannot hide behind Unicode.

Folding works code point by code point, so it is linear; `unicodedata.normalize` on a whole string sorts combining marks
and takes quadratic time on a long run of them.
"""

import itertools
import unicodedata

# Letters that Unicode draws as nothing, and a symbol it draws as a blank; their categories do not tell.
_INVISIBLE_LETTERS = frozenset("\u115f\u1160\u3164")
_SPECIAL = {"\u2212": "-", "\u2800": " ", "\u3002": ".", "\t": "\t", "\n": "\n", "\r": "\r"}


class _Folds(dict[int, str]):
    def __missing__(self, code: int) -> str:
        folded = "".join(map(_fold_one, unicodedata.normalize("NFKC", chr(code))))
        self[code] = folded
        return folded


def _fold_one(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    category = unicodedata.category(character)
    if category in {"Cc", "Cf", "Mn", "Me"} or character in _INVISIBLE_LETTERS:
        return ""
    if category in {"Zs", "Zl", "Zp"}:
        return " "
    return "-" if category == "Pd" else character


_FOLDS = _Folds()


def fold(text: str) -> str:
    """Return `text` with each code point in its NFKC form, digits of every script as ASCII, blanks and dashes plain.

    Control, format (zero-width, bidirectional), combining and invisible characters are removed; tab and line breaks
    stay. An accent written as a combining mark is lost, one that is part of its letter is kept.

    Source: Unicode Standard Annex #15 (NFKC), and the general categories and decimal values of UAX #44.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_FOLDS)


# Of text that is written to be read; UAX #15 calls it stream-safe.
_MARKS_IN_A_ROW = 30


def composed(text: str) -> str:
    """Return `text` in NFC, so that an accent is a part of its letter also where it was written as a combining mark.

    A text with more than 30 combining marks in a row stays as it is, for the reason above.
    """
    if text.isascii():
        return text
    runs = itertools.groupby(text, lambda character: unicodedata.combining(character) > 0)
    if any(marks and sum(1 for _ in run) > _MARKS_IN_A_ROW for marks, run in runs):
        return text
    return unicodedata.normalize("NFC", text)
