"""Plausible identifiers that nobody has, each picked by a keyed function of what it stands for.

Where a standard reserves a range for examples, they are from there, and elsewhere from one that is never given out: so
a reader, the scan and the residual gate can tell them from real ones.

| entity | made up | reserved by |
|---|---|---|
| `EMAIL` | `robin.sample.bcdfghjk@example.com` | RFC 2606 |
| `PHONE` | `212-555-0147` | NANP: 555-0100 to 555-0199 |
| `US_SSN`, `US_ITIN` | `912-34-5678` | SSA issues no 9…, the IRS no group below 50 |
| `CREDIT_CARD` | `9999 1234 5678 9012` | ISO/IEC 7812: no issuer has 9999 |
| `IBAN` | `XX00 1234 5678 9012 3456` | ISO 3166: XX is nobody's; check digits are never 00 |
| `IP_ADDRESS` | `203.0.113.7`, `2001:db8::…` | RFC 5737, RFC 3849 |
| `MAC_ADDRESS` | `00:00:5e:00:53:07` | RFC 7042 |
| `PERSON_NAME` | `Robin Sample` | |
| `STREET_ADDRESS` | `12 Example Street` | |

Some of these ranges are small, so two identifiers may have one made-up spelling: join by tokens, not by these.
"""

import ipaddress
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from portcullis.pii.entities import Entity

_GIVEN = ("Alex", "Casey", "Jamie", "Jordan", "Kim", "Lee", "Morgan", "Noel", "Pat", "Quinn", "Robin", "Sam", "Taylor")
_FAMILY = ("Dummy", "Example", "Fictive", "Madeup", "Placeholder", "Sample", "Specimen")
_STREETS = ("Dummy", "Example", "Fictive", "Placeholder", "Sample", "Specimen")
_KINDS_OF_STREET = ("Avenue", "Lane", "Road", "Street")
_LETTERS = "bcdfghjklmnpqrst"
_AREAS = tuple(f"{area}" for area in range(201, 990) if area % 100 != 11)


class _Choice:
    """Picks from one code of 128 bits, a piece at a time."""

    def __init__(self, code: bytes) -> None:
        self._left = int.from_bytes(code, "big")

    def below(self, size: int) -> int:
        self._left, chosen = divmod(self._left, size)
        return chosen

    def of(self, options: tuple[str, ...]) -> str:
        return options[self.below(len(options))]

    def digits(self, size: int) -> str:
        return f"{self.below(10**size):0{size}}"

    def letters(self, size: int) -> str:
        return "".join(_LETTERS[self.below(16)] for _ in range(size))


def _mail(pick: _Choice, _: str) -> str:
    return f"{pick.of(_GIVEN)}.{pick.of(_FAMILY)}.".lower() + f"{pick.letters(8)}@example.com"


def _phone(pick: _Choice, _: str) -> str:
    return f"{pick.of(_AREAS)}-555-01{pick.digits(2)}"


def _nine(pick: _Choice, _: str) -> str:
    return f"9{pick.digits(2)}-{1 + pick.below(49):02}-{1 + pick.below(9999):04}"


def _card(pick: _Choice, _: str) -> str:
    return f"9999 {pick.digits(4)} {pick.digits(4)} {pick.digits(4)}"


def _iban(pick: _Choice, _: str) -> str:
    return f"XX00 {pick.digits(4)} {pick.digits(4)} {pick.digits(4)} {pick.digits(4)}"


def _address(pick: _Choice, text: str) -> str:
    if ":" in text:
        return str(ipaddress.IPv6Address((0x20010DB8 << 96) | pick.below(1 << 96)))
    return f"{pick.of(('192.0.2', '198.51.100', '203.0.113'))}.{pick.below(256)}"


def _mac(pick: _Choice, _: str) -> str:
    return f"00:00:5e:00:53:{pick.below(256):02x}"


def _name(pick: _Choice, _: str) -> str:
    return f"{pick.of(_GIVEN)} {pick.of(_FAMILY)}"


def _street(pick: _Choice, _: str) -> str:
    return f"{1 + pick.below(99)} {pick.of(_STREETS)} {pick.of(_KINDS_OF_STREET)}"


_MAKERS: Mapping[Entity, Callable[[_Choice, str], str]] = {
    Entity.EMAIL: _mail,
    Entity.PHONE: _phone,
    Entity.US_SSN: _nine,
    Entity.US_ITIN: _nine,
    Entity.CREDIT_CARD: _card,
    Entity.IBAN: _iban,
    Entity.IP_ADDRESS: _address,
    Entity.MAC_ADDRESS: _mac,
    Entity.PERSON_NAME: _name,
    Entity.STREET_ADDRESS: _street,
}


def _any(options: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(options)})"


_FOUR = r"\d{4}"
# What each maker can make, and nothing else.
SPELLINGS: Mapping[Entity, str] = {
    Entity.EMAIL: f"(?i:{_any(_GIVEN)}\\.{_any(_FAMILY)})\\.[{_LETTERS}]{{8}}@example\\.com",
    Entity.PHONE: r"[2-9]\d\d-555-01\d\d",
    Entity.US_SSN: r"9\d\d-(?:0[1-9]|[1-4]\d)-\d{4}",
    Entity.US_ITIN: r"9\d\d-(?:0[1-9]|[1-4]\d)-\d{4}",
    Entity.CREDIT_CARD: f"9999 {_FOUR} {_FOUR} {_FOUR}",
    Entity.IBAN: f"XX00 {_FOUR} {_FOUR} {_FOUR} {_FOUR}",
    Entity.IP_ADDRESS: r"(?:(?:192\.0\.2|198\.51\.100|203\.0\.113)\.\d{1,3}|2001:db8:[0-9a-f:]{1,29})",
    Entity.MAC_ADDRESS: r"00:00:5e:00:53:[0-9a-f]{2}",
    Entity.PERSON_NAME: f"{_any(_GIVEN)} {_any(_FAMILY)}",
    Entity.STREET_ADDRESS: rf"[1-9]\d? {_any(_STREETS)} {_any(_KINDS_OF_STREET)}",
}


def synthetic(entity: Entity, codes: npt.NDArray[np.uint8], texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return a made-up identifier for each text.

    Args:
        entity: What to make up; a key of `SPELLINGS`.
        codes: What each is picked by, shape (n, 16): the same code and kind of address give the same identifier.
        texts: What they stand for, shape (n,).
    """
    make = _MAKERS[entity]
    pairs = zip(codes, texts.to_pylist(), strict=True)
    return pa.array([make(_Choice(code.tobytes()), text) for code, text in pairs], pa.large_string())
