"""A user's own keys and trust stores, one folder per policy, never inside a run's output.

    <home>/<policy name>/keys/    private keys, mode 0600: one per step, the owner's, masking, split, watermark, and the
                                  sealing keys of pipeline and serving
    <home>/<policy name>/trust/   the trust store that verifiers read
    <home>/<policy name>/state/   the versions that this machine has seen, and the last heads of ledgers
    <home>/ledgers/               the privacy ledgers of data sets, one for all policies

Home is PORTCULLIS_HOME, or `portcullis` below XDG_DATA_HOME (by default ~/.local/share). A policy is for the
environment `development` unless its configuration says otherwise: on one machine every step runs as the same user, so
the separation of keys is nominal. Another environment has a folder of its own, whose keys go to a cluster's Secrets
(`portcullis bootstrap`); its policy says that they are kept apart, which is for its owner to see to.
"""

import base64
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portcullis.errors import TrustStoreError, UsageError
from portcullis.evidence.admission import admission_identity
from portcullis.evidence.dsse import MAX_ENVELOPE_BYTES
from portcullis.evidence.policy import MAX_POLICY_BYTES, Policy, parse_policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.step import KEYS_ENV
from portcullis.evidence.trust import (
    MAX_REVOCATIONS_BYTES,
    STATE_ENV,
    TRUST_ENV,
    Revocations,
    TrustStore,
    now_ms,
    observe,
    write_trust_store,
)
from portcullis.files import read_bytes, write_bytes
from portcullis.keys import PublicKey, Signer, resolve
from portcullis.ledger.stores import LEDGERS_ENV
from portcullis.sealing.recipients import SealingPrivateKey, opener_at
from portcullis_pipelines.config import DEVELOPMENT, ReferenceConfig
from portcullis_pipelines.steps import STEPS, policy_steps, steps_of

HOME_ENV = "PORTCULLIS_HOME"
DAY_MS = 24 * 3600 * 1000
POLICY_LIFETIME_MS = 90 * DAY_MS
RENEW_BEFORE_MS = 30 * DAY_MS
MAX_AGE_SECONDS = 24 * 3600
ADMISSION_LIFETIME_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Home:
    """One policy's folder."""

    root: Path

    @property
    def keys(self) -> Path:
        """Where the private keys lie."""
        return self.root / "keys"

    @property
    def trust(self) -> Path:
        """The trust store."""
        return self.root / "trust"

    @property
    def state(self) -> Path:
        """Where the versions seen lie."""
        return self.root / "state"

    @property
    def ledgers(self) -> Path:
        """Where the data sets' ledgers lie: beside the policies' folders, as a data set's budget is one for all."""
        return self.root.parent / "ledgers"

    @property
    def environment(self) -> dict[str, str]:
        """What a process of a step is told of this folder, by environment variables."""
        return {
            KEYS_ENV: f"file:{self.keys}",
            TRUST_ENV: str(self.trust),
            STATE_ENV: str(self.state),
            LEDGERS_ENV: str(self.ledgers),
        }

    def signer(self, role: str) -> Signer:
        """Return one private key, `owner` or a step's name.

        Raises:
            KeyMaterialError: There is none.
        """
        return Signer.from_uri(f"file:{self.keys / _file(role)}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for a change that another run on this machine may want to make too.

        Raises:
            UsageError: The folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UsageError(f"cannot write below {self.root}: {error.strerror}; set {HOME_ENV}") from error


def home_root() -> Path:
    """Return the directory that holds all policies' folders."""
    if named := os.environ.get(HOME_ENV):
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data).absolute() / "portcullis"


def home_of(config: ReferenceConfig) -> Home:
    """Return the folder of a configuration's policy; each environment has keys of its own."""
    name, environment = config.policy_name, config.deployment.environment
    return Home(home_root() / (name if environment == DEVELOPMENT else f"{name}.{environment}"))


def default_trust() -> Path:
    """Return the trust store to use when none is named: PORTCULLIS_TRUST, or the only one below home.

    Raises:
        TrustStoreError: There is none, or more than one. Nothing that is being judged may choose.
    """
    if named := os.environ.get(TRUST_ENV):
        return Path(named)
    stores = sorted(path.parent for path in home_root().glob("*/trust/trust.yaml"))
    if len(stores) == 1:
        return stores[0]
    found = "; ".join(str(store) for store in stores) or "none below " + str(home_root())
    raise TrustStoreError(f"no trust store: pass --trust STORE or set {TRUST_ENV} (found {found})")


def _file(role: str) -> str:
    return f"{role.replace(':', '.')}.pem"


STEP_NAMES = tuple(step.name for step in STEPS)


def step_names(config: ReferenceConfig) -> tuple[str, ...]:
    """Return the names of the steps of a configuration's policy."""
    return tuple(step.name for step in steps_of(config))


def generate_keys(
    home: Home, steps: Sequence[str] = STEP_NAMES, services: Mapping[str, str] | None = None
) -> list[Path]:
    """Create every key that is missing, mode 0600, and return the files made; existing keys are left alone.

    Args:
        home: The policy's folder.
        steps: The names of the policy's steps; each gets a signing key of its own.
        services: By role (`serving`, `pipeline`, `owner`, or a step), the URI of a key that a service holds; it is
            written in the place of the key.

    Raises:
        UsageError: The folder cannot be written; or another key lies where `services` says that a service holds it, or
            there is no such role.
        KeyMaterialError: A sealing key that is there is malformed.
    """
    held = dict(services or {})
    if unknown := held.keys() - {"serving", "pipeline", "owner", *steps}:
        raise UsageError(f"keys: there is no role {min(unknown)!r}; roles are serving, pipeline, owner and the steps")

    def random_key() -> bytes:
        return base64.b64encode(secrets.token_bytes(32)) + b"\n"

    makers: dict[str, Callable[[], bytes]] = {
        _file(role): lambda: Signer.generate().private_pem() for role in ("owner", *steps)
    }
    makers |= dict.fromkeys(("pipeline.pem", "serving.pem"), lambda: SealingPrivateKey.generate().to_pem())
    makers |= dict.fromkeys(("masking.key", "split.key", "watermark.key", "serving.token"), random_key)
    makers |= {"audit.key": random_key} if "privacy_audit" in steps else {}
    # Last, because they are made from the private ones.
    makers |= {"pipeline.pub.pem": lambda: _sealing_key(home, "pipeline.pem").public_key().to_pem()}
    makers |= {"serving.pub.pem": lambda: sealing_key(home).public_key().to_pem()}
    references = {_file(role): f"{uri}\n".encode() for role, uri in held.items()}
    references |= {f"{role}.pub.pem": f"{held[role]}\n".encode() for role in ("serving", "pipeline") if role in held}
    made: list[Path] = []
    with home.alone():
        home.keys.mkdir(exist_ok=True, mode=0o700)
        for name, make in makers.items():
            path = home.keys / name
            if not path.exists():
                write_bytes(path, references.get(name) or make(), mode=0o600)
                made.append(path)
            elif name in references and resolve(f"file:{path}") != references[name]:
                raise UsageError(f"{path} holds another key than the configuration names; move it away")
    return made


def sealing_key(home: Home) -> SealingPrivateKey:
    """Return the serving recipient's private key.

    Raises:
        KeyMaterialError: Missing, malformed, open to other users, or held by a service.
    """
    return _sealing_key(home, "serving.pem")


def _sealing_key(home: Home, name: str) -> SealingPrivateKey:
    return SealingPrivateKey.from_pem(resolve(f"file:{home.keys / name}"))


def list_keys(home: Home, steps: Sequence[str] = STEP_NAMES) -> list[dict[str, str]]:
    """Return role, algorithm, key id and file of every signing key; never a private key.

    Args:
        home: The policy's folder.
        steps: The names of the policy's steps.

    Raises:
        KeyMaterialError: A key is missing or malformed.
    """
    return [
        {"role": role, "algorithm": key.algorithm, "keyid": key.keyid, "file": str(home.keys / _file(role))}
        for role in ("owner", *steps)
        for key in [home.signer(role).public_key]
    ]


def revoke(home: Home, *, step: str | None = None, admission: Path | None = None) -> TrustStore:
    """Sign that a step's key, or the admission of a run's directory, no longer counts.

    Raises:
        UsageError: There is no such step or admission.
        KeyMaterialError: The step's key, or the owner's, is not here.
        TrustStoreError: There is no trust store yet.
    """
    known = dict.fromkeys(rule.base for rule in TrustStore.load(home.trust).policy.steps.values())
    if step is not None and step not in known:
        raise UsageError(f"there is no step {step!r}; the steps are {', '.join(known)}")
    keys = {home.signer(step).public_key.keyid} if step else set()
    admissions = {_admission_identity(admission)} if admission else set()
    return change_revocations(
        home, lambda old: replace(old, keys=old.keys | keys, admissions=old.admissions | admissions)
    )


def allow_rollback(home: Home, directory: Path) -> TrustStore:
    """Sign that the admission of a run's directory may be deployed although a newer one was.

    Raises:
        UsageError: There is no admission.
        TrustStoreError: There is no trust store yet.
    """
    identity = _admission_identity(directory)
    return change_revocations(home, lambda old: replace(old, rollbacks=old.rollbacks | {identity}))


def _admission_identity(directory: Path) -> str:
    return admission_identity(read_bytes(directory / "admission.json", limit=MAX_ENVELOPE_BYTES))


def ensure_trust(home: Home, config: ReferenceConfig) -> tuple[TrustStore, ReferenceConfig]:
    """Return a trust store whose policy demands exactly `config`, signing a new version only when it must.

    The configuration comes back with the serving recipient filled in.

    Raises:
        KeyMaterialError: A key is missing.
        PolicyError: What lies there was not signed by this home's owner.
        UsageError: The folder cannot be written.
    """
    with home.alone():
        return _ensure_trust(home, config)


def _ensure_trust(home: Home, config: ReferenceConfig) -> tuple[TrustStore, ReferenceConfig]:
    config = replace(config, recipients=(opener_at(f"file:{home.keys / 'serving.pem'}").key_id,))
    keys = {step.name: home.signer(step.name).public_key for step in steps_of(config)}
    steps = policy_steps(config, keys)
    return _ensure_policy(home, config.policy_name, config.deployment.environment, steps), config


def ensure_policy(
    home: Home, name: str, steps: Sequence[Mapping[str, Any]], *, environment: str = DEVELOPMENT
) -> TrustStore:
    """Return a trust store whose policy demands exactly `steps`: for a pipeline of one's own.

    Args:
        home: The policy's folder; its keys were made by `generate_keys`.
        name: The policy's name.
        steps: In order, as `parse_policy` reads them, but without `key`, which is filled in here.
        environment: What the policy is for; anything but `development` says that its keys are kept apart.

    Raises:
        KeyMaterialError: A key is missing.
        PolicyError: The steps make no sound policy, or what lies there was not signed by this home's owner.
        UsageError: The folder cannot be written.
    """
    with home.alone():
        keyed = [{**step, "key": home.signer(step["name"]).public_key.pem} for step in steps]
        return _ensure_policy(home, name, environment, keyed)


def _ensure_policy(home: Home, name: str, environment: str, steps: Sequence[Mapping[str, Any]]) -> TrustStore:
    owner = home.signer("owner")
    current = _current_policy(home, owner.public_key)
    version, expires = (current.version, current.expires) if current else (1, now_ms() + POLICY_LIFETIME_MS)

    def body() -> str:
        return policy_body(
            name=name,
            environment=environment,
            version=version,
            expires=expires,
            max_age=MAX_AGE_SECONDS,
            admission_lifetime=ADMISSION_LIFETIME_SECONDS,
            development=environment == DEVELOPMENT,
            steps=list(steps),
        )

    text = body()
    unchanged = current is not None and parse_policy(text.encode(), digest=current.digest) == current
    if current is not None and (not unchanged or expires - now_ms() < RENEW_BEFORE_MS):
        version, expires = version + 1, now_ms() + POLICY_LIFETIME_MS
        text, unchanged = body(), False
    if not unchanged:
        revocations = _current_revocations(home, owner.public_key)
        _write(home, owner, (name, environment), sign_policy(text, owner), revocations)
    store = TrustStore.load(home.trust)
    observe(store)
    return store


def change_revocations(home: Home, change: Callable[[Revocations], Revocations]) -> TrustStore:
    """Sign the next version of the revocation list.

    Args:
        home: The owner's folder.
        change: Given the current list, returns the changed one; the version is raised here.

    Raises:
        KeyMaterialError: The owner's key is not here.
        TrustStoreError: There is no trust store yet.
    """
    owner = home.signer("owner")
    with home.alone():
        store = TrustStore.load(home.trust)
        changed = replace(change(store.revocations), version=store.revocations.version + 1)
        _write(home, owner, (store.policy.name, store.policy.environment), store.policy_bytes, changed)
        store = TrustStore.load(home.trust)
        observe(store)
    return store


def _write(home: Home, owner: Signer, pinned: tuple[str, str], policy: bytes, revocations: Revocations) -> None:
    name, environment = pinned
    write_trust_store(
        home.trust,
        owner=owner.public_key,
        name=name,
        environment=environment,
        policy=policy,
        revocations=revocations.sign(owner),
    )


def _current_policy(home: Home, owner: PublicKey) -> Policy | None:
    path = home.trust / "policy.yaml"
    # An expired policy is still the one whose version the next must exceed, so it is read as of its own beginning.
    return verify_policy(read_bytes(path, limit=MAX_POLICY_BYTES), owner, now=0) if path.exists() else None


def _current_revocations(home: Home, owner: PublicKey) -> Revocations:
    path = home.trust / "revocations.json"
    if not path.exists():
        return Revocations(version=1)
    return Revocations.verify(read_bytes(path, limit=MAX_REVOCATIONS_BYTES), owner)
