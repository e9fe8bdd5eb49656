"""The reference pipeline: every step of `portcullis_pipelines.steps`, each fed by what the step before it made.

It is two nested pipelines. `secure_training` makes a signed, sealed model and its evidence; `release` admits and
deploys it. `reference_pipeline` runs one after the other, for one machine and for simple clusters. In production the
two are submitted apart, `release_from_storage` in a namespace of its own, whose keys, trust store and policy whoever
may submit to the training namespace cannot mount.

Over shards, the same run but for the steps on raw data, which are in loops (`portcullis_pipelines.sharded`).
"""

import inspect
import re
from types import SimpleNamespace
from typing import Any, Dict, List, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input, Model

from portcullis.admission.component import admit
from portcullis.budget.component import budget_gate
from portcullis.deploy.component import deploy
from portcullis.dp_training.component import dp_train, privacy_audit_gate
from portcullis.encryption.component import encrypt
from portcullis.equivalence.component import equivalence_gate
from portcullis.harden import LARGE, SMALL, harden, secret_name, secure_pipeline
from portcullis.ingest.component import ingest
from portcullis.membership.component import membership_gate
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


def _prepared(given: Any) -> Any:
    """From raw data to the two sides of the split, and the training rows with noise in some columns."""
    started = preflight()
    masked, clean = _masked(started, given)
    screened = data_quality_gate(
        dataset=masked,
        evidence=clean,
        n_min=given.screen_n_min,
        outlier_distance=given.screen_outlier_distance,
        neighbours=given.screen_neighbours,
        crowding=given.screen_crowding,
        suspected=given.screen_suspected,
        epochs=given.screen_epochs,
        seed=given.screen_seed,
        step="data_quality",
        secret=secret_name("data_quality"),
    )
    sides = split(dataset=masked, evidence=screened.outputs["evidence"], test_fraction=given.test_fraction)
    noised = dp_noise(
        dataset=sides.outputs["train"],
        evidence=sides.outputs["split_evidence"],
        columns=given.noise_columns,
        budget=given.noise_budget,
        others=given.noise_others,
        rows=given.noise_rows,
        contribution=given.noise_contribution,
        ledger=given.ledger,
    )
    small = {
        "preflight": started,
        "split": sides,
        "dp_noise": noised,
    }
    for step, task in small.items():
        harden(task, secret=secret_name(step), resources=SMALL)
    return sides, noised


def _masked(started: Any, given: Any) -> Any:
    """From raw data, whole or over shards, to the masked data set and the evidence that its gate passed it."""
    shards = vars(given).get("shards")
    if shards is not None:
        merged = masking_over_shards(
            evidence=started.outputs["evidence"],
            nonce=started.outputs["nonce"],
            data_uri=given.data_uri,
            dataset_spec=given.dataset_spec,
            masking=given.masking,
            shards=shards,
        )
        return merged.outputs["dataset"], merged.outputs["evidence"]
    raw = ingest(
        nonce=started.outputs["nonce"],
        evidence=started.outputs["evidence"],
        uri=given.data_uri,
        spec=given.dataset_spec,
    )
    masked = mask_pii(
        dataset=raw.outputs["dataset"],
        evidence=raw.outputs["dataset_evidence"],
        masking=given.masking,
    )
    clean = residual_pii_gate(
        dataset=masked.outputs["masked"],
        evidence=masked.outputs["masked_evidence"],
        masking=given.masking,
        step="residual_pii",
        secret=secret_name("residual_pii"),
    )
    harden(raw, secret=secret_name("ingest"), resources=SMALL)
    harden(masked, secret=secret_name("mask_pii"), resources=SMALL)
    return masked.outputs["masked"], clean.outputs["evidence"]


def _trained(given: Any) -> Any:
    """From raw data to a sealed and signed model."""
    sides, noised = _prepared(given)
    trained = train(
        dataset=noised.outputs["noised"],
        evidence=noised.outputs["noised_evidence"],
        architecture=given.architecture,
        options=given.architecture_options,
        method=given.train_method,
        epsilon=given.train_epsilon,
        steps=given.train_steps,
        epochs=given.train_epochs,
        batch_size=given.train_batch_size,
        learning_rate=given.train_learning_rate,
        ema=given.train_ema,
        held_out=given.train_held_out,
        seed=given.train_seed,
        device=given.train_device,
    )
    return _shipped(given, sides, noised, trained, evidence=trained.outputs["model_evidence"])


def _shipped(given: Any, sides: Any, noised: Any, trained: Any, *, evidence: Any) -> Any:
    """From a trained model to a sealed and signed one."""
    harden(trained, secret=secret_name("train"), resources=LARGE, gpus=given.gpus, gpu_resource=given.gpu_resource)
    gpu = {"gpus": given.gpus, "gpu_resource": given.gpu_resource}
    attack = {
        "epsilon": given.attack_epsilon,
        "l2_budget": given.attack_l2_budget,
        "pgd_steps": given.attack_pgd_steps,
        "pgd_step_size": given.attack_pgd_step_size,
        "cw_steps": given.attack_cw_steps,
        "cw_c": given.attack_cw_c,
        "cw_learning_rate": given.attack_cw_learning_rate,
        "deepfool_steps": given.attack_deepfool_steps,
        "deepfool_overshoot": given.attack_deepfool_overshoot,
        "ddn_steps": given.attack_ddn_steps,
        "apgd_steps": given.attack_apgd_steps,
        "apgd_targets": given.attack_apgd_targets,
        "libraries": given.attack_libraries,
        "n_min": given.attack_n_min,
        "seed": given.attack_seed,
        "mode": given.attack_mode,
        "threat": given.attack_threat,
        "queries": given.attack_queries,
    }
    attacked = membership_gate(
        model=trained.outputs["model"],
        train=noised.outputs["noised"],
        test=sides.outputs["test"],
        evidence=evidence,
        false_positives=given.membership_false_positives,
        confidence=given.membership_confidence,
        n_min=given.membership_n_min,
        inversion_starts=given.membership_inversion_starts,
        inversion_steps=given.membership_inversion_steps,
        seed=given.membership_seed,
        step="membership",
        secret=secret_name("membership"),
    )
    spent = budget_gate(
        model=trained.outputs["model"],
        evidence=attacked.outputs["evidence"],
        ledger=given.ledger,
        charging=given.ledger_charging,
        step="budget",
        secret=secret_name("budget"),
    )
    judged = robustness_gate(
        model=trained.outputs["model"],
        test=sides.outputs["test"],
        evidence=spent.outputs["evidence"],
        step="robustness:trained",
        secret=secret_name("robustness:trained"),
        **attack,
        **gpu,
    )
    marked = watermark(model=trained.outputs["model"], evidence=judged.outputs["evidence"], owner=given.watermark_owner)
    present = verify_watermark_gate(
        model=marked.outputs["marked"],
        unmarked=trained.outputs["model"],
        evidence=marked.outputs["marked_evidence"],
        owner=given.watermark_owner,
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
    sealed = encrypt(model=marked.outputs["marked"], evidence=same.outputs["evidence"], recipients=given.recipients)
    signed = sign(sealed=sealed.outputs["sealed"], evidence=sealed.outputs["sealed_evidence"])
    harden(marked, secret=secret_name("watermark"), resources=LARGE)
    harden(sealed, secret=secret_name("encrypt"), resources=SMALL)
    harden(signed, secret=secret_name("sign"), resources=SMALL)
    outputs = NamedTuple("Outputs", [("sealed", Model), ("signature", Artifact), ("evidence", Artifact)])
    return outputs(
        sealed=sealed.outputs["sealed"],
        signature=signed.outputs["signature"],
        evidence=signed.outputs["signature_evidence"],
    )


@secure_pipeline(name="portcullis-secure-training")
def secure_training(
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
    train_ema: float,
    train_held_out: float,
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
    attack_ddn_steps: int,
    attack_apgd_steps: int,
    attack_apgd_targets: int,
    attack_libraries: str,
    attack_n_min: int,
    attack_seed: int,
    attack_mode: str,
    attack_threat: str,
    attack_queries: int,
    membership_false_positives: float,
    membership_confidence: float,
    membership_n_min: int,
    membership_inversion_starts: int,
    membership_inversion_steps: int,
    membership_seed: int,
    noise_columns: Dict[str, Dict[str, Any]],
    noise_budget: float,
    noise_others: Dict[str, str],
    noise_rows: str,
    noise_contribution: Dict[str, Any],
    ledger: Dict[str, Any],
    ledger_charging: List[str],
    watermark_owner: str,
    recipients: List[str],
    gpus: str,
    gpu_resource: str,
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
        train_method: `trades2`, `mix`, `pgd`, `trades`, `nfgsm` or `plain`.
        train_epsilon: Linf radius of the attack inside training.
        train_steps: Its steps.
        train_epochs: Passes over the training rows.
        train_batch_size: Rows per step.
        train_learning_rate: Peak learning rate.
        train_ema: Decay of the exponential mean of the weights; 0 for none.
        train_held_out: Share of the training rows by which the checkpoint is chosen.
        train_seed: Seed of the training.
        train_device: `auto`, `cpu` or `cuda`.
        attack_epsilon: Linf radius of FGSM, PGD and APGD in the gate.
        attack_l2_budget: L2 radius within which DeepFool, DDN and CW count.
        attack_pgd_steps: Steps of PGD.
        attack_pgd_step_size: Step size of PGD.
        attack_cw_steps: Steps of CW.
        attack_cw_c: CW's weight of misclassification.
        attack_cw_learning_rate: CW's learning rate.
        attack_deepfool_steps: Steps of DeepFool.
        attack_deepfool_overshoot: DeepFool's overshoot.
        attack_ddn_steps: Steps of DDN.
        attack_apgd_steps: Steps of each APGD.
        attack_apgd_targets: Other classes that APGD aims at.
        attack_libraries: Libraries whose own attacks the gate adds, or `none`.
        attack_n_min: Fewest samples that are judged.
        attack_seed: Of random starts.
        attack_mode: `full` for a number, `verdict` to stop as soon as the verdict is known.
        attack_threat: For a table, what may change in a row (JSON or YAML), in place of the radii; empty for none.
        attack_queries: With a threat, how often the model is asked about each row.
        membership_false_positives: The false-positive rate at which membership inference's hits are reported.
        membership_confidence: Of each interval of membership inference and inversion.
        membership_n_min: Fewest rows on either side that are judged.
        membership_inversion_starts: How often each class is reconstructed from the model.
        membership_inversion_steps: Gradient steps of each reconstruction.
        membership_seed: Of the random starts of reconstructions.
        noise_columns: Columns of the training rows that get noise, and the noise of each.
        noise_budget: The most that a row may spend, or a person where contributions are bounded.
        noise_others: What becomes of the columns without noise.
        noise_rows: Whether the rows keep their order.
        noise_contribution: How many rows of one person stay.
        ledger: The privacy budget of the data set over all runs, and where its ledger is kept.
        ledger_charging: The steps that spend of it.
        watermark_owner: Whose watermark the model carries.
        recipients: Key ids of those who can open the sealed model.
        gpus: How many GPUs training and the robustness gates ask for each, spelt as text; `0` for none.
        gpu_resource: What Kubernetes calls them.

    Returns:
        sealed: The sealed model.
        signature: Its OpenSSF model signature.
        evidence: All evidence of the run.
    """
    return _trained(SimpleNamespace(**locals()))


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


def _parameters(part: Any) -> List[inspect.Parameter]:
    return list(inspect.signature(part.pipeline_func).parameters.values())


def _meaning(part: Any) -> Dict[str, str]:
    return dict(re.findall(r"^    (\w+): (.*)$", inspect.getdoc(part.pipeline_func) or "", re.MULTILINE))


def _pipeline(
    body: Any, name: str, summary: str, parameters: List[inspect.Parameter], outputs: Any, meaning: Dict[str, str]
) -> Any:
    """Make a pipeline of a body that takes its arguments in order: KFP reads a signature and a docstring."""
    body.__signature__ = inspect.Signature(parameters, return_annotation=outputs)
    body.__doc__ = "\n".join(
        (
            summary,
            "",
            *("Args:", *(f"    {it.name}: {meaning[it.name]}" for it in parameters), ""),
            *("Returns:", *(f"    {it}: {meaning[it]}" for it in outputs._fields)),
        )
    )
    return secure_pipeline(body, name=name)


def _settings(of: Any, *, but: Any = ()) -> List[inspect.Parameter]:
    """Return the parameters of a component or gate that are settings: numbers and text."""
    function = of.pipeline_func if hasattr(of, "pipeline_func") else of.python_func
    left_out = {"architecture", "step", "secret", "gpus", "gpu_resource", *(it.name for it in but)}
    parameters = inspect.signature(function).parameters.values()
    return [it for it in parameters if it.annotation in (int, float, str) and it.name not in left_out]


# The private variant takes what `secure_training` takes, but for the settings of training, which are `dp_train`'s, and
# besides those of the gate on it.
_PRIVATE_SETTINGS = _settings(dp_train)
_AUDIT_SETTINGS = _settings(privacy_audit_gate, but=_PRIVATE_SETTINGS)
_OWN = (
    ("train", dp_train, _PRIVATE_SETTINGS),
    ("audit", privacy_audit_gate, _AUDIT_SETTINGS),
)
_PRIVATE_PARAMETERS = [
    *(it for it in _parameters(secure_training) if not it.name.startswith("train_")),
    *(it.replace(name=f"{prefix}_{it.name}") for prefix, _, settings in _OWN for it in settings),
]


def _trained_privately(given: Any) -> Any:
    arguments = vars(given)
    sides, noised = _prepared(given)
    trained = dp_train(
        dataset=noised.outputs["noised"],
        evidence=noised.outputs["noised_evidence"],
        architecture=given.architecture,
        options=given.architecture_options,
        ledger=given.ledger,
        **{it.name: arguments[f"train_{it.name}"] for it in _PRIVATE_SETTINGS},
    )
    audited = privacy_audit_gate(
        model=trained.outputs["model"],
        evidence=trained.outputs["model_evidence"],
        ledger=given.ledger,
        step="privacy_audit",
        secret=secret_name("privacy_audit"),
        gpus=given.gpus,
        gpu_resource=given.gpu_resource,
        **{it.name: arguments[f"train_{it.name}"] for it in _PRIVATE_SETTINGS},
        **{it.name: arguments[f"audit_{it.name}"] for it in _AUDIT_SETTINGS},
    )
    return _shipped(given, sides, noised, trained, evidence=audited.outputs["evidence"])


def _taking(parameters: List[inspect.Parameter], training: Any) -> Any:
    """Return a training as a function that takes its arguments in order."""

    def body(*values: Any) -> Any:
        return training(SimpleNamespace(**dict(zip((it.name for it in parameters), values, strict=True))))

    return body


_TRAINED = [("sealed", Model), ("signature", Artifact), ("evidence", Artifact)]
secure_private_training = _pipeline(
    _taking(_PRIVATE_PARAMETERS, _trained_privately),
    "portcullis-secure-private-training",
    "From raw data to a sealed, signed model that is differentially private; refuses wherever a check does not hold.",
    _PRIVATE_PARAMETERS,
    NamedTuple("Outputs", _TRAINED),
    _meaning(secure_training)
    | {
        f"{prefix}_{it.name}": of.component_spec.inputs[it.name].description
        for prefix, of, settings in _OWN
        for it in settings
    },
)


def _over_shards(whole: Any, training: Any, name: str) -> Any:
    """Return a training whose steps on raw data run over shards; `whole` is the one whose do not."""
    parameters = [
        *_parameters(whole),
        inspect.Parameter("shards", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=List[Dict[str, str]]),
    ]
    summary = "From raw data, over shards, to a sealed, signed model; refuses wherever a check does not hold."
    meaning = _meaning(whole) | {"shards": "For each shard, its name in each sharded step."}
    outputs: Any = NamedTuple("Outputs", _TRAINED)
    return _pipeline(_taking(parameters, training), name, summary, parameters, outputs, meaning)


sharded_training = _over_shards(secure_training, _trained, "portcullis-sharded-training")
sharded_private_training = _over_shards(
    secure_private_training, _trained_privately, "portcullis-sharded-private-training"
)


def _whole(training: Any, name: str) -> Any:
    """Return a training and its release as one pipeline, whose parameters are the sum of both's."""
    deployment = [it for it in _parameters(release) if it.annotation in (str, Dict[str, Any])]
    parameters = [*_parameters(training), *deployment]
    names = (*training.component_spec.outputs, *release.component_spec.outputs)
    outputs: Any = NamedTuple("Outputs", [(name, Model if name == "sealed" else Artifact) for name in names])

    def both(*values: Any) -> Any:
        given = dict(zip((it.name for it in parameters), values, strict=True))
        of_release = {it.name: given.pop(it.name) for it in deployment}
        made = training(**given).outputs
        return outputs(**made, **release(**made, **of_release).outputs)

    summary = "From raw data to a served model; refuses wherever a check does not hold."
    return _pipeline(both, name, summary, parameters, outputs, _meaning(training) | _meaning(release))


reference_pipeline = _whole(secure_training, "portcullis-reference")
private_pipeline = _whole(secure_private_training, "portcullis-private-reference")
sharded_pipeline = _whole(sharded_training, "portcullis-sharded-reference")
sharded_private_pipeline = _whole(sharded_private_training, "portcullis-sharded-private-reference")


def variant(*, private: bool, sharded: bool = False) -> Any:
    """Return the training and the whole of one variant: private or not, over shards or not."""
    if sharded:
        return (sharded_private_training, sharded_private_pipeline) if private else (sharded_training, sharded_pipeline)
    return (secure_private_training, private_pipeline) if private else (secure_training, reference_pipeline)
