"""Attacks on a signed pipeline between its signing and its submission: each is refused, and nothing is sent."""

import os
from functools import partial

import pytest
from cluster.kfp_api import TOKEN, KfpServer, serving
from cluster.small_package import IMAGE, small_package
from hypothesis import given, settings
from hypothesis import strategies as st

from portcullis.cli.main import _guarded, cli
from portcullis.digest import canonical_json, sha256
from portcullis.errors import EvidenceError, KeyMaterialError, PortcullisError
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.trust import TrustStore
from portcullis.keys import Signer
from portcullis_pipelines import home as homes
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home
from portcullis_pipelines.signed_package import PACKAGE_TYPE, Wheel, sign_package, signature_of, verify_package

OTHER_IMAGE = IMAGE.replace("0" * 64, "1" * 64)


def made_home(root):
    home = Home(root)
    homes.generate_keys(home)
    homes.ensure_trust(home, ReferenceConfig.load(None))
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return made_home(tmp_path_factory.mktemp("homes") / "cheque-digits")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Another owner, with a policy of the same name."""
    return made_home(tmp_path_factory.mktemp("stranger") / "cheque-digits")


@pytest.fixture
def server():
    with serving(KfpServer()) as server:
        yield server


@pytest.fixture
def package(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_bytes(small_package())
    return path


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "kfp_portcullis-1.0-py3-none-any.whl"
    path.write_bytes(b"PK a wheel")
    return path


@pytest.fixture
def call(capfd, home, monkeypatch, tmp_path):
    """Call a verb in this process, by this home's trust store."""
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES", "PORTCULLIS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    monkeypatch.setenv("PORTCULLIS_TRUST", str(home.trust))
    monkeypatch.setenv("PORTCULLIS_HOME", str(tmp_path / "nothing"))

    def run(*command):
        capfd.readouterr()
        code = _guarded(partial(cli, [str(it) for it in command], prog_name="portcullis"))
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def submit(call, server, package):
    return lambda *options: call("submit", package, "--host", server.url, "--argument", "rows=7", *options)


@pytest.fixture
def signed(call, home, package):
    assert call("sign-pipeline", package, "--home", home.root) == (0, "")
    return package


def refused(outcome, kind, *words):
    code, err = outcome
    assert code == (2 if kind in ("UsageError", "TrustStoreError", "KeyMaterialError") else 1), err
    assert err.startswith(f"{kind}: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_what_was_signed_is_submitted(submit, server, signed):
    code, err = submit("--require-signature")
    assert code == 0, err
    (upload,) = {bytes(it) for it in server.uploads.values()}
    assert upload == signed.read_bytes()


def test_who_does_not_sign_submits_as_before(submit, package):
    assert not signature_of(package).exists()
    assert submit()[0] == 0


def test_a_package_altered_after_it_was_signed_is_not_submitted(submit, server, signed):
    signed.write_bytes(signed.read_bytes().replace(b"defaultValue: 0.5", b"defaultValue: 0.1"))
    refused(submit(), "EvidenceError", "altered after it was signed")
    assert not server.requests


def test_a_blank_added_to_the_package_is_an_alteration(submit, server, signed):
    signed.write_bytes(signed.read_bytes() + b"\n")
    refused(submit(), "EvidenceError", "altered")
    assert not server.requests


def test_a_signature_taken_away_is_missed_where_one_is_required(submit, server, signed, monkeypatch):
    signature_of(signed).unlink()
    refused(submit("--require-signature"), "EvidenceError", "is not signed")
    monkeypatch.setenv("PORTCULLIS_REQUIRE_SIGNATURE", "1")
    refused(submit(), "EvidenceError", "is not signed")
    monkeypatch.setenv("PORTCULLIS_REQUIRE_SIGNATURE", "perhaps")
    assert submit()[0] == 2
    assert not server.requests


def test_a_signature_that_leads_nowhere_is_no_reason_to_go_without(submit, server, signed):
    signature_of(signed).unlink()
    signature_of(signed).symlink_to("nothing")
    refused(submit(), "EvidenceError", "is not signed")
    signature_of(signed).unlink()
    signature_of(signed).mkdir()
    refused(submit(), "EvidenceError", "is not signed")
    assert not server.requests


def test_an_image_put_in_after_signing_is_an_alteration(call, submit, server, home, tmp_path, signed):
    from portcullis.container import IMAGE as OWN

    by_tag = small_package().replace(IMAGE.encode(), OWN.encode())
    signed.write_bytes(by_tag)
    assert call("sign-pipeline", signed, "--home", home.root, "--image", IMAGE)[0] == 0
    refused(submit("--image", OTHER_IMAGE), "EvidenceError", "altered")
    assert not server.requests
    assert call("verify-pipeline", signed, "--image", IMAGE)[0] == 0
    assert submit("--image", IMAGE)[0] == 0


def test_another_owners_signature_is_refused(call, submit, server, stranger, package):
    assert call("sign-pipeline", package, "--home", stranger.root)[0] == 0
    refused(submit(), "EvidenceError", "the signature is not by key")
    assert not server.requests


def test_a_key_that_the_trust_store_does_not_know_signs_nothing(home, package):
    with pytest.raises(KeyMaterialError, match="not the one that"):
        sign_package(sha256(b""), None, store=TrustStore.load(home.trust), owner=Signer.generate())


def test_a_signature_for_another_environment_is_refused(submit, server, home, package):
    other = {"format": "portcullis-package/v1", "package": sha256(package.read_bytes()), "wheel": None}
    payload = canonical_json({**other, "policy": "cheque-digits", "environment": "staging"})
    signature_of(package).write_bytes(seal_payload(payload, home.signer("owner"), payload_type=PACKAGE_TYPE).encode())
    refused(submit(), "EvidenceError", "not signed for policy cheque-digits for development")
    assert not server.requests


def test_the_owners_signature_on_something_else_is_no_packages(submit, server, home, package):
    signature_of(package).write_bytes((home.trust / "revocations.json").read_bytes())
    refused(submit(), "EvidenceError", "revocations")
    assert not server.requests


def test_without_a_trust_store_a_signature_is_not_passed_over(submit, server, signed, monkeypatch):
    monkeypatch.delenv("PORTCULLIS_TRUST")
    refused(submit(), "TrustStoreError", "no trust store")
    assert not server.requests


def test_what_could_run_past_a_gate_is_not_signed(call, home, package):
    package.write_bytes(small_package().replace(b"cachingOptions: {}", b"cachingOptions: {enableCache: true}"))
    refused(call("sign-pipeline", package, "--home", home.root), "PipelineError", "cached")
    assert not signature_of(package).exists()


def test_a_wheel_is_signed_and_verified_with_the_pipeline(call, home, package, wheel):
    assert call("sign-pipeline", package, "--home", home.root, "--wheel", wheel)[0] == 0
    assert call("verify-pipeline", package, "--wheel", wheel)[0] == 0
    refused(call("verify-pipeline", package), "UsageError", "name it by --wheel")


def test_an_altered_renamed_or_unsigned_wheel_is_refused(call, home, package, wheel):
    assert call("sign-pipeline", package, "--home", home.root, "--wheel", wheel)[0] == 0
    renamed = wheel.with_name("kfp_portcullis-2.0-py3-none-any.whl")
    renamed.write_bytes(wheel.read_bytes())
    refused(call("verify-pipeline", package, "--wheel", renamed), "EvidenceError", "not the one that was signed")
    wheel.write_bytes(b"PK another wheel")
    refused(call("verify-pipeline", package, "--wheel", wheel), "EvidenceError", "not the one that was signed")
    refused(call("verify-pipeline", package, "--wheel", package), "UsageError", "no wheel")
    assert call("sign-pipeline", package, "--home", home.root)[0] == 0
    refused(call("verify-pipeline", package, "--wheel", wheel), "EvidenceError", "was not signed with")


WHEELS = {
    "no digest": {"name": "a.whl", "sha256": ""},
    "a digest that is none": {"name": "a.whl", "sha256": "A" * 64},
    "no name": {"name": 7, "sha256": "a" * 64},
    "another field": {"name": "a.whl", "sha256": "a" * 64, "size": 1},
    "a text": "a.whl",
    "a list": [],
}


@pytest.mark.parametrize("wheel", WHEELS.values(), ids=WHEELS)
def test_a_malformed_wheel_is_refused_even_when_it_is_signed(home, wheel):
    said = {"format": "portcullis-package/v1", "package": "a" * 64, "wheel": wheel}
    payload = canonical_json({**said, "policy": "cheque-digits", "environment": "development"})
    signature = seal_payload(payload, home.signer("owner"), payload_type=PACKAGE_TYPE).encode()
    with pytest.raises(EvidenceError):
        verify_package(signature, "a" * 64, store=TrustStore.load(home.trust))


@pytest.fixture(scope="module")
def store(home):
    return TrustStore.load(home.trust)


@pytest.fixture(scope="module")
def one_signature(home, store) -> tuple[bytes, bytes]:
    """A package and one signature of it: another one would be of another length now and then."""
    package, wheel = small_package(), Wheel("a.whl", sha256(b"wheel"))
    signature = sign_package(sha256(package), wheel, store=store, owner=home.signer("owner"))
    assert verify_package(signature, sha256(package), store=store) == wheel
    return package, signature


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_byte_of_package_or_signature_can_be_altered(store, one_signature, data):
    whole = list(one_signature)
    which = data.draw(st.integers(0, 1))
    position = data.draw(st.integers(0, len(whole[which]) - 1))
    edit = data.draw(st.sampled_from(["alter", "delete", "insert", "cut"]))
    byte = bytes([data.draw(st.integers(0, 255).filter(lambda it: it != whole[which][position]))])
    before, at, after = whole[which][:position], whole[which][position : position + 1], whole[which][position + 1 :]
    whole[which] = {
        "alter": before + byte + after,
        "delete": before + after,
        "insert": before + byte + at + after,
        "cut": before,
    }[edit]
    with pytest.raises(PortcullisError):
        verify_package(whole[1], sha256(whole[0]), store=store)
