"""Names that Kubernetes allows, and images by their digest."""

import pytest

from portcullis.errors import UsageError
from portcullis.kubernetes_names import require_image, require_namespace, require_object_name

DIGEST = f"@sha256:{'0' * 64}"


@pytest.mark.parametrize("name", ["a", "team-a", "9", "n" * 63])
def test_names_of_namespaces(name):
    require_namespace(name)
    require_object_name(name, "Secret")


NO_NAMES = ["", "A", "-a", "a-", "a b", "a/b", "../a", "a_b", "a\n", "ä", "a\n---\n"]


@pytest.mark.parametrize("name", [*NO_NAMES, "a.b", "n" * 64])
def test_no_names_of_namespaces(name):
    with pytest.raises(UsageError, match="is no name of a Kubernetes namespace"):
        require_namespace(name)


@pytest.mark.parametrize("name", ["a.b", "rows.v1", "n" * 64, "n" * 253])
def test_names_of_objects(name):
    require_object_name(name, "Secret")


@pytest.mark.parametrize("name", [*NO_NAMES, ".a", "a.", "a..b", "a.-b", "n" * 254])
def test_no_names_of_objects(name):
    with pytest.raises(UsageError, match="is no name of a Secret") as caught:
        require_object_name(name, "Secret")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["python", "ghcr.io/a/b", "localhost:5000/a/b", "a/b:V1.2_x", "Registry.example/a"])
def test_images_by_digest(name):
    require_image(name + DIGEST)


@pytest.mark.parametrize(
    "image",
    [
        *("", "python", "python:3.12", DIGEST, f"a b{DIGEST}", f"a@b{DIGEST}", f"a{DIGEST}\n", f"/a{DIGEST}"),
        *(f"a{DIGEST[:-1]}", f"a{DIGEST}0", f"a@sha256:{'A' * 64}", f"a@sha512:{'0' * 64}", f"$(X){DIGEST}"),
        f"{'a' * 256}{DIGEST}",
    ],
)
def test_no_images_by_digest(image):
    with pytest.raises(UsageError, match="is no image by digest") as caught:
        require_image(image)
    assert "\n" not in str(caught.value)
