"""The reference data: fixed, real where it says so, and otherwise made up but valid."""

import ipaddress
import re
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.datasets import load_digits

from portcullis.dataset import DatasetSpec, features_and_labels, read_dataset, write_dataset
from portcullis.digest import path_digest, sha256
from portcullis.ingest import cheque_digits
from portcullis.ingest.readers import read_source
from portcullis.table import logical_root

CSV_SHA256 = "9a61889194196d1c5ef7ba119e1c8be0e33e7c04af11eda6247c0d321d03aef0"
LOGICAL_ROOT = "db71deb6f7e192d281b8f026ca53b90ad637d53429f3daf955bc61a6afa2de82"


@pytest.fixture(scope="module")
def source():
    return read_source(cheque_digits.URI, DatasetSpec.from_yaml(cheque_digits.SPEC_YAML.read_text()))


@pytest.fixture(scope="module")
def rows(source):
    return source.table.to_pylist()


def test_the_csv_is_fixed(tmp_path: Path) -> None:
    cheque_digits.write_csv(tmp_path / "digits.csv")
    data = (tmp_path / "digits.csv").read_bytes()
    assert sha256(data) == CSV_SHA256
    assert data == cheque_digits.csv_bytes()
    assert data != cheque_digits.csv_bytes(seed=1)


def test_the_built_in_source_is_that_csv(source, tmp_path: Path) -> None:
    cheque_digits.write_csv(tmp_path / "digits.csv")
    assert source.raw_digest == path_digest(tmp_path / "digits.csv") == CSV_SHA256
    assert logical_root(source.table) == LOGICAL_ROOT
    from_file = read_source(str(tmp_path / "digits.csv"), source.spec)
    assert logical_root(from_file.table) == LOGICAL_ROOT
    assert (source.reader, from_file.reader) == ("builtin", "csv")


def test_it_holds_the_real_images_and_labels(source, tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", source.table, source.spec)
    features, labels = features_and_labels(read_dataset(tmp_path / "set"))
    assert len(labels) == 1797
    digits = load_digits()
    assert np.array_equal(features, digits.data.astype(np.float32))
    assert np.array_equal(labels, digits.target)


def test_the_description_covers_every_synthetic_column(source) -> None:
    assert source.spec.synthetic == cheque_digits.CUSTOMER_COLUMNS
    assert set(source.spec.sensitive) == set(cheque_digits.CUSTOMER_COLUMNS) - {"age", "balance"}
    assert source.spec.features.columns == cheque_digits.PIXEL_COLUMNS


def test_social_security_numbers_have_a_valid_form(rows) -> None:
    for row in rows:
        area, group, serial = re.fullmatch(r"(\d{3})-(\d{2})-(\d{4})", row["ssn"]).groups()
        assert 1 <= int(area) <= 899 and area != "666" and group != "00" and serial != "0000"


def test_card_numbers_satisfy_luhn(rows) -> None:
    for row in rows:
        digits = [int(character) for character in re.sub("[ -]", "", row["card"])]
        assert len(digits) == 16
        assert sum(digit if index % 2 else digit * 2 - 9 * (digit > 4) for index, digit in enumerate(digits)) % 10 == 0


def test_ibans_are_one_modulo_97(rows) -> None:
    lengths = {"DE": 22, "GB": 22, "NL": 18}
    for row in rows:
        iban = row["iban"].replace(" ", "")
        assert len(iban) == lengths[iban[:2]]
        assert int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def test_addresses_and_telephone_numbers_are_reserved_ones(rows) -> None:
    networks = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    for row in rows:
        assert re.fullmatch(r"[a-z]+\.[a-z]+\d{1,2}@example\.(com|net|org)", row["email"])
        assert re.fullmatch(r"\(\d{3}\) 555-01\d\d|\d{3}-555-01\d\d|\+1 \d{3} 555 01\d\d", row["phone"])
        address = ipaddress.ip_address(row["ip"])
        assert any(address in ipaddress.ip_network(network) for network in networks)


def test_zip_codes_keep_their_zeros_and_numbers_are_numbers(source) -> None:
    table = source.table
    assert pc.all(pc.match_substring_regex(table["zip"], "^[0-9]{5}$")).as_py()
    assert pc.any(pc.starts_with(table["zip"], "0")).as_py()
    assert 18 <= pc.min(table["age"]).as_py() <= pc.max(table["age"]).as_py() <= 90
    assert -5_000 <= pc.min(table["balance"]).as_py() <= pc.max(table["balance"]).as_py() < 45_000


@pytest.mark.parametrize("column", ["name", "email", "phone", "ssn", "card", "iban", "ip", "zip"])
def test_notes_hide_every_kind_of_identifier(rows, column: str) -> None:
    hiding = sum(row[column] in row["note"] for row in rows)
    assert 50 < hiding < len(rows) / 2
