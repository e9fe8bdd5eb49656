"""The verb that attacks a model on the spot, without a pipeline or a signature."""

import dataclasses
import json
from pathlib import Path

import click

from portcullis.cli.show import say
from portcullis.errors import ConfigError, GateFailedError, UsageError
from portcullis.files import read_bytes, write_bytes
from portcullis.robustness.settings import MAX_THREAT, RobustnessSettings

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
_DEFAULT = RobustnessSettings()


@click.command()
@click.option("--model", type=_DIRECTORY, required=True, help="The model: model.json and weights.safetensors.")
@click.option("--data", type=_DIRECTORY, required=True, help="A data set, with its description, unseen by the model.")
@click.option("--epsilon", type=float, default=_DEFAULT.epsilon, show_default=True, help="Linf radius, inputs in 0..1.")
@click.option("--l2-budget", type=float, default=_DEFAULT.l2_budget, show_default=True, help="L2 radius.")
@click.option(
    "--threat",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML of the features that may change, for a model of a table, in place of the radii.",
)
@click.option("--least", type=float, help="Refuse a robust accuracy below it, 0 to 1.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the HTML report there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def attack(
    model: Path,
    data: Path,
    epsilon: float,
    l2_budget: float,
    threat: Path | None,
    least: float | None,
    report: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Attack a model with FGSM, PGD, DeepFool, DDN, APGD and CW, and say what it withstands.

    With --threat, rows of a table are attacked by random search through the model's probabilities alone. Nothing is
    signed. A model that cannot be judged soundly is inconclusive, exit code 3.
    """
    if least is not None and not 0 < least <= 1:
        raise UsageError("--least is above 0, up to 1")
    if threat is not None and (epsilon, l2_budget) != (_DEFAULT.epsilon, _DEFAULT.l2_budget):
        raise UsageError("--threat says how far each feature may move; leave --epsilon and --l2-budget out")
    from portcullis.robustness.judge import judge_model

    # PGD's ten steps cross its ball, whatever the radius.
    step = epsilon / 4 if epsilon > 0 else _DEFAULT.pgd_step_size
    said = _text(threat) if threat is not None else ""
    settings = dataclasses.replace(_DEFAULT, epsilon=epsilon, l2_budget=l2_budget, pgd_step_size=step, threat=said)
    judged = judge_model(model, data, settings)
    if report is not None:
        write_bytes(report, judged.page.encode())
    if as_json:
        say(json.dumps(dict(judged.measured.figures), indent=2))
    else:
        for name, value in judged.measured.figures.items():
            say(f"{name}: {value}")
    if least is not None and not judged.robust_accuracy >= least:
        raise GateFailedError(f"robust accuracy {judged.robust_accuracy:.3f} is below {least:g}")


def _text(threat: Path) -> str:
    try:
        text = read_bytes(threat, limit=MAX_THREAT).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{threat} is no text in UTF-8") from error
    if not text.strip():
        raise ConfigError(f"{threat} is empty; name the features that may change")
    return text
