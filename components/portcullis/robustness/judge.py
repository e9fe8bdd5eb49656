"""The gate's measurement without a pipeline, for a notebook, a test or CI: nothing is signed."""

from dataclasses import dataclass
from pathlib import Path

from portcullis.dataset import read_dataset
from portcullis.errors import UsageError
from portcullis.models.store import read_model_files
from portcullis.report import page, section, table
from portcullis.robustness.isolated import Measured, measured
from portcullis.robustness.settings import RobustnessSettings


@dataclass(frozen=True)
class Judged:
    """A measurement, and its page as HTML."""

    measured: Measured
    page: str

    @property
    def robust_accuracy(self) -> float:
        """Share of rows, in 0..1, that are classified correctly and withstand every attack."""
        return float(self.measured.figures["robust_accuracy"])


def judge_model(model: Path, data: Path, settings: RobustnessSettings | None = None) -> Judged:
    """Attack a model on a data set, both from disk; in a locked child process, as the gate does.

    Args:
        model: Directory that `portcullis.models.store.save_model` wrote.
        data: Directory that `portcullis.dataset.write_dataset` wrote, of rows that the model was not trained on.
        settings: The plan, in mode `full`; the defaults, which suit digits, when None. With a `threat`, the model is
            taken for a black box of tables, that answers with probabilities.

    Raises:
        UsageError: `settings` are of another mode, which needs a policy and a gate's key; or this system cannot lock a
            process in.
        ConfigError: The threat is malformed, or names what is not in the data set.
        ModelError: The model cannot be loaded, or does not fit the data set.
        DataError: The data set cannot be read.
        InconclusiveError: Nothing can be judged, as `portcullis.robustness.evaluate.evaluate` and
            `portcullis.robustness.tabular.judge_black_box` say.
    """
    settings = settings or RobustnessSettings()
    if settings.mode != "full":
        raise UsageError("without a policy there is no bound to decide by; use mode=full")
    found = measured(read_model_files(model), read_dataset(data), settings)
    content = [section("Figures"), table(("figure", "measured"), found.figures.items()), *found.details]
    return Judged(found, page("Robustness", content))
