"""KFP component `train`."""

from typing import Dict, NamedTuple

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from portcullis.container import component


@component
def train(
    dataset: Input[Dataset],
    evidence: Input[Artifact],
    architecture: str,
    options: Dict[str, float],
    method: str,
    epsilon: float,
    steps: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    ema: float,
    held_out: float,
    seed: int,
    device: str,
    model: Output[Model],
    model_evidence: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    step: str = "train",
) -> NamedTuple("Outputs", [("digest", str)]):
    """Train a model, adversarially by default; on a GPU where there is one.

    Refuses malformed or too few rows, an architecture that is not installed, and a model that is not finite.

    Args:
        dataset: The training rows.
        evidence: Their evidence.
        architecture: Name of an installed architecture (entry-point group `portcullis.architectures`).
        options: Options of the architecture.
        method: `trades2`, `mix`, `pgd`, `trades`, `nfgsm` or `plain`.
        epsilon: Linf radius of the attack inside training, inputs scaled to 0..1.
        steps: Gradient steps of that attack in `mix`, `pgd` and `trades`.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        ema: Decay of the exponential mean of the weights; 0 for none.
        held_out: Share of the rows by which the checkpoint is chosen.
        seed: Seed of weights, rows held out, order and attack.
        device: `auto`, `cpu` or `cuda`.
        step: Name of this step in the policy.
        model: The model: safetensors and a description, never pickle.
        model_evidence: The evidence with this step's statement.
        report: Figures and curves.
        metrics: Training figures.

    Returns:
        digest: SHA-256 of the model's content.
    """
    from pathlib import Path

    from portcullis.report import log_figures
    from portcullis.training.settings import TrainingSettings
    from portcullis.training.stage import train_model

    statement = train_model(
        step=step,
        dataset=Path(dataset.path),
        evidence=Path(evidence.path),
        architecture=architecture,
        options={name: int(value) if value == int(value) else value for name, value in options.items()},
        settings=TrainingSettings(
            method=method,
            epsilon=epsilon,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            ema=ema,
            held_out=held_out,
            seed=seed,
            device=device,
        ),
        model=Path(model.path),
        report=Path(report.path),
        bundle=Path(model_evidence.path),
    )
    log_figures(metrics, statement)
    outputs = NamedTuple("Outputs", [("digest", str)])
    return outputs(digest=statement.outputs["model"])
