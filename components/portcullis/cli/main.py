"""The verbs of `portcullis`. Exit codes: 0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from portcullis import __version__
from portcullis.cli import cluster, data
from portcullis.cli.attack import attack
from portcullis.cli.audit import audit
from portcullis.cli.ledger import ledger
from portcullis.cli.mask import mask
from portcullis.cli.ownership import claim, watermark
from portcullis.cli.reveal import reveal
from portcullis.cli.sbom import sbom
from portcullis.cli.scan import convert, scan
from portcullis.cli.show import Steps, chain_table, complain, key_table, say
from portcullis.cli.signed import sign_pipeline, verify_pipeline
from portcullis.errors import ConfigError, MissingDependencyError, PortcullisError, UsageError
from portcullis.evidence.shards import MAX_SHARDS

try:
    from portcullis_pipelines import home as homes
    from portcullis_pipelines.config import ReferenceConfig
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

_REFERENCE = "builtin:cheque-digits"
_EXISTING = click.Path(exists=True, path_type=Path)
_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Your trust store (default: PORTCULLIS_TRUST, or the only one below PORTCULLIS_HOME).",
)
_config = click.option("--config", type=_EXISTING, help="Your configuration, YAML (default: the reference data's).")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="portcullis")
def cli() -> None:
    """Secure a machine-learning pipeline from raw data to served model, and fail closed.

    \b
    Start with:   portcullis run --output portcullis-run
    Then look at: portcullis-run/report.html
    Check it:     portcullis verify portcullis-run
    Serve it:     portcullis serve portcullis-run
    Your data:    portcullis init --data rows.csv
    What changed: portcullis diff old.csv new.csv
    A cluster:    portcullis compile, bootstrap, doctor, submit

    Exit codes: 0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error.
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped


@cli.command()
@click.option(
    "--data",
    "uri",
    default=_REFERENCE,
    show_default=True,
    help="CSV, JSON Lines or Parquet, a file or a folder: a path, or an s3://, gs:// or minio:// URI.",
)
@_config
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("portcullis-run"),
    show_default=True,
    help="Directory to write; an earlier run there is replaced, also by a refusal.",
)
@click.option(
    "--shards",
    type=click.IntRange(1, MAX_SHARDS),
    help="Over how many shards to read and mask the data (default: what the configuration says, else 1).",
)
@click.option("--private", is_flag=True, help="Train under differential privacy (DP-SGD), by a policy of its own.")
@click.option("--epsilon", type=float, help="What the private training may spend: 1, 3 or 8 of the reference (3).")
@_json
def run(
    uri: str,
    config: Path | None,
    output: Path,
    shards: int | None,
    private: bool,  # noqa: FBT001
    epsilon: float | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Run the reference pipeline on this machine with the kfp local runner.

    Creates missing keys and a policy (labelled `development`) below PORTCULLIS_HOME, runs every step, verifies what
    they left by itself, and writes the report, the evidence and the sealed model. Your own data needs --data and
    --config; the configuration names the label, the features with shape and bounds, and the sensitive columns.
    With --private the model is trained by DP-SGD and the trainer audited; its policy asks for less robustness, as
    privacy costs some. With --config, its section dp_training says how.
    """
    from portcullis_pipelines.run import run_reference

    if uri != _REFERENCE and config is None:
        raise ConfigError("--data needs --config: a YAML file that describes label, features and sensitive columns")
    if epsilon is not None and not private:
        raise UsageError("--epsilon says how private a model is to be; add --private")
    chosen = ReferenceConfig.load(config, private=private, epsilon=epsilon)
    if shards is not None:
        chosen = dataclasses.replace(chosen, shards=shards)
    home = homes.home_of(chosen)
    made = homes.generate_keys(home, homes.step_names(chosen), chosen.keys)
    store, chosen = homes.ensure_trust(home, chosen)
    if made and not as_json:
        say(f"made {len(made)} development keys in {home.keys}")
    output = Path(os.path.realpath(output))  # what a link names is replaced, not the link
    with Steps(quiet=as_json) as steps:
        verified = run_reference(chosen, uri, home, store, output, steps.update)
    if as_json:
        click.echo((output / "run.json").read_text(), nl=False)
        return
    chain_table(verified)
    say(f"report    {output / 'report.html'}")
    say(f"evidence  {output / 'evidence.intoto.jsonl'}")
    say(f"bundle    {output}  (sealed model, admission, policy)")
    say("")
    say("Serve it and ask it:")
    features = chosen.dataset.features
    row = [features.low] * math.prod(features.shape)
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, len(row)], "data": row}]}
    say(shlex.join([_own_name(), "serve", str(output), "--trust", str(home.trust), "--port", "8080"]))
    say(
        f'curl -H "Authorization: Bearer $(cat {shlex.quote(str(home.keys / "serving.token"))})" '
        f"-H 'Content-Type: application/json' -d '{json.dumps(body, separators=(',', ':'))}' "
        f"http://127.0.0.1:8080/v2/models/{store.policy.name}/infer"
    )


@cli.command()
@click.argument("directory", type=_EXISTING)
@_trust
@_json
def verify(directory: Path, trust: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Verify what a run left, offline, by your own trust store, and print the chain."""
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.outcome import verify_directory

    verified = verify_directory(directory, TrustStore.load(trust or homes.default_trust()))
    if as_json:
        click.echo((directory / "run.json").read_text(), nl=False)
    else:
        chain_table(verified)


@cli.command()
@click.argument("directory", type=_EXISTING)
@_trust
def admit(directory: Path, trust: Path | None) -> None:
    """Judge a run's evidence now and sign a new admission for its sealed model.

    Needs the admission step's key (PORTCULLIS_KEYS, or `keys` beside the trust store). Deploy it afterwards.
    """
    from portcullis.admission.stage import admit as run_admit

    store = _use(trust)
    content = run_admit(
        sealed=directory / "model",
        signature=directory / "model.sig",
        evidence=directory / "evidence.intoto.jsonl",
        admission=directory / "admission.json",
        trust=store,
    )
    chosen = ["--trust", str(trust)] if trust else []
    say(f"admitted model {content}; next: {shlex.join([_own_name(), 'deploy', str(directory), *chosen])}")


@cli.command()
@click.argument("directory", type=_EXISTING)
@_trust
def deploy(directory: Path, trust: Path | None) -> None:
    """Deploy a run's admitted model to the local target, probe it, and sign the answers."""
    from portcullis.deploy.stage import deploy as run_deploy
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.outcome import verify_directory, write_reports

    store = _use(trust)
    run_deploy(
        step="deploy",
        sealed=directory / "model",
        admission=directory / "admission.json",
        evidence=directory / "evidence.intoto.jsonl",
        target="local",
        deployment=directory / "deployment.json",
    )
    verified = verify_directory(directory, TrustStore.load(store), published=False)
    write_reports(directory, verified)
    chain_table(verified)


@cli.command()
@click.argument("directory", type=_EXISTING)
@_trust
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="TCP port; 0 lets the system choose.",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Where to write the port once it is listened on.")
@click.option(
    "--audit",
    "log",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the audit log, signed by the key of `deploy` (default: PORTCULLIS_AUDIT's, else none).",
)
def serve(directory: Path, trust: Path | None, host: str, port: int, ready_file: Path | None, log: Path | None) -> None:
    """Serve a run's admitted model (Open Inference Protocol v2, bearer token) until told to stop.

    Verifies chain and admission first, by your own trust store, and decrypts the model in memory only. Needs the
    serving key and token (PORTCULLIS_KEYS, or `keys` beside the trust store).
    """
    from portcullis.audit.log import AUDIT_ENV
    from portcullis.serving.stage import serve_admitted

    store = _use(trust)
    if log:
        os.environ[AUDIT_ENV] = str(log.absolute())
    say(f"verifying {directory}, then listening on {host} port {port}; stop with Ctrl-C")
    serve_admitted(
        sealed=directory / "model",
        admission=directory / "admission.json",
        evidence=directory / "evidence.intoto.jsonl",
        trust=store,
        host=host,
        port=port,
        ready_file=ready_file,
    )


@cli.group()
def keys() -> None:
    """Make, list and revoke keys; sign the policy of a trust store."""


@keys.command()
@_config
def generate(config: Path | None) -> None:
    """Create every missing key: one per step, the owner's, masking, split and serving. Files are of mode 0600."""
    chosen = ReferenceConfig.load(config)
    home = homes.home_of(chosen)
    made = homes.generate_keys(home, homes.step_names(chosen), chosen.keys)
    for path in made:
        say(str(path))
    say(f"{len(made)} keys made in {home.keys}; existing ones were left alone")


@keys.command("list")
@_config
@_json
def list_keys(config: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """List the signing keys by role, with their key ids. Shows no private key."""
    chosen = ReferenceConfig.load(config)
    rows = homes.list_keys(homes.home_of(chosen), homes.step_names(chosen))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        key_table(rows)


@keys.command()
@_config
def trust(config: Path | None) -> None:
    """Sign a policy for the configuration, if none is in force that demands the same, and write the trust store."""
    home = _home(config)
    store, _ = homes.ensure_trust(home, ReferenceConfig.load(config))
    say(f"policy {store.policy.name} version {store.policy.version} ({store.policy.environment}) in {home.trust}")


@keys.command()
@click.option("--step", help="Revoke the key of this step.")
@click.option("--admission", type=_EXISTING, help="Revoke the admission of this run's directory.")
@_config
def revoke(step: str | None, admission: Path | None, config: Path | None) -> None:
    """Sign that a step's key or an admission no longer counts."""
    if (step is None) == (admission is None):
        raise click.UsageError("name either --step or --admission")
    home = _home(config)
    store = homes.revoke(home, step=step, admission=admission)
    say(f"revocation list version {store.revocations.version} in {home.trust}")
    if step:
        say(
            f"for a new key: move the old one out of {home.keys}, then: portcullis keys generate; portcullis keys trust"
        )


@keys.command()
@click.argument("directory", type=_EXISTING)
@_trust
def rewrap(directory: Path, trust: Path | None) -> None:
    """Wrap a run's sealed model anew for the serving key, after its service rotated it.

    The run is verified first. Neither the sealed model nor its evidence changes: what was admitted stays admitted.
    """
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.outcome import rewrap_model

    rewrap_model(directory, TrustStore.load(_use(trust)))
    say(f"{directory / 'model'} is wrapped anew; the sealed model is as it was")


@keys.command()
@click.argument("directory", type=_EXISTING)
@_config
def rollback(directory: Path, config: Path | None) -> None:
    """Sign that this older admission may be deployed again although a newer one was."""
    home = _home(config)
    store = homes.allow_rollback(home, directory)
    say(f"rollback allowed by revocation list version {store.revocations.version} in {home.trust}")


for command in (cluster.init, cluster.compile_package, cluster.bootstrap, cluster.doctor, cluster.submit):
    cli.add_command(command)
for command in (
    *(data.diff, data.lineage, data.quarantine, mask, reveal, ledger, scan, convert, attack, watermark, claim),
    *(sign_pipeline, verify_pipeline, audit, sbom),
):
    cli.add_command(command)


def _own_name() -> str:
    """Return how this command is called from here: by name where that finds it, else by path (in a `.venv`, say)."""
    beside = Path(sys.executable).parent / "portcullis"
    return "portcullis" if shutil.which("portcullis") or not beside.is_file() else str(beside)


def _home(config: Path | None) -> homes.Home:
    return homes.home_of(ReferenceConfig.load(config))


def _use(trust: Path | None) -> Path:
    """Settle on a trust store, and on the keys beside it unless the environment names others."""
    from portcullis.evidence.step import KEYS_ENV
    from portcullis.evidence.trust import TRUST_ENV

    store = (trust or homes.default_trust()).absolute()
    os.environ[TRUST_ENV] = str(store)
    os.environ.setdefault(KEYS_ENV, f"file:{store.parent / 'keys'}")
    return store


def main() -> None:
    """Run the command and exit with its code; an error is one line on standard error."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _interrupt)
    sys.exit(_guarded(cli))


def _interrupt(*_: object) -> NoReturn:
    """Unwind, so that data and processes of a run are cleaned up; more signals do not interrupt that."""
    for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt


def _guarded(command: Callable[..., Any]) -> int:
    try:
        code = command(standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return 130
    except PortcullisError as error:
        complain(f"{type(error).__name__}: {error}")
        return error.exit_code
    except OSError as error:  # a full disk, a missing permission: the caller's to mend
        complain(f"{type(error).__name__}: {error}")
        return UsageError.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence; nothing passes as success
        traceback.print_exc()
        complain(f"internal error: {error!r}; please report it")
        return 4
    return code or 0  # a verb whose answer is no error returns its code
