"""The configuration of the reference pipeline: what a user may choose, with defaults for the reference data.

A configuration file is YAML. Only `dataset` is required; the other sections take the fields of the dataclasses below,
and an unknown key is refused.

    dataset: {name: …, label: {…}, features: {…}, sensitive: {…}}
    masking: {detection: strict, entities: {EMAIL: token, …}, columns: {zip: {generalise: zip3}}}
    screening: {n_min: 30, …}
    quality: {label_issues: 0.004, …}
    split: {test_fraction: 0.2}
    model: {architecture: digits-cnn, options: {width: 24}}
    training: {method: trades2, epsilon: 0.1, …}
    dp_training: {target_epsilon: 3, delta: 0.00001, …}   (in place of `training`: the private variant)
    audit: {canaries: 300, confidence: 0.95}   (of the private variant)
    membership: {false_positives: 0.001, …}
    robustness: {epsilon: 0.1, …}   (of a table: {threat: {mutable: {age: {epsilon: 2, direction: up}}}, queries: 500})
    privacy: {columns: {age: {low: 18, high: 90, epsilon: 3, steps: 73}}, budget: 3, others: {…}, rows: shuffle}
    ledger: {dataset: customers, epsilon: 12, delta: 0, store: local, memory: local}
    watermark: {owner: …}
    thresholds: {robust_accuracy: 0.75, clean_accuracy: 0.9, samples: 100, agreement: 0.98, accuracy_drop: 0.01}
    deployment: {target: local, cluster: {}, environment: development}
    keys: {serving: aws-kms:arn:…, train: vault-transit:…}   (those that a service holds)
    shards: 1
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from portcullis.dataset import DatasetSpec
from portcullis.deploy.settings import ServingSettings, require_server_name
from portcullis.digest import canonical_json
from portcullis.dp_training.settings import AuditSettings, PrivateSettings
from portcullis.errors import ConfigError, DataError
from portcullis.evidence.shards import MAX_SHARDS, Shard
from portcullis.files import read_bytes
from portcullis.keys.service import URIS, is_service_uri
from portcullis.ledger.settings import LedgerSettings
from portcullis.membership.settings import MembershipSettings
from portcullis.pii.plan import MaskingPlan, masking_plan
from portcullis.privacy.settings import NoisedColumn, NoisePlan
from portcullis.quality.settings import QualitySettings
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.tabular import read_threat
from portcullis.strict_yaml import MAX_YAML_BYTES, load_yaml
from portcullis.training.settings import TrainingSettings
from portcullis.watermark.mark import MAX_OWNER

MAX_SAMPLES = 1 << 30
SHARDED = ("survey_shard", "ingest", "mask_pii", "residual_pii")  # the steps that are used once for each shard
DEVELOPMENT = "development"
_ENVIRONMENT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Thresholds:
    """What the gates on a model demand.

    Attributes:
        robust_accuracy: Least accuracy under attack, in 0..1.
        clean_accuracy: Least accuracy without one, in 0..1.
        samples: Fewest test rows.
        agreement: Least share of test rows, in 0..1, on which the shipped model decides as the judged one did.
        accuracy_drop: Most that the shipped model's accuracy may be below the judged one's, in 0..1.
        membership_auc: Most that the upper end of membership inference's AUC may be, in 0.5..1.
        inversion_auc: Most that the upper end of inversion's AUC may be, in 0.5..1.
    """

    robust_accuracy: float = 0.75
    clean_accuracy: float = 0.9
    samples: int = 100
    agreement: float = 0.98
    accuracy_drop: float = 0.01
    membership_auc: float = 0.65
    inversion_auc: float = 0.65

    def __post_init__(self) -> None:
        if not (0 < self.robust_accuracy <= self.clean_accuracy <= 1 and 1 <= self.samples <= MAX_SAMPLES):
            raise ConfigError(
                f"thresholds need 0 < robust_accuracy <= clean_accuracy <= 1 and 1 to {MAX_SAMPLES} samples"
            )
        if not (0 < self.agreement <= 1 and 0 <= self.accuracy_drop < 1):
            raise ConfigError("thresholds need 0 < agreement <= 1 and 0 <= accuracy_drop < 1")
        if not (0.5 <= self.membership_auc <= 1 and 0.5 <= self.inversion_auc <= 1):
            raise ConfigError("thresholds need 0.5 <= membership_auc <= 1 and 0.5 <= inversion_auc <= 1")


@dataclass(frozen=True)
class Quality:
    """What the gate on the data demands; the defaults suit the reference data.

    Data whose classes overlap, or whose rows repeat by nature, need other values: measure clean data, then leave a
    margin. The higher a share, the more poison goes unseen.

    Attributes:
        missing_share: Most cells that may be missing in any column, as a share of it.
        constant_share: Most feature columns that may hold one value, as a share of them.
        class_balance: Least rows of the smallest class, as a share of the largest one's.
        duplicate_rows: Most rows, as a share, that may repeat the features of an earlier one.
        largest_group: Most rows, as a share, that may all have the same features.
        contradicting_rows: Most rows, as a share, of which an equal row bears another label.
        crowded_rows: Most rows, as a share, that others may crowd around: copies that differ a little.
        outlying_rows: Most rows, as a share, that may lie far from their class.
        reference_accuracy: Least accuracy of the reference models, in 0..1; below, labels and backdoors cannot be told.
        label_issues: Most rows, as a share, that their neighbours may confidently call by another label.
        spectral_suspects: Most rows of one class, as a share of all, that may look like another class's behind a
            trigger, among those with the largest spectral scores.
        cluster_suspects: The same, among the smaller cluster of its activations.
    """

    missing_share: float = 0.2
    constant_share: float = 0.5
    class_balance: float = 0.2
    duplicate_rows: float = 0.005
    largest_group: float = 0.005
    contradicting_rows: float = 0.0
    crowded_rows: float = 0.002
    outlying_rows: float = 0.002
    reference_accuracy: float = 0.8
    label_issues: float = 0.004
    spectral_suspects: float = 0.008
    cluster_suspects: float = 0.012

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"quality.{name} must be a number from 0 to 1")
        if not (self.class_balance > 0 and self.reference_accuracy > 0):
            raise ConfigError("quality.class_balance and quality.reference_accuracy must be above 0")


@dataclass(frozen=True)
class Privacy(NoisePlan):
    """Which columns of the training rows get noise, what becomes of the others, and how much a row or person may spend.

    Attributes:
        columns: Column to its noise: `low`, `high`, `epsilon` and `steps`, and `nulls`; or `categories` and `epsilon`,
            and `other` and `nulls`; or `low`, `high`, `epsilon` and `mechanism: laplace`.
        budget: The most that the epsilons of one row may add up to; with `contribution`, those of all rows of a person.
        others: What becomes of each column without noise, `keep` or `drop`: `features` and `label` (keep only), `ids`
            (sensitive columns that are tokens), `text` (sensitive columns that are scanned), and any other by its name.
        rows: `keep` the order of the rows, or `shuffle` them.
        contribution: `column`, whose row it is, and `at_most`, how many rows of one person stay; empty for all.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.multiplier * math.fsum(column.epsilon for column in self.columns.values())
        if not asked <= self.budget:
            raise ConfigError(f"privacy: the columns ask for an epsilon of {asked:g}, above the budget {self.budget:g}")

    def require_declared(self, spec: DatasetSpec) -> None:
        """Refuse where a column without noise that the description names is not declared.

        Raises:
            ConfigError: That is so; columns that the description does not name are judged when the data are there.
        """
        roles = {"label": (spec.label.column,), "features": spec.features.columns}
        roles |= {"text": tuple(name for name, treatment in spec.sensitive.items() if treatment == "scan")}
        roles |= {"ids": tuple(name for name, treatment in spec.sensitive.items() if treatment == "token")}
        for role, names in roles.items():
            left = [name for name in names if name not in self.columns and name not in self.others]
            if self.columns and left and role not in self.others:
                raise ConfigError(f"privacy: {left[0]!r} gets no noise; declare others.{role}: keep or drop")


@dataclass(frozen=True)
class Deployment:
    """Where an admitted model is deployed.

    Attributes:
        target: `local` or `kubernetes`.
        cluster: For `kubernetes`, what `portcullis.deploy` needs to know of the cluster.
        environment: What the policy is for; models admitted for `development` are never deployed to a cluster.
    """

    target: str = "local"
    cluster: Mapping[str, Any] = field(default_factory=dict)
    environment: str = DEVELOPMENT

    def __post_init__(self) -> None:
        if self.target not in ("local", "kubernetes"):
            raise ConfigError("deployment.target must be local or kubernetes")
        if (self.target == "local") != (not self.cluster):
            raise ConfigError("deployment.cluster describes the cluster of target kubernetes; local has none")
        try:
            canonical_json(dict(self.cluster))
        except DataError as error:
            raise ConfigError(f"deployment.cluster: {error}") from error
        if not _ENVIRONMENT.fullmatch(self.environment):
            raise ConfigError("deployment.environment is 1 to 63 of a-z, 0-9 and '-', such as production")
        if self.target == "kubernetes" and self.environment == DEVELOPMENT:
            raise ConfigError("deployment.target kubernetes needs an environment other than development")
        if self.target == "kubernetes":
            ServingSettings.parse(self.cluster)


@dataclass(frozen=True)
class ReferenceConfig:
    """Everything that the policy demands and the pipeline is called with.

    Attributes:
        dataset: The description of the data.
        masking: What is masked, and how; it has every sensitive column of the description, and no column that the model
            learns from but to keep, scan or generalise it.
        screening: How the data are screened for poison.
        quality: What they must keep.
        test_fraction: Expected share of test rows.
        architecture: Name of an installed architecture.
        options: Its options, name to number.
        training: How the model is trained.
        dp_training: How it is trained privately, in place of `training`; None for the variant that is not private.
        audit: How thoroughly the private trainer is audited.
        membership: How the model is attacked by membership inference and inversion.
        robustness: How it is attacked.
        thresholds: What it must withstand.
        privacy: Which columns get noise, and what becomes of the others.
        ledger: The privacy budget of the data set over all runs; when None, what one run may spend.
        owner: Whose watermark the model carries; the data set's name when empty.
        deployment: Where it is deployed.
        keys: By role (`serving`, `pipeline`, `owner`, or a step's name), the URI of a key that a service holds; every
            other key is made here.
        recipients: Key ids of those who can open the sealed model; filled in from the serving key.
        shards: Over how many shards the data are read and masked; 1 for the whole at once.
    """

    dataset: DatasetSpec
    masking: MaskingPlan = field(default_factory=lambda: MaskingPlan.parse({}))
    screening: QualitySettings = field(default_factory=QualitySettings)
    quality: Quality = field(default_factory=Quality)
    test_fraction: float = 0.2
    architecture: str = "digits-cnn"
    options: Mapping[str, float] = field(default_factory=dict)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    dp_training: PrivateSettings | None = None
    audit: AuditSettings = field(default_factory=AuditSettings)
    membership: MembershipSettings = field(default_factory=MembershipSettings)
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    thresholds: Thresholds = field(default_factory=Thresholds)
    privacy: Privacy = field(default_factory=Privacy)
    ledger: LedgerSettings | None = None
    owner: str = ""
    deployment: Deployment = field(default_factory=Deployment)
    keys: Mapping[str, str] = field(default_factory=dict)
    recipients: tuple[str, ...] = ()
    shards: int = 1

    def __post_init__(self) -> None:
        if type(self.shards) is not int or not 1 <= self.shards <= MAX_SHARDS:
            raise ConfigError(f"shards is a whole number from 1 to {MAX_SHARDS}")
        if self.deployment.target == "kubernetes":
            require_server_name(self.policy_name)
        masking = self.masking.covering(self.dataset.sensitive)
        masking_plan(self.dataset, masking.to_dict())
        self.privacy.require_declared(self.dataset)
        if self.robustness.threat and self.dataset.features.resolved:
            read_threat(self.robustness.threat, self.dataset)
        self.ledger_parameters()
        object.__setattr__(self, "masking", masking)

    @classmethod
    def load(cls, path: Path | None, *, private: bool = False, epsilon: float | None = None) -> "ReferenceConfig":
        """Read a configuration file; the reference data's when there is none.

        Args:
            path: The file.
            private: Train privately. A file says in `dp_training` how, and trains privately whenever it does.
            epsilon: What that may spend; of a file, what it says itself.

        Raises:
            ConfigError: Malformed, it contradicts itself, or it does not say how to train as privately as asked for.
            UsageError: The file cannot be read.
        """
        if path is None:
            text = resources.files("portcullis.ingest").joinpath("cheque-digits.yaml").read_text("utf-8")
            dataset = DatasetSpec.from_yaml(text)
            if private:
                return _private_reference(dataset, 3.0 if epsilon is None else epsilon)
            return cls(dataset=dataset, privacy=_REFERENCE_PRIVACY, ledger=_REFERENCE_LEDGER)
        try:
            found = cls.from_dict(load_yaml(read_bytes(path, limit=MAX_YAML_BYTES)))
        except (DataError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error
        spends = found.dp_training.target_epsilon if found.dp_training else None
        if private and (spends is None or epsilon not in (None, spends)):
            raise ConfigError(f"{path}: say in dp_training how to train privately, target_epsilon included")
        return found

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "ReferenceConfig":
        """Build a configuration from plain values.

        Raises:
            ConfigError: A key is unknown, a value is of the wrong type, or `dataset` is missing.
        """
        names = {"dataset", "masking", "split", "model", "training", "robustness", "thresholds"}
        names |= {
            "dp_training",
            "audit",
            "membership",
            "screening",
            "quality",
            "privacy",
            "ledger",
            "watermark",
            "deployment",
            "keys",
            "shards",
        }
        sections = _known(document, names, "the file")
        if "dataset" not in sections:
            raise ConfigError("the configuration has no section `dataset`")
        if "training" in sections and "dp_training" in sections:
            raise ConfigError("the configuration has both `training` and `dp_training`; a model is trained once")
        split = _known(sections.get("split", {}), {"test_fraction"}, "split")
        model = _known(sections.get("model", {}), {"architecture", "options"}, "model")
        return cls(
            dataset=DatasetSpec.from_dict(sections["dataset"]),
            masking=MaskingPlan.parse(sections.get("masking", {})),
            screening=_section(QualitySettings, sections.get("screening", {}), "screening"),
            quality=_section(Quality, sections.get("quality", {}), "quality"),
            test_fraction=_fraction(split.get("test_fraction", 0.2)),
            architecture=_name(model.get("architecture", "digits-cnn")),
            options=_options(model.get("options", {})),
            training=_section(TrainingSettings, sections.get("training", {}), "training"),
            dp_training=_section(PrivateSettings, sections["dp_training"], "dp_training")
            if "dp_training" in sections
            else None,
            audit=_section(AuditSettings, sections.get("audit", {}), "audit"),
            membership=_section(MembershipSettings, sections.get("membership", {}), "membership"),
            robustness=_robustness(sections.get("robustness", {})),
            thresholds=_section(Thresholds, sections.get("thresholds", {}), "thresholds"),
            privacy=_privacy(sections.get("privacy", {})),
            ledger=_ledger(sections["ledger"], sections["dataset"]) if "ledger" in sections else None,
            owner=_owner(_known(sections.get("watermark", {}), {"owner"}, "watermark").get("owner", "")),
            deployment=_deployment(sections.get("deployment", {})),
            keys=_keys(sections.get("keys", {})),
            shards=sections.get("shards", 1),
        )

    @property
    def policy_name(self) -> str:
        """The policy's name: a private model is under a policy, and keys, of its own."""
        return self.dataset.name if self.dp_training is None else f"{self.dataset.name}-private"

    @property
    def charging(self) -> tuple[str, ...]:
        """The steps that spend privacy, by the names that they have in the policy."""
        noised = ("dp_noise",) if self.privacy.columns else ()
        return noised if self.dp_training is None else (*noised, "train")

    def ledger_parameters(self) -> dict[str, Any]:
        """Return what the policy says of the ledger: nothing where no step spends privacy.

        Raises:
            ConfigError: No budget is named, and what one run may spend is none.
        """
        if not self.charging:
            return {}
        if self.ledger is None:
            private = self.dp_training
            return LedgerSettings(
                self.dataset.name,
                self.privacy.budget + (private.target_epsilon if private else 0),
                private.delta if private else 0.0,
                unit="person" if self.privacy.contribution else "row",
            ).to_dict()
        return self.ledger.to_dict()

    def _audit_arguments(self) -> dict[str, Any]:
        if self.dp_training is None:
            return {}
        return {f"audit_{name}": value for name, value in dataclasses.asdict(self.audit).items()}

    def arguments(self, uri: str, *, gpus: int = 0, gpu_resource: str = "nvidia.com/gpu") -> dict[str, Any]:
        """Return the arguments that the reference pipeline is called with, or the one over shards.

        Args:
            uri: The data.
            gpus: How many GPUs training and the robustness gates ask for each, on Kubernetes.
            gpu_resource: What Kubernetes calls them.
        """
        return {
            "data_uri": uri,
            "dataset_spec": json.dumps(self.dataset.to_dict()),
            "masking": self.masking.to_dict(),
            **{f"screen_{name}": value for name, value in dataclasses.asdict(self.screening).items()},
            "test_fraction": self.test_fraction,
            "architecture": self.architecture,
            "architecture_options": dict(self.options),
            **{f"train_{name}": value for name, value in dataclasses.asdict(self.dp_training or self.training).items()},
            **{f"attack_{name}": value for name, value in dataclasses.asdict(self.robustness).items()},
            **self._audit_arguments(),
            **{f"membership_{name}": value for name, value in dataclasses.asdict(self.membership).items()},
            **{f"noise_{name}": value for name, value in self.privacy.to_dict().items()},
            "ledger": self.ledger_parameters(),
            "ledger_charging": list(self.charging),
            "watermark_owner": self.owner or self.dataset.name,
            "recipients": list(self.recipients),
            "target": self.deployment.target,
            "cluster": dict(self.deployment.cluster),
            "gpus": str(gpus),
            "gpu_resource": gpu_resource,
            **({"shards": self.loop_items()} if self.shards > 1 else {}),
        }

    def loop_items(self) -> list[dict[str, str]]:
        """Return what the loops over shards go over: for each, its name in each step of `SHARDED`."""
        return [{step: Shard(index, self.shards).named(step) for step in SHARDED} for index in range(self.shards)]


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


# The customers of the reference data are made up, so these bounds are public: an age in years, a balance in dollars.
_REFERENCE_PRIVACY = Privacy(
    columns={
        "age": NoisedColumn(low=18, high=90, epsilon=3, steps=73),
        "balance": NoisedColumn(low=-5000, high=45000, epsilon=3, steps=501),
    },
    budget=6,
    others={"features": "keep", "label": "keep", "ids": "drop", "text": "drop"},
    rows="keep",  # the keyed order of `split`
)

# Eighty runs of the above. Nobody is behind these rows; of your own, think what its people may bear.
_REFERENCE_LEDGER = LedgerSettings("cheque-digits", epsilon=480)

# By epsilon: tried on the reference rows with their labels, which are public.
_SETTINGS_TRIED = 40
_REFERENCE_PRIVATE: Mapping[float, PrivateSettings] = {
    1.0: PrivateSettings(1.0, batch_size=1024, learning_rate=0.5, attack_epsilon=0.0, settings_tried=_SETTINGS_TRIED),
    3.0: PrivateSettings(3.0, epochs=40, learning_rate=1.5, settings_tried=_SETTINGS_TRIED),
    8.0: PrivateSettings(8.0, epochs=40, learning_rate=2.0, settings_tried=_SETTINGS_TRIED),
}
# What a private model withstands: less. What benchmarks/dp_training.py measures, less a margin for the noise.
_PRIVATE_THRESHOLDS: Mapping[float, Thresholds] = {
    1.0: Thresholds(robust_accuracy=0.3, clean_accuracy=0.78, agreement=0.9, accuracy_drop=0.05, membership_auc=0.6),
    3.0: Thresholds(robust_accuracy=0.48, clean_accuracy=0.84, agreement=0.95, accuracy_drop=0.03, membership_auc=0.6),
    8.0: Thresholds(robust_accuracy=0.55, clean_accuracy=0.88, agreement=0.95, accuracy_drop=0.03, membership_auc=0.6),
}


def _private_reference(dataset: DatasetSpec, epsilon: float) -> ReferenceConfig:
    if epsilon not in _REFERENCE_PRIVATE:
        tried = ", ".join(f"{known:g}" for known in _REFERENCE_PRIVATE)
        raise ConfigError(f"the reference model was tried with an epsilon of {tried}; for others, write a --config")
    settings = _REFERENCE_PRIVATE[epsilon]
    return ReferenceConfig(
        dataset=dataset,
        privacy=_REFERENCE_PRIVACY,
        ledger=LedgerSettings(dataset.name, _REFERENCE_LEDGER.epsilon, settings.delta),
        options={"width": 8, "hidden": 64, "tanh": 1},
        dp_training=settings,
        thresholds=_PRIVATE_THRESHOLDS[epsilon],
    )


# YAML 1.1 reads 1e-3 as text.
_KINDS = {float: "a finite number (write 1e-3 as 0.001)", int: "a whole number", str: "text"}

T = TypeVar(
    "T",
    QualitySettings,
    Quality,
    TrainingSettings,
    PrivateSettings,
    AuditSettings,
    MembershipSettings,
    RobustnessSettings,
    Thresholds,
)


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


def _options(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(isinstance(name, str) and _is_number(it) for name, it in value.items()):
        raise ConfigError("model.options maps names to finite numbers of at most 2**53 in size")
    return dict(value)


def _robustness(value: Any) -> RobustnessSettings:
    """Read the section; a threat is a mapping there, and the canonical JSON of it in policy and pipeline."""
    if isinstance(value, dict) and isinstance(value.get("threat"), dict):
        try:
            value = {**value, "threat": canonical_json(value["threat"]).decode()}
        except DataError as error:
            raise ConfigError(f"robustness.threat: {error}") from error
    return _section(RobustnessSettings, value, "robustness")


def _privacy(value: Any) -> Privacy:
    known = _known(value, {it.name for it in dataclasses.fields(Privacy)}, "privacy")
    return Privacy.parse(known)


def _ledger(value: Any, dataset: Any) -> LedgerSettings | None:
    known = dict(_known(value, {it.name for it in dataclasses.fields(LedgerSettings)}, "ledger"))
    known.setdefault("dataset", dataset.get("name") if isinstance(dataset, dict) else None)
    if set(known) <= {"dataset"}:
        return None
    if "epsilon" not in known:
        raise ConfigError("ledger.epsilon is missing: most that all runs together may spend")
    return LedgerSettings(**known)


def _owner(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_OWNER:
        raise ConfigError(f"watermark.owner is at most {MAX_OWNER} printable characters")
    return value


def _deployment(value: Any) -> Deployment:
    known = _known(value, {"target", "cluster", "environment"}, "deployment")
    target, environment = known.get("target", "local"), known.get("environment", DEVELOPMENT)
    cluster = known.get("cluster", {})
    if not isinstance(target, str) or not isinstance(environment, str) or not isinstance(cluster, dict):
        raise ConfigError("deployment.target and deployment.environment are text, deployment.cluster is a mapping")
    return Deployment(target, cluster, environment)


def _keys(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError("keys is not a mapping")
    for role, uri in value.items():
        if not isinstance(role, str) or not isinstance(uri, str) or not is_service_uri(uri):
            raise ConfigError(f"keys: {_shown(role)} must name a key of {', '.join(URIS)} (docs/keys.md)")
    return dict(value)


def _fraction(value: Any) -> float:
    if not _is_number(value) or not 0 < value < 1:
        raise ConfigError("split.test_fraction is above 0 and below 1")
    return float(value)
