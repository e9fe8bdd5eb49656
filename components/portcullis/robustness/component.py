"""The KFP gate `robustness_gate`, and its form over shards."""

from typing import Any, Dict, List, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import LARGE, TRUST_CONFIG_MAP, harden


@component
def evaluate_robustness(
    model: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    epsilon: float,
    l2_budget: float,
    pgd_steps: int,
    pgd_step_size: float,
    cw_steps: int,
    cw_c: float,
    cw_learning_rate: float,
    deepfool_steps: int,
    deepfool_overshoot: float,
    ddn_steps: int,
    apgd_steps: int,
    apgd_targets: int,
    libraries: str,
    n_min: int,
    seed: int,
    mode: str,
    threat: str,
    queries: int,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Attack a model with FGSM, PGD, APGD, DeepFool, DDN and CW on the attested test rows, and sign the verdict.

    Args:
        model: The model.
        test: The attested test rows.
        evidence: Evidence of both.
        epsilon: Linf radius of FGSM, PGD and APGD, inputs scaled to 0..1.
        l2_budget: L2 radius within which DeepFool, DDN and CW count.
        pgd_steps: Steps of PGD.
        pgd_step_size: Step size of PGD.
        cw_steps: Steps of CW.
        cw_c: CW's weight of misclassification.
        cw_learning_rate: CW's learning rate.
        deepfool_steps: Steps of DeepFool.
        deepfool_overshoot: DeepFool's overshoot.
        ddn_steps: Steps of DDN.
        apgd_steps: Steps of each APGD.
        apgd_targets: Other classes that APGD aims at.
        libraries: Libraries whose own attacks are added, or `none`: `torchattacks`, `foolbox`, `art`, commas between.
        n_min: Fewest samples that are judged.
        seed: Of random starts.
        mode: `full` for a number, `verdict` to stop as soon as the verdict is known.
        threat: For a table, what may change in a row (JSON or YAML), in place of the radii; empty for none.
        queries: With a threat, how often the model is asked about each row.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.robustness.settings import RobustnessSettings
    from portcullis.robustness.stage import evaluate_robustness as run

    statement = run(
        step=step,
        model=Path(model.path),
        test=Path(test.path),
        evidence=Path(evidence.path),
        settings=RobustnessSettings(
            epsilon=epsilon,
            l2_budget=l2_budget,
            pgd_steps=pgd_steps,
            pgd_step_size=pgd_step_size,
            cw_steps=cw_steps,
            cw_c=cw_c,
            cw_learning_rate=cw_learning_rate,
            deepfool_steps=deepfool_steps,
            deepfool_overshoot=deepfool_overshoot,
            ddn_steps=ddn_steps,
            apgd_steps=apgd_steps,
            apgd_targets=apgd_targets,
            libraries=libraries,
            n_min=n_min,
            seed=seed,
            mode=mode,
            threat=threat,
            queries=queries,
        ),
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("robustness-gate")
def robustness_gate(
    model: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    epsilon: float,
    l2_budget: float,
    pgd_steps: int,
    pgd_step_size: float,
    cw_steps: int,
    cw_c: float,
    cw_learning_rate: float,
    deepfool_steps: int,
    deepfool_overshoot: float,
    ddn_steps: int,
    apgd_steps: int,
    apgd_targets: int,
    libraries: str,
    n_min: int,
    seed: int,
    mode: str,
    threat: str,
    queries: int,
    step: str,
    secret: str,
    gpus: str,
    gpu_resource: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a model that FGSM, PGD, APGD, DeepFool, DDN or CW break too often, and what cannot be judged soundly.

    The bounds that it must keep are the policy's. PASSED means that these attacks found no more within these budgets on
    the attested test rows.

    Args:
        model: The model.
        test: The attested test rows.
        evidence: Evidence of both.
        epsilon: Linf radius of FGSM, PGD and APGD, inputs scaled to 0..1.
        l2_budget: L2 radius within which DeepFool, DDN and CW count.
        pgd_steps: Steps of PGD.
        pgd_step_size: Step size of PGD.
        cw_steps: Steps of CW.
        cw_c: CW's weight of misclassification.
        cw_learning_rate: CW's learning rate.
        deepfool_steps: Steps of DeepFool.
        deepfool_overshoot: DeepFool's overshoot.
        ddn_steps: Steps of DDN.
        apgd_steps: Steps of each APGD.
        apgd_targets: Other classes that APGD aims at.
        libraries: Libraries whose own attacks are added, or `none`: `torchattacks`, `foolbox`, `art`, commas between.
        n_min: Fewest samples that are judged.
        seed: Of random starts.
        mode: `full` for a number, `verdict` to stop as soon as the verdict is known.
        threat: For a table, what may change in a row (JSON or YAML), in place of the radii; empty for none.
        queries: With a threat, how often the model is asked about each row.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `evaluate`.
        gpus: How many GPUs `evaluate` asks for, spelt as text: `0`, `1`, …
        gpu_resource: What Kubernetes calls them, such as `nvidia.com/gpu`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_robustness(
        model=model,
        test=test,
        evidence=evidence,
        epsilon=epsilon,
        l2_budget=l2_budget,
        pgd_steps=pgd_steps,
        pgd_step_size=pgd_step_size,
        cw_steps=cw_steps,
        cw_c=cw_c,
        cw_learning_rate=cw_learning_rate,
        deepfool_steps=deepfool_steps,
        deepfool_overshoot=deepfool_overshoot,
        ddn_steps=ddn_steps,
        apgd_steps=apgd_steps,
        apgd_targets=apgd_targets,
        libraries=libraries,
        n_min=n_min,
        seed=seed,
        mode=mode,
        threat=threat,
        queries=queries,
        step=step,
    )
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret, resources=LARGE, gpus=gpus, gpu_resource=gpu_resource)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])


@component
def attack_shard(
    model: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    settings: Dict[str, Any],
    step: str,
    outcome: Output[Artifact],
    outcome_evidence: Output[Artifact],
    metrics: Output[Metrics],
):
    """Attack a model on a shard's part of the test rows, and leave what was found for `merge_attacks` to judge.

    Args:
        model: The model.
        test: The attested test rows, all of them.
        evidence: Evidence of both.
        settings: What `robustness_gate` takes of an attack, by name; defaults where left out. `mode` must be `full`.
        step: Name of this step in the policy, which says which shard it is.
        outcome: What was found.
        outcome_evidence: The evidence with this shard's statement.
        metrics: The shard's figures.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.robustness.settings import RobustnessSettings
    from portcullis.robustness.shards import attack_shard as run

    statement = run(
        step=step,
        model=Path(model.path),
        test=Path(test.path),
        evidence=Path(evidence.path),
        settings=RobustnessSettings.from_dict(settings),
        outcome=Path(outcome.path),
        bundle=Path(outcome_evidence.path),
    )
    log_figures(metrics, statement)


@component
def merge_attacks(
    model: Input[Model],
    outcomes: Input[List[Artifact]],
    evidence: Input[List[Artifact]],
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Put together what all shards found, and sign the verdict.

    Args:
        model: The model.
        outcomes: What the shards found, in any order.
        evidence: Their evidence.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.robustness.shards import merge_attacks as run

    statement = run(
        step=step,
        model=Path(model.path),
        outcomes=[Path(it.path) for it in outcomes],
        evidence=[Path(it.path) for it in evidence],
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("attack-shard-hardened")
def hardened_attack_shard(
    model: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    settings: Dict[str, Any],
    step: str,
    secret: str,
    gpus: str,
    gpu_resource: str,
) -> NamedTuple("Outputs", [("outcome", Artifact), ("evidence", Artifact)]):
    """Attack a model on a shard's part of the test rows, in a hardened task.

    KFP 2.17 does not hand a loop what its tasks ask of accelerators, but does hand it what a pipeline takes.

    Args:
        model: The model.
        test: The attested test rows.
        evidence: Evidence of both.
        settings: As `attack_shard` takes them.
        step: The shard's name in the policy.
        secret: Name of the Kubernetes Secret with its keys.
        gpus: How many GPUs it asks for, spelt as text.
        gpu_resource: What Kubernetes calls them.

    Returns:
        outcome: What was found.
        evidence: The evidence with the shard's statement.
    """
    attacked = attack_shard(model=model, test=test, evidence=evidence, settings=settings, step=step)
    harden(attacked, secret=secret, resources=LARGE, gpus=gpus, gpu_resource=gpu_resource)
    outputs = NamedTuple("Outputs", [("outcome", Artifact), ("evidence", Artifact)])
    return outputs(outcome=attacked.outputs["outcome"], evidence=attacked.outputs["outcome_evidence"])


@gate_pipeline("robustness-gate-over-shards")
def robustness_gate_over_shards(
    model: Input[Model],
    test: Input[Dataset],
    evidence: Input[Artifact],
    settings: Dict[str, Any],
    shards: List[str],
    step: str,
    secret: str,
    shard_secret: str,
    gpus: str,
    gpu_resource: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """As `robustness_gate`, with the test rows divided among shards that attack the model at the same time.

    Each shard is judged as test rows of its own would be, and must be sound by itself; the verdict is on all rows.

    Args:
        model: The model.
        test: The attested test rows.
        evidence: Evidence of both.
        settings: What `robustness_gate` takes of an attack, by name; defaults where left out. `mode` must be `full`.
        shards: The shards' names in the policy, `attack_shard#0/4` to `attack_shard#3/4`.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `merge_attacks`.
        shard_secret: Likewise, of `attack_shard`.
        gpus: How many GPUs each shard asks for, spelt as text: `0`, `1`, …
        gpu_resource: What Kubernetes calls them, such as `nvidia.com/gpu`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    with dsl.ParallelFor(shards, name="attack") as shard:
        attacked = hardened_attack_shard(
            model=model,
            test=test,
            evidence=evidence,
            settings=settings,
            step=shard,
            secret=shard_secret,
            gpus=gpus,
            gpu_resource=gpu_resource,
        )
    judged = merge_attacks(
        model=model,
        outcomes=dsl.Collected(attacked.outputs["outcome"]),
        evidence=dsl.Collected(attacked.outputs["evidence"]),
        step=step,
    )
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
