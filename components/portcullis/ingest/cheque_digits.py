"""The reference data: real handwritten digits, joined with synthetic customers so that there is something to protect.

The images are the 1,797 of scikit-learn's `load_digits` (Alpaydin and Kaynak, Optical Recognition of Handwritten
Digits, UCI, 1998): 64 integers 0 to 16. The customers are made up, a function of the seed alone: Luhn-valid card
numbers, mod-97-valid IBANs, social security numbers of a valid form, telephone numbers of the fictional 555-01xx
exchange, addresses at example.com, .net and .org (RFC 2606) and from the documentation networks (RFC 5737, RFC 3849).
Some notes hide such values in prose, which is what a masking step has to find.

Only `random.Random.random` is drawn from: its sequence is the one that Python promises to keep for a seed.
"""

import csv
import io
import random
from collections.abc import Sequence
from pathlib import Path

from portcullis.errors import MissingDependencyError
from portcullis.files import write_bytes

URI = "builtin:cheque-digits"
SPEC_YAML = Path(__file__).with_name("cheque-digits.yaml")
SEED = 1998

CUSTOMER_COLUMNS = ("name", "email", "phone", "ssn", "card", "iban", "ip", "zip", "age", "balance", "note")
PIXEL_COLUMNS = tuple(f"pixel_{index:02d}" for index in range(64))

_GIVEN = (
    *("Ana", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "James", "Keiko", "Liam", "Maria"),
    *("Noah", "Olga", "Pedro", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Victor", "Wei", "Yusuf", "Zoë", "José"),
)
_FAMILY = (
    *("Adams", "Baker", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Hughes", "Ivanov", "Jones", "Kim", "Lopez"),
    *("Müller", "Nguyen", "O'Brien", "Patel", "Quist", "Rossi", "Smith", "Tanaka", "Usman", "Vega", "Walker", "Young"),
)
_ASCII = str.maketrans({"ë": "e", "é": "e", "ü": "u", "'": ""})
_AREA_CODES = ("202", "212", "303", "305", "312", "404", "415", "503", "617", "713")
_NOTES = (
    "Cheque cleared without remarks.",
    "Customer asked for a call back after six on {phone}.",
    "Sent the statement to {email}, as {name} asked for.",
    "Replacement for card {card} ordered; old card blocked.",
    'Said: "my number is {ssn}, please check". Identity confirmed.',
    "Salary goes to {iban} from next month.",
    "Two failed logins from {ip}; password reset by mail to {email}.",
    "Signature differs.\nCompared with the card on file ({card}); branch {zip} informed.",
    "Amount corrected by hand, initialled, accepted.",
    "{name} moved; new ZIP code {zip}, phone {phone}. Old phone no longer valid.",
    "Refund: pay {iban}, not the account on the cheque. SSN on file {ssn}.",
    "No. 4417 in the ledger of 12/03; nothing else to report.",
)


def csv_bytes(*, seed: int = SEED) -> bytes:
    """Return the data set as CSV: 1,797 rows; columns of the customer, 64 pixels, `digit`.

    Raises:
        MissingDependencyError: scikit-learn or pandas is not installed.
    """
    try:
        from sklearn.datasets import load_digits

        frame = load_digits(as_frame=True).frame
    except ImportError as error:
        raise MissingDependencyError(
            "the reference data needs scikit-learn and pandas: pip install 'kfp-portcullis[data]'"
        ) from error
    generator = random.Random(seed)  # noqa: S311 -- reproducible made-up data, not secrets
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*CUSTOMER_COLUMNS, *PIXEL_COLUMNS, "digit"))
    for image in frame.to_numpy().astype(int).tolist():
        writer.writerow((*_customer(generator), *image))
    return text.getvalue().encode()


def write_csv(path: Path, *, seed: int = SEED) -> None:
    """Write `csv_bytes` to `path` atomically.

    Raises:
        MissingDependencyError: scikit-learn or pandas is not installed.
    """
    write_bytes(path, csv_bytes(seed=seed))


def _customer(generator: random.Random) -> list[str]:
    given, family = _pick(generator, _GIVEN), _pick(generator, _FAMILY)
    domain = _pick(generator, ("com", "net", "org"))
    fields = {
        "name": f"{given} {family}",
        "email": f"{given}.{family}{_below(generator, 100)}@example.{domain}".lower().translate(_ASCII),
        "phone": _phone(generator),
        "ssn": _ssn(generator),
        "card": _card(generator),
        "iban": _iban(generator),
        "ip": _ip(generator),
        "zip": f"{501 + _below(generator, 99_450):05d}",
    }
    age = 18 + _below(generator, 73)
    balance = _below(generator, 5_000_000) / 100 - 5_000
    note = _pick(generator, _NOTES).format(**fields)
    return [*fields.values(), str(age), f"{balance:.2f}", note]


def _below(generator: random.Random, bound: int) -> int:
    return int(generator.random() * bound)


def _pick(generator: random.Random, options: Sequence[str]) -> str:
    return options[_below(generator, len(options))]


def _digits(generator: random.Random, count: int) -> str:
    return "".join(str(_below(generator, 10)) for _ in range(count))


def _phone(generator: random.Random) -> str:
    area, line = _pick(generator, _AREA_CODES), f"01{_digits(generator, 2)}"
    form = _pick(generator, ("({area}) 555-{line}", "{area}-555-{line}", "+1 {area} 555 {line}"))
    return form.format(area=area, line=line)


def _ssn(generator: random.Random) -> str:
    # Areas 000, 666 and 900 to 999, group 00 and serial 0000 are never issued.
    area = 1 + _below(generator, 898)
    area += area >= 666
    return f"{area:03d}-{1 + _below(generator, 99):02d}-{1 + _below(generator, 9_999):04d}"


def _card(generator: random.Random) -> str:
    body = _pick(generator, ("400000", "510510", "601100")) + _digits(generator, 9)
    number = body + _luhn_digit(body)
    return _pick(generator, ("", " ", "-")).join(number[start : start + 4] for start in range(0, 16, 4))


def _luhn_digit(body: str) -> str:
    """Return the check digit of ISO/IEC 7812-1, annex B, for a number of odd length without it."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in body[::2])
    return str(-(doubled + sum(map(int, body[1::2]))) % 10)


def _iban(generator: random.Random) -> str:
    country, account = _pick(generator, ("DE", "GB", "NL")), ""
    if country == "DE":
        account = _digits(generator, 18)
    elif country == "GB":
        account = "PORT" + _digits(generator, 14)
    else:
        account = "PORT" + _digits(generator, 10)
    # ISO 13616: letters count from A = 10, and the whole, its first four characters moved to the end, is 1 modulo 97.
    remainder = int("".join(str(int(character, 36)) for character in f"{account}{country}00")) % 97
    iban = f"{country}{98 - remainder:02d}{account}"
    return _pick(generator, ("", " ")).join(iban[start : start + 4] for start in range(0, len(iban), 4))


def _ip(generator: random.Random) -> str:
    if _below(generator, 4) == 0:
        return f"2001:db8::{1 + _below(generator, 65_535):x}:{1 + _below(generator, 65_535):x}"
    return f"{_pick(generator, ('192.0.2', '198.51.100', '203.0.113'))}.{1 + _below(generator, 254)}"
