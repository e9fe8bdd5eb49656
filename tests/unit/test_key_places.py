"""One contract for every place that a sealing key can be in, whatever holds it."""

import base64
import json
import logging
import traceback
from dataclasses import dataclass
from typing import Any

import key_services
import pytest
from cluster.core_api import CoreApi
from cluster.core_api import serving as serving_api
from key_services import AwsKms, AzureKeyVault, GoogleKms, Vault

from portcullis import kubernetes_api
from portcullis.errors import KeyMaterialError, PortcullisError, SealError
from portcullis.files import write_bytes
from portcullis.keys.https import UNSAFE_ENV
from portcullis.sealing.recipients import (
    SealingPrivateKey,
    claimed_recipients,
    opener_at,
    recipient_at,
    unwrap_dek,
    wrap_dek,
)

DEK = bytes(range(100, 132))
CONTEXT = {"digest": "5f" * 32, "model": "cheque-digits"}
PAIR, OTHER = SealingPrivateKey.generate(), SealingPrivateKey.generate()
SECRETS = [DEK, key_services.TOKEN.encode(), key_services.JWT.encode(), PAIR.x25519.private_bytes_raw()]
VERSION = key_services.VERSION


@dataclass
class Place:
    """Where a key is: what to seal for, what to open with, another key of the kind, and how it is taken away."""

    recipient: str
    opener: str
    other: str
    disable: Any
    service: Any = None


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """A process that nothing authorises: no credentials of whoever runs the tests."""
    for name in ("VAULT_TOKEN", "VAULT_ADDR", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def files_below(folder):
    for name, data in {
        "serving.pem": PAIR.to_pem(),
        "serving.pub.pem": PAIR.public_key().to_pem(),
        "other.pem": OTHER.to_pem(),
    }.items():
        write_bytes(folder / name, data, mode=0o600)
    return folder


@pytest.fixture(params=["file", "env", "k8s-secret", "hpke", "aws-kms", "gcp-kms", "azure-kv", "vault-transit"])
def place(request, clean, tmp_path):
    kind = request.param
    if kind in ("file", "hpke"):
        prefix = "hpke:" if kind == "hpke" else ""
        folder = files_below(tmp_path / "keys")
        uris = [f"{prefix}file:{folder}/{name}" for name in ("serving.pub.pem", "serving.pem", "other.pem")]
        yield Place(*uris, (folder / "serving.pem").unlink)
    elif kind == "env":
        clean.setenv("A_PUBLIC", PAIR.public_key().to_pem().decode())
        clean.setenv("A_PRIVATE", PAIR.to_pem().decode())
        clean.setenv("AN_OTHER", OTHER.to_pem().decode())
        yield Place("env:A_PUBLIC", "env:A_PRIVATE", "env:AN_OTHER", lambda: clean.delenv("A_PRIVATE"))
    elif kind == "k8s-secret":
        folder = files_below(tmp_path / "keys")
        data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.iterdir()}
        api = CoreApi(objects={"namespaces/serving/secrets/keys": {"kind": "Secret", "data": data}})
        with serving_api(api):
            clean.setattr(kubernetes_api, "api_client", lambda: client_of(api, tmp_path))
            uris = [f"k8s-secret:serving/keys/{name}" for name in ("serving.pub.pem", "serving.pem", "other.pem")]
            yield Place(*uris, lambda: api.forbidden.add("secrets"))
    else:
        service, ours, other, name = {
            "aws-kms": (AwsKms(), *(key_services.arn_of(name) for name in ("serving", "other", "serving"))),
            "gcp-kms": (GoogleKms(folder=tmp_path), key_services.GCP_KEY, key_services.GCP_OTHER, key_services.GCP_KEY),
            "azure-kv": (
                AzureKeyVault(),
                *(f"acme-models.vault.azure.net/keys/{name}/{VERSION}" for name in ("serving", "other")),
                "serving",
            ),
            "vault-transit": (
                Vault(),
                *(f"vault.acme.example:8200/transit/keys/{name}" for name in ("serving", "other")),
                "serving",
            ),
        }[kind]
        with key_services.serving(service):
            for variable, value in {**service.environment, UNSAFE_ENV: service.url}.items():
                clean.setenv(variable, value)
            ours, other = f"{kind}:{ours}", f"{kind}:{other}"
            yield Place(ours, ours, other, lambda: service.disabled.add(name), service)


def client_of(api, folder):
    from kubernetes import client, config

    configuration = client.Configuration()
    config.load_kube_config(str(api.kubeconfig(folder / "kubeconfig")), client_configuration=configuration)
    return client.ApiClient(configuration)


def altered(sidecar):
    fields = json.loads(sidecar)
    wrapped = bytearray.fromhex(fields["recipients"][0]["wrapped"])
    wrapped[-1] ^= 1
    fields["recipients"][0]["wrapped"] = wrapped.hex()
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


def test_every_place_keeps_the_contract(place, caplog):
    caplog.set_level(logging.DEBUG)
    seen = []

    def refused(error, sidecar, uri, context=CONTEXT):
        with pytest.raises(error) as caught:
            unwrap_dek(sidecar, opener_at(uri), context=context)
        assert "\n" not in str(caught.value)
        seen.append("".join(traceback.format_exception(caught.value)))

    recipient = recipient_at(place.recipient)
    sidecar = wrap_dek(DEK, [recipient], context=CONTEXT)
    assert claimed_recipients(sidecar) == [recipient.key_id]
    assert opener_at(place.opener).key_id == recipient.key_id
    assert unwrap_dek(sidecar, opener_at(place.opener), context=CONTEXT) == DEK
    assert wrap_dek(DEK, [recipient], context=CONTEXT) != sidecar, "wrapping is not deterministic"

    refused(SealError, sidecar, place.opener, {**CONTEXT, "digest": "60" * 32})
    refused(SealError, sidecar, place.opener, {**CONTEXT, "model": "another"})
    refused(SealError, altered(sidecar), place.opener)
    refused(SealError, sidecar, place.other)
    place.disable()
    refused(KeyMaterialError, sidecar, place.opener)

    told = "\n".join([*seen, caplog.text, repr(recipient), str(recipient), sidecar.decode()])
    for secret in SECRETS:
        for spelling in (secret.decode("latin-1"), secret.hex(), base64.b64encode(secret).decode()):
            assert spelling not in told


def test_what_is_sealed_for_a_place_opens_by_it_and_is_wrapped_anew_as_it_lies(place, tmp_path):
    from portcullis.sealing.sealed import open_directory, rewrap, seal_files, sealed_digest

    files = {"model.json": b"{}", "weights.safetensors": bytes(range(256)) * 40}
    seal_files(files, tmp_path / "sealed", recipients=[recipient_at(place.recipient)], context=CONTEXT)
    before, wrapped = sealed_digest(tmp_path / "sealed"), (tmp_path / "sealed" / "recipients.json").read_bytes()
    if place.service is not None and hasattr(place.service, "symmetric"):
        for versions in place.service.symmetric.values():
            versions.append(bytes(32))  # rotated by the service: what was wrapped before stays open
    rewrap(
        tmp_path / "sealed", opener=opener_at(place.opener), recipients=[recipient_at(place.recipient)], context=CONTEXT
    )
    assert sealed_digest(tmp_path / "sealed") == before
    assert (tmp_path / "sealed" / "recipients.json").read_bytes() != wrapped
    assert open_directory(tmp_path / "sealed", private_key=opener_at(place.opener), context=CONTEXT) == files
    place.disable()
    with pytest.raises(KeyMaterialError):
        open_directory(tmp_path / "sealed", private_key=opener_at(place.opener), context=CONTEXT)
    after = (tmp_path / "sealed" / "recipients.json").read_bytes()
    with pytest.raises(PortcullisError):
        rewrap(tmp_path / "sealed", opener=opener_at(place.opener), recipients=[OTHER.public_key()], context=CONTEXT)
    assert (tmp_path / "sealed" / "recipients.json").read_bytes() == after
