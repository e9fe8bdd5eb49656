"""Data sets: their description, their directory, and what a model sees of them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portcullis.dataset import (
    PROVENANCE,
    Dataset,
    DatasetSpec,
    Features,
    Label,
    features_and_labels,
    read_dataset,
    read_regular_file,
    write_dataset,
)
from portcullis.digest import canonical_json, tree_digest
from portcullis.errors import ConfigError, DataError

YAML = """
name: two-pixels
label: {column: digit, classes: ["0", "1"]}
features: {columns: [pixel_*], shape: [1, 1, 2], low: 0, high: 16}
sensitive: {zip: token, note: scan, ssn: drop}
description: Two pixels.
synthetic: [zip]
"""
TABLE = pa.table(
    {
        "pixel_1": [1.5, 16.0, 0.0],
        "pixel_0": [0, 16, 8],
        "zip": ["02139", None, "10001"],
        "note": ["", "x", None],
        "ssn": ["1", "2", "3"],
        "digit": ["1", "0", "1"],
    }
)
SPEC = DatasetSpec.from_yaml(YAML)
RESOLVED = SPEC.resolve(TABLE.column_names)


def test_a_description_is_parsed_and_resolved() -> None:
    assert SPEC.features == Features(("pixel_*",), (1, 1, 2), 0.0, 16.0)
    assert not SPEC.features.resolved
    assert RESOLVED.features.columns == ("pixel_0", "pixel_1")
    assert RESOLVED.label == Label("digit", ("0", "1"))
    assert RESOLVED.sensitive == {"zip": "token", "note": "scan", "ssn": "drop"}
    assert RESOLVED.synthetic == ("zip",)
    assert RESOLVED.resolve(TABLE.column_names) == RESOLVED


def test_what_the_user_says_of_the_data_stays_with_them(tmp_path: Path) -> None:
    said = {
        "licence": "CC-BY-4.0",
        "consent": "§ 6 (1) a\nasked in 2025",
        "contact": "dpo@example.com",
        "retention": "2030",
    }
    assert set(said) == set(PROVENANCE)
    assert [getattr(SPEC, name) for name in PROVENANCE] == [""] * 4
    spec = DatasetSpec.from_dict({**SPEC.to_dict(), **said})
    write_dataset(tmp_path / "set", TABLE, spec)
    read = read_dataset(tmp_path / "set").spec
    assert {name: getattr(read, name) for name in PROVENANCE} == said


def test_to_dict_and_from_dict_are_inverse() -> None:
    for spec in (SPEC, RESOLVED):
        assert DatasetSpec.from_dict(spec.to_dict()) == spec
        assert canonical_json(DatasetSpec.from_dict(spec.to_dict()).to_dict()) == canonical_json(spec.to_dict())


BAD_YAML = {
    "empty": ("", "mapping"),
    "not yaml": ("{", "not valid YAML"),
    "a list": ("[1]", "mapping"),
    "repeated key": (YAML + "name: other\n", "repeated"),
    "alias": (YAML.replace("Two pixels.", "&a x") + "more: *a\n", "alias"),
    "python tag": (YAML.replace("Two pixels.", "!!python/name:os.system"), "not valid YAML"),
    "lone surrogate": (YAML.replace("Two pixels.", "\ud800"), "not valid YAML"),
    "too large": ("#" * (1 << 20) + YAML, "exceeds"),
    "too deep": ("a: " + "[" * 5000, "not valid YAML"),
    "unknown key": (YAML + "lable: x\n", "unknown key 'lable'; the nearest is 'label'"),
    "unknown inner key": (YAML.replace("classes", "clases"), "unknown key 'clases'; the nearest is 'classes'"),
    "missing key": (YAML.replace("name: two-pixels", ""), "lacks the key 'name'"),
    "name not text": (YAML.replace("two-pixels", "7"), "name must be text"),
    "bad name": (YAML.replace("two-pixels", "Two_Pixels"), "name must be"),
    "name too long": (YAML.replace("two-pixels", "x" * 64), "name must be"),
    "classes not quoted": (YAML.replace('["0", "1"]', "[0, 1]"), "label.classes must be text; put it in quotes"),
    "one class": (YAML.replace('["0", "1"]', '["0"]'), "2 to 1000 different"),
    "class repeated": (YAML.replace('["0", "1"]', '["0", "0"]'), "2 to 1000 different"),
    "class empty": (YAML.replace('["0", "1"]', '["0", ""]'), "printable"),
    "label a list": (YAML.replace('{column: digit, classes: ["0", "1"]}', "[digit]"), "label must be a mapping"),
    "columns a string": (YAML.replace("[pixel_*]", "pixel_*"), "must be a list"),
    "no column": (YAML.replace("[pixel_*]", "[]"), "1 to 10000"),
    "column repeated": (YAML.replace("[pixel_*]", "[a, a]"), "different"),
    "two globs": (YAML.replace("[pixel_*]", "['a*', 'b*']"), "only entry"),
    "glob with two stars": (YAML.replace("[pixel_*]", "['a*b*']"), "one '\\*'"),
    "shape does not fit": (YAML.replace("[pixel_*]", "[a, b, c]"), "has 2 values, but there are 3"),
    "shape empty": (YAML.replace("[1, 1, 2]", "[]"), "positive integers"),
    "shape zero": (YAML.replace("[1, 1, 2]", "[0, 2]"), "positive integers"),
    "shape of booleans": (YAML.replace("[1, 1, 2]", "[true, 2]"), "positive integers"),
    "low is not below high": (YAML.replace("low: 0", "low: 16"), "less than"),
    "low is NaN": (YAML.replace("low: 0", "low: .nan"), "finite"),
    "high is infinite": (YAML.replace("high: 16", "high: .inf"), "finite"),
    "high is beyond 2**53": (YAML.replace("high: 16", "high: 9007199254740994"), "2\\*\\*53"),
    "low is a boolean": (YAML.replace("low: 0", "low: true"), "finite number"),
    "low is text": (YAML.replace("low: 0", "low: '0'"), "finite number"),
    "unknown treatment": (YAML.replace("zip: token", "zip: mask"), "one of token, drop, scan"),
    "sensitive a list": (YAML.replace("{zip: token, note: scan, ssn: drop}", "[zip]"), "must map"),
    "sensitive label": (YAML.replace("zip: token", "digit: token"), "'digit' has two roles"),
    "sensitive feature": (YAML.replace("[pixel_*]", "[zip, b]"), "'zip' has two roles"),
    "label a feature": (YAML.replace("[pixel_*]", "[digit, b]"), "'digit' has two roles"),
    "synthetic repeated": (YAML.replace("[zip]", "[zip, zip]"), "twice"),
    "description too long": (YAML.replace("Two pixels.", "x" * 5000), "description"),
    **{f"{name} too long": (f"{YAML}{name}: {'x' * 4097}\n", f"{name} must be") for name in PROVENANCE},
    **{f"{name} unprintable": (f'{YAML}{name}: "a\\x1b[31m"\n', f"{name} must be") for name in PROVENANCE},
    **{f"{name} not text": (f"{YAML}{name}: 2026\n", f"{name} must be text") for name in PROVENANCE},
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_bad_description_is_refused(name: str) -> None:
    text, message = BAD_YAML[name]
    with pytest.raises(ConfigError, match=message):
        DatasetSpec.from_yaml(text)


HEADER = ["pixel_0", "pixel_1", "zip", "note", "ssn", "digit"]
BAD_HEADERS = {
    "no label": ([*HEADER[:-1], "digits"], DataError, "no column 'digit'; the nearest is 'digits'"),
    "no feature": (HEADER[2:], DataError, "no column matches 'pixel_\\*'"),
    "too few features": (HEADER[1:], ConfigError, "has 2 values, but there are 1"),
    "no sensitive column": ([name for name in HEADER if name != "zip"], DataError, "no column 'zip'"),
    "no column to drop": ([name for name in HEADER if name != "ssn"], DataError, "no column 'ssn'"),
    "numbers sort badly": ([*HEADER[1:], "pixel_10", "pixel_2"], ConfigError, "pad with zeros"),
    "star in a name": ([*HEADER[1:], "pixel_*"], DataError, "rename"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_header_that_does_not_fit_is_refused(name: str) -> None:
    header, error, message = BAD_HEADERS[name]
    with pytest.raises(error, match=message):
        SPEC.resolve(header)


def test_a_glob_that_takes_the_label_is_refused() -> None:
    spec = DatasetSpec("x", Label("b", ("0", "1")), Features(("*",), (2,), 0, 1))
    with pytest.raises(ConfigError, match="two roles"):
        spec.resolve(["a", "b"])


def test_a_data_set_is_written_and_read_back(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", TABLE, SPEC)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["data.parquet", "dataset.json"]
    dataset = read_dataset(tmp_path / "set")
    assert dataset.spec == RESOLVED
    assert dataset.table.equals(TABLE)


def test_the_same_table_gives_the_same_bytes_however_it_is_chunked(tmp_path: Path) -> None:
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]).replace_schema_metadata({"pandas": "{}"})
    padded = pa.concat_tables([TABLE, TABLE]).combine_chunks().slice(3)
    digests = set()
    for number, table in enumerate((TABLE, chunked, padded)):
        write_dataset(tmp_path / str(number), table, SPEC)
        digests.add(tree_digest(tmp_path / str(number)))
    assert len(digests) == 1


def test_only_columns_to_drop_may_be_gone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", TABLE.drop_columns(["ssn"]), RESOLVED)
    assert "ssn" not in read_dataset(tmp_path / "set").table.column_names
    with pytest.raises(DataError, match="no column 'zip'"):
        write_dataset(tmp_path / "other", TABLE.drop_columns(["zip"]), RESOLVED)
    assert not (tmp_path / "other").exists()


def test_an_empty_table_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 rows"):
        write_dataset(tmp_path / "set", TABLE.slice(0, 0), SPEC)


def edit_spec(directory: Path, **changes: Any) -> None:
    value = {**RESOLVED.to_dict(), **changes}
    (directory / "dataset.json").write_bytes(
        canonical_json({key: item for key, item in value.items() if item is not None})
    )


def replace_by_link(directory: Path) -> None:
    (directory / "data.parquet").rename(directory.parent / "elsewhere")
    (directory / "data.parquet").symlink_to(directory.parent / "elsewhere")


def replace_by_fifo(directory: Path) -> None:
    (directory / "dataset.json").unlink()
    os.mkfifo(directory / "dataset.json")


BAD_DIRECTORIES = {
    "extra file": lambda d: (d / "extra").touch(),
    "hidden file": lambda d: (d / ".hidden").touch(),
    "no table": lambda d: (d / "data.parquet").unlink(),
    "no description": lambda d: (d / "dataset.json").unlink(),
    "a link": replace_by_link,
    "a fifo": replace_by_fifo,
    "empty table file": lambda d: (d / "data.parquet").write_bytes(b""),
    "table without rows": lambda d: pq.write_table(TABLE.slice(0, 0), d / "data.parquet"),
    "table lacks a column": lambda d: pq.write_table(TABLE.drop_columns(["zip"]), d / "data.parquet"),
    "description not JSON": lambda d: (d / "dataset.json").write_bytes(b"{"),
    "description not canonical": lambda d: (d / "dataset.json").write_bytes(
        canonical_json(RESOLVED.to_dict()).replace(b",", b", ", 1)
    ),
    "description a list": lambda d: (d / "dataset.json").write_bytes(b"[]"),
    "unknown key": lambda d: edit_spec(d, more=1),
    "missing key": lambda d: edit_spec(d, synthetic=None),
    "a glob": lambda d: edit_spec(d, features=SPEC.features.__dict__ | {"columns": ["pixel_*"], "shape": [2]}),
    "a column the table lacks": lambda d: edit_spec(d, synthetic=["other"]),
    "a shape that does not fit": lambda d: edit_spec(d, features={**RESOLVED.to_dict()["features"], "shape": [3]}),
}


@pytest.mark.parametrize("name", BAD_DIRECTORIES)
def test_a_malformed_directory_is_refused(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "set"
    write_dataset(directory, TABLE, SPEC)
    BAD_DIRECTORIES[name](directory)
    with pytest.raises(DataError):
        read_dataset(directory)


def test_a_missing_directory_a_file_and_a_link_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", TABLE, SPEC)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "file").touch()
    for name in ("missing", "link", "file"):
        with pytest.raises(DataError, match="not a directory"):
            read_dataset(tmp_path / name)


def test_a_regular_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(DataError, match="larger"):
        read_regular_file(tmp_path / "file", limit=4)
    with pytest.raises(DataError, match="cannot read"):
        read_regular_file(tmp_path, limit=5)
    with pytest.raises(DataError, match="cannot read"):
        read_regular_file(tmp_path / "missing", limit=5)


def test_features_are_float32_in_the_order_of_the_description() -> None:
    features, labels = features_and_labels(Dataset(TABLE, RESOLVED))
    assert features.dtype == np.float32
    assert features.tolist() == [[0.0, 1.5], [16.0, 16.0], [8.0, 0.0]]
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 0, 1]


def test_integer_labels_match_classes_by_their_decimal_spelling() -> None:
    table = TABLE.set_column(5, "digit", pa.array([1, 0, 1]))
    assert features_and_labels(Dataset(table, RESOLVED))[1].tolist() == [1, 0, 1]


BAD_CELLS = {
    "null feature": ("pixel_0", pa.array([1, None, 2]), "1 empty"),
    "NaN": ("pixel_0", pa.array([1.0, float("nan"), 2.0]), "row 2: not in"),
    "infinite": ("pixel_0", pa.array([1.0, 2.0, float("inf")]), "row 3: not in"),
    "below": ("pixel_0", pa.array([-1, 0, 0]), "row 1: not in \\[0, 16\\]"),
    "just above": ("pixel_0", pa.array([0, 0, 16.000000000000004]), "row 3: not in"),
    "text feature": ("pixel_0", pa.array(["1", "2", "3"]), "not numeric"),
    "boolean feature": ("pixel_0", pa.array([True, False, True]), "not numeric"),
    "null label": ("digit", pa.array(["1", None, "0"]), "row 2: not one of the 2 classes"),
    "unknown label": ("digit", pa.array(["1", "0", "2"]), "row 3: not one of the 2 classes"),
    "label with a blank": ("digit", pa.array([" 1", "0", "1"]), "row 1"),
    "float label": ("digit", pa.array([1.0, 0.0, 1.0]), "not text or integers"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_a_bad_cell_is_refused(name: str) -> None:
    column, values, message = BAD_CELLS[name]
    table = TABLE.set_column(TABLE.column_names.index(column), column, values)
    with pytest.raises(DataError, match=message):
        features_and_labels(Dataset(table, RESOLVED))


def test_a_missing_or_repeated_feature_column_is_refused() -> None:
    with pytest.raises(DataError, match="exactly one column 'pixel_0'"):
        features_and_labels(Dataset(TABLE.drop_columns(["pixel_0"]), RESOLVED))
    with pytest.raises(DataError, match="exactly one column 'pixel_0'"):
        features_and_labels(Dataset(TABLE.append_column("pixel_0", TABLE["pixel_0"]), RESOLVED))
