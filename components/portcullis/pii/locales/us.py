"""Identifiers of the United States beside the social security number.

Only the bank's routing number has a check digit, and nine digits in a row are common. So all but the taxpayer number
written 3-2-4 need a word beside them or the column's name.
"""

from portcullis.pii.entities import Entity, cue, digits, shaped

_NUMBER = r"(?:[\s_]?(?:numbers?|no|nr|num))?"


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
_ITIN_CUE = cue(rf"(?:{_ITIN_NOUN}){_NUMBER}", _ITIN_NOUN, _ITIN_NOUN, ("iti", "tin", "tax"))
_EIN_NOUN = r"f?ein|employer[\s_-]?id(?:entification)?|tax[\s_-]?(?:payer[\s_-]?)?id(?:entification)?|tin"
_EIN_CUE = cue(rf"(?:{_EIN_NOUN}){_NUMBER}", _EIN_NOUN, r"f?ein|employer[\s_-]?id", ("ein", "fei", "emp", "tax", "tin"))
_ABA_NOUN = r"aba|routing|rtn|transit"
_ABA_CUE = cue(rf"(?:{_ABA_NOUN}){_NUMBER}", _ABA_NOUN, r"aba|routing|rtn", ("aba", "rou", "rtn", "tra"))
_PASSPORT_CUE = cue(rf"passport{_NUMBER}", "passport", "passport", ("pas",))
_LICENSE_NOUN = r"(?:driver'?s?'?|driving)[\s_-]*licen[cs]e"
_LICENSE_CUE = cue(
    rf"(?:{_LICENSE_NOUN}|licen[cs]e[\s_](?:numbers?|no|num)){_NUMBER}",
    _LICENSE_NOUN,
    rf"{_LICENSE_NOUN}|licen[cs]e[\s_]?(?:number|no|num)|dl(?:[\s_]?(?:number|no|num))?",
    ("dri", "lic"),
)

RECOGNISERS = (
    shaped(Entity.US_ITIN, ((3, 2, 4),), valid_itin, first="9"),
    shaped(Entity.US_ITIN, ((9,),), valid_itin, first="9", cue=_ITIN_CUE),
    shaped(Entity.US_EIN, ((2, 7), (9,)), valid_ein, cue=_EIN_CUE),
    shaped(Entity.US_ABA, ((9,), (4, 4, 1), (3, 3, 3)), valid_aba, cue=_ABA_CUE),
    shaped(Entity.US_ABA, ((9,),), bool, cue=_ABA_CUE, recall=True),
    # Nine digits, or a letter and eight (Department of State, since 2021).
    shaped(Entity.US_PASSPORT, ((9,),), bool, cue=_PASSPORT_CUE),
    shaped(Entity.US_PASSPORT, ((8,),), bool, lead="ABCDEFGHIJKLMNOPQRSTUVWXYZ", prefix="[A-Z]", cue=_PASSPORT_CUE),
    # Each state has its own form (AAMVA DL/ID standard: up to 25 characters); most are digits after up to two letters.
    shaped(
        Entity.US_DRIVER_LICENSE,
        (*((size,) for size in range(6, 15)), (3, 4, 4), (3, 3, 2, 3, 1), (3, 3, 2, 3), (4, 4, 4)),
        bool,
        prefix="[A-Z]{0,2}",
        suffix="[A-Z]?",
        cue=_LICENSE_CUE,
    ),
)
