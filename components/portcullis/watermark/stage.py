"""`watermark` marks a model by its owner's key; `verify_watermark_gate` passes a model that bears the mark."""

from collections.abc import Mapping
from pathlib import Path

from portcullis.at_rest import read_input
from portcullis.digest import content_digest
from portcullis.errors import ConfigError, ModelError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin, keys_base
from portcullis.files import atomic_path, write_bytes
from portcullis.keys import role_uri, symmetric_key
from portcullis.models.store import WEIGHTS_FILE, read_model_files
from portcullis.report import gate_page, paragraph
from portcullis.watermark.battery import BATTERY, attack
from portcullis.watermark.claims import open_commitment
from portcullis.watermark.examine import examine, reading_figures
from portcullis.watermark.learner import Learner
from portcullis.watermark.mark import Claim, Reading, Tensors, embed, read
from portcullis.watermark.weights import decode_weights, replace_weights

KEY = "watermark.key"


def watermark_model(
    *,
    step: str,
    model: Path,
    evidence: Path,
    owner: str,
    marked: Path,
    bundle: Path,
    dataset: Path | None = None,
    triggers: int = 0,
    soft_share: float = 0.0,
) -> Statement:
    """Mark a model, and make sure that the mark can be read from what is written and survives what is cheap to do.

    With training data, the model first learns its keyed answers, and the marked one is trained on to see the mark hold.

    Args:
        step: This step's name in the policy.
        model: The model's directory.
        evidence: Its bundle of evidence.
        owner: Whom the mark names.
        marked: Where the marked model's directory goes.
        bundle: Where the evidence goes.
        dataset: The rows that the model was trained on; None for a mark in the weights alone.
        triggers: How many triggers it is to learn, 50 to 10,000; 0 for none. They need `dataset`.
        soft_share: How much of its probability carries a mark in its soft labels, up to 0.5; 0 for none. It needs
            `dataset`.

    Raises:
        EvidenceError: The evidence does not hold for this very model and these rows.
        GateFailedError: A gate before this step FAILED.
        ModelError: The model is malformed, too small, does not hold the mark, does not learn its answers, or answers
            more of its training rows wrongly than before.
        DataError: The rows are malformed, or not the model's.
        SealError: The rows were altered at rest, or lie in plain text.
        ConfigError: The owner is no printable text; the triggers are too few or too many, the share of soft labels is
            none; or there is one of them without rows.
        InconclusiveError: There are too few rows to read soft labels at.
        KeyMaterialError: There is no watermark key, or none to open the rows.
        MissingDependencyError: There are rows, and PyTorch is not installed.
    """
    if (triggers or soft_share) and dataset is None:
        raise ConfigError("watermark: triggers and soft labels need the training rows; connect the input dataset")
    files = read_model_files(model)
    rows = read_input(step, "dataset", dataset) if dataset is not None else None
    digest = content_digest(files)
    begun = begin(
        step,
        stage="watermark",
        inputs={"model": digest, **({"dataset": content_digest(rows)} if rows is not None else {})},
        parameters={"owner": owner, **({"triggers": triggers, "soft_share": soft_share} if rows is not None else {})},
        evidence=[evidence],
    )
    key, claim = _key(), Claim(owner, digest)
    learner = Learner.of(files, rows, key, claim, count=triggers, share=soft_share) if rows is not None else None
    files = dict(learner.taught()) if learner else files
    mark = embed(decode_weights(files[WEIGHTS_FILE]), key, claim)
    files = {**files, WEIGHTS_FILE: replace_weights(files[WEIGHTS_FILE], mark.tensors)}
    tensors = decode_weights(files[WEIGHTS_FILE])  # what is believed to be marked is what will be written
    figures: dict[str, Figure] = {
        "carriers": mark.carriers,
        "rho": mark.rho,
        "relative_change": mark.change,
        **reading_figures(_require_mark("as it is written", read(tensors, key, claim), all_bits=True)),
        **(learner.judged(files) if learner else {}),
    }
    attacked: dict[str, Tensors] = {name: attack(tensors, change) for name, change in BATTERY.items()}
    if learner:
        attacked["fine_tune"] = learner.trained_on(files)
    for name, changed in attacked.items():
        reading = _require_mark(f"after {name}", read(changed, key, claim))
        figures[f"log10_p_hoeffding_{name}"] = reading.log10_p_hoeffding
    output = content_digest(files)
    opening = open_commitment(
        key, claim, marked=output, tensors=tensors, bits=mark.bits, triggers=triggers, soft_share=soft_share
    )
    figures["commitment"] = opening.digest
    with atomic_path(marked) as temporary:
        temporary.mkdir()
        for file, data in files.items():
            write_bytes(temporary / file, data)
    return begun.finish(bundle=bundle, outputs={"model": output}, figures=figures)


def verify_watermark(
    *, step: str, model: Path, unmarked: Path, evidence: Path, owner: str, report: Path, bundle: Path
) -> Statement:
    """Read a model's mark, blind or else aligned to the unmarked model, and sign the verdict.

    Whatever cannot be judged soundly is FAILED, with the reason `inconclusive`.

    Args:
        step: This gate's name in the policy.
        model: The model's directory.
        unmarked: The directory of the model that was marked.
        evidence: The bundle of evidence of both.
        owner: Whom the mark must name.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for these very models.
        ModelError: A directory does not hold a model's two files.
        ConfigError: The owner is no printable text.
        KeyMaterialError: There is no watermark key.
    """
    files, originals = read_model_files(model), read_model_files(unmarked)
    begun = begin(
        step,
        stage="verify_watermark_gate",
        inputs={"model": content_digest(files), "unmarked": content_digest(originals)},
        parameters={"owner": owner},
        evidence=[evidence],
    )
    key, claim = _key(), Claim(owner, content_digest(originals))
    figures: Mapping[str, Figure] = {}
    inconclusive = ""
    try:
        original = decode_weights(originals[WEIGHTS_FILE])
        figures = examine(decode_weights(files[WEIGHTS_FILE]), original, key, claim).figures()
    except ModelError as error:
        inconclusive = str(error)
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, [paragraph(_LIMIT, kind="dim")]).encode())
    return statement


_LIMIT = (
    "A mark in the weights does not survive distillation, nor the mean of five owners' copies; one in soft labels, "
    "where there is one, is taken over by students of probabilities only: "
    "an ABSENT mark does not prove that a model was not made from this one."
)


def _key() -> bytes:
    return symmetric_key(role_uri(keys_base(), KEY))


def _require_mark(when: str, reading: Reading, *, all_bits: bool = False) -> Reading:
    if reading.verdict != "PRESENT" or (all_bits and reading.bits_read != reading.bits):
        raise ModelError(
            f"the mark does not hold {when}: {reading.bits_read} of {reading.bits} bits, "
            f"p <= 1e{reading.log10_p_hoeffding:.1f}; mark a larger model"
        )
    return reading
