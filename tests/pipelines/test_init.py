"""The first configuration: it loads, says what each setting means, and suggests columns without telling of the data."""

import csv
import dataclasses
import json
import math
import re
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from portcullis.cli.cluster import init
from portcullis.cli.main import _guarded
from portcullis.dataset import DatasetSpec
from portcullis.errors import ConfigError
from portcullis.privacy.settings import CategoryColumn, NoisedColumn
from portcullis.quality.settings import QualitySettings
from portcullis.robustness.settings import RobustnessSettings
from portcullis.training.settings import TrainingSettings
from portcullis_pipelines.config import Deployment, Quality, ReferenceConfig, Thresholds
from portcullis_pipelines.init import WIDTH, configuration, suggest

ROWS = """\
customerName,email,note,age,balance,vip,label
Ann,ann@example.com,"likes, tea",31,10.5,true,no
Bob,bob@example.com,none,44,-3.25,false,yes
"""


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*options):
        capfd.readouterr()
        code = _guarded(partial(init, [*map(str, options)], prog_name="portcullis init"))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


def commented(lines):
    """Return the suggestions as a person would move them into the section `dataset`."""
    return yaml.safe_load("\n".join(it for it in lines if it.startswith("  ")))


def test_it_loads_as_the_defaults(call, tmp_path):
    code, out, err = call()
    assert (code, err) == (0, "") and out.startswith("wrote portcullis.yaml;")
    loaded = ReferenceConfig.load(tmp_path / "portcullis.yaml")
    minimal = ReferenceConfig.from_dict({"dataset": loaded.dataset.to_dict()})
    assert loaded == minimal


def test_every_section_and_setting_is_there():
    written = yaml.safe_load(configuration())
    with pytest.raises(ConfigError) as caught:
        ReferenceConfig.from_dict({"nothing": 1})
    known = str(caught.value).partition("it knows ")[2].split(", ")
    assert sorted([*written, "dp_training"]) == sorted(known)  # one of `training` and `dp_training`
    assert "\n# dp_training:\n#   target_epsilon: " in configuration()
    for section, kind in {
        "screening": QualitySettings,
        "quality": Quality,
        "training": TrainingSettings,
        "robustness": RobustnessSettings,
        "thresholds": Thresholds,
        "deployment": Deployment,
    }.items():
        assert list(written[section]) == [it.name for it in dataclasses.fields(kind)]
    assert written["dataset"].keys() == DatasetSpec.from_dict(written["dataset"]).to_dict().keys()


def test_every_setting_says_what_it_means():
    lines = configuration().splitlines()
    for kind in (QualitySettings, Quality, TrainingSettings, RobustnessSettings, Thresholds, Deployment):
        for field in dataclasses.fields(kind):
            at = [index for index, line in enumerate(lines) if line.startswith(f"  {field.name}: ")]
            assert at and all(lines[index - 1].startswith("  # ") for index in at), field.name
    assert all(
        f"#     {field.name}: " in configuration()
        for field in (*dataclasses.fields(NoisedColumn), *dataclasses.fields(CategoryColumn))
    )
    assert max(map(len, lines)) <= WIDTH + 2


def test_the_example_of_a_noised_column_is_sound():
    text = configuration()
    example = text.replace("  columns: {}\n", "")
    for key in ("others", "rows", "contribution"):
        example = re.sub(rf"^  {key}: .*\n", "", example, flags=re.MULTILINE)
        example = example.replace(f"  # {key}: ", f"  {key}: ")
    example = example.replace("  budget: 0.0\n", "  budget: 2\n").replace("  # columns:\n", "  columns:\n")
    example = example.replace("  #   age:", "    age:").replace("  #   city:", "    city:")
    privacy = ReferenceConfig.from_dict(yaml.safe_load(example)).privacy
    assert privacy.columns["age"].steps == 73 and len(privacy.columns["city"].categories) == 3
    assert (privacy.others["ids"], privacy.rows) == ("drop", "shuffle")


def test_columns_are_suggested_by_name_and_type(rows):
    lines = suggest(rows)
    assert commented(lines) == {
        "label": {"column": "label", "classes": ["no", "yes"]},
        "features": {"columns": ["age", "balance"], "shape": [2]},
        "sensitive": {"customerName": "token", "email": "token", "note": "scan"},
    }
    assert 'kept as they are: ["vip"]' in lines[-1]


def test_a_suggestion_is_a_configuration_once_bounds_are_added(rows):
    document = {"name": "mine", **commented(suggest(rows))}
    document["features"] |= {"low": -math.pow(10, 6), "high": 1e6}
    assert DatasetSpec.from_dict(document).resolve(ROWS.splitlines()[0].split(",")).features.shape == (2,)


def test_nothing_of_the_rows_is_told(call, rows, tmp_path):
    code, out, err = call("--data", rows)
    text = (tmp_path / "portcullis.yaml").read_text()
    assert code == 0 and "customerName" in text
    for value in ("Ann", "ann@", "tea", "31", "44", "10.5", "3.25"):
        assert value not in out + err and value not in text.replace("1803.", "")


def test_with_data_it_still_loads_as_the_defaults(call, rows, tmp_path):
    call("--data", rows)
    assert ReferenceConfig.load(tmp_path / "portcullis.yaml") == ReferenceConfig.from_dict(
        yaml.safe_load(configuration())
    )


def test_json_lines_suggest_what_csv_does(rows, tmp_path):
    columns, *lines = list(csv.reader(rows.read_text().splitlines()))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(dict(zip(columns, line, strict=True))) + "\n" for line in lines))
    assert commented(suggest(path)) == commented(suggest(rows))


def test_parquet_is_read_too(tmp_path):
    path = tmp_path / "rows.parquet"
    table = {"y": [0, 1, 10], "v": [0.5, 1.5, 2.5], "on": [True, False, True], "text": ["a", "b", "c"]}
    pq.write_table(pa.table(table), path)
    assert commented(suggest(path)) == {
        "label": {"column": "y", "classes": ["0", "1", "10"]},
        "features": {"columns": ["v"], "shape": [1]},
        "sensitive": {"text": "scan"},
    }


@pytest.mark.parametrize("column", ["label", "LABEL", "Class", "y"], ids=str)
def test_a_label_has_few_values_and_a_name_that_says_so(tmp_path, column):
    path = tmp_path / "rows.csv"
    path.write_text(f"{column},v\n" + "".join(f"{index % 3},{index}\n" for index in range(9)))
    assert commented(suggest(path))["label"] == {"column": column, "classes": ["0", "1", "2"]}
    path.write_text(f"{column},v\n" + "".join(f"{index},{index}\n" for index in range(99)))
    assert "no column has few values" in "\n".join(suggest(path))


def test_whatever_a_column_or_a_class_is_called_stays_in_its_comment(call, tmp_path):
    path = tmp_path / "a\nb: c.csv"
    path.write_text('"thresholds: {samples: 1}","}# x\'""",label\n1,2,"a\u2028model: 1"\n3,4,"\u0085b"\n')
    code, _, err = call("--data", path)
    assert code == 0, err
    text = (tmp_path / "portcullis.yaml").read_text()
    assert yaml.safe_load(text) == yaml.safe_load(configuration())
    assert "\u2028" not in text and "\u0085" not in text


def table(path, names):
    path.write_text(",".join(names) + "\n" + ",".join(["1"] * len(names)) + "\n")
    return path


PATTERNS = {
    "with leading zeros": ([f"pixel_{index:03}" for index in range(300)], ["pixel_*"]),
    "of one digit": ([f"v{index}" for index in range(9)], ["v*"]),
    "from another number": (["v7", "v8"], ["v*"]),
    "without leading zeros": ([f"v{index}" for index in range(300)], None),
    "in another order": (["v1", "v0"], None),
    "with another column between": (["v0", "vip", "v1"], None),
    "with a word": (["v_age", "v_size"], None),
    "with a star": (["v*0", "v*1"], None),
    "one column": (["v0"], None),
}


@pytest.mark.parametrize(("names", "pattern"), PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_is_suggested_only_where_it_means_these_columns_in_this_order(tmp_path, names, pattern):
    found = commented(suggest(table(tmp_path / "rows.csv", names)))["features"]
    assert found == {"columns": pattern or names, "shape": [len(names)]}
    if pattern:
        document = {
            "name": "x",
            "label": {"column": "y", "classes": ["a", "b"]},
            "features": found | {"low": 0, "high": 1},
        }
        assert DatasetSpec.from_dict(document).resolve([*names, "y"]).features.columns == tuple(names)


def test_a_pattern_takes_in_no_column_with_an_identifier(tmp_path):
    path = table(tmp_path / "rows.csv", ["v0", "v1", "v_email"])
    path.write_text("v0,v1,v_email\n1,2,a@example.com\n")
    found = commented(suggest(path))
    assert found["features"]["columns"] == ["v0", "v1"] and found["sensitive"] == {"v_email": "token"}


def test_very_many_columns_are_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr("portcullis_pipelines.init.MAX_SHOWN_COLUMNS", 200)
    lines = suggest(table(tmp_path / "rows.csv", [f"v{index}" for index in range(300)]))
    assert commented([it for it in lines if "more columns" not in it])["features"]["shape"] == [300]
    assert "    and 100 more columns, to list likewise" in lines


@pytest.mark.parametrize("column", ["password", "user_secret", "apiKey", "TOKEN", "passwd"])
def test_secrets_are_suggested_to_be_dropped(tmp_path, column):
    path = tmp_path / "rows.csv"
    path.write_text(f"{column},v\n123,1\n456,2\n")
    expected = "token" if column.startswith("user") else "drop"  # a user's something is a user's first
    assert commented(suggest(path))["sensitive"] == {column: expected}


BAD = {
    "another kind": ("rows.txt", b"a,b\n1,2\n", 2, "UsageError"),
    "no rows": ("rows.csv", b"a,b\n", 1, "DataError"),
    "empty": ("rows.csv", b"", 1, "DataError"),
    "malformed": ("rows.csv", b'a,b\n1,"2\n', 1, "DataError"),
    "not UTF-8": ("rows.csv", b"a,b\n1,\xff\n", 1, "DataError"),
    "a repeated column": ("rows.csv", b"a,a\n1,2\n", 1, "DataError"),
    "no Parquet": ("rows.parquet", b"a,b\n1,2\n", 1, "DataError"),
}


@pytest.mark.parametrize(("name", "data", "code", "kind"), BAD.values(), ids=BAD)
def test_data_that_cannot_be_read_leaves_nothing(call, tmp_path, name, data, code, kind):
    (tmp_path / name).write_bytes(data)
    found, out, err = call("--data", name)
    assert (found, out) == (code, "") and err.startswith(f"{kind}: ") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_exists_is_never_overwritten(call, tmp_path, kind):
    path = tmp_path / "portcullis.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.write_text("mine")
    code, _, err = call()
    assert code == 2 and err.startswith("UsageError: portcullis.yaml exists;") and len(list(tmp_path.iterdir())) == 1
    assert kind != "file" or path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_not_there(call):
    code, _, err = call("--output", "nowhere/mine.yaml")
    assert code == 2
    assert err == "UsageError: cannot write nowhere/mine.yaml: No such file or directory; name another --output\n"


def test_the_help_teaches(call):
    assert "portcullis init --data rows.csv" in call("--help")[1]
