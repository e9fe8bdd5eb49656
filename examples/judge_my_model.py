"""The robustness gate on a model of your own, as a pipeline of two steps.

    python examples/judge_my_model.py --model DIR --test DIR [--output DIR --least 0.75 --shards 3]

The model is what `portcullis.models.store.save_model` writes, the test rows what `portcullis.dataset.write_dataset`
does. Evidence begins where Portcullis is first called: with `start_chain`, which attests the model as it came. With
`--shards`, several tasks attack the model at the same time, each on a part of the rows.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kfp import components, dsl
from kfp.dsl import Artifact, Dataset, Model

from portcullis.evidence.shards import MAX_SHARDS, shards_of
from portcullis.harden import harden, secret_name, secure_pipeline
from portcullis.robustness.settings import RobustnessSettings
from portcullis_pipelines import home as homes
from portcullis_pipelines.local import guarded, run_pipeline

NAME = "judge-my-model"
STAGES = Path(__file__).parents[1] / "components" / "portcullis"
ATTACK = dataclasses.asdict(RobustnessSettings())

start_chain = components.load_component_from_file(str(STAGES / "attestation" / "start.yaml"))
robustness_gate = components.load_component_from_file(str(STAGES / "robustness" / "pipeline.yaml"))
robustness_gate_over_shards = components.load_component_from_file(str(STAGES / "robustness" / "over_shards.yaml"))


def policy_steps(least: float, shards: int = 1) -> list[dict[str, Any]]:
    """Return what the policy demands: the model's robust accuracy, under exactly these attacks."""
    gate = {
        "name": "robustness",
        "kind": "gate",
        "outputs": ["model"],
        "requires": [],
        "checks": {"robust_accuracy": {"min": least, "max": 1}, "samples": {"min": 100}},
    }
    attacked = {"model": "start_chain.artifact", "test": "external"}
    judged = [{**gate, "stage": "robustness_gate", "inputs": attacked, "parameters": ATTACK}]
    if shards > 1:
        judged = [
            {
                "name": "attack_shard",
                "stage": "attack_shard",
                "kind": "transform",
                "inputs": attacked,
                "outputs": ["outcome"],
                "requires": [],
                "parameters": ATTACK,
                "checks": {},
                "shards": shards,
            },
            {
                **gate,
                "stage": "robustness_gate_over_shards",
                "inputs": {"model": "start_chain.artifact", "outcome": "attack_shard.outcome"},
                "parameters": {},
            },
        ]
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
        *judged,
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


@secure_pipeline(name=f"{NAME}-over-shards")
def judge_over_shards(model_uri: str, test_uri: str, shards: list[str]) -> NamedTuple(
    "Outputs", [("evidence", Artifact)]
):
    """As `judge_my_model`, over shards.

    Args:
        model_uri: Where the model lies.
        test_uri: Where the test rows lie.
        shards: The shards' names in the policy.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    model = dsl.importer(artifact_uri=model_uri, artifact_class=Model, reimport=True).output
    test = dsl.importer(artifact_uri=test_uri, artifact_class=Dataset, reimport=True).output
    started = harden(start_chain(artifact=model, step="start_chain"), secret=secret_name("start_chain"))
    judged = robustness_gate_over_shards(
        model=model,
        test=test,
        evidence=started.outputs["evidence"],
        settings=ATTACK,
        shards=shards,
        step="robustness",
        secret=secret_name("robustness"),
        shard_secret=secret_name("attack_shard"),
        gpus="0",
        gpu_resource="nvidia.com/gpu",
    )
    return NamedTuple("Outputs", [("evidence", Artifact)])(evidence=judged.outputs["evidence"])


def run(model: Path, test: Path, output: Path, *, least: float, shards: int = 1) -> homes.Home:
    """Make keys and a policy, and run the pipeline below `output`."""
    home = homes.Home(homes.home_root() / NAME)
    steps = policy_steps(least, shards)
    homes.generate_keys(home, [step["name"] for step in steps])
    homes.ensure_policy(home, NAME, steps)
    os.environ.update(home.environment)
    given: dict[str, Any] = {"model_uri": str(model), "test_uri": str(test)}
    if shards > 1:
        given["shards"] = [f"attack_shard#{shard}" for shard in shards_of(shards)]
    run_pipeline(judge_my_model if shards == 1 else judge_over_shards, given, output)
    return home


def main() -> None:
    """Judge the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--test", type=Path, required=True, help="directory of the test rows")
    parser.add_argument("--output", type=Path, default=Path("judge-my-model-run"), help="where the artifacts go")
    parser.add_argument("--least", type=float, default=0.75, help="least robust accuracy, 0 to 1")
    parser.add_argument("--shards", type=int, default=1, help=f"how many tasks share the test rows, 1 to {MAX_SHARDS}")
    chosen = parser.parse_args()
    if not 1 <= chosen.shards <= MAX_SHARDS:
        parser.error(f"--shards is from 1 to {MAX_SHARDS}")
    paths = (chosen.model.absolute(), chosen.test.absolute(), chosen.output.absolute())
    home = run(*paths, least=chosen.least, shards=chosen.shards)
    print(f"PASSED; report and evidence below {chosen.output}; keys and trust store in {home.root}")


if __name__ == "__main__":
    sys.exit(guarded(main))
