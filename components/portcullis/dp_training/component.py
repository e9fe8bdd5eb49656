"""KFP component `dp_train` and the KFP gate `privacy_audit_gate`."""

from typing import Any, Dict, NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component, gate_pipeline
from portcullis.evidence.component import enforce
from portcullis.harden import LARGE, TRUST_CONFIG_MAP, harden


@component
def dp_train(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    architecture: str,
    options: Dict[str, float],
    ledger: Dict[str, Any],
    target_epsilon: float,
    delta: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_grad_norm: float,
    attack_epsilon: float,
    attack_steps: int,
    settings_tried: int,
    seed: int,
    device: str,
    model: Output[Model],
    model_evidence: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "train",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Train a model under (epsilon, delta)-differential privacy by DP-SGD; on a GPU where there is one.

    Refuses an architecture that mixes the rows of a batch, and settings whose cost two accountants do not agree on.

    Args:
        dataset: The training rows.
        evidence: Their evidence.
        architecture: Name of an installed architecture (entry-point group `portcullis.architectures`).
        options: Options of the architecture.
        ledger: The budget over all runs: data set, epsilon, delta, unit, and where ledger and last head are kept.
        target_epsilon: Most that the training may spend.
        delta: The probability with which epsilon may not hold; at most 1/(10 n) of n rows.
        epochs: How often a row is used, on average.
        batch_size: Rows per step, on average.
        learning_rate: Of stochastic gradient descent.
        max_grad_norm: L2 norm to which each row's gradient is clipped.
        attack_epsilon: Linf radius of the attack inside training, inputs scaled to 0..1; 0 for none.
        attack_steps: Gradient steps of that attack.
        settings_tried: How many settings were tried on these rows, these included; the certificate repeats it.
        seed: Seed of the initial weights; noise and sampling have none.
        device: `auto`, `cpu` or `cuda`.
        step: Name of this step in the policy.
        model: The model: safetensors and a description, never pickle.
        model_evidence: The evidence with this step's statement, which holds the certificate.
        metrics: The certificate's numbers.

    Returns:
        digest: SHA-256 of the model's content.
    """
    from pathlib import Path

    from portcullis.dp_training.settings import PrivateSettings
    from portcullis.dp_training.stage import train_privately
    from portcullis.report import log_figures

    statement = train_privately(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        architecture=architecture,
        options={name: int(value) if value == int(value) else value for name, value in options.items()},
        ledger=ledger,
        settings=PrivateSettings(
            target_epsilon=target_epsilon,
            delta=delta,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            attack_epsilon=attack_epsilon,
            attack_steps=attack_steps,
            settings_tried=settings_tried,
            seed=seed,
            device=device,
        ),
        model=Path(model.path),
        bundle=Path(model_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["model"])


@component
def evaluate_privacy(
    model: Input[Model],
    evidence: Input[Artifact],
    ledger: Dict[str, Any],
    target_epsilon: float,
    delta: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_grad_norm: float,
    attack_epsilon: float,
    attack_steps: int,
    settings_tried: int,
    seed: int,
    device: str,
    canaries: int,
    confidence: float,
    step: str,
    verdict_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
):
    """Train a copy on canaries by the same code and settings, and sign what that says of the trainer's privacy.

    Args:
        model: The model.
        evidence: Its evidence.
        ledger: As of `dp_train`; so are the next eleven.
        target_epsilon: Most that the training may spend.
        delta: The probability with which epsilon may not hold.
        epochs: How often a row is used, on average.
        batch_size: Rows per step, on average.
        learning_rate: Of stochastic gradient descent.
        max_grad_norm: L2 norm to which each row's gradient is clipped.
        attack_epsilon: Linf radius of the attack inside training.
        attack_steps: Gradient steps of that attack.
        settings_tried: How many settings were tried.
        seed: Seed of the initial weights.
        device: `auto`, `cpu` or `cuda`.
        canaries: Made-up rows whose training is guessed.
        confidence: With which the lower bound of epsilon holds.
        step: Name of this gate in the policy.
        verdict_evidence: The evidence with the signed verdict.
        report: The verdict and its figures.
        metrics: The figures.
    """
    from pathlib import Path

    from portcullis.dp_training.settings import AuditSettings, PrivateSettings
    from portcullis.dp_training.stage import evaluate_privacy as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        model=Path(model.path),
        evidence=Path(evidence.path),
        ledger=ledger,
        settings=PrivateSettings(
            target_epsilon=target_epsilon,
            delta=delta,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_grad_norm=max_grad_norm,
            attack_epsilon=attack_epsilon,
            attack_steps=attack_steps,
            settings_tried=settings_tried,
            seed=seed,
            device=device,
        ),
        audited=AuditSettings(canaries=canaries, confidence=confidence),
        report=Path(report.path),
        bundle=Path(verdict_evidence.path),
    )
    log_figures(metrics, statement)


@gate_pipeline("privacy-audit-gate")
def privacy_audit_gate(
    model: Input[Model],
    evidence: Input[Artifact],
    ledger: Dict[str, Any],
    target_epsilon: float,
    delta: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_grad_norm: float,
    attack_epsilon: float,
    attack_steps: int,
    settings_tried: int,
    seed: int,
    device: str,
    canaries: int,
    confidence: float,
    step: str,
    secret: str,
    gpus: str,
    gpu_resource: str,
) -> NamedTuple("Outputs", [("evidence", Artifact)]):
    """Refuse a private model whose trainer is less private than its certificate says, as far as an audit can tell.

    Args:
        model: The model.
        evidence: Its evidence.
        ledger: As of `dp_train`; so are the next eleven.
        target_epsilon: Most that the training may spend.
        delta: The probability with which epsilon may not hold.
        epochs: How often a row is used, on average.
        batch_size: Rows per step, on average.
        learning_rate: Of stochastic gradient descent.
        max_grad_norm: L2 norm to which each row's gradient is clipped.
        attack_epsilon: Linf radius of the attack inside training.
        attack_steps: Gradient steps of that attack.
        settings_tried: How many settings were tried.
        seed: Seed of the initial weights.
        device: `auto`, `cpu` or `cuda`.
        canaries: Made-up rows whose training is guessed.
        confidence: With which the lower bound of epsilon holds.
        step: Name of this gate in the policy.
        secret: Name of the Kubernetes Secret with the keys of its `evaluate`.
        gpus: How many GPUs `evaluate` asks for, spelt as text: `0`, `1`, …
        gpu_resource: What Kubernetes calls them, such as `nvidia.com/gpu`.

    Returns:
        evidence: The evidence with the PASSED verdict.
    """
    judged = evaluate_privacy(
        model=model,
        evidence=evidence,
        ledger=ledger,
        target_epsilon=target_epsilon,
        delta=delta,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        attack_epsilon=attack_epsilon,
        attack_steps=attack_steps,
        settings_tried=settings_tried,
        seed=seed,
        device=device,
        canaries=canaries,
        confidence=confidence,
        step=step,
    )
    held = enforce(subject=model, evidence=judged.outputs["verdict_evidence"], gate=step)
    harden(judged, secret=secret, resources=LARGE, gpus=gpus, gpu_resource=gpu_resource)
    harden(held, trust=TRUST_CONFIG_MAP)
    outputs = NamedTuple("Outputs", [("evidence", Artifact)])
    return outputs(evidence=held.outputs["passed"])
