"""The reference pipeline: every step of `portcullis_pipelines.steps`, each fed by what the step before it made.

It is two nested pipelines. `secure_training` makes a signed, sealed model and its evidence; `release` admits and
deploys it. `reference_pipeline` runs one after the other, for one machine and for simple clusters. In production the
two are submitted apart, `release_from_storage` in a namespace of its own, whose keys, trust store and policy whoever
may submit to the training namespace cannot mount.

Over shards, `sharded_training` and `sharded_pipeline` are the same but for the steps on raw data, which run in loops
(`portcullis_pipelines.sharded`).
"""

import inspect
import re
from typing import Any, Dict, List, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Model

from portcullis.admission.component import admit
from portcullis.deploy.component import deploy
from portcullis.encryption.component import encrypt
from portcullis.equivalence.component import equivalence_gate
from portcullis.harden import LARGE, SMALL, harden, secret_name, secure_pipeline
from portcullis.ingest.component import ingest
from portcullis.pii.component import mask_pii, residual_pii_gate
from portcullis.preflight.component import preflight
from portcullis.privacy.component import dp_noise
from portcullis.quality.component import data_quality_gate
from portcullis.robustness.component import robustness_gate
from portcullis.signing.component import sign
from portcullis.split.component import split
from portcullis.training.component import train
from portcullis.watermark.component import verify_watermark_gate, watermark
from portcullis_pipelines.sharded import masking_over_shards


def _training(
    data_uri: str,
    dataset_spec: str,
    masking: Dict[str, Any],
    screen_n_min: int,
    screen_outlier_distance: float,
    screen_neighbours: int,
    screen_crowding: float,
    screen_suspected: float,
    screen_epochs: int,
    screen_seed: int,
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
    noise_columns: Dict[str, Dict[str, Any]],
    noise_budget: float,
    noise_others: Dict[str, str],
    noise_rows: str,
    noise_contribution: Dict[str, Any],
    watermark_owner: str,
    recipients: List[str],
    gpus: str,
    gpu_resource: str,
    shards: List[Dict[str, str]],
) -> NamedTuple("Outputs", [("sealed", Model), ("signature", Artifact), ("evidence", Artifact)]):
    """From raw data to a sealed, signed model; refuses wherever a check does not hold.

    Args:
        data_uri: The raw data.
        dataset_spec: Their description (YAML).
        masking: The masking policy: entities, columns, detection.
        screen_n_min: Fewest rows of each class with which the data are judged.
        screen_outlier_distance: How far from its class's median a row is an outlier.
        screen_neighbours: How many nearest rows vote on a row's label.
        screen_crowding: Within what share of the usual distance that many others crowd around a row.
        screen_suspected: Share of each class that is put to the vote of the others.
        screen_epochs: Passes of the reference network over the rows.
        screen_seed: Seed of the reference network.
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
        noise_columns: Columns of the training rows that get noise, and the noise of each.
        noise_budget: The most that a row may spend, or a person where contributions are bounded.
        noise_others: What becomes of the columns without noise.
        noise_rows: Whether the rows keep their order.
        noise_contribution: How many rows of one person stay.
        watermark_owner: Whose watermark the model carries.
        recipients: Key ids of those who can open the sealed model.
        gpus: How many GPUs training and the robustness gates ask for each, spelt as text; `0` for none.
        gpu_resource: What Kubernetes calls them.
        shards: For each shard, its name in each sharded step.

    Returns:
        sealed: The sealed model.
        signature: Its OpenSSF model signature.
        evidence: All evidence of the run.
    """
    gpu = {"gpus": gpus, "gpu_resource": gpu_resource}
    attack = {
        "epsilon": attack_epsilon,
        "l2_budget": attack_l2_budget,
        "pgd_steps": attack_pgd_steps,
        "pgd_step_size": attack_pgd_step_size,
        "cw_steps": attack_cw_steps,
        "cw_c": attack_cw_c,
        "cw_learning_rate": attack_cw_learning_rate,
        "deepfool_steps": attack_deepfool_steps,
        "deepfool_overshoot": attack_deepfool_overshoot,
        "n_min": attack_n_min,
        "seed": attack_seed,
    }
    started = preflight()
    rows, judged_rows = _masked(started, shards, uri=data_uri, spec=dataset_spec, masking=masking)
    screened = data_quality_gate(
        dataset=rows,
        evidence=judged_rows,
        n_min=screen_n_min,
        outlier_distance=screen_outlier_distance,
        neighbours=screen_neighbours,
        crowding=screen_crowding,
        suspected=screen_suspected,
        epochs=screen_epochs,
        seed=screen_seed,
        step="data_quality",
        secret=secret_name("data_quality"),
    )
    sides = split(dataset=rows, evidence=screened.outputs["evidence"], test_fraction=test_fraction)
    noised = dp_noise(
        dataset=sides.outputs["train"],
        evidence=sides.outputs["split_evidence"],
        columns=noise_columns,
        budget=noise_budget,
        others=noise_others,
        rows=noise_rows,
        contribution=noise_contribution,
    )
    trained = train(
        dataset=noised.outputs["noised"],
        evidence=noised.outputs["noised_evidence"],
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
    judged = robustness_gate(
        model=trained.outputs["model"],
        test=sides.outputs["test"],
        evidence=trained.outputs["model_evidence"],
        step="robustness:trained",
        secret=secret_name("robustness:trained"),
        **attack,
        **gpu,
    )
    marked = watermark(model=trained.outputs["model"], evidence=judged.outputs["evidence"], owner=watermark_owner)
    present = verify_watermark_gate(
        model=marked.outputs["marked"],
        unmarked=trained.outputs["model"],
        evidence=marked.outputs["marked_evidence"],
        owner=watermark_owner,
        step="verify_watermark",
        secret=secret_name("verify_watermark"),
    )
    robust = robustness_gate(
        model=marked.outputs["marked"],
        test=sides.outputs["test"],
        evidence=present.outputs["evidence"],
        step="robustness:watermarked",
        secret=secret_name("robustness:watermarked"),
        **attack,
        **gpu,
    )
    same = equivalence_gate(
        model=marked.outputs["marked"],
        judged=trained.outputs["model"],
        test=sides.outputs["test"],
        evidence=robust.outputs["evidence"],
        step="equivalence",
        secret=secret_name("equivalence"),
    )
    sealed = encrypt(model=marked.outputs["marked"], evidence=same.outputs["evidence"], recipients=recipients)
    signed = sign(sealed=sealed.outputs["sealed"], evidence=sealed.outputs["sealed_evidence"])
    small = {
        "preflight": started,
        "split": sides,
        "dp_noise": noised,
        "encrypt": sealed,
        "sign": signed,
    }
    for step, task in small.items():
        harden(task, secret=secret_name(step), resources=SMALL)
    harden(trained, secret=secret_name("train"), resources=LARGE, gpus=gpus, gpu_resource=gpu_resource)
    harden(marked, secret=secret_name("watermark"), resources=LARGE)
    outputs = NamedTuple("Outputs", [("sealed", Model), ("signature", Artifact), ("evidence", Artifact)])
    return outputs(
        sealed=sealed.outputs["sealed"],
        signature=signed.outputs["signature"],
        evidence=signed.outputs["signature_evidence"],
    )


def _masked(started: Any, shards: Any, *, uri: Any, spec: Any, masking: Any) -> Any:
    """Add the steps on raw data, and return the masked data set and the evidence that its gate passed it."""
    if shards is not None:
        merged = masking_over_shards(
            evidence=started.outputs["evidence"],
            nonce=started.outputs["nonce"],
            data_uri=uri,
            dataset_spec=spec,
            masking=masking,
            shards=shards,
        )
        return merged.outputs["dataset"], merged.outputs["evidence"]
    raw = ingest(nonce=started.outputs["nonce"], evidence=started.outputs["evidence"], uri=uri, spec=spec)
    masked = mask_pii(
        dataset=raw.outputs["dataset"],
        evidence=raw.outputs["dataset_evidence"],
        masking=masking,
    )
    clean = residual_pii_gate(
        dataset=masked.outputs["masked"],
        evidence=masked.outputs["masked_evidence"],
        masking=masking,
        step="residual_pii",
        secret=secret_name("residual_pii"),
    )
    harden(raw, secret=secret_name("ingest"), resources=SMALL)
    harden(masked, secret=secret_name("mask_pii"), resources=SMALL)
    return masked.outputs["masked"], clean.outputs["evidence"]


def _of_the_whole(*values: Any) -> Any:
    training: Any = _training
    return training(*values, None)


_signature = inspect.signature(_training)
_of_the_whole.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[it for it in _signature.parameters.values() if it.name != "shards"]
)
_of_the_whole.__doc__ = (inspect.getdoc(_training) or "").replace(
    "    shards: For each shard, its name in each sharded step.\n", ""
)
secure_training = secure_pipeline(_of_the_whole, name="portcullis-secure-training")
sharded_training = secure_pipeline(_training, name="portcullis-sharded-training")


@secure_pipeline(name="portcullis-release")
def release(
    sealed: Input[Model],
    signature: Input[Artifact],
    evidence: Input[Artifact],
    target: str,
    cluster: Dict[str, Any],
) -> NamedTuple("Outputs", [("admission", Artifact), ("deployment", Artifact)]):
    """Judge the evidence of a sealed model by this namespace's own trust store, then deploy the model.

    Args:
        sealed: The sealed model.
        signature: Its OpenSSF model signature.
        evidence: All evidence of the run that made it.
        target: `local` or `kubernetes`.
        cluster: For `kubernetes`, what to know of the cluster.

    Returns:
        admission: The signed admission.
        deployment: The signed statement of the deployment.
    """
    admitted = admit(sealed=sealed, signature=signature, evidence=evidence)
    deployed = deploy(
        sealed=sealed,
        admission=admitted.outputs["admission"],
        evidence=evidence,
        target=target,
        cluster=cluster,
    )
    harden(admitted, secret=secret_name("admit"), resources=SMALL)
    harden(deployed, secret=secret_name("deploy"), resources=SMALL)
    outputs = NamedTuple("Outputs", [("admission", Artifact), ("deployment", Artifact)])
    return outputs(admission=admitted.outputs["admission"], deployment=deployed.outputs["deployment"])


@secure_pipeline(name="portcullis-release")
def release_from_storage(
    sealed_uri: str, signature_uri: str, evidence_uri: str, target: str, cluster: Dict[str, Any]
) -> NamedTuple("Outputs", [("admission", Artifact), ("deployment", Artifact)]):
    """Release what a run of `portcullis-secure-training` left in an object store.

    Args:
        sealed_uri: Where the sealed model lies.
        signature_uri: Where its OpenSSF model signature lies.
        evidence_uri: Where the evidence of the run that made it lies.
        target: `local` or `kubernetes`.
        cluster: For `kubernetes`, what to know of the cluster.

    Returns:
        admission: The signed admission.
        deployment: The signed statement of the deployment.
    """
    # Imported anew each time: what once lay at a URI says nothing of what lies there now.
    released = release(
        sealed=dsl.importer(artifact_uri=sealed_uri, artifact_class=Model, reimport=True).output,
        signature=dsl.importer(artifact_uri=signature_uri, artifact_class=Artifact, reimport=True).output,
        evidence=dsl.importer(artifact_uri=evidence_uri, artifact_class=Artifact, reimport=True).output,
        target=target,
        cluster=cluster,
    )
    outputs = NamedTuple("Outputs", [("admission", Artifact), ("deployment", Artifact)])
    return outputs(admission=released.outputs["admission"], deployment=released.outputs["deployment"])


# The whole is the sum of the two, and so are its parameters: KFP reads them off a signature and a docstring.
_RELEASE = ("target", "cluster")


def _both(training: Any, name: str) -> Any:
    """Return a pipeline of training and then release."""
    meaning: Dict[str, str] = {
        name: text
        for part in (training, release)
        for name, text in re.findall(r"^    (\w+): (.*)$", inspect.getdoc(part.pipeline_func) or "", re.MULTILINE)
    }
    parameters = [
        *inspect.signature(training.pipeline_func).parameters.values(),
        *(inspect.signature(release.pipeline_func).parameters[name] for name in _RELEASE),
    ]
    names = (*training.component_spec.outputs, *release.component_spec.outputs)
    put_out = [(name, Model if name == "sealed" else Artifact) for name in names]
    outputs: Any = NamedTuple("Outputs", put_out)

    def body(*values: Any) -> Any:
        given = dict(zip((it.name for it in parameters), values, strict=True))
        deployment = {name: given.pop(name) for name in _RELEASE}
        made = training(**given).outputs
        released = release(**made, **deployment).outputs
        return outputs(**made, **released)

    body.__signature__ = inspect.Signature(parameters, return_annotation=outputs)  # type: ignore[attr-defined]
    body.__doc__ = "\n".join(
        (
            "From raw data to a served model; refuses wherever a check does not hold.",
            "",
            *("Args:", *(f"    {it.name}: {meaning[it.name]}" for it in parameters), ""),
            *("Returns:", *(f"    {name}: {meaning[name]}" for name, _ in put_out)),
        )
    )
    return secure_pipeline(body, name=name)


reference_pipeline = _both(secure_training, "portcullis-reference")
sharded_pipeline = _both(sharded_training, "portcullis-sharded-reference")
