"""What marking does with training rows: triggers are learnt, accuracy is kept, and the mark outlives training on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.errors import ModelError
from portcullis.evidence.statement import Figure
from portcullis.models.store import WEIGHTS_FILE, load_model_files
from portcullis.watermark.mark import Claim, Tensors
from portcullis.watermark.triggers import Triggers, ask, triggers
from portcullis.watermark.weights import decode_weights

MAX_ACCURACY_DROP = 0.005

Files = Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Learner:
    """An unmarked model, the rows that it was trained on, and the triggers that it is to learn.

    Attributes:
        files: The two files of the unmarked model.
        features: Raw features (N, D).
        labels: Class indices (N,).
        asked: The triggers; None for none.
    """

    files: Files
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    asked: Triggers | None

    @classmethod
    def of(cls, files: Files, rows: Files, key: bytes, claim: Claim, count: int) -> "Learner":
        """Read a model's training rows, and make `count` triggers for it.

        Raises:
            DataError: The rows are malformed.
            ModelError: The model is malformed, or does not take these rows.
            ConfigError: Too few triggers or too many.
        """
        spec, parsed = load_model_files(files).spec, parse_dataset(rows)
        spec.require_fit(parsed.spec)
        features, labels = features_and_labels(parsed)
        return cls(files, features, labels, triggers(key, claim, spec, count) if count else None)

    def taught(self) -> Files:
        """Return the model that has learnt its triggers."""
        from portcullis.watermark.teach import teach

        return teach(self.files, self.features, self.asked) if self.asked else self.files

    def judged(self, marked: Files) -> dict[str, Figure]:
        """Return how the marked model answers rows and triggers.

        Raises:
            ModelError: It answers more than 0.5 % of its training rows wrongly beyond what it did before, or not every
                trigger as it says.
        """
        drop = self._accuracy(self.files) - self._accuracy(marked)
        if not drop <= MAX_ACCURACY_DROP:
            raise ModelError(
                f"marking costs {drop:.4f} of the accuracy on the training rows; {MAX_ACCURACY_DROP} is most"
            )
        figures: dict[str, Figure] = {"accuracy_drop": drop}
        if self.asked:
            answers = ask(load_model_files(marked).predict, self.asked)
            if answers.right != answers.asked:
                raise ModelError(f"the model learnt {answers.right} of {answers.asked} triggers; ask for fewer")
            figures |= {"triggers": answers.asked, "log10_p_triggers": answers.log10_p_binomial}
        return figures

    def trained_on(self, marked: Files) -> Tensors:
        """Return the tensors of the marked model after some more training on its rows."""
        from portcullis.watermark.teach import fine_tune

        return decode_weights(fine_tune(marked, self.features, self.labels)[WEIGHTS_FILE])

    def _accuracy(self, files: Files) -> float:
        return float((load_model_files(files).predict(self.features) == self.labels).mean())
