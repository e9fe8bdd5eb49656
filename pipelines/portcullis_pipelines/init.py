"""A first configuration for data of one's own: every section with its defaults and what they mean.

The defaults and meanings are read off the dataclasses that read the file again, so they cannot drift apart.
"""

import dataclasses
import inspect
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from portcullis.dataset import read_regular_file
from portcullis.dp_training.settings import AuditSettings, PrivateSettings
from portcullis.errors import DataError, UsageError
from portcullis.ingest.csv_table import read_csv
from portcullis.ingest.jsonl_table import read_jsonl
from portcullis.ledger.settings import LedgerSettings
from portcullis.membership.settings import MembershipSettings
from portcullis.pii.entities import IN_TEXT
from portcullis.privacy.settings import DROP, KEEP, ROLES, SHUFFLE, CategoryColumn, NoisedColumn
from portcullis.quality.settings import QualitySettings
from portcullis.robustness.settings import RobustnessSettings
from portcullis.table import MAX_BYTES, parse_parquet
from portcullis.training.settings import TrainingSettings
from portcullis_pipelines.config import Deployment, Privacy, Quality, ReferenceConfig, Thresholds

MAX_SHOWN_CLASSES = 50
MAX_SHOWN_COLUMNS = 10_000
WIDTH = 118

_HEAD = """\
# What the pipeline is told of your data, and what it demands. Only `dataset` is required; everything below it shows the
# defaults, and a key that is unknown is refused. Numbers are written 0.001, not 1e-3.
#
#   portcullis run --data FILE --config THIS_FILE"""

_DATASET = """\
dataset:
  # 1 to 63 of a-z, 0-9 and hyphen; the policy and your keys are named after it.
  name: my-data
  label:
    # The column to predict, and its values in the order of the model's outputs.
    column: label
    classes: ["no", "yes"]
  features:
    # The numeric columns that the model sees: a list, or one pattern with a '*'.
    columns: ["feature_*"]
    # What the model takes them for: [channels, height, width], or any shape with as many values as columns.
    shape: [2]
    # Every value lies in [low, high]: bounds that you know without looking at the data.
    low: 0
    high: 1
  # Columns with identifiers: token (replace each value), drop (remove the column) or scan (search free text).
  sensitive: {}
  #   email: token
  #   note: scan
  # Columns that are known to be made up.
  synthetic: []
  description: ""
  # Where the data come from, in your words, signed with the rest: terms of use, such as CC-BY-4.0; on what ground
  # persons are in them; whom to ask; until when they may be kept.
  licence: ""
  consent: ""
  contact: ""
  retention: ""
  # How many malformed records may be set aside, sealed and counted; one more refuses the data.
  quarantine_at_most: 0"""

_MASKING = """\
  # A list has every entity become a keyed token. Whole columns of names, addresses, dates, ages and post codes are
  # looked for too once they are named: PERSON_NAME, STREET_ADDRESS, DATE, AGE, POSTCODE.
  # entities: {EMAIL: token, CREDIT_CARD: {star: {keep_last: 4}}, IP_ADDRESS: generalise, AGE: generalise}
  # Of a sensitive column that is a token, more exactly what becomes of its cells.
  # columns: {name: {token: PERSON_NAME}, zip: {generalise: zip3}, birth_date: {generalise: year}}"""

_KEYS = """\
# Keys that a service holds, by role: serving, pipeline, owner or a step's name (docs/keys.md). The others are made
# here.
keys: {}
#   serving: aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID
#   train: vault-transit:vault.example.com:8200/transit/keys/train/1"""

# Words of a column's name, and what is suggested for it.
_WORDS: Mapping[str, frozenset[str]] = {
    "token": frozenset(
        {
            *("email", "mail", "phone", "tel", "mobile", "fax", "ip", "name", "surname", "firstname", "lastname"),
            *("user", "username", "customer", "patient", "person", "ssn", "iban", "card", "pan", "account"),
            *("passport", "license", "licence", "zip", "postcode", "postal"),
        }
    ),
    "drop": frozenset(
        {
            *("address", "street", "city", "birth", "birthday", "birthdate", "dob", "latitude", "longitude"),
            *("password", "passwd", "secret", "key", "token"),
        }
    ),
    "scan": frozenset({"note", "notes", "comment", "comments", "text", "remark", "remarks", "message", "description"}),
}
_LABELS = ("label", "target", "class", "y", "outcome", "digit", "category")
_NUMBER = r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$"


def configuration(suggestions: Sequence[str] = ()) -> str:
    """Return a configuration file that loads, with comments.

    Args:
        suggestions: Lines to put, as comments, above the description of the data.
    """
    defaults = ReferenceConfig.from_dict({"dataset": yaml.safe_load(_DATASET)["dataset"]})
    column = NoisedColumn(low=18, high=90, epsilon=1, steps=73)
    categories = CategoryColumn(("Paris", "Rome", "elsewhere"), epsilon=1, other="elsewhere")
    parts = [
        _HEAD,
        "\n".join(f"# {line}".rstrip() for line in suggestions),
        _DATASET,
        _section(
            "masking",
            "Identifiers that are masked wherever they stand, and that may be left nowhere.",
            {"entities": [entity.value for entity in IN_TEXT], "columns": {}, "detection": defaults.masking.detection},
        )
        + f"\n{_MASKING}",
        _of("screening", "How the data are screened for poison.", defaults.screening, QualitySettings),
        _of("quality", "What the screening may find.", defaults.quality, Quality),
        _section(
            "split", "Which rows the model is tested with.", {"test_fraction": defaults.test_fraction}, ReferenceConfig
        ),
        _section(
            "model",
            "The model: an installed architecture, and its options, name to number.",
            {"architecture": defaults.architecture, "options": dict(defaults.options)},
        ),
        _of("training", "How the model is trained.", defaults.training, TrainingSettings)
        + "\n# In place of `training`, to learn under differential privacy (DP-SGD); its audit follows."
        + "\n# dp_training:"
        + "".join(f"\n#   {name}: {it}" for name, it in dataclasses.asdict(PrivateSettings()).items())
        + "".join(f"\n{line}" for line in _meaning(PrivateSettings, indent="#   ")),
        _of("audit", "How thoroughly a private trainer is audited.", defaults.audit, AuditSettings),
        _of("membership", "Membership inference and inversion.", defaults.membership, MembershipSettings),
        _of("robustness", "How the gates attack the model.", defaults.robustness, RobustnessSettings),
        _of("thresholds", "What it must withstand.", defaults.thresholds, Thresholds),
        _section(
            "privacy",
            "Columns of the training rows that get noise. What gets none is declared too, or the step refuses.",
            defaults.privacy.to_dict(),
            Privacy,
        )
        + "\n  # columns:"
        + f"\n  #   age: {_flow(column.to_dict())}"
        + "".join(f"\n{line}" for line in _meaning(NoisedColumn, indent="  #     "))
        + f"\n  #   city: {_flow(categories.to_dict())}"
        + "".join(f"\n{line}" for line in _meaning(CategoryColumn, indent="  #     "))
        + f"\n  # others: {_flow({role: KEEP if role in ('features', 'label') else DROP for role in ROLES})}"
        + f"\n  # rows: {SHUFFLE}",
        "# The privacy budget of the data set over all runs; when empty, a single run's privacy.budget."
        "\nledger: {}"
        f"\n  # dataset: {defaults.dataset.name}"
        "\n  # epsilon: 12"
        + "".join(f"\n  # {field.name}: {field.default}" for field in dataclasses.fields(LedgerSettings)[2:])
        + "".join(f"\n{line}" for line in _meaning(LedgerSettings, indent="  # ")),
        _section(
            "watermark", "Whose mark the model carries; the data set's name when empty.", {"owner": defaults.owner}
        ),
        _of("deployment", "Where an admitted model is deployed.", defaults.deployment, Deployment),
        _KEYS,
        f"# Over how many shards the data are read and masked; 1 for the whole at once.\nshards: {defaults.shards}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def suggest(path: Path) -> list[str]:
    """Look at a table and suggest how to describe it, by the names and types of its columns.

    Args:
        path: A CSV, JSON Lines or Parquet file.

    Returns:
        Lines of text. They hold names of columns and, of a column that looks like the label, its values; no other
        value, and no bounds: those that are read off the data would tell of it.

    Raises:
        UsageError: Another kind of file.
        DataError: It cannot be read, as `ingest` would say.
    """
    table = _table(path)
    names = table.column_names
    sensitive = {name: treatment for name in names if (treatment := _treatment(name, table[name]))}
    label = _label(table, [name for name in names if name not in sensitive])
    features = [name for name in names if name not in sensitive and name != label and _is_number(table[name])]
    other = [name for name in names if name not in sensitive and name not in features and name != label]
    lines = [
        f"Suggested by the names and types of the columns of {_flow(path.name)}. Check each, then move it below:",
        "",
    ]
    if label:
        found = pc.unique(table[label].cast(pa.string())).to_pylist()
        whole = all(re.fullmatch("[0-9]+", it) for it in found)
        classes = sorted(found, key=(lambda it: (len(it), it)) if whole else None)
        lines += ["  label:", f"    column: {_flow(label)}", f"    classes: {_flow(classes)}"]
    else:
        lines.append("  label: no column has few values and a name that says so")
    if features:
        columns = _pattern(features, names) or features[:MAX_SHOWN_COLUMNS]
        lines += ["  features:", f"    columns: {_flow(columns)}", f"    shape: [{len(features)}]"]
        if 1 < len(columns) < len(features):
            lines.append(f"    and {len(features) - len(columns)} more columns, to list likewise")
    if sensitive:
        lines += ["  sensitive:", *(f"    {_flow(name)}: {treatment}" for name, treatment in sensitive.items())]
    if other:
        lines += ["", f"Not used by the model, and kept as they are: {_flow(other[:MAX_SHOWN_COLUMNS])}"]
    return lines


def _table(path: Path) -> pa.Table:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".ndjson", ".parquet"):
        raise UsageError(f"{path} is not a .csv, .jsonl, .ndjson or .parquet file")
    data = read_regular_file(path, limit=MAX_BYTES)
    try:
        if suffix == ".parquet":
            return parse_parquet(data, path.name)
        read = read_csv if suffix == ".csv" else read_jsonl
        return pa.concat_tables([block.table for block in read(io.BytesIO(data))])
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _treatment(name: str, column: pa.ChunkedArray) -> str:
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    found = [treatment for treatment, hints in _WORDS.items() if words & hints]
    # Free text is scanned; a number that is called a note is none.
    return next((it for it in found if it != "scan" or not _is_number(column)), "")


def _label(table: pa.Table, names: Sequence[str]) -> str:
    for wanted in _LABELS:
        for name in names:
            column = table[name]
            fits = name.lower() == wanted and (pa.types.is_string(column.type) or pa.types.is_integer(column.type))
            if fits and not column.null_count and 2 <= len(pc.unique(column)) <= MAX_SHOWN_CLASSES:
                return name
    return ""


def _pattern(features: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the pattern that stands for these columns in this order, if one does: numbered, with leading zeros."""
    head = features[0].rstrip("0123456789")
    numbers = [name.removeprefix(head) for name in features]
    sorts = all(re.fullmatch("[0-9]+", it) for it in numbers) and len({*map(len, numbers)}) == 1 < len(numbers)
    alone = [name for name in names if name.startswith(head)] == list(features)
    return [f"{head}*"] if sorts and alone and "*" not in head and list(features) == sorted(features) else []


def _is_number(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return False
    if pa.types.is_string(column.type):
        return bool(pc.all(pc.match_substring_regex(column, _NUMBER)).as_py())
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def _of(name: str, title: str, value: Any, kind: type) -> str:
    return _section(name, title, dataclasses.asdict(value), kind)


def _section(name: str, title: str, values: Mapping[str, Any], kind: type | None = None) -> str:
    lines = [f"# {title}", f"{name}:"]
    meanings = _attributes(kind) if kind else {}
    for key, value in values.items():
        lines += _comment(meanings[key], "  # ") if key in meanings else []
        lines += _setting(key, value)
    return "\n".join(lines)


def _setting(key: str, value: Any) -> list[str]:
    line = f"{key}: {_flow(value)}"
    if not isinstance(value, list) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        return [f"  {line}"]
    first, *others = _comment(line, "    ")
    return [first[2:], *others]


def _meaning(kind: type, *, indent: str) -> Iterator[str]:
    for key, text in _attributes(kind).items():
        yield from _comment(f"{key}: {text}", indent)


def _attributes(kind: type) -> dict[str, str]:
    """Return what a dataclass's docstring says of each of its fields."""
    section = re.search(r"^Attributes:\n((?:    .*\n?)+)", inspect.getdoc(kind) or "", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _comment(text: str, indent: str) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(indent) + len(line) + 1 + len(word) > WIDTH:
            lines.append(indent + line)
            line = ""
        line = f"{line} {word}".lstrip()
    return [*lines, indent + line]


def _flow(value: Any) -> str:
    # JSON is YAML on one line; whatever a column or a class is called, it can neither end the line nor colour it.
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, whole or not at all.

    Raises:
        UsageError: Something is there already, or the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            whole = Path(folder) / path.name
            whole.write_text(text, encoding="utf-8")
            path.hardlink_to(whole)  # unlike a rename, this replaces nothing
    except FileExistsError as error:
        raise UsageError(f"{path} exists; name another --output, or move it away") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another --output") from error
