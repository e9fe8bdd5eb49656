"""The verifier's own trust store: what it believes before it has seen anything.

A directory that its operator controls (a mounted ConfigMap, the user's data directory), never part of what is judged:

| file | what |
|---|---|
| `trust.yaml` | the pinned policy name and environment |
| `owner.pem` | the public key of the policy's owner |
| `policy.yaml` | the policy, signed by the owner |
| `revocations.json` | revoked keys and admissions, and allowed rollbacks, signed by the owner |

The versions a verifier has seen lie beside it in a writable *state* directory (`seen.json`); they only grow, which is
what stops an older policy, revocation list or admission from being put back (TUF specification 1.0, 5.3.5 and 5.4.4).
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portcullis.digest import canonical_json, is_digest, parse_canonical_json
from portcullis.errors import (
    DataError,
    EvidenceError,
    KeyMaterialError,
    PolicyError,
    TrustStoreError,
    UsageError,
)
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.policy import MAX_POLICY_BYTES, Policy, verify_policy
from portcullis.files import read_bytes, write_bytes
from portcullis.keys import PublicKey, Signer
from portcullis.strict_yaml import load_yaml

TRUST_ENV = "PORTCULLIS_TRUST"
TRUST_MOUNT = "/var/run/portcullis/trust"  # where a cluster mounts the ConfigMap
STATE_ENV = "PORTCULLIS_STATE"
TRUST_FORMAT = "portcullis-trust/v1"
REVOCATIONS_TYPE = "application/vnd.portcullis.revocations+json"
MAX_REVOCATIONS_BYTES = 4 << 20


@dataclass(frozen=True)
class Revocations:
    """The owner's standing word on what no longer counts, and on which rollbacks are meant.

    Attributes:
        version: From 1, growing.
        keys: Key ids (SHA-256 of SubjectPublicKeyInfo, hexadecimal).
        admissions: Identities of revoked admissions (`admission_identity`).
        rollbacks: Identities of older admissions that may be deployed again.

    Raises:
        PolicyError: An entry is not a SHA-256 in lower-case hexadecimal; it would silently revoke nothing.
    """

    version: int
    keys: frozenset[str] = frozenset()
    admissions: frozenset[str] = frozenset()
    rollbacks: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not all(is_digest(entry) for entry in (*self.keys, *self.admissions, *self.rollbacks)):
            raise PolicyError("a revocation list holds SHA-256 digests only, 64 lower-case hexadecimal characters each")

    def encode(self) -> bytes:
        """Return the unsigned document as canonical JSON."""
        return canonical_json(
            {
                "version": self.version,
                "keys": sorted(self.keys),
                "admissions": sorted(self.admissions),
                "rollbacks": sorted(self.rollbacks),
            }
        )

    def sign(self, owner: Signer) -> bytes:
        """Return the signed document."""
        return seal_payload(self.encode(), owner, payload_type=REVOCATIONS_TYPE).encode()

    @classmethod
    def verify(cls, data: bytes, owner: PublicKey) -> "Revocations":
        """Read a signed document.

        Raises:
            PolicyError: Not signed by this owner, or anything that `sign` would not have written.
        """
        try:
            payload = Envelope.parse(data).verify(owner, payload_type=REVOCATIONS_TYPE)
            document = parse_canonical_json(payload)
            lists = {name: frozenset(document[name]) for name in ("keys", "admissions", "rollbacks")}
            revocations = cls(document["version"], **lists)
            whole = revocations.encode() == payload
        except (EvidenceError, DataError, KeyError, TypeError) as error:
            raise PolicyError(f"the revocation list is not sound: {error}") from error
        version = revocations.version
        if not whole or not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise PolicyError("the revocation list is not sound")
        return revocations


@dataclass(frozen=True)
class TrustStore:
    """A trust store that verified: its policy and revocation list are signed by its owner and are the pinned ones."""

    path: Path
    owner: PublicKey
    policy: Policy
    policy_bytes: bytes
    revocations: Revocations

    @classmethod
    def load(cls, path: Path | None = None, *, now: int | None = None) -> "TrustStore":
        """Read a trust store; without a path, the one that the environment variable PORTCULLIS_TRUST names.

        Args:
            path: The directory.
            now: Milliseconds since the epoch by which the policy must not have expired; the clock when None.

        Raises:
            TrustStoreError: There is none, or a part of it is missing or unreadable.
            PolicyError: Its policy or revocation list is unsigned, altered, expired, or not the pinned one.
        """
        if path is None:
            named = os.environ.get(TRUST_ENV)
            if not named:
                raise TrustStoreError(f"no trust store: pass --trust STORE or set {TRUST_ENV}")
            path = Path(named)
        try:
            pins = load_yaml(read_bytes(path / "trust.yaml", limit=1 << 16))
            owner = PublicKey.from_pem(read_bytes(path / "owner.pem", limit=1 << 16))
            policy_bytes = read_bytes(path / "policy.yaml", limit=MAX_POLICY_BYTES)
            revocations_bytes = read_bytes(path / "revocations.json", limit=MAX_REVOCATIONS_BYTES)
        except (UsageError, DataError, KeyMaterialError) as error:
            raise TrustStoreError(f"{path} is no trust store: {error}") from error
        if set(pins) != {"format", "name", "environment"} or pins["format"] != TRUST_FORMAT:
            raise TrustStoreError(f"{path / 'trust.yaml'} does not pin a policy's name and environment")
        policy = verify_policy(policy_bytes, owner, now=now)
        if (policy.name, policy.environment) != (pins["name"], pins["environment"]):
            raise PolicyError(
                f"this trust store pins policy {pins['name']} for {pins['environment']}, "
                f"not {policy.name} for {policy.environment}"
            )
        return cls(path, owner, policy, policy_bytes, Revocations.verify(revocations_bytes, owner))


def write_trust_store(
    path: Path, *, owner: PublicKey, name: str, environment: str, policy: bytes, revocations: bytes
) -> None:
    """Write the four files of a trust store, each atomically."""
    # Quoted, because YAML reads a bare `on` or `2024` as something else than a name.
    pins = f'format: {TRUST_FORMAT}\nname: "{name}"\nenvironment: "{environment}"\n'
    write_bytes(path / "owner.pem", owner.pem.encode())
    write_bytes(path / "policy.yaml", policy)
    write_bytes(path / "revocations.json", revocations)
    write_bytes(path / "trust.yaml", pins.encode())


@dataclass(frozen=True)
class Seen:
    """The highest versions that this verifier has accepted; 0 for none yet.

    Attributes:
        policy: Version of the policy.
        revocations: Version of the revocation list.
        admission: Version of the newest admission deployed.
    """

    policy: int = 0
    revocations: int = 0
    admission: int = 0


def state_directory(trust: Path) -> Path:
    """Return where the versions seen are kept: PORTCULLIS_STATE, or `state` beside the trust store."""
    named = os.environ.get(STATE_ENV)
    return Path(named) if named else trust.parent / "state"


def observe(store: TrustStore, *, deployed: int = 0) -> Seen:
    """Compare versions with those seen before, refuse a lower one, remember the higher ones, and return them.

    Args:
        store: The verified store.
        deployed: Version of an admission that has just been deployed; 0 when none was.

    Raises:
        PolicyError: The policy or the revocation list is older than one already seen.
        TrustStoreError: The state directory cannot be used; a verifier without memory would accept a rollback.
    """
    policy, revocations = store.policy, store.revocations
    with _locked_state(state_directory(store.path)) as state:
        seen = _read_seen(state)
        if policy.version < seen.policy:
            raise PolicyError(f"policy {policy.name} version {policy.version} is older than {seen.policy}, seen before")
        if revocations.version < seen.revocations:
            raise PolicyError(f"revocation list {revocations.version} is older than {seen.revocations}, seen before")
        newest = Seen(policy.version, revocations.version, max(seen.admission, deployed))
        if newest != seen:
            try:
                write_bytes(state, canonical_json(vars(newest)), mode=0o600)
            except OSError as error:
                raise TrustStoreError(f"cannot write {state}: {error.strerror}") from error
    return newest


@contextmanager
def _locked_state(directory: Path) -> Iterator[Path]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TrustStoreError(f"cannot use the state directory {directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise TrustStoreError(f"cannot lock the state directory {directory}: {error.strerror}") from error
        yield directory / "seen.json"
    finally:
        os.close(descriptor)


def _read_seen(path: Path) -> Seen:
    if not path.exists():
        return Seen()
    try:
        document: Mapping[str, Any] = parse_canonical_json(read_bytes(path, limit=1 << 16))
        seen = Seen(**document)
    except (UsageError, DataError, TypeError) as error:
        raise TrustStoreError(f"{path} is damaged; restore it, or delete it to forget what was seen") from error
    if len(document) != len(vars(seen)) or not all(
        type(version) is int and version >= 0 for version in vars(seen).values()
    ):
        raise TrustStoreError(f"{path} is damaged; restore it, or delete it to forget what was seen")
    return seen


def now_ms() -> int:
    """Return the clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
