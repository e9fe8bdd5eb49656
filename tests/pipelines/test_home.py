"""A user's keys and trust store: made once, changed only when something changed, believed only when signed."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from portcullis.errors import AdmissionError, KeyMaterialError, PolicyError, TrustStoreError, UsageError
from portcullis.evidence.admission import admission_identity
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.policy import policy_body, sign_policy
from portcullis.evidence.trust import TrustStore, now_ms
from portcullis.keys import Signer
from portcullis.pii.plan import MaskingPlan
from portcullis.sealing.recipients import SealingPrivateKey
from portcullis_pipelines import home as homes
from portcullis_pipelines.config import ReferenceConfig, Thresholds
from portcullis_pipelines.home import DAY_MS, Home
from portcullis_pipelines.steps import STEPS, policy_steps

CONFIG = ReferenceConfig.load(None)


@pytest.fixture(autouse=True)
def _only_what_the_test_sets(monkeypatch):
    for name in ("PORTCULLIS_HOME", "PORTCULLIS_TRUST", "PORTCULLIS_STATE", "PORTCULLIS_KEYS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home" / "cheque-digits")
    homes.generate_keys(made)
    return made


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Keys.


def test_keys_are_private(home):
    files = list(home.keys.iterdir())
    # The owner's, masking, split, watermark, token; those of pipeline and serving, and their public halves.
    assert len(files) == len(STEPS) + 9
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (home.root, home.keys):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_every_key_is_another(home):
    keyids = [row["keyid"] for row in homes.list_keys(home)]
    assert len(set(keyids)) == len(keyids) == len(STEPS) + 1
    secrets = {
        (home.keys / name).read_bytes() for name in ("masking.key", "split.key", "watermark.key", "serving.token")
    }
    assert len(secrets) == 4


def test_what_rests_between_steps_does_not_open_with_the_serving_key(home):
    assert (home.keys / "pipeline.pem").read_bytes() != (home.keys / "serving.pem").read_bytes()
    for name in ("pipeline", "serving"):
        private = SealingPrivateKey.from_pem((home.keys / f"{name}.pem").read_bytes())
        assert private.public_key().to_pem() == (home.keys / f"{name}.pub.pem").read_bytes()


def test_existing_keys_are_left_alone(home):
    before = contents(home.keys)
    assert homes.generate_keys(home) == []
    assert contents(home.keys) == before


def test_only_what_is_missing_is_made(home):
    before = contents(home.keys)
    (home.keys / "train.pem").unlink()
    (home.keys / "serving.pub.pem").unlink()
    (home.keys / "pipeline.pub.pem").unlink()
    made = [path.name for path in homes.generate_keys(home)]
    assert made == ["train.pem", "pipeline.pub.pem", "serving.pub.pem"]
    after = contents(home.keys)
    assert [str(name) for name in before if before[name] != after[name]] == ["train.pem"]


SERVICE = "aws-kms:arn:aws:kms:eu-west-1:111122223333:key/serving"


def test_a_key_that_a_service_holds_is_written_as_its_uri(tmp_path):
    home = homes.Home(tmp_path / "home")
    homes.generate_keys(home, services={"serving": SERVICE, "pipeline": SERVICE})
    for name in ("serving.pem", "serving.pub.pem", "pipeline.pem", "pipeline.pub.pem"):
        assert (home.keys / name).read_text() == f"{SERVICE}\n"
    store, config = homes.ensure_trust(home, CONFIG)
    assert config.recipients == (SERVICE,) == tuple(store.policy.step("encrypt").parameters["recipients"])
    assert homes.generate_keys(home, services={"serving": SERVICE}) == []


def test_a_key_is_not_replaced_by_a_services_unasked(home):
    before = contents(home.keys)
    with pytest.raises(UsageError, match="move it away"):
        homes.generate_keys(home, services={"serving": SERVICE})
    with pytest.raises(UsageError, match="there is no role 'other'"):
        homes.generate_keys(home, services={"other": SERVICE})
    assert contents(home.keys) == before


def test_a_key_that_others_can_read_is_refused(home):
    (home.keys / "owner.pem").chmod(0o644)
    with pytest.raises(KeyMaterialError, match="chmod 600"):
        homes.list_keys(home)
    (home.keys / "owner.pem").chmod(0o600)
    (home.keys / "serving.pem").chmod(0o640)
    with pytest.raises(KeyMaterialError, match="chmod 600"):
        homes.ensure_trust(home, CONFIG)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 100], ids=["empty", "cut", "nul"])
@pytest.mark.parametrize("name", ["owner.pem", "train.pem", "serving.pem"])
def test_a_damaged_key_is_refused(home, name, content):
    (home.keys / name).write_bytes(content)
    with pytest.raises(KeyMaterialError):
        homes.ensure_trust(home, CONFIG)
    assert not home.trust.exists()


def test_listing_never_shows_private_material(home):
    rows = homes.list_keys(home)
    assert [row["role"] for row in rows] == ["owner", *(step.name for step in STEPS)]
    shown = json.dumps(rows).encode()
    assert b"PRIVATE" not in shown
    for data in contents(home.keys).values():
        for line in data.splitlines():
            assert line not in shown


def test_listing_without_keys(tmp_path):
    with pytest.raises(KeyMaterialError, match="portcullis keys generate"):
        homes.list_keys(Home(tmp_path))


def test_a_home_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="PORTCULLIS_HOME"):
        homes.generate_keys(Home(tmp_path / "file" / "home"))


def test_two_runs_make_one_set_of_keys_and_one_policy(tmp_path):
    home = Home(tmp_path / "home")

    def begin(_):
        return homes.generate_keys(home), homes.ensure_trust(home, CONFIG)[0].policy.digest

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(begin, range(4)))
    made = [path for paths, _ in results for path in paths]
    assert len(made) == len(set(made)) == len(STEPS) + 9
    assert len({policy for _, policy in results}) == 1


# The policy.


def test_the_first_policy(home):
    store, config = homes.ensure_trust(home, CONFIG)
    assert (store.policy.name, store.policy.environment, store.policy.version) == ("cheque-digits", "development", 1)
    assert store.policy.development
    assert list(store.policy.steps) == [step.name for step in STEPS]
    assert config.recipients == (homes.sealing_key(home).public_key().key_id,)
    assert store.policy.step("encrypt").parameters == {"recipients": list(config.recipients)}
    assert store.policy.step("robustness:trained").checks["robust_accuracy"].low == 0.75
    assert TrustStore.load(home.trust).policy == store.policy


def test_nothing_is_signed_when_nothing_changed(home):
    homes.ensure_trust(home, CONFIG)
    before = contents(home.root)
    homes.ensure_trust(home, CONFIG)
    assert contents(home.root) == before


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds": Thresholds(robust_accuracy=0.5)},
        {"test_fraction": 0.3},
        {"masking": MaskingPlan(("EMAIL",), {})},
        {"options": {"width": 8}},
        {"training": replace(CONFIG.training, epochs=1)},
        {"robustness": replace(CONFIG.robustness, epsilon=0.05)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_raises_the_version_and_so_does_changing_it_back(home, change):
    assert homes.ensure_trust(home, CONFIG)[0].policy.version == 1
    assert homes.ensure_trust(home, replace(CONFIG, **change))[0].policy.version == 2
    assert homes.ensure_trust(home, replace(CONFIG, **change))[0].policy.version == 2
    assert homes.ensure_trust(home, CONFIG)[0].policy.version == 3


def test_a_new_key_raises_the_version(home):
    old = homes.ensure_trust(home, CONFIG)[0].policy
    (home.keys / "train.pem").unlink()
    homes.generate_keys(home)
    new = homes.ensure_trust(home, CONFIG)[0].policy
    assert new.version == 2
    assert [name for name in new.steps if new.step(name).key != old.step(name).key] == ["train"]


def sign_expiring(home, *, days):
    """Put a policy in force that expires in `days`, as an earlier day would have left it."""
    store, config = homes.ensure_trust(home, CONFIG)
    keys = {step.name: home.signer(step.name).public_key for step in STEPS}
    text = policy_body(
        name=config.dataset.name,
        environment="development",
        version=store.policy.version,
        expires=now_ms() + days * DAY_MS,
        max_age=homes.MAX_AGE_SECONDS,
        admission_lifetime=homes.ADMISSION_LIFETIME_SECONDS,
        development=True,
        steps=policy_steps(config, keys),
    )
    (home.trust / "policy.yaml").write_bytes(sign_policy(text, home.signer("owner")))


@pytest.mark.parametrize(("days", "version"), [(-1, 2), (29, 2), (31, 1)], ids=["expired", "nearly", "not yet"])
def test_a_policy_is_renewed_before_it_expires(home, days, version):
    sign_expiring(home, days=days)
    policy = homes.ensure_trust(home, CONFIG)[0].policy
    assert policy.version == version
    assert policy.expires > now_ms() + 30 * DAY_MS


def test_an_expired_policy_judges_nothing_until_it_is_renewed(home):
    sign_expiring(home, days=-1)
    with pytest.raises(PolicyError, match="expired"):
        TrustStore.load(home.trust)
    homes.ensure_trust(home, CONFIG)
    TrustStore.load(home.trust)


@pytest.mark.parametrize("name", ["policy.yaml", "revocations.json", "owner.pem", "trust.yaml"])
def test_an_altered_trust_store_is_refused_and_not_repaired(home, name):
    homes.ensure_trust(home, CONFIG)
    path = home.trust / name
    altered = bytearray(path.read_bytes())
    middle = len(altered) // 2
    altered[middle] = ord("A") if altered[middle] != ord("A") else ord("B")
    path.write_bytes(altered)
    with pytest.raises((PolicyError, TrustStoreError)):
        homes.ensure_trust(home, CONFIG)
    assert path.read_bytes() == altered


@pytest.mark.parametrize("name", ["policy.yaml", "revocations.json"])
def test_what_someone_else_signed_is_refused(home, tmp_path, name):
    homes.ensure_trust(home, CONFIG)
    other = Home(tmp_path / "other")
    homes.generate_keys(other)
    homes.ensure_trust(other, CONFIG)
    (home.trust / name).write_bytes((other.trust / name).read_bytes())
    with pytest.raises(PolicyError):
        homes.ensure_trust(home, CONFIG)


def test_an_older_policy_put_back_is_refused(home):
    homes.ensure_trust(home, CONFIG)
    old = (home.trust / "policy.yaml").read_bytes()
    homes.ensure_trust(home, replace(CONFIG, test_fraction=0.3))
    (home.trust / "policy.yaml").write_bytes(old)
    with pytest.raises(PolicyError, match="older than 2"):
        homes.ensure_trust(home, CONFIG)


# Revocations and rollbacks.


def test_revoking_a_steps_key(home):
    homes.ensure_trust(home, CONFIG)
    store = homes.revoke(home, step="robustness:trained")
    assert store.revocations.keys == {home.signer("robustness:trained").public_key.keyid}
    assert store.revocations.version == 2
    both = homes.revoke(home, step="train").revocations
    assert len(both.keys) == 2 and both.version == 3
    assert homes.ensure_trust(home, CONFIG)[0].revocations == both


def test_a_new_policy_keeps_the_revocations(home):
    homes.ensure_trust(home, CONFIG)
    revoked = homes.revoke(home, step="train").revocations
    assert homes.ensure_trust(home, replace(CONFIG, test_fraction=0.3))[0].revocations == revoked


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "admission.json").write_bytes(seal_payload(b"{}", Signer.generate()).encode())
    return folder


def test_revoking_an_admission_and_allowing_a_rollback(home, directory):
    homes.ensure_trust(home, CONFIG)
    identity = admission_identity((directory / "admission.json").read_bytes())
    assert homes.revoke(home, admission=directory).revocations.admissions == {identity}
    revocations = homes.allow_rollback(home, directory).revocations
    assert (revocations.rollbacks, revocations.admissions, revocations.version) == ({identity}, {identity}, 3)


@pytest.mark.parametrize("step", ["owner", "nothing", "../../owner", "serving", ""])
def test_only_a_step_has_a_key_to_revoke(home, step):
    homes.ensure_trust(home, CONFIG)
    with pytest.raises(UsageError, match="there is no step"):
        homes.revoke(home, step=step)
    assert TrustStore.load(home.trust).revocations.version == 1


def test_revoking_needs_a_trust_store(home):
    with pytest.raises(TrustStoreError):
        homes.revoke(home, step="train")
    assert not home.trust.exists()


@pytest.mark.parametrize("what", ["missing", "nonsense"])
def test_revoking_needs_an_admission(home, directory, what):
    homes.ensure_trust(home, CONFIG)
    (directory / "admission.json").write_bytes(b"nonsense")
    if what == "missing":
        (directory / "admission.json").unlink()
    for act in (lambda: homes.revoke(home, admission=directory), lambda: homes.allow_rollback(home, directory)):
        with pytest.raises((UsageError, AdmissionError)):
            act()
    assert TrustStore.load(home.trust).revocations.version == 1


# Which trust store.


def test_no_trust_store(monkeypatch, tmp_path):
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path))
    with pytest.raises(TrustStoreError, match=f"found none below {tmp_path}"):
        homes.default_trust()


def test_the_only_trust_store(monkeypatch, home):
    monkeypatch.setenv("PORTCULLIS_HOME", str(home.root.parent))
    homes.ensure_trust(home, CONFIG)
    assert homes.default_trust() == home.trust


def test_of_two_trust_stores_none_is_chosen(monkeypatch, home):
    monkeypatch.setenv("PORTCULLIS_HOME", str(home.root.parent))
    homes.ensure_trust(home, CONFIG)
    other = Home(home.root.parent / "other")
    homes.generate_keys(other)
    homes.ensure_trust(other, replace(CONFIG, dataset=replace(CONFIG.dataset, name="other")))
    with pytest.raises(TrustStoreError, match=r"cheque-digits/trust; .*other/trust"):
        homes.default_trust()
    monkeypatch.setenv("PORTCULLIS_TRUST", str(other.trust))
    assert homes.default_trust() == other.trust


def test_where_home_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/someone")
    assert str(homes.home_root()) == "/someone/.local/share/portcullis"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert str(homes.home_root()) == "/data/portcullis"
    monkeypatch.setenv("PORTCULLIS_HOME", "near by")
    assert homes.home_root() == tmp_path / "near by"
