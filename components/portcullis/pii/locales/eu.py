"""Identifiers of European countries, each with its check digit or its numbering rule.

Value added tax numbers are recognised with the prefix of their country, for those countries whose check digit is public
and undisputed; Spain, Ireland, and the countries that are not in `VAT_CHECKS` are left out.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from portcullis.pii.entities import NUMBER, Entity, alphanumeric, cue, digits, shaped

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def mod_11_10(number: str) -> bool:
    """Tell whether the last digit checks the others: ISO/IEC 7064, MOD 11,10."""
    check = 5
    for digit in number:
        check = ((check or 10) * 2 % 11 + int(digit)) % 10
    return check == 1


def luhn(number: str) -> bool:
    """Tell whether the last digit checks the others: ISO/IEC 7812-1, annex B."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in number[-2::-2])
    return (sum(map(int, number[-1::-2])) + doubled) % 10 == 0


def valid_nino(text: str) -> bool:
    """Tell whether `text` may be a UK national insurance number.

    Two letters, six digits, a suffix A-D; D, F, I, Q, U and V are never first nor second, O is never second, and seven
    pairs are not allocated (HMRC, National Insurance Manual NIM39110).
    """
    return _NINO.fullmatch(alphanumeric(text)) is not None


_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]")


def valid_steuer_id(text: str) -> bool:
    """Tell whether `text` is a German tax identification number.

    Eleven digits, the first no zero; of the first ten exactly one occurs twice or three times; the last is MOD 11,10
    (§ 139b AO; Bundeszentralamt für Steuern).
    """
    number = digits(text)
    repeated = [count for count in Counter(number[:10]).values() if count > 1]
    return len(number) == 11 and number[0] != "0" and repeated in ([2], [3]) and mod_11_10(number)


def valid_nir(text: str) -> bool:
    """Tell whether `text` is a French registration number: sex, month, and the key 97 - n mod 97 (INSEE, NIR)."""
    number = alphanumeric(text)
    if _NIR.fullmatch(number) is None:
        return False
    body = number[:5] + {"2A": "19", "2B": "18"}.get(number[5:7], number[5:7]) + number[7:13]
    return 97 - int(body) % 97 == int(number[13:])


# Months 20-42 and above 50 stand for births whose month is unknown.
_NIR = re.compile(r"[123478]\d\d(?:0[1-9]|1[0-2]|[2-3]\d|4[0-2]|[5-9]\d)(?:\d\d|2[AB])\d{8}")
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


def valid_dni(text: str) -> bool:
    """Tell whether `text` is a Spanish identity number: eight digits and their letter, modulo 23 (RD 1553/2005)."""
    number = alphanumeric(text)
    return re.fullmatch(r"\d{8}[A-Z]", number, re.ASCII) is not None and number[8] == _DNI_LETTERS[int(number[:8]) % 23]


def valid_nie(text: str) -> bool:
    """Tell whether `text` is a Spanish foreigner's number: X, Y or Z stands for 0, 1 or 2, then as `valid_dni`."""
    number = alphanumeric(text)
    return number[:1] in set("XYZ") and len(number) == 9 and valid_dni(str("XYZ".index(number[0])) + number[1:])


def _weighted(number: str, weights: Sequence[int]) -> int:
    return sum(weight * int(digit) for weight, digit in zip(weights, number, strict=True))


# European Commission, VIES: structure of VAT numbers; check digits as each tax authority publishes them.
VAT_CHECKS: Mapping[str, Callable[[str], bool]] = {
    "ATU": lambda n: (
        len(n) == 8 and (96 - sum(sum(divmod(int(d) * (1 + i % 2), 10)) for i, d in enumerate(n[:7]))) % 10 == int(n[7])
    ),
    "BE": lambda n: len(n) == 10 and n[0] in "01" and (int(n[:8]) + int(n[8:])) % 97 == 0,
    "DE": lambda n: len(n) == 9 and n[0] != "0" and mod_11_10(n),
    "DK": lambda n: len(n) == 8 and n[0] != "0" and _weighted(n, (2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0,
    "EL": lambda n: len(n) == 9 and _weighted(n[:8], (256, 128, 64, 32, 16, 8, 4, 2)) % 11 % 10 == int(n[8]),
    "FI": lambda n: len(n) == 8 and _weighted(n, (7, 9, 10, 5, 8, 4, 2, 1)) % 11 == 0,
    "FR": lambda n: len(n) == 11 and int(n[2:] + "12") % 97 == int(n[:2]),
    "GB": lambda n: len(n) == 9 and _weighted(n, (8, 7, 6, 5, 4, 3, 2, 10, 1)) % 97 in {0, 42, 55},
    "IT": lambda n: len(n) == 11 and int(n[:7]) > 0 and luhn(n),
    "LU": lambda n: len(n) == 8 and int(n[:6]) % 89 == int(n[6:]),
    "NL": lambda n: len(n) == 11 and (_weighted(n[:9], (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 or _nl(n)),
    "PL": lambda n: len(n) == 10 and _weighted(n, (6, 5, 7, 2, 3, 4, 5, 6, 7, -1)) % 11 == 0,
    "PT": lambda n: len(n) == 9 and n[0] != "0" and (11 - _weighted(n[:8], range(9, 1, -1))) % 11 % 10 == int(n[8]),
    "SE": lambda n: len(n) == 12 and n[10:] == "01" and luhn(n[:10]),
}


def _nl(number: str) -> bool:
    """Tell whether the number of a Dutch sole trader holds: ISO 7064 MOD 97-10 over `NL`, number, `B`, suffix."""
    return int(f"2321{number[:9]}11{number[9:]}") % 97 == 1


def valid_vat(text: str) -> bool:
    """Tell whether `text` is a value added tax number of a country in `VAT_CHECKS`, its prefix included."""
    compact = alphanumeric(text)
    country = compact[: 3 if compact.startswith("AT") else 2]
    number = compact[len(country) :]
    if country == "NL" and number[9:10] == "B":
        number = number[:9] + number[10:]
    check = VAT_CHECKS.get(country)
    return check is not None and number.isascii() and number.isdecimal() and int(number) > 0 and check(number)


_STEUER_NOUN = r"steuer[\s_-]?id|idnr|identifikationsnummer|steuer(?:liche|identifikations)?nummer|tin"
_STEUER_CUE = cue(rf"(?:{_STEUER_NOUN}){NUMBER}", _STEUER_NOUN, _STEUER_NOUN, ("ste", "idn", "ide", "tin"))
_NIR_NOUN = r"nir|insee|s.cu(?:rit.[\s_]sociale)?|social[\s_-]?security"
_NIR_CUE = cue(rf"(?:{_NIR_NOUN}){NUMBER}", _NIR_NOUN, _NIR_NOUN, ("nir", "ins", "soc"))
_DNI_NOUN = r"dni|nif|nie"
_DNI_CUE = cue(rf"(?:{_DNI_NOUN}){NUMBER}", _DNI_NOUN, _DNI_NOUN, ("dni", "nif", "nie"))
_VAT_NOUN = r"vat|ust[\s_-]?id|umsatzsteuer|tva|iva|btw|nip|cvr"
_VAT_CUE = cue(
    rf"(?:{_VAT_NOUN}){NUMBER}", _VAT_NOUN, _VAT_NOUN, ("vat", "ust", "ums", "tva", "iva", "btw", "nip", "cvr")
)

_STEUER_GROUPS = ((11,), (2, 3, 3, 3))
_NIR_GROUPS = ((15,), (13, 2), (1, 2, 2, 2, 3, 3, 2), (1, 14), (5, 8, 2))
# The department 2A or 2B cuts the digits in two: 1 84 12 2A 451 089 46.
_CORSICA = ((6,), (1, 2, 2, 1), (5, 1))
_DNI_GROUPS = ((8,), (2, 3, 3))
_NIE_GROUPS = ((7,), (1, 3, 3))
_VAT_GROUPS = (
    *((8,), (9,), (10,), (11,), (12,), (2, 9), (4, 3, 3), (3, 3, 3), (2, 3, 3, 3), (3, 4, 2), (3, 3, 2, 2)),
    *((2, 2, 2, 2), (6, 4, 2), (3, 7), (3, 4, 4), (4, 4), (3, 3, 2), (2, 6), (10, 2)),
)
_VAT_PREFIX = "(?:ATU|BE|DE|DK|EL|FI|FR|GB|IT|LU|NL|PL|PT|SE)[ \\-.]?"
_VAT_LEAD = "UEKLIRBT"

RECOGNISERS = (
    shaped(
        Entity.UK_NINO,
        ((6,), (2, 2, 2)),
        valid_nino,
        lead=_LETTERS,
        prefix="[A-Z]{2}[ \\-]?",
        tail="ABCD",
        suffix="[ \\-]?[A-D]",
    ),
    shaped(Entity.DE_STEUER_ID, _STEUER_GROUPS, valid_steuer_id, first="123456789"),
    shaped(Entity.DE_STEUER_ID, _STEUER_GROUPS, bool, first="123456789", cue=_STEUER_CUE, recall=True),
    shaped(Entity.FR_NIR, _NIR_GROUPS, valid_nir, first="123478"),
    shaped(Entity.FR_NIR, _NIR_GROUPS, bool, first="123478", cue=_NIR_CUE, recall=True),
    shaped(
        Entity.FR_NIR,
        _CORSICA,
        valid_nir,
        first="123478",
        tail="AB",
        suffix=r"[AB](?:[ .\-]?\d{3}[ .\-]?\d{3}[ .\-]?\d{2})",
    ),
    shaped(Entity.ES_DNI, _DNI_GROUPS, valid_dni, tail=_LETTERS, suffix="[ \\-.]?[A-Z]"),
    shaped(Entity.ES_DNI, _DNI_GROUPS, bool, tail=_LETTERS, suffix="[ \\-.]?[A-Z]", cue=_DNI_CUE, recall=True),
    shaped(
        Entity.ES_NIE, _NIE_GROUPS, valid_nie, lead="XYZ", prefix="[XYZ][ \\-.]?", tail=_LETTERS, suffix="[ \\-.]?[A-Z]"
    ),
    shaped(
        Entity.ES_NIE,
        _NIE_GROUPS,
        bool,
        lead="XYZ",
        prefix="[XYZ][ \\-.]?",
        tail=_LETTERS,
        suffix="[ \\-.]?[A-Z]",
        cue=_DNI_CUE,
        recall=True,
    ),
    shaped(Entity.EU_VAT, _VAT_GROUPS, valid_vat, lead=_VAT_LEAD, prefix=_VAT_PREFIX, suffix="(?:[ \\-.]?B\\d\\d)?"),
    shaped(
        Entity.EU_VAT,
        _VAT_GROUPS,
        bool,
        lead=_VAT_LEAD,
        prefix=_VAT_PREFIX,
        suffix="(?:[ \\-.]?B\\d\\d)?",
        cue=_VAT_CUE,
        recall=True,
    ),
)
