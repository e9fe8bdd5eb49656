"""The verbs for Kubeflow Pipelines on a cluster: init, compile, bootstrap, doctor, submit."""

import io
import json
import os
import shlex
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

import click
from rich.console import Console
from rich.table import Table

from portcullis.cli.show import complain, say
from portcullis.errors import ConfigError, InconclusiveError, MissingDependencyError, PipelineError, UsageError
from portcullis.files import read_bytes, write_bytes
from portcullis.strict_yaml import MAX_YAML_BYTES

try:
    from portcullis_pipelines import home as homes
    from portcullis_pipelines.config import DEVELOPMENT, ReferenceConfig
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

if TYPE_CHECKING:
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.bootstrap import Part
    from portcullis_pipelines.doctor import Check
    from portcullis_pipelines.inspection import Package
    from portcullis_pipelines.submission import Run

_REFERENCE = "builtin:cheque-digits"
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PARTS = click.Choice(["secure_training", "release", "all"])
_DAY = 24 * 3600
_MAX_OUTPUT_BYTES = 8 << 20

config_option = click.option("--config", type=_FILE, help="Your configuration, YAML (default: the reference data's).")
home_option = click.option(
    "--home",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of keys/ and trust/ of a pipeline of your own, instead of --config.",
)
image_option = click.option(
    "--image", help="Image of what runs the release's own by a tag, REFERENCE@sha256:… (default: as compiled)."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
trust_option = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Trust store whose owner signed (default: PORTCULLIS_TRUST, or the only one below PORTCULLIS_HOME).",
)
_host = click.option(
    "--host",
    required=True,
    envvar="KF_PIPELINES_ENDPOINT",
    help="URL of Kubeflow Pipelines, such as http://localhost:8080 behind a port-forward.",
)
_token_file = click.option(
    "--token-file", type=_FILE, help="File with a bearer token, of mode 0600 (default: KF_PIPELINES_TOKEN's)."
)


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("portcullis.yaml"),
    show_default=True,
    help="File to write; one that exists is never overwritten.",
)
@click.option(
    "--data",
    type=_FILE,
    help="A CSV, JSON Lines or Parquet file to suggest label, features and sensitive columns from.",
)
def init(output: Path, data: Path | None) -> None:
    """Write a commented configuration for your own data.

    Every section is there with its defaults and what they mean. With --data, columns are suggested by their names and
    types, as comments: what is sensitive in your data, and within which bounds it lies, is for you to say.

    \b
    Example:  portcullis init --data rows.csv
    Then:     edit portcullis.yaml, and: portcullis run --data rows.csv --config portcullis.yaml
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped
    from portcullis_pipelines.init import configuration, suggest, write_new

    write_new(output, configuration(suggest(data) if data else ()))
    say(f"wrote {output}; describe your data in its section `dataset`")


@click.command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write (default: reference.yaml), or with --split a folder (default: portcullis-package).",
)
@config_option
@click.option(
    "--data",
    "uri",
    default=_REFERENCE,
    show_default=True,
    help="The data as the pods see them: s3://…, gs://…, minio://…, or a path below /data with --data-claim.",
)
@click.option("--data-claim", default="", help="PersistentVolumeClaim to mount at /data where the data are read.")
@click.option("--data-secret", default="", help="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://.")
@click.option("--data-endpoint", default="", help="Server of s3:// and minio://, such as http://minio:9000.")
@click.option("--image", help="Image of every task, REFERENCE@sha256:… (default: the release's tag).")
@click.option(
    "--gpu",
    type=click.IntRange(0, 999),
    default=0,
    show_default=True,
    help="GPUs that training and the gates on the model ask for each.",
)
@click.option(
    "--gpu-resource", default="nvidia.com/gpu", show_default=True, help="What Kubernetes calls them, or a MIG slice."
)
@click.option(
    "--audit-claim", default="", help="PersistentVolumeClaim (ReadWriteMany) where every step writes its audit log."
)
@click.option("--split", is_flag=True, help="Compile secure_training.yaml and release.yaml, for two namespaces.")
def compile_package(
    output: Path | None,
    config: Path | None,
    uri: str,
    data_claim: str,
    data_secret: str,
    data_endpoint: str,
    image: str | None,
    gpu: int,
    gpu_resource: str,
    audit_claim: str,
    split: bool,  # noqa: FBT001
) -> None:
    """Compile the reference pipeline for a cluster, your configuration's values as its arguments.

    Creates missing keys and the policy below PORTCULLIS_HOME as `run` does, since the package names who can open the
    model. The same input gives the same bytes. A file that is there is overwritten only if it is such a package.

    \b
    Example:  portcullis compile --image registry.example/portcullis@sha256:… --data s3://bucket/rows.csv \\
                --config portcullis.yaml
    Then:     portcullis bootstrap, portcullis doctor, portcullis submit reference.yaml
    """  # noqa: D301 - as above
    from portcullis_pipelines.inspection import inspect
    from portcullis_pipelines.packaging import SPLIT, WHOLE, DataAccess, is_package, package

    if uri != _REFERENCE and config is None:
        raise ConfigError("--data needs --config: a YAML file that describes label, features and sensitive columns")
    output = output or Path("portcullis-package" if split else "reference.yaml")
    if output.exists() and output.is_dir() != split:
        raise UsageError(f"{output} is {'no' if split else 'a'} folder; name another --output")
    access = DataAccess(uri, claim=data_claim, secret=data_secret, endpoint=data_endpoint)
    paths = {name: output / name for name in SPLIT} if split else {WHOLE[0]: output}
    for path in paths.values():
        _require_replaceable(path, is_package)
    _, _, chosen = _prepared(config)
    files = package(
        chosen, access, image=image, gpus=gpu, gpu_resource=gpu_resource, split=split, audit_claim=audit_claim
    )
    inspected = {paths[name]: inspect(data) for name, data in files.items()}
    for path, it in inspected.items():
        write_bytes(path, it.data)
        say(f"{path}  sha256:{it.digest}")
        say(f"  {it.gpu_line()}")
    if image is None:
        complain("note: the image is named by a tag, which can be moved, so submit will refuse this; pass --image")


@click.command()
@click.option("--namespace", required=True, help="Where the steps run; it exists already.")
@click.option("--part", type=_PARTS, default="all", show_default=True, help="Which steps run there.")
@config_option
@home_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, of mode 0600; what is there must be an earlier one (default: standard output).",
)
@click.option("--service-account", help="What the runs' pods run as (default: made for the part).")
@click.option("--deploy-namespace", help="Where the server runs (default: the policy's, else --namespace).")
@click.option("--public", is_flag=True, help="Leave the Secrets out.")
def bootstrap(
    namespace: str,
    part: "Part",
    config: Path | None,
    folder: Path | None,
    output: Path | None,
    service_account: str | None,
    deploy_namespace: str | None,
    public: bool,  # noqa: FBT001
) -> None:
    """Write what a namespace needs before a pipeline runs in it, for kubectl to apply.

    One Secret per step with that step's keys alone, the trust store as a ConfigMap, the service account, and for the
    release the deployer's role. With --part secure_training no key of the release is among them; the owner's never is.
    With --home, the steps are those of its policy, and nothing is made that is missing. Secrets are immutable: to
    change a key, delete its Secret first. Kubeflow Pipelines needs rights of its own in a
    run's service account, which your installation defines: bind its role too, or name its own by --service-account.

    \b
    Example:  portcullis bootstrap --namespace portcullis-training --part secure_training \\
                | kubectl apply --server-side -f -
    """  # noqa: D301 - as above
    from portcullis.deploy.manifests import to_yaml
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.bootstrap import is_rendered, objects, without_secrets

    if output is None and not public:
        _require_private(sys.stdout)
    if output is not None:
        _require_replaceable(output, is_rendered)
    home = existing(config, folder) or _prepared(config)[0]
    rendered = objects(
        home, part=part, namespace=namespace, service_account=service_account, deploy_namespace=deploy_namespace
    )
    rendered = without_secrets(rendered) if public else rendered
    if TrustStore.load(home.trust).policy.development:
        complain(f"note: these keys are labelled {DEVELOPMENT}; deployment.environment says what else a policy is for")
    # By a client-side apply, kubectl would copy every key into an annotation.
    text = to_yaml(rendered)
    if output is None:
        click.echo(text, nl=False)
        return
    write_bytes(output, text.encode(), mode=0o600)
    say(f"wrote {len(rendered)} objects to {output}; next: kubectl apply --server-side -f {output}")
    if not public:
        complain(f"note: {output} holds private keys; delete it when it is applied")


@click.command()
@_host
@click.option("--namespace", default="kubeflow", show_default=True, help="Where the run's pods will be.")
@click.option("--part", type=_PARTS, help="Which steps run there (default: the package's, or all).")
@click.option("--package", type=_FILE, help="The compiled pipeline: its images, GPUs, Secrets and volumes count.")
@image_option
@config_option
@home_option
@click.option("--service-account", help="Look for this service account too.")
@click.option("--kubeconfig", type=_FILE, help="How to reach the cluster (default: KUBECONFIG, ~/.kube/config).")
@_token_file
@_json
def doctor(
    host: str,
    namespace: str,
    part: "Part | None",
    package: Path | None,
    image: str | None,
    config: Path | None,
    folder: Path | None,
    service_account: str | None,
    kubeconfig: Path | None,
    token_file: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Look whether a cluster has what a run needs, before it is submitted; change nothing.

    Exit code 0 only if every check passed; 1 if one failed; 3 if one could not be made, for want of permission, say.

    \b
    Example:  portcullis doctor --host http://localhost:8080 --namespace portcullis-training \\
                --package secure_training.yaml
    """  # noqa: D301 - as above
    from portcullis_pipelines.doctor import Cluster, Wanted, examine
    from portcullis_pipelines.submission import Credentials, Server

    if image and not package:
        raise UsageError("--image is put into a package; name it by --package")
    server = Server(host, Credentials.find(os.environ, token_file), os.environ)
    home = existing(config, folder) or homes.home_of(ReferenceConfig.load(config))
    checks = examine(
        server,
        Cluster(kubeconfig),
        Wanted(
            namespace=namespace,
            part=part,
            package=inspected(package, image) if package else None,
            service_account=service_account,
            trust=home.trust,
            policy_option=shlex.join(
                ["--home", str(folder)] if folder else ["--config", str(config)] if config else []
            ),
        ),
    )
    if as_json:
        say(json.dumps([asdict(it) for it in checks], indent=2))
    else:
        _check_table(checks)
    failed = [it.name for it in checks if it.passed is False]
    unseen = [it.name for it in checks if it.passed is None]
    if failed:
        raise PipelineError(f"not ready: {', '.join(failed)}")
    if unseen:
        raise InconclusiveError(f"could not look at {', '.join(unseen)}")


@click.command()
@click.argument("package", type=_FILE)
@_host
@image_option
@trust_option
@click.option(
    "--require-signature",
    is_flag=True,
    envvar="PORTCULLIS_REQUIRE_SIGNATURE",
    help="Refuse a PACKAGE that its owner did not sign (or set PORTCULLIS_REQUIRE_SIGNATURE=1).",
)
@click.option("--namespace", default="", help="Your namespace, on a server that keeps its users apart.")
@click.option("--experiment", default="portcullis", show_default=True, help="Experiment; created when missing.")
@click.option("--run-name", help="Name of the run (default: the pipeline's, and the package's digest).")
@click.option("--service-account", help="What the run's pods run as (default: the server's choice).")
@click.option("--argument", "given", multiple=True, metavar="KEY=VALUE", help="Argument of the pipeline; repeatable.")
@click.option(
    "--timeout", type=click.IntRange(1), default=_DAY, show_default=True, help="Seconds to wait for the run's end."
)
@click.option("--no-wait", is_flag=True, help="Do not wait; exit code 0 then means submitted.")
@_token_file
@_json
def submit(
    package: Path,
    host: str,
    image: str | None,
    trust: Path | None,
    require_signature: bool,  # noqa: FBT001
    namespace: str,
    experiment: str,
    run_name: str | None,
    service_account: str | None,
    given: tuple[str, ...],
    timeout: int,
    no_wait: bool,  # noqa: FBT001
    token_file: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Upload a compiled pipeline to Kubeflow Pipelines, run it, and wait for its end.

    Refuses, before anything is sent, a PACKAGE that could run past a gate, holds what KFP does not know, names an image
    without its digest, or has a container without its Kubernetes settings. With --image, what is compiled with the
    release's image by its tag, as the stages' YAML is, runs that image instead. Where PACKAGE.sig lies beside it
    (portcullis sign-pipeline), or --require-signature says so, what is sent must be what the owner of the trust store
    signed. A token comes from KF_PIPELINES_TOKEN
    or --token-file, cookies from KF_PIPELINES_COOKIES, the certificates to believe from SSL_CERT_FILE. Nothing is read
    from or written to ~/.config/kfp.

    The run's state is not the verdict: the signed admission is, and whoever serves the model verifies that again.

    \b
    Exit codes: 0 succeeded, 1 failed or canceled, 2 usage, 3 not known (no answer, or --timeout).
    Example:    kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80 &
                portcullis submit reference.yaml --host http://localhost:8080
    """  # noqa: D301 - as above
    from portcullis_pipelines.inspection import arguments
    from portcullis_pipelines.submission import Credentials, Server, require_succeeded

    checked = inspected(package, image)
    checked.require_pinned()
    _require_signed(package, checked, trust, required=require_signature)
    server = Server(host, Credentials.find(os.environ, token_file), os.environ)
    submission = server.submit(
        checked,
        arguments=arguments(checked, given),
        namespace=namespace,
        experiment=experiment,
        run_name=run_name or f"{checked.name} {checked.digest[:12]}",
        service_account=service_account,
    )
    if not as_json:
        say(f"run {submission.run} of {checked.name}, package sha256:{submission.sha256}")
        say(submission.url)
    if no_wait:
        if as_json:
            say(json.dumps(asdict(submission), indent=2))
        return
    try:
        with _Following(quiet=as_json) as following:
            run = server.wait(submission, timeout=timeout, progress=following.update)
    except KeyboardInterrupt:
        complain(f"run {submission.run} goes on: {submission.url}")
        raise
    if as_json:
        say(json.dumps(asdict(submission) | {"state": run.state, "failed": run.failed}, indent=2))
    require_succeeded(run, submission.url)
    if not as_json:
        say("SUCCEEDED; the run's state is not the verdict: admission is, verify it with your own trust store")


def _prepared(config: Path | None) -> "tuple[homes.Home, TrustStore, ReferenceConfig]":
    """Return the configuration's folder, with what is missing in it made, its trust store, and the configuration."""
    chosen = ReferenceConfig.load(config)
    home = homes.home_of(chosen)
    if made := homes.generate_keys(home, homes.step_names(chosen), chosen.keys):
        complain(f"made {len(made)} keys in {home.keys}")
    return home, *homes.ensure_trust(home, chosen)


def existing(config: Path | None, folder: Path | None) -> "homes.Home | None":
    """Return the folder that --home names, if it does."""
    if config and folder:
        raise UsageError("name either --config or --home")
    return homes.Home(folder.absolute()) if folder else None


def _require_signed(path: Path, package: "Package", trust: Path | None, *, required: bool) -> None:
    """Refuse a package whose signature does not hold, or that has none although it must."""
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines import signed_package

    beside = signed_package.signature_of(path)
    if not (required or beside.is_symlink() or beside.exists()):
        return
    signed_package.require_signature(path, package.digest, store=TrustStore.load(trust or homes.default_trust()))


def inspected(path: Path, image: str | None) -> "Package":
    """Read a compiled pipeline, put an image into it if one is named, and inspect what came of that."""
    from portcullis_pipelines.inspection import inspect
    from portcullis_pipelines.packaging import with_image

    data = read_bytes(path, limit=MAX_YAML_BYTES)
    return inspect(with_image(data, image) if image is not None else data)


def _require_replaceable(path: Path, is_own: Callable[[bytes], bool]) -> None:
    """Refuse to write over what this command did not write."""
    if (path.is_symlink() or path.exists()) and not is_own(read_bytes(path, limit=_MAX_OUTPUT_BYTES)):
        raise UsageError(f"{path} is not what this command writes; name another --output, or move it away")


def _require_private(stream: TextIO) -> None:
    """Refuse to write private keys where others would read them: on a terminal, or in a file that they may open."""
    if stream.isatty():
        raise UsageError("private keys are not shown on a terminal; pipe this to kubectl, name --output, or --public")
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except io.UnsupportedOperation:  # a stream within this process
        return
    if stat.S_ISREG(mode) and mode & 0o077:
        raise UsageError("other users may read the file that this would go to; name it by --output, or pipe to kubectl")


def _check_table(checks: "list[Check]") -> None:
    table = Table()
    for name in ("check", "result", "found", "what to do"):
        table.add_column(name, overflow="fold")
    words = {True: "passed", False: "FAILED", None: "not seen"}
    for it in checks:
        # What a server said is shown without what could move or colour a terminal.
        cells = (it.name, words[it.passed], it.found, it.remedy)
        table.add_row(*("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) for text in cells))
    Console(markup=False).print(table)


class _Following:
    """How a run goes on: one line that changes on a terminal, a line per change elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._last:
            click.echo(err=True)

    def update(self, run: "Run") -> None:
        """Show how the run stands."""
        line = f"{run.state.lower()}, {run.ended} tasks ended"
        if not self._quiet and line != self._last:
            click.echo(f"\r\x1b[K{line}" if self._live else line, nl=not self._live, err=True)
            self._last = line
