"""The verbs for the audit log: is it whole, and what does it tell."""

import json
from pathlib import Path

import click

from portcullis.cli.show import say
from portcullis.errors import MissingDependencyError

try:
    from portcullis_pipelines.home import default_trust
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error


def _log_of(_: click.Context, __: click.Parameter, directory: Path) -> Path:
    """Return the folder of the log: a run's folder holds it beside `run.json`, which no log has."""
    return directory / "audit" if (directory / "run.json").is_file() else directory


_folder = click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), callback=_log_of)
_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Your trust store (default: PORTCULLIS_TRUST, or the only one below PORTCULLIS_HOME).",
)
_kept = click.option(
    "--checkpoints",
    "kept",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoints that were kept elsewhere, a folder or a file of one a line; the log must hold all of theirs.",
)


@click.group("audit")
def audit() -> None:
    """Look at an audit log: what each step and the server did, chained and signed."""


@audit.command()
@_folder
@_trust
@_kept
def verify(directory: Path, trust: Path | None, kept: Path | None) -> None:
    """Verify the audit log in DIRECTORY: any edit, deletion, move or cut is refused, and told by segment and line.

    DIRECTORY is the log's own, or a run's that holds it. A segment without its end is named: its process goes on, was
    killed, or its end was cut off together with its checkpoint, which only --checkpoints can tell.

    \b
    Example:  portcullis audit verify portcullis-run --checkpoints ~/.local/share/portcullis/…/state/audit/….jsonl
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped
    from portcullis.audit.verify import log_head, verify_log
    from portcullis.evidence.trust import TrustStore

    segments = verify_log(directory, TrustStore.load(trust or default_trust()), kept=kept)
    for it in segments:
        if not it.closed:
            say(f"without an end: {it.name}, {len(it.records)} lines")
    say(f"{sum(len(it.records) for it in segments)} events in {len(segments)} segments are whole")
    say(f"keep this head elsewhere: {log_head(segments)}")


@audit.command()
@_folder
@_trust
@_kept
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per event.")
def show(directory: Path, trust: Path | None, kept: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Print the events of the audit log in DIRECTORY, its own or a run's, by time, once it verified."""
    from portcullis.audit.verify import verify_log
    from portcullis.evidence.trust import TrustStore

    segments = verify_log(directory, TrustStore.load(trust or default_trust()), kept=kept)
    told = sorted(
        (record.said["time"], it.process, record.number, record.said) for it in segments for record in it.records
    )
    for time, process, _, said in told:
        fields = {name: it for name, it in said.items() if name not in ("number", "previous", "time", "event")}
        if as_json:
            say(json.dumps({"time": time, "process": process, "event": said["event"], **fields}))
        else:
            rest = " ".join(f"{name}={it}" for name, it in sorted(fields.items()) if name != "process")
            say(f"{time}  {process:24}  {said['event']:16}  {rest}".rstrip())
