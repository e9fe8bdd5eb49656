"""The data-quality and poisoning gate's `evaluate`: screen the whole data set and sign the verdict."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError
from portcullis.evidence.policy import StepRule
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import write_bytes
from portcullis.quality.screen import screen
from portcullis.quality.settings import QualitySettings
from portcullis.report import bound_chart, gate_page, histogram, paragraph, section, table

SHOWN_ROWS = 50
BINS = 60


def evaluate_quality(
    *, step: str, dataset: Path, evidence: Path, settings: QualitySettings, report: Path, bundle: Path
) -> Statement:
    """Screen a data set for poison and state what was found.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`, beside the figures measured until then.

    Args:
        step: This gate's name in the policy.
        dataset: The data set's directory, before it is split.
        evidence: The bundle of its evidence.
        settings: The plan of the screening.
        report: Where the HTML report goes; it lists the numbers of suspected rows and none of their cells.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very data set.
        DataError: The data set's directory is not one.
        SealError: The data set was altered, or lies in plain text though a step made it.
        MissingDependencyError: PyTorch is not installed.
    """
    files = read_input(step, "dataset", dataset)
    begun = begin(
        step,
        stage="data_quality_gate",
        inputs={"dataset": content_digest(files)},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    figures: dict[str, Figure] = {}
    suspects: dict[str, NDArray[np.int64]] = {}
    remoteness: NDArray[np.float64] | None = None
    inconclusive = ""
    try:
        for finding in screen(parse_dataset(files), settings):
            figures |= finding.figures
            suspects |= finding.suspects
            remoteness = finding.remoteness if remoteness is None else remoteness
    except (InconclusiveError, DataError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    details = [*_drawn(statement, begun.rule, remoteness, settings), *_listed(suspects)]
    write_bytes(report, gate_page(statement, begun.rule, details).encode())
    return statement


def _drawn(
    statement: Statement, rule: StepRule, remoteness: NDArray[np.float64] | None, settings: QualitySettings
) -> Iterator[str]:
    yield section("Figures by their bounds")
    yield bound_chart(statement.figures, rule.checks)
    yield paragraph("The dashed line is the most that the policy allows; bars end at twice that.", kind="dim")
    if remoteness is not None:
        high = 2 * settings.outlier_distance
        low = float(np.clip(np.floor(remoteness.min()), -high, 0.0))
        counts, _ = np.histogram(np.clip(remoteness, low, high), bins=BINS, range=(low, high))
        yield section("Rows by their distance from their class's middle")
        across = "standard deviations beyond the median distance; the last bar also has what is farther"
        yield histogram(counts.tolist(), low=low, high=high, across=across, marked=settings.outlier_distance)


def _listed(suspects: Mapping[str, NDArray[np.int64]]) -> Iterator[str]:
    yield section("Suspected rows")
    rows = [
        (kind, len(found), ", ".join(str(row + 1) for row in found[:SHOWN_ROWS]))
        for kind, found in suspects.items()
        if len(found)
    ]
    yield table(("as", "rows", f"the first {SHOWN_ROWS}, counted from 1"), rows) if rows else paragraph("None.")
