"""Identifiers of the United States beside the social security number.

Only the bank's routing number has a check digit, and nine digits in a row are common. So all but the taxpayer number
written 3-2-4 need a word beside them or the column's name.
"""

import re

from portcullis.pii.entities import NUMBER, Cue, Entity, Hint, Recogniser, cue, digits, shaped


def valid_itin(text: str) -> bool:
    """Tell whether the nine digits may be an individual taxpayer identification number.

    Area 900-999, and group 50-65, 70-88, 90-92 or 94-99 (IRS, Internal Revenue Manual 3.21.263).
    """
    number = digits(text)
    if len(number) != 9 or number[0] != "9":
        return False
    group = int(number[3:5])
    return 50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99


# IRS, "How EINs are assigned and valid EIN prefixes".
_EIN_PREFIXES = frozenset(
    f"{prefix:02}"
    for first, last in ((1, 6), (10, 16), (20, 27), (30, 48), (50, 68), (71, 77), (80, 88), (90, 95), (98, 99))
    for prefix in range(first, last + 1)
) - {"49", "70", "78", "79", "89", "96", "97"}


def valid_ein(text: str) -> bool:
    """Tell whether the nine digits may be an employer identification number: a prefix that the IRS assigns."""
    number = digits(text)
    return len(number) == 9 and number[:2] in _EIN_PREFIXES


def valid_aba(text: str) -> bool:
    """Tell whether the nine digits are a bank's routing number.

    Federal Reserve districts 00-12, thrifts 21-32, electronic 61-72 or 80, and the weights 3, 7, 1 give a multiple of
    ten (American Bankers Association, routing number policy).
    """
    number = [int(digit) for digit in digits(text)]
    if len(number) != 9:
        return False
    district = 10 * number[0] + number[1]
    assigned = district <= 12 or 21 <= district <= 32 or 61 <= district <= 72 or district == 80
    weighted = 3 * sum(number[0::3]) + 7 * sum(number[1::3]) + sum(number[2::3])
    return assigned and any(number) and weighted % 10 == 0


_ITIN_NOUN = r"itin|tin|tax(?:payer)?[\s_-]?id(?:entification)?"
_ITIN_CUE = cue(rf"(?:{_ITIN_NOUN}){NUMBER}", _ITIN_NOUN, _ITIN_NOUN, ("iti", "tin", "tax"))
_EIN_NOUN = r"f?ein|employer[\s_-]?id(?:entification)?|tax[\s_-]?(?:payer[\s_-]?)?id(?:entification)?|tin"
_EIN_CUE = cue(rf"(?:{_EIN_NOUN}){NUMBER}", _EIN_NOUN, r"f?ein|employer[\s_-]?id", ("ein", "fei", "emp", "tax", "tin"))
_ABA_NOUN = r"aba|routing|rtn|transit"
_ABA_CUE = cue(rf"(?:{_ABA_NOUN}){NUMBER}", _ABA_NOUN, r"aba|routing|rtn", ("aba", "rou", "rtn", "tra"))
_PASSPORT_NOUN = r"passports?|reisep(?:ass|.sse)|passeports?|pasaportes?|passaport[eoi]|paspoort|paszport|passi?(?=n)"
_PASSPORT_CUE = cue(rf"(?:{_PASSPORT_NOUN}){NUMBER}", _PASSPORT_NOUN, _PASSPORT_NOUN, ("pas", "rei"))
# An accent or a typographic apostrophe is any one character to a reading.
_LICENSE_NOUN = (
    r"(?:driver(?:s|.s)?.?|driving)[\s_-]{0,2}lic(?:en[cs]e|\.|\b)|f(?:ue|.)hrerschein|permis[\s_]de[\s_]conduire"
    r"|(?:permiso|carnet)[\s_]de[\s_]conduc(?:ir|ci.n)|patente(?:[\s_]di[\s_]guida)?|rijbewijs|prawo[\s_]jazdy"
    r"|carta[\s_]de[\s_]condu..o"
)
_LICENSE_CUE = cue(
    rf"(?:{_LICENSE_NOUN}|licen[cs]e[\s_](?:numbers?|no|num)){NUMBER}|licen[cs]e(?=\s?#)|dl(?=\s?[:#])",
    _LICENSE_NOUN,
    rf"{_LICENSE_NOUN}|licen[cs]e(?=[\s_]?n)|dl",
    ("dri", "lic", "dl", "fue", "fuh", "hre", "per", "car", "pat", "rij", "pra"),
)


def _worded(entity: Entity, longest: int, said: Cue) -> Recogniser:
    """Return a recogniser of letters and at least four digits in any order, which only a word tells from others."""
    pattern = re.compile(
        rf"(?<![A-Za-z\d])(?<![A-Za-z\d]-)((?=(?:[A-Z]{{0,8}}\d){{4}})[A-Z\d]{{6,{longest}}})(?![A-Za-z\d]|-[A-Za-z\d])",
        re.IGNORECASE,
    )
    return Recogniser(entity, pattern, bool, said, Hint(worded=True))


RECOGNISERS = (
    shaped(Entity.US_ITIN, ((3, 2, 4),), valid_itin, first="9"),
    shaped(Entity.US_ITIN, ((9,),), valid_itin, first="9", cue=_ITIN_CUE),
    shaped(Entity.US_EIN, ((2, 7), (9,)), valid_ein, cue=_EIN_CUE),
    shaped(Entity.US_ABA, ((9,), (4, 4, 1), (3, 3, 3)), valid_aba, cue=_ABA_CUE),
    shaped(Entity.US_ABA, ((9,),), bool, cue=_ABA_CUE, recall=True),
    # Nine digits, or a letter and eight (Department of State, since 2021).
    shaped(Entity.US_PASSPORT, ((9,),), bool, cue=_PASSPORT_CUE),
    shaped(Entity.US_PASSPORT, ((8,),), bool, lead="ABCDEFGHIJKLMNOPQRSTUVWXYZ", prefix="[A-Z]", cue=_PASSPORT_CUE),
    # Of other countries: C01X00T47, 12AB34567.
    _worded(Entity.US_PASSPORT, 12, _PASSPORT_CUE),
    _worded(Entity.US_DRIVER_LICENSE, 16, _LICENSE_CUE),
    # Each state has its own form (AAMVA DL/ID standard: up to 25 characters); most are digits after up to two letters.
    shaped(
        Entity.US_DRIVER_LICENSE,
        (*((size,) for size in range(6, 15)), (3, 4, 4), (3, 3, 2, 3, 1), (3, 3, 2, 3), (4, 4, 4), (2, 3, 4)),
        bool,
        prefix="[A-Z]{0,2}",
        suffix="[A-Z]?",
        cue=_LICENSE_CUE,
    ),
)
