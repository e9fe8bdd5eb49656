"""The server's manifests and the deployer's role are what Kubernetes' own schemas allow, to the field."""

import kubernetes_validate
import pytest
from cluster.world import CLUSTER, objects

from portcullis.deploy.manifests import deployer_role

VERSIONS = ["1.28", "1.31", "1.34", "1.37"]
EVERYTHING = {
    "store": {
        "peers": [{"namespace": {"name": "store"}, "pods": {"app": "minio"}, "port": 9000}],
        "endpoint": "http://minio.store:9000",
        "secret": "store",
    },
    "runtime_class": "gvisor",
    "gpus": 1,
    "service_account_annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/server"},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["least", "everything"])
def test_the_servers_objects_are_valid(version, changes):
    for it in objects(**changes):
        kubernetes_validate.validate(it, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_deployers_role_is_valid(version):
    for it in deployer_role("digits", CLUSTER["namespace"]):
        kubernetes_validate.validate(it, version, strict=True)


def test_the_schemas_find_a_field_that_does_not_exist():
    altered = objects()[-1]
    altered["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(altered, VERSIONS[-1], strict=True)


def test_no_object_holds_a_secret_or_opens_the_internet():
    text = str(objects(**EVERYTHING))
    assert "PRIVATE KEY" not in text and "secretKeyRef" not in text
    assert "0.0.0.0/0" not in text and "::/0" not in text
