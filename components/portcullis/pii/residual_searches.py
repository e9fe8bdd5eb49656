"""The residual gate's own searches: how many of an identifier a text holds, by other rules than the scan's.

They are more tolerant of separators: `123 / 45 / 6789`, `4 1 1 1 …`, `192[.]0[.]2[.]1`, a number broken over two lines;
only the checksum and numbering rules are shared. As in `portcullis.pii.entities`, repetitions are bounded, possessive,
or of characters that cannot continue what stands before them, so a search is linear.

Whatever is looked for here needs a pattern in `portcullis.pii.sieve` that is at least as wide.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping

from portcullis.pii.entities import IBAN_LENGTHS, Entity, valid_card, valid_iban, valid_ip, valid_mac, valid_ssn
from portcullis.pii.locales.eu import valid_dni, valid_nie, valid_nino, valid_nir, valid_steuer_id, valid_vat
from portcullis.pii.locales.us import valid_aba, valid_ein, valid_itin

_GAP = r"[ \t\-._/()\[\]*~]{1,3}"
_END = r"(?![^\W_])"
_EMAIL = re.compile(r"[\w\"](?:@| @ )(?:[\w-]++\.)+[^\W\d_]{2,}")
_IBAN = re.compile(rf"(?<![^\W_])[A-Za-z]{{2}}\d\d(?:(?:{_GAP})?[A-Za-z0-9]){{11,30}}")
# No possessive group: before Python 3.11.5 those lose matches.
_NUMBERS = re.compile(
    rf"(?<![^\W_])(?<!\d,)([A-Za-z]{{0,12}})(\d+(?:{_GAP}\d+)*)"
)  # a possessive group loses matches before Python 3.11.5
_SSN = re.compile(rf"(?<!\d)\d{{3}}{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
_CUED_SSN = re.compile(rf"(?:ssn|social.?security)(?: no| number)?[^\w<>]{{0,4}}(\d(?:(?:{_GAP})?\d){{8}}){_END}", re.I)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:[\[(]?\.[\])]?\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![^\W_])[0-9A-Fa-f:]{3,}")
_NANP = re.compile(rf"(?<![^\W_])(?<!\d[.,])1?[2-9]\d\d(?:{_GAP})?[2-9]\d\d(?:{_GAP})?\d{{4}}{_END}")
_E164 = re.compile(rf"\+(?:{_GAP})?[1-9](?:(?:{_GAP})?\d){{7,14}}{_END}")
_MAC = re.compile(r"(?<![^\W_:-])[\dA-Fa-f]{2}(?:[:-][\dA-Fa-f]{2}){5}(?![^\W_]|[:-][^\W_])")
_ITIN = re.compile(rf"(?<!\d)9\d\d{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
# After a word that names it, with anything but digits and tokens between.
_BETWEEN = r"[^\d<>|]{0,25}?"
_CUED_ITIN = re.compile(rf"(?:itin|tax.?(?:payer.?)?id){_BETWEEN}(?<!\d)(9\d{{8}}){_END}", re.IGNORECASE)
_EIN = re.compile(rf"(?:ein|employer.?id|tax.?id){_BETWEEN}(?<!\d)(\d\d(?:{_GAP})?\d{{7}}){_END}", re.IGNORECASE)
_ABA = re.compile(rf"(?:aba|routing|rtn){_BETWEEN}(?<!\d)(\d{{9}}){_END}", re.IGNORECASE)
_PASSPORT = re.compile(rf"passport{_BETWEEN}(?<![^\W_])((?:[A-Z]\d{{8}}|\d{{9}})){_END}", re.IGNORECASE)
_LICENSE = re.compile(
    rf"(?:driv\w{{1,5}}\W{{0,3}}licen[cs]e|licen[cs]e.?(?:number|no|num)){_BETWEEN}"
    rf"(?<![^\W_])([A-Z]{{0,2}}(?:\d(?:{_GAP})?){{5,13}}\d[A-Z]?){_END}",
    re.IGNORECASE,
)
_NINO = re.compile(rf"(?<![^\W_])[A-Za-z]{{2}}(?:(?:{_GAP})?\d\d){{3}}(?:{_GAP})?[A-Da-d]{_END}")
_STEUER_ID = re.compile(rf"(?<![^\W_])(?<!\d[.,])(?:\d{{11}}|\d\d(?:{_GAP}\d{{3}}){{3}}){_END}(?![.,]\d)")
_NIR = re.compile(
    rf"(?<![^\W_])(?<!\d[.,])[123478](?:(?:{_GAP})?\d\d){{2}}(?:{_GAP})?(?:\d\d|2[ABab])"
    rf"(?:(?:{_GAP})?\d{{3}}){{2}}(?:{_GAP})?\d\d{_END}(?![.,]\d)"
)
_DNI = re.compile(rf"(?<![^\W_])(?:\d{{8}}|\d\d(?:{_GAP}\d{{3}}){{2}})(?:{_GAP})?[A-Za-z]{_END}")
_NIE = re.compile(rf"(?<![^\W_])[X-Zx-z](?:{_GAP})?(?:\d{{7}}|\d{_GAP}\d{{3}}{_GAP}\d{{3}})(?:{_GAP})?[A-Za-z]{_END}")
_VAT = re.compile(
    rf"(?<![^\W_])(?:ATU|BE|DE|DK|EL|FI|FR|GB|IT|LU|NL|PL|PT|SE)(?:(?:{_GAP})?\d){{8,12}}(?:(?:{_GAP})?B\d\d)?",
    re.IGNORECASE,
)


class _Visible(dict[int, str]):
    """Code points as a reader sees them: digits as ASCII, compatibility forms plain, marks and controls gone."""

    def __missing__(self, code: int) -> str:
        self[code] = "".join(map(self._one, unicodedata.normalize("NFKD", chr(code))))
        return self[code]

    @staticmethod
    def _one(character: str) -> str:
        match unicodedata.category(character):
            case "Nd":
                return str(unicodedata.digit(character))
            case "Zs" | "Zl" | "Zp":
                return " "
            case "Pd":
                return "-"
            case "Cc":
                return " " if character in "\t\n\r" else ""
            case "Cf" | "Mn" | "Me":
                return ""
        return {"\u2212": "-", "\u2800": " ", "\u3002": ".", "\u115f": "", "\u1160": ""}.get(character, character)


VISIBLE = _Visible()


def _emails(text: str) -> int:
    return sum(1 for _ in _EMAIL.finditer(text))


def _ibans(text: str) -> int:
    return sum(_begins_with_iban(match[0]) for match in _IBAN.finditer(text))


def _begins_with_iban(text: str) -> bool:
    places = [index for index, character in enumerate(text) if character.isalnum()]
    length = IBAN_LENGTHS.get(text[:2].upper(), len(places) + 1)
    if length > len(places):
        return False
    end = places[length - 1] + 1
    return not text[end : end + 1].isalnum() and valid_iban(text[:end])


def _cards(text: str) -> int:
    return sum(any(map(valid_card, _windows(text, match))) for match in _NUMBERS.finditer(text))


def _windows(text: str, numbers: re.Match[str]) -> Iterator[str]:
    """Yield every 12 to 19 digits in a row of numbers that stand in groups as cards do, or are spelled out evenly."""
    word, row = numbers.groups()
    groups = re.findall(r"\d+", row)
    gaps = ["", *re.findall(r"\D+", row)]
    if text[numbers.end() : numbers.end() + 1].isalpha():
        groups.pop()  # the start of a word such as a hash
    for first, gap in enumerate(gaps[: len(groups)]):
        if gap == ".":
            continue  # the fraction of a decimal
        window = ""
        for last in range(first, len(groups)):
            window += groups[last]
            if len(window) > 19 or (word and first == 0 < last):
                break
            sizes = [len(group) for group in groups[first : last + 1]]
            spelled_out = len(sizes) == len(groups) and max(sizes) <= 2
            decimal = len(sizes) == 2 and gaps[last] == "."
            if len(window) >= 12 and not decimal and (spelled_out or min(sizes[:-1], default=3) >= 3):
                yield window


def _ssns(text: str) -> int:
    spaced = sum(valid_ssn(match[0]) for match in _SSN.finditer(text))
    return spaced + sum(valid_ssn(match[1]) for match in _CUED_SSN.finditer(text) if not _SSN.search(match[1]))


def _addresses(text: str) -> int:
    plain = (match[0].translate(_BRACKETS) for match in _IPV4.finditer(text))
    return sum(map(valid_ip, plain)) + sum(
        valid_ip(match[0] if match[0].endswith("::") else match[0].rstrip(":"))
        for match in _IPV6.finditer(text)
        if len(match[0]) <= 40
    )


_BRACKETS = str.maketrans("", "", "[]()")


def _phones(text: str) -> int:
    return sum(1 for _ in _NANP.finditer(text)) + sum(1 for _ in _E164.finditer(text))


def _matching(pattern: re.Pattern[str], valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Return the search that counts valid matches: of group 1 where the pattern has one."""
    return lambda text: sum(valid(match[pattern.groups]) for match in pattern.finditer(text))


def _vat_numbers(text: str) -> int:
    return sum(any(map(valid_vat, _beginnings(text, match))) for match in _VAT.finditer(text))


def _beginnings(text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield what a match begins with, up to each place where a word ends."""
    for end in range(match.start() + 1, match.end() + 1):
        if text[end - 1].isalnum() and not text[end : end + 1].isalnum():
            yield text[match.start() : end]


_itins, _cued_itins = _matching(_ITIN, valid_itin), _matching(_CUED_ITIN, valid_itin)

SEARCHES: Mapping[Entity, Callable[[str], int]] = {
    Entity.EMAIL: _emails,
    Entity.IBAN: _ibans,
    Entity.CREDIT_CARD: _cards,
    Entity.US_SSN: _ssns,
    Entity.US_ITIN: lambda text: _itins(text) + _cued_itins(text),
    Entity.US_EIN: _matching(_EIN, valid_ein),
    Entity.US_ABA: _matching(_ABA, valid_aba),
    Entity.US_PASSPORT: _matching(_PASSPORT, bool),
    Entity.US_DRIVER_LICENSE: _matching(_LICENSE, bool),
    Entity.UK_NINO: _matching(_NINO, valid_nino),
    Entity.DE_STEUER_ID: _matching(_STEUER_ID, valid_steuer_id),
    Entity.FR_NIR: _matching(_NIR, valid_nir),
    Entity.ES_DNI: _matching(_DNI, valid_dni),
    Entity.ES_NIE: _matching(_NIE, valid_nie),
    Entity.EU_VAT: _vat_numbers,
    Entity.IP_ADDRESS: _addresses,
    Entity.MAC_ADDRESS: _matching(_MAC, valid_mac),
    Entity.PHONE: _phones,
}
