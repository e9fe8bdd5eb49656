"""The robustness gate on a model of your own, as a pipeline of two steps.

    python examples/judge_my_model.py --model DIR --test DIR [--output DIR --least 0.75]

The model is what `portcullis.models.store.save_model` writes, the test rows what `portcullis.dataset.write_dataset`
does. Evidence begins where Portcullis is first called: with `start_chain`, which attests the model as it came.
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

NAME = "judge-my-model"
STAGES = Path(__file__).parents[1] / "components" / "portcullis"
ATTACK = dataclasses.asdict(RobustnessSettings())

start_chain = components.load_component_from_file(str(STAGES / "attestation" / "start.yaml"))
robustness_gate = components.load_component_from_file(str(STAGES / "robustness" / "pipeline.yaml"))


def policy_steps(least: float) -> list[dict[str, Any]]:
    """Return what the policy demands: the model's robust accuracy, under exactly these attacks."""
    return [
        {
            "name": "start_chain",
            "stage": "start_chain",
            "kind": "transform",
            "inputs": {"policy": "policy", "artifact": "external"},
            "outputs": ["artifact"],
            "requires": [],
            "parameters": {},
            "checks": {},
        },
        {
            "name": "robustness",
            "stage": "robustness_gate",
            "kind": "gate",
            "inputs": {"model": "start_chain.artifact", "test": "external"},
            "outputs": ["model"],
            "requires": [],
            "parameters": ATTACK,
            "checks": {"robust_accuracy": {"min": least, "max": 1}, "samples": {"min": 100}},
        },
    ]


@secure_pipeline(name=NAME)
def judge_my_model(model_uri: str, test_uri: str) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Attest a model as it came, then attack it.

    Args:
        model_uri: Where the model lies.
        test_uri: Where the test rows lie.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    # Imported anew each time: what once lay at a URI says nothing of what lies there now.
    model = dsl.importer(artifact_uri=model_uri, artifact_class=Model, reimport=True).output
    test = dsl.importer(artifact_uri=test_uri, artifact_class=Dataset, reimport=True).output
    started = harden(start_chain(artifact=model, step="start_chain"), secret=secret_name("start_chain"))
    judged = robustness_gate(
        model=model,
        test=test,
        evidence=started.outputs["evidence"],
        step="robustness",
        secret=secret_name("robustness"),
        gpus="0",
        gpu_resource="nvidia.com/gpu",
        **ATTACK,
    )
    return NamedTuple("Outputs", [("evidence", Artifact)])(evidence=judged.outputs["evidence"])


def run(model: Path, test: Path, output: Path, *, least: float) -> homes.Home:
    """Make keys and a policy, and run the pipeline below `output`."""
    home = homes.Home(homes.home_root() / NAME)
    steps = policy_steps(least)
    homes.generate_keys(home, [step["name"] for step in steps])
    homes.ensure_policy(home, NAME, steps)
    os.environ.update(home.environment)
    run_pipeline(judge_my_model, {"model_uri": str(model), "test_uri": str(test)}, output)
    return home


def main() -> None:
    """Judge the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--test", type=Path, required=True, help="directory of the test rows")
    parser.add_argument("--output", type=Path, default=Path("judge-my-model-run"), help="where the artifacts go")
    parser.add_argument("--least", type=float, default=0.75, help="least robust accuracy, 0 to 1")
    chosen = parser.parse_args()
    home = run(chosen.model.absolute(), chosen.test.absolute(), chosen.output.absolute(), least=chosen.least)
    print(f"PASSED; report and evidence below {chosen.output}; keys and trust store in {home.root}")


if __name__ == "__main__":
    sys.exit(guarded(main))
