r"""The closed list of identifiers that are looked for, and how each is recognised: a pattern, then a validator.

Every pattern runs in linear time. Repetitions either have an upper bound or are possessive; none contains another that
can match the same characters, and a lookbehind lets a candidate begin only where a run of its characters begins, or a
group of them does. So a position starts at most one candidate of bounded length, or one run that is read once; only
e-mail candidates, which begin but once per run, have no bound. Patterns match decimal digits of every script (`\d`),
common typographic blanks and dashes, so that spans stay exact in text that is not ASCII.

A pattern is deliberately wider than its entity; the validator decides, on the candidate and then on ever shorter
prefixes of it that end between two words. That is how `4111 1111 1111 1111 123`, a card number with its security code,
is found although nineteen digits fail the checksum.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from portcullis.pii.folding import composed, fold


class Entity(StrEnum):
    """A kind of identifier. The order is the priority: where two overlap, the earlier one names the finding."""

    EMAIL = "EMAIL"
    IBAN = "IBAN"
    CREDIT_CARD = "CREDIT_CARD"
    US_SSN = "US_SSN"
    US_ITIN = "US_ITIN"
    US_EIN = "US_EIN"
    US_ABA = "US_ABA"
    US_PASSPORT = "US_PASSPORT"
    US_DRIVER_LICENSE = "US_DRIVER_LICENSE"
    UK_NINO = "UK_NINO"
    DE_STEUER_ID = "DE_STEUER_ID"
    FR_NIR = "FR_NIR"
    ES_DNI = "ES_DNI"
    ES_NIE = "ES_NIE"
    EU_VAT = "EU_VAT"
    IP_ADDRESS = "IP_ADDRESS"
    MAC_ADDRESS = "MAC_ADDRESS"
    PHONE = "PHONE"
    PERSON_NAME = "PERSON_NAME"
    STREET_ADDRESS = "STREET_ADDRESS"
    DATE = "DATE"
    AGE = "AGE"
    POSTCODE = "POSTCODE"


# No form tells these from other words and numbers in a text, so no scan finds them there: a whole column holds them or
# not (see `portcullis.pii.profile`). HIPAA's Safe Harbor has names and street addresses removed, and dates, ages and
# post codes removed or generalised (45 CFR 164.514(b)(2)(i)).
BY_COLUMN = frozenset({Entity.PERSON_NAME, Entity.STREET_ADDRESS, Entity.DATE, Entity.AGE, Entity.POSTCODE})
IN_TEXT = tuple(entity for entity in Entity if entity not in BY_COLUMN)
PRIORITY: Mapping[str, int] = {entity: rank for rank, entity in enumerate(Entity)}


# ISO 13616 (SWIFT IBAN registry, release 99): total length by country.
IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FK FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for country in countries.split()
}

# ISO/IEC 7812 issuer identification numbers in use: leading digits (a range), and the lengths issued under them.
_ISSUERS = (
    (r"4", {13, 16, 19}),  # Visa
    (r"5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720", {16}),  # Mastercard
    (r"3[47]", {15}),  # American Express
    (r"30[0-5]|3095|36|3[89]", {14, 16, 19}),  # Diners Club
    (r"6011|64[4-9]|65", {16, 19}),  # Discover
    (r"352[89]|35[3-8]\d", {16, 19}),  # JCB
    (r"1|2131", {15}),  # UATP, and JCB's older numbers
    (r"62|81", {16, 17, 18, 19}),  # UnionPay
    (r"220[0-4]", {16, 17, 18, 19}),  # Mir
    (r"60|508|82", {16}),  # RuPay
    (r"50|5[6-8]|6", {12, 13, 14, 15, 16, 17, 18, 19}),  # Maestro
)
_ISSUER_LENGTHS = tuple((re.compile(prefix), frozenset(lengths)) for prefix, lengths in _ISSUERS)
# The same by the first four digits: bit n is set where n digits are issued.
CARD_LENGTHS = np.zeros(10_000, np.int32)
for _prefix in range(10_000):
    for _pattern, _lengths in _ISSUER_LENGTHS:
        if _pattern.match(f"{_prefix:04}"):
            CARD_LENGTHS[_prefix] |= sum(1 << length for length in _lengths)
_LUHN_DOUBLED = str.maketrans("0123456789", "0246813579")

_BLANK = " \\t\\xa0\\u2007\\u2009\\u202f"
_DASH = "\\-\\u2010-\\u2015\\u2212"
_GAPS = f"[{_BLANK}{_DASH}./]{{0,3}}"
_GAP = f"(?:[{_BLANK}]?[{_DASH}./][{_BLANK}]?|[{_BLANK}])"
# Between two groups of digits.
_MARK = f"[{_BLANK}{_DASH}./]"
_EXTENSION = f"(?:[{_BLANK},]{{0,2}}(?:x|ext\\.?|extension|#)[{_BLANK}.:]{{0,2}}\\d{{1,6}})"
# A number begins neither inside a run of digits nor as the fraction of a decimal. A comma makes one only behind a
# lone zero: behind anything else it stands between the items of a list (`17,4111111111111111`).
_NO_FRACTION = r"(?<!\d\.)(?<!(?<![\w.,])0,)"
_NOT_INSIDE_NUMBER = r"(?<!\d\d)(?<!\d\.\d)(?<!(?<![\w.,])0,\d)"
# Words are those of ASCII: where text has no blanks, a letter of another script beside a number says nothing.
_NOT_IN_WORD = r"(?<![A-Za-z\d])"
_NOT_BEFORE_WORD = r"(?![A-Za-z\d])"

_NO_DIGITS = bytes(code for code in range(256) if not chr(code).isdecimal())
_NO_WORD = bytes(code for code in range(256) if not chr(code).isalnum())


def digits(text: str) -> str:
    """Return the decimal digits of `text`, those of other scripts as ASCII."""
    if text.isascii():
        return text.encode().translate(None, _NO_DIGITS).decode()
    kept = "".join(filter(str.isdecimal, text))
    return kept if kept.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in kept)


def valid_email(text: str) -> bool:
    """Tell whether `text` has the structure of a mailbox: RFC 5321 section 4.1.2.

    The domain is a literal in brackets, or labels of at most 63 characters under an internationalised (`xn--`) top
    level or one that begins with two letters: none has a digit in it, but a text may go on right after it. The length
    limits of section 4.5.3.1 and the ban on dots in a row are left out: such an address is undeliverable, yet names
    somebody.
    """
    local, _, domain = text.rpartition("@")
    return bool(local) and _DOMAIN.fullmatch(domain) is not None


def valid_iban(text: str) -> bool:
    """Tell whether `text` is an IBAN: ISO 13616, country's length and ISO 7064 MOD 97-10; blanks and case are free."""
    compact = alphanumeric(text)
    if len(compact) != IBAN_LENGTHS.get(compact[:2]) or not compact.isascii():
        return False
    rearranged = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in rearranged)) % 97 == 1


def valid_card(text: str) -> bool:
    """Tell whether `text` is a payment card number: ISO/IEC 7812, issuer's length and the Luhn check digit.

    Written in groups, each but the last must have three digits or more (4-4-4-4, 4-6-5, 6-13), and a single dot makes a
    decimal: numbers that are no cards pass the Luhn check one time in ten.
    """
    groups = _NOT_DIGITS.split(text)
    if any(len(group) < 3 for group in groups[:-1]) or (len(groups) == 2 and "." in text):
        return False
    number = digits(text)
    if not any(len(number) in lengths and prefix.match(number) for prefix, lengths in _ISSUER_LENGTHS):
        return False
    return (sum(map(int, number[-1::-2])) + sum(map(int, number[-2::-2].translate(_LUHN_DOUBLED)))) % 10 == 0


def valid_ssn(text: str) -> bool:
    """Tell whether the nine digits of `text` may be a US social security number.

    Area 000, 666 and 900-999, group 00 and serial 0000 are never issued (SSA, POMS RM 10201.035).
    """
    number = digits(text)
    area, group, serial = number[:3], number[3:5], number[5:]
    return len(number) == 9 and area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def valid_ip(text: str) -> bool:
    """Tell whether `text` is an IPv4 (RFC 791; zero-padded octets allowed) or IPv6 address (RFC 4291).

    A shortened IPv6 address of fewer than three groups (`5::3` and `a::b` are ratios and program text) must begin with
    four hexadecimal digits, as all of the allocated space does (IANA IPv6 Address Space registry), or hold an IPv4 one.
    """
    address = _address(text)
    if address is None or address.version == 4:
        return address is not None
    groups = [group for group in text.partition("%")[0].split(":") if group]
    allocated = bool(groups) and text.startswith(groups[0]) and len(groups[0]) == 4
    return len(groups) >= 3 or allocated or "." in text


def valid_mac(text: str) -> bool:
    """Tell whether `text` is a 48-bit address that a device was given: IEEE 802, not all zeros or ones."""
    return alphanumeric(text) not in {"0" * 12, "F" * 12}


def valid_phone(text: str) -> bool:
    """Tell whether `text` is a telephone number by its form alone.

    Either it begins with `+` and has 8 to 15 digits (ITU-T E.164; one more for a national `(0)`), or it has the ten
    digits of the North American Numbering Plan, 3-3-4, optionally after 1, or an area code in parentheses. A NANP
    number that is bare or only blank-separated must have an area code and exchange that begin with 2-9.
    """
    text = text if text.isascii() else fold(text)
    if text.startswith(("+", "(+")):
        number = digits(text)
        if 8 <= len(number) <= 15 + ("(0)" in text) and number[0] != "0":
            return True
    if nanp := _NANP.fullmatch(text):
        area, exchange = digits(nanp["area"]), digits(nanp["exchange"])
        return (area[0] >= "2" and exchange[0] >= "2") or _PUNCTUATION.search(text) is not None
    return _AREA_IN_PARENTHESES.fullmatch(text) is not None and 8 <= len(digits(text)) <= 15


def valid_cued_phone(text: str) -> bool:
    """Tell whether `text` may be a telephone number where a word beside it says so: 7 to 15 digits, and no date.

    Six digits are enough where they are grouped.
    """
    number = digits(text)
    return 6 + (number == text) <= len(number) <= 17 and _DATE.match(text) is None


def torn(text: str, start: int, end: int, longest: int = 12) -> bool:
    """Tell whether `text[start:end]` is a piece of something longer, such as a hash, by the letters beside it.

    It may touch one word (`N4111…`, `4111…VISA`) of at most `longest` letters, of ASCII, and no digit beyond them. The
    two together are no part of a UUID: where the word's letters are hexadecimal, no dash links them to more.
    """
    before = start > 0 and text[start].isalnum() and _LETTER.match(text, start - 1) is not None
    after = _LETTER.match(text, end) is not None
    if before == after:
        return before
    word = _WORD_BEFORE.search(text, max(0, start - longest), start) if before else _WORD_AFTER.match(text, end)
    if word is None or len(word[0]) > longest:
        return True
    start, end = min(start, word.start()), max(end, word.end())
    linked = _LINKED.fullmatch(text, max(0, start - 2), start) or _LINKED.fullmatch(text[end : end + 2][::-1])
    return linked is not None and _HEXADECIMAL.fullmatch(word[0]) is not None


_LETTER = re.compile("[A-Za-z]")
_WORD_BEFORE = re.compile(r"(?<![A-Za-z\d])[A-Za-z]+\Z")
_WORD_AFTER = re.compile(r"[A-Za-z]{1,25}(?![A-Za-z\d])")
_LINKED = re.compile(r"[A-Za-z\d]-")
_HEXADECIMAL = re.compile("[A-Fa-f]+")


def alphanumeric(text: str) -> str:
    """Return the letters and digits of `text`, folded, in upper case."""
    folded = fold(text)
    if folded.isascii():
        return folded.encode().translate(None, _NO_WORD).decode().upper()
    return "".join(filter(str.isalnum, folded)).upper()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    folded = fold(text)
    if ":" not in folded:
        folded = _ZERO_PADDING.sub("", folded)
    try:
        return ipaddress.ip_address(folded)
    except ValueError:  # the answer of ipaddress to "is this an address?"
        return None


_ZERO_PADDING = re.compile(r"(?<!\d)0+(?=\d)")
_DOMAIN_PATTERN = (
    r"(?:\[(?:IPv6:)?[\da-fA-F:.]{2,45}\]"
    r"|(?:[^\W_][\w-]{0,62}\.)+(?:xn--[\w-]{2,59}|[^\W\d_]{2}[^\W_]{0,61})(?![^\W_]))"
)
_DOMAIN = re.compile(_DOMAIN_PATTERN)
_NOT_DIGITS = re.compile(r"\D+")
_NANP = re.compile(
    rf"(?:(?:\+?1|001){_GAPS})?\(?(?P<area>\d{{3}})\)?{_GAPS}(?P<exchange>\d{{3}}){_GAPS}\d{{4}}{_EXTENSION}?",
    re.IGNORECASE,
)
_AREA_IN_PARENTHESES = re.compile(
    rf"\((?!19\d\d\)|20\d\d\))\d{{2,4}}\){_GAP}?\d{{2,4}}(?:{_GAP}?\d{{2,4}}){{1,3}}{_EXTENSION}?", re.IGNORECASE
)
_PUNCTUATION = re.compile(rf"[{_DASH}./()]")
_DATE = re.compile(
    rf"(?:\d{{4}}[{_DASH}./]\d\d?[{_DASH}./]\d\d?|\d\d?[{_DASH}./]\d\d?[{_DASH}./](?:\d\d){{1,2}}"
    rf"|(?:19|20)\d\d[{_DASH}./]\d\d|\d\d?[{_DASH}./](?:19|20)\d\d)(?!\d|[{_DASH}./]\d)"
)


def canonical(entity: Entity, text: str) -> str:
    """Return the one spelling of an identifier, so that one identifier has one token however it is written.

    In NFC and folded, then: e-mail and unparsable addresses in lower case; what has letters in upper case without
    blanks and marks; IP as RFC 5952 and RFC 791 write it; names and street addresses in lower case with single blanks
    and no other marks; dates with single blanks; ages in years; the others digits only, a telephone number without
    NANP's leading 1.
    """
    text = composed(text)
    match entity:
        case Entity.EMAIL:
            return fold(text).strip().lower()
        case Entity.IBAN | Entity.MAC_ADDRESS | Entity.US_PASSPORT | Entity.US_DRIVER_LICENSE:
            return alphanumeric(text)
        case Entity.UK_NINO | Entity.FR_NIR | Entity.ES_DNI | Entity.ES_NIE | Entity.EU_VAT:
            return alphanumeric(text)
        case Entity.IP_ADDRESS:
            return str(_address(fold(text).strip()) or fold(text).strip().lower())
        case Entity.POSTCODE:
            return alphanumeric(text)
        case Entity.PERSON_NAME | Entity.STREET_ADDRESS:
            return " ".join(_MARKS.sub(" ", fold(text)).split()).casefold()
        case Entity.AGE:
            return digits(fold(text).partition(".")[0])
        case Entity.DATE:
            return " ".join(fold(text).split()).casefold()
        case Entity.PHONE:
            return _NANP_PREFIX.sub("", digits(fold(text)))
        case _:
            return digits(fold(text))


_MARKS = re.compile(r"[\W_]")
_NANP_PREFIX = re.compile(r"^(?:00)?1(?=[2-9]\d\d[2-9]\d{6,12}$)")


@dataclass(frozen=True)
class Cue:
    """Words that say what the number beside them is: before it, after it, or as the column's name.

    Attributes:
        before: Ends where the number starts.
        after: Starts where the number ends.
        column: Is searched in the column's name.
        stems: How the words begin, two or three letters each: where no word begins so, none of them is.
    """

    before: re.Pattern[str]
    after: re.Pattern[str]
    column: re.Pattern[str]
    stems: tuple[str, ...]

    def speaks_for(self, text: str, start: int, end: int) -> bool:
        """Tell whether a word close to `text[start:end]` names the entity; no other number may lie in between."""
        return (
            self.before.search(text, max(0, start - 40), start) is not None
            or self.after.match(text, end, end + 24) is not None
        )


@dataclass(frozen=True)
class Hint:
    """What must stand in a text for a recogniser to match in it: quickly seen, and no match is without it.

    Attributes:
        groups: Sizes of groups of digits that stand together, any of these; where there are none, any six digits do.
        first: The first of these digits is one of these.
        lead: The letter before them is one of these, with at most one blank or mark between.
        tail: The letter after them likewise.
        worded: Nothing of all this, since letters may stand anywhere between the digits: a word of its cue does.
    """

    groups: tuple[tuple[int, ...], ...] = ()
    first: str = "0123456789"
    lead: str = ""
    tail: str = ""
    worded: bool = False


# Letters of a word that touches a number; `socialsecuritynumber536228471`.
_LONGEST_WORD, _LONGEST_CUE = 12, 24


@dataclass(frozen=True)
class Recogniser:
    """One way to recognise an entity: group 1 of `pattern` is a candidate, `valid` decides, `cue` must agree if set.

    Attributes:
        entity: What it recognises.
        pattern: Its group 1 is a candidate.
        valid: Tells whether a candidate, or a shorter prefix of it, is one.
        cue: Must agree where it is set.
        hint: Where it is not, none of its matches is; None for those that read what `portcullis.pii.structure` defers.
        apart: What is `torn` from something longer is none.
        recall: It serves the mode `recall` alone, where a word makes up for a check digit that fails.
    """

    entity: Entity
    pattern: re.Pattern[str]
    valid: Callable[[str], bool]
    cue: Cue | None = None
    hint: Hint | None = None
    recall: bool = False
    apart: bool = False

    def accepts(self, text: str, start: int, end: int) -> bool:
        """Tell whether `text[start:end]` is one by itself and by the letters beside it, whatever cue it needs."""
        if not self.valid(text[start:end]):
            return False
        return not self.apart or not torn(text, start, end, _LONGEST_CUE if self.cue else _LONGEST_WORD)


def shaped(
    entity: Entity,
    groups: Sequence[tuple[int, ...]],
    valid: Callable[[str], bool],
    *,
    first: str = "0123456789",
    lead: str = "",
    prefix: str = "",
    tail: str = "",
    suffix: str = "",
    cue: Cue | None = None,
    recall: bool = False,
) -> Recogniser:
    """Return a recogniser of digits in groups, with one blank or mark between groups; beside a word as `torn` allows.

    Args:
        entity: What it recognises.
        groups: The sizes of the groups, one tuple for each spelling.
        valid: Decides on a candidate.
        first: What its first digit may be.
        lead: The letters, one of which must stand before the digits.
        prefix: The pattern of what stands before the digits, `lead` included.
        tail: The letters, one of which must stand after the digits.
        suffix: The pattern of what stands after the digits, `tail` included.
        cue: Must agree where it is set.
        recall: It serves the mode `recall` alone.
    """
    numbers = "|".join(_MARK.join(rf"\d{{{size}}}" for size in group) for group in groups)
    # Letters of its own begin where a word does, or behind an escape such as JSON's `\n`.
    begin = rf"(?:{_NOT_IN_WORD}|(?<=\\[nrt]))" if prefix else r"(?<!\d)"
    # `65929970489.0` is a whole number that was read as a decimal.
    end = _NOT_BEFORE_WORD if suffix else r"(?!\d)(?!\.(?!0+(?!\d))\d)"
    pattern = re.compile(rf"{begin}{_NO_FRACTION}({prefix}(?:{numbers}){suffix}){end}", re.IGNORECASE)
    hint = Hint(tuple(groups), first, lead, tail)
    return Recogniser(entity, pattern, valid, cue, hint, recall, apart=not (prefix and suffix))


# Markup between a word and its number: a cell or another element that ends, and one that begins. None is the name of
# an entity, so that what masking left is no such element.
_MARKUP = (
    r"(?:</[\w:.-]{1,20}>[^\w<>\0]{0,9}"
    r"(?:<(?:td|th|dd|dt|li|p|b|i|a|em|div|span|strong|code|value)(?:\s[^<>\0]{0,30})?>[^\w<>\0]{0,9})?)?"
)
NUMBER = r"(?:[\s_]?(?:numbers?|nummer|n.mero|no|nr|num))?"


def cue(before: str, after: str, column: str, stems: tuple[str, ...]) -> Cue:
    """Return the cue of words, given as patterns; see `Cue`.

    A column may be numbered (`phone1`), and so may the element that ends after a number (`</phone>`).
    """
    named = rf"(?:{column})(?:[\s_-]?(?:numbers?|nummer|no|nr|num))?"
    element = rf"</(?:[\w:.-]{{0,20}}[:_.-])?{named}[\d_]{{0,3}}>"
    return Cue(
        re.compile(rf"{_NOT_IN_WORD}(?:{before})(?:_{{1,2}}|[^\w<>\0][^\d<>\0]*)?{_MARKUP}\Z", re.IGNORECASE),
        re.compile(rf"[\s\\,:;(/-]{{0,3}}(?:(?:{after}){_NOT_BEFORE_WORD}|{element})", re.IGNORECASE),
        re.compile(rf"(?<![A-Za-z]){named}(?![A-Za-z])", re.IGNORECASE),
        stems,
    )


# A letter with an accent is any one character to a reading.
_PHONE_NOUN = (
    r"(?:tele|home|work|office|mobile|cell|contact)?phones?|tel|t.l.(?:phones?|fono?s?|fone)"
    r"|telefoo?n[aeu]?s?|telefoo?n(?:nummer|nr)|rufnummer|mob|mobiles?|mobil(?:e|nummer|telefon)?|m.vil(?:es)?"
    r"|telem.vel|handy(?:nummer|nr)?|cell(?:ular|phone)?s?|cel(?:l?ulare?|l)|gsm|puhelin|fax|landline|msisdn|whatsapp|sms"
)
PHONE_CUE = cue(
    rf"(?:{_PHONE_NOUN}|contact){NUMBER}|ph|hotline|helpline|voicemail|pager"
    r"|call(?:s|ed|ing|er)?|dial(?:s|led|ed|ing)?|answering",
    rf"{_PHONE_NOUN}|office|home|work",
    _PHONE_NOUN,
    (
        *("pho", "tel", "mob", "cel", "fax", "lan", "msi", "wha", "sms", "con", "hot", "hel", "voi", "pag", "cal"),
        *("dia", "ans", "off", "hom", "wor", "ruf", "vil", "han", "gsm", "puh", "ph"),
    ),
)
_SSN_NOUN = r"ssn(?:um(?:ber)?)?|ss(?=#)|soc(?:ial|\.)?[\s_-]{0,2}sec(?:urity|\.)?|tax[\s_-]?id|tin"
SSN_CUE = cue(rf"(?:{_SSN_NOUN}){NUMBER}", _SSN_NOUN, _SSN_NOUN, ("ssn", "ss", "soc", "tax", "tin"))

# RFC 5321's atoms and dots, without the marks that delimit in URLs, JSON and markup (/ = ? ` { | }).
_LOCAL_MARKS = r".!#$%&'*+^~\-"
_LOCAL = rf"\w{_LOCAL_MARKS}"
_PHONE_RUN = rf"\+?(?:[{_BLANK}{_DASH}./()]{{0,3}}\d){{5,17}}{_EXTENSION}?(?!\d)"
_PHONE = re.compile(rf"([\d(+]{_NOT_INSIDE_NUMBER}{_PHONE_RUN})", re.IGNORECASE)


def _by_country(account: Callable[[int], str]) -> str:
    """Return the pattern of IBANs, given that of what follows the country, of so many characters."""
    lengths: dict[int, list[str]] = {}
    for country, length in IBAN_LENGTHS.items():
        lengths.setdefault(length, []).append(country)
    return "|".join(f"(?:{'|'.join(those)}){account(length - 2)}" for length, those in lengths.items())


# In groups of four however far apart, or with the country for itself.
_IBAN_GAP = f"[{_BLANK}{_DASH}./]{{1,3}}"
_IBAN_IN_GROUPS = _by_country(
    lambda size: (
        rf"(?:{_IBAN_GAP})?\d\d(?:{_IBAN_GAP}[A-Z\d]{{4}}){{{(size - 2) // 4}}}"
        + (rf"{_IBAN_GAP}[A-Z\d]{{{(size - 2) % 4}}}" if (size - 2) % 4 else "")
    )
)
_IBAN_AFTER_COUNTRY = _by_country(lambda size: rf"{_IBAN_GAP}\d\d[A-Z\d]{{{size - 2}}}")
_IBAN = _by_country(lambda size: rf"\d\d(?:[{_BLANK}{_DASH}]?[A-Z\d]){{{size - 2}}}")

RECOGNISERS = (
    Recogniser(
        Entity.EMAIL, re.compile(rf"(?<![{_LOCAL}])[{_LOCAL_MARKS}]*+(\w[{_LOCAL}]*+@{_DOMAIN_PATTERN})"), valid_email
    ),
    Recogniser(Entity.EMAIL, re.compile(rf'("[^"\r\n<>\0]{{1,64}}"@{_DOMAIN_PATTERN})'), valid_email),
    Recogniser(
        Entity.IBAN,
        re.compile(rf"(?<!\d)(?=[A-Z]{{2}}\d\d)((?:{_IBAN})(?!\d))", re.IGNORECASE),
        valid_iban,
        apart=True,
    ),
    Recogniser(
        Entity.IBAN,
        re.compile(
            rf"{_NOT_IN_WORD}(?=[A-Z]{{2}}(?:{_IBAN_GAP})?\d\d)"
            rf"((?:{_IBAN_IN_GROUPS}|{_IBAN_AFTER_COUNTRY}){_NOT_BEFORE_WORD})",
            re.IGNORECASE,
        ),
        valid_iban,
    ),
    Recogniser(
        Entity.CREDIT_CARD,
        re.compile(
            rf"(\d{_NOT_INSIDE_NUMBER}(?=(?:[{_BLANK}{_DASH}.]?\d){{11}})"
            rf"\d{{2,18}}(?:[{_BLANK}{_DASH}.]\d{{1,13}}){{0,5}}(?!\d))"
        ),
        valid_card,
        apart=True,
    ),
    Recogniser(Entity.US_SSN, re.compile(rf"(\d(?<!\d\d)\d\d{_GAP}\d\d{_GAP}\d{{4}}(?!\d))"), valid_ssn),
    Recogniser(Entity.US_SSN, re.compile(rf"(\d{_NOT_INSIDE_NUMBER}\d{{8}}(?!\d))"), valid_ssn, SSN_CUE, apart=True),
    Recogniser(
        Entity.IP_ADDRESS,
        re.compile(r"(\d(?<![\dvV]\d)(?<!\d\.\d)\d{0,2}(?:\.\d{1,3}){3}(?!\d|\.\d))"),
        valid_ip,
    ),
    Recogniser(
        Entity.IP_ADDRESS,
        re.compile(r"([\da-fA-F:](?<![A-Za-z\d].)[\da-fA-F]{0,3}:[\da-fA-F:.]{1,43}(?:%\w{1,15})?)"),
        valid_ip,
    ),
    Recogniser(
        Entity.MAC_ADDRESS,
        re.compile(
            r"(?:(?<![A-Za-z\d])(?<!\d[:-])(?<!(?<![A-Za-z\d])[\da-fA-F][a-fA-F][:-])|(?<=\\[nrt]))([\da-fA-F]{2}(?:(?::[\da-fA-F]{2}){5}|(?:-[\da-fA-F]{2}){5}))"
            r"(?![A-Za-z\d]|[:-][A-Za-z\d])"
        ),
        valid_mac,
    ),
    # As switches write it; with a letter, or the zeros that many begin with, it is no number.
    Recogniser(
        Entity.MAC_ADDRESS,
        re.compile(
            r"(?<![A-Za-z\d.])((?=00|[\d.]{0,13}[a-fA-F])(?=[a-fA-F.]{0,13}\d)"
            r"[\da-fA-F]{4}(?:\.[\da-fA-F]{4}){2})(?![A-Za-z\d]|\.[A-Za-z\d])"
        ),
        valid_mac,
    ),
    Recogniser(Entity.PHONE, _PHONE, valid_phone, apart=True),
    Recogniser(Entity.PHONE, _PHONE, valid_cued_phone, PHONE_CUE, apart=True),
)
