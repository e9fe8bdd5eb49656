"""The equivalence gate's `evaluate`: compare what ships with what was judged, and sign the verdict.

The models are opened and asked in a locked child process, without keys, environment, network or files. This process
has the keys, never opens a model, and measures by the logits that the child leaves behind.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from portcullis.at_rest import read_input
from portcullis.dataset import DatasetSpec, features_and_labels, parse_dataset
from portcullis.digest import content_digest
from portcullis.equivalence.compare import compare
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.files import memory_file, write_bytes
from portcullis.isolation import run_isolated
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_model_files
from portcullis.report import gate_page

SECONDS = 3000.0  # of the hour that its pod may live
MEMORY = 4 << 30
_FILES = (SPEC_FILE, WEIGHTS_FILE)


def evaluate_equivalence(
    *, step: str, model: Path, judged: Path, test: Path, evidence: Path, report: Path, bundle: Path
) -> Statement:
    """Compare two models' answers to the attested test rows.

    Whatever cannot be compared soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The directory of the model that is to ship.
        judged: The directory of the model that the other gates judged.
        test: The attested test rows.
        evidence: The bundle of evidence of all three.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for these very models and rows.
        ModelError: A model's directory is not one.
        DataError: The test rows' directory is not one.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        MissingDependencyError: PyTorch is not installed.
        UsageError: This system cannot lock a process in.
    """
    model_files, judged_files = read_model_files(model), read_model_files(judged)
    test_files = read_input(step, "test", test)
    begun = begin(
        step,
        stage="equivalence_gate",
        inputs={
            "model": content_digest(model_files),
            "judged": content_digest(judged_files),
            "test": content_digest(test_files),
        },
        parameters={},
        evidence=[evidence],
    )
    figures: dict[str, Figure] = {}
    inconclusive = ""
    try:
        shipped, before = (ModelSpec.from_json(files[SPEC_FILE]) for files in (model_files, judged_files))
        rows = parse_dataset(test_files)
        _require_same_task(shipped, before, rows.spec)
        features, labels = features_and_labels(rows)
        figures = dict(compare(*_logits(judged_files, model_files, features, len(before.labels)), labels))
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule).encode())
    return statement


def _require_same_task(shipped: ModelSpec, judged: ModelSpec, rows: DatasetSpec) -> None:
    if shipped != judged:
        raise ModelError("the two models differ in more than weights: architecture, options, shape, bounds or labels")
    shipped.require_fit(rows)


def _logits(
    judged: Mapping[str, bytes], shipped: Mapping[str, bytes], features: NDArray[np.float32], classes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both models' logits (N, k) of all rows, as a locked process that opens the models says."""
    rows = np.ascontiguousarray(features, dtype="<f4")
    size = len(rows) * classes * rows.itemsize
    with ExitStack() as stack:
        models = [stack.enter_context(memory_file(of[name])) for of in (judged, shipped) for name in _FILES]
        handed = stack.enter_context(memory_file(rows.tobytes()))
        answers = [stack.enter_context(memory_file(b"")) for _ in range(2)]
        run_isolated(
            "portcullis.equivalence.locked:ask",
            [*models, handed, *answers],
            {"shape": list(rows.shape)},
            seconds=SECONDS,
            memory=MEMORY,
            writes=size,
            prepare="portcullis.models.locked:prepare",
        )
        before, after = (_read(answer, size).reshape(len(rows), classes) for answer in answers)
    return before, after


def _read(answer: BinaryIO, size: int) -> NDArray[np.float32]:
    answer.seek(0)
    data = answer.read(size + 1)
    if len(data) != size:
        raise ModelError(f"a model's process gave {len(data)} bytes of logits, not {size}")
    return np.frombuffer(data, "<f4")
