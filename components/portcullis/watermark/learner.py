"""What marking does with training rows: keyed answers are learnt, accuracy is kept, the mark outlives training on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portcullis.dataset import features_and_labels, parse_dataset
from portcullis.errors import ModelError
from portcullis.evidence.statement import Figure
from portcullis.models.store import WEIGHTS_FILE, load_model_files
from portcullis.watermark.mark import Claim, Tensors
from portcullis.watermark.soft_labels import MAX_ROWS, Waves, read_soft_labels, require_share, waves
from portcullis.watermark.triggers import Triggers, ask, triggers
from portcullis.watermark.weights import decode_weights

MAX_ACCURACY_DROP = 0.005

Files = Mapping[str, bytes]


@dataclass(frozen=True, eq=False)
class Learner:
    """An unmarked model, the rows that it was trained on, and the answers that it is to learn.

    Attributes:
        files: The two files of the unmarked model.
        features: Raw features (N, D).
        labels: Class indices (N,).
        asked: The triggers; None for none.
        keyed: The waves of its soft labels; None for no mark there.
        share: How much of its probability follows them.
    """

    files: Files
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    asked: Triggers | None
    keyed: Waves | None
    share: float

    @classmethod
    def of(cls, files: Files, rows: Files, key: bytes, claim: Claim, *, count: int, share: float) -> "Learner":
        """Read a model's training rows, and make `count` triggers and the waves of its soft labels.

        Raises:
            DataError: The rows are malformed.
            ModelError: The model is malformed, or does not take these rows.
            ConfigError: Too few triggers or too many; a share of soft labels that is none, or a model of two classes.
        """
        spec, parsed = load_model_files(files).spec, parse_dataset(rows)
        spec.require_fit(parsed.spec)
        features, labels = features_and_labels(parsed)
        asked = triggers(key, claim, spec, count) if count else None
        keyed = waves(key, claim, spec) if share and require_share(share) else None
        return cls(files, features, labels, asked, keyed, share)

    def taught(self) -> Files:
        """Return the model that has learnt its answers."""
        if self.asked is None and self.keyed is None:
            return self.files
        from portcullis.watermark.teach import teach

        return teach(self.files, self.features, self.asked, self.keyed, self.share)

    def judged(self, marked: Files) -> dict[str, Figure]:
        """Return how the marked model answers rows and triggers, and what its soft labels tell.

        Raises:
            ModelError: It answers more than 0.5 % of its training rows wrongly beyond what it did before, or not every
                trigger as it says, or its soft labels do not tell the mark.
            InconclusiveError: There are too few rows to read soft labels at.
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
        if self.keyed:
            model, some = load_model_files(marked), self.features[:MAX_ROWS]
            reading = read_soft_labels(model.predict_probabilities(some), model.spec.scale(some), self.keyed)
            if reading.verdict != "PRESENT":
                raise ModelError(
                    f"the mark in the soft labels does not hold: z = {reading.z:.1f} at {reading.rows} rows, "
                    f"p <= 1e{reading.log10_p_hoeffding:.1f}; give it a larger soft_share, or more rows"
                )
            figures |= {"soft_z": reading.z, "log10_p_soft": reading.log10_p_hoeffding}
        return figures

    def trained_on(self, marked: Files) -> Tensors:
        """Return the tensors of the marked model after some more training on its rows."""
        from portcullis.watermark.teach import fine_tune

        return decode_weights(fine_tune(marked, self.features, self.labels)[WEIGHTS_FILE])

    def _accuracy(self, files: Files) -> float:
        return float((load_model_files(files).predict(self.features) == self.labels).mean())
