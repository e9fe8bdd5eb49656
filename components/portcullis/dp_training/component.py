"""KFP component `dp_train`."""

from typing import Any, Dict, NamedTuple

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component


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
