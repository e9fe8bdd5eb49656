"""The verb for bills of materials: what is installed here, judged by a lock, and what a run's model is made of."""

import json
from pathlib import Path

import click

from portcullis.cli.show import say
from portcullis.errors import MissingDependencyError
from portcullis.files import write_bytes

try:
    from portcullis_pipelines.home import default_trust
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

_OWN = ("kfp-portcullis", "pip")  # in no lock of ours: what is installed, and what installs


@click.command()
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option(
    "--lock", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Lock with hashes to judge by."
)
@click.option("--beside", multiple=True, metavar="NAME", help="May be installed though not in the lock; repeatable.")
@click.option("--trust", type=click.Path(path_type=Path), help="Trust store, for DIRECTORY (default: as for verify).")
def sbom(directory: Path | None, output: Path, lock: Path | None, beside: tuple[str, ...], trust: Path | None) -> None:
    """Write a CycloneDX 1.6 bill of materials of what is installed here, or of the model of a run's DIRECTORY.

    With --lock, what is installed is judged first, and nothing is written unless each distribution is in the lock in
    that version and its files are as they were installed. With DIRECTORY, the run is verified, and the bill is an
    ML-BOM whose model card holds what the steps signed.

    \b
    Example:  portcullis sbom --lock requirements.lock --beside torch --output sbom.cdx.json
              portcullis sbom portcullis-run --output mlbom.cdx.json
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped
    from portcullis.evidence.trust import TrustStore, now_ms
    from portcullis.supply_chain.bill import encode_bill, software_bill
    from portcullis.supply_chain.dependencies import find_installed, judge_dependencies, read_lock_file, require_sound

    installed = find_installed()
    if lock:
        require_sound(judge_dependencies(installed, read_lock_file(lock), beside=(*_OWN, *beside)))
    if directory:
        from portcullis_pipelines.outcome import bill, verify_directory

        data = bill(verify_directory(directory, TrustStore.load(trust or default_trust())))
    else:
        data = encode_bill(software_bill(installed, time=now_ms()))
    write_bytes(output, data)
    judged = f", as {lock} says" if lock else ", judged by no lock"
    listed = len(json.loads(data)["components"])
    say(f"wrote {output}: {listed} components; {len(installed)} distributions installed{judged}")
