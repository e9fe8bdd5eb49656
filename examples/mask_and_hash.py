"""Mask and hash only: raw data in, masked data and signed digests out.

    python examples/mask_and_hash.py [--data FILE --config FILE --output DIR]

Without arguments it takes the reference data. The pipeline is made of stages loaded from their compiled YAML. What its
tasks pass on rests sealed; in the end the masked data are opened with the pipeline's key and written in plain text.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from kfp import components
from kfp.dsl import Artifact, Dataset

from portcullis.at_rest import open_dataset
from portcullis.dataset import parse_dataset, write_dataset
from portcullis.harden import secret_name, secure_pipeline
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis_pipelines import home as homes
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.local import guarded, run_pipeline
from portcullis_pipelines.steps import chosen_steps

NAME = "mask-and-hash"
STEPS = ("preflight", "ingest", "mask_pii", "residual_pii")
STAGES = Path(__file__).parents[1] / "components" / "portcullis"
NO_GPU = {"gpus": "0", "gpu_resource": "nvidia.com/gpu"}

preflight = components.load_component_from_file(str(STAGES / "preflight" / "pipeline.yaml"))
ingest = components.load_component_from_file(str(STAGES / "ingest" / "pipeline.yaml"))
mask_pii = components.load_component_from_file(str(STAGES / "pii" / "pipeline.yaml"))
residual_pii_gate = components.load_component_from_file(str(STAGES / "pii" / "gate.yaml"))


@secure_pipeline(name=NAME)
def mask_and_hash(data_uri: str, description: str, masking: dict[str, Any]) -> NamedTuple(
    "Outputs", [("masked", Dataset), ("evidence", Artifact)]
):
    """Read, attest, mask, and search again.

    Args:
        data_uri: The raw data.
        description: What they mean (YAML).
        masking: The masking policy.

    Returns:
        masked: The masked data.
        evidence: The signed statements of all steps.
    """
    started = preflight(step="preflight", secret=secret_name("preflight"), **NO_GPU)
    raw = ingest(
        nonce=started.outputs["nonce"],
        evidence=started.outputs["evidence"],
        uri=data_uri,
        spec=description,
        step="ingest",
        secret=secret_name("ingest"),
        **NO_GPU,
    )
    masked = mask_pii(
        dataset=raw.outputs["dataset"],
        evidence=raw.outputs["dataset_evidence"],
        masking=masking,
        step="mask_pii",
        secret=secret_name("mask_pii"),
        **NO_GPU,
    )
    clean = residual_pii_gate(
        dataset=masked.outputs["masked"],
        evidence=masked.outputs["masked_evidence"],
        masking=masking,
        step="residual_pii",
        secret=secret_name("residual_pii"),
    )
    outputs = NamedTuple("Outputs", [("masked", Dataset), ("evidence", Artifact)])
    return outputs(masked=masked.outputs["masked"], evidence=clean.outputs["evidence"])


def run(config: ReferenceConfig, uri: str, output: Path) -> homes.Home:
    """Make keys and a policy of these four steps, run the pipeline, and write masked data and evidence to `output`."""
    home = homes.Home(homes.home_root() / NAME)
    homes.generate_keys(home, STEPS)
    homes.ensure_policy(home, NAME, chosen_steps(config, STEPS))
    os.environ.update(home.environment)
    arguments = {
        "data_uri": uri,
        "description": json.dumps(config.dataset.to_dict()),
        "masking": config.masking.to_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_pipeline(mask_and_hash, arguments, root)
        (masked,) = root.glob("*/mask-pii/masked")
        (evidence,) = root.glob("*/enforce/passed")
        output.mkdir()
        key = SealingPrivateKey.from_pem((home.keys / "pipeline.pem").read_bytes())
        rows = parse_dataset(open_dataset(masked, key=key))
        write_dataset(output / "masked", rows.table, rows.spec)
        shutil.copyfile(evidence, output / "evidence.intoto.jsonl")
    return home


def main() -> None:
    """Run it on the data of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:cheque-digits", help="CSV, JSON Lines or Parquet: file or folder")
    parser.add_argument("--config", type=Path, help="what the data mean; see the README")
    parser.add_argument("--output", type=Path, default=Path("mask-and-hash-run"), help="directory to make")
    chosen = parser.parse_args()
    home = run(ReferenceConfig.load(chosen.config), chosen.data, chosen.output.absolute())
    print(f"masked data and evidence in {chosen.output}; keys and trust store in {home.root}")


if __name__ == "__main__":
    sys.exit(guarded(main))
