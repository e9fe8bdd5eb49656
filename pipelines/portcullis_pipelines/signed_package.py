"""The owner's signature on a compiled pipeline, and on the wheel that its image installs.

A check against accidents: what was compiled, what is submitted and what was reviewed are one and the same, byte for
byte. It is not what stops a manipulated pipeline, which whoever may submit can send by another way: against that,
`admit` takes nothing from the pipeline on trust.

The signature is a DSSE envelope over the package's SHA-256, the wheel's name and SHA-256 if there is one, and the name
and environment of the policy that the owner's trust store pins, so that a package signed for development is refused
where production's store verifies. It lies beside the package as `PACKAGE.sig`. An older package stays signed: the
policy's version and parameters, which each step compares, say what may still run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portcullis.digest import canonical_json, file_digest, is_digest, parse_canonical_json
from portcullis.errors import DataError, EvidenceError, KeyMaterialError, UsageError
from portcullis.evidence.dsse import MAX_ENVELOPE_BYTES, Envelope, seal_payload
from portcullis.evidence.trust import TrustStore
from portcullis.files import read_bytes
from portcullis.keys import Signer

PACKAGE_TYPE = "application/vnd.portcullis.package+json"
FORMAT = "portcullis-package/v1"


@dataclass(frozen=True)
class Wheel:
    """A wheel's file name and SHA-256 (64 lower-case hexadecimal characters)."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Wheel":
        """Digest a wheel's file.

        Raises:
            UsageError: It is not named as wheels are.
            DataError: It is missing, a link, or not a regular file.
        """
        if path.suffix != ".whl" or not path.name.isprintable():
            raise UsageError(f"{path} is no wheel; name a .whl file")
        return cls(path.name, file_digest(path))


def signature_of(package: Path) -> Path:
    """Return where the signature of a package lies: beside it."""
    return package.with_name(f"{package.name}.sig")


def sign_package(package: str, wheel: Wheel | None, *, store: TrustStore, owner: Signer) -> bytes:
    """Return the signature of a compiled pipeline.

    Args:
        package: SHA-256 of the bytes that are submitted.
        wheel: The wheel that its image installs, if that is signed too.
        store: The trust store that will verify it.
        owner: The owner's key.

    Raises:
        KeyMaterialError: The trust store has another owner.
    """
    if owner.public_key != store.owner:
        raise KeyMaterialError(f"the owner's key here is not the one that {store.path} trusts")
    return seal_payload(_payload(package, wheel, store), owner, payload_type=PACKAGE_TYPE).encode()


def verify_package(signature: bytes, package: str, *, store: TrustStore) -> Wheel | None:
    """Return the wheel that was signed with a compiled pipeline, None if none was.

    Args:
        signature: What `sign_package` made.
        package: SHA-256 of the bytes that are to be submitted.
        store: Whose owner must have signed.

    Raises:
        EvidenceError: It is not the owner's signature on these bytes under the policy that the store pins.
    """
    payload = Envelope.parse(signature).verify(store.owner, payload_type=PACKAGE_TYPE)
    try:
        said: dict[str, Any] = parse_canonical_json(payload)
        wheel = Wheel(said["wheel"]["name"], said["wheel"]["sha256"]) if said["wheel"] is not None else None
        # Spelled again from what is wanted: an unknown field, or one for something else, differs.
        holds = _payload(package, wheel, store) == payload
    except (DataError, KeyError, TypeError) as error:
        raise EvidenceError(f"not the signature of a pipeline: {error}") from error
    if wheel is not None and not (isinstance(wheel.name, str) and is_digest(wheel.sha256)):
        raise EvidenceError("not the signature of a pipeline: its wheel has no digest")
    if not holds:
        signed_for = (said.get("policy"), said.get("environment"))
        if signed_for != (store.policy.name, store.policy.environment):
            raise EvidenceError(
                f"the pipeline was not signed for policy {store.policy.name} for {store.policy.environment}"
            )
        raise EvidenceError("the pipeline was altered after it was signed; compile it again, look at it, sign it")
    return wheel


def require_signature(path: Path, package: str, *, store: TrustStore) -> Wheel | None:
    """Read the signature beside a package's file, and return the wheel that was signed with it.

    Raises:
        EvidenceError: As `verify_package`, or there is none.
    """
    try:
        signature = read_bytes(signature_of(path), limit=MAX_ENVELOPE_BYTES)
    except UsageError as error:
        raise EvidenceError(f"{path} is not signed: {error}; sign it with: portcullis sign-pipeline") from error
    return verify_package(signature, package, store=store)


def require_wheel(signed: Wheel | None, given: Path | None) -> None:
    """Check that a wheel is the one that was signed; one that is signed must be given, and the other way round.

    Raises:
        UsageError: A wheel was signed and none is given, or the given file is no wheel.
        EvidenceError: Another wheel was signed, or none.
    """
    if given is None:
        if signed is not None:
            raise UsageError("a wheel was signed too; name it by --wheel")
        return
    wheel = Wheel.of(given)
    if signed is None:
        raise EvidenceError(f"the wheel {wheel.name} was not signed with this pipeline")
    if wheel != signed:
        raise EvidenceError(f"the wheel {wheel.name} is not the one that was signed")


def _payload(package: str, wheel: Wheel | None, store: TrustStore) -> bytes:
    return canonical_json(
        {
            "format": FORMAT,
            "package": package,
            "wheel": {"name": wheel.name, "sha256": wheel.sha256} if wheel else None,
            "policy": store.policy.name,
            "environment": store.policy.environment,
        }
    )
