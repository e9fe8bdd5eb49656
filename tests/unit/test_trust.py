"""The trust store: complete, signed, the pinned one, and never an older one than was seen."""

import fcntl
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from chains import NOW, World

from portcullis.digest import canonical_json, parse_json
from portcullis.errors import PolicyError, TrustStoreError
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.trust import (
    REVOCATIONS_TYPE,
    Revocations,
    Seen,
    TrustStore,
    observe,
    state_directory,
    write_trust_store,
)
from portcullis.files import write_bytes
from portcullis.keys import Signer

WORLD = World()
OWNER = WORLD.owner.public_key
FILES = ("trust.yaml", "owner.pem", "policy.yaml", "revocations.json")
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("PORTCULLIS_TRUST", "PORTCULLIS_STATE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def trust(tmp_path):
    path = tmp_path / "trust"
    WORLD.store(path)
    return path


def load(path):
    return TrustStore.load(path, now=NOW)


def test_a_written_store_loads(trust, monkeypatch):
    store = load(trust)
    assert (store.policy.name, store.policy.version, store.owner) == ("demo", 3, OWNER)
    assert store.policy_bytes == (trust / "policy.yaml").read_bytes()
    assert store.revocations == Revocations(1)
    monkeypatch.setenv("PORTCULLIS_TRUST", str(trust))
    assert TrustStore.load(now=NOW) == store


@pytest.mark.parametrize("named", ["", None], ids=["empty", "unset"])
def test_without_a_store_nothing_is_judged(monkeypatch, named):
    if named is not None:
        monkeypatch.setenv("PORTCULLIS_TRUST", named)
    with pytest.raises(TrustStoreError, match="no trust store"):
        TrustStore.load()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "directory", "too large"])
def test_a_store_is_complete_and_readable(trust, name, damage):
    (trust / name).unlink()
    if damage == "directory":
        (trust / name).mkdir()
    if damage == "too large":
        (trust / name).write_bytes(b" " * (5 << 20))
    with pytest.raises(TrustStoreError, match=name):
        load(trust)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_part_is_refused(trust, name):
    (trust / name).write_bytes(b"")
    with pytest.raises((TrustStoreError, PolicyError)):
        load(trust)


BAD_PINS = {
    "other format": "format: x\nname: demo\nenvironment: development\n",
    "no format": "name: demo\nenvironment: development\n",
    "no name": "format: portcullis-trust/v1\nenvironment: development\n",
    "no environment": "format: portcullis-trust/v1\nname: demo\n",
    "unknown field": "format: portcullis-trust/v1\nname: demo\nenvironment: development\nunsigned: true\n",
    "a list": "- demo\n",
    "alias": "format: portcullis-trust/v1\nname: &a demo\nenvironment: *a\n",
}


@pytest.mark.parametrize("pins", BAD_PINS.values(), ids=BAD_PINS.keys())
def test_pins_that_pin_nothing_are_refused(trust, pins):
    (trust / "trust.yaml").write_text(pins)
    with pytest.raises(TrustStoreError):
        load(trust)


OTHER_PINS = {
    "another policy": "format: portcullis-trust/v1\nname: other\nenvironment: development\n",
    "another environment": "format: portcullis-trust/v1\nname: demo\nenvironment: production\n",
    "pins of no text": "format: portcullis-trust/v1\nname: [demo]\nenvironment: development\n",
}


@pytest.mark.parametrize("pins", OTHER_PINS.values(), ids=OTHER_PINS.keys())
def test_a_policy_that_is_not_the_pinned_one_is_refused(trust, pins):
    (trust / "trust.yaml").write_text(pins)
    with pytest.raises(PolicyError, match="pins policy"):
        load(trust)


def test_another_environments_policy_by_the_same_owner_is_refused(trust):
    (trust / "policy.yaml").write_bytes(WORLD.policy_bytes(environment="production"))
    with pytest.raises(PolicyError, match="not demo for production"):
        load(trust)


def test_another_owner_is_refused(trust):
    (trust / "owner.pem").write_text(Signer.generate().public_key.pem)
    with pytest.raises(PolicyError, match="owner"):
        load(trust)


def test_an_expired_policy_is_refused(trust):
    with pytest.raises(PolicyError, match="expired"):
        TrustStore.load(trust, now=NOW + 10**9)


@pytest.mark.parametrize(("name", "environment"), [("on", "no"), ("2024", "1e3"), ("null", "0x1")])
def test_names_that_yaml_would_misread_can_be_pinned(tmp_path, name, environment):
    write_trust_store(
        tmp_path,
        owner=OWNER,
        name=name,
        environment=environment,
        policy=WORLD.policy_bytes(name=name, environment=environment),
        revocations=Revocations(1).sign(WORLD.owner),
    )
    assert load(tmp_path).policy.environment == environment


def test_revocations_survive_their_signature():
    revocations = Revocations(7, keys=frozenset({A, B}), admissions=frozenset({C}), rollbacks=frozenset({A}))
    assert Revocations.verify(revocations.sign(WORLD.owner), OWNER) == revocations


@pytest.mark.parametrize("entry", ["", "a" * 63, "A" * 64, "sha256:" + A, 1], ids=str)
@pytest.mark.parametrize("field", ["keys", "admissions", "rollbacks"])
def test_an_entry_that_would_revoke_nothing_is_refused(field, entry):
    with pytest.raises(PolicyError, match="SHA-256"):
        Revocations(1, **{field: frozenset({entry})})


def signed(**changes):
    document = {"version": 1, "keys": [], "admissions": [], "rollbacks": [], **changes}
    payload = canonical_json({name: value for name, value in document.items() if value is not ...})
    return seal_payload(payload, WORLD.owner, payload_type=REVOCATIONS_TYPE).encode()


HONEST = parse_json(signed(keys=[A]))
BAD_REVOCATIONS = {
    "nothing": b"",
    "not signed": canonical_json({"version": 1, "keys": [], "admissions": [], "rollbacks": []}),
    "signed by another": Revocations(1).sign(Signer.generate()),
    "signed as evidence": seal_payload(canonical_json({"version": 1}), WORLD.owner).encode(),
    "newline at the end": signed() + b"\n",
    "version zero": signed(version=0),
    "version is true": signed(version=True),
    "version is text": signed(version="1"),
    "version is a fraction": signed(version=1.5),
    "no version": signed(version=...),
    "no keys": signed(keys=...),
    "no admissions": signed(admissions=...),
    "no rollbacks": signed(rollbacks=...),
    "unknown field": signed(more=[]),
    "keys is text": signed(keys=A),
    "keys is empty text": signed(keys=""),
    "keys in an object": signed(keys={A: 1}),
    "keys is a number": signed(keys=1),
    "key is a list": signed(keys=[[A]]),
    "key in upper case": signed(keys=["A" * 64]),
    "keys out of order": signed(keys=[B, A]),
    "key twice": signed(keys=[A, A]),
    "a list": seal_payload(b"[]", WORLD.owner, payload_type=REVOCATIONS_TYPE).encode(),
    "blanks": seal_payload(b'{"version": 1}', WORLD.owner, payload_type=REVOCATIONS_TYPE).encode(),
    "other payload": canonical_json({**HONEST, "payload": parse_json(signed())["payload"]}),
}


@pytest.mark.parametrize("data", BAD_REVOCATIONS.values(), ids=BAD_REVOCATIONS.keys())
def test_a_revocation_list_that_the_owner_did_not_sign_so_is_refused(trust, data):
    (trust / "revocations.json").write_bytes(data)
    with pytest.raises(PolicyError, match="revocation list"):
        load(trust)


def test_state_lies_beside_the_store_or_where_the_environment_says(tmp_path, monkeypatch):
    assert state_directory(tmp_path / "trust") == tmp_path / "state"
    monkeypatch.setenv("PORTCULLIS_STATE", str(tmp_path / "elsewhere"))
    assert state_directory(tmp_path / "trust") == tmp_path / "elsewhere"


def test_what_was_seen_only_grows(tmp_path):
    trust = tmp_path / "trust"
    assert observe(WORLD.store(trust)) == Seen(3, 1, 0)
    assert observe(WORLD.store(trust, version=5, revocations=Revocations(2)), deployed=NOW) == Seen(5, 2, NOW)
    assert observe(load(trust), deployed=NOW - 1) == Seen(5, 2, NOW)
    state = tmp_path / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "seen.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("older", "match"),
    [
        ({"version": 4}, "version 4 is older than 5"),
        ({"revocations": Revocations(1)}, "revocation list 1 is older than 2"),
    ],
    ids=["policy", "revocation list"],
)
def test_an_older_version_than_seen_is_refused_and_changes_nothing(tmp_path, older, match):
    trust = tmp_path / "trust"
    newest = {"version": 5, "revocations": Revocations(2)}
    observe(WORLD.store(trust, **newest))
    before = (tmp_path / "state" / "seen.json").read_bytes()
    with pytest.raises(PolicyError, match=match):
        observe(WORLD.store(trust, **{**newest, **older}), deployed=NOW)
    assert (tmp_path / "state" / "seen.json").read_bytes() == before
    assert observe(WORLD.store(trust, **newest)) == Seen(5, 2, 0)


def test_an_older_policy_cannot_come_back_with_a_newer_revocation_list(tmp_path):
    trust = tmp_path / "trust"
    observe(WORLD.store(trust, version=5))
    with pytest.raises(PolicyError, match="older"):
        observe(WORLD.store(trust, version=4, revocations=Revocations(9)))


DAMAGED = {
    "empty": b"",
    "cut": b'{"admission":0,"policy":9',
    "no object": b"[]",
    "field missing": b'{"admission":0,"policy":9}',
    "fields missing": b"{}",
    "unknown field": b'{"admission":0,"more":0,"policy":9,"revocations":9}',
    "negative": b'{"admission":0,"policy":-1,"revocations":9}',
    "true": b'{"admission":0,"policy":true,"revocations":9}',
    "text": b'{"admission":0,"policy":"9","revocations":9}',
    "fraction": b'{"admission":0,"policy":1.5,"revocations":9}',
    "null": b'{"admission":0,"policy":null,"revocations":9}',
    "blanks": b'{"admission": 0, "policy": 9, "revocations": 9}',
    "too large": b" " * (1 << 17),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_memory_is_no_memory(tmp_path, trust, data):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "seen.json").write_bytes(data)
    with pytest.raises(TrustStoreError, match="damaged"):
        observe(load(trust))


UNUSABLE = {
    "a file": lambda state: state.write_bytes(b""),
    "dangling link": lambda state: state.symlink_to("nowhere/at/all/../x"),
    "memory is a directory": lambda state: (state / "seen.json").mkdir(parents=True),
    "lock is a directory": lambda state: (state / ".lock").mkdir(parents=True),
}


@pytest.mark.parametrize("spoil", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_verifier_without_memory_refuses(tmp_path, trust, spoil):
    spoil(tmp_path / "state")
    with pytest.raises(TrustStoreError, match="state"):
        observe(load(trust))


def test_a_state_directory_below_a_file_is_refused(tmp_path, trust, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("PORTCULLIS_STATE", str(tmp_path / "file" / "state"))
    with pytest.raises(TrustStoreError, match="cannot use the state directory"):
        observe(load(trust))


def test_observations_wait_for_one_another(tmp_path, trust):
    store = load(trust)
    observe(store, deployed=1)
    with ThreadPoolExecutor(1) as pool, (tmp_path / "state" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(observe, store, deployed=2)
        done, _ = wait([waiting], timeout=0.2)
        assert not done
        write_bytes(tmp_path / "state" / "seen.json", canonical_json(vars(Seen(3, 1, 7))))
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waiting.result() == Seen(3, 1, 7)
