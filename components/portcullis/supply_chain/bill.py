"""Bills of materials: CycloneDX 1.6 in JSON, of the installed software and of a model (ML-BOM).

Source: ECMA-424, CycloneDX 1.6 (cyclonedx.org/docs/1.6/json). The same input gives the same bytes: the serial number is
derived from the content and the time is the caller's. Nothing is claimed that was not measured: a library's entry has
name, version and package URL; a model's figures are those that its steps signed.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from portcullis import __version__
from portcullis.digest import canonical_json
from portcullis.evidence.policy import Policy
from portcullis.evidence.statement import Statement, format_time
from portcullis.supply_chain.dependencies import Installed

SPEC_VERSION = "1.6"
_NAMESPACE = uuid.UUID("8f6f4c0e-6e0e-5e0b-9a53-5a1b0b0f6d1e")  # of our serial numbers alone


def software_bill(installed: Iterable[Installed], *, time: int) -> dict[str, Any]:
    """Return the bill of the installed distributions.

    Args:
        installed: What `find_installed` found.
        time: Milliseconds since the epoch.
    """
    return _bill(
        {"type": "application", "bom-ref": "environment", "name": "Python environment"},
        [_library(it) for it in installed],
        time=time,
    )


def model_bill(
    statements: Sequence[Statement], policy: Policy, *, content: str, time: int, installed: Iterable[Installed] = ()
) -> dict[str, Any]:
    """Return the bill of a model, its card filled from verified evidence.

    Args:
        statements: Of a chain that verified, in the policy's order.
        policy: By which it did.
        content: SHA-256 of the model's content.
        time: Milliseconds since the epoch.
        installed: The software to list with it.
    """
    by_stage: dict[str, list[Statement]] = {}
    for it in statements:
        by_stage.setdefault(it.stage, []).append(it)
    ingested = [it for it in by_stage.get("ingest", []) if isinstance(it.parameters.get("spec"), Mapping)]
    trained = [it for it in statements if "architecture" in it.parameters]
    data = list({it["bom-ref"]: it for it in map(_data, ingested)}.values())  # shards of one content are one
    parameters: dict[str, Any] = {"datasets": [{"ref": it["bom-ref"]} for it in data]} if data else {}
    if trained:
        architecture = str(trained[0].parameters["architecture"])
        parameters |= {"approach": {"type": "supervised"}, "modelArchitecture": architecture}
    for it in ingested[:1]:
        parameters |= {"task": "classification", "inputs": [{"format": _input(it.parameters["spec"])}]}
    metrics = [
        {"type": f"{it.step} {name}", "value": _number(value)}
        for it in statements
        if it.kind == "gate" and it.step in policy.steps
        for name, value in sorted(it.figures.items())
        if name in policy.step(it.step).checks and isinstance(value, int | float)
    ]
    card: dict[str, Any] = {"modelParameters": parameters} if parameters else {}
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    judged = [
        {"name": f"portcullis:verdict:{it.step}", "value": it.verdict} for it in statements if it.verdict is not None
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{content}",
        "name": policy.name,
        "version": content[:12],
        "hashes": [{"alg": "SHA-256", "content": content}],
        "modelCard": card,
        "properties": [
            {"name": "portcullis:policy", "value": f"{policy.name} version {policy.version} for {policy.environment}"},
            {"name": "portcullis:policy:sha256", "value": policy.digest},
            *judged,
        ],
    }
    return _bill(model, [*data, *map(_library, installed)], time=time)


def encode_bill(bill: Mapping[str, Any]) -> bytes:
    """Return a bill as canonical JSON and a newline."""
    return canonical_json(dict(bill)) + b"\n"


def _bill(subject: Mapping[str, Any], components: Sequence[Mapping[str, Any]], *, time: int) -> dict[str, Any]:
    body = {
        "metadata": {
            "timestamp": format_time(time),
            "tools": {"components": [{"type": "application", "name": "kfp-portcullis", "version": __version__}]},
            "component": dict(subject),
        },
        "components": list(components),
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": [it["bom-ref"] for it in components]}],
    }
    serial = uuid.uuid5(_NAMESPACE, canonical_json(body).decode())
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
    } | body


def _library(it: Installed) -> dict[str, Any]:
    purl = f"pkg:pypi/{quote(it.name)}@{quote(it.version)}"
    return {"type": "library", "bom-ref": purl, "name": it.name, "version": it.version, "purl": purl}


def _data(it: Statement) -> dict[str, Any]:
    """Return a data set's entry; its rows, columns and identifiers stay out."""
    digest = it.outputs["dataset"]
    spec = it.parameters["spec"]
    made: dict[str, Any] = {
        "type": "data",
        "bom-ref": f"data:{digest}",
        "name": str(spec.get("name") or it.step),
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "data": [{"type": "dataset"}],
    }
    if isinstance(licence := spec.get("license"), str) and licence:
        made["licenses"] = [{"license": {"name": licence}}]
    return made


def _input(spec: Mapping[str, Any]) -> str:
    shape = "x".join(str(it) for it in spec["features"]["shape"])
    return f"float32 {shape}, {_number(spec['features']['low'])} to {_number(spec['features']['high'])}"


def _number(value: float) -> str:
    return canonical_json(value).decode()
