"""The reference pipeline: every step of `portcullis_pipelines.steps`, each fed by what the step before it made."""

from typing import Dict, List, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Model

from portcullis.admission.component import admit
from portcullis.container import never_cache
from portcullis.deploy.component import deploy
from portcullis.encryption.component import encrypt
from portcullis.ingest.component import ingest
from portcullis.pii.component import mask_pii, residual_pii_gate
from portcullis.preflight.component import preflight
from portcullis.robustness.component import robustness_gate
from portcullis.split.component import split
from portcullis.training.component import train


@dsl.pipeline(name="portcullis-reference")
def reference_pipeline(
    data_uri: str,
    dataset_spec: str,
    pii_entities: List[str],
    test_fraction: float,
    architecture: str,
    architecture_options: Dict[str, float],
    train_method: str,
    train_epsilon: float,
    train_steps: int,
    train_epochs: int,
    train_batch_size: int,
    train_learning_rate: float,
    train_seed: int,
    train_device: str,
    attack_epsilon: float,
    attack_l2_budget: float,
    attack_pgd_steps: int,
    attack_pgd_step_size: float,
    attack_cw_steps: int,
    attack_cw_c: float,
    attack_cw_learning_rate: float,
    attack_deepfool_steps: int,
    attack_deepfool_overshoot: float,
    attack_n_min: int,
    attack_seed: int,
    recipients: List[str],
) -> NamedTuple(
    "Outputs", [("sealed", Model), ("evidence", Artifact), ("admission", Artifact), ("deployment", Artifact)]
):
    """From raw data to a served model; refuses wherever a check does not hold.

    Args:
        data_uri: The raw data.
        dataset_spec: Their description (YAML).
        pii_entities: Identifiers to mask.
        test_fraction: Expected share of test rows.
        architecture: Name of an installed architecture.
        architecture_options: Its options.
        train_method: `pgd`, `trades` or `plain`.
        train_epsilon: Linf radius of the attack inside training.
        train_steps: Its steps.
        train_epochs: Passes over the training rows.
        train_batch_size: Rows per step.
        train_learning_rate: Peak learning rate.
        train_seed: Seed of the training.
        train_device: `auto`, `cpu` or `cuda`.
        attack_epsilon: Linf radius of FGSM and PGD in the gate.
        attack_l2_budget: L2 radius within which CW and DeepFool count.
        attack_pgd_steps: Steps of PGD.
        attack_pgd_step_size: Step size of PGD.
        attack_cw_steps: Steps of CW.
        attack_cw_c: CW's weight of misclassification.
        attack_cw_learning_rate: CW's learning rate.
        attack_deepfool_steps: Steps of DeepFool.
        attack_deepfool_overshoot: DeepFool's overshoot.
        attack_n_min: Fewest samples that are judged.
        attack_seed: Seed of the attacks.
        recipients: Key ids of those who can open the sealed model.

    Returns:
        sealed: The sealed model.
        evidence: The evidence that it was admitted for.
        admission: The signed admission.
        deployment: The signed statement of its deployment.
    """
    started = preflight()
    raw = ingest(nonce=started.outputs["nonce"], evidence=started.outputs["evidence"], uri=data_uri, spec=dataset_spec)
    masked = mask_pii(dataset=raw.outputs["dataset"], evidence=raw.outputs["dataset_evidence"], entities=pii_entities)
    clean = residual_pii_gate(
        dataset=masked.outputs["masked"],
        evidence=masked.outputs["masked_evidence"],
        entities=pii_entities,
        step="residual_pii",
    )
    sides = split(dataset=masked.outputs["masked"], evidence=clean.outputs["evidence"], test_fraction=test_fraction)
    trained = train(
        dataset=sides.outputs["train"],
        evidence=sides.outputs["split_evidence"],
        architecture=architecture,
        options=architecture_options,
        method=train_method,
        epsilon=train_epsilon,
        steps=train_steps,
        epochs=train_epochs,
        batch_size=train_batch_size,
        learning_rate=train_learning_rate,
        seed=train_seed,
        device=train_device,
    )
    robust = robustness_gate(
        model=trained.outputs["model"],
        test=sides.outputs["test"],
        evidence=trained.outputs["model_evidence"],
        epsilon=attack_epsilon,
        l2_budget=attack_l2_budget,
        pgd_steps=attack_pgd_steps,
        pgd_step_size=attack_pgd_step_size,
        cw_steps=attack_cw_steps,
        cw_c=attack_cw_c,
        cw_learning_rate=attack_cw_learning_rate,
        deepfool_steps=attack_deepfool_steps,
        deepfool_overshoot=attack_deepfool_overshoot,
        n_min=attack_n_min,
        seed=attack_seed,
        step="robustness:trained",
    )
    sealed = encrypt(model=trained.outputs["model"], evidence=robust.outputs["evidence"], recipients=recipients)
    admitted = admit(sealed=sealed.outputs["sealed"], evidence=sealed.outputs["sealed_evidence"])
    deployed = deploy(
        sealed=sealed.outputs["sealed"],
        admission=admitted.outputs["admission"],
        evidence=sealed.outputs["sealed_evidence"],
        target="local",
    )
    never_cache()
    outputs = NamedTuple(
        "Outputs", [("sealed", Model), ("evidence", Artifact), ("admission", Artifact), ("deployment", Artifact)]
    )
    return outputs(
        sealed=sealed.outputs["sealed"],
        evidence=sealed.outputs["sealed_evidence"],
        admission=admitted.outputs["admission"],
        deployment=deployed.outputs["deployment"],
    )
