"""The residual gate's own searches: how many of an identifier a text holds, by other rules than the scan's.

They are more tolerant of separators: `123 / 45 / 6789`, `4 1 1 1 …`, `192[.]0[.]2[.]1`, a number broken over two lines;
only the checksum and numbering rules are shared. As in `portcullis.pii.entities`, repetitions are bounded, possessive,
or of characters that cannot continue what stands before them, so a search is linear.

Whatever is looked for here needs a pattern in `portcullis.pii.sieve` that is at least as wide.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping

from portcullis.pii.entities import IBAN_LENGTHS, Entity, valid_card, valid_iban, valid_ip, valid_mac, valid_ssn
from portcullis.pii.locales.eu import valid_dni, valid_nie, valid_nino, valid_nir, valid_steuer_id, valid_vat
from portcullis.pii.locales.us import valid_aba, valid_ein, valid_itin

_GAP = r"[ \t\-._/()\[\]*~]{1,3}"
# Between digits and letters only those of ASCII tie a number to what stands beside it; see `_alone`.
_BEGIN = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
_WORD_END = r"(?=[A-Za-z]{0,12}(?![A-Za-z0-9]))"
# Where no other digit stands, nor a decimal point; a comma is one behind nothing but a zero.
_FRESH = r"(?<![0-9])(?<![0-9]\.)(?<!(?<![\w.,])0,)"
# What letters may begin behind: a mark, or an escape as in JSON.
_LETTERS_BEGIN = rf"(?:{_BEGIN}|(?<=\\[nrt]))"
_WHOLE = r"(?!\.[0-9]*[1-9])"
_EMAIL = re.compile(r"[\w\"][.!#$%&'*+^~-]{0,4}(?:@| @ )(?:[\w-]++\.)+[^\W\d_]{2,}")
_IBAN = re.compile(rf"(?<![0-9])[A-Za-z]{{2}}\d\d(?:(?:{_GAP})?[A-Za-z0-9]){{11,30}}")
# The country for itself, then the check digits, and groups of four.
_IBAN_APART = re.compile(
    rf"{_BEGIN}[A-Za-z]{{2}}{_GAP}[0-9]{{2}}"
    rf"(?:[A-Za-z0-9]{{11,30}}|(?:{_GAP}[A-Za-z0-9]{{4}}){{2,7}}(?:{_GAP}[A-Za-z0-9]{{1,3}})?){_END}"
)
# No possessive group: before Python 3.11.5 those lose matches.
_NUMBERS = re.compile(rf"{_FRESH}\d+(?:{_GAP}\d+)*")
_SSN = re.compile(rf"(?<!\d)\d{{3}}{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
# Words that name a number, also without the accents that the text has lost here.
SSN_WORDS = "ssn|(?<![a-z])ss ?(?=#)|soc(?:[i]al)?.{0,3}sec(?:ur[i]ty|(?![a-z]))"
PASSPORT_WORDS = "passport|re[i]sepass|passeport|pasaporte|passaport[eo]|paspoort|paszport"
LICENSE_WORDS = (
    "dr[i]v(?:er|[i]ng).{0,3}l[i]c(?:en[cs]e)?|l[i]cen[cs]e.?(?:number|no|num|#)|(?<![a-z])dl(?=[ :#])"
    "|f.{1,2}hrersche[i]n|perm[i]s de condu|(?:perm[i]so|carnet) de conduc|patente|r[i]jbew[i]js|prawo jazdy"
    "|carta de condu"
)
PHONE_WORDS = (
    "(?:home|work|office|mob[i]le|cell|contact)?_?phones?|telephones?|tel|telefoo?n[aeou]?|telefoo?n(?:nummer|nr)|mob[i]les?"
    "|mob[i]l|mov[i]l|handy|cell|cellulare|celular|telemovel|gsm|fax|whatsapp|sms|ph"
    "|(?:contact|call(?:ed|[i]ng)?|d[i]al(?:led)?|telephone)(?=[^:a-z])"
)
# Between a word and its number: a numbered column's end, or no digit and no spelling of masking; then markup.
_TO = r"(?:_?[0-9]{1,2}(?=: ))?[^\d<>|]{0,30}?(?:>|</\w{1,10}>\s{0,4}(?:<\w{1,6}>)?)?[^\w<>|]{0,3}"
_BACK = r"(?:[\s,:;(/-]{0,3}|</)"
_NO_LETTER = "(?![A-Za-z])"
_CUED_SSN = re.compile(
    rf"(?:{SSN_WORDS})(?:(?: no| number)?[^\w<>]{{0,4}}(\d(?:(?:{_GAP})?\d){{8}}){_END}"
    rf"|{_TO}(?<!\d)(\d{{9}}){_WORD_END})",
    re.IGNORECASE,
)
_SSN_CUED = re.compile(rf"{_FRESH}(\d{{9}}){_END}{_BACK}(?:{SSN_WORDS}){_NO_LETTER}", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![0-9vV])(?<![0-9]\.)\d{1,3}(?:[\[(]?\.[\])]?\d{1,3}){3}(?![0-9]|\.[0-9])")
_IPV6 = re.compile(rf"{_BEGIN}[0-9A-Fa-f:]{{3,}}")
_NANP = re.compile(rf"{_FRESH}1?[2-9]\d\d(?:{_GAP})?[2-9]\d\d(?:{_GAP})?\d{{4}}{_WORD_END}")
_E164 = re.compile(rf"\+(?:{_GAP})?[1-9](?:(?:{_GAP})?\d){{7,14}}{_WORD_END}")
_MAC = re.compile(
    rf"(?:{_LETTERS_BEGIN}[\dA-Fa-f]{{2}}(?:[:-][\dA-Fa-f]{{2}}){{5}}(?![A-Za-z0-9]|[:-][A-Za-z0-9]))"
    # As switches write it; with a letter, or the zeros that many begin with, it is no number.
    rf"|{_BEGIN}(?<![A-Za-z0-9]\.)(?=00|[0-9.]{{0,13}}[A-Fa-f])(?=[A-Fa-f.]{{0,13}}[0-9])"
    r"[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}(?![A-Za-z0-9]|\.[A-Za-z0-9])"
)
_ITIN = re.compile(rf"(?<!\d)9\d\d{_GAP}\d\d{_GAP}\d{{4}}(?!\d)")
# After a word that names it, with anything but digits and tokens between.
_CUED_ITIN = re.compile(rf"(?:itin|tax.?(?:payer.?)?id){_TO}(?<!\d)(9\d{{8}}){_END}", re.IGNORECASE)
_EIN = re.compile(rf"(?:ein|employer.?id|tax.?id){_TO}(?<!\d)(\d\d(?:{_GAP})?\d{{7}}){_END}", re.IGNORECASE)
_ABA = re.compile(
    rf"(?:aba|routing|rtn){_TO}(?<!\d)(\d{{9}}|(?:\d{{4}}{_GAP}){{2}}\d|\d{{3}}(?:{_GAP}\d{{3}}){{2}}){_END}",
    re.IGNORECASE,
)
# Letters and four digits or more, in any order, no part of a UUID.
_MIXED = r"(?<!-)(?=(?:[A-Z]{0,8}[0-9]){4})[A-Z0-9]"
_PASSPORT = re.compile(
    rf"(?:{PASSPORT_WORDS}){_TO}{_BEGIN}([A-Z]\d{{8}}|\d{{9}}|{_MIXED}{{6,9}}){_END}(?!-[a-z0-9])", re.IGNORECASE
)
_LICENSE = re.compile(
    rf"(?:{LICENSE_WORDS}){_TO}{_BEGIN}([A-Z]{{0,2}}(?:\d(?:{_GAP})?){{5,13}}\d[A-Z]?|{_MIXED}{{6,16}}){_END}(?!-[a-z0-9])",
    re.IGNORECASE,
)
# Seven digits or more that begin as no date does.
_LINE = (
    r"(?!\(?[0-9]{1,4}[-./][0-9]{1,2}[-./][0-9]{1,4}(?![0-9]|[-./][0-9]))"
    rf"(?!(?:19|20)[0-9]{{2}}[-./])(\+?\(?[0-9](?:[ \-./()]{{0,3}}[0-9]){{6,14}}){_WORD_END}"
)
_PHONE_NAMED = (
    rf"{_BEGIN}(?:{PHONE_WORDS})(?:[\s_]?(?:numbers?|nummer|no|nr|num))?{_NO_LETTER}"
    r"(?:_{1,2}|(?:_?[0-9]{1,2}(?=: ))?[^\w<>|][^\d<>|]{0,20}?|[^<>|\w]{0,12}>|\W?</\w{1,10}>\s{0,4}(?:<\w{1,6}>)?)?"
)
_CUED_PHONE = re.compile(rf"{_PHONE_NAMED}{_BEGIN}{_LINE}", re.IGNORECASE)
_PHONE_CUED = re.compile(rf"{_FRESH}{_BEGIN}{_LINE}{_BACK}(?:{PHONE_WORDS}){_NO_LETTER}", re.IGNORECASE)
_NINO = re.compile(rf"{_LETTERS_BEGIN}[A-Za-z]{{2}}(?:(?:{_GAP})?\d\d){{3}}(?:{_GAP})?[A-Da-d]{_END}")
_STEUER_ID = re.compile(rf"{_FRESH}(?:\d{{11}}|\d\d(?:{_GAP}\d{{3}}){{3}}){_WORD_END}{_WHOLE}")
_NIR = re.compile(
    rf"{_FRESH}[123478](?:(?:{_GAP})?\d\d){{2}}(?:{_GAP})?(?:\d\d|2[ABab])"
    rf"(?:(?:{_GAP})?\d{{3}}){{2}}(?:{_GAP})?\d\d{_WORD_END}{_WHOLE}"
)
_DNI = re.compile(rf"(?<![0-9])(?:\d{{8}}|\d\d(?:{_GAP}\d{{3}}){{2}})(?:{_GAP})?[A-Za-z]{_END}")
_NIE = re.compile(
    rf"{_LETTERS_BEGIN}[X-Zx-z](?:{_GAP})?(?:\d{{7}}|\d{_GAP}\d{{3}}{_GAP}\d{{3}})(?:{_GAP})?[A-Za-z]{_END}"
)
_VAT = re.compile(
    rf"{_LETTERS_BEGIN}(?:ATU|BE|DE|DK|EL|FI|FR|GB|IT|LU|NL|PL|PT|SE)(?:(?:{_GAP})?\d){{8,12}}(?:(?:{_GAP})?B\d\d)?",
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
    apart = sum(any(map(valid_iban, _beginnings(text, match))) for match in _IBAN_APART.finditer(text))
    return apart + sum(1 for _ in _standing(_IBAN, text, _begins_with_iban))


def _begins_with_iban(text: str, match: re.Match[str]) -> bool:
    places = [index for index, character in enumerate(match[0], match.start()) if character.isalnum()]
    length = IBAN_LENGTHS.get(match[0][:2].upper(), len(places) + 1)
    if length > len(places):
        return False
    end = places[length - 1] + 1
    return valid_iban(text[match.start() : end]) and _alone(text, match.start(), end)


def _cards(text: str) -> int:
    return sum(
        any(valid_card(digits) and _alone(text, *place) for digits, *place in _windows(match))
        for match in _NUMBERS.finditer(text)
    )


def _windows(numbers: re.Match[str]) -> Iterator[tuple[str, int, int]]:
    """Yield every 12 to 19 digits in a row of numbers that stand in groups as cards do, or are spelled out evenly.

    Of each, also where it starts and ends.
    """
    row = numbers[0]
    places = [it.span() for it in re.finditer(r"\d+", row)]
    groups = [row[start:end] for start, end in places]
    gaps = ["", *re.findall(r"\D+", row)]
    for first, gap in enumerate(gaps):
        if gap == ".":
            continue  # the fraction of a decimal
        window = ""
        for last in range(first, len(groups)):
            window += groups[last]
            if len(window) > 19:
                break
            sizes = [len(group) for group in groups[first : last + 1]]
            spelled_out = len(sizes) == len(groups) and max(sizes) <= 2
            decimal = len(sizes) == 2 and gaps[last] == "."
            if len(window) >= 12 and not decimal and (spelled_out or min(sizes[:-1], default=3) >= 3):
                yield window, numbers.start() + places[first][0], numbers.start() + places[last][1]


def _ssns(text: str) -> int:
    spaced = sum(valid_ssn(match[0]) for match in _SSN.finditer(text))
    named = {match.span(match.lastindex or 0): match[match.lastindex or 0] for match in _CUED_SSN.finditer(text)}
    named |= {match.span(1): match[1] for match in _SSN_CUED.finditer(text)}
    return spaced + sum(valid_ssn(number) for number in named.values() if not _SSN.search(number))


def _addresses(text: str) -> int:
    plain = (match[0].translate(_BRACKETS) for match in _IPV4.finditer(text))
    return sum(map(valid_ip, plain)) + sum(
        valid_ip(match[0] if match[0].endswith("::") else match[0].rstrip(":"))
        for match in _IPV6.finditer(text)
        if len(match[0]) <= 40
    )


_BRACKETS = str.maketrans("", "", "[]()")


def _phones(text: str) -> int:
    places = [match.span() for pattern in (_NANP, _E164) for match in _standing(pattern, text)]
    for pattern in (_CUED_PHONE, _PHONE_CUED):
        for match in pattern.finditer(text):
            start, end = match.span(1)
            if _alone(text, start, end) and not any(start < last and first < end for first, last in places):
                places.append((start, end))
    return len(places)


def _matching(pattern: re.Pattern[str], valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Return the search that counts valid matches: of group 1 where the pattern has one."""
    return lambda text: sum(valid(match[pattern.groups]) for match in pattern.finditer(text))


def _alone_and(pattern: re.Pattern[str], valid: Callable[[str], bool]) -> Callable[[str], int]:
    """Return the search that counts valid matches that are no part of something longer."""
    return lambda text: sum(valid(match[0]) for match in _standing(pattern, text))


def _standing(
    pattern: re.Pattern[str], text: str, holds: Callable[[str, re.Match[str]], bool] | None = None
) -> Iterator[re.Match[str]]:
    """Yield the matches that hold, by default those that stand alone; others may begin within one that does not."""
    place = 0
    while match := pattern.search(text, place):
        if holds(text, match) if holds else _alone(text, *match.span()):
            yield match
            place = match.end()
        else:
            place = match.start() + 1


_ALNUM = string.ascii_letters + string.digits


def _alone(text: str, start: int, end: int) -> bool:
    """Tell whether a number has no letter beside it, or on one side a short word as in `N4111…` and `4111…VISA`.

    The letters and digits of a UUID's groups between dashes may look like that.
    """
    left, right = text[max(0, start - 15) : start], text[end : end + 15]
    before = left[len(left.rstrip(_ALNUM)) :] if text[start].isalnum() else ""
    after = right[: len(right) - len(right.lstrip(_ALNUM))]
    word = before + after
    if not word:
        return True
    if (before and after) or not word.isalpha() or len(word) > 12:
        return False
    joined = (left[: len(left) - len(before)][-2:], right[len(after) :][:2][::-1])
    return not set(word) <= _HEX or not any(it[1:] == "-" and it[0] in _ALNUM for it in joined)


_HEX = set("abcdefABCDEF")


def _vat_numbers(text: str) -> int:
    return sum(any(map(valid_vat, _beginnings(text, match))) for match in _VAT.finditer(text))


def _beginnings(text: str, match: re.Match[str]) -> Iterator[str]:
    """Yield what a match begins with, up to each place where a word ends."""
    for end in range(match.start() + 1, match.end() + 1):
        if text[end - 1].isalnum() and (end == len(text) or text[end] not in _ALNUM):
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
    Entity.DE_STEUER_ID: _alone_and(_STEUER_ID, valid_steuer_id),
    Entity.FR_NIR: _alone_and(_NIR, valid_nir),
    Entity.ES_DNI: _alone_and(_DNI, valid_dni),
    Entity.ES_NIE: _matching(_NIE, valid_nie),
    Entity.EU_VAT: _vat_numbers,
    Entity.IP_ADDRESS: _addresses,
    Entity.MAC_ADDRESS: _matching(_MAC, valid_mac),
    Entity.PHONE: _phones,
}
