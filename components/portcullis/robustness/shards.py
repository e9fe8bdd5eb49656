"""The robustness gate over shards: each attacks a part of the test rows, then what they found is put together.

Each shard is judged as a test set of its own would be, `n_min` and the checks of soundness included, so the whole is
never judged by less than a single task would judge it by. A row's outcome depends a little on the random starts of its
batch, so the shards' number is not to the digit that of one task; the rows are the same, and each counts once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.digest import canonical_json, content_digest, parse_canonical_json, sha256
from portcullis.errors import ConfigError, DataError, EvidenceError, InconclusiveError, ModelError, UsageError
from portcullis.evidence.shards import Shard
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import Step, begin
from portcullis.files import read_bytes, write_bytes
from portcullis.models.store import SPEC_FILE, ModelSpec, read_model_files
from portcullis.report import gate_page
from portcullis.robustness.findings import believe, to_plain
from portcullis.robustness.isolated import attacked
from portcullis.robustness.page import robustness_details
from portcullis.robustness.report import RobustnessReport, Tried
from portcullis.robustness.settings import RobustnessSettings

MAX_OUTCOME_BYTES = 8 << 20
EXAMPLES = 6
_ADDED = ("samples", "gradient_free", "gradient_averaged", "forward_equivalents")
_LEAST = ("smallest_gradient", "gradient_agreement", "gradient_reach", "unbounded_success", "planted_found")
_MOST = ("batch_difference",)
_SAME = ("classes", "device")


def shard_rows(labels: NDArray[np.integer[Any]], shard: Shard) -> NDArray[np.int64]:
    """Return the places of a shard's rows, ascending: of each class as many as of every other shard, give or take one.

    Args:
        labels: Class indices (N,) of all test rows.
        shard: Which of how many parts.
    """
    return np.sort(np.argsort(labels, kind="stable")[shard.index :: shard.count])


def attack_shard(
    *, step: str, model: Path, test: Path, evidence: Path, settings: RobustnessSettings, outcome: Path, bundle: Path
) -> Statement:
    """Attack a model on a shard's part of the test rows, and leave what was found for `merge_attacks` to judge.

    Args:
        step: This step's name in the policy, which also says which shard it is.
        model: The model's directory.
        test: The attested test rows, all of them.
        evidence: The bundle of evidence of both.
        settings: The plan of attack, in mode `full`.
        outcome: Where what was found goes: JSON, or in its place why nothing could be judged.
        bundle: Where the evidence goes.

    Raises:
        UsageError: The step is no shard, or this system cannot lock a process in.
        ConfigError: The plan is of another mode, whose order of rows is one for all of them, or has a threat.
        EvidenceError: The evidence does not hold for this very model and these very rows.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        MissingDependencyError: PyTorch or torchattacks is not installed.
    """
    shard = Shard.of(step)
    if shard is None:
        raise UsageError(f"step {step!r} is no shard; its name ends in #0/4, or the like")
    if settings.mode != "full":
        raise ConfigError("robustness: over shards, mode must be full")
    if settings.threat:
        raise ConfigError("robustness: over shards, there is no threat yet; judge a table with one task")
    model_files, test_files = read_model_files(model), read_input(step, "test", test)
    begun = begin(
        step,
        stage="attack_shard",
        inputs={"model": content_digest(model_files), "test": content_digest(test_files)},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    document: dict[str, Any]
    figures: dict[str, Figure] = {}
    try:
        spec, rows = ModelSpec.from_json(model_files[SPEC_FILE]), parse_dataset(test_files)
        spec.require_fit(rows.spec)
        features, labels = features_and_labels(rows)
        places = shard_rows(labels, shard)
        figures["rows"] = len(labels)
        found = attacked(model_files, spec, features[places], labels[places], settings, None)
        figures = {**found.figures, "rows": len(labels)}
        document = to_plain(found)
    except (InconclusiveError, DataError, ModelError) as error:
        document = {"inconclusive": str(error)}
    data = canonical_json(document)
    statement = begun.finish(bundle=bundle, outputs={"outcome": sha256(data)}, figures=figures)
    write_bytes(outcome, data)
    return statement


def merge_attacks(
    *, step: str, model: Path, outcomes: Sequence[Path], evidence: Sequence[Path], report: Path, bundle: Path
) -> Statement:
    """Put together what all shards found, and state what the model withstood.

    What a shard could not judge soundly makes the whole FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory; only its description is read.
        outcomes: What the shards of `attack_shard` left, in any order.
        evidence: Their bundles of evidence.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold; or a shard is missing, repeated, or of another run.
        DataError: An outcome cannot be read.
    """
    model_files = read_model_files(model)
    found = [_read(path) for path in outcomes]
    by_digest = {sha256(data): data for data in found}
    begun = begin(
        step,
        stage="robustness_gate_over_shards",
        inputs={"model": content_digest(model_files)},
        parameters={},
        evidence=evidence,
        shards={"outcome": [sha256(data) for data in found]},
    )
    figures: dict[str, Figure] = {}
    details: list[str] = []
    inconclusive = ""
    try:
        labels = ModelSpec.from_json(model_files[SPEC_FILE]).labels
        shards = _shards_of(begun)
        plan = RobustnessSettings.from_dict(shards[0].parameters)
        parts = [
            _believed(by_digest[shard.outputs["outcome"]], shard, labels, begun.inputs["model"], plan)
            for shard in shards
        ]
        whole = put_together(parts)
        _require_every_row(whole, shards)
        figures = {**whole.figures, "shards": len(shards)}
        details = robustness_details(whole, plan)
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, details).encode())
    return statement


def put_together(parts: Sequence[RobustnessReport]) -> RobustnessReport:
    """Return what was found on all rows, from what was found on each part of them.

    Counts are added up, shares are those of all rows, and of each check of soundness the worst figure stands.

    Args:
        parts: Of one model and plan, in mode `full`; at least one.

    Raises:
        InconclusiveError: They are not of one plan, or not from one kind of device.
    """
    first = parts[0]
    for part in parts:
        alike = (
            part.figures.keys() == first.figures.keys()
            and all(part.figures[name] == first.figures[name] for name in _SAME)
            and {name: it.ball for name, it in part.attacks.items()}
            == {name: it.ball for name, it in first.attacks.items()}
            and part.curve.keys() == first.curve.keys()
        )
        if not alike:
            raise InconclusiveError("the shards were not attacked by one plan on one kind of device")
    sizes = [int(part.figures["samples"]) for part in parts]

    def merged(name: str) -> Figure:
        values = [part.figures[name] for part in parts]
        if name in _SAME:
            return values[0]
        numbers = [float(value) for value in values]
        if name in _ADDED:
            return sum(int(value) for value in numbers)
        if name in _LEAST:
            return min(numbers)
        if name in _MOST:
            return max(numbers)
        return sum(round(share * size) for share, size in zip(numbers, sizes, strict=True)) / sum(sizes)

    right = [float(part.figures["clean_accuracy"]) * size for part, size in zip(parts, sizes, strict=True)]
    return RobustnessReport(
        figures={name: merged(name) for name in first.figures},
        attacks={name: _added([part.attacks[name] for part in parts]) for name in first.attacks},
        curve={
            radius: float(np.average([part.curve[radius] for part in parts], weights=right)) for radius in first.curve
        },
        examples=tuple(example for part in parts for example in part.examples)[:EXAMPLES],
    )


def _added(attempts: Sequence[Tried]) -> Tried:
    counts = {name: sum(getattr(it, name) for it in attempts) for name in ("tried", "broken", "cost")}
    return dataclasses.replace(attempts[0], **counts)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, limit=MAX_OUTCOME_BYTES)
    except UsageError as error:
        raise DataError(str(error)) from error


def _shards_of(begun: Step) -> list[Statement]:
    """Return the statements of the shards that this gate judges, in their order."""
    makers = (source.partition(".")[0] for name, source in begun.rule.inputs.items() if Shard.of(name))
    return [begun.chain.statements[maker] for maker in makers]


def _believed(
    data: bytes, shard: Statement, labels: tuple[str, ...], model: str, plan: RobustnessSettings
) -> RobustnessReport:
    """Return what a shard found, if it is what the shard signed."""
    if shard.stage != "attack_shard" or shard.inputs.get("model") != model:
        raise EvidenceError(f"step {shard.step!r} attacked another model, or nothing")
    document = parse_canonical_json(data, limit=MAX_OUTCOME_BYTES)
    if isinstance(document, Mapping) and set(document) == {"inconclusive"}:
        raise InconclusiveError(f"{shard.step}: {document['inconclusive']}")
    samples, rows = (shard.figures.get(name) for name in ("samples", "rows"))
    if type(samples) is not int or type(rows) is not int:
        raise DataError(f"step {shard.step!r} does not say how many rows it attacked")
    found = believe(document, samples=samples, labels=labels, settings=plan)
    if {**found.figures, "rows": rows} != dict(shard.figures):
        raise DataError(f"step {shard.step!r} left other figures than it signed")
    return found


def _require_every_row(whole: RobustnessReport, shards: Sequence[Statement]) -> None:
    rows = {int(shard.figures["rows"]) for shard in shards}
    tests = {shard.inputs["test"] for shard in shards}
    if len(tests) != 1 or rows != {whole.figures["samples"]}:
        raise InconclusiveError("the shards did not attack each of the test rows once")
