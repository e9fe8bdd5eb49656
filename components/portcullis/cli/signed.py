"""The verbs that sign a compiled pipeline and verify what was signed."""

from pathlib import Path

import click

from portcullis.cli import cluster
from portcullis.cli.show import say
from portcullis.files import write_bytes

_WHEEL = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("sign-pipeline")
@click.argument("package", type=_WHEEL)
@cluster.image_option
@click.option("--wheel", type=_WHEEL, help="The wheel that the image installs, to be signed with it.")
@cluster.config_option
@cluster.home_option
def sign_pipeline(
    package: Path, image: str | None, wheel: Path | None, config: Path | None, folder: Path | None
) -> None:
    """Sign a compiled pipeline with the owner's key, and write PACKAGE.sig beside it.

    Signed is what `submit` would send, byte for byte: with --image here, submit it with the same --image. What could
    run past a gate is not signed. `submit` then refuses PACKAGE if anything in it was altered.

    \b
    Example:  portcullis sign-pipeline reference.yaml --wheel dist/kfp_portcullis-0.1.0-py3-none-any.whl
    Then:     portcullis verify-pipeline reference.yaml --wheel …; portcullis submit reference.yaml --host …
    """  # noqa: D301 - \b is click's mark for text that is not to be wrapped
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.config import ReferenceConfig
    from portcullis_pipelines.home import home_of
    from portcullis_pipelines.signed_package import Wheel, sign_package, signature_of

    inspected = cluster.inspected(package, image)
    named = Wheel.of(wheel) if wheel else None
    home = cluster.existing(config, folder) or home_of(ReferenceConfig.load(config))
    store = TrustStore.load(home.trust)
    path = signature_of(package)
    write_bytes(path, sign_package(inspected.digest, named, store=store, owner=home.signer("owner")))
    say(f"{path}  signs sha256:{inspected.digest} for policy {store.policy.name} ({store.policy.environment})")


@click.command("verify-pipeline")
@click.argument("package", type=_WHEEL)
@cluster.image_option
@click.option("--wheel", type=_WHEEL, help="The wheel; needed if one was signed.")
@cluster.trust_option
def verify_pipeline(package: Path, image: str | None, wheel: Path | None, trust: Path | None) -> None:
    """Verify that a compiled pipeline, and its wheel, are what the owner of your trust store signed.

    \b
    Example:  portcullis verify-pipeline reference.yaml --trust ~/.local/share/portcullis/my-model/trust
    """  # noqa: D301 - as above
    from portcullis.evidence.trust import TrustStore
    from portcullis_pipelines.home import default_trust
    from portcullis_pipelines.signed_package import require_signature, require_wheel

    store = TrustStore.load(trust or default_trust())
    inspected = cluster.inspected(package, image)
    require_wheel(require_signature(package, inspected.digest, store=store), wheel)
    said = f" and {wheel.name}" if wheel else ""
    say(f"{package}{said}: signed by the owner of policy {store.policy.name} ({store.policy.environment})")
