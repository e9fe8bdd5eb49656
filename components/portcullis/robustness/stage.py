"""The robustness gate's `evaluate`: attack a model on the attested test rows and sign the verdict.

The model is opened and attacked in a locked child process, without keys, environment, network or files. This process
has the keys and never opens the model; it signs what it believes of the child's answer, after the child is gone.
"""

import dataclasses
import hmac
from pathlib import Path

from portcullis.at_rest import read_input
from portcullis.dataset import parse_dataset
from portcullis.digest import content_digest
from portcullis.errors import DataError, InconclusiveError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import Step, begin
from portcullis.files import write_bytes
from portcullis.models.store import read_model_files
from portcullis.report import gate_page
from portcullis.robustness.isolated import measured
from portcullis.robustness.settings import RobustnessSettings
from portcullis.robustness.verdict import Question


def evaluate_robustness(
    *, step: str, model: Path, test: Path, evidence: Path, settings: RobustnessSettings, report: Path, bundle: Path
) -> Statement:
    """Attack a model and state what it withstood.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory.
        test: The attested test rows.
        evidence: The bundle of evidence of both.
        settings: The plan of attack.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model and these very rows.
        SealError: The rows were altered at rest, or lie in plain text.
        KeyMaterialError: There is no key to open them.
        ConfigError: The settings' threat is malformed, or names what these rows have not.
        MissingDependencyError: PyTorch or torchattacks is not installed.
        UsageError: This system cannot lock a process in.
    """
    model_files, test_files = read_model_files(model), read_input(step, "test", test)
    begun = begin(
        step,
        stage="robustness_gate",
        inputs={"model": content_digest(model_files), "test": content_digest(test_files)},
        parameters=dataclasses.asdict(settings),
        evidence=[evidence],
    )
    figures: dict[str, Figure] = {}
    details: list[str] = []
    inconclusive = ""
    try:
        question = _question(begun) if settings.mode == "verdict" else None
        found = measured(model_files, parse_dataset(test_files), settings, question)
        figures, details = dict(found.figures), found.details
    except (InconclusiveError, DataError, ModelError) as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, details).encode())
    return statement


def _question(begun: Step) -> Question:
    """Return what the policy asks; the key of the order is derived from this gate's own, and orders these rows only."""
    check = begun.rule.checks.get("robust_accuracy")
    if check is None or check.low is None or (check.high is not None and check.high < 1):
        raise InconclusiveError("mode=verdict needs a policy that bounds robust_accuracy from below, and only there")
    subjects = (begun.inputs["model"], begun.inputs["test"], begun.store.policy.digest)
    key = hmac.digest(begun.signer.derive(b"robustness-order"), "|".join(subjects).encode(), "sha256")
    return Question(check.low, key, subjects)
