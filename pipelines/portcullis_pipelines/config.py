"""The configuration of the reference pipeline: what a user may choose, with defaults for the reference data.

A configuration file is YAML. Only `dataset` is required; the other sections take the fields of the dataclasses below,
and an unknown key is refused.

    dataset: {name: …, label: {…}, features: {…}, sensitive: {…}}
    masking: {entities: [EMAIL, …]}
    split: {test_fraction: 0.2}
    model: {architecture: digits-cnn, options: {width: 24}}
    training: {method: pgd, epsilon: 0.15, …}
    robustness: {epsilon: 0.1, …}
    thresholds: {robust_accuracy: 0.75, clean_accuracy: 0.9, samples: 100}
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from portcullis.dataset import DatasetSpec
from portcullis.errors import ConfigError, DataError
from portcullis.files import read_bytes
from portcullis.pii.entities import Entity
from portcullis.robustness.settings import RobustnessSettings
from portcullis.strict_yaml import MAX_YAML_BYTES, load_yaml
from portcullis.training.settings import TrainingSettings

MAX_SAMPLES = 1 << 30


@dataclass(frozen=True)
class Thresholds:
    """What the robustness gate demands: accuracies in 0..1, and how many test rows at least."""

    robust_accuracy: float = 0.75
    clean_accuracy: float = 0.9
    samples: int = 100

    def __post_init__(self) -> None:
        if not (0 < self.robust_accuracy <= self.clean_accuracy <= 1 and 1 <= self.samples <= MAX_SAMPLES):
            raise ConfigError(
                f"thresholds need 0 < robust_accuracy <= clean_accuracy <= 1 and 1 to {MAX_SAMPLES} samples"
            )


@dataclass(frozen=True)
class ReferenceConfig:
    """Everything that the policy demands and the pipeline is called with.

    Attributes:
        dataset: The description of the data.
        entities: Identifiers to mask.
        test_fraction: Expected share of test rows.
        architecture: Name of an installed architecture.
        options: Its options, name to number.
        training: How the model is trained.
        robustness: How it is attacked.
        thresholds: What it must withstand.
        recipients: Key ids of those who can open the sealed model; filled in from the serving key.
    """

    dataset: DatasetSpec
    entities: tuple[str, ...] = tuple(entity.value for entity in Entity)
    test_fraction: float = 0.2
    architecture: str = "digits-cnn"
    options: Mapping[str, float] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    thresholds: Thresholds = field(default_factory=Thresholds)
    recipients: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> "ReferenceConfig":
        """Read a configuration file; the reference data's when there is none.

        Raises:
            ConfigError: Malformed, or it contradicts itself.
            UsageError: The file cannot be read.
        """
        if path is None:
            text = resources.files("portcullis.ingest").joinpath("cheque-digits.yaml").read_text("utf-8")
            return cls(dataset=DatasetSpec.from_yaml(text))
        try:
            return cls.from_dict(load_yaml(read_bytes(path, limit=MAX_YAML_BYTES)))
        except (DataError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "ReferenceConfig":
        """Build a configuration from plain values.

        Raises:
            ConfigError: A key is unknown, a value is of the wrong type, or `dataset` is missing.
        """
        names = {"dataset", "masking", "split", "model", "training", "robustness", "thresholds"}
        sections = _known(document, names, "the file")
        if "dataset" not in sections:
            raise ConfigError("the configuration has no section `dataset`")
        masking = _known(sections.get("masking", {}), {"entities"}, "masking")
        split = _known(sections.get("split", {}), {"test_fraction"}, "split")
        model = _known(sections.get("model", {}), {"architecture", "options"}, "model")
        return cls(
            dataset=DatasetSpec.from_dict(sections["dataset"]),
            entities=_entities(masking.get("entities", list(Entity))),
            test_fraction=_fraction(split.get("test_fraction", 0.2)),
            architecture=_name(model.get("architecture", "digits-cnn")),
            options=_options(model.get("options", {})),
            training=_section(TrainingSettings, sections.get("training", {}), "training"),
            robustness=_section(RobustnessSettings, sections.get("robustness", {}), "robustness"),
            thresholds=_section(Thresholds, sections.get("thresholds", {}), "thresholds"),
        )

    def arguments(self, uri: str) -> dict[str, Any]:
        """Return the arguments that the reference pipeline is called with."""
        return {
            "data_uri": uri,
            "dataset_spec": json.dumps(self.dataset.to_dict()),
            "pii_entities": list(self.entities),
            "test_fraction": self.test_fraction,
            "architecture": self.architecture,
            "architecture_options": dict(self.options),
            **{f"train_{name}": value for name, value in dataclasses.asdict(self.training).items()},
            **{f"attack_{name}": value for name, value in dataclasses.asdict(self.robustness).items()},
            "recipients": list(self.recipients),
        }


def _known(value: Any, names: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a mapping")
    unknown = sorted(_shown(key) for key in value if key not in names)
    if unknown:
        raise ConfigError(f"{where} knows no {', '.join(unknown)}; it knows {', '.join(sorted(names))}")
    return value


def _shown(value: Any) -> str:
    # One line of bounded length, whatever the file holds.
    try:
        text = repr(value)
    except ValueError:  # Python refuses to spell integers of more than 4,300 digits, which YAML's 0x… can hold
        return "a very large number"
    return text if len(text) <= 80 else f"{text[:80]}…"


# YAML 1.1 reads 1e-3 as text.
_KINDS = {float: "a finite number (write 1e-3 as 0.001)", int: "a whole number", str: "text"}

T = TypeVar("T", TrainingSettings, RobustnessSettings, Thresholds)


def _section(kind: type[T], value: Any, where: str) -> T:
    known = _known(value, {it.name for it in dataclasses.fields(kind)}, where)
    for name, given in known.items():
        default = getattr(kind, name)
        fits = _is_number(given) if isinstance(default, float) else type(given) is type(default)
        if not fits:
            raise ConfigError(f"{where}.{name} is {_shown(given)}, not {_KINDS[type(default)]}")
    return kind(**{name: type(getattr(kind, name))(given) for name, given in known.items()})


def _is_number(value: Any) -> bool:
    # Beyond 2**53 a float64 no longer holds every integer and canonical JSON refuses the number; NaN compares to false.
    return type(value) in (int, float) and abs(value) <= 2**53


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 64:
        raise ConfigError("model.architecture is the name of an installed architecture, 1 to 64 printable characters")
    return value


def _entities(value: Any) -> tuple[str, ...]:
    known = [entity.value for entity in Entity]
    if not isinstance(value, list) or not value or not all(name in known for name in value):
        raise ConfigError(f"masking.entities is a list of {', '.join(known)}")
    if len(set(value)) != len(value):
        raise ConfigError("masking.entities names one twice")
    return tuple(str(name) for name in value)


def _options(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(isinstance(name, str) and _is_number(it) for name, it in value.items()):
        raise ConfigError("model.options maps names to finite numbers of at most 2**53 in size")
    return dict(value)


def _fraction(value: Any) -> float:
    if not _is_number(value) or not 0 < value < 1:
        raise ConfigError("split.test_fraction is above 0 and below 1")
    return float(value)
