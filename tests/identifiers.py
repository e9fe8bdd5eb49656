"""Identifiers of every kind in many spellings, as hypothesis strategies."""

import ipaddress
import itertools
import re
import string

from hypothesis import strategies as st

from portcullis.pii.entities import IBAN_LENGTHS, Entity


def numbers(length: int) -> st.SearchStrategy[str]:
    return st.text(string.digits, min_size=length, max_size=length)


def luhn(body: str) -> str:
    doubled = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(body)))
    return body + str(-doubled % 10)


def iban(country: str, body: str) -> str:
    account = body[: IBAN_LENGTHS[country] - 4]
    rest = 98 - int("".join(str(int(letter, 36)) for letter in account + country + "00")) % 97
    return f"{country}{rest:02}{account}"


def grouped(text: str, sizes: tuple[int, ...], gap: str) -> str:
    places = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return gap.join(text[start:end] for start, end in itertools.pairwise(places))


label = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
emails = st.builds(
    "{}{}@{}.{}".format,
    label,
    st.sampled_from(["", ".x", "+tag", "_y", "'z"]),
    label,
    st.sampled_from(["com", "co.uk", "рф"]),
)
cards = st.one_of(
    st.builds(
        lambda body, gap: grouped(luhn("4" + body), (4, 4, 4, 4), gap), numbers(14), st.sampled_from(["", " ", "-"])
    ),
    st.builds(
        lambda body, gap: grouped(luhn("37" + body), (4, 6, 5), gap), numbers(12), st.sampled_from(["", " ", "-"])
    ),
    st.builds(lambda body: luhn("51" + body), numbers(13)),
)
ibans = st.builds(
    lambda country, body, gap: gap.join(re.findall(".{1,4}", iban(country, body))),
    st.sampled_from(sorted(IBAN_LENGTHS)),
    numbers(30),
    st.sampled_from(["", " "]),
)
ssns = st.builds(
    "{:03}{gap}{:02}{gap}{:04}".format,
    st.integers(1, 899).filter(lambda area: area != 666),
    st.integers(1, 99),
    st.integers(1, 9999),
    gap=st.sampled_from(["-", " ", ".", "–", "\u00a0"]),
)
addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(lambda number: str(ipaddress.IPv6Address(number))),
)
phones = st.builds(
    str.format,
    st.sampled_from(["({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "1-{}-{}-{}", "{}{}{}", "{} {} {} x12"]),
    st.integers(200, 999),
    st.integers(200, 999),
    numbers(4),
)
identifiers = st.one_of(
    emails.map(lambda text: (Entity.EMAIL, text)),
    cards.map(lambda text: (Entity.CREDIT_CARD, text)),
    ibans.map(lambda text: (Entity.IBAN, text)),
    ssns.map(lambda text: (Entity.US_SSN, text)),
    addresses.map(lambda text: (Entity.IP_ADDRESS, text)),
    phones.map(lambda text: (Entity.PHONE, text)),
)
