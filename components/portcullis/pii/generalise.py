"""Less of what a cell says: a year, an age, a region, a network, the lower end of a bin.

HIPAA's Safe Harbor (45 CFR 164.514(b)(2)(i)) lets stay: of dates the year; ages up to 89, all above as one category;
of ZIP codes the first three digits, but 000 for areas of 20,000 people or fewer.
"""

import ipaddress
import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from portcullis.pii.folding import fold
from portcullis.pii.operators import Operator

# The areas of 20,000 people or fewer by the Census of 2000, as the Office for Civil Rights lists them in its guidance
# on de-identification of November 26, 2012.
RESTRICTED_ZIP3 = frozenset(
    {
        *("036", "059", "063", "102", "203", "556", "692", "790", "821"),
        *("823", "830", "831", "878", "879", "884", "890", "893"),
    }
)
OLDEST = 89

_YEAR = re.compile(r"(?<!\d)(?:1[6-9]|20)\d\d(?!\d)")
_COMPACT_DATE = re.compile(r"((?:1[6-9]|20)\d\d)(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)")
_AGE = re.compile(r"(\d{1,3})(?:\.\d*)?(?: ?(?:years?|yrs?|y)(?: old)?)?", re.IGNORECASE)
_ZIP = re.compile(r"(\d{3})\d\d(?:[ -]?\d{4})?")


def generalised(operator: Operator, texts: pa.LargeStringArray, unreadable: str) -> pa.LargeStringArray:
    """Return each text generalised.

    Args:
        operator: A `generalise` with its form.
        texts: A large_string array without nulls.
        unreadable: What becomes of a text that is nothing of the kind.
    """
    forms: dict[str, Callable[[str], str | None]] = {
        "year": _year,
        "age": _age,
        "zip3": _zip3,
        "network": _network,
        "bin": partial(_bin, width=operator.width),
    }
    of = forms[operator.form]
    kinds = texts.dictionary_encode()
    made = [of(fold(text).strip()) or unreadable for text in kinds.dictionary.to_pylist()]
    return pa.array(made, pa.large_string()).take(kinds.indices)


def generalised_numbers(operator: Operator, values: pa.Array) -> pa.Array:
    """Return a column of numbers generalised, of its own type: 90 stands for all ages above 89, and a year is one.

    Args:
        operator: A `generalise` of the form year, age or bin.
        values: An int64 or float64 array. Nulls stay; what is no number, age or year becomes null.
    """
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    good = values.is_valid().to_numpy(zero_copy_only=False)
    made: npt.NDArray[np.generic]
    if operator.form == "bin":
        made = np.floor(numbers / operator.width) * operator.width
        good &= np.isfinite(made) & (np.abs(made) < 2**53)
    elif operator.form == "age":
        made = np.floor(np.minimum(numbers, OLDEST + 1))
        good &= (numbers >= 0) & np.isfinite(numbers)
    else:
        made = np.floor(numbers)
        good &= (numbers >= 1600) & (numbers < 2100)
    return pa.array(np.where(good, made, 0).astype(numbers.dtype), values.type, mask=~good)


def _year(text: str) -> str | None:
    years = _YEAR.findall(text)
    if compact := _COMPACT_DATE.match(text):
        return compact[1]
    return years[0] if len(years) == 1 else None


def _age(text: str) -> str | None:
    age = _AGE.fullmatch(text)
    return None if age is None else str(int(age[1])) if int(age[1]) <= OLDEST else f"{OLDEST + 1}+"


def _zip3(text: str) -> str | None:
    found = _ZIP.fullmatch(text)
    return None if found is None else "000" if found[1] in RESTRICTED_ZIP3 else found[1]


def _network(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(_ZERO_PADDING.sub("", text) if ":" not in text else text.partition("%")[0])
    except ValueError:  # the answer of ipaddress to "is this an address?"
        return None
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


_ZERO_PADDING = re.compile(r"(?<!\d)0+(?=\d)")


def _bin(text: str, width: float) -> str | None:
    try:
        number = float(text)
    except ValueError:  # the answer of float to "is this a number?"
        return None
    low = math.floor(number / width) * width if math.isfinite(number) else math.inf
    return f"{low:.15g}" if abs(low) < 2**53 else None
