"""`model_scan_gate`, `convert_model`, `verify_dependencies`: judge what comes from outside, without running it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from portcullis.digest import canonical_json, path_digest, sha256
from portcullis.errors import DataError, ModelError, UsageError
from portcullis.evidence.statement import Figure, Statement
from portcullis.evidence.step import begin
from portcullis.evidence.trust import now_ms
from portcullis.files import read_bytes, write_bytes
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, load_model_files, save_model_files
from portcullis.report import gate_page, section, table
from portcullis.supply_chain.bill import encode_bill, software_bill
from portcullis.supply_chain.convert import convert_foreign
from portcullis.supply_chain.dependencies import (
    MAX_LOCK_BYTES,
    find_installed,
    judge_dependencies,
    read_lock,
    require_sound,
)
from portcullis.supply_chain.foreign import ForeignModel, Rows
from portcullis.supply_chain.scan import ScannedFile, scan_model
from portcullis.supply_chain.voices import AUDITOR, ask, ask_auditor, require_voices

SHOWN_FILES = 100


def scan_model_files(
    *, step: str, model: Path, evidence: Path, voices: Iterable[str], report: Path, bundle: Path
) -> Statement:
    """Judge every file of a model and state what was found.

    Args:
        step: This gate's name in the policy.
        model: A file or a directory of files.
        evidence: The bundle of its evidence.
        voices: Other scanners that are asked too: "modelscan", "picklescan". They can only refuse.
        report: Where the HTML report goes.
        bundle: Where the evidence goes, the verdict included.

    Raises:
        EvidenceError: The evidence does not hold for this very model.
        DataError: The model is missing, holds a link or a special file, or changed while it was judged.
        MissingDependencyError: A scanner that is to be asked is not installed.
        UsageError: This system cannot lock a process in, or knows no such scanner.
    """
    voices = list(voices)
    digest = path_digest(model)
    begun = begin(
        step, stage="model_scan_gate", inputs={"model": digest}, parameters={"voices": voices}, evidence=[evidence]
    )
    require_voices(voices)
    figures: dict[str, Figure] = {}
    scanned: tuple[ScannedFile, ...] = ()
    inconclusive = ""
    try:
        scanned = scan_model(model)
        objections = {voice: ask(voice, model) for voice in voices}
        figures = {
            "files": len(scanned),
            "refused_files": sum(bool(entry.refused) for entry in scanned),
            "tensors": sum(entry.tensors for entry in scanned),
            "elements": sum(entry.elements for entry in scanned),
            "objections": sum(map(bool, objections.values())),
        }
    except ModelError as error:
        inconclusive = str(error)
    if path_digest(model) != digest:
        raise DataError(f"{model} changed while it was judged; leave it alone and run again")
    statement = begun.finish(bundle=bundle, figures=figures, inconclusive=inconclusive)
    write_bytes(report, gate_page(statement, begun.rule, _listed(scanned)).encode())
    return statement


def _listed(scanned: tuple[ScannedFile, ...]) -> Iterator[str]:
    yield section("Files")
    refused_first = sorted(scanned, key=lambda entry: not entry.refused)
    rows = [
        (entry.path or "(the model)", entry.format, entry.tensors, entry.elements, entry.refused or "allowed")
        for entry in refused_first[:SHOWN_FILES]
    ]
    yield table(("file", "format", "tensors", "elements", "verdict"), rows)


def convert_model(
    *, step: str, checkpoint: Path, evidence: Path, key: str, spec: Mapping[str, Any], model: Path, bundle: Path
) -> Statement:
    """Turn a PyTorch checkpoint, or an exported program, into a model of an installed architecture.

    Args:
        step: This step's name in the policy.
        checkpoint: What `torch.save` or `torch.export.save` wrote, or skl2onnx of trees.
        evidence: Its bundle of evidence.
        key: Under which name the checkpoint holds the state dictionary; empty if it is one, and for a program.
        spec: What `model.json` says: architecture, options, input, labels. Of a program the architecture is
            `exported-graph`, of trees in ONNX `tree-ensemble`, and its options stay empty here: they come from the
            program.
        model: Where the model's directory goes.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very checkpoint.
        DataError: The checkpoint is missing, is no regular file, or changed while it was converted.
        ModelError: The scan refuses the checkpoint, it holds no state dictionary there, or its tensors are not exactly
            the architecture's; or the program is refused, or is of another architecture or shape or of more or fewer
            classes than `spec` says.
        MissingDependencyError: PyTorch is missing.
        UsageError: This system cannot lock a process in.
    """
    digest = path_digest(checkpoint)
    parameters = {"key": key, "spec": dict(spec)}
    begun = begin(
        step, stage="convert_model", inputs={"checkpoint": digest}, parameters=parameters, evidence=[evidence]
    )
    described = ModelSpec.from_json(canonical_json(dict(spec)))
    converted = convert_foreign(checkpoint, key=key, rows=Rows(described.low, described.high, described.labels))
    if isinstance(converted, ForeignModel):
        files = _foreign_files(converted, described)
    else:
        files = {SPEC_FILE: described.to_json(), WEIGHTS_FILE: converted}
    loaded = load_model_files(files)
    if path_digest(checkpoint) != digest:
        raise DataError(f"{checkpoint} changed while it was converted; leave it alone and run again")
    written = save_model_files(model, files)
    figures = {"tensors": len(loaded.module.state_dict()), "bytes": len(files[WEIGHTS_FILE])}
    return begun.finish(bundle=bundle, outputs={"model": written}, figures=figures)


def _foreign_files(found: ForeignModel, described: ModelSpec) -> dict[str, bytes]:
    """Return the files of a model that was a program, which must be what its description says."""
    if (found.architecture, found.shape) != (described.architecture, described.shape) or described.options:
        raise ModelError(
            f"the program is an {found.architecture} of inputs {list(found.shape)}; the description must say so, and "
            "have no options, which come from the program"
        )
    spec = found.spec(described.low, described.high, described.labels)
    return {SPEC_FILE: spec.to_json(), WEIGHTS_FILE: found.weights}


def verify_dependencies(
    *,
    step: str,
    lock: Path,
    evidence: Path,
    beside: Collection[str],
    voices: Collection[str],
    sbom: Path,
    bundle: Path,
) -> Statement:
    """Refuse unless what is installed where this runs is what a lock says, and write its bill of materials.

    Args:
        step: This step's name in the policy.
        lock: A requirements file with hashes.
        evidence: The bundle of its evidence.
        beside: Names that may be installed though the lock does not name them, Portcullis's own among them.
        voices: Who is asked too: "pip-audit", which needs the network. It can only refuse.
        sbom: Where the bill goes, CycloneDX 1.6 in JSON.
        bundle: Where the evidence goes.

    Raises:
        EvidenceError: The evidence does not hold for this very lock.
        ConfigError: The lock does not pin everything by version and hash.
        DataError: Something else is installed, or files are not as they were installed, or pip-audit refuses the lock.
        MissingDependencyError: pip-audit is to be asked and not installed.
        UsageError: Somebody else is to be asked.
    """
    beside, voices = sorted(beside), list(voices)
    data = read_bytes(lock, limit=MAX_LOCK_BYTES)
    begun = begin(
        step,
        stage="verify_dependencies",
        inputs={"lock": sha256(data)},
        parameters={"beside": beside, "voices": voices},
        evidence=[evidence],
    )
    if not set(voices) <= {AUDITOR}:
        raise UsageError(f"of dependencies only {AUDITOR} can be asked, not {', '.join(voices)}")
    found = judge_dependencies(find_installed(), read_lock(data), beside=beside)
    require_sound(found)
    if voices and (objection := ask_auditor(data)):
        raise DataError(objection)
    bill = encode_bill(software_bill(found.installed, time=now_ms()))
    write_bytes(sbom, bill)
    figures = {
        "distributions": len(found.installed),
        "files": sum(it.files for it in found.installed),
        "unhashed_files": sum(it.unhashed for it in found.installed),
    }
    return begun.finish(bundle=bundle, outputs={"sbom": sha256(bill)}, figures=figures)
