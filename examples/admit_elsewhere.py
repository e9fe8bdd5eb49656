"""Encrypt, sign and admit a model that was trained elsewhere.

    python examples/admit_elsewhere.py --model DIR --data DIR --test DIR [--output DIR]

`start_chain` attests the training data as they came, `attest` that a task which Portcullis did not run made the model
of them. Whoever holds that key can say so of any model, and this policy says that this is enough. What was judged is
what is sealed, signed and admitted.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kfp import components, dsl
from kfp.dsl import Artifact, Dataset, Model

from portcullis.harden import harden, secret_name, secure_pipeline
from portcullis.robustness.settings import RobustnessSettings
from portcullis_pipelines import home as homes
from portcullis_pipelines.local import guarded, run_pipeline

NAME = "admit-elsewhere"
STAGES = Path(__file__).parents[1] / "components" / "portcullis"
ATTACK = dataclasses.asdict(RobustnessSettings())
NO_GPU = {"gpus": "0", "gpu_resource": "nvidia.com/gpu"}

start_chain = components.load_component_from_file(str(STAGES / "attestation" / "start.yaml"))
attest = components.load_component_from_file(str(STAGES / "attestation" / "pipeline.yaml"))
robustness_gate = components.load_component_from_file(str(STAGES / "robustness" / "pipeline.yaml"))
encrypt = components.load_component_from_file(str(STAGES / "encryption" / "pipeline.yaml"))
sign = components.load_component_from_file(str(STAGES / "signing" / "pipeline.yaml"))
admit = components.load_component_from_file(str(STAGES / "admission" / "pipeline.yaml"))


def policy_steps(recipients: list[str]) -> list[dict[str, Any]]:
    """Return what the policy demands before a model is admitted."""
    blank = {"kind": "transform", "requires": [], "parameters": {}, "checks": {}}
    return [
        {
            **blank,
            "name": "start_chain",
            "stage": "start_chain",
            "inputs": {"policy": "policy", "artifact": "external"},
            "outputs": ["artifact"],
        },
        {
            **blank,
            "name": "training",
            "stage": "attest",
            "inputs": {"material": "start_chain.artifact"},
            "outputs": ["product"],
        },
        {
            **blank,
            "name": "robustness",
            "stage": "robustness_gate",
            "kind": "gate",
            "inputs": {"model": "training.product", "test": "external"},
            "outputs": ["model"],
            "parameters": ATTACK,
            "checks": {"robust_accuracy": {"min": 0.75, "max": 1}, "samples": {"min": 100}},
        },
        {
            **blank,
            "name": "encrypt",
            "stage": "encrypt",
            "inputs": {"model": "training.product"},
            "outputs": ["sealed"],
            "requires": ["robustness"],
            "parameters": {"recipients": recipients},
        },
        {
            **blank,
            "name": "sign",
            "stage": "sign",
            "inputs": {"sealed": "encrypt.sealed"},
            "outputs": ["signature"],
        },
        {
            **blank,
            "name": "admit",
            "stage": "admit",
            "kind": "admission",
            "inputs": {"sealed": "encrypt.sealed", "signature": "sign.signature"},
            "outputs": ["admission"],
        },
    ]


@secure_pipeline(name=NAME)
def admit_elsewhere(model_uri: str, data_uri: str, test_uri: str, recipients: list[str]) -> NamedTuple(
    "Outputs", [("sealed", Model), ("signature", Artifact), ("admission", Artifact)]
):
    """Attest, judge, encrypt, sign and admit.

    Args:
        model_uri: Where the model lies.
        data_uri: Where the data lie that it was trained on.
        test_uri: Where the test rows lie.
        recipients: Key ids of those who can open the sealed model.

    Returns:
        sealed: The sealed model.
        signature: Its OpenSSF model signature.
        admission: Its signed admission.
    """
    model = dsl.importer(artifact_uri=model_uri, artifact_class=Model, reimport=True).output
    data = dsl.importer(artifact_uri=data_uri, artifact_class=Dataset, reimport=True).output
    test = dsl.importer(artifact_uri=test_uri, artifact_class=Dataset, reimport=True).output
    started = harden(start_chain(artifact=data, step="start_chain"), secret=secret_name("start_chain"))
    trained = attest(
        material=data,
        product=model,
        evidence=started.outputs["evidence"],
        step="training",
        secret=secret_name("training"),
        **NO_GPU,
    )
    judged = robustness_gate(
        model=model,
        test=test,
        evidence=trained.outputs["attested_evidence"],
        step="robustness",
        secret=secret_name("robustness"),
        **ATTACK,
        **NO_GPU,
    )
    sealed = encrypt(
        model=model,
        evidence=judged.outputs["evidence"],
        recipients=recipients,
        step="encrypt",
        secret=secret_name("encrypt"),
        **NO_GPU,
    )
    signed = sign(
        sealed=sealed.outputs["sealed"],
        evidence=sealed.outputs["sealed_evidence"],
        step="sign",
        secret=secret_name("sign"),
        **NO_GPU,
    )
    admitted = admit(
        sealed=sealed.outputs["sealed"],
        signature=signed.outputs["signature"],
        evidence=signed.outputs["signature_evidence"],
        secret=secret_name("admit"),
        **NO_GPU,
    )
    outputs = NamedTuple("Outputs", [("sealed", Model), ("signature", Artifact), ("admission", Artifact)])
    return outputs(
        sealed=sealed.outputs["sealed"],
        signature=signed.outputs["signature"],
        admission=admitted.outputs["admission"],
    )


def run(model: Path, data: Path, test: Path, output: Path) -> homes.Home:
    """Make keys and a policy, and run the pipeline below `output`."""
    home = homes.Home(homes.home_root() / NAME)
    homes.generate_keys(home, [step["name"] for step in policy_steps([])])
    recipients = [homes.sealing_key(home).public_key().key_id]
    homes.ensure_policy(home, NAME, policy_steps(recipients))
    os.environ.update(home.environment)
    arguments = {"model_uri": str(model), "data_uri": str(data), "test_uri": str(test), "recipients": recipients}
    run_pipeline(admit_elsewhere, arguments, output)
    return home


def main() -> None:
    """Admit the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--data", type=Path, required=True, help="directory of the rows that it was trained on")
    parser.add_argument("--test", type=Path, required=True, help="directory of the test rows")
    parser.add_argument("--output", type=Path, default=Path("admit-elsewhere-run"), help="where the artifacts go")
    chosen = parser.parse_args()
    places = (chosen.model.absolute(), chosen.data.absolute(), chosen.test.absolute(), chosen.output.absolute())
    home = run(*places)
    print(f"admitted; sealed model, signature and admission below {chosen.output}; keys and trust store in {home.root}")


if __name__ == "__main__":
    sys.exit(guarded(main))
