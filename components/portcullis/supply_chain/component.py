"""The KFP gate `model_scan_gate` and the components `convert_model` and `verify_dependencies`."""

from typing import Any, Dict, List, NamedTuple

from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import TRUST_CONFIG_MAP, harden


@component
def scan_model(
    model: Input[Model],
    evidence: Input[Artifact],
    voices: List[str],
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Judge a model's files without loading them, and sign the verdict.

    Args:
        model: A file or a folder of files.
        evidence: Its evidence.
        voices: Other scanners that are asked too, `modelscan` or `picklescan`; they can only refuse.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict, file by file.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.supply_chain.stage import scan_model_files as run

    statement = run(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        voices=voices,
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("model-scan-gate")
def model_scan_gate(
    model: Input[Model],
    evidence: Input[Artifact],
    voices: List[str],
    step: str,
    secret: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model with a file that is not plainly a file of tensors; none of them is loaded.

    Args:
        model: A file or a folder of files.
        evidence: Its evidence.
        voices: Other scanners that are asked too, `modelscan` or `picklescan`; they can only refuse.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `scan_model`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = scan_model(model=model, evidence=evidence, voices=voices, step=step)
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])


@component
def convert_model(
    checkpoint: Input[Model],
    evidence: Input[Artifact],
    key: str,
    spec: Dict[str, Any],
    model: Output[Model],
    model_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "convert_model",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Turn a PyTorch checkpoint, or an exported program, into a model of an installed architecture.

    Refuses a checkpoint that the model scan refuses. It is loaded by PyTorch's restricted loader, in a process without
    keys, environment, network, files or further processes. A program is translated there, and never loaded.

    Args:
        checkpoint: What `torch.save` or `torch.export.save` wrote, or skl2onnx of trees.
        evidence: Its evidence.
        key: Under which name the checkpoint holds the state dictionary; empty if it is one, and for a program.
        spec: What `model.json` says: architecture, options, input, labels; of a program `exported-graph`, no options.
        step: Name of this step in the policy.
        model: The model.
        model_evidence: The evidence with this step's statement.
        metrics: Tensors and bytes.

    Returns:
        digest: SHA-256 of the model.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.supply_chain.stage import convert_model as run

    statement = run(
        step=step,
        checkpoint=Path(checkpoint.path),
        evidence=Path(evidence.path),
        key=key,
        spec=spec,
        model=Path(model.path),
        bundle=Path(model_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["model"])


@component
def verify_dependencies(
    lock: Input[Artifact],
    evidence: Input[Artifact],
    beside: List[str],
    voices: List[str],
    sbom: Output[Artifact],
    sbom_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "verify_dependencies",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Refuse unless the image that this runs in holds what a lock says, and write its bill of materials.

    Each distribution must be in the lock in that version, and its files must be as they were installed.

    Args:
        lock: A requirements file that pins everything by version and SHA-256.
        evidence: Its evidence.
        beside: Names that may be installed though the lock does not name them, `kfp-portcullis` among them.
        voices: Who is asked too: `pip-audit`, which must be installed and needs the network. It can only refuse.
        step: Name of this step in the policy.
        sbom: The bill of materials, CycloneDX 1.6 in JSON.
        sbom_evidence: The evidence with this step's statement.
        metrics: Distributions and files.

    Returns:
        digest: SHA-256 of the bill.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.supply_chain.stage import verify_dependencies as run

    statement = run(
        step=step,
        lock=Path(lock.path),
        evidence=Path(evidence.path),
        beside=beside,
        voices=voices,
        sbom=Path(sbom.path),
        bundle=Path(sbom_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["sbom"])
