"""Whether a suspect model bears a mark: read blind, and where that does not find it, aligned to the unmarked model."""

from collections.abc import Mapping
from dataclasses import dataclass

from portcullis.errors import ModelError, UsageError
from portcullis.evidence.statement import Figure
from portcullis.watermark.align import align
from portcullis.watermark.mark import Claim, Null, Reading, Tensors, decoy_null, read

# Every reading that there may be counts, whether or not it was needed (Bonferroni).
WAYS = 2


@dataclass(frozen=True)
class Examination:
    """What was read in a suspect's weights.

    Attributes:
        way: `blind` or `aligned`: the reading that counts, which is the one of the smallest p-value.
        reading: That reading; its p-values are corrected for all that were or might have been tried.
        null: What decoy keys read in the same weights.
        likeness: How alike the aligned suspect and the unmarked model are, -1..1; None when it was not aligned.
    """

    way: str
    reading: Reading
    null: Null
    likeness: float | None

    @property
    def verdict(self) -> str:
        """PRESENT, ABSENT or INCONCLUSIVE."""
        return self.reading.verdict

    def figures(self) -> dict[str, Figure]:
        """Return it as figures of evidence."""
        return {
            **reading_figures(self.reading),
            "tried": self.reading.tried,
            "present": int(self.verdict == "PRESENT"),
            "verdict": self.verdict,
            "way": self.way,
            **({} if self.likeness is None else {"likeness": self.likeness}),
            "decoys": self.null.decoys,
            "decoy_mean_z": self.null.mean,
            "decoy_sd_z": self.null.sd,
            "decoy_max_z": self.null.maximum,
        }


def examine(suspect: Tensors, unmarked: Tensors, key: bytes, claim: Claim, *, tried: int = WAYS) -> Examination:
    """Read a suspect's mark.

    Args:
        suspect: Its tensors by name, of any names and shapes, finite.
        unmarked: The tensors of the model that was marked.
        key: The owner's key, 32 bytes.
        claim: What the mark is said to say.
        tried: How many readings, keys, claims and models are tried in all; both ways of this one included.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
        UsageError: `tried` is below two.
        ModelError: Neither way finds weights to read.
        MissingDependencyError: The suspect must be aligned, and SciPy is not installed.
    """
    if tried < WAYS:
        raise UsageError(f"tried must be at least {WAYS}: there are so many ways to read")
    try:
        blind = read(suspect, key, claim, tried=tried)
    except ModelError:  # its own tensors hold too little; in the unmarked model's shapes there may be more
        blind = None
    if blind is not None and blind.verdict == "PRESENT":
        return Examination("blind", blind, decoy_null(suspect, key), None)
    alignment = align(suspect, unmarked)
    aligned = read(alignment.tensors, key, claim, tried=tried)
    if blind is not None and blind.log10_p_hoeffding <= aligned.log10_p_hoeffding:
        return Examination("blind", blind, decoy_null(suspect, key), alignment.likeness)
    return Examination("aligned", aligned, decoy_null(alignment.tensors, key), alignment.likeness)


def reading_figures(reading: Reading) -> Mapping[str, Figure]:
    """Return a reading as figures of evidence."""
    return {
        "bits": reading.bits,
        "bits_read": reading.bits_read,
        "z": reading.z,
        "margin": reading.margin,
        "log10_p_hoeffding": reading.log10_p_hoeffding,
        "log10_p_binomial": reading.log10_p_binomial,
    }
