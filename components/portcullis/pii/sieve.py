"""Which texts the residual gate must read: those in which any of its searches could find something.

One RE2 pattern (linear time, run by Arrow over a whole column) for each entity, wider than the search of
`portcullis.pii.residual_searches` that it stands before: it looks at neither checksums nor what stands around a match.
A text that no pattern matches holds nothing that the searches count; the others are searched as ever. So the sieve
decides how long the gate takes, not what it finds.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.entities import IBAN_LENGTHS, Entity
from portcullis.pii.residual_searches import LICENSE_WORDS, PASSPORT_WORDS, PHONE_WORDS, SSN_WORDS, VISIBLE
from portcullis.pii.tokens import HASH, KIND, REDACTED, REVERSIBLE, TOKEN

Bools = npt.NDArray[np.bool_]

# Between two groups of digits. Line breaks are blanks to whoever reads a text.
_G = r"[ \t\n\r\-._/()\[\]*~]{1,3}"
_D = "[0-9]"
_COUNTRIES = "|".join(sorted(IBAN_LENGTHS))
_NINE = rf"{_D}(?:(?:{_G})?{_D}){{8}}"
_SIX = rf"{_D}(?:(?:{_G})?{_D}){{5}}"
_THREE_TWO_FOUR = rf"{_D}{{3}}{_G}{_D}{{2}}{_G}{_D}{{4}}"


def _words(pattern: str) -> str:
    """Return a pattern of words as RE2 reads it: without what must follow, and a dotless i is an i as to Python's."""
    return f"(?is:{re.sub(r'[(][?](?:=|!|<!).*?[)]', '', pattern).replace('[i]', '[iı]')})"


_SSN_CUE, _PHONE_CUE = _words(SSN_WORDS), _words(PHONE_WORDS)
_PASSPORT_CUE, _LICENSE_CUE = _words(PASSPORT_WORDS), _words(LICENSE_WORDS)
_MIXED = "[0-9A-Za-z]{6}"
_LINE = rf"{_D}(?:[ \t\n\r\-./()]{{0,3}}{_D}){{6}}"
_PATTERNS: Mapping[str, str] = {
    Entity.EMAIL: "@",
    Entity.IBAN: rf"(?:(?i:{_COUNTRIES})|(?:^|[^A-Za-z0-9])(?i:{_COUNTRIES}){_G}){_D}{{2}}"
    rf"(?:(?:{_G})?[A-Za-z0-9]){{11}}",
    # Twelve digits in groups, of which only the last may have fewer than three; or in groups of one or two.
    Entity.CREDIT_CARD: rf"{_D}{{12}}|{_D}{{6}}{_G}{_D}|{_D}{_G}{_D}{{6}}|{_D}{{3}}{_G}{_D}{{3,}}{_G}{_D}"
    rf"|(?:{_D}{{1,2}}{_G}){{5}}{_D}",
    Entity.US_SSN: rf"{_THREE_TWO_FOUR}|{_D}{{9}}|{_SSN_CUE}(?s:.)*?{_NINE}",
    Entity.US_ITIN: rf"{_THREE_TWO_FOUR}|{_D}{{9}}",
    Entity.US_EIN: rf"{_D}{{2}}(?:{_G})?{_D}{{7}}",
    Entity.US_ABA: rf"{_D}{{9}}|(?:{_D}{{4}}{_G}){{2}}{_D}|{_D}{{3}}(?:{_G}{_D}{{3}}){{2}}",
    Entity.US_PASSPORT: rf"{_PASSPORT_CUE}(?s:.)*?{_MIXED}",
    Entity.US_DRIVER_LICENSE: rf"{_LICENSE_CUE}(?s:.)*?(?:{_SIX}|{_MIXED})",
    Entity.UK_NINO: rf"[A-Za-z]{{2}}(?:(?:{_G})?{_D}{{2}}){{3}}(?:{_G})?[A-Da-d]",
    Entity.DE_STEUER_ID: rf"{_D}{{11}}|{_D}{{2}}(?:{_G}{_D}{{3}}){{3}}",
    Entity.FR_NIR: rf"[123478](?:(?:{_G})?{_D}{{2}}){{2}}(?:{_G})?(?:{_D}{{2}}|2[ABab])"
    rf"(?:(?:{_G})?{_D}{{3}}){{2}}(?:{_G})?{_D}{{2}}",
    Entity.ES_DNI: rf"(?:{_D}{{8}}|{_D}{{2}}(?:{_G}{_D}{{3}}){{2}})(?:{_G})?[A-Za-z]",
    Entity.ES_NIE: rf"[X-Zx-z](?:{_G})?(?:{_D}{{7}}|{_D}{_G}{_D}{{3}}{_G}{_D}{{3}})(?:{_G})?[A-Za-z]",
    Entity.EU_VAT: r"(?:^|[^A-Za-z0-9]|\\[nrt])(?i:ATU|BE|DE|DK|EL|F[Iı]|FR|GB|[Iı]T|LU|NL|PL|PT|SE)"
    rf"(?:(?:{_G})?{_D}){{8}}",
    Entity.IP_ADDRESS: rf"{_D}(?:[\[(]?\.[\])]?{_D}{{1,3}}){{3}}|::|(?:[0-9A-Fa-f]{{1,4}}:){{6}}",
    Entity.MAC_ADDRESS: r"[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}",
    Entity.PHONE: rf"[2-9]{_D}{{2}}(?:{_G})?[2-9]{_D}{{2}}(?:{_G})?{_D}{{4}}|\+(?:{_G})?[1-9](?:(?:{_G})?{_D}){{7}}"
    rf"|{_PHONE_CUE}(?s:.)*?{_LINE}|{_LINE}(?s:.)*?{_PHONE_CUE}",
}
# Every match of the others has one of these, which are quick to see: four digits, letters before two, or the mark.
_ANY = (
    rf"{_D}[^0-9]*{_D}[^0-9]*{_D}[^0-9]*{_D}|[A-Za-z]{{2}}(?:{_G})?{_D}{{2}}|@|::|:[0-9A-Fa-f]{{1,4}}:"
    "|[0-9A-Fa-f]{2}[:.-]"
)
_TAMPERED = f"<{KIND}[:~>]"
# What masking leaves of whole identifiers, whatever the plan; no digit is in it.
_MADE = "|".join(f"(?:{it.pattern})" for it in (TOKEN, HASH, REDACTED, REVERSIBLE))
_STARS = r"|\*{4,}"
_ODD = r"[^\t\n\r -~]"
_SAME = re.IGNORECASE | re.DOTALL
# Where a column is called so, no word needs to stand beside its numbers.
_CALLED: Mapping[str, tuple[re.Pattern[str], str]] = {
    Entity.US_SSN: (re.compile(SSN_WORDS, _SAME), _NINE),
    Entity.US_PASSPORT: (re.compile(PASSPORT_WORDS, _SAME), _MIXED),
    Entity.US_DRIVER_LICENSE: (re.compile(LICENSE_WORDS, _SAME), f"{_SIX}|{_MIXED}"),
    Entity.PHONE: (re.compile(PHONE_WORDS, _SAME), _LINE),
}


class Sieve:
    """Tells which texts may hold one of some entities, or a spelling of masking that was tampered with.

    Args:
        entities: What is searched for, each with a search of the gate's own.
        starred: Whether four stars in a row stand for something that was masked.
    """

    def __init__(self, entities: Collection[str], *, starred: bool) -> None:
        # A search without a pattern is a KeyError here, and not a text that nobody reads.
        self._patterns = {entity: _PATTERNS[entity] for entity in entities}
        self._made = _MADE + (_STARS if starred else "")

    def made(self, texts: Any) -> Bools:
        """Tell which texts are nothing but one spelling of masking, of those that every plan has, and stars."""
        return _numpy(pc.match_substring_regex(texts, rf"\A(?:{self._made})\z"))

    def kept(self, texts: Any, *, called: str) -> npt.NDArray[np.intp]:
        """Return the places of the texts that must be searched.

        Args:
            texts: A string or large_string array without nulls, of valid UTF-8.
            called: What is put before each text when it is searched.
        """
        left = np.flatnonzero(_numpy(pc.match_substring_regex(texts, rf"{_ANY}|<|{_ODD}")))
        rest = pc.replace_substring_regex(texts.take(pa.array(left)), self._made, "|")
        odd = np.flatnonzero(_numpy(pc.match_substring_regex(rest, _ODD)))
        if len(odd):
            there = np.zeros(len(rest), np.bool_)
            there[odd] = True
            seen = [text.translate(VISIBLE) for text in rest.take(pa.array(odd)).to_pylist()]
            rest = pc.replace_with_mask(rest, pa.array(there), pa.array(seen, rest.type))
        tampered = _numpy(pc.match_substring_regex(rest, _TAMPERED))
        some = np.flatnonzero(_numpy(pc.match_substring_regex(rest, _ANY)) & ~tampered)
        rest = rest.take(pa.array(some))
        may = np.zeros(len(rest), np.bool_)
        for pattern in (*self._patterns.values(), *self._called(called.translate(VISIBLE))):
            may |= _numpy(pc.match_substring_regex(rest, pattern))
        tampered[some[may]] = True
        return left[tampered]

    def _called(self, name: str) -> list[str]:
        return [numbers for entity, (cue, numbers) in _CALLED.items() if entity in self._patterns and cue.search(name)]


def _numpy(array: Any) -> Bools:
    there: Bools = array.to_numpy(zero_copy_only=False)
    return there
